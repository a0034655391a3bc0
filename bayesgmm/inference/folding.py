"""Normal densities over a mixture's unconstrained parameters, averaged over the K! orders of the components.

A posterior that does not tell components apart is the same at θ and at σθ, θ with its components in the order σ. Draws that
were put in one order show one of its K! copies; a density q fitted to them covers that copy alone. Folded,

    q̃(θ) = (1 / K!) Σ_σ q(σθ),

it covers all of them, and it is the density of a draw from q whose components were then shuffled, whether the copies overlap
or not. σ acts linearly on θ, with determinant ±1: it permutes the components' blocks of coordinates, and the log weights, which sum
to 0, permute with them.

The sum is walked as a tree: one component is placed at a time, in the order in which the triangular factor of q's covariance
takes the coordinates, so that the sum of squares so far bounds the whole from below and orders that can no longer matter are left
out together with all that begin like them. Separated components leave one order of K!, whatever K. Where more than
an affordable number of beginnings stay, they are thinned at random without bias (Fearnhead & Clifford 2003).

References
----------
Fearnhead, P. & Clifford, P. (2003). On-line inference for hidden Markov models via particle filters. Journal of the Royal
Statistical Society B 65, 887–899, section 3.
Frühwirth-Schnatter, S. (2019). Keeping the balance: bridge sampling for marginal likelihood estimation in finite mixture, mixture
of experts and Markov mixture models. Brazilian Journal of Probability and Statistics 33, 706–733.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import gammaln, logsumexp

from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray

NEGLIGIBLE_NATS = 14.0
"""Orders that together add less than e^−14 of the density are left out: 1e-6, far below any Monte Carlo error here."""

KEPT_SHARE = 30
"""Where more than ``max_orders`` beginnings matter, one in this many of ``max_orders`` is kept (eight at least)."""

PILOT = 64
"""Points that tell whether most will need thinning, so that the others are thinned from the start."""

BLOCK_ELEMENTS = 2_000_000
"""Size of the largest temporary array; 16 MB."""


@dataclass(frozen=True, eq=False)
class ComponentBlocks:
    """Which coordinates of θ belong to which component.

    Parameters
    ----------
    shared : ndarray of shape (H,), int
        Coordinates that belong to all (a tied covariance).
    own : ndarray of shape (K, B), int
        Coordinates of each component, its centred log weight last; that of the last component is P, one past the end of θ,
        as it is minus the sum of the others.
    """

    shared: np.ndarray
    own: np.ndarray

    @classmethod
    def of(cls, slices: Mapping[str, slice], n_components: int, covariance_type: str) -> ComponentBlocks:
        """Blocks of a posterior's coordinates.

        Parameters
        ----------
        slices : mapping of str to slice
            ``CompiledPosterior.slices``.
        n_components : int
        covariance_type : {"full", "tied", "diag", "spherical"}
        """
        K = n_components
        where = {name: np.arange(part.start, part.stop) for name, part in slices.items()}
        by_component = ["means"]
        if "component" in structure(covariance_type).free_dims:
            by_component = [*list(slices)[1:3], "means"]
        shared = [part for name, part in where.items() if name not in (*by_component, "weights_simplex__")]
        own = [where[name] for name in by_component]
        own.append(np.append(where["weights_simplex__"], sum(map(len, where.values()))))
        columns = [part.reshape(K, -1) for part in own]
        return cls(np.concatenate([*shared, np.empty(0, dtype=int)]), np.concatenate(columns, axis=1))

    @property
    def n_components(self) -> int:
        """K."""
        return len(self.own)

    @property
    def order(self) -> np.ndarray:
        """Coordinates of θ in the order shared, first component, …, last component."""
        return np.concatenate([self.shared, self.own.ravel()[:-1]])

    def split(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Shared (S, H) and own (S, K, B) coordinates of points (S, P)."""
        last = -theta[:, self.own[:-1, -1]].sum(axis=1, keepdims=True)
        return theta[:, self.shared], np.concatenate([theta, last], axis=1)[:, self.own]

    def permuted(self, theta: FloatArray, permutation: np.ndarray) -> FloatArray:
        """Points (S, P) with component ``permutation[k]`` in place k."""
        shared, own = self.split(theta)
        out = np.empty_like(theta)
        out[:, self.shared] = shared
        out[:, self.own.ravel()[:-1]] = own[:, permutation].reshape(len(theta), -1)[:, :-1]
        return out


@dataclass(frozen=True, eq=False)
class FoldedNormals:
    """A mixture of J normal densities over θ, averaged over the orders of the components.

    Parameters
    ----------
    blocks : ComponentBlocks
    shares : ndarray of shape (J,)
        Of the normals; they sum to 1.
    centers : ndarray of shape (J, P)
        In the coordinates ``theta[blocks.order]``, as all that follows.
    factors : ndarray of shape (J, P, P)
        Lower L with covariances L Lᵀ.
    """

    blocks: ComponentBlocks
    shares: FloatArray
    centers: FloatArray
    factors: FloatArray

    @property
    def n_orders(self) -> int:
        """K!."""
        return math.factorial(self.blocks.n_components)

    def draw(self, rng: np.random.Generator, size: int) -> FloatArray:
        """Draws of shape (size, P), before folding.

        What is the same in every order of the components has the same distribution with and without folding.
        """
        counts = rng.multinomial(size, self.shares)
        noise = rng.standard_normal((size, self.centers.shape[1]))
        parts = np.split(noise, np.cumsum(counts)[:-1])
        ordered = np.concatenate(
            [center + z @ L.T for center, z, L in zip(self.centers, parts, self.factors, strict=True)]
        )
        theta = np.empty_like(ordered)
        theta[:, self.blocks.order] = ordered
        return theta

    def log_unfolded(self, theta: FloatArray) -> FloatArray:
        """Log density before folding of points (S, P), shape (S,)."""
        return log_normals(theta[:, self.blocks.order], self.shares, self.centers, self.factors)

    def log_density(
        self, theta: FloatArray, rng: np.random.Generator, max_orders: int = 720, repeats: int = 4
    ) -> FloatArray:
        """Log of the folded density, or of unbiased estimates of it.

        Parameters
        ----------
        theta : ndarray of shape (S, P)
        rng : numpy.random.Generator
            Used where beginnings of orders are thinned.
        max_orders : int, default 720
            Number of orders (and of their beginnings) that are kept for a point and a normal.
        repeats : int, default 4
            Number of independent estimates where some are thinned.

        Returns
        -------
        ndarray of shape (1, S) or (repeats, S)
            One row where every sum is exact, else independent estimates; exact values are repeated.
        """
        kept = min(max_orders, max(8, max_orders // KEPT_SHARE))
        pilot = self._log_sums(theta[:: max(1, len(theta) // PILOT)], rng, max_orders, kept)[1]
        first, thinned = self._log_sums(theta, rng, max_orders if pilot.mean() < 0.5 else kept, kept)
        if not thinned.any():
            return first[None]
        out = np.repeat(first[None], repeats, axis=0)
        for row in out[1:]:
            row[thinned] = self._log_sums(theta[thinned], rng, kept, kept)[0]
        return out

    def _log_sums(
        self, theta: FloatArray, rng: np.random.Generator, max_orders: int, kept: int
    ) -> tuple[FloatArray, np.ndarray]:
        K, B = self.blocks.own.shape
        log_orders = float(gammaln(K + 1))
        at_identity = self.log_unfolded(theta)
        if K == 1:
            return at_identity, np.zeros(len(theta), dtype=bool)
        shared, own = self.blocks.split(theta)
        log_constants = _log_constants(self.shares, self.factors)
        tolerance = NEGLIGIBLE_NATS + log_orders + np.log(len(self.shares))
        identity = np.eye(self.centers.shape[1])
        inverses = [solve_triangular(L, identity, lower=True) for L in self.factors]
        thinned = np.zeros(len(theta), dtype=bool)
        out = np.empty(len(theta))
        rows = max(1, BLOCK_ELEMENTS // (min(self.n_orders, max_orders) * K * B))
        for begin in range(0, len(theta), rows):
            part = slice(begin, begin + rows)
            terms = []
            for constant, center, inverse in zip(log_constants, self.centers, inverses, strict=True):
                limit = 2 * (constant - at_identity[part] + tolerance)
                log_sum, some = _log_sum_over_orders(
                    shared[part], own[part], center, inverse, limit, max_orders, kept, rng
                )
                terms.append(constant + log_sum)
                thinned[part] |= some
            out[part] = logsumexp(terms, axis=0) - log_orders
        return out, thinned


def log_normals(points: FloatArray, shares: FloatArray, centers: FloatArray, factors: FloatArray) -> FloatArray:
    """Log density of a mixture of normals.

    Parameters
    ----------
    points : ndarray of shape (S, P)
    shares : ndarray of shape (J,)
    centers : ndarray of shape (J, P)
    factors : ndarray of shape (J, P, P)
        Lower L with covariances L Lᵀ.

    Returns
    -------
    ndarray of shape (S,)
    """
    parts = [
        constant - 0.5 * np.sum(solve_triangular(L, (points - center).T, lower=True) ** 2, axis=0)
        for constant, center, L in zip(_log_constants(shares, factors), centers, factors, strict=True)
    ]
    return np.asarray(logsumexp(parts, axis=0))


def _log_constants(shares: FloatArray, factors: FloatArray) -> FloatArray:
    """Log of what stands before the exponential of each normal, (J,)."""
    log_determinants = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    return np.asarray(np.log(shares) - 0.5 * factors.shape[1] * np.log(2 * np.pi) - log_determinants)


def _log_sum_over_orders(
    shared: FloatArray,
    own: FloatArray,
    center: FloatArray,
    inverse_factor: FloatArray,
    limit: FloatArray,
    max_orders: int,
    kept: int,
    rng: np.random.Generator,
) -> tuple[FloatArray, np.ndarray]:
    """Log Σ_σ exp(−½ |L⁻¹ (σθ − m)|²) over the orders whose square norm stays within a limit.

    Parameters
    ----------
    shared : ndarray of shape (S, H)
    own : ndarray of shape (S, K, B)
    center : ndarray of shape (P,)
    inverse_factor : ndarray of shape (P, P)
        L⁻¹, lower.
    limit : ndarray of shape (S,)
    max_orders : int
        Number of beginnings of a point from which on they are thinned.
    kept : int
        Number to which they are thinned.
    rng : numpy.random.Generator

    Returns
    -------
    log_sums : ndarray of shape (S,)
        −inf where no order stays within the limit.
    thinned : ndarray of shape (S,), bool
        Where beginnings of orders were left out at random.
    """
    S, K, B = own.shape
    H = shared.shape[1]
    # Of every beginning: the point, what it adds to the square norm so far, the rest of L⁻¹(σθ − m) as far as it is known,
    # which components are free, whether it is the point's own order, and the log weight that makes up for thinning.
    rest = shared @ inverse_factor[:, :H].T - inverse_factor @ center
    square = np.sum(rest[:, :H] ** 2, axis=1)
    rest = rest[:, H:]
    point, weight = np.arange(S), np.zeros(S)
    free, identity = np.ones((S, K), dtype=bool), np.ones(S, dtype=bool)
    thinned = np.zeros(S, dtype=bool)
    for k in range(K):
        width = B if k < K - 1 else B - 1
        start = H + k * B
        added = own[:, :, :width] @ inverse_factor[start:, start : start + width].T
        head = rest[:, None, :width] + added[point, :, :width]
        squares = square[:, None] + np.einsum("nkb,nkb->nk", head, head)
        node, component = np.nonzero(free & (squares <= limit[point, None]))
        square, weight, point = squares[node, component], weight[node], point[node]
        identity = identity[node] & (component == k)
        counts = np.bincount(point[~identity], minlength=S)
        many = counts > np.where(thinned, kept, max_orders)
        if np.any(many):
            thinned |= many
            stay, weight = _thin(point, weight - 0.5 * square, weight, counts * many, kept, identity, rng)
            node, component, square, point = node[stay], component[stay], square[stay], point[stay]
            identity = identity[stay]
        rest = rest[node, width:] + added[point, component, width:]
        free = free[node]
        free[np.arange(len(node)), component] = False
    out = np.full(S, -np.inf)
    values = weight - 0.5 * square
    if len(values):
        # Beginnings stay in the order of their points, so each point's orders lie together.
        points, first = np.unique(point, return_index=True)
        high = np.maximum.reduceat(values, first)
        total = np.add.reduceat(np.exp(values - np.repeat(high, np.diff(np.append(first, len(values))))), first)
        out[points] = high + np.log(total)
    return out, thinned


def _thin(
    point: np.ndarray,
    log_value: FloatArray,
    log_weight: FloatArray,
    counts: np.ndarray,
    kept: int,
    identity: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, FloatArray]:
    """Thin the beginnings of some points: the largest stay surely, the others by chance and with more weight.

    The beginning of the order that a point came in always stays, so that no estimate is 0.

    Parameters
    ----------
    point, log_value, log_weight : ndarray of shape (n,)
        Of each beginning; those of a point lie together.
    counts : ndarray of shape (S,), int
        Beginnings of each point that are to be thinned, its own order aside; 0 where all stay.
    kept : int
        Less than any count above 0.
    identity : ndarray of shape (n,), bool
        Whether the beginning is that of the point's own order.
    rng : numpy.random.Generator

    Returns
    -------
    stay : ndarray of int
    log_weight : ndarray of shape (len(stay),)
    """
    many = counts > 0
    at = np.flatnonzero(many[point] & ~identity)
    sizes = counts[many]
    row = (np.cumsum(many) - 1)[point[at]]
    column = np.arange(len(at)) - (np.cumsum(sizes) - sizes)[row]
    value = np.full((len(sizes), int(sizes.max())), -np.inf)
    value[row, column] = log_value[at]
    value = np.exp(value - value.max(axis=1, keepdims=True))
    # The threshold c with Σ min(v / c, 1) = kept: values above it stay, the rest stand for c each.
    descending = -np.sort(-value, axis=1)
    tail = np.cumsum(descending[:, ::-1], axis=1)[:, ::-1]
    left = np.arange(kept, 0, -1)
    sure = np.argmax(tail[:, :kept] / left >= descending[:, :kept], axis=1)[:, None]
    c = np.take_along_axis(tail, sure, axis=1) / left[sure]
    chance = np.minimum(value / c, 1.0)
    by_chance = np.where(chance < 1, chance, 0.0)
    ticks = np.floor(np.cumsum(by_chance, axis=1) + rng.random((len(value), 1)))
    chosen = (chance == 1) | (np.diff(ticks, axis=1, prepend=0.0) > 0)
    keep = np.ones(len(point), dtype=bool)
    keep[at] = chosen[row, column]
    weight = log_weight.copy()
    weight[at] -= np.log(np.maximum(chance, np.finfo(float).tiny))[row, column]
    return np.flatnonzero(keep), weight[keep]
