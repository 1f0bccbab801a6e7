/* SPDX-License-Identifier: Apache-2.0
 *
 * Coefficients of one solver step. UniPC (Zhao et al. 2023, arXiv 2302.04867; variant B2, data prediction) works in
 * lambda(sigma) = ln(1 - sigma) - ln(sigma). From sigma_s to sigma_t, with h = lambda_t - lambda_s:
 *   first order   x_t = (sigma_t/sigma_s) x_s - alpha_t B m_s,   B = expm1(-h), alpha = 1 - sigma
 *   higher        adds -alpha_t B * sum rho_k D_k, D_k being differences of data predictions
 * For a flow alpha_t B = sigma_t/sigma_s - 1 exactly, so the first-order part needs no logarithm, and at sigma_t = 0
 * it is plainly m_s. The weights rho solve a 2x2 system; it is written out.
 *
 * diffusers (0.42.1) evaluates all of this in float. Its cancellations (expm1(-h)/h - 1 for a small h) cost it up to
 * 1.5e-6 over a whole run of 50 steps and more with many steps; here it is double until the last rounding. */
#include "engine/sampling.h"

#include <assert.h>
#include <math.h>

static double log_ratio(float sigma)
{
    return log(1 - (double)sigma) - log((double)sigma);
}

/* Order of the predictor that leaves step i: as many old predictions as exist, and first order into sigma 0, where
 * h is infinite. */
static int32_t predictor_order(const kn_schedule *schedule, int32_t i)
{
    int32_t known = i + 1;
    int32_t order = schedule->solver_order < known ? schedule->solver_order : known;
    return i == schedule->steps - 1 ? 1 : order;
}

/* The difference D = (m_prev - m) / r of the order-2 predictor takes the fixed weight 1/2. */
static void fill_predictor(kn_solver_step *step, const float *sigmas, int32_t i, int32_t order)
{
    double ratio = (double)sigmas[i + 1] / (double)sigmas[i];
    double gain = 1 - ratio; /* -alpha B */
    double on_previous = 0;
    if (order == 2) {
        double lambda = log_ratio(sigmas[i]);
        double r = (log_ratio(sigmas[i - 1]) - lambda) / (log_ratio(sigmas[i + 1]) - lambda);
        on_previous = gain * 0.5 / r;
    }
    step->predictor[0] = (float)ratio;
    step->predictor[1] = (float)on_previous;
    step->predictor[2] = (float)(gain - on_previous);
}

/* Redoes the step from i - 1 to i with the prediction m made at its end; `order` is the one its predictor had.
 * Order 1: weight 1/2 on m - m_prev. Order 2: rho_1 on (m_prev2 - m_prev)/r and rho_2 on m - m_prev, from
 * rho_1 + rho_2 = b_1, r rho_1 + rho_2 = b_2. */
static void fill_corrector(kn_solver_step *step, const float *sigmas, int32_t i, int32_t order)
{
    double ratio = (double)sigmas[i] / (double)sigmas[i - 1];
    double gain = 1 - ratio;
    double on_older = 0, on_new = gain * 0.5;
    if (order == 2) {
        double lambda = log_ratio(sigmas[i - 1]);
        double h = log_ratio(sigmas[i]) - lambda;
        double r = (log_ratio(sigmas[i - 2]) - lambda) / h;
        double b = expm1(-h);
        double phi_1 = b / -h - 1;
        double phi_2 = phi_1 / -h - 0.5;
        double b_1 = phi_1 / b, b_2 = 2 * phi_2 / b;
        double rho_1 = (b_1 - b_2) / (1 - r);
        on_older = gain * rho_1 / r;
        on_new = gain * (b_1 - rho_1);
    }
    step->corrected = true;
    step->corrector[0] = (float)ratio;
    step->corrector[1] = (float)on_older;
    step->corrector[2] = (float)(gain - on_older - on_new);
    step->corrector[3] = (float)on_new;
}

kn_solver_step kn_solver_at(const kn_schedule *schedule, int32_t i)
{
    assert(i >= 0 && i < schedule->steps);
    const float *sigmas = schedule->sigmas;
    kn_solver_step step = {.kind = schedule->kind, .sigma = sigmas[i], .euler_delta = sigmas[i + 1] - sigmas[i]};
    if (schedule->kind == KN_SAMPLER_UNIPC) {
        if (i > 0) fill_corrector(&step, sigmas, i, predictor_order(schedule, i - 1));
        fill_predictor(&step, sigmas, i, predictor_order(schedule, i));
    }
    return step;
}
