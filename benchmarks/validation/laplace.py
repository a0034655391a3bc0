"""``method="laplace"`` beside NUTS where rows are many: posterior means and standard deviations of every parameter.

N = 1e5 rows of known mixtures. Means of weights, means and covariances must lie within 0.05 posterior standard deviations of those by
NUTS, standard deviations within 5 %, both from effective sample sizes of 4,000 or more. Two perfect samples of 4,000 would
miss the first in one of a hundred parameters by chance; more is drawn, so that what is judged is the method.

Both run one after the other in one process, on one thread: the ratio of their times is that of their work. Beside it stand the passes
over the rows that Laplace took beyond EM's: one for the curvature at the mode, those of the way there, and one for all draws.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.measure import simulate, size
from benchmarks.validation.runs import Options, collect, console

CASES = {"separated": (100_000, 4, 4, 4.0), "three": (100_000, 2, 3, 3.0), "overlapping": (100_000, 2, 2, 1.5)}
"""Rows, features, components and the smallest distance of two centres in standard deviations."""

QUICK_ROWS = 20_000
ESS, DRAWN, DRAWS = 4000, 5000, 4000
MEANS, DEVIATIONS = 0.05, 0.05


def _moments(post: Any) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means and sds of weights, means and covariances, components in the order of their weights."""
    tree = post.idata_["posterior"]
    order = np.argsort(tree["weights"].values.mean(axis=(0, 1)))
    values = [tree[name].values[:, :, order] for name in ("weights", "means", "covariances")]
    draws = np.concatenate([v.reshape(v.shape[0] * v.shape[1], -1) for v in values], axis=1)
    return draws.mean(axis=0), draws.std(axis=0)


def one_case(name: str, *, n_rows: int | None, draws: int, ess: int, seed: int) -> dict[str, Any]:
    """Fit the same rows by both methods; how far they are apart, and what each took."""
    from bayesgmm import BayesianGaussianMixture

    N, D, K, distance = CASES[name]
    X, _ = simulate(n_rows or N, D, K, 1.5 * distance, seed=seed, min_distance=distance)
    posts, seconds = {}, {}
    for method, each in (("laplace", draws), ("nuts", 1500)):
        post = BayesianGaussianMixture(
            K, method=method, draws=each, target_ess=ess, max_draws=20_000, random_state=seed, progressbar=False
        )
        begin = time.perf_counter()
        posts[method] = post.fit(X)
        seconds[method] = time.perf_counter() - begin
    (mean, sd), (expected, spread) = (_moments(posts[method]) for method in ("laplace", "nuts"))
    found = posts["nuts"].diagnostics_
    attributes = posts["laplace"].idata_.attrs
    return {
        "size": size(*X.shape, K),
        "parameters": len(mean),
        "means": float(np.max(np.abs(mean - expected) / spread)),
        "deviations": float(np.max(np.abs(sd / spread - 1))),
        "ess": [float(attributes["importance_effective_size"]), float(min(found.ess_bulk, found.ess_tail))],
        "pareto_k": float(posts["laplace"].diagnostics_.pareto_k or 0.0),
        "passes": float(attributes["passes_over_rows"]),
        "seconds": [seconds["laplace"], seconds["nuts"]],
        "ok": [bool(post.diagnostics_.ok) for post in posts.values()],
    }


def run(options: Options) -> int:
    """Print the table; return the number of targets missed, with cases that failed."""
    settings = {
        "n_rows": QUICK_ROWS if options.quick else None,
        "draws": options.draws or (500 if options.quick else DRAWS),
        "ess": 400 if options.quick else DRAWN,
        "seed": options.seed,
    }
    results, failed = collect("laplace", one_case, [(name,) for name in CASES], settings, options)
    table = Table(title=f"Laplace with importance resampling beside NUTS, one thread, 4 × {settings['draws']} draws")
    for heading in (
        "case", "size", "means apart (sd)", "sds apart", "ESS", "ESS of NUTS", "k̂", "passes", "s", "s of NUTS", "ratio", "met",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("case", "size") else "right", no_wrap=True)
    missed = 0
    for (name,), r in results.items():
        met = r["means"] <= MEANS and r["deviations"] <= DEVIATIONS and min(r["ess"]) >= ESS and all(r["ok"])
        missed += not (met or options.quick)
        table.add_row(
            name,
            r["size"],
            f"{r['means']:.3f}",
            f"{100 * r['deviations']:.1f} %",
            *(f"{ess:.0f}" for ess in r["ess"]),
            f"{r['pareto_k']:.2f}",
            f"{r['passes']:.0f}",
            *(f"{s:.1f}" for s in r["seconds"]),
            f"{r['seconds'][1] / r['seconds'][0]:.0f}×",
            "–" if options.quick else "yes" if met else "NOT MET",
        )
    screen = console()
    screen.print(table)
    if not options.quick:
        screen.print(
            f"Largest over all parameters; targets: {MEANS} sd, {100 * DEVIATIONS:.0f} %, ESS ≥ {ESS}", markup=False
        )
    return missed + failed
