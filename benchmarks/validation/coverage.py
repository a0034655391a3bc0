"""Coverage of intervals for weights, means and covariances on simulated clusters whose truth is known: posteriors beside EM.

Three Gaussian clusters of weights 0.5, 0.3 and 0.2 stand 10 standard deviations apart. In every data set intervals of four levels for
every weight, mean, variance and covariance are made seven ways, and counted where they hold the truth:

- NUTS, Laplace: quantiles of the relabelled draws under the default prior, the components matched to the truth by their means;
- EM, information: ``GaussianMixture.intervals``, from the observed information with Student's t, χ² and MOVER;
- EM ± z se: what a reader does by hand with the same standard errors;
- bootstrap, pivotal and percentile: of EM's refits to resampled rows;
- exact: quantiles of the conjugate posterior (same prior) given the true allocation, drawn through scipy. Clusters this far apart leave
  no doubt about the allocation, so a posterior should cover as often as this does; what the two share is the prior's doing, and what
  they do not is the sampler's.

The error beside a figure is one Monte Carlo standard error over data sets, the independent units: the entries of one data set are
correlated. Beside coverage stands the width: intervals of 90 %, the geometric mean over entries and data sets, against the exact side's.

Targets: 90 % intervals of NUTS, Laplace and EM by information cover 85 to 95 %, the posteriors from 80 % up at N = 100, D = 5, where the
smallest component has about 20 rows for 20 parameters. Bootstrap and EM ± z se are there to be compared with.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.validation.runs import Options, collect, console

SIZES = ((50, 2), (200, 2), (1000, 2), (100, 5))
FULL_SIZES = ((50, 2), (100, 2), (200, 2), (300, 2), (1000, 2), (100, 5), (300, 5))
"""Rows and features, in ``make validate`` and in ``make validate-full``."""

DRAWN = ((50, 2), (200, 2), (1000, 2))
"""What the figure shows."""

WEIGHTS = np.array([0.5, 0.3, 0.2])
DISTANCE = 10.0
LEVELS = (0.5, 0.8, 0.9, 0.95)
JUDGED_LEVEL = 0.9
QUANTITIES = ("weights", "means", "variances", "covariances")
SIDES = {
    "nuts": "NUTS",
    "laplace": "Laplace",
    "information": "EM, information",
    "normal": "EM ± z se",
    "pivotal": "bootstrap, pivotal",
    "percentile": "bootstrap, percentile",
    "exact": "exact",
}
JUDGED = ("nuts", "laplace", "information")
EXACT_DRAWS = 4000
RESAMPLES = 399
DATA_SETS, QUICK_DATA_SETS, FULL_DATA_SETS = 100, 2, 1000
DRAWS = 500
MOST_BLOCKS = 4  # where the effective sample size is not reached: bounds the time of a fit that cannot reach it

Limits = dict[str, tuple[np.ndarray, np.ndarray]]


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


def taken_apart(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights (3,), means (3, D), variances (3, D) and covariances (3, pairs) of the first three and covariance matrices."""
    matrices = values["covariances"]
    rows, columns = np.tril_indices(matrices.shape[-1], -1)
    return {
        "weights": values["weights"],
        "means": values["means"],
        "variances": np.diagonal(matrices, axis1=-2, axis2=-1),
        "covariances": matrices[..., rows, columns],
    }


def judged(limits: list[Limits], n_features: int) -> dict[str, list[float]]:
    """By quantity: the share of entries whose interval holds the truth, a level each; then the mean log width at 90 %."""
    means, covariances = truth(n_features)
    values = taken_apart({"weights": WEIGHTS, "means": means, "covariances": covariances})
    out: dict[str, list[float]] = {name: [] for name in QUANTITIES}
    for each in limits:
        low, high = (taken_apart({name: ends[side] for name, ends in each.items()}) for side in (0, 1))
        for name in QUANTITIES:
            out[name].append(float(np.mean((low[name] <= values[name]) & (values[name] <= high[name]))))
    at = LEVELS.index(JUDGED_LEVEL)
    low, high = (taken_apart({name: ends[side] for name, ends in limits[at].items()}) for side in (0, 1))
    for name in QUANTITIES:
        out[name].append(float(np.mean(np.log(high[name] - low[name]))))
    return out


def quantile_limits(draws: dict[str, np.ndarray]) -> list[Limits]:
    """Equal-tailed intervals of draws (S, ...), a level each."""
    return [
        {name: tuple(np.quantile(v, [(1 - level) / 2, (1 + level) / 2], axis=0)) for name, v in draws.items()}
        for level in LEVELS
    ]


NAMES = ("weights", "means", "covariances")


def posterior_limits(X: np.ndarray, method: str, draws: int, index: int) -> tuple[list[Limits], bool, Any]:
    """Limits of the posterior, whether its diagnostics were content, and the prior as resolved."""
    from bayesgmm import BayesianGaussianMixture

    fitted = BayesianGaussianMixture(
        n_components=3,
        method=method,
        draws=draws,
        max_draws=MOST_BLOCKS * draws,
        random_state=index,
        cores=1,
        progressbar=False,
    ).fit(X)
    posterior = fitted.idata_.posterior
    chains = {name: posterior[name].to_numpy() for name in NAMES}
    pooled = {name: value.reshape(-1, *value.shape[2:]) for name, value in chains.items()}
    order = match(np.median(pooled["means"], axis=0), truth(X.shape[1])[0])
    limits = quantile_limits({name: value[:, order] for name, value in pooled.items()})
    return limits, bool(fitted.diagnostics_.ok), fitted.prior_


def em_limits(X: np.ndarray, index: int) -> dict[str, list[Limits]]:
    """Limits of EM: by information, by hand from the same standard errors, and by the bootstrap."""
    from scipy.stats import norm

    from bayesgmm import GaussianMixture
    from bayesgmm.core.intervals import intervals

    em = GaussianMixture(n_components=3, random_state=index).fit(X)
    order = match(em.means_, truth(X.shape[1])[0])
    errors, replicates = em.standard_errors(X), em.bootstrap(X, RESAMPLES)

    def ordered(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> Limits:
        return {name: (found[name][0][order], found[name][1][order]) for name in NAMES}

    def by_hand(z: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        half = {name: z * getattr(errors, name) for name in NAMES}
        return {name: (getattr(em, f"{name}_") - half[name], getattr(em, f"{name}_") + half[name]) for name in NAMES}

    return {
        "information": [ordered(intervals(em._parameters, em.covariances_, errors, level)) for level in LEVELS],
        "normal": [ordered(by_hand(norm.ppf((1 + level) / 2))) for level in LEVELS],
        "pivotal": [ordered(replicates.interval(level, "pivotal")) for level in LEVELS],
        "percentile": [ordered(replicates.interval(level)) for level in LEVELS],
    }


def exact_limits(X: np.ndarray, allocation: np.ndarray, prior: Any, rng: np.random.Generator) -> list[Limits]:
    """Limits of the conjugate posterior given the true allocation."""
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
    return quantile_limits(draws)


def one_data_set(n_rows: int, n_features: int, index: int, *, draws: int, seed: int) -> dict[str, Any]:
    """Simulate one data set, fit it, and count."""
    X, allocation = simulate(n_rows, n_features, index, seed)
    with warnings.catch_warnings():
        # The share of fits with a bad verdict is a column of the table; 800 printed warnings are not read.
        warnings.simplefilter("ignore")
        limits, content, prior = posterior_limits(X, "nuts", draws, index)
        found = {"nuts": limits, "laplace": posterior_limits(X, "laplace", draws, index)[0]} | em_limits(X, index)
    found["exact"] = exact_limits(X, allocation, prior, np.random.default_rng([seed, index]))
    return {"content": content} | {side: judged(found[side], n_features) for side in SIDES}


def target(n_rows: int, n_features: int, side: str) -> tuple[float, float]:
    """Lowest and highest coverage of 90 % intervals that counts as right."""
    return (0.80, 0.95) if (n_rows, n_features) == (100, 5) and side != "information" else (0.85, 0.95)


def figures_of(results: dict[Any, dict[str, Any]], size: tuple[int, int], side: str, name: str) -> np.ndarray:
    """Coverage by level, then the mean log width; one row a data set."""
    return np.array([r[side][name] for key, r in results.items() if key[:2] == size])


def report(results: dict[Any, dict[str, Any]], is_judged: bool) -> int:
    """Print the tables; return the number of targets missed."""
    screen, missed = console(), 0
    for at, level in enumerate(LEVELS):
        table = Table(title=f"Coverage of {level:.0%} intervals, % (one standard error)", title_justify="left")
        for heading in ("N", "D", "data sets", "flagged", "", *SIDES.values()):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=heading in ("N", "D", ""))
        for size in FULL_SIZES:
            cell = [r for key, r in results.items() if key[:2] == size]
            if len(cell) < 2:
                continue
            flagged = sum(not r["content"] for r in cell)
            for name in QUANTITIES:
                texts = []
                for side in SIDES:
                    shares = figures_of(results, size, side, name)[:, at]
                    mean, error = shares.mean(), shares.std(ddof=1) / np.sqrt(len(shares))
                    low, high = target(*size, side)
                    wrong = is_judged and level == JUDGED_LEVEL and side in JUDGED and not low <= mean <= high
                    missed += wrong
                    text = f"{100 * mean:.1f} ({100 * error:.1f})"
                    texts.append(f"[bold red]{text} missed[/bold red]" if wrong else text)
                head = [str(value) if name == QUANTITIES[0] else "" for value in (*size, len(cell), flagged)]
                table.add_row(*head, name, *texts)
            table.add_section()
        screen.print(table)
    _print_widths(results)
    screen.print("flagged: NUTS fits whose diagnostics were not content; they count all the same.")
    if is_judged:
        screen.print(f"Targets (90 %: {', '.join(SIDES[side] for side in JUDGED)}) missed: {missed}.")
    return missed


def _print_widths(results: dict[Any, dict[str, Any]]) -> None:
    table = Table(title="Width of 90 % intervals against the exact side's", title_justify="left")
    for heading in ("N", "D", "", *list(SIDES.values())[:-1]):
        table.add_column(heading, justify="right" if heading else "left")
    for size in FULL_SIZES:
        if not any(key[:2] == size for key in results):
            continue
        for name in QUANTITIES:
            exact = figures_of(results, size, "exact", name)[:, -1]
            ratios = [
                np.exp(np.mean(figures_of(results, size, side, name)[:, -1] - exact)) for side in list(SIDES)[:-1]
            ]
            head = [str(value) if name == QUANTITIES[0] else "" for value in size]
            table.add_row(*head, name, *(f"{ratio:.2f}" for ratio in ratios))
        table.add_section()
    console().print(table)


def draw_figure(results: dict[Any, dict[str, Any]], path: Path) -> None:
    """Coverage less nominal by level: a panel for each quantity and N, a line for each way, ± 2 standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from bayesgmm.plots.style import COLOURS, MUTED

    sizes = [size for size in DRAWN if sum(key[:2] == size for key in results) > 1]
    shown = [side for side in SIDES if side != "exact"]
    figure, axes = plt.subplots(
        len(sizes), len(QUANTITIES), figsize=(12, 1 + 2.5 * len(sizes)), sharex=True, sharey=True, squeeze=False
    )
    for ax, name in zip(axes[0], QUANTITIES, strict=True):
        ax.set_title(name, fontsize=11)
    for row, size in zip(axes, sizes, strict=True):
        for ax, name in zip(row, QUANTITIES, strict=True):
            ax.axhline(0, color=MUTED, linewidth=0.8)
            for i, side in enumerate(shown):
                shares = 100 * figures_of(results, size, side, name)[:, :-1]
                error = 2 * shares.std(axis=0, ddof=1) / np.sqrt(len(shares))
                x = np.arange(len(LEVELS)) + 0.09 * (i - (len(shown) - 1) / 2)
                nominal = 100 * np.array(LEVELS)
                line = "-" if side in JUDGED else ":"
                style = {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.1, "linestyle": line, "markersize": 3.5}
                ax.errorbar(x, shares.mean(axis=0) - nominal, error, marker="o", label=SIDES[side], **style)
            ax.set_xticks(range(len(LEVELS)), [f"{100 * level:.0f} %" for level in LEVELS])
        row[0].set_ylabel(f"N = {size[0]}\ncoverage less nominal, points", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(shown), fontsize=9, frameon=False)
    figure.supxlabel("nominal; bars: two standard errors over data sets", fontsize=9, y=0.045)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run(options: Options) -> int:
    """Run the study; return the number of targets missed and of data sets that failed."""
    n_data_sets = options.number_of(DATA_SETS, QUICK_DATA_SETS, FULL_DATA_SETS)
    settings = {"draws": options.draws or DRAWS, "seed": options.seed}
    keys = [(*size, index) for index in range(n_data_sets) for size in (FULL_SIZES if options.full else SIZES)]
    results, failed = collect("coverage", one_data_set, keys, settings, options)
    if len(results) > 1:
        options.draw("coverage", lambda path: draw_figure(results, path))
    return report(results, is_judged=not options.quick) + failed
