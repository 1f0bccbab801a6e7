/* SPDX-License-Identifier: Apache-2.0
 *
 * Decisions: which slice of which job runs next, on which device, with which others. */
#ifndef KN_SCHEDULER_SCHEDULER_H
#define KN_SCHEDULER_SCHEDULER_H

/* Scheduling classes: what a client pays for and how long it may wait. "flex", "default" and "priority" in the API. */
typedef enum kn_priority { KN_PRIORITY_FLEX, KN_PRIORITY_DEFAULT, KN_PRIORITY_URGENT, KN_PRIORITIES } kn_priority;

const char *kn_priority_name(kn_priority priority); /* "flex", "default", "priority" */

#endif
