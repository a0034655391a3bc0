"""A posterior over a flat unconstrained vector: density and gradient, and the way from and to the parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from bayesgmm.core.classes import ClassLayout
from bayesgmm.core.covariance import structure
from bayesgmm.core.hierarchical import Prior
from bayesgmm.core.parameters import FloatArray
from bayesgmm.inference.density import (
    PackedPosterior,
    log_weights_forward,
    precision_factors_forward,
    scale_factor_forward,
    separated_factors_forward,
)
from bayesgmm.inference.layout import BartlettLayout, ModelInputs

VALUE_NAMES = ("weights_simplex__", "bartlett_diagonal_log__", "bartlett_offdiagonal", "means")
"""PyMC's names of the unconstrained variables, in the order of the flat vector."""

SEPARATED_NAMES = ("weights_simplex__", "deviations_log__", "correlation_sticks_logodds__", "means")
"""The same where standard deviations and correlations have priors of their own."""

HYPER_NAMES = ("scale_diagonal_log__", "scale_offdiagonal")
"""Those of a random scale, after the others."""


class MixturePosterior(ABC):
    """Log posterior and gradient of one model over a flat unconstrained vector θ of length P, and what θ stands for.

    Parameters
    ----------
    inputs : ModelInputs
        Data and resolved prior.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"

    Attributes
    ----------
    ndim : int
        P.
    slices : dict of str to slice
        Where each unconstrained variable of the PyMC model lies in θ, by its name there; row-major.
    diagonal, below : slice
        Those of what stands on the diagonal of the covariances' coordinates, and beneath it.
    """

    def __init__(self, inputs: ModelInputs, covariance_type: str = "full") -> None:
        self.inputs = inputs
        self.covariance_type = covariance_type
        K, D = inputs.n_components, inputs.n_features
        self._layout = BartlettLayout.of(structure(covariance_type))
        names: tuple[str, ...] = SEPARATED_NAMES if inputs.separated else VALUE_NAMES
        self._shapes: tuple[tuple[int, ...], ...] = (
            (K - 1,),
            self._layout.squares_shape(K, D),
            self._layout.below_shape(K, D),
            (K, D),
        )
        if inputs.hierarchical:
            names = (*VALUE_NAMES, *HYPER_NAMES)
            self._shapes = (*self._shapes, *((size,) for size in self._layout.hyper_shapes(D)))
        stops = np.cumsum([0, *(int(np.prod(shape)) for shape in self._shapes)])
        cuts = [slice(int(a), int(b)) for a, b in zip(stops[:-1], stops[1:], strict=True)]
        self.ndim = int(stops[-1])
        self.slices = dict(zip(names, cuts, strict=True))
        self._parts = tuple(zip(cuts, self._shapes, strict=True))
        self.diagonal, self.below = cuts[1], cuts[2]

    @abstractmethod
    def logp_and_grad(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Log posterior density of θ, as the PyMC model's ``logp()``, and its gradient.

        Parameters
        ----------
        theta : ndarray of shape (P,)

        Returns
        -------
        logp : float
        gradient : ndarray of shape (P,)
        """

    @abstractmethod
    def _with(self, inputs: ModelInputs) -> Self:
        """Take the same data with other inputs of the prior."""

    def without_scale(self, precision_factors: FloatArray) -> Self:
        """Take the posterior with a random scale integrated out; itself, where the scale is fixed.

        The covariances determine themselves, not the scale behind them: given it, their coordinates and its own lie along a curved
        ridge. Without it the coordinates belong to the scale that the given covariances make likely.

        Parameters
        ----------
        precision_factors : ndarray of shape (K, D, D)
            About where the posterior is.

        Returns
        -------
        MixturePosterior
            Its point holds no scale; :meth:`draw_scale` draws it.
        """
        if not self.inputs.hierarchical:
            return self
        V, _ = self._unconstrain_scale(precision_factors[: self._shapes[1][0]], None)
        return self._with(self.inputs.without_scale(V))

    def draw_scale(self, precision_factors: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw the scale that was integrated out, given the covariances.

        Parameters
        ----------
        precision_factors : ndarray of shape (S, K, D, D)
            Of draws of this posterior.
        rng : numpy.random.Generator

        Returns
        -------
        scale_factors : ndarray of shape (S, D, D)
            Lower V with V Vᵀ = (2 C₀)⁻¹.
        log_density : ndarray of shape (S,)
            What its draw adds to the log density: the log posterior of the point with the scale among its variables, less that of the
            point without.

        Notes
        -----
        (V Vᵀ)⁻¹ has a Wishart distribution with h degrees of freedom and scale (M Mᵀ)⁻¹, M Mᵀ = L Lᵀ + Σ_k P_k P_kᵀ, so that V = M S⁻¹
        with S lower and made of χ² and Normal variables, as V = L T⁻¹ is before there are covariances.
        """
        L, R = self.inputs.rate_factor, self._shapes[1][0]
        distinct = precision_factors[:, :R]
        M = np.linalg.cholesky(L @ L.T + np.sum(distinct @ np.swapaxes(distinct, -1, -2), axis=1))
        degrees = self.inputs.hyper_degrees_of_freedom + R * self.inputs.degrees_of_freedom[0]
        n_draws, D = len(M), len(L)
        squares = rng.chisquare(degrees, (n_draws, len(degrees)))
        below = rng.standard_normal((n_draws, self._layout.hyper_shapes(D)[1]))
        V = np.array([scale_factor_forward(*each) for each in zip(M, squares, below, strict=True)])
        half = 0.5 * degrees
        change = np.sum(half * np.log(squares / 2) - 0.5 * squares - gammaln(half), axis=1)
        change -= 0.5 * np.sum(below**2 + np.log(2 * np.pi), axis=1)
        if below.size:
            # A = V⁻¹ V₀ A' and T = S M⁻¹ L, where the elements below the diagonal are multiplied by the diagonals of what is fixed.
            of_V, of_M = (np.log(np.diagonal(factor, axis1=1, axis2=2)) for factor in (V, M))
            index = np.arange(D)
            change -= R * (np.log(np.diagonal(self.inputs.scale_factor)) - of_V) @ index
            change -= (np.log(np.diagonal(L)) - of_M) @ index[::-1]
        return V, change

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the unconstrained variables that are not empty."""
        return tuple(name for name, part in self.slices.items() if part.stop > part.start)

    def _point(self, theta: FloatArray) -> FloatArray:
        point = np.asarray(theta, dtype=np.float64)
        if point.shape != (self.ndim,):
            raise ValueError(f"theta must have shape ({self.ndim},), got {point.shape}")
        return point

    def _matrices(self, theta: FloatArray) -> tuple[FloatArray, ...]:
        return tuple(theta[..., part].reshape(*theta.shape[:-1], *shape) for part, shape in self._parts)

    def constrain(self, theta: ArrayLike) -> dict[str, FloatArray]:
        """Parameters of one point or of a batch.

        Parameters
        ----------
        theta : array-like of shape (P,) or (S, P)

        Returns
        -------
        dict
            ``weights`` (K,), ``means`` (K, D), ``precision_factors`` (K, D, D), each with a leading axis S for a batch.
            Under a hierarchical prior also ``scale_factor`` (D, D), lower, V Vᵀ = (2 C₀)⁻¹. Where classes have given priors the weights
            are those of the likelihood, which sum to them; what the point's own sum to is lost.
        """
        points = np.ascontiguousarray(theta, dtype=np.float64)
        free, log_squares, below, means, *hyper = self._matrices(np.atleast_2d(points))
        K, D = self.inputs.n_components, self.inputs.n_features
        squares = np.exp(log_squares)
        factors = np.empty((len(free), K, D, D))
        weights = np.empty((len(free), K))
        scale = self._scale_factors(hyper, len(free))
        for s in range(len(free)):
            weights[s] = log_weights_forward(np.ascontiguousarray(free[s]))
            if self.inputs.separated:
                diagonal, logits = np.ascontiguousarray(log_squares[s]), np.ascontiguousarray(below[s])
                factors[s] = separated_factors_forward(diagonal, self.inputs.deviation_floor, logits, K)
            else:
                factors[s] = precision_factors_forward(scale[s], squares[s], np.ascontiguousarray(below[s]), K)
        np.exp(weights, out=weights)
        if self.inputs.classes is not None:
            weights = self.inputs.classes.scaled(weights)
        result = {"weights": weights, "means": means.copy(), "precision_factors": factors}
        if hyper:
            result["scale_factor"] = scale
        return result if points.ndim == 2 else {name: value[0] for name, value in result.items()}

    def _scale_factors(self, hyper: Sequence[FloatArray], size: int) -> FloatArray:
        """V of every point (size, D, D)."""
        L = self.inputs.scale_factor
        if not hyper:
            return np.broadcast_to(L, (size, *L.shape))
        squares, below = np.exp(hyper[0]), np.ascontiguousarray(hyper[1])
        return np.array([scale_factor_forward(L, squares[s], below[s]) for s in range(size)])

    def unconstrain(
        self,
        weights: ArrayLike,
        means: ArrayLike,
        precision_factors: ArrayLike,
        scale_factor: ArrayLike | None = None,
    ) -> FloatArray:
        """The point θ of given parameters, or the points of a batch: the inverse of :meth:`constrain`.

        Parameters
        ----------
        weights : array-like of shape (K,) or (S, K)
            Positive.
        means : array-like of shape (K, D) or (S, K, D)
        precision_factors : array-like of shape (K, D, D) or (S, K, D, D)
            Lower, with positive diagonals, of the posterior's covariance structure.
        scale_factor : array-like of shape (D, D) or (S, D, D), optional
            Lower V with V Vᵀ = (2 C₀)⁻¹, for a hierarchical prior alone. Default: where C₀ is its mean given the covariances.

        Returns
        -------
        ndarray of shape (P,) or (S, P)

        Raises
        ------
        ValueError
            If a weight or a diagonal element of a factor is not positive, or a scale is given where it is fixed.
        """
        pi = np.asarray(weights, dtype=np.float64)
        factors = np.asarray(precision_factors, dtype=np.float64)
        diagonals = np.diagonal(factors, axis1=-2, axis2=-1)
        if not (np.all(pi > 0) and np.all(diagonals > 0)):
            raise ValueError("weights and the diagonals of precision_factors must be positive")
        log_weights = np.log(pi)
        R, C = self._shapes[1]
        V, hyper = self.inputs.scale_factor, tuple[FloatArray, ...]()
        if self.inputs.hierarchical:
            V, hyper = self._unconstrain_scale(factors[..., :R, :, :], scale_factor)
        elif scale_factor is not None:
            raise ValueError("scale_factor is given, but the prior's scale is fixed")
        rows, columns = np.tril_indices(self.inputs.n_features if self._layout.off_diagonal else 0, -1)
        if self.inputs.separated:
            diagonal, below = self._separate(factors[..., :R, :, :], rows, columns)
        else:
            A = np.linalg.solve(V[..., None, :, :], factors[..., :R, :, :])
            diagonal, below = 2.0 * np.log(np.diagonal(A, axis1=-2, axis2=-1)[..., :C]), A[..., rows, columns]
        values = (
            (log_weights - log_weights.mean(axis=-1, keepdims=True))[..., :-1],
            diagonal,
            below,
            np.asarray(means, dtype=np.float64),
            *hyper,
        )
        return np.concatenate([value.reshape(*pi.shape[:-1], -1) for value in values], axis=-1)

    def _separate(self, factors: FloatArray, rows: np.ndarray, columns: np.ndarray) -> tuple[FloatArray, FloatArray]:
        """Unconstrained deviations and partial correlations of precision factors.

        A deviation at or beneath its floor is put a hundredth of the floor above it: starts may lie there, the posterior does not.
        """
        roots = np.swapaxes(np.linalg.inv(factors), -1, -2)
        deviations = np.sqrt(np.sum(roots * roots, axis=-1))
        C, floor = self._shapes[1][1], self.inputs.deviation_floor
        excess = np.maximum(deviations[..., :C] - floor[:C], 0.01 * floor[:C])
        # sinh(y/2) = ρ / √(1 − ρ²): an element of the row over what is left to its left, added up from the small end.
        left = np.sqrt(np.cumsum(roots * roots, axis=-1))
        return np.log(excess), 2 * np.arcsinh(roots[..., columns, rows] / left[..., columns, rows - 1])

    def _unconstrain_scale(
        self, factors: FloatArray, scale_factor: ArrayLike | None
    ) -> tuple[FloatArray, tuple[FloatArray, ...]]:
        """V, and the unconstrained variables behind it."""
        L, hyper = self.inputs.scale_factor, self.inputs.hyper_degrees_of_freedom
        if scale_factor is None:
            # C₀ given the Σ_k is W(g₀ + R c₀, G₀ + Σ_k Σ_k⁻¹); in the degrees of freedom of the diagonal structures alike.
            freedom = hyper[-1] + factors.shape[-3] * self.inputs.degrees_of_freedom[0]
            V = np.linalg.cholesky((L @ L.T + np.sum(factors @ np.swapaxes(factors, -1, -2), axis=-3)) / freedom)
        else:
            V = np.asarray(scale_factor, dtype=np.float64)
            if not np.all(np.diagonal(V, axis1=-2, axis2=-1) > 0):
                raise ValueError("the diagonal of scale_factor must be positive")
        T = np.linalg.solve(V, L)
        rows, columns = np.tril_indices(len(L) if self._layout.off_diagonal else 0, -1)
        roots = np.diagonal(T, axis1=-2, axis2=-1)[..., : len(hyper)]
        return V, (2.0 * np.log(roots), T[..., rows, columns])

    def log_jacobian(self, theta: ArrayLike) -> float | FloatArray:
        """Log volume of (π_1 … π_K−1, μ, Σ) per volume of θ; Σ counts by its lower triangle, diagonal or variance.

        The log posterior less this is the log density in (π, μ, Σ), whose mode is EM's maximum a posteriori. Under a hierarchical prior
        C₀ is one more coordinate, and counts as Σ does.

        Parameters
        ----------
        theta : array-like of shape (P,) or (S, P)

        Returns
        -------
        float or ndarray of shape (S,)

        References
        ----------
        Muirhead (1982), Aspects of Multivariate Statistical Theory, section 2.1 (the Jacobians of P Pᵀ and of the inverse).
        """
        points = np.asarray(theta, dtype=np.float64)
        free, log_squares, below, _, *hyper = self._matrices(np.atleast_2d(points))
        D = self.inputs.n_features
        K = self.inputs.n_components
        full = np.concatenate([free, -free.sum(axis=1, keepdims=True)], axis=1)
        high = full.max(axis=1, keepdims=True)
        total = np.log(K) - K * (high[:, 0] + np.log(np.exp(full - high).sum(axis=1)))
        if self.inputs.separated:
            total = total + self._log_volume_of_separation(log_squares, below)
            return total if points.ndim == 2 else float(total[0])
        R, C = self._shapes[1]
        log_V = np.log(np.diag(self.inputs.scale_factor))
        if hyper:
            log_L, log_T = log_V[: hyper[0].shape[1]], 0.5 * hyper[0]
            if self._layout.off_diagonal:
                # log squares → T: Π T_ii / 2; T → M = L⁻ᵀ Tᵀ: Π L_ii^−(D − i + 1); M → M Mᵀ / 2 = C₀: 2^(D − D(D + 1)/2) Π M_ii^i.
                i = np.arange(1, D + 1)
                total = total + np.sum((i + 1) * log_T - (D + 1) * log_L, axis=1) - 0.5 * D * (D + 1) * np.log(2)
            else:
                total = total + np.sum(2 * (log_T - log_L) - np.log(2), axis=1)
            log_V = (log_V - (log_T if log_T.shape[1] == D else np.repeat(log_T, D, axis=1)))[:, None, :]
        if self._layout.off_diagonal:
            # log c → A: Π A_ii / 2; A → P = V A: Π V_ii^i; P → P Pᵀ: 2^D Π P_ii^(D − i + 1); inverse: |P Pᵀ|^−(D + 1).
            i = np.arange(1, D + 1)
            log_P = log_V + 0.5 * log_squares
            total = total + np.sum(0.5 * log_squares + i * log_V + (D + 1 - i) * log_P, axis=(1, 2))
            total = total - 2.0 * (D + 1) * np.sum(log_P, axis=(1, 2))
        else:
            total = total - np.sum(2.0 * log_V[..., :C] + log_squares, axis=(1, 2))
        return total if points.ndim == 2 else float(total[0])

    def _log_volume_of_separation(self, log_excess: FloatArray, logits: FloatArray) -> FloatArray:
        """Log volume of Σ per volume of the unconstrained deviations and partial correlations."""
        D, C = self.inputs.n_features, self._shapes[1][1]
        log_sigma = np.log(self.inputs.deviation_floor[:C] + np.exp(log_excess))
        total = np.sum(log_excess, axis=(1, 2))
        if not self._layout.off_diagonal:
            return total + np.sum(np.log(2) + log_sigma, axis=(1, 2))
        # ∂Σ/∂(σ, R) = 2^D Π σ^D; ∂R/∂ρ = Π (1 − ρ_ij²)^((i − 1)/2); ∂ρ/∂y = (1 − ρ²)/2, log(1 − ρ²) = −2 log cosh(y/2).
        rows = np.tril_indices(D, -1)[0]
        log_rest = -2 * (np.logaddexp(logits / 2, -logits / 2) - np.log(2))
        total = total + np.sum(np.log(2) + D * log_sigma, axis=(1, 2))
        return total + np.sum((rows + 1) / 2 * log_rest - np.log(2), axis=(1, 2))


class CompiledPosterior(MixturePosterior):
    """The posterior of rows in memory, by one call of a C function.

    Evaluation releases the GIL and may run in several threads at once.

    Parameters
    ----------
    inputs : ModelInputs
        Data and resolved prior.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
    """

    def __init__(self, inputs: ModelInputs, covariance_type: str = "full") -> None:
        super().__init__(inputs, covariance_type)
        self._packed = PackedPosterior(inputs, self._layout)

    @classmethod
    def from_data(
        cls,
        X: ArrayLike,
        n_components: int,
        covariance_type: str = "full",
        prior: str | Prior = "default",
        sample_weight: ArrayLike | None = None,
        classes: ClassLayout | None = None,
    ) -> CompiledPosterior:
        """Posterior of the model that ``build_model`` builds from the same arguments.

        With ``classes`` X is sorted by them, and a row of known class belongs to its components alone (:mod:`bayesgmm.core.classes`).

        Raises
        ------
        ValueError
            As ``build_model``.
        """
        inputs = ModelInputs.resolve(X, n_components, covariance_type, prior, sample_weight)
        return cls(replace(inputs, classes=classes), covariance_type)

    def _with(self, inputs: ModelInputs) -> Self:
        return type(self)(inputs, self.covariance_type)

    def whitened(self, center: FloatArray, factor: FloatArray) -> PackedPosterior:
        """Take the same density over y with θ = center + factor y, as the sampler's C functions read it.

        Parameters
        ----------
        center : ndarray of shape (P,)
        factor : ndarray of shape (P, P)
            Lower triangular.

        Returns
        -------
        PackedPosterior
        """
        return PackedPosterior(self.inputs, self._layout, center, factor)

    def logp_and_grad(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Log posterior density of θ, as the PyMC model's ``logp()``, and its gradient.

        Parameters
        ----------
        theta : ndarray of shape (P,)

        Returns
        -------
        logp : float
        gradient : ndarray of shape (P,)
        """
        return self._packed(self._point(theta))
