/* SPDX-License-Identifier: Apache-2.0
 *
 * Due deliveries, from the store to the notifier and their results back. The store remembers what is due and the
 * notifier what is under way; here is only which of the due ones are under way already. */
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/point.h"
#include "server/core.h"

enum {
    OUT_MAX = 256,         /* under way at a time */
    ENDPOINT_OUT_MAX = 16, /* of these, to one endpoint: one that hangs leaves room for the others */
    BATCH = 64,            /* taken up at a time */
    LOOKED_AT = 1000,      /* for them */
    TRIALS_MAX = 16,       /* sample events under way */
    IDLE_SECONDS = 60,     /* when nothing is due */
    BUSY_SECONDS = 1,      /* while something is under way */
};

/* A delivery from when it was sent until the store has its result: so long the store says that it is due. */
typedef struct flight {
    int64_t id, first_at; /* of the event */
    char endpoint[KN_ENDPOINT_ID_BYTES];
} flight;

/* A sample event under way. Its id is below 0, as no row's. */
typedef struct trial {
    int64_t id; /* 0: free */
    kn_webhook_tested *done;
    void *context;
} trial;

/* Unsorted; few enough to walk. */
typedef struct underway {
    flight flights[OUT_MAX];
    int32_t count;
    trial trials[TRIALS_MAX];
    int64_t trial_count; /* so far */
} underway;

static underway *underway_of(kn_server *s)
{
    return s->deliveries;
}

static flight *find(underway *u, int64_t id)
{
    for (int32_t i = 0; i < u->count; i++)
        if (u->flights[i].id == id) return &u->flights[i];
    return NULL;
}

static void land(underway *u, int64_t id)
{
    flight *f = find(u, id);
    if (f) *f = u->flights[--u->count];
}

static void wake_in(kn_server *s, int64_t us)
{
    const int64_t wait = us < 0 ? 0 : us > IDLE_SECONDS * INT64_C(1000000) ? IDLE_SECONDS * INT64_C(1000000) : us;
    event_add(s->webhook_event, &(struct timeval){.tv_sec = wait / 1000000, .tv_usec = wait % 1000000});
}

/* ---- results ---- */

/* Which delivery's result the store was given. */
typedef struct settling {
    kn_server *server;
    int64_t id;
} settling;

static void on_settled(void *context, kn_store_result *result)
{
    const settling done = *(settling *)context;
    kn_server *s = done.server;
    kn_free(context);
    if (!s->deliveries) return; /* the server is stopping */
    land(underway_of(s), done.id);
    if (result->status == KN_OK) {
        kn_webhooks_soon(s);
        return;
    }
    kn_log(KN_LOG_WARNING, "a delivery's result was not kept, it will be repeated: %s", result->message);
    wake_in(s, IDLE_SECONDS * INT64_C(1000000));
}

static void record(kn_server *s, int64_t id, kn_delivery_outcome outcome, int64_t next_at, int32_t status,
                   const char *error)
{
    kn_store_op op = {.kind = KN_STORE_DELIVERY};
    settling *context = kn_alloc(sizeof *context);
    op.delivery.id = id;
    op.delivery.outcome = outcome;
    op.delivery.next_at = next_at;
    op.delivery.http_status = status;
    op.delivery.error = error && error[0] ? error : NULL;
    if (context) {
        *context = (settling){.server = s, .id = id};
        if (kn_store_submit_op(s->store, &op, on_settled, context) == KN_OK) return;
    }
    kn_log(KN_LOG_WARNING, "a delivery's result was not kept, it will be repeated: %s", kn_fail_message());
    kn_free(context);
    land(underway_of(s), id);
    wake_in(s, IDLE_SECONDS * INT64_C(1000000));
}

/* It answered that there will be nothing there any more. */
static void disable(kn_server *s, const char *endpoint)
{
    const kn_store_op op = {.kind = KN_STORE_ENDPOINT_DISABLE, .id = endpoint};
    kn_log_event(KN_LOG_WARNING, KN_LOG_WITH(kn_log_text("endpoint", endpoint)), "a webhook endpoint is gone (410)");
    if (kn_store_submit_op(s->store, &op, NULL, NULL) != KN_OK)
        kn_log(KN_LOG_WARNING, "the endpoint was not switched off: %s", kn_fail_message());
}

static void finish_trial(underway *u, int64_t id, const kn_delivery_result *result)
{
    for (int i = 0; i < TRIALS_MAX; i++) {
        const trial t = u->trials[i];
        if (t.id != id) continue;
        u->trials[i] = (trial){0};
        t.done(t.context, result);
        return;
    }
}

static void on_completed(void *context, const kn_delivery_result *result)
{
    kn_server *s = context;
    uint64_t random = 0;
    if (result->id < 0) {
        finish_trial(underway_of(s), result->id, result);
        return;
    }
    kn_point(KN_POINT_delivery_answered);
    const flight *found = find(underway_of(s), result->id);
    if (!found) return;
    const flight f = *found;
    const int64_t now = kn_now_us();
    if (getrandom(&random, sizeof random, 0) != sizeof random) random = (uint64_t)now;
    const kn_webhook_retry retry = {.attempt = result->attempt,
                                    .age_us = now > f.first_at ? now - f.first_at : 0,
                                    .retry_after_s = result->retry_after_s,
                                    .random = random};
    const int64_t delay = kn_webhook_outcome_retries(result->outcome) ? kn_webhook_retry_delay_us(&retry) : -1;
    const bool done = result->outcome == KN_WEBHOOK_DELIVERED;
    record(s, result->id,
           done         ? KN_DELIVERY_DONE
           : delay >= 0 ? KN_DELIVERY_RETRY
                        : KN_DELIVERY_DEAD,
           delay >= 0 ? now + delay : 0, result->http_status, result->error);
    kn_metric_add(s->meters->webhook_deliveries, 1.0,
                  KN_LABELS(done                                    ? "delivered"
                            : delay >= 0                            ? "retried"
                            : result->outcome == KN_WEBHOOK_REFUSED ? "refused"
                                                                    : "dropped"));
    if (result->outcome == KN_WEBHOOK_GONE) disable(s, f.endpoint);
}

/* ---- what is due ---- */

typedef struct due {
    kn_server *server;
    kn_delivery_row rows[BATCH];
    int32_t count;
} due;

static kn_status collect(void *context, const kn_delivery_row *row)
{
    due *d = context;
    underway *u = underway_of(d->server);
    int32_t same = 0;
    if (d->count == BATCH || find(u, row->id)) return KN_OK;
    for (int32_t i = 0; i < u->count; i++) same += strcmp(u->flights[i].endpoint, row->endpoint_id) == 0;
    for (int32_t i = 0; i < d->count; i++) same += strcmp(d->rows[i].endpoint_id, row->endpoint_id) == 0;
    if (same < ENDPOINT_OUT_MAX) d->rows[d->count++] = *row;
    return KN_OK;
}

/* False: the notifier does not take it now. */
static bool send_one(kn_server *s, const kn_delivery_row *row)
{
    char body[512];
    kn_text text = kn_text_fixed(body, sizeof body);
    underway *u = underway_of(s);
    const char *secrets[KN_WEBHOOK_SECRETS_MAX];
    char all[KN_ENDPOINT_SECRET_BYTES];
    size_t count = 0;
    memcpy(all, row->secret, sizeof all);
    kn_status st = kn_webhook_split_secrets(all, secrets, &count);
    kn_video_event_write(&text, row->event_id, row->event_at / 1000000, kn_webhook_event_name(row->event), row->job_id);
    const kn_delivery delivery = {.id = row->id,
                                  .attempt = row->attempts + 1,
                                  .url = row->url,
                                  .secrets = secrets,
                                  .secret_count = count,
                                  .event_id = row->event_id,
                                  .body = text.bytes,
                                  .body_bytes = text.count};
    if (st == KN_OK) st = kn_notifier_send(s->notifier, &delivery);
    kn_point(KN_POINT_delivery_sent);
    if (st == KN_OK || st == KN_INVALID) {
        flight *f = &u->flights[u->count++];
        *f = (flight){.id = row->id, .first_at = row->event_at};
        memcpy(f->endpoint, row->endpoint_id, sizeof f->endpoint);
    }
    if (st == KN_INVALID) {
        record(s, row->id, KN_DELIVERY_DEAD, 0, 0, kn_fail_message());
        kn_metric_add(s->meters->webhook_deliveries, 1.0, KN_LABELS("refused"));
    }
    memset(all, 0, sizeof all);
    return st == KN_OK || st == KN_INVALID;
}

static void on_time(evutil_socket_t fd, short what, void *context)
{
    kn_server *s = context;
    due *d = kn_alloc(sizeof *d);
    int64_t next = 0;
    const bool room = underway_of(s)->count + BATCH <= OUT_MAX;
    bool all = true;
    (void)fd, (void)what;
    if (!d) {
        wake_in(s, BUSY_SECONDS * INT64_C(1000000));
        return;
    }
    d->server = s;
    /* Those under way are reported too, so more are looked at than are taken. */
    if (room && kn_store_deliveries_due(s->store, kn_now_us(), LOOKED_AT, collect, d) != KN_OK)
        kn_log(KN_LOG_ERROR, "due webhooks: %s", kn_fail_message());
    for (int32_t i = 0; i < d->count; i++) all = send_one(s, &d->rows[i]) && all; /* one host may have its share full */
    if (d->count == BATCH && all)
        wake_in(s, 0);
    else if (underway_of(s)->count > 0 || d->count > 0)
        wake_in(s, BUSY_SECONDS * INT64_C(1000000));
    else if (kn_store_next_delivery(s->store, &next) == KN_OK && next != 0)
        wake_in(s, next - kn_now_us() > 0 ? next - kn_now_us() : BUSY_SECONDS * INT64_C(1000000));
    else
        wake_in(s, IDLE_SECONDS * INT64_C(1000000));
    kn_free(d);
}

void kn_webhooks_soon(kn_server *s)
{
    if (s->notifier && !s->stopping) wake_in(s, 0);
}

/* ---- sample events ---- */

static kn_status new_sample_id(char id[KN_EVENT_ID_BYTES])
{
    unsigned char random[16];
    if (getrandom(random, sizeof random, 0) != sizeof random) return kn_fail(KN_IO, "no random numbers");
    int length = snprintf(id, KN_EVENT_ID_BYTES, "evt_");
    for (size_t i = 0; i < sizeof random; i++)
        length += snprintf(id + length, KN_EVENT_ID_BYTES - (size_t)length, "%02x", random[i]);
    return KN_OK;
}

kn_status kn_webhooks_test(kn_server *s, const kn_endpoint_row *row, kn_webhook_event event, kn_webhook_tested *done,
                           void *context)
{
    kn_status st = KN_OK;
    underway *u = underway_of(s);
    trial *free_one = NULL;
    char id[KN_EVENT_ID_BYTES], body[512], all[KN_ENDPOINT_SECRET_BYTES];
    const char *secrets[KN_WEBHOOK_SECRETS_MAX];
    size_t count = 0;
    kn_text text = kn_text_fixed(body, sizeof body);
    if (!s->notifier || s->stopping) return kn_fail(KN_AGAIN, "webhooks are switched off");
    for (int i = 0; i < TRIALS_MAX && !free_one; i++) free_one = u->trials[i].id == 0 ? &u->trials[i] : NULL;
    if (!free_one) return kn_fail(KN_AGAIN, "%d sample events are under way", TRIALS_MAX);
    memcpy(all, row->secret, sizeof all);
    if (row->old_until > 0 && row->old_until <= kn_now_us()) all[strcspn(all, " ")] = '\0';
    KN_TRY(new_sample_id(id));
    KN_TRY(kn_webhook_split_secrets(all, secrets, &count));
    kn_video_event_write(&text, id, kn_now_us() / 1000000, kn_webhook_event_name(event),
                         "video_00000000000000000000000000000000");
    const kn_delivery delivery = {.id = -(u->trial_count + 1),
                                  .attempt = 1,
                                  .url = row->url,
                                  .secrets = secrets,
                                  .secret_count = count,
                                  .event_id = id,
                                  .body = text.bytes,
                                  .body_bytes = text.count};
    KN_TRY(kn_notifier_send(s->notifier, &delivery));
    u->trial_count++;
    *free_one = (trial){.id = delivery.id, .done = done, .context = context};
fail:
    memset(all, 0, sizeof all);
    return st;
}

/* ---- life ---- */

kn_status kn_webhooks_start(kn_server *s)
{
    kn_status st = KN_OK;
    const kn_server_config *c = s->config;
    if (!c->webhooks) return KN_OK;
    const kn_notifier_params params = {.base = s->base,
                                       .policy = {.development = c->webhook_development,
                                                  .allow = (const char *const *)c->webhook_allow.items,
                                                  .allow_count = c->webhook_allow.count},
                                       .ca_file = c->webhook_ca,
                                       .completed = on_completed,
                                       .context = s};
    s->deliveries = kn_alloc(sizeof(underway));
    s->webhook_event = evtimer_new(s->base, on_time, s);
    if (!s->deliveries || !s->webhook_event) return kn_fail(KN_NOMEM, "no memory for webhooks");
    KN_TRY(kn_notifier_create(&s->notifier, &params));
    kn_webhooks_soon(s);
fail:
    return st;
}

void kn_webhooks_stop(kn_server *s)
{
    kn_notifier_destroy(&s->notifier);
    for (int i = 0; s->deliveries && i < TRIALS_MAX; i++)
        if (underway_of(s)->trials[i].id) finish_trial(underway_of(s), underway_of(s)->trials[i].id, NULL);
    if (s->webhook_event) event_free(s->webhook_event);
    s->webhook_event = NULL;
    kn_free(s->deliveries);
    s->deliveries = NULL;
}

int32_t kn_webhooks_pending(const kn_server *s)
{
    return s->deliveries ? ((const underway *)s->deliveries)->count : 0;
}
