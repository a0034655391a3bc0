"""Coverage of 90 % intervals on simulated clusters whose truth is known.

Three Gaussian clusters stand 10 standard deviations apart. In each of 200 data sets per size, 90 % intervals for every
weight, mean and covariance entry are made three ways, and counted where they hold the truth:

- posterior: 5 % to 95 % quantiles of the relabelled draws under the default prior, the components matched to the truth
  by their means;
- EM: estimate ± 1.645 standard errors from the observed information;
- exact: quantiles of the conjugate posterior (same prior) given the true allocation, drawn through scipy. Clusters
  this far apart leave no doubt about the allocation, so the posterior should cover as often as this does; what the two
  share is the prior's doing, and what they do not is the sampler's.

The error beside a figure is one Monte Carlo standard error over data sets, the independent units: the entries of one
data set are correlated. Targets, for the posterior: 85 to 95 %, and from 80 % up at N = 100, D = 5, where the smallest
component has about 20 rows for 20 parameters.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.validation.runs import Options, collect, console

SIZES = ((100, 2), (100, 5), (300, 2), (300, 5))
WEIGHTS = np.array([0.5, 0.3, 0.2])
DISTANCE = 10.0
LEVEL = 0.90
NORMAL_QUANTILE = 1.6449
QUANTITIES = ("weights", "means", "covariances")
SIDES = ("posterior", "em", "exact")
EXACT_DRAWS = 2000
DATA_SETS, QUICK_DATA_SETS, FULL_DATA_SETS = 100, 2, 200
DRAWS = 500
MOST_BLOCKS = 4  # where the effective sample size is not reached: bounds the time of a fit that cannot reach it


def truth(n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (3, D), pairwise 10 apart, and covariances (3, D, D) of unit variance with three kinds of correlation."""
    means = np.zeros((3, n_features))
    if n_features == 2:
        means[:] = DISTANCE * np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
    else:
        means[:, :3] = DISTANCE / np.sqrt(2) * np.eye(3)
    lag = np.abs(np.subtract.outer(np.arange(n_features), np.arange(n_features)))
    covariances = np.stack([np.where(lag == 0, 1.0, 0.5), np.eye(n_features), (-0.5) ** lag])
    return means, covariances


def simulate(n_rows: int, n_features: int, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Data set number `index`: rows (N, D) and the component each came from (N,)."""
    rng = np.random.default_rng([seed, n_rows, n_features, index])
    means, covariances = truth(n_features)
    allocation = rng.choice(3, size=n_rows, p=WEIGHTS)
    factors = np.linalg.cholesky(covariances)
    noise = rng.standard_normal((n_rows, n_features))
    return means[allocation] + np.einsum("nde,ne->nd", factors[allocation], noise), allocation


def match(means: np.ndarray, true_means: np.ndarray) -> np.ndarray:
    """For each true component the fitted one, (3,): the assignment with the least total distance of means."""
    from scipy.optimize import linear_sum_assignment

    distance = np.linalg.norm(true_means[:, None] - means[None], axis=-1)
    return np.asarray(linear_sum_assignment(distance)[1])


def covered(low: dict[str, np.ndarray], high: dict[str, np.ndarray], n_features: int) -> dict[str, float]:
    """Share of entries whose interval holds the truth, by quantity; each covariance's lower triangle once."""
    means, covariances = truth(n_features)
    values = {"weights": WEIGHTS, "means": means, "covariances": covariances}
    inside = {name: (low[name] <= values[name]) & (values[name] <= high[name]) for name in QUANTITIES}
    rows, columns = np.tril_indices(n_features)
    inside["covariances"] = inside["covariances"][:, rows, columns]
    return {name: float(inside[name].mean()) for name in QUANTITIES}


def posterior_coverage(X: np.ndarray, method: str, draws: int, index: int) -> tuple[dict[str, float], bool, Any]:
    """Coverage of the posterior's intervals, whether its diagnostics were content, and the prior as resolved."""
    from bayesgmm import BayesianGaussianMixture

    fitted = BayesianGaussianMixture(
        n_components=3,
        method=method,
        draws=draws,
        max_draws=MOST_BLOCKS * draws,
        random_state=index,
        progressbar=False,
    ).fit(X)
    posterior = fitted.idata_.posterior
    chains = {name: posterior[name].to_numpy() for name in QUANTITIES}
    pooled = {name: value.reshape(-1, *value.shape[2:]) for name, value in chains.items()}
    order = match(np.median(pooled["means"], axis=0), truth(X.shape[1])[0])
    tail = (1 - LEVEL) / 2
    low = {name: np.quantile(value[:, order], tail, axis=0) for name, value in pooled.items()}
    high = {name: np.quantile(value[:, order], 1 - tail, axis=0) for name, value in pooled.items()}
    return covered(low, high, X.shape[1]), bool(fitted.diagnostics_.ok), fitted.prior_


def em_coverage(X: np.ndarray, index: int) -> dict[str, float]:
    """Coverage of EM's estimate ± 1.645 standard errors."""
    from bayesgmm import GaussianMixture

    em = GaussianMixture(n_components=3, random_state=index).fit(X)
    errors = em.standard_errors(X, method="information")
    order = match(em.means_, truth(X.shape[1])[0])
    low, high = {}, {}
    for name in QUANTITIES:
        estimate, error = getattr(em, f"{name}_")[order], np.asarray(getattr(errors, name))[order]
        low[name], high[name] = estimate - NORMAL_QUANTILE * error, estimate + NORMAL_QUANTILE * error
    return covered(low, high, X.shape[1])


def exact_coverage(X: np.ndarray, allocation: np.ndarray, prior: Any, rng: np.random.Generator) -> dict[str, float]:
    """Coverage of the conjugate posterior's intervals given the true allocation."""
    from scipy import stats

    n_features = X.shape[1]
    centre, kappa, scale = np.asarray(prior.mean_prior), float(prior.mean_precision), np.asarray(prior.scale)
    counts = np.bincount(allocation, minlength=3)
    draws = {"weights": rng.dirichlet(np.asarray(prior.weight_concentration) + counts, EXACT_DRAWS)}
    means, covariances = [], []
    for k, count in enumerate(counts):
        rows = X[allocation == k]
        precision = kappa + count
        location = (kappa * centre + rows.sum(axis=0)) / precision
        spread = (rows - centre).T @ (rows - centre) - precision * np.outer(location - centre, location - centre)
        family = stats.invwishart(float(prior.degrees_of_freedom) + count, scale + spread)
        covariances.append(family.rvs(EXACT_DRAWS, random_state=rng))
        factors = np.linalg.cholesky(covariances[-1] / precision)
        means.append(location + np.einsum("sde,se->sd", factors, rng.standard_normal((EXACT_DRAWS, n_features))))
    draws["means"], draws["covariances"] = np.stack(means, axis=1), np.stack(covariances, axis=1)
    tail = (1 - LEVEL) / 2
    low = {name: np.quantile(value, tail, axis=0) for name, value in draws.items()}
    high = {name: np.quantile(value, 1 - tail, axis=0) for name, value in draws.items()}
    return covered(low, high, n_features)


def one_data_set(
    n_rows: int, n_features: int, index: int, *, method: str, draws: int, seed: int, **_: Any
) -> dict[str, Any]:
    """Simulate one data set, fit it, and count."""
    X, allocation = simulate(n_rows, n_features, index, seed)
    with warnings.catch_warnings():
        # The share of fits with a bad verdict is a column of the table; 800 printed warnings are not read.
        warnings.simplefilter("ignore")
        posterior, content, prior = posterior_coverage(X, method, draws, index)
        em = em_coverage(X, index)
    exact = exact_coverage(X, allocation, prior, np.random.default_rng([seed, index]))
    return {"content": content, "posterior": posterior, "em": em, "exact": exact}


def target(n_rows: int, n_features: int) -> tuple[float, float]:
    """Lowest and highest coverage that counts as right."""
    return (0.80, 0.95) if (n_rows, n_features) == (100, 5) else (0.85, 0.95)


def report(results: dict[Any, dict[str, Any]], method: str, judged: bool) -> int:
    """Print the table; return the number of targets missed."""
    table = Table(title=f"Coverage of {LEVEL:.0%} intervals, % (one standard error); posterior by {method}")
    sides = ("posterior", "EM ± 1.645 se", "exact")
    for heading in ("N", "D", "data sets", "flagged", "quantity", *sides, "target of posterior", ""):
        table.add_column(heading, justify="left" if heading in ("quantity", "") else "right", no_wrap=True)
    missed = 0
    for n_rows, n_features in SIZES:
        cell = [r for key, r in results.items() if key[:2] == (n_rows, n_features)]
        if len(cell) < 2:
            continue
        low, high = target(n_rows, n_features)
        for name in QUANTITIES:
            figures = []
            for side in SIDES:
                shares = np.array([r[side][name] for r in cell])
                figures.append((shares.mean(), shares.std(ddof=1) / np.sqrt(len(shares))))
            right = low <= figures[0][0] <= high
            missed += judged and not right
            texts = [f"{100 * mean:.1f} ({100 * error:.1f})" for mean, error in figures]
            flagged = sum(not r["content"] for r in cell)
            head = [str(value) if name == QUANTITIES[0] else "" for value in (n_rows, n_features, len(cell), flagged)]
            verdict = ("reached" if right else "[bold red]missed[/bold red]") if judged else "–"
            table.add_row(*head, name, *texts, f"{low:.0%} to {high:.0%}", verdict)
        table.add_section()
    screen = console()
    screen.print(table)
    screen.print("flagged: fits whose diagnostics were not content; they count all the same.")
    if judged:
        screen.print(f"Targets missed: {missed}.")
    return missed


def run(options: Options) -> int:
    """Run the study; return the number of targets missed and of data sets that failed."""
    method = "laplace" if options.method in (None, "em") else options.method
    n_data_sets = options.number_of(DATA_SETS, QUICK_DATA_SETS, FULL_DATA_SETS)
    settings = {"method": method, "draws": options.draws or DRAWS, "seed": options.seed}
    keys = [(*size, index) for index in range(n_data_sets) for size in SIZES]
    results, failed = collect("coverage", one_data_set, keys, settings, options)
    return report(results, method, judged=not options.quick) + failed
