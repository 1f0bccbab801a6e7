/* SPDX-License-Identifier: Apache-2.0
 *
 * The server's side: a queue of files, at most KN_SANDBOX_CHILDREN_MAX of them in a child.
 *
 *   waiting   its input is a sealed memfd                -> running  start, from the loop
 *   running   a child, its pidfd and a timer are watched -> gone     on_ended, on_overdue: called back
 *   any                                                  -> gone     kn_sandbox_cancel: not called back */
#define _GNU_SOURCE /* memfd_create, seals, pipe2 */
#include "server/sandbox.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/child.h"
#include "server/sandbox_wire.h"

typedef struct task {
    struct task *next; /* in the order of arrival */
    kn_sandbox *owner;
    uint64_t ticket;
    kn_image_info info;
    size_t bytes;
    int input, output, report; /* descriptors; -1: none */
    kn_child child;
    struct event *ended, *overdue; /* NULL while waiting */
    kn_sandbox_fn *done;
    void *context;
} task;

struct kn_sandbox {
    struct event_base *base;
    char *executable, *probe; /* or NULL */
    bool keep_stderr;
    int32_t wall_s;
    struct event *pump; /* made active when a waiting file may start */
    task *first;
    size_t count, running;
    uint64_t last_ticket;
};

static size_t output_bytes(const kn_image_info *info)
{
    return (size_t)info->width * (size_t)info->height * 3;
}

/* ---- memory files ---- */

static kn_status make_memory_file(int *out, size_t bytes)
{
    *out = memfd_create("kinora-upload", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (*out < 0 || ftruncate(*out, (off_t)bytes) != 0)
        return kn_fail(KN_IO, "sandbox: no memory file of %zu bytes: %s", bytes, strerror(errno));
    return KN_OK;
}

static kn_status seal(int file, int seals)
{
    if (fcntl(file, F_ADD_SEALS, seals | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0) return KN_OK;
    return kn_fail(KN_IO, "sandbox: a memory file cannot be sealed: %s", strerror(errno));
}

static kn_status make_input(int *out, const void *bytes, size_t count)
{
    kn_status st = make_memory_file(out, count + KN_SANDBOX_PADDING);
    for (size_t done = 0; done < count && st == KN_OK;) {
        const ssize_t n = pwrite(*out, (const char *)bytes + done, count - done, (off_t)done);
        if (n > 0)
            done += (size_t)n;
        else if (errno != EINTR)
            st = kn_fail(KN_IO, "sandbox: %s", strerror(errno));
    }
    return st == KN_OK ? seal(*out, F_SEAL_WRITE) : st;
}

/* ---- the end of a file ---- */

static void close_file(int *file)
{
    if (*file >= 0) close(*file);
    *file = -1;
}

static void free_task(task *t)
{
    if (t->ended) event_free(t->ended);
    if (t->overdue) event_free(t->overdue);
    kn_child_kill(&t->child);
    close_file(&t->input);
    close_file(&t->output);
    close_file(&t->report);
    kn_free(t);
}

/* Takes the task out of the table; a waiting one may have its place. */
static void unlink_task(task *t)
{
    kn_sandbox *s = t->owner;
    for (task **at = &s->first; *at; at = &(*at)->next) {
        if (*at != t) continue;
        *at = t->next;
        break;
    }
    s->count--;
    if (t->ended) s->running--;
    event_active(s->pump, EV_TIMEOUT, 0);
}

static void complete(task *t, kn_sandbox_result result)
{
    unlink_task(t);
    result.info = t->info;
    if (result.status != KN_OK) result.rgb = NULL;
    t->done(t->context, &result);
    free_task(t);
}

/* The decoder's pixels; the child is gone, so nobody changes them any more. */
static void complete_decoded(task *t)
{
    const size_t bytes = output_bytes(&t->info);
    void *pixels = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, t->output, 0);
    if (pixels == MAP_FAILED) {
        complete(t, (kn_sandbox_result){.status = KN_UNAVAILABLE, .error = "image: no memory for the pixels"});
        return;
    }
    complete(t, (kn_sandbox_result){.status = KN_OK, .error = "", .rgb = pixels});
    munmap(pixels, bytes);
}

static bool read_report(const task *t, kn_sandbox_report *report)
{
    const ssize_t n = read(t->report, report, sizeof *report);
    return n == (ssize_t)sizeof *report && report->magic == KN_SANDBOX_REPORT_MAGIC;
}

static kn_sandbox_result judge(const task *t, const kn_sandbox_report *report)
{
    static const kn_sandbox_result damaged = {.status = KN_CORRUPT,
                                              .error = "image: the file is damaged and cannot be decoded"};
    switch (report->code) {
    case KN_SANDBOX_DECODED:
        if (report->width == t->info.width && report->height == t->info.height)
            return (kn_sandbox_result){.status = KN_OK};
        return damaged;
    case KN_SANDBOX_DAMAGED: return damaged;
    case KN_SANDBOX_OTHER_SIZE:
        return (kn_sandbox_result){.status = KN_CORRUPT,
                                   .error = "image: the picture does not have the size the file's header says"};
    case KN_SANDBOX_NO_MEMORY:
        return (kn_sandbox_result){.status = KN_CORRUPT,
                                   .error = "image: decoding the file takes more memory than allowed"};
    case KN_SANDBOX_UNPREPARED:
        return (kn_sandbox_result){.status = KN_UNAVAILABLE, .error = "image: no decoder can be run now"};
    case KN_SANDBOX_PROBE_FREE: return (kn_sandbox_result){.status = KN_BUG, .error = "probe: not held back"};
    case KN_SANDBOX_PROBE_HELD: return (kn_sandbox_result){.status = KN_INVALID, .error = "probe: held back"};
    case KN_SANDBOX_PROBE_ABSENT: return (kn_sandbox_result){.status = KN_UNSUPPORTED, .error = "probe: absent"};
    default: return damaged;
    }
}

static void judge_end(task *t, const kn_child_end *end)
{
    kn_sandbox_report report;
    if (end->signal == 0 && read_report(t, &report)) {
        const kn_sandbox_result result = judge(t, &report);
        if (result.status == KN_OK)
            complete_decoded(t);
        else
            complete(t, result);
        return;
    }
    const char *error = "image: the file is damaged and cannot be decoded";
    if (end->signal == SIGSYS)
        kn_log(KN_LOG_ERROR, "sandbox: a decoder tried a forbidden system call and was killed");
    else if (end->signal == SIGXCPU || end->signal == SIGKILL)
        error = "image: decoding the file takes more processor time than allowed";
    else
        kn_log(KN_LOG_WARNING, "sandbox: a decoder ended with code %d, signal %d", end->code, end->signal);
    complete(t, (kn_sandbox_result){.status = KN_CORRUPT, .error = error, .signal = end->signal});
}

static void on_ended(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    task *t = context;
    kn_child_end end = {.code = -1};
    if (kn_child_reap(&t->child, &end) == KN_OK) judge_end(t, &end);
}

static void on_overdue(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    task *t = context;
    kn_child_kill(&t->child);
    complete(t, (kn_sandbox_result){.status = KN_CORRUPT,
                                    .error = "image: decoding the file takes more time than allowed",
                                    .signal = SIGKILL,
                                    .timed_out = true});
}

/* ---- the start of a child ---- */

static kn_status run_child(task *t, int report_end)
{
    const kn_sandbox *s = t->owner;
    char width[16], height[16], bytes[24];
    snprintf(width, sizeof width, "%d", t->info.width);
    snprintf(height, sizeof height, "%d", t->info.height);
    snprintf(bytes, sizeof bytes, "%zu", t->bytes);
    const char *const argv[] = {"kinora", "sandbox", kn_image_kind_name(t->info.kind), width, height, bytes,
                                s->probe, NULL}; /* without a probe the list ends one earlier */
    const int fds[] = {t->input, t->output, report_end};
    return kn_child_start(&t->child, &(kn_child_params){.executable = s->executable,
                                                        .argv = argv,
                                                        .fds = fds,
                                                        .fd_count = sizeof fds / sizeof *fds,
                                                        .keep_stderr = s->keep_stderr});
}

static kn_status start(task *t)
{
    kn_status st = KN_OK;
    int ends[2] = {-1, -1};
    KN_TRY(make_memory_file(&t->output, output_bytes(&t->info)));
    KN_TRY(seal(t->output, 0));
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
        st = kn_fail(KN_IO, "sandbox: pipe: %s", strerror(errno));
        goto fail;
    }
    t->report = ends[0];
    KN_TRY(run_child(t, ends[1]));
    struct event *ended = event_new(t->owner->base, t->child.pidfd, EV_READ, on_ended, t);
    t->overdue = event_new(t->owner->base, -1, 0, on_overdue, t);
    if (!ended || !t->overdue || event_add(ended, NULL) != 0 ||
        event_add(t->overdue, &(struct timeval){.tv_sec = t->owner->wall_s}) != 0) {
        if (ended) event_free(ended);
        st = kn_fail(KN_NOMEM, "sandbox: no memory for events");
        goto fail;
    }
    t->ended = ended; /* from here on it counts as running */
    t->owner->running++;
fail:
    close_file(&ends[1]);
    return st;
}

static task *first_waiting(const kn_sandbox *s)
{
    task *t = s->first;
    while (t && t->ended) t = t->next;
    return t;
}

static void on_pump(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    kn_sandbox *s = context;
    task *t = s->running < KN_SANDBOX_CHILDREN_MAX ? first_waiting(s) : NULL;
    if (!t) return;
    if (start(t) != KN_OK) {
        kn_log(KN_LOG_ERROR, "%s", kn_fail_message());
        complete(t, (kn_sandbox_result){.status = KN_UNAVAILABLE, .error = "image: no decoder can be run now"});
    }
    event_active(s->pump, EV_TIMEOUT, 0); /* the next one, if there is any */
}

/* ---- public ---- */

kn_status kn_sandbox_create(kn_sandbox **out, const kn_sandbox_params *params)
{
    *out = NULL;
    KN_REQUIRE(params->base);
    kn_sandbox *s = kn_alloc(sizeof *s);
    if (!s) return KN_NOMEM;
    s->base = params->base;
    s->keep_stderr = params->keep_stderr;
    s->wall_s = params->wall_s > 0 ? params->wall_s : KN_SANDBOX_WALL_S;
    s->executable = params->executable ? kn_strdup(params->executable) : NULL;
    s->probe = params->probe ? kn_strdup(params->probe) : NULL;
    s->pump = event_new(s->base, -1, 0, on_pump, s);
    if (!s->pump || (params->executable && !s->executable) || (params->probe && !s->probe)) {
        kn_sandbox_destroy(&s);
        return kn_fail(KN_NOMEM, "sandbox: no memory");
    }
    *out = s;
    return KN_OK;
}

void kn_sandbox_destroy(kn_sandbox **sandbox)
{
    kn_sandbox *s = *sandbox;
    *sandbox = NULL;
    if (!s) return;
    while (s->first) {
        task *t = s->first;
        s->first = t->next;
        free_task(t);
    }
    if (s->pump) event_free(s->pump);
    kn_free(s->executable);
    kn_free(s->probe);
    kn_free(s);
}

kn_status kn_sandbox_decode(kn_sandbox *sandbox, const void *bytes, size_t count, kn_sandbox_fn *done, void *context,
                            uint64_t *ticket)
{
    KN_REQUIRE(sandbox && done);
    kn_image_info info;
    kn_status st = kn_image_sniff(&info, bytes, count);
    if (st != KN_OK) return st;
    if (sandbox->count == KN_SANDBOX_QUEUE_MAX)
        return kn_fail(KN_AGAIN, "image: %d files are being decoded already; try again", KN_SANDBOX_QUEUE_MAX);
    task *t = kn_alloc(sizeof *t);
    if (!t) return KN_NOMEM;
    *t = (task){.owner = sandbox,
                .info = info,
                .bytes = count,
                .input = -1,
                .output = -1,
                .report = -1,
                .child = KN_CHILD_NONE,
                .done = done,
                .context = context};
    st = make_input(&t->input, bytes, count);
    if (st != KN_OK) {
        free_task(t);
        return st;
    }
    t->ticket = ++sandbox->last_ticket;
    if (ticket) *ticket = t->ticket;
    task **last = &sandbox->first;
    while (*last) last = &(*last)->next;
    *last = t;
    sandbox->count++;
    event_active(sandbox->pump, EV_TIMEOUT, 0);
    return KN_OK;
}

void kn_sandbox_cancel(kn_sandbox *sandbox, uint64_t ticket)
{
    for (task *t = sandbox->first; t; t = t->next) {
        if (t->ticket != ticket) continue;
        unlink_task(t);
        free_task(t);
        return;
    }
}

size_t kn_sandbox_pending(const kn_sandbox *sandbox)
{
    return sandbox->count;
}
