/* SPDX-License-Identifier: Apache-2.0
 *
 * Model folders: the fixtures open, their tensors are the ones the networks ask
 * for (docs of the architecture: names and shapes written out here once more),
 * and every setting that this engine does not run is refused by name. */
#define _XOPEN_SOURCE 700
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <string.h>

#include "base/mem.h"
#include "engine/repository.h"
#include "engine/weights.h"
#include "tests/engine/folder.h"

#define GOLDEN KN_SOURCE_DIR "/tests/golden/"

static void assert_message(const char *part)
{
    const char *message = kn_fail_message();
    if (!strstr(message, part)) fail_msg("message \"%s\" lacks \"%s\"", message, part);
    if (strchr(message, '\n')) fail_msg("message \"%s\" has more than one line", message);
}

/* ---- fixtures against the expected names and shapes ---- */

/* Counts what it has seen, so that a tensor more in the file shows. */
typedef struct expectation {
    const kn_weights *weights;
    size_t seen;
} expectation;

static void expect(expectation *e, int32_t rank, const int64_t *shape, const char *format, ...) KN_PRINTF(4, 5);

static void expect(expectation *e, int32_t rank, const int64_t *shape, const char *format, ...)
{
    char name[128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    kn_tensor tensor;
    if (kn_weights_expect(e->weights, name, rank, shape, &tensor) != KN_OK) fail_msg("%s", kn_fail_message());
    e->seen++;
}

#define EXPECT(e, shape, ...) expect((e), (int32_t)(sizeof(shape) / sizeof(shape)[0]), (shape), __VA_ARGS__)

static void expect_linear(expectation *e, int64_t out, int64_t in, const char *name)
{
    const int64_t weight[] = {out, in}, bias[] = {out};
    EXPECT(e, weight, "%s.weight", name);
    EXPECT(e, bias, "%s.bias", name);
}

static void expect_dit(expectation *e, const kn_wan_dit_config *c)
{
    const int64_t d = (int64_t)c->num_attention_heads * c->attention_head_dim;
    const int64_t patch[] = {d, c->in_channels, 1, 2, 2}, row[] = {d}, table[] = {1, 6, d}, last[] = {1, 2, d};
    EXPECT(e, patch, "patch_embedding.weight");
    EXPECT(e, row, "patch_embedding.bias");
    expect_linear(e, d, c->freq_dim, "condition_embedder.time_embedder.linear_1");
    expect_linear(e, d, d, "condition_embedder.time_embedder.linear_2");
    expect_linear(e, 6 * d, d, "condition_embedder.time_proj");
    expect_linear(e, d, c->text_dim, "condition_embedder.text_embedder.linear_1");
    expect_linear(e, d, d, "condition_embedder.text_embedder.linear_2");
    for (int i = 0; i < c->num_layers; i++) {
        static const char *const projections[] = {"to_q", "to_k", "to_v", "to_out.0"};
        char name[64];
        EXPECT(e, table, "blocks.%d.scale_shift_table", i);
        for (int k = 0; k < 8; k++) {
            snprintf(name, sizeof name, "blocks.%d.attn%d.%s", i, k / 4 + 1, projections[k % 4]);
            expect_linear(e, d, d, name);
        }
        for (int k = 1; k <= 2; k++) {
            EXPECT(e, row, "blocks.%d.attn%d.norm_q.weight", i, k);
            EXPECT(e, row, "blocks.%d.attn%d.norm_k.weight", i, k);
        }
        EXPECT(e, row, "blocks.%d.norm2.weight", i);
        EXPECT(e, row, "blocks.%d.norm2.bias", i);
        snprintf(name, sizeof name, "blocks.%d.ffn.net.0.proj", i);
        expect_linear(e, c->ffn_dim, d, name);
        snprintf(name, sizeof name, "blocks.%d.ffn.net.2", i);
        expect_linear(e, d, c->ffn_dim, name);
    }
    EXPECT(e, last, "scale_shift_table");
    expect_linear(e, 4 * (int64_t)c->out_channels, d, "proj_out");
}

static void expect_text(expectation *e, const kn_umt5_config *c)
{
    const int64_t inner = (int64_t)c->num_heads * c->d_kv;
    const int64_t table[] = {c->vocab_size, c->d_model}, in[] = {inner, c->d_model}, out[] = {c->d_model, inner};
    const int64_t bias[] = {c->relative_attention_num_buckets, c->num_heads}, row[] = {c->d_model};
    const int64_t up[] = {c->d_ff, c->d_model}, down[] = {c->d_model, c->d_ff};
    EXPECT(e, table, "shared.weight");
    for (int i = 0; i < c->num_layers; i++) {
        EXPECT(e, in, "encoder.block.%d.layer.0.SelfAttention.q.weight", i);
        EXPECT(e, in, "encoder.block.%d.layer.0.SelfAttention.k.weight", i);
        EXPECT(e, in, "encoder.block.%d.layer.0.SelfAttention.v.weight", i);
        EXPECT(e, out, "encoder.block.%d.layer.0.SelfAttention.o.weight", i);
        EXPECT(e, bias, "encoder.block.%d.layer.0.SelfAttention.relative_attention_bias.weight", i);
        EXPECT(e, row, "encoder.block.%d.layer.0.layer_norm.weight", i);
        EXPECT(e, up, "encoder.block.%d.layer.1.DenseReluDense.wi_0.weight", i);
        EXPECT(e, up, "encoder.block.%d.layer.1.DenseReluDense.wi_1.weight", i);
        EXPECT(e, down, "encoder.block.%d.layer.1.DenseReluDense.wo.weight", i);
        EXPECT(e, row, "encoder.block.%d.layer.1.layer_norm.weight", i);
    }
    EXPECT(e, row, "encoder.final_layer_norm.weight");
}

static void expect_conv(expectation *e, int64_t out, int64_t in, int64_t kt, int64_t k, const char *name)
{
    const int64_t weight[] = {out, in, kt, k, k}, bias[] = {out};
    EXPECT(e, weight, "%s.weight", name);
    EXPECT(e, bias, "%s.bias", name);
}

static void expect_residual(expectation *e, int64_t in, int64_t out, const char *name)
{
    const int64_t first[] = {in, 1, 1, 1}, second[] = {out, 1, 1, 1};
    char part[128];
    EXPECT(e, first, "%s.norm1.gamma", name);
    EXPECT(e, second, "%s.norm2.gamma", name);
    snprintf(part, sizeof part, "%s.conv1", name);
    expect_conv(e, out, in, 3, 3, part);
    snprintf(part, sizeof part, "%s.conv2", name);
    expect_conv(e, out, out, 3, 3, part);
    snprintf(part, sizeof part, "%s.conv_shortcut", name);
    if (in != out) expect_conv(e, out, in, 1, 1, part);
}

/* mid_block, norm_out and conv_out of either half. */
static void expect_middle(expectation *e, const char *half, int64_t width, int64_t last, int64_t out)
{
    const int64_t gamma[] = {width, 1, 1}, qkv[] = {3 * width, width, 1, 1}, proj[] = {width, width, 1, 1};
    const int64_t qkv_bias[] = {3 * width}, proj_bias[] = {width}, norm[] = {last, 1, 1, 1};
    char name[64];
    snprintf(name, sizeof name, "%s.mid_block.resnets.0", half);
    expect_residual(e, width, width, name);
    snprintf(name, sizeof name, "%s.mid_block.resnets.1", half);
    expect_residual(e, width, width, name);
    EXPECT(e, gamma, "%s.mid_block.attentions.0.norm.gamma", half);
    EXPECT(e, qkv, "%s.mid_block.attentions.0.to_qkv.weight", half);
    EXPECT(e, qkv_bias, "%s.mid_block.attentions.0.to_qkv.bias", half);
    EXPECT(e, proj, "%s.mid_block.attentions.0.proj.weight", half);
    EXPECT(e, proj_bias, "%s.mid_block.attentions.0.proj.bias", half);
    EXPECT(e, norm, "%s.norm_out.gamma", half);
    snprintf(name, sizeof name, "%s.conv_out", half);
    expect_conv(e, out, last, 3, 3, name);
}

static void expect_resample(expectation *e, int64_t out, int64_t in, int64_t time_out, const char *name)
{
    const int64_t weight[] = {out, in, 3, 3}, bias[] = {out}, time[] = {time_out, in, 3, 1, 1},
                  time_bias[] = {time_out};
    EXPECT(e, weight, "%s.resample.1.weight", name);
    EXPECT(e, bias, "%s.resample.1.bias", name);
    if (time_out == 0) return;
    EXPECT(e, time, "%s.time_conv.weight", name);
    EXPECT(e, time_bias, "%s.time_conv.bias", name);
}

static void expect_vae(expectation *e, const kn_wan_vae_config *c)
{
    const int64_t z = c->z_dim, top = c->dim_mult[c->stages - 1];
    char name[64];
    expect_conv(e, 2 * z, 2 * z, 1, 1, "quant_conv");
    expect_conv(e, z, z, 1, 1, "post_quant_conv");

    int64_t width = (int64_t)c->base_dim * c->dim_mult[0];
    int block = 0;
    expect_conv(e, width, 3, 3, 3, "encoder.conv_in");
    for (int stage = 0; stage < c->stages; stage++) {
        int64_t out = (int64_t)c->base_dim * c->dim_mult[stage];
        for (int k = 0; k < c->num_res_blocks; k++) {
            snprintf(name, sizeof name, "encoder.down_blocks.%d", block++);
            expect_residual(e, width, out, name);
            width = out;
        }
        if (stage + 1 == c->stages) break;
        snprintf(name, sizeof name, "encoder.down_blocks.%d", block++);
        expect_resample(e, width, width, c->temporal_downsample[stage] ? width : 0, name);
    }
    expect_middle(e, "encoder", c->base_dim * top, c->base_dim * top, 2 * z);

    width = c->decoder_base_dim * top;
    expect_conv(e, width, z, 3, 3, "decoder.conv_in");
    for (int stage = 0; stage < c->stages; stage++) {
        int64_t out = (int64_t)c->decoder_base_dim * c->dim_mult[c->stages - 1 - stage];
        for (int k = 0; k <= c->num_res_blocks; k++) {
            snprintf(name, sizeof name, "decoder.up_blocks.%d.resnets.%d", stage, k);
            expect_residual(e, width, out, name);
            width = out;
        }
        if (stage + 1 == c->stages) break;
        snprintf(name, sizeof name, "decoder.up_blocks.%d.upsamplers.0", stage);
        expect_resample(e, width / 2, width, c->temporal_downsample[c->stages - 2 - stage] ? 2 * width : 0, name);
        width /= 2;
    }
    expect_middle(e, "decoder", c->decoder_base_dim * top, width, 3);
}

static void check_fixture(const char *root)
{
    kn_repository *repository = NULL;
    if (kn_repository_open(&repository, root) != KN_OK) fail_msg("%s", kn_fail_message());
    assert_string_equal(repository->root, root);
    assert_string_equal(repository->class_name, "WanPipeline");
    assert_int_equal(repository->sampler.kind, KN_SAMPLER_UNIPC);
    assert_int_equal(repository->sampler.num_train_timesteps, 1000);
    assert_int_equal(repository->sampler.solver_order, 2);
    assert_true(repository->sampler.lower_order_final);
    assert_int_equal(repository->vae.stages, 4);
    assert_true(repository->vae.latents_std[15] == 1.916f);
    assert_int_equal(repository->default_width, 832);
    assert_int_equal(repository->default_frames, 81);
    for (int i = 0; i < KN_COMPONENT_COUNT; i++) {
        kn_weights *weights = NULL;
        if (kn_weights_open(&weights, repository->component_directory[i], kn_component_stem(i)) != KN_OK)
            fail_msg("%s", kn_fail_message());
        expectation e = {.weights = weights};
        if (i == KN_TEXT_ENCODER) expect_text(&e, &repository->text);
        if (i == KN_TRANSFORMER) expect_dit(&e, &repository->dit);
        if (i == KN_VAE) expect_vae(&e, &repository->vae);
        assert_int_equal(e.seen, kn_weights_count(weights));
        kn_weights_close(&weights);
    }
    kn_repository_close(&repository);
    assert_null(repository);
}

static void test_fixtures_hold_the_expected_tensors(void **state)
{
    (void)state;
    check_fixture(GOLDEN "wan21-small/model");
    check_fixture(GOLDEN "wan21-head128/model");
    check_fixture(GOLDEN "wan21-wide/model");
}

/* ---- presets ---- */

static void test_presets(void **state)
{
    (void)state;
    kn_repository *repository = NULL;
    assert_int_equal(kn_repository_preset(&repository, "wan2.1-1.3b", 0), KN_OK);
    assert_int_equal(repository->dit.num_attention_heads * repository->dit.attention_head_dim, 1536);
    assert_int_equal(repository->dit.ffn_dim, 8960);
    assert_int_equal(repository->dit.num_layers, 30);
    assert_int_equal(repository->text.vocab_size, 256384);
    assert_int_equal(repository->text.num_layers, 24);
    assert_int_equal(repository->vae.decoder_base_dim, 96);
    assert_true(repository->sampler.shift == 3.0f);
    assert_null(repository->tokenizer_directory);
    kn_repository_close(&repository);

    assert_int_equal(kn_repository_preset(&repository, "wan2.1-14b", 2), KN_OK);
    assert_int_equal(repository->dit.num_attention_heads * repository->dit.attention_head_dim, 5120);
    assert_int_equal(repository->dit.ffn_dim, 13824);
    assert_int_equal(repository->dit.num_layers, 2);
    assert_int_equal(repository->text.num_layers, 2);
    kn_weights *weights = NULL;
    assert_int_equal(kn_weights_synthetic(&weights, 0.02f, KN_BF16, 1), KN_OK);
    expectation e = {.weights = weights};
    expect_text(&e, &repository->text);
    expect_dit(&e, &repository->dit);
    expect_vae(&e, &repository->vae);
    kn_weights_close(&weights);
    kn_repository_close(&repository);

    assert_int_equal(kn_repository_preset(&repository, "wan3", 0), KN_NOT_FOUND);
    assert_message("no preset \"wan3\"; there are wan2.1-1.3b and wan2.1-14b");
    assert_int_equal(kn_repository_preset(&repository, "wan2.1-14b", 1025), KN_INVALID);
    assert_message("1025 layers, the limit is 1024");
    assert_null(repository);
    assert_string_equal(kn_component_name(KN_VAE), "vae");
    assert_string_equal(kn_component_stem(KN_TEXT_ENCODER), "model");
    assert_string_equal(kn_component_stem(KN_TRANSFORMER), "diffusion_pytorch_model");
}

/* ---- edited copies of a fixture ---- */

#define INDEX "model_index.json"
#define TEXT "text_encoder/config.json"
#define DIT "transformer/config.json"
#define VAE "vae/config.json"
#define SAMPLER "scheduler/scheduler_config.json"

static const char *const config_files[] = {INDEX, TEXT, DIT, VAE, SAMPLER};
enum { CONFIG_FILES = sizeof config_files / sizeof config_files[0] };

static void copy_configs(const folder *in)
{
    static const char *const folders[] = {"text_encoder", "transformer", "vae", "scheduler"};
    for (int i = 0; i < 4; i++) mkdir(folder_file(in, folders[i]), 0700);
    for (int i = 0; i < CONFIG_FILES; i++) {
        char path[512];
        snprintf(path, sizeof path, GOLDEN "wan21-small/model/%s", config_files[i]);
        json_t *root = json_load_file(path, 0, NULL);
        assert_non_null(root);
        assert_int_equal(json_dump_file(root, folder_file(in, config_files[i]), 0), 0);
        json_decref(root);
    }
}

/* Sets a key to JSON text, or removes it with NULL. */
static void edit(const folder *in, const char *file, const char *key, const char *json)
{
    json_t *root = json_load_file(folder_file(in, file), 0, NULL);
    assert_non_null(root);
    if (json) {
        json_t *value = json_loads(json, JSON_DECODE_ANY, NULL);
        assert_non_null(value);
        assert_int_equal(json_object_set_new(root, key, value), 0);
    } else {
        assert_int_equal(json_object_del(root, key), 0);
    }
    assert_int_equal(json_dump_file(root, folder_file(in, file), 0), 0);
    json_decref(root);
}

static void assert_refused(const folder *in, kn_status status, const char *file, const char *part)
{
    kn_repository *repository = NULL;
    kn_status st = kn_repository_open(&repository, in->path);
    if (st != status) fail_msg("%s, wanted %s (%s: %s)", kn_status_name(st), kn_status_name(status), file, part);
    assert_null(repository);
    assert_message(part);
    assert_message(file);
}

static const struct refusal {
    const char *file;
    const char *key;
    const char *json; /* NULL: the key is removed */
    kn_status status;
    const char *message;
} refusals[] = {
    {INDEX, "_class_name", "\"WanImageToVideoPipeline\"", KN_UNSUPPORTED, "WanImageToVideoPipeline"},
    {INDEX, "_class_name", NULL, KN_CORRUPT, "\"_class_name\" is missing"},
    {INDEX, "_class_name", "[1]", KN_CORRUPT, "\"_class_name\" is [1], not a string"},
    {INDEX, "transformer", NULL, KN_CORRUPT, "component \"transformer\" is missing"},
    {INDEX, "transformer", "[\"diffusers\"]", KN_CORRUPT, "not [library, class]"},
    {INDEX, "transformer", "[null,null]", KN_CORRUPT, "component \"transformer\" is [null,null], not"},
    {INDEX, "transformer", "[\"diffusers\",\"WanVACETransformer3DModel\"]", KN_UNSUPPORTED,
     "transformer is a WanVACETransformer3DModel; this engine runs WanTransformer3DModel"},
    {INDEX, "text_encoder", "[\"transformers\",\"T5EncoderModel\"]", KN_UNSUPPORTED,
     "text_encoder is a T5EncoderModel"},
    {INDEX, "tokenizer", "[\"transformers\",\"CLIPTokenizer\"]", KN_UNSUPPORTED, "tokenizer is a CLIPTokenizer"},
    {INDEX, "vae", "[\"diffusers\",\"AutoencoderKL\"]", KN_UNSUPPORTED, "vae is a AutoencoderKL"},
    {INDEX, "scheduler", "[\"diffusers\",\"DDIMScheduler\"]", KN_UNSUPPORTED, "or FlowMatchEulerDiscreteScheduler"},
    {INDEX, "transformer_2", "[\"diffusers\",\"WanTransformer3DModel\"]", KN_UNSUPPORTED, "\"transformer_2\" is"},
    {INDEX, "boundary_ratio", "0.875", KN_UNSUPPORTED, "\"boundary_ratio\" is 0.875"},
    {INDEX, "expand_timesteps", "true", KN_UNSUPPORTED, "\"expand_timesteps\" is true; this engine runs false only"},

    {TEXT, "model_type", "\"t5\"", KN_UNSUPPORTED, "runs UMT5, which has a relative bias in every layer"},
    {TEXT, "architectures", "[\"T5EncoderModel\"]", KN_UNSUPPORTED, "T5EncoderModel"},
    {TEXT, "feed_forward_proj", "\"relu\"", KN_UNSUPPORTED, "\"feed_forward_proj\" is \"relu\""},
    {TEXT, "dense_act_fn", "\"silu\"", KN_UNSUPPORTED, "this engine runs \"gelu_new\" only"},
    {TEXT, "d_model", NULL, KN_CORRUPT, "key \"d_model\" is missing"},
    {TEXT, "d_model", "0", KN_CORRUPT, "\"d_model\" is 0, outside 1..65536"},
    {TEXT, "d_model", "32.0", KN_CORRUPT, "\"d_model\" is 32.0, not an integer"},
    {TEXT, "num_heads", "99999999999", KN_CORRUPT, "\"num_heads\" is 99999999999, outside 1..1024"},
    {TEXT, "num_layers", "-2", KN_CORRUPT, "\"num_layers\" is -2, outside 1..1024"},
    {TEXT, "d_kv", "257", KN_CORRUPT, "\"d_kv\" is 257, outside 1..256"},
    {TEXT, "relative_attention_num_buckets", "30", KN_CORRUPT, "relative_attention_num_buckets 30"},
    {TEXT, "relative_attention_max_distance", "8", KN_CORRUPT, "relative_attention_max_distance 8"},
    {TEXT, "layer_norm_epsilon", "0", KN_CORRUPT, "\"layer_norm_epsilon\" is 0, outside 1e-12..0.01"},
    {TEXT, "eos_token_id", "1024", KN_CORRUPT, "\"eos_token_id\" is 1024, outside 0..1023"},
    {TEXT, "pad_token_id", "null", KN_CORRUPT, "\"pad_token_id\" is null, not an integer"},

    {DIT, "_class_name", "\"Other\"", KN_UNSUPPORTED, "\"_class_name\" is \"Other\""},
    {DIT, "patch_size", "[1,1,1]", KN_UNSUPPORTED, "\"patch_size\" is [1,1,1]; this engine runs [1,2,2] only"},
    {DIT, "qk_norm", "null", KN_UNSUPPORTED, "\"qk_norm\" is null"},
    {DIT, "image_dim", "1280", KN_UNSUPPORTED, "\"image_dim\" is 1280; this engine runs null only"},
    {DIT, "added_kv_proj_dim", "5120", KN_UNSUPPORTED, "\"added_kv_proj_dim\" is 5120"},
    {DIT, "pos_embed_seq_len", "514", KN_UNSUPPORTED, "\"pos_embed_seq_len\" is 514"},
    {DIT, "in_channels", "36", KN_UNSUPPORTED, "image-to-video"},
    {DIT, "in_channels", "65", KN_CORRUPT, "\"in_channels\" is 65, outside 1..64"},
    {DIT, "attention_head_dim", "25", KN_CORRUPT, "\"attention_head_dim\" is 25, not even"},
    {DIT, "attention_head_dim", "258", KN_CORRUPT, "outside 6..256"},
    {DIT, "attention_head_dim", "4", KN_CORRUPT, "outside 6..256"},
    {DIT, "num_attention_heads", "1025", KN_CORRUPT, "outside 1..1024"},
    {DIT, "freq_dim", "7", KN_CORRUPT, "\"freq_dim\" is 7, not even"},
    {DIT, "ffn_dim", "2000000", KN_CORRUPT, "\"ffn_dim\" is 2000000, outside 1..1048576"},
    {DIT, "num_layers", "\"2\"", KN_CORRUPT, "\"num_layers\" is \"2\", not an integer"},
    {DIT, "cross_attn_norm", "1", KN_CORRUPT, "\"cross_attn_norm\" is 1, not true or false"},
    {DIT, "eps", "\"1e-6\"", KN_CORRUPT, "\"eps\" is \"1e-6\", not a number"},
    {DIT, "text_dim", "33", KN_CORRUPT, "text_dim 33 differs from d_model 32"},

    {VAE, "is_residual", "true", KN_UNSUPPORTED, "\"is_residual\" is true"},
    {VAE, "patch_size", "2", KN_UNSUPPORTED, "\"patch_size\" is 2"},
    {VAE, "attn_scales", "[1.0]", KN_UNSUPPORTED, "\"attn_scales\" is [1.0]; this engine runs [] only"},
    {VAE, "in_channels", "12", KN_UNSUPPORTED, "\"in_channels\" is 12"},
    {VAE, "dim_mult", "[1,2,4,4,4,4,4,4,4]", KN_CORRUPT, "\"dim_mult\" has 9 entries, outside 1..8"},
    {VAE, "dim_mult", "[]", KN_CORRUPT, "\"dim_mult\" has 0 entries"},
    {VAE, "dim_mult", "[1,0,4,4]", KN_CORRUPT, "\"dim_mult[1]\" is 0, outside 1..64"},
    {VAE, "dim_mult", "4", KN_CORRUPT, "\"dim_mult\" is 4, not an array"},
    {VAE, "temperal_downsample", "[false,true]", KN_CORRUPT, "\"temperal_downsample\" has 2 entries, outside 3..3"},
    {VAE, "temperal_downsample", "[false,true,1]", KN_CORRUPT, "\"temperal_downsample[2]\" is not true or false"},
    {VAE, "temperal_downsample", "[true,true,true]", KN_CORRUPT, "\"scale_factor_temporal\" is 4, outside 8..8"},
    {VAE, "z_dim", "65", KN_CORRUPT, "\"z_dim\" is 65, outside 1..64"},
    {VAE, "z_dim", "15", KN_CORRUPT, "\"latents_mean\" has 16 entries, outside 15..15"},
    {VAE, "latents_std", "[0,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", KN_CORRUPT, "\"latents_std[0]\" is 0, outside 1e-06"},
    {VAE, "latents_mean", NULL, KN_CORRUPT, "key \"latents_mean\" is missing"},
    {VAE, "base_dim", "65536", KN_CORRUPT, "is above 65536"},
    {VAE, "decoder_base_dim", "65536", KN_CORRUPT, "is above 65536"},
    {VAE, "num_res_blocks", "17", KN_CORRUPT, "outside 1..16"},

    {SAMPLER, "_class_name", "\"DPMSolverMultistepScheduler\"", KN_UNSUPPORTED, "\"_class_name\" is \"DPMSolver"},
    {SAMPLER, "prediction_type", "\"epsilon\"", KN_UNSUPPORTED,
     "\"prediction_type\" is \"epsilon\"; this engine runs \"flow_prediction\" only"},
    {SAMPLER, "prediction_type", NULL, KN_UNSUPPORTED, "\"prediction_type\" is missing"},
    {SAMPLER, "use_flow_sigmas", "false", KN_UNSUPPORTED, "\"use_flow_sigmas\" is false"},
    {SAMPLER, "use_flow_sigmas", NULL, KN_UNSUPPORTED, "\"use_flow_sigmas\" is missing"},
    {SAMPLER, "solver_type", "\"bh1\"", KN_UNSUPPORTED, "\"solver_type\" is \"bh1\""},
    {SAMPLER, "predict_x0", "false", KN_UNSUPPORTED, "\"predict_x0\" is false"},
    {SAMPLER, "thresholding", "true", KN_UNSUPPORTED, "\"thresholding\" is true; this engine runs false only"},
    {SAMPLER, "disable_corrector", "[0]", KN_UNSUPPORTED, "\"disable_corrector\" is [0]"},
    {SAMPLER, "use_karras_sigmas", "true", KN_UNSUPPORTED, "\"use_karras_sigmas\" is true"},
    {SAMPLER, "use_exponential_sigmas", "true", KN_UNSUPPORTED, "\"use_exponential_sigmas\" is true"},
    {SAMPLER, "use_beta_sigmas", "true", KN_UNSUPPORTED, "\"use_beta_sigmas\" is true"},
    {SAMPLER, "final_sigmas_type", "\"sigma_min\"", KN_UNSUPPORTED, "\"final_sigmas_type\" is \"sigma_min\""},
    {SAMPLER, "use_dynamic_shifting", "true", KN_UNSUPPORTED, "\"use_dynamic_shifting\" is true"},
    {SAMPLER, "shift_terminal", "0.1", KN_UNSUPPORTED, "\"shift_terminal\" is 0.1"},
    {SAMPLER, "solver_p", "{\"_class_name\":\"x\"}", KN_UNSUPPORTED, "\"solver_p\" is {\"_class_name\":\"x\"}"},
    {SAMPLER, "solver_order", "3", KN_CORRUPT, "\"solver_order\" is 3, outside 1..2"},
    {SAMPLER, "flow_shift", "0", KN_CORRUPT, "\"flow_shift\" is 0, outside 0.01..100"},
    {SAMPLER, "num_train_timesteps", "0", KN_CORRUPT, "\"num_train_timesteps\" is 0"},
};

static void test_refuses_what_it_does_not_run(void **state)
{
    (void)state;
    folder in = folder_create();
    uint64_t before = kn_mem_read().bytes;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const struct refusal *r = &refusals[i];
        copy_configs(&in);
        edit(&in, r->file, r->key, r->json);
        assert_refused(&in, r->status, r->file, r->message);
    }
    assert_int_equal(kn_mem_read().bytes, before);
    folder_remove(&in);
}

static void test_products_and_pairs(void **state)
{
    (void)state;
    folder in = folder_create();
    copy_configs(&in);
    edit(&in, DIT, "num_attention_heads", "1024");
    edit(&in, DIT, "attention_head_dim", "128");
    assert_refused(&in, KN_CORRUPT, DIT, "num_attention_heads 1024 x attention_head_dim 128 is above 65536");
    copy_configs(&in);
    edit(&in, TEXT, "num_heads", "1024");
    edit(&in, TEXT, "d_kv", "128");
    assert_refused(&in, KN_CORRUPT, TEXT, "num_heads 1024 x d_kv 128 is above 65536");
    copy_configs(&in);
    edit(&in, TEXT, "vocab_size", "1");
    edit(&in, TEXT, "eos_token_id", NULL);
    assert_refused(&in, KN_CORRUPT, TEXT, "\"eos_token_id\" is missing and its default 1 is outside 0..0");
    copy_configs(&in);
    edit(&in, INDEX, "scheduler", "[\"diffusers\",\"FlowMatchEulerDiscreteScheduler\"]");
    assert_refused(&in, KN_UNSUPPORTED, SAMPLER, "\"_class_name\" is \"UniPCMultistepScheduler\"");
    copy_configs(&in);
    edit(&in, DIT, "in_channels", "8");
    edit(&in, DIT, "out_channels", "8");
    assert_refused(&in, KN_CORRUPT, DIT, "in_channels 8 differs from z_dim 16");
    folder_remove(&in);
}

static void test_defaults_of_missing_keys(void **state)
{
    (void)state;
    static const char *const optional[][2] = {{INDEX, "boundary_ratio"},
                                              {INDEX, "expand_timesteps"},
                                              {INDEX, "transformer_2"},
                                              {TEXT, "dense_act_fn"},
                                              {TEXT, "feed_forward_proj"},
                                              {TEXT, "model_type"},
                                              {TEXT, "architectures"},
                                              {TEXT, "layer_norm_epsilon"},
                                              {TEXT, "relative_attention_num_buckets"},
                                              {DIT, "_class_name"},
                                              {DIT, "patch_size"},
                                              {DIT, "qk_norm"},
                                              {DIT, "image_dim"},
                                              {DIT, "out_channels"},
                                              {DIT, "freq_dim"},
                                              {DIT, "eps"},
                                              {DIT, "cross_attn_norm"},
                                              {DIT, "rope_max_seq_len"},
                                              {VAE, "decoder_base_dim"},
                                              {VAE, "is_residual"},
                                              {VAE, "patch_size"},
                                              {VAE, "attn_scales"},
                                              {VAE, "scale_factor_spatial"},
                                              {VAE, "in_channels"},
                                              {SAMPLER, "solver_order"},
                                              {SAMPLER, "lower_order_final"},
                                              {SAMPLER, "flow_shift"},
                                              {SAMPLER, "solver_type"},
                                              {SAMPLER, "num_train_timesteps"}};
    folder in = folder_create();
    copy_configs(&in);
    for (size_t i = 0; i < sizeof optional / sizeof optional[0]; i++) edit(&in, optional[i][0], optional[i][1], NULL);
    edit(&in, DIT, "a_key_of_the_future", "{\"deep\":[1,2,{\"er\":null}]}");
    kn_repository *r = NULL;
    if (kn_repository_open(&r, in.path) != KN_OK) fail_msg("%s", kn_fail_message());
    assert_int_equal(r->dit.out_channels, 16);
    assert_int_equal(r->dit.freq_dim, 256);
    assert_int_equal(r->dit.rope_max_seq_len, 1024);
    assert_true(r->dit.cross_attn_norm && r->dit.eps == 1e-6);
    assert_int_equal(r->text.relative_attention_num_buckets, 32);
    assert_int_equal(r->vae.decoder_base_dim, 4);
    assert_true(r->sampler.shift == 1.0 && r->sampler.lower_order_final);
    assert_int_equal(r->sampler.num_train_timesteps, 1000);
    kn_repository_close(&r);
    folder_remove(&in);
}

static void test_euler_scheduler(void **state)
{
    (void)state;
    static const char *const settings[][2] = {{"use_dynamic_shifting", "true"}, {"shift_terminal", "0.02"},
                                              {"use_karras_sigmas", "true"},    {"invert_sigmas", "true"},
                                              {"stochastic_sampling", "true"},  {"use_beta_sigmas", "true"}};
    folder in = folder_create();
    copy_configs(&in);
    edit(&in, INDEX, "scheduler", "[\"diffusers\",\"FlowMatchEulerDiscreteScheduler\"]");
    folder_text(&in, SAMPLER,
                "{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\",\"num_train_timesteps\":1000,\"shift\":7.5,"
                "\"use_dynamic_shifting\":false,\"base_shift\":0.5,\"max_shift\":1.15}");
    kn_repository *r = NULL;
    assert_int_equal(kn_repository_open(&r, in.path), KN_OK);
    assert_int_equal(r->sampler.kind, KN_SAMPLER_EULER);
    assert_true(r->sampler.shift == 7.5f);
    assert_false(r->sampler.use_dynamic_shifting);
    kn_repository_close(&r);
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        char part[128];
        snprintf(part, sizeof part, "\"%s\" is %s", settings[i][0], settings[i][1]);
        edit(&in, SAMPLER, settings[i][0], settings[i][1]);
        assert_refused(&in, KN_UNSUPPORTED, SAMPLER, part);
        edit(&in, SAMPLER, settings[i][0], NULL);
    }
    folder_remove(&in);
}

static void test_missing_and_malformed_files(void **state)
{
    (void)state;
    folder in = folder_create();
    assert_refused(&in, KN_NOT_FOUND, INDEX, "is not a model folder in diffusers layout");
    copy_configs(&in);
    for (int i = 0; i < CONFIG_FILES; i++) {
        const char *path = folder_file(&in, config_files[i]);
        assert_int_equal(unlink(path), 0);
        assert_refused(&in, KN_NOT_FOUND, config_files[i], "not found");
        folder_text(&in, config_files[i], "{\"a\":1,\"a\":2}");
        assert_refused(&in, KN_CORRUPT, config_files[i], "duplicate");
        folder_text(&in, config_files[i], "{\"a\":[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}");
        assert_refused(&in, KN_CORRUPT, config_files[i], "nested deeper than 16");
        folder_text(&in, config_files[i], "[]");
        assert_refused(&in, KN_CORRUPT, config_files[i], "not an object");
        folder_text(&in, config_files[i], "{\"a\":\n\"b");
        assert_refused(&in, KN_CORRUPT, config_files[i], "not valid JSON");
        folder_text(&in, config_files[i], "");
        assert_refused(&in, KN_CORRUPT, config_files[i], "not valid JSON");
        copy_configs(&in);
    }
    assert_int_equal(truncate(folder_file(&in, VAE), (1 << 20) + 1), 0);
    assert_refused(&in, KN_CORRUPT, VAE, "1048577 bytes, the limit is 1048576");
    char many[2 * 70000 + 16];
    size_t used = (size_t)snprintf(many, sizeof many, "{\"a\":[0");
    for (int i = 0; i < 66000; i++, used += 2) memcpy(many + used, ",0", 2);
    memcpy(many + used, "]}", 2);
    folder_write(&in, VAE, many, used + 2);
    assert_refused(&in, KN_CORRUPT, VAE, "more than 65536 JSON values");

    kn_repository *r = NULL;
    assert_int_equal(kn_repository_open(&r, folder_file(&in, "absent")), KN_NOT_FOUND);
    assert_message("absent: no such folder");
    assert_int_equal(kn_repository_open(&r, folder_file(&in, INDEX)), KN_NOT_FOUND);
    assert_message("model_index.json: not a folder");
    folder_remove(&in);
}

static void test_kinora_json_replaces_defaults(void **state)
{
    (void)state;
    folder in = folder_create();
    copy_configs(&in);
    folder_text(
        &in, "kinora.json",
        "{\"width\":64,\"height\":48,\"frames\":13,\"steps\":8,\"guidance\":1,\"fps\":8,\"shift\":5.5,\"x\":0}");
    kn_repository *r = NULL;
    assert_int_equal(kn_repository_open(&r, in.path), KN_OK);
    assert_int_equal(r->default_width, 64);
    assert_int_equal(r->default_height, 48);
    assert_int_equal(r->default_frames, 13);
    assert_int_equal(r->default_steps, 8);
    assert_true(r->default_guidance == 1.0f && r->default_fps == 8.0f && r->sampler.shift == 5.5f);
    kn_repository_close(&r);
    static const char *const bad[][2] = {{"{\"width\":65}", "65 x 480 pixels are not multiples of 16"},
                                         {"{\"frames\":14}", "frames 14 is not 1 more than a multiple of 4"},
                                         {"{\"steps\":1001}", "\"steps\" is 1001, outside 1..1000"},
                                         {"{\"guidance\":-1}", "\"guidance\" is -1, outside 0..100"},
                                         {"{\"fps\":\"16\"}", "\"fps\" is \"16\", not a number"},
                                         {"{\"height\":0}", "\"height\" is 0, outside 16..16384"},
                                         {"{\"shift\":0}", "\"shift\" is 0, outside 0.01..100"},
                                         {"{", "not valid JSON"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        folder_text(&in, "kinora.json", bad[i][0]);
        assert_refused(&in, KN_CORRUPT, "kinora.json", bad[i][1]);
    }
    folder_remove(&in);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    folder in = folder_create();
    copy_configs(&in);
    folder_text(&in, "kinora.json", "{\"steps\":4}");
    uint64_t before = kn_mem_read().bytes;
    for (int preset = 0; preset < 2; preset++) {
        kn_repository *r = NULL;
        uint64_t n = 0;
        kn_status st;
        do {
            kn_mem_fail_at(++n);
            st = preset ? kn_repository_preset(&r, "wan2.1-14b", 0) : kn_repository_open(&r, in.path);
            kn_mem_fail_at(0);
            if (st != KN_OK) {
                assert_int_equal(st, KN_NOMEM);
                assert_null(r);
                assert_int_equal(kn_mem_read().bytes, before);
            }
        } while (st != KN_OK && n < 1000);
        assert_int_equal(st, KN_OK);
        assert_true(n > (preset ? 3u : 15u));
        kn_repository_close(&r);
        assert_int_equal(kn_mem_read().bytes, before);
    }
    folder_remove(&in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixtures_hold_the_expected_tensors), cmocka_unit_test(test_presets),
        cmocka_unit_test(test_refuses_what_it_does_not_run),       cmocka_unit_test(test_products_and_pairs),
        cmocka_unit_test(test_defaults_of_missing_keys),           cmocka_unit_test(test_euler_scheduler),
        cmocka_unit_test(test_missing_and_malformed_files),        cmocka_unit_test(test_kinora_json_replaces_defaults),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
