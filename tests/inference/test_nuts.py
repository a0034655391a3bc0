from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from arviz_stats.base import array_stats
from scipy import stats

from bayesgmm.exceptions import SamplingError, SamplingInterrupted
from bayesgmm.inference import nuts
from bayesgmm.inference.nuts import run_nuts


class Skewed:
    """x ~ Normal(1, 2²); y given x ~ Normal(x, 0.5²); z the log of a Gamma(5) variable."""

    ndim = 3

    def logp_and_grad(self, theta):
        x, y, z = theta
        value = -0.5 * ((x - 1) / 2) ** 2 - 0.5 * ((y - x) / 0.5) ** 2 + 5 * z - np.exp(z)
        return float(value), np.array([-(x - 1) / 4 + (y - x) / 0.25, -(y - x) / 0.25, 5 - np.exp(z)])


WHITENING = (np.array([1.0, 1.0, 1.6]), np.diag([2.0, 2.0, 0.5]))
STARTS = np.array([[0.0, 0.3, 1.0], [3.0, 2.0, 2.0]])


def sample(**changes):
    arguments = {"draws": 100, "tune": 100, "seed": 3} | changes
    starts = arguments.pop("starts", STARTS)
    return run_nuts(Skewed(), starts, [WHITENING] * len(starts), **arguments)


@pytest.fixture(scope="module")
def long_run():
    return sample(draws=2000, tune=300)


def test_moments_and_quantiles_of_a_known_density(long_run):
    assert long_run.theta.shape == (2, 2000, 3)
    assert not long_run.interrupted
    z = stats.loggamma(5)
    truth = [(1.0, 2.0), (1.0, np.sqrt(4.25)), (z.mean(), z.std())]
    for j, (mean, sd) in enumerate(truth):
        draws = long_run.theta[..., j]
        # Monte Carlo errors of arviz, at four of them.
        assert abs(draws.mean() - mean) < 4 * float(array_stats.mcse(draws, method="mean"))
        assert abs(draws.std() - sd) < 4 * float(array_stats.mcse(draws, method="sd"))
    for p in (0.05, 0.95):
        error = float(array_stats.mcse(long_run.theta[..., 2], method="quantile", prob=p))
        assert abs(np.quantile(long_run.theta[..., 2], p) - z.ppf(p)) < 4 * error
    correlation = np.corrcoef(long_run.theta[..., 0].ravel(), long_run.theta[..., 1].ravel())[0, 1]
    assert correlation == pytest.approx(2 / np.sqrt(4.25), abs=0.01)


def test_statistics_belong_to_the_draws(long_run):
    assert set(long_run.stats) == {
        "lp",
        "energy",
        "diverging",
        "tree_depth",
        "n_steps",
        "step_size",
        "acceptance_rate",
    }
    assert all(values.shape == (2, 2000) for values in long_run.stats.values())
    density = Skewed()
    for c, s in ((0, 0), (1, 1999), (1, 7)):
        assert long_run.stats["lp"][c, s] == pytest.approx(density.logp_and_grad(long_run.theta[c, s])[0], rel=1e-9)
    assert long_run.stats["diverging"].dtype == bool
    # nutpie tunes the step for an acceptance of about 0.8.
    assert 0.6 < long_run.stats["acceptance_rate"].mean() < 0.95


def test_a_poor_whitening_costs_time_and_changes_nothing_else():
    poor = (np.array([-5.0, 4.0, 0.0]), np.array([[3.0, 0.0, 0.0], [-1.0, 0.4, 0.0], [0.2, 0.1, 1.5]]))
    theta = run_nuts(Skewed(), STARTS, [poor] * 2, 1500, 500, seed=1).theta
    for j, mean in enumerate((1.0, 1.0, stats.loggamma(5).mean())):
        assert abs(theta[..., j].mean() - mean) < 4 * float(array_stats.mcse(theta[..., j], method="mean"))


def test_same_seed_same_draws_however_many_run_at_a_time():
    one, again, two = sample(cores=1), sample(cores=1), sample(cores=2)
    np.testing.assert_array_equal(one.theta, again.theta)
    np.testing.assert_array_equal(one.theta, two.theta)
    for name in one.stats:
        np.testing.assert_array_equal(one.stats[name], two.stats[name])


def test_gradients_are_counted_with_those_of_the_warm_up():
    target = Watched(0.0)
    chains = run_nuts(target, STARTS, [WHITENING] * 2, 100, 100, seed=3)
    assert chains.n_gradients > chains.stats["n_steps"].sum()
    # Beside the steps: the start, and looks for a first step size.
    assert chains.n_gradients <= target.calls < chains.n_gradients + 100


def test_another_seed_and_another_chain_give_other_draws():
    one, other = sample(), sample(seed=4)
    assert not np.any(one.theta == other.theta)
    same_start = sample(starts=STARTS[[0, 0]])
    assert not np.any(same_start.theta[0] == same_start.theta[1])


def test_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (the point of the test)
    sample(draws=20)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_a_chain_does_not_depend_on_the_others():
    together = sample()
    alone = sample(starts=STARTS[:1])
    np.testing.assert_array_equal(together.theta[0], alone.theta[0])


class Slow(Skewed):
    """Takes its time, so that a run can be stopped in the middle."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def logp_and_grad(self, theta):
        threading.Event().wait(self.seconds)
        return super().logp_and_grad(theta)


def stop_when(monkeypatch, condition):
    """Press Ctrl-C in the sampler's own waiting loop as soon as a condition holds."""
    wait = time.sleep
    patience = time.monotonic() + 30

    def impatient(seconds):
        wait(seconds)
        if condition() or time.monotonic() > patience:
            raise KeyboardInterrupt

    monkeypatch.setattr(nuts.time, "sleep", impatient)


class Watched(Slow):
    """Counts its calls."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.calls = 0

    def logp_and_grad(self, theta):
        self.calls += 1
        return super().logp_and_grad(theta)


def test_draws_that_are_there_are_kept_when_the_user_stops(monkeypatch):
    target = Watched(1e-4)
    stop_when(monkeypatch, lambda: target.calls > 6000)
    chains = run_nuts(target, STARTS, [WHITENING] * 2, 200_000, 100, seed=1, cores=2)
    assert chains.interrupted
    assert 4 <= chains.theta.shape[1] < 200_000
    assert np.isfinite(chains.theta).all()
    for values in chains.stats.values():
        assert values.shape == chains.theta.shape[:2]
    # They are the first draws after the warm-up of a run that nobody stops.
    monkeypatch.undo()
    whole = sample(draws=chains.theta.shape[1], seed=1)
    np.testing.assert_array_equal(chains.theta, whole.theta)


def test_stop_before_the_warm_up_has_ended_keeps_nothing_and_says_so(monkeypatch):
    target = Watched(1e-3)
    stop_when(monkeypatch, lambda: target.calls > 20)
    with pytest.raises(SamplingInterrupted, match="warm-up") as stopped:
        run_nuts(target, STARTS, [WHITENING] * 2, 100_000, 100_000, seed=1)
    assert stopped.value.estimator is None
    assert isinstance(stopped.value, KeyboardInterrupt)


def test_chains_that_had_not_begun_are_left_out(monkeypatch):
    target = Watched(1e-4)
    stop_when(monkeypatch, lambda: target.calls > 4000)
    chains = run_nuts(target, STARTS, [WHITENING] * 2, 200_000, 100, seed=1, cores=1)
    assert chains.interrupted
    assert len(chains.theta) == 1


def test_progress_is_shown_on_standard_error(capsys):
    shown = sample(progressbar=True)
    output = capsys.readouterr()
    assert output.out == ""
    assert "chain 0" in output.err or output.err.strip() == ""  # a bar is drawn on terminals alone
    np.testing.assert_array_equal(shown.theta, sample().theta)


def test_a_density_that_fails_is_one_clear_error():
    class Broken(Skewed):
        def logp_and_grad(self, theta):
            raise ValueError("no density here")

    with pytest.raises(SamplingError, match="sampler stopped"):
        run_nuts(Broken(), STARTS, [WHITENING] * 2, 20, 20, seed=1)
