/* SPDX-License-Identifier: Apache-2.0
 *
 * The server: a queue that never loses a job, scheduled step by step, behind the API that video clients speak.
 *
 *   client ──HTTP──► api ─► policy ─► store (commit, fsync) ─► 200
 *                                        │
 *                     scheduler ◄────────┘ admitted
 *                        │ assignment
 *                        ▼
 *                     worker processes ─► slices, checkpoints, files
 *                        │ slice done
 *                        ▼
 *                     scheduler … ─► publish (commit) ─► webhook, events
 *
 * One process, one loop thread that owns everything below, one thread for the database, one child process per device,
 * one for outgoing connections, one per uploaded file. */
#ifndef KN_SERVER_H
#define KN_SERVER_H

#include <stdbool.h>

#include "base/status.h"
#include "server/settings.h"

typedef struct kn_serve_params {
    kn_server_config *config; /* checked; taken, also on failure */
    const char *config_path;  /* for reloads; NULL: flags only */
    bool json;                /* the ready line as JSON */
} kn_serve_params;

/* Serves until SIGTERM or SIGINT has drained it; then KN_OK. SIGHUP reloads. Prints one line on standard output once it
 * accepts requests: {"event":"ready","addresses":[...],...} or a sentence. Failures before that name what to change. */
kn_status kn_serve(const kn_serve_params *params);

/* ---- what the other commands ask a server, or its data directory when none runs ---- */

typedef struct kn_admin kn_admin;

/* KN_NOT_FOUND: no such directory. With a server running on it requests go there; else to the store directly. */
kn_status kn_admin_open(kn_admin **out, const char *data);
void kn_admin_close(kn_admin **admin);
bool kn_admin_live(const kn_admin *admin); /* a server is running */

/* One request; `answer` is JSON text, kn_alloc'ed. method "GET", "POST" or "DELETE"; path "/admin/..."; body JSON or
 * NULL. A refusal is a status with the server's message. Without a server: KN_UNAVAILABLE for what needs one. */
kn_status kn_admin_ask(kn_admin *admin, const char *method, const char *path, const char *body, char **answer);

/* Before anything else in main(): libraries that keep settings per process. */
void kn_server_prepare_process(void);

/* The hidden subcommands that are the server's children; argv from their own name on. */
int kn_server_child(int argc, char **argv, bool *known);

#endif
