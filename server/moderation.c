/* SPDX-License-Identifier: Apache-2.0
 *
 * A question waits (in order of arrival), runs, and is answered once; one whose process has not gone by then lingers,
 * still counted as running, until it has. Standard input is a sealed memory file, so that nothing has to be written
 * while the hook runs; standard output is a pipe; the end of both the output and the process makes the verdict. */
#define _GNU_SOURCE /* memfd_create, pipe2, addclosefrom_np, pidfd_open */
#include "server/moderation.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "engine/config.h"
#include "server/hook_child.h"
#include "server/json.h"

typedef struct question {
    struct question *next;
    kn_moderation *owner;
    uint64_t ticket; /* 0: answered or withdrawn */
    kn_moderation_stage stage;
    kn_moderation_done done;
    void *context;
    char job_id[KN_JOB_ID_BYTES]; /* for the log */
    char *json;                   /* [json_bytes] what the hook reads */
    size_t json_bytes;
    int output;    /* read end of its standard output; -1 at its end */
    pid_t process; /* and process group; 0: none */
    int pidfd;
    struct event *readable, *ended, *overdue;
    int64_t started_ns;
    char *answer; /* [KN_MODERATION_ANSWER_BYTES + 1] */
    size_t answer_bytes;
    int exit_status; /* 0 is success */
} question;

struct kn_moderation {
    struct event_base *base;
    char **hooks[KN_MODERATION_STAGES]; /* owned, NULL at the end; NULL: none */
    char *first[KN_MODERATION_STAGES];  /* what goes before the question: a URL hook's configuration; or NULL */
    int32_t time_limit_ms, running_max, queue_max;
    bool fail_open;
    question *waiting, **waiting_end;
    question *active; /* running and lingering */
    int32_t running, queued;
    uint64_t tickets;
    struct event *start; /* starts waiting questions from the loop */
};

const char *kn_moderation_stage_name(kn_moderation_stage stage)
{
    static const char *const names[] = {"prompt", "output"};
    return (unsigned)stage < KN_MODERATION_STAGES ? names[stage] : "unknown";
}

/* ---- one process ---- */

static void close_descriptor(int *descriptor)
{
    if (*descriptor >= 0) close(*descriptor);
    *descriptor = -1;
}

static void free_question(question *q)
{
    if (q->process) { /* at shutdown, or when it cannot be watched: SIGKILL is not put off for long */
        siginfo_t info;
        kill(-q->process, SIGKILL);
        while (waitid(P_PID, (id_t)q->process, &info, WEXITED) != 0 && errno == EINTR) continue;
    }
    struct event *const events[] = {q->readable, q->ended, q->overdue};
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
        if (events[i]) event_free(events[i]);
    close_descriptor(&q->output);
    close_descriptor(&q->pidfd);
    kn_free(q->json);
    kn_free(q->answer);
    kn_free(q);
}

/* The verdict of an answer; NULL, or why it is none. */
static const char *read_answer(const question *q, kn_moderation_verdict *verdict)
{
    json_t *answer = NULL;
    const kn_json_limits limits = {.bytes = KN_MODERATION_ANSWER_BYTES, .values = 8, .depth = 2};
    if (kn_json_parse(&answer, q->answer, q->answer_bytes, "the hook's answer", limits) != KN_OK)
        return "hook_malformed";
    const char *word = json_string_value(json_object_get(answer, "verdict"));
    const char *reason = json_string_value(json_object_get(answer, "reason"));
    size_t bytes = reason ? strlen(reason) : 0, keys = 1 + (json_object_get(answer, "reason") != NULL);
    bool blocked = word && strcmp(word, "block") == 0;
    bool good = word && (blocked || strcmp(word, "allow") == 0) && json_object_size(answer) == keys &&
                (keys == 2) == (reason != NULL) && bytes < sizeof verdict->reason &&
                (!reason || (bytes && strspn(reason, "abcdefghijklmnopqrstuvwxyz0123456789_.-") == bytes)) &&
                (!blocked || reason);
    if (good) {
        verdict->allowed = !blocked;
        snprintf(verdict->reason, sizeof verdict->reason, "%s", reason ? reason : "");
    }
    json_decref(answer);
    return good ? NULL : "hook_malformed";
}

/* The question is over for whoever asked: it goes, or lingers until its killed process has. */
static void dismiss(question *q)
{
    kn_moderation *m = q->owner;
    q->ticket = 0;
    if (q->process && q->ended) {
        kill(-q->process, SIGKILL);
        event_del(q->readable);
        event_del(q->overdue);
        return;
    }
    question **at = &m->active;
    while (*at != q) at = &(*at)->next;
    *at = q->next;
    m->running--;
    free_question(q);
    if (m->waiting) event_active(m->start, EV_TIMEOUT, 1);
}

/* Hands over the verdict: what the hook answered, or the operator's choice where there is a `failure`. */
static void decide(question *q, const char *failure)
{
    kn_moderation_verdict verdict = {.elapsed_ns = kn_clock_ns() - q->started_ns};
    if (!failure && q->exit_status != 0) failure = "hook_failed";
    if (!failure) failure = read_answer(q, &verdict);
    if (failure) {
        verdict.failed = true;
        verdict.allowed = q->owner->fail_open;
        snprintf(verdict.reason, sizeof verdict.reason, "%s", failure);
        kn_log_event(KN_LOG_WARNING,
                     KN_LOG_WITH(kn_log_job(q->job_id), kn_log_text("stage", kn_moderation_stage_name(q->stage)),
                                 kn_log_text("reason", failure), kn_log_boolean("allowed", verdict.allowed)),
                     "a moderation hook gave no verdict");
    }
    kn_moderation_done done = q->done;
    void *context = q->context;
    dismiss(q);
    done(context, &verdict);
}

static void on_overdue(evutil_socket_t descriptor, short what, void *context)
{
    (void)descriptor, (void)what;
    decide(context, "hook_timeout");
}

static void on_readable(evutil_socket_t descriptor, short what, void *context)
{
    (void)what;
    question *q = context;
    ssize_t got = read(descriptor, q->answer + q->answer_bytes, KN_MODERATION_ANSWER_BYTES + 1 - q->answer_bytes);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got > 0) q->answer_bytes += (size_t)got;
    if (got < 0) {
        decide(q, "hook_failed");
    } else if (q->answer_bytes > KN_MODERATION_ANSWER_BYTES) {
        decide(q, "hook_malformed");
    } else if (got == 0) {
        event_del(q->readable);
        close_descriptor(&q->output);
        if (!q->process) decide(q, NULL);
    }
}

static void on_ended(evutil_socket_t descriptor, short what, void *context)
{
    (void)descriptor, (void)what;
    question *q = context;
    siginfo_t info = {0};
    /* First only looked at: while it is not reaped its number, and so its group's, cannot become another's. */
    if (waitid(P_PID, (id_t)q->process, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && !info.si_pid) return;
    q->exit_status = info.si_pid && info.si_code == CLD_EXITED ? info.si_status : -1;
    if (info.si_pid) {
        kill(-q->process, SIGKILL); /* what it left behind must not outlive the verdict, nor hold its output open */
        waitid(P_PID, (id_t)q->process, &info, WEXITED | WNOHANG);
    }
    event_del(q->ended);
    q->process = 0;
    if (!q->ticket)
        dismiss(q);
    else if (q->output < 0)
        decide(q, NULL);
}

static kn_status watch(question *q)
{
    struct event_base *base = q->owner->base;
    const struct timeval limit = {q->owner->time_limit_ms / 1000, q->owner->time_limit_ms % 1000 * 1000};
    q->pidfd = (int)syscall(SYS_pidfd_open, q->process, 0);
    if (q->pidfd < 0) return kn_fail(KN_IO, "a moderation hook cannot be watched: %s", strerror(errno));
    q->readable = event_new(base, q->output, EV_READ | EV_PERSIST, on_readable, q);
    q->ended = event_new(base, q->pidfd, EV_READ | EV_PERSIST, on_ended, q);
    q->overdue = evtimer_new(base, on_overdue, q);
    if (!q->readable || !q->ended || !q->overdue || event_add(q->readable, NULL) != 0 ||
        event_add(q->ended, NULL) != 0 || event_add(q->overdue, &limit) != 0)
        return kn_fail(KN_NOMEM, "no memory to watch a moderation hook");
    return KN_OK;
}

/* Descriptors 0, 1 and 2 of the child, every other one closed; no blocked or ignored signals; its own group. */
static int spawn_hook(pid_t *process, char *const *argv, int input, int output)
{
    static const char *const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", NULL};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int error = posix_spawn_file_actions_init(&files);
    if (error) return error;
    error = posix_spawnattr_init(&attributes);
    if (error) goto files_only;
    error = posix_spawn_file_actions_adddup2(&files, input, STDIN_FILENO);
    if (!error) error = posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO);
    if (!error) error = posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    if (!error) error = posix_spawn_file_actions_addclosefrom_np(&files, STDERR_FILENO + 1);
    if (!error) error = posix_spawnattr_setsigmask(&attributes, &none);
    if (!error) error = posix_spawnattr_setsigdefault(&attributes, &all);
    if (!error) error = posix_spawnattr_setpgroup(&attributes, 0);
    if (!error)
        error = posix_spawnattr_setflags(&attributes,
                                         POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    if (!error) error = posix_spawn(process, argv[0], &files, &attributes, argv, (char *const *)environment);
    posix_spawnattr_destroy(&attributes);
files_only:
    posix_spawn_file_actions_destroy(&files);
    return error;
}

/* The question as a memory file that nobody can change, at its beginning; -1 when there can be none. */
static int make_input(const question *q)
{
    int file = memfd_create("moderation", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (file < 0) return -1;
    if (write(file, q->json, q->json_bytes) == (ssize_t)q->json_bytes && lseek(file, 0, SEEK_SET) == 0 &&
        fcntl(file, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        return file;
    close(file);
    return -1;
}

static kn_status start_process(question *q)
{
    int ends[2] = {-1, -1}, error = 0;
    const char *program = q->owner->hooks[q->stage][0];
    q->answer = kn_alloc(KN_MODERATION_ANSWER_BYTES + 1);
    if (!q->answer) return KN_NOMEM;
    int input = make_input(q);
    if (input < 0 || pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0 || fcntl(ends[1], F_SETFL, 0) != 0)
        error = errno; /* the hook's end waits, as programs expect */
    if (!error) error = spawn_hook(&q->process, q->owner->hooks[q->stage], input, ends[1]);
    if (error) q->process = 0;
    q->output = ends[0];
    close_descriptor(&ends[1]);
    close_descriptor(&input);
    return error ? kn_fail(KN_IO, "%s: %s", program, strerror(error)) : watch(q);
}

static void start_question(question *q)
{
    q->next = q->owner->active;
    q->owner->active = q;
    q->owner->running++;
    q->started_ns = kn_clock_ns();
    if (start_process(q) == KN_OK) return;
    kn_log_event(KN_LOG_ERROR, KN_LOG_WITH(kn_log_job(q->job_id)), "a moderation hook cannot be started: %s",
                 kn_fail_message());
    if (q->ended) { /* half watched is not watched */
        event_free(q->ended);
        q->ended = NULL;
    }
    decide(q, "hook_failed");
}

static void on_start(evutil_socket_t descriptor, short what, void *context)
{
    (void)descriptor, (void)what;
    kn_moderation *m = context;
    /* A failure to start is answered from here, and its callback may ask again: at most what waits now. */
    for (int32_t budget = m->queued; budget > 0 && m->waiting && m->running < m->running_max; budget--) {
        question *q = m->waiting;
        m->waiting = q->next;
        if (!m->waiting) m->waiting_end = &m->waiting;
        m->queued--;
        start_question(q);
    }
}

/* ---- asking ---- */

static void put_pair(kn_json_writer *w, const char *key, const char *value)
{
    kn_json_write_key(w, key);
    kn_json_write_string(w, value);
}

static kn_status write_question(question *q, const kn_moderation_subject *subject)
{
    enum { JSON_BYTES = 6 * KN_MODERATION_PROMPT_BYTES + (1 << 17) + 8192 }; /* every byte escaped as \u00xx */
    kn_text text = kn_text_growing(JSON_BYTES);
    if (q->owner->first[q->stage]) kn_text_string(&text, q->owner->first[q->stage]);
    kn_json_writer w = kn_json_writer_on(&text);
    kn_json_write_object(&w);
    kn_json_write_key(&w, "version");
    kn_json_write_int(&w, 1);
    put_pair(&w, "stage", kn_moderation_stage_name(subject->stage));
    put_pair(&w, "job", subject->job_id);
    put_pair(&w, "tenant", subject->tenant);
    put_pair(&w, "model", subject->model);
    put_pair(&w, "prompt", subject->prompt);
    if (subject->stage == KN_MODERATION_OUTPUT) put_pair(&w, "file", subject->file);
    kn_json_write_object_end(&w);
    kn_text_string(&text, "\n");
    kn_status st = kn_text_status(&text);
    if (st == KN_OK) {
        q->json_bytes = text.count;
        q->json = kn_text_take(&text);
        if (!q->json) st = KN_NOMEM;
    }
    kn_text_release(&text);
    return st;
}

bool kn_moderation_active(const kn_moderation *moderation, kn_moderation_stage stage)
{
    return (unsigned)stage < KN_MODERATION_STAGES && moderation->hooks[stage] != NULL;
}

kn_status kn_moderation_ask(kn_moderation *moderation, const kn_moderation_subject *subject, kn_moderation_done done,
                            void *context, uint64_t *ticket)
{
    KN_REQUIRE(kn_moderation_active(moderation, subject->stage));
    KN_REQUIRE(subject->job_id && subject->prompt && (subject->stage != KN_MODERATION_OUTPUT || subject->file));
    KN_REQUIRE(strlen(subject->prompt) <= KN_MODERATION_PROMPT_BYTES);
    if (moderation->queued >= moderation->queue_max)
        return kn_fail(KN_UNAVAILABLE, "%d questions wait for the moderation hook", moderation->queued);
    kn_status st = KN_OK;
    question *q = kn_alloc(sizeof *q);
    if (!q) return KN_NOMEM;
    q->output = q->pidfd = -1;
    q->owner = moderation;
    q->stage = subject->stage;
    q->done = done;
    q->context = context;
    snprintf(q->job_id, sizeof q->job_id, "%s", subject->job_id);
    KN_TRY(write_question(q, subject));
    q->ticket = *ticket = ++moderation->tickets;
    *moderation->waiting_end = q;
    moderation->waiting_end = &q->next;
    moderation->queued++;
    event_active(moderation->start, EV_TIMEOUT, 1);
    return KN_OK;

fail:
    free_question(q);
    return st;
}

void kn_moderation_withdraw(kn_moderation *moderation, uint64_t ticket)
{
    if (!ticket) return;
    for (question **at = &moderation->waiting; *at; at = &(*at)->next) {
        question *q = *at;
        if (q->ticket != ticket) continue;
        *at = q->next;
        if (!*at) moderation->waiting_end = at;
        moderation->queued--;
        free_question(q);
        return;
    }
    for (question *q = moderation->active; q; q = q->next) {
        if (q->ticket != ticket) continue;
        dismiss(q);
        return;
    }
}

int32_t kn_moderation_running(const kn_moderation *moderation)
{
    return moderation->running;
}

int32_t kn_moderation_queued(const kn_moderation *moderation)
{
    return moderation->queued;
}

/* ---- life ---- */

static kn_status copy_hook(char ***out, const char *const *argv, kn_moderation_stage stage)
{
    size_t count = 0;
    while (argv[count]) count++;
    if (!count || count > KN_MODERATION_ARGUMENTS)
        return kn_fail(KN_INVALID, "the %s hook has %zu arguments, the program included; there may be 1 to %d",
                       kn_moderation_stage_name(stage), count, KN_MODERATION_ARGUMENTS);
    struct stat file;
    if (argv[0][0] != '/') return kn_fail(KN_INVALID, "moderation hook %s is not an absolute path", argv[0]);
    if (stat(argv[0], &file) != 0) return kn_fail(KN_INVALID, "moderation hook %s: %s", argv[0], strerror(errno));
    if (!S_ISREG(file.st_mode) || access(argv[0], X_OK) != 0)
        return kn_fail(KN_INVALID, "moderation hook %s is not an executable file", argv[0]);
    char **copy = kn_alloc_array(count + 1, sizeof *copy);
    *out = copy;
    if (!copy) return KN_NOMEM;
    for (size_t i = 0; i < count; i++) {
        copy[i] = kn_strdup(argv[i]);
        if (!copy[i]) return KN_NOMEM;
    }
    return KN_OK;
}

/* `kinora hook` and the line it reads before the question. */
static kn_status make_url_hook(kn_moderation *m, kn_moderation_stage stage, const kn_moderation_options *o)
{
    enum { LINE_BYTES = 1 << 17 };
    kn_status st = KN_OK;
    kn_webhook_url url;
    kn_text text = kn_text_growing(LINE_BYTES);
    kn_json_writer w = kn_json_writer_on(&text);
    const char *const argv[] = {o->executable ? o->executable : "/proc/self/exe", "hook", NULL};
    KN_TRY(kn_hook_url_parse(&url, o->urls[stage], o->allow, o->allow_count));
    KN_TRY(copy_hook(&m->hooks[stage], argv, stage));
    kn_json_write_object(&w);
    put_pair(&w, "url", o->urls[stage]);
    put_pair(&w, "ca", o->ca_file ? o->ca_file : "");
    kn_json_write_key(&w, "time_limit_ms");
    kn_json_write_int(&w, m->time_limit_ms);
    kn_json_write_key(&w, "allow");
    kn_json_write_array(&w);
    for (size_t i = 0; i < o->allow_count; i++) kn_json_write_string(&w, o->allow[i]);
    kn_json_write_array_end(&w);
    kn_json_write_object_end(&w);
    kn_text_string(&text, "\n");
    KN_TRY(kn_text_status(&text));
    m->first[stage] = kn_text_take(&text);
    if (!m->first[stage]) st = KN_NOMEM;
fail:
    kn_text_release(&text);
    return st == KN_OK || st == KN_NOMEM ? st : kn_fail_context(st, "%s hook", kn_moderation_stage_name(stage));
}

kn_status kn_moderation_create(kn_moderation **out, struct event_base *base, const kn_moderation_options *options)
{
    KN_REQUIRE(options->time_limit_ms >= 0 && options->queue_max >= 0);
    KN_REQUIRE(options->running_max >= 0 && options->running_max <= KN_MODERATION_RUNNING_MAX);
    kn_status st = KN_OK;
    kn_moderation *m = kn_alloc(sizeof *m);
    if (!m) return KN_NOMEM;
    m->base = base;
    m->time_limit_ms = options->time_limit_ms ? options->time_limit_ms : KN_MODERATION_TIME_LIMIT_MS;
    m->running_max = options->running_max ? options->running_max : KN_MODERATION_RUNNING;
    m->queue_max = options->queue_max ? options->queue_max : KN_MODERATION_QUEUE;
    m->fail_open = options->fail_open;
    m->waiting_end = &m->waiting;
    for (int stage = 0; stage < KN_MODERATION_STAGES; stage++)
        if (options->urls[stage])
            KN_TRY(make_url_hook(m, (kn_moderation_stage)stage, options));
        else if (options->hooks[stage])
            KN_TRY(copy_hook(&m->hooks[stage], options->hooks[stage], (kn_moderation_stage)stage));
    m->start = event_new(base, -1, 0, on_start, m);
    if (!m->start) KN_TRY(kn_fail(KN_NOMEM, "no memory for the moderation hooks"));
    *out = m;
    return KN_OK;

fail:
    kn_moderation_destroy(&m);
    return st;
}

static void free_list(question *list)
{
    while (list) {
        question *next = list->next;
        free_question(list);
        list = next;
    }
}

void kn_moderation_destroy(kn_moderation **moderation)
{
    if (!moderation || !*moderation) return;
    kn_moderation *m = *moderation;
    free_list(m->waiting);
    free_list(m->active);
    if (m->start) event_free(m->start);
    for (int stage = 0; stage < KN_MODERATION_STAGES; stage++) {
        for (char **argument = m->hooks[stage]; argument && *argument; argument++) kn_free(*argument);
        kn_free(m->hooks[stage]);
        kn_free(m->first[stage]);
    }
    kn_free(m);
    *moderation = NULL;
}
