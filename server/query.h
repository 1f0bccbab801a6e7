/* SPDX-License-Identifier: Apache-2.0
 *
 * The query of a request target ("after=video_1&limit=20"), decoded; and the query of GET /videos. */
#ifndef KN_SERVER_QUERY_H
#define KN_SERVER_QUERY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/api_error.h"
#include "server/job.h"

enum { KN_QUERY_BYTES_MAX = 2048, KN_QUERY_FIELDS_MAX = 16 };

/* Pointers go into `text`: do not copy the struct. */
typedef struct kn_query {
    size_t count;
    struct {
        const char *name, *value; /* decoded UTF-8, ended by NUL; value "" for a name without '=' */
    } fields[KN_QUERY_FIELDS_MAX];
    char text[KN_QUERY_BYTES_MAX + 2 * KN_QUERY_FIELDS_MAX];
} kn_query;

/* `bytes` is what follows the '?'; count 0: no query. A name given twice is refused. */
kn_status kn_query_parse(kn_query *out, const char *bytes, size_t count, kn_api_error *error);
/* The value of a name, NULL when it is not there. */
const char *kn_query_get(const kn_query *query, const char *name);
/* Refuses ("unknown_parameter") every name that is not in the list, which ends in NULL. */
kn_status kn_query_only(const kn_query *query, const char *const *names, kn_api_error *error);

enum { KN_LIST_LIMIT_DEFAULT = 20, KN_LIST_LIMIT_MAX = 100 };

/* GET /videos?after&limit&order */
typedef struct kn_list_query {
    char after[KN_JOB_ID_BYTES]; /* a valid id; "": from the start */
    int32_t limit;               /* 0..100, default 20 */
    bool ascending;              /* by created_at; default newest first */
} kn_list_query;

kn_status kn_list_query_parse(kn_list_query *out, const char *bytes, size_t count, kn_api_error *error);

#endif
