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
from bayesgmm.exceptions import CostWarning, PriorFunctionError, SamplingError, SamplingInterrupted, warn_user
from bayesgmm.inference import posterior
from bayesgmm.inference.compiled import CompiledPosterior, MixturePosterior
from bayesgmm.inference.diagnostics import R_HAT_LIMIT, Diagnostics
from bayesgmm.inference.folding import ComponentBlocks
from bayesgmm.inference.judging import Judged, Setup, interruption, judge, with_agreement
from bayesgmm.inference.laplace import LaplaceApproximation, importance_draws, laplace, rough_scales
from bayesgmm.inference.modes import (
    LARGEST_UNSEEN,
    LARGEST_WEIGHT_ERROR,
    NEGLIGIBLE,
    VISITED,
    ModeCells,
    ModeWeight,
    combined_places,
    hidden_modes,
    in_words,
    mode_masses,
    stacked,
    weights_of_draws,
)
from bayesgmm.inference.nuts import Chains, run_nuts
from bayesgmm.inference.posterior import PosteriorDraws
from bayesgmm.inference.relabel import relabel, relabel_within
from bayesgmm.inference.summed import SummedPosterior, TableRows

if TYPE_CHECKING:
    from distributed import Client
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

CLIMB_TOL = 1e-9
"""Change of the objective per row at which EM's climb from a chain's best draw ends."""

N_PASSES = "passes_over_rows"
"""Attribute of the DataTree: passes over all rows that a Laplace posterior of many rows took, beyond EM's."""

GRADIENTS_PER_DRAW = 8
"""About what NUTS needs in whitened coordinates, warm-up included."""


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
    mode_weights: str | None = "evidence"
    relabelling: str = "mode"
    client: Client | None = None


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
        The task's modes as the posterior has them: those that hold mass, best first, then the others. Numbers past the task's modes are
        those of ``met``.
    modes : tuple of EMRun
        In that order.
    interrupted : str or None
        What was kept where the user stopped it.
    met : tuple of Mode
        Modes that EM's own starts had missed and chains led to.
    """

    draws: PosteriorDraws
    idata: DataTree
    diagnostics: Diagnostics
    mode_order: tuple[int, ...]
    modes: tuple[em.EMRun, ...]
    interrupted: str | None = None
    met: tuple[em.Mode, ...] = ()


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
    if isinstance(task.prior, FunctionPrior):
        if settings.mode_weights == "stacking":
            raise PriorFunctionError("modes under a function as prior are not weighed: leave mode_weights as it is")
        # Nobody knows which coordinates are a component's, nor whether components may change places.
        settings = replace(settings, mode_weights=None)
    density, around = _posteriors(task)
    # The products here are small: BLAS threads would only spin beside the chains'.
    with threadpool_limits(limits=1, user_api="blas"):
        found = approximate_modes(around, task)
        task = _in_order_of(around, task, found.approximations[0].center)
        if settings.method == "laplace":
            return _by_importance(around, task, settings, found, rng)
        if isinstance(density, SummedPosterior):
            _say_cost(density, settings, found.approximations[0].center)
        return _by_nuts(density, around, task, settings, found, rng)


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
    if not np.isfinite(densities).any():
        raise SamplingError("the log posterior leaves the range of float64 at every mode of EM: rescale the columns")
    return [m for m, density in enumerate(densities) if np.nanmax(densities) - density <= SCREEN_NATS]


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


def _setup(
    posterior: MixturePosterior,
    task: Task,
    settings: Settings,
    found: ApproximatedModes | None = None,
    met: tuple[em.Mode, ...] = (),
) -> Setup:
    """Put the modes in order, those ``met`` among them."""
    runs = sorted((*task.modes, *(mode.run for mode in met)), key=lambda run: -run.objective) if met else task.modes
    whole = replace(task, modes=tuple(runs))
    found = found or approximate_modes(posterior, whole)
    others = [m for m in range(len(runs)) if m not in (*found.kept, *found.merged)]
    ordered = replace(task, modes=tuple(runs[m] for m in (*found.kept, *others)))
    merged = tuple(runs[m] for m in found.merged)
    return Setup(ordered, settings, ModeCells(posterior, found.approximations), task, merged, met)


def _by_importance(
    compiled: MixturePosterior, task: Task, settings: Settings, found: ApproximatedModes, rng: np.random.Generator
) -> Result:
    setup = _setup(compiled, task, settings, found)
    shape = (settings.chains, settings.draws)
    resampled = importance_draws(
        compiled, setup.approximations, settings.chains * settings.draws, rng, settings.target_ess
    )
    chains = Chains(resampled.theta.reshape(*shape, -1), {"lp": resampled.log_density.reshape(shape)})
    size = resampled.effective_size
    judged = judge(compiled, setup, chains, pareto_k=resampled.pareto_k, effective_size=size)
    judged = with_agreement(setup, judged)
    diagnostics = judged.diagnostics
    if judged.seen is not None:
        diagnostics = replace(diagnostics, mode_weights=tuple(weights_of_draws(setup.cells, judged.seen, size)))
    chains, draws = _with_scales(compiled, chains, judged.draws, rng)
    attributes = {EFFECTIVE_SIZE: size}
    if isinstance(compiled, SummedPosterior):
        attributes[N_PASSES] = float(compiled.n_passes)
    return _package(compiled, setup, chains, draws, diagnostics, judged.permutations, attributes)


def _by_nuts(
    compiled: MixturePosterior,
    around: MixturePosterior,
    task: Task,
    settings: Settings,
    found: ApproximatedModes,
    rng: np.random.Generator,
) -> Result:
    setup = _setup(around, task, settings, found)
    on_workers = None
    if settings.client is not None and isinstance(compiled, CompiledPosterior):
        from bayesgmm.inference.remote import ChainsOnWorkers

        on_workers = ChainsOnWorkers(settings.client, compiled)

    def run(starts: FloatArray, owners: Sequence[int], tune: int) -> Chains:
        whitenings = [(setup.approximations[m].center, setup.approximations[m].factor) for m in owners]
        seed = int(rng.integers(2**31 - 1))
        if on_workers is not None:
            return on_workers.run(starts, whitenings, settings.draws, tune, seed, settings.progressbar)
        # The passes over blocks fill the cores themselves.
        cores = settings.cores or (1 if task.blocked is not None else None)
        if isinstance(task.prior, FunctionPrior):
            # One compiled function for all: its inputs and outputs stand in one place.
            cores = 1
        return run_nuts(compiled, starts, whitenings, settings.draws, tune, seed, cores, settings.progressbar)

    owners, starts = allot_chains(compiled, setup.task, setup.approximations, settings.chains, rng)
    chains = run(starts, owners, settings.tune)
    chains, notes = _replace_stranded(chains, owners, lambda at, whose: run(at, whose, settings.tune))
    judged = judge(compiled, setup, chains, notes=notes)
    met = _modes_met(compiled, setup.task, chains, judged.diagnostics, rng)
    if met:
        setup = _setup(around, task, settings, met=met)
        judged = judge(compiled, setup, chains, notes=notes)
        owners = [0] * settings.chains if judged.seen is None else list(judged.seen.owners)
    while not chains.interrupted and chains.theta.shape[1] + settings.draws <= settings.max_draws:
        if min(judged.diagnostics.ess_bulk, judged.diagnostics.ess_tail) >= settings.target_ess:
            break
        try:
            more = run(chains.theta[:, -1], owners, max(100, settings.tune // 2))
        except SamplingInterrupted:
            more = replace(chains, theta=chains.theta[:0], interrupted=True)
        chains = _continued(chains, more)
        judged = judge(compiled, setup, chains, notes=notes)
    judged = with_agreement(setup, judged)
    if judged.seen is not None:
        return _with_weights(compiled, setup, chains, judged, notes, rng)
    chains, draws = _with_scales(compiled, chains, judged.draws, rng)
    return _package(compiled, setup, chains, draws, judged.diagnostics, judged.permutations)


def _modes_met(
    compiled: MixturePosterior, task: Task, chains: Chains, diagnostics: Diagnostics, rng: np.random.Generator
) -> tuple[em.Mode, ...]:
    """Optima of EM that the best draws of chains which disagree lead to, and that its own starts missed."""
    if task.blocked is not None or isinstance(task.prior, FunctionPrior):
        return ()
    if not diagnostics.invariants["r_hat"].max() > R_HAT_LIMIT:
        return ()
    problem = replace(task.problem, prior=task.prior.for_em.at_least_uniform(), tol=CLIMB_TOL)
    scale, kind = problem.feature_scale(), task.kind
    known, met = list(task.modes), []
    for theta, lp in zip(chains.theta, chains.stats["lp"], strict=True):
        parts = compiled.constrain(theta[int(np.argmax(lp))])
        start = MixtureParameters(parts["weights"], parts["means"], parts["precision_factors"])
        try:
            climbed = em.climb(problem, start, kind.pack(start.covariances[None])[0], rng)
        except em.DegenerateFitError:
            continue
        if not any(em.same_optimum(climbed, run, scale, problem.total_weight) for run in known):
            known.append(climbed)
            met.append(em.describe(problem, climbed, 0, scale))
    return tuple(met)


def _with_weights(
    compiled: MixturePosterior,
    setup: Setup,
    chains: Chains,
    judged: Judged,
    notes: Sequence[str],
    rng: np.random.Generator,
) -> Result:
    """Weigh the modes; the draws of separate ones become one posterior, where the weights allow it."""
    task, settings, seen = setup.task, setup.settings, judged.seen
    assert seen is not None
    lp, by_draws = chains.stats["lp"], weights_of_draws(setup.cells, seen)
    kept = judged.diagnostics.relabelling_agreement

    def apart(judged: Judged, weights: Sequence[ModeWeight]) -> Result:
        diagnostics = replace(judged.diagnostics, mode_weights=tuple(weights), relabelling_agreement=kept)
        with_scales, draws = _with_scales(compiled, chains, judged.draws, rng)
        return _package(compiled, setup, with_scales, draws, diagnostics, judged.permutations, mode=seen.nearest)

    if settings.mode_weights is None:
        return apart(judged, by_draws)
    if not judged.separate:
        doubts: list[str] = []
        remarks = [f"the draws go from mode to mode ({in_words(by_draws)} of them)"] if len(seen.visited) > 1 else []
        if not hidden_modes(setup.cells, seen):
            return apart(judge(compiled, setup, chains, notes=[*notes, *remarks], separate=False), by_draws)
        found, _ = mode_masses(setup.cells, seen, judged.raw, lp, rng)
        unseen = [w for w in found if not w.chains]
        said = f"no chain stayed at modes that may hold part of the posterior ({in_words(unseen, NEGLIGIBLE)})"
        if sum(w.weight - 2 * w.error for w in unseen) > LARGEST_UNSEEN:
            doubts.append(f"{said}: raise chains")
        elif sum(w.weight + w.error for w in unseen) > VISITED:
            remarks.append(said)
        judged = judge(compiled, setup, chains, notes=[*notes, *remarks], separate=False, weights=found, doubts=doubts)
        return apart(judged, found if len(seen.visited) == 1 else by_draws)
    weights, doubts = mode_masses(setup.cells, seen, judged.raw, lp, rng)
    why = _not_combined(weights, doubts)
    if settings.mode_weights == "stacking" and task.blocked is None:
        weights, why = stacked(weights, seen, judged.raw, task.X, task.sample_weight, rng), None
    said = f"chains found {len(seen.visited)} separate modes and seldom went from one to another"
    if why is not None and seen.stayed:
        trouble = f"{said}: these are reported apart, each with as many draws as chains had there ({why})"
        return apart(judge(compiled, setup, chains, notes=notes, separate=False, doubts=[trouble]), weights)
    if why is not None:
        remark = f"the draws go from mode to mode ({in_words(by_draws)} of them)"
        return apart(judge(compiled, setup, chains, notes=[*notes, remark], separate=False), by_draws)
    by = "stacking weights" if settings.mode_weights == "stacking" else "mass, from the evidence of each"
    remark = f"{said}; the draws are combined by their {by} ({in_words(weights)})"
    judged = judge(compiled, setup, chains, notes=[*notes, remark], separate=True, weights=weights)
    diagnostics = replace(judged.diagnostics, mode_weights=tuple(weights), relabelling_agreement=kept)
    at = combined_places(seen, weights, rng)
    one = Chains(
        chains.theta.reshape(-1, chains.theta.shape[2])[at],
        {name: values.reshape(-1)[at] for name, values in chains.stats.items()},
        chains.interrupted,
    )
    whole, draws = _with_scales(compiled, one, judged.draws.taken(at), rng)
    return _package(
        compiled,
        setup,
        whole,
        draws,
        diagnostics,
        judged.permutations[at.ravel()],
        mode=seen.nearest.reshape(-1)[at],
        sampled=(judged.draws, chains),
    )


def _not_combined(weights: Sequence[ModeWeight], doubts: Sequence[str]) -> str | None:
    """Why draws of separate modes cannot be combined by their weights, in words; None where they can."""
    unseen = [w for w in weights if not w.chains]
    if sum(w.weight for w in unseen) > LARGEST_UNSEEN:
        return f"no chain stayed at others that hold more than {LARGEST_UNSEEN:.0%} ({in_words(unseen, 0.001)}); raise chains"
    if max(w.error for w in weights) > LARGEST_WEIGHT_ERROR:
        return f"their weights are not known well enough ({in_words(weights)}); raise draws"
    return "; ".join(doubts) or None


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


def _package(
    compiled: Any,
    setup: Setup,
    chains: Chains,
    draws: PosteriorDraws,
    diagnostics: Diagnostics,
    permutations: np.ndarray,
    more: Mapping[str, float] | None = None,
    mode: np.ndarray | None = None,
    sampled: tuple[PosteriorDraws, Chains] | None = None,
) -> Result:
    """Put everything into a DataTree with ArviZ's groups.

    ``more`` are attributes of its root, ``mode`` (chains, draws) the modes that draws are nearest to, and ``sampled`` the chains as they
    were where ``draws`` are made of them.
    """
    task, settings = setup.task, setup.settings
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
    stats = chains.stats if mode is None else chains.stats | {"mode": mode}
    tree = posterior.data_tree(
        draws, task.kind, X, v, task.names, task.prior, stats, attributes, task.classes, density, own
    )
    if sampled is not None:
        posterior.add_sampled_chains(tree, sampled[0], task.kind, sampled[1].stats["lp"], diagnostics.chain_modes)
    interrupted = interruption(chains, settings)
    return Result(draws, tree, diagnostics, setup.mode_order, setup.modes, interrupted, setup.met)
