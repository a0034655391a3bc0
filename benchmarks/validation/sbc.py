"""Simulation-based calibration: parameters from the prior, data from them, and the rank of the truth among the posterior's draws.

Where the posterior is right, the rank of any function of parameters and data is uniform (Talts, Betancourt, Simpson, Vehtari & Gelman
2018; functions that look at the data see more faults: Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari 2023).
Functions here do not depend on labels. Uniformity is tested by the whole empirical distribution at once, and the figure's bands hold
the whole of it (Säilynoja, Bürkner & Vehtari 2022).

Every value of every prior is given beforehand. Under the conjugate prior κ₀ = 0.5 makes components overlap, so that a row says little of
whose it is; κ₀ = 0.01 puts them ten standard deviations apart, so that components are empty or alone with their rows. The hierarchical
and the separation prior have means that overlap. Under the separation prior D = 3: at D = 2 the correlations are one number, and
LKJ's shapes cannot be wrong.

Faults are sown, and must be seen. Conjugate prior: data from one with two degrees of freedom more; draws of a posterior that lacks the
Jacobian of the logarithms on the diagonal (the right draws, resampled). Separation prior: the same without the Jacobian of the log
standard deviations; data from a Gamma of another shape; an LKJ whose determinant lacks its exponent.
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

N_ROWS = 40
SEPARATION = {
    "lognormal": (1.0, 0.5),
    "halfnormal": (1.5, None),
    "gamma": (0.5, 2.5),
    "inversegamma": (2.0, 3.0),
}
"""Families of the standard deviations, with their scale and shape."""

FAMILIES = ("conjugate", "hierarchical", "conjugate, apart", *SEPARATION)
STRUCTURES = ("full", "tied", "diag", "spherical")
COMPONENTS = (1, 2, 3)
FULL_CELLS = [(family, kind, K) for family in FAMILIES for kind in STRUCTURES for K in COMPONENTS]
_LATIN = [(list(SEPARATION)[(i + K) % 4], kind, K) for i, kind in enumerate(STRUCTURES) for K in COMPONENTS]
"""Every structure with every K, and every family with each structure but one and with each K."""

CELLS = [
    cell
    for cell in FULL_CELLS
    if cell[0] in ("conjugate", "hierarchical")
    or (cell[0] == "conjugate, apart" and (cell[1] == "full" or cell[2] == 2))
    or (cell[0] in SEPARATION and (cell in _LATIN or cell[1:] == ("full", 2)))
]
FAULTS = (
    ("conjugate", "full", 2, "degrees of freedom"),
    ("conjugate", "full", 2, "Jacobian"),
    ("lognormal", "full", 2, "Jacobian"),
    ("gamma", "full", 2, "shape"),
    ("lognormal", "full", 2, "LKJ"),
)

POINTS = np.array([[0.0, 0.0, 0.0], [2.0, 1.0, -1.0], [-1.5, 2.5, 1.0]])
QUANTITIES = (
    "log-likelihood",
    *(f"log density at point {i}" for i in (1, 2, 3)),
    "log determinant",
    "log prior",
    "largest weight",
    "entropy",
    "correlations",
)
"""The log determinant is that of the covariances, averaged over the weights; "correlations" is that of the correlation matrices, summed."""

RANKS = 100
"""Values that a rank can take: one more than the draws that are kept, far apart, of each posterior."""

DATA_SETS, FULL_DATA_SETS, QUICK_DATA_SETS = 100, 1000, 4
DRAWS = 300
UNIFORM, SEEN = 0.01, 0.001
"""Smallest p-value of all, times the number of tests, that counts as uniform; largest of a fault that counts as seen."""


def dimension(family: str) -> int:
    """D."""
    return 3 if family in SEPARATION else 2


def prior_of(family: str, K: int) -> Any:
    """A prior with every value given."""
    from bayesgmm import ConjugatePrior, HierarchicalPrior, SeparationPrior

    D = dimension(family)
    X, zero, one = np.zeros((K + 2, D)), np.zeros(D), np.ones(D)
    if family in SEPARATION:
        scale, shape = SEPARATION[family]
        # EM has a prior of its own, whose scale would otherwise be taken from the data: here none, which have no scale.
        start = ConjugatePrior(1.0, zero, 0.1, D + 2.0, np.eye(D))
        return SeparationPrior(2.0, zero, 2 * one, family, scale * one, shape, eta=2.0, em_prior=start).resolve(X, K)
    if family == "hierarchical":
        return HierarchicalPrior(2.0, zero, 4 * one, 3.5, 2.0, one).resolve(X, K)
    kappa = 0.5 if family == "conjugate" else 0.01
    return ConjugatePrior(2.0, zero, kappa, D + 4.0, 2 * np.eye(D)).resolve(X, K)


def quantities(
    X: np.ndarray, weights: np.ndarray, means: np.ndarray, factors: np.ndarray, prior: Any, kind_name: str
) -> np.ndarray:
    """Functions (S, Q) of parameter sets and data."""
    from bayesgmm.core import kernel
    from bayesgmm.core.parameters import MixtureParameters
    from bayesgmm.core.separation import deviations_from_factors

    log_likelihood = kernel.pointwise_log_likelihood(X, weights, means, factors).sum(axis=1)
    points = np.ascontiguousarray(POINTS[:, : X.shape[1]])
    at_points = kernel.pointwise_log_likelihood(points, weights, means, factors)
    each = -2 * np.log(np.diagonal(factors, axis1=2, axis2=3)).sum(axis=2)
    log_det = np.sum(weights * each, axis=1)
    correlations = np.sum(each - 2 * np.log(deviations_from_factors(factors)).sum(axis=2), axis=1)
    log_prior = prior.log_density_from_factors(weights, means, factors, kind_name)
    entropy = []
    for each in zip(weights, means, factors, strict=True):
        r = kernel.responsibilities(X, MixtureParameters(*map(np.ascontiguousarray, each)))[0]
        entropy.append(-np.sum(r * np.log(np.maximum(r, 1e-300))))
    largest = weights.max(axis=1)
    return np.column_stack([log_likelihood, at_points, log_det, log_prior, largest, entropy, correlations])


def tested(kind_name: str, K: int) -> list[int]:
    """Quantities that can vary."""
    fixed = {"largest weight", "entropy"} if K == 1 else set()
    fixed |= {"correlations"} if kind_name in ("diag", "spherical") else set()
    return [q for q, name in enumerate(QUANTITIES) if name not in fixed]


def faulty_prior(prior: Any, fault: str) -> Any:
    """The prior that data come from."""
    from dataclasses import replace

    if fault == "degrees of freedom":
        return replace(prior, degrees_of_freedom=prior.degrees_of_freedom + 2)
    if fault == "shape":
        return replace(prior, deviation_shape=prior.deviation_shape + 1)
    return prior


def log_fault(prior: Any, factors: np.ndarray, fault: str) -> np.ndarray:
    """Log of the density that a fault leaves, against the right one: what draws are resampled by."""
    from bayesgmm.core.parameters import factors_from_covariances
    from bayesgmm.core.separation import deviations_from_factors

    if not hasattr(prior, "deviation_family"):
        diagonal = np.diagonal(np.linalg.solve(factors_from_covariances(prior.scale), factors), axis1=-2, axis2=-1)
        return np.asarray(-2 * np.log(diagonal).sum(axis=(1, 2)))
    log_sigma = np.log(deviations_from_factors(factors)).sum(axis=2)
    if fault == "Jacobian":
        return np.asarray(-log_sigma.sum(axis=1))
    log_det = -2 * np.log(np.diagonal(factors, axis1=2, axis2=3)).sum(axis=2) - 2 * log_sigma
    return np.asarray((1 - prior.eta) * log_det.sum(axis=1))


def one_simulation(
    family: str, kind_name: str, K: int, fault: str, index: int, *, draws: int, seed: int, quantities_: int
) -> dict[str, Any]:
    """Ranks of the truth for one data set."""
    from bayesgmm import BayesianGaussianMixture
    from bayesgmm.core.covariance import structure
    from bayesgmm.core.parameters import factors_from_covariances

    key = [FAMILIES.index(family), STRUCTURES.index(kind_name), K, index]
    rng = np.random.default_rng([seed, *key])
    prior, kind, D = prior_of(family, K), structure(kind_name), dimension(family)
    weights, means, packed = faulty_prior(prior, fault).draw(rng, 1, kind_name)[:3]
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
        n_init=3,
        target_ess=RANKS,
        max_draws=2 * draws,
        random_state=index,
        cores=1,
        progressbar=False,
    )
    with warnings.catch_warnings():
        # What the diagnostics say is counted.
        warnings.simplefilter("ignore", UserWarning)
        fit = estimator.fit(X)
    sets = fit._draws.flat()
    kept = np.linspace(0, len(sets[0]) - 1, RANKS - 1).astype(int)
    if fault in ("Jacobian", "LKJ"):
        log_w = log_fault(prior, sets[2], fault)
        w = np.exp(log_w - log_w.max())
        kept = rng.choice(len(w), RANKS - 1, p=w / w.sum())
    posterior = quantities(X, *(np.ascontiguousarray(part[kept]) for part in sets), prior, kind_name)
    truth = quantities(X, weights, means, factors_from_covariances(matrices)[None], prior, kind_name)[0]
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
    table = Table(title=f"Simulation-based calibration: {N_ROWS} rows, NUTS; ranks among {RANKS - 1} draws")
    for heading in ("prior", "structure", "K", "fault", "simulations", "flagged", "smallest p", "of", ""):
        table.add_column(heading, justify="left" if heading in ("prior", "structure", "fault", "of", "") else "right")
    found: dict[Any, tuple[int, int, list[tuple[float, str]]]] = {}
    for cell in dict.fromkeys(key[:4] for key in results):
        own = [r for key, r in results.items() if key[:4] == cell]
        ranks = np.array([r["ranks"] for r in own])
        p = [(p_value(ranks[:, q]), QUANTITIES[q]) for q in tested(*cell[1:3])]
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


def band(n: int, prob: float = 0.99) -> tuple[np.ndarray, np.ndarray]:
    """Ends at every place of a band that holds the whole empirical distribution of n uniform ranks with this probability."""
    level = float(np.quantile(under_uniformity(n), 1 - prob))
    places = np.arange(1, RANKS) / RANKS
    low, high = (binom.ppf(end, n, places) / n for end in (level / 2, 1 - level / 2))
    return low, high


def draw_figure(results: dict[Any, dict[str, Any]], path: Path) -> None:
    """Empirical less uniform distribution of every quantity, a panel a cell, with simultaneous 99 % bands; faults last."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from bayesgmm.plots.style import COLOURS

    colours = (*COLOURS, "#000000")
    cells = list(dict.fromkeys(key[:4] for key in results))
    columns = [(kind, K) for kind in STRUCTURES for K in COMPONENTS]
    families = [family for family in FAMILIES if any(cell[0] == family for cell in cells)]
    faults = [cell for cell in cells if cell[3]]
    n_rows = len(families) + bool(faults)
    figure, axes = plt.subplots(
        n_rows, len(columns), figsize=(19, 0.8 + 1.75 * n_rows), sharex=True, sharey=True, squeeze=False
    )
    places = np.arange(1, RANKS) / RANKS
    for ax in axes.flat:
        ax.axis("off")
    for cell in cells:
        at = (len(families), faults.index(cell)) if cell[3] else (families.index(cell[0]), columns.index(cell[1:3]))
        ax = axes[at]
        ax.axis("on")
        ranks = np.array([r["ranks"] for key, r in results.items() if key[:4] == cell])
        low, high = band(len(ranks))
        ax.fill_between(places, low - places, high - places, color="0.88", linewidth=0)
        for q in tested(*cell[1:3]):
            counts = np.searchsorted(np.sort(ranks[:, q]), np.arange(1, RANKS), side="left")
            ax.plot(places, counts / len(ranks) - places, linewidth=0.8, color=colours[q])
        title = f"{cell[1]}, K = {cell[2]}"
        ax.set_title(f"{cell[0]}, {title}\nfault: {cell[3]}" if cell[3] else title, fontsize=7.5)
        ax.tick_params(labelsize=7)
        if not cell[3] and at[1] == min(columns.index(c[1:3]) for c in cells if c[0] == cell[0] and not c[3]):
            ax.set_ylabel(cell[0], fontsize=9)
    handles = [plt.Line2D([], [], color=colours[q], label=name) for q, name in enumerate(QUANTITIES)]
    figure.legend(handles=handles, loc="lower right", fontsize=8, ncols=2, frameon=False)
    figure.supxlabel(
        "rank / 100; lines: empirical less uniform distribution; grey: 99 % of uniform ranks lie within, as a whole",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def run(options: Options) -> int:
    """Run the study; return the number of targets missed and of simulations that failed."""
    n = options.number_of(DATA_SETS, QUICK_DATA_SETS, FULL_DATA_SETS)
    settings = {"draws": options.draws or DRAWS, "seed": options.seed, "quantities_": len(QUANTITIES)}
    cells = [(*cell, "") for cell in (FULL_CELLS if options.full else CELLS)] + list(FAULTS)
    keys = [(*cell, index) for index in range(n) for cell in cells]
    results, failed = collect("sbc", one_simulation, keys, settings, options)
    if results:
        options.draw("sbc", lambda path: draw_figure(results, path))
    return report(results, judged=not options.quick) + failed
