"""Chains on the workers of a cluster: the draws that they would have here, whatever happens to a worker."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time

import numpy as np
import pytest

from bayesgmm import BayesianGaussianMixture, open_blocks
from bayesgmm.datasets import load_faithful
from bayesgmm.exceptions import SamplingInterrupted

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

pytest.importorskip("distributed", reason="distributed is not installed: pip install 'bayesgmm[dask]'")


@pytest.fixture(scope="module")
def rows():
    return load_faithful()


def nuts(**changes):
    settings = {"draws": 100, "tune": 100, "chains": 3, "target_ess": 0, "n_init": 2, "random_state": 0}
    return BayesianGaussianMixture(2, method="nuts", **(settings | {"progressbar": False} | changes))


@pytest.fixture(scope="module")
def expected(rows):
    return nuts().fit(rows)


def assert_same(found, expected):
    """To 1e-6: what a process has compiled itself, and what it has loaded before, may change the last bits, not the path of a chain."""
    for name in ("weights", "means", "precision_factors"):
        np.testing.assert_allclose(getattr(found._draws, name), getattr(expected._draws, name), rtol=1e-6, atol=1e-9)
    for name in ("tree_depth", "n_steps", "diverging"):
        if name in expected.idata_["sample_stats"]:
            np.testing.assert_array_equal(
                found.idata_["sample_stats"][name], expected.idata_["sample_stats"][name], err_msg=name
            )


def later(seconds, function):
    thread = threading.Timer(seconds, function)
    thread.start()
    return thread


def test_the_draws_are_those_without_a_client(rows, expected, client):
    assert_same(nuts().fit(rows, client=client), expected)
    names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
    assert "bayesgmm-chain" in names


@pytest.mark.slow
def test_chains_report_how_far_they_are(rows, client, monkeypatch):
    seen = []
    from bayesgmm.inference import remote

    class Display:
        def __init__(self, shown, n_chains, total):
            assert shown
            self.total = total

        def __enter__(self):
            return lambda states, finished: seen.append(([s and s.finished_draws for s in states], list(finished)))

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(remote, "display", Display)
    nuts(draws=6000, progressbar=True).fit(rows, client=client)
    assert seen[-1][1] == [True] * 3
    assert any(0 < (said or 0) < 6100 for states, _ in seen for said in states)


@pytest.mark.slow
def test_a_worker_that_dies_does_not_show(rows, client):
    usual = nuts(draws=4000).fit(rows)
    victim = min(client.run(os.getpid).values())
    # four chains of 4,000 draws take a second and more
    killer = later(0.3, lambda: os.kill(victim, signal.SIGKILL))
    found = nuts(draws=4000).fit(rows, client=client)
    killer.join()
    assert victim not in client.run(os.getpid).values()
    assert_same(found, usual)


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_drawn(rows, client):
    # As in a program: pytest's workers do not listen.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nuts().fit(rows, client=client)
    stopper = later(2.0, _thread.interrupt_main)
    with pytest.raises(SamplingInterrupted, match="[123] chains? with [1-9][0-9]+ of 300000 draws were kept") as stop:
        nuts(draws=300_000, max_draws=300_000).fit(rows, client=client)
    stopper.join()
    assert stop.value.estimator._draws.n_draws > 10
    # the workers are free again
    begin = time.monotonic()
    nuts().fit(rows, client=client)
    assert time.monotonic() - begin < 5


def test_a_client_that_has_nothing_to_do_is_refused(rows, client):
    with pytest.raises(ValueError, match="chains of NUTS"):
        BayesianGaussianMixture(2, method="laplace").fit(rows, client=client)
    with pytest.raises(ValueError, match="rows in memory"):
        nuts().fit(open_blocks(rows), client=client)
