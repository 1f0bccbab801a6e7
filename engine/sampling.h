/* SPDX-License-Identifier: Apache-2.0
 *
 * Noise schedules and solvers for flow-matching models: pure arithmetic on the
 * host, without tensors. A solver step is a linear combination of the sample,
 * the model outputs and their history; this file computes its coefficients and
 * the device applies them with the `lincomb` operator.
 *
 * Oracle: diffusers 0.42.1 UniPCMultistepScheduler (UniPC: Zhao et al. 2023,
 * arXiv 2302.04867) and FlowMatchEulerDiscreteScheduler. */
#ifndef KN_ENGINE_SAMPLING_H
#define KN_ENGINE_SAMPLING_H

#include <stdint.h>

#include "base/status.h"
#include "engine/repository.h"

enum { KN_STEPS_MAX = 1000 };

/* sigmas[steps + 1] ends in 0; timesteps[steps] are what the model is given (UniPC: truncated integers;
 * Euler: 1000 * sigma). */
typedef struct kn_schedule {
    kn_sampler_kind kind;
    int32_t steps;
    int32_t solver_order;
    bool lower_order_final;
    float sigmas[KN_STEPS_MAX + 1];
    float timesteps[KN_STEPS_MAX];
} kn_schedule;

/* shift <= 0: the config's. explicit_sigmas (Euler or UniPC as diffusers accepts; values in (0, 1], decreasing) may be
 * NULL; with it, `steps` is its count. Errors name the field and the limit. */
kn_status kn_schedule_build(kn_schedule *out, const kn_sampler_config *config, int32_t steps, float shift,
                            const float *explicit_sigmas, int32_t explicit_count);

/* One solver step in terms of five vectors: the current sample x, this step's model output v, and the history
 * x_prev (the corrected sample of the step before), m_prev, m_prev2 (x0 predictions of the two steps before).
 *   m      = x - sigma_i * v                                  (m is kept as m_prev for the next step)
 *   x_corr = sum_k corrector[k] * {x_prev, m_prev2, m_prev, m}[k]   if corrected, else x
 *   x_next = sum_k predictor[k] * {x_corr, m_prev, m}[k]
 * x_corr is kept as x_prev. Euler: x_next = x + dsigma * v, no history (corrected false, predictor unused). */
typedef struct kn_solver_step {
    kn_sampler_kind kind;
    float sigma;
    float euler_delta;   /* sigma_{i+1} - sigma_i */
    bool corrected;
    float corrector[4];  /* on x_prev, m_prev2, m_prev, m */
    float predictor[3];  /* on x_corr, m_prev, m */
} kn_solver_step;

/* Step i depends on the schedule and i alone (orders follow from i), so that resuming needs no solver object. */
kn_solver_step kn_solver_at(const kn_schedule *schedule, int32_t i);

/* torch.Generator("cpu").manual_seed(seed); torch.randn(count): MT19937, 24-bit uniforms, Box-Muller in groups of 16
 * (ATen/native/cpu/DistributionTemplates.h describes it). For count < 16 torch takes another path (double-precision pairs with a cached second
 * value); both are reproduced. */
void kn_noise_normal(float *out, int64_t count, uint64_t seed);

#endif
