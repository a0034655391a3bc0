"""Wall-clock time of a whole process from start to posterior: Old Faithful, K = 2, four chains, imports included.

Each side has caches of its own in a new folder (PyTensor's and Numba's). Its first run finds them empty; the runs after
it, taken in turns, find them warm. Chains run on all cores, and BLAS on one thread, on both sides: BLAS threads within
chains that already fill the cores would cost the peer dearly. One more run of each, with BLAS as it comes, is shown but
not judged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, Section, all_threads, duration, interleaved

ROOT = Path(__file__).parents[1]
TARGETS = {"warm": 1 / 3, "first": 1 / 1.5}
DRAWS = 1000
LIMIT_SECONDS = 1800
AGREEMENT = 0.5


def _environment(cache: Path, one_blas_thread: bool) -> dict[str, str]:
    flags = [flag for flag in os.environ.get("PYTENSOR_FLAGS", "").split(",") if flag and "compiledir" not in flag]
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
    blas = dict.fromkeys(names, "1") if one_blas_thread else {}
    return (
        os.environ
        | blas
        | {
            "PYTENSOR_FLAGS": ",".join([*flags, f"base_compiledir={cache / 'pytensor'}"]),
            "NUMBA_CACHE_DIR": str(cache / "numba"),
        }
    )


def _timed(arguments: list[str], cache: Path, one_blas_thread: bool = True) -> tuple[float, str]:
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=_environment(cache, one_blas_thread),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    seconds = time.perf_counter() - begin
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def _row(case: str, blas: str, ours: list[float], peer: list[float], limit: float | None, same: bool, note: str) -> Row:
    a, b = float(np.median(ours)), float(np.median(peer))
    return Row(
        case,
        f"{all_threads()} cores, BLAS {blas} | same",
        duration(a),
        duration(b),
        f"1/{b / a:.2f}",
        "–" if limit is None else f"≤ 1/{1 / limit:.2g}",
        None if limit is None else bool(same and a <= limit * b),
        note,
        {"ours": ours, "peer": peer, "ratio": a / b},
    )


def run(quick: bool) -> Section:
    """Measure the first run ever, warm runs in turns, and warm runs with BLAS as it comes."""
    draws, repetitions = (100, 1) if quick else (DRAWS, 3)
    table = str(files("bayesgmm.datasets") / "faithful.csv")
    means: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        caches = {side: Path(folder) / side for side in ("ours", "peer")}

        def measure(side: str, one_blas_thread: bool = True) -> float:
            script = ["-m", "benchmarks.faithful", side, table, str(draws)]
            seconds, printed = _timed(script, caches[side], one_blas_thread)
            means[side] = np.array(json.loads(printed.splitlines()[-1]))
            return seconds

        first = [[measure(side)] for side in caches]
        warm = interleaved(lambda: measure("ours"), lambda: measure("peer"), repetitions)
        as_it_comes = [[measure(side, one_blas_thread=False)] for side in caches]
        imports = {
            statement: float(np.median([_timed(["-c", statement], caches["peer"])[0] for _ in range(repetitions)]))
            for statement in ("import pymc, nutpie", "import bayesgmm", "pass")
        }
    deviation = np.loadtxt(table, delimiter=",", skiprows=1).std(axis=0)
    distance = float(np.max(np.abs(means["ours"] - means["peer"]) / deviation))
    same = distance < AGREEMENT
    note = f"posterior means at most {distance:.2f} sd of the data apart" + ("" if same else " NOT THE SAME MODE")
    limits = dict.fromkeys(TARGETS) if quick else TARGETS
    case = f"Old Faithful K=2, 4 × {draws} draws"
    return Section(
        "Process time to posterior, imports included",
        "nutpie on the pm.Mixture model, default warm-up, started near the modes",
        (
            _row(f"{case}, caches warm", "1", *warm, limits["warm"], same, note),
            _row(f"{case}, first run ever", "1", *first, limits["first"], same, note),
            _row(f"{case}, caches warm", "as it comes", *as_it_comes, None, same, note),
        ),
        ("Alone: " + ", ".join(f"python -c '{statement}' {duration(s)}" for statement, s in imports.items()),),
    )
