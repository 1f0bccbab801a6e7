/* SPDX-License-Identifier: Apache-2.0
 *
 * The contract of kernels/device.h: what is refused and how it is said, memory,
 * copies, events, tiers. The operators themselves are tests/checkops. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "kernels/cpu.h"

static kn_device *open_cpu(int32_t threads, const char *isa)
{
    kn_device *device = NULL;
    kn_device_params params = {.name = "cpu", .threads = threads, .isa = isa};
    assert_int_equal(kn_device_open(&device, &params), KN_OK);
    assert_non_null(device);
    return device;
}

static kn_status open_status(const kn_device_params *params)
{
    kn_device *device = NULL;
    kn_status st = kn_device_open(&device, params);
    assert_null(device);
    return st;
}

static void what_cannot_be_opened_is_named(void **state)
{
    (void)state;
    assert_int_equal(open_status(&(kn_device_params){.name = "abacus"}), KN_UNAVAILABLE);
    assert_non_null(strstr(kn_fail_message(), "abacus"));
    assert_non_null(strstr(kn_fail_message(), "cpu"));
    assert_int_equal(open_status(&(kn_device_params){.name = "cpu", .isa = "mmx"}), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "mmx"));
    assert_non_null(strstr(kn_fail_message(), "avx2"));
    assert_int_equal(open_status(&(kn_device_params){.name = "cpu", .threads = -3}), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "-3"));
    assert_int_equal(open_status(&(kn_device_params){0}), KN_INVALID);
    assert_int_equal(kn_device_open(NULL, &(kn_device_params){.name = "cpu"}), KN_INVALID);
    kn_device *none = NULL;
    kn_device_close(&none);
}

static void every_tier_up_to_the_best_opens(void **state)
{
    (void)state;
    kn_isa best = kn_isa_detect();
    assert_in_range(best, KN_ISA_REF, KN_ISA_COUNT - 1);
    for (int i = 0; i < KN_ISA_COUNT; i++) {
        const char *name = kn_isa_name((kn_isa)i);
        assert_int_equal(kn_isa_parse(name), i);
        if (i > (int)best) {
            assert_int_equal(open_status(&(kn_device_params){.name = "cpu", .isa = name}), KN_UNAVAILABLE);
            assert_non_null(strstr(kn_fail_message(), name));
            assert_non_null(strstr(kn_fail_message(), kn_isa_name(best)));
            continue;
        }
        kn_device *device = open_cpu(1, name);
        kn_device_info info;
        kn_device_describe(device, &info);
        assert_string_equal(info.tier, name);
        assert_int_equal(info.native_bf16, i == KN_ISA_AVX512BF16);
        kn_device_close(&device);
        assert_null(device);
    }
    assert_int_equal(kn_isa_parse("AVX2"), KN_ISA_COUNT);
    kn_device *device = open_cpu(1, NULL); /* no wish: the best */
    kn_device_info info;
    kn_device_describe(device, &info);
    assert_string_equal(info.tier, kn_isa_name(best));
    kn_device_close(&device);
}

static void a_device_describes_itself_with_a_full_table(void **state)
{
    (void)state;
    kn_device *device = open_cpu(3, NULL);
    kn_device_info info;
    kn_device_describe(device, &info);
    assert_string_equal(info.name, "cpu");
    assert_true(strlen(info.description) > 0);
    assert_int_equal(info.threads, 3);
    assert_true(info.memory_bytes > (uint64_t)1 << 26);
    assert_true(info.host_memory);
    const kn_ops *ops = kn_device_ops(device);
#define KN_OP(name, summary) assert_true(ops->name != NULL);
#include "kernels/ops.inc"
#undef KN_OP
    assert_true(ops->attention_workspace && ops->weight_bytes && ops->weight_prepare);
    assert_true(ops->conv_weight_bytes && ops->conv_weight_prepare);
    kn_device_close(&device);
}

static void two_devices_do_not_share_anything(void **state)
{
    (void)state;
    kn_device *one = open_cpu(1, NULL);
    kn_device *two = open_cpu(2, "ref");
    kn_device_info info;
    kn_device_describe(one, &info);
    assert_int_equal(info.threads, 1);
    kn_device_close(&two);
    void *memory = NULL;
    assert_int_equal(kn_device_alloc(one, &memory, 100), KN_OK);
    kn_device_free(one, memory);
    kn_device_close(&one);
}

static void memory_moves_in_every_direction(void **state)
{
    (void)state;
    enum { BYTES = 1000 };
    unsigned char host[BYTES], back[BYTES], zero[BYTES] = {0};
    for (int i = 0; i < BYTES; i++) host[i] = (unsigned char)(i * 7 + 1);
    kn_device *device = open_cpu(2, NULL);
    kn_stream *stream = NULL;
    assert_int_equal(kn_stream_create(&stream, device), KN_OK);
    assert_ptr_equal(kn_stream_device(stream), device);
    void *a = NULL, *b = NULL;
    assert_int_equal(kn_device_alloc(device, &a, BYTES), KN_OK);
    assert_int_equal(kn_device_alloc(device, &b, BYTES), KN_OK);
    assert_int_equal((uintptr_t)a % 64, 0);

    assert_int_equal(kn_stream_download(stream, back, a, BYTES), KN_OK);
    assert_int_equal(kn_stream_synchronize(stream), KN_OK);
    assert_memory_equal(back, zero, BYTES); /* fresh memory */

    assert_int_equal(kn_stream_upload(stream, a, host, BYTES), KN_OK);
    assert_int_equal(kn_stream_copy(stream, b, a, BYTES), KN_OK);
    assert_int_equal(kn_stream_zero(stream, a, BYTES / 2), KN_OK);
    assert_int_equal(kn_stream_download(stream, back, b, BYTES), KN_OK);
    assert_int_equal(kn_stream_synchronize(stream), KN_OK);
    assert_memory_equal(back, host, BYTES);
    assert_int_equal(kn_stream_download(stream, back, a, BYTES), KN_OK);
    assert_int_equal(kn_stream_synchronize(stream), KN_OK);
    assert_memory_equal(back, zero, BYTES / 2);
    assert_memory_equal(back + BYTES / 2, host + BYTES / 2, BYTES / 2);

    assert_int_equal(kn_stream_upload(stream, NULL, host, 1), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "requires"));
    assert_int_equal(kn_stream_download(stream, NULL, NULL, 0), KN_OK); /* nothing to move */
    assert_int_equal(kn_stream_zero(stream, NULL, 1), KN_INVALID);

    kn_device_free(device, a);
    kn_device_free(device, b);
    kn_device_free(device, NULL);
    kn_stream_destroy(&stream);
    assert_null(stream);
    kn_stream_destroy(&stream);
    kn_device_close(&device);
}

static void events_join_streams_of_one_device(void **state)
{
    (void)state;
    kn_device *device = open_cpu(1, NULL);
    kn_device *other = open_cpu(1, "ref");
    kn_stream *first = NULL, *second = NULL, *foreign = NULL;
    kn_event *event = NULL;
    int64_t ns = -1;
    assert_int_equal(kn_stream_create(&first, device), KN_OK);
    assert_int_equal(kn_stream_create(&second, device), KN_OK);
    assert_int_equal(kn_stream_create(&foreign, other), KN_OK);
    assert_int_equal(kn_event_create(&event, device), KN_OK);
    assert_int_equal(kn_event_elapsed(event, event, &ns), KN_INVALID); /* not recorded yet */
    assert_int_equal(kn_event_record(event, first), KN_OK);
    assert_int_equal(kn_event_elapsed(event, event, &ns), KN_OK);
    assert_int_equal(ns, 0);
    assert_int_equal(kn_event_wait(event, second), KN_OK);
    assert_int_equal(kn_event_wait(event, foreign), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "device"));
    kn_event_destroy(&event);
    assert_null(event);
    kn_event_destroy(&event);
    kn_stream_destroy(&foreign);
    kn_stream_destroy(&second);
    kn_stream_destroy(&first);
    kn_device_close(&other);
    kn_device_close(&device);
}

static void a_failed_open_leaves_nothing(void **state)
{
    (void)state;
    uint64_t before = kn_mem_read().bytes;
    kn_device_params params = {.name = "cpu", .threads = 2};
    kn_device *device = NULL;
    uint64_t n = 0;
    for (;;) {
        kn_mem_fail_at(++n);
        if (kn_device_open(&device, &params) == KN_OK) break;
        assert_null(device);
        assert_non_null(strstr(kn_fail_message(), "out of memory"));
        assert_int_equal(kn_mem_read().bytes, before);
    }
    kn_mem_fail_at(0);
    assert_true(n >= 4); /* the device, the pool, its threads, the scratch */
    kn_device_close(&device);
    assert_int_equal(kn_mem_read().bytes, before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_opened_is_named),
        cmocka_unit_test(every_tier_up_to_the_best_opens),
        cmocka_unit_test(a_device_describes_itself_with_a_full_table),
        cmocka_unit_test(two_devices_do_not_share_anything),
        cmocka_unit_test(memory_moves_in_every_direction),
        cmocka_unit_test(events_join_streams_of_one_device),
        cmocka_unit_test(a_failed_open_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
