/* SPDX-License-Identifier: Apache-2.0
 *
 * A bounded map from short names to small numbers, for tables that keep a record per API key or tenant: the number is
 * the record's place in the owner's array. A number that is given back is given out again first, so the numbers in use
 * stay below the most names ever held at once.
 *
 * Open addressing with linear probing and removal by moving back, after Knuth, The Art of Computer Programming, volume
 * 3, section 6.4, algorithms L and R. One thread at a time. */
#ifndef KN_SERVER_NAMES_H
#define KN_SERVER_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { KN_NAME_BYTES = 80 }; /* of one name, with the NUL: "tenant:" and a tenant fit */

typedef struct kn_names kn_names;

/* Memory grows with use, up to `count_max` names. */
kn_status kn_names_create(kn_names **out, size_t count_max);
void kn_names_destroy(kn_names **names);

/* The name's number; a new name gets one. KN_UNAVAILABLE: count_max names are held. KN_INVALID: too long. */
kn_status kn_names_add(kn_names *names, const char *name, uint32_t *number);
bool kn_names_find(const kn_names *names, const char *name, uint32_t *number);
/* Nothing happens when the name is not held. */
void kn_names_remove(kn_names *names, const char *name);

size_t kn_names_count(const kn_names *names);
/* Numbers in use and free ones are below this. */
size_t kn_names_span(const kn_names *names);
/* The name with this number, NULL when the number is free. Valid until the next add or remove. */
const char *kn_names_at(const kn_names *names, uint32_t number);

#endif
