/* SPDX-License-Identifier: Apache-2.0
 *
 * One sink, four levels, one record a line on standard error.
 *
 *   text   warning: the deadline passed job=video_0f3a... seconds=61
 *   timed  2026-11-22T10:11:12.345678Z warning: the deadline passed job=video_0f3a... seconds=61
 *   json   {"time":"2026-11-22T10:11:12.345678Z","level":"warning","job":"video_0f3a...","seconds":61,"message":"..."}
 *
 * A record never brings the program down or holds it up: it is one write() of at most KN_LOG_RECORD_BYTES (what Linux
 * writes to a pipe as a unit); where standard error is a pipe, a socket or a terminal that cannot take it now, or has
 * been closed, the record is dropped and counted, SIGPIPE is not raised, and the next record that gets through is
 * preceded by one that says how many are missing.
 *
 * A record cannot be forged from inside a message or a field: control characters, line separators and characters that
 * reorder text are escaped, bytes that are not UTF-8 become \xNN (text) or U+FFFD (JSON), and nothing is cut inside a
 * character.
 *
 * Secrets and prompts are never passed here. Two nets below that rule: a secret is kept as a kn_secret, a struct that
 * the compiler refuses for %s; and whatever in a record looks like a credential ("kinora_" and a key, "whsec_" and a
 * secret, "Bearer " and a token) is written as "[redacted]".
 *
 * Thread-safe. */
#ifndef KN_BASE_LOG_H
#define KN_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    KN_LOG_RECORD_BYTES = 4096,  /* PIPE_BUF on Linux, newline included */
    KN_LOG_MESSAGE_BYTES = 2048, /* of the message before escaping, NUL included; the rest is cut */
    KN_LOG_VALUE_BYTES = 256,    /* of one field's text before escaping; the rest is cut */
    KN_LOG_FIELDS = 16,          /* in one record; further ones are left out */
    KN_SECRET_BYTES = 128,       /* longest secret text, NUL included */
};

typedef enum kn_log_level { KN_LOG_DEBUG, KN_LOG_INFO, KN_LOG_WARNING, KN_LOG_ERROR } kn_log_level;

typedef enum kn_log_format { KN_LOG_TEXT, KN_LOG_JSON, KN_LOG_TIMED } kn_log_format;

/* Messages below `level` are dropped. The defaults are KN_LOG_INFO and KN_LOG_TEXT. */
void kn_log_configure(kn_log_level level, kn_log_format format);

/* "debug", "info", "warning", "error"; "text", "json", "timed". KN_INVALID for other names. */
kn_status kn_log_level_parse(kn_log_level *out, const char *name);
kn_status kn_log_format_parse(kn_log_format *out, const char *name);

void kn_log(kn_log_level level, const char *format, ...) KN_PRINTF(2, 3);

/* ---- fields ---- */

typedef enum kn_log_kind { KN_LOG_NONE, KN_LOG_STRING, KN_LOG_INTEGER, KN_LOG_REAL, KN_LOG_BOOLEAN } kn_log_kind;

/* A name of [a-z0-9_]* and a value. Borrowed for the call. */
typedef struct kn_log_field {
    const char *name;
    kn_log_kind kind;
    const char *text;
    int64_t integer;
    double real;
} kn_log_field;

#ifndef __cplusplus /* which lacks compound literals; its one file here logs nothing */

/* A NULL or empty text makes a field that is left out, so that ids that are not known yet need no `if`. */
static inline kn_log_field kn_log_text(const char *name, const char *text)
{
    return (kn_log_field){.name = name, .kind = text && *text ? KN_LOG_STRING : KN_LOG_NONE, .text = text};
}

static inline kn_log_field kn_log_integer(const char *name, int64_t value)
{
    return (kn_log_field){.name = name, .kind = KN_LOG_INTEGER, .integer = value};
}

static inline kn_log_field kn_log_real(const char *name, double value)
{
    return (kn_log_field){.name = name, .kind = KN_LOG_REAL, .real = value};
}

static inline kn_log_field kn_log_boolean(const char *name, bool value)
{
    return (kn_log_field){.name = name, .kind = KN_LOG_BOOLEAN, .integer = value};
}

/* The two every line of the server carries where it has them. */
static inline kn_log_field kn_log_request(const char *request_id)
{
    return kn_log_text("request", request_id);
}

static inline kn_log_field kn_log_job(const char *job_id)
{
    return kn_log_text("job", job_id);
}

/* Fields first, then the message as for kn_log:
 *     kn_log_event(KN_LOG_INFO, KN_LOG_WITH(kn_log_job(job->id), kn_log_integer("step", 3)), "checkpoint saved"); */
void kn_log_event(kn_log_level level, const kn_log_field *fields, size_t count, const char *format, ...)
    KN_PRINTF(4, 5);

#define KN_LOG_WITH(...)                                                                                               \
    (const kn_log_field[]){__VA_ARGS__}, sizeof((const kn_log_field[]){__VA_ARGS__}) / sizeof(kn_log_field)

#endif

/* Records dropped since the start because standard error did not take them. For the metrics. */
uint64_t kn_log_lost(void);

/* ---- secrets ---- */

/* Text that must not be shown: API keys, webhook secrets. Being a struct it does not pass for %s; only
 * kn_secret_reveal() gives the text, and only where it leaves for its one legitimate reader. */
typedef struct kn_secret {
    char hidden[KN_SECRET_BYTES];
} kn_secret;

/* KN_INVALID when the text does not fit; `out` is then empty. The text is never part of the message. */
kn_status kn_secret_set(kn_secret *out, const char *text, size_t bytes);

/* Borrowed; ends in NUL. */
const char *kn_secret_reveal(const kn_secret *secret);

/* Overwrites it, in a way the compiler may not leave out. */
void kn_secret_wipe(kn_secret *secret);

/* The rule the sink applies, for texts that go elsewhere (error bodies): everything in `text` that looks like a
 * credential is overwritten with "[redacted]" or, where that does not fit, asterisks. Returns how many there were. */
size_t kn_log_redact(char *text);

#endif
