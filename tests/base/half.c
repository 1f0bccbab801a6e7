/* SPDX-License-Identifier: Apache-2.0
 *
 * All 65536 values of both 16-bit formats, against the formats' definitions in
 * double arithmetic; rounding to bf16 around every representable value. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/half.h"

/* sign, exponent and fraction to a value, by the definition of IEEE 754 binary interchange formats. */
static double decode(uint32_t bits, int exponent_bits, int fraction_bits)
{
    uint32_t fraction = bits & ((1u << fraction_bits) - 1);
    uint32_t exponent = bits >> fraction_bits & ((1u << exponent_bits) - 1);
    int bias = (1 << (exponent_bits - 1)) - 1;
    double magnitude;
    if (exponent == (1u << exponent_bits) - 1)
        magnitude = fraction ? NAN : INFINITY;
    else if (exponent == 0)
        magnitude = ldexp(fraction, 1 - bias - fraction_bits);
    else
        magnitude = ldexp(fraction + (double)(1u << fraction_bits), (int)exponent - bias - fraction_bits);
    return bits >> (exponent_bits + fraction_bits) ? -magnitude : magnitude;
}

static void check_value(double expected, float got)
{
    if (isnan(expected)) {
        assert_true(isnan(got));
        return;
    }
    assert_true((double)got == expected);
    assert_int_equal(signbit(got) != 0, signbit(expected) != 0); /* also of zero */
}

static void every_f16_value_decodes(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) check_value(decode(bits, 5, 10), kn_f16_to_float((uint16_t)bits));
}

static void every_bf16_value_decodes_and_returns(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float value = kn_bf16_to_float((uint16_t)bits);
        check_value(decode(bits, 8, 7), value);
        uint16_t back = kn_bf16_from_float(value);
        if (isnan(value))
            assert_true(isnan(kn_bf16_to_float(back)));
        else
            assert_int_equal(back, bits);
    }
}

/* Between a value and the next larger magnitude: just below the middle, the middle, just above it. At the largest
 * finite value the next pattern is infinity, which is what round to nearest gives from the middle on. */
static void bf16_rounds_to_nearest_ties_to_even(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        if ((bits & 0x7f80) == 0x7f80) continue; /* infinity and NaN have no larger neighbour */
        uint32_t even = bits & 1 ? bits + 1 : bits;
        uint32_t low = bits << 16;
        assert_int_equal(kn_bf16_from_float(kn_float_from_bits(low | 0x0001)), bits);
        assert_int_equal(kn_bf16_from_float(kn_float_from_bits(low | 0x7fff)), bits);
        assert_int_equal(kn_bf16_from_float(kn_float_from_bits(low | 0x8000)), even);
        assert_int_equal(kn_bf16_from_float(kn_float_from_bits(low | 0x8001)), bits + 1);
        assert_int_equal(kn_bf16_from_float(kn_float_from_bits(low | 0xffff)), bits + 1);
    }
}

/* A NaN whose payload lies only in the bits that are cut off must not become infinity. */
static void nan_stays_nan(void **state)
{
    (void)state;
    for (uint32_t sign = 0; sign < 2; sign++)
        for (uint32_t payload = 1; payload < 0x800000; payload = payload * 2 + 1) {
            uint16_t bits = kn_bf16_from_float(kn_float_from_bits(sign << 31 | 0x7f800000 | payload));
            assert_int_equal(bits & 0x7f80, 0x7f80);
            assert_int_not_equal(bits & 0x7f, 0);
            assert_int_equal(bits >> 15, sign);
        }
    assert_int_equal(kn_bf16_from_float(INFINITY), 0x7f80);
    assert_int_equal(kn_bf16_from_float(-INFINITY), 0xff80);
}

static void rounding_is_idempotent(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x7f800000; bits += 7919 * 13) {
        float once = kn_bf16_round(kn_float_from_bits(bits));
        assert_int_equal(kn_float_bits(kn_bf16_round(once)), kn_float_bits(once));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_f16_value_decodes),
        cmocka_unit_test(every_bf16_value_decodes_and_returns),
        cmocka_unit_test(bf16_rounds_to_nearest_ties_to_even),
        cmocka_unit_test(nan_stays_nan),
        cmocka_unit_test(rounding_is_idempotent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
