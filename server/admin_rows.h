/* SPDX-License-Identifier: Apache-2.0
 *
 * Jobs and keys as the operator's commands show them: the same whether a server answers or the store is read directly.
 * No prompt and no secret is in them, but for a new key's text, once. */
#ifndef KN_SERVER_ADMIN_ROWS_H
#define KN_SERVER_ADMIN_ROWS_H

#include "base/log.h"
#include "server/json.h"
#include "server/store.h"

void kn_admin_write_job(kn_json_writer *w, const kn_job *job);
/* {"data": [...], "has_more": ...} */
kn_status kn_admin_write_jobs(kn_json_writer *w, kn_store *store, const kn_store_list *list);

void kn_admin_write_key(kn_json_writer *w, const kn_key_row *row, const kn_secret *secret);
kn_status kn_admin_write_keys(kn_json_writer *w, kn_store *store); /* {"data": [...]} */

/* {"tenant", "scopes", "priorities", "models", "region", "expires_at", "max_active", "device_seconds_per_day",
 *  "requests_per_minute"}: everything but the tenant has a default. */
kn_status kn_admin_read_key(kn_key_row *out, const char *bytes, size_t count, kn_api_error *error);

#endif
