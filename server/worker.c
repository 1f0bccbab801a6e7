/* SPDX-License-Identifier: Apache-2.0
 *
 * Two threads. The main one reads a message, does it, answers. The heart sends a beat every second and polls the
 * socket; the server's end closing while the main thread is inside a slice ends the process on the spot, because what
 * it computes has nobody to go to. A main thread that waits for a message sees the end itself and cleans up. */
#define _GNU_SOURCE /* close_range */
#include "server/worker.h"

#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/child.h"
#include "server/confine.h"
#include "server/link.h"
#include "server/wire.h"

typedef struct worker {
    int fd;
    pthread_mutex_t sending; /* one frame at a time */
    atomic_bool busy;        /* the main thread is not waiting for a message */
    atomic_bool closing;     /* the heart has seen the server's end close */
    atomic_bool beating;     /* the heart goes on while this holds */
    kn_runner *runner;
    int passed;              /* the descriptor that came with `in`; -1: none */
    kn_wire_message in, out; /* large; main thread */
    int64_t trimmed_ns;
    bool untrimmed; /* a video has ended since */
} worker;

#define TRIM_NS INT64_C(1000000000)
#define REST_MS 50 /* without a message: nothing follows at once */

/* ---- sending ---- */

static kn_status send_message(worker *w, const kn_wire_message *message)
{
    void *bytes = NULL;
    size_t count = 0;
    kn_status st = kn_wire_encode(message, &bytes, &count);
    if (st != KN_OK) return st;
    pthread_mutex_lock(&w->sending);
    st = kn_link_transmit(w->fd, bytes, count);
    pthread_mutex_unlock(&w->sending);
    kn_free(bytes);
    return st;
}

static void *beat(void *context)
{
    worker *w = context;
    kn_wire_message message = {.kind = KN_WIRE_BEAT};
    while (atomic_load(&w->beating)) {
        message.beat++;
        if (send_message(w, &message) == KN_CANCELLED) break;
        struct pollfd watched = {.fd = w->fd}; /* no events asked for: wakes up for the other end's close alone */
        if (poll(&watched, 1, KN_WORKER_BEAT_MS) > 0) break;
    }
    atomic_store(&w->closing, true);
    if (atomic_load(&w->busy)) _exit(0);
    return NULL;
}

/* ---- what the server asks for ---- */

static void set_line(char *out, size_t bytes, kn_status st)
{
    snprintf(out, bytes, "%s", st == KN_OK ? "" : st == KN_NOMEM ? "out of memory" : kn_fail_message());
}

static kn_status do_load(worker *w)
{
    kn_wire_model *out = &w->out.model;
    const int64_t start = kn_clock_ns();
    w->out.kind = KN_WIRE_LOADED;
    memcpy(out->model, w->in.model.model, sizeof out->model);
    out->status = kn_runner_load(w->runner, out->model, &out->bytes);
    out->seconds = kn_clock_seconds(kn_clock_ns() - start);
    set_line(out->message, sizeof out->message, out->status);
    return out->status;
}

static kn_status do_unload(worker *w)
{
    kn_wire_model *out = &w->out.model;
    w->out.kind = KN_WIRE_UNLOADED;
    memcpy(out->model, w->in.model.model, sizeof out->model);
    out->status = kn_runner_unload(w->runner, out->model);
    set_line(out->message, sizeof out->message, out->status);
    return out->status;
}

static kn_status do_start(worker *w)
{
    w->out.kind = KN_WIRE_STARTED;
    return kn_runner_start(w->runner, &w->in.start, &w->out.outcome);
}

static kn_status do_run(worker *w)
{
    const kn_wire_run *in = &w->in.run;
    kn_wire_ran *out = &w->out.ran;
    const int64_t start = kn_clock_ns();
    w->out.kind = KN_WIRE_RAN;
    out->assignment = in->assignment;
    out->kind = in->kind;
    out->count = in->count;
    const kn_status st = in->group ? kn_runner_lead(w->runner, in->kind, in->leases, in->count, in->group, in->limit_ns,
                                                    out->outcomes, &out->lost)
                                   : kn_runner_run(w->runner, in->kind, in->leases, in->count, out->outcomes);
    if (out->lost) set_line(out->message, sizeof out->message, KN_UNAVAILABLE);
    out->seconds = kn_clock_seconds(kn_clock_ns() - start);
    return st;
}

static kn_status do_join(worker *w)
{
    kn_wire_group *out = &w->out.group;
    w->out.kind = KN_WIRE_JOINED;
    out->group.epoch = w->in.group.group.epoch;
    out->status = w->passed >= 0 ? kn_runner_join(w->runner, &w->in.group.group, w->passed)
                                 : kn_fail(KN_INVALID, "group: no descriptor came with it");
    set_line(out->message, sizeof out->message, out->status);
    return out->status;
}

static kn_status do_leave(worker *w)
{
    w->out.kind = KN_WIRE_LEFT;
    w->out.group.group.epoch = w->in.group.group.epoch;
    kn_runner_leave(w->runner, w->out.group.group.epoch);
    return KN_OK;
}

static kn_status do_assist(worker *w)
{
    const kn_wire_assist *in = &w->in.assist;
    kn_wire_assist *out = &w->out.assist;
    const int64_t start = kn_clock_ns();
    w->out.kind = KN_WIRE_ASSISTED;
    out->assignment = in->assignment;
    out->status = kn_runner_assist(w->runner, in->model, in->group, in->limit_ns);
    out->seconds = kn_clock_seconds(kn_clock_ns() - start);
    set_line(out->message, sizeof out->message, out->status);
    return out->status;
}

static kn_status do_release(worker *w)
{
    w->out.kind = KN_WIRE_RELEASED;
    return kn_runner_release(w->runner, &w->in.lease.lease, w->in.lease.mode, &w->out.outcome);
}

static kn_status do_preview(worker *w)
{
    kn_wire_previewed *out = &w->out.previewed;
    const char *mime = "";
    w->out.kind = KN_WIRE_PREVIEWED;
    out->lease = w->in.lease.lease;
    out->status = kn_runner_preview(w->runner, &out->lease, &w->out.storage, &out->count, &mime);
    if (out->status != KN_OK) out->count = 0;
    out->image = w->out.storage;
    snprintf(out->mime, sizeof out->mime, "%s", mime);
    set_line(out->message, sizeof out->message, out->status);
    return out->status;
}

/* Fills in the answer. Only a fatal status is of interest to the caller; the others are in the answer. */
static kn_status execute(worker *w)
{
    w->out = (kn_wire_message){.kind = KN_WIRE_NONE};
    switch (w->in.kind) {
    case KN_WIRE_LOAD: return do_load(w);
    case KN_WIRE_UNLOAD: return do_unload(w);
    case KN_WIRE_START: return do_start(w);
    case KN_WIRE_RUN: return do_run(w);
    case KN_WIRE_RELEASE: return do_release(w);
    case KN_WIRE_PREVIEW: return do_preview(w);
    case KN_WIRE_JOIN: return do_join(w);
    case KN_WIRE_LEAVE: return do_leave(w);
    case KN_WIRE_ASSIST: return do_assist(w);
    default: return KN_OK;
    }
}

/* Says why this process ends, if anybody still listens. */
static int report_fatal(worker *w, kn_status st)
{
    w->out = (kn_wire_message){.kind = KN_WIRE_FATAL};
    w->out.fatal.status = st <= KN_FATAL ? st : KN_FATAL;
    set_line(w->out.fatal.message, sizeof w->out.fatal.message, st);
    kn_log(KN_LOG_ERROR, "worker %d: %s", (int)getpid(), w->out.fatal.message);
    send_message(w, &w->out);
    return st <= KN_FATAL ? KN_WORKER_EXIT_FATAL : kn_status_exit_code(st);
}

/* ---- main loop ---- */

/* The message is done with. */
static void release_message(worker *w)
{
    kn_wire_release(&w->in);
    if (w->passed >= 0) close(w->passed);
    w->passed = -1;
}

static void give_back_memory(worker *w)
{
    malloc_trim(0);
    w->trimmed_ns = kn_clock_ns();
    w->untrimmed = false;
}

/* Encoders come and go with each video, and leave holes below what lives longer, so that the heap would grow for days.
 * Behind a video nobody waits for this thread, and the holes' pages are given back: once a second of many videos, and
 * when none follows. */
static void after_message(worker *w)
{
    if (w->out.kind == KN_WIRE_RAN && w->out.ran.kind == KN_SLICE_MUX) w->untrimmed = true;
    if (w->untrimmed && kn_clock_ns() - w->trimmed_ns >= TRIM_NS) give_back_memory(w);
}

static void before_message(worker *w)
{
    struct pollfd next = {.fd = w->fd, .events = POLLIN};
    if (w->untrimmed && poll(&next, 1, REST_MS) == 0) give_back_memory(w);
}

/* Reads one message into w->in; release it. KN_CANCELLED: the server is gone. */
static kn_status receive(worker *w)
{
    void *bytes = NULL;
    size_t count = 0;
    atomic_store(&w->busy, false);
    before_message(w);
    kn_status st = kn_link_receive_with(w->fd, &bytes, &count, &w->passed);
    atomic_store(&w->busy, true);
    if (st == KN_OK && atomic_load(&w->closing)) st = KN_CANCELLED; /* what is still to be read nobody waits for */
    if (st == KN_OK) st = kn_wire_decode(&w->in, bytes, count);
    kn_free(bytes);
    return st;
}

static int serve(worker *w)
{
    for (;;) {
        kn_status st = receive(w);
        if (st == KN_OK) {
            const kn_status done = execute(w);
            release_message(w);
            if (done <= KN_FATAL) return report_fatal(w, done);
            st = w->out.kind == KN_WIRE_NONE ? kn_fail(KN_CORRUPT, "link: a message that workers do not take")
                                             : send_message(w, &w->out);
            kn_free(w->out.storage);
            w->out.storage = NULL;
            after_message(w);
        }
        if (st == KN_CANCELLED) return 0;
        if (st != KN_OK) {
            kn_log(KN_LOG_ERROR, "worker %d: %s", (int)getpid(), kn_fail_message());
            return kn_status_exit_code(st);
        }
    }
}

/* The first message says which device this is. */
static kn_status configure(worker *w)
{
    kn_status st = receive(w);
    if (st != KN_OK) return st;
    if (w->in.kind != KN_WIRE_CONFIGURE) {
        st = kn_fail(KN_CORRUPT, "link: the first message is not \"configure\"");
    } else {
        kn_wire_configure *c = &w->in.configure;
        kn_log_configure(c->log_level, c->log_json);
        c->params.corrupt_fd = w->fd;
        char name[16];
        snprintf(name, sizeof name, "kn:%s", c->params.device);
        prctl(PR_SET_NAME, name); /* what ps and a debugger show */
        st = kn_runner_open(&w->runner, &c->params);
        if (st != KN_OK) st = kn_fail_context(st, "device %s", c->params.device);
    }
    release_message(w);
    return st;
}

static int run(worker *w)
{
    kn_status st = configure(w);
    if (st == KN_CANCELLED) return 0;
    if (st == KN_OK) {
        w->out = (kn_wire_message){.kind = KN_WIRE_UP};
        kn_runner_describe(w->runner, &w->out.up);
        st = send_message(w, &w->out);
    }
    return st == KN_OK ? serve(w) : report_fatal(w, st);
}

/* Beats begin before the device is opened, which can take its time. */
static int live(worker *w)
{
    pthread_t heart;
    atomic_store(&w->beating, true);
    const int error = pthread_create(&heart, NULL, beat, w);
    if (error != 0) {
        kn_log(KN_LOG_ERROR, "worker: no thread: %s", strerror(error));
        return kn_status_exit_code(KN_UNAVAILABLE);
    }
    const int code = run(w);
    kn_runner_close(&w->runner);
    atomic_store(&w->busy, false); /* from here on this thread ends the process */
    atomic_store(&w->beating, false);
    shutdown(w->fd, SHUT_RDWR); /* wakes the heart; what was sent still arrives */
    pthread_join(heart, NULL);
    return code;
}

static kn_status enter(int fd, bool sockets)
{
    const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) signal(ignored[i], SIG_IGN);
    if (fd > STDERR_FILENO + 1) close_range(STDERR_FILENO + 1, (unsigned)fd - 1, 0);
    close_range((unsigned)fd + 1, ~0u, 0);
    const kn_status st = kn_child_enter();
    return st == KN_OK ? kn_confine_worker(sockets) : st;
}

int kn_worker_main(int argc, char **argv)
{
    char *end = NULL;
    const bool sockets = argc == 4 && strcmp(argv[3], "--sockets") == 0;
    const bool formed = (argc == 3 || sockets) && strcmp(argv[1], "--fd") == 0;
    const long fd = formed ? strtol(argv[2], &end, 10) : -1;
    if (fd <= STDERR_FILENO || fd > 1 << 20 || *end) {
        fprintf(stderr, "kinora worker: started by kinora serve, not by hand\n");
        return kn_status_exit_code(KN_INVALID);
    }
    const kn_status st = enter((int)fd, sockets);
    worker *w = st == KN_OK ? kn_alloc(sizeof *w) : NULL;
    if (!w) {
        kn_log(KN_LOG_ERROR, "worker: %s", kn_fail_message());
        return kn_status_exit_code(st == KN_OK ? KN_NOMEM : st);
    }
    w->fd = (int)fd;
    w->passed = -1;
    atomic_store(&w->busy, true);
    pthread_mutex_init(&w->sending, NULL);
    const int code = live(w);
    pthread_mutex_destroy(&w->sending);
    kn_free(w);
    close((int)fd);
    return code;
}
