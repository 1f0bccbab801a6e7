/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensor names of the Wan transformer as its authors publish it, turned into the
 * diffusers names that the networks here ask for. */
#ifndef KN_ENGINE_WEIGHTS_WAN_NAMES_H
#define KN_ENGINE_WEIGHTS_WAN_NAMES_H

#include <stdbool.h>
#include <stddef.h>

/* True for a name that only a file with original names has: "head.modulation" or "blocks.0.self_attn.q.weight", also
 * behind "model.diffusion_model.". */
bool kn_wan_name_is_original(const char *name);

/* Writes the diffusers name of an original one, without "model.diffusion_model."; a name without a counterpart keeps
 * the rest. False when `bytes` are too few (twice the name's length plus 64 always suffices). */
bool kn_wan_name_translate(const char *name, char *out, size_t bytes);

#endif
