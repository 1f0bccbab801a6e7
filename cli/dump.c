/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/dump.h"

#include <string.h>

#include "base/mem.h"
#include "engine/weights.h"

static kn_dump_tensor *find(kn_dump *dump, const char *name)
{
    for (int32_t i = 0; i < dump->count; i++)
        if (strcmp(dump->tensors[i].name, name) == 0) return &dump->tensors[i];
    return NULL;
}

/* `items` tensors of `rank` dimensions, stacked along a new first one when items > 0. */
static kn_status add(kn_dump *dump, const char *name, int64_t items, int32_t rank, const int64_t *shape)
{
    kn_dump_tensor *t = &dump->tensors[dump->count];
    *t = (kn_dump_tensor){.name = name, .item = 1};
    if (items > 0) t->shape[t->rank++] = items;
    for (int32_t i = 0; i < rank; i++) {
        t->shape[t->rank++] = shape[i];
        t->item *= shape[i];
    }
    t->data = kn_alloc_array((size_t)(t->item * (items > 0 ? items : 1)), sizeof *t->data);
    if (!t->data) return KN_NOMEM;
    dump->count++;
    return KN_OK;
}

kn_status kn_dump_create(kn_dump *dump, const kn_request *request, const kn_repository *repository)
{
    kn_status st = KN_OK;
    *dump = (kn_dump){.height = request->height, .width = request->width};
    kn_schedule schedule;
    KN_TRY(kn_request_schedule(&schedule, request, repository));
    const kn_latent_shape l = kn_request_latent(request, repository);
    const int64_t latent[] = {l.channels, l.t, l.h, l.w}, picture[] = {3, request->height, request->width};
    const int64_t steps = schedule.steps, sigmas = steps + 1;
    KN_TRY(add(dump, "noise", 0, 4, latent));
    KN_TRY(add(dump, "timesteps", 0, 1, &steps));
    KN_TRY(add(dump, "sigmas", 0, 1, &sigmas));
    KN_TRY(add(dump, "velocity", steps * (request->guidance > 1.0 ? 2 : 1), 4, latent));
    KN_TRY(add(dump, "latents", steps, 4, latent));
    KN_TRY(add(dump, "frames", request->frames, 3, picture));
    memcpy(find(dump, "timesteps")->data, schedule.timesteps, (size_t)steps * sizeof(float));
    memcpy(find(dump, "sigmas")->data, schedule.sigmas, (size_t)sigmas * sizeof(float));
fail:
    return st;
}

void kn_dump_destroy(kn_dump *dump)
{
    for (int32_t i = 0; i < dump->count; i++) kn_free(dump->tensors[i].data);
    dump->count = 0;
}

static void put(kn_dump_tensor *t, int64_t index, const float *data)
{
    memcpy(t->data + index * t->item, data, (size_t)t->item * sizeof *data);
}

static kn_status on_tensor(void *context, const char *name, int64_t index, const float *data, int32_t rank,
                           const int64_t *shape)
{
    kn_dump *dump = context;
    if (!find(dump, name)) { /* text: its length is known only now */
        kn_status st = add(dump, name, 0, rank, shape);
        if (st != KN_OK) return st;
    }
    put(find(dump, name), index, data);
    return KN_OK;
}

kn_tensor_tap kn_dump_tap(kn_dump *dump)
{
    return (kn_tensor_tap){.context = dump, .tensor = on_tensor};
}

kn_status kn_dump_frame(kn_dump *dump, int64_t index, const float *planes)
{
    put(find(dump, "frames"), index, planes);
    return KN_OK;
}

kn_status kn_dump_write(const kn_dump *dump, const char *path)
{
    kn_status st = KN_OK;
    kn_safetensors_writer *writer = NULL;
    kn_safetensors_spec specs[KN_DUMP_TENSORS_MAX];
    for (int32_t i = 0; i < dump->count; i++) {
        const kn_dump_tensor *t = &dump->tensors[i];
        specs[i] = (kn_safetensors_spec){.name = t->name, .dtype = KN_F32, .rank = t->rank};
        memcpy(specs[i].shape, t->shape, sizeof t->shape);
    }
    KN_TRY(kn_safetensors_create(&writer, path, specs, (size_t)dump->count, NULL, NULL, 0));
    for (int32_t i = 0; i < dump->count; i++) {
        const kn_dump_tensor *t = &dump->tensors[i];
        int64_t elements = 1;
        for (int32_t d = 0; d < t->rank; d++) elements *= t->shape[d];
        KN_TRY(kn_safetensors_write(writer, (size_t)i, 0, t->data, (size_t)elements * sizeof *t->data));
    }
    return kn_safetensors_finish(&writer);
fail:
    kn_safetensors_abandon(&writer);
    return st;
}
