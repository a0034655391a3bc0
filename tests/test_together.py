"""Fits side by side, over and over, and without a network: what one process, many threads, and many processes owe each other."""

from __future__ import annotations

import multiprocessing
import socket
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from bayesgmm import AnomalyDetector, BayesianGaussianMixture, GaussianMixture, MixtureClassifier, select
from bayesgmm.datasets import load_faithful
from benchmarks.validation.endurance import growth, works

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
FAITHFUL = load_faithful()
SHORT = {"draws": 60, "tune": 40, "chains": 2, "target_ess": 0, "n_init": 2, "progressbar": False}
TASKS = [(kind, seed) for kind in ("em", "laplace", "nuts") for seed in (1, 2)]


def fitted(kind: str, seed: int) -> bytes:
    """All numbers of a fit, as bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "em":
            fit = GaussianMixture(3, n_init=3, random_state=seed).fit(FAITHFUL)
            return b"".join(
                a.tobytes() for a in (fit.weights_, fit.means_, fit.covariances_, fit.score_samples(FAITHFUL))
            )
        post = BayesianGaussianMixture(2, method=kind, random_state=seed, **SHORT).fit(FAITHFUL)
        draws = post.idata_["posterior"]
        return b"".join(draws[name].values.tobytes() for name in ("weights", "means", "covariances"))


@pytest.fixture(scope="module")
def alone() -> list[bytes]:
    return [fitted(*task) for task in TASKS]


def test_fits_in_threads_are_those_of_each_alone(alone):
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(fitted, *zip(*(TASKS * 3), strict=True)))
    assert beside == alone * 3


@pytest.mark.slow
def test_fits_in_processes_are_those_of_each_alone():
    """Processes that load what is compiled; one that has compiled it itself may differ in the last bits."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as one, ProcessPoolExecutor(2, spawn) as two:
        alone = list(one.map(fitted, *zip(*TASKS, strict=True)))
        assert list(two.map(fitted, *zip(*TASKS, strict=True))) == alone


@pytest.mark.parametrize(
    ("kind", "n"),
    [("em", 300), ("laplace", 40), ("nuts", 20)],
)
@pytest.mark.slow
def test_memory_stays_flat(kind, n):
    """Less than 8 MB more: pages that the C library's allocator holds. ``make validate`` repeats ten times as many of more kinds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert growth(works()[kind], n) < 8.0


@pytest.fixture
def no_network(monkeypatch):
    """Every way out of this machine raises; sockets between threads and processes of it are left alone."""

    def refuse(self, address, *_):
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a connection to {address}")

    def refuse_name(host, *_, **__):
        raise AssertionError(f"a connection to {host}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_name)


@pytest.mark.slow
def test_nothing_is_fetched_at_run_time(no_network, tmp_path):
    post = BayesianGaussianMixture(2, method="nuts", random_state=0, **SHORT).fit(FAITHFUL)
    post.report(tmp_path / "report.html")
    post.save(tmp_path / "fit")
    GaussianMixture(2, random_state=0).fit(FAITHFUL).report(tmp_path / "em.html", FAITHFUL)
    MixtureClassifier().fit(FAITHFUL, FAITHFUL["waiting"] > 65)
    AnomalyDetector(n_simulated=500).fit(FAITHFUL)
    select(FAITHFUL, [1, 2], "full", progressbar=False).report(tmp_path / "selection.html")
    with pytest.raises(AssertionError, match="a connection"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
    with pytest.raises(AssertionError, match="a connection"), socket.socket() as outward:
        outward.connect(("192.0.2.1", 80))
    for page in tmp_path.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text
        assert "@import" not in text


def test_the_same_draws_whatever_was_fitted_before(alone):
    for kind, seed in reversed(TASKS):
        assert fitted(kind, seed) == alone[TASKS.index((kind, seed))]
    assert len(np.unique([len(bytes_) for bytes_ in alone])) > 1
    assert len(set(alone)) == len(TASKS)
