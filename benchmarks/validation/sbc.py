"""Simulation-based calibration: parameters from the prior, data from them, and the rank of the truth among the posterior's draws.

Where the posterior is right, the rank of any function of parameters and data is uniform (Talts, Betancourt, Simpson, Vehtari & Gelman
2018; functions that look at the data see more faults: Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari 2023).
Functions here do not depend on labels. κ₀ = 0.5 and the spread of the hierarchical means make components overlap. Uniformity is
tested by the whole empirical distribution at once (Säilynoja, Bürkner & Vehtari 2022).

Two faults are sown, and must be seen: data from a prior with two degrees of freedom more, and draws of a posterior that lacks the
Jacobian of the logarithms on the diagonal (the right draws, resampled).
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import binom

from benchmarks.validation.runs import Options, collect, console

N_ROWS, D = 40, 2
FAMILIES = ("conjugate", "hierarchical")
STRUCTURES = ("full", "tied", "diag", "spherical")
COMPONENTS = (1, 2, 3)
CELLS = [(family, kind, K) for family in FAMILIES for kind in STRUCTURES for K in COMPONENTS]
FAULTS = ("degrees of freedom", "Jacobian")
FAULT_CELL = ("conjugate", "full", 2)
FAULT_TIMES = 4
"""As many simulations, against those of a cell, are made with a fault: both are small ones."""

POINTS = np.array([[0.0, 0.0], [2.0, 1.0], [-1.5, 2.5]])
QUANTITIES = ("log-likelihood", *(f"log density at ({x:g}, {y:g})" for x, y in POINTS), "largest weight", "entropy")
RANKS = 100
"""Values that a rank can take: one more than the draws that are kept, far apart, of each posterior."""

DATA_SETS, FULL_DATA_SETS, QUICK_DATA_SETS = 100, 1000, 4
DRAWS = 300
UNIFORM, SEEN = 0.01, 0.001
"""Smallest p-value of all, times the number of tests, that counts as uniform; largest of a fault that counts as seen."""


def prior_of(family: str, K: int) -> Any:
    """A prior with every value given."""
    from bayesgmm import ConjugatePrior, HierarchicalPrior

    X = np.zeros((K + 2, D))
    if family == "conjugate":
        return ConjugatePrior(2.0, np.zeros(D), 0.5, D + 4.0, 2 * np.eye(D)).resolve(X, K)
    return HierarchicalPrior(2.0, np.zeros(D), 4 * np.ones(D), 3.5, 2.0, np.ones(D)).resolve(X, K)


def quantities(X: np.ndarray, weights: np.ndarray, means: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Functions (S, Q) of parameter sets and data."""
    from bayesgmm.core import kernel
    from bayesgmm.core.parameters import MixtureParameters

    log_likelihood = kernel.pointwise_log_likelihood(X, weights, means, factors).sum(axis=1)
    at_points = kernel.pointwise_log_likelihood(POINTS, weights, means, factors)
    entropy = []
    for each in zip(weights, means, factors, strict=True):
        r = kernel.responsibilities(X, MixtureParameters(*map(np.ascontiguousarray, each)))[0]
        entropy.append(-np.sum(r * np.log(np.maximum(r, 1e-300))))
    return np.column_stack([log_likelihood, at_points, weights.max(axis=1), entropy])


def one_simulation(
    family: str, kind_name: str, K: int, fault: str, index: int, *, draws: int, seed: int
) -> dict[str, Any]:
    """Ranks of the truth for one data set."""
    from dataclasses import replace

    from bayesgmm import BayesianGaussianMixture
    from bayesgmm.core.covariance import structure
    from bayesgmm.core.parameters import factors_from_covariances

    key = [FAMILIES.index(family), STRUCTURES.index(kind_name), K, index]
    rng = np.random.default_rng([seed, *key])
    prior, kind = prior_of(family, K), structure(kind_name)
    from_prior = prior
    if fault == "degrees of freedom":
        from_prior = replace(prior, degrees_of_freedom=prior.degrees_of_freedom + 2)
    weights, means, packed = from_prior.draw(rng, 1, kind_name)[:3]
    matrices = kind.expand(packed[0], K, D)
    own = rng.choice(K, N_ROWS, p=weights[0])
    noise = rng.standard_normal((N_ROWS, D))
    X = means[0][own] + np.einsum("nij,nj->ni", np.linalg.cholesky(matrices)[own], noise)
    estimator = BayesianGaussianMixture(
        K,
        covariance_type=kind_name,
        prior=prior,
        draws=draws,
        chains=2,
        target_ess=RANKS,
        max_draws=8 * draws,
        random_state=index,
        progressbar=False,
    )
    with warnings.catch_warnings():
        # What the diagnostics say is counted.
        warnings.simplefilter("ignore", UserWarning)
        fit = estimator.fit(X)
    sets = fit._draws.flat()
    kept = np.linspace(0, len(sets[0]) - 1, RANKS - 1).astype(int)
    if fault == "Jacobian":
        diagonal = np.diagonal(np.linalg.solve(factors_from_covariances(prior.scale), sets[2]), axis1=-2, axis2=-1)
        log_w = -2 * np.log(diagonal).sum(axis=(1, 2))
        w = np.exp(log_w - log_w.max())
        kept = rng.choice(len(w), RANKS - 1, p=w / w.sum())
    posterior = quantities(X, *(np.ascontiguousarray(part[kept]) for part in sets))
    truth = quantities(X, weights, means, factors_from_covariances(matrices)[None])[0]
    ties = rng.random(posterior.shape) < 0.5
    ranks = np.sum((posterior < truth) | ((posterior == truth) & ties), axis=0)
    return {"ranks": ranks.tolist(), "content": bool(fit.diagnostics_.ok)}


def lowest_probability(ranks: np.ndarray) -> float:
    """Smallest two-sided binomial probability of the empirical distribution at any place."""
    n, places = len(ranks), np.arange(1, RANKS) / RANKS
    counts = np.searchsorted(np.sort(ranks), np.arange(1, RANKS), side="left")
    low, high = binom.cdf(counts, n, places), binom.sf(counts - 1, n, places)
    return float(min(1.0, 2 * np.min(np.minimum(low, high))))


@lru_cache
def under_uniformity(n: int, simulations: int = 4000) -> np.ndarray:
    """The same of uniform ranks, sorted."""
    rng = np.random.default_rng(0)
    return np.sort([lowest_probability(rng.integers(0, RANKS, n)) for _ in range(simulations)])


def p_value(ranks: np.ndarray) -> float:
    """Probability of ranks at least as uneven, if they are uniform."""
    reference = under_uniformity(len(ranks))
    at = np.searchsorted(reference, lowest_probability(ranks) * (1 + 1e-9), side="right")
    return float((1 + at) / (1 + len(reference)))


def report(results: dict[Any, dict[str, Any]], judged: bool) -> int:
    """Print the table; return the number of targets missed."""
    table = Table(
        title=f"Simulation-based calibration: {N_ROWS} rows, {D} features, NUTS; ranks among {RANKS - 1} draws"
    )
    for heading in ("prior", "structure", "K", "fault", "simulations", "flagged", "smallest p", "of", ""):
        table.add_column(heading, justify="left" if heading in ("prior", "structure", "fault", "of", "") else "right")
    found: dict[Any, tuple[int, int, list[tuple[float, str]]]] = {}
    for cell in dict.fromkeys(key[:4] for key in results):
        own = [r for key, r in results.items() if key[:4] == cell]
        ranks = np.array([r["ranks"] for r in own])
        tested = [q for q in range(len(QUANTITIES)) if cell[2] > 1 or q < 1 + len(POINTS)]
        p = [(p_value(ranks[:, q]), QUANTITIES[q]) for q in tested]
        found[cell] = len(own), sum(not r["content"] for r in own), p
    tests = sum(len(p) for cell, (_, _, p) in found.items() if not cell[3])
    missed = 0
    for cell, (n, flagged, p) in found.items():
        smallest, name = min(p)
        right = smallest < SEEN if cell[3] else smallest * tests > UNIFORM
        missed += judged and not right
        word = ("seen" if right else "NOT SEEN") if cell[3] else ("uniform" if right else "NOT UNIFORM")
        table.add_row(
            *map(str, cell[:3]), cell[3], str(n), str(flagged), f"{smallest:.3g}", name, word if judged else "–"
        )
    screen = console()
    screen.print(table)
    every = [value for cell, (_, _, p) in found.items() if not cell[3] for value, _ in p]
    low = sum(value < 0.05 for value in every)
    screen.print(
        f"Without a fault {low} of {len(every)} p-values lie below 0.05; about {0.05 * len(every):.0f} would by chance."
    )
    screen.print("flagged: fits whose diagnostics were not content; they count all the same.")
    return missed


def draw_figure(results: dict[Any, dict[str, Any]], path: Path) -> None:
    """Empirical less uniform distribution of every quantity, a panel a cell, with the pointwise 99 % band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = list(dict.fromkeys(key[:4] for key in results))
    columns = 6
    figure, axes = plt.subplots(
        -(-len(cells) // columns), columns, figsize=(14, 11), sharex=True, sharey=True, squeeze=False
    )
    places = np.arange(1, RANKS) / RANKS
    for ax in axes.flat[len(cells) :]:
        ax.axis("off")
    for ax, cell in zip(axes.flat, cells, strict=False):
        ranks = np.array([r["ranks"] for key, r in results.items() if key[:4] == cell])
        n = len(ranks)
        low, high = (binom.ppf(end, n, places) / n - places for end in (0.005, 0.995))
        ax.fill_between(places, low, high, color="0.88", linewidth=0)
        for q in range(len(QUANTITIES) if cell[2] > 1 else 1 + len(POINTS)):
            counts = np.searchsorted(np.sort(ranks[:, q]), np.arange(1, RANKS), side="left")
            ax.plot(places, counts / n - places, linewidth=0.9, label=QUANTITIES[q])
        ax.set_title(" ".join(map(str, cell[:3])) + (f"\nfault: {cell[3]}" if cell[3] else ""), fontsize=8)
    figure.supxlabel("rank / 100")
    figure.supylabel("empirical less uniform distribution")
    handles, labels = axes.flat[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def run(options: Options) -> int:
    """Run the study; return the number of targets missed and of simulations that failed."""
    n = options.number_of(DATA_SETS, QUICK_DATA_SETS, FULL_DATA_SETS)
    settings = {"draws": options.draws or DRAWS, "seed": options.seed}
    cells = [(*cell, "") for cell in CELLS] + [(*FAULT_CELL, fault) for fault in FAULTS]
    keys = [(*cell, index) for index in range(FAULT_TIMES * n) for cell in cells if index < n or cell[-1]]
    results, failed = collect("sbc", one_simulation, keys, settings, options)
    if options.out is not None and results:
        draw_figure(results, options.out.with_name("sbc.png"))
    return report(results, judged=not options.quick) + failed
