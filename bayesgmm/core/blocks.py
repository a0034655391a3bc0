"""Rows that never stand in memory together: sums over blocks of them, wherever the blocks lie.

Whatever a fit needs of the data is a sum over rows (``kernel.accumulate``). So data of any size, in files or on the workers of a
cluster, are one thing to a fit: something that calls a function on each of its blocks and adds up what comes back. Parameters
travel to the rows; rows go nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray, MixtureParameters, SufficientStatistics

Task = Callable[[FloatArray, FloatArray | None, int], Any]
"""Called as ``task(X, v, block)``: rows (n, D), C-contiguous float64 or float32, their weights (n,) or None for 1, and the number of
the block in the table, from 0. It can be pickled, leaves no trace, and gives the same for the same rows. What it returns adds up with
``+``: sums of blocks are the sum over all rows."""


class RowBlocks(Protocol):
    """A table of any length.

    Attributes
    ----------
    n_features : int
        D.
    """

    n_features: int

    def total(self, task: Task) -> Any:
        """Sum of ``task(X, v, block)`` over all blocks, added in an order that depends on the table alone.

        Raises
        ------
        bayesgmm.DataError
            If a block cannot be read, or has no finite number somewhere: file, block and row are named.
        """


@dataclass(frozen=True)
class Accumulate:
    """The one pass at given parameters, on each block; ``moments`` as in ``kernel.accumulate``."""

    parameters: MixtureParameters
    n_threads: int | None = None
    moments: str = "full"

    def __call__(self, X: FloatArray, v: FloatArray | None, block: int) -> SufficientStatistics:
        """Sums of the rows of a block."""
        return kernel.accumulate(X, self.parameters, v, self.n_threads, self.moments)


@dataclass(frozen=True)
class LogLikelihoods:
    """Σ_n v_n log p(x_n) under each of S parameter sets, one load of each block."""

    parameters: Sequence[MixtureParameters]
    n_threads: int | None = None

    def __call__(self, X: FloatArray, v: FloatArray | None, block: int) -> FloatArray:
        """Of the rows of a block: an array (S,)."""
        out = np.empty(len(self.parameters))
        # Parameter sets of equal K go over the rows together.
        sizes = np.array([each.n_components for each in self.parameters], dtype=np.int64)
        for K in np.unique(sizes):
            of_size = np.flatnonzero(sizes == K)
            sets = [self.parameters[int(s)] for s in of_size]
            stacked = (
                np.stack([each.weights for each in sets]),
                np.stack([each.means for each in sets]),
                np.stack([each.precision_factors for each in sets]),
            )
            out[of_size] = kernel.log_likelihoods(X, *stacked, v, self.n_threads)
        return out


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, weight, mean, scatter and range of rows.

    Parameters
    ----------
    n_rows : int
        Rows, those of weight 0 too.
    n_counted : int
        Rows of positive weight.
    weight : float
        Σ v_n.
    mean : ndarray of shape (D,)
    scatter : ndarray of shape (D, D)
        Σ v_n (x_n − mean)(x_n − mean)ᵀ.
    low, high : ndarray of shape (D,)
    """

    n_rows: int
    n_counted: int
    weight: float
    mean: FloatArray
    scatter: FloatArray
    low: FloatArray
    high: FloatArray

    def __add__(self, other: Moments) -> Moments:
        """Of the rows of both, without cancellation (Chan, Golub & LeVeque 1983)."""
        weight = self.weight + other.weight
        share = other.weight / weight if weight > 0 else 0.0
        apart = other.mean - self.mean
        with np.errstate(over="ignore", invalid="ignore"):
            between = self.weight * share * np.outer(apart, apart)
        return Moments(
            self.n_rows + other.n_rows,
            self.n_counted + other.n_counted,
            weight,
            self.mean + share * apart,
            self.scatter + other.scatter + between,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )


def moments(X: FloatArray, v: FloatArray | None, block: int) -> Moments:
    """Task: the moments of a block."""
    D = X.shape[1]
    weight = float(len(X)) if v is None else float(v.sum())
    if not weight > 0:
        zero = np.zeros(D)
        return Moments(len(X), 0, 0.0, zero, np.zeros((D, D)), np.full(D, np.inf), np.full(D, -np.inf))
    # A feature is a row here: sums over long rows are fast, and exact to a few roundings.
    features = np.array(X.T, dtype=np.float64, order="C")
    low, high = features.min(axis=1), features.max(axis=1)
    # Squares that leave the range of float64 are the reader's to refuse, by ``low`` and ``high``.
    with np.errstate(over="ignore", invalid="ignore"):
        mean = features.mean(axis=1) if v is None else features @ v / weight
        features -= mean[:, None]
        scatter = (features if v is None else features * v) @ features.T
    counted = len(X) if v is None else int(np.count_nonzero(v))
    return Moments(len(X), counted, weight, mean, scatter, low, high)


@dataclass(frozen=True, eq=False)
class Subsample:
    """At most ``size`` rows drawn without replacement: those of the smallest keys.

    Parameters
    ----------
    size : int
    parts : tuple of (rows (n, D), weights (n,), keys (n,))
        Keys are uniform numbers that the seed and the row's place give.
    """

    size: int
    parts: tuple[tuple[FloatArray, FloatArray, FloatArray], ...]

    def __add__(self, other: Subsample) -> Subsample:
        """From the rows of both."""
        both = Subsample(self.size, self.parts + other.parts)
        # Sorted when there are many, not each time: most additions bring a handful of rows.
        return (
            both if sum(len(part[2]) for part in both.parts) < 2 * self.size else Subsample(self.size, (both._drawn,))
        )

    @cached_property
    def _drawn(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        rows, weights, keys = (np.concatenate(arrays) for arrays in zip(*self.parts, strict=True))
        chosen = np.argsort(keys, kind="stable")[: self.size]
        return rows[chosen], weights[chosen], keys[chosen]

    @property
    def rows(self) -> FloatArray:
        """The rows (n, D), in the order of their keys."""
        return self._drawn[0]

    @property
    def weights(self) -> FloatArray:
        """Their weights (n,)."""
        return self._drawn[1]


@dataclass(frozen=True)
class Draw:
    """Task: a subsample of the rows of positive weight, the same for the same seed and blocks.

    Parameters
    ----------
    size : int
    seed : int
    share : float, default 1.0
        Rows with keys from here on are passed over. Little more than ``size`` rows of all, it saves carrying whole blocks about.
    """

    size: int
    seed: int
    share: float = 1.0

    def __call__(self, X: FloatArray, v: FloatArray | None, block: int) -> Subsample:
        """From the rows of a block."""
        weights: NDArray[np.float64] = np.ones(len(X)) if v is None else v
        keys = np.random.default_rng([self.seed, block]).random(len(X))
        near = np.flatnonzero((keys < self.share) & (weights > 0))
        chosen = near[np.argsort(keys[near], kind="stable")[: self.size]]
        return Subsample(self.size, ((X[chosen].astype(np.float64), weights[chosen], keys[chosen]),))


@dataclass(frozen=True, eq=False)
class Gathered:
    """Something of each row of some blocks.

    Parameters
    ----------
    parts : tuple of (block, ndarray of shape (n, ...))
    """

    parts: tuple[tuple[int, NDArray[Any]], ...]

    def __add__(self, other: Gathered) -> Gathered:
        """Of the rows of both."""
        return Gathered(self.parts + other.parts)

    @property
    def values(self) -> NDArray[Any]:
        """Of the rows in the order of the table."""
        return np.concatenate([values for _, values in sorted(self.parts, key=lambda part: part[0])])


@dataclass(frozen=True)
class Gather:
    """Task: a function of rows, (n, D) to (n, ...), on each block."""

    function: Callable[[FloatArray], NDArray[Any]]

    def __call__(self, X: FloatArray, v: FloatArray | None, block: int) -> Gathered:
        """Of the rows of a block."""
        return Gathered(((block, self.function(X)),))


def size(X: FloatArray, v: FloatArray | None, block: int) -> Gathered:
    """Task: the number of rows of each block."""
    return Gathered(((block, np.array([len(X)])),))


@dataclass(frozen=True, eq=False)
class Take:
    """Task: rows at given places of a table with their weights, (n, D + 1).

    Parameters
    ----------
    places : mapping of int to ndarray of int
        By block, places in it.
    """

    places: Mapping[int, NDArray[np.int64]]

    @classmethod
    def of(cls, rows: NDArray[np.int64], sizes: Gathered) -> Take:
        """Rows by their sorted numbers in the table, given the sizes of its blocks."""
        places, above = {}, 0
        for block, (n,) in sorted(sizes.parts, key=lambda part: part[0]):
            begin, end = np.searchsorted(rows, (above, above + n))
            places[block] = rows[begin:end] - above
            above += int(n)
        return cls(places)

    def __call__(self, X: FloatArray, v: FloatArray | None, block: int) -> Gathered:
        """Of the rows of a block."""
        at = self.places[block]
        return Gathered(((block, np.column_stack([X[at], np.ones(len(at)) if v is None else v[at]])),))
