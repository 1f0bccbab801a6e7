/* SPDX-License-Identifier: Apache-2.0
 *
 * The name map between the original Wan transformer and diffusers'
 * WanTransformer3DModel: a table of prefixes for the whole name, and one for
 * what follows "blocks.<i>.". The tensors themselves are the same.
 *
 * Trap: the norms are numbered differently. The original norm3 (affine, in front
 * of cross-attention) is diffusers' norm2, and the original norm2 is norm3. */
#include "engine/weights_wan_names.h"

#include <stdio.h>
#include <string.h>

typedef struct rename_rule {
    const char *from; /* ends in '.': a prefix; else the whole name */
    const char *to;
} rename_rule;

static const rename_rule model_rules[] = {
    {"time_embedding.0.", "condition_embedder.time_embedder.linear_1."},
    {"time_embedding.2.", "condition_embedder.time_embedder.linear_2."},
    {"time_projection.1.", "condition_embedder.time_proj."},
    {"text_embedding.0.", "condition_embedder.text_embedder.linear_1."},
    {"text_embedding.2.", "condition_embedder.text_embedder.linear_2."},
    {"img_emb.proj.0.", "condition_embedder.image_embedder.norm1."},
    {"img_emb.proj.1.", "condition_embedder.image_embedder.ff.net.0.proj."},
    {"img_emb.proj.3.", "condition_embedder.image_embedder.ff.net.2."},
    {"img_emb.proj.4.", "condition_embedder.image_embedder.norm2."},
    {"img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"},
    {"head.head.", "proj_out."},
    {"head.modulation", "scale_shift_table"},
};

static const rename_rule block_rules[] = {
    {"modulation", "scale_shift_table"},
    {"self_attn.q.", "attn1.to_q."},
    {"self_attn.k.", "attn1.to_k."},
    {"self_attn.v.", "attn1.to_v."},
    {"self_attn.o.", "attn1.to_out.0."},
    {"self_attn.", "attn1."}, /* norm_q, norm_k */
    {"cross_attn.q.", "attn2.to_q."},
    {"cross_attn.k.", "attn2.to_k."},
    {"cross_attn.v.", "attn2.to_v."},
    {"cross_attn.o.", "attn2.to_out.0."},
    {"cross_attn.k_img.", "attn2.add_k_proj."},
    {"cross_attn.v_img.", "attn2.add_v_proj."},
    {"cross_attn.norm_k_img.", "attn2.norm_added_k."},
    {"cross_attn.", "attn2."},
    {"norm3.", "norm2."},
    {"norm2.", "norm3."},
    {"ffn.0.", "ffn.net.0.proj."},
    {"ffn.2.", "ffn.net.2."},
};

static const char *without_prefix(const char *name)
{
    static const char prefix[] = "model.diffusion_model.";
    return strncmp(name, prefix, sizeof prefix - 1) == 0 ? name + sizeof prefix - 1 : name;
}

bool kn_wan_name_is_original(const char *name)
{
    const char *rest = without_prefix(name);
    return strcmp(rest, "head.modulation") == 0 || strcmp(rest, "blocks.0.self_attn.q.weight") == 0;
}

/* The first rule that applies, and where the unchanged rest of the name begins. */
static const rename_rule *applies(const rename_rule *rules, size_t count, const char *name, const char **rest)
{
    for (size_t i = 0; i < count; i++) {
        size_t bytes = strlen(rules[i].from);
        bool prefix = rules[i].from[bytes - 1] == '.';
        if (strncmp(name, rules[i].from, bytes) == 0 && (prefix || name[bytes] == '\0')) {
            *rest = name + bytes;
            return &rules[i];
        }
    }
    return NULL;
}

/* Bytes of "blocks.<digits>." in front of a name, or 0. */
static size_t block_prefix(const char *name)
{
    static const char blocks[] = "blocks.";
    if (strncmp(name, blocks, sizeof blocks - 1) != 0) return 0;
    size_t digits = strspn(name + sizeof blocks - 1, "0123456789");
    size_t end = sizeof blocks - 1 + digits;
    return digits > 0 && name[end] == '.' ? end + 1 : 0;
}

bool kn_wan_name_translate(const char *name, char *out, size_t bytes)
{
    const char *rest = without_prefix(name);
    const char *start = rest; /* "blocks.<i>." is kept in front */
    size_t kept = block_prefix(rest);
    const rename_rule *rule;
    if (kept > 0)
        rule = applies(block_rules, sizeof block_rules / sizeof block_rules[0], rest + kept, &rest);
    else
        rule = applies(model_rules, sizeof model_rules / sizeof model_rules[0], rest, &rest);
    int used =
        rule ? snprintf(out, bytes, "%.*s%s%s", (int)kept, start, rule->to, rest) : snprintf(out, bytes, "%s", start);
    return used >= 0 && (size_t)used < bytes;
}
