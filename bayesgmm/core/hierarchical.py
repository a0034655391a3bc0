"""The prior under which numbers of components and structures are compared: proper, its scale random, common to all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, multigammaln

from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray, factors_from_covariances
from bayesgmm.core.priors import (
    LOG_2PI,
    ConjugatePrior,
    DataSummary,
    EMStartedPrior,
    WishartPrior,
    refuse_constant,
    short_value,
    weighted_range,
)
from bayesgmm.core.separation import SeparationPrior

NARROWEST = 1e-100
"""Range of a feature below which squares of what scales the prior, and of precisions, are no numbers of float64."""

SCALED = "mean_covariance and hyper_rate"
"""What is scaled by the range of the data."""


@dataclass(frozen=True, eq=False)
class HierarchicalPrior(EMStartedPrior, WishartPrior):
    """The hierarchical prior of a Gaussian mixture: independent means, and covariances whose scale is itself random.

    π ~ Dirichlet(α); μ_k ~ Normal(b₀, B₀), independent of the covariances; Σ_k⁻¹ given C₀ ~ W(c₀, C₀), C₀ ~ W(g₀, G₀), where W(c, C) has a
    density proportional to det(S)^(c − (D + 1)/2) exp(−tr(C S)): a Wishart distribution with 2c degrees of freedom and scale (2C)⁻¹.
    ``diag`` has the marginals of this, Σ_jj⁻¹ ~ Gamma(c₀ − (D − 1)/2, C_j) and C_j ~ Gamma(g₀, rate 1/(G₀⁻¹)_jj), the features
    independent; ``spherical`` one σ_k⁻² ~ Gamma(c₀ − (D − 1)/2, C) and C ~ Gamma(g₀, rate 1/mean_j (G₀⁻¹)_jj).

    Nothing but location and range of the data enters it, and the same for every K and structure: evidences and the posterior of K can be
    compared under it. A value that is not given is resolved from the data by :meth:`resolve`; the resolved prior is kept by the
    estimators as ``prior_`` and held fixed from then on.

    Parameters
    ----------
    weight_concentration : float or array-like of shape (K,), default 1.0
        α of the Dirichlet. 1 is uniform on the simplex.
    mean_prior : array-like of shape (D,), optional
        b₀, in the units of the data. Default: the weighted median of each feature.
    mean_covariance : array-like of shape (D,) or (D, D), optional
        B₀, variances or a matrix, in squared units of the data. Default: R², the squared range of each feature.
    precision_shape : float, optional
        c₀ > (D − 1)/2. Default: 2.5 + (D − 1)/2.
    hyper_shape : float, optional
        g₀ > (D − 1)/2. Default: 0.5 + (D − 1)/2.
    hyper_rate : array-like of shape (D,) or (D, D), optional
        G₀, a diagonal or a matrix, in inverse squared units of the data. Default: 100 (g₀/c₀) diag(1/R²).
    em_prior : ConjugatePrior, optional
        EM has no closed M-step under this prior. Its modes are found under ``em_prior`` and are starts alone: from them the climb goes on
        to the modes of the posterior. Default: κ₀ = 0.01, ν₀ = 2c₀ and Λ₀ = 2 g₀ G₀⁻¹, the mean of 2C₀.

    Raises
    ------
    ValueError
        If a value has the wrong shape or lies outside its range.

    References
    ----------
    Frühwirth-Schnatter, S., Malsiner-Walli, G. & Grün, B. (2021). Generalized mixtures of finite mixtures and telescoping sampling.
    Bayesian Analysis 16, 1279–1307, section 4.
    Richardson, S. & Green, P. J. (1997). On Bayesian analysis of mixtures with an unknown number of components. Journal of the Royal
    Statistical Society B 59, 731–792, section 2.4.

    Examples
    --------
    >>> from bayesgmm import HierarchicalPrior
    >>> from bayesgmm.datasets import load_faithful
    >>> prior = HierarchicalPrior().resolve(load_faithful(), n_components=2)
    >>> prior.precision_shape
    3.0
    >>> prior.mean_prior
    array([ 4., 76.])
    """

    weight_concentration: float | ArrayLike = 1.0
    mean_prior: ArrayLike | None = None
    mean_covariance: ArrayLike | None = None
    precision_shape: float | None = None
    hyper_shape: float | None = None
    hyper_rate: ArrayLike | None = None
    em_prior: ConjugatePrior | None = None

    def __post_init__(self) -> None:
        self._check_weights_and_mean()
        self._check_positive("precision_shape", "hyper_shape")
        for name in ("mean_covariance", "hyper_rate"):
            if getattr(self, name) is not None:
                _matrix(getattr(self, name), name)
        self._check_em_prior()

    @classmethod
    def richardson_green(cls, X: ArrayLike, sample_weight: ArrayLike | None = None) -> HierarchicalPrior:
        """Richardson & Green's (1997) prior for one feature.

        c₀ = 2, g₀ = 0.2, G₀ = 10/R², b₀ the middle of the range, B₀ = R², α = 1: their α = 2, g = 0.2, h = 10/R², ξ, κ = 1/R² and δ = 1.

        Parameters
        ----------
        X : array-like of shape (N,) or (N, 1)
        sample_weight : array-like of shape (N,), optional
            Rows of weight 0 do not count for the range.

        Returns
        -------
        HierarchicalPrior

        Raises
        ------
        ValueError
            If X has more than one feature or is constant.
        """
        table = np.asarray(X, dtype=float)
        table = table[:, None] if table.ndim == 1 else table
        if table.ndim != 2 or table.shape[1] != 1:
            raise ValueError(f"Richardson & Green's prior is for one feature; X has shape {table.shape}")
        v = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
        low, high = weighted_range(table, v)
        refuse_constant(low, high, SCALED)
        squared = (high - low) ** 2
        return cls(1.0, (low + high) / 2, squared, 2.0, 0.2, 10 / squared)

    def _resolve(self, data: DataSummary, K: int) -> HierarchicalPrior:
        D = data.n_features
        alpha, mean = self._weights_and_mean(K, D)
        c0 = float(2.5 + (D - 1) / 2 if self.precision_shape is None else self.precision_shape)
        g0 = float(0.5 + (D - 1) / 2 if self.hyper_shape is None else self.hyper_shape)
        for name, value in (("precision_shape", c0), ("hyper_shape", g0)):
            if value <= (D - 1) / 2:
                raise ValueError(f"{name} must exceed (D − 1)/2 = {(D - 1) / 2:g} for {D} features; got {value:g}")
        squared = np.ones(D)
        if self.mean_covariance is None or self.hyper_rate is None:
            low, high = data.range
            refuse_constant(low, high, SCALED)
            squared = (high - low) ** 2
            if not np.all(squared > NARROWEST**2):
                which = ", ".join(map(str, np.flatnonzero(~(squared > NARROWEST**2))))
                raise ValueError(
                    f"column {which} of X is narrower than {NARROWEST:g}: sums of squared precisions leave the range of float64. "
                    "Rescale the columns (divide by a typical value) and fit again"
                )
        defaults = {"mean_covariance": squared, "hyper_rate": 100 * g0 / c0 / squared}
        matrices = {
            name: _matrix(default if getattr(self, name) is None else getattr(self, name), name)
            for name, default in defaults.items()
        }
        for name, matrix in matrices.items():
            if matrix.shape != (D, D):
                raise ValueError(f"{name} has {len(matrix)} values or rows for {D} features")
        mean = data.median if mean is None else mean
        em_prior = self.em_prior
        if em_prior is None:
            em_prior = ConjugatePrior(alpha, mean, 0.01, 2 * c0, 2 * g0 * np.linalg.inv(matrices["hyper_rate"]))
        return replace(
            self,
            weight_concentration=alpha,
            mean_prior=mean,
            mean_covariance=matrices["mean_covariance"],
            precision_shape=c0,
            hyper_shape=g0,
            hyper_rate=matrices["hyper_rate"],
            em_prior=em_prior.resolve_from(data, K),
        )

    @property
    def is_resolved(self) -> bool:
        """Whether every value of the prior is known (``em_prior`` is none of them)."""
        names = ("mean_prior", "mean_covariance", "precision_shape", "hyper_shape", "hyper_rate")
        return np.ndim(self.weight_concentration) == 1 and all(getattr(self, name) is not None for name in names)

    @property
    def resolved_degrees_of_freedom(self) -> float:
        """2c₀, the degrees of freedom of the Σ_k given C₀."""
        self._resolved()
        return 2 * float(self.precision_shape)  # type: ignore[arg-type]

    @property
    def hyper_degrees_of_freedom(self) -> float:
        """2g₀, the degrees of freedom of C₀."""
        self._resolved()
        return 2 * float(self.hyper_shape)  # type: ignore[arg-type]

    @property
    def mean_factor(self) -> FloatArray:
        """F, lower (D, D), with F Fᵀ = B₀⁻¹."""
        self._resolved()
        return factors_from_covariances(_matrix(self.mean_covariance, "mean_covariance"))

    def rate_factor(self, covariance_type: str) -> FloatArray:
        """Factor of the part of G₀ that a covariance structure uses.

        Parameters
        ----------
        covariance_type : {"full", "tied", "diag", "spherical"}

        Returns
        -------
        ndarray of shape (D, D)
            L, lower triangular, with L Lᵀ that part of G₀.

        Raises
        ------
        ValueError
            If values still wait for the data.
        """
        self._resolved()
        rate = _matrix(self.hyper_rate, "hyper_rate")
        name = structure(covariance_type).name
        if name in ("full", "tied"):
            return np.linalg.cholesky(rate)
        inverses = np.diagonal(np.linalg.inv(rate))
        return np.diag((inverses if name == "diag" else np.full(len(rate), inverses.mean())) ** -0.5)

    def constants(self) -> dict[str, tuple[FloatArray, tuple[str, ...]]]:
        """The resolved values by name, with their dims.

        Returns
        -------
        dict of str to (ndarray of the shape of its dims, tuple of str)
            Dims are those of the PyMC model: "component", "feature", "feature_bis".

        Raises
        ------
        ValueError
            If values still wait for the data.
        """
        self._resolved()
        return {
            "weight_concentration": (self.resolved_concentration, ("component",)),
            "mean_prior": (self.resolved_mean, ("feature",)),
            "mean_covariance": (_matrix(self.mean_covariance, "mean_covariance"), ("feature", "feature_bis")),
            "precision_shape": (np.asarray(self.precision_shape, dtype=float), ()),
            "hyper_shape": (np.asarray(self.hyper_shape, dtype=float), ()),
            "hyper_rate": (_matrix(self.hyper_rate, "hyper_rate"), ("feature", "feature_bis")),
        }

    def log_density(
        self,
        weights: FloatArray,
        means: FloatArray,
        covariances: FloatArray,
        covariance_type: str = "full",
        precision_rate: FloatArray | None = None,
    ) -> FloatArray | float:
        """Log prior density with all constants: of (π, μ, Σ), C₀ integrated out, or of (π, μ, Σ, C₀) where it is given.

        Parameters
        ----------
        weights : ndarray of shape (..., K)
        means : ndarray of shape (..., K, D)
        covariances : ndarray of shape (..., K, D, D), (..., D, D), (..., K, D) or (..., K)
            Packed as ``covariance_type`` says.
        covariance_type : {"full", "tied", "diag", "spherical"}, default "full"
        precision_rate : ndarray of shape (..., D, D), (..., D) or (...), optional
            C₀ of full and tied, diag, spherical. A matrix counts by its lower triangle.

        Returns
        -------
        ndarray of shape (...) or float
            One value per leading index.
        """
        K, D = np.shape(means)[-2:]
        name = structure(covariance_type).name
        matrices = structure(covariance_type).expand(np.asarray(covariances, dtype=float), K, D)
        scale_factor = None
        if precision_rate is not None:
            rate = np.asarray(precision_rate, dtype=float)
            if name not in ("full", "tied"):
                rate = (rate if name == "diag" else rate[..., None])[..., None] * np.eye(D)
            scale_factor = factors_from_covariances(2 * rate)
        return self.log_density_from_factors(
            weights, means, factors_from_covariances(matrices), covariance_type, scale_factor
        )

    def log_density_from_factors(
        self,
        weights: FloatArray,
        means: FloatArray,
        precision_factors: FloatArray,
        covariance_type: str = "full",
        scale_factor: FloatArray | None = None,
    ) -> FloatArray | float:
        """Return :meth:`log_density` of covariances given by their precision factors.

        Parameters
        ----------
        weights : ndarray of shape (..., K)
        means : ndarray of shape (..., K, D)
        precision_factors : ndarray of shape (..., K, D, D)
            Lower triangular P with Σ⁻¹ = P Pᵀ, of the structure.
        covariance_type : {"full", "tied", "diag", "spherical"}, default "full"
        scale_factor : ndarray of shape (..., D, D), optional
            Lower V with V Vᵀ = (2 C₀)⁻¹. None: C₀ is integrated out.

        Returns
        -------
        ndarray of shape (...) or float
            One value per leading index.
        """
        weights, means = np.asarray(weights, dtype=float), np.asarray(means, dtype=float)
        D = means.shape[-1]
        root = self.mean_factor
        y = (means - self.resolved_mean) @ root
        normal = np.sum(np.log(np.diagonal(root))) - 0.5 * (D * LOG_2PI + np.sum(y * y, axis=-1))
        total = self._log_weights_density(weights) + normal.sum(axis=-1)
        name = structure(covariance_type).name
        factors = precision_factors[..., :1, :, :] if name == "tied" else precision_factors
        if name in ("full", "tied"):
            return total + self._log_matrices(factors, scale_factor, name)
        return total + self._log_variances(factors, scale_factor, name)

    def _log_matrices(self, factors: FloatArray, V: FloatArray | None, name: str) -> FloatArray:
        """Log density of R matrices Σ_k, and of C₀ where V is given."""
        R, D = factors.shape[-3], factors.shape[-1]
        c0, g0 = self.resolved_degrees_of_freedom / 2, self.hyper_degrees_of_freedom / 2
        L = self.rate_factor(name)
        constant = 2 * g0 * np.sum(np.log(np.diagonal(L))) - multigammaln(g0, D) - R * multigammaln(c0, D)
        log_precision = 2 * np.sum(np.log(np.diagonal(factors, axis1=-2, axis2=-1)), axis=(-2, -1))
        total = constant + (c0 + (D + 1) / 2) * log_precision
        precisions = np.sum(factors @ np.swapaxes(factors, -1, -2), axis=-3)
        joined = L @ L.T + precisions
        shape = g0 + R * c0
        if V is None:
            return np.asarray(total + multigammaln(shape, D) - shape * np.linalg.slogdet(joined)[1])
        log_rate = -2 * np.sum(np.log(np.diagonal(V, axis1=-2, axis2=-1)), axis=-1) - D * np.log(2)
        # tr(C₀ (G₀ + Σ_k Σ_k⁻¹)) with C₀ = V⁻ᵀ V⁻¹ / 2.
        trace = 0.5 * np.trace(np.linalg.solve(V @ np.swapaxes(V, -1, -2), joined), axis1=-2, axis2=-1)
        return np.asarray(total + (shape - (D + 1) / 2) * log_rate - trace)

    def _log_variances(self, factors: FloatArray, V: FloatArray | None, name: str) -> FloatArray:
        """The same of the variances of a structure without covariances."""
        used = slice(None) if name == "diag" else slice(1)
        precision = np.diagonal(factors, axis1=-2, axis2=-1)[..., used] ** 2
        half, g0, K = self.marginal_degrees_of_freedom / 2, self.hyper_degrees_of_freedom / 2, factors.shape[-3]
        rate = np.diagonal(self.rate_factor(name))[used] ** 2
        each = g0 * np.log(rate) - gammaln(g0) - K * gammaln(half) + (half + 1) * np.sum(np.log(precision), axis=-2)
        joined, shape = rate + np.sum(precision, axis=-2), g0 + K * half
        if V is None:
            each = each + gammaln(shape) - shape * np.log(joined)
        else:
            C = 0.5 * np.diagonal(V, axis1=-2, axis2=-1)[..., used] ** -2
            each = each + (shape - 1) * np.log(C) - C * joined
        return np.asarray(each.sum(axis=-1))

    def draw(
        self, rng: np.random.Generator, size: int = 1, covariance_type: str = "full"
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Independent draws from the prior.

        Parameters
        ----------
        rng : numpy.random.Generator
        size : int, default 1
            Number of draws S.
        covariance_type : {"full", "tied", "diag", "spherical"}, default "full"

        Returns
        -------
        weights : ndarray of shape (S, K)
        means : ndarray of shape (S, K, D)
        covariances : ndarray of shape (S, ...)
            Packed.
        precision_rate : ndarray of shape (S, D, D), (S, D) or (S,)
            C₀ of full and tied, diag, spherical.
        """
        kind = structure(covariance_type)
        alpha, b0 = self.resolved_concentration, self.resolved_mean
        K, D = len(alpha), len(b0)
        weights = rng.dirichlet(alpha, size)
        means = b0 + np.linalg.solve(self.mean_factor.T, rng.standard_normal((size, K, D))[..., None])[..., 0]
        L, n = self.rate_factor(kind.name), self.hyper_degrees_of_freedom
        index = np.arange(D)
        if kind.name in ("full", "tied"):
            copies = 1 if kind.name == "tied" else K
            T = np.tril(rng.standard_normal((size, D, D)), -1)
            T[:, index, index] = np.sqrt(rng.chisquare(n - (D - 1) + index, (size, D)))
            A = np.tril(rng.standard_normal((size, copies, D, D)), -1)
            A[..., index, index] = np.sqrt(rng.chisquare(self.resolved_degrees_of_freedom - index, (size, copies, D)))
        else:
            width = D if kind.name == "diag" else 1
            T = np.broadcast_to(np.sqrt(rng.chisquare(n, (size, width))), (size, D))[..., None] * np.eye(D)
            squares = rng.chisquare(self.marginal_degrees_of_freedom, (size, K, width))
            A = np.broadcast_to(np.sqrt(squares), (size, K, D))[..., None] * np.eye(D)
        # P = V A with V = L T⁻¹, so that Σ = P⁻ᵀ P⁻¹ and P⁻¹ = A⁻¹ T L⁻¹.
        back = T @ np.linalg.inv(L)
        inverse = np.linalg.solve(A, np.broadcast_to(back[:, None], A.shape))
        matrices = np.broadcast_to(np.swapaxes(inverse, -1, -2) @ inverse, (size, K, D, D))
        rates = 0.5 * np.swapaxes(back, -1, -2) @ back
        return weights, means, kind.pack(matrices), pack_rate(rates, kind.name)

    def __str__(self) -> str:
        return (
            f"weights ~ Dirichlet({short_value(self.weight_concentration)})\n"
            f"means ~ Normal({short_value(self.mean_prior)}, {short_value(self.mean_covariance)})\n"
            f"covariance⁻¹ | C₀ ~ W({short_value(self.precision_shape)}, C₀)\n"
            f"C₀ ~ W({short_value(self.hyper_shape)}, {short_value(self.hyper_rate)})"
        )


Prior = ConjugatePrior | HierarchicalPrior | SeparationPrior
"""What estimators and models take."""


def pack_rate(rates: FloatArray, covariance_type: str) -> FloatArray:
    """C₀ as the structure has it, from matrices (..., D, D): themselves, their diagonals (diag) or one number (spherical)."""
    name = structure(covariance_type).name
    if name in ("full", "tied"):
        return rates
    diagonal = np.diagonal(rates, axis1=-2, axis2=-1)
    return np.ascontiguousarray(diagonal if name == "diag" else diagonal[..., 0])


def prior_from_values(values: Mapping[str, Any]) -> Prior:
    """A resolved prior from its fields as they come out of JSON."""
    fields: dict[str, Any] = {
        name: np.array(value) if isinstance(value, list) else value for name, value in values.items()
    }
    if "scale" in fields:
        return ConjugatePrior(**fields)
    family = SeparationPrior if "deviation_family" in fields else HierarchicalPrior
    return family(**(fields | {"em_prior": prior_from_values(fields["em_prior"])}))


def _matrix(value: Any, name: str) -> FloatArray:
    """A positive definite matrix from itself, its diagonal or, for one feature, a number."""
    given = np.asarray(value, dtype=float)
    matrix = np.diag(np.atleast_1d(given)) if given.ndim < 2 else given
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not square or not np.all(np.isfinite(matrix)) or not np.allclose(matrix, matrix.T, rtol=1e-8, atol=0):
        raise ValueError(
            f"{name} must be one finite number per feature or a finite symmetric matrix (features × features); "
            f"got shape {given.shape}"
        )
    try:
        factors_from_covariances(matrix)
    except np.linalg.LinAlgError:
        raise ValueError(f"{name} must be positive definite") from None
    return matrix
