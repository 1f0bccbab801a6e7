/* SPDX-License-Identifier: Apache-2.0
 *
 * `kinora hook`: the process that asks a moderation service at a URL. To moderation.c it is a hook like any other: a
 * question on standard input, a verdict on standard output; every other end is a failure.
 *
 * The first line of the input is the configuration, an object on one line, the rest the question of moderation.h:
 *
 *   {"url": "https://...", "allow": ["host:port", ...], "ca": "FILE" or "", "time_limit_ms": N}
 *
 * A prompt's question is posted as application/json. A video's is posted as multipart/form-data: the part "question" is
 * the object without "file", the part "video" the file (video/mp4). The service answers 200 with a verdict as
 * moderation.h has it; redirects are not followed. http:// is for services on the `allow` list alone, and so are
 * addresses that are not on the internet. The URL is on no command line: it may hold a token. */
#ifndef KN_SERVER_HOOK_CHILD_H
#define KN_SERVER_HOOK_CHILD_H

#include "server/webhook.h"

/* May a hook be there? KN_INVALID names the rule that was broken. */
kn_status kn_hook_url_parse(kn_webhook_url *out, const char *url, const char *const *allow, size_t allow_count);

int kn_hook_main(int argc, char **argv);

#endif
