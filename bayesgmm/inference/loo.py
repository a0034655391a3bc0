"""LOO and WAIC of a fitted posterior, streamed over the rows; rows that importance sampling cannot leave out are refitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from bayesgmm.core import kernel
from bayesgmm.core.blocks import Moments, moments
from bayesgmm.core.covariance import structure
from bayesgmm.core.function_prior import FunctionPrior
from bayesgmm.core.parameters import FloatArray
from bayesgmm.criteria import posterior_efficiency
from bayesgmm.inference.refit import FittedModel, refit, serious_problems
from bayesgmm.pointwise import (
    BLOCK_ELEMENTS,
    PointwiseCriteria,
    good_k,
    loo_data,
    named_rows,
    warn_pareto_k,
    weighted,
)

if TYPE_CHECKING:
    from arviz_stats.utils import ELPDDataLOO

    from bayesgmm.elpd import ELPDDataWAIC
    from bayesgmm.inference.compiled import MixturePosterior
    from bayesgmm.inference.posterior import PosteriorDraws
    from bayesgmm.inference.sampling import Result

SUBSAMPLE_ABOVE = 100_000
"""Rows from which on LOO is estimated from a subsample."""

MATCH_DRAWS = 2000
MATCH_BUDGET = 200_000_000
"""Moment matching uses at most 2000 draws, fewer (but 500) where draws × rows exceed this."""

REFIT_CHAINS = 4
REFIT_ESS = 100.0
"""A refit goes on for up to four times its draws where its smallest effective sample size is below this."""


@dataclass(frozen=True)
class TreatedRow:
    """A row whose importance weights were not reliable, and what was done.

    Parameters
    ----------
    row : int
    pareto_k : float
        k̂ of the plain importance weights.
    how : {"moment matching", "refit", "none"}
    pareto_k_after : float
        k̂ of the weights in use; 0 after a refit.
    elpd_before, elpd_after : float
        Log leave-one-out density by plain PSIS, and the one that is reported.
    why : str
        In words.
    """

    row: int
    pareto_k: float
    how: str
    pareto_k_after: float
    elpd_before: float
    elpd_after: float
    why: str

    def __str__(self) -> str:
        return (
            f"row {self.row}: k̂ = {self.pareto_k:.2f}, {self.how} "
            f"({self.elpd_before:.3f} → {self.elpd_after:.3f}): {self.why}"
        )


@dataclass(frozen=True, eq=False)
class PosteriorLoo:
    """LOO and WAIC of a posterior from one pass over the rows.

    Parameters
    ----------
    loo : ELPDDataLOO
        For ``az.compare``; an ``ELPDDataLOOSubsample`` where the rows were subsampled. Rows that were refitted have k̂ = 0.
    waic : ELPDDataWAIC or None
        None where a plug-in approximation spared the pass over all rows.
    pareto_k : ndarray of shape (N,)
        Of plain importance sampling, before any treatment; NaN for rows outside the subsample.
    r_eff : float
        Relative efficiency of the draws that was used.
    treated : tuple of TreatedRow
        Rows with k̂ above the threshold, worst first.
    notes : tuple of str
        What was done, in words.
    sample_weight : ndarray of shape (N,) or None
        Of the rows; None where all are 1.
    pointwise : dask.array.Array of shape (N, 4), optional
        Of a Dask collection, when it is computed; see :meth:`bayesgmm.BayesianGaussianMixture.loo`.
    """

    loo: ELPDDataLOO
    waic: ELPDDataWAIC | None
    pareto_k: FloatArray
    r_eff: float
    treated: tuple[TreatedRow, ...]
    notes: tuple[str, ...]
    sample_weight: FloatArray | None = None
    pointwise: Any = None

    def __str__(self) -> str:
        return "\n".join([str(self.loo), *self.notes, *map(str, self.treated)])


def loo_posterior(
    post: Any,
    X: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    *,
    r_eff: float | None = None,
    moment_matching: bool = True,
    refits: int = 10,
    max_matched: int = 30,
    refit_draws: int = 1000,
    subsample_above: int | None = SUBSAMPLE_ABOVE,
    subsample_size: int = 2000,
    approximation: str = "waic",
    thin: int = 1,
    random_state: Any = None,
    n_threads: int = 2,
) -> PosteriorLoo:
    """Leave-one-out predictive density of a fitted posterior, and WAIC, with the log-likelihood streamed over the rows.

    Rows whose k̂ exceeds min(1 − 1/log₁₀ S, 0.7) are moment-matched; where that does not help, the posterior is sampled again without
    the row, from the modes of the full data and with the prior as it was resolved on all rows, and the density is found by bridge
    sampling between the two posteriors. The worst rows come first.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted or loaded.
    X : array-like of shape (N, D), optional
        The data of the fit, where the posterior does not hold them.
    sample_weight : array-like of shape (N,), optional
        Frequency weights that go with ``X``. One copy of a row is left out at a time (all of it, where its weight is below 1), and
        it counts by its weight.
    r_eff : float, optional
        Relative efficiency of the draws. Default: mean relative effective sample size over the relabelled posterior's variables,
        once, as ``az.loo``; for ``method="laplace"`` that of the importance weights.
    moment_matching : bool, default True
    refits : int, default 10
        Rows that are refitted at most; 0 for none.
    max_matched : int, default 30
        Rows that are moment-matched at most.
    refit_draws : int, default 1000
        Draws of a refit, over four chains; up to four times as many where they mix slowly.
    subsample_above : int or None, default 100_000
        With more rows LOO is estimated by the difference estimator: an approximation for all rows, PSIS-LOO for a random subsample.
        None: never.
    subsample_size : int, default 2000
    approximation : {"waic", "plpd"}, default "waic"
        For the rows outside the subsample: the pointwise WAIC, which takes a pass over all rows and draws; or the log density at the
        mode, at the cost of one draw (and no WAIC).
    thin : int, default 1
        Use every ``thin``-th draw.
    random_state : int, RandomState, Generator or None, default None
        Of the subsample and the refits. The same int gives two models the same subsample, so that ``az.compare`` pairs them.
    n_threads : int, default 2

    Returns
    -------
    PosteriorLoo

    Raises
    ------
    ValueError
        If the data are not those of the fit, the log-likelihood of a row is not finite (it is named), or an option is wrong.

    Warns
    -----
    CriterionWarning
        If k̂ stays above the threshold in some rows; they are named.

    References
    ----------
    Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC,
    Statistics and Computing 27, 1413–1432.
    Paananen, Piironen, Bürkner & Vehtari (2021), Implicitly adaptive importance sampling, Statistics and Computing 31, 16.
    Meng & Wong (1996), Simulating ratios of normalizing constants via a simple identity, Statistica Sinica 6, 831–860.
    Magnusson, Vehtari, Jonasson & Andersen (2020), Leave-one-out cross-validation for Bayesian model comparison in large data,
    AISTATS, PMLR 108, equations 7 to 9.
    """
    if approximation not in ("waic", "plpd"):
        raise ValueError(f'approximation must be "waic" or "plpd"; got {approximation!r}')
    for name, value, least in (("thin", thin, 1), ("refits", refits, 0), ("subsample_size", subsample_size, 2)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
    table, v = _fitted_data(post, X, sample_weight)
    rng = as_generator(random_state)
    draws = post._draws.flat(thin)
    efficiency = relative_efficiency_of(post, thin) if r_eff is None else float(r_eff)
    N = len(table)
    sampled = None
    if subsample_above is not None and subsample_above < N and subsample_size < N:
        sampled = np.sort(rng.choice(N, size=subsample_size, replace=False))
    full = PointwiseCriteria(efficiency, with_loo=sampled is None)
    if sampled is None or approximation == "waic":
        add_rows(full, table, v, draws, n_threads)
    part, rows = full, np.arange(N)
    if sampled is not None:
        part, rows = PointwiseCriteria(efficiency), sampled
        add_rows(part, table[rows], None if v is None else v[rows], draws, n_threads)
    elpd_i, raw_k, lppd_i = part.elpd_loo_i.copy(), part.pareto_k, part.lppd_i
    threshold = good_k(part.n_draws)
    treatment = Treatment(post, table, v, efficiency, moment_matching, max_matched, refits, refit_draws, rng)
    order = np.argsort(-raw_k, kind="stable")
    bad = [int(j) for j in order if raw_k[j] > threshold and (v is None or v[rows[j]] > 0)]
    treated = treatment.apply([(int(rows[j]), float(raw_k[j]), float(elpd_i[j])) for j in bad])
    used_k = raw_k.copy()
    for j, item in zip(bad, treated, strict=True):
        elpd_i[j], used_k[j] = item.elpd_after, item.pareto_k_after
    notes = treatment_notes(treated, threshold, len(rows))
    waic = None if full.n_rows == 0 else full.waic(sample_weight=v, warn=False)
    if sampled is None:
        loo = loo_data(elpd_i, lppd_i - elpd_i, used_k, part.n_draws, sample_weight=v)
        plain_k = raw_k
    else:
        approximate = full.lppd_i - full.p_waic_i if approximation == "waic" else kernel.log_density(table, post.map_)
        loo = _subsampled(elpd_i, lppd_i - elpd_i, used_k, approximate, rows, part.n_draws, v)
        plain_k = np.full(N, np.nan)
        plain_k[rows] = raw_k
        notes = (subsample_note(loo), *notes)
    at = np.flatnonzero(used_k > threshold)
    if len(at):
        remaining = np.full(N, -np.inf)
        remaining[rows[at]] = used_k[at]
        warn_pareto_k(remaining, threshold, "raise refits or max_matched, or use kfold")
    return PosteriorLoo(loo, waic, plain_k, efficiency, treated, notes, v)


def _fitted_data(
    post: Any, X: ArrayLike | None, sample_weight: ArrayLike | None
) -> tuple[FloatArray, FloatArray | None]:
    """The data of the fit, and their weights."""
    if getattr(post, "_draws", None) is None:
        raise ValueError("loo_posterior needs a fitted BayesianGaussianMixture")
    own, own_weight = getattr(post, "_X", None), getattr(post, "_sample_weight", None)
    if X is None:
        if own is None:
            raise ValueError("the posterior does not hold its data: give X")
        if sample_weight is not None:
            raise ValueError("sample_weight goes with X: give X too, or neither (the posterior's own are used)")
        return own, own_weight
    table = np.ascontiguousarray(X, dtype=float)
    D = post._draws.means.shape[-1]
    if table.ndim != 2 or table.shape[1] != D or not np.all(np.isfinite(table)):
        raise ValueError(f"X must be a finite table with {D} columns; got shape {table.shape}")
    v = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
    if v is not None and (v.shape != (len(table),) or not np.all(np.isfinite(v)) or np.any(v < 0)):
        raise ValueError(f"sample_weight must be {len(table)} finite non-negative numbers")
    if own is not None:
        v = own_weight if v is None else v
        given, fitted = (np.ones(len(own)) if w is None else w for w in (v, own_weight))
        if not (np.array_equal(table, own) and np.array_equal(given, fitted)):
            raise ValueError(
                "X (or sample_weight) differs from the data of the fit: LOO leaves out rows that were fitted"
            )
    return table, v


def as_generator(random_state: Any) -> np.random.Generator:
    """Generator from a seed, a generator, or NumPy's older kind."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31 - 1, size=4))
    return np.random.default_rng(random_state)


def relative_efficiency_of(post: Any, thin: int) -> float:
    """Relative efficiency of the draws: of the relabelled posterior, or of the importance weights."""
    if getattr(post, "method", "nuts") == "laplace":
        # Resampled with replacement: draws that stand several times count once.
        means = post._draws.flat()[1]
        copies = np.unique(means.reshape(len(means), -1), axis=0, return_counts=True)[1]
        return float(len(means) / np.sum(copies**2))
    found = posterior_efficiency(post.idata_)
    found = 1.0 if found is None else found
    return found if thin == 1 else min(1.0, found * thin)


def add_rows(
    criteria: PointwiseCriteria,
    X: FloatArray,
    v: FloatArray | None,
    draws: tuple[FloatArray, FloatArray, FloatArray],
    n_threads: int | None,
) -> None:
    """Take rows into pointwise criteria, as many at a time as draws leave room for."""
    rows = max(1, BLOCK_ELEMENTS // len(draws[0]))
    for start in range(0, len(X), rows):
        part = slice(start, min(start + rows, len(X)))
        power = None if v is None else np.minimum(v[part], 1.0)
        criteria.add(kernel.pointwise_log_likelihood(X[part], *draws, n_threads=n_threads), power)


@dataclass(eq=False)
class Treatment:
    """Better leave-one-out densities for rows whose k̂ is too high."""

    post: Any
    X: FloatArray
    v: FloatArray | None
    r_eff: float
    moment_matching: bool
    max_matched: int
    refits: int
    refit_draws: int
    rng: np.random.Generator

    def apply(self, rows: list[tuple[int, float, float]]) -> tuple[TreatedRow, ...]:
        """Treat rows (number, k̂, elpd), worst first."""
        if not rows:
            return ()
        matcher, obstacle = self._matcher() if self.moment_matching else (None, "moment matching was not asked for")
        out, n_refits = [], 0
        for order, (row, pareto_k, elpd) in enumerate(rows):
            item = TreatedRow(row, pareto_k, "none", pareto_k, elpd, elpd, obstacle)
            power = 1.0 if self.v is None else min(1.0, float(self.v[row]))
            if matcher is not None and order < self.max_matched:
                matched = matcher.match(self._row(row), power)
                if matched.pareto_k <= matcher.threshold:
                    why = f"{matched.rounds} transformations of the draws brought k̂ to {matched.pareto_k:.2f}"
                    out.append(
                        replace(
                            item,
                            how="moment matching",
                            pareto_k_after=matched.pareto_k,
                            elpd_after=matched.elpd,
                            why=why,
                        )
                    )
                    continue
                item = replace(item, why=f"moment matching left k̂ at {matched.pareto_k:.2f}")
            elif matcher is not None:
                item = replace(item, why=f"more than {self.max_matched} rows to match")
            if n_refits < self.refits:
                n_refits += 1
                item = self._refitted(item, power)
            elif obstacle_to_refit := self._why_not_refitted():
                item = replace(item, why=f"{item.why}; {obstacle_to_refit}")
            out.append(item)
        return tuple(out)

    def _row(self, row: int) -> FloatArray:
        """A row (1, D) by its number."""
        return self.X[row : row + 1]

    def _why_not_refitted(self) -> str:
        return f"more than {self.refits} rows to refit" if self.refits else ""

    def _matcher(self) -> tuple[Any, str]:
        """Draws ready for moment matching, or why there are none."""
        if isinstance(self.post.prior_, FunctionPrior):
            return None, "the prior is a function, so draws were not moved"
        concentration = self.post.prior_.resolved_concentration
        if np.ptp(concentration) > 0:
            # The prior tells components apart, so that relabelled draws do not have the posterior's density.
            return None, "the prior is not the same for all components, so draws were not moved"
        from bayesgmm.inference.moment_matching import MomentMatching

        draws: PosteriorDraws = self.post._draws
        n_draws = draws.n_chains * draws.n_draws
        keep = int(np.clip(MATCH_BUDGET // max(1, self._n_rows), 500, MATCH_DRAWS))
        some = np.unique(np.linspace(0, n_draws - 1, min(n_draws, keep)).astype(int))
        posterior = self._posterior()
        try:
            theta = draws.unconstrained_by(posterior, some)
        except ValueError:
            return None, "a draw has a weight of 0, so draws were not moved"
        return MomentMatching(posterior, theta, self.r_eff), ""

    @property
    def _n_rows(self) -> int:
        """Rows of the fit."""
        return len(self.X)

    def _posterior(self) -> MixturePosterior:
        """The posterior given all rows."""
        from bayesgmm.inference.compiled import CompiledPosterior

        K = self.post._draws.weights.shape[-1]
        return CompiledPosterior.from_data(self.X, K, self.post.covariance_type, self.post.prior_, self.v)

    def _refitted(self, item: TreatedRow, power: float) -> TreatedRow:
        post, row = self.post, item.row
        try:
            result = refit_without(post, row, self.rng, self.refit_draws, self.X, self.v)
        except (ValueError, RuntimeError) as error:
            return replace(item, why=f"{item.why}; the refit failed: {error}")
        here = self.X[row : row + 1]
        without = kernel.pointwise_log_likelihood(here, *result.draws.flat(), n_threads=1)[:, 0]
        all_draws: PosteriorDraws = post._draws
        given = kernel.pointwise_log_likelihood(here, *all_draws.flat(), n_threads=1)[:, 0]
        elpd = bridge(without, given, power)
        why = "; ".join(
            [
                item.why,
                f"sampled again without it, {len(without)} draws",
                *serious_problems(result.diagnostics, len(without)),
            ]
        )
        return replace(item, how="refit", pareto_k_after=0.0, elpd_after=elpd, why=why)


def refit_without(
    post: Any,
    row: int,
    rng: np.random.Generator,
    n_draws: int = 1000,
    X: FloatArray | None = None,
    sample_weight: FloatArray | None = None,
) -> Result:
    """Sample the posterior again without a row (one copy of it), from the modes of the full data and under the same prior.

    Parameters
    ----------
    post : BayesianGaussianMixture
    row : int
    rng : numpy.random.Generator
    n_draws : int, default 1000
        Over four chains; up to four times as many where they mix slowly.
    X : ndarray of shape (N, D), optional
        The data of the fit; default: those that the posterior holds, with their weights.
    sample_weight : ndarray of shape (N,), optional

    Returns
    -------
    Result

    Raises
    ------
    ValueError, RuntimeError
        If the posterior without the row cannot be sampled.
    """
    X, v = (post._X, post._sample_weight) if X is None else (X, sample_weight)
    power = 1.0 if v is None else min(1.0, float(v[row]))
    if v is not None and v[row] > power:
        v = v.copy()
        v[row] -= power
    else:
        X = np.delete(X, row, axis=0)
        v = None if v is None else np.delete(v, row)
    names = tuple(str(name) for name in post.idata_["posterior"]["feature"].values)
    model = FittedModel(structure(post.covariance_type), post.prior_, tuple(post.modes_), names, post.method_)
    each = max(25, n_draws // REFIT_CHAINS)
    own = rng.spawn(1)[0]
    result = refit(model, X, v, own, each, REFIT_CHAINS, target_ess=REFIT_ESS)
    if model.method == "laplace" and serious_problems(result.diagnostics, REFIT_CHAINS * each):
        result = refit(replace(model, method="nuts"), X, v, own, each, REFIT_CHAINS, target_ess=REFIT_ESS)
    return result


def bridge(without: FloatArray, given: FloatArray, power: float = 1.0) -> float:
    """Leave-one-out log density of a row from draws without it and draws given it, by optimal bridge sampling.

    With ℓ the row's likelihood, p(x_n given the others) = r is the ratio of the normalising constants of the two posteriors, whose
    densities differ by the factor ℓ. The mean of ℓ over draws without the row rests on the few draws near it, the harmonic mean
    over draws given it on the few far from it; the bridge uses where the two overlap.

    Parameters
    ----------
    without : ndarray of shape (S1,)
        log ℓ of draws of the posterior without the row.
    given : ndarray of shape (S2,)
        log ℓ of draws of the posterior given all rows.
    power : float, default 1.0
        Share of the row by which the two posteriors differ. Below 1 the mean over the draws without it is taken: r is then the
        constant of ℓ to that power, not the density.

    Returns
    -------
    float

    References
    ----------
    Meng & Wong (1996), Simulating ratios of normalizing constants via a simple identity, Statistica Sinica 6, 831–860, equation 4.1.
    """
    plain = float(logsumexp(without) - np.log(len(without)))
    if power < 1:
        return plain
    log_share, log_rest = np.log(len(without)), np.log(len(given))
    log_r = plain
    for _ in range(1000):
        above = logsumexp(without - np.logaddexp(log_share, log_rest + without - log_r)) - log_share
        below = logsumexp(-np.logaddexp(log_share, log_rest + given - log_r)) - log_rest
        change = above - below - log_r
        log_r += change
        if abs(change) < 1e-8:
            break
    return float(log_r)


def treatment_notes(treated: tuple[TreatedRow, ...], threshold: float, n_rows: int) -> tuple[str, ...]:
    """What was done with rows of high k̂, in words."""
    if not treated:
        return (f"importance sampling was reliable for all {n_rows} rows (k̂ ≤ {threshold:.2f})",)
    notes = []
    for how, words in (
        ("moment matching", "moment-matched"),
        ("refit", "left out by an exact refit"),
        ("none", "still unreliable"),
    ):
        rows = [item.row for item in treated if item.how == how]
        if rows:
            notes.append(f"k̂ > {threshold:.2f}, {words}: {named_rows(rows, 10)}")
    return tuple(notes)


def subsample_note(loo: Any) -> str:
    """That LOO comes from a subsample, and what that costs."""
    return (
        f"LOO from a random subsample of {loo.subsample_size} of {loo.n_data_points} rows by the difference estimator "
        f"(subsampling standard error {loo.subsampling_se:.2g})"
    )


def difference_estimate(exact: FloatArray, approximate: FloatArray, over: Moments, p_i: FloatArray) -> dict[str, Any]:
    """LOO of all rows from a simple random subsample, with the error of the subsampling in its standard error.

    With π̃_n the approximations and e_j = π_j − π̃_j in the subsample of m rows: elpd = Σ π̃_n + N ē, with subsampling variance
    N² (1 − m/N) s_e² / m; N times the variance of π over all rows is estimated without bias by the same means.

    Parameters
    ----------
    exact, approximate : ndarray of shape (m,)
        π_j and π̃_j, times the rows' weights.
    over : Moments
        Of π̃_n over all rows.
    p_i : ndarray of shape (m,)
        Effective numbers of parameters, times the rows' weights.

    Returns
    -------
    dict
        Fields of ArviZ's ``ELPDDataLOOSubsample`` that are one number.

    References
    ----------
    Magnusson, Vehtari, Jonasson & Andersen (2020), AISTATS, PMLR 108, equations 7 to 9.
    """
    N, m = over.n_rows, len(exact)
    errors = exact - approximate
    elpd = float(N * over.mean[0] + N * errors.mean())
    subsampling = N**2 * (1 - m / N) * float(np.var(errors, ddof=1)) / m
    # Equation 9: Σ π² − (Σ π)² / N, both by the difference estimator, centred for accuracy.
    centre = elpd / N
    squares = float(over.scatter[0, 0]) + N * float(over.mean[0] - centre) ** 2
    squares += N * float(np.mean((exact - centre) ** 2 - (approximate - centre) ** 2))
    spread = max(0.0, squares + subsampling / N)
    return {
        "elpd": elpd,
        "se": float(np.sqrt(spread + subsampling)),
        "p": float(N * p_i.mean()),
        "n_data_points": N,
        "subsample_size": m,
        "subsampling_se": float(np.sqrt(subsampling)),
        "scale": "log",
    }


def _subsampled(
    elpd_i: FloatArray,
    p_i: FloatArray,
    pareto_k: FloatArray,
    approximate: FloatArray,
    rows: np.ndarray,
    n_draws: int,
    v: FloatArray | None,
) -> Any:
    """LOO of all rows from a subsample, as ArviZ's ``ELPDDataLOOSubsample`` with values of all rows."""
    from arviz_stats.utils import ELPDDataLOOSubsample

    from bayesgmm.elpd import pointwise_array

    v_rows = None if v is None else v[rows]
    approximate, exact = weighted(approximate, v), weighted(elpd_i, v_rows)
    found = difference_estimate(exact, approximate[rows], moments(approximate[:, None], None, 0), weighted(p_i, v_rows))
    everywhere = approximate + (exact - approximate[rows]).mean()
    everywhere[rows] = exact
    shape_parameters = np.full(len(approximate), np.nan)
    shape_parameters[rows] = pareto_k
    threshold = good_k(n_draws)
    return ELPDDataLOOSubsample(
        **found,
        n_samples=n_draws,
        warning=bool(np.any(pareto_k > threshold)),
        good_k=threshold,
        elpd_i=pointwise_array(everywhere),
        pareto_k=pointwise_array(shape_parameters, name="pareto_k"),
        loo_subsample_observations=rows,
        elpd_loo_approx=pointwise_array(approximate, name="elpd_loo_approx"),
    )
