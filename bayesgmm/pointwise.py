"""Pointwise criteria of draws, from blocks of rows: WAIC, and LOO by Pareto-smoothed importance sampling.

Nothing of size draws × rows is needed at once: :class:`PointwiseCriteria` takes blocks of rows and keeps a few numbers a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from bayesgmm.convergence import effective_size
from bayesgmm.core.parameters import FloatArray
from bayesgmm.exceptions import CriterionWarning, warn_user

if TYPE_CHECKING:
    from arviz_stats.utils import ELPDDataLOO
    from xarray import DataArray

    from bayesgmm.elpd import ELPDDataWAIC

WAIC_VARIANCE_LIMIT = 0.4
"""Pointwise variance of the log-likelihood above which WAIC is not to be trusted (Vehtari, Gelman & Gabry 2017)."""

MIN_DRAWS = 25
"""Draws below which a generalized Pareto distribution cannot be fitted to the five largest weights."""

BLOCK_ELEMENTS = 4_000_000
"""Draws × rows that are worked on at a time; 32 MB an array."""

CACHED_ROWS = 128
"""Rows whose 1000 or so draws stay in the second-level cache from one step of WAIC to the next."""

R_EFF_ROWS = 200
"""Rows whose effective sample sizes are averaged where a relative efficiency has to be found from the log-likelihood."""


def good_k(n_draws: int) -> float:
    """Largest Pareto k̂ at which importance weights of S draws are reliable: min(1 − 1 / log₁₀ S, 0.7).

    References
    ----------
    Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72), section 3.2.4.
    """
    return min(1.0 - 1.0 / float(np.log10(n_draws)), 0.7) if n_draws > 1 else 0.7


def psis_weights(log_ratios: FloatArray, r_eff: float = 1.0) -> tuple[FloatArray, FloatArray]:
    """Pareto-smoothed importance weights by ArviZ, without its exceptions for degenerate ratios.

    Parameters
    ----------
    log_ratios : ndarray of shape (n, S)
        Unnormalised log importance ratios of S draws in each row; finite.
    r_eff : float, default 1.0
        Effective per drawn: enters through the length of the tail.

    Returns
    -------
    log_weights : ndarray of shape (n, S)
        Normalised: exp sums to 1.
    pareto_k : ndarray of shape (n,)
        −inf where all ratios are equal; inf where no Pareto distribution can be fitted to the tail (ties), and the weights are
        then unsmoothed.

    Raises
    ------
    ValueError
        If there are fewer than 25 draws.
    """
    from arviz_stats.base import array_stats

    S = log_ratios.shape[1]
    if S < MIN_DRAWS:
        raise ValueError(f"Pareto smoothing needs at least {MIN_DRAWS} draws; there are {S}")
    weights, pareto_k = np.empty_like(log_ratios), np.empty(len(log_ratios))
    with np.errstate(all="ignore"):
        for i, ratios in enumerate(log_ratios):
            try:
                # ArviZ takes the negative log ratios.
                weights[i], pareto_k[i] = array_stats.psislw(-ratios, r_eff=r_eff)
            except ValueError:
                # "All tail values are the same"
                weights[i] = ratios - logsumexp(ratios)
                pareto_k[i] = -np.inf if np.ptp(ratios) == 0 else np.inf
    pareto_k[np.isnan(pareto_k)] = np.inf
    return weights, pareto_k


def relative_efficiency(log_likelihood: FloatArray) -> float:
    """Relative effective sample size of the likelihood, averaged over rows; 1 for a single chain.

    Parameters
    ----------
    log_likelihood : ndarray of shape (C, S, n)
        Of at most some hundred rows: 200, evenly spaced, are used.

    Returns
    -------
    float

    Notes
    -----
    R's ``loo::relative_eff`` does this row by row, on exp of the log-likelihood; it takes no account of the labels.
    """
    if log_likelihood.shape[0] == 1:
        return 1.0
    n = log_likelihood.shape[2]
    some = np.unique(np.linspace(0, n - 1, min(n, R_EFF_ROWS)).astype(int))
    logs = log_likelihood[:, :, some]
    likelihood = np.exp(logs - logs.max(axis=(0, 1)))
    moving = np.ptp(likelihood, axis=(0, 1)) > 0
    if not moving.any() or log_likelihood.shape[1] < 4:
        return 1.0
    values = np.moveaxis(likelihood[:, :, moving], 2, 0)
    # Of the halves of chains: the middle draw of an odd number is not counted.
    counted = values.shape[1] * 2 * (values.shape[2] // 2)
    return float(np.nanmean(effective_size(values)) / counted)


class PointwiseCriteria:
    """WAIC and PSIS-LOO of draws whose log-likelihood arrives in blocks of rows.

    Only the results are kept: some numbers a row. The order of the blocks is that of the rows.

    Parameters
    ----------
    r_eff : float or None, default None
        Relative efficiency of the draws. None: found from the first block (see :func:`relative_efficiency`).
    with_loo : bool, default True
        False leaves LOO out; smoothing costs much more than WAIC.

    Attributes
    ----------
    n_draws : int
    lppd_i, p_waic_i, elpd_loo_i, pareto_k : ndarray of shape (N,)
        Log mean likelihood of each row; variance of its log-likelihood over draws; leave-one-out density; k̂.
    """

    def __init__(self, r_eff: float | None = None, with_loo: bool = True) -> None:
        if r_eff is not None and not r_eff > 0:
            raise ValueError(f"r_eff must be positive; got {r_eff}")
        self.r_eff = r_eff
        self.with_loo = with_loo
        self.n_draws = 0
        self.n_rows = 0
        self._parts: dict[str, list[FloatArray]] = {"lppd_i": [], "p_waic_i": [], "elpd_loo_i": [], "pareto_k": []}

    def add(self, log_likelihood: ArrayLike, log_ratio_power: FloatArray | None = None) -> PointwiseCriteria:
        """Take in a block of rows.

        Parameters
        ----------
        log_likelihood : array-like of shape (C, S, n) or (S, n)
            Chains × draws × rows of the block.
        log_ratio_power : ndarray of shape (n,), optional
            Share of the row that is left out: its ratios are the likelihood to minus this power. Default 1.

        Returns
        -------
        PointwiseCriteria
            Itself.

        Raises
        ------
        ValueError
            If a value is NaN or infinite (the row is named), or the number of draws differs from the blocks before.
        """
        block = np.asarray(log_likelihood, dtype=float)
        if block.ndim == 2:
            block = block[None]
        if block.ndim != 3 or 0 in block.shape:
            raise ValueError(f"log_likelihood must have shape (chains, draws, rows); got {np.shape(log_likelihood)}")
        flat = block.reshape(-1, block.shape[2])
        if self.n_draws and len(flat) != self.n_draws:
            raise ValueError(f"a block has {len(flat)} draws; those before had {self.n_draws}")
        if len(flat) < 2:
            raise ValueError("WAIC and LOO need at least 2 draws; there is 1")
        self._refuse_infinite(flat)
        self.n_draws = len(flat)
        if self.with_loo and self.r_eff is None:
            self.r_eff = relative_efficiency(block)
        rows = max(1, BLOCK_ELEMENTS // len(flat))
        for start in range(0, flat.shape[1], rows):
            part = slice(start, start + rows)
            self._add_part(flat[:, part], None if log_ratio_power is None else log_ratio_power[part])
        return self

    def _refuse_infinite(self, flat: FloatArray) -> None:
        # A sum is finite when all its terms are (or has overflowed): no table of flags unless something is wrong.
        if np.isfinite(flat.sum()) or np.isfinite(flat).all():
            return
        bad = np.flatnonzero(~np.isfinite(flat).all(axis=0))
        column = flat[:, bad[0]]
        value = column[~np.isfinite(column)][0]
        raise ValueError(
            f"log_likelihood must be finite: row {self.n_rows + int(bad[0])} has {value} "
            f"({len(bad)} such row{'s' * (len(bad) > 1)} so far); the row lies beyond the reach of the model: look at it, and drop "
            "or correct it"
        )

    def _add_part(self, flat: FloatArray, power: FloatArray | None) -> None:
        S, n = flat.shape
        lppd_i, p_waic_i = np.empty(n), np.empty(n)
        for start in range(0, n, CACHED_ROWS):
            part = slice(start, start + CACHED_ROWS)
            top = flat[:, part].max(axis=0)
            values = flat[:, part] - top
            deviations = values - values.mean(axis=0)
            p_waic_i[part] = np.einsum("sn,sn->n", deviations, deviations) / (S - 1)
            lppd_i[part] = top + np.log(np.exp(values, out=values).mean(axis=0))
        self._parts["lppd_i"].append(lppd_i)
        self._parts["p_waic_i"].append(p_waic_i)
        if self.with_loo:
            rows = np.ascontiguousarray(flat.T)
            ratios = -rows if power is None else -rows * power[:, None]
            log_weights, pareto_k = psis_weights(ratios, float(self.r_eff or 1.0))
            log_weights += rows
            self._parts["elpd_loo_i"].append(logsumexp(log_weights, axis=1))
            self._parts["pareto_k"].append(pareto_k)
        self.n_rows += n

    def _joined(self, name: str) -> FloatArray:
        if not self._parts[name]:
            raise ValueError("no rows have been added" if self.n_rows == 0 else f"{name} was not asked for")
        if len(self._parts[name]) > 1:
            self._parts[name] = [np.concatenate(self._parts[name])]
        return self._parts[name][0]

    @property
    def lppd_i(self) -> FloatArray:
        """Log of the mean likelihood (N,)."""
        return self._joined("lppd_i")

    @property
    def p_waic_i(self) -> FloatArray:
        """Variance over draws of the log-likelihood (N,)."""
        return self._joined("p_waic_i")

    @property
    def elpd_loo_i(self) -> FloatArray:
        """Log leave-one-out predictive density (N,)."""
        return self._joined("elpd_loo_i")

    @property
    def pareto_k(self) -> FloatArray:
        """Tail index k̂ of each row's importance ratios (N,)."""
        return self._joined("pareto_k")

    def waic(
        self, like: DataArray | None = None, sample_weight: FloatArray | None = None, warn: bool = True
    ) -> ELPDDataWAIC:
        """WAIC of the rows so far; see :func:`bayesgmm.criteria.waic`."""
        return waic_data(self.lppd_i, self.p_waic_i, self.n_draws, like, sample_weight, warn)

    def loo(
        self, like: DataArray | None = None, sample_weight: FloatArray | None = None, warn: bool = True
    ) -> ELPDDataLOO:
        """LOO of the rows so far; see :func:`bayesgmm.criteria.loo`."""
        result = loo_data(
            self.elpd_loo_i, self.lppd_i - self.elpd_loo_i, self.pareto_k, self.n_draws, like, sample_weight
        )
        if warn and result.warning:
            warn_pareto_k(self.pareto_k, good_k(self.n_draws))
        return result


def waic_data(
    lppd_i: FloatArray,
    p_i: FloatArray,
    n_draws: int,
    like: DataArray | None = None,
    sample_weight: FloatArray | None = None,
    warn: bool = True,
) -> ELPDDataWAIC:
    """Pointwise values as :class:`bayesgmm.elpd.ELPDDataWAIC`."""
    from bayesgmm.elpd import ELPDDataWAIC, elpd_fields, pointwise_array

    high = np.flatnonzero(p_i > WAIC_VARIANCE_LIMIT)
    if len(high) and warn:
        warn_user(
            f"the variance of the log-likelihood over the draws exceeds {WAIC_VARIANCE_LIMIT} in {len(high)} of "
            f"{len(p_i)} rows ({named_rows(high)}): WAIC is not reliable there; use LOO, which has a diagnostic of its own",
            CriterionWarning,
        )
    return ELPDDataWAIC(
        **elpd_fields(lppd_i - p_i, p_i, n_draws, like, sample_weight),
        warning=bool(len(high)),
        good_k=None,
        p_waic_i=pointwise_array(weighted(p_i, sample_weight), like, "p_waic_i"),
    )


def loo_data(
    elpd_i: FloatArray,
    p_i: FloatArray,
    pareto_k: FloatArray,
    n_draws: int,
    like: DataArray | None = None,
    sample_weight: FloatArray | None = None,
) -> ELPDDataLOO:
    """Pointwise values as ArviZ's ``ELPDDataLOO``."""
    from arviz_stats.utils import ELPDDataLOO

    from bayesgmm.elpd import elpd_fields, pointwise_array

    threshold = good_k(n_draws)
    return ELPDDataLOO(
        **elpd_fields(elpd_i, p_i, n_draws, like, sample_weight),
        warning=bool(np.any(pareto_k > threshold)),
        good_k=threshold,
        pareto_k=pointwise_array(pareto_k, like, "pareto_k"),
        p_loo_i=pointwise_array(weighted(p_i, sample_weight), like, "p_loo_i"),
    )


def warn_pareto_k(
    pareto_k: FloatArray, threshold: float, advice: str = "", rows: NDArray[np.int64] | None = None
) -> None:
    """Warn of rows whose k̂ exceeds the threshold, if there are any; ``rows`` are their numbers, unless they are all."""
    high = np.flatnonzero(pareto_k > threshold)
    if len(high):
        advice = advice or "give these rows an exact refit (bayesgmm.inference.loo.loo_posterior) or use kfold"
        warn_user(
            f"Pareto k̂ exceeds {threshold:.2f} in {len(high)} of {len(pareto_k)} rows "
            f"({named_rows(high if rows is None else rows[high])}): leaving them out changes "
            f"the posterior too much for importance sampling, and their part of LOO is not reliable; {advice}",
            CriterionWarning,
        )


def named_rows(rows: Iterable[int], limit: int = 5) -> str:
    """Row numbers in words, no more than ``limit``."""
    numbers = [int(row) for row in rows]
    shown = ", ".join(map(str, numbers[:limit]))
    return f"row{'s' * (len(numbers) > 1)} {shown}{', …' if len(numbers) > limit else ''}"


def weighted(values: FloatArray, sample_weight: FloatArray | None) -> FloatArray:
    """Values times frequency weights: what the rows add to a sum."""
    return values if sample_weight is None else values * sample_weight


def standard_error(values: FloatArray, sample_weight: FloatArray | None = None) -> float:
    """Standard error of a sum over rows, √(N var) with N − 1; with frequency weights that of the repeated rows. NaN for one row.

    Parameters
    ----------
    values : ndarray of shape (N,)
        Of one copy of each row.
    sample_weight : ndarray of shape (N,), optional
    """
    if sample_weight is None:
        n = len(values)
        return float(np.sqrt(n * np.var(values, ddof=1))) if n > 1 else float("nan")
    total = float(sample_weight.sum())
    mean = float(sample_weight @ values) / total
    squares = float(sample_weight @ (values - mean) ** 2)
    return float(np.sqrt(total * squares / (total - 1.0))) if total > 1 else float("nan")
