"""Time per EM iteration beside scikit-learn's ``GaussianMixture``, from the same start, through both ``fit`` methods.

A fit of few and a fit of many iterations are timed; their difference over the difference in iterations is free of
initialisation, validation and the last E-step. After the longer fit both sides must give the data the same score.

Above four features two kinds of data are measured. Centres N(0, 2.5²) lie ever farther apart as features are added,
until each row has one component only, and our pass leaves the others out of the second moments. Centres
N(0, 2.5² · 2/D) are as far apart as they are at D = 2, and nearly all components stay in play.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.mixture import GaussianMixture as Peer

from bayesgmm import GaussianMixture as Ours
from benchmarks.measure import (
    Row,
    Section,
    all_threads,
    elapsed,
    interleaved,
    limited_threads,
    simulate,
    size,
    speed_row,
)

SPREAD = 2.5
AGREEMENT = 1e-6


@dataclass(frozen=True)
class Case:
    """Size, iterations of the longer fit, and the targets at one thread and at all; None is for information."""

    n_rows: int
    n_features: int
    n_components: int
    iterations: int
    target_one: float | None = None
    target_all: float | None = None
    covariance_type: str = "full"


CASES = (
    Case(10_000, 2, 3, 404, 12, 25),
    Case(100_000, 8, 4, 34, 12, 30),
    Case(1_000_000, 2, 3, 24, 20, 30),
    Case(100_000, 20, 5, 24, 8, 16),
    Case(50_000, 50, 10, 24, 3.5, 6),
    *(
        Case(100_000, D, K, 24, covariance_type=name)
        for name in ("tied", "diag", "spherical")
        for D, K in ((8, 4), (20, 5))
    ),
)
SHORT = 4


def _start(X: np.ndarray, n_components: int, covariance_type: str, seed: int) -> dict[str, Any]:
    """Rows as means, even weights, the data's own variances: far from the optimum, and no side's own method."""
    rng = np.random.default_rng(seed)
    rows = X[rng.choice(len(X), size=n_components, replace=False)]
    precision = np.diag(1.0 / X.var(axis=0))
    precisions = {
        "full": np.stack([precision] * n_components),
        "tied": precision,
        "diag": np.stack([np.diagonal(precision)] * n_components),
        "spherical": np.full(n_components, 1.0 / X.var()),
    }
    return {
        "covariance_type": covariance_type,
        "weights_init": np.full(n_components, 1.0 / n_components),
        "means_init": rows,
        "precisions_init": precisions[covariance_type],
        "init_params": "random_from_data",
        "n_init": 1,
        "tol": 0.0,
        "random_state": seed,
    }


def _fit(estimator: Any, X: np.ndarray) -> Any:
    with warnings.catch_warnings():
        # EM is stopped before it has converged, and both sides warn of it.
        warnings.simplefilter("ignore")
        return estimator.fit(X)


def _per_iteration(kind: type, X: np.ndarray, n_components: int, start: dict[str, Any], long: int) -> float:
    few = elapsed(lambda: _fit(kind(n_components, max_iter=SHORT, **start), X))
    many = elapsed(lambda: _fit(kind(n_components, max_iter=long, **start), X))
    return (many - few) / (long - SHORT)


def _measure(case: Case, spread: float, label: str, repetitions: int, judged: bool) -> list[Row]:
    X, _ = simulate(case.n_rows, case.n_features, case.n_components, spread)
    K, start = case.n_components, _start(X, case.n_components, case.covariance_type, seed=1)
    sides = {kind: _fit(kind(K, max_iter=case.iterations, **start), X) for kind in (Ours, Peer)}
    scores = [float(fitted.score(X)) for fitted in sides.values()]
    same = math.isclose(*scores, rel_tol=AGREEMENT) and sides[Ours].n_iter_ == sides[Peer].n_iter_ == case.iterations
    in_play = float(np.mean(sides[Ours].predict_proba(X) > 1e-24))
    agreement = f"{abs(scores[0] - scores[1]) / abs(scores[1]):.0e}"
    note = f"{label}, {in_play:.0%} in play; bounds differ by {agreement}" + ("" if same else " NOT THE SAME FIT")
    rows: list[Row] = []
    for threads, target in ((1, case.target_one), (all_threads(), case.target_all)):
        with limited_threads(threads):
            ours, peer = interleaved(
                lambda: _per_iteration(Ours, X, K, start, case.iterations),
                lambda: _per_iteration(Peer, X, K, start, case.iterations),
                repetitions,
            )
        remark = note
        if rows and np.median(peer) > np.median(rows[0].values["peer"]):
            # The peer may be better off without more BLAS threads, and its reader should know.
            better = float(np.median(rows[0].values["peer"]) / np.median(ours))
            remark += f"; {better:.1f}× against the peer's faster one thread"
        rows.append(
            speed_row(
                f"{case.covariance_type} {size(*X.shape, K)}",
                f"{threads} | {threads}",
                ours,
                peer,
                target if judged else None,
                note=remark,
                valid=same,
                data=label,
                lower_bounds=scores,
                responsibilities_in_play=in_play,
            )
        )
    return rows


def run(quick: bool) -> Section:
    """Measure every case at one thread and at all."""
    rows: list[Row] = []
    for full in CASES:
        case = full
        if quick:
            case = replace(full, n_rows=full.n_rows // 20, iterations=12)
        kinds = [(SPREAD, "centres N(0, 2.5²)")]
        if case.n_features > 4 and case.covariance_type == "full":
            kinds.append((SPREAD * math.sqrt(2 / case.n_features), "centres N(0, 2.5²·2/D)"))
        for spread, label in kinds:
            rows += _measure(case, spread, label, 1 if quick else 3, judged=not quick)
    rows.sort(key=lambda row: int(row.threads.partition(" ")[0]))
    return Section(
        "EM: time per iteration",
        "scikit-learn GaussianMixture, same start, same iterations",
        tuple(rows),
        (
            f"Per iteration = (fit of n iterations − fit of {SHORT}) / (n − {SHORT}); n by size: "
            + ", ".join(str(12 if quick else case.iterations) for case in CASES),
            "in play: share of responsibilities above 1e-24 at the end; from 6 features up our second moments leave "
            "out the others where they are many",
        ),
    )
