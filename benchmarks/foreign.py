"""Programs of other interpreters as peers: found, started, and asked for a measurement at a time.

Python packages that do not belong into this environment (JAX and NumPyro; PyTorch and pomegranate) are looked for in the interpreters
that ``--peers-python``, or else the variable ``BAYESGMM_PEERS_PYTHON``, names (several parted by ``os.pathsep``), then in ``.peers``, which
``make peers`` makes and fills. R's packages (mclust, rstan) are looked for by ``Rscript``. What is missing is skipped, and said.

A program stays alive, so that its measurements can be taken in turns with ours, and times itself: neither its start, nor its imports,
nor its compilation is in a figure, but the time of compilation is told.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
VARIABLE = "BAYESGMM_PEERS_PYTHON"
LIMIT_SECONDS = 1800


class Missing(RuntimeError):
    """A peer that is not on this machine."""


@dataclass(frozen=True)
class Program:
    """A script, and the package that its interpreter must have."""

    name: str
    script: str
    package: str


NUMPYRO = Program("NumPyro", "numpyro_mixture.py", "numpyro")
POMEGRANATE = Program("pomegranate", "pomegranate_mixture.py", "pomegranate")
MCLUST = Program("mclust", "mclust_mixture.R", "mclust")
STAN = Program("Stan", "stan_mixture.R", "rstan")


def _pythons() -> list[str]:
    named = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    return [*named, str(ROOT / ".peers" / "bin" / "python")]


def _runs(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    except OSError:
        return False


@cache
def _command(program: Program) -> tuple[str, ...]:
    script = str(ROOT / "benchmarks" / "programs" / program.script)
    if script.endswith(".R"):
        rscript = shutil.which("Rscript")
        if rscript is None:
            raise Missing(f"{program.name}: skipped, there is no Rscript here (Debian: r-cran-{program.package})")
        if not _runs(rscript, "-e", f"loadNamespace('{program.package}')"):
            raise Missing(f"{program.name}: skipped, R has no {program.package} (Debian: r-cran-{program.package})")
        return rscript, script
    for python in _pythons():
        if _runs(python, "-c", f"import importlib.util as u, sys; sys.exit(u.find_spec('{program.package}') is None)"):
            return python, script
    raise Missing(
        f"{program.name}: skipped, no interpreter of {VARIABLE} or .peers has {program.package} ('make peers' makes .peers)"
    )


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    """Folder in which programs keep what they have compiled until all measurements are done."""
    return tempfile.TemporaryDirectory()


class Session:
    """A running program: what it said when it was ready, and its measurements."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, errors: Path) -> None:
        self._process, self._errors = process, errors
        self.folder = folder
        self.ready = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(LIMIT_SECONDS, self._process.kill)
        timer.start()
        try:
            for line in self._process.stdout:
                if line.startswith("{"):
                    return json.loads(line)
        finally:
            timer.cancel()
        raise RuntimeError(f"{self._process.args} gave no answer:\n{self._errors.read_text()[-2000:]}")

    def measure(self) -> dict[str, Any]:
        """One measurement: its ``seconds``, and what else the program tells."""
        assert self._process.stdin is not None
        self._process.stdin.write("measure\n")
        self._process.stdin.flush()
        return self._answer()

    def array(self, name: str, *shape: int) -> np.ndarray:
        """Numbers that the program has written."""
        return np.fromfile(self.folder / f"{name}.bin").reshape(shape)


@contextmanager
def session(program: Program, task: str, threads: int, sizes: Sequence[int], **arrays: np.ndarray) -> Iterator[Session]:
    """Start a program on a problem and end it afterwards.

    Raises
    ------
    Missing
        If it is not on this machine.
    RuntimeError
        If it failed, with the end of what it wrote to standard error.
    """
    command = _command(program)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key, values in arrays.items():
            np.ascontiguousarray(values, dtype=np.float64).tofile(folder / f"{key}.bin")
        (folder / "sizes.txt").write_text(" ".join(map(str, sizes)))
        with open(folder / "errors.txt", "w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [*command, task, str(folder), str(threads), _kept().name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict.fromkeys(names, str(threads)),
            )
            try:
                yield Session(process, folder, folder / "errors.txt")
            finally:
                process.kill()
                process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        stream.close()
