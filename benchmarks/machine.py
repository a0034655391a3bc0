"""The machine and the versions that figures were taken with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy.linalg  # noqa: F401  (loads SciPy's BLAS, so that it is listed)
from threadpoolctl import threadpool_info

from benchmarks.measure import all_threads

PACKAGES = ("bayesgmm", "numpy", "scipy", "numba", "scikit-learn", "pymc", "pytensor", "nutpie", "arviz")


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def describe() -> dict[str, Any]:
    """Cores, processor, memory, load, versions and BLAS of this machine."""
    # A product makes sure that the library is loaded.
    np.ones((2, 2)) @ np.ones((2, 2))
    blas = {f"{i['internal_api']} {i['version']}": i["num_threads"] for i in threadpool_info()}
    return {
        "cpu": _cpu_name(),
        "cores": all_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "blas_threads": blas,
    }


def as_text(machine: dict[str, Any]) -> list[str]:
    """The same in a few lines."""
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:g} GB, {machine['system']}",
        ", ".join(
            [f"Python {machine['python']}", *(f"{name} {number}" for name, number in machine["versions"].items())]
        ),
        "BLAS threads: " + ", ".join(f"{name}: {threads}" for name, threads in machine["blas_threads"].items()),
    ]
    if machine["load"] is not None:
        busy = machine["load"] > 0.5
        remark = ": other programs are running, so these are not a quiet machine's figures" if busy else ""
        lines.append(f"Load average {machine['load']:.2f}{remark}")
    return lines
