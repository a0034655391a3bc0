"""Numbers of other programs, read from this folder; README.md says where each comes from."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class ReferenceFit:
    """One maximum-likelihood fit of another program; BIC and ICL smaller is better, ICL NaN where it has none."""

    program: str
    data: str
    covariance_type: str
    n_components: int
    df: int
    loglik: float
    bic: float
    icl: float
    near_singular: bool


@lru_cache
def em_fits() -> tuple[ReferenceFit, ...]:
    """All fits of em.csv."""
    with (Path(__file__).parent / "em.csv").open() as stream:
        return tuple(
            ReferenceFit(
                row["program"],
                row["data"],
                row["covariance_type"],
                int(row["n_components"]),
                int(row["df"]),
                float(row["loglik"]),
                float(row["bic"]),
                float(row["icl"] or "nan"),
                row["near_singular"] == "True",
            )
            for row in csv.DictReader(stream)
        )


@lru_cache
def data_set(name: str) -> np.ndarray:
    """The data of the fits: faithful (272, 2), iris (150, 4) or galaxies (82, 1)."""
    if name == "iris":
        from sklearn.datasets import load_iris

        return np.ascontiguousarray(load_iris().data, dtype=float)
    from bayesgmm.datasets import load_faithful, load_galaxies

    return np.ascontiguousarray({"faithful": load_faithful, "galaxies": load_galaxies}[name]().to_numpy(dtype=float))


@lru_cache
def log_likelihood() -> np.ndarray:
    """The simulated log-likelihood of loo.csv, 1000 draws × 13 rows."""
    return np.loadtxt(Path(__file__).parent / "loglik_1000x13.csv.gz", delimiter=",")


@lru_cache
def r_loo() -> dict[str, np.ndarray]:
    """Columns of loo.csv: 13 pointwise values, the total, its standard error (both NaN for k̂)."""
    with (Path(__file__).parent / "loo.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0] if name != "row"}
