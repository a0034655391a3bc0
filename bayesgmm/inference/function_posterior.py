"""The posterior under a prior of the user's own: their PyMC model compiled over a flat vector, and starts in coordinates nobody knows.

EM's modes are weights, means and covariances; the free variables behind them are the user's, and cannot be had by solving. So the
M-step is taken in their coordinates: with the responsibilities of a mode held fixed, the log prior plus the expected log-likelihood of
the labelled data,

    Q(θ) = Σ_k N_k log π_k + Σ_k [N_k log det P_k − ½ tr(P_kᵀ M_k P_k)],   M_k = W_k + N_k (x̄_k − μ_k)(x̄_k − μ_k)ᵀ,

is climbed by a quasi-Newton method. It has no more modes than the prior makes. Which component of the mode is whose in a prior that
tells them apart is settled by assignment, before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from bayesgmm.core.covariance import CovarianceStructure
from bayesgmm.core.function_prior import FunctionPrior
from bayesgmm.core.parameters import FloatArray, SufficientStatistics, covariances_from_factors
from bayesgmm.exceptions import PriorFunctionError, SamplingError
from bayesgmm.inference.laplace import polish
from bayesgmm.inference.model import model_from_variables
from bayesgmm.inference.relabel import relabel

OURS = ("weights", "means", "covariances")
"""Names of the relabelled draws in the posterior: variables of the user's with these names stand there as they are here."""

MODE = "NUMBA"
"""How PyTensor evaluates the posterior: compiled, which takes half a minute the first time, and is kept on disk."""

MAX_ASSIGNMENTS = 5
LEAST_SPREAD = 1e-6
"""Share of the spread within all components that each has at least in the M-step."""


class FunctionPosterior:
    """Log posterior and gradient of a model with the user's prior over a flat unconstrained vector θ.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    n_components : int
    kind : CovarianceStructure
    prior : FunctionPrior
    sample_weight : ndarray of shape (N,) or None
    names : sequence of str
        Feature names.

    Attributes
    ----------
    ndim : int
        Length of θ.
    model : pymc.Model

    Raises
    ------
    PriorFunctionError
        If the model has discrete variables or none, or has no finite density where PyMC would start.
    """

    def __init__(
        self,
        X: FloatArray,
        n_components: int,
        kind: CovarianceStructure,
        prior: FunctionPrior,
        sample_weight: FloatArray | None,
        names: Sequence[str],
    ) -> None:
        v = np.empty(0) if sample_weight is None else sample_weight
        self.model, mixture = model_from_variables(X, n_components, kind.name, prior.called, v, names)
        model, K, D = self.model, n_components, X.shape[1]
        discrete = [variable.name for variable in model.discrete_value_vars]
        if discrete or not model.continuous_value_vars:
            what = f"discrete variables ({', '.join(map(str, discrete))}): sum them out" if discrete else "no variables"
            raise PriorFunctionError(f"the prior {prior.name} makes {what}; NUTS and Laplace need continuous ones")
        values = list(model.value_vars)
        start = model.initial_point()
        self._shapes = [np.shape(start[value.name]) for value in values]
        self._stops = np.cumsum([int(np.prod(shape)) for shape in self._shapes])
        self.ndim = int(self._stops[-1])
        self._begin = np.concatenate([np.ravel(start[value.name]) for value in values]).astype(float)

        own = [variable for variable in (*model.free_RVs, *model.deterministics) if variable.name not in OURS]
        self.own_dims = {str(variable.name): self._dims_of(variable) for variable in own}
        reserved = {"component", "feature", "feature_bis", "obs_id"}
        self.own_coords = {
            dim: values for dim, values in model.coords.items() if values is not None and dim not in reserved
        }
        weights, means, factors, *others = model.replace_rvs_by_values([*mixture, *own])
        parts = (*model.free_RVs, *model.potentials)
        log_prior, log_likelihood = model.logp(vars=list(parts)), model.logp(vars=model.observed_RVs)
        self._counts, self._targets, self._scatter = (
            pytensor.shared(np.zeros(shape), shape=(None,) * len(shape)) for shape in ((K,), (K, D), (K, D, D))
        )
        self._labelled = pytensor.shared(0.0)
        deviation = self._targets - means
        moments = self._scatter + self._counts[:, None, None] * deviation[:, :, None] * deviation[:, None, :]
        log_det = pt.sum(pt.log(pt.diagonal(factors, axis1=-2, axis2=-1)), axis=-1)
        expected = pt.sum(self._counts * (pt.log(weights) + log_det)) - 0.5 * pt.sum((moments @ factors) * factors)
        total = log_prior + (1 - self._labelled) * log_likelihood + self._labelled * expected
        slope = pt.concatenate([pt.flatten(part) for part in pytensor.grad(total, values)])
        stated = model.logp(vars=list(parts), jacobian=False)
        # One function: compiling takes longer than anything else here, and another output is next to nothing.
        self._evaluate = pytensor.function(
            values, [total, slope, stated, weights, means, factors, *others], mode=MODE, on_unused_input="ignore"
        )
        self._evaluate.trust_input = True
        if not np.isfinite(self.logp_and_grad(self._begin)[0]):
            raise PriorFunctionError(
                f"the posterior under the prior {prior.name} is not finite where PyMC would start ({start}): give a variable of it "
                "another initval, or look at its bounds"
            )

    def _dims_of(self, variable: Any) -> tuple[str, ...] | None:
        dims = self.model.named_vars_to_dims.get(variable.name)
        return None if dims is None or None in dims else tuple(map(str, dims))

    def _at(self, theta: FloatArray) -> list[Any]:
        parts = np.split(np.asarray(theta, dtype=float), self._stops[:-1])
        found = self._evaluate(*(part.reshape(shape).copy() for part, shape in zip(parts, self._shapes, strict=True)))
        return list(found)

    def logp_and_grad(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Log posterior density of θ and its gradient.

        Parameters
        ----------
        theta : ndarray of shape (P,)

        Returns
        -------
        logp : float
        gradient : ndarray of shape (P,)
        """
        value, slope, *_ = self._at(theta)
        if not np.isfinite(value) or not np.all(np.isfinite(slope)):
            return -np.inf, np.zeros(self.ndim)
        return float(value), np.asarray(slope)

    def constrain(self, theta: FloatArray) -> dict[str, FloatArray]:
        """Weights, means and precision factors at points (S, P) or at one (P,)."""
        points = np.atleast_2d(theta)
        found = [self._at(point)[3:6] for point in points]
        names = ("weights", "means", "precision_factors")
        arrays = {name: np.array(part) for name, part in zip(names, zip(*found, strict=True), strict=True)}
        return arrays if theta.ndim > 1 else {name: value[0] for name, value in arrays.items()}

    def log_prior(self, theta: FloatArray) -> FloatArray:
        """Log prior density (S,) at points (S, P), in the coordinates of the user's own variables."""
        return np.array([float(self._at(point)[2]) for point in theta])

    def own_variables(self, theta: FloatArray) -> dict[str, FloatArray]:
        """The user's variables, free and deterministic, at points (S, P): arrays (S, ...)."""
        found = [self._at(point)[6:] for point in theta]
        return {name: np.array(part) for name, part in zip(self.own_dims, zip(*found, strict=True), strict=True)}

    def m_step(self, statistics: SufficientStatistics, means: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The point that the M-step leads to, and rough posterior standard deviations there.

        Parameters
        ----------
        statistics : SufficientStatistics
            Sums at a mode of EM.
        means : ndarray of shape (K, D)
            That the sums are about.

        Returns
        -------
        theta, scales : ndarray of shape (P,)

        Raises
        ------
        SamplingError
            If the prior has no density there.
        """
        counts = np.maximum(statistics.counts, 1e-6)
        shift = statistics.first / counts[:, None]
        targets, scatter = means + shift, _scatter_of(statistics, shift)
        # A component without rows has a spread too.
        spread = scatter / counts[:, None, None] + LEAST_SPREAD * scatter.sum(axis=0) / counts.sum()
        scatter = spread * counts[:, None, None]
        theta, order = self._begin, None
        self._labelled.set_value(1.0)
        try:
            for _ in range(MAX_ASSIGNMENTS):
                here = self.constrain(theta)
                reference = (here["weights"], here["means"], covariances_from_factors(here["precision_factors"]))
                fractions = counts / counts.sum()
                best = relabel(fractions[None], targets[None], spread[None], reference, covariance_type="full")[0]
                if order is not None and np.array_equal(best, order):
                    break
                order = best
                self._counts.set_value(counts[order])
                self._targets.set_value(targets[order])
                self._scatter.set_value(scatter[order])
                theta = polish(self, theta, np.ones(self.ndim))
                scales = self._scales(theta)
                theta = polish(self, theta, scales)
            scales = self._scales(theta)
        finally:
            self._labelled.set_value(0.0)
        if not np.isfinite(self.logp_and_grad(theta)[0]):
            raise SamplingError("the prior has no density near EM's mode: it and the data have no values in common")
        return theta, scales

    def _scales(self, theta: FloatArray) -> FloatArray:
        """1/√curvature along each coordinate."""
        scales = np.empty(self.ndim)
        for i in range(self.ndim):
            step = np.zeros(self.ndim)
            step[i] = 1e-4 * max(1.0, abs(theta[i]))
            slopes = [self.logp_and_grad(theta + sign * step)[1][i] for sign in (1, -1)]
            curvature = (slopes[1] - slopes[0]) / (2 * step[i])
            scales[i] = curvature**-0.5 if np.isfinite(curvature) and curvature > 1e-12 else 1.0
        return scales


def _scatter_of(statistics: SufficientStatistics, shift: FloatArray) -> FloatArray:
    """Scatter matrices (K, D, D) about the components' own means: what a structure pools, shared out."""
    second, counts = np.asarray(statistics.second), statistics.counts
    between = counts[:, None, None] * shift[:, :, None] * shift[:, None, :]
    if second.ndim == 2:
        return second[:, :, None] * np.eye(second.shape[1]) - between * np.eye(second.shape[1])
    if len(second) == len(counts):
        return second - between
    pooled = second[0] - between.sum(axis=0)
    return counts[:, None, None] / counts.sum() * pooled
