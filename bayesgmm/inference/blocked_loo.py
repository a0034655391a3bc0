"""LOO and WAIC of a posterior where its rows are: each block says its part, and sums, or a few numbers a row, come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.core.blocks import Gathered, Moments, RowBlocks, Take, moments, size
from bayesgmm.core.parameters import Additive, FloatArray
from bayesgmm.exceptions import DataError
from bayesgmm.inference.loo import (
    SUBSAMPLE_ABOVE,
    PosteriorLoo,
    TreatedRow,
    Treatment,
    add_rows,
    as_generator,
    difference_estimate,
    relative_efficiency_of,
    subsample_note,
    treatment_notes,
)
from bayesgmm.inference.summed import SummedPosterior
from bayesgmm.pointwise import (
    WAIC_VARIANCE_LIMIT,
    PointwiseCriteria,
    good_k,
    loo_data,
    waic_data,
    warn_pareto_k,
    weighted,
)

if TYPE_CHECKING:
    from bayesgmm.elpd import ELPDDataWAIC
    from bayesgmm.inference.compiled import MixturePosterior

Draws = tuple[FloatArray, FloatArray, FloatArray]


@dataclass(frozen=True, eq=False)
class Pointwise:
    """Task: log mean likelihood, its variance over draws, leave-one-out density, k̂, and weight of each row, (n, 5).

    Parameters
    ----------
    draws : tuple of weights (S, K), means (S, K, D) and precision factors (S, K, D, D)
    r_eff : float
        Relative efficiency of the draws.
    """

    draws: Draws
    r_eff: float

    def __call__(self, X: FloatArray, v: FloatArray | None, block: int) -> Gathered:
        """Of the rows of a block."""
        found = _criteria(self, X, v, block)
        columns = (found.lppd_i, found.p_waic_i, found.elpd_loo_i, found.pareto_k, np.ones(len(X)) if v is None else v)
        return Gathered(((block, np.stack(columns, axis=1)),))

    def of_rows(self, X: FloatArray) -> FloatArray:
        """The first four of each row (n, 4), one copy of which is left out."""
        return np.asarray(self(X, None, 0).values[:, :4])


def pointwise_of(post: Any, r_eff: float) -> Callable[[FloatArray], FloatArray]:
    """The function of rows (n, D) that :meth:`Pointwise.of_rows` is, for all draws of a posterior."""
    return Pointwise(post._draws.flat(), r_eff).of_rows


@dataclass(frozen=True, eq=False)
class WaicSums(Additive):
    """What WAIC, and LOO of a subsample, need of all rows.

    Parameters
    ----------
    of_copies : Moments
        Of log mean likelihood, variance over draws, and their difference, rows counted by their weights.
    of_rows : Moments
        Of that difference times the row's weight, each row once.
    n_high : int
        Rows whose variance is too high for WAIC.
    """

    of_copies: Moments
    of_rows: Moments
    n_high: int


@dataclass(frozen=True, eq=False)
class Waic:
    """Task: :class:`WaicSums`; see :class:`Pointwise`."""

    draws: Draws
    r_eff: float

    def __call__(self, X: FloatArray, v: FloatArray | None, block: int) -> WaicSums:
        """Of the rows of a block."""
        found = _criteria(self, X, v, block, with_loo=False)
        elpd_i = found.lppd_i - found.p_waic_i
        return WaicSums(
            moments(np.stack([found.lppd_i, found.p_waic_i, elpd_i], axis=1), v, block),
            moments(weighted(elpd_i, v)[:, None], None, block),
            int(np.count_nonzero(found.p_waic_i > WAIC_VARIANCE_LIMIT)),
        )


def _criteria(
    task: Pointwise | Waic, X: FloatArray, v: FloatArray | None, block: int, with_loo: bool = True
) -> PointwiseCriteria:
    found = PointwiseCriteria(task.r_eff, with_loo)
    try:
        add_rows(found, X, v, task.draws, None)
    except ValueError as error:
        raise DataError(f"block {block}: {error}") from None
    return found


def loo_of_blocks(
    post: Any,
    blocks: RowBlocks,
    *,
    r_eff: float | None = None,
    moment_matching: bool = True,
    max_matched: int = 30,
    subsample_above: int | None = SUBSAMPLE_ABOVE,
    subsample_size: int = 2000,
    thin: int = 1,
    random_state: Any = None,
) -> PosteriorLoo:
    """LOO and WAIC of a posterior whose rows are in blocks: :func:`bayesgmm.inference.loo.loo_posterior`, number by number.

    Up to ``subsample_above`` rows, the pointwise values come back, and rows of high k̂ are moment-matched, each step of which is a pass
    over the blocks. Of more rows the sums for WAIC come back, and the rows of the same random subsample as in memory; LOO is by the
    difference estimator, and no row is treated. No row is refitted.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted or loaded.
    blocks : RowBlocks
        The rows of the fit.
    r_eff, moment_matching, max_matched, subsample_above, subsample_size, thin, random_state
        As there.

    Returns
    -------
    PosteriorLoo
        Above ``subsample_above`` rows, ``loo`` is an ``ELPDDataLOOBlocks``, whose pointwise values, like ``pareto_k`` and
        ``sample_weight``, are those of the subsample.

    Raises
    ------
    DataError
        If the log-likelihood of a row is not finite, or the rows cannot be read.

    Warns
    -----
    CriterionWarning
        If k̂ stays above the threshold in some rows; they are named.
    """
    rng = as_generator(random_state)
    draws = post._draws.flat(thin)
    efficiency = relative_efficiency_of(post, thin) if r_eff is None else float(r_eff)
    sizes = blocks.total(size)
    N = int(sizes.values.sum())
    if subsample_above is not None and subsample_above < N and subsample_size < N:
        rows = np.sort(rng.choice(N, size=subsample_size, replace=False))
        taken = blocks.total(Take.of(rows, sizes)).values
        sums = blocks.total(Waic(draws, efficiency))
        return _of_subsample(taken, rows, sums, draws, efficiency)
    found = blocks.total(Pointwise(draws, efficiency)).values
    lppd_i, p_waic_i, elpd_i, raw_k = (np.ascontiguousarray(column) for column in found.T[:4])
    v = None if np.all(found[:, 4] == 1) else np.ascontiguousarray(found[:, 4])
    threshold = good_k(len(draws[0]))
    order = np.argsort(-raw_k, kind="stable")
    bad = np.array([int(n) for n in order if raw_k[n] > threshold and (v is None or v[n] > 0)], dtype=np.int64)
    treated: tuple[TreatedRow, ...] = ()
    if len(bad):
        at = np.sort(bad)
        taken = blocks.total(Take.of(at, sizes)).values
        X = np.ascontiguousarray(taken[:, :-1])
        treatment = _MatchingOnBlocks(post, X, v, efficiency, moment_matching, max_matched, 0, 0, rng, blocks, at, N)
        treated = treatment.apply([(int(n), float(raw_k[n]), float(elpd_i[n])) for n in bad])
    used_k = raw_k.copy()
    for item in treated:
        elpd_i[item.row], used_k[item.row] = item.elpd_after, item.pareto_k_after
    loo = loo_data(elpd_i, lppd_i - elpd_i, used_k, len(draws[0]), sample_weight=v)
    warn_pareto_k(used_k, threshold, "raise max_matched, or fit a table in memory, where such rows can be refitted")
    waic = waic_data(lppd_i, p_waic_i, len(draws[0]), sample_weight=v, warn=False)
    return PosteriorLoo(loo, waic, raw_k, efficiency, treated, treatment_notes(treated, threshold, N), v)


@dataclass(eq=False)
class _MatchingOnBlocks(Treatment):
    """Moment matching of some rows, ``at`` their numbers among ``n_rows``, over a posterior that is summed over blocks."""

    blocks: RowBlocks
    at: np.ndarray
    n_rows: int

    def _row(self, row: int) -> FloatArray:
        place = int(np.searchsorted(self.at, row))
        return self.X[place : place + 1]

    @property
    def _n_rows(self) -> int:
        return self.n_rows

    def _posterior(self) -> MixturePosterior:
        return SummedPosterior.from_prior(self.blocks, self.post.covariance_type, self.post.prior_)

    def _why_not_refitted(self) -> str:
        return "rows in blocks are not refitted"


def _of_subsample(taken: FloatArray, rows: np.ndarray, sums: WaicSums, draws: Draws, efficiency: float) -> PosteriorLoo:
    """LOO by the difference estimator from the rows of a subsample and sums over all."""
    from bayesgmm.elpd import ELPDDataLOOBlocks, pointwise_array

    X, v = np.ascontiguousarray(taken[:, :-1]), np.ascontiguousarray(taken[:, -1])
    of_rows = None if np.all(v == 1) else v
    part = PointwiseCriteria(efficiency)
    add_rows(part, X, of_rows, draws, None)
    elpd_i, threshold = part.elpd_loo_i, good_k(part.n_draws)
    exact, approximate = weighted(elpd_i, of_rows), weighted(part.lppd_i - part.p_waic_i, of_rows)
    p_i = weighted(part.lppd_i - elpd_i, of_rows)
    loo = ELPDDataLOOBlocks(
        **difference_estimate(exact, approximate, sums.of_rows, p_i),
        n_samples=part.n_draws,
        warning=bool(np.any(part.pareto_k > threshold)),
        good_k=threshold,
        elpd_i=pointwise_array(exact),
        pareto_k=pointwise_array(part.pareto_k, name="pareto_k"),
        loo_subsample_observations=rows,
        elpd_loo_approx=pointwise_array(approximate, name="elpd_loo_approx"),
    )
    why = "matching would take a pass over all rows for each of its steps"
    treated = tuple(
        TreatedRow(int(rows[j]), k, "none", k, elpd, elpd, why)
        for j, k, elpd in zip(range(len(rows)), part.pareto_k.tolist(), elpd_i.tolist(), strict=True)
        if k > threshold
    )
    treated = tuple(sorted(treated, key=lambda item: -item.pareto_k))
    warn_pareto_k(part.pareto_k, threshold, "raise subsample_size, so that they weigh less", rows)
    notes = (subsample_note(loo), *treatment_notes(treated, threshold, len(rows)))
    waic = _waic_of_sums(sums, part.n_draws)
    return PosteriorLoo(loo, waic, part.pareto_k, efficiency, treated, notes, of_rows)


def _waic_of_sums(sums: WaicSums, n_draws: int) -> ELPDDataWAIC:
    """WAIC without pointwise values."""
    from bayesgmm.elpd import ELPDDataWAIC

    found = sums.of_copies
    total = found.weight
    _, p, elpd = total * found.mean
    return ELPDDataWAIC(
        elpd=float(elpd),
        se=float(np.sqrt(total * found.scatter[2, 2] / (total - 1))) if total > 1 else float("nan"),
        p=float(p),
        n_samples=n_draws,
        n_data_points=found.n_rows,
        scale="log",
        warning=bool(sums.n_high),
        good_k=None,
    )
