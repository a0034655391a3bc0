"""Which components of a mixture the posterior tells apart, and what is the matter with the others, in a sentence or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bayesgmm.core.parameters import FloatArray

EMPTY_SHARE = 0.1
"""Share of draws in which a component holds less than one row, from which on it is told to be empty in them."""


@dataclass(frozen=True)
class Identification:
    """What speaks against single components.

    Parameters
    ----------
    n_components : int
    wandering : tuple of int
        Components that change places from draw to draw.
    differing : tuple of int
        Components that are not the same in all modes of the posterior.
    empty : dict of int to float
        Components that hold less than one row, with the share of the draws in which they do.
    """

    n_components: int
    wandering: tuple[int, ...]
    differing: tuple[int, ...]
    empty: dict[int, float]

    @property
    def identified(self) -> tuple[int, ...]:
        """Components of which none of that is true."""
        doubtful = {*self.wandering, *self.differing, *self.empty}
        return tuple(k for k in range(self.n_components) if k not in doubtful)

    def __str__(self) -> str:
        """In words; empty where all are identified."""
        empty = tuple(self.empty)
        wandering = tuple(k for k in self.wandering if k not in self.empty)
        differing = tuple(k for k in self.differing if k not in (*empty, *wandering))
        clauses = []
        if wandering:
            clauses.append(f"{_named(wandering)} change{_s(wandering)} places from draw to draw")
        if empty:
            share = max(self.empty.values())
            up_to = "" if len(empty) == 1 else "up to "
            clauses.append(
                f"{_named(empty)} hold{_s(empty)} less than one row in {up_to}{share:.0%} of the draws (fewer components may do)"
            )
        if differing:
            it = "it" if len(differing) == 1 else "them"
            clauses.append(f"{_named(differing)} differ{_s(differing)} from mode to mode (look at {it} mode by mode)")
        if not clauses:
            return ""
        sure = self.identified
        known = f"{_named(sure).capitalize()} {'is' if len(sure) == 1 else 'are'} identified; " if sure else ""
        return f"{known or 'No component is identified: '}{'; '.join(clauses)}."


def _named(components: Sequence[int]) -> str:
    numbers = [str(k) for k in components]
    if len(numbers) == 1:
        return f"component {numbers[0]}"
    return f"components {', '.join(numbers[:-1])} and {numbers[-1]}"


def _s(components: Sequence[int]) -> str:
    return "s" if len(components) == 1 else ""


def rarely_filled(weights: FloatArray, n_rows: float) -> dict[int, float]:
    """Components that hold less than one row in a good part of the draws, with that part.

    Parameters
    ----------
    weights : ndarray of shape (chains, draws, K)
        In one order.
    n_rows : float
        N, or the sum of the rows' weights.

    Returns
    -------
    dict of int to float
    """
    shares = np.mean(weights * n_rows < 1.0, axis=(0, 1))
    return {int(k): float(shares[k]) for k in np.flatnonzero(shares >= EMPTY_SHARE)}


def changed_places(permutations: np.ndarray) -> FloatArray:
    """For each place the share of draws whose component there is another than in their chain's draw before.

    Parameters
    ----------
    permutations : ndarray of shape (chains, draws, K)
        As returned by :func:`bayesgmm.inference.relabel.relabel`.

    Returns
    -------
    ndarray of shape (K,)
    """
    if permutations.shape[1] < 2:
        return np.zeros(permutations.shape[2])
    return np.asarray(np.mean(permutations[:, 1:] != permutations[:, :-1], axis=(0, 1)))
