"""``bayesgmm score`` on a long CSV, whole processes: time beside pandas reading and writing the file, and peak memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.measure import Row, Section, all_threads, interleaved, simulate, size, speed_row

ROOT = Path(__file__).parents[1]
CASE = (1_000_000, 4, 4)
SPREAD = 2.5
TRAINING_ROWS = 2000
DRAWS = 100
TARGET = 0.5
LIMIT_BYTES = 1e9
LIMIT_SECONDS = 1800
# the kernel counts the peak in KiB, macOS in bytes
UNIT = 1 if sys.platform == "darwin" else 1024
PEER = "import sys, pandas as pd; pd.read_csv(sys.argv[1]).to_csv(sys.argv[2], index=False)"


# A process starts with the peak of the one that starts it: a small one stands between.
LAUNCHER = """
import os, subprocess, sys, time
begin = time.perf_counter()
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), time.perf_counter() - begin, usage.ru_maxrss)
"""


def _run(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak memory of a process."""
    command = [sys.executable, "-c", LAUNCHER, sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS, check=True)
    code, seconds, peak = done.stdout.split()
    if code != "0":
        raise RuntimeError(f"{' '.join(arguments)} failed with exit code {code}")
    return float(seconds), int(peak) * UNIT


def run(quick: bool) -> Section:
    """Score the same rows, whole and a tenth of them, and let pandas copy them."""
    import bayesgmm

    n_rows, n_features, n_components = CASE
    if quick:
        n_rows = 50_000
    X, _ = simulate(n_rows, n_features, n_components, SPREAD)
    names = [f"feature_{j}" for j in range(n_features)]
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame = pd.DataFrame(X, columns=names)
        frame.to_csv(folder / "whole.csv", index=False)
        frame[: n_rows // 10].to_csv(folder / "tenth.csv", index=False)
        fit = bayesgmm.BayesianGaussianMixture(n_components, method="laplace", random_state=0, progressbar=False)
        fit.fit(frame[:TRAINING_ROWS]).save(folder / "fit")

        def ours(which: str = "whole") -> float:
            command = [
                "-m",
                "bayesgmm",
                "score",
                str(folder / "fit"),
                str(folder / f"{which}.csv"),
                "--quiet",
                "--force",
            ]
            seconds, peaks[which] = _run([*command, "--draws", str(DRAWS), "--out", str(folder / "scored.csv")])
            return seconds

        def peer() -> float:
            seconds, peaks["pandas"] = _run(["-c", PEER, str(folder / "whole.csv"), str(folder / "copied.csv")])
            return seconds

        ours("tenth")
        times = interleaved(ours, peer, 1 if quick else 5)
        copied = pd.read_csv(folder / "scored.csv", usecols=names)
        same = bool(np.array_equal(copied.to_numpy(), X))
    case = size(n_rows, n_features, n_components)
    note = "columns as they stood" if same else "COLUMNS CHANGED"
    speed = speed_row(
        f"score, {case}, {DRAWS} draws",
        f"all {all_threads()} | pandas' own",
        *times,
        None if quick else TARGET,
        note=note,
        valid=same,
    )
    met = bool(peaks["whole"] <= LIMIT_BYTES)
    memory = Row(
        f"peak memory of the process, {case}",
        "same",
        f"{peaks['whole'] / 1e6:.0f} MB",
        f"{peaks['pandas'] / 1e6:.0f} MB",
        f"{peaks['whole'] / peaks['tenth']:.2f}× that of a tenth of the rows",
        "–" if quick else "≤ 1000 MB",
        None if quick else met,
        "",
        {"bytes": peaks},
    )
    return Section(
        "Scoring a CSV file, whole processes", "pandas: read_csv, then to_csv of the same file", (speed, memory)
    )
