"""EM on rows that never stand in memory together: starts from a subsample, then passes over all blocks.

An optimum is looked for on a simple random sample of the rows, from several starts. From there EM goes on with all rows, a pass over
the blocks for each step, accelerated (:func:`bayesgmm.core.em.accelerate`). Given a start, the steps are those of EM in memory, but
for the order in which sums are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, override

import numpy as np

from bayesgmm.core import em, kernel
from bayesgmm.core.blocks import Accumulate, Draw, Moments, RowBlocks, Subsample, Task, moments
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray, MixtureParameters, SufficientStatistics
from bayesgmm.core.priors import ConjugatePrior, weighted_median

SUBSAMPLE_ROWS = 100_000
"""Rows that the starts are made from and climbed on."""

STANDARD_ERRORS = 3.0
MOST_FOLLOWED = 3
"""Optima of the subsample that are followed on all rows: within so many standard errors of the best, and no more than these."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known of a table before it is fitted.

    Parameters
    ----------
    moments : Moments
        Of all rows.
    sample : Subsample
    """

    moments: Moments
    sample: Subsample

    @property
    def mean_and_covariance(self) -> tuple[FloatArray, FloatArray]:
        """Mean (D,) and unbiased covariance (D, D) of all rows.

        Raises
        ------
        ValueError
            If all weights together are no more than one observation.
        """
        weight = self.moments.weight
        if weight <= 1:
            raise ValueError(f"the rows' weights sum to {weight:g}: they must sum to more than one observation")
        return self.moments.mean, self.moments.scatter / (weight - 1)


def survey(blocks: RowBlocks, seed: int, n_rows: int = SUBSAMPLE_ROWS) -> Survey:
    """Look at all rows twice: once for their moments, once to draw a sample.

    Parameters
    ----------
    blocks : RowBlocks
    seed : int
        Of the sample; with the table it decides which rows are drawn.
    n_rows : int, default 100,000
        Of the sample, or all rows of positive weight where there are fewer. 0 draws none, and looks once.

    Returns
    -------
    Survey
    """
    found = blocks.total(moments)
    if n_rows == 0:
        nothing = np.empty(0)
        return Survey(found, Subsample(0, ((np.empty((0, blocks.n_features)), nothing, nothing),)))
    share = (n_rows + 10 * np.sqrt(n_rows)) / max(found.n_counted, 1)
    return Survey(found, blocks.total(Draw(n_rows, seed, min(1.0, share))))


@dataclass(frozen=True, eq=False)
class BlockedProblem(em.Problem):
    """A problem of EM whose rows are in blocks.

    Parameters
    ----------
    X, sample_weight : ndarray
        A sample of all rows: a lost component is started anew at one of them.
    blocks : RowBlocks
    survey : Survey
    """

    blocks: RowBlocks = field(kw_only=True)
    survey: Survey = field(kw_only=True)

    @override
    def __post_init__(self) -> None:
        object.__setattr__(self, "total_weight", self.survey.moments.weight)

    @override
    def feature_scale(self) -> FloatArray:
        found = self.survey.moments
        deviations = np.sqrt(np.diagonal(found.scatter) / found.weight)
        return np.where(deviations > 1e-14 * np.abs(found.mean), deviations, 1.0)

    @override
    def e_step(self, parameters: MixtureParameters, moments: str | None = None) -> SufficientStatistics:
        return self.total(Accumulate(parameters, self.n_threads, self.kind.moments if moments is None else moments))

    @override
    def total(self, task: Task) -> Any:
        return self.blocks.total(task)


def problem_of(
    blocks: RowBlocks, found: Survey, covariance_type: str, prior: ConjugatePrior | None, **settings: Any
) -> BlockedProblem:
    """The problem of fitting blocks; ``settings`` are those of :class:`bayesgmm.core.em.Problem`."""
    sample = found.sample
    weights = None if np.all(sample.weights == 1) else sample.weights
    kind = structure(covariance_type)
    return BlockedProblem(sample.rows, kind, prior, weights, blocks=blocks, survey=found, **settings)


def fit(
    problem: BlockedProblem,
    n_components: int,
    *,
    n_init: int = 10,
    init_params: str = "kmeans",
    rng: np.random.Generator,
    starts: Sequence[tuple[MixtureParameters, FloatArray]] | None = None,
    callback: em.Callback | None = None,
    keep_history: bool = False,
    accelerated: bool = True,
) -> em.EMFit:
    """Fit a mixture to blocks.

    Parameters
    ----------
    problem : BlockedProblem
        From :func:`problem_of`.
    n_components : int
        K.
    n_init : int, default 10
        Starts on the subsample.
    init_params : str, default "kmeans"
        Method of the first start.
    rng : numpy.random.Generator
    starts : sequence of (MixtureParameters, packed covariances), optional
        Given starts: each is climbed on all rows, and nothing on a subsample.
    callback : callable, optional
        ``callback(iteration, parameters, objective)`` of every pass over all rows.
    keep_history : bool, default False
    accelerated : bool, default True
        False climbs by plain steps of EM.

    Returns
    -------
    EMFit
        ``modes`` are the optima that were followed on all rows: those of the subsample that it cannot tell from the best, their
        log-likelihoods there being within ``STANDARD_ERRORS`` standard errors of the difference (Vuong 1989), three at most.

    Raises
    ------
    DegenerateFitError
        If no start led to positive definite covariances.
    ValueError
        If the prior has a weight concentration below 1.

    References
    ----------
    Vuong (1989), Likelihood ratio tests for model selection and non-nested hypotheses, Econometrica 57, 307–333.
    """
    em.refuse_without_mode(problem.prior)
    counts = None
    if starts is None:
        modes = _followed(problem, _fit_sample(problem, n_components, n_init, init_params, rng))
        starts = [(mode.run.parameters, mode.run.covariances) for mode in modes]
        counts = [mode.n_starts for mode in modes]
    return em.fit_problem(problem, em.as_given(starts), rng, callback, keep_history, accelerated, counts)


def _fit_sample(
    problem: BlockedProblem, n_components: int, n_init: int, init_params: str, rng: np.random.Generator
) -> em.EMFit:
    """Fit the subsample alone."""
    return em.fit(
        problem.X,
        n_components,
        problem.kind.name,
        prior=problem.prior,
        sample_weight=problem.sample_weight,
        reg_covar=problem.reg_covar,
        tol=max(problem.tol, 1e-7),
        max_iter=problem.max_iter or 1,
        n_init=n_init,
        init_params=init_params,
        rng=rng,
        n_threads=problem.n_threads,
    )


def _followed(problem: BlockedProblem, found: em.EMFit) -> list[em.Mode]:
    """Optima of the subsample that may be the best on all rows."""
    modes = [mode for mode in found.modes if mode.spurious == found.modes[0].spurious]
    v = problem.sample_weight
    best = kernel.log_density(problem.X, modes[0].run.parameters, problem.n_threads)
    kept = modes[:1]
    for mode in modes[1:]:
        lost = best - kernel.log_density(problem.X, mode.run.parameters, problem.n_threads)
        mean = np.average(lost, weights=v)
        variance = np.average((lost - mean) ** 2, weights=v)
        if mean <= STANDARD_ERRORS * np.sqrt(variance / len(lost)):
            kept.append(mode)
    return kept[:MOST_FOLLOWED]


@dataclass(frozen=True)
class BlockSummary:
    """:class:`bayesgmm.core.priors.DataSummary` of blocks: as in memory, but for the median, which is that of the sample.

    Parameters
    ----------
    blocks : RowBlocks
    survey : Survey
    n_components : int
        K of the fit that S_w is of.
    covariance_type : {"full", "tied", "diag", "spherical"}
        Its structure.
    """

    blocks: RowBlocks
    survey: Survey
    n_components: int
    covariance_type: str

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return self.blocks.n_features

    @property
    def mean(self) -> FloatArray:
        """Mean (D,)."""
        return self.survey.mean_and_covariance[0]

    @property
    def covariance(self) -> FloatArray:
        """Unbiased covariance (D, D)."""
        return self.survey.mean_and_covariance[1]

    @property
    def median(self) -> FloatArray:
        """Median (D,) of each feature in the sample."""
        return weighted_median(self.survey.sample.rows, self.survey.sample.weights)

    @property
    def range(self) -> tuple[FloatArray, FloatArray]:
        """Smallest and largest value of each feature."""
        return self.survey.moments.low, self.survey.moments.high

    @property
    def within_covariance(self) -> FloatArray:
        """S_w = Σ_k π_k Σ_k of the maximum a posteriori fit to all rows under the Fraley–Raftery prior."""
        regular = ConjugatePrior.from_moments(self.mean, self.covariance, self.n_components)
        problem = problem_of(self.blocks, self.survey, self.covariance_type, regular)
        return fit(problem, self.n_components, rng=np.random.default_rng(0)).best.parameters.within_covariance


def resolve_prior(
    prior: ConjugatePrior | str | None, blocks: RowBlocks, found: Survey, n_components: int, covariance_type: str
) -> ConjugatePrior | None:
    """A prior of EM with every value known: those that come from the data are what they would be in memory.

    Parameters
    ----------
    prior : ConjugatePrior, "default" or None
        "default" is ``ConjugatePrior.fraley_raftery``.
    blocks : RowBlocks
    found : Survey
    n_components : int
        K.
    covariance_type : {"full", "tied", "diag", "spherical"}
        Structure of the fit that a default scale is taken from.

    Returns
    -------
    ConjugatePrior or None
    """
    if prior is None:
        return None
    if isinstance(prior, str):
        return ConjugatePrior.from_moments(*found.mean_and_covariance, n_components)
    return prior.resolve_from(BlockSummary(blocks, found, n_components, covariance_type), n_components)


def given_start(
    problem: BlockedProblem, n_components: int, init_params: str, rng: np.random.Generator
) -> tuple[MixtureParameters, FloatArray]:
    """A start on the subsample, for what of a start is not given."""
    sample = em.Problem(problem.X, problem.kind, None, problem.sample_weight, problem.reg_covar)
    return em.start(sample, n_components, init_params, rng)
