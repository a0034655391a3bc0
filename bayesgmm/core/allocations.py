"""Allocations of rows to components under every draw: drawing them, and the draw whose partition is closest to all others.

All pairs of draws are compared by sets of bits: the rows that two labels share are counted 64 at a time.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.core.partitions import Allocations, check_loss, losses
from bayesgmm.core.threads import over_chunks

SCREENED = 20_000_000_000
"""Words of 64 rows that are compared at most to find the best single draw."""

RESCORED = 64
"""Draws whose expected loss is worked out in full where not all draws could be compared with all."""

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


@nb.njit(**_options)
def _draw_labels(responsibilities, uniforms, out):  # type: ignore[no-untyped-def]
    N, K = responsibilities.shape
    for i in range(N):
        running, label = responsibilities[i, 0], 0
        while running <= uniforms[i] and label < K - 1:
            label += 1
            running += responsibilities[i, label]
        out[i] = label


def draw_allocations(
    X: FloatArray, weights: FloatArray, means: FloatArray, precision_factors: FloatArray, rng: np.random.Generator
) -> Allocations:
    """Labels of the rows drawn from their responsibilities, once under every draw of the parameters.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    precision_factors : ndarray of shape (S, K, D, D)
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (N, S), uint8 (uint16 where K > 256)
        The order of the components in a draw has no say in the partition: they are taken by decreasing weight.
    """
    N, (S, K) = len(X), weights.shape
    out = np.empty((N, S), dtype=np.uint8 if K <= 256 else np.uint16)
    order = np.argsort(-weights, axis=1, kind="stable")
    for s in range(S):
        o = order[s]
        parameters = MixtureParameters(weights[s, o], means[s, o], precision_factors[s, o])
        _draw_labels(kernel.responsibilities(X, parameters)[0], rng.random(N), out[:, s])
    return out


@nb.njit(**_options)
def _bits(z, n_labels):  # type: ignore[no-untyped-def]
    """Rows of each label of each draw as bits, (S, K, words), empty labels last; and how many labels have rows."""
    N, S = z.shape
    out, occupied = np.zeros((S, n_labels, -(-N // 64)), np.uint64), np.zeros(S, np.int64)
    place = np.full((S, n_labels), -1)
    for i in range(N):
        bit = np.uint64(1) << np.uint64(i % 64)
        for s in range(S):
            if place[s, z[i, s]] < 0:
                place[s, z[i, s]] = occupied[s]
                occupied[s] += 1
            out[s, place[s, z[i, s]], i // 64] |= bit
    return out, occupied


@nb.njit(**_options)
def _common_rows(a, b):  # type: ignore[no-untyped-def]
    """Number of bits that two sets share; LLVM makes one instruction of the bit tricks."""
    total = np.uint64(0)
    for w in range(len(a)):
        x = a[w] & b[w]
        x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
        x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
        x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        total += (x * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return np.int64(total)


@nb.njit(**_options)
def _within(bits, rows, occupied, f, s, t):  # type: ignore[no-untyped-def]
    """Σ_bc f(n_bc) of two draws; the last label of each has what the others leave."""
    last, final = occupied[s] - 1, occupied[t] - 1
    total, rest = 0.0, rows[t, final]
    for b in range(last):
        left = rows[s, b]
        for c in range(final):
            n = _common_rows(bits[s, b], bits[t, c])
            left -= n
            total += f[n]
        total += f[left]
        rest -= left
    for c in range(final):
        n = _common_rows(bits[s, last], bits[t, c])
        total += f[n]
    return total + f[rest]


@nb.njit(**_options)
def _summed_losses(bits, occupied, f, references, start, stop, out):  # type: ignore[no-untyped-def]
    """Norm × loss of draws start … stop, less what is the same for all, summed over the reference draws.

    Where every draw is a reference each pair is taken once, and added to both of its draws.
    """
    S = len(bits)
    rows = np.zeros(bits.shape[:2], np.int64)
    own = np.zeros(S)
    for s in range(S):
        for b in range(occupied[s]):
            rows[s, b] = _common_rows(bits[s, b], bits[s, b])
            own[s] += f[rows[s, b]]
    everything = len(references) == S
    for s in range(start, stop):
        out[s] += len(references) * own[s]
        if everything:
            out[s] -= 2.0 * own[s]
        for r in range(s + 1 if everything else 0, len(references)):
            t = references[r]
            within = 2.0 * _within(bits, rows, occupied, f, s, t)
            out[s] -= within
            if everything:
                out[t] -= within


def best_draw(
    z: Allocations, loss: str, weight: FloatArray | None = None, n_threads: int | None = None
) -> tuple[int, bool]:
    """The draw whose partition has the smallest expected loss.

    Parameters
    ----------
    z : ndarray of shape (N, S), unsigned int
    loss : {"vi", "binder"}
    weight : ndarray of shape (N,), optional
    n_threads : int, optional
        All available cores when None. The result does not depend on it.

    Returns
    -------
    draw : int
        Of equals, the first.
    exact : bool
        False where it is the best of the 64 that looked best by comparison with a part of the draws, or without weights.

    Raises
    ------
    ValueError
        If the loss is unknown.
    """
    check_loss(loss)
    N, S = z.shape
    bits, occupied = _bits(np.ascontiguousarray(z), int(z.max()) + 1)
    f = np.arange(N + 1.0)
    f = f * np.log2(np.maximum(f, 1.0)) if loss == "vi" else f**2
    labels = int(occupied.max())
    work = S * labels**2 * (bits.shape[2] + 16)
    references = np.unique(np.linspace(0, S - 1, min(S, max(1, SCREENED // work))).astype(np.int64))
    chunk_draws = max(1, -(-S // 64))
    parts = np.zeros((-(-S // chunk_draws), S))

    def task(chunk: int, start: int, stop: int) -> None:
        _summed_losses(bits, occupied, f, references, start, stop, parts[chunk])

    over_chunks(S, chunk_draws, 4.0 * work * len(references), n_threads, task)
    totals = parts.sum(axis=0)
    equal = weight is None or bool(np.all(weight == weight[0]))
    if equal and len(references) == S:
        # Sums in another order differ in their last digits: of equal draws the first is taken.
        return int(np.flatnonzero(totals <= totals.min() + 1e-9 * S * f[N])[0]), True
    candidates = np.sort(np.argsort(totals, kind="stable")[:RESCORED])
    means = [losses(z, z[:, s], loss, weight)[0].mean() for s in candidates]
    return int(candidates[int(np.argmin(means))]), False
