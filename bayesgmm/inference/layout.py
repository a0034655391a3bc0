"""What a data set and a resolved prior become for the log posterior: arrays, and the shapes of the free variables.

Both the PyMC model and the compiled density read their inputs from here, so that neither can mean something else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from bayesgmm.core.classes import ClassLayout
from bayesgmm.core.covariance import CovarianceStructure, structure
from bayesgmm.core.hierarchical import HierarchicalPrior, Prior
from bayesgmm.core.parameters import FloatArray, factors_from_covariances
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.core.separation import SeparationPrior

PRIORS = "a ConjugatePrior, HierarchicalPrior or SeparationPrior"


def checked_rows(X: ArrayLike, covariance_type: str, sample_weight: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    """Rows (N, D) and their weights, (N,) or (0,), of a model.

    Raises
    ------
    ValueError
        If the table is not two-dimensional and finite, weights do not match it, or the structure is unknown.
    """
    table = np.ascontiguousarray(X, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.all(np.isfinite(table)):
        raise ValueError(f"X must be a finite table of rows × features, got an array of shape {table.shape}")
    structure(covariance_type)  # an unknown name is refused before any work
    weights = np.empty(0) if sample_weight is None else np.ascontiguousarray(sample_weight, dtype=np.float64)
    if sample_weight is not None and (
        weights.shape != table.shape[:1] or not np.all(np.isfinite(weights)) or np.any(weights < 0)
    ):
        raise ValueError(f"sample_weight must be {len(table)} finite non-negative numbers, one for each row of X")
    return table, weights


@dataclass(frozen=True)
class BartlettLayout:
    """Shapes and dims of the variables behind a covariance structure; all follow from what the structure shares.

    The χ² variables ``bartlett_diagonal`` form a matrix (K or 1) × (D or 1), the Normal ones ``bartlett_offdiagonal`` a matrix
    (K or 1) × (D(D − 1)/2 or 0); an axis of length 1 is left out of the variable's dims. Under a :class:`SeparationPrior`
    ``deviations`` and ``correlation_sticks`` stand in their places.

    Parameters
    ----------
    by_component : bool
        Whether each component has variables of its own.
    by_feature : bool
        Whether each feature has a χ² variable of its own.
    off_diagonal : bool
        Whether features covary.
    """

    by_component: bool
    by_feature: bool
    off_diagonal: bool

    @classmethod
    def of(cls, kind: CovarianceStructure) -> BartlettLayout:
        """Layout of a covariance structure."""
        return cls("component" in kind.free_dims, "feature" in kind.free_dims, "feature_bis" in kind.free_dims)

    def dims(self, last: str | None) -> tuple[str, ...]:
        """Dims of a variable over ``last`` (None: over components alone)."""
        return (("component",) if self.by_component else ()) + ((last,) if last else ())

    def squares_shape(self, n_components: int, n_features: int) -> tuple[int, int]:
        """Shape of the χ² variables as a matrix."""
        return (n_components if self.by_component else 1, n_features if self.by_feature else 1)

    def below_shape(self, n_components: int, n_features: int) -> tuple[int, int]:
        """Shape of the Normal variables as a matrix."""
        pairs = n_features * (n_features - 1) // 2 if self.off_diagonal else 0
        return (n_components if self.by_component else 1, pairs)

    def degrees_of_freedom(self, prior: Prior) -> FloatArray:
        """Degrees of freedom of the χ² variables: ν₀ − j, or those of the inverse-Wishart's marginals; (D,) or (1,)."""
        D = len(prior.resolved_mean)
        if isinstance(prior, SeparationPrior):
            return np.zeros(D if self.by_feature else 1)
        if self.off_diagonal:
            return prior.resolved_degrees_of_freedom - np.arange(D, dtype=float)
        return np.full(D if self.by_feature else 1, prior.marginal_degrees_of_freedom)

    def scale_factor(self, prior: Prior) -> FloatArray:
        """V, lower (D, D), with V Vᵀ the inverse of the part of Λ₀ that the structure uses; L of :meth:`rate_factor` if V is random."""
        if isinstance(prior, SeparationPrior):
            return np.eye(len(prior.resolved_mean))
        if isinstance(prior, HierarchicalPrior):
            return prior.rate_factor("full" if self.off_diagonal else "diag" if self.by_feature else "spherical")
        scale = prior.resolved_scale
        if not self.off_diagonal:
            variances = np.diag(scale)
            scale = np.diag(variances if self.by_feature else np.full(len(scale), variances.mean()))
        return factors_from_covariances(scale)

    def hyper_shapes(self, n_features: int) -> tuple[int, int]:
        """Numbers of χ² and Normal variables behind a random scale."""
        return (n_features if self.by_feature else 1, n_features * (n_features - 1) // 2 if self.off_diagonal else 0)

    def hyper_degrees_of_freedom(self, prior: Prior) -> FloatArray:
        """Degrees of freedom of the χ² variables behind a random scale: 2g₀ − (D − 1) + j, or 2g₀; none for a fixed scale."""
        if not isinstance(prior, HierarchicalPrior):
            return np.empty(0)
        D = len(prior.resolved_mean)
        if self.off_diagonal:
            return prior.hyper_degrees_of_freedom - (D - 1) + np.arange(D, dtype=float)
        return np.full(D if self.by_feature else 1, prior.hyper_degrees_of_freedom)


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """Everything of a data set and a resolved prior that the model's graph reads, as C-contiguous float64 arrays.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    sample_weight : ndarray of shape (N,) or (0,)
        Empty for all ones.
    weight_concentration : ndarray of shape (K,)
    mean_prior : ndarray of shape (D,)
    mean_precision : ndarray of shape ()
        κ₀; 1 where ``mean_factor`` says how precise the means are.
    degrees_of_freedom : ndarray of shape (D,) or (1,)
        Of the χ² variables.
    scale_factor : ndarray of shape (D, D)
        V, lower, with V Vᵀ the inverse of the prior's scale. Under a hierarchical prior V = L T⁻¹ is random and this is L, the Cholesky
        factor of G₀; T is lower, its squared diagonal χ², Normal below it.
    mean_factor : ndarray of shape (D, D) or (0, 0)
        Lower F with μ_k ~ Normal(m₀, (F Fᵀ)⁻¹); empty where the means depend on their covariances.
    hyper_degrees_of_freedom : ndarray of shape (D,), (1,) or (0,)
        Of the χ² variables of T; empty where the scale is fixed.
    rate_factor : ndarray of shape (D, D) or (0, 0)
        L of a random scale that is integrated out; ``scale_factor`` is then a fixed V, which decides upon the coordinates and nothing else.
    classes : ClassLayout, optional
        Of rows some of which have a known class: X is sorted by it.
    deviation_terms : ndarray of shape (6, C) or (0, 0)
        Constant, linear, center, curvature, rate and power of :class:`bayesgmm.core.separation.DeviationTerms`; empty but under that prior.
    deviation_floor : ndarray of shape (D,) or (0,)
    beta_shapes : ndarray of shape (D(D − 1)/2,) or (0,)
        Of the Beta variables (1 + ρ)/2, ρ the partial correlations.
    """

    X: FloatArray
    sample_weight: FloatArray
    weight_concentration: FloatArray
    mean_prior: FloatArray
    mean_precision: FloatArray
    degrees_of_freedom: FloatArray
    scale_factor: FloatArray
    mean_factor: FloatArray
    hyper_degrees_of_freedom: FloatArray
    rate_factor: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    classes: ClassLayout | None = None
    deviation_terms: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    deviation_floor: FloatArray = field(default_factory=lambda: np.empty(0))
    beta_shapes: FloatArray = field(default_factory=lambda: np.empty(0))

    @classmethod
    def resolve(
        cls,
        X: ArrayLike,
        n_components: int,
        covariance_type: str = "full",
        prior: str | Prior = "default",
        sample_weight: ArrayLike | None = None,
    ) -> ModelInputs:
        """Check the arguments and resolve the prior on the data.

        Raises
        ------
        ValueError
            If the table is not two-dimensional and finite, weights do not match it, or an option is unknown.
        TypeError
            If ``prior`` is neither "default" nor a prior of this package.
        """
        table, weights = checked_rows(X, covariance_type, sample_weight)
        if isinstance(prior, str):
            if prior != "default":
                raise ValueError(f'prior must be "default" or {PRIORS}, got {prior!r}')
            prior = ConjugatePrior()
        if not isinstance(prior, Prior):
            raise TypeError(f'prior must be "default" or {PRIORS}, got {type(prior).__name__}')
        resolved = prior.resolve(table, n_components, covariance_type, None if sample_weight is None else weights)
        return cls.from_prior(table, covariance_type, resolved, weights)

    @classmethod
    def from_prior(
        cls, X: FloatArray, covariance_type: str, prior: Prior, sample_weight: FloatArray | None = None
    ) -> ModelInputs:
        """Inputs from clean data and a resolved prior, without checks.

        Parameters
        ----------
        X : ndarray of shape (N, D)
        covariance_type : {"full", "tied", "diag", "spherical"}
        prior : ConjugatePrior or HierarchicalPrior
            Resolved.
        sample_weight : ndarray of shape (N,) or (0,), optional
        """
        layout = BartlettLayout.of(structure(covariance_type))
        arrays = (
            X,
            np.empty(0) if sample_weight is None else sample_weight,
            prior.resolved_concentration,
            prior.resolved_mean,
            prior.mean_precision if isinstance(prior, ConjugatePrior) else 1.0,
            layout.degrees_of_freedom(prior),
            layout.scale_factor(prior),
            np.empty((0, 0)) if isinstance(prior, ConjugatePrior) else prior.mean_factor,
            layout.hyper_degrees_of_freedom(prior),
        )
        # Contiguous and writeable: Numba compiles anew for any other layout. asarray keeps zero dimensions.
        held: list[FloatArray] = [np.require(array, np.float64, ["C", "A", "W"]) for array in arrays]
        inputs = cls(*held)  # type: ignore[arg-type]
        if not isinstance(prior, SeparationPrior):
            return inputs
        terms = prior.deviation_terms(covariance_type)
        values = (terms.constant, terms.linear, terms.center, terms.curvature, terms.rate, terms.power)
        floor = np.broadcast_to(terms.floor, (inputs.n_features,)).copy()
        shapes = prior.partial_correlation_shapes if layout.off_diagonal else np.empty(0)
        return replace(inputs, deviation_terms=np.array(values), deviation_floor=floor, beta_shapes=shapes)

    @property
    def n_components(self) -> int:
        """Number of components K."""
        return len(self.weight_concentration)

    @property
    def groups(self) -> FloatArray:
        """Passes over slices of rows and components (G, 4) as :attr:`ClassLayout.groups`; none where one pass takes all."""
        return np.empty((0, 4)) if self.classes is None else self.classes.groups.astype(float)

    @property
    def given_classes(self) -> tuple[FloatArray, FloatArray]:
        """Where classes have given priors: one past the last component of each (C,), and log ρ_c (C,); else empty."""
        if self.classes is None or self.classes.priors is None:
            return np.empty(0), np.empty(0)
        return np.cumsum(self.classes.components).astype(float), np.log(self.classes.priors)

    @property
    def separated(self) -> bool:
        """Whether standard deviations and correlations are the variables."""
        return self.deviation_terms.size > 0

    @property
    def means_apart(self) -> bool:
        """Whether the means do not depend on their covariances."""
        return self.mean_factor.size > 0

    @property
    def hierarchical(self) -> bool:
        """Whether the prior's scale is random and one of the variables."""
        return len(self.hyper_degrees_of_freedom) > 0 and not self.integrated

    @property
    def integrated(self) -> bool:
        """Whether the prior's scale is random and integrated out."""
        return self.rate_factor.size > 0

    def without_scale(self, scale_factor: FloatArray) -> ModelInputs:
        """Take the same inputs with the random scale integrated out, in the coordinates of a fixed V (D, D)."""
        return replace(self, scale_factor=np.require(scale_factor, np.float64, ["C"]), rate_factor=self.scale_factor)

    def without_rows(self) -> ModelInputs:
        """Take the same prior without data."""
        return replace(self, X=np.empty((0, self.n_features)), sample_weight=np.empty(0))

    def joint_degrees_and_constant(self, n_covariances: int) -> tuple[float, float]:
        """Degrees of freedom h of a random scale given R covariances, and the constant of their density, the scale integrated out.

        The density of the R covariances is that of their Bartlett variables under a fixed V without its exponents, times
        |L Lᵀ + Σ_k P_k P_kᵀ|^(−h/2) and the exponential of this constant.
        """
        hyper, added = self.hyper_degrees_of_freedom, n_covariances * self.degrees_of_freedom[0]
        log_V, log_L = (np.log(np.diagonal(factor))[: len(hyper)] for factor in (self.scale_factor, self.rate_factor))
        terms = (
            gammaln((hyper + added) / 2) - gammaln(hyper / 2) + added * (log_V + 0.5 * np.log(2)) + hyper[-1] * log_L
        )
        return float(hyper[-1] + added), float(terms.sum())

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return self.X.shape[1]
