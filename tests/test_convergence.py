"""Every diagnostic against ArviZ's, quantity by quantity."""

from __future__ import annotations

import numpy as np
import pytest
from arviz_stats.base import array_stats

from bayesgmm import convergence as module
from bayesgmm.convergence import convergence, effective_size


def autoregressive(rho: float, C: int, S: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = np.empty((C, S))
    out[:, 0] = rng.standard_normal(C)
    for s in range(1, S):
        out[:, s] = rho * out[:, s - 1] + np.sqrt(1 - rho**2) * rng.standard_normal(C)
    return out


def quantities(C: int, S: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(S)
    some = {f"AR {rho}": autoregressive(rho, C, S) for rho in (0.0, 0.5, 0.95, -0.5, -0.97)}
    some["Cauchy"] = rng.standard_cauchy((C, S))
    some["shifted chains"] = autoregressive(0.3, C, S) + 2 * np.arange(C)[:, None]
    some["wider chains"] = autoregressive(0.3, C, S) * (1 + np.arange(C)[:, None])
    some["ties"] = np.round(autoregressive(0.7, C, S), 1)
    some["two values"] = (autoregressive(0.7, C, S) > 0).astype(float)
    some["rejections"] = np.repeat(rng.standard_normal((C, -(-S // 3))), 3, axis=1)[:, :S]
    some["trend"] = np.broadcast_to(np.arange(S) * 1.0, (C, S)) + 0.1 * rng.standard_normal((C, S))
    some["alternating"] = np.broadcast_to((-1.0) ** np.arange(S), (C, S)) + 1e-3 * rng.standard_normal((C, S))
    return some


@pytest.mark.parametrize("C", [1, 2, 4])
@pytest.mark.parametrize("S", [4, 5, 7, 8, 9, 11, 50, 501])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_are_arviz(C, S):
    found = quantities(C, S)
    values = np.stack(list(found.values()))
    ours = convergence(values)
    means = effective_size(values)
    for i, (name, own) in enumerate(found.items()):
        expected = (
            array_stats.ess(own, method="bulk"),
            array_stats.ess(own, method="tail", prob=(0.05, 0.95)),
            array_stats.rhat(own) if C > 1 else np.nan,
            array_stats.ess(own, method="mean"),
        )
        for number, of in zip((ours.ess_bulk[i], ours.ess_tail[i], ours.r_hat[i], means[i]), expected):
            # Sums of at most 4,000 products in another order.
            np.testing.assert_allclose(number, of, rtol=1e-9, err_msg=f"{name}, {C} chains of {S}")


def test_a_constant_has_as_many_effective_draws_as_draws():
    values = np.full((1, 2, 100), 3.25)
    assert effective_size(values)[0] == 200
    assert convergence(values).ess_bulk[0] == 200


@pytest.mark.parametrize("S", [1, 2, 3])
def test_few_draws_have_no_diagnostics(S):
    values = np.random.default_rng(0).standard_normal((3, 2, S))
    assert np.isnan(convergence(values)).all()
    assert np.isnan(effective_size(values)).all()


def test_a_nan_spoils_its_own_quantity_alone():
    values = np.random.default_rng(0).standard_normal((3, 2, 100))
    whole = convergence(values)
    values[1, 0, 3] = np.nan
    part = convergence(values)
    assert np.isnan([column[1] for column in part]).all()
    assert np.isnan(effective_size(values)[1])
    for a, b in zip(whole, part):
        np.testing.assert_array_equal(a[[0, 2]], b[[0, 2]])


def test_groups_do_not_show(monkeypatch):
    values = np.random.default_rng(0).standard_normal((7, 2, 100))
    whole, sizes = convergence(values), effective_size(values)
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 600)
    for a, b in zip(whole, convergence(values)):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    np.testing.assert_allclose(sizes, effective_size(values), rtol=1e-12)


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_units_do_not_matter(unit):
    values = autoregressive(0.6, 4, 200)[None]
    assert effective_size(unit * values)[0] == pytest.approx(effective_size(values)[0], rel=1e-9)
    for a, b in zip(convergence(unit * values), convergence(values)):
        np.testing.assert_array_equal(a, b)
