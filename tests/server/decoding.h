/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs files through a sandbox whose children are the test program itself: its main() hands over to kn_sandbox_main.
 * Needs _GNU_SOURCE. */
#ifndef KN_TESTS_SERVER_DECODING_H
#define KN_TESTS_SERVER_DECODING_H

#include <event2/event.h>

#include "server/sandbox.h"
#include "tests/server/upload.h"

typedef struct decoded {
    int calls;
    kn_status status;
    char error[256];
    kn_image_info info;
    int signal;
    bool timed_out;
    uint8_t *rgb; /* a copy, or NULL */
} decoded;

static inline void on_decoded(void *context, const kn_sandbox_result *result)
{
    decoded *d = context;
    d->calls++;
    d->status = result->status;
    d->info = result->info;
    d->signal = result->signal;
    d->timed_out = result->timed_out;
    snprintf(d->error, sizeof d->error, "%s", result->error);
    assert_true((result->status == KN_OK) == (result->rgb != NULL));
    assert_true((result->status == KN_OK) == (result->error[0] == '\0'));
    if (!result->rgb) return;
    const size_t bytes = (size_t)result->info.width * (size_t)result->info.height * 3;
    d->rgb = malloc(bytes);
    assert_non_null(d->rgb);
    memcpy(d->rgb, result->rgb, bytes);
}

static inline void decoded_free(decoded *d)
{
    free(d->rgb);
    *d = (decoded){.calls = 0};
}

typedef struct studio {
    struct event_base *base;
    kn_sandbox *sandbox;
} studio;

/* A generous clock, so that a busy machine fails no test; where the clock is the matter the test brings its own. */
static inline studio studio_open(const char *probe)
{
    studio s = {.base = event_base_new()};
    assert_non_null(s.base);
    assert_int_equal(
        kn_sandbox_create(&s.sandbox,
                          &(kn_sandbox_params){.base = s.base, .wall_s = 300, .keep_stderr = true, .probe = probe}),
        KN_OK);
    return s;
}

static inline void studio_close(studio *s)
{
    kn_sandbox_destroy(&s->sandbox);
    event_base_free(s->base);
}

/* Until nothing is pending. The sandbox's own timers end everything; this only turns a hang into a failure. */
static inline void studio_run(studio *s)
{
    for (int i = 0; kn_sandbox_pending(s->sandbox) > 0; i++) {
        if (i > 100000) fail_msg("the sandbox does not finish");
        event_base_loop(s->base, EVLOOP_ONCE);
    }
}

static inline decoded studio_decode(studio *s, const void *bytes, size_t count)
{
    decoded d = {.calls = 0};
    d.status = kn_sandbox_decode(s->sandbox, bytes, count, on_decoded, &d, NULL);
    if (d.status != KN_OK) return d;
    assert_int_equal(d.calls, 0);
    studio_run(s);
    assert_int_equal(d.calls, 1);
    return d;
}

#endif
