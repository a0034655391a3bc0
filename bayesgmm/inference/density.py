"""The log posterior of a mixture and its gradient over a flat unconstrained vector, in Numba: the PyMC model's, term by term.

The transforms and their derivatives stand here once; ``prior_ops`` makes PyTensor operations of the same functions, so that
the PyMC model and this density share everything but their sum. Nothing here imports PyMC: sampling needs neither its import
nor a compilation of its own, and one evaluation is one call of a C function, without the interpreter lock.

A random scale may be integrated out: the same coordinates then belong to a fixed V, and what the scale had to say of the
covariances is one determinant.
"""

from __future__ import annotations

import ctypes
import math
import threading
from functools import cache
from typing import Any

import numba as nb
import numpy as np
from numba import types

from bayesgmm.core.kernel import KERNEL_VERSION, LOG_2PI, fused_pass_of, gradients
from bayesgmm.core.parameters import FloatArray, SufficientStatistics
from bayesgmm.inference.layout import BartlettLayout, ModelInputs

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


@nb.njit(**_options)
def log_weights_forward(free):
    """Logarithm of the simplex point with log π_k − mean(log π) = free_k; shape (K − 1,) to (K,)."""
    K = free.shape[0] + 1
    out = np.empty(K)
    last = 0.0
    for k in range(K - 1):
        out[k] = free[k]
        last -= free[k]
    out[K - 1] = last
    high = out[0]
    for k in range(K):
        high = max(high, out[k])
    total = 0.0
    for k in range(K):
        total += math.exp(out[k] - high)
    shift = high + math.log(total)
    for k in range(K):
        out[k] -= shift
    return out


@nb.njit(**_options)
def log_weights_pullback(log_weights, g):
    """Gradient with respect to the free form, from that with respect to the log weights."""
    K = log_weights.shape[0]
    total = 0.0
    for k in range(K):
        total += g[k]
    out = np.empty(K - 1)
    last = g[K - 1] - math.exp(log_weights[K - 1]) * total
    for k in range(K - 1):
        out[k] = g[k] - math.exp(log_weights[k]) * total - last
    return out


@nb.njit(**_options)
def precision_factors_forward(V, squares, below, n_components):
    """P_k = V A_k with A_k lower, its diagonal the roots of ``squares`` and ``below`` beneath (rows first)."""
    D = V.shape[0]
    R, C = squares.shape
    out = np.zeros((n_components, D, D))
    A = np.zeros((D, D))
    for k in range(n_components):
        r = k if R > 1 else 0
        for i in range(D):
            A[i, i] = math.sqrt(squares[r, i if C > 1 else 0])
        if below.shape[1] == 0:
            for i in range(D):
                for j in range(i + 1):
                    out[k, i, j] = V[i, j] * A[j, j]
            continue
        q = below[k if below.shape[0] > 1 else 0]
        for i in range(1, D):
            for j in range(i):
                A[i, j] = q[i * (i - 1) // 2 + j]
        for i in range(D):
            for m in range(i + 1):
                a = V[i, m]
                for j in range(m + 1):
                    out[k, i, j] += a * A[m, j]
    return out


@nb.njit(**_options)
def precision_factors_pullback(V, squares, below, g):
    """Gradients with respect to ``squares`` and ``below``, summed where they were broadcast."""
    D = V.shape[0]
    K = g.shape[0]
    R, C = squares.shape
    g_squares, g_below = np.zeros(squares.shape), np.zeros(below.shape)
    row = np.empty(D)
    for k in range(K):
        r = k if R > 1 else 0
        for m in range(D):
            width = m + 1
            start = 0 if below.shape[1] > 0 else m
            for j in range(start, width):
                row[j] = 0.0
            for i in range(m, D):
                a = V[i, m]
                for j in range(start, width):
                    row[j] += a * g[k, i, j]
            c = m if C > 1 else 0
            g_squares[r, c] += 0.5 * row[m] / math.sqrt(squares[r, c])
            if below.shape[1] > 0:
                q = g_below[k if below.shape[0] > 1 else 0]
                for j in range(m):
                    q[m * (m - 1) // 2 + j] += row[j]
    return g_squares, g_below


@nb.njit(**_options)
def precision_factors_scale_gradient(squares, below, g):
    """Gradient with respect to V of :func:`precision_factors_forward`: Σ_k g_k A_kᵀ, lower."""
    K, D = g.shape[0], g.shape[1]
    R, C = squares.shape
    out = np.zeros((D, D))
    for k in range(K):
        r = k if R > 1 else 0
        for i in range(D):
            for m in range(i + 1):
                total = g[k, i, m] * math.sqrt(squares[r, m if C > 1 else 0])
                if below.shape[1] > 0:
                    q = below[k if below.shape[0] > 1 else 0]
                    for j in range(m):
                        total += g[k, i, j] * q[m * (m - 1) // 2 + j]
                out[i, m] += total
    return out


@nb.njit(**_options)
def scale_factor_forward(L, squares, below):
    """V = L T⁻¹ with T lower, its diagonal the roots of ``squares`` (D or 1) and ``below`` beneath (rows first, or none)."""
    D, C = L.shape[0], squares.shape[0]
    out = np.zeros((D, D))
    for i in range(D):
        # V T = L, solved from the last column to the first.
        for j in range(i, -1, -1):
            total = L[i, j]
            if below.shape[0] > 0:
                for m in range(j + 1, i + 1):
                    total -= out[i, m] * below[m * (m - 1) // 2 + j]
            out[i, j] = total / math.sqrt(squares[j if C > 1 else 0])
    return out


@nb.njit(**_options)
def scale_factor_pullback(V, squares, below, g):
    """Gradients with respect to ``squares`` and ``below``: −Vᵀ g T⁻ᵀ, summed where it was broadcast."""
    D, C = V.shape[0], squares.shape[0]
    g_squares, g_below = np.zeros(squares.shape), np.zeros(below.shape)
    row = np.empty(D)
    for i in range(D):
        # Row i of −Vᵀ g, then times T⁻ᵀ: x Tᵀ = row, solved from the first column on. g counts by its lower triangle.
        for j in range(i + 1):
            total = 0.0
            for m in range(i, D):
                total -= V[m, i] * g[m, j]
            if below.shape[0] > 0:
                for m in range(j):
                    total -= row[m] * below[j * (j - 1) // 2 + m]
            row[j] = total / math.sqrt(squares[j if C > 1 else 0])
        c = i if C > 1 else 0
        g_squares[c] += 0.5 * row[i] / math.sqrt(squares[c])
        if below.shape[0] > 0:
            for j in range(i):
                g_below[i * (i - 1) // 2 + j] += row[j]
    return g_squares, g_below


@nb.njit(**_options)
def separated_factors_forward(log_deviations, floor, logits, n_components):
    """P_k = diag(σ_k)⁻¹ U_k⁻ᵀ with σ = floor + exp(log_deviations) and R_k = U_k U_kᵀ, so that Σ_k = diag(σ_k) R_k diag(σ_k).

    ``logits`` are those of (1 + ρ)/2, ρ the canonical partial correlations (rows first): U is upper, its rows sticks of length 1.
    """
    D = floor.shape[0]
    R, C = log_deviations.shape
    out = np.zeros((n_components, D, D))
    for k in range(n_components):
        r = k if R > 1 else 0
        if logits.shape[1] == 0:
            for i in range(D):
                out[k, i, i] = 1.0 / (floor[i] + math.exp(log_deviations[r, i if C > 1 else 0]))
            continue
        if k >= logits.shape[0]:
            for i in range(D):
                for j in range(i + 1):
                    out[k, i, j] = out[0, i, j]
            continue
        M = separated_root(logits[k], D)
        # W = M⁻¹, column by column.
        for j in range(D):
            for i in range(j, D):
                total = 1.0 if i == j else 0.0
                for m in range(j, i):
                    total -= M[i, m] * out[k, m, j]
                out[k, i, j] = total / M[i, i]
        for i in range(D):
            inverse = 1.0 / (floor[i] + math.exp(log_deviations[r, i if C > 1 else 0]))
            for j in range(i + 1):
                out[k, i, j] *= inverse
    return out


@nb.njit(**_options)
def separated_root(logits, D):
    """M = Uᵀ, lower, with U Uᵀ the correlation matrix of these logits."""
    M = np.zeros((D, D))
    for i in range(D):
        left = 1.0
        for j in range(D - 1, i, -1):
            half = 0.5 * logits[j * (j - 1) // 2 + i]
            M[j, i] = math.tanh(half) * left
            left /= math.cosh(half)
        M[i, i] = left
    return M


@nb.njit(**_options)
def separated_factors_pullback(log_deviations, floor, logits, factors, g):
    """Gradients with respect to ``log_deviations`` and ``logits``, summed where they were broadcast."""
    K, D = g.shape[0], g.shape[1]
    R, C = log_deviations.shape
    g_deviations, g_logits = np.zeros(log_deviations.shape), np.zeros(logits.shape)
    H, g_M = np.zeros((D, D)), np.zeros((D, D))
    left = np.empty(D)
    for k in range(K):
        r = k if R > 1 else 0
        for i in range(D):
            c = i if C > 1 else 0
            excess = math.exp(log_deviations[r, c])
            total = 0.0
            for j in range(i + 1):
                total += g[k, i, j] * factors[k, i, j]
            g_deviations[r, c] -= total * excess / (floor[i] + excess)
        if logits.shape[1] == 0:
            continue
        b = k if logits.shape[0] > 1 else 0
        # −Wᵀ g_W Wᵀ, with W = diag(σ) P and g_W = diag(σ) g.
        for i in range(D):
            sigma_i = floor[i] + math.exp(log_deviations[r, i if C > 1 else 0])
            for j in range(i + 1):
                sigma_j = floor[j] + math.exp(log_deviations[r, j if C > 1 else 0])
                total = 0.0
                for m in range(j + 1):
                    total += g[k, i, m] * factors[k, j, m]
                H[i, j] = total * sigma_j / sigma_i
        for i in range(D):
            for j in range(i + 1):
                total = 0.0
                for m in range(i, D):
                    total -= factors[k, m, i] * H[m, j] * (floor[m] + math.exp(log_deviations[r, m if C > 1 else 0]))
                g_M[i, j] = total
        for i in range(D):
            left[D - 1] = 1.0
            for j in range(D - 1, i, -1):
                left[j - 1] = left[j] / math.cosh(0.5 * logits[b, j * (j - 1) // 2 + i])
            g_left = g_M[i, i]
            for j in range(i + 1, D):
                q = j * (j - 1) // 2 + i
                half = 0.5 * logits[b, q]
                rho, rest = math.tanh(half), 1.0 / math.cosh(half)
                g_logits[b, q] += 0.5 * left[j] * rest * (g_M[j, i] * rest - g_left * rho)
                g_left = g_M[j, i] * rho + g_left * rest
    return g_deviations, g_logits


@nb.njit(**_options)
def separated_log_density(log_deviations, deviation_terms, logits, shapes, g_deviations, g_logits):
    """Log prior density of the unconstrained deviations and partial correlations; adds its gradients to the other two.

    ``deviation_terms`` are those of :class:`bayesgmm.core.separation.DeviationTerms` but for the floor; ``shapes`` of the Beta variables.
    """
    value = 0.0
    for r in range(log_deviations.shape[0]):
        for c in range(log_deviations.shape[1]):
            t = log_deviations[r, c]
            away = t - deviation_terms[2, c]
            tail = deviation_terms[4, c] * math.exp(deviation_terms[5, c] * t)
            value += (
                deviation_terms[0, c] + deviation_terms[1, c] * t - 0.5 * deviation_terms[3, c] * away * away - tail
            )
            g_deviations[r, c] += deviation_terms[1, c] - deviation_terms[3, c] * away - deviation_terms[5, c] * tail
    for q in range(logits.shape[1]):
        b = shapes[q]
        constant = math.lgamma(2.0 * b) - 2.0 * math.lgamma(b)
        for r in range(logits.shape[0]):
            # log u + log(1 − u) = −|y| − 2 log(1 + exp(−|y|)).
            y = logits[r, q]
            value += constant - b * (abs(y) + 2.0 * math.log1p(math.exp(-abs(y))))
            g_logits[r, q] -= b * math.tanh(0.5 * y)
    return value


@nb.njit(**_options)
def means_log_density_and_gradients(means, centre, kappa, P):
    """Log N(μ_k; m₀, (κ₀ P_k P_kᵀ)⁻¹) of each component and its gradients with respect to μ_k and P_k."""
    K, D = means.shape
    value, g_means, g_factors = np.empty(K), np.zeros((K, D)), np.zeros((K, D, D))
    constant = 0.5 * D * math.log(kappa / (2.0 * math.pi))
    z, y = np.empty(D), np.empty(D)
    for k in range(K):
        total = constant
        for j in range(D):
            z[j] = means[k, j] - centre[j]
            y[j] = 0.0
        for i in range(D):
            for j in range(i + 1):
                y[j] += P[k, i, j] * z[i]
        for j in range(D):
            total += math.log(P[k, j, j]) - 0.5 * kappa * y[j] * y[j]
        for i in range(D):
            for j in range(i + 1):
                g_means[k, i] -= kappa * P[k, i, j] * y[j]
                g_factors[k, i, j] = -kappa * z[i] * y[j]
            g_factors[k, i, i] += 1.0 / P[k, i, i]
        value[k] = total
    return value, g_means, g_factors


@nb.njit(**_options)
def integrated_scale(L, factors, n_covariances, n_scales, off_diagonal, degrees, g_factors):
    """−(h/2) log|L Lᵀ + Σ_k P_k P_kᵀ| over the distinct P_k, h ``degrees``; adds its gradients with respect to them to ``g_factors``.

    Without an off-diagonal part it is that of each feature, or of the first alone where the features share one scale.
    """
    D = L.shape[0]
    value = 0.0
    if not off_diagonal:
        for c in range(n_scales):
            total = L[c, c] * L[c, c]
            for k in range(n_covariances):
                total += factors[k, c, c] * factors[k, c, c]
            value -= 0.5 * degrees * math.log(total)
            for k in range(n_covariances):
                g_factors[k, c, c] -= degrees * factors[k, c, c] / total
        return value
    # M, the Cholesky factor, row by row.
    M = np.zeros((D, D))
    for i in range(D):
        for j in range(i + 1):
            total = 0.0
            for m in range(j + 1):
                total += L[i, m] * L[j, m]
                for k in range(n_covariances):
                    total += factors[k, i, m] * factors[k, j, m]
            for m in range(j):
                total -= M[i, m] * M[j, m]
            M[i, j] = math.sqrt(total) if i == j else total / M[j, j]
        value -= degrees * math.log(M[i, i])
    x = np.empty(D)
    for k in range(n_covariances):
        for j in range(D):
            # Column j of (M Mᵀ)⁻¹ P_k, from the diagonal down.
            for i in range(j, D):
                total = factors[k, i, j]
                for m in range(j, i):
                    total -= M[i, m] * x[m]
                x[i] = total / M[i, i]
            for i in range(D - 1, j - 1, -1):
                total = x[i]
                for m in range(i + 1, D):
                    total -= M[m, i] * x[m]
                x[i] = total / M[i, i]
                g_factors[k, i, j] -= degrees * x[i]
    return value


@nb.njit(**_options)
def with_class_priors(log_weights, class_stops, log_class_priors):
    """Log weights log π_k − log Σ_j π_j + log ρ_c, the sum over the components of k's class c; a class ends before its stop."""
    out = np.empty(log_weights.shape[0])
    start = 0
    for c in range(class_stops.shape[0]):
        stop = int(class_stops[c])
        high = log_weights[start]
        for k in range(start, stop):
            high = max(high, log_weights[k])
        total = 0.0
        for k in range(start, stop):
            total += math.exp(log_weights[k] - high)
        shift = log_class_priors[c] - (high + math.log(total))
        for k in range(start, stop):
            out[k] = log_weights[k] + shift
        start = stop
    return out


@nb.njit(**_options)
def with_class_priors_pullback(log_weights, class_stops, log_class_priors, g):
    """Gradient with respect to log π, from that with respect to :func:`with_class_priors`, whose result is ``log_weights``."""
    out = np.empty(g.shape[0])
    start = 0
    for c in range(class_stops.shape[0]):
        stop = int(class_stops[c])
        total = 0.0
        for k in range(start, stop):
            total += g[k]
        for k in range(start, stop):
            out[k] = g[k] - math.exp(log_weights[k] - log_class_priors[c]) * total
        start = stop
    return out


# Numba's cache does not see that the kernel has changed: what calls it is kept within the C function alone, whose key says so.
@nb.njit(**{**_options, "cache": False})
def grouped_pass(X, v, groups, log_weights, means, factors, by_feature):
    """Sum of passes over slices of rows and components; ``groups`` (G, 4) are first and one past the last of both."""
    K, D = means.shape
    counts, first, second = np.zeros(K), np.zeros((K, D)), np.zeros((K, D, D))
    log_likelihood = 0.0
    for g in range(groups.shape[0]):
        start, stop = int(groups[g, 0]), int(groups[g, 1])
        begin, end = int(groups[g, 2]), int(groups[g, 3])
        value, c, f, s = fused_pass_of(
            X[start:stop],
            v[start:stop] if v.shape[0] > 0 else v,
            log_weights[begin:end],
            means[begin:end],
            factors[begin:end],
            by_feature,
        )
        log_likelihood += value
        for k in range(end - begin):
            counts[begin + k] += c[k]
            for i in range(D):
                first[begin + k, i] += f[k, i]
                for j in range(D):
                    second[begin + k, i, j] += s[k, i, j]
    return log_likelihood, counts, first, second


@nb.njit(**{**_options, "cache": False})
def _log_posterior(
    theta,
    X,
    v,
    concentration,
    mean_prior,
    kappa,
    degrees,
    scale,
    mean_factor,
    hyper_degrees,
    rate,
    joint,
    shape,
    groups,
    class_stops,
    log_class_priors,
    statistics,
    deviation_terms,
    floor,
    beta_shapes,
    gradient,
):
    """Log posterior at theta; its gradient goes into ``gradient``.

    ``shape`` holds the shapes of the two Bartlett matrices and the numbers of χ² and Normal variables behind the scale: 0 and 0 where
    ``scale`` is V itself. ``joint`` are the degrees of freedom h of a scale that is integrated out (else 0), with ``rate`` its L, and
    the constant that comes with them. ``groups`` are passes over rows of known class and the others, none where one pass takes all;
    ``class_stops`` and ``log_class_priors`` are empty but where classes have given priors. ``statistics`` are what the pass would
    find (:func:`pack_statistics`), empty where it is to be made. ``deviation_terms``, ``floor`` and ``beta_shapes`` are empty but for a
    prior of standard deviations and correlations, whose coordinates stand in the places of the Bartlett variables.
    """
    K, D = concentration.shape[0], mean_prior.shape[0]
    R, C, B, Q, H, T = shape
    integrated = joint[0] > 0.0
    first, second, third = K - 1, K - 1 + R * C, K - 1 + R * C + B * Q
    fourth = third + K * D
    fifth = fourth + H
    log_squares = theta[first:second].reshape((R, C))
    below = theta[second:third].reshape((B, Q))
    means = theta[third:fourth].reshape((K, D))
    separated = deviation_terms.shape[0] > 0
    squares = np.empty((R, C))
    for r in range(R):
        for c in range(C):
            squares[r, c] = math.exp(log_squares[r, c])
    V = scale
    hyper_squares = np.empty(H)
    if H > 0:
        for h in range(H):
            hyper_squares[h] = math.exp(theta[fourth + h])
        V = scale_factor_forward(scale, hyper_squares, theta[fifth:])
    log_weights = log_weights_forward(theta[:first])
    factors = (
        separated_factors_forward(log_squares, floor, below, K)
        if separated
        else precision_factors_forward(V, squares, below, K)
    )

    # V is diagonal where there is nothing below: so are the factors.
    by_feature = Q == 0 and D > 1
    held = log_weights
    if class_stops.shape[0] > 0:
        held = with_class_priors(log_weights, class_stops, log_class_priors)
    if statistics.shape[0] > 0:
        log_likelihood = statistics[0]
        counts = statistics[1 : 1 + K]
        sums = statistics[1 + K : 1 + K + K * D].reshape((K, D))
        products = statistics[1 + K + K * D :].reshape((K, D, D))
    elif groups.shape[0] == 0:
        log_likelihood, counts, sums, products = fused_pass_of(X, v, held, means, factors, by_feature)
    else:
        log_likelihood, counts, sums, products = grouped_pass(X, v, groups, held, means, factors, by_feature)
    g_log_weights, g_means, g_factors = gradients(counts, sums, products, factors)
    if class_stops.shape[0] > 0:
        g_log_weights = with_class_priors_pullback(held, class_stops, log_class_priors, g_log_weights)
    value = log_likelihood

    # Dirichlet, with the volume element log K + Σ log π of the simplex coordinates.
    total = 0.0
    for k in range(K):
        value += concentration[k] * log_weights[k] - math.lgamma(concentration[k])
        g_log_weights[k] += concentration[k]
        total += concentration[k]
    value += math.lgamma(total) + math.log(K)

    # Loops, not array expressions: those compile for seconds, for error messages that cannot occur.
    prior_factors = factors
    means_apart = H > 0 or integrated or separated
    if means_apart:
        prior_factors = np.empty((K, D, D))
        for k in range(K):
            for i in range(D):
                for j in range(D):
                    prior_factors[k, i, j] = mean_factor[i, j]
    of_means, g_prior_means, g_prior_factors = means_log_density_and_gradients(means, mean_prior, kappa, prior_factors)
    for k in range(K):
        value += of_means[k]
        for i in range(D):
            gradient[third + k * D + i] = g_means[k, i] + g_prior_means[k, i]
            if not means_apart:
                for j in range(i + 1):
                    g_factors[k, i, j] += g_prior_factors[k, i, j]

    if separated:
        g_deviations, g_logits = separated_factors_pullback(log_squares, floor, below, factors, g_factors)
        value += separated_log_density(log_squares, deviation_terms, below, beta_shapes, g_deviations, g_logits)
        for r in range(R):
            for c in range(C):
                gradient[first + r * C + c] = g_deviations[r, c]
        for r in range(B):
            for q in range(Q):
                gradient[second + r * Q + q] = g_logits[r, q]
    else:
        # The exponents of the Bartlett variables' densities cancel where the scale is integrated out.
        exponent = 1.0
        if integrated:
            exponent = 0.0
            value += joint[1] + integrated_scale(rate, factors, R, C, Q > 0, joint[0], g_factors)

        g_squares, g_below = precision_factors_pullback(V, squares, below, g_factors)
        for r in range(R):
            for c in range(C):
                # χ² in the logarithm of the variable.
                half = 0.5 * degrees[c]
                value += half * (log_squares[r, c] - math.log(2.0)) - 0.5 * exponent * squares[r, c] - math.lgamma(half)
                gradient[first + r * C + c] = (g_squares[r, c] - 0.5 * exponent) * squares[r, c] + half
        for r in range(B):
            for q in range(Q):
                value -= 0.5 * (exponent * below[r, q] * below[r, q] + LOG_2PI)
                gradient[second + r * Q + q] = g_below[r, q] - exponent * below[r, q]

    if H > 0:
        hyper_below = theta[fifth:]
        g_scale = precision_factors_scale_gradient(squares, below, g_factors)
        g_hyper_squares, g_hyper_below = scale_factor_pullback(V, hyper_squares, hyper_below, g_scale)
        for h in range(H):
            half = 0.5 * hyper_degrees[h]
            value += half * (theta[fourth + h] - math.log(2.0)) - 0.5 * hyper_squares[h] - math.lgamma(half)
            gradient[fourth + h] = (g_hyper_squares[h] - 0.5) * hyper_squares[h] + half
        for h in range(T):
            value -= 0.5 * (hyper_below[h] * hyper_below[h] + LOG_2PI)
            gradient[fifth + h] = g_hyper_below[h] - hyper_below[h]

    g_free = log_weights_pullback(log_weights, g_log_weights)
    for k in range(first):
        gradient[k] = g_free[k]
    return value


@nb.njit(**_options)
def _from_whitened(y, center, factor, theta):
    for i in range(y.shape[0]):
        total = center[i]
        for j in range(i + 1):
            total += factor[i, j] * y[j]
        theta[i] = total


_NUMBERS = types.CPointer(types.double)
_ADDRESSES = types.CPointer(_NUMBERS)
_N_SIZES = 18
_STATISTICS = 15
"""Place of the statistics among the addresses."""


@cache
def density_function() -> Any:
    """C function ``(P, point, gradient, value, addresses) -> status``: log posterior and gradient at a point.

    ``addresses`` is what :class:`PackedPosterior` holds. Status 0 is success; 3 and 4, a gradient or a value that is not
    finite, are nutpie's codes of a point to be rejected.
    """
    # Read by the function, hence part of Numba's cache key.
    version = int(KERNEL_VERSION[:8], 16)

    @nb.cfunc(types.int64(types.uint64, _NUMBERS, _NUMBERS, _NUMBERS, _ADDRESSES), cache=True, error_model="numpy")
    def log_density(n_parameters, point_at, gradient_at, value_at, addresses):
        sizes = nb.carray(addresses[0], (_N_SIZES,))
        P, N, D, K = int(n_parameters), int(sizes[0]), int(sizes[1]), int(sizes[2])
        R, C, B, Q = int(sizes[3]), int(sizes[4]), int(sizes[5]), int(sizes[6])
        X, v = nb.carray(addresses[1], (N, D)), nb.carray(addresses[2], (int(sizes[7]),))
        concentration, mean_prior = nb.carray(addresses[3], (K,)), nb.carray(addresses[4], (D,))
        degrees, scale = nb.carray(addresses[5], (C,)), nb.carray(addresses[6], (D, D))
        center, factor = nb.carray(addresses[7], (P,)), nb.carray(addresses[8], (P, P))
        point, gradient = nb.carray(point_at, (P,)), nb.carray(gradient_at, (P,))

        H, T = int(sizes[10]), int(sizes[11])
        hyper_degrees, mean_factor = nb.carray(addresses[9], (H,)), nb.carray(addresses[10], (D, D))

        rate, joint = nb.carray(addresses[11], (D, D)), sizes[12:14]
        groups, n_given = nb.carray(addresses[12], (int(sizes[14]), 4)), int(sizes[15])
        class_stops, log_class_priors = nb.carray(addresses[13], (n_given,)), nb.carray(addresses[14], (n_given,))
        statistics = nb.carray(addresses[15], (int(sizes[16]),))
        n_separated = int(sizes[17])
        deviation_terms = nb.carray(addresses[16], (6 * n_separated, C))
        floor = nb.carray(addresses[17], (D * n_separated,))
        beta_shapes = nb.carray(addresses[18], (Q * n_separated,))
        shape = (R, C, B, Q, H, T)
        kappa = sizes[8]
        whitened = sizes[9] != 0.0
        theta, slope = point, gradient
        if whitened:
            theta, slope = np.empty(P), np.empty(P)
            _from_whitened(point, center, factor, theta)
        value = _log_posterior(
            theta,
            X,
            v,
            concentration,
            mean_prior,
            kappa,
            degrees,
            scale,
            mean_factor,
            hyper_degrees,
            rate,
            joint,
            shape,
            groups,
            class_stops,
            log_class_priors,
            statistics,
            deviation_terms,
            floor,
            beta_shapes,
            slope,
        )
        if whitened:
            for j in range(P):
                gradient[j] = 0.0
            for i in range(P):
                for j in range(i + 1):
                    gradient[j] += factor[i, j] * slope[i]
        value_at[0] = value
        for j in range(P):
            if not math.isfinite(gradient[j]):
                return 3
        return 0 if math.isfinite(value) and version >= 0 else 4

    return log_density


@cache
def position_function() -> Any:
    """C function ``(P, P, point, theta, addresses) -> 0``: unconstrained parameters of a whitened point."""

    @nb.cfunc(types.int64(types.uint64, types.uint64, _NUMBERS, _NUMBERS, _ADDRESSES), cache=True)
    def position(n_parameters, n_out, point_at, theta_at, addresses):
        P = int(n_parameters)
        center, factor = nb.carray(addresses[7], (P,)), nb.carray(addresses[8], (P, P))
        _from_whitened(nb.carray(point_at, (P,)), center, factor, nb.carray(theta_at, (P,)))
        return 0

    return position


@cache
def _callable() -> Any:
    prototype = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_uint64, *[ctypes.c_void_p] * 4)
    return prototype(density_function().address)


def pack_statistics(statistics: SufficientStatistics) -> FloatArray:
    """Log-likelihood, counts, first and second moments as one array."""
    parts = (statistics.counts, statistics.first, statistics.second)
    return np.concatenate([[statistics.log_likelihood], *(part.ravel() for part in parts)])


class PackedPosterior:
    """Data, prior and whitening of one posterior as the C functions read them.

    Parameters
    ----------
    inputs : ModelInputs
    layout : BartlettLayout
    center : ndarray of shape (P,), optional
        With ``factor``: points are y with θ = center + factor y.
    factor : ndarray of shape (P, P), optional
        Lower triangular.
    summed : bool, default False
        Whether the sums of the pass come with each call and not from the data of ``inputs``.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        layout: BartlettLayout,
        center: FloatArray | None = None,
        factor: FloatArray | None = None,
        summed: bool = False,
    ) -> None:
        K, D = inputs.n_components, inputs.n_features
        shapes = (*layout.squares_shape(K, D), *layout.below_shape(K, D))
        n_weights, kappa = len(inputs.sample_weight), float(inputs.mean_precision)
        hyper = layout.hyper_shapes(D) if inputs.hierarchical else (0, 0)
        joint = inputs.joint_degrees_and_constant(shapes[0]) if inputs.integrated else (0.0, 0.0)
        given = inputs.given_classes
        passes = (len(inputs.groups), len(given[0]))
        whitened = float(factor is not None)
        self._n_statistics = 1 + K * (1 + D + D * D) if summed else 0
        tail = (*hyper, *joint, *passes, self._n_statistics, float(inputs.separated))
        sizes = (len(inputs.X), D, K, *shapes, n_weights, kappa, whitened, *tail)
        self._arrays = tuple(
            np.ascontiguousarray(array, dtype=np.float64)
            for array in (
                sizes,
                inputs.X,
                inputs.sample_weight,
                inputs.weight_concentration,
                inputs.mean_prior,
                inputs.degrees_of_freedom,
                inputs.scale_factor,
                np.empty(0) if center is None else center,
                np.empty(0) if factor is None else factor,
                inputs.hyper_degrees_of_freedom,
                inputs.mean_factor,
                inputs.rate_factor,
                inputs.groups,
                *given,
                np.empty(0),
                inputs.deviation_terms,
                inputs.deviation_floor,
                inputs.beta_shapes,
            )
        )
        self.addresses = np.array([array.ctypes.data for array in self._arrays], dtype=np.uintp)
        """Addresses of the arrays, which live as long as this object."""
        self._buffers = threading.local()

    def __call__(self, point: FloatArray, statistics: FloatArray | None = None) -> tuple[float, FloatArray]:
        """Log density and gradient at a point (P,); may run in several threads at once.

        ``statistics`` are those of the pass at this point, where the posterior is ``summed``.
        """
        buffers, P = self._buffers, len(point)
        try:
            held, out, addresses = buffers.point, buffers.out, buffers.addresses
        except AttributeError:
            # To ask an array for its address takes longer than a pass over a small table: once for each thread.
            held, out = np.empty(P), np.empty(P + 1)
            begin = out.ctypes.data
            buffers.statistics, buffers.table = np.empty(self._n_statistics), self.addresses.copy()
            buffers.table[_STATISTICS] = buffers.statistics.ctypes.data
            addresses = (held.ctypes.data, begin, begin + 8 * P, buffers.table.ctypes.data)
            buffers.point, buffers.out, buffers.addresses = held, out, addresses
        held[:] = point
        if statistics is not None:
            buffers.statistics[:] = statistics
        _callable()(P, *addresses)
        return float(out[P]), out[:P].copy()
