/* SPDX-License-Identifier: Apache-2.0
 *
 * Noise levels of a generation. A flow model mixes data and noise as x = (1 - sigma) x0 + sigma noise; the schedule
 * says at which sigmas it is asked. A shift s bends an even grid u towards high noise: sigma = s u / (1 + (s - 1) u).
 *
 * The point of this file is that every number is rounded where diffusers rounds it, because a sigma that differs in
 * its last bit can move a truncated timestep by one:
 *   UniPC  double throughout, numpy's linspace, one rounding to float at the end, timesteps cut before it
 *   Euler  own grid: ends in float (the constructor's torch tensor), between them double; given sigmas: float
 * Oracle: diffusers 0.42.1, set_timesteps() of UniPCMultistepScheduler and FlowMatchEulerDiscreteScheduler. */
#include "engine/sampling.h"

#include <math.h>
#include <stddef.h>

/* UniPC needs ln(1 - sigma_0), so a grid that starts at pure noise is moved off it by this much. */
static const double SIGMA_MARGIN = 1e-6;

static double shift_double(double shift, double u)
{
    return shift * u / (1 + (shift - 1) * u);
}

/* In float the factor is rounded after the subtraction: (float)(s - 1), not (float)s - 1. */
static float shift_float(double shift, float u)
{
    float less_one = (float)(shift - 1);
    return (float)shift * u / (1 + less_one * u);
}

/* Element i of numpy.linspace(first, last, count). */
static double linspace_at(double first, double last, int32_t count, int32_t i)
{
    if (count > 1 && i == count - 1) return last;
    double stride = count > 1 ? (last - first) / (count - 1) : 0;
    return i * stride + first;
}

static void build_unipc(kn_schedule *out, int32_t train_timesteps, double shift, const double *given)
{
    for (int32_t i = 0; i < out->steps; i++) {
        double u = given ? given[i] : linspace_at(1, 1.0 / train_timesteps, out->steps + 1, i);
        double sigma = shift_double(shift, u);
        if (i == 0 && fabs(sigma - 1) < SIGMA_MARGIN) sigma -= SIGMA_MARGIN;
        out->sigmas[i] = (float)sigma;
        out->timesteps[i] = (float)trunc(sigma * train_timesteps);
    }
}

static void build_euler(kn_schedule *out, int32_t train_timesteps, double shift, const double *given)
{
    /* The grid's ends are shifted once here and again below: that is what diffusers does. */
    double first = (double)shift_float(shift, 1) * train_timesteps;
    double last = (double)shift_float(shift, 1.0f / (float)train_timesteps) * train_timesteps;
    for (int32_t i = 0; i < out->steps; i++) {
        if (given)
            out->sigmas[i] = shift_float(shift, (float)given[i]);
        else
            out->sigmas[i] = (float)shift_double(shift, linspace_at(first, last, out->steps, i) / train_timesteps);
        out->timesteps[i] = out->sigmas[i] * (float)train_timesteps;
    }
}

static kn_status check_given(const double *given, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        if (!(given[i] > 0 && given[i] <= 1))
            return kn_fail(KN_INVALID, "sigmas[%d] is %g: must be above 0 and at most 1", i, given[i]);
        if (i > 0 && given[i] >= given[i - 1])
            return kn_fail(KN_INVALID, "sigmas[%d] is %g after %g: must be strictly decreasing", i, given[i],
                           given[i - 1]);
    }
    return KN_OK;
}

/* What the solver divides by: neighbours must differ, and none may have rounded to 0. */
static kn_status check_built(const kn_schedule *schedule, double shift)
{
    for (int32_t i = 0; i < schedule->steps; i++) {
        float sigma = schedule->sigmas[i], next = schedule->sigmas[i + 1];
        if (!(sigma > next))
            return kn_fail(KN_INVALID,
                           "shift %g with %d steps: sigmas %d and %d are %.9g and %.9g in float, must be strictly "
                           "decreasing to 0; move the shift towards 1 or take fewer steps",
                           shift, schedule->steps, i, i + 1, (double)sigma, (double)next);
    }
    return KN_OK;
}

kn_status kn_schedule_build(kn_schedule *out, const kn_sampler_config *config, int32_t steps, double shift,
                            const double *explicit_sigmas, int32_t explicit_count)
{
    kn_status st = KN_OK;
    const char *count_name = explicit_sigmas ? "number of sigmas" : "steps";
    if (explicit_sigmas) steps = explicit_count;
    if (steps < 1 || steps > KN_STEPS_MAX)
        return kn_fail(KN_INVALID, "%s is %d: must be 1 to %d", count_name, steps, KN_STEPS_MAX);
    if (isfinite(shift) && shift <= 0) shift = (double)config->shift;
    if (!isfinite(shift) || shift <= 0) return kn_fail(KN_INVALID, "shift is %g: must be finite and above 0", shift);
    if (config->num_train_timesteps < 1)
        return kn_fail(KN_INVALID, "num_train_timesteps is %d: must be at least 1", config->num_train_timesteps);
    if (config->kind == KN_SAMPLER_UNIPC && (config->solver_order < 1 || config->solver_order > 2))
        return kn_fail(KN_UNSUPPORTED, "solver_order is %d: only 1 and 2 are implemented", config->solver_order);
    if (config->use_dynamic_shifting)
        return kn_fail(KN_UNSUPPORTED, "use_dynamic_shifting is true: only a fixed shift is implemented");
    if (explicit_sigmas) KN_TRY(check_given(explicit_sigmas, explicit_count));

    *out = (kn_schedule){.kind = config->kind,
                         .steps = steps,
                         .solver_order = config->solver_order,
                         .lower_order_final = config->lower_order_final};
    if (config->kind == KN_SAMPLER_UNIPC)
        build_unipc(out, config->num_train_timesteps, shift, explicit_sigmas);
    else
        build_euler(out, config->num_train_timesteps, shift, explicit_sigmas);
    KN_TRY(check_built(out, shift));
    return KN_OK;

fail:
    return st;
}
