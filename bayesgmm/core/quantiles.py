"""Quantiles of a number that each row has, found by passes over blocks of rows that never stand in memory together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bayesgmm.core.blocks import RowBlocks
from bayesgmm.core.parameters import FloatArray

BINS = 4096
FEW = 100_000
"""Numbers that are collected and sorted."""


@dataclass(frozen=True, eq=False)
class _Counts:
    """Weights of rows by bins of their number: up to low, the bins, above high; numbers of rows there, and the extremes."""

    weights: FloatArray
    rows: FloatArray
    low: float
    high: float

    def __add__(self, other: _Counts) -> _Counts:
        return _Counts(
            self.weights + other.weights,
            self.rows + other.rows,
            min(self.low, other.low),
            max(self.high, other.high),
        )


@dataclass(frozen=True, eq=False)
class _Count:
    """Task: count rows between edges."""

    function: Callable[[FloatArray], FloatArray]
    edges: FloatArray

    def __call__(self, X: FloatArray, v: FloatArray | None, block: int) -> _Counts:
        values, v = _counted(self.function(X), v)
        place, n = np.searchsorted(self.edges, values), len(self.edges) + 1
        weights = np.bincount(place, v, n)
        rows = np.bincount(place, minlength=n).astype(float)
        return _Counts(weights, rows, values.min(initial=np.inf), values.max(initial=-np.inf))


@dataclass(frozen=True, eq=False)
class _Few:
    """The numbers in an interval, with their weights, sorted; those of blocks add with ``+``."""

    values: FloatArray
    weights: FloatArray

    def __add__(self, other: _Few) -> _Few:
        values, weights = np.concatenate([self.values, other.values]), np.concatenate([self.weights, other.weights])
        order = np.argsort(values, kind="stable")
        return _Few(values[order], weights[order])


@dataclass(frozen=True)
class _Collect:
    """Task: the numbers above low, up to high, and the smallest above high."""

    function: Callable[[FloatArray], FloatArray]
    low: float
    high: float

    def __call__(self, X: FloatArray, v: FloatArray | None, block: int) -> _Few:
        values, v = _counted(self.function(X), v)
        inside = (values > self.low) & (values <= self.high)
        beyond = np.flatnonzero(values > self.high)
        if len(beyond):
            inside[beyond[np.argmin(values[beyond])]] = True
        order = np.argsort(values[inside], kind="stable")
        return _Few(values[inside][order], v[inside][order])


def _counted(values: FloatArray, v: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    """Numbers of rows with a positive weight, and the weights."""
    if v is None:
        return values, np.ones(len(values))
    return values[v > 0], v[v > 0]


def around_quantile(
    blocks: RowBlocks, function: Callable[[FloatArray], FloatArray], share: float
) -> tuple[float, float]:
    """The smallest number up to which a share of all weight lies, and the next larger one.

    Parameters
    ----------
    blocks : RowBlocks
    function : callable
        Of rows (n, D), to a finite number of each (n,). It can be pickled.
    share : float
        In (0, 1).

    Returns
    -------
    value, above : float
        Exact, found in a handful of passes; twice the same for the largest number.

    Notes
    -----
    Each pass counts the rows in 4,096 intervals of the one that holds the quantile, until this one holds no more than 100,000 rows or
    cannot be divided.
    """
    found = blocks.total(_Count(function, np.empty(0)))
    total, below = float(found.weights.sum()), 0.0
    low, high, rows = np.nextafter(found.low, -np.inf), found.high, float(found.rows.sum())
    wanted = share * total * (1 - 1e-12)
    while rows > FEW:
        edges = np.unique(np.linspace(low, high, BINS + 1))
        found = blocks.total(_Count(function, edges))
        reached = np.cumsum(found.weights)
        # entry i of the counts lies up to edge i
        i = min(int(np.searchsorted(reached, wanted)), len(edges) - 1)
        if i == 0 or (edges[i - 1], edges[i]) == (low, high):
            break
        below, rows, low, high = float(reached[i - 1]), float(found.rows[i]), float(edges[i - 1]), float(edges[i])
    few = blocks.total(_Collect(function, low, high))
    place = min(int(np.searchsorted(below + np.cumsum(few.weights), wanted)), len(few.values) - 1)
    return float(few.values[place]), float(few.values[min(place + 1, len(few.values) - 1)])
