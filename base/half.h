/* SPDX-License-Identifier: Apache-2.0
 *
 * Scalar conversions between float32 and the two 16-bit formats of checkpoints.
 * IEEE 754 round to nearest even; NaN stays NaN. */
#ifndef KN_BASE_HALF_H
#define KN_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t kn_float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float kn_float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float kn_bf16_to_float(uint16_t value)
{
    return kn_float_from_bits((uint32_t)value << 16);
}

static inline uint16_t kn_bf16_from_float(float value)
{
    uint32_t bits = kn_float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u); /* quiet NaN */
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float kn_bf16_round(float value)
{
    return kn_bf16_to_float(kn_bf16_from_float(value));
}

static inline float kn_f16_to_float(uint16_t value)
{
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
    uint32_t exponent = (value >> 10) & 0x1fu;
    uint32_t fraction = value & 0x3ffu;
    if (exponent == 0x1f) return kn_float_from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return kn_float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float subnormal = (float)fraction * 0x1p-24f;
    return sign ? -subnormal : subnormal;
}

#endif
