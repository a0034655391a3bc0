"""The prior that separates a covariance into standard deviations and correlations, each with a prior of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln, gammaln

from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.priors import (
    LOG_2PI,
    ConjugatePrior,
    DataSummary,
    EMStartedPrior,
    refuse_constant,
    short_value,
)

FAMILIES = {"lognormal": 1.0, "halfnormal": None, "gamma": 2.0, "inversegamma": 3.0}
"""Families of the standard deviations, with the default of their shape."""

_DEFAULT_SCALES = {"lognormal": 0.5, "halfnormal": 1.0, "gamma": 0.25, "inversegamma": 1.0}
"""Default scale of each family, in standard deviations of a feature: a typical component has half of that, or somewhat more."""


SCALED = "mean_scale and deviation_scale"
"""What is scaled by range and moments of the data."""


@dataclass(frozen=True)
class DeviationTerms:
    """Log density of t = log(σ − floor): constant + linear t − ½ curvature (t − center)² − rate exp(power t).

    All four families are of this form, so that nothing that is compiled asks which one it has.

    Parameters
    ----------
    constant, linear, center, curvature, rate, power, floor : ndarray of shape (C,)
        One for each standard deviation of a component: C is D, or 1 (spherical).
    """

    constant: FloatArray
    linear: FloatArray
    center: FloatArray
    curvature: FloatArray
    rate: FloatArray
    power: FloatArray
    floor: FloatArray

    def log_density(self, t: FloatArray) -> FloatArray:
        """Log density of t (..., C), with its volume element."""
        # Where the rate is 0 the power is 0 too, and nothing overflows.
        with np.errstate(over="ignore"):
            tail = self.rate * np.exp(self.power * t)
        return self.constant + self.linear * t - 0.5 * self.curvature * (t - self.center) ** 2 - tail


@dataclass(frozen=True, eq=False)
class SeparationPrior(EMStartedPrior):
    """The separation-strategy prior: independent means, standard deviations and correlations.

    π ~ Dirichlet(α); μ_kj ~ Normal(m_j, s_j²), independent of the covariance; Σ_k = diag(σ_k) R_k diag(σ_k) with σ_kj of one of four
    families and R_k ~ LKJ(η), p(R) proportional to det(R)^(η − 1). ``tied``: one Σ; ``diag``: no correlations; ``spherical``: one σ_k with
    the root mean square of the features' scales as its scale.

    The mean's, scale's and floor's values are in the units of the data. A value that is not given is resolved from the data by
    :meth:`resolve`, from location, range and standard deviation of each feature, and so is the same for every K and structure: evidences
    can be compared under it. The resolved prior is kept by the estimators as ``prior_`` and held fixed from then on.

    Parameters
    ----------
    weight_concentration : float or array-like of shape (K,), default 1.0
        α of the Dirichlet. 1 is uniform on the simplex.
    mean_prior : array-like of shape (D,), optional
        m. Default: the weighted median of each feature.
    mean_scale : array-like of shape (D,) or float, optional
        s, standard deviations. Default: the range of each feature, which is flat over the data (Richardson & Green 1997).
    deviation_family : {"lognormal", "halfnormal", "gamma", "inversegamma"}, default "lognormal"
        Of the σ_kj, each ``deviation_scale`` times a standard variable: ``exp(shape · Normal(0, 1))``, ``|Normal(0, 1)|``,
        ``Gamma(shape, 1)`` or ``1 / Gamma(shape, 1)``.
    deviation_scale : array-like of shape (D,) or float, optional
        Default, in standard deviations of each feature: 0.5, 1, 0.25, 1. About half the feature's spread is typical, and 95 % of the
        lognormal lie between 0.07 and 3.5 of it: from one component to some fifteen side by side.
    deviation_shape : float, optional
        Default: 1, none, 2, 3. The last two have the mean at half the feature's spread.
    deviation_floor : array-like of shape (D,) or float, default 0.0
        Smallest standard deviation: it is σ − floor that has the family. A floor (such as the rounding of the data) keeps components
        off single values.
    eta : float, optional
        η of the LKJ. 1 is uniform over correlation matrices, more favours small correlations. Default: 2, or D/2 where this is more:
        below, the density would be unbounded at the plane through any D rows.
    em_prior : ConjugatePrior, optional
        EM has no closed M-step under this prior. Its modes are found under ``em_prior`` and are starts alone: from them the climb goes on
        to the modes of the posterior. Default: :meth:`ConjugatePrior.fraley_raftery`.

    Raises
    ------
    ValueError
        If a value has the wrong shape or lies outside its range.

    References
    ----------
    Barnard, J., McCulloch, R. & Meng, X.-L. (2000). Modeling covariance matrices in terms of standard deviations and correlations, with
    application to shrinkage. Statistica Sinica 10, 1281–1311.
    Lewandowski, D., Kurowicka, D. & Joe, H. (2009). Generating random correlation matrices based on vines and extended onion method.
    Journal of Multivariate Analysis 100, 1989–2001.

    Examples
    --------
    >>> from bayesgmm import SeparationPrior
    >>> from bayesgmm.datasets import load_faithful
    >>> prior = SeparationPrior(eta=4).resolve(load_faithful(), n_components=2)
    >>> prior.mean_prior
    array([ 4., 76.])
    >>> prior.deviation_scale.round(2)
    array([0.57, 6.8 ])
    """

    weight_concentration: float | ArrayLike = 1.0
    mean_prior: ArrayLike | None = None
    mean_scale: ArrayLike | None = None
    deviation_family: str = "lognormal"
    deviation_scale: ArrayLike | None = None
    deviation_shape: float | None = None
    deviation_floor: ArrayLike = 0.0
    eta: float | None = None
    em_prior: ConjugatePrior | None = None

    def __post_init__(self) -> None:
        self._check_weights_and_mean()
        if self.deviation_family not in FAMILIES:
            raise ValueError(f"deviation_family must be one of {', '.join(FAMILIES)}; got {self.deviation_family!r}")
        if self.deviation_family == "halfnormal" and self.deviation_shape is not None:
            raise ValueError('deviation_shape is given, but "halfnormal" has none: leave it out')
        self._check_positive("deviation_shape", "eta")
        for name in ("mean_scale", "deviation_scale", "deviation_floor"):
            value = getattr(self, name)
            if value is None:
                continue
            array = np.asarray(value, dtype=float)
            low = array >= 0 if name == "deviation_floor" else array > 0
            if array.ndim > 1 or not np.all(np.isfinite(array) & low):
                sign = "not be negative" if name == "deviation_floor" else "be positive"
                raise ValueError(f"{name} must {sign}, a finite number or one per feature; got {value}")
        self._check_em_prior()

    def _resolve(self, data: DataSummary, K: int) -> SeparationPrior:
        D = data.n_features
        alpha, mean = self._weights_and_mean(K, D)
        spread = scale = np.ones(D)
        if self.mean_scale is None or self.deviation_scale is None:
            low, high = data.range
            refuse_constant(low, high, SCALED)
            spread = high - low
            scale = _DEFAULT_SCALES[self.deviation_family] * np.sqrt(np.diagonal(data.covariance))
        em_prior = self.em_prior
        if em_prior is None:
            em_prior = replace(ConjugatePrior.from_moments(data.mean, data.covariance, K), weight_concentration=alpha)
        shape = FAMILIES[self.deviation_family] if self.deviation_shape is None else float(self.deviation_shape)
        return replace(
            self,
            weight_concentration=alpha,
            mean_prior=data.median if mean is None else mean,
            mean_scale=_per_feature(spread if self.mean_scale is None else self.mean_scale, D, "mean_scale"),
            deviation_scale=_per_feature(
                scale if self.deviation_scale is None else self.deviation_scale, D, "deviation_scale"
            ),
            deviation_shape=shape,
            deviation_floor=_per_feature(self.deviation_floor, D, "deviation_floor"),
            eta=max(2.0, D / 2) if self.eta is None else float(self.eta),
            em_prior=em_prior.resolve_from(data, K),
        )

    @property
    def is_resolved(self) -> bool:
        """Whether every value of the prior is known (``em_prior`` is none of them)."""
        names = ("mean_prior", "mean_scale", "deviation_scale", "eta")
        shape = self.deviation_shape is not None or self.deviation_family == "halfnormal"
        arrays = np.ndim(self.weight_concentration) == np.ndim(self.deviation_floor) == 1
        return arrays and shape and all(getattr(self, name) is not None for name in names)

    @property
    def mean_factor(self) -> FloatArray:
        """F, diagonal (D, D), with F Fᵀ the precision of the means."""
        self._resolved()
        return np.diag(1 / np.asarray(self.mean_scale, dtype=float))

    def exponents(self, covariance_type: str) -> FloatArray:
        """How the density of a standard deviation vanishes near 0: as σ^(a − 1).

        Parameters
        ----------
        covariance_type : {"full", "tied", "diag", "spherical"}

        Returns
        -------
        ndarray of shape (D,) or (1,)
            a: 1 of a half-normal, the shape of a Gamma; infinite where it vanishes faster than any power, or below a floor.
        """
        floor = self.deviation_terms(covariance_type).floor
        a = {"halfnormal": 1.0, "gamma": float(self.deviation_shape or 1.0)}.get(self.deviation_family, np.inf)
        return np.where(floor > 0, np.inf, a)

    def deviation_terms(self, covariance_type: str) -> DeviationTerms:
        """Log density of the log standard deviations of a component.

        Parameters
        ----------
        covariance_type : {"full", "tied", "diag", "spherical"}

        Returns
        -------
        DeviationTerms
            Of (D,) standard deviations, or (1,).
        """
        self._resolved()
        scale, floor = np.asarray(self.deviation_scale, dtype=float), np.asarray(self.deviation_floor, dtype=float)
        if structure(covariance_type).name == "spherical":
            scale, floor = np.sqrt(np.mean(scale**2, keepdims=True)), np.max(floor, keepdims=True)
        zero, log_scale = np.zeros_like(scale), np.log(scale)
        a = float(self.deviation_shape or 1.0)
        if self.deviation_family == "lognormal":
            constant = zero - np.log(a) - 0.5 * LOG_2PI
            return DeviationTerms(constant, zero, log_scale, zero + a**-2, zero, zero, floor)
        if self.deviation_family == "halfnormal":
            constant = 0.5 * np.log(2 / np.pi) - log_scale
            return DeviationTerms(constant, zero + 1, zero, zero, 0.5 / scale**2, zero + 2, floor)
        if self.deviation_family == "gamma":
            return DeviationTerms(-a * log_scale - gammaln(a), zero + a, zero, zero, 1 / scale, zero + 1, floor)
        return DeviationTerms(a * log_scale - gammaln(a), zero - a, zero, zero, scale, zero - 1, floor)

    @property
    def partial_correlation_shapes(self) -> FloatArray:
        """B (D(D − 1)/2,), with (1 + ρ)/2 ~ Beta(b, b) the canonical partial correlations behind R ~ LKJ(η).

        In the order of ``numpy.tril_indices(D, -1)``: ρ_ij is that of features i > j given all features after i, so that b = η + (i − 1)/2.
        """
        rows = np.tril_indices(len(self.resolved_mean), -1)[0]
        return self.resolved_eta + (rows - 1) / 2

    @property
    def resolved_eta(self) -> float:
        """η of the LKJ."""
        self._resolved()
        return float(self.eta)  # type: ignore[arg-type]

    def constants(self) -> dict[str, tuple[FloatArray, tuple[str, ...]]]:
        """The resolved values by name, with their dims.

        Returns
        -------
        dict of str to (ndarray of the shape of its dims, tuple of str)
            Dims are those of the PyMC model: "component", "feature". The half-normal has no ``deviation_shape``.

        Raises
        ------
        ValueError
            If values still wait for the data.
        """
        alpha = self.resolved_concentration
        values: dict[str, tuple[FloatArray, tuple[str, ...]]] = {"weight_concentration": (alpha, ("component",))}
        for name in ("mean_prior", "mean_scale", "deviation_scale", "deviation_floor"):
            values[name] = (np.asarray(getattr(self, name), dtype=float), ("feature",))
        for name in ("deviation_shape", "eta"):
            if getattr(self, name) is not None:
                values[name] = (np.asarray(getattr(self, name), dtype=float), ())
        return values

    @property
    def choices(self) -> dict[str, str]:
        """What the prior has beside numbers: its family of standard deviations."""
        return {"deviation_family": self.deviation_family}

    def log_density_from_factors(
        self,
        weights: FloatArray,
        means: FloatArray,
        precision_factors: FloatArray,
        covariance_type: str = "full",
        *,
        as_stated: bool = False,
    ) -> FloatArray | float:
        """Return :meth:`log_density` of covariances given by their precision factors.

        Parameters
        ----------
        weights : ndarray of shape (..., K)
        means : ndarray of shape (..., K, D)
        precision_factors : ndarray of shape (..., K, D, D)
            Lower triangular P with Σ⁻¹ = P Pᵀ, of the structure.
        covariance_type : {"full", "tied", "diag", "spherical"}, default "full"
        as_stated : bool, default False
            In the coordinates (π, μ, σ, R) of the prior's statement, not in (π, μ, Σ).

        Returns
        -------
        ndarray of shape (...) or float
            One value per leading index.
        """
        name = structure(covariance_type).name
        weights, means = np.asarray(weights, dtype=float), np.asarray(means, dtype=float)
        scale = np.asarray(self.mean_scale, dtype=float)
        z = (means - self.resolved_mean) / scale
        normal = -0.5 * np.sum(z * z + LOG_2PI + 2 * np.log(scale), axis=-1)
        total = self._log_weights_density(weights) + normal.sum(axis=-1)
        factors = precision_factors[..., :1, :, :] if name == "tied" else precision_factors
        deviations = deviations_from_factors(factors)
        D = deviations.shape[-1]
        used = deviations[..., :1] if name == "spherical" else deviations
        terms = self.deviation_terms(name)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.log(used - terms.floor)
            each = np.where(used > terms.floor, terms.log_density(t) - t, -np.inf).sum(axis=-1)
        log_sigma = np.log(used).sum(axis=-1)
        if name not in ("full", "tied"):
            # dσ² = 2σ dσ.
            volume = 0.0 if as_stated else used.shape[-1] * np.log(2) + log_sigma
            return np.asarray(total + np.sum(each - volume, axis=-1))
        b, eta = self.partial_correlation_shapes, self.resolved_eta
        constant = np.sum((1 - 2 * b) * np.log(2) - betaln(b, b))
        log_det = -2 * np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1) - 2 * log_sigma
        # ∂Σ/∂(σ, R): 2^D Π σ^D.
        volume = 0.0 if as_stated else D * (np.log(2) + log_sigma)
        return np.asarray(total + np.sum(each + constant + (eta - 1) * log_det - volume, axis=-1))

    def draw(
        self, rng: np.random.Generator, size: int = 1, covariance_type: str = "full"
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
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
        """
        kind, alpha = structure(covariance_type), self.resolved_concentration
        K, D = len(alpha), len(self.resolved_mean)
        weights = rng.dirichlet(alpha, size)
        means = self.resolved_mean + np.asarray(self.mean_scale) * rng.standard_normal((size, K, D))
        terms = self.deviation_terms(kind.name)
        scale = np.asarray(self.deviation_scale, dtype=float)
        if kind.name == "spherical":
            scale = np.sqrt(np.mean(scale**2, keepdims=True))
        shape = (size, 1 if kind.name == "tied" else K, len(terms.floor))
        a = float(self.deviation_shape or 1.0)
        if self.deviation_family == "lognormal":
            standard = np.exp(a * rng.standard_normal(shape))
        elif self.deviation_family == "halfnormal":
            standard = np.abs(rng.standard_normal(shape))
        else:
            standard = rng.gamma(a, size=shape)
            standard = 1 / standard if self.deviation_family == "inversegamma" else standard
        deviations = np.broadcast_to(terms.floor + scale * standard, (*shape[:2], D))
        roots = np.broadcast_to(np.eye(D), (*shape[:2], D, D))
        if kind.name in ("full", "tied"):
            b = self.partial_correlation_shapes
            roots = correlation_roots(2 * rng.beta(b, b, (*shape[:2], len(b))) - 1, D)
        scaled = deviations[..., None] * roots
        matrices = np.broadcast_to(scaled @ np.swapaxes(scaled, -1, -2), (size, K, D, D))
        return weights, means, kind.pack(matrices)

    def __str__(self) -> str:
        scale, shape = short_value(self.deviation_scale), short_value(self.deviation_shape)
        family = {
            "lognormal": f"LogNormal(median {scale}, {shape})",
            "halfnormal": f"HalfNormal({scale})",
            "gamma": f"Gamma(shape {shape}, scale {scale})",
            "inversegamma": f"inverse-Gamma(shape {shape}, scale {scale})",
        }[self.deviation_family]
        floor = f"{short_value(self.deviation_floor)} + " if np.any(np.asarray(self.deviation_floor) > 0) else ""
        return (
            f"weights ~ Dirichlet({short_value(self.weight_concentration)})\n"
            f"means ~ Normal({short_value(self.mean_prior)}, standard deviation {short_value(self.mean_scale)})\n"
            f"standard deviations ~ {floor}{family}\n"
            f"correlations ~ LKJ({short_value(self.eta)})"
        )


def _per_feature(value: Any, D: int, name: str) -> FloatArray:
    array = np.asarray(value, dtype=float)
    if array.ndim == 1 and len(array) != D:
        raise ValueError(f"{name} has {len(array)} values for {D} features")
    return np.broadcast_to(array, (D,)).copy()


def deviations_from_factors(precision_factors: FloatArray) -> FloatArray:
    """Standard deviations (..., D) of precision factors (..., D, D): the lengths of the columns of P⁻¹."""
    inverse = np.linalg.inv(precision_factors)
    return np.sqrt(np.sum(inverse * inverse, axis=-2))


def correlation_roots(partial_correlations: FloatArray, n_features: int) -> FloatArray:
    """Upper triangular roots of correlation matrices, by breaking each row's unit length like a stick.

    Parameters
    ----------
    partial_correlations : ndarray of shape (..., D(D − 1)/2)
        Canonical: ρ_ij of features i > j given all features after i, in the order of ``numpy.tril_indices(D, -1)``.
    n_features : int
        D.

    Returns
    -------
    ndarray of shape (..., D, D)
        U with R = U Uᵀ.

    References
    ----------
    Lewandowski, Kurowicka & Joe (2009), section 2; the order of the features is reversed, so that the precision's factor is lower.
    """
    D = n_features
    U = np.zeros((*partial_correlations.shape[:-1], D, D))
    for i in range(D):
        left = np.ones(partial_correlations.shape[:-1])
        for j in range(D - 1, i, -1):
            rho = partial_correlations[..., j * (j - 1) // 2 + i]
            U[..., i, j] = rho * left
            left = left * np.sqrt((1 - rho) * (1 + rho))
        U[..., i, i] = left
    return U
