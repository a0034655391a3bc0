r"""Where the posterior under a prior of standard deviations and correlations is improper, or its density unbounded.

A component that shrinks onto m rows has a likelihood that grows without bound; a prior must vanish faster.

- m equal values in one feature, and a scale prior proportional to σ^(a − 1) near 0. The rows contribute σ^(−m), the mean's
  integral σ: ∫ σ^(a − 1) σ^(1 − m) dσ diverges where m ≥ a + 1, and the density in log σ is unbounded where m > a. ``spherical``: m
  equal rows of D features, where (m − 1) D ≥ a, and where m D > a.
- m rows whose affine hull has dimension r < D and is no plane across one feature, and R ~ LKJ(η). A component whose smallest
  deviation, across the hull, is ε has the prior mass ε^(r + 2η − 1) dε, the mean's integral ε and the likelihood ε^(−m): this diverges
  where m ≥ r + 1 + 2η, whatever the scale prior, which is m ≥ D + 2η for an oblique hyperplane and m ≥ 1 + 2η for equal rows. The
  density is unbounded where m > 2η, which any D rows reach for D > 2η.
- ``tied`` covariances shrink on all N rows at once: onto d ≤ K values of a feature where N ≥ d + a, and onto d ≤ K parallel
  hyperplanes where N ≥ D + 2η + d − 1.

With one component these are cases of constant or collinear columns, which are refused before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.separation import SeparationPrior
from bayesgmm.exceptions import ImproperPosteriorError, PriorWarning, warn_user

if TYPE_CHECKING:
    from bayesgmm.core.classes import ClassLayout

LARGEST_SAMPLE = 1500
"""Distinct rows from which candidate lines are drawn; where there are more, rows taken at random."""

SEARCH_BUDGET = 20_000_000
"""Pairs of rows that are looked at in all pairs of features together."""

SAME_DIRECTION = 1e-9
"""Radians, of features scaled to their range, within which two directions are one."""

ON_LINE = 1e-9
"""Distance, of features scaled to their range, up to which a row lies on a line."""

LARGEST_FLAT = 3
"""Dimension of the largest flats that are looked for across several features."""

FLAT_BUDGET = 4000
"""Bases of flats that are tried in all: some tenths of a second."""

COEFFICIENTS = (1, 2, 3)
"""Of the normals that are tried on all rows."""

NORMAL_BUDGET = 5_000_000
"""Rows × normals up to which all coefficients are tried."""

OTHERS = "a prior that vanishes at every singular covariance (ConjugatePrior, HierarchicalPrior)"

SHOWN = 10
"""Rows that a message names."""


@dataclass(frozen=True, eq=False)
class Degeneracy:
    """Rows on which a component may shrink.

    Parameters
    ----------
    rows : ndarray of shape (m,), int
    count : float
        Their number, or the sum of their weights.
    improper_from : float
        Count from which on the posterior is improper.
    unbounded_above : float
        Count above which the density has no mode there.
    what : str
        What the rows have in common.
    remedy : str
    """

    rows: np.ndarray
    count: float
    improper_from: float
    unbounded_above: float
    what: str
    remedy: str

    @property
    def improper(self) -> bool:
        """Whether the posterior is improper."""
        return self.count >= self.improper_from

    @property
    def unbounded(self) -> bool:
        """Whether the density is unbounded."""
        return self.count > self.unbounded_above

    def __str__(self) -> str:
        named = ", ".join(map(str, self.rows[:SHOWN])) + (", …" if len(self.rows) > SHOWN else "")
        return f"{self.count:g} rows {self.what} (rows {named})"


def check_posterior(
    prior: Any,
    X: FloatArray,
    n_components: int,
    covariance_type: str,
    sample_weight: FloatArray | None,
    names: Sequence[Any],
) -> None:
    """Refuse an improper posterior, and warn of an unbounded density.

    Parameters
    ----------
    prior : ConjugatePrior, HierarchicalPrior or SeparationPrior
        Resolved. Only the last can be at fault.
    X : ndarray of shape (N, D)
    n_components : int
        K.
    covariance_type : {"full", "tied", "diag", "spherical"}
    sample_weight : ndarray of shape (N,) or None
    names : sequence of length D
        Names of the features.

    Raises
    ------
    ImproperPosteriorError
        Naming the rows, and the floor or η from which on the posterior is proper.

    Warns
    -----
    PriorWarning
        Where the density is unbounded, though its integral is finite: there modes are local ones.
    """
    if isinstance(prior, SeparationPrior) and n_components > 1:
        _judge(list(degeneracies(prior, X, n_components, covariance_type, sample_weight, names)))


def check_class_posterior(
    prior: Any,
    X: FloatArray,
    classes: ClassLayout,
    covariance_type: str,
    sample_weight: FloatArray | None,
    names: Sequence[Any],
) -> None:
    """:func:`check_posterior` of rows some of which have a known class.

    A component of a class with others may shrink on rows of its class and of none; the only one of its class has all its labelled rows to
    hold; a tied covariance belongs to all.

    Parameters
    ----------
    prior : ConjugatePrior, HierarchicalPrior or SeparationPrior
        Resolved.
    X : ndarray of shape (N, D)
        Sorted by class.
    classes : ClassLayout
    covariance_type : {"full", "tied", "diag", "spherical"}
    sample_weight : ndarray of shape (N,) or None
    names : sequence of length D

    Raises
    ------
    ImproperPosteriorError

    Warns
    -----
    PriorWarning
    """
    if not isinstance(prior, SeparationPrior):
        return
    if structure(covariance_type).name == "tied":
        check_posterior(prior, X, classes.n_components, covariance_type, sample_weight, names)
        return
    positions = np.arange(len(X)) if classes.positions is None else classes.positions
    cases = []
    for labelled, K in zip(classes.labelled, classes.components, strict=True):
        own = np.arange(labelled.start, labelled.stop)
        rows = own if K == 1 else np.append(own, np.arange(classes.n_labelled, len(X)))
        v = None
        if sample_weight is not None:
            rows = rows[sample_weight[rows] > 0]
            v = sample_weight[rows]
        for case in degeneracies(prior, X[rows], 2, covariance_type, v, names) if len(rows) else ():
            if K > 1 or len(case.rows) == len(rows):
                cases.append(replace(case, rows=np.sort(positions[rows[case.rows]])))
    _judge(cases)


def _judge(found: Sequence[Degeneracy]) -> None:
    """Refuse what is improper, warn of what is unbounded."""
    improper = [case for case in found if case.improper]
    if improper:
        worst = max(improper, key=lambda case: case.count - case.improper_from)
        raise ImproperPosteriorError(
            f"the posterior is improper under this prior: {worst}, and a component that shrinks onto them has infinite mass from "
            f"{worst.improper_from:g} on; {worst.remedy}"
        )
    unbounded = [case for case in found if case.unbounded]
    if unbounded:
        worst = max(unbounded, key=lambda case: case.count - case.unbounded_above)
        warn_user(
            f"the posterior density is unbounded, though its integral is finite: {worst}; its modes, and the Laplace approximation, are "
            f"local; {worst.remedy}",
            PriorWarning,
        )


def degeneracies(
    prior: SeparationPrior,
    X: FloatArray,
    n_components: int,
    covariance_type: str,
    sample_weight: FloatArray | None,
    names: Sequence[Any],
) -> Iterator[Degeneracy]:
    """Sets of rows on which a component may shrink: of each kind the largest.

    Parameters
    ----------
    prior : SeparationPrior
        Resolved.
    X : ndarray of shape (N, D)
    n_components : int
        K, at least 2.
    covariance_type : {"full", "tied", "diag", "spherical"}
    sample_weight : ndarray of shape (N,) or None
    names : sequence of length D

    Yields
    ------
    Degeneracy

    Notes
    -----
    Equal values and equal rows are found exactly. So are collinear rows of two features, up to ``LARGEST_SAMPLE`` distinct ones, from
    the directions of all pairs. With more features the flats (affine subspaces) that are looked at are

    - lines across each two features, and equal values of both;
    - lines, planes and flats of dimension three across each three features, and across all: those that any so many of the rows span
      (two, three, four), found by projecting along all but one of these and putting equal directions together. All rows are tried
      where they are few (:func:`rows_tried`: lines some hundred to 1500, planes 30 to 120, fewer the more features there are); of
      more distinct rows the heaviest, then some at random, the same ones every time. Rows beyond those tried count once a flat is found;
    - planes across each three features whose normal has coefficients 1, 2 or 3 of either sign (1 alone where rows × features would make
      this long), in the units of the data and in steps of their rounding, whatever the number of rows: totals, differences, and the
      planes that hold most points of a lattice;
    - the flats through the heaviest rows, of which any r lie in one of dimension r − 1.

    Not looked at: flats of dimension four or more, and those across four features or more but not all of them, unless a line or plane
    of the above lies within. Among more rows than are tried a flat may be missed of which these hold no more rows than any flat does.
    """
    kind = structure(covariance_type).name
    kept = np.arange(len(X)) if sample_weight is None else np.flatnonzero(sample_weight > 0)
    rows, v = X[kept], np.ones(len(kept)) if sample_weight is None else sample_weight[kept]
    cases = _shrinking_deviations(prior, rows, v, n_components, kind, names)
    if kind in ("full", "tied") and X.shape[1] > 1:
        of_correlations = _parallel_lines if kind == "tied" else _flat_rows
        cases = _chained(cases, of_correlations(prior, rows, v, n_components, names))
    for members, *rest in cases:
        yield Degeneracy(kept[members], float(v[members].sum()), *rest)


def _chained(*parts: Iterator[Any]) -> Iterator[Any]:
    for part in parts:
        yield from part


def _shrinking_deviations(
    prior: SeparationPrior, X: FloatArray, v: FloatArray, K: int, kind: str, names: Sequence[Any]
) -> Iterator[Any]:
    """Rows on which one standard deviation may shrink to 0."""
    D = X.shape[1]
    exponents = prior.exponents(kind)
    if not np.any(np.isfinite(exponents)):
        return
    remedy = (
        "give the standard deviations a floor (deviation_floor, such as the rounding of the data), or a prior that vanishes at 0 faster "
        'than any power (deviation_family="lognormal" or "inversegamma")'
    )
    if kind == "spherical":
        a = float(exponents[0])
        members = _most_frequent(X, v)[0]
        yield members, 1 + a / D, a / D, _shared(len(members), "are the same"), remedy
        return
    for j in map(int, np.flatnonzero(np.isfinite(exponents))):
        a = float(exponents[j])
        if kind == "tied":
            distinct = len(np.unique(X[:, j]))
            if distinct <= K:
                yield np.arange(len(X)), distinct + a, a, f"have {distinct} values of {names[j]!r}", remedy
            continue
        members = _most_frequent(X[:, [j]], v)[0]
        yield members, a + 1, a, _shared(len(members), f"have {names[j]!r} = {X[members[0], j]:g}"), remedy


def _shared(n_rows: int, what: str) -> str:
    return what if n_rows > 1 else "alone is enough for this prior"


def _flat_rows(prior: SeparationPrior, X: FloatArray, v: FloatArray, K: int, names: Sequence[Any]) -> Iterator[Any]:
    """Rows on which a correlation matrix may become singular."""
    D, eta = X.shape[1], prior.resolved_eta

    def case(members: np.ndarray, improper_from: float, what: str) -> Any:
        # improper_from = c + 2η: proper for any η above this.
        smallest = (float(v[members].sum()) - (improper_from - 2 * eta)) / 2
        proper = f"raise eta above {max(smallest, 0.0):g}, or take {OTHERS}"
        bounded = f"raise eta to {float(v[members].sum()) / 2:g} for a bounded one"
        count = float(v[members].sum())
        return members, improper_from, 2 * eta, what, proper if count >= improper_from else bounded

    members, _ = _most_frequent(X, v)
    if len(members) > 1:
        yield case(members, 1 + 2 * eta, "are the same")
    if D > 2:
        yield from (case(*found) for found in _flats_of_several(X, v, 2 * eta, names))
    pairs = list(combinations(range(D), 2))
    limit = int(min(LARGEST_SAMPLE, max(50, np.sqrt(SEARCH_BUDGET / len(pairs)))))
    for i, j in pairs:
        both = X[:, [i, j]]
        if D > 2:
            members, _ = _most_frequent(both, v)
            if len(members) > 1:
                what = f"are the same in {names[i]!r} and {names[j]!r}"
                yield case(members, D - 1 + 2 * eta, what)
        members = _largest_oblique_line(both, v, limit)
        if len(members) > 2:
            yield case(members, D + 2 * eta, f"lie on one line of {names[i]!r} and {names[j]!r}")
    heaviest = np.argsort(-v, kind="stable")[:D]
    # Of all flats that so many rows always lie in, the one that they exceed most: each row's weight beyond 1 counts.
    r = int(np.sum(v[heaviest] > 1))
    if 0 < r < D:
        what = (
            "are the same, a row of that weight"
            if r == 1
            else f"lie in a flat of dimension {r - 1}, as any {r} rows do"
        )
        yield case(heaviest[:r], r + 2 * eta, what)
    if len(heaviest) == D:
        yield case(heaviest, D + 2 * eta, f"lie on one plane of {D} features, as any {D} rows do")


def _flats_of_several(
    X: FloatArray, v: FloatArray, twice_eta: float, names: Sequence[Any]
) -> Iterator[tuple[np.ndarray, float, str]]:
    """Rows in common flats across three features, or all: the rows, the count from which on they are too many, and what they share."""
    D = X.shape[1]
    triples = list(combinations(range(D), 3))
    largest = max(COEFFICIENTS)
    if len(X) * len(triples) * 4 * largest**3 > NORMAL_BUDGET:
        largest = 1
    for triple in triples:
        members = _lattice_plane(X[:, list(triple)], v, largest, twice_eta)
        if len(members) > 1:
            yield members, D + twice_eta, f"lie on one plane of {', '.join(repr(names[j]) for j in triple)}"
    tasks = [
        (features, dimension)
        for features in (*triples, *(() if D == 3 else (tuple(range(D)),)))
        for dimension in range(1, min(len(features), LARGEST_FLAT + 1))
    ]
    for features, dimension in tasks:
        members = _largest_flat(X[:, list(features)], v, dimension, rows_tried(dimension, len(tasks)), twice_eta)
        if len(members) > 1:
            # The hull of the rows is as thin as the flat, across the features that are not looked at as well.
            hull = dimension + D - len(features)
            across = ", ".join(repr(names[j]) for j in features) if len(features) <= SHOWN else f"{D} features"
            what = {1: "line", 2: "plane"}.get(dimension, f"flat of dimension {dimension}")
            yield members, hull + 1 + twice_eta, f"lie on one {what} of {across}"


def _lattice_plane(points: FloatArray, v: FloatArray, largest: int, least: float) -> np.ndarray:
    """Rows on the plane across three features, its normal of small whole numbers, that has the largest total weight above ``least``."""
    first = np.array(list(product(range(1, largest + 1), repeat=3)), dtype=float)
    normals = np.vstack([first * (1, sign, other) for sign in (1, -1) for other in (1, -1)])
    best, found = least, np.empty(0, dtype=int)
    points = points - points.min(axis=0)
    spread = np.ptp(points, axis=0)
    if np.any(spread == 0):
        return found
    for numbers in (points, _in_steps(points)):
        if numbers is None:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            heights = numbers @ normals.T
        if not np.all(np.isfinite(heights)):
            continue
        near = ON_LINE * np.max(np.abs(heights), axis=0, initial=1e-300)
        ordered = np.sort(heights, axis=0)
        # As many rows as weigh more than the best at their heaviest stand at one height, or the normal is of no interest.
        fewest = int(np.floor(best / v.max()))
        if fewest >= len(points):
            continue
        for a in np.flatnonzero(np.any(ordered[fewest:] - ordered[: len(ordered) - fewest] <= near, axis=0)):
            order = np.argsort(heights[:, a], kind="stable")
            starts = np.flatnonzero(np.append(True, np.diff(heights[order, a]) > near[a]))
            totals = np.add.reduceat(v[order], starts)
            g = int(np.argmax(totals))
            if totals[g] <= best:
                continue
            group = order[starts[g] : [*starts[1:], len(order)][g]]
            # In units of their ranges: a feature of small numbers is none in a sum with large ones.
            rows = _rows_of_flat(points / spread, points[group] / spread, 2)
            if float(v[rows].sum()) > best:
                best, found = float(v[rows].sum()), rows
    return found


def _in_steps(points: FloatArray) -> FloatArray | None:
    """The features in steps of their rounding, whole numbers; None where one is not rounded."""
    out = np.empty_like(points)
    for j, x in enumerate(points.T):
        gaps = np.diff(np.unique(x))
        gaps = gaps[gaps > ON_LINE * np.ptp(x)]
        n_steps = np.rint(gaps / gaps.min())
        multiples = (x - x.min()) * (n_steps.sum() / gaps.sum())
        out[:, j] = np.rint(multiples)
        if np.max(np.abs(multiples - out[:, j])) > 1e-3:
            return None
    return out


def rows_tried(dimension: int, n_tasks: int) -> int:
    """Distinct rows of which any ``dimension`` are tried as a base, where there are that many flats to look for."""
    n = dimension + 2
    while n < LARGEST_SAMPLE and comb(n + 1, dimension) <= FLAT_BUDGET / n_tasks:
        n += 1
    return n


def _scaled_rows(points: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray, np.ndarray, FloatArray]:
    """Rows in units of the features' ranges; the distinct ones, which of them each row is, and their total weights."""
    scaled = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    distinct, which = np.unique(scaled, axis=0, return_inverse=True)
    return scaled, distinct, which.ravel(), np.bincount(which.ravel(), weights=v)


def _largest_flat(points: FloatArray, v: FloatArray, dimension: int, n_tried: int, least: float) -> np.ndarray:
    """Rows of the flat, across two features or more, that has the largest total weight above ``least``.

    Rows become vectors (1, x), and a flat of dimension r a subspace of dimension r + 1: r of its vectors are taken as a base in turn, the
    others projected along it, and those that then have the same direction lie in one such subspace.
    """
    if np.any(np.ptp(points, axis=0) == 0):
        return np.empty(0, dtype=int)
    _, distinct, which, weight = _scaled_rows(points, v)
    chosen = np.arange(len(distinct))
    if len(distinct) > n_tried:
        # The heaviest; the same every time: whether a posterior is improper does not depend on a seed.
        chosen = np.lexsort((np.random.default_rng(0).random(len(distinct)), -weight))[:n_tried]
    vectors = np.column_stack([np.ones(len(chosen)), distinct[chosen]])
    probe = np.random.default_rng(1).standard_normal(vectors.shape[1])
    best: list[Any] = [least, np.empty(0, dtype=int)]

    def search(rest: FloatArray, mass: FloatArray, places: np.ndarray, base: tuple[int, ...], own: float) -> None:
        if len(base) < dimension:
            for i in range(len(rest) - 1):
                direction = rest[i] / np.linalg.norm(rest[i])
                later = rest[i + 1 :] - np.outer(rest[i + 1 :] @ direction, direction)
                apart = np.linalg.norm(later, axis=1) > ON_LINE
                parallel = float(mass[i + 1 :][~apart].sum())
                if own + parallel + mass[i:].sum() > best[0]:
                    search(
                        later[apart],
                        mass[i + 1 :][apart],
                        places[i + 1 :][apart],
                        (*base, int(places[i])),
                        own + mass[i] + parallel,
                    )
            return
        key = rest @ probe / np.linalg.norm(rest, axis=1) if len(rest) else np.empty(0)
        key = np.abs(key)
        order = np.argsort(key)
        starts = np.flatnonzero(np.append(True, np.diff(key[order]) > SAME_DIRECTION)) if len(key) else np.empty(0, int)
        totals = own + np.add.reduceat(mass[order], starts) if len(starts) else np.empty(0)
        stops = np.append(starts[1:], len(order))
        for g in np.argsort(-totals):
            if totals[g] <= best[0]:
                break
            group = places[order[starts[g] : stops[g]]]
            rows = _rows_of_flat(distinct, distinct[chosen[[*base, *group]]], dimension)
            total = float(weight[rows].sum())
            if len(rows) and total > best[0]:
                best[:] = total, rows

    search(vectors, weight[chosen], np.arange(len(chosen)), (), 0.0)
    return np.flatnonzero(np.isin(which, best[1]))


def _rows_of_flat(points: FloatArray, members: FloatArray, dimension: int) -> np.ndarray:
    """Points in the flat that members span; none where it is no flat of the dimension, or a plane across a single feature."""
    centre = members.mean(axis=0)
    _, sizes, axes = np.linalg.svd(members - centre)
    spans = np.sum(sizes > ON_LINE)
    normals = axes[dimension:]
    if spans != dimension or (len(normals) == 1 and np.sum(np.abs(normals[0]) > ON_LINE) < 2):
        return np.empty(0, dtype=int)
    return np.flatnonzero(np.all(np.abs((points - centre) @ normals.T) <= ON_LINE, axis=1))


def _parallel_lines(
    prior: SeparationPrior, X: FloatArray, v: FloatArray, K: int, names: Sequence[Any]
) -> Iterator[Any]:
    """All rows of two features on at most K parallel lines: of K + 1 distinct rows two share one, which gives its direction."""
    if X.shape[1] != 2:
        return
    scaled = X / np.ptp(X, axis=0)
    first = np.unique(scaled, axis=0)[: K + 1]
    eta = prior.resolved_eta
    for one, other in combinations(first, 2):
        normal = np.array([one[1] - other[1], other[0] - one[0]])
        if np.any(np.abs(normal) <= ON_LINE):
            continue
        height = np.sort(scaled @ (normal / np.linalg.norm(normal)))
        lines = 1 + int(np.sum(np.diff(height) > ON_LINE))
        if lines <= K:
            what = f"lie on {lines} parallel lines of {names[0]!r} and {names[1]!r}"
            remedy = f"raise eta above {(v.sum() - lines - 1) / 2:g}, or take {OTHERS}"
            yield np.arange(len(X)), 2 * eta + lines + 1, 2 * eta, what, remedy
            return


def _most_frequent(X: FloatArray, v: FloatArray) -> tuple[np.ndarray, float]:
    """Rows equal to the row of the largest total weight, and this weight."""
    _, which = np.unique(X, axis=0, return_inverse=True)
    totals = np.bincount(which.ravel(), weights=v)
    best = int(np.argmax(totals))
    return np.flatnonzero(which.ravel() == best), float(totals[best])


def _largest_oblique_line(points: FloatArray, v: FloatArray, limit: int) -> np.ndarray:
    """Rows on the line, across both features, that has the largest total weight."""
    if np.any(np.ptp(points, axis=0) == 0):
        return np.empty(0, dtype=int)
    scaled, distinct, _, weight = _scaled_rows(points, v)
    chosen = np.arange(len(distinct))
    if len(distinct) > limit:
        # The same rows every time: whether a posterior is improper does not depend on a seed.
        chosen = np.sort(np.random.default_rng(0).choice(len(distinct), limit, replace=False))
    candidates, own = distinct[chosen], weight[chosen]
    best, line = 0.0, None
    for p in range(len(candidates) - 1):
        step = candidates[p + 1 :] - candidates[p]
        oblique = np.all(np.abs(step) > ON_LINE, axis=1)
        angle = np.arctan(step[oblique, 1] / step[oblique, 0])
        if not len(angle):
            continue
        order = np.argsort(angle)
        starts = np.flatnonzero(np.append(True, np.diff(angle[order]) > SAME_DIRECTION))
        totals = own[p] + np.add.reduceat(own[p + 1 :][oblique][order], starts)
        largest = int(np.argmax(totals))
        if totals[largest] > best:
            best, line = float(totals[largest]), (candidates[p], angle[order][starts[largest]])
    if line is None:
        return np.empty(0, dtype=int)
    origin, direction = line
    distance = (scaled - origin) @ np.array([-np.sin(direction), np.cos(direction)])
    return np.flatnonzero(np.abs(distance) <= ON_LINE)
