"""The posterior of rows that need not stand in memory: their sums come from blocks, all else from the compiled density.

A point costs one pass over the rows, and so does what the passes would otherwise be many for: the curvature at a point, and
the densities of all draws. The prior, the transforms and the chain rule are those of :mod:`bayesgmm.inference.density`, which takes
the sums of a pass in place of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np

from bayesgmm.core.blocks import Accumulate, LogLikelihoods, RowBlocks, Task
from bayesgmm.core.covariance import structure
from bayesgmm.core.hierarchical import Prior
from bayesgmm.core.information import ScoreCoordinates, ScoreMoments
from bayesgmm.core.parameters import FloatArray, MixtureParameters, SufficientStatistics
from bayesgmm.inference.compiled import MixturePosterior
from bayesgmm.inference.density import PackedPosterior, pack_statistics, separated_root
from bayesgmm.inference.laplace import hessian
from bayesgmm.inference.layout import ModelInputs


class TableRows:
    """A table in memory as one block of rows.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    sample_weight : ndarray of shape (N,) or None
    """

    def __init__(self, X: FloatArray, sample_weight: FloatArray | None = None) -> None:
        self.X, self.sample_weight = X, sample_weight
        self.n_features = int(X.shape[1])

    def total(self, task: Task) -> Any:
        """What the task says of all rows."""
        return task(self.X, self.sample_weight, 0)


class SummedPosterior(MixturePosterior):
    """Log posterior and gradient from sums over blocks of rows: as :class:`CompiledPosterior`, to rounding.

    Parameters
    ----------
    rows : RowBlocks
    inputs : ModelInputs
        Of a resolved prior; its own table is empty.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"

    Attributes
    ----------
    n_passes : int
        Passes over the rows so far.
    """

    def __init__(self, rows: RowBlocks, inputs: ModelInputs, covariance_type: str = "full") -> None:
        super().__init__(inputs, covariance_type)
        self.rows = rows
        self.n_passes = 0
        self._packed = PackedPosterior(inputs, self._layout, summed=True)

    @classmethod
    def from_prior(cls, rows: RowBlocks, covariance_type: str, prior: Prior) -> Self:
        """Posterior of rows under a resolved prior."""
        nothing = np.empty((0, rows.n_features))
        return cls(rows, ModelInputs.from_prior(nothing, covariance_type, prior), covariance_type)

    def _with(self, inputs: ModelInputs) -> Self:
        return type(self)(self.rows, inputs, self.covariance_type)

    def _parameters(self, theta: FloatArray) -> MixtureParameters:
        at = self.constrain(theta)
        return MixtureParameters(at["weights"], at["means"], at["precision_factors"])

    def logp_and_grad(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Log posterior density of θ and its gradient, from one pass over the rows.

        Parameters
        ----------
        theta : ndarray of shape (P,)

        Returns
        -------
        logp : float
        gradient : ndarray of shape (P,)
        """
        point = self._point(theta)
        self.n_passes += 1
        return self._packed(point, pack_statistics(self.rows.total(Accumulate(self._parameters(point)))))

    def log_densities(self, points: FloatArray) -> FloatArray:
        """Log posterior densities of many points, from one pass over the rows.

        Parameters
        ----------
        points : ndarray of shape (S, P)

        Returns
        -------
        ndarray of shape (S,)
        """
        at = self.constrain(points)
        sets = list(map(MixtureParameters, at["weights"], at["means"], at["precision_factors"]))
        self.n_passes += 1
        nothing = np.zeros(len(pack_statistics(_none(*at["means"].shape[1:]))))
        priors = np.array([self._packed(point, nothing)[0] for point in points])
        return np.asarray(self.rows.total(LogLikelihoods(sets)) + priors)

    def curvature(self, theta: FloatArray, scale: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """Log posterior density, gradient and negative Hessian in units of ``scale``, from one pass over the rows.

        Parameters
        ----------
        theta : ndarray of shape (P,)
        scale : ndarray of shape (P,)

        Returns
        -------
        logp : float
        gradient : ndarray of shape (P,)
        information : ndarray of shape (P, P)
            −∂² log p / ∂u ∂uᵀ with θ + scale · u.

        Notes
        -----
        The information of the labelled rows and the prior less what the missing labels take away (Louis 1982). The first is
        the curvature of the expected log density of labelled rows, whose sums do not change with θ: its gradient, by the compiled density,
        is differentiated by differences that read no row.
        """
        point = self._point(theta)
        parameters = self._parameters(point)
        coordinates = ScoreCoordinates(structure(self.covariance_type), parameters)
        self.n_passes += 1
        sums = self.rows.total(ScoreMoments(coordinates))
        statistics = sums.statistics(parameters)
        logp, gradient = self._packed(point, pack_statistics(statistics))
        labelled = _Labelled(self, parameters, statistics)
        J = self._jacobian(point, coordinates) * scale
        return logp, gradient, hessian(labelled, point, scale) - J.T @ sums.missing_information(coordinates) @ J

    def _jacobian(self, theta: FloatArray, coordinates: ScoreCoordinates) -> FloatArray:
        """∂(weights, u, E) / ∂θ at a point, where every component is a unit normal."""
        free, log_squares, below, _ = self._matrices(theta)
        parameters, entries = coordinates.parameters, coordinates.free
        K, D = parameters.n_components, parameters.n_features
        J = np.zeros((coordinates.size, self.ndim))
        # log π = (free, −Σ free) − log Σ exp: the softmax of it.
        pi = parameters.weights
        centred = np.vstack([np.eye(K - 1), -np.ones((1, K - 1))])
        movable = coordinates.from_weights.argmax(axis=0)
        J[: K - 1, self.slices["weights_simplex__"]] = (pi[:, None] * (centred - pi @ centred))[movable]
        begin = self.slices["means"].start
        for k in range(K):
            J[coordinates.mean_slots(k), begin + k * D : begin + (k + 1) * D] = parameters.precision_factors[k].T
        changes = self._separated_changes if self.inputs.separated else self._bartlett_changes
        for r in range(len(log_squares)):
            slots = coordinates.covariance_slots(r)
            # dE = −P⁻¹ dP − (P⁻¹ dP)ᵀ.
            for column, change in changes(r, log_squares[r], below, parameters.precision_factors[r]):
                J[slots, column] = -(change + change.T)[entries.rows, entries.cols]
        return J

    def _bartlett_changes(
        self, r: int, log_squares: FloatArray, below: FloatArray, factor: FloatArray
    ) -> Iterator[tuple[int, FloatArray]]:
        """Place in θ and P⁻¹ ∂P of every coordinate of a covariance."""
        C, Q, D = len(log_squares), below.shape[1], len(factor)
        rows, columns = np.tril_indices(D, -1)
        A = np.diag(np.broadcast_to(np.exp(0.5 * log_squares), (D,)))
        if Q:
            A[rows, columns] = below[r]
        inverse = np.linalg.inv(A)
        for c in range(C):
            change = np.zeros((D, D))
            which = slice(c, c + 1) if C > 1 else slice(None)
            change[:, which] = inverse[:, which] * (0.5 * np.diagonal(A)[which])
            if not Q:
                change = np.diag(np.diagonal(change))
            yield self.diagonal.start + r * C + c, change
        for q in range(Q):
            change = np.zeros((D, D))
            change[:, columns[q]] = inverse[:, rows[q]]
            yield self.below.start + r * Q + q, change

    def _separated_changes(
        self, r: int, log_excess: FloatArray, logits: FloatArray, factor: FloatArray
    ) -> Iterator[tuple[int, FloatArray]]:
        """The same of log deviations and partial correlations, P = diag(σ)⁻¹ M⁻¹."""
        C, Q, D = len(log_excess), logits.shape[1], len(factor)
        excess = np.broadcast_to(np.exp(log_excess), (D,))
        sigma = self.inputs.deviation_floor + excess
        inverse, share = np.linalg.inv(factor), excess / sigma
        for c in range(C):
            which = slice(c, c + 1) if C > 1 else slice(None)
            yield self.diagonal.start + r * C + c, -(inverse[:, which] * share[which]) @ factor[which]
        if not Q:
            return
        M, W = separated_root(np.ascontiguousarray(logits[r]), D), sigma[:, None] * factor
        for q, (j, i) in enumerate(zip(*np.tril_indices(D, -1), strict=True)):
            rho = np.tanh(0.5 * logits[r, q])
            column = np.zeros(D)
            column[i:j] = -0.5 * rho * M[i:j, i]
            # ρ left ↦ ½ (1 − ρ²) left, where left² is what M has from row i to j.
            column[j] = 0.5 * (1 - rho) * (1 + rho) * np.sqrt(np.sum(M[i : j + 1, i] ** 2))
            yield self.below.start + r * Q + q, -np.outer(column, W[i])


class _Labelled:
    """Log density of rows whose labels are known in the shares that given responsibilities say, up to a constant."""

    def __init__(
        self, posterior: SummedPosterior, parameters: MixtureParameters, statistics: SufficientStatistics
    ) -> None:
        self.ndim = posterior.ndim
        self._posterior, self._parameters, self._statistics = posterior, parameters, statistics

    def logp_and_grad(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Log density without a constant, and its gradient."""
        sums = self._statistics
        moved = self._posterior.constrain(theta)["means"] - self._parameters.means
        outer = partial(np.einsum, "ki,kj->kij")
        second = sums.second - outer(sums.first, moved) - outer(moved, sums.first)
        there = replace(
            sums,
            first=sums.first - sums.counts[:, None] * moved,
            second=second + sums.counts[:, None, None] * outer(moved, moved),
        )
        return self._posterior._packed(theta, pack_statistics(there))


def _none(n_components: int, n_features: int) -> SufficientStatistics:
    """The sums over no rows."""
    K, D = n_components, n_features
    return SufficientStatistics(0.0, 0.0, np.zeros(K), np.zeros((K, D)), np.zeros((K, D, D)))
