"""Degenerate rows by hand: what each search finds, at both sides of its bounds, and how much it tries."""

from __future__ import annotations

import warnings
from math import comb

import numpy as np
import pytest

from bayesgmm import SeparationPrior
from bayesgmm.core import impropriety
from bayesgmm.core.classes import ClassLayout
from bayesgmm.core.impropriety import (
    Degeneracy,
    _flat_rows,
    _flats_of_several,
    _in_steps,
    _judge,
    _largest_flat,
    _largest_oblique_line,
    _lattice_plane,
    _most_frequent,
    _parallel_lines,
    _rows_of_flat,
    _scaled_rows,
    check_class_posterior,
    degeneracies,
    rows_tried,
)
from bayesgmm.exceptions import ImproperPosteriorError, PriorWarning


def scattered(n_rows: int, D: int, seed: int = 3) -> np.ndarray:
    """Rows in general position."""
    return np.random.default_rng(seed).standard_normal((n_rows, D))


def found(prior: SeparationPrior, X: np.ndarray, K: int = 2, covariance_type: str = "full", v=None) -> list[Degeneracy]:
    names = [f"x{j}" for j in range(X.shape[1])]
    return list(degeneracies(prior.resolve(X, K, covariance_type), X, K, covariance_type, v, names))


def half(**more) -> SeparationPrior:
    """a = 1: two equal values are too many."""
    return SeparationPrior(deviation_family="halfnormal", **more)


def case(rows, count: float, improper_from: float, unbounded_above: float, what: str = "agree") -> Degeneracy:
    return Degeneracy(np.asarray(rows), count, improper_from, unbounded_above, what, "do so")


def test_a_case_names_ten_rows_and_tells_that_there_are_more():
    assert str(case(np.arange(10), 10.0, 3, 2)) == "10 rows agree (rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)"
    assert str(case(np.arange(11), 11.0, 3, 2)) == "11 rows agree (rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …)"


def test_the_worst_case_exceeds_its_own_bound_most_not_the_largest_bound():
    """One above 9 by 1, one above 2 by 4: the second is worse, whichever comes first."""
    near, far = case([0], 10.0, 9, 9, "near"), case([1], 6.0, 2, 2, "far")
    for both in ([near, far], [far, near]):
        with pytest.raises(ImproperPosteriorError, match="6 rows far .* from 2 on"):
            _judge(both)
    near, far = case([0], 10.0, 99, 9, "near"), case([1], 6.0, 99, 2, "far")
    for both in ([near, far], [far, near]):
        with pytest.warns(PriorWarning, match="6 rows far"):
            _judge(both)


def judged(X, components, rows, covariance_type="full", prior=None, v=None, positions=None) -> str:
    n_unlabelled = len(X) - sum(rows)
    layout = ClassLayout(tuple("abc")[: len(rows)], components, rows, n_unlabelled, positions=positions)
    prior = (SeparationPrior(eta=3) if prior is None else prior).resolve(X, layout.n_components, covariance_type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PriorWarning)
        try:
            check_class_posterior(prior, X, layout, covariance_type, v, ["x", "y"])
        except ImproperPosteriorError as error:
            return str(error)
    return "fine"


def test_a_class_of_one_heavy_row_is_one_of_that_row_repeated():
    X, v = scattered(13, 2), np.ones(13)
    v[0] = 5
    prior = SeparationPrior(eta=1.5)
    assert "5 rows are the same" in judged(np.repeat(X, v.astype(int), axis=0), (1, 1), (5, 12), prior=prior)
    assert "5 rows are the same, a row of that weight (rows 0)" in judged(X, (1, 1), (1, 12), prior=prior, v=v)
    assert judged(X, (1, 1), (1, 12), prior=SeparationPrior(eta=2.01), v=v) == "fine"


def test_a_row_of_weight_zero_does_not_keep_its_class_from_shrinking():
    X, v = scattered(24, 2), np.ones(24)
    # Eleven equal rows and one more are on a line; with the thirteenth they are not.
    X[:11], v[12] = X[0], 0
    prior = SeparationPrior(eta=4)
    assert judged(X, (1, 1), (13, 11), prior=prior) == "fine"
    told = judged(X, (1, 1), (13, 11), prior=prior, v=v)
    assert told == judged(np.delete(X, 12, axis=0), (1, 1), (12, 11), prior=prior)
    assert "12 rows lie on one line" in told


def test_tied_components_of_classes_shrink_on_all_rows_at_once():
    X = np.column_stack([scattered(20, 1)[:, 0], np.arange(20) % 2])
    assert "20 rows have 2 values of 'y'" in judged(X, (1, 1), (10, 10), "tied", half())
    # Three values are too many for two components.
    X[0, 1] = 2.0
    assert judged(X, (1, 1), (10, 10), "tied", half()) == "fine"


def test_rows_of_unknown_class_count_for_a_class_of_several_components_only():
    X = scattered(32, 2)
    # Of class a all ten rows are on the line, and eight of those of unknown class.
    on_line = np.r_[0:10, 22:30]
    X[on_line, 1] = 0.5 + 2 * X[on_line, 0]
    told = judged(X, (1, 1), (10, 12))
    assert "10 rows lie on one line of 'x' and 'y' (rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)" in told
    assert "18 rows lie on one line" in judged(X, (2, 1), (10, 12))
    # Of class b none is: its components may shrink on the others alone, 8 = 2 + 2η of them.
    assert "8 rows lie on one line" in judged(X[10:], (2,), (12,))
    assert judged(X[10:], (1,), (12,)) == "fine"
    # Rows are named by their places in the table before it was sorted: here the other way round.
    assert "(rows 22, 23, 24, " in judged(X, (1, 1), (10, 12), positions=31 - np.arange(32))


def test_a_class_of_two_rows_is_judged_as_well():
    """Two equal values of the only two rows of a component: a + 1 = 2."""
    X = scattered(14, 2)
    X[1, 1] = X[0, 1]
    assert "2 rows have 'y'" in judged(X, (1, 1), (2, 12), prior=half(eta=5))
    assert judged(X, (1, 1), (2, 12), prior=half(eta=5, deviation_floor=0.01)) == "fine"


def test_rows_without_weight_are_not_named():
    X = scattered(12, 2)
    X[2:6, 1] = 0.25
    v = np.ones(12)
    v[3] = 0.0
    (told,) = [c for c in found(half(eta=5), X, v=v) if "0.25" in str(c)]
    np.testing.assert_array_equal(told.rows, [2, 4, 5])
    assert told.count == 3.0


def test_of_one_feature_there_are_no_correlations_to_shrink_on():
    X = scattered(12, 1)
    X[:6] = X[0]
    assert found(SeparationPrior(), X) == []
    assert [c.count for c in found(half(), X)] == [6.0]


def test_a_floor_of_one_feature_protects_this_one_alone():
    X = scattered(12, 2)
    X[2:5], X[6:10, 0] = X[2], 0.5
    told = [str(c) for c in found(half(eta=9, deviation_floor=[0.1, 0.0]), X) if "have" in str(c)]
    assert told == [f"3 rows have 'x1' = {X[2, 1]:g} (rows 2, 3, 4)"]


@pytest.mark.parametrize(("shape", "improper"), [(9.0, True), (9.01, False)])
def test_tied_deviations_shrink_from_as_many_rows_on_as_there_are_values_and_a(shape, improper):
    """Twelve rows of three values: N ≥ d + a, with d = 3; the density is unbounded for N > a."""
    X = np.column_stack([scattered(12, 1)[:, 0], np.arange(12) % 3])
    (told,) = found(SeparationPrior(deviation_family="gamma", deviation_shape=shape), X, 3, "tied")
    assert (told.improper, told.unbounded) == (improper, True)
    assert (told.improper_from, told.unbounded_above) == (3 + shape, shape)


def test_a_single_row_that_is_enough_is_told_so():
    X = scattered(12, 2)
    steep = SeparationPrior(deviation_family="gamma", deviation_shape=0.5, eta=9)
    assert [str(c) for c in found(steep, X, covariance_type="diag")][0].startswith("1 rows alone is enough")
    X[1] = X[0]
    assert "2 rows are the same" in str(found(steep, X, covariance_type="spherical")[0])
    assert "2 rows have 'x0'" in str(found(steep, X, covariance_type="diag")[0])


def told_of(X: np.ndarray, eta: float, v=None) -> list[tuple[str, float, float]]:
    """What the rows have in common, their number and the count they must not reach."""
    prior, v = SeparationPrior(eta=eta).resolve(X, 2), np.ones(len(X)) if v is None else v
    names = [f"x{j}" for j in range(X.shape[1])]
    return [(what, float(v[rows].sum()), bound) for rows, bound, _, what, _ in _flat_rows(prior, X, v, 2, names)]


def test_two_equal_rows_and_three_on_a_line_are_few_and_yet_named():
    X = scattered(9, 2)
    X[1] = X[0]
    assert ("are the same", 2.0, 1 + 2 * 0.4) in told_of(X, 0.4)
    assert [what for what, *_ in told_of(X, 0.4) if "same" in what] == ["are the same"]
    line = scattered(9, 2)
    line[2:5, 1] = 1 + 3 * line[2:5, 0]
    assert ("lie on one line of 'x0' and 'x1'", 3.0, 2 + 2 * 0.4) in told_of(line, 0.4)
    assert not any("line" in what for what, *_ in told_of(scattered(9, 2), 0.4))
    # The same of two features among three.
    X = scattered(9, 3)
    X[1, [0, 2]] = X[0, [0, 2]]
    assert ("are the same in 'x0' and 'x2'", 2.0, 2 + 2 * 0.4) in told_of(X, 0.4)


def test_heavy_rows_lie_in_a_flat_of_as_many_less_one():
    """Any weight beyond 1 counts: rows of 1.5 and 4 are two, in a flat of dimension 1, too many from 2 + 2η on."""
    X, v = scattered(9, 3), np.ones(9)
    v[[2, 6]] = 1.5, 4.0
    assert ("lie in a flat of dimension 1, as any 2 rows do", 5.5, 2 + 2 * 1.7) in told_of(X, 1.7, v)
    v[2] = 1.0
    assert ("are the same, a row of that weight", 4.0, 1 + 2 * 1.7) in told_of(X, 1.7, v)
    # As many heavy rows as features are told once.
    v[:] = 2.0
    told = [case for case in told_of(X, 1.7, v) if "as any 3 rows do" in case[0]]
    assert told == [("lie on one plane of 3 features, as any 3 rows do", 6.0, 3 + 2 * 1.7)]
    # Where none is heavy there is no case of no rows.
    assert [what for what, *_ in told_of(X, 1.7)] == ["lie on one plane of 3 features, as any 3 rows do"]


@pytest.mark.parametrize(
    ("D", "budget", "limit"), [(2, 20_000_000, 1500), (3, 30_000, 100), (3, 3, 50), (2, 10_000, 100)]
)
def test_lines_of_two_features_share_a_budget_of_pairs(monkeypatch, D, budget, limit):
    """√(budget / pairs of features) rows, at least 50 and at most 1500."""
    limits = []
    monkeypatch.setattr(impropriety, "SEARCH_BUDGET", budget)
    monkeypatch.setattr(
        impropriety, "_largest_oblique_line", lambda points, v, n: limits.append(n) or np.empty(0, dtype=int)
    )
    told_of(scattered(9, D), 9.0)
    assert limits == [limit] * comb(D, 2)


def test_all_coefficients_are_tried_up_to_a_budget_of_rows_and_normals(monkeypatch):
    """9 rows × 4 triples of features × 4 · 3³ normals."""
    largest = []
    monkeypatch.setattr(
        impropriety, "_lattice_plane", lambda points, v, n, least: largest.append(n) or np.empty(0, dtype=int)
    )
    monkeypatch.setattr(impropriety, "_largest_flat", lambda *more: np.empty(0, dtype=int))
    for budget, expected in ((9 * 4 * 108, 3), (9 * 4 * 108 - 1, 1)):
        monkeypatch.setattr(impropriety, "NORMAL_BUDGET", budget)
        assert list(_flats_of_several(scattered(9, 4), np.ones(9), 2.0, "abcd")) == []
        assert largest == [expected] * 4
        largest.clear()


def test_a_plane_of_three_features_among_five_is_too_much_from_five_and_twice_eta_on(monkeypatch):
    """A hyperplane of all five, whatever the features that it is not across."""
    X = scattered(14, 5)
    X[2:10, 3] = X[2:10, 0] + 2 * X[2:10, 1]
    monkeypatch.setattr(impropriety, "_largest_flat", lambda *more: np.empty(0, dtype=int))
    ((rows, bound, what),) = _flats_of_several(X, np.ones(14), 4.0, "abcde")
    np.testing.assert_array_equal(rows, np.arange(2, 10))
    assert (bound, what) == (5 + 4.0, "lie on one plane of 'a', 'b', 'd'")


def test_flats_across_more_features_than_a_message_shows_are_counted(monkeypatch):
    monkeypatch.setattr(impropriety, "_lattice_plane", lambda *more: np.empty(0, dtype=int))
    monkeypatch.setattr(impropriety, "_largest_flat", lambda points, *more: np.arange(5 if points.shape[1] > 3 else 0))
    for D, across in ((10, ", ".join(repr(c) for c in "abcdefghij")), (11, "11 features")):
        told = list(_flats_of_several(scattered(6, D), np.ones(6), 1.0, "abcdefghijk"[:D]))
        assert [what for *_, what in told] == [
            f"lie on one {flat} of {across}" for flat in ("line", "plane", "flat of dimension 3")
        ]
        # Dimension 1, 2 and 3, of all features.
        assert [bound for _, bound, _ in told] == [3.0, 4.0, 5.0]


def test_two_heavy_rows_span_a_line():
    """Wherever they stand in the order: the last two are tried as well."""
    X, v = scattered(7, 3), np.ones(7)
    last = np.sort(np.argsort(X[:, 0])[-2:])
    v[last] = 5.0
    (line,) = [(rows, bound) for rows, bound, what in _flats_of_several(X, v, 9.0, "abc") if "line" in what]
    np.testing.assert_array_equal(line[0], last)
    assert line[1] == 2 + 9.0


def on_plane(normal, rows: slice, n_rows: int = 20) -> np.ndarray:
    """Three features, those rows at height 0.3 along the normal."""
    X, normal = scattered(n_rows, 3), np.asarray(normal, dtype=float)
    X[rows, 2] = (0.3 - X[rows, :2] @ normal[:2]) / normal[2]
    return X


@pytest.mark.parametrize("normal", [(1, 1, 1), (1, -1, 1), (1, 1, -1), (1, -1, -1), (3, 2, -1), (1, -3, 2)])
def test_planes_of_small_coefficients_of_either_sign_are_found(normal):
    X = on_plane(normal, slice(4, 12))
    np.testing.assert_array_equal(_lattice_plane(X, np.ones(20), 3, 4.0), np.arange(4, 12))
    # In any units that all features share.
    for unit in (1e-12, 1e9):
        np.testing.assert_array_equal(_lattice_plane(unit * X, np.ones(20), 3, 4.0), np.arange(4, 12))
    expected = np.arange(4, 12) if max(map(abs, normal)) == 1 else []
    np.testing.assert_array_equal(_lattice_plane(X, np.ones(20), 1, 4.0), expected)


def test_planes_are_found_far_from_zero():
    """On a grid of 2⁻²⁰, so that nothing is rounded 2²³ away; equal are heights within 1e-9 of their range, not of their size."""
    X = np.rint(scattered(20, 3) * 2**20) / 2**20
    X[4:12, 2] = X[4:12, 0] + 2 * X[4:12, 1] + 0.25
    np.testing.assert_array_equal(_lattice_plane(X + 2.0**23, np.ones(20), 2, 4.0), np.arange(4, 12))


def test_normals_along_which_too_few_rows_are_at_one_height_cost_no_more(monkeypatch):
    """Rows are put in order along the one normal that has a plane, and along none where all are in general position."""
    looked_at = []
    argsort = np.argsort
    monkeypatch.setattr(np, "argsort", lambda a, **more: looked_at.append(len(a)) or argsort(a, **more))
    _lattice_plane(scattered(20, 3), np.ones(20), 3, 4.0)
    assert looked_at == []
    # A normal of the coefficients (1, 2, −1), and none that is twice this one among those up to 3.
    _lattice_plane(on_plane((1, 2, -1), slice(4, 12)), np.ones(20), 3, 4.0)
    assert looked_at == [20]


def test_numbers_whose_sums_overflow_are_not_tried():
    """Up to 7e307, so that ranges are finite and three times them are not."""
    X = np.random.default_rng(2).uniform(-7e307, 7e307, (12, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _lattice_plane(X, np.ones(12), 3, 4.0).size == 0


def test_planes_of_larger_coefficients_are_not_tried():
    X = on_plane((1, 4, -1), slice(4, 12))
    assert _lattice_plane(X, np.ones(20), 3, 4.0).size == 0
    np.testing.assert_array_equal(_lattice_plane(X, np.ones(20), 4, 4.0), np.arange(4, 12))


def test_a_plane_must_weigh_more_than_asked_for():
    X, v = on_plane((1, 2, -1), slice(4, 12)), np.ones(20)
    for least, n_rows in ((7.9, 8), (8.0, 0), (20.0, 0), (21.0, 0)):
        assert _lattice_plane(X, v, 3, least).size == n_rows
    # Four rows that weigh 3 each are enough for 11, beside light ones.
    X = on_plane((1, 2, -1), slice(4, 8))
    v[4:8] = 3.0
    np.testing.assert_array_equal(_lattice_plane(X, v, 3, 11.0), np.arange(4, 8))
    assert _lattice_plane(X, v, 3, 12.0).size == 0


def test_the_heaviest_of_several_planes_is_taken():
    X = on_plane((1, 1, -1), slice(0, 6), 24)
    other = slice(6, 14)
    X[other, 2] = (0.7 - X[other, 0] + 2 * X[other, 1]) / 3
    np.testing.assert_array_equal(_lattice_plane(X, np.ones(24), 3, 4.0), np.arange(6, 14))
    v = np.where(np.arange(24) < 6, 2.0, 1.0)
    np.testing.assert_array_equal(_lattice_plane(X, v, 3, 4.0), np.arange(6))


def test_heights_count_as_equal_but_for_their_rounding():
    """Steps of 0.07, whose sums round; one row is the least of all features, at height 0 whatever the normal's signs."""
    rng = np.random.default_rng(5)
    X = np.vstack([[0.0, 0.0, 0.0], 0.1 + rng.uniform(0, 9, (15, 3))])
    steps = rng.integers(1, 60, (8, 2))
    X[3:11] = 0.07 * np.column_stack([steps, 133 - steps.sum(axis=1)])
    assert np.ptp(X[3:11].sum(axis=1)) > 0
    np.testing.assert_array_equal(_lattice_plane(X, np.ones(16), 1, 4.0), np.arange(3, 11))


def test_a_constant_feature_gives_no_plane_of_three():
    X = scattered(20, 3)
    X[4:12, 2], X[:, 1] = X[4:12, 0] + 0.3, 1.0
    assert _lattice_plane(X, np.ones(20), 3, 2.0).size == 0
    assert _largest_flat(X, np.ones(20), 1, 20, 1.0).size == 0
    assert _largest_oblique_line(X[:, :2], np.ones(20), 50).size == 0


def test_steps_of_rounding_are_found_in_any_unit_and_beside_rounding_errors():
    steps = np.array([0, 2, 5, 6, 11])
    for unit in (1e-8, 0.1, 1e6):
        np.testing.assert_array_equal(_in_steps(unit * steps[:, None]), steps[:, None])
    # 0.1 + 0.2 and 0.3 are one value.
    np.testing.assert_array_equal(_in_steps(np.array([[0.1], [0.1 + 0.2], [0.3], [0.4]]))[:, 0], [0, 2, 2, 3])
    # A quarter of a step off.
    assert _in_steps(np.array([[0.0], [1.0], [2.0], [3.25]])) is None


@pytest.mark.parametrize(
    ("dimension", "n_tasks", "n_rows"),
    [(1, 1, 1500), (1, 4, 1000), (2, 4, 45), (3, 1, 29), (3, 10, 14), (1, 4000, 3), (2, 10**6, 4), (3, 10**6, 5)],
)
def test_as_many_rows_are_tried_as_there_are_bases_for(dimension, n_tasks, n_rows):
    """4000 bases in all; at least two rows more than a base has, at most 1500."""
    assert rows_tried(dimension, n_tasks) == n_rows
    if dimension + 2 < n_rows < 1500:
        assert comb(n_rows, dimension) <= 4000 / n_tasks < comb(n_rows + 1, dimension)


def test_rows_in_units_of_their_ranges():
    points = np.array([[5.0, 30.0], [1.0, 10.0], [3.0, 10.0], [1.0, 10.0]])
    scaled, distinct, which, weight = _scaled_rows(points, np.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(scaled, [[1, 1], [0, 0], [0.5, 0], [0, 0]])
    np.testing.assert_array_equal(distinct, [[0, 0], [0.5, 0], [1, 1]])
    np.testing.assert_array_equal(which, [2, 0, 1, 0])
    np.testing.assert_array_equal(weight, [6, 3, 1])


def test_the_heaviest_rows_are_tried_first():
    X, v = scattered(40, 3), np.ones(40)
    heavy = np.arange(20, 24)
    X[heavy] = X[20] + np.outer([0.0, 0.4, 1.0, 1.7], [0.3, -0.5, 0.8])
    v[heavy] = 3.0
    np.testing.assert_array_equal(_largest_flat(X, v, 1, 4, 6.0), heavy)
    # A row beyond those tried counts once the line is found.
    v[23] = 0.5
    np.testing.assert_array_equal(_largest_flat(X, v, 1, 3, 6.0), heavy)


def test_a_plane_is_found_from_a_base_on_a_line_within():
    """All its rows are needed, and the first four of them are collinear: no other base of two comes to the count."""
    rng = np.random.default_rng(2)
    a, b = np.array([1.0, 0.3, -0.2]), np.array([0.1, -0.6, 1.1])
    line = np.outer([0.0, 1.0, 2.0, 3.5], a)
    rest = np.outer([5.0, 6.0, 7.0], a) + np.outer([1.0, -1.0, 0.5], b)
    outside = rng.standard_normal((3, 3)) - [20.0, 0.0, 0.0]
    X = np.vstack([line, rest, outside])
    assert np.all(np.diff(X[:7, 0]) > 0)
    np.testing.assert_array_equal(_largest_flat(X, np.ones(10), 2, 10, 6.9), np.arange(7))
    assert _largest_flat(X, np.ones(10), 2, 10, 7.0).size == 0
    np.testing.assert_array_equal(_largest_flat(X, np.ones(10), 1, 10, 3.9), np.arange(4))


def test_bases_that_cannot_come_to_the_count_are_not_tried(monkeypatch):
    """Of 8 rows no base is left where more than 8 are asked for; where more than 7 are, the first row must be in it."""
    tried = []
    outer = np.outer
    monkeypatch.setattr(np, "outer", lambda a, b: tried.append(len(a)) or outer(a, b))
    X = scattered(8, 3)
    _largest_flat(X, np.ones(8), 1, 8, 8.0)
    # Each first row is projected along once, and nothing follows.
    assert tried == [7, 6, 5, 4, 3, 2, 1]
    tried.clear()
    _largest_flat(X, np.ones(8), 2, 8, 7.0)
    # One pass for second rows: after the first row alone.
    assert sorted(tried) == sorted([7, 6, 5, 4, 3, 2, 1] + [6, 5, 4, 3, 2, 1])


def test_rows_of_a_line_are_no_plane():
    X = np.outer([0.0, 1.0, 2.5, 3.0, 7.0], [1.0, -2.0, 0.5])
    assert _largest_flat(X, np.ones(5), 2, 5, 1.0).size == 0
    np.testing.assert_array_equal(_largest_flat(X, np.ones(5), 1, 5, 1.0), np.arange(5))


def test_flats_that_members_span():
    # The plane x + y = 1, whatever z: oblique, of two features.
    plane = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 1.0]])
    points = np.array([[0.25, 0.75, 9.0], [0.25, 0.75 + 1e-6, 9.0], [2.0, -1.0, 0.0]])
    np.testing.assert_array_equal(_rows_of_flat(points, plane, 2), [0, 2])
    # The plane z = 1, across a single feature.
    flat = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.5, 3.0, 1.0]])
    assert _rows_of_flat(np.vstack([flat, points]), flat, 2).size == 0
    # A line, whichever features it is across: two normals.
    np.testing.assert_array_equal(
        _rows_of_flat(np.array([[0.5, 0.5, 1.0], [1.0, 1.0, 1.0], [2.0, -1.0, 1.0]]), flat[:2], 1), [0, 2]
    )
    # Members of a line span no plane, members of a plane no line.
    assert _rows_of_flat(points, plane[[0, 1]], 2).size == 0
    assert _rows_of_flat(points, plane, 1).size == 0


def parallel(X: np.ndarray, K: int, eta: float = 2.0) -> list:
    prior = SeparationPrior(eta=eta).resolve(np.random.default_rng(0).standard_normal((9, X.shape[1])), K, "tied")
    return list(_parallel_lines(prior, X, np.ones(len(X)), K, ["x", "y", "z"]))


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_all_rows_on_parallel_lines(unit):
    """N ≥ 2η + d + 1, with d lines: two features."""
    x = scattered(12, 1)[:, 0]
    X = unit * np.column_stack([x, 2 * x + np.arange(12) % 3])
    ((rows, bound, unbounded_above, what, remedy),) = parallel(X, 3, 2.25)
    np.testing.assert_array_equal(rows, np.arange(12))
    assert (bound, unbounded_above, what) == (4.5 + 4, 4.5, "lie on 3 parallel lines of 'x' and 'y'")
    assert remedy.startswith("raise eta above 4,")
    assert parallel(X, 2) == []
    assert len(parallel(X, 5)) == 1


def test_lines_along_an_axis_and_rows_of_other_than_two_features_are_no_parallel_lines():
    x = scattered(12, 1)[:, 0]
    assert parallel(np.column_stack([x, np.arange(12) % 2]), 2) == []
    assert parallel(np.column_stack([np.arange(12) % 2, x]), 2) == []
    X = np.column_stack([x, 2 * x, 3 * x + 1])
    assert parallel(X, 2) == []
    assert parallel(X[:, :1], 2) == []


def test_the_most_frequent_row_is_the_heaviest():
    X = np.array([[1.0, 2.0], [0.0, 5.0], [1.0, 2.0], [0.0, 2.0], [1.0, 2.0]])
    rows, weight = _most_frequent(X, np.ones(5))
    assert (rows.tolist(), weight) == ([0, 2, 4], 3.0)
    rows, weight = _most_frequent(X, np.array([1, 2.5, 0.5, 2.25, 0.5]))
    assert (rows.tolist(), weight) == ([1], 2.5)


def test_lines_of_light_rows_and_of_the_last_two_are_found():
    X = scattered(9, 2)
    X[2:5, 1] = 1 - 3 * X[2:5, 0]
    np.testing.assert_array_equal(_largest_oblique_line(X, np.full(9, 0.1), 50), [2, 3, 4])
    # The two rows that are last in order, heavier than three on a line.
    v, last = np.ones(9), np.sort(np.argsort(X[:, 0])[-2:])
    v[last] = 3.0
    assert set(last) <= set(_largest_oblique_line(X, v, 50))


def test_lines_along_an_axis_are_not_oblique():
    grid = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 5.0], [1.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    # Two rows at most are on an oblique line: one of either axis.
    assert _largest_oblique_line(grid, np.ones(7), 50).size == 2
    # Of two crossing rows no oblique line at all.
    cross = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert _largest_oblique_line(cross, np.ones(3), 50).tolist() == [1, 2]
    # The first and the second of three steps are along the axes, the other two rows too light: none but these.
    assert _largest_oblique_line(np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.ones(3), 50).tolist() == [0, 2]


def test_rows_beyond_those_tried_count_once_a_line_is_found():
    """Of 60 rows 40 are on one line: any few tried show it."""
    X = scattered(60, 2)
    X[:40, 1] = 0.5 + 2 * X[:40, 0]
    np.testing.assert_array_equal(_largest_oblique_line(X, np.ones(60), 15), np.arange(40))
    np.testing.assert_array_equal(_largest_oblique_line(X, np.ones(60), 60), np.arange(40))


def test_of_many_rows_as_many_different_ones_are_tried_as_the_limit_says():
    """Of 21 rows 20: two at least of the three heavy ones, and so their line, whichever these are."""
    x = np.linspace(0, 1, 21)
    y = scattered(21, 1)[:, 0]
    y[1::3] = (y[0::3] + y[2::3]) / 2
    for first in range(0, 21, 3):
        v = np.ones(21)
        v[first : first + 3] = 10.0
        found = _largest_oblique_line(np.column_stack([x, y]), v, 20)
        np.testing.assert_array_equal(found, np.arange(first, first + 3))
