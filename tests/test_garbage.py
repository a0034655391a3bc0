"""What was dropped is freed before much of it has piled up, and collecting never takes much of the time."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from bayesgmm import BayesianGaussianMixture, garbage, load
from bayesgmm.datasets import load_faithful


class Circle:
    """Holds memory and refers to itself."""

    def __init__(self) -> None:
        self.held, self.itself = np.zeros(50_000), self


@pytest.fixture
def ledger(monkeypatch):
    new = garbage._Ledger()
    new.add(0)
    monkeypatch.setattr(garbage, "_ledger", new)
    return new


@pytest.fixture
def switched_off():
    gc.disable()
    yield
    gc.enable()


def test_circles_do_not_pile_up(ledger):
    circles = []
    for _ in range(100):
        circle = Circle()
        circles.append(weakref.ref(circle))
        garbage.made(circle.held.nbytes)
        ledger.earliest = 0.0
    del circle
    assert sum(c() is not None for c in circles) <= garbage.LIMIT / 400_000 + 1


def test_the_limit_is_exact_and_a_collection_begins_anew(ledger):
    assert not ledger.add(garbage.LIMIT)
    assert ledger.add(1)
    ledger.collect()
    ledger.earliest = 0.0
    assert not ledger.add(garbage.LIMIT)


def test_somebody_elses_collection_counts(ledger):
    ledger.add(garbage.LIMIT)
    gc.collect()
    assert not ledger.add(garbage.LIMIT)


def test_a_twentieth_of_the_time_at_most(ledger, monkeypatch):
    now, collected = [100.0], []

    def collect():
        now[0] += 0.02
        collected.append(now[0])

    monkeypatch.setattr(garbage, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(garbage.gc, "collect", collect)
    for _ in range(2000):
        garbage.made(2 * garbage.LIMIT)
        now[0] += 0.001
    # One at once, and the others 0.4 s after the end of the one before: twenty times as long as it took.
    gaps = np.diff(collected) - 0.02
    assert len(collected) == 5
    assert np.all((gaps >= 0.4 - 1e-9) & (gaps <= 0.401 + 1e-9))


def test_switched_off_stays_off(ledger, switched_off):
    assert not ledger.add(2 * garbage.LIMIT)


def test_posteriors_fitted_saved_and_loaded_are_freed(tmp_path, ledger):
    trees = []
    n_bytes = 0
    for seed in range(14):
        post = BayesianGaussianMixture(
            2, method="laplace", draws=100, tune=50, target_ess=0, n_init=1, random_state=seed, progressbar=False
        ).fit(load_faithful())
        again = load(post.save(tmp_path / str(seed)))
        trees += [weakref.ref(post.idata_), weakref.ref(again.idata_)]
        n_bytes = max(n_bytes, post.idata_.nbytes)
        ledger.earliest = 0.0
    del post, again
    # What was made since the last collection, with those that were held at that moment.
    assert sum(tree() is not None for tree in trees) <= garbage.LIMIT / n_bytes + 4 < len(trees)
