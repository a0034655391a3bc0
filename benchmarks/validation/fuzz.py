"""Coverage-guided fuzzing of the table readers and of the loader (``benchmarks/fuzzing.py``), each target for a given time.

None may end in anything but a refusal of ours or a right result: see there for what each target asks. Needs atheris (``bayesgmm[bench]`` on
Linux); without it the study is skipped, and says so.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.validation.runs import Options, collect, console

TARGETS = ("table", "fit", "manifest", "draws")
SECONDS, QUICK_SECONDS, FULL_SECONDS = 150, 5, 600
LIMITS = ("-timeout=60", "-rss_limit_mb=4000", "-len_control=0", "-print_final_stats=1")


def one_target(name: str, *, seconds: int, seed: int) -> dict[str, Any]:
    """Fuzz a target; runs, what they covered, and the input of a crash with what was raised."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.fuzzing",
            name,
            f"-max_total_time={seconds}",
            f"-artifact_prefix={folder}/",
        ]
        # libFuzzer takes a seed of 0 for none.
        done = subprocess.run(
            [*command, f"-seed={seed + 1}", *LIMITS], capture_output=True, text=True, errors="replace"
        )
        inputs = [path.read_bytes().hex() for path in Path(folder).iterdir()]
    said = done.stderr + done.stdout
    covered = re.findall(r"cov: (\d+) ft: (\d+)", said) or [(0, 0)]
    runs = re.search(r"stat::number_of_executed_units:\s+(\d+)", said)
    error = None
    if done.returncode != 0 or inputs:
        error = said[said.find("=== Uncaught") :][:3000] if "=== Uncaught" in said else said[-2000:]
    edges, features = map(int, covered[-1])
    return {"runs": int(runs[1]) if runs else 0, "edges": edges, "features": features, "error": error, "inputs": inputs}


def run(options: Options) -> int:
    """Print the table; return the number of targets that crashed or could not be run."""
    screen = console()
    if importlib.util.find_spec("atheris") is None:
        screen.print(
            "fuzz: skipped, atheris is not installed (pip install atheris, where there is one for this Python)"
        )
        return 0
    seconds = QUICK_SECONDS if options.quick else FULL_SECONDS if options.full else SECONDS
    settings = {"seconds": seconds, "seed": options.seed}
    results, failed = collect("fuzz", one_target, [(name,) for name in TARGETS], settings, options)
    table = Table(title=f"Coverage-guided fuzzing, {seconds} s a target")
    for heading in ("target", "runs", "edges covered", "features", "crashes", "met"):
        table.add_column(heading, justify="left" if heading == "target" else "right", no_wrap=True)
    crashed = 0
    for (name,), r in results.items():
        crashed += r["error"] is not None
        met = "yes" if r["error"] is None else "NOT MET"
        table.add_row(name, str(r["runs"]), str(r["edges"]), str(r["features"]), str(int(r["error"] is not None)), met)
    screen.print(table)
    for (name,), r in results.items():
        if r["error"] is not None:
            screen.print(f"{name}: {r['error']}\n    inputs (hex): {r['inputs']}", markup=False)
    return crashed + failed
