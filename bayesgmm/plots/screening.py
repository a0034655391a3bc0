"""Log densities of more rows than a figure can wait for: by few draws for all of them, by all draws where it matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.anomaly import AnomalyDetector
from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.tails import batch_error, mean_over_batches
from bayesgmm.plots.fitted import evenly_spaced
from bayesgmm.plots.style import counted

if TYPE_CHECKING:
    import pandas as pd

ALL_DRAWS = 100_000_000
"""Rows × draws up to which every row is judged by all draws: about a second."""

LEFT_OUT_ROWS = 20_000
"""Fitted rows up to which each is left out."""

FEW_DRAWS = 40
BATCHES = 8

SAFE = 10.0
"""Standard errors, by the scatter over batches of draws, from a limit within which a row is judged by all draws."""


@dataclass(frozen=True, eq=False)
class Screened:
    """What a figure shows of rows.

    Parameters
    ----------
    log_density : ndarray of shape (N,)
        Log predictive density; of fitted rows that are left out, given the others.
    kind : ndarray of shape (N,)
        ``"far"``, ``"small component"`` or ``"ok"``, as in the detector's table.
    judged : DataFrame
        The detector's table of the rows that were judged by all draws, indexed by their positions.
    remark : str
        How many draws there were for which rows; empty where it is all for all.
    """

    log_density: FloatArray
    kind: np.ndarray
    judged: pd.DataFrame
    remark: str


def screen(detector: AnomalyDetector, X: Any, rows: FloatArray, lowest: int = 0) -> Screened:
    """Judge rows as the detector's table does, and sooner where they are many.

    Rows by the threshold, the lowest ones and those that may be of a small component are judged by all draws, and left out where they
    are the fit's own. How far a row may be from a limit to be counted among these follows from the scatter of its log density
    between batches of the few draws that all rows are looked at with.

    Parameters
    ----------
    detector : AnomalyDetector
        Fitted.
    X : array-like or None
        As the figure was given it; None for the fitted rows, each left out.
    rows : ndarray of shape (N, D)
        The same as a table of numbers.
    lowest : int, default 0
        How many rows of lowest density are to be exact.

    Returns
    -------
    Screened
    """
    n_draws, N = len(detector._draws[0]), len(rows)
    few = max(FEW_DRAWS, ALL_DRAWS // (4 * max(1, N)))
    if few >= n_draws or (N * n_draws <= ALL_DRAWS and (X is not None or N <= LEFT_OUT_ROWS)):
        judged = detector.table(X).set_axis(np.arange(N), axis=0)
        return Screened(judged["log_density"].to_numpy(), judged["kind"].to_numpy(), judged, "")
    chosen = evenly_spaced(n_draws, few)
    weights, means, factors = (np.ascontiguousarray(part[chosen]) for part in detector._draws)
    edges = np.linspace(0, few, BATCHES + 1).astype(np.int64)
    small = weights < detector.small_component
    found = kernel.predictive_averages(
        rows,
        weights,
        means,
        factors,
        edges=edges,
        marked=small if small.any() else None,
        with_responsibilities=False,
    )
    density = mean_over_batches(found.log_density, edges)
    mass = found.marked_mass if small.any() else np.zeros(N)
    # A row beyond the reach of float64 has log density −inf by every draw.
    seen = np.maximum(found.log_density, -1e150)
    margin = SAFE * batch_error(seen) + 1e-9
    if X is None:
        # To leave a row out takes about the variance of its log density over the draws from it.
        margin += SAFE * seen.var(axis=1, ddof=1) * few / BATCHES
    near = (np.abs(density - detector.offset_) < margin) | (np.abs(mass - 0.5) < 0.3)
    if lowest:
        place = min(lowest, N) - 1
        near |= density - margin <= np.partition(density + margin, place)[place]
    exact = np.flatnonzero(near)
    kind = np.where(density < detector.offset_, "far", np.where(mass > 0.5, "small component", "ok")).astype(object)
    judged = _by_all_draws(detector, X, rows, exact)
    density[exact], kind[exact] = judged["log_density"], judged["kind"]
    remark = f"densities by {few:,} of {n_draws:,} draws, by all where it matters ({counted(len(exact), 'row')})"
    return Screened(density, kind, judged.set_axis(exact, axis=0), remark)


def lowest_rows(detector: AnomalyDetector, X: Any, rows: FloatArray, count: int) -> pd.DataFrame:
    """The detector's table of the rows of lowest density, lowest first, their positions as its index.

    Parameters
    ----------
    detector : AnomalyDetector
        Fitted.
    X : array-like or None
        None for the fitted rows, each left out.
    rows : ndarray of shape (N, D)
        The same as a table of numbers.
    count : int
        Rows at most.

    Returns
    -------
    DataFrame
    """
    found = screen(detector, X, rows, count)
    return found.judged.loc[np.argsort(found.log_density, kind="stable")[:count]]


def _by_all_draws(detector: AnomalyDetector, X: Any, rows: FloatArray, chosen: np.ndarray) -> pd.DataFrame:
    if X is None:
        return detector._table_left_out(chosen)
    return detector._table_of(np.ascontiguousarray(rows[chosen]), None, False)
