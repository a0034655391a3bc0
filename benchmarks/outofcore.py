"""EM on a Parquet file that is never in memory: time of a pass beside reading the file, and peak memory of the process.

``python -m benchmarks.outofcore FILE K`` is the job that is measured: it prints JSON.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row, Section, all_threads, count, duration, simulate

ROOT = Path(__file__).parents[1]
N_ROWS = 10_000_000
N_FEATURES, N_COMPONENTS = 2, 3
SPREAD, APART = 1.5, 2.0
GROUP_ROWS = 1_000_000
BATCH_ROWS = 1 << 17
TARGET_READING = 3.0
LIMIT_BYTES = 2e9
LIMIT_SECONDS = 7200

# A process starts with the peak of the one that starts it: a small one stands between.
LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def read(path: str) -> float:
    """Seconds in which pyarrow reads and decodes the file."""
    import pyarrow.parquet as pq

    begin, n_rows = time.perf_counter(), 0
    # as fast as it goes, and without the whole file in memory, where it would count as ours
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            n_rows += len(batch)
    assert n_rows
    return time.perf_counter() - begin


def job(path: str, n_components: int) -> dict[str, Any]:
    """Fit the file by EM to convergence, with a reading of it before, after and every few passes."""
    from bayesgmm import GaussianMixture

    reading = [read(path) for _ in range(3)]
    passes: list[float] = []
    last = [0.0]

    def tell(iteration: int, parameters: Any, objective: float) -> None:
        now = time.perf_counter()
        if iteration:
            passes.append(now - last[0])
        if iteration % 5 == 0:
            reading.append(read(path))
        last[0] = time.perf_counter()

    begin = time.perf_counter()
    before = sum(reading)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        em = GaussianMixture(n_components, random_state=0).fit(path, callback=tell)
    seconds = time.perf_counter() - begin - (sum(reading) - before)
    return {
        "seconds": seconds,
        "passes": passes,
        "reading": reading,
        "n_iter": em.n_iter_,
        "converged": em.converged_,
        "initialised_on": em.initialised_on_,
        "weights": em.weights_.tolist(),
        "means": em.means_.tolist(),
        "lower_bound": em.lower_bound_,
    }


def write(path: Path, n_rows: int) -> np.ndarray:
    """A file of rows of a mixture, a row group at a time; the means of the components."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    need = 1.3 * n_rows * N_FEATURES * 8
    if shutil.disk_usage(path.parent).free < need:
        raise RuntimeError(f"{path.parent} has no room for {need / 1e9:.1f} GB")
    names = [f"x{j}" for j in range(1, N_FEATURES + 1)]
    X, truth = simulate(min(GROUP_ROWS, n_rows), N_FEATURES, N_COMPONENTS, SPREAD, min_distance=APART)
    roots = np.linalg.cholesky(truth.covariances)
    rng = np.random.default_rng(1)
    schema = pa.schema([(name, pa.float64()) for name in names])
    with pq.ParquetWriter(path, schema, compression="snappy", use_dictionary=False) as writer:
        for start in range(0, n_rows, GROUP_ROWS):
            n = min(GROUP_ROWS, n_rows - start)
            labels = rng.choice(N_COMPONENTS, size=n, p=truth.weights)
            X = rng.standard_normal((n, N_FEATURES))
            for k in range(N_COMPONENTS):
                member = labels == k
                X[member] = truth.means[k] + X[member] @ roots[k].T
            writer.write_table(pa.table({name: X[:, j] for j, name in enumerate(names)}, schema=schema))
    return truth.means


def run(quick: bool, n_rows: int = N_ROWS) -> Section:
    """Write a file, and fit it in a process of its own."""
    if quick:
        n_rows = 500_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        means = write(path, n_rows)
        size = path.stat().st_size
        command = [sys.executable, "-m", "benchmarks.outofcore", str(path), str(N_COMPONENTS), f"{folder}/found.json"]
        done = subprocess.run(
            [sys.executable, "-c", LAUNCHER, *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            timeout=LIMIT_SECONDS,
            check=True,
        )
        code, peak = map(int, done.stdout.split())
        if code:
            raise RuntimeError(f"the fit failed with exit code {code}")
        found = json.loads((Path(folder) / "found.json").read_text())
    apart = np.linalg.norm(np.array(found["means"])[:, None] - means[None], axis=2).min(axis=1).max()
    one, reading = float(np.median(found["passes"])), float(np.median(found["reading"]))
    case = f"N={count(n_rows)} D={N_FEATURES} K={N_COMPONENTS}, {size / 1e9:.2f} GB"
    threads = f"all {all_threads()} | pyarrow's own"
    note = f"{found['n_iter']} iterations, {'converged' if found['converged'] else 'NOT CONVERGED'}, in {duration(found['seconds'])}"
    note += f"; starts on {found['initialised_on']} rows; means within {apart:.1g} of the true"
    pace = Row(
        f"a pass of EM | reading the file: {case}",
        threads,
        duration(one),
        duration(reading),
        f"{one / reading:.2f}×",
        "–" if quick else f"≤ {TARGET_READING:g}×",
        None if quick else bool(one <= TARGET_READING * reading and found["converged"]),
        note,
        found,
    )
    memory = Row(
        f"peak memory of the process: {case}",
        "same",
        f"{peak / 1e6:.0f} MB",
        f"rows as float64: {n_rows * N_FEATURES * 8 / 1e6:.0f} MB",
        "–",
        "–" if quick else "≤ 2000 MB",
        None if quick else peak <= LIMIT_BYTES,
        "libraries and file cache of the process included",
        {"bytes": peak},
    )
    return Section(
        "EM to convergence on a Parquet file, read in blocks",
        "pyarrow reading and decoding the same file",
        (pace, memory),
    )


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(job(sys.argv[1], int(sys.argv[2]))), encoding="utf-8")
