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

/* Follower: does what the leader says until it is told to leave, or something fails; then the group is given up. */
kn_status kn_team_follow(kn_model *model);

#endif
