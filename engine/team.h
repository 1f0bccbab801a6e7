/* SPDX-License-Identifier: Apache-2.0
 *
 * One generation on several ranks: its leader (the group's first member) says what comes next, the others follow. The
 * leader's generation has the sink; followers make theirs from the request the leader sends. */
#ifndef KN_ENGINE_TEAM_H
#define KN_ENGINE_TEAM_H

#include "engine/generation.h"

/* Leader: the model's group takes up this generation where it is. */
kn_status kn_team_begin(kn_generation *generation, kn_model *model);
/* Leader: the next slice, on all ranks. A rank that is lost: KN_UNAVAILABLE, and the generation is as it was, but for
 * decoding, which begins again (kn_generation_rewind). */
kn_status kn_team_step(kn_generation *generation, kn_model *model);
/* Leader: the others forget the generation, and with `leave` return from kn_team_follow. */
kn_status kn_team_end(kn_model *model, bool leave);

/* ---- one slice with helpers that hold nothing between two (kn_generation_lend) ---- */

/* Leader, the first member of the model's group: the next slice of a pack, as kn_generation_step, of a kind other than
 * text and mux, of which nothing is divided. With `last` the helpers are done, else another pack follows. After
 * KN_UNAVAILABLE the group is given up and the generations are as kn_generation_lend says. */
kn_status kn_team_lead(kn_generation *const *generations, int32_t count, kn_model *model, bool last);

/* Helper: takes part in what its leader does, until the last of it is done. A failure gives the group up. */
kn_status kn_team_assist(kn_model *model);

/* ---- one generation, followed to its end ---- */

/* Follower: does what the leader says until it is told to leave, or something fails; then the group is given up. */
kn_status kn_team_follow(kn_model *model);

#endif
