"""Marginal likelihood of a sampled mixture by bridge sampling.

The bridge joins the posterior draws to a density q̃ that is fitted to half of them and folded over the orders of the components
(:mod:`bayesgmm.inference.folding`). Posterior and q̃ are the same in every order of the components, so draws in any order
serve, whether their copies overlap or not; no log K! is added anywhere.

References
----------
Frühwirth-Schnatter, S. (2004). Estimating marginal likelihoods for mixture and Markov switching models using bridge sampling
techniques. Econometrics Journal 7, 143–167.
Gronau, Q. F., Sarafoglou, A., Matzke, D., Ly, A., Boehm, U., Marsman, M., Leslie, D. S., Forster, J. J., Wagenmakers, E.-J. &
Steingroever, H. (2017). A tutorial on bridge sampling. Journal of Mathematical Psychology 81, 80–97.
Meng, X.-L. & Wong, W. H. (1996). Simulating ratios of normalizing constants via a simple identity: a theoretical exploration.
Statistica Sinica 6, 831–860.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from scipy.special import gammaln, logsumexp
from threadpoolctl import threadpool_limits

from bayesgmm.core import blocked, em
from bayesgmm.core.blocks import RowBlocks
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.inference.bridge import Bridge, Half, bridge_over_repeats
from bayesgmm.inference.compiled import CompiledPosterior, MixturePosterior
from bayesgmm.inference.components import ComponentsPosterior, posterior_over_components
from bayesgmm.inference.folding import ComponentBlocks, FoldedNormals, log_normals
from bayesgmm.inference.laplace import LaplaceApproximation, log_densities
from bayesgmm.inference.sampling import Task, approximate_modes
from bayesgmm.inference.summed import SummedPosterior

__all__ = ["ComponentsPosterior", "Evidence", "fit_proposal", "log_evidence", "posterior_over_components"]

SMALLEST_HALF = 50
"""Draws that half a posterior must have."""

NORMALS = (1, 2, 4, 8, 16)
"""Numbers of normals that the proposal may be a mixture of."""

DRAWS_PER_NORMAL = 2
"""Draws per parameter and normal below which a mixture of more normals is not tried."""

FEW_DRAWS = 5
"""Draws per parameter in each half below which a note says that they are few."""

LARGEST_ERROR = 0.5
"""Standard error of one half (nats) from which on the linear error formula is not to be trusted."""


@dataclass(frozen=True)
class Evidence:
    """Log marginal likelihood of a mixture, in nats, with its error.

    Parameters
    ----------
    log_evidence : float
        log p(X), prior and likelihood with all their constants.
    standard_error : float
        Monte Carlo standard error of ``log_evidence``.
    laplace : float
        Laplace approximation of the same: log Σ exp over the distinct modes, plus log K!. Approximate: it takes every mode for a
        normal, and the K! copies of each for far apart.
    method : str
        "bridge".
    n_components : int
        K.
    covariance_type : str
    n_draws : int
        Posterior draws.
    n_proposals : int
        Draws of the proposals.
    n_normals : tuple of int
        Number of normals in the proposal of each half.
    n_permutations : int
        Orders of the components that the proposals were folded over: K!, or the number to which they were thinned.
    exact_permutations : bool
        False where orders were thinned at random; their error is part of ``standard_error``.
    halves : tuple of float
        The estimate with the proposal fitted to the first half of the draws and evaluated on the second, and the reverse.
    converged : bool
        Whether nothing speaks against ``log_evidence`` and its error.
    notes : tuple of str
        What does, and what else is worth knowing.
    """

    log_evidence: float
    standard_error: float
    laplace: float
    method: str
    n_components: int
    covariance_type: str
    n_draws: int
    n_proposals: int
    n_normals: tuple[int, int]
    n_permutations: int
    exact_permutations: bool
    halves: tuple[float, float]
    converged: bool
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = (
            f"log evidence {self.log_evidence:.3f} ± {self.standard_error:.3f} (bridge sampling, K = {self.n_components}, "
            f"{self.covariance_type}; Laplace: {self.laplace:.3f})"
        )
        return "\n".join([head, *(f"- {note}" for note in self.notes)])


def log_evidence(
    post: Any,
    rows: RowBlocks | None = None,
    *,
    max_permutations: int = 720,
    n_proposals: int | None = None,
    random_state: int | np.random.Generator = 0,
) -> Evidence:
    """Log marginal likelihood of a fitted mixture by bridge sampling with a proposal folded over the components' orders.

    The draws are cut in half. To each half a mixture of normals is fitted in the unconstrained coordinates of the PyMC model
    (their number by the density of held-out draws; few draws are shrunk towards the Laplace approximation); folded over the K!
    orders of the components it is bridged to the other half (Meng & Wong's optimal bridge, iterated to its fixed point). The result
    is the mean of the two.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted, by NUTS or Laplace.
    rows : RowBlocks, optional
        The rows of the fit, where it does not hold them: some passes over the blocks.
    max_permutations : int, default 720
        Orders of the components (and beginnings of them) that are summed for a draw. Where more of them matter, they are thinned
        at random without bias, to a thirtieth of this, and the error this makes is part of the standard error. 720 is exact
        up to K = 6, and for separated components at any K.
    n_proposals : int, optional
        Draws of each of the two proposals; default: as many as half the draws.
    random_state : int or numpy.random.Generator, default 0

    Returns
    -------
    Evidence

    Raises
    ------
    ValueError
        If the fit has no draws, too few, or draws that are not finite; if the prior's weight concentrations differ, so that the
        posterior depends on the components' order; if an argument is out of range.

    Notes
    -----
    The evidence depends on the prior as few other numbers do. The default prior's scale comes from the data and from K: compare
    K under one prior that is common to all.

    With ``sample_weight`` the rows count as if they stood that many times, which has this meaning for whole numbers alone.
    """
    rng = np.random.default_rng(random_state)
    if max_permutations < 1:
        raise ValueError(f"max_permutations must be at least 1; got {max_permutations!r}")
    if n_proposals is not None and n_proposals < SMALLEST_HALF:
        raise ValueError(f"n_proposals must be at least {SMALLEST_HALF}; got {n_proposals!r}")
    draws = getattr(post, "_draws", None)
    if draws is None:
        raise ValueError(
            f"{type(post).__name__} holds no posterior draws: log_evidence needs a BayesianGaussianMixture after fit"
        )
    alpha = post.prior_.resolved_concentration
    if np.ptp(alpha) > 1e-12 * alpha.max():
        raise ValueError(
            f"the prior's weight_concentration differs between components ({alpha}): log_evidence needs a posterior that does not "
            "depend on their order; give one number"
        )
    compiled, task = _posterior(post) if rows is None else _posterior_of_blocks(post, rows)
    with threadpool_limits(limits=1, user_api="blas"):
        # Laplace approximations of the modes that the fit gave chains to.
        approximations = approximate_modes(compiled, task).approximations
        halves = _halves(compiled, post, rng)
        found = _cross(compiled, post, approximations, halves, max_permutations, n_proposals, rng)
    if _has_fractions(post, rows):
        note = "sample_weight is not whole: the evidence is that of a weighted likelihood, not of data"
        found = replace(found, notes=(*found.notes, note))
    return found


def _posterior(post: Any) -> tuple[MixturePosterior, Task]:
    """The posterior of the rows that a fit holds, and what its modes are approximated from."""
    kind, runs = structure(post.covariance_type), tuple(mode.run for mode in post.modes_)
    X, v = post._X, post._sample_weight
    compiled = CompiledPosterior.from_data(X, post._draws.weights.shape[-1], kind.name, post.prior_, v)
    return compiled.without_scale(runs[0].parameters.precision_factors), Task(X, v, kind, post.prior_, runs, ())


def _posterior_of_blocks(post: Any, rows: RowBlocks) -> tuple[MixturePosterior, Task]:
    """The same of rows in blocks."""
    kind, runs = structure(post.covariance_type), tuple(mode.run for mode in post.modes_)
    problem = blocked.problem_of(rows, blocked.survey(rows, 0, 0), kind.name, post.prior_.for_em)
    summed = SummedPosterior.from_prior(rows, kind.name, post.prior_)
    task = Task(problem.X, None, kind, post.prior_, runs, (), blocked=problem)
    return summed.without_scale(runs[0].parameters.precision_factors), task


def _has_fractions(post: Any, rows: RowBlocks | None) -> bool:
    """Whether a weight is not whole."""
    if rows is not None:
        return bool(rows.total(_n_fractions))
    return post._sample_weight is not None and bool(np.any(post._sample_weight % 1))


def _n_fractions(X: FloatArray, v: FloatArray | None, block: int) -> int:
    """Task: how many weights are not whole."""
    return 0 if v is None else int(np.count_nonzero(v % 1))


def _halves(compiled: MixturePosterior, post: Any, rng: np.random.Generator) -> tuple[Half, Half]:
    """Unconstrained draws in two halves: of every chain the first and the second, or half of the distinct resampled ones."""
    draws = post._draws
    for name, values in (
        ("weights", draws.weights),
        ("means", draws.means),
        ("precision_factors", draws.precision_factors),
    ):
        if not np.all(np.isfinite(values)):
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise ValueError(f"the posterior's {name} must be finite; the value at index {where} is {values[where]}")
    if np.any(draws.weights <= 0):
        raise ValueError(
            "a draw has a component of weight 0 (below the smallest number): raise the prior's weight_concentration"
        )
    C, S = draws.n_chains, draws.n_draws
    if C * (S // 2) < SMALLEST_HALF:
        raise ValueError(f"{C * S} draws are too few: log_evidence needs at least {2 * SMALLEST_HALF}")
    theta = draws.unconstrained_by(compiled)
    log_posterior = _log_posterior_of_draws(compiled, post, theta)
    if post.diagnostics_.pareto_k is None:
        at = np.arange(C * S).reshape(C, S)
        early, late = (
            Half(theta[i], log_posterior[i], np.ones(len(i)), C)
            for i in (at[:, : S // 2].ravel(), at[:, S // 2 :].ravel())
        )
        return early, late
    _, first, counts = np.unique(theta, axis=0, return_index=True, return_counts=True)
    if len(first) < 2 * SMALLEST_HALF:
        raise ValueError(
            f"the Laplace approximation left {len(first)} distinct draws, too few for log_evidence (at least "
            f"{2 * SMALLEST_HALF}): raise draws, or use method='nuts'"
        )
    one, other = (
        Half(theta[first[i]], log_posterior[first[i]], counts[i].astype(float), 0)
        for i in np.array_split(rng.permutation(len(first)), 2)
    )
    return one, other


def _log_posterior(compiled: MixturePosterior, theta: FloatArray) -> FloatArray:
    values = log_densities(compiled, theta)
    # Far out an overflow may leave no number: there is no density there.
    return np.where(np.isfinite(values), values, -np.inf)


def _log_posterior_of_draws(compiled: MixturePosterior, post: Any, theta: FloatArray) -> FloatArray:
    """Log posterior of the draws, from the sampler's own record where that is the same number."""
    try:
        stored = np.asarray(post.idata_["sample_stats"]["lp"].values, dtype=float).ravel()
    except KeyError:
        stored = np.empty(0)
    if stored.shape == (len(theta),) and np.all(np.isfinite(stored)):
        some = np.unique(np.linspace(0, len(theta) - 1, 7).astype(int))
        if np.allclose(_log_posterior(compiled, theta[some]), stored[some], rtol=1e-9, atol=1e-6):
            return stored
    values = _log_posterior(compiled, theta)
    if not np.all(np.isfinite(values)):
        s = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"the log posterior of draw {s} is not finite: the draws do not belong to this data and prior")
    return values


def _cross(
    compiled: MixturePosterior,
    post: Any,
    approximations: Sequence[LaplaceApproximation],
    halves: tuple[Half, Half],
    max_permutations: int,
    n_proposals: int | None,
    rng: np.random.Generator,
) -> Evidence:
    K, P = compiled.inputs.n_components, compiled.ndim
    blocks = ComponentBlocks.of(compiled.slices, K, post.covariance_type)
    found = bridge_halves(
        partial(_log_posterior, compiled), blocks, approximations[0], halves, rng, max_permutations, n_proposals
    )
    problems, notes, exact = list(found.problems), [], found.exact_permutations
    problems += _doubts_about_draws(post)
    if min(len(half.theta) for half in halves) < FEW_DRAWS * P:
        notes.append(
            f"{sum(len(half.theta) for half in halves)} draws are few for {P} parameters: more would lower the error"
        )
    if not exact:
        notes.append(
            f"orders of the components were thinned at random to {max_permutations} of {K}! for some draws; the error includes this"
        )
    laplace = float(logsumexp([mode.log_evidence for mode in approximations]) + gammaln(K + 1))
    return Evidence(
        log_evidence=found.log_integral,
        standard_error=found.standard_error,
        laplace=laplace,
        method="bridge",
        n_components=K,
        covariance_type=post.covariance_type,
        n_draws=int(sum(half.counts.sum() for half in halves)),
        n_proposals=found.n_proposals,
        n_normals=found.n_normals,
        n_permutations=int(round(np.exp(gammaln(K + 1)))) if exact else int(max_permutations),
        exact_permutations=bool(exact),
        halves=found.halves,
        converged=not problems,
        notes=(*problems, *notes),
    )


@dataclass(frozen=True)
class BridgedIntegral:
    """Log of the integral of an unnormalised density by two bridges, each from one half of its draws to the other.

    Parameters
    ----------
    log_integral, standard_error : float
    halves : tuple of float
        The two estimates that ``log_integral`` is the mean of.
    n_proposals : int
    n_normals : tuple of int
    exact_permutations : bool
    problems : tuple of str
        What speaks against the estimate and its error.
    """

    log_integral: float
    standard_error: float
    halves: tuple[float, float]
    n_proposals: int
    n_normals: tuple[int, int]
    exact_permutations: bool
    problems: tuple[str, ...]


def bridge_halves(
    log_density: Callable[[FloatArray], FloatArray],
    blocks: ComponentBlocks,
    approximation: LaplaceApproximation,
    halves: tuple[Half, Half],
    rng: np.random.Generator,
    max_permutations: int = 720,
    n_proposals: int | None = None,
) -> BridgedIntegral:
    """Integrate a density that is the same in every order of the components, over all its K! copies, from draws in one order.

    Parameters
    ----------
    log_density : callable
        Of points (M, P), shape (M,); −inf where there is none.
    blocks : ComponentBlocks
    approximation : LaplaceApproximation
        At a mode in the same order of the components as the draws.
    halves : tuple of two Half
    rng : numpy.random.Generator
    max_permutations : int, default 720
    n_proposals : int, optional
        Draws of each of the two proposals; default: as many as in the half that it is bridged to.

    Returns
    -------
    BridgedIntegral
    """
    bridges: list[Bridge] = []
    normals: list[int] = []
    exact, total = True, 0
    for fitted, other in (halves, halves[::-1]):
        # As many normals for the second half as the first one asked for.
        proposal = fit_proposal(fitted.theta, fitted.counts, blocks, approximation, rng, *normals[:1])
        size = len(other.theta) if n_proposals is None else int(n_proposals)
        total += size
        proposed = proposal.draw(rng, size)
        at_draws = proposal.log_density(other.theta, rng, max_permutations)
        at_proposed = proposal.log_density(proposed, rng, max_permutations)
        exact &= len(at_draws) == 1 and len(at_proposed) == 1
        bridges.append(bridge_over_repeats(other, other.log_posterior, at_draws, log_density(proposed), at_proposed))
        normals.append(len(proposal.shares))
    values = np.array([bridge.log_ratio for bridge in bridges])
    variances = np.array([bridge.variance for bridge in bridges])
    error = _error_of_mean(halves, bridges)
    apart = float(abs(values[0] - values[1]))
    problems: list[str] = []
    if not np.sqrt(variances.max()) < LARGEST_ERROR:
        # Where p and q hardly meet, the formula sees only the few draws that do.
        error = max(error, *(found.divergence for found in bridges))
        problems.append(
            f"the posterior is far from the normals fitted to it (standard error {np.sqrt(variances.max()):.2g} for half of the "
            "draws): the error is put at the divergence between them; raise draws"
        )
    if apart > 3 * np.sqrt(variances.sum()):
        error = max(error, apart / 2)
        problems.append(
            f"the two halves of the draws give {values[0]:.3f} and {values[1]:.3f}, further apart than their errors allow: raise draws"
        )
    return BridgedIntegral(
        float(values.mean()),
        error,
        (float(values[0]), float(values[1])),
        total,
        (normals[0], normals[1]),
        bool(exact),
        tuple(problems),
    )


def _error_of_mean(halves: tuple[Half, Half], bridges: Sequence[Bridge]) -> float:
    """Standard error of the mean of two bridges, the first over the second half of the draws and the reverse.

    The draws enter it by the mean of the summands of both. The halves of a chain are not independent where it mixes slowly or
    stays at a mode of its own, so their series is judged as one.
    """
    early, late = halves
    proposals = sum(found.proposal_variance for found in bridges) / 4
    if not early.n_chains:
        return float(np.sqrt(proposals + sum(found.draws_variance for found in bridges) / 4))
    series = [bridges[1].summands.reshape(early.n_chains, -1), bridges[0].summands.reshape(late.n_chains, -1)]
    whole = Half(np.empty(0), np.empty(0), np.ones(len(early.theta) + len(late.theta)), early.n_chains)
    return float(np.sqrt(proposals + whole.mean_and_variance(np.concatenate(series, axis=1).ravel())[1]))


def _doubts_about_draws(post: Any) -> list[str]:
    """What the diagnostics say against averages over the draws that do not depend on labels."""
    from bayesgmm.inference.diagnostics import PARETO_K_LIMIT, R_HAT_LIMIT

    diagnostics = post.diagnostics_
    if diagnostics.pareto_k is not None:
        if diagnostics.pareto_k <= PARETO_K_LIMIT:
            return []
        return [
            f"the Laplace draws do not stand for the posterior (Pareto k̂ = {diagnostics.pareto_k:.2f}): use method='nuts'"
        ]
    r_hat = float(diagnostics.invariants["r_hat"].max())
    if r_hat <= R_HAT_LIMIT:
        return []
    return [
        f"the chains disagree on what does not depend on labels (R-hat = {r_hat:.3f}): the evidence may be off by more than its error"
    ]


def fit_proposal(
    theta: FloatArray,
    counts: FloatArray,
    blocks: ComponentBlocks,
    approximation: LaplaceApproximation,
    rng: np.random.Generator,
    n_normals: int | None = None,
) -> FoldedNormals:
    """A mixture of normals fitted to draws in one order of the components.

    One normal has the draws' mean and their covariance, shrunk by Ledoit & Wolf (2004) in the coordinates that the Laplace
    approximation makes round. Mixtures of several come from EM, started in that normal's coordinates with it as prior; their number is
    the one with the highest log density on a quarter of the draws that are held out.

    Parameters
    ----------
    theta : ndarray of shape (S, P)
    counts : ndarray of shape (S,)
        Frequency of each draw.
    blocks : ComponentBlocks
    approximation : LaplaceApproximation
        At a mode in the same order of the components.
    rng : numpy.random.Generator
    n_normals : int, optional
        Their number, where it is known.

    Returns
    -------
    FoldedNormals

    References
    ----------
    Ledoit, O. & Wolf, M. (2004). A well-conditioned estimator for large-dimensional covariance matrices. Journal of Multivariate
    Analysis 88, 365–411.
    """
    order = blocks.order
    root = np.linalg.cholesky((approximation.factor @ approximation.factor.T)[np.ix_(order, order)])
    ordered = theta[:, order]
    center = np.average(ordered, axis=0, weights=counts)
    white = np.linalg.solve(root, (ordered - center).T).T
    root = root @ np.linalg.cholesky(_shrunk_covariance(white, counts))
    white = np.ascontiguousarray(np.linalg.solve(root, (ordered - center).T).T)
    J = _number_of_normals(white, counts, rng) if n_normals is None else n_normals
    shares, centers, factors = _normals(white, counts, J, rng)
    return FoldedNormals(blocks, shares, center + centers @ root.T, root @ factors)


def _number_of_normals(white: FloatArray, counts: FloatArray, rng: np.random.Generator) -> int:
    """Number of normals by the log density of held-out draws."""
    S, P = white.shape
    held = np.zeros(S, dtype=bool)
    held[rng.permutation(S)[: S // 4]] = True
    candidates = [J for J in NORMALS if J == 1 or 0.75 * S >= DRAWS_PER_NORMAL * J * P]
    scores: list[float] = []
    for J in candidates if len(candidates) > 1 else ():
        parts = _normals(white[~held], counts[~held], J, rng)
        scores.append(float(np.average(log_normals(white[held], *parts), weights=counts[held])))
        # A score that falls does not rise again.
        if len(scores) > 1 and scores[-1] < scores[-2]:
            break
    return candidates[int(np.argmax(scores))] if scores else 1


def _normals(
    white: FloatArray, counts: FloatArray, J: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Shares (J,), centres (J, P) and lower factors (J, P, P) of J normals fitted to draws of about unit covariance."""
    P = white.shape[1]
    if J == 1:
        return np.ones(1), np.zeros((1, P)), np.eye(P)[None]
    prior = ConjugatePrior(np.ones(J), np.zeros(P), 0.01, P + 2.0, np.eye(P) / J ** (2 / P))
    rows = np.ascontiguousarray(white)
    found = em.fit(rows, J, prior=prior, sample_weight=counts, tol=1e-4, max_iter=100, n_init=2, rng=rng)
    best = found.best.parameters
    return best.weights, best.means, np.linalg.cholesky(best.covariances)


def _shrunk_covariance(white: FloatArray, counts: FloatArray) -> FloatArray:
    """Covariance (P, P) about 0 of weighted rows (S, P), shrunk towards a multiple of the identity (Ledoit & Wolf 2004)."""
    P = white.shape[1]
    share = counts / counts.sum()
    sample = (white * share[:, None]).T @ white
    level = np.trace(sample) / P
    distance = np.sum((sample - level * np.eye(P)) ** 2)
    # Σ share² |x xᵀ − S|², the variance of the covariance's entries in all.
    norms = np.sum(white * white, axis=1)
    crossed = np.sum((white @ sample) * white, axis=1)
    noise = float(np.sum(share**2 * (norms**2 - 2 * crossed + np.sum(sample**2))))
    amount = min(1.0, noise / distance) if distance > 0 else 0.0
    return (1 - amount) * sample + amount * level * np.eye(P)
