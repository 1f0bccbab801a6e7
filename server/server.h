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
#include <stdint.h>

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

/* ---- backups ---- */

typedef struct kn_backup_report {
    int64_t jobs, unfinished; /* rows; queued and running ones among them */
    int64_t files;            /* videos with their pictures, checkpoints */
    uint64_t bytes;           /* of the files and the database */
    int64_t gone;             /* results removed while they were copied: their jobs are expired in the copy */
    int64_t damaged;          /* results that do not have the bytes that were published: copied as they are */
    int64_t audit_sequence;   /* the last record of the audit log, ... */
    char audit_hash[65];      /* ... in hexadecimal: kept elsewhere, it shows a log that was cut off */
    bool live;                /* a server was running */
} kn_backup_report;

/* Copies a data directory, of a running server too, to `destination`, which must not exist: a data directory that
 * `kinora serve --data` takes as it is. The database is copied as of one moment, then what its rows name; every video
 * is compared with its SHA-256, the copy opened and checked and its audit log verified, everything synced, and only
 * then is it there under its name. Reads only; a server that runs is not stopped from writing. KN_INVALID `destination`
 * is there, or lies within the data directory KN_NOT_FOUND  no such data directory, or nothing in it KN_CORRUPT    the
 * database is damaged KN_UNAVAILABLE, KN_IO  the disk is full; it refused; nothing is left at `destination` */
kn_status kn_backup(const char *data, const char *destination, kn_backup_report *out);

/* Before anything else in main(): libraries that keep settings per process. */
void kn_server_prepare_process(void);

/* The hidden subcommands that are the server's children; argv from their own name on. */
int kn_server_child(int argc, char **argv, bool *known);

#endif
