from __future__ import annotations

import numpy as np
import pytest

from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.inference.diagnostics import (
    Diagnostics,
    convergence_table,
    diagnose,
    label_invariants,
    nearest_modes,
    scalar_parameters,
)
from bayesgmm.inference.posterior import PosteriorDraws

NAMES, PAIRS = ("a", "b"), ["a:b"]
CENTERS = np.array([[0.0, 0.0], [6.0, 3.0]])
SCALE = np.array([3.0, 2.0])


def mixture(centers: np.ndarray = CENTERS, weights: tuple[float, ...] = (0.4, 0.6)) -> MixtureParameters:
    return MixtureParameters(np.array(weights), centers, np.stack([np.eye(2)] * len(centers)))


def chains_around(*modes: MixtureParameters, n_draws: int = 500, sd: float = 0.1, seed: int = 0) -> PosteriorDraws:
    """Independent draws, one chain around each mixture: what a perfect sampler of one mode gives."""
    rng = np.random.default_rng(seed)
    weights, means, factors = [], [], []
    for mode in modes:
        log_weights = np.log(mode.weights) + sd * rng.standard_normal((n_draws, mode.n_components))
        w = np.exp(log_weights)
        weights.append(w / w.sum(axis=1, keepdims=True))
        means.append(mode.means + sd * rng.standard_normal((n_draws, *mode.means.shape)))
        noise = np.tril(sd * rng.standard_normal((n_draws, *mode.precision_factors.shape)))
        factors.append(mode.precision_factors @ (np.eye(2) + 0.3 * noise))
    return PosteriorDraws(np.array(weights), np.array(means), np.array(factors))


def verdict_of(draws: PosteriorDraws, log_posterior: np.ndarray | None = None, **options) -> Diagnostics:
    rng = np.random.default_rng(99)
    lp = rng.standard_normal(draws.weights.shape[:2]) if log_posterior is None else log_posterior
    return diagnose(draws, structure("full"), NAMES, PAIRS, lp, **options)


def test_independent_draws_of_one_mode_are_trusted():
    result = verdict_of(
        chains_around(*[mixture()] * 4),
        diverging=np.zeros((4, 500), dtype=bool),
        energy=np.random.default_rng(1).standard_normal((4, 500)),
        modes=[mixture()],
        near_modes=1,
        scale=SCALE,
        max_draws=1000,
    )
    assert result.ok
    assert result.labels_identified
    assert result.problems == ()
    assert result.verdict.startswith("The draws can be trusted")
    assert f"{result.r_hat:.3f}" in result.verdict
    assert result.chain_modes == (0, 0, 0, 0)
    assert result.unvisited_modes == ()
    assert result.n_divergent == 0
    # Independent draws: E-BFMI = E (difference)² / variance = 2, ± 0.1 with 500 draws.
    np.testing.assert_allclose(result.e_bfmi, 2.0, atol=0.4)
    assert any("400" in note and "reached" in note and "500" in note for note in result.notes)
    # 2,000 independent draws; the ESS of independent draws scatters by some 10 % around their number.
    assert 1500 < result.ess_bulk < 2600


def test_chains_on_different_modes_are_flagged_with_the_number():
    other = mixture(np.array([[0.0, 3.0], [9.0, 3.0]]))
    result = verdict_of(
        chains_around(mixture(), mixture(), other, other), modes=[mixture(), other], near_modes=2, scale=SCALE
    )
    assert not result.ok
    assert result.chain_modes == (0, 0, 1, 1)
    assert result.unvisited_modes == ()
    text = " ".join(result.problems)
    assert "R-hat = " in text
    assert "chain 0 near mode 0" in text
    assert "chain 3 near mode 1" in text
    assert result.r_hat > 1.5
    assert "trusted:" not in result.verdict
    assert not result.labels_identified


@pytest.mark.parametrize("n_draws", [10, 500])
def test_chains_that_do_not_move_are_flagged(n_draws):
    """Each chain frozen at a point of its own: no variance within chains, so that R-hat is infinite or undefined."""
    other = mixture(np.array([[0.0, 3.0], [9.0, 3.0]]))
    draws = chains_around(mixture(), mixture(), other, other, sd=0.0, n_draws=n_draws)
    lp = np.repeat([[-10.0], [-10.0], [-14.0], [-14.0]], n_draws, axis=1)
    result = verdict_of(draws, lp, modes=[mixture(), other], near_modes=2, scale=SCALE)
    assert not result.ok
    assert not result.labels_identified
    assert not result.verdict.startswith("The draws can be trusted")


def test_one_frozen_chain_among_moving_ones_is_flagged():
    moving = chains_around(*[mixture()] * 4)
    weights, means, factors = moving.weights.copy(), moving.means.copy(), moving.precision_factors.copy()
    weights[3], means[3], factors[3] = weights[3, 0], means[3, 0] + 0.5, factors[3, 0]
    assert not verdict_of(PosteriorDraws(weights, means, factors)).ok


def test_swapped_chains_are_agreed_on_invariants_but_not_on_labels():
    """The same mixture, one chain with the components the other way round: densities are fine, labels are not."""
    swapped = mixture(CENTERS[::-1].copy(), (0.6, 0.4))
    result = verdict_of(chains_around(mixture(), mixture(), swapped, swapped), permuted_share=0.31)
    # 1.01 is the limit for good chains; these agree but for chance.
    assert (result.invariants["r_hat"] < 1.02).all()
    assert not result.labels_identified
    assert not result.ok
    assert "cannot be told apart" in " ".join(result.problems)
    assert "component by component" in result.verdict
    assert any("31.0%" in note for note in result.notes)


def test_invariants_are_those_of_the_relabelled_mixture_in_any_order():
    draws = chains_around(mixture(), mixture())
    order = np.tile([1, 0], (1000, 1))
    lp = np.zeros((2, 500))
    a, b = label_invariants(draws, lp), label_invariants(draws.permuted(order), lp)
    assert set(a) == set(b)
    for name in a:
        # The same sums in another order: rounding.
        np.testing.assert_allclose(a[name], b[name], rtol=1e-10, atol=1e-12)


def test_invariants_against_their_definitions():
    draws = chains_around(mixture(), n_draws=3)
    found = label_invariants(draws, np.zeros((1, 3)))
    w, m, P = draws.weights[0, 1], draws.means[0, 1], draws.precision_factors[0, 1]
    covariances = np.linalg.inv(P @ P.swapaxes(1, 2))
    center = w @ m
    total = sum(w[k] * (covariances[k] + np.outer(m[k] - center, m[k] - center)) for k in range(2))
    expected = {
        "log_determinant_within": sum(w[k] * np.log(np.linalg.det(covariances[k])) for k in range(2)),
        "log_determinant_total": np.log(np.linalg.det(total)),
        "overall_mean[0]": center[0],
        "largest_weight": w.max(),
        "smallest_weight": w.min(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][0, 1], value, rtol=1e-10)


def test_few_draws_are_flagged_with_their_number():
    result = verdict_of(chains_around(*[mixture()] * 2, n_draws=60), target_ess=400, max_draws=60)
    assert not result.ok
    smallest = min(result.ess_bulk, result.ess_tail)
    assert smallest < 400
    assert any(f"is {smallest:.0f} (< 400)" in p for p in result.problems)
    assert any("max_draws = 60" in n and f"{smallest:.0f}" in n and "short of the 400" in n for n in result.notes)
    assert not result.verdict.startswith("The draws can be trusted")


def test_autocorrelated_chains_have_few_effective_draws():
    """An autoregression with coefficient 0.97 has ESS of about n (1 − 0.97) / (1 + 0.97), 1.5 % of its draws."""
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((4, 500))
    walk = np.zeros_like(noise)
    for t in range(1, 500):
        walk[:, t] = 0.97 * walk[:, t - 1] + noise[:, t]
    draws = chains_around(*[mixture()] * 4)
    means = draws.means.copy()
    means[..., 0, 0] = walk
    result = verdict_of(PosteriorDraws(draws.weights, means, draws.precision_factors))
    assert not result.ok
    assert result.parameters["ess_bulk"].idxmin() == "means[0, a]"
    assert result.ess_bulk < 100


def test_divergences_are_flagged_with_their_number():
    diverging = np.zeros((4, 500), dtype=bool)
    diverging[1, :7] = True
    result = verdict_of(chains_around(*[mixture()] * 4), diverging=diverging)
    assert result.n_divergent == 7
    assert any(p.startswith("7 divergent transitions (0.35%)") for p in result.problems)
    # One in a thousand is let pass, and counted.
    diverging[1, 2:] = False
    result = verdict_of(chains_around(*[mixture()] * 4), diverging=diverging)
    assert result.n_divergent == 2
    assert result.ok


def test_low_energy_fraction_is_flagged_with_the_number():
    rng = np.random.default_rng(6)
    energy = np.cumsum(rng.standard_normal((4, 500)), axis=1)
    result = verdict_of(chains_around(*[mixture()] * 4), energy=energy)
    expected = np.sum(np.diff(energy, axis=1) ** 2, axis=1) / np.sum(
        (energy - energy.mean(axis=1, keepdims=True)) ** 2, axis=1
    )
    # ArviZ divides by n − 1 where the definition may have n.
    np.testing.assert_allclose(result.e_bfmi, expected, rtol=5e-3)
    assert any(f"E-BFMI = {result.e_bfmi.min():.2f}" in p for p in result.problems)


def test_modes_that_no_chain_stayed_near_are_named():
    modes = [mixture(), mixture(np.array([[0.0, 3.0], [9.0, 3.0]])), mixture(np.array([[-9.0, 3.0], [9.0, 9.0]]))]
    result = verdict_of(chains_around(*[mixture()] * 4), modes=modes, near_modes=2, scale=SCALE)
    assert result.unvisited_modes == (1,)
    assert any("mode 1 within 10 nats" in n for n in result.notes)
    result = verdict_of(chains_around(*[mixture()] * 4), modes=modes, near_modes=3, scale=SCALE)
    assert result.unvisited_modes == (1, 2)
    assert any("modes 1, 2 within" in n for n in result.notes)


def test_nearest_mode_does_not_depend_on_the_order_of_components():
    swapped = mixture(CENTERS[::-1].copy(), (0.6, 0.4))
    far = mixture(CENTERS + 4)
    assert nearest_modes(chains_around(mixture(), swapped, far), [far, swapped], SCALE) == (1, 1, 0)


def test_importance_resampling_is_judged_by_its_own_numbers():
    draws = chains_around(*[mixture()] * 4)
    good = verdict_of(draws, pareto_k=0.3, effective_size=1500.0)
    assert good.ok
    assert good.pareto_k == 0.3
    assert "0.30" in good.verdict
    assert "1500" in good.verdict
    bad = verdict_of(draws, pareto_k=0.9, effective_size=1500.0)
    assert not bad.ok
    assert "0.90 > 0.7" in " ".join(bad.problems)
    assert "method='nuts'" in " ".join(bad.problems)
    few = verdict_of(draws, pareto_k=0.3, effective_size=37.0)
    assert "37 (< 400)" in " ".join(few.problems)
    undefined = verdict_of(draws, pareto_k=np.nan, effective_size=1500.0)
    assert not undefined.ok


def test_stopping_early_is_a_problem_that_is_said():
    result = verdict_of(chains_around(*[mixture()] * 4), stopped_early="stopped by the user after 500 of 1000 draws")
    assert not result.ok
    assert "stopped by the user" in result.problems[0]
    assert "stopped by the user" in str(result)


def test_text_holds_verdict_problems_and_notes():
    result = verdict_of(chains_around(*[mixture()] * 2, n_draws=60), max_draws=60)
    lines = str(result).splitlines()
    assert lines[0] == result.verdict
    assert lines[1:] == [f"- {text}" for text in (*result.problems, *result.notes)]


def test_table_is_arvizs_and_constants_have_nothing_to_converge():
    import arviz as az

    rng = np.random.default_rng(7)
    x = rng.standard_normal((4, 200)) + np.array([[0.0], [0.1], [0.0], [0.3]])
    table = convergence_table({"x": x, "one": np.ones((4, 200))})
    frame = az.from_dict({"posterior": {"x": x}})
    assert table.loc["x", "r_hat"] == pytest.approx(float(az.rhat(frame)["x"]), rel=1e-12)
    assert table.loc["x", "ess_bulk"] == pytest.approx(float(az.ess(frame, method="bulk")["x"]), rel=1e-12)
    assert table.loc["x", "ess_tail"] == pytest.approx(
        float(az.ess(frame, method="tail", prob=(0.05, 0.95))["x"]), rel=1e-12
    )
    assert table.loc["one"].isna().all()


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_names_and_values_of_scalar_parameters(covariance_type):
    kind = structure(covariance_type)
    matrices = kind.expand(
        {
            "full": np.array([[[4.0, 1.0], [1.0, 1.0]], [[9.0, -3.0], [-3.0, 4.0]]]),
            "tied": np.array([[4.0, 1.0], [1.0, 1.0]]),
            "diag": np.array([[4.0, 1.0], [9.0, 4.0]]),
            "spherical": np.array([4.0, 9.0]),
        }[covariance_type],
        2,
        2,
    )
    factors = np.linalg.cholesky(np.linalg.inv(matrices))
    draws = PosteriorDraws(np.array([[[0.4, 0.6]]]), CENTERS[None, None], factors[None, None])
    found = {name: float(v[0, 0]) for name, v in scalar_parameters(draws, kind, NAMES, PAIRS).items()}
    expected = {"weights[0]": 0.4, "weights[1]": 0.6}
    expected |= {f"means[{k}, {n}]": CENTERS[k, j] for k in range(2) for j, n in enumerate(NAMES)}
    expected |= {
        "full": {
            "standard_deviations[0, a]": 2.0,
            "standard_deviations[0, b]": 1.0,
            "standard_deviations[1, a]": 3.0,
            "standard_deviations[1, b]": 2.0,
            "correlations[0, a:b]": 0.5,
            "correlations[1, a:b]": -0.5,
        },
        "tied": {"standard_deviations[a]": 2.0, "standard_deviations[b]": 1.0, "correlations[a:b]": 0.5},
        "diag": {
            "standard_deviations[0, a]": 2.0,
            "standard_deviations[0, b]": 1.0,
            "standard_deviations[1, a]": 3.0,
            "standard_deviations[1, b]": 2.0,
        },
        "spherical": {"standard_deviations[0]": 2.0, "standard_deviations[1]": 3.0},
    }[covariance_type]
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12)


def test_short_chains_are_not_taken_for_wandering_labels():
    """Components 60 sd apart, chains too short for R-hat ≤ 1.01: the labels are not what is in doubt."""
    draws = chains_around(*[mixture()] * 2, n_draws=80)
    means = draws.means.copy()
    means[1, :, 0, 0] += 0.03  # 0.3 sd
    result = verdict_of(PosteriorDraws(draws.weights, means, draws.precision_factors), target_ess=50)
    assert result.parameters["r_hat"].max() > 1.01
    assert not result.ok
    assert result.labels_identified
    assert "cannot be told apart" not in str(result)


def test_a_single_component_is_never_in_doubt_about_its_label():
    one = MixtureParameters(np.ones(1), CENTERS[:1], np.eye(2)[None])
    moved = MixtureParameters(np.ones(1), CENTERS[:1] + [0.0, 0.1], np.eye(2)[None])
    result = verdict_of(chains_around(one, moved))
    assert not result.ok
    assert result.labels_identified
    assert "told apart" not in str(result)
    assert f"{result.r_hat:.3f}" in str(result)
