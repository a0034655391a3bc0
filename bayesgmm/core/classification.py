"""Bayes' rule for classes that are mixtures: densities and probabilities of classes, at given parameters and averaged over draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray, MixtureParameters

BLOCK_ELEMENTS = 2_000_000
"""Size of the largest temporary array (draws × rows of a block × classes); 16 MB."""

SMALLEST = 1e-280
"""Probabilities below this are summed as logarithms: the kernel's densities end near 1e-308 of the largest."""

Draws = tuple[FloatArray, FloatArray, FloatArray]


def joint_log_densities(X: FloatArray, parameters: MixtureParameters, blocks: Sequence[slice]) -> FloatArray:
    """Log density of each row together with each class, log Σ_{k in C_c} π_k N_k(x_n).

    Parameters
    ----------
    X : ndarray of shape (N, D)
    parameters : MixtureParameters
        Of all components. Weights that sum to 1 in each class give log p(x given c).
    blocks : sequence of slice
        The components of each class.

    Returns
    -------
    ndarray of shape (N, C)
    """
    w, m, P = parameters.weights, parameters.means, parameters.precision_factors
    columns = [kernel.log_density(X, MixtureParameters(w[block], m[block], P[block])) for block in blocks]
    return np.stack(columns, axis=1)


def class_log_probabilities(X: FloatArray, parameters: MixtureParameters, blocks: Sequence[slice]) -> FloatArray:
    """Log probability of each class, by Bayes' rule.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    parameters : MixtureParameters
        Of all components.
    blocks : sequence of slice
        The components of each class.

    Returns
    -------
    ndarray of shape (N, C)
        Rows beyond the reach of float64, where every density is 0, belong to the class of the nearest component.
    """
    out = joint_log_densities(X, parameters, blocks)
    far = _normalise(out)
    if far.any():
        r = kernel.responsibilities(X[far], parameters)[0]
        with np.errstate(divide="ignore"):
            out[far] = np.log(np.stack([r[:, block].sum(axis=1) for block in blocks], axis=1))
    return out


def _normalise(joint: FloatArray) -> NDArray[np.bool_]:
    """Make logs (..., C) those of numbers that sum to 1, in place; where that cannot be done, no log being finite, True (...)."""
    top = joint.max(axis=-1, keepdims=True)
    far = ~np.isfinite(top[..., 0])
    # The highest first: of logs of 1e38 and more, the log of their number would be lost in rounding.
    joint[far] = top[far] = 0.0
    joint -= top
    joint -= logsumexp(joint, axis=-1, keepdims=True)
    return np.asarray(far)


def averaged_class_probabilities(X: FloatArray, draws: Draws, blocks: Sequence[slice]) -> tuple[FloatArray, FloatArray]:
    """Class probabilities averaged over draws, and their spread.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    draws : tuple of ndarray
        Weights (S, K), means (S, K, D) and precision factors (S, K, D, D).
    blocks : sequence of slice
        The components of each class.

    Returns
    -------
    mean : ndarray of shape (N, C)
        (1/S) Σ_s p(c given x_n, θ_s).
    sd : ndarray of shape (N, C)
        Standard deviation over draws, of divisor S.
    """
    mean, sd = kernel.class_probabilities(X, *draws, np.array([block.stop for block in blocks]))
    beyond = np.flatnonzero(np.abs(1 - mean.sum(axis=1)) > 1e-6)
    for rows, logs in probabilities_of_draws(X[beyond], draws, blocks):
        p = np.exp(logs)
        mean[beyond[rows]], sd[beyond[rows]] = p.mean(axis=0), p.std(axis=0)
    return mean, sd


def average_class_log_probabilities(X: FloatArray, draws: Draws, blocks: Sequence[slice]) -> FloatArray:
    """Log of class probabilities averaged over draws, also where these are too small for a number.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    draws : tuple of ndarray
        Weights (S, K), means (S, K, D) and precision factors (S, K, D, D).
    blocks : sequence of slice
        The components of each class.

    Returns
    -------
    ndarray of shape (N, C)
    """
    mean = averaged_class_probabilities(X, draws, blocks)[0]
    small = np.flatnonzero(np.any(mean < SMALLEST, axis=1))
    out = np.log(np.maximum(mean, SMALLEST))
    for rows, logs in probabilities_of_draws(X[small], draws, blocks):
        out[small[rows]] = logsumexp(logs, axis=0) - np.log(len(logs))
    return out


def probabilities_of_draws(X: FloatArray, draws: Draws, blocks: Sequence[slice]) -> Iterator[tuple[slice, FloatArray]]:
    """Log class probabilities (S, n, C) of every draw, a block of rows at a time.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    draws : tuple of ndarray
        Weights (S, K), means (S, K, D) and precision factors (S, K, D, D).
    blocks : sequence of slice
        The components of each class.

    Yields
    ------
    rows : slice
    log_probabilities : ndarray of shape (S, n, C)
    """
    S, C = len(draws[0]), len(blocks)
    parts = [tuple(np.ascontiguousarray(part[:, block]) for part in draws) for block in blocks]
    size = max(1, BLOCK_ELEMENTS // (S * C))
    for start in range(0, len(X), size):
        rows = slice(start, min(start + size, len(X)))
        joint = np.stack([kernel.pointwise_log_likelihood(X[rows], *part) for part in parts], axis=2)  # type: ignore[arg-type]
        far = np.flatnonzero(_normalise(joint).any(axis=0))
        for s in range(S if len(far) else 0):
            joint[s, far] = class_log_probabilities(
                X[start + far], MixtureParameters(*(part[s] for part in draws)), blocks
            )
        yield rows, joint


def average_class_log_densities(X: FloatArray, draws: Draws, blocks: Sequence[slice]) -> FloatArray:
    """Log of each class's density averaged over draws, log (1/S) Σ_s p(x_n given c, θ_s).

    Parameters
    ----------
    X : ndarray of shape (N, D)
    draws : tuple of ndarray
        Weights (S, K) that sum to 1 in each class, means (S, K, D) and precision factors (S, K, D, D).
    blocks : sequence of slice
        The components of each class.

    Returns
    -------
    ndarray of shape (N, C)
    """
    columns = []
    for block in blocks:
        w, m, P = (np.ascontiguousarray(part[:, block]) for part in draws)
        columns.append(kernel.posterior_predictive(X, w, m, P, with_responsibilities=False)[0])
    return np.stack(columns, axis=1)
