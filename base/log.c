/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* MSG_NOSIGNAL, explicit_bzero, sigtimedwait */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static atomic_int threshold = KN_LOG_INFO;
static atomic_int shape = KN_LOG_TEXT;

static const char *const level_names[] = {"debug", "info", "warning", "error"};
static const char *const format_names[] = {"text", "json", "timed"};

void kn_log_configure(kn_log_level level, kn_log_format format)
{
    atomic_store(&threshold, (int)level);
    atomic_store(&shape, (int)format);
}

static int name_index(const char *const *names, int count, const char *name)
{
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0) return i;
    return -1;
}

kn_status kn_log_level_parse(kn_log_level *out, const char *name)
{
    int index = name_index(level_names, 4, name);
    if (index < 0) return kn_fail(KN_INVALID, "log levels are debug, info, warning and error");
    *out = (kn_log_level)index;
    return KN_OK;
}

kn_status kn_log_format_parse(kn_log_format *out, const char *name)
{
    int index = name_index(format_names, 3, name);
    if (index < 0) return kn_fail(KN_INVALID, "log formats are text, timed and json");
    *out = (kn_log_format)index;
    return KN_OK;
}

/* ---- secrets ---- */

kn_status kn_secret_set(kn_secret *out, const char *text, size_t bytes)
{
    memset(out, 0, sizeof *out);
    if (bytes >= sizeof out->hidden)
        return kn_fail(KN_INVALID, "a secret of %zu bytes; the longest has %d", bytes, KN_SECRET_BYTES - 1);
    memcpy(out->hidden, text, bytes);
    return KN_OK;
}

const char *kn_secret_reveal(const kn_secret *secret)
{
    return secret->hidden;
}

void kn_secret_wipe(kn_secret *secret)
{
    explicit_bzero(secret, sizeof *secret);
}

/* How credentials begin, and how many characters must follow before it is one and not a word ("kinora_jobs_total"). */
static const struct {
    const char *text;
    size_t least;
} marks[] = {{"kinora_", 48}, {"whsec_", 24}, {"bearer ", 8}};

static bool is_credential(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr("_-+/=.~", c));
}

/* Bytes of `text` that belong to the credential beginning there after its mark, 0 when there is none. At the end of a
 * text that was `cut` any length will do: the rest may be missing. */
static size_t credential_bytes(const char *text, size_t *mark_bytes, bool cut)
{
    for (size_t m = 0; m < sizeof marks / sizeof *marks; m++) {
        size_t start = 0;
        while (marks[m].text[start] &&
               (text[start] | (text[start] >= 'A' && text[start] <= 'Z' ? 32 : 0)) == marks[m].text[start])
            start++;
        if (marks[m].text[start]) continue;
        size_t count = 0;
        while (is_credential((unsigned char)text[start + count])) count++;
        if (count >= marks[m].least || (cut && count && !text[start + count])) {
            *mark_bytes = start;
            return count;
        }
    }
    return 0;
}

static size_t redact(char *text, bool cut)
{
    static const char word[] = "[redacted]";
    size_t found = 0;
    for (char *p = text; *p; p++) {
        size_t mark, count = credential_bytes(p, &mark, cut);
        if (!count) continue;
        p += mark;
        size_t tail = strlen(p + count);
        if (count >= sizeof word - 1) {
            memcpy(p, word, sizeof word - 1);
            memmove(p + sizeof word - 1, p + count, tail + 1);
            p += sizeof word - 2;
        } else {
            memset(p, '*', count);
            p += count - 1;
        }
        found++;
    }
    return found;
}

size_t kn_log_redact(char *text)
{
    return redact(text, false);
}

/* ---- composing a record ---- */

/* A record under construction. What does not fit is left out as a whole: an escape, a character, a field. */
typedef struct record {
    char bytes[KN_LOG_RECORD_BYTES];
    size_t count;
    size_t limit; /* <= sizeof bytes */
    bool json;
} record;

static bool put(record *r, const char *text, size_t count)
{
    if (count > r->limit - r->count) return false;
    memcpy(r->bytes + r->count, text, count);
    r->count += count;
    return true;
}

static bool put_text(record *r, const char *text)
{
    return put(r, text, strlen(text));
}

/* Bytes of the UTF-8 character at `text`, which ends in NUL; 0 when there is none. RFC 3629: no surrogates, nothing
 * overlong, nothing above U+10FFFF. */
static size_t character_bytes(const unsigned char *text, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t count = text[0] < 0x80 ? 1 : text[0] < 0xc0 ? 0 : text[0] < 0xe0 ? 2 : text[0] < 0xf0 ? 3 : 4;
    if (!count || text[0] > 0xf4) return 0;
    *code = count == 1 ? text[0] : text[0] & (0x7fu >> count);
    for (size_t i = 1; i < count; i++) {
        if ((text[i] & 0xc0) != 0x80) return 0;
        *code = *code << 6 | (text[i] & 0x3f);
    }
    return *code < least[count] || *code > 0x10ffff || (*code >= 0xd800 && *code <= 0xdfff) ? 0 : count;
}

/* Would it move the cursor, end the line or reorder what is shown? Controls, separators, marks of direction. */
static bool is_hostile(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code <= 0x9f) || code == 0x061c || (code >= 0x200e && code <= 0x200f) ||
           (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) || code == 0xfeff;
}

/* Writes `text` escaped; stops before the first character that does not fit. `quoted`: inside "...", as JSON always is
 * and a field of text may be. */
static void put_escaped(record *r, const char *text, bool quoted)
{
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        char escape[16];
        uint32_t code = 0;
        size_t count = character_bytes(p, &code);
        bool fits;
        if (!count && r->json) {
            fits = put_text(r, "\\ufffd");
        } else if (!count) {
            snprintf(escape, sizeof escape, "\\x%02x", *p);
            fits = put_text(r, escape);
        } else if (quoted && (code == '"' || code == '\\')) {
            snprintf(escape, sizeof escape, "\\%c", (int)code);
            fits = put_text(r, escape);
        } else if (code == '\n' || code == '\t') {
            fits = put_text(r, code == '\n' ? "\\n" : "\\t");
        } else if (is_hostile(code)) {
            snprintf(escape, sizeof escape, r->json || code > 0xff ? "\\u%04x" : "\\x%02x", (unsigned)code);
            fits = put_text(r, escape);
        } else {
            fits = put(r, (const char *)p, count);
        }
        if (!fits) return;
        p += count ? count : 1;
    }
}

static void put_time(record *r)
{
    struct timespec now = {0};
    struct tm utc;
    char text[64];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t count = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(text + count, sizeof text - count, ".%06ldZ", now.tv_nsec / 1000);
    put_text(r, text);
}

/* The last whole character before `bytes`, so that a cut text stays UTF-8. */
static void end_at_character(char *text, size_t bytes)
{
    size_t end = bytes;
    while (end && ((unsigned char)text[end] & 0xc0) == 0x80) end--;
    text[end] = '\0';
}

/* A field's text, shortened. Looks at twice what it keeps, so that a credential at the cut is still known as one. */
static void put_string(record *r, const char *text)
{
    char kept[2 * KN_LOG_VALUE_BYTES];
    snprintf(kept, sizeof kept, "%s", text);
    redact(kept, strlen(text) >= sizeof kept);
    if (strlen(kept) > KN_LOG_VALUE_BYTES) end_at_character(kept, KN_LOG_VALUE_BYTES);
    bool quoted = r->json || strpbrk(kept, " \"=\\") != NULL;
    if (quoted) put_text(r, "\"");
    put_escaped(r, kept, quoted);
    if (quoted) put_text(r, "\"");
}

static void put_value(record *r, const kn_log_field *field)
{
    char text[32];
    switch (field->kind) {
    case KN_LOG_INTEGER: snprintf(text, sizeof text, "%" PRId64, field->integer); break;
    case KN_LOG_REAL: snprintf(text, sizeof text, "%.9g", field->real); break;
    default: snprintf(text, sizeof text, "%s", field->integer ? "true" : "false"); break;
    }
    if (field->kind == KN_LOG_STRING)
        put_string(r, field->text);
    else
        put_text(r, field->kind == KN_LOG_REAL && !isfinite(field->real) ? "null" : text);
}

/* One field into `r`, or nothing at all when it does not fit. */
static void put_field(record *r, const kn_log_field *field)
{
    record one = {.limit = sizeof one.bytes, .json = r->json};
    if (field->kind == KN_LOG_NONE) return;
    put_text(&one, r->json ? "\"" : " ");
    put_text(&one, field->name);
    put_text(&one, r->json ? "\":" : "=");
    put_value(&one, field);
    if (r->json) put_text(&one, ",");
    put(r, one.bytes, one.count);
}

enum { FIELDS_BYTES = 1792, TAIL_BYTES = 4 }; /* at most of all fields; of "\"}\n" */

static void compose(record *r, kn_log_level level, kn_log_format format, const kn_log_field *fields, size_t count,
                    const char *message)
{
    *r = (record){.limit = sizeof r->bytes, .json = format == KN_LOG_JSON};
    record extra = {.limit = FIELDS_BYTES, .json = r->json};
    for (size_t i = 0; i < count && i < KN_LOG_FIELDS; i++) put_field(&extra, &fields[i]);
    if (r->json) put_text(r, "{\"time\":\"");
    if (format != KN_LOG_TEXT) put_time(r);
    put_text(r, r->json ? "\",\"level\":\"" : format == KN_LOG_TIMED ? " " : "");
    put_text(r, level_names[level]);
    put_text(r, r->json ? "\"," : ": ");
    if (r->json) {
        put(r, extra.bytes, extra.count);
        put_text(r, "\"message\":\"");
    }
    r->limit -= TAIL_BYTES + (r->json ? 0 : extra.count);
    put_escaped(r, message, r->json);
    r->limit = sizeof r->bytes;
    put_text(r, r->json ? "\"}" : "");
    if (!r->json) put(r, extra.bytes, extra.count);
    put_text(r, "\n");
}

/* ---- the sink ---- */

/* A pipe or terminal is written to through a file description of our own, because whether writing waits is a property
 * of the description, and the one we were given is shared with whoever started us. */
static struct sink {
    pthread_mutex_t mutex;
    int own;      /* -1: none */
    dev_t device; /* of the file `own` was opened for */
    ino_t inode;
    bool torn;         /* the last record was taken in part: begin a new line */
    uint64_t unspoken; /* records lost since the last one that got through */
} sink = {.mutex = PTHREAD_MUTEX_INITIALIZER, .own = -1};

static atomic_ullong lost;

uint64_t kn_log_lost(void)
{
    return atomic_load(&lost);
}

/* The descriptor to write to; *is_socket says how. Falls back to standard error itself, which can then block. */
static int sink_descriptor(bool *is_socket)
{
    struct stat now;
    *is_socket = false;
    if (fstat(STDERR_FILENO, &now) != 0) return STDERR_FILENO; /* closed: the write will say so */
    *is_socket = S_ISSOCK(now.st_mode);
    bool waits = S_ISFIFO(now.st_mode) || S_ISCHR(now.st_mode);
    if (sink.own >= 0 && (!waits || now.st_dev != sink.device || now.st_ino != sink.inode)) {
        close(sink.own);
        sink.own = -1;
    }
    if (!waits) return STDERR_FILENO;
    if (sink.own < 0) {
        sink.own = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        sink.device = now.st_dev;
        sink.inode = now.st_ino;
    }
    return sink.own >= 0 ? sink.own : STDERR_FILENO;
}

/* write() that raises no SIGPIPE: the signal is held back and, if this write made it, taken away. */
static ssize_t write_quietly(int descriptor, const char *bytes, size_t count)
{
    sigset_t pipe_signal, before, pending;
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    sigpending(&pending);
    bool was_pending = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
    ssize_t done;
    do done = write(descriptor, bytes, count);
    while (done < 0 && errno == EINTR);
    int error = errno;
    if (done < 0 && error == EPIPE && !was_pending) {
        const struct timespec none = {0};
        while (sigtimedwait(&pipe_signal, NULL, &none) < 0 && errno == EINTR) continue;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return done;
}

/* Was the whole record taken? */
static bool emit(const record *r)
{
    bool is_socket;
    int descriptor = sink_descriptor(&is_socket);
    const char *start = r->bytes;
    ssize_t done = is_socket ? send(descriptor, start, r->count, MSG_DONTWAIT | MSG_NOSIGNAL)
                             : write_quietly(descriptor, start, r->count);
    sink.torn = done > 0 && (size_t)done < r->count;
    return done == (ssize_t)r->count;
}

static void emit_counting(record *r, kn_log_format format)
{
    pthread_mutex_lock(&sink.mutex);
    bool through = true;
    if (sink.torn) {
        record line = {.bytes = "\n", .count = 1};
        through = emit(&line);
        sink.torn = !through;
    }
    if (through && sink.unspoken) {
        record note;
        kn_log_field field = kn_log_integer("records", (int64_t)sink.unspoken);
        compose(&note, KN_LOG_WARNING, format, &field, 1, "log records were lost: standard error did not take them");
        through = emit(&note);
        if (through) sink.unspoken = 0;
    }
    if (!through || !emit(r)) {
        sink.unspoken++;
        atomic_fetch_add(&lost, 1);
    }
    pthread_mutex_unlock(&sink.mutex);
}

static void log_arguments(kn_log_level level, const kn_log_field *fields, size_t count, const char *format,
                          va_list arguments)
{
    if ((int)level < atomic_load(&threshold)) return;
    int saved = errno;
    char text[KN_LOG_MESSAGE_BYTES + 4]; /* room to see where the character at the cut begins */
    int wanted = vsnprintf(text, sizeof text, format, arguments);
    redact(text, wanted >= (int)sizeof text);
    if (strlen(text) >= KN_LOG_MESSAGE_BYTES) end_at_character(text, KN_LOG_MESSAGE_BYTES - 1);
    record r;
    kn_log_format as = (kn_log_format)atomic_load(&shape);
    compose(&r, level, as, fields, count, wanted < 0 ? "(a message that cannot be formatted)" : text);
    emit_counting(&r, as);
    errno = saved;
}

void kn_log(kn_log_level level, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    log_arguments(level, NULL, 0, format, arguments);
    va_end(arguments);
}

void kn_log_event(kn_log_level level, const kn_log_field *fields, size_t count, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    log_arguments(level, fields, count, format, arguments);
    va_end(arguments);
}
