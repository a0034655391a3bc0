"""From the modes of EM to a diagnosed posterior: Laplace approximations, NUTS or importance resampling, relabelling."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from bayesgmm import __version__
from bayesgmm.core import covariance, em
from bayesgmm.core.blocked import BlockedProblem
from bayesgmm.core.classes import ClassLayout, LabelledProblem
from bayesgmm.core.covariance import CovarianceStructure
from bayesgmm.core.function_prior import FunctionPrior
from bayesgmm.core.parameters import FloatArray, MixtureParameters, SufficientStatistics, covariances_from_factors
from bayesgmm.exceptions import CostWarning, SamplingInterrupted, warn_user
from bayesgmm.inference import posterior
from bayesgmm.inference.compiled import CompiledPosterior, MixturePosterior
from bayesgmm.inference.diagnostics import Diagnostics, diagnose
from bayesgmm.inference.folding import ComponentBlocks
from bayesgmm.inference.laplace import LaplaceApproximation, importance_draws, laplace, rough_scales
from bayesgmm.inference.nuts import Chains, run_nuts
from bayesgmm.inference.posterior import PosteriorDraws
from bayesgmm.inference.relabel import permuted_share, relabel, relabel_within, switching_share
from bayesgmm.inference.summed import SummedPosterior, TableRows

if TYPE_CHECKING:
    from xarray import DataTree

NEAR_NATS = 10.0
"""Modes within this of the best may hold posterior mass: they get a Laplace approximation, and chains of their own."""

SCREEN_NATS = 50.0
"""The same before the climb to the mode of the posterior, where EM had another prior than the model."""

SAME_MODE = 0.1
"""Distance between centres, in posterior standard deviations, below which two approximations are of one mode."""

STRANDED_NATS = 10.0
"""A chain whose region holds less than e^−10 of the best one's mass is replaced."""

MANY_ROWS = 20_000
"""From here on a pass is worth more than the calls around it."""

START_DEGREES_OF_FREEDOM = 4
"""Chains start from Student-t draws with these degrees of freedom around a mode: overdispersed, as R-hat needs."""

EFFECTIVE_SIZE = "importance_effective_size"
"""Attribute of the DataTree: what the proposals' importance weights were worth before draws were resampled by them."""

N_PASSES = "passes_over_rows"
"""Attribute of the DataTree: passes over all rows that a Laplace posterior of many rows took, beyond EM's."""

GRADIENTS_PER_DRAW = 8
"""About what NUTS needs in whitened coordinates, warm-up included."""

_FIELDS = {
    "weights": "weights",
    "means": "means",
    "precision_factors": "precision_factors",
    "scale_factor": "scale_factors",
}


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be sampled.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    sample_weight : ndarray of shape (N,) or None
    kind : CovarianceStructure
    prior : ConjugatePrior, HierarchicalPrior, SeparationPrior or FunctionPrior
        Resolved.
    modes : tuple of EMRun
        Distinct modes of EM in (π, μ, Σ), best first.
    names : tuple of str
        Feature names.
    classes : ClassLayout, optional
        Of rows some of which have a known class: X is sorted by it.
    blocked : BlockedProblem, optional
        The problem of EM for rows in blocks, of which X and sample_weight are but a sample.
    """

    X: FloatArray
    sample_weight: FloatArray | None
    kind: CovarianceStructure
    prior: Any
    modes: tuple[em.EMRun, ...]
    names: tuple[str, ...]
    classes: ClassLayout | None = None
    blocked: BlockedProblem | None = None

    @property
    def problem(self) -> em.Problem:
        """The same as a problem of EM, under the prior that EM has."""
        if self.blocked is not None:
            return self.blocked
        if self.classes is not None:
            return LabelledProblem(self.X, self.kind, self.prior.for_em, self.sample_weight, classes=self.classes)
        return em.Problem(self.X, self.kind, self.prior.for_em, self.sample_weight)


@dataclass(frozen=True, eq=False)
class Settings:
    """How it is sampled; see :class:`bayesgmm.BayesianGaussianMixture`."""

    method: str
    draws: int
    tune: int
    chains: int
    target_ess: float
    max_draws: int
    cores: int | None
    progressbar: bool


@dataclass(frozen=True, eq=False)
class Result:
    """Relabelled draws, packaged and diagnosed.

    Parameters
    ----------
    draws : PosteriorDraws
        In the order of the components of the first mode in ``mode_order``.
    idata : DataTree
    diagnostics : Diagnostics
        Modes are numbered by their places in ``mode_order``.
    mode_order : tuple of int
        The task's modes as the posterior has them: those that hold mass, best first, then the others.
    modes : tuple of EMRun
        In that order.
    interrupted : str or None
        What was kept where the user stopped it.
    """

    draws: PosteriorDraws
    idata: DataTree
    diagnostics: Diagnostics
    mode_order: tuple[int, ...]
    modes: tuple[em.EMRun, ...]
    interrupted: str | None = None


def sample_posterior(task: Task, settings: Settings, rng: np.random.Generator) -> Result:
    """Sample the posterior of a mixture.

    Parameters
    ----------
    task : Task
    settings : Settings
    rng : numpy.random.Generator

    Returns
    -------
    Result
    """
    density, around = _posteriors(task)
    # The products here are small: BLAS threads would only spin beside the chains'.
    with threadpool_limits(limits=1, user_api="blas"):
        found = approximate_modes(around, task)
        task = _in_order_of(around, task, found.approximations[0].center)
        distinct = [*found.kept, *(m for m in range(len(task.modes)) if m not in (*found.kept, *found.merged))]
        ordered = replace(task, modes=tuple(task.modes[m] for m in distinct))
        if settings.method == "laplace":
            result = _by_importance(around, ordered, settings, found.approximations, rng)
        else:
            if isinstance(density, SummedPosterior):
                _say_cost(density, settings, found.approximations[0].center)
            result = _by_nuts(density, ordered, settings, found.approximations, rng)
        order = (*distinct, *found.merged)
        return replace(result, mode_order=order, modes=tuple(task.modes[m] for m in order))


def _posteriors(task: Task) -> tuple[MixturePosterior, MixturePosterior]:
    """The posterior as the chains see it, and as the approximations do: of many rows, in passes that do the work of many."""
    prior, kind, factors = task.prior, task.kind.name, task.modes[0].parameters.precision_factors
    if isinstance(prior, FunctionPrior):
        # It imports PyMC, which no other posterior needs.
        from bayesgmm.inference.function_posterior import FunctionPosterior

        own: Any = FunctionPosterior(
            task.X, len(task.modes[0].counts), task.kind, prior, task.sample_weight, task.names
        )
        return own, own
    if task.blocked is not None:
        summed = SummedPosterior.from_prior(task.blocked.blocks, kind, prior).without_scale(factors)
        return summed, summed
    n_components = len(task.modes[0].counts)
    compiled = CompiledPosterior.from_data(task.X, n_components, kind, prior, task.sample_weight, task.classes)
    compiled = compiled.without_scale(factors)
    if task.classes is not None or len(task.X) < MANY_ROWS:
        return compiled, compiled
    rows = TableRows(task.X, task.sample_weight)
    return compiled, SummedPosterior(rows, compiled.inputs.without_rows(), kind)


def _in_order_of(posterior: Any, task: Task, theta: FloatArray) -> Task:
    """The task with the components of its modes in the order that a prior of the user's gives them."""
    if not isinstance(task.prior, FunctionPrior):
        return task
    here = posterior.constrain(theta)
    reference = (here["weights"], here["means"], covariances_from_factors(here["precision_factors"]))
    modes = []
    for run in task.modes:
        w, m, sigma = run.parameters.weights, run.parameters.means, run.parameters.covariances
        order = relabel(w[None], m[None], sigma[None], reference, covariance_type="full")[0]
        parameters = MixtureParameters(w[order], m[order], run.parameters.precision_factors[order])
        packed = task.kind.pack(sigma[order])
        modes.append(replace(run, parameters=parameters, covariances=packed, counts=run.counts[order], statistics=None))
    return replace(task, modes=tuple(modes))


def _say_cost(density: SummedPosterior, settings: Settings, point: FloatArray) -> None:
    """Say what NUTS will cost on rows in blocks, where every point of every chain is a pass over all of them."""
    begin = time.perf_counter()
    density.logp_and_grad(point)
    each = time.perf_counter() - begin
    n_passes = GRADIENTS_PER_DRAW * settings.chains * (settings.tune + settings.draws)
    hours = n_passes * each / 3600
    lasts = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    warn_user(
        f"NUTS on rows in blocks takes about {n_passes:,} passes over all of them: {lasts} at {each:.2g} s a pass, as measured; "
        "method='laplace' takes some ten",
        CostWarning,
    )


@dataclass(frozen=True, eq=False)
class ApproximatedModes:
    """Modes of EM that hold posterior mass.

    Parameters
    ----------
    kept : tuple of int
        Which modes of EM these are.
    approximations : tuple of LaplaceApproximation
        One for each of them.
    merged : tuple of int
        Modes of EM that climbed to the mode of another.
    """

    kept: tuple[int, ...]
    approximations: tuple[LaplaceApproximation, ...]
    merged: tuple[int, ...]


def near_modes(
    modes: Sequence[em.EMRun], kind: CovarianceStructure, prior: Any, sample_weight: FloatArray | None, n_rows: float
) -> list[int]:
    """Modes of EM that may hold posterior mass, as far as their own densities tell.

    Under the prior that EM had these are the modes within 10 nats of the first. Another prior is not EM's: its log density takes
    the place of EM's objective, and modes within 50 nats of the best stay, because the climb to the mode of the posterior gains some.

    Parameters
    ----------
    modes : sequence of EMRun
        Best first.
    kind : CovarianceStructure
    prior : ConjugatePrior, HierarchicalPrior, SeparationPrior or FunctionPrior
        Resolved.
    sample_weight : ndarray of shape (N,) or None
    n_rows : float
        N.

    Returns
    -------
    list of int
        Indices of modes.
    """
    total = float(n_rows if sample_weight is None else sample_weight.sum())
    if prior.for_em is prior or isinstance(prior, FunctionPrior):
        # A function tells no density before the climb: all that it may favour stay.
        nats = NEAR_NATS if prior.for_em is prior else SCREEN_NATS
        return [m for m, run in enumerate(modes) if (modes[0].objective - run.objective) * total <= nats]
    densities = []
    for run in modes:
        # EM may put the weight of an empty component at 0, where no mode of the posterior lies.
        weights = np.maximum(run.parameters.weights, 1 / total)
        at = (weights, run.parameters.means, run.parameters.precision_factors)
        densities.append(run.log_likelihood + float(prior.log_density_from_factors(*at, kind.name)))
    return [m for m, density in enumerate(densities) if max(densities) - density <= SCREEN_NATS]


def approximate_modes(compiled: MixturePosterior, task: Task) -> ApproximatedModes:
    """Laplace approximations of the modes that may hold mass, each started from its closed-form M-step.

    Modes that climb to one point are one. Under a prior that EM did not have, the mass of each in the model itself, by Laplace, says
    which are near and in what order they stand; under a conjugate one EM's objective has said so.

    Returns
    -------
    ApproximatedModes
        Best first.
    """
    problem = task.problem
    near = near_modes(task.modes, task.kind, task.prior, None, problem.total_weight)
    found = []
    for run in (task.modes[m] for m in near):
        known = run.statistics if task.blocked is not None else None
        statistics = problem.e_step(run.parameters) if known is None else known
        found.append(laplace(compiled, *_start_near(compiled, task, statistics, run.parameters.means)))
    kept = distinct = _distinct(compiled, found, task)
    if task.prior.for_em is not task.prior:
        mass = [a.log_evidence for a in found]
        best = max(mass)
        kept = sorted((m for m in distinct if best - mass[m] <= NEAR_NATS), key=lambda m: -mass[m])
    return ApproximatedModes(
        tuple(near[m] for m in kept),
        tuple(found[m] for m in kept),
        tuple(near[m] for m in range(len(near)) if m not in distinct),
    )


def _start_near(
    compiled: Any, task: Task, statistics: SufficientStatistics, means: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Where the M-step of sums about means leads, and rough posterior standard deviations there."""
    if hasattr(compiled, "m_step"):
        theta, scales = compiled.m_step(statistics, means)
        return theta, scales
    start = covariance.maximise_unconstrained(statistics, means, task.kind, task.prior.for_em)
    theta = compiled.unconstrain(start.weights, start.means, start.precision_factors)
    return theta, rough_scales(compiled, theta, statistics.counts)


def _distinct(compiled: MixturePosterior, approximations: Sequence[LaplaceApproximation], task: Task) -> list[int]:
    """Indices of approximations that did not end at the mode of an earlier one, in whatever order of the components."""
    if isinstance(task.prior, FunctionPrior):
        return _distinct_mixtures(compiled, approximations, np.std(task.X, axis=0))
    K, name = compiled.inputs.n_components, compiled.covariance_type
    blocks = ComponentBlocks.of(compiled.slices, K, name)
    out: list[int] = []
    for m, mode in enumerate(approximations):
        ours = compiled.constrain(mode.center)
        for earlier in (approximations[e] for e in out):
            theirs = compiled.constrain(earlier.center)
            inverses = [np.linalg.inv(p["precision_factors"]) for p in (ours, theirs)]
            sigma, reference = (np.swapaxes(inverse, 1, 2) @ inverse for inverse in inverses)
            parts = (ours["weights"][None], ours["means"][None], sigma[None])
            order = (theirs["weights"], theirs["means"], reference)
            permutation = relabel_within(_interchangeable(compiled.inputs.classes, K), *parts, order)[0]
            moved = blocks.permuted(mode.center[None], permutation)
            if np.linalg.norm(np.linalg.solve(earlier.factor, moved[0] - earlier.center)) < SAME_MODE:
                break
        else:
            out.append(m)
    return out


def _distinct_mixtures(posterior: Any, approximations: Sequence[LaplaceApproximation], scale: FloatArray) -> list[int]:
    """The same by the mixtures, where nobody knows which coordinates are a component's: EM's own tolerances of modes."""
    mixtures = [MixtureParameters(**posterior.constrain(mode.center)) for mode in approximations]
    out: list[int] = []
    for m, mode in enumerate(approximations):
        near = [e for e in out if abs(approximations[e].log_density - mode.log_density) < em.SAME_NATS]
        if not any(em.matched_distance(mixtures[m], mixtures[e], scale) < em.SAME_DISTANCE for e in near):
            out.append(m)
    return out


def _interchangeable(classes: ClassLayout | None, n_components: int) -> tuple[slice, ...]:
    """Blocks of components that may change places."""
    return (slice(0, n_components),) if classes is None else classes.blocks


def _by_importance(
    compiled: MixturePosterior,
    task: Task,
    settings: Settings,
    approximations: Sequence[LaplaceApproximation],
    rng: np.random.Generator,
) -> Result:
    shape = (settings.chains, settings.draws)
    resampled = importance_draws(compiled, approximations, settings.chains * settings.draws, rng, settings.target_ess)
    chains = Chains(resampled.theta.reshape(*shape, -1), {"lp": resampled.log_density.reshape(shape)})
    draws, diagnostics, order = _judge(
        compiled,
        task,
        chains,
        settings,
        len(approximations),
        pareto_k=resampled.pareto_k,
        effective_size=resampled.effective_size,
    )
    chains, draws = _with_scales(compiled, chains, draws, rng)
    attributes = {EFFECTIVE_SIZE: resampled.effective_size}
    if isinstance(compiled, SummedPosterior):
        attributes[N_PASSES] = float(compiled.n_passes)
    return _package(compiled, task, chains, settings, draws, diagnostics, order, attributes)


def _by_nuts(
    compiled: MixturePosterior,
    task: Task,
    settings: Settings,
    approximations: Sequence[LaplaceApproximation],
    rng: np.random.Generator,
) -> Result:
    def run(starts: FloatArray, owners: Sequence[int], tune: int) -> Chains:
        whitenings = [(approximations[m].center, approximations[m].factor) for m in owners]
        seed = int(rng.integers(2**31 - 1))
        # The passes over blocks fill the cores themselves.
        cores = settings.cores or (1 if task.blocked is not None else None)
        if isinstance(task.prior, FunctionPrior):
            # One compiled function for all: its inputs and outputs stand in one place.
            cores = 1
        return run_nuts(compiled, starts, whitenings, settings.draws, tune, seed, cores, settings.progressbar)

    owners, starts = allot_chains(compiled, task, approximations, settings.chains, rng)
    chains = run(starts, owners, settings.tune)
    chains, notes = _replace_stranded(chains, owners, lambda at, whose: run(at, whose, settings.tune))
    draws, diagnostics, order = _judge(compiled, task, chains, settings, len(approximations), notes=notes)
    while not chains.interrupted and chains.theta.shape[1] + settings.draws <= settings.max_draws:
        if min(diagnostics.ess_bulk, diagnostics.ess_tail) >= settings.target_ess:
            break
        try:
            more = run(chains.theta[:, -1], owners, max(100, settings.tune // 2))
        except SamplingInterrupted:
            more = replace(chains, theta=chains.theta[:0], interrupted=True)
        chains = _continued(chains, more)
        draws, diagnostics, order = _judge(compiled, task, chains, settings, len(approximations), notes=notes)
    chains, draws = _with_scales(compiled, chains, draws, rng)
    return _package(compiled, task, chains, settings, draws, diagnostics, order)


def _with_scales(
    compiled: MixturePosterior, chains: Chains, draws: PosteriorDraws, rng: np.random.Generator
) -> tuple[Chains, PosteriorDraws]:
    """Draws with a random scale drawn where it was integrated out, once for equal draws, and their log density with it."""
    if hasattr(compiled, "own_variables") or not compiled.inputs.integrated:
        return chains, draws
    C, S, P = chains.theta.shape
    _, first, which = np.unique(chains.theta.reshape(-1, P), axis=0, return_index=True, return_inverse=True)
    V, change = compiled.draw_scale(draws.flat()[2][first], rng)
    scales, change = V[which].reshape(C, S, *V.shape[1:]), change[which].reshape(C, S)
    chains = replace(chains, stats=chains.stats | {"lp": chains.stats["lp"] + change})
    return chains, replace(draws, scale_factors=scales)


def _continued(chains: Chains, more: Chains) -> Chains:
    """Chains with their continuation; one that was cut short to fewer chains is left out."""
    if len(more.theta) != len(chains.theta):
        return replace(chains, interrupted=True)
    return Chains(
        np.concatenate([chains.theta, more.theta], axis=1),
        {name: np.concatenate([values, more.stats[name]], axis=1) for name, values in chains.stats.items()},
        more.interrupted,
    )


def chain_evidences(chains: Chains) -> FloatArray:
    """Log of the posterior mass where each chain stayed, as if it were normal there, up to a common constant.

    A normal density p has E[log p] = max log p − P/2, so the log integral is E[log p] + ½ log det Σ + constant, with Σ the
    covariance of the chain's draws. With too few draws for Σ the mean log density stands alone.

    Parameters
    ----------
    chains : Chains

    Returns
    -------
    ndarray of shape (chains,)
    """
    _, S, P = chains.theta.shape
    evidences = chains.stats["lp"].mean(axis=1)
    if S > 4 * P:
        spread = chains.theta.std(axis=(0, 1)) + np.finfo(float).tiny
        centred = (chains.theta - chains.theta.mean(axis=1, keepdims=True)) / spread
        covariances = np.swapaxes(centred, 1, 2) @ centred / S
        evidences = evidences + 0.5 * np.linalg.slogdet(covariances)[1]
    return np.asarray(evidences)


def _replace_stranded(
    chains: Chains, owners: list[int], run: Callable[[FloatArray, list[int]], Chains]
) -> tuple[Chains, list[str]]:
    """Replace chains that stayed where there is next to no posterior mass by chains from the best one's region.

    A chain from a random partition may end in a local mode hundreds of nats below the others and never leave it within a
    lifetime. Its draws stand for e^(−hundreds) of the posterior; kept, they would be a quarter of it.
    """
    evidences = chain_evidences(chains)
    best = int(np.argmax(evidences))
    stranded = [int(c) for c in np.flatnonzero(evidences < evidences[best] - STRANDED_NATS)]
    if not stranded or chains.interrupted:
        return chains, []
    S = chains.theta.shape[1]
    at = chains.theta[best, np.linspace(S // 4, S - 1, len(stranded)).astype(int)]
    try:
        fresh = run(at, [owners[best]] * len(stranded))
    except SamplingInterrupted:
        return replace(chains, interrupted=True), []
    if fresh.interrupted:
        return replace(chains, interrupted=True), []
    theta, stats = chains.theta.copy(), {name: values.copy() for name, values in chains.stats.items()}
    theta[stranded] = fresh.theta
    for name in stats:
        stats[name][stranded] = fresh.stats[name]
    for c in stranded:
        owners[c] = owners[best]
    which = f"chain{'s' * (len(stranded) > 1)} {', '.join(map(str, stranded))}"
    lost = ", ".join(f"{evidences[best] - evidences[c]:.0f}" for c in stranded)
    note = f"{which} stayed at a mode of negligible mass ({lost} nats below the best) and made way for a new start"
    return Chains(theta, stats), [note]


def allot_chains(
    compiled: MixturePosterior,
    task: Task,
    approximations: Sequence[LaplaceApproximation],
    n_chains: int,
    rng: np.random.Generator,
) -> tuple[list[int], FloatArray]:
    """Which mode each chain belongs to, and overdispersed starts.

    Chains go round the modes in order of their mass. With two chains or more the last starts from a random partition of
    the rows: starts within known modes alone would leave R-hat blind to the others.

    Parameters
    ----------
    compiled : MixturePosterior
    task : Task
    approximations : sequence of LaplaceApproximation
    n_chains : int
    rng : numpy.random.Generator

    Returns
    -------
    owners : list of int
        Index of the mode whose whitening a chain uses.
    starts : ndarray of shape (chains, P)
    """
    order = np.argsort([-a.log_evidence for a in approximations], kind="stable")
    owners = [int(order[c % len(order)]) for c in range(n_chains)]
    starts = []
    for c, owner in enumerate(owners):
        if c == n_chains - 1 and n_chains > 1:
            owners[c] = int(order[0])
            starts.append(_random_start(compiled, task, rng))
            continue
        mode = approximations[owner]
        starts.append(_dispersed(compiled, mode.center, partial(np.matmul, mode.factor), rng))
    return owners, np.array(starts)


def _dispersed(
    compiled: MixturePosterior,
    center: FloatArray,
    spread: Callable[[FloatArray], FloatArray],
    rng: np.random.Generator,
) -> FloatArray:
    """A Student-t draw around a point: wider than the posterior, and never the mode itself, where the gradient is 0."""
    stretch = np.sqrt(START_DEGREES_OF_FREEDOM / rng.chisquare(START_DEGREES_OF_FREEDOM))
    step = stretch * spread(rng.standard_normal(compiled.ndim))
    # A start with no density (an overflow far out) is drawn in towards the point.
    while not np.isfinite(compiled.logp_and_grad(center + step)[0]):
        step *= 0.5
    return center + step


def _random_start(compiled: MixturePosterior, task: Task, rng: np.random.Generator) -> FloatArray:
    """Unconstrained parameters of a random partition of the rows, after one M-step under the prior."""
    problem = task.problem
    n_components = len(task.modes[0].counts)
    parameters, _ = em.start(problem, n_components, "random_from_data", rng)
    statistics = problem.e_step(parameters)
    theta, scales = _start_near(compiled, task, statistics, parameters.means)
    return _dispersed(compiled, theta, partial(np.multiply, scales), rng)


def _judge(
    compiled: MixturePosterior,
    task: Task,
    chains: Chains,
    settings: Settings,
    n_near: int,
    *,
    pareto_k: float | None = None,
    effective_size: float | None = None,
    notes: Sequence[str] = (),
) -> tuple[PosteriorDraws, Diagnostics, np.ndarray]:
    """Constrain, relabel and diagnose draws; with the permutations (chains · draws, K) that put them in order."""
    C, S, P = chains.theta.shape
    parts = compiled.constrain(chains.theta.reshape(-1, P))
    raw = PosteriorDraws(**{_FIELDS[name]: part.reshape(C, S, *part.shape[1:]) for name, part in parts.items()})
    reference = task.modes[0].parameters
    weights, means, factors = raw.flat()
    permutations = relabel_within(
        _interchangeable(task.classes, weights.shape[1]),
        weights,
        means,
        raw.covariances.reshape(factors.shape),
        (reference.weights, reference.means, reference.covariances),
    )
    draws = raw.permuted(permutations)
    diagnostics = diagnose(
        draws,
        task.kind,
        task.names,
        posterior.feature_pairs(task.names),
        chains.stats["lp"],
        diverging=chains.stats.get("diverging"),
        energy=chains.stats.get("energy"),
        permuted_share=permuted_share(permutations),
        switching_share=switching_share(permutations.reshape(C, S, -1)),
        modes=[run.parameters for run in task.modes],
        near_modes=n_near,
        scale=np.std(task.X, axis=0) if task.blocked is None else task.problem.feature_scale(),
        pareto_k=pareto_k,
        effective_size=effective_size,
        target_ess=settings.target_ess,
        max_draws=settings.max_draws,
        stopped_early=_interruption(chains, settings),
        remarks=notes,
    )
    return draws, diagnostics, permutations


def _interruption(chains: Chains, settings: Settings) -> str | None:
    """What was kept of an interrupted run, in words."""
    if not chains.interrupted:
        return None
    n_chains, n_draws = chains.theta.shape[:2]
    return f"stopped by the user: {n_chains} chains with {n_draws} of {settings.draws} draws were kept"


def _package(
    compiled: Any,
    task: Task,
    chains: Chains,
    settings: Settings,
    draws: PosteriorDraws,
    diagnostics: Diagnostics,
    permutations: np.ndarray,
    more: Mapping[str, float] | None = None,
) -> Result:
    """Put everything into a DataTree with ArviZ's groups; ``more`` are attributes of its root."""
    attributes: dict[str, Any] = dict(more or {}) | {
        "inference_library": "bayesgmm",
        "inference_library_version": __version__,
        "sampler": settings.method,
        "covariance_type": task.kind.name,
    }
    X, v = (task.X, task.sample_weight) if task.blocked is None else (None, None)
    density, own = None, None
    if hasattr(compiled, "own_variables"):
        theta = chains.theta.reshape(-1, chains.theta.shape[-1])
        density = compiled.log_prior(theta).reshape(chains.theta.shape[:2])
        own = posterior.OwnVariables(
            compiled.own_variables(theta), compiled.own_dims, compiled.own_coords, permutations
        )
    tree = posterior.data_tree(
        draws, task.kind, X, v, task.names, task.prior, chains.stats, attributes, task.classes, density, own
    )
    order = tuple(range(len(task.modes)))
    return Result(draws, tree, diagnostics, order, task.modes, _interruption(chains, settings))
