/* SPDX-License-Identifier: Apache-2.0
 *
 * Noise schedules and solvers for flow-matching models: pure arithmetic on the
 * host, without tensors. A solver step is a linear combination of the sample,
 * the model outputs and their history; this file computes its coefficients and
 * the device applies them with the `sampler_step` operator.
 *
 * Oracle: diffusers 0.42.1 UniPCMultistepScheduler (UniPC: Zhao et al. 2023,
 * arXiv 2302.04867) and FlowMatchEulerDiscreteScheduler. */
#ifndef KN_ENGINE_SAMPLING_H
#define KN_ENGINE_SAMPLING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/repository.h"

enum { KN_STEPS_MAX = 1000 };

/* sigmas[steps + 1] fall strictly from at most 1 (UniPC: below 1) and end in 0; timesteps[steps] are what the model is
 * given (UniPC: num_train_timesteps * sigma cut to an integer; Euler: the product itself, in float). */
typedef struct kn_schedule {
    kn_sampler_kind kind;
    int32_t steps;
    int32_t solver_order;
    bool lower_order_final;
    float sigmas[KN_STEPS_MAX + 1];
    float timesteps[KN_STEPS_MAX];
} kn_schedule;

/* Sigmas and timesteps equal those of diffusers bit for bit, given the same shift. shift <= 0: the config's, which is a
 * float: exact for whole numbers and halves, which is what the Wan models ship. explicit_sigmas [explicit_count] (in
 * (0, 1], strictly decreasing, not shifted yet: both samplers apply the shift to them) may be NULL; with it, `steps` is
 * not read. They are double because UniPC shifts and truncates them in double: 0.7 as float would become timestep 699.
 * For UniPC they mean what numpy.array(list) means to diffusers, which fails on a plain list.
 *
 * KN_INVALID names the field and its limit, also when the shift crowds two sigmas onto one float. KN_UNSUPPORTED: a
 * solver order or dynamic shifting that this file does not implement. */
kn_status kn_schedule_build(kn_schedule *out, const kn_sampler_config *config, int32_t steps, double shift,
                            const double *explicit_sigmas, int32_t explicit_count);

/* One solver step in terms of five vectors: the current sample x, this step's model output v, and the history
 * x_prev (the corrected sample of the step before), m_prev, m_prev2 (x0 predictions of the two steps before).
 *   m      = x - sigma_i * v                                  (m is kept as m_prev for the next step)
 *   x_corr = sum_k corrector[k] * {x_prev, m_prev2, m_prev, m}[k]   if corrected, else x
 *   x_next = sum_k predictor[k] * {x_corr, m_prev, m}[k]
 * x_corr is kept as x_prev. Euler: x_next = x + euler_delta * v, no history (corrected false, predictor zero).
 * A vector that does not exist yet (m_prev at i = 0, m_prev2 at i <= 1) has coefficient 0 and must not be read. */
typedef struct kn_solver_step {
    kn_sampler_kind kind;
    float sigma;
    float euler_delta; /* sigma_{i+1} - sigma_i */
    bool corrected;
    float corrector[4]; /* on x_prev, m_prev2, m_prev, m */
    float predictor[3]; /* on x_corr, m_prev, m */
} kn_solver_step;

/* Step i, 0 <= i < steps, depends on the schedule and i alone (orders follow from i), so that resuming needs no solver
 * object. The last step of UniPC is first order whatever lower_order_final says: at sigma 0 the second order has no
 * finite value (diffusers answers with infinities there), so with orders up to 2 the flag changes nothing. */
kn_solver_step kn_solver_at(const kn_schedule *schedule, int32_t i);

/* torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed)), to 2.5e-7 below one and
 * 3.5e-7 * |value| above: torch's vector code rounds log and cos its own way. Like torch, only the low 32 bits of the
 * seed matter. */
void kn_noise_normal(float *out, int64_t count, uint64_t seed);

#endif
