"""p(K | y) of the galaxies under Richardson & Green's (1997) prior, beside their published values.

Velocities of 82 galaxies (1000 km/s; MASS's values), K = 3 … 8, bridge sampling from 4 × 4000 draws of NUTS; K uniform beforehand.
The published figures come from reversible-jump MCMC with K uniform on 1 … 30, and are set relative to one another over these K.

The posterior has several modes at every K, and NUTS may not travel between them: R-hat of what does not depend on labels, the two
halves' estimates and the notes of the evidence say how far each figure can be trusted. Nothing is judged.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.validation.runs import Options, collect, console

PUBLISHED = {3: 0.061, 4: 0.128, 5: 0.182, 6: 0.199, 7: 0.160, 8: 0.109}
DRAWS, QUICK_DRAWS = 4000, 250
QUICK_COMPONENTS = (3, 4)


def one_fit(K: int, *, draws: int, seed: int, **_: Any) -> dict[str, Any]:
    """Sample with K components; the evidence with what speaks for and against it."""
    from bayesgmm import BayesianGaussianMixture, HierarchicalPrior
    from bayesgmm.datasets import load_galaxies

    begin = time.perf_counter()
    X = np.asarray(load_galaxies(), dtype=float).reshape(-1, 1)
    prior = HierarchicalPrior.richardson_green(X)
    with warnings.catch_warnings():
        # That superfluous components cannot be told apart is known; the diagnostics stand in the table.
        warnings.simplefilter("ignore")
        post = BayesianGaussianMixture(
            K, prior=prior, draws=draws, tune=500, target_ess=0, random_state=seed, progressbar=False
        ).fit(X)
        found = post.log_evidence(random_state=seed)
    invariants = post.diagnostics_.invariants
    return {
        "log_evidence": found.log_evidence,
        "error": found.standard_error,
        "laplace": found.laplace,
        "halves": list(found.halves),
        "converged": bool(found.converged),
        "notes": list(found.notes),
        "r_hat": float(invariants["r_hat"].max()),
        "divergences": int(post.diagnostics_.n_divergent),
        "modes": len(post.modes_),
        "seconds": time.perf_counter() - begin,
    }


def run(options: Options) -> int:
    """Print the table; return the number of fits that failed."""
    from bayesgmm.inference.evidence import posterior_over_components

    components = QUICK_COMPONENTS if options.quick else tuple(PUBLISHED)
    settings = {"draws": options.draws or (QUICK_DRAWS if options.quick else DRAWS), "seed": options.seed}
    # The largest K first: they take longest.
    keys = [(K,) for K in reversed(components)]
    results, failed = collect("galaxies", one_fit, keys, settings, options)
    found = {K: results[(K,)] for K in components if (K,) in results}
    if not found:
        return failed
    evidences = {K: r["log_evidence"] for K, r in found.items()}
    ours = posterior_over_components(evidences, errors={K: r["error"] for K, r in found.items()})
    total = sum(PUBLISHED[K] for K in found)
    table = Table(title=f"Galaxies: p(K | y) over K = {min(found)} … {max(found)}, 4 × {settings['draws']} draws")
    for heading in (
        "K", "log evidence", "halves", "Laplace", "p(K | y)", "published", "R-hat", "divergences", "modes", "converged", "s",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for i, (K, r) in enumerate(found.items()):
        table.add_row(
            str(K),
            f"{r['log_evidence']:.2f} ± {r['error']:.2f}",
            " / ".join(f"{half:.2f}" for half in r["halves"]),
            f"{r['laplace']:.2f}",
            f"{ours.probabilities[i]:.3f} ± {ours.standard_errors[i]:.3f}",
            f"{PUBLISHED[K] / total:.3f}",
            f"{r['r_hat']:.3f}",
            str(r["divergences"]),
            str(r["modes"]),
            "yes" if r["converged"] else "no",
            f"{r['seconds']:.0f}",
        )
    screen = console()
    screen.print(table)
    for K, r in found.items():
        for note in r["notes"]:
            screen.print(f"K = {K}: {note}", markup=False)
    return failed
