/* SPDX-License-Identifier: Apache-2.0
 *
 * A notifier whose child is the test program itself (its main() hands over to kn_notifier_main), and a record of what
 * came back. Needs _GNU_SOURCE. */
#ifndef KN_TESTS_SERVER_DELIVERING_H
#define KN_TESTS_SERVER_DELIVERING_H

#include <event2/event.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "server/notify.h"

enum { OFFICE_RESULTS = 2048, OFFICE_PATIENCE_S = 120 };

typedef struct office_result {
    kn_delivery_result as; /* .error is not kept here */
    char error[KN_NOTIFIER_ERROR_BYTES];
} office_result;

typedef struct office {
    struct event_base *base;
    kn_notifier *notifier;
    int count;
    office_result results[OFFICE_RESULTS]; /* in the order of arrival */
} office;

static const char *const office_secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

static inline void office_completed(void *context, const kn_delivery_result *result)
{
    office *o = context;
    assert_true(o->count < OFFICE_RESULTS);
    office_result *kept = &o->results[o->count++];
    kept->as = *result;
    kept->as.error = NULL;
    snprintf(kept->error, sizeof kept->error, "%s", result->error);
    assert_null(strstr(kept->error, office_secret));
    assert_true((result->outcome == KN_WEBHOOK_DELIVERED) == (kept->error[0] == '\0'));
    assert_true(result->elapsed_us >= 0);
}

/* `params`: base, completed and context are filled in. */
static inline office *office_open(kn_notifier_params params)
{
    office *o = calloc(1, sizeof *o);
    assert_non_null(o);
    o->base = event_base_new();
    assert_non_null(o->base);
    params.base = o->base;
    params.completed = office_completed;
    params.context = o;
    assert_int_equal(kn_notifier_create(&o->notifier, &params), KN_OK);
    return o;
}

static inline void office_close(office *o)
{
    kn_notifier_destroy(&o->notifier);
    event_base_free(o->base);
    free(o);
}

static inline kn_status office_send(office *o, int64_t id, const char *url)
{
    static const char body[] = "{\"type\":\"video.completed\"}";
    return kn_notifier_send(o->notifier, &(kn_delivery){.id = id,
                                                        .attempt = (int32_t)(id % 7) + 1,
                                                        .url = url,
                                                        .secrets = &office_secret,
                                                        .secret_count = 1,
                                                        .event_id = "evt_0123456789abcdef",
                                                        .body = body,
                                                        .body_bytes = sizeof body - 1});
}

static inline void office_wake(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    (void)context;
}

/* Runs the loop until `count` results have come. */
static inline void office_wait(office *o, int count)
{
    const time_t end = time(NULL) + OFFICE_PATIENCE_S;
    while (o->count < count) {
        if (time(NULL) > end) fail_msg("%d of %d results", o->count, count);
        event_base_once(o->base, -1, EV_TIMEOUT, office_wake, NULL, &(struct timeval){.tv_usec = 100000});
        event_base_loop(o->base, EVLOOP_ONCE);
    }
}

static inline const office_result *office_find(const office *o, int64_t id)
{
    const office_result *found = NULL;
    for (int i = 0; i < o->count; i++) {
        if (o->results[i].as.id != id) continue;
        assert_null(found);
        found = &o->results[i];
    }
    if (!found) fail_msg("no result for %lld", (long long)id);
    return found;
}

#endif
