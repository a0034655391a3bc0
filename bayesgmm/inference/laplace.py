"""From a mode of EM to a Gaussian approximation of the posterior around it, and draws corrected by importance resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import logsumexp

from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray, covariances_from_factors
from bayesgmm.pointwise import MIN_DRAWS, psis_weights

if TYPE_CHECKING:
    from bayesgmm.inference.compiled import MixturePosterior

FULL_HESSIAN_LIMIT = 1500
"""Largest number of parameters for which the Hessian is taken whole, by differences of the gradient."""

SMALLEST_CURVATURE = 1e-2
"""Curvature, in units of the start's own scale, below which a direction counts as flat."""


NEWTON_REACH = 3.0
"""Newton decrement, in posterior standard deviations, up to which Newton's method starts from where EM ended."""

SETTLED = 0.1
"""Way, in posterior standard deviations, over which the curvature counts as the same."""

AT_MODE = 3e-3
"""Newton decrement at which the climb by Newton's method ends."""

ENOUGH = 0.9
"""Share of the draws that the importance weights of as many proposals must be worth for no more to be made."""


class LogPosterior(Protocol):
    """What the approximation needs of a compiled posterior.

    One for which a point is dear also has ``curvature`` and ``log_densities`` (:class:`bayesgmm.inference.summed.SummedPosterior`).
    """

    @property
    def ndim(self) -> int:
        """Number of unconstrained parameters."""

    def logp_and_grad(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Log posterior density and its gradient at a point."""


@dataclass(frozen=True, eq=False)
class LaplaceApproximation:
    """Normal approximation around one mode in the unconstrained coordinates of the PyMC model.

    Parameters
    ----------
    center : ndarray of shape (P,)
        The mode θ*.
    log_density : float
        Log posterior density (unnormalised) there.
    factor : ndarray of shape (P, P)
        L with L Lᵀ = H⁻¹, lower triangular.
    gradient_norm : float
        Newton decrement √(gᵀ H⁻¹ g) at the mode: 0 at an exact one, in units of posterior standard deviations.
    flat_directions : int
        Directions with no curvature to speak of, whose variance was bounded.
    """

    center: FloatArray
    log_density: float
    factor: FloatArray
    gradient_norm: float
    flat_directions: int

    @property
    def log_evidence(self) -> float:
        """Laplace approximation of the log integral around this mode: log p(θ*) + P/2 log 2π + ½ log det H⁻¹."""
        P = len(self.center)
        return self.log_density + 0.5 * P * float(np.log(2 * np.pi)) + float(np.sum(np.log(np.diagonal(self.factor))))

    def log_normal_density(self, theta: FloatArray) -> FloatArray:
        """Log density of the approximation at points (S, P)."""
        y = solve_triangular(self.factor, (theta - self.center).T, lower=True)
        constant = 0.5 * len(self.center) * np.log(2 * np.pi) + np.sum(np.log(np.diagonal(self.factor)))
        return -0.5 * np.sum(y * y, axis=0) - constant


def rough_scales(compiled: MixturePosterior, theta: FloatArray, counts: FloatArray) -> FloatArray:
    """Posterior standard deviations as they would be if the labels were known, to about a factor of 3.

    Parameters
    ----------
    compiled : MixturePosterior
    theta : ndarray of shape (P,)
        Near a mode.
    counts : ndarray of shape (K,)
        N_k there.

    Returns
    -------
    ndarray of shape (P,)
    """
    parameters = compiled.constrain(theta)
    log_squares, below = theta[compiled.diagonal], theta[compiled.below]
    K, D = parameters["means"].shape
    owners = 1 if "component" not in structure(compiled.covariance_type).free_dims else K
    rows = counts if owners == K else counts.sum(keepdims=True)
    roots = np.exp(0.5 * log_squares).reshape(owners, -1)
    scales = np.empty_like(theta)
    inputs = compiled.inputs
    hyper = inputs.hyper_degrees_of_freedom if inputs.hierarchical else np.empty(0)
    # A random scale is known to what R covariances tell of it, and the variables of each move with it.
    known = float(hyper[-1] + owners * inputs.degrees_of_freedom[0]) if len(hyper) else np.inf
    if len(hyper):
        log_T, below_T = (theta[compiled.slices[name]] for name in ("scale_diagonal_log__", "scale_offdiagonal"))
        scales[compiled.slices["scale_diagonal_log__"]] = np.sqrt(2.0 / known)
        if len(below_T):
            scales[compiled.slices["scale_offdiagonal"]] = np.exp(0.5 * log_T)[np.tril_indices(D, -1)[0]] / np.sqrt(
                known
            )
    per_square = rows * D / roots.shape[1] + D + 2.0
    scales[compiled.slices["weights_simplex__"]] = 1 / np.sqrt(counts[:-1] + 1.0)
    # A log standard deviation has half the standard deviation of a log square; log odds of a correlation, twice atanh, twice 1/√n.
    factor = 0.5 if inputs.separated else 1.0
    scales[compiled.diagonal] = factor * np.repeat(np.sqrt(2.0 / per_square + 2.0 / known), roots.shape[1])
    if len(below) and inputs.separated:
        scales[compiled.below] = np.repeat(2 / np.sqrt(rows + 4.0), D * (D - 1) // 2)
    elif len(below):
        lower = np.tril_indices(D, -1)[0]
        scales[compiled.below] = (roots[:, lower] * np.sqrt(1.0 / (rows + 1.0) + 1.0 / known)[:, None]).ravel()
    variances = np.diagonal(covariances_from_factors(parameters["precision_factors"]), axis1=1, axis2=2)
    scales[compiled.slices["means"]] = np.sqrt(variances / (counts + 1.0)[:, None]).ravel()
    return scales


def polish(posterior: LogPosterior, start: FloatArray, scale: FloatArray) -> FloatArray:
    """Climb to the mode by a quasi-Newton method (L-BFGS) in coordinates scaled to about unit variance.

    Parameters
    ----------
    posterior : LogPosterior
    start : ndarray of shape (P,)
    scale : ndarray of shape (P,)
        Rough posterior standard deviations.

    Returns
    -------
    ndarray of shape (P,)
        At least as good as the start.
    """

    def negative(u: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = posterior.logp_and_grad(start + scale * u)
        if not np.isfinite(value):
            return 1e300, np.zeros_like(u)
        return -value, -gradient * scale

    result = minimize(
        negative,
        np.zeros(posterior.ndim),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 500, "maxcor": 30, "ftol": 1e-14, "gtol": 1e-4},
    )
    theta = start + scale * result.x
    return theta if posterior.logp_and_grad(theta)[0] >= posterior.logp_and_grad(start)[0] else start


def hessian(posterior: LogPosterior, theta: FloatArray, scale: FloatArray) -> FloatArray:
    """Negative Hessian of the log posterior, in units of ``scale``, by central differences of the gradient.

    Parameters
    ----------
    posterior : LogPosterior
    theta : ndarray of shape (P,)
    scale : ndarray of shape (P,)

    Returns
    -------
    ndarray of shape (P, P)
        −∂² log p / ∂u ∂uᵀ with θ = θ* + scale · u.
    """
    P = posterior.ndim
    step = 1e-4  # of a standard deviation: error about step² against a rounding error of about 1e-16 |logp| / step
    out = np.empty((P, P))
    for i in range(P):
        shifted = theta.copy()
        shifted[i] += step * scale[i]
        upper = posterior.logp_and_grad(shifted)[1]
        shifted[i] = theta[i] - step * scale[i]
        out[i] = -(upper - posterior.logp_and_grad(shifted)[1]) * scale / (2 * step)
    return 0.5 * (out + out.T)


def laplace(posterior: LogPosterior, start: FloatArray, scale: FloatArray) -> LaplaceApproximation:
    """Polish a start and approximate the posterior by a normal around the mode.

    Parameters
    ----------
    posterior : LogPosterior
    start : ndarray of shape (P,)
        Unconstrained parameters near a mode.
    scale : ndarray of shape (P,)
        Rough posterior standard deviations, from the counts of the components.

    Returns
    -------
    LaplaceApproximation
    """
    if hasattr(posterior, "curvature") and posterior.ndim <= FULL_HESSIAN_LIMIT:
        return _newton(posterior, start, scale)
    theta = polish(posterior, start, scale)
    if posterior.ndim > FULL_HESSIAN_LIMIT:
        log_density, gradient = posterior.logp_and_grad(theta)
        return LaplaceApproximation(theta, log_density, np.diag(scale), float(np.linalg.norm(gradient * scale)), 0)
    factor, flat, decrement = np.diag(scale), 0, np.inf
    for _ in range(3):
        log_density, gradient = posterior.logp_and_grad(theta)
        factor, flat = _inverse_root(hessian(posterior, theta, scale), scale)
        newton = factor @ (factor.T @ gradient)
        decrement = float(np.linalg.norm(factor.T @ gradient))
        if decrement < 1e-4:
            break
        step = 1.0
        while step > 1e-3 and not posterior.logp_and_grad(theta + step * newton)[0] > log_density:
            step *= 0.5
        if step <= 1e-3:
            break
        theta = theta + step * newton
        if decrement * step < 1e-2 and step == 1.0:
            # Quadratic convergence: the Hessian has not moved, and the decrement is now about its square.
            log_density, gradient = posterior.logp_and_grad(theta)
            decrement = float(np.linalg.norm(factor.T @ gradient))
            break
    return LaplaceApproximation(theta, float(log_density), factor, decrement, flat)


def _newton(posterior: Any, start: FloatArray, scale: FloatArray) -> LaplaceApproximation:
    """Climb by Newton's method, with few passes: the curvature is taken anew only where the way was long.

    From a start that is too far away, or where the density is not concave, the quasi-Newton method goes first.
    """
    theta = start
    log_density, gradient, information = posterior.curvature(theta, scale)
    factor, flat = _inverse_root(information, scale)
    decrement = float(np.linalg.norm(factor.T @ gradient))
    if flat or decrement > NEWTON_REACH:
        theta = polish(posterior, start, scale)
        log_density, gradient, information = posterior.curvature(theta, scale)
        factor, flat = _inverse_root(information, scale)
        decrement = float(np.linalg.norm(factor.T @ gradient))
    way = 0.0
    for _ in range(20):
        if decrement < AT_MODE:
            break
        newton, step = factor @ (factor.T @ gradient), 1.0
        here = posterior.logp_and_grad(theta + newton)
        while step > 1e-3 and not here[0] > log_density:
            step *= 0.5
            here = posterior.logp_and_grad(theta + step * newton)
        if not here[0] > log_density:
            break
        theta, way = theta + step * newton, way + step * decrement
        log_density, gradient = here
        if way > SETTLED:
            log_density, gradient, information = posterior.curvature(theta, scale)
            factor, flat = _inverse_root(information, scale)
            way = 0.0
        decrement = float(np.linalg.norm(factor.T @ gradient))
    return LaplaceApproximation(theta, float(log_density), factor, decrement, flat)


def log_densities(posterior: LogPosterior, points: FloatArray) -> FloatArray:
    """Log posterior densities of points (S, P), together where the posterior can."""
    if hasattr(posterior, "log_densities"):
        return np.asarray(posterior.log_densities(points))
    return np.array([posterior.logp_and_grad(point)[0] for point in points])


def _inverse_root(information: FloatArray, scale: FloatArray) -> tuple[FloatArray, int]:
    """Lower L with L Lᵀ = H⁻¹; directions of little or negative curvature get a bounded variance."""
    values, vectors = np.linalg.eigh(information)
    flat = int(np.sum(values < SMALLEST_CURVATURE))
    bounded = np.where(values < SMALLEST_CURVATURE, np.clip(np.abs(values), SMALLEST_CURVATURE, 1.0), values)
    covariance = (vectors / bounded) @ vectors.T * scale * scale[:, None]
    try:
        return cholesky(covariance, lower=True), flat
    except np.linalg.LinAlgError:
        # Curvatures so unequal that their inverse is not positive definite for rounding: the factor of its root instead.
        upper = np.linalg.qr((scale[:, None] * vectors / np.sqrt(bounded)).T, mode="r")
        return (upper * np.sign(np.diagonal(upper))[:, None]).T, flat


@dataclass(frozen=True, eq=False)
class ImportanceDraws:
    """Draws resampled to the posterior.

    Parameters
    ----------
    theta : ndarray of shape (S, P)
        Equally weighted.
    log_density : ndarray of shape (S,)
        Log posterior density (unnormalised) of each.
    pareto_k : float
        Tail index k̂ of the importance ratios: above 0.7 the draws are not to be trusted.
    effective_size : float
        1 / Σ w² of the smoothed weights.
    n_proposed : int
    n_unique : int
    """

    theta: FloatArray
    log_density: FloatArray
    pareto_k: float
    effective_size: float
    n_proposed: int
    n_unique: int


def importance_draws(
    posterior: LogPosterior,
    modes: Sequence[LaplaceApproximation],
    n_draws: int,
    rng: np.random.Generator,
    target_ess: float = 0.0,
) -> ImportanceDraws:
    """Draw from a mixture of Laplace approximations and resample with Pareto-smoothed importance weights.

    There are twice as many proposals as draws; where a posterior has ``log_densities``, because its points are dear, the second half is
    made only if the first is not worth ``ENOUGH`` of the draws, or less than the effective sample size asked for.

    Parameters
    ----------
    posterior : LogPosterior
    modes : sequence of LaplaceApproximation
        Weighted by their evidence.
    n_draws : int
        Number of draws S that come back.
    rng : numpy.random.Generator
    target_ess : float, default 0.0

    Returns
    -------
    ImportanceDraws

    References
    ----------
    Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72).
    """
    dear = hasattr(posterior, "log_densities")
    # Even a few draws want proposals enough for weights that can be smoothed.
    theta, density, ratios = _propose(posterior, modes, max(n_draws if dear else 2 * n_draws, 2 * MIN_DRAWS), rng)
    weights, pareto_k = _smoothed(ratios)
    if dear and not (1 / np.sum(weights**2) >= max(ENOUGH * n_draws, target_ess) and pareto_k <= 0.5):
        more = _propose(posterior, modes, n_draws, rng)
        theta, density, ratios = (np.concatenate(both) for both in zip((theta, density, ratios), more, strict=True))
        weights, pareto_k = _smoothed(ratios)
    # Systematic resampling: one uniform number, the least variance.
    positions = (rng.random() + np.arange(n_draws)) / n_draws
    chosen = np.minimum(np.searchsorted(np.cumsum(weights), positions), len(theta) - 1)
    rng.shuffle(chosen)
    size = float(1 / np.sum(weights**2))
    return ImportanceDraws(theta[chosen], density[chosen], pareto_k, size, len(theta), len(np.unique(chosen)))


def _propose(
    posterior: LogPosterior, modes: Sequence[LaplaceApproximation], n_proposed: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Proposals, their log posterior densities, and these less the log densities they were drawn from."""
    evidence = np.array([mode.log_evidence for mode in modes])
    shares = np.exp(evidence - logsumexp(evidence))
    which = np.sort(rng.choice(len(modes), size=n_proposed, p=shares))
    noise = rng.standard_normal((n_proposed, posterior.ndim))
    theta = np.empty_like(noise)
    for m, mode in enumerate(modes):
        theta[which == m] = mode.center + noise[which == m] @ mode.factor.T
    proposal = np.stack([mode.log_normal_density(theta) for mode in modes], axis=1) + np.log(shares)
    density = log_densities(posterior, theta)
    return theta, density, density - logsumexp(proposal, axis=1)


def _smoothed(ratios: FloatArray) -> tuple[FloatArray, float]:
    """Pareto-smoothed importance weights that sum to 1, and k̂."""
    finite = np.where(np.isfinite(ratios), ratios, ratios[np.isfinite(ratios)].min() - 700)
    if np.ptp(finite) < 1e-9:
        # A posterior that is exactly normal: the ratios have no tail.
        return np.full(len(finite), 1 / len(finite)), -np.inf
    log_weights, pareto_k = psis_weights(finite[None])
    return np.exp(log_weights[0]), float(pareto_k[0])
