/* SPDX-License-Identifier: Apache-2.0
 *
 * One device's process. Commands wait in a ring until they are answered; the clock of a command starts when it becomes
 * the oldest. A process ends in two steps: it is condemned (killed, its socket closed, nothing more believed), or dies
 * by itself; and it is buried when it has been reaped and the last it sent has been read. Only then do its jobs go back
 * to the server. */
#define _GNU_SOURCE /* pidfd_send_signal */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/fleet_internal.h"
#include "server/worker.h"

enum { FAREWELL_MS = 2000 }; /* between a socket's end and its process's, and the other way round */

/* ---- death ---- */

struct timeval kn_fleet_timeval(int64_t ns)
{
    return (struct timeval){.tv_sec = ns / 1000000000, .tv_usec = ns % 1000000000 / 1000};
}

void kn_fleet_condemn(kn_fleet_device *d, kn_down_reason reason, int32_t code, const char *format, ...)
{
    va_list arguments;
    if (d->condemned || (d->child.process == 0 && !d->exited)) return;
    d->condemned = true;
    d->reason = reason;
    d->code = code;
    va_start(arguments, format);
    vsnprintf(d->message, sizeof d->message, format, arguments);
    va_end(arguments);
    d->health.hangs += reason == KN_DOWN_HANG;
    d->health.protocol_errors += reason == KN_DOWN_PROTOCOL;
    d->farewell_ns = kn_clock_ns();
    if (d->child.process != 0) pidfd_send_signal(d->child.pidfd, SIGKILL, NULL, 0);
    kn_link_destroy(&d->link);
    kn_fleet_lose_groups(d, d->message);
}

static bool is_running(const kn_fleet_device *d, const kn_lease *lease)
{
    for (int32_t i = 0; d->health.assignment != 0 && i < d->run.count; i++)
        if (kn_lease_equal(&d->run.leases[i], lease)) return true;
    return false;
}

/* First death: at once. Then min, 2 min, 4 min ... until a process has lived long enough. */
static int64_t restart_delay(kn_fleet_device *d)
{
    const kn_fleet_params *p = &d->fleet->params;
    if (d->up_ns != 0 && kn_clock_ns() - d->up_ns >= KN_FLEET_STEADY_MS * KN_FLEET_MS) d->health.deaths_in_row = 0;
    d->health.deaths_in_row++;
    if (d->health.deaths_in_row == 1) return 0;
    int64_t delay = p->restart_delay_min_ns;
    for (int32_t i = 2; i < d->health.deaths_in_row && delay < p->restart_delay_max_ns; i++) delay *= 2;
    return delay < p->restart_delay_max_ns ? delay : p->restart_delay_max_ns;
}

void kn_fleet_arm(kn_fleet_device *d)
{
    const int64_t left = d->restart_at_ns - kn_clock_ns();
    const struct timeval after = kn_fleet_timeval(left > 0 ? left : 0);
    event_add(d->restart_event, &after);
}

static void describe_end(kn_fleet_device *d)
{
    if (d->condemned) return;
    d->reason = d->end.signal ? KN_DOWN_SIGNALLED : KN_DOWN_EXITED;
    d->code = d->end.signal ? d->end.signal : d->end.code;
    if (d->end.signal)
        snprintf(d->message, sizeof d->message, "ended by signal %d (%s)", d->code, strsignal(d->code));
    else
        snprintf(d->message, sizeof d->message, "exited with code %d", d->code);
}

/* The process is gone, or was never there, or is given up; tells the server and plans the next. */
static void bury(kn_fleet_device *d)
{
    kn_down_job jobs[KN_RUNNER_JOBS_MAX];
    char message[KN_RUNNER_MESSAGE_BYTES];
    kn_device_health *h = &d->health;
    for (int32_t i = 0; i < d->job_count; i++)
        jobs[i] = (kn_down_job){.lease = d->jobs[i].lease, .running = is_running(d, &d->jobs[i].lease)};
    snprintf(message, sizeof message, "%s", d->message);
    kn_fleet_lose_groups(d, message);
    kn_device_down down = {.reason = d->reason,
                           .code = d->code,
                           .message = message,
                           .jobs = jobs,
                           .count = d->job_count,
                           .was_up = d->up,
                           .assignment = h->assignment,
                           .restart_ns = restart_delay(d)};
    kn_link_destroy(&d->link);
    h->deaths++;
    h->state = h->deaths_in_row >= KN_FLEET_DEATHS_FAILED ? KN_DEVICE_FAILED : KN_DEVICE_RESTARTING;
    h->assignment = 0;
    d->up = d->condemned = d->exited = false;
    d->first = d->waiting = d->job_count = 0;
    d->up_ns = d->farewell_ns = 0;
    d->restart_at_ns = kn_clock_ns() + down.restart_ns;
    if (d->child.process != 0) {
        d->abandoned = true; /* it starts again when this one is gone */
        h->state = KN_DEVICE_FAILED;
    } else {
        kn_fleet_arm(d);
    }
    kn_log(KN_LOG_WARNING, "device %s: worker down: %s; next start in %.1f s", d->name, message,
           kn_clock_seconds(down.restart_ns));
    d->fleet->params.events.device_down(d->fleet->params.events.context, d->index, &down);
}

static void bury_when_over(kn_fleet_device *d)
{
    if (d->exited && !d->link) {
        describe_end(d);
        bury(d);
    }
}

static void on_exit_event(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    kn_fleet_device *d = context;
    if (kn_child_reap(&d->child, &d->end) != KN_OK) return;
    event_free(d->exit_event);
    d->exit_event = NULL;
    if (d->abandoned) {
        d->abandoned = false;
        kn_fleet_arm(d);
        return;
    }
    d->exited = true;
    d->farewell_ns = kn_clock_ns();
    bury_when_over(d);
}

static void on_closed(void *context, kn_status why)
{
    kn_fleet_device *d = context;
    if (why == KN_CORRUPT) {
        kn_fleet_condemn(d, KN_DOWN_PROTOCOL, why, "%s", kn_fail_message());
    } else {
        kn_link_destroy(&d->link);
        d->farewell_ns = kn_clock_ns();
    }
    bury_when_over(d);
}

/* ---- commands ---- */

int64_t kn_fleet_limit(kn_wire_kind kind, int64_t budget_ns)
{
    if (kind == KN_WIRE_LOAD) return KN_FLEET_LOAD_MS * KN_FLEET_MS;
    if (kind != KN_WIRE_RUN) return KN_FLEET_COMMAND_MS * KN_FLEET_MS;
    const int64_t least = KN_FLEET_SLICE_MS_MIN * KN_FLEET_MS;
    if (budget_ns > INT64_MAX / KN_FLEET_SLICE_BUDGETS) return INT64_MAX;
    return budget_ns * KN_FLEET_SLICE_BUDGETS > least ? budget_ns * KN_FLEET_SLICE_BUDGETS : least;
}

static kn_fleet_command *oldest(kn_fleet_device *d)
{
    return d->waiting > 0 ? &d->commands[d->first] : NULL;
}

static bool loading(const kn_fleet_device *d)
{
    for (int32_t i = 0; i < d->waiting; i++)
        if (d->commands[(d->first + i) % KN_FLEET_COMMANDS_MAX].kind == KN_WIRE_LOAD) return true;
    return false;
}

static void update_state(kn_fleet_device *d)
{
    if (d->up) d->health.state = loading(d) ? KN_DEVICE_LOADING : KN_DEVICE_READY;
}

kn_status kn_fleet_post(kn_fleet_device *d, const kn_fleet_command *c)
{
    return kn_fleet_post_with(d, c, -1);
}

kn_status kn_fleet_post_with(kn_fleet_device *d, const kn_fleet_command *c, int fd)
{
    void *bytes = NULL;
    size_t count = 0;
    if (d->waiting == KN_FLEET_COMMANDS_MAX)
        return kn_fail(KN_AGAIN, "device %s: %d commands are unanswered", d->name, d->waiting);
    kn_status st = kn_wire_encode(&d->fleet->sent, &bytes, &count);
    if (st == KN_OK) st = fd >= 0 ? kn_link_send_with(d->link, bytes, count, fd) : kn_link_send(d->link, bytes, count);
    kn_free(bytes);
    if (st != KN_OK) return st;
    if (d->waiting == 0) d->head_ns = kn_clock_ns();
    d->commands[(d->first + d->waiting++) % KN_FLEET_COMMANDS_MAX] = *c;
    update_state(d);
    return KN_OK;
}

kn_wire_message *kn_fleet_compose(kn_fleet *fleet, kn_wire_kind kind)
{
    memset(&fleet->sent, 0, sizeof fleet->sent);
    fleet->sent.kind = kind;
    return &fleet->sent;
}

/* ---- birth ---- */

static void on_message(void *context, const void *bytes, size_t count);

static kn_status configure(kn_fleet_device *d)
{
    const kn_fleet *f = d->fleet;
    kn_wire_configure *c = &kn_fleet_compose(d->fleet, KN_WIRE_CONFIGURE)->configure;
    c->log_level = f->params.log_debug ? KN_LOG_DEBUG : KN_LOG_INFO;
    c->log_json = f->params.log_json;
    c->params = (kn_runner_params){.device = d->name,
                                   .models = f->models,
                                   .data = f->data,
                                   .threads = f->params.threads,
                                   .isa = f->isa,
                                   .precision = f->params.precision,
                                   .vae_precision = f->params.vae_precision,
                                   .checkpoint_interval_ns = f->params.checkpoint_interval_ns};
    return kn_fleet_post(
        d, &(kn_fleet_command){.kind = KN_WIRE_CONFIGURE, .limit_ns = kn_fleet_limit(KN_WIRE_CONFIGURE, 0)});
}

static kn_status start_process(kn_fleet_device *d)
{
    kn_status st = KN_OK;
    int ends[2] = {-1, -1};
    char number[12];
    snprintf(number, sizeof number, "%d", KN_WORKER_FD);
    const char *const argv[] = {"kinora", "worker", "--fd", number, d->fleet->params.sockets ? "--sockets" : NULL,
                                NULL};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return kn_fail(KN_IO, "no socket for a worker: %s", strerror(errno));
    KN_TRY(kn_child_start(
        &d->child,
        &(kn_child_params){
            .executable = d->fleet->executable, .argv = argv, .fds = &ends[1], .fd_count = 1, .keep_stderr = true}));
    const int own = ends[0];
    ends[0] = -1; /* taken, whatever happens */
    KN_TRY(kn_link_create(&d->link, d->fleet->base, own,
                          &(kn_link_events){.context = d, .message = on_message, .closed = on_closed}));
    d->exit_event = event_new(d->fleet->base, d->child.pidfd, EV_READ | EV_PERSIST, on_exit_event, d);
    if (!d->exit_event || event_add(d->exit_event, NULL) != 0) KN_TRY(kn_fail(KN_NOMEM, "no event for a worker"));
    KN_TRY(configure(d));
fail:
    if (ends[0] >= 0) close(ends[0]);
    close(ends[1]);
    return st;
}

void kn_fleet_on_restart(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    kn_fleet_device *d = context;
    d->health.state = KN_DEVICE_STARTING;
    d->health.spawns++;
    d->beats = 0;
    d->spawned_ns = d->beat_ns = kn_clock_ns();
    const kn_status st = start_process(d);
    if (st == KN_OK) return;
    d->reason = KN_DOWN_SPAWN;
    d->code = st;
    snprintf(d->message, sizeof d->message, "%s", kn_fail_message());
    if (d->exit_event) event_free(d->exit_event);
    d->exit_event = NULL;
    kn_child_kill(&d->child);
    bury(d);
}

/* ---- answers ---- */

kn_fleet_job *kn_fleet_find_job(kn_fleet_device *d, const kn_lease *lease)
{
    for (int32_t i = 0; i < d->job_count; i++)
        if (kn_lease_equal(&d->jobs[i].lease, lease)) return &d->jobs[i];
    return NULL;
}

static bool remove_placed(kn_fleet_device *d, const kn_lease *lease)
{
    kn_fleet_job *p = kn_fleet_find_job(d, lease);
    if (!p) return false;
    d->job_count--;
    memmove(p, p + 1, (size_t)(&d->jobs[d->job_count] - p) * sizeof *p);
    return true;
}

static void answer_up(kn_fleet_device *d, const kn_device_info *info)
{
    d->up = true;
    d->up_ns = kn_clock_ns();
    d->health.info = *info;
    update_state(d);
    kn_log(KN_LOG_INFO, "device %s: worker %d up: %s, %s", d->name, d->child.process, info->description, info->tier);
    d->fleet->params.events.device_up(d->fleet->params.events.context, d->index, info);
}

static void answer_loaded(kn_fleet_device *d, const kn_wire_model *m)
{
    const kn_model_loaded loaded = {
        .model = m->model, .status = m->status, .message = m->message, .seconds = m->seconds, .bytes = m->bytes};
    d->fleet->params.events.model_loaded(d->fleet->params.events.context, d->index, &loaded);
}

static void answer_started(kn_fleet_device *d, const kn_outcome *o)
{
    const kn_fleet_events *e = &d->fleet->params.events;
    if (o->status != KN_OK) {
        remove_placed(d, &o->lease);
        e->job_failed(e->context, d->index, o);
        return;
    }
    kn_fleet_job *p = kn_fleet_find_job(d, &o->lease);
    if (p) p->started = true;
    e->job_started(e->context, d->index, o);
}

static void answer_released(kn_fleet_device *d, const kn_outcome *o)
{
    const kn_fleet_events *e = &d->fleet->params.events;
    if (remove_placed(d, &o->lease)) e->job_released(e->context, d->index, o); /* else it failed before */
}

static void answer_ran(kn_fleet_device *d, kn_wire_ran *ran)
{
    const kn_fleet_events *e = &d->fleet->params.events;
    int32_t alive = 0;
    const int32_t degree = d->degree;
    d->health.assignment = 0;
    d->health.slices++;
    d->health.slice_jobs += (uint64_t)ran->count;
    d->health.shared_slices += degree > 1;
    d->health.lost_slices += ran->lost;
    d->health.busy_seconds += ran->seconds;
    for (int32_t i = 0; i < ran->count; i++) {
        const kn_outcome *o = &ran->outcomes[i];
        if (o->status != KN_OK) {
            remove_placed(d, &o->lease);
            e->job_failed(e->context, d->index, o);
        } else if (alive++ != i) {
            ran->outcomes[alive - 1] = *o;
        }
    }
    if (degree > 1) kn_fleet_group_ran(d, d->run.group, ran->lost || alive < ran->count, ran->message);
    const kn_slice_done done = {.assignment = ran->assignment,
                                .kind = ran->kind,
                                .seconds = ran->seconds,
                                .outcomes = ran->outcomes,
                                .count = alive,
                                .degree = degree,
                                .lost = ran->lost,
                                .why = ran->message};
    e->slice_done(e->context, d->index, &done);
}

static void answer_previewed(kn_fleet_device *d, const kn_wire_previewed *p)
{
    const kn_preview preview = {.lease = p->lease,
                                .status = p->status,
                                .message = p->message,
                                .mime = p->mime,
                                .bytes = p->image,
                                .count = p->count};
    d->fleet->params.events.preview(d->fleet->params.events.context, d->index, &preview);
}

/* The jobs of a slice, all of them, in the order they were given, each no earlier than after it. */
static bool fits_run(const kn_fleet_device *d, const kn_wire_ran *ran)
{
    const kn_wire_run *run = &d->run;
    if (ran->assignment != d->health.assignment || ran->kind != run->kind || ran->count != run->count) return false;
    if (ran->lost && run->group == 0) return false;
    for (int32_t i = 0; i < ran->count; i++) {
        const kn_outcome *o = &ran->outcomes[i];
        if (!kn_lease_equal(&o->lease, &run->leases[i])) return false;
        if (o->status == KN_OK && (o->next.kind < run->kind || o->has_output != (run->kind == KN_SLICE_MUX)))
            return false;
    }
    return true;
}

/* Is this the answer to that command? */
static bool fits(const kn_fleet_device *d, const kn_fleet_command *c, const kn_wire_message *m)
{
    switch (m->kind) {
    case KN_WIRE_UP: return c->kind == KN_WIRE_CONFIGURE;
    case KN_WIRE_LOADED: return c->kind == KN_WIRE_LOAD && strcmp(c->model, m->model.model) == 0;
    case KN_WIRE_UNLOADED: return c->kind == KN_WIRE_UNLOAD && strcmp(c->model, m->model.model) == 0;
    case KN_WIRE_STARTED: return c->kind == KN_WIRE_START && kn_lease_equal(&c->lease, &m->outcome.lease);
    case KN_WIRE_RAN: return c->kind == KN_WIRE_RUN && fits_run(d, &m->ran);
    case KN_WIRE_RELEASED: return c->kind == KN_WIRE_RELEASE && kn_lease_equal(&c->lease, &m->outcome.lease);
    case KN_WIRE_PREVIEWED: return c->kind == KN_WIRE_PREVIEW && kn_lease_equal(&c->lease, &m->previewed.lease);
    case KN_WIRE_JOINED: return c->kind == KN_WIRE_JOIN && c->epoch == m->group.group.epoch;
    case KN_WIRE_LEFT: return c->kind == KN_WIRE_LEAVE && c->epoch == m->group.group.epoch;
    case KN_WIRE_ASSISTED: return c->kind == KN_WIRE_ASSIST && c->assignment == m->assist.assignment;
    default: return false;
    }
}

static void take_answer(kn_fleet_device *d, kn_wire_message *m)
{
    const kn_fleet_command *c = oldest(d);
    if (!c || !fits(d, c, m)) {
        kn_fleet_condemn(d, KN_DOWN_PROTOCOL, KN_CORRUPT, "sent \"%s\", which is not the answer to \"%s\"",
                         kn_wire_kind_name(m->kind), c ? kn_wire_kind_name(c->kind) : "nothing");
        return;
    }
    const uint64_t epoch = c->epoch;
    d->first = (d->first + 1) % KN_FLEET_COMMANDS_MAX;
    d->waiting--;
    d->head_ns = d->health.progress_ns = kn_clock_ns();
    update_state(d);
    switch (m->kind) {
    case KN_WIRE_UP: answer_up(d, &m->up); break;
    case KN_WIRE_LOADED: answer_loaded(d, &m->model); break;
    case KN_WIRE_STARTED: answer_started(d, &m->outcome); break;
    case KN_WIRE_RAN: answer_ran(d, &m->ran); break;
    case KN_WIRE_RELEASED: answer_released(d, &m->outcome); break;
    case KN_WIRE_PREVIEWED: answer_previewed(d, &m->previewed); break;
    case KN_WIRE_JOINED: kn_fleet_answer_joined(d, &m->group); break;
    case KN_WIRE_ASSISTED: kn_fleet_answer_assisted(d, epoch, &m->assist); break;
    case KN_WIRE_LEFT: break;
    default:
        if (m->model.status != KN_OK) kn_log(KN_LOG_WARNING, "device %s: unload: %s", d->name, m->model.message);
    }
}

static void on_message(void *context, const void *bytes, size_t count)
{
    kn_fleet_device *d = context;
    kn_wire_message m;
    const kn_status st = kn_wire_decode(&m, bytes, count);
    if (st != KN_OK) {
        kn_fleet_condemn(d, KN_DOWN_PROTOCOL, st, "%s", st == KN_NOMEM ? "out of memory" : kn_fail_message());
        bury_when_over(d);
        return;
    }
    d->beat_ns = kn_clock_ns();
    if (m.kind == KN_WIRE_FATAL)
        kn_fleet_condemn(d, KN_DOWN_FATAL, m.fatal.status, "%s", m.fatal.message);
    else if (m.kind != KN_WIRE_BEAT)
        take_answer(d, &m);
    else if (m.beat != ++d->beats)
        kn_fleet_condemn(d, KN_DOWN_PROTOCOL, KN_CORRUPT, "sent beat %" PRIu64 " instead of %" PRIu64, m.beat,
                         d->beats);
    kn_wire_release(&m);
    if (d->condemned) bury_when_over(d);
}

/* ---- watching ---- */

void kn_fleet_move_on(kn_fleet_device *d, int64_t stall_ns)
{
    int64_t *const times[] = {&d->spawned_ns, &d->beat_ns, &d->head_ns, &d->farewell_ns, &d->up_ns};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++)
        if (*times[i] != 0) *times[i] += stall_ns;
}

void kn_fleet_watch(kn_fleet_device *d, int64_t now)
{
    const kn_fleet_command *c = oldest(d);
    if (d->abandoned || (d->child.process == 0 && !d->exited)) return;
    if (d->condemned || d->exited) {
        const int64_t since = now - d->farewell_ns;
        if (d->exited && since > FAREWELL_MS * KN_FLEET_MS) kn_link_destroy(&d->link); /* held open by a stranger */
        if (d->exited)
            bury_when_over(d);
        else if (since > KN_FLEET_REAP_MS * KN_FLEET_MS)
            bury(d);
        return;
    }
    if (!d->link) {
        if (now - d->farewell_ns > FAREWELL_MS * KN_FLEET_MS)
            kn_fleet_condemn(d, KN_DOWN_HANG, 0, "closed its socket and did not end within %d ms", FAREWELL_MS);
    } else if (d->beats > 0 && now - d->beat_ns > KN_FLEET_SILENCE_MS * KN_FLEET_MS) {
        kn_fleet_condemn(d, KN_DOWN_HANG, 0, "no sign of life for %d ms", KN_FLEET_SILENCE_MS);
    } else if (c && now - d->head_ns > c->limit_ns) {
        kn_fleet_condemn(d, KN_DOWN_HANG, 0, "\"%s\" is not answered after %" PRId64 " ms", kn_wire_kind_name(c->kind),
                         c->limit_ns / KN_FLEET_MS);
    }
}
