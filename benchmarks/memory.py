"""Peak memory of EM's fit and of the posterior's score, X included, against the size of X."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row, Section, all_threads, duration, simulate, size

ROOT = Path(__file__).parents[1]
CASE = (1_000_000, 2, 3)
SPREAD = 2.5
CHAINS, DRAWS = 4, 1000
EM_LIMIT = 3.0
SCORE_LIMIT_BYTES = 500e6
LIMIT_SECONDS = 1800
JOBS = ("em_fit", "em_score", "posterior_score", "sklearn_fit", "sklearn_score")


def _peak(job: str, path: Path, draws: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peak", job, str(path), str(draws)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{job} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _megabytes(n: float) -> str:
    return f"{n / 1e6:.0f} MB"


def run(quick: bool) -> Section:
    """Measure every job in a process of its own."""
    n_rows, n_features, n_components = CASE
    draws = DRAWS
    if quick:
        n_rows, draws = 50_000, 50
    X, _ = simulate(n_rows, n_features, n_components, SPREAD)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "X.npy"
        np.save(path, X)
        found = {job: _peak(job, path, draws) for job in JOBS}
    rows = []
    for job, what in (("em_fit", "EM fit"), ("em_score", "EM score_samples"), ("posterior_score", "posterior score")):
        peak, table = found[job]["bytes"], found[job]["X"]
        if job == "posterior_score":
            what += f", {CHAINS * draws} draws"
            ratio, target, met = f"X + {_megabytes(peak - table)}", "≤ X + 500 MB", peak <= table + SCORE_LIMIT_BYTES
        else:
            ratio, target, met = f"{peak / table:.2f} X", f"≤ {EM_LIMIT:g} X", peak <= EM_LIMIT * table
        rows.append(
            Row(
                f"{what}, {size(n_rows, n_features, n_components)}",
                f"all {all_threads()}",
                _megabytes(peak),
                f"X = {_megabytes(table)}",
                ratio,
                "–" if quick else target,
                None if quick else bool(met),
                f"{duration(found[job]['seconds'])}; {'exact' if found[job]['exact'] else 'sampled every ms'}",
                found[job],
            )
        )
    peers = {job: found[job]["bytes"] / found[job]["X"] for job in ("sklearn_fit", "sklearn_score")}
    return Section(
        "Peak memory above the process before X was loaded, X included",
        "the size of X",
        tuple(rows),
        (
            f"scikit-learn's GaussianMixture on the same X: fit {peers['sklearn_fit']:.2f} X, "
            f"score_samples {peers['sklearn_score']:.2f} X",
            "EM fit: all defaults, ten seeded starts; posterior: fitted to 2,000 of the rows beforehand",
        ),
    )
