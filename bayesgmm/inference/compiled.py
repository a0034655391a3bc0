"""A posterior over a flat unconstrained vector: density and gradient, and the way from and to the parameters."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.inference.density import PackedPosterior, log_weights_forward, precision_factors_forward
from bayesgmm.inference.layout import BartlettLayout, ModelInputs

VALUE_NAMES = ("weights_simplex__", "bartlett_diagonal_log__", "bartlett_offdiagonal", "means")
"""PyMC's names of the unconstrained variables, in the order of the flat vector."""


class CompiledPosterior:
    """Log posterior and gradient of one model over a flat unconstrained vector θ of length P.

    Evaluation releases the GIL and may run in several threads at once.

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
    """

    def __init__(self, inputs: ModelInputs, covariance_type: str = "full") -> None:
        self.inputs = inputs
        self.covariance_type = covariance_type
        K, D = inputs.n_components, inputs.n_features
        self._layout = BartlettLayout.of(structure(covariance_type))
        self._shapes = ((K - 1,), self._layout.squares_shape(K, D), self._layout.below_shape(K, D), (K, D))
        stops = np.cumsum([0, *(int(np.prod(shape)) for shape in self._shapes)])
        cuts = [slice(int(a), int(b)) for a, b in zip(stops[:-1], stops[1:], strict=True)]
        self.ndim = int(stops[-1])
        self.slices = dict(zip(VALUE_NAMES, cuts, strict=True))
        self._parts = tuple(zip(cuts, self._shapes, strict=True))
        self._packed = PackedPosterior(inputs, self._layout)

    @classmethod
    def from_data(
        cls,
        X: ArrayLike,
        n_components: int,
        covariance_type: str = "full",
        prior: str | ConjugatePrior = "default",
        sample_weight: ArrayLike | None = None,
    ) -> CompiledPosterior:
        """Posterior of the model that ``build_model`` builds from the same arguments.

        Raises
        ------
        ValueError
            As ``build_model``.
        """
        return cls(ModelInputs.resolve(X, n_components, covariance_type, prior, sample_weight), covariance_type)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the unconstrained variables that are not empty."""
        return tuple(name for name, part in self.slices.items() if part.stop > part.start)

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
        point = np.asarray(theta, dtype=np.float64)
        if point.shape != (self.ndim,):
            raise ValueError(f"theta must have shape ({self.ndim},), got {point.shape}")
        return self._packed(point)

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
        """
        points = np.ascontiguousarray(theta, dtype=np.float64)
        free, log_squares, below, means = self._matrices(np.atleast_2d(points))
        K, D = self.inputs.n_components, self.inputs.n_features
        squares = np.exp(log_squares)
        factors = np.empty((len(free), K, D, D))
        weights = np.empty((len(free), K))
        for s in range(len(free)):
            weights[s] = log_weights_forward(np.ascontiguousarray(free[s]))
            factors[s] = precision_factors_forward(
                self.inputs.scale_factor, squares[s], np.ascontiguousarray(below[s]), K
            )
        np.exp(weights, out=weights)
        result = {"weights": weights, "means": means.copy(), "precision_factors": factors}
        return result if points.ndim == 2 else {name: value[0] for name, value in result.items()}

    def unconstrain(self, weights: ArrayLike, means: ArrayLike, precision_factors: ArrayLike) -> FloatArray:
        """The point θ of given parameters: the inverse of :meth:`constrain`.

        Parameters
        ----------
        weights : array-like of shape (K,)
            Positive.
        means : array-like of shape (K, D)
        precision_factors : array-like of shape (K, D, D)
            Lower, with positive diagonals, of the posterior's covariance structure.

        Returns
        -------
        ndarray of shape (P,)

        Raises
        ------
        ValueError
            If a weight or a diagonal element of a factor is not positive.
        """
        pi = np.asarray(weights, dtype=np.float64)
        factors = np.asarray(precision_factors, dtype=np.float64)
        diagonals = np.diagonal(factors, axis1=-2, axis2=-1)
        if not (np.all(pi > 0) and np.all(diagonals > 0)):
            raise ValueError("weights and the diagonals of precision_factors must be positive")
        log_weights = np.log(pi)
        R, C = self._shapes[1]
        A = np.linalg.solve(self.inputs.scale_factor, factors[:R])
        roots = np.diagonal(A, axis1=-2, axis2=-1)[:, :C]
        rows, columns = np.tril_indices(self.inputs.n_features if self._layout.off_diagonal else 0, -1)
        values = (
            (log_weights - log_weights.mean())[:-1],
            2.0 * np.log(roots),
            A[:, rows, columns],
            np.asarray(means, dtype=np.float64),
        )
        return np.concatenate([np.ravel(value) for value in values])

    def log_jacobian(self, theta: ArrayLike) -> float | FloatArray:
        """Log volume of (π_1 … π_K−1, μ, Σ) per volume of θ; Σ counts by its lower triangle, diagonal or variance.

        The log posterior less this is the log density in (π, μ, Σ), whose mode is EM's maximum a posteriori.

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
        free, log_squares, _, _ = self._matrices(np.atleast_2d(points))
        D = self.inputs.n_features
        K = self.inputs.n_components
        full = np.concatenate([free, -free.sum(axis=1, keepdims=True)], axis=1)
        high = full.max(axis=1, keepdims=True)
        total = np.log(K) - K * (high[:, 0] + np.log(np.exp(full - high).sum(axis=1)))
        R, C = self._shapes[1]
        log_V = np.log(np.diag(self.inputs.scale_factor))
        if self._layout.off_diagonal:
            # log c → A: Π A_ii / 2; A → P = V A: Π V_ii^i; P → P Pᵀ: 2^D Π P_ii^(D − i + 1); inverse: |P Pᵀ|^−(D + 1).
            i = np.arange(1, D + 1)
            log_P = log_V + 0.5 * log_squares
            total = total + np.sum(0.5 * log_squares + i * log_V + (D + 1 - i) * log_P, axis=(1, 2))
            total = total - 2.0 * (D + 1) * np.sum(log_P, axis=(1, 2))
        else:
            total = total - np.sum(2.0 * log_V[:C] + log_squares, axis=(1, 2))
        return total if points.ndim == 2 else float(total[0])
