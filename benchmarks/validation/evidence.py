"""Whether the standard error of the log evidence is its scatter: many fits of a few tables whose evidence is known exactly.

K = 1: 30 rows, closed form; by NUTS and by Laplace. K = 2: eight rows, overlapping or far apart, the sum over all 256 allocations; by
NUTS. D = 2 and a conjugate prior throughout. Each seed has a fit of its own, and z = (estimate − exact) / standard error.

Targets with 50 seeds: in every case the standard deviation of z lies within 0.7 and 1.4 and its mean within ±0.5 (each holds for
unit normals with probability above 0.998), over all cases of a method the standard deviation lies within 0.8 and 1.3, and no |z|
exceeds 4. Fewer seeds are not judged.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.validation.runs import Options, collect, console
from tests.oracles import Enumeration, PriorValues, one_component_log_evidence

CENTRE, SCALE = np.array([0.3, 0.5]), np.array([[1.5, 0.5], [0.5, 1.0]])
OVERLAPPING = np.array(
    [[-2.4, -1.0], [-1.9, 0.3], [-1.5, -0.6], [-0.2, 0.9], [0.4, -0.4], [1.6, 1.8], [2.0, 0.7], [2.9, 2.2]]
)
SEPARATED = 0.3 * OVERLAPPING + np.where(np.arange(8) < 4, -6.0, 6.0)[:, None]
ONE = np.random.default_rng(1).standard_normal((30, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]])
TABLES = {"one": (ONE, 1, 0.5), "overlapping": (OVERLAPPING, 2, 0.5), "separated": (SEPARATED, 2, 0.02)}
"""Rows, K, and the prior precision of the means: these may be far out where the data are."""

# At K = 1 tied is full.
CASES = (
    *(("one", structure, method) for method in ("nuts", "laplace") for structure in ("full", "diag", "spherical")),
    *((table, s, "nuts") for table in ("overlapping", "separated") for s in ("full", "tied", "diag", "spherical")),
)
SEEDS, QUICK_SEEDS, FULL_SEEDS = 20, 3, 50
DRAWS = 500
CASE_LIMITS, ALL_LIMITS = (0.7, 1.4), (0.8, 1.3)
LARGEST_MEAN, LARGEST = 0.5, 4.0


@cache
def exact(table: str, structure: str) -> float:
    """Log evidence by the oracle."""
    X, K, kappa = TABLES[table]
    values = PriorValues(np.full(K, 2.0), CENTRE, kappa, 6.0, SCALE)
    if K == 1:
        return one_component_log_evidence(X, values, structure)
    return Enumeration(X, values, K, structure).log_evidence


def one_seed(table: str, structure: str, method: str, index: int, *, draws: int, seed: int, **_: Any) -> dict[str, Any]:
    """Fit, and compare the evidence with the oracle's."""
    from bayesgmm import BayesianGaussianMixture, ConjugatePrior

    X, K, kappa = TABLES[table]
    estimator = BayesianGaussianMixture(
        K,
        covariance_type=structure,
        prior=ConjugatePrior(2.0, CENTRE, kappa, 6.0, SCALE),
        method=method,
        draws=draws,
        target_ess=0,
        random_state=1000 * seed + index,
        progressbar=False,
    )
    with warnings.catch_warnings():
        # Eight rows say little about which component is which.
        warnings.simplefilter("ignore", UserWarning)
        found = estimator.fit(X).log_evidence(random_state=index)
    return {
        "difference": found.log_evidence - exact(table, structure),
        "error": found.standard_error,
        "converged": bool(found.converged),
    }


def report(results: dict[Any, dict[str, Any]]) -> int:
    """Print the table; return the number of targets missed."""
    table = Table(title="z = (log evidence − exact) / standard error", title_justify="left")
    for heading in (
        "K",
        "table",
        "structure",
        "method",
        "seeds",
        "doubtful",
        "median error",
        "mean",
        "sd",
        "largest",
        "",
    ):
        left = heading in ("table", "structure", "method", "")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    missed = 0
    pooled: dict[str, list[float]] = {}

    def row(head: tuple[str, ...], z: np.ndarray, limits: tuple[float, float]) -> None:
        nonlocal missed
        mean, sd, largest = float(z.mean()), float(z.std(ddof=1)), float(np.abs(z).max())
        right = limits[0] <= sd <= limits[1] and abs(mean) <= LARGEST_MEAN and largest <= LARGEST
        judged = len(z) >= FULL_SEEDS
        missed += judged and not right
        verdict = ("reached" if right else "[bold red]missed[/bold red]") if judged else "–"
        table.add_row(*head, f"{mean:+.2f}", f"{sd:.2f}", f"{largest:.2f}", verdict)

    for case in CASES:
        own = [r for key, r in results.items() if key[:3] == case]
        if len(own) < 2:
            continue
        errors = np.array([r["error"] for r in own])
        z = np.array([r["difference"] for r in own]) / errors
        pooled.setdefault(case[2], []).extend(z)
        doubtful = sum(not r["converged"] for r in own)
        head = (str(TABLES[case[0]][1]), *case, str(len(own)), str(doubtful), f"{np.median(errors):.4f}")
        row(head, z, CASE_LIMITS)
    table.add_section()
    for method, z in pooled.items():
        row(("", "all", "", method, str(len(z)), "", ""), np.array(z), ALL_LIMITS)
    screen = console()
    screen.print(table)
    screen.print(
        f"Target: sd within {CASE_LIMITS} (all: {ALL_LIMITS}), |mean| ≤ {LARGEST_MEAN:g}, no |z| > {LARGEST:g}."
        f" Missed: {missed}."
    )
    return missed


def run(options: Options) -> int:
    """Run the study; return the number of targets missed and of fits that failed."""
    n_seeds = options.number_of(SEEDS, QUICK_SEEDS, FULL_SEEDS)
    settings = {"draws": options.draws or DRAWS, "seed": options.seed}
    keys = [(*case, index) for index in range(n_seeds) for case in CASES]
    results, failed = collect("evidence", one_seed, keys, settings, options)
    return report(results) + failed
