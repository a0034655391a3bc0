"""Expectation–maximisation: the loop, the starts, and the report of the modes that were found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from bayesgmm.core import covariance, kernel, seeding
from bayesgmm.core.blocks import Task
from bayesgmm.core.covariance import CovarianceStructure, structure
from bayesgmm.core.parameters import FloatArray, MixtureParameters, SufficientStatistics
from bayesgmm.core.priors import ROWS_AT_ONCE, ConjugatePrior, weighted_mean, weighted_range

MAX_RESEEDS = 3
LOOSE_TOL = 1e-4
SLOW = 1e-3
"""Change of the objective below which EM's steps are alike enough to be extrapolated."""

NEAR_SINGULAR = 1e-3
RACE = ((10.0, 1e-3, 6), (1.0, 1e-4, 2))
"""Stages of a race: the tolerance in nats in all, its cap per row, and how many optima go on."""

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.integer[Any]]
Callback = Callable[[int, MixtureParameters, float], None]
Start = Callable[[np.random.Generator], tuple[MixtureParameters, FloatArray]]
"""What makes a start from a seed: parameters and packed covariances."""


@dataclass(frozen=True, eq=False)
class EMRun:
    """One climb from one start.

    Parameters
    ----------
    parameters : MixtureParameters
    covariances : ndarray
        Packed.
    objective : float
        Mean log-likelihood per unit of weight, plus log prior density / Σ v under a prior.
    log_likelihood : float
        Σ_n v_n log p(x_n).
    counts : ndarray of shape (K,)
        N_k.
    lower_bounds : tuple of float
        The objective at the start and after each iteration.
    n_iter : int
        Number of M-steps.
    converged : bool
    n_reseeded : int
        How often a component that had lost its rows or its variance was started anew.
    history : tuple of MixtureParameters
        Parameters at the start and after each iteration, if they were asked for.
    statistics : SufficientStatistics or None
        Of the last pass, so that going on needs no pass of its own.
    """

    parameters: MixtureParameters
    covariances: FloatArray
    objective: float
    log_likelihood: float
    counts: FloatArray
    lower_bounds: tuple[float, ...]
    n_iter: int
    converged: bool
    n_reseeded: int = 0
    history: tuple[MixtureParameters, ...] = ()
    statistics: SufficientStatistics | None = None


@dataclass(frozen=True, eq=False)
class Mode:
    """A distinct optimum of EM.

    Parameters
    ----------
    run : EMRun
        The best climb that ended there.
    n_starts : int
        How many starts led there.
    smallest_count : float
        N_k of the smallest component.
    smallest_eigenvalue : float
        Smallest eigenvalue of D^(-1/2) Σ_k D^(-1/2) over components, D the diagonal of the data's variances.
    spurious : bool
        Near-singular on few rows: a maximum of the unbounded likelihood that says nothing about the data
        (McLachlan & Peel 2000, section 3.10).
    """

    run: EMRun
    n_starts: int
    smallest_count: float
    smallest_eigenvalue: float
    spurious: bool

    @property
    def objective(self) -> float:
        """Objective of the optimum."""
        return self.run.objective

    def __str__(self) -> str:
        note = ", spurious (near-singular)" if self.spurious else ""
        return (
            f"objective {self.objective:.6f} per row, reached by {self.n_starts} start{'s' * (self.n_starts != 1)}, smallest "
            f"component {self.smallest_count:.1f} rows, smallest relative eigenvalue {self.smallest_eigenvalue:.2g}{note}"
        )


@dataclass(frozen=True, eq=False)
class EMFit:
    """What a multi-start fit found: the best run and every distinct mode, best first."""

    best: EMRun
    modes: tuple[Mode, ...]
    failures: tuple[str, ...] = ()


class DegenerateFitError(ValueError):
    """No start led to a mixture with positive definite covariances."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything about a fit but its starting point.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    kind : CovarianceStructure
    prior : ConjugatePrior or None
        Resolved. None is maximum likelihood.
    sample_weight : ndarray of shape (N,) or None
    reg_covar : float
        Added to the variances under maximum likelihood; a prior makes it needless, and it is not used then.
    tol : float
        The climb ends when the objective changes by less.
    max_iter : int
    n_threads : int or None
    """

    X: FloatArray
    kind: CovarianceStructure
    prior: ConjugatePrior | None = None
    sample_weight: FloatArray | None = None
    reg_covar: float = 0.0
    tol: float = 1e-6
    max_iter: int = 1000
    n_threads: int | None = None
    total_weight: float = field(init=False)

    def __post_init__(self) -> None:
        total = float(len(self.X)) if self.sample_weight is None else float(np.sum(self.sample_weight))
        object.__setattr__(self, "total_weight", total)

    def feature_scale(self) -> FloatArray:
        """Standard deviation (D,) of each feature under the weights; 1 where it is constant."""
        return self._feature_scale

    @cached_property
    def _feature_scale(self) -> FloatArray:
        # Asked for at every start and jump; to find it takes as long as several passes.
        v = self.sample_weight
        center = weighted_mean(self.X, v)
        squares = np.zeros_like(center)
        for start in range(0, len(self.X), ROWS_AT_ONCE):
            deviation = (self.X[start : start + ROWS_AT_ONCE] - center) ** 2
            squares += deviation.sum(axis=0) if v is None else v[start : start + ROWS_AT_ONCE] @ deviation
        deviations = np.sqrt(squares / self.total_weight)
        # The mean of very many equal numbers is not quite that number: the range says that they are.
        low, high = weighted_range(self.X, v)
        return np.where((low < high) & (deviations > 1e-14 * np.abs(center)), deviations, 1.0)

    def e_step(self, parameters: MixtureParameters, moments: str | None = None) -> SufficientStatistics:
        """Sums of one pass at the parameters; ``moments`` as in ``kernel.accumulate``, what the structure needs when None."""
        return kernel.accumulate(
            self.X, parameters, self.sample_weight, self.n_threads, self.kind.moments if moments is None else moments
        )

    def total(self, task: Task) -> Any:
        """Sum of a task over the rows, in blocks or all at once."""
        return task(self.X, self.sample_weight, 0)

    def m_step(self, statistics: SufficientStatistics, means: FloatArray) -> tuple[MixtureParameters, FloatArray]:
        """Parameters and packed covariances that maximise the expected complete-data objective.

        Raises
        ------
        numpy.linalg.LinAlgError
            If a component has lost its rows or its variance (maximum likelihood alone).
        """
        if self.prior is not None:
            weights, new_means, packed = covariance.maximise_with_prior(statistics, means, self.kind, self.prior)
        else:
            if np.min(statistics.counts) < 1e-10 * self.total_weight:
                raise np.linalg.LinAlgError("a component is empty")
            weights, new_means, packed = covariance.maximise(statistics, means, self.kind, self.reg_covar)
        K, D = new_means.shape
        return MixtureParameters(weights, new_means, self.kind.factors(packed, K, D)), packed

    def admissible(self, parameters: MixtureParameters) -> MixtureParameters:
        """Parameters that obey what the problem holds fixed: here nothing."""
        return parameters

    def initial_assignment(self, method: str, n_components: int, rng: np.random.Generator) -> np.ndarray:
        """Labels (N,) or responsibilities (N, K) to start from, by a method of ``bayesgmm.core.seeding``."""
        return seeding.initial_assignment(method, self.X, n_components, self.sample_weight, rng)

    def badly_fitted(self, parameters: MixtureParameters, lost: BoolArray, rng: np.random.Generator) -> IntArray:
        """A row for each lost component, from among those of the lowest density, to start it anew at."""
        K = len(lost)
        counted = np.arange(len(self.X)) if self.sample_weight is None else np.flatnonzero(self.sample_weight > 0)
        density = kernel.log_density(self.X, parameters, self.n_threads)[counted]
        worst = counted[np.argsort(density)[: max(10 * K, len(density) // 20)]]
        return rng.choice(worst, size=int(lost.sum()))

    def objective(self, statistics: SufficientStatistics, parameters: MixtureParameters) -> float:
        """Mean log-likelihood (plus log prior density) per unit of weight."""
        total = statistics.log_likelihood
        if self.prior is not None:
            theta = parameters
            total += float(
                self.prior.log_density_from_factors(theta.weights, theta.means, theta.precision_factors, self.kind.name)
            )
        return total / self.total_weight


def climb(
    problem: Problem,
    parameters: MixtureParameters,
    packed: FloatArray,
    rng: np.random.Generator,
    callback: Callback | None = None,
    keep_history: bool = False,
    n_before: int = 0,
    statistics: SufficientStatistics | None = None,
) -> EMRun:
    """EM from given parameters until the objective changes by less than ``tol`` (Dempster, Laird & Rubin 1977).

    Parameters
    ----------
    problem : Problem
    parameters : MixtureParameters
        The start.
    packed : ndarray
        Its covariances in packed shape.
    rng : numpy.random.Generator
        Chooses the row at which a lost component is started anew.
    callback : callable, optional
        Called as ``callback(iteration, parameters, objective)`` at the start (iteration 0) and after each iteration.
    keep_history : bool, default False
    n_before : int, default 0
        Iterations that led to the start, where this goes on from another climb: the callback counts on from there.
    statistics : SufficientStatistics, optional
        Of a pass at the start, where there was one.

    Returns
    -------
    EMRun

    Raises
    ------
    DegenerateFitError
        If components keep losing their rows or their variance.
    """
    bounds: list[float] = []
    history: list[MixtureParameters] = []
    reseeded, last_reseed, converged, iteration = 0, 0, False, 0
    while True:
        if statistics is None:
            statistics = problem.e_step(parameters)
        objective = problem.objective(statistics, parameters)
        if not np.isfinite(objective):
            raise DegenerateFitError("the log-likelihood left the range of float64: rescale the data")
        bounds.append(objective)
        if keep_history:
            history.append(parameters)
        if callback is not None and (iteration or not n_before):
            callback(n_before + iteration, parameters, objective)
        converged = iteration > last_reseed and abs(bounds[-1] - bounds[-2]) < problem.tol
        if converged or iteration >= problem.max_iter:
            break
        try:
            parameters, packed = problem.m_step(statistics, parameters.means)
        except np.linalg.LinAlgError as error:
            if reseeded == MAX_RESEEDS:
                raise DegenerateFitError(f"components kept collapsing ({error})") from None
            reseeded += 1
            last_reseed = iteration + 1
            parameters, packed = restarted(problem, statistics, parameters, rng)
        statistics = None
        iteration += 1
    return EMRun(
        parameters,
        packed,
        objective,
        statistics.log_likelihood,
        statistics.counts,
        tuple(bounds),
        iteration,
        converged,
        reseeded,
        tuple(history),
        statistics,
    )


def restarted(
    problem: Problem, statistics: SufficientStatistics, parameters: MixtureParameters, rng: np.random.Generator
) -> tuple[MixtureParameters, FloatArray]:
    """Start lost components anew at badly fitted rows, with the pooled covariance of the others."""
    if len(statistics.second) != len(statistics.counts) or statistics.second.ndim == 2:
        statistics = problem.e_step(parameters, "full")
    means, scatter = covariance.centred_moments(statistics, parameters.means)
    counts = statistics.counts.copy()
    K, D = means.shape
    lost = counts < 1e-10 * problem.total_weight
    scale = problem.feature_scale()
    for k in range(K):
        relative = scatter[k] / max(counts[k], 1e-300) / scale / scale[:, None]
        lost[k] |= bool(np.linalg.eigvalsh(relative)[0] < 1e-12)
    if not lost.any():
        lost[np.argmin(counts)] = True
    means[lost] = problem.X[problem.badly_fitted(parameters, lost, rng)]
    counts[lost] = problem.total_weight / K
    return _from_scatter(problem, counts, means, np.where(lost[:, None, None], 0.0, scatter), lost)


def _from_scatter(
    problem: Problem, counts: FloatArray, means: FloatArray, scatter: FloatArray, thin: BoolArray | None = None
) -> tuple[MixtureParameters, FloatArray]:
    """Parameters from groups of rows; groups too thin for a covariance of their own borrow the pooled one."""
    K, D = means.shape
    borrowed = np.full(K, float(D + 2))
    if thin is not None:
        borrowed[thin] = np.maximum(counts[thin], D + 2)
    enough = counts > 2 * (D + 1)
    if thin is not None:
        enough &= ~thin
    floor = 1e-6 * np.diag(problem.feature_scale() ** 2)
    if problem.prior is not None:
        floor += np.diag(np.diagonal(problem.prior.resolved_scale)) / (
            problem.prior.resolved_degrees_of_freedom + D + 2
        )
    pooled = scatter.sum(axis=0) / problem.total_weight + floor
    smoothed = np.where(enough[:, None, None], scatter, scatter + borrowed[:, None, None] * pooled)
    divisor = np.where(enough, counts, counts * (thin is None or ~thin) + borrowed)
    statistics = SufficientStatistics(0.0, problem.total_weight, np.maximum(divisor, 1e-12), np.zeros((K, D)), smoothed)
    solo = replace(problem, prior=None)
    try:
        parameters, packed = solo.m_step(statistics, means)
    except np.linalg.LinAlgError:
        smoothed = smoothed + divisor[:, None, None] * (pooled + floor)
        parameters, packed = solo.m_step(replace(statistics, second=smoothed), means)
    weights = np.maximum(counts, 1e-3 * problem.total_weight / K)
    return replace(parameters, weights=weights / weights.sum()), packed


def start_from_labels(problem: Problem, labels: IntArray, n_components: int) -> tuple[MixtureParameters, FloatArray]:
    """Parameters from a hard assignment of the rows.

    Parameters
    ----------
    problem : Problem
    labels : ndarray of shape (N,)
        Group of each row, 0 … K − 1.
    n_components : int
        K.

    Returns
    -------
    parameters : MixtureParameters
    covariances : ndarray
        Packed.
    """
    D = problem.X.shape[1]
    v = problem.sample_weight
    counts = np.zeros(n_components)
    sums = np.zeros((n_components, D))
    for start in range(0, len(labels), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        own = labels[part]
        weight = np.ones(len(own)) if v is None else v[part]
        counts += np.bincount(own, weights=weight, minlength=n_components)
        for j in range(D):
            sums[:, j] += np.bincount(own, weights=problem.X[part, j] * weight, minlength=n_components)
    centre = weighted_mean(problem.X, v)
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1e-300)[:, None], centre)
    scatter = np.zeros((n_components, D, D))
    for k in range(n_components):
        member = np.flatnonzero(labels == k)
        for start in range(0, len(member), ROWS_AT_ONCE):
            rows = member[start : start + ROWS_AT_ONCE]
            centred = problem.X[rows] - means[k]
            scatter[k] += (centred if v is None else centred * v[rows, None]).T @ centred
    return _from_scatter(problem, counts, means, scatter)


def start_from_responsibilities(problem: Problem, resp: FloatArray) -> tuple[MixtureParameters, FloatArray]:
    """Parameters from a soft assignment (N, K) of the rows: one M-step."""
    weighted = resp if problem.sample_weight is None else resp * problem.sample_weight[:, None]
    counts = weighted.sum(axis=0)
    K, D = resp.shape[1], problem.X.shape[1]
    centre = weighted_mean(problem.X, problem.sample_weight)
    sums = np.zeros((K, D))
    for start in range(0, len(resp), ROWS_AT_ONCE):
        sums += weighted[start : start + ROWS_AT_ONCE].T @ problem.X[start : start + ROWS_AT_ONCE]
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1e-300)[:, None], centre)
    scatter = np.zeros((K, D, D))
    for k in range(K):
        for start in range(0, len(resp), ROWS_AT_ONCE):
            centred = problem.X[start : start + ROWS_AT_ONCE] - means[k]
            scatter[k] += (centred * weighted[start : start + ROWS_AT_ONCE, k, None]).T @ centred
    return _from_scatter(problem, counts, means, scatter)


def start(
    problem: Problem, n_components: int, method: str, rng: np.random.Generator
) -> tuple[MixtureParameters, FloatArray]:
    """Parameters of a start by a method of ``bayesgmm.core.seeding``."""
    assignment = problem.initial_assignment(method, n_components, rng)
    if assignment.ndim == 1:
        return start_from_labels(problem, assignment.astype(np.int32, copy=False), n_components)
    return start_from_responsibilities(problem, assignment.astype(np.float64, copy=False))


def fit(
    X: FloatArray,
    n_components: int,
    covariance_type: str = "full",
    *,
    prior: ConjugatePrior | None = None,
    sample_weight: FloatArray | None = None,
    reg_covar: float = 0.0,
    tol: float = 1e-6,
    max_iter: int = 1000,
    n_init: int = 10,
    init_params: str = "kmeans",
    rng: np.random.Generator,
    starts: Sequence[tuple[MixtureParameters, FloatArray]] | None = None,
    n_threads: int | None = None,
    callback: Callback | None = None,
    keep_history: bool = False,
    accelerated: bool = True,
) -> EMFit:
    """Fit a mixture from several starts and report the distinct optima.

    All starts are climbed to a loose tolerance first; those that arrive at the same place go on as one, accelerated
    (:func:`bayesgmm.core.em.accelerate`).

    Parameters
    ----------
    X : ndarray of shape (N, D)
        C-contiguous float64 or float32, finite; float32 is not copied, and the fit is that of the same numbers in float64.
    n_components : int
        K.
    covariance_type : {"full", "tied", "diag", "spherical"}, default "full"
    prior : ConjugatePrior, optional
        Resolved; None is maximum likelihood.
    sample_weight : ndarray of shape (N,), optional
        Frequency weights.
    reg_covar : float, default 0.0
        Added to every variance; not used under a prior.
    tol : float, default 1e-6
        Absolute change of the objective (per unit of weight) at which a climb ends.
    max_iter : int, default 1000
    n_init : int, default 10
        Number of starts, mixed over the methods of ``bayesgmm.core.seeding``.
    init_params : str, default "kmeans"
        Method of the first start.
    rng : numpy.random.Generator
    starts : sequence of (MixtureParameters, packed covariances), optional
        Given starts instead of seeded ones.
    n_threads : int, optional
    callback : callable, optional
        ``callback(iteration, parameters, objective)`` on every iteration of every climb.
    keep_history : bool, default False
        All steps are plain EM's then.
    accelerated : bool, default True
        False climbs by plain steps of EM to the end, as do ``tol=0`` and ``keep_history``.

    Returns
    -------
    EMFit

    Raises
    ------
    DegenerateFitError
        If no start led to positive definite covariances.
    ValueError
        If the prior has a weight concentration below 1: its mode is at weight 0, where the density is unbounded.
    """
    refuse_without_mode(prior)
    kind = structure(covariance_type)
    problem = Problem(X, kind, prior, sample_weight, reg_covar, tol, max_iter, n_threads)
    if starts is not None:
        return fit_problem(problem, as_given(starts), rng, callback, keep_history, accelerated)
    methods = seeding.mixed_starts(init_params, n_init, X.shape[1])
    if n_components == 1:
        methods = methods[:1]
    seeded = [(method, partial(start, problem, n_components, method)) for method in methods]
    return fit_problem(problem, seeded, rng, callback, keep_history, accelerated)


def refuse_without_mode(prior: ConjugatePrior | None) -> None:
    """Refuse a prior with a weight concentration below 1.

    Raises
    ------
    ValueError
    """
    if prior is not None and np.min(prior.resolved_concentration) < 1:
        raise ValueError("a mode needs weight_concentration ≥ 1: below 1 the prior density is unbounded at weight 0")


def as_given(starts: Sequence[tuple[MixtureParameters, FloatArray]]) -> list[tuple[str, Start]]:
    """Given starts as :func:`fit_problem` takes them."""
    return [("given", partial(_as_given, begin)) for begin in starts]


def _as_given(
    begin: tuple[MixtureParameters, FloatArray], rng: np.random.Generator
) -> tuple[MixtureParameters, FloatArray]:
    return begin


def fit_problem(
    problem: Problem,
    starts: Sequence[tuple[str, Start]],
    rng: np.random.Generator,
    callback: Callback | None = None,
    keep_history: bool = False,
    accelerated: bool = True,
    counts: Sequence[int] | None = None,
) -> EMFit:
    """Climb from starts that are made when their turn comes; see :func:`fit`.

    Parameters
    ----------
    problem : Problem
    starts : sequence of (name, function of a generator)
    rng : numpy.random.Generator
    callback : callable, optional
    keep_history : bool, default False
    accelerated : bool, default True
    counts : sequence of int, optional
        How many starts each stands for; 1 unless given.

    Returns
    -------
    EMFit

    Raises
    ------
    DegenerateFitError
        If no start led to positive definite covariances.
    """
    tol = problem.tol
    seeds = rng.spawn(len(starts))
    several = len(starts) > 1
    loose = replace(problem, tol=max(tol, LOOSE_TOL)) if several else problem
    plain = keep_history or not accelerated or tol == 0
    found: list[tuple[EMRun, int]] = []
    failures: list[str] = []
    for (name, make), seed, reached in zip(starts, seeds, counts or [1] * len(starts), strict=True):
        try:
            begin = make(seed)
            if several or plain:
                found.append((climb(loose, *begin, seed, callback, keep_history), reached))
            else:
                found.append((ascend(problem, *begin, seed, callback), reached))
        except (DegenerateFitError, np.linalg.LinAlgError) as error:
            failures.append(f"{name} start: {error}")
    scale = problem.feature_scale()
    if several and tol < loose.tol:
        finished: list[tuple[EMRun, int]] = []
        for run, reached in _distinct(found, scale, problem.total_weight):
            try:
                if plain:
                    finished.append((_continued(problem, run, rng, callback, keep_history), reached))
                else:
                    finished.append((accelerate(problem, run, rng, callback), reached))
            except DegenerateFitError as error:
                failures.append(str(error))
        found = finished
    if not found:
        raise _no_start(failures)
    modes = [describe(problem, run, reached, scale) for run, reached in _distinct(found, scale, problem.total_weight)]
    modes.sort(key=lambda mode: (mode.spurious, -mode.objective))
    return EMFit(modes[0].run, tuple(modes), tuple(failures))


def race(
    problem: Problem,
    starts: Sequence[tuple[MixtureParameters, FloatArray]],
    rng: np.random.Generator,
    n_kept: int = 1,
    callback: Callback | None = None,
    rehearsal: Problem | None = None,
) -> EMFit:
    """Climb from several starts, going on at each stage with the most promising optima alone.

    All starts are climbed to a loose tolerance (``RACE``), the best six to a tighter one, and ``n_kept`` of the best two are
    climbed to the end, accelerated (``accelerate``). :func:`fit` climbs every distinct optimum to the end: more certain of the
    best and of the others, and several times as long where there are more components than the data carry.

    Parameters
    ----------
    problem : Problem
    starts : sequence of (MixtureParameters, packed covariances)
    rng : numpy.random.Generator
    n_kept : int, default 1
        Optima climbed to the end; more are where those are near-singular and others are left.
    callback : callable, optional
        As for ``climb``; what it raises ends the race.
    rehearsal : Problem, optional
        The same with some of the rows, which the starts were made from: the first stage is run there, and its best six begin on
        all rows.

    Returns
    -------
    EMFit
        ``modes`` are the optima that were climbed to the end.

    Raises
    ------
    DegenerateFitError
        If no start led to positive definite covariances.
    """
    scale = problem.feature_scale()
    failures: list[str] = []
    field: list[tuple[EMRun | None, MixtureParameters, FloatArray, int]]
    field = [(None, parameters, packed, 1) for parameters, packed in starts]

    def climbed(
        tol: float,
        entries: Sequence[tuple[EMRun | None, MixtureParameters, FloatArray, int]],
        of: Problem = problem,
        last: bool = False,
    ) -> list[tuple[EMRun, int]]:
        stage, out = replace(of, tol=tol), []
        for run, parameters, packed, reached in entries:
            try:
                if run is None:
                    out.append((climb(stage, parameters, packed, rng, callback), reached))
                elif last:
                    out.append((accelerate(stage, run, rng, callback), reached))
                else:
                    out.append((_continued(stage, run, rng, callback, False), reached))
            except (DegenerateFitError, np.linalg.LinAlgError) as error:
                failures.append(str(error))
        return out

    def again(modes: Sequence[Mode]) -> list[tuple[EMRun | None, MixtureParameters, FloatArray, int]]:
        return [(mode.run, mode.run.parameters, mode.run.covariances, mode.n_starts) for mode in modes]

    def ranked(found: list[tuple[EMRun, int]]) -> list[Mode]:
        distinct = _distinct(found, scale, problem.total_weight)
        modes = [describe(problem, run, reached, scale) for run, reached in distinct]
        return sorted(modes, key=lambda mode: (mode.spurious, -mode.objective))

    if rehearsal is not None:
        loosest, n_on = RACE[0][1:]
        seen = sorted(
            _distinct(climbed(loosest, field, rehearsal), scale, rehearsal.total_weight), key=lambda f: -f[0].objective
        )
        field = [(None, run.parameters, run.covariances, reached) for run, reached in seen[:n_on]]
    waiting: list[Mode] = []
    for nats, cap, n_on in RACE:
        tol = max(problem.tol, min(cap, nats / problem.total_weight))
        modes = ranked(climbed(tol, field))
        waiting = modes[n_on:] + waiting
        field = again(modes[:n_on])
    finished: list[tuple[EMRun, int]] = []
    queue = field + again(waiting)
    while queue:
        finished += climbed(problem.tol, queue[:1], last=True)
        queue = queue[1:]
        if len(finished) >= n_kept and not ranked(finished)[0].spurious:
            break
    if not finished:
        raise _no_start(failures)
    modes = ranked(finished)
    return EMFit(modes[0].run, tuple(modes), tuple(failures))


def accelerate(
    problem: Problem, run: EMRun, rng: np.random.Generator, callback: Callback | None = None, longest: float = 64.0
) -> EMRun:
    """Climb on from where a run ended by squared extrapolation of EM's steps (SQUAREM).

    From two steps of EM, r the first and v the second less the first, it jumps by 2 a r + a² v with ``a = |r| / |v|``, in log weights,
    means and precision factors (their diagonals' logs) in units of the features' spreads; where the objective would be lower than EM's
    own, the jump is not made. It ends as :func:`fit` does, by the change over a plain step of EM.

    Parameters
    ----------
    problem : Problem
    run : EMRun
    rng : numpy.random.Generator
    callback : callable, optional
        As for ``climb``, after every pass.
    longest : float, default 64.0
        Largest a.

    Returns
    -------
    EMRun
        ``n_iter`` counts the passes over the data, and ``lower_bounds`` has the objective after each: as it was, where a jump was
        not made.

    References
    ----------
    Varadhan, R. & Roland, C. (2008). Simple and globally convergent methods for accelerating the convergence of any EM algorithm.
    Scandinavian Journal of Statistics 35, 335–353, scheme S3.
    """
    scale = problem.feature_scale()
    here, packed, objective = run.parameters, run.covariances, run.objective
    statistics = problem.e_step(here) if run.statistics is None else run.statistics
    bounds, converged, lost = list(run.lower_bounds), False, False

    def passed() -> None:
        bounds.append(objective)
        if callback is not None:
            callback(len(bounds) - 1, here, objective)

    while len(bounds) <= problem.max_iter and not converged:
        try:
            one, packed = problem.m_step(statistics, here.means)
            before, last = here, objective
            here, statistics = one, problem.e_step(one)
            objective = problem.objective(statistics, here)
            if not np.isfinite(objective):
                raise DegenerateFitError("the log-likelihood left the range of float64: rescale the data")
            passed()
            converged = abs(objective - last) < problem.tol
            if converged or len(bounds) > problem.max_iter:
                break
            two, _ = problem.m_step(statistics, here.means)
            jumped = _jump(before, here, two, scale, longest)
            if jumped is None:
                continue
            jumped = problem.admissible(jumped)
            far = problem.e_step(jumped)
            gained = problem.objective(far, jumped)
        except np.linalg.LinAlgError:
            lost = True
            break
        if np.isfinite(gained) and gained >= objective:
            here, objective, statistics = jumped, gained, far
            packed = problem.kind.pack(jumped.covariances)
        passed()
    converged = converged or (len(bounds) == len(run.lower_bounds) and _settled(run, problem.tol))
    ended = replace(
        run,
        parameters=here,
        covariances=packed,
        objective=objective,
        log_likelihood=statistics.log_likelihood,
        counts=statistics.counts,
        lower_bounds=tuple(bounds),
        n_iter=len(bounds) - 1,
        converged=converged,
        statistics=statistics,
    )
    # Where a component has lost its rows, the plain climb knows what to do.
    return _continued(problem, ended, rng, callback, False) if lost else ended


def _jump(
    zero: MixtureParameters, one: MixtureParameters, two: MixtureParameters, scale: FloatArray, longest: float
) -> MixtureParameters | None:
    """The point that two steps of EM point to; None where it is no further than they are."""
    start, first, second = (_coordinates(p, scale) for p in (zero, one, two))
    r = first - start
    v = second - first - r
    size = float(np.linalg.norm(v))
    a = min(float(np.linalg.norm(r)) / size, longest) if size > 0 else 0.0
    if not (np.isfinite(a) and a > 1):
        return None
    K, D = zero.means.shape
    u = start + 2 * a * r + a * a * v
    log_weights = u[:K] - u[:K].max()
    weights = np.exp(log_weights)
    factors = u[K + K * D :].reshape(K, D, D).copy()
    diagonal = np.arange(D)
    factors[:, diagonal, diagonal] = np.exp(np.clip(factors[:, diagonal, diagonal], -300, 300))
    return MixtureParameters(
        weights / weights.sum(), u[K : K + K * D].reshape(K, D) * scale, np.ascontiguousarray(factors / scale[:, None])
    )


def _coordinates(parameters: MixtureParameters, scale: FloatArray) -> FloatArray:
    """Log weights, means and precision factors with the logs of their diagonals, in units of the features' spreads."""
    factors = parameters.precision_factors * scale[:, None]
    diagonal = np.arange(len(scale))
    factors[:, diagonal, diagonal] = np.log(factors[:, diagonal, diagonal])
    weights = np.log(np.maximum(parameters.weights, 1e-300))
    return np.concatenate([weights, (parameters.means / scale).ravel(), factors.ravel()])


def ascend(
    problem: Problem,
    parameters: MixtureParameters,
    packed: FloatArray,
    rng: np.random.Generator,
    callback: Callback | None = None,
) -> EMRun:
    """Climb from a start to the end: by EM until it slows down, then accelerated.

    Parameters
    ----------
    problem : Problem
    parameters : MixtureParameters
    packed : ndarray
    rng : numpy.random.Generator
    callback : callable, optional

    Returns
    -------
    EMRun
    """
    run = climb(replace(problem, tol=max(problem.tol, SLOW)), parameters, packed, rng, callback)
    return accelerate(problem, run, rng, callback) if problem.tol < SLOW else run


def _no_start(failures: Sequence[str]) -> DegenerateFitError:
    return DegenerateFitError(
        "no start led to positive definite covariances: "
        + "; ".join(sorted(set(failures)))
        + ". Use fewer components, a simpler covariance_type, reg_covar > 0 or a prior"
    )


def _settled(run: EMRun, tol: float) -> bool:
    """Whether the last step of a climb changed the objective by less than a tolerance that may be tighter than its own."""
    return run.converged and abs(run.lower_bounds[-1] - run.lower_bounds[-2]) < tol


def _continued(
    problem: Problem, run: EMRun, rng: np.random.Generator, callback: Callback | None, keep_history: bool
) -> EMRun:
    """Climb on from where a run ended."""
    left = replace(problem, max_iter=max(0, problem.max_iter - run.n_iter))
    more = climb(left, run.parameters, run.covariances, rng, callback, keep_history, run.n_iter, run.statistics)
    return replace(
        more,
        lower_bounds=run.lower_bounds + more.lower_bounds[1:],
        converged=more.converged or (more.n_iter == 0 and _settled(run, problem.tol)),
        n_iter=run.n_iter + more.n_iter,
        n_reseeded=run.n_reseeded + more.n_reseeded,
        history=run.history + more.history[1:],
    )


def _distinct(found: Sequence[tuple[EMRun, int]], scale: FloatArray, total_weight: float) -> list[tuple[EMRun, int]]:
    """Merge runs that ended at the same optimum up to the order of the components; the best run of each stays."""
    kept: list[tuple[EMRun, int]] = []
    for run, reached in sorted(found, key=lambda pair: -pair[0].objective):
        for position, (other, count) in enumerate(kept):
            if same_optimum(run, other, scale, total_weight):
                kept[position] = (other, count + reached)
                break
        else:
            kept.append((run, reached))
    return kept


SAME_NATS, SAME_DISTANCE = 0.5, 0.02
"""Nats in all, and shares of a feature's spread in any matched mean, within which two climbs are the same mode."""


def same_optimum(a: EMRun, b: EMRun, scale: FloatArray, total_weight: float) -> bool:
    """Whether two runs ended at the same mode."""
    if abs(a.objective - b.objective) * total_weight > SAME_NATS:
        return False
    return matched_distance(a.parameters, b.parameters, scale) < SAME_DISTANCE


def matched_distance(a: MixtureParameters, b: MixtureParameters, scale: FloatArray) -> float:
    """Largest difference of means (in units of ``scale``), root variances and weights after the best matching."""
    spread_a = np.sqrt(np.diagonal(a.covariances, axis1=1, axis2=2)) / scale
    spread_b = np.sqrt(np.diagonal(b.covariances, axis1=1, axis2=2)) / scale
    features_a = np.column_stack([a.means / scale, spread_a, a.weights])
    features_b = np.column_stack([b.means / scale, spread_b, b.weights])
    distance = np.max(np.abs(features_a[:, None] - features_b[None]), axis=2)
    rows, columns = linear_sum_assignment(distance)
    return float(distance[rows, columns].max())


def describe(problem: Problem, run: EMRun, reached: int, scale: FloatArray) -> Mode:
    """An optimum with what tells whether it is near-singular; ``scale`` (D,) holds the features' standard deviations."""
    matrices = run.parameters.covariances
    relative = matrices / scale / scale[:, None]
    smallest = np.linalg.eigvalsh(relative)[:, 0]
    # Within-scale as well: clusters a thousand spreads apart are all small against the data, and none is spurious.
    within = np.sqrt(np.einsum("k,kjj->j", run.parameters.weights, matrices))
    against_within = np.linalg.eigvalsh(matrices / within / within[:, None])[:, 0]
    few = run.counts < max(10 * (len(scale) + 1), 0.05 * problem.total_weight)
    spurious = problem.prior is None and bool(
        np.any((smallest < NEAR_SINGULAR) & (against_within < 10 * NEAR_SINGULAR) & few)
    )
    return Mode(run, reached, float(run.counts.min()), float(smallest.min()), spurious)
