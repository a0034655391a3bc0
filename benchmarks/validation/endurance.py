"""Whether memory stays flat over very many fits in one process: a service that fits all day must not grow.

Each kind of work is repeated on small tables (Old Faithful), new seeds each time. After a tenth of the repetitions, when caches are filled
and the allocator has its arenas, the resident memory is taken, and at the end again. 8 MB more is allowed, whatever the number of
repetitions: pages that the allocator of the C library holds between two sizes of its arenas. A kilobyte kept by each fit would show in
ten thousand of them; the fits' own draws, some 100 kB each, in a hundred.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.validation.runs import Options, collect, console

REPETITIONS = {
    "em": 3000,
    "laplace": 400,
    "nuts": 200,
    "classifier": 1000,
    "detector": 600,
    "saved": 200,
    "report": 100,
}
FULL, QUICK = 10.0, 0.02
ALLOWED = 8.0
"""MB."""


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    import resource

    return pages * resource.getpagesize() / 2**20


def growth(work: Callable[[int], object], n: int) -> float:
    """How much the process grows, in MB, over the last nine tenths of n repetitions."""
    before = 0.0
    for i in range(n):
        if i == max(3, n // 10):
            gc.collect()
            before = resident()
        work(i)
    gc.collect()
    return resident() - before


def works() -> dict[str, Callable[[int], object]]:
    """Every kind of work, by the number of its repetition."""
    import tempfile

    import numpy as np

    from bayesgmm import AnomalyDetector, BayesianGaussianMixture, GaussianMixture, MixtureClassifier, load
    from bayesgmm.datasets import load_faithful

    X = load_faithful()
    y = np.asarray(X["waiting"] > 65)
    short: dict[str, Any] = {"draws": 100, "tune": 50, "chains": 2, "target_ess": 0, "n_init": 2, "progressbar": False}

    def posterior(seed: int, method: str) -> BayesianGaussianMixture:
        return BayesianGaussianMixture(2, method=method, random_state=seed, **short).fit(X)

    def saved(seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            load(posterior(seed, "laplace").save(folder)).score_samples(X)

    def report(seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            posterior(seed, "laplace").report(Path(folder) / "report.html")

    return {
        "em": lambda i: GaussianMixture(1 + i % 4, random_state=i, n_init=2).fit(X).predict(X),
        "laplace": lambda i: posterior(i, "laplace").predict_proba(X),
        "nuts": lambda i: posterior(i, "nuts").predict_proba(X),
        "classifier": lambda i: MixtureClassifier(random_state=i).fit(X, y).predict(X),
        "detector": lambda i: AnomalyDetector(n_simulated=1000, random_state=i).fit(X).predict(X),
        "saved": saved,
        "report": report,
    }


def one_kind(name: str, repetitions: int) -> dict[str, Any]:
    """Repeat one kind of work in this process."""
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grown = growth(works()[name], repetitions)
    return {"repetitions": repetitions, "growth": grown, "resident": resident(), "seconds": time.perf_counter() - begin}


def run(options: Options) -> int:
    """Print the table; return the number of kinds of work that grew, with those that failed."""
    factor = QUICK if options.quick else FULL if options.full else 1.0
    keys = [(name, max(10, int(usual * factor))) for name, usual in REPETITIONS.items()]
    results, failed = collect("endurance", one_kind, keys, {}, options)
    table = Table(title=f"Resident memory over repeated fits (target: ≤ {ALLOWED:.0f} MB more, however many)")
    for heading in ("work", "repetitions", "growth", "resident at the end", "s", "met"):
        table.add_column(heading, justify="left" if heading == "work" else "right", no_wrap=True)
    missed = 0
    for (name, _), r in results.items():
        met = r["growth"] <= ALLOWED
        missed += not (met or options.quick)
        table.add_row(
            name,
            str(r["repetitions"]),
            f"{r['growth']:+.1f} MB",
            f"{r['resident']:.0f} MB",
            f"{r['seconds']:.0f}",
            "–" if options.quick else "yes" if met else "NOT MET",
        )
    console().print(table)
    return missed + failed
