/* SPDX-License-Identifier: Apache-2.0
 *
 * The fields of a request's body, once its dialect is gone: a JSON tree to a kn_video_params. Numbers and booleans may
 * be text, objects may be text that is JSON; that is all that is left of the dialects. */
#ifndef KN_SERVER_VIDEO_FIELDS_H
#define KN_SERVER_VIDEO_FIELDS_H

#include <jansson.h>

#include "base/status.h"
#include "server/api_error.h"
#include "server/video_request.h"

/* `root` is an object; extra_body and extra_params are merged into it. `file_field` is the name of the file part that
 * came beside it, NULL: none. out->reference of such a file is the caller's to fill. The caller releases *out, also
 * after a failure. */
kn_status kn_video_fields_read(kn_video_params *out, kn_video_operation operation, json_t *root, const char *file_field,
                               kn_api_error *error);

#endif
