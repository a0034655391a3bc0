"""EM against MCMC where the truth is known: bias, coverage of intervals, and time.

Many small samples of one mixture, each fitted by EM with standard errors and by NUTS. A 90 % interval should hold the true value in
90 % of the samples. How far chance alone can move these numbers is drawn too: for a paper, raise SAMPLES.
"""

import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import beta
from sklearn.exceptions import ConvergenceWarning

from bayesgmm import BayesianGaussianMixture, GaussianMixture, compare
from bayesgmm.plots.style import COLOURS, canvas

SAMPLES, ROWS = 24, 60
TRUTH = {"weight, left": 0.65, "mean, left": 0.0, "mean, right": 3.5, "sd, left": 1.0, "sd, right": 0.8}
WAYS = {"EM ± standard error": ("em", "em_lower", "em_upper"), "MCMC": ("posterior_median", "lower", "upper")}


def main() -> None:
    tables, seconds, doubtful = [], np.zeros(2), 0
    for seed in range(SAMPLES):
        X = GaussianMixture.from_parameters(
            [0.65, 0.35], [[0.0], [3.5]], [[[1.0]], [[0.64]]], random_state=seed
        ).sample(ROWS)[0]
        start = time.process_time()
        em = GaussianMixture(n_components=2, random_state=0).fit(X)
        em.standard_errors(X)
        middle = time.process_time()
        post = BayesianGaussianMixture(2, draws=500, chains=2, target_ess=0, random_state=0, progressbar=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            post.fit(X)
            seconds += [middle - start, time.process_time() - middle]
            tables.append(by_place(compare(em, post)))
        doubtful += not post.diagnostics_.ok
    every = pd.concat(tables, keys=range(SAMPLES), names=["sample"])
    found = {way: summarised(every, *columns) for way, columns in WAYS.items()}
    print(
        f"{SAMPLES} samples of {ROWS} rows; 90 % intervals. In {doubtful} of them MCMC's diagnostics find fault with its 2 × 500 draws."
    )
    print(pd.concat(found, axis=1).round(2).to_string())
    for way, table in found.items():
        print(f"{way}: {100 * table['coverage'].mean():.0f} % of all intervals hold the true value")
    print(
        f"Processor time of a sample: EM {1e3 * seconds[0] / SAMPLES:.0f} ms, MCMC {1e3 * seconds[1] / SAMPLES:.0f} ms"
    )

    with canvas(figsize=(13, 4.8), columns=3) as c:
        draw(*c.axes[0], every, found)
        c.legend(c.axes[0, 0].get_legend_handles_labels()[0])
        c.title(f"{SAMPLES} samples of {ROWS} rows from a known mixture of two; EM and MCMC on each")
    c.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


def by_place(table):
    """The rows of ``compare`` by where the components lie, not by their number."""
    left = int(table.loc["means[1, x0]", "posterior_median"] < table.loc["means[0, x0]", "posterior_median"])
    names = [f"weights[{left}]", f"means[{left}, x0]", f"means[{1 - left}, x0]"]
    names += [f"standard_deviations[{left}, x0]", f"standard_deviations[{1 - left}, x0]"]
    return table.loc[names].set_axis(pd.Index(list(TRUTH), name="parameter"))


def summarised(every, estimate, lower, upper):
    true = every.index.get_level_values("parameter").map(TRUTH)
    error = (every[estimate] - true).unstack("sample")
    held = ((every[lower] <= true) & (true <= every[upper])).unstack("sample")
    columns = {
        "bias": error.mean(axis=1),
        "se": error.std(axis=1) / np.sqrt(SAMPLES),
        "rmse": np.sqrt((error**2).mean(axis=1)),
    }
    return pd.DataFrame(columns | {"coverage": held.mean(axis=1)}).loc[list(TRUTH)]


def draw(left, middle, right, every, found):
    places = np.arange(len(TRUTH))
    for shift, shade, (way, table) in zip((-0.12, 0.12), COLOURS, found.items(), strict=False):
        left.errorbar(table["bias"], places + shift, xerr=1.645 * table["se"], fmt="o", color=shade, label=way)
        held = (table["coverage"] * SAMPLES).to_numpy()
        ends = beta.ppf([[0.05], [0.95]], held + 0.5, SAMPLES - held + 0.5)
        middle.hlines(places + shift, *(100 * ends), color=shade)
        middle.plot(100 * table["coverage"], places + shift, "o", color=shade)
        _, lower, upper = WAYS[way]
        one = every.xs("sd, right", level="parameter")
        right.hlines(np.arange(SAMPLES) + 1.5 * shift, one[lower], one[upper], color=shade, linewidth=1.6)
    left.axvline(0, color="0.5", linewidth=1)
    middle.axvline(90, color="0.5", linewidth=1)
    right.axvline(TRUTH["sd, right"], color="black", linewidth=1)
    for ax in (left, middle):
        ax.set(yticks=places, yticklabels=list(TRUTH), ylim=(len(TRUTH) - 0.5, -0.5))
    left.set(xlabel="mean of estimate − truth", title="Bias; bars: its 90 % interval over the samples")
    middle.set(
        xlabel="intervals that hold the true value (%)",
        title="Coverage of 90 % intervals;\nbars: 90 % interval, given so few samples",
    )
    right.set(
        xlabel="sd, right: interval in each sample",
        ylabel="sample",
        title="The intervals of one parameter; line: the truth",
    )


if __name__ == "__main__":
    main()
