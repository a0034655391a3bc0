"""The four covariance structures, each described once: maximise, count, expand, pack.

A structure pools the scatter matrices of the components (over components for ``tied``, over the off-diagonal for ``diag``, over
all axes for ``spherical``); everything else follows from what it pools. Nothing outside this file branches on its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, override

import numpy as np

from bayesgmm.core.parameters import (
    FloatArray,
    MixtureParameters,
    SufficientStatistics,
    factors_from_covariances,
    upper_factors_from_covariances,
)

if TYPE_CHECKING:
    from bayesgmm.core.priors import ConjugatePrior


class CovarianceStructure(ABC):
    """One covariance structure.

    Scatter matrices come in as (K, D, D) or in the form of ``moments``, effective counts as (K,); covariances go out in scikit-learn's
    shape (``full`` (K, D, D), ``tied`` (D, D), ``diag`` (K, D), ``spherical`` (K,)).
    """

    name: str
    free_dims: tuple[str, ...]
    """Dimensions of the packed covariances, in ArviZ's names."""
    deviation_dims: tuple[str, ...]
    """Dimensions of the standard deviations that differ."""
    correlation_dims: tuple[str, ...] | None = None
    """Dimensions of the correlations; None where the structure has none."""
    moments: str
    """What a pass over the data has to tell of the second moments: see ``kernel.accumulate``."""

    @abstractmethod
    def n_covariance_parameters(self, n_components: int, n_features: int) -> int:
        """Number of free covariance parameters."""

    def n_parameters(self, n_components: int, n_features: int) -> int:
        """Number of free parameters of the mixture: covariances, K D means and K − 1 weights."""
        return self.n_covariance_parameters(n_components, n_features) + n_components * n_features + n_components - 1

    @abstractmethod
    def shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        """Shape of the packed covariances."""

    @abstractmethod
    def expand(self, covariances: FloatArray, n_components: int, n_features: int) -> FloatArray:
        """Packed covariances (any leading axes) as matrices (..., K, D, D)."""

    @abstractmethod
    def pack(self, matrices: FloatArray) -> FloatArray:
        """Matrices (..., K, D, D) that have this structure in packed shape."""

    @abstractmethod
    def pool(self, scatter: FloatArray) -> FloatArray:
        """Scatter (K, D, D), or in the form of ``moments``, pooled over what the structure shares; spherical: sum over the axes."""

    @abstractmethod
    def divisor(self, counts: FloatArray, n_features: int) -> FloatArray | float:
        """What pooled scatter is divided by at the likelihood's maximum."""

    @abstractmethod
    def prior_scatter(self, prior: ConjugatePrior) -> FloatArray | float:
        """The prior's contribution to the pooled scatter."""

    @abstractmethod
    def prior_divisor(self, prior: ConjugatePrior, n_components: int, n_features: int) -> float:
        """The prior's contribution to the divisor at the mode in (π, μ, Σ) (Fraley & Raftery 2007, table 2)."""

    @abstractmethod
    def unconstrained_factors(
        self, scatter: FloatArray, counts: FloatArray, prior: ConjugatePrior, n_components: int, n_features: int
    ) -> FloatArray:
        """Precision factors (K, D, D) at the mode of one M-step in the unconstrained coordinates of the PyMC model."""

    def regularise(self, covariances: FloatArray, reg_covar: float) -> FloatArray:
        """Add ``reg_covar`` to every variance, in place where that is a matrix's diagonal, and return the covariances."""
        return covariances + reg_covar

    def factors(self, covariances: FloatArray, n_components: int, n_features: int) -> FloatArray:
        """Precision factors (K, D, D) of packed covariances.

        Raises
        ------
        numpy.linalg.LinAlgError
            If a covariance is not positive definite.
        """
        return factors_from_covariances(self.expand(covariances, n_components, n_features))

    @abstractmethod
    def precisions_cholesky(self, covariances: FloatArray) -> FloatArray:
        """scikit-learn's ``precisions_cholesky_`` of packed covariances: upper triangular C with Σ⁻¹ = C Cᵀ, packed."""

    @abstractmethod
    def covariances_from_precisions(self, precisions: FloatArray) -> FloatArray:
        """Packed covariances of packed precisions."""


def _diagonal(matrices: FloatArray) -> FloatArray:
    return np.ascontiguousarray(np.diagonal(matrices, axis1=-2, axis2=-1))


class Full(CovarianceStructure):
    """Every component its own covariance matrix."""

    name = "full"
    free_dims: tuple[str, ...] = ("component", "feature", "feature_bis")
    deviation_dims: tuple[str, ...] = ("component", "feature")
    correlation_dims: tuple[str, ...] | None = ("component", "feature_pair")
    moments = "full"

    @override
    def n_covariance_parameters(self, n_components: int, n_features: int) -> int:
        return n_components * n_features * (n_features + 1) // 2

    @override
    def shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_components, n_features, n_features)

    @override
    def expand(self, covariances: FloatArray, n_components: int, n_features: int) -> FloatArray:
        return covariances

    @override
    def pack(self, matrices: FloatArray) -> FloatArray:
        return matrices

    @override
    def pool(self, scatter: FloatArray) -> FloatArray:
        return scatter

    @override
    def divisor(self, counts: FloatArray, n_features: int) -> FloatArray:
        return counts[:, None, None]

    @override
    def prior_scatter(self, prior: ConjugatePrior) -> FloatArray:
        return prior.resolved_scale

    @override
    def prior_divisor(self, prior: ConjugatePrior, n_components: int, n_features: int) -> float:
        return prior.resolved_degrees_of_freedom + n_features + 2

    @override
    def regularise(self, covariances: FloatArray, reg_covar: float) -> FloatArray:
        diagonals = np.einsum("...ii->...i", covariances)
        diagonals += reg_covar
        return covariances

    @override
    def precisions_cholesky(self, covariances: FloatArray) -> FloatArray:
        return upper_factors_from_covariances(covariances)

    @override
    def covariances_from_precisions(self, precisions: FloatArray) -> FloatArray:
        factors = upper_factors_from_covariances(precisions)
        return factors @ np.swapaxes(factors, -1, -2)

    @override
    def unconstrained_factors(
        self, scatter: FloatArray, counts: FloatArray, prior: ConjugatePrior, n_components: int, n_features: int
    ) -> FloatArray:
        # Bartlett: with P = chol(Ψ⁻¹) A the exponent of A_ii is ν₀ + N_k + 2 − i (i from 1), the off-diagonal is centred at 0.
        factors = factors_from_covariances(self.prior_scatter(prior) + scatter)
        order = np.arange(1, n_features + 1)
        return factors * np.sqrt(prior.resolved_degrees_of_freedom + counts[:, None, None] + 2 - order)


class Tied(Full):
    """One covariance matrix for all components."""

    name = "tied"
    free_dims = ("feature", "feature_bis")
    deviation_dims = ("feature",)
    correlation_dims = ("feature_pair",)
    moments = "pooled"

    @override
    def n_covariance_parameters(self, n_components: int, n_features: int) -> int:
        return n_features * (n_features + 1) // 2

    @override
    def shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_features, n_features)

    @override
    def expand(self, covariances: FloatArray, n_components: int, n_features: int) -> FloatArray:
        lead = covariances.shape[:-2]
        matrices = np.broadcast_to(covariances[..., None, :, :], (*lead, n_components, n_features, n_features))
        # A copy even of one component: what is broadcast may not be written to, another type to compiled code.
        return np.array(matrices, order="C")

    @override
    def pack(self, matrices: FloatArray) -> FloatArray:
        return matrices[..., 0, :, :]

    @override
    def pool(self, scatter: FloatArray) -> FloatArray:
        return scatter.sum(axis=0)

    @override
    def divisor(self, counts: FloatArray, n_features: int) -> float:  # type: ignore[override]
        return float(counts.sum())

    @override
    def prior_divisor(self, prior: ConjugatePrior, n_components: int, n_features: int) -> float:
        return prior.resolved_degrees_of_freedom + n_components + n_features + 1

    @override
    def factors(self, covariances: FloatArray, n_components: int, n_features: int) -> FloatArray:
        return self.expand(factors_from_covariances(covariances), n_components, n_features)

    @override
    def unconstrained_factors(
        self, scatter: FloatArray, counts: FloatArray, prior: ConjugatePrior, n_components: int, n_features: int
    ) -> FloatArray:
        factors = factors_from_covariances(self.prior_scatter(prior) + self.pool(scatter))
        order = np.arange(1, n_features + 1)
        exponent = prior.resolved_degrees_of_freedom + counts.sum() + n_components + 1 - order
        return self.expand(factors * np.sqrt(exponent), n_components, n_features)


class _AxisAligned(CovarianceStructure):
    """What structures whose packed covariances are variances have in common."""

    moments = "diagonal"

    @override
    def factors(self, covariances: FloatArray, n_components: int, n_features: int) -> FloatArray:
        if not np.all(covariances > 0):
            raise np.linalg.LinAlgError("a variance is not positive")
        return self.expand(1 / np.sqrt(covariances), n_components, n_features)

    @override
    def precisions_cholesky(self, covariances: FloatArray) -> FloatArray:
        return 1 / np.sqrt(covariances)

    @override
    def covariances_from_precisions(self, precisions: FloatArray) -> FloatArray:
        return 1 / precisions


class Diag(_AxisAligned):
    """Every component its own variances, features uncorrelated within a component."""

    name = "diag"
    free_dims = ("component", "feature")
    deviation_dims = ("component", "feature")

    @override
    def n_covariance_parameters(self, n_components: int, n_features: int) -> int:
        return n_components * n_features

    @override
    def shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_components, n_features)

    @override
    def expand(self, covariances: FloatArray, n_components: int, n_features: int) -> FloatArray:
        return covariances[..., None] * np.eye(n_features)

    @override
    def pack(self, matrices: FloatArray) -> FloatArray:
        return _diagonal(matrices)

    @override
    def pool(self, scatter: FloatArray) -> FloatArray:
        return scatter if scatter.ndim == 2 else _diagonal(scatter)

    @override
    def divisor(self, counts: FloatArray, n_features: int) -> FloatArray:
        return counts[:, None]

    @override
    def prior_scatter(self, prior: ConjugatePrior) -> FloatArray:
        return np.diagonal(prior.resolved_scale)

    @override
    def prior_divisor(self, prior: ConjugatePrior, n_components: int, n_features: int) -> float:
        return prior.marginal_degrees_of_freedom + 3

    @override
    def unconstrained_factors(
        self, scatter: FloatArray, counts: FloatArray, prior: ConjugatePrior, n_components: int, n_features: int
    ) -> FloatArray:
        exponent = prior.marginal_degrees_of_freedom + counts[:, None] + 1
        return self.expand(
            np.sqrt(exponent / (self.prior_scatter(prior) + self.pool(scatter))), n_components, n_features
        )


class Spherical(_AxisAligned):
    """Every component one variance for all features."""

    name = "spherical"
    free_dims = ("component",)
    deviation_dims = ("component",)

    @override
    def n_covariance_parameters(self, n_components: int, n_features: int) -> int:
        return n_components

    @override
    def shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_components,)

    @override
    def expand(self, covariances: FloatArray, n_components: int, n_features: int) -> FloatArray:
        return covariances[..., None, None] * np.eye(n_features)

    @override
    def pack(self, matrices: FloatArray) -> FloatArray:
        return np.ascontiguousarray(matrices[..., 0, 0])

    @override
    def pool(self, scatter: FloatArray) -> FloatArray:
        return scatter.sum(axis=1) if scatter.ndim == 2 else np.trace(scatter, axis1=1, axis2=2)

    @override
    def divisor(self, counts: FloatArray, n_features: int) -> FloatArray:
        return n_features * counts

    @override
    def prior_scatter(self, prior: ConjugatePrior) -> float:
        return float(np.mean(np.diagonal(prior.resolved_scale)))

    @override
    def prior_divisor(self, prior: ConjugatePrior, n_components: int, n_features: int) -> float:
        return prior.marginal_degrees_of_freedom + n_features + 2

    @override
    def unconstrained_factors(
        self, scatter: FloatArray, counts: FloatArray, prior: ConjugatePrior, n_components: int, n_features: int
    ) -> FloatArray:
        exponent = prior.marginal_degrees_of_freedom + n_features * (counts + 1)
        return self.expand(
            np.sqrt(exponent / (self.prior_scatter(prior) + self.pool(scatter))), n_components, n_features
        )


TINY = float(np.finfo(float).tiny)

STRUCTURES: dict[str, CovarianceStructure] = {s.name: s for s in (Full(), Tied(), Diag(), Spherical())}


def structure(name: str) -> CovarianceStructure:
    """The covariance structure of that name.

    Raises
    ------
    ValueError
        If there is none; the message lists the allowed names.
    """
    if name not in STRUCTURES:
        raise ValueError(f"covariance_type must be one of {', '.join(map(repr, STRUCTURES))}; got {name!r}")
    return STRUCTURES[name]


def centred_moments(statistics: SufficientStatistics, means: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weighted means x̄ (K, D) and scatter W about them, in the form of the second moments, from sums centred at ``means``.

    A component without rows keeps its mean and has no scatter.
    """
    counts = np.maximum(statistics.counts, TINY)
    shift = statistics.first / counts[:, None]
    empty = np.flatnonzero(statistics.counts <= 0)
    shift[empty] = 0.0
    scatter = statistics.second - products(statistics.first, shift, statistics.second)
    if len(empty) and len(scatter) == len(counts):
        scatter[empty] = 0.0
    return means + shift, scatter


def products(a: FloatArray, b: FloatArray, moments: FloatArray) -> FloatArray:
    """Products a_k b_kᵀ of the rows of two (K, D) in the form of second moments: (K, D, D), their sum (1, D, D) or diagonals (K, D)."""
    if moments.ndim == 2:
        return a * b
    if len(moments) < len(a):
        return (a.T @ b)[None]
    return a[:, :, None] * b[:, None, :]


def posterior_moments(
    statistics: SufficientStatistics, means: FloatArray, prior: ConjugatePrior
) -> tuple[FloatArray, FloatArray]:
    """Posterior mean of μ (K, D) and B_k = W_k + κ₀N_k/(κ₀+N_k) (x̄_k − m₀)(x̄_k − m₀)ᵀ, in the form of the second moments."""
    average, scatter = centred_moments(statistics, means)
    counts, kappa = statistics.counts, prior.mean_precision
    deviation = average - prior.resolved_mean
    shrunk = prior.resolved_mean + (counts / (counts + kappa))[:, None] * deviation
    share = kappa * counts / (kappa + counts)
    return shrunk, scatter + products(share[:, None] * deviation, deviation, scatter)


def maximise(
    statistics: SufficientStatistics, means: FloatArray, kind: CovarianceStructure, reg_covar: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """M-step under maximum likelihood (Dempster, Laird & Rubin 1977).

    Parameters
    ----------
    statistics : SufficientStatistics
        Sums of a pass at ``means``.
    means : ndarray of shape (K, D)
        The means that the sums are centred at.
    kind : CovarianceStructure
    reg_covar : float
        Added to every variance, as scikit-learn does. EM is monotone at 0.

    Returns
    -------
    weights : ndarray of shape (K,)
    means : ndarray of shape (K, D)
    covariances : ndarray
        Packed.
    """
    average, scatter = centred_moments(statistics, means)
    counts = np.maximum(statistics.counts, TINY)
    covariances = kind.pool(scatter) / kind.divisor(counts, means.shape[1])
    return statistics.counts / statistics.counts.sum(), average, kind.regularise(covariances, reg_covar)


def maximise_with_prior(
    statistics: SufficientStatistics, means: FloatArray, kind: CovarianceStructure, prior: ConjugatePrior
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """M-step under the conjugate prior: the mode in (π, μ, Σ) (Fraley & Raftery 2007, section 3).

    Parameters
    ----------
    statistics : SufficientStatistics
        Sums of a pass at ``means``.
    means : ndarray of shape (K, D)
        The means that the sums are centred at.
    kind : CovarianceStructure
    prior : ConjugatePrior
        Resolved.

    Returns
    -------
    weights : ndarray of shape (K,)
        A weight is 0 where N_k + α_k ≤ 1; where all are, in proportion to N_k + α_k.
    means : ndarray of shape (K, D)
    covariances : ndarray
        Packed.
    """
    K, D = means.shape
    shrunk, scatter = posterior_moments(statistics, means, prior)
    pooled = kind.pool(scatter) + kind.prior_scatter(prior)
    covariances = pooled / (kind.divisor(statistics.counts, D) + kind.prior_divisor(prior, K, D))
    numerator = np.maximum(statistics.counts + prior.resolved_concentration - 1, 0)
    if not numerator.any():
        numerator = statistics.counts + prior.resolved_concentration
    return numerator / numerator.sum(), shrunk, covariances


def maximise_unconstrained(
    statistics: SufficientStatistics, means: FloatArray, kind: CovarianceStructure, prior: ConjugatePrior
) -> MixtureParameters:
    """M-step to the mode in the unconstrained coordinates of the PyMC model (Bartlett factors, log-ratios of weights).

    Parameters
    ----------
    statistics : SufficientStatistics
        Sums of a pass at ``means``.
    means : ndarray of shape (K, D)
    kind : CovarianceStructure
    prior : ConjugatePrior
        Resolved.

    Returns
    -------
    MixtureParameters
    """
    K, D = means.shape
    shrunk, scatter = posterior_moments(statistics, means, prior)
    weights = statistics.counts + prior.resolved_concentration
    factors = kind.unconstrained_factors(scatter, statistics.counts, prior, K, D)
    return MixtureParameters(weights / weights.sum(), shrunk, factors)
