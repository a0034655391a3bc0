"""Compile beforehand what the first fit, posterior or scored file would else wait for; Numba keeps it on disk."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba.core import event

from bayesgmm.core.parameters import FloatArray


@dataclass(frozen=True)
class Step:
    """One step: what was compiled for, how many functions that took, and seconds."""

    name: str
    n_compiled: int
    seconds: float


class CompilationCounter(event.Listener):
    """Counts functions that Numba compiles; those that it finds on disk are not among them."""

    def __init__(self) -> None:
        self.n_compiled = 0

    def on_start(self, event: Any) -> None:
        """Count the first pass that each compilation runs."""
        self.n_compiled += event.data["name"].startswith("translate_bytecode")

    def on_end(self, event: Any) -> None:
        """Nothing to do."""


@contextmanager
def counted_compilations() -> Iterator[CompilationCounter]:
    """Count the compilations of the block, those of every thread."""
    counter = CompilationCounter()
    with event.install_listener("numba:run_pass", counter):
        yield counter


def cache_folder() -> Path:
    """Where Numba keeps what it compiles for this package's kernel."""
    from bayesgmm.core.kernel import fused_pass

    return Path(fused_pass.stats.cache_path)


def _em(X: FloatArray) -> None:
    from bayesgmm import GaussianMixture

    mixture = GaussianMixture(2, random_state=0).fit(X)
    mixture.predict_proba(X)
    mixture.standard_errors(X)
    # float32 is read as it is, and a structure with more than four features shares what it can.
    GaussianMixture(2, random_state=0).fit(X.astype(np.float32))
    GaussianMixture(2, covariance_type="tied", random_state=0).fit(
        np.tile(X, 3) + np.random.default_rng(1).normal(size=(len(X), 6))
    )
    # Large tables are seeded by a part of their rows, and the others follow.
    rng = np.random.default_rng(0)
    GaussianMixture(2, max_iter=1, random_state=0).fit(
        np.concatenate([X + rng.normal(size=X.shape) for _ in range(40)])
    )


def _posterior(X: FloatArray) -> None:
    from bayesgmm import BayesianGaussianMixture

    for method in ("nuts", "laplace"):
        post = BayesianGaussianMixture(2, method=method, **_SHORT).fit(X)
        post.predict_proba(X)
        post.score_samples(X)
    post.partition(n_draws=50, n_restarts=1)


def _selection(X: FloatArray) -> None:
    from bayesgmm import select

    select(X, (1, 2), "full", method="laplace", random_state=0, draws=50, progressbar=False)


def _anomalies(X: FloatArray) -> None:
    from bayesgmm import AnomalyDetector, BayesianGaussianMixture

    post = BayesianGaussianMixture(2, method="laplace", **_SHORT)
    detector = AnomalyDetector(post, n_simulated=500, random_state=0).fit(X)
    detector.table()
    detector.table(X[:5])


def _classes(X: FloatArray) -> None:
    from bayesgmm import BayesianGaussianMixture, MixtureClassifier

    y = np.repeat([0, 1], len(X) // 2)
    estimator = BayesianGaussianMixture(1, method="laplace", **_SHORT)
    MixtureClassifier(estimator, random_state=0).fit(X, y).predict_proba(X, return_std=True)


def _files(X: FloatArray) -> None:
    from bayesgmm import GaussianMixture, scoring
    from bayesgmm.persistence import save

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(GaussianMixture(2, random_state=0).fit(X), folder / "fit")
        np.savetxt(folder / "rows.csv", X[:20], delimiter=",", header="x0,x1", comments="")
        # Rows that are read in blocks are passed over for several optima at once.
        np.save(folder / "rows.npy", X)
        GaussianMixture(2, random_state=0).fit(str(folder / "rows.npy"))
        scorer = scoring.make_scorer(str(folder / "fit"))
        scoring.score(str(folder / "rows.csv"), str(folder / "scored.csv"), scorer, columns=["x0", "x1"])


_SHORT: dict[str, Any] = {"draws": 50, "chains": 2, "target_ess": 0, "random_state": 0, "progressbar": False}

STEPS: dict[str, Callable[[FloatArray], None]] = {
    "EM": _em,
    "posterior": _posterior,
    "selection": _selection,
    "anomalies": _anomalies,
    "classes": _classes,
    "files": _files,
}
"""What is compiled for, in order: each finds what those before it have left."""


def warm_up(begin: Callable[[str], None] | None = None, done: Callable[[Step], None] | None = None) -> list[Step]:
    """Run everything that compiles, once, on a table of 120 rows.

    What is compiled serves every number of rows, features and components, and every covariance structure.

    Parameters
    ----------
    begin : callable, optional
        Called with the name of each step before it.
    done : callable, optional
        Called with each :class:`Step` after it.

    Returns
    -------
    list of Step

    Raises
    ------
    OSError
        If the folder of Numba's cache cannot be written to: nothing would be kept.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise OSError(f"{folder} cannot be written to; set NUMBA_CACHE_DIR to a folder that can")
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(centre, 1.0, (60, 2)) for centre in (0.0, 9.0)])
    steps = []
    for name, run in STEPS.items():
        if begin is not None:
            begin(name)
        start = time.perf_counter()
        with counted_compilations() as counter, warnings.catch_warnings():
            # A fit of few draws warns of it.
            warnings.simplefilter("ignore")
            run(X)
        steps.append(Step(name, counter.n_compiled, time.perf_counter() - start))
        if done is not None:
            done(steps[-1])
    return steps
