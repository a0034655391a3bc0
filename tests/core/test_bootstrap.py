"""The bootstrap of an EM fit, part by part: what is drawn, what is counted, and numbers of replicates that are given."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bayesgmm.core import bootstrap, em, information
from bayesgmm.core.bootstrap import BootstrapReplicates
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters, factors_from_covariances
from tests.mixtures import STRUCTURES, random_mixture

ROUNDING = 1e-10
"""The same sums of some twenty terms in another order."""


def replicates(kind: str, n_features: int, n: int = 12, n_failed: int = 0) -> BootstrapReplicates:
    """Mixtures of three components near a fit, and the fit."""
    rng, fit = np.random.default_rng(0), random_mixture(np.random.default_rng(1), 3, n_features, kind)
    weights = rng.dirichlet(100 * fit.weights, n)
    means = fit.means + 0.1 * rng.standard_normal((n, 3, n_features))
    S = fit.covariances[:1] if kind == "tied" else fit.covariances
    # Wishart matrices of 30 degrees of freedom about the fit's.
    Z = np.einsum("kij,nkmj->nkmi", np.linalg.cholesky(S), rng.standard_normal((n, len(S), 30, n_features)))
    matrices = np.swapaxes(Z, -1, -2) @ Z / 30
    diagonals = np.diagonal(matrices, axis1=-2, axis2=-1)
    packed = {"full": matrices, "tied": matrices[:, 0], "diag": diagonals, "spherical": diagonals.mean(axis=-1)}[kind]
    return BootstrapReplicates(weights, means, np.ascontiguousarray(packed), n_failed, kind, fit.parameters)


def deviations(found: BootstrapReplicates) -> np.ndarray:
    """By definition; the shape of the structure's standard deviations."""
    if found.covariance_type in ("diag", "spherical"):
        return np.sqrt(found.covariances)
    return np.sqrt(np.diagonal(found.covariances, axis1=-2, axis2=-1))


@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize("n_features", [1, 3])
def test_standard_errors_are_the_spread_of_the_replicates(kind, n_features):
    found = replicates(kind, n_features, n_failed=2)
    errors = found.standard_errors
    sd = deviations(found)
    np.testing.assert_allclose(found.standard_deviations, sd, rtol=ROUNDING)
    for name, values in {
        "weights": found.weights,
        "means": found.means,
        "covariances": found.covariances,
        "standard_deviations": sd,
    }.items():
        np.testing.assert_allclose(getattr(errors, name), values.std(axis=0, ddof=1), rtol=ROUNDING, err_msg=name)
    rows, cols = np.tril_indices(n_features)
    symmetric = kind in ("full", "tied")
    entries = found.covariances[..., rows, cols] if symmetric else found.covariances
    flat = np.hstack([found.weights[:, :2], found.means.reshape(12, -1), entries.reshape(12, -1)])
    np.testing.assert_allclose(errors.covariance_matrix, np.cov(flat, rowvar=False), rtol=1e-9, atol=1e-14)
    if symmetric and n_features > 1:
        i, j = np.tril_indices(n_features, -1)
        rho = found.covariances[..., i, j] / sd[..., i] / sd[..., j]
        np.testing.assert_allclose(found.correlations, rho, rtol=ROUNDING)
        np.testing.assert_allclose(errors.correlations, rho.std(axis=0, ddof=1), rtol=ROUNDING)
    else:
        assert found.correlations is None
        assert errors.correlations is None
    assert errors.notes == (
        "2 of 14 resamples lost a component and are left out: the spread of the others is too small",
    )


def test_two_features_have_a_correlation():
    assert replicates("full", 2).correlations.shape == (12, 3, 1)
    assert replicates("tied", 2).correlations.shape == (12, 1)


def test_spread_knows_no_smallest_or_largest_scale():
    base = np.array([[1.0, -3.0, 0.0, 0.0], [2.0, -5.0, 0.0, 3.0], [4.0, 1.0, 0.0, 0.5]])
    expected = base.std(axis=0, ddof=1)
    for scale in (1e-300, 1.0, 1e300):
        np.testing.assert_allclose(bootstrap._spread(scale * base) / scale, expected, rtol=1e-14)


def test_covariances_of_replicates_far_from_zero_keep_their_digits():
    """A column at 2^30 whose replicates differ by multiples of 2^-20: all exact in float64, and so are their differences."""
    found = replicates("full", 1)
    steps = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8.0])
    means = found.means.copy()
    means[:, 0, 0] = 2.0**30 + steps * 2.0**-20
    matrix = replace(found, means=means).standard_errors.covariance_matrix
    # Two weights come first.
    assert matrix[2, 2] == pytest.approx(steps.var(ddof=1) * 2.0**-40, rel=1e-12, abs=0)


def test_what_does_not_vary_has_no_error():
    found = replicates("diag", 2)
    means = found.means.copy()
    means[:, 1, 0] = 3.0
    errors = replace(found, means=means).standard_errors
    assert errors.means[1, 0] == 0
    np.testing.assert_array_equal(errors.covariance_matrix[4], 0.0)
    assert np.all(np.delete(errors.means.ravel(), 2) > 0)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_percentile_intervals_are_quantiles_of_the_replicates(kind):
    found = replicates(kind, 3)
    limits = found.interval(0.7)
    values = {"weights": found.weights, "means": found.means, "covariances": found.covariances}
    values["standard_deviations"] = deviations(found)
    if kind in ("full", "tied"):
        values["correlations"] = found.correlations
    assert limits.keys() == values.keys()
    for name, numbers in values.items():
        np.testing.assert_allclose(limits[name], np.quantile(numbers, [0.15, 0.85], axis=0), rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_an_interval_of_probability_nought_or_one_is_refused(prob):
    with pytest.raises(ValueError, match="prob must lie between 0 and 1"):
        replicates("diag", 2).interval(prob)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_pivotal_intervals_turn_the_replicates_round_at_the_fit(kind):
    """Means studentised, variances as ratios, correlations on Fisher's scale, covariances by MOVER from variances of sums."""
    found = replicates(kind, 3, n=30)
    fit, low, high = found.fit, 0.15, 0.85
    limits = found.interval(0.7, "pivotal")
    np.testing.assert_allclose(limits["weights"], np.quantile(found.weights, [low, high], axis=0), rtol=ROUNDING)
    here = np.sqrt(np.diagonal(fit.covariances, axis1=1, axis2=2))
    sd = deviations(found)
    each = {"full": sd, "diag": sd, "tied": sd[:, None], "spherical": sd[:, :, None]}[kind]
    t = (found.means - fit.means) * np.sqrt(found.weights[:, :, None]) / each
    q_low, q_high = np.quantile(t, [low, high], axis=0)
    se = here / np.sqrt(fit.weights)[:, None]
    np.testing.assert_allclose(limits["means"], [fit.means - q_high * se, fit.means - q_low * se], rtol=1e-9)
    own = {"full": here, "diag": here, "tied": here[0], "spherical": here[:, 0]}[kind]
    q_low, q_high = np.quantile(sd**2, [low, high], axis=0)
    np.testing.assert_allclose(
        limits["standard_deviations"], [own**2 / np.sqrt(q_high), own**2 / np.sqrt(q_low)], rtol=1e-9
    )
    if kind in ("diag", "spherical"):
        assert "correlations" not in limits
        np.testing.assert_allclose(limits["covariances"], [own**4 / q_high, own**4 / q_low], rtol=1e-9)
        return
    S = fit.covariances if kind == "full" else fit.covariances[0]
    for pair, (i, j) in enumerate(zip(*np.tril_indices(3, -1), strict=True)):
        rho = S[..., i, j] / own[..., i] / own[..., j]
        q_low, q_high = np.quantile(np.arctanh(found.correlations[..., pair]), [low, high], axis=0)
        expected = np.tanh([2 * np.arctanh(rho) - q_high, 2 * np.arctanh(rho) - q_low])
        np.testing.assert_allclose(np.stack(limits["correlations"])[..., pair], expected, rtol=1e-9)
        parts = []
        si, sj, C = own[..., i], own[..., j], found.covariances
        for sign in (1, -1):
            at_fit = 2 + sign * 2 * rho
            values = C[..., i, i] / si**2 + C[..., j, j] / sj**2 + sign * 2 * C[..., i, j] / (si * sj)
            q_low, middle, q_high = np.quantile(values, [low, 0.5, high], axis=0)
            parts.append((at_fit**2 / middle, at_fit**2 / q_high, at_fit**2 / q_low))
        (u, u_low, u_high), (v, v_low, v_high) = parts
        lower, upper = u - v - np.hypot(u - u_low, v_high - v), u - v + np.hypot(u_high - u, v - v_low)
        for end, expected in zip(limits["covariances"], (si * sj / 4 * lower, si * sj / 4 * upper), strict=True):
            np.testing.assert_allclose(end[..., i, j], expected, rtol=1e-8)
            np.testing.assert_array_equal(end[..., j, i], end[..., i, j])
    np.testing.assert_allclose(
        np.diagonal(limits["covariances"], axis1=-2, axis2=-1), np.square(limits["standard_deviations"]), rtol=ROUNDING
    )


ONE = MixtureParameters(np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1)))
PACKED = np.ones((1, 1))


def run_of(parameters: MixtureParameters = ONE, converged: bool = True, n_reseeded: int = 0) -> em.EMRun:
    """A climb that ended there."""
    packed = np.diagonal(parameters.covariances, axis1=1, axis2=2).copy()
    return em.EMRun(parameters, packed, 0.0, 0.0, parameters.weights, (0.0,), 1, converged, n_reseeded)


@pytest.fixture
def climbs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple]]:
    """Let em.climb give the outcomes one after the other, and then one that went well; what it was called with."""

    def prepare(*outcomes: em.EMRun | Exception) -> list[tuple]:
        calls: list[tuple] = []

        def climb(*arguments: object) -> em.EMRun:
            calls.append(arguments)
            outcome = outcomes[len(calls) - 1] if len(calls) <= len(outcomes) else run_of()
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(em, "climb", climb)
        return calls

    return prepare


def problem_of(n_rows: int, v: np.ndarray | None = None, tol: float = 1e-3) -> em.Problem:
    return em.Problem(np.arange(float(n_rows))[:, None], structure("diag"), None, v, tol=tol)


@pytest.mark.parametrize("v", [None, np.array([3.0, 0.0, 1.0, 2.4, 0.2, 1.0])], ids=["rows", "weights"])
def test_every_resample_draws_rows_by_their_weights_and_starts_at_the_fit(v, climbs):
    calls, problem = climbs(), problem_of(6, v)
    bootstrap.bootstrap(problem, ONE, PACKED, 4, np.random.default_rng(5))
    assert len(calls) == 4
    rng = np.random.default_rng(5)
    for drawn, parameters, packed, _ in calls:
        assert parameters is ONE
        assert packed is PACKED
        assert drawn.X is problem.X
        # 7.6 rows are 8.
        expected = rng.multinomial(6, np.full(6, 1 / 6)) if v is None else rng.multinomial(8, v / v.sum())
        np.testing.assert_array_equal(drawn.sample_weight, expected)


@pytest.mark.parametrize(
    ("tol", "total", "expected"),
    [
        # 1e-5 nats in all, or the fit's own tolerance where that is smaller; never below rounding.
        (1e-3, 100, 1e-7),
        (1e-9, 100, 1e-9),
        (1e-3, 1e12, 1e-13),
        (1e-15, 1e12, 1e-15),
    ],
)
def test_climbs_end_within_so_many_nats(tol, total, expected, climbs):
    calls = climbs()
    bootstrap.bootstrap(problem_of(4, np.full(4, total / 4), tol), ONE, PACKED, 2, np.random.default_rng(0))
    for drawn, *_ in calls:
        assert drawn.tol == pytest.approx(expected, rel=1e-12, abs=0)


def test_two_resamples_and_two_rows_are_enough(climbs):
    climbs()
    rng = np.random.default_rng(0)
    assert len(bootstrap.bootstrap(problem_of(2), ONE, PACKED, 2, rng).weights) == 2
    with pytest.raises(ValueError, match="n_bootstrap must be at least 2; got 1"):
        bootstrap.bootstrap(problem_of(2), ONE, PACKED, 1, rng)
    with pytest.raises(ValueError, match="sum to 1.4 are too few rows"):
        bootstrap.bootstrap(problem_of(2, np.full(2, 0.7)), ONE, PACKED, 2, rng)


def test_as_many_rows_as_float64_counts_can_be_drawn_and_no_more(climbs):
    calls = climbs()
    rng = np.random.default_rng(0)
    bootstrap.bootstrap(problem_of(2, np.full(2, 2.0**52)), ONE, PACKED, 2, rng)
    assert [drawn.sample_weight.sum() for drawn, *_ in calls] == [2.0**53] * 2
    with pytest.raises(ValueError, match="are more rows than can be drawn: divide them by a typical one"):
        bootstrap.bootstrap(problem_of(2, np.array([2.0**52, 2.0**52 + 2])), ONE, PACKED, 2, rng)


LOST = (em.DegenerateFitError("lost"), np.linalg.LinAlgError("singular"), run_of(n_reseeded=1))


@pytest.mark.parametrize("outcome", LOST, ids=["degenerate", "singular", "reseeded"])
def test_a_resample_that_lost_a_component_is_left_out_and_counted(outcome, climbs):
    climbs(run_of(), outcome, outcome)
    with pytest.warns(information.InformationWarning, match="^2 of 4 resamples lost a component and are left out"):
        found = bootstrap.bootstrap(problem_of(5), ONE, PACKED, 4, np.random.default_rng(0))
    assert (len(found.weights), found.n_failed, found.n_unconverged) == (2, 2, 0)
    climbs(outcome, outcome, run_of(), outcome)
    with pytest.raises(em.DegenerateFitError, match="^3 of 4 resamples lost a component: use fewer components"):
        bootstrap.bootstrap(problem_of(5), ONE, PACKED, 4, np.random.default_rng(0))


def test_an_unconverged_replicate_is_used_and_counted(climbs):
    climbs(run_of(converged=False), run_of(), run_of(converged=False))
    with pytest.warns(information.InformationWarning, match="^EM did not converge in 2 of 5 resamples: raise max_iter"):
        found = bootstrap.bootstrap(problem_of(5), ONE, PACKED, 5, np.random.default_rng(0))
    assert (len(found.weights), found.n_failed, found.n_unconverged) == (5, 0, 2)
    assert found.standard_errors.notes == ("EM did not converge in 2 of 5 resamples: raise max_iter",)


def test_all_is_well_where_no_resample_had_trouble(climbs):
    climbs()
    found = bootstrap.bootstrap(problem_of(5), ONE, PACKED, 3, np.random.default_rng(0))
    assert (found.n_failed, found.n_unconverged, found.standard_errors.notes) == (0, 0, ())


@pytest.mark.parametrize(
    ("n_bootstrap", "outcomes", "n_warnings"),
    [
        # One in twenty is no more than 5 %; one in nineteen is; so are a lost and an unconverged one of 39, both of which are told.
        (20, [LOST[0]], 0),
        (20, [run_of(converged=False)], 0),
        (19, [LOST[0]], 1),
        (19, [run_of(converged=False)], 1),
        (39, [LOST[0], run_of(converged=False)], 2),
        (40, [LOST[0], run_of(converged=False)], 0),
    ],
)
def test_more_than_one_in_twenty_resamples_with_trouble_warn(n_bootstrap, outcomes, n_warnings, climbs):
    climbs(*outcomes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = bootstrap.bootstrap(problem_of(5), ONE, PACKED, n_bootstrap, np.random.default_rng(0))
    assert [w.category for w in caught] == [information.InformationWarning] * n_warnings
    # The notes are there in any case.
    assert len(found.standard_errors.notes) == len(outcomes)


def two(weights: list[float], means: list[float], variances: list[float]) -> MixtureParameters:
    """Two components in one dimension."""
    factors = factors_from_covariances(np.array(variances)[:, None, None])
    return MixtureParameters(np.array(weights), np.array(means)[:, None], factors)


@pytest.mark.parametrize(("distance", "order"), [(0.75, [0, 1]), (0.85, [1, 0])])
def test_means_and_weights_decide_the_order_in_units_of_the_spread_within(distance, order):
    """Means that changed places weigh 2 d² in units of the spread within, weights that did 2 · 0.8²: the closer match wins."""
    fit = two([0.9, 0.1], [0.0, 4 * distance], [16.0, 16.0])
    replicate = two([0.9, 0.1], [4 * distance, 0.0], [16.0, 16.0])
    assert bootstrap._fit_order(replicate, fit).tolist() == order
    # In other units it is the same.
    other = [two([0.9, 0.1], m, [4.0, 4.0]) for m in ([0.0, 2 * distance], [2 * distance, 0.0])]
    assert bootstrap._fit_order(other[1], other[0]).tolist() == order
    # The spread within is the pooled one of the fit: 0.9 · 4 + 0.1 · 124 = 16.
    pooled = two([0.9, 0.1], [0.0, 4 * distance], [4.0, 124.0])
    assert bootstrap._fit_order(replicate, pooled).tolist() == order


@pytest.mark.parametrize(("deviation", "order"), [(4.0, [0, 1]), (5.0, [1, 0])])
def test_so_do_standard_deviations(deviation, order):
    """Of 4 and 1 the difference is 3 / √14.5 = 0.79 of the spread within, of 5 and 1 it is 4 / √22.6 = 0.84: weights differ by 0.8."""
    fit = two([0.9, 0.1], [0.0, 0.0], [deviation**2, 1.0])
    replicate = two([0.9, 0.1], [0.0, 0.0], [1.0, deviation**2])
    assert bootstrap._fit_order(replicate, fit).tolist() == order


def test_the_order_says_where_the_fits_components_lie_in_the_replicate():
    fit = random_mixture(np.random.default_rng(2), 3, 2, spread=5.0).parameters
    turn = [1, 2, 0]
    replicate = MixtureParameters(fit.weights[turn], fit.means[turn], fit.precision_factors[turn])
    order = bootstrap._fit_order(replicate, fit)
    np.testing.assert_array_equal(replicate.means[order], fit.means)
