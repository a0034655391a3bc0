"""How often each criterion picks the right number of components, and what its choice costs in prediction.

A data set has N = 500 rows of a mixture of K = 1 … 5 components in D = 1, 2 or 5 features: weights from a Dirichlet(20, …, 20), unit
variances, moderate correlations of the components' own. Every centre is put at a given distance from one of the others, in a
random direction, and no pair is nearer: 6 standard deviations ("separated") or 2 ("overlapping"; two equal components in one feature
then just have a single hump; K = 1 has no neighbours and is counted once). Each data set has a truth of its own.

``select`` fits K from 1 to two more than the truth with full covariances: EM, and the posterior under ``HierarchicalPrior()``. For the
model that a criterion picks:

- right: its K is that of the truth;
- loss: the Kullback–Leibler divergence from the truth to the prediction, nats a row, over 10,000 fresh rows of the truth. The prediction is
  EM's density for EM's criteria, the posterior predictive density for the posterior's;
- excess: the loss less that of the true K under the same kind of fit, on the same rows. A wrong K that predicts as well is no
  error: its excess is 0 or below.

Errors in brackets are one standard error over data sets, within the cells (K, D) where these hold two or more. "LOO, simplest as good" is
the model of fewest parameters within 4 nats or 2 errors of the best, which ``summary()`` names. Beside them the choice of
mclust's kind: the smallest BIC of scikit-learn's ``GaussianMixture(n_init=5)`` over the same K and all four structures.

Chains have 250 draws, or 500 where 250 do not bring 100 effective ones: enough to choose by, and models with components to spare, whose
posteriors are hard to walk through, do not take all the time; nor are rows sampled again that moment matching cannot leave out. By NUTS
a data set takes 3 to 20 s of one core, the 20 data sets a cell (540 in all) about an hour on two. With ``--out`` a study that was
stopped goes on, and a small one grows into a large one.
``--method laplace`` takes a tenth, but its draws cannot be trusted where components are superfluous (k-hat is high), and WAIC and LOO then
pick too many; ``--method em`` has EM's criteria alone, in two seconds a data set.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from benchmarks.measure import Truth
from benchmarks.validation.runs import Options, collect, console

KINDS = {"separated": 6.0, "overlapping": 2.0}
DIMENSIONS = (1, 2, 5)
COMPONENTS = (1, 2, 3, 4, 5)
BEYOND = 2
"""Candidates beyond the true K."""

N_ROWS = 500
N_FRESH = 10_000
DATA_SETS, QUICK_DATA_SETS, FULL_DATA_SETS = 1, 2, 20
DRAWS, QUICK_DRAWS = 250, 100
TARGET_ESS = 100
QUICK_CELLS = (("separated", 1, 2), ("separated", 2, 2), ("overlapping", 1, 2))
PEER_STRUCTURES = ("full", "tied", "diag", "spherical")
PEER_STARTS = 5
CRITERIA = {
    "peer": ("BIC, scikit-learn", "em"),
    "bic": ("BIC", "em"),
    "aic": ("AIC", "em"),
    "aicc": ("AICc", "em"),
    "icl": ("ICL", "em"),
    "waic": ("WAIC", "posterior"),
    "loo": ("LOO", "posterior"),
    "loo_simplest": ("LOO, simplest as good", "posterior"),
    "evidence": ("evidence", "posterior"),
    "true_em": ("(the true K)", "em"),
    "true_posterior": ("(the true K)", "posterior"),
}
"""Title, and the fit that predicts."""


def cells() -> list[tuple[str, int, int]]:
    """Kind, D and K of each cell."""
    every = [(kind, D, K) for kind in KINDS for D in DIMENSIONS for K in COMPONENTS]
    return [cell for cell in every if cell[0] == "separated" or cell[2] > 1]


def centres(n_components: int, n_features: int, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Centres (K, D): each new one `distance` away from one that is there, in a random direction, and no nearer to any."""
    placed = np.zeros((1, n_features))
    while len(placed) < n_components:
        direction = rng.standard_normal(n_features)
        new = placed[rng.integers(len(placed))] + distance * direction / np.linalg.norm(direction)
        # Rounding must not refuse the neighbour itself.
        if np.linalg.norm(placed - new, axis=1).min() > distance * (1 - 1e-9):
            placed = np.vstack([placed, new])
    return placed


def draw_truth(kind: str, n_features: int, n_components: int, rng: np.random.Generator) -> Truth:
    """A mixture of this kind: weights (K,), means (K, D), covariances (K, D, D) with unit diagonals."""
    weights = rng.dirichlet(np.full(n_components, 20.0))
    means = centres(n_components, n_features, KINDS[kind], rng)
    shape = (n_components, n_features, n_features)
    mixing = np.eye(n_features) + 0.5 / np.sqrt(n_features) * rng.standard_normal(shape)
    mixing /= np.linalg.norm(mixing, axis=2, keepdims=True)
    return Truth(weights, means, mixing @ np.swapaxes(mixing, 1, 2))


def sample(truth: Truth, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Rows (N, D) of the truth."""
    labels = rng.choice(len(truth.weights), size=n_rows, p=truth.weights)
    noise = rng.standard_normal((n_rows, truth.means.shape[1]))
    return truth.means[labels] + np.einsum("nij,nj->ni", np.linalg.cholesky(truth.covariances)[labels], noise)


def log_density(truth: Truth, X: np.ndarray) -> np.ndarray:
    """Log density of the truth, (N,)."""
    terms = []
    for weight, mean, covariance in zip(truth.weights, truth.means, truth.covariances):
        root = np.linalg.cholesky(covariance)
        z = solve_triangular(root, (X - mean).T, lower=True)
        log_norm = np.log(weight) - np.log(np.diag(root)).sum() - 0.5 * len(mean) * np.log(2 * np.pi)
        terms.append(log_norm - 0.5 * (z * z).sum(axis=0))
    return np.asarray(logsumexp(terms, axis=0))


def peer_choice(X: np.ndarray, candidates: int, seed: int) -> tuple[Any, float]:
    """scikit-learn's mixture of the smallest BIC over K and structures."""
    from sklearn.mixture import GaussianMixture

    fits = [
        GaussianMixture(K, covariance_type=kind, n_init=PEER_STARTS, random_state=seed).fit(X)
        for kind in PEER_STRUCTURES
        for K in range(1, candidates + 1)
    ]
    bics = [fit.bic(X) for fit in fits]
    best = int(np.argmin(bics))
    return fits[best], float(bics[best])


def simplest_as_good(table: Any) -> int | None:
    """K of the fewest parameters within 4 nats or 2 errors of the best LOO."""
    judged = table.dropna(subset=["elpd_diff"])
    gap, error = -judged["elpd_diff"].astype(float), judged["dse"].astype(float)
    near = judged[(gap < 4) | (gap < 2 * error) | (gap == 0)]
    return int(near["n_parameters"].idxmin()[1]) if len(near) else None


def one_data_set(
    kind: str,
    n_features: int,
    n_components: int,
    index: int,
    *,
    method: str,
    draws: int,
    beyond: int,
    target_ess: int,
    seed: int,
    **_: Any,
) -> dict[str, Any]:
    """Simulate, select, and measure the losses: K by criterion, losses by K − 1 (None where there is no fit)."""
    from bayesgmm import HierarchicalPrior, select

    begin = time.process_time()
    candidates = n_components + beyond
    rng = np.random.default_rng([seed, list(KINDS).index(kind), n_features, n_components, index])
    truth = draw_truth(kind, n_features, n_components, rng)
    X, fresh = sample(truth, N_ROWS, rng), sample(truth, N_FRESH, rng)
    best = log_density(truth, fresh)

    def loss(score: Callable[[np.ndarray], np.ndarray]) -> float:
        return float(np.mean(best - score(fresh)))

    options = {} if method == "em" else {"draws": draws, "max_draws": 2 * draws, "target_ess": target_ess, "cores": 1}
    with warnings.catch_warnings():
        # What is wrong with a fit stands in its row; scikit-learn's stop at max_iter.
        warnings.simplefilter("ignore")
        found = select(
            X,
            range(1, candidates + 1),
            "full",
            method=method,
            prior=HierarchicalPrior(),
            n_jobs=1,
            random_state=index,
            sensitivity=False,
            loo_refits=0,
            progressbar=False,
            **options,
        )
        peer, peer_bic = peer_choice(X, candidates, index)
        keys = [("full", K) for K in range(1, candidates + 1)]
        em = [loss(found.em_fits[key].score_samples) if key in found.em_fits else None for key in keys]
        posterior = [
            loss(found.fits[key].score_samples) if method != "em" and key in found.fits else None for key in keys
        ]
    picks = {name: key[1] for name, key in found.picks.items()}
    if method != "em":
        simplest = simplest_as_good(found.table)
        picks |= {} if simplest is None else {"loo_simplest": simplest}
    columns = ("bic", "elpd_loo", "elpd_diff", "dse", "log_evidence", "log_evidence_se", "max_rhat")
    return {
        "picks": picks,
        "losses": {"em": em, "posterior": posterior},
        "peer": {
            "K": int(peer.n_components),
            "structure": peer.covariance_type,
            "bic": peer_bic,
            "loss": loss(peer.score_samples),
        },
        "flags": [str(flags) for flags in found.table["flags"]],
        "table": {
            name: [None if np.isnan(v) else float(v) for v in found.table[name].to_numpy(float, na_value=np.nan)]
            for name in columns
        },
        "seconds": time.process_time() - begin,
    }


def choice(name: str, key: tuple[Any, ...], result: dict[str, Any]) -> tuple[int, float, float] | None:
    """K that a criterion picks for a data set, its loss and its excess over the true K; None where it has no value."""
    true_K, fit = key[2], CRITERIA[name][1]
    losses = result["losses"][fit]
    if name == "peer":
        K, loss = result["peer"]["K"], result["peer"]["loss"]
    else:
        K = true_K if name.startswith("true") else result["picks"].get(name)
        loss = None if K is None else losses[K - 1]
    reference = losses[true_K - 1]
    return None if loss is None or reference is None else (K, loss, loss - reference)


def mean_and_error(values: np.ndarray, cell: list[tuple[int, int]]) -> tuple[float, float]:
    """Mean over data sets and its standard error: within the cells where each has two data sets, else over all."""
    counts = {c: cell.count(c) for c in cell}
    if min(counts.values()) > 1:
        member = {c: np.array([c == other for other in cell]) for c in counts}
        variance = sum(counts[c] * values[member[c]].var(ddof=1) for c in counts)
        return float(values.mean()), float(np.sqrt(variance) / len(values))
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def kind_table(kind: str, results: dict[tuple[Any, ...], dict[str, Any]], method: str) -> Table | None:
    """Shares of right K by D and by K, and losses, one row a criterion."""
    own = {key: result for key, result in results.items() if key[0] == kind}
    if not own:
        return None
    dimensions, components = sorted({key[1] for key in own}), sorted({key[2] for key in own})
    title = f"{kind} ({KINDS[kind]:g} sd): {len(own)} data sets; % with the right K; losses in nats a row; posterior by {method}"
    table = Table(title=title, title_justify="left")
    heads = [f"D={D}" for D in dimensions] + [f"K={K}" for K in components]
    for head in ("criterion", "density", *heads, "all", "mean K−true", "loss", "excess over true K"):
        table.add_column(head, justify="left" if head in ("criterion", "density") else "right")
    for name, (words, fit) in CRITERIA.items():
        chosen = {key: choice(name, key, result) for key, result in own.items()}
        found = {key: c for key, c in chosen.items() if c is not None}
        if not found:
            continue
        right = {key: c[0] == key[2] for key, c in found.items()}
        shares = [np.mean([r for key, r in right.items() if key[1] == D] or [np.nan]) for D in dimensions]
        shares += [np.mean([r for key, r in right.items() if key[2] == K] or [np.nan]) for K in components]
        shares.append(np.mean(list(right.values())))
        cell = [(key[1], key[2]) for key in found]
        figures = [mean_and_error(np.array([c[i] for c in found.values()]), cell) for i in (1, 2)]
        texts = [f"{mean:.4f} ({error:.4f})" for mean, error in figures]
        if name.startswith("true"):
            table.add_row(words, fit, *[""] * len(shares), "", texts[0], "")
            continue
        bias = np.mean([c[0] - key[2] for key, c in found.items()])
        left_out = f" [{len(own) - len(found)} without]" if len(found) < len(own) else ""
        table.add_row(words + left_out, fit, *[f"{100 * s:.0f}" for s in shares], f"{bias:+.2f}", *texts)
    return table


def run(options: Options) -> int:
    """Run the study; return the number of data sets that failed. Nothing is judged: the shares are what is asked for."""
    method = options.method or ("laplace" if options.quick else "nuts")
    n_data_sets = options.number_of(DATA_SETS, QUICK_DATA_SETS, FULL_DATA_SETS)
    settings = {
        "method": method,
        "draws": options.draws or (QUICK_DRAWS if options.quick else DRAWS),
        "target_ess": TARGET_ESS,
        "beyond": BEYOND,
        "seed": options.seed,
    }
    wanted = QUICK_CELLS if options.quick else cells()
    keys = [(*cell, i) for kind in KINDS for i in range(n_data_sets) for cell in wanted if cell[0] == kind]
    results, failed = collect("criteria", one_data_set, keys, settings, options)
    screen = console()
    for kind in KINDS:
        table = kind_table(kind, results, method)
        if table is not None:
            screen.print(table)
    if results:
        screen.print(f"{np.mean([r['seconds'] for r in results.values()]):.0f} s of processor time a data set")
    return failed
