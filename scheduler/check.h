/* SPDX-License-Identifier: Apache-2.0
 *
 * The property checker: an account of jobs and devices of its own, kept from nothing but the changes and assignments,
 * against which every assignment is held.
 *
 *   - a device is in one slice at a time, and only while it is up
 *   - the members of a group are distinct, of one domain and kind, have loaded the model and room for the jobs'
 * workspace or decoder; only denoise and decode slices have a group, and it is not larger than allowed
 *   - a job is in one slice at a time and resides on one device at a time; a pack is of one model and one kind
 *   - a job runs the slice that is next for it: nothing is left out, nothing is done twice
 *   - models, states, decoders and workspaces never exceed a device's memory
 *   - nothing starts while draining
 *   - no device idles for long while a job waits that it could run; a little may be right, when the job will be in
 *     time where it waits and would be late here
 *   - no job is without service for longer than it may be
 *   - in the end every job has finished or was cancelled */
#ifndef KN_SCHEDULER_CHECK_H
#define KN_SCHEDULER_CHECK_H

#include "scheduler/trace.h"

typedef struct kn_check kn_check;

/* Keys are indices into the trace, which must outlive the checker. */
kn_status kn_check_create(kn_check **out, const kn_trace *trace, int32_t pack, int32_t degree_max, int64_t wait_max_ns);
void kn_check_destroy(kn_check **check);

void kn_check_change(kn_check *check, const kn_change *change, int64_t now_ns);
void kn_check_assignment(kn_check *check, const kn_assignment *assignment, int64_t now_ns);
/* The scheduler has nothing more to start. */
void kn_check_quiet(kn_check *check, int64_t now_ns);
void kn_check_end(kn_check *check, int64_t now_ns);

/* Violations so far, and the first one's description. */
int64_t kn_check_violations(const kn_check *check, const char **first);
int64_t kn_check_longest_wait(const kn_check *check);

#endif
