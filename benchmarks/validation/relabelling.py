"""Label switching undone: how many draws each way to relabel brings back, and how long it takes.

Of a few rows the component is known, so that the posterior's components have names; draws of it by a Gibbs sampler are shuffled by
random permutations (``tests/label_switching.py``): components far apart; crossing, where the order along a feature changes from
draw to draw; 1.2 standard deviations apart; one inside another. None of the ways is told a reference or which rows are known:
the assignment finds its pivot, and ECR and Stephens' algorithm begin from there. Beside them stand ordering by the first coordinate,
and the most probable order of each draw over all K!, which knows these rows: no rule does better.

Targets: over all data sets of a case 99 % of the draws right where components are separated or cross, 98 % where they overlap. With few
overlapping rows even the most probable orders are right less often than that: no target there.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.validation.runs import Options, collect, console
from tests.label_switching import CASES, switched

TARGETS = {"heavy overlap": 0.98, "heavy overlap, few rows": 0.0, "one inside the other": 0.98}
TARGET = 0.99
METHODS = ("mode", "ecr", "stephens")
SEEDS, QUICK_SEEDS, FULL_SEEDS = 5, 1, 20
DRAWS = 4000


def one_seed(case: str, index: int, *, draws: int, seed: int) -> dict[str, Any]:
    """Shares of draws that were put right, and seconds."""
    from bayesgmm.inference.relabel import relabel
    from bayesgmm.inference.relabel_rows import ecr, stephens

    data = switched(case, draws, 1000 * seed + index)
    found, seconds = {}, {}
    # The first calls load what is compiled.
    some = tuple(part[:20] for part in data.flat)
    ecr(data.X, some)
    for method in METHODS:
        begin = time.perf_counter()
        start = relabel(data.weights, data.means, data.covariances, covariance_type="full")
        if method != "mode":
            start = {"ecr": ecr, "stephens": stephens}[method](data.X, data.flat, start=start)
        seconds[method], found[method] = time.perf_counter() - begin, start
    right = {method: data.share_right(orders) for method, orders in found.items()}
    return {
        "size": f"{len(data.X)}, {data.X.shape[1]}, {data.weights.shape[1]}",
        "right": right
        | {"coordinate": data.share_right(data.by_coordinate()), "best": data.share_right(data.best_orders())},
        "agree": float(np.mean(np.all((found["mode"] == found["ecr"]) & (found["mode"] == found["stephens"]), axis=1))),
        "seconds": seconds,
    }


def run(options: Options) -> int:
    """Print the table; return the number of targets missed, with data sets that failed."""
    settings = {"draws": options.draws or (500 if options.quick else DRAWS), "seed": options.seed}
    n = options.number_of(SEEDS, QUICK_SEEDS, FULL_SEEDS)
    keys = [(case, index) for case in CASES for index in range(n)]
    results, failed = collect("relabelling", one_seed, keys, settings, options)
    table = Table(title=f"Shuffled draws brought back (%), {settings['draws']} draws, {n} data sets a case")
    for heading in (
        "case", "N, D, K", "mode", "ECR", "Stephens", "worst set", "coordinate", "best", "agree", "mode s", "ECR s", "Stephens s", "met",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=True)
    missed = 0
    for case in CASES:
        own = [result for key, result in results.items() if key[0] == case]
        if not own:
            continue
        target = TARGETS.get(case, TARGET)
        shares = {name: [r["right"][name] for r in own] for name in own[0]["right"]}
        worst = min(min(shares[method]) for method in METHODS)
        values = [*(np.mean(shares[m]) for m in METHODS), worst, *(np.mean(shares[m]) for m in ("coordinate", "best"))]
        met = all(np.mean(shares[method]) >= target for method in METHODS)
        missed += not (met or options.quick)
        table.add_row(
            case,
            own[0]["size"],
            *(f"{100 * value:.1f}" for value in (*values, np.mean([r["agree"] for r in own]))),
            *(f"{np.median([r['seconds'][method] for r in own]):.2f}" for method in METHODS),
            f"{100 * target:.0f}: {'yes' if met else 'NO'}" if target else "–",
        )
    console().print(table)
    return missed + failed
