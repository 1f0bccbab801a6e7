/* SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700

#include "server/catalog.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/mem.h"
#include "engine/generation.h"
#include "engine/pack.h"

struct kn_catalog {
    char *directory;
    bool single; /* directory is itself a model folder */
    kn_device *device;
    int32_t count;
    kn_catalog_model models[KN_CATALOG_MODELS_MAX]; /* in the order they were found; sorted by name at each scan */
    int32_t alias_count;
    kn_catalog_alias aliases[KN_CATALOG_ALIASES_MAX];
};

/* OpenAI's names stand for the default model unless the operator says otherwise: its clients name nothing else. */
static const char *const orphaned[] = {"sora-2", "sora-2-pro"};

static bool name_valid(const char *name)
{
    static const char first[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    static const char rest[] = "abcdefghijklmnopqrstuvwxyz0123456789._-";
    const size_t length = strlen(name);
    return length > 0 && length < KN_MODEL_NAME_BYTES && strchr(first, name[0]) && strspn(name, rest) == length;
}

/* ---- one folder ---- */

/* Modification time of folder/model_index.json in seconds; -1: no model folder. */
static int64_t model_time(const char *folder)
{
    struct stat there;
    char *index = kn_format("%s/model_index.json", folder);
    const bool found = index && stat(index, &there) == 0 && S_ISREG(there.st_mode);
    kn_free(index);
    return found ? (int64_t)there.st_mtime : -1;
}

static void forget(kn_catalog_model *model, const char *why)
{
    kn_model_close(&model->planner);
    model->repository = NULL;
    model->available = false;
    snprintf(model->error, sizeof model->error, "%s", why);
}

static void read_model(kn_catalog *c, kn_catalog_model *model, int64_t created)
{
    if (model->available && model->created == created) return;
    kn_model_close(&model->planner);
    model->created = created;
    kn_status st = kn_model_open(
        &model->planner,
        &(kn_model_params){.directory = model->directory, .device = c->device, .precision = KN_PRECISION_AUTO});
    if (st != KN_OK) {
        forget(model, kn_fail_message());
        kn_log(KN_LOG_WARNING, "model %s cannot be used: %s", model->name, model->error);
        return;
    }
    model->repository = kn_model_repository(model->planner);
    model->available = true;
    model->error[0] = '\0';
}

static kn_status add(kn_catalog *c, const char *name, const char *directory, kn_catalog_model **out)
{
    for (int32_t i = 0; i < c->count; i++)
        if (strcmp(c->models[i].name, name) == 0) {
            *out = &c->models[i];
            return KN_OK;
        }
    if (c->count == KN_CATALOG_MODELS_MAX)
        return kn_fail(KN_UNSUPPORTED, "%s: more than %d models", c->directory, KN_CATALOG_MODELS_MAX);
    kn_catalog_model *model = &c->models[c->count];
    *model = (kn_catalog_model){.directory = kn_strdup(directory)};
    if (!model->directory) return KN_NOMEM;
    snprintf(model->name, sizeof model->name, "%s", name);
    c->count++;
    *out = model;
    return KN_OK;
}

/* ---- the directory ---- */

static kn_status scan_folder(kn_catalog *c, const char *name, const char *folder)
{
    kn_status st = KN_OK;
    kn_catalog_model *model = NULL;
    const int64_t created = model_time(folder);
    if (created < 0) return KN_OK;
    if (!name_valid(name)) {
        kn_log(KN_LOG_WARNING, "model folder \"%s\" is left out: a name is made of a-z, 0-9, '.', '_' and '-'", name);
        return KN_OK;
    }
    KN_TRY(add(c, name, folder, &model));
    read_model(c, model, created);
fail:
    return st;
}

static kn_status scan_single(kn_catalog *c)
{
    char resolved[4096]; /* PATH_MAX on Linux */
    if (!realpath(c->directory, resolved))
        return kn_fail(KN_NOT_FOUND, "--models %s: %s", c->directory, strerror(errno));
    return scan_folder(c, strrchr(resolved, '/') + 1, c->directory);
}

static kn_status scan_all(kn_catalog *c)
{
    kn_status st = KN_OK;
    char *folder = NULL;
    DIR *directory = opendir(c->directory);
    if (!directory) return kn_fail(KN_NOT_FOUND, "--models %s: %s", c->directory, strerror(errno));
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (entry->d_name[0] == '.') continue;
        folder = kn_format("%s/%s", c->directory, entry->d_name);
        if (!folder) {
            st = KN_NOMEM;
            goto fail;
        }
        KN_TRY(scan_folder(c, entry->d_name, folder));
        kn_free(folder);
        folder = NULL;
    }
fail:
    kn_free(folder);
    closedir(directory);
    return st;
}

kn_status kn_catalog_rescan(kn_catalog *c)
{
    for (int32_t i = 0; i < c->count; i++)
        if (c->models[i].available && model_time(c->models[i].directory) < 0)
            forget(&c->models[i], "its folder is gone");
    return c->single ? scan_single(c) : scan_all(c);
}

kn_status kn_catalog_open(kn_catalog **out, const char *directory, const kn_catalog_alias *aliases, int32_t count)
{
    kn_status st = KN_OK;
    KN_REQUIRE(count >= 0 && count <= KN_CATALOG_ALIASES_MAX);
    kn_catalog *c = kn_alloc(sizeof *c);
    if (!c) return KN_NOMEM;
    c->directory = kn_strdup(directory);
    if (!c->directory) {
        st = KN_NOMEM;
        goto fail;
    }
    if (count > 0) memcpy(c->aliases, aliases, (size_t)count * sizeof *aliases);
    c->alias_count = count;
    c->single = model_time(directory) >= 0;
    KN_TRY(kn_device_open(&c->device, &(kn_device_params){.name = "cpu", .threads = 1}));
    KN_TRY(kn_catalog_rescan(c));
    if (c->count == 0)
        KN_TRY(
            kn_fail(KN_NOT_FOUND, "--models %s: no folder in it has a model_index.json (diffusers layout)", directory));
    for (int32_t i = 0; i < count; i++)
        if (!kn_catalog_find(c, aliases[i].model))
            KN_TRY(kn_fail(KN_NOT_FOUND, "alias %s: there is no model \"%s\"", aliases[i].name, aliases[i].model));
    *out = c;
    return KN_OK;
fail:
    kn_catalog_close(&c);
    return st;
}

void kn_catalog_close(kn_catalog **catalog)
{
    kn_catalog *c = *catalog;
    if (!c) return;
    for (int32_t i = 0; i < c->count; i++) {
        kn_model_close(&c->models[i].planner);
        kn_free(c->models[i].directory);
    }
    kn_device_close(&c->device);
    kn_free(c->directory);
    kn_free(c);
    *catalog = NULL;
}

/* ---- lookups ---- */

bool kn_catalog_folder(const kn_catalog *c, char *out, size_t bytes)
{
    char resolved[4096]; /* PATH_MAX on Linux */
    if (!realpath(c->directory, resolved)) return false;
    if (c->single) *strrchr(resolved, '/') = '\0';
    return (size_t)snprintf(out, bytes, "%s", resolved[0] ? resolved : "/") < bytes;
}

int32_t kn_catalog_count(const kn_catalog *c)
{
    return c->count;
}

kn_catalog_model *kn_catalog_at(const kn_catalog *c, int32_t index)
{
    return (kn_catalog_model *)(uintptr_t)&c->models[index];
}

int32_t kn_catalog_index(const kn_catalog *c, const kn_catalog_model *model)
{
    return (int32_t)(model - c->models);
}

bool kn_catalog_serves(const kn_catalog_model *model)
{
    return model->available && !model->offline;
}

static kn_catalog_model *first_available(const kn_catalog *c)
{
    const kn_catalog_model *first = NULL;
    for (int32_t i = 0; i < c->count; i++)
        if (kn_catalog_serves(&c->models[i]) && (!first || strcmp(c->models[i].name, first->name) < 0))
            first = &c->models[i];
    return (kn_catalog_model *)(uintptr_t)first;
}

kn_catalog_model *kn_catalog_find(const kn_catalog *c, const char *name)
{
    if (!name || !name[0]) return first_available(c);
    for (int32_t i = 0; i < c->count; i++)
        if (strcmp(c->models[i].name, name) == 0) return kn_catalog_at(c, i);
    for (int32_t i = 0; i < c->alias_count; i++)
        if (strcmp(c->aliases[i].name, name) == 0) return kn_catalog_find(c, c->aliases[i].model);
    for (size_t i = 0; i < sizeof orphaned / sizeof *orphaned; i++)
        if (strcmp(orphaned[i], name) == 0) return first_available(c);
    return NULL;
}

kn_status kn_catalog_measure(kn_catalog_size *out, const kn_catalog_model *model, const kn_request *request)
{
    kn_status st = KN_OK;
    kn_memory_plan plan;
    const kn_latent_shape latent = kn_request_latent(request, model->repository);
    KN_TRY(kn_model_plan(model->planner, request, &plan));
    const kn_dit_sequence sequence = {.t = latent.t, .h = latent.h, .w = latent.w};
    *out = (kn_catalog_size){
        .tokens = (int32_t)kn_sequence_rows(&sequence),
        .sequences = request->guidance > 1.0 ? 2 : 1,
        .text_tokens = plan.text_tokens,
        .latent_frames = latent.t,
        .latent_pixels = latent.h * latent.w,
        .state_bytes = plan.state,
        .decoder_bytes = plan.decoder,
        .workspace_bytes = plan.text_workspace > plan.denoise_workspace ? plan.text_workspace : plan.denoise_workspace,
    };
fail:
    return st;
}

/* FLOPs of the decoder per pixel of one frame: two causal 3x3x3 convolutions a residual block, at each level a quarter
 * of the pixels of the one above. Attention, 1x1 convolutions and the smaller number of frames at the coarse levels
 * are left out: the scheduler corrects the figure as soon as it has measured one. */
static double decode_flop(const kn_wan_vae_config *vae)
{
    double flop = 0.0, share = 1.0;
    for (int32_t i = 0; i < vae->stages; i++, share /= 4.0) {
        const double channels = (double)vae->decoder_base_dim * vae->dim_mult[i];
        flop += share * 2.0 * (vae->num_res_blocks + 1) * 27.0 * 2.0 * channels * channels;
    }
    return flop;
}

kn_status kn_catalog_cost(kn_cost_model *out, const kn_catalog_model *model)
{
    kn_status st = KN_OK;
    const kn_repository *r = model->repository;
    kn_memory_plan plan;
    kn_request request = kn_request_empty();
    request.prompt = kn_strdup("");
    if (!request.prompt) return KN_NOMEM;
    KN_TRY(kn_request_resolve(&request, r, NULL));
    KN_TRY(kn_model_plan(model->planner, &request, &plan));
    const double width = (double)r->dit.num_attention_heads * r->dit.attention_head_dim;
    const double inner = (double)r->text.num_heads * r->text.d_kv, d = r->text.d_model;
    int32_t frames = 1;
    for (int32_t i = 0; i + 1 < r->vae.stages; i++) frames *= r->vae.temporal_downsample[i] ? 2 : 1;
    *out = (kn_cost_model){
        .layers = r->dit.num_layers,
        .width = (int32_t)width,
        .ffn = r->dit.ffn_dim,
        .heads_width = (int32_t)width,
        .transformer_bytes = plan.transformer,
        .text_flop_per_token = r->text.num_layers * 2.0 * (4.0 * d * inner + 3.0 * d * r->text.d_ff) +
                               r->dit.num_layers * 4.0 * width * width,
        .text_bytes = kn_weights_file_bytes(kn_model_weights(model->planner, KN_TEXT_ENCODER)),
        .decode_flop = decode_flop(&r->vae),
        .frames_per_latent = frames,
        .resident_bytes = plan.transformer + plan.vae,
    };
fail:
    kn_request_release(&request);
    return st;
}
