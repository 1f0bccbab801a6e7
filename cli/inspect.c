/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora model inspect: what a model folder holds, and what a run of a given size
 * would need, without running it. Opening the model is the check: every tensor the
 * networks will ask for is looked up and its shape compared. */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <jansson.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/table.h"
#include "engine/generation.h"
#include "engine/media.h"
#include "engine/pack.h"

enum { TYPES_MAX = 8, TEXT_BYTES = 160 };

typedef struct settings {
    const char *directory, *preset, *device, *isa;
    kn_cli_extent size;
    int32_t frames, layers, threads;
    kn_precision precision, vae_precision;
    bool json, tensors;
} settings;

/* Tensors of one type in a component's files. */
typedef struct type_share {
    const char *name; /* as the file has it: "BF16" */
    uint64_t tensors, parameters, bytes;
} type_share;

typedef struct component_report {
    const char *class_name;
    uint64_t tensors, parameters, file_bytes; /* 0 for a preset, which has no files */
    type_share types[TYPES_MAX];
    int32_t type_count;
    char shapes[TEXT_BYTES]; /* for people */
} component_report;

typedef struct report {
    const settings *s;
    kn_device *device;
    kn_device_info device_info;
    kn_model *model;
    const kn_repository *repository;
    component_report components[KN_COMPONENT_COUNT];
    kn_request request; /* resolved */
    kn_request_notes notes;
    kn_latent_shape latent;
    int64_t tokens; /* of one sequence */
    kn_memory_plan plan;
    uint64_t media_bytes; /* of the video encoder */
} report;

/* ---- gathering ---- */

static kn_status count_tensors(component_report *c, const kn_weights *weights)
{
    c->file_bytes = kn_weights_file_bytes(weights);
    for (size_t i = 0; i < kn_weights_count(weights); i++) {
        const kn_weights_entry entry = kn_weights_entry_at(weights, i);
        uint64_t parameters = 1;
        for (int32_t d = 0; d < entry.rank; d++) parameters *= (uint64_t)entry.shape[d];
        int32_t t = 0;
        while (t < c->type_count && strcmp(c->types[t].name, entry.dtype_name) != 0) t++;
        if (t == TYPES_MAX) return kn_fail(KN_UNSUPPORTED, "%s: more than %d tensor types", entry.file, TYPES_MAX);
        if (t == c->type_count) c->types[c->type_count++].name = entry.dtype_name;
        c->types[t].tensors++;
        c->types[t].parameters += parameters;
        c->types[t].bytes += entry.bytes;
        c->tensors++;
        c->parameters += parameters;
    }
    return KN_OK;
}

static void describe_shapes(report *r)
{
    const kn_umt5_config *text = &r->repository->text;
    const kn_wan_dit_config *dit = &r->repository->dit;
    const kn_wan_vae_config *vae = &r->repository->vae;
    component_report *c = r->components;
    c[KN_TEXT_ENCODER].class_name = "UMT5EncoderModel";
    snprintf(c[KN_TEXT_ENCODER].shapes, TEXT_BYTES, "%d layers, %d heads x %d, width %d, feed-forward %d",
             text->num_layers, text->num_heads, text->d_kv, text->d_model, text->d_ff);
    c[KN_TRANSFORMER].class_name = "WanTransformer3DModel";
    snprintf(c[KN_TRANSFORMER].shapes, TEXT_BYTES, "%d layers, %d heads x %d, width %d, feed-forward %d",
             dit->num_layers, dit->num_attention_heads, dit->attention_head_dim,
             dit->num_attention_heads * dit->attention_head_dim, dit->ffn_dim);
    c[KN_VAE].class_name = "AutoencoderKLWan";
    int used = snprintf(c[KN_VAE].shapes, TEXT_BYTES, "base %d x", vae->base_dim);
    for (int32_t i = 0; i < vae->stages && used < TEXT_BYTES; i++)
        used += snprintf(c[KN_VAE].shapes + used, (size_t)(TEXT_BYTES - used), "%s%d", i ? "," : " ", vae->dim_mult[i]);
    if (used < TEXT_BYTES)
        snprintf(c[KN_VAE].shapes + used, (size_t)(TEXT_BYTES - used), ", %d blocks, %d latent channels, 1/%d x 1/%d",
                 vae->num_res_blocks, vae->z_dim, kn_vae_temporal_factor(vae), kn_vae_spatial_factor(vae));
}

static kn_status resolve_request(report *r)
{
    kn_status st = KN_OK;
    const settings *s = r->s;
    kn_request *q = &r->request;
    q->prompt = kn_strdup("");
    if (!q->prompt) return KN_NOMEM;
    q->width = s->size.width;
    q->height = s->size.height;
    q->frames = s->frames;
    KN_TRY(kn_request_resolve(q, r->repository, &r->notes));
    r->latent = kn_request_latent(q, r->repository);
    r->tokens = kn_sequence_rows(&(kn_dit_sequence){.t = r->latent.t, .h = r->latent.h, .w = r->latent.w});
    const kn_media_params media = {.path = "out.mp4",
                                   .width = q->width,
                                   .height = q->height,
                                   .fps_numerator = q->fps_numerator,
                                   .fps_denominator = q->fps_denominator};
    r->media_bytes = kn_media_bytes(&media);
    kn_free(q->prompt); /* without one the plan counts text at its largest */
    q->prompt = NULL;
    KN_TRY(kn_model_plan(r->model, q, &r->plan));
fail:
    return st;
}

static kn_status gather(report *r)
{
    kn_status st = KN_OK;
    const settings *s = r->s;
    KN_TRY(kn_device_open(&r->device, &(kn_device_params){.name = s->device, .threads = s->threads, .isa = s->isa}));
    kn_device_describe(r->device, &r->device_info);
    KN_TRY(kn_model_open(&r->model, &(kn_model_params){.directory = s->directory,
                                                       .preset = s->preset,
                                                       .preset_layers = s->layers,
                                                       .device = r->device,
                                                       .precision = s->precision,
                                                       .vae_precision = s->vae_precision}));
    r->repository = kn_model_repository(r->model);
    describe_shapes(r);
    if (!s->preset)
        for (int i = 0; i < KN_COMPONENT_COUNT; i++)
            KN_TRY(count_tensors(&r->components[i], kn_model_weights(r->model, (kn_component)i)));
    KN_TRY(resolve_request(r));
fail:
    return st;
}

/* The file the vocabulary was read from. */
static const char *tokenizer_file(const report *r)
{
    char *path = kn_format("%s/tokenizer.json", r->repository->tokenizer_directory);
    const bool has = path && access(path, R_OK) == 0;
    kn_free(path);
    return has ? "tokenizer.json" : "spiece.model";
}

static const char *sampler_class(const report *r)
{
    return r->repository->sampler.kind == KN_SAMPLER_UNIPC ? "UniPCMultistepScheduler"
                                                           : "FlowMatchEulerDiscreteScheduler";
}

static const char *compute_name(const report *r, kn_component component)
{
    return kn_cli_type_name(kn_model_compute(r->model, component));
}

typedef struct plan_line {
    const char *key, *meaning;
    uint64_t bytes;
} plan_line;

enum { PLAN_LINES = 10 };

static void list_plan(plan_line out[PLAN_LINES], const report *r)
{
    const kn_memory_plan *p = &r->plan;
    const plan_line lines[PLAN_LINES] = {
        {"process", "scratch of the threads, tokenizer, norms of the text encoder", p->process},
        {"transformer", "prepared weights", p->transformer},
        {"vae", "prepared weights of the decoder", p->vae},
        {"text_encoder", "prepared weights, on a GPU", p->text_encoder},
        {"state", "latents, sampler history, text keys and values", p->state},
        {"text_workspace", "while encoding the text; on a CPU its matrices stay in the page cache", p->text_workspace},
        {"denoise_workspace", "while denoising", p->denoise_workspace},
        {"decoder", "while decoding, whatever the number of frames", p->decoder},
        {"peak", "the most at one time", p->peak},
        {"media", "besides: the video encoder, estimated", r->media_bytes},
    };
    memcpy(out, lines, sizeof lines);
}

/* ---- tables ---- */

/* "1.42 B" parameters. */
static const char *short_count(char text[16], uint64_t count)
{
    static const char *const units[] = {"", " K", " M", " B", " T"};
    double value = (double)count;
    int unit = 0;
    for (; value >= 1000.0 && unit < 4; unit++) value /= 1000.0;
    snprintf(text, 16,
             unit == 0 || value >= 100.0 ? "%.0f%s"
             : value >= 10.0             ? "%.1f%s"
                                         : "%.2f%s",
             value, units[unit]);
    return text;
}

static kn_status print_components(const report *r)
{
    char a[16], b[16], types[TEXT_BYTES];
    kn_table table = kn_table_start("lllrrl");
    const char *const head[] = {"component", "class", "types", "parameters", "files", "shapes"};
    for (int i = 0; i < 6; i++) kn_table_cell(&table, "%s", head[i]);
    for (int i = 0; i < KN_COMPONENT_COUNT; i++) {
        const component_report *c = &r->components[i];
        int used = snprintf(types, sizeof types, "%s", c->type_count == 0 ? "random" : "");
        for (int32_t t = 0; t < c->type_count && used < TEXT_BYTES; t++)
            used += snprintf(types + used, (size_t)(TEXT_BYTES - used), "%s%s", t ? " " : "", c->types[t].name);
        kn_table_cell(&table, "%s", kn_component_name((kn_component)i));
        kn_table_cell(&table, "%s", c->class_name);
        kn_table_cell(&table, "%s", types);
        kn_table_cell(&table, "%s", c->tensors ? short_count(a, c->parameters) : "-");
        kn_table_cell(&table, "%s", c->tensors ? kn_cli_bytes(b, c->file_bytes) : "-");
        kn_table_cell(&table, "%s", c->shapes);
    }
    return kn_table_finish(&table, stdout);
}

static kn_status print_settings(const report *r)
{
    const kn_repository *p = r->repository;
    const kn_sampler_config *sampler = &p->sampler;
    kn_table table = kn_table_start("ll");
    kn_table_cell(&table, "setting");
    kn_table_cell(&table, "value");
    kn_table_cell(&table, "tokenizer");
    if (kn_model_tokenizer(r->model))
        kn_table_cell(&table, "unigram from %s, %d ids", tokenizer_file(r),
                      kn_tokenizer_vocabulary(kn_model_tokenizer(r->model)));
    else
        kn_table_cell(&table, "none");
    kn_table_cell(&table, "sampler");
    if (sampler->kind == KN_SAMPLER_UNIPC)
        kn_table_cell(&table, "%s, order %d, shift %g, %d timesteps", sampler_class(r), sampler->solver_order,
                      (double)sampler->shift, sampler->num_train_timesteps);
    else
        kn_table_cell(&table, "%s, shift %g, %d timesteps", sampler_class(r), (double)sampler->shift,
                      sampler->num_train_timesteps);
    kn_table_cell(&table, "defaults");
    kn_table_cell(&table, "%dx%d, %d frames at %g fps, %d steps, guidance %g", p->default_width, p->default_height,
                  p->default_frames, (double)p->default_fps, p->default_steps, (double)p->default_guidance);
    return kn_table_finish(&table, stdout);
}

static kn_status print_plan(const report *r)
{
    plan_line lines[PLAN_LINES];
    list_plan(lines, r);
    kn_table table = kn_table_start("lrrl");
    kn_table_cell(&table, "memory");
    kn_table_cell(&table, "bytes");
    kn_table_cell(&table, " ");
    kn_table_cell(&table, "what");
    for (int i = 0; i < PLAN_LINES; i++) {
        char text[16];
        kn_table_cell(&table, "%s", lines[i].key);
        kn_table_cell(&table, "%" PRIu64, lines[i].bytes);
        kn_table_cell(&table, "%s", kn_cli_bytes(text, lines[i].bytes));
        kn_table_cell(&table, "%s", lines[i].meaning);
    }
    return kn_table_finish(&table, stdout);
}

static void put_shape(char out[TEXT_BYTES], const kn_weights_entry *entry)
{
    int used = snprintf(out, TEXT_BYTES, "[");
    for (int32_t d = 0; d < entry->rank; d++)
        used += snprintf(out + used, (size_t)(TEXT_BYTES - used), "%s%" PRId64, d ? ", " : "", entry->shape[d]);
    snprintf(out + used, (size_t)(TEXT_BYTES - used), "]");
}

static kn_status print_tensors(const report *r)
{
    static const char *const head[] = {"tensor", "type", "shape", "bytes", "file"};
    kn_table table = kn_table_start("lllrl");
    for (int i = 0; i < 5; i++) kn_table_cell(&table, "%s", head[i]);
    for (int c = 0; c < KN_COMPONENT_COUNT; c++) {
        const kn_weights *weights = kn_model_weights(r->model, (kn_component)c);
        for (size_t i = 0; i < kn_weights_count(weights); i++) {
            const kn_weights_entry entry = kn_weights_entry_at(weights, i);
            const char *file = strrchr(entry.file, '/');
            char shape[TEXT_BYTES];
            put_shape(shape, &entry);
            kn_table_cell(&table, "%s", entry.name);
            kn_table_cell(&table, "%s", entry.dtype_name);
            kn_table_cell(&table, "%s", shape);
            kn_table_cell(&table, "%" PRIu64, entry.bytes);
            kn_table_cell(&table, "%s/%s", kn_component_name((kn_component)c), file ? file + 1 : entry.file);
        }
    }
    return kn_table_finish(&table, stdout);
}

static kn_status print_text(const report *r)
{
    kn_status st = KN_OK;
    const kn_request *q = &r->request;
    printf("%s: %s\n\n", r->s->preset ? r->s->preset : r->s->directory, r->repository->class_name);
    KN_TRY(print_components(r));
    putchar('\n');
    KN_TRY(print_settings(r));
    putchar('\n');
    for (int32_t i = 0; i < r->notes.count; i++) printf("%s\n", r->notes.text[i]);
    printf("%dx%d, %d frames: latents %dx%dx%dx%d, %" PRId64 " tokens; %s, autoencoder %s; %s, %s, %d thread%s\n\n",
           q->width, q->height, q->frames, r->latent.channels, r->latent.t, r->latent.h, r->latent.w, r->tokens,
           compute_name(r, KN_TRANSFORMER), compute_name(r, KN_VAE), r->device_info.name, r->device_info.tier,
           r->device_info.threads, r->device_info.threads == 1 ? "" : "s");
    KN_TRY(print_plan(r));
    if (!r->s->tensors) return KN_OK;
    putchar('\n');
    KN_TRY(print_tensors(r));
fail:
    return st;
}

/* ---- JSON ---- */

static json_t *json_types(const component_report *c)
{
    json_t *types = json_object();
    for (int32_t t = 0; t < c->type_count; t++) {
        const type_share *share = &c->types[t];
        json_object_set_new(types, share->name,
                            json_pack("{s:I, s:I, s:I}", "tensors", (json_int_t)share->tensors, "parameters",
                                      (json_int_t)share->parameters, "bytes", (json_int_t)share->bytes));
    }
    return types;
}

static json_t *json_config(const report *r, kn_component component)
{
    const kn_umt5_config *text = &r->repository->text;
    const kn_wan_dit_config *dit = &r->repository->dit;
    const kn_wan_vae_config *vae = &r->repository->vae;
    if (component == KN_TEXT_ENCODER)
        return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i}", "num_layers", text->num_layers, "num_heads", text->num_heads,
                         "d_kv", text->d_kv, "d_model", text->d_model, "d_ff", text->d_ff, "vocab_size",
                         text->vocab_size);
    if (component == KN_TRANSFORMER)
        return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i}", "num_layers", dit->num_layers, "num_attention_heads",
                         dit->num_attention_heads, "attention_head_dim", dit->attention_head_dim, "ffn_dim",
                         dit->ffn_dim, "in_channels", dit->in_channels, "out_channels", dit->out_channels, "text_dim",
                         dit->text_dim);
    json_t *multipliers = json_array();
    for (int32_t i = 0; i < vae->stages; i++) json_array_append_new(multipliers, json_integer(vae->dim_mult[i]));
    return json_pack("{s:i, s:i, s:o, s:i, s:i, s:i, s:i}", "base_dim", vae->base_dim, "decoder_base_dim",
                     vae->decoder_base_dim, "dim_mult", multipliers, "num_res_blocks", vae->num_res_blocks, "z_dim",
                     vae->z_dim, "temporal_factor", kn_vae_temporal_factor(vae), "spatial_factor",
                     kn_vae_spatial_factor(vae));
}

static json_t *json_components(const report *r)
{
    json_t *components = json_object();
    for (int i = 0; i < KN_COMPONENT_COUNT; i++) {
        const component_report *c = &r->components[i];
        json_t *one = json_pack("{s:s, s:o}", "class", c->class_name, "config", json_config(r, (kn_component)i));
        if (c->tensors) {
            json_object_set_new(one, "tensors", json_integer((json_int_t)c->tensors));
            json_object_set_new(one, "parameters", json_integer((json_int_t)c->parameters));
            json_object_set_new(one, "file_bytes", json_integer((json_int_t)c->file_bytes));
            json_object_set_new(one, "types", json_types(c));
        }
        json_object_set_new(components, kn_component_name((kn_component)i), one);
    }
    return components;
}

static json_t *json_tensors(const report *r)
{
    json_t *list = json_array();
    for (int c = 0; c < KN_COMPONENT_COUNT; c++) {
        const kn_weights *weights = kn_model_weights(r->model, (kn_component)c);
        for (size_t i = 0; i < kn_weights_count(weights); i++) {
            const kn_weights_entry entry = kn_weights_entry_at(weights, i);
            json_t *shape = json_array();
            for (int32_t d = 0; d < entry.rank; d++) json_array_append_new(shape, json_integer(entry.shape[d]));
            json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:o, s:I, s:s}", "component",
                                                  kn_component_name((kn_component)c), "name", entry.name, "type",
                                                  entry.dtype_name, "shape", shape, "bytes", (json_int_t)entry.bytes,
                                                  "file", entry.file));
        }
    }
    return list;
}

static json_t *json_request(const report *r)
{
    const kn_request *q = &r->request;
    json_t *notes = json_array();
    for (int32_t i = 0; i < r->notes.count; i++) json_array_append_new(notes, json_string(r->notes.text[i]));
    return json_pack("{s:i, s:i, s:i, s:f, s:[i,i,i,i], s:I, s:s, s:s, s:o}", "width", q->width, "height", q->height,
                     "frames", q->frames, "guidance", q->guidance, "latent", r->latent.channels, r->latent.t,
                     r->latent.h, r->latent.w, "tokens", (json_int_t)r->tokens, "precision",
                     compute_name(r, KN_TRANSFORMER), "vae_precision", compute_name(r, KN_VAE), "rounded", notes);
}

static json_t *json_memory(const report *r)
{
    plan_line lines[PLAN_LINES];
    json_t *memory = json_object();
    list_plan(lines, r);
    for (int i = 0; i < PLAN_LINES; i++)
        json_object_set_new(memory, lines[i].key, json_integer((json_int_t)lines[i].bytes));
    return memory;
}

static json_t *json_tokenizer(const report *r)
{
    if (!kn_model_tokenizer(r->model)) return json_null();
    return json_pack("{s:s, s:s, s:i}", "kind", "unigram", "file", tokenizer_file(r), "vocabulary",
                     kn_tokenizer_vocabulary(kn_model_tokenizer(r->model)));
}

/* One object on one line. json_dumpf refuses what a failed allocation left incomplete. */
static kn_status print_json(const report *r)
{
    const kn_repository *p = r->repository;
    const kn_sampler_config *sampler = &p->sampler;
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:o, s:o, s:{s:s, s:i, s:f, s:i}, s:{s:i, s:i, s:i, s:f, s:i, s:f},"
                  " s:{s:s, s:s, s:s, s:i}, s:o, s:o}",
                  "model", r->s->preset ? r->s->preset : r->s->directory, "class", p->class_name, "fingerprint",
                  kn_model_fingerprint(r->model), "components", json_components(r), "tokenizer", json_tokenizer(r),
                  "sampler", "class", sampler_class(r), "solver_order", sampler->solver_order, "shift",
                  (double)sampler->shift, "num_train_timesteps", sampler->num_train_timesteps, "defaults", "width",
                  p->default_width, "height", p->default_height, "frames", p->default_frames, "fps",
                  (double)p->default_fps, "steps", p->default_steps, "guidance", (double)p->default_guidance, "device",
                  "name", r->device_info.name, "description", r->device_info.description, "tier", r->device_info.tier,
                  "threads", r->device_info.threads, "request", json_request(r), "memory", json_memory(r));
    if (root && r->s->tensors) json_object_set_new(root, "tensors", json_tensors(r));
    if (!root) return kn_fail(KN_NOMEM, "out of memory for the report, or a name that is not UTF-8");
    const int failed = json_dumpf(root, stdout, JSON_REAL_PRECISION(9));
    json_decref(root);
    if (failed || putchar('\n') == EOF) return kn_fail(KN_IO, "cannot write the report");
    return KN_OK;
}

/* ---- the command ---- */

static kn_status parse_settings(settings *s, int argc, char **argv)
{
    const kn_option options[] = {
        {"preset", 0, "NAME", "shapes of wan2.1-1.3b or wan2.1-14b instead of a folder", kn_cli_text, &s->preset, NULL},
        {"layers", 0, "N", "layers of the preset's transformer and text encoder", kn_cli_int32, &s->layers, NULL},
        {"size", 0, "WxH", "pixels the memory plan is for; default the model's", kn_cli_size, &s->size, NULL},
        {"frames", 0, "N", "video frames the memory plan is for", kn_cli_int32, &s->frames, NULL},
        {"precision", 0, "TYPE", "auto, float32 or bfloat16", kn_cli_precision, &s->precision, NULL},
        {"vae-precision", 0, "TYPE", "the same for the autoencoder; auto is float32", kn_cli_precision,
         &s->vae_precision, NULL},
        {"device", 0, "NAME", "auto, cpu or cuda:N; default cpu", kn_cli_text, &s->device, NULL},
        {"threads", 0, "N", "CPU threads; default all cores", kn_cli_int32, &s->threads, NULL},
        {"isa", 0, "TIER", "highest CPU tier: ref, avx2, avx512, avx512bf16", kn_cli_text, &s->isa, NULL},
        {"tensors", 0, NULL, "list every tensor too", kn_cli_switch, &s->tensors, NULL},
        {"json", 0, NULL, "one JSON object on standard output; sizes in bytes", kn_cli_switch, &s->json, NULL},
    };
    kn_status st = KN_OK;
    const char *positional[2] = {NULL, NULL};
    int count = 0;
    s->device = "cpu";
    KN_TRY(kn_cli_parse(argc, argv, options, sizeof options / sizeof *options,
                        "model inspect DIR | --preset NAME [OPTIONS]", positional, 2, &count));
    if (count == 0 || strcmp(positional[0], "inspect") != 0)
        return kn_fail(KN_INVALID, "kinora model knows one action: inspect DIR");
    s->directory = positional[1];
    if (!s->directory && !s->preset) return kn_fail(KN_INVALID, "a model folder or --preset is missing");
    if (s->directory && s->preset) return kn_fail(KN_INVALID, "a model folder and --preset exclude each other");
    if (s->layers && !s->preset) return kn_fail(KN_INVALID, "--layers goes with --preset only");
fail:
    return st;
}

int kn_cli_model(int argc, char **argv)
{
    kn_status st;
    settings s = {0};
    report r = {.s = &s, .request = kn_request_empty()};
    st = parse_settings(&s, argc, argv);
    if (st == KN_CANCELLED) return 0; /* --help */
    if (st != KN_OK) goto fail;
    KN_TRY(gather(&r));
    KN_TRY(s.json ? print_json(&r) : print_text(&r));
fail:
    kn_request_release(&r.request);
    kn_model_close(&r.model);
    kn_device_close(&r.device);
    return kn_cli_end(st, s.json);
}
