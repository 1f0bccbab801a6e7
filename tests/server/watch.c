/* SPDX-License-Identifier: Apache-2.0
 *
 * Watchers: events in order, taken up again behind the last one seen, and gone when they should be. */
#include "server/watch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"

enum { START = 0x1234abcd };

/* What one watcher was told. */
typedef struct heard {
    char data[4096];
    char last_id[KN_WATCH_ID_BYTES];
    int32_t count, refuse_after; /* 0: takes everything */
    bool ended;
} heard;

static kn_status hear(void *context, const kn_watch_event *event)
{
    heard *h = context;
    h->count++;
    const size_t used = strlen(h->data);
    snprintf(h->data + used, sizeof h->data - used, "%.*s;", (int)event->bytes, event->data);
    memcpy(h->last_id, event->id, sizeof h->last_id);
    h->ended |= event->last;
    return h->refuse_after && h->count >= h->refuse_after ? KN_AGAIN : KN_OK;
}

static void publish(kn_watch *watch, const char *data, bool keep, bool last)
{
    assert_int_equal(kn_watch_publish(watch, "video.test", data, strlen(data), keep, last), KN_OK);
}

static void everybody_hears_in_order_until_the_last(void **state)
{
    (void)state;
    heard a = {0}, b = {.refuse_after = 1};
    kn_watch *watch = NULL;
    kn_watcher *first, *second;
    bool replayed;
    assert_int_equal(kn_watch_count(NULL), 0);
    assert_int_equal(kn_watch_create(&watch, START), KN_OK);
    publish(watch, "early", true, false);
    assert_int_equal(kn_watch_add(watch, &first, hear, &a, NULL, &replayed), KN_OK);
    assert_false(replayed);
    assert_int_equal(kn_watch_add(watch, &second, hear, &b, NULL, &replayed), KN_OK);
    assert_int_equal(kn_watch_count(watch), 2);
    publish(watch, "one", true, false);
    assert_int_equal(kn_watch_count(watch), 1); /* b refused */
    publish(watch, "two", false, false);
    assert_int_equal(kn_watch_tell(watch, &first, "video.test", "you", 3, false), KN_OK);
    publish(watch, "end", true, true);
    assert_string_equal(a.data, "one;two;you;end;");
    assert_string_equal(b.data, "one;");
    assert_true(a.ended);
    assert_int_equal(kn_watch_count(watch), 0);
    kn_watch_destroy(&watch);
    assert_null(watch);
}

static void a_watcher_comes_back(void **state)
{
    (void)state;
    heard a = {0}, b = {0}, c = {0}, d = {0};
    kn_watch *watch = NULL;
    kn_watcher *watcher;
    bool replayed;
    char other[KN_WATCH_ID_BYTES];
    assert_int_equal(kn_watch_create(&watch, START), KN_OK);
    snprintf(other, sizeof other, "%08x-0", START); /* told the present state, before anything had happened */
    assert_int_equal(kn_watch_add(watch, &watcher, hear, &c, other, &replayed), KN_OK);
    assert_true(replayed);
    kn_watch_remove(watch, &watcher);
    assert_int_equal(kn_watch_add(watch, &watcher, hear, &a, NULL, &replayed), KN_OK);
    publish(watch, "1", true, false);
    publish(watch, "2", true, false);
    kn_watch_remove(watch, &watcher);
    assert_null(watcher);
    publish(watch, "picture", false, false);
    publish(watch, "3", true, false);
    assert_int_equal(kn_watch_add(watch, &watcher, hear, &b, a.last_id, &replayed), KN_OK);
    assert_true(replayed);
    assert_string_equal(b.data, "3;");

    snprintf(other, sizeof other, "%08x-2", START + 1); /* another start of the server */
    assert_int_equal(kn_watch_add(watch, &watcher, hear, &c, other, &replayed), KN_OK);
    assert_false(replayed);
    static const char *const odd[] = {"", "2", "-2", "zz", "1234abcd-99", "1234abcd-2x"};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        assert_int_equal(kn_watch_add(watch, &watcher, hear, &c, odd[i], &replayed), KN_OK);
        assert_false(replayed);
        kn_watch_remove(watch, &watcher);
    }
    assert_int_equal(c.count, 0);

    for (int i = 0; i < KN_WATCH_EVENTS_KEPT; i++) publish(watch, "x", true, false); /* 3 is forgotten */
    snprintf(other, sizeof other, "%08x-1", START);
    assert_int_equal(kn_watch_add(watch, &watcher, hear, &d, other, &replayed), KN_OK);
    assert_false(replayed);
    assert_int_equal(d.count, 0);
    kn_watch_destroy(&watch);
}

static void limits_hold(void **state)
{
    (void)state;
    heard h = {0};
    kn_watch *watch = NULL;
    kn_watcher *watcher;
    bool replayed;
    const uint64_t held = kn_mem_read().bytes;
    assert_int_equal(kn_watch_create(&watch, START), KN_OK);
    for (int i = 0; i < KN_WATCHERS_OF_ONE_MAX; i++)
        assert_int_equal(kn_watch_add(watch, &watcher, hear, &h, NULL, &replayed), KN_OK);
    assert_int_equal(kn_watch_add(watch, &watcher, hear, &h, NULL, &replayed), KN_AGAIN);
    char *large = kn_alloc(KN_WATCH_EVENT_BYTES_MAX + 1);
    assert_non_null(large);
    assert_int_equal(kn_watch_publish(watch, "video.test", large, KN_WATCH_EVENT_BYTES_MAX + 1, true, false),
                     KN_INVALID);
    kn_free(large);
    kn_mem_fail_at(1);
    assert_int_equal(kn_watch_publish(watch, "video.test", "x", 1, true, false), KN_NOMEM);
    kn_mem_fail_at(0);
    kn_watch_destroy(&watch);
    assert_int_equal(kn_mem_read().bytes, held);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everybody_hears_in_order_until_the_last),
        cmocka_unit_test(a_watcher_comes_back),
        cmocka_unit_test(limits_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
