"""Clustering that says "I do not know": a row far from everything, or between two components, gets no label.

Two limits, two reasons. Below a density the row is "far": no component explains it. Below a responsibility it is
"ambiguous": more than one does. Fewer answers, fewer errors; the responsibilities say beforehand how many are to be expected.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap

from bayesgmm import AnomalyDetector, BayesianGaussianMixture, GaussianMixture
from bayesgmm.plots import assignment
from bayesgmm.plots.style import COLOURS, canvas

LIMIT = 0.9


def main() -> None:
    truth = GaussianMixture.from_parameters(
        [0.4, 0.35, 0.25],
        [[0.0, 0.0], [3.2, 0.5], [1.2, 3.4]],
        [[[1.0, 0.3], [0.3, 0.8]], [[1.2, -0.4], [-0.4, 0.9]], [[0.7, 0.0], [0.0, 0.7]]],
        random_state=1,
    )
    values, source = truth.sample(600)
    X = pd.DataFrame(values, columns=["x1", "x2"])
    posterior = BayesianGaussianMixture(n_components=3, method="laplace", random_state=0, progressbar=False)
    detector = AnomalyDetector(posterior, false_alarm=0.01, n_draws=400, random_state=0).fit(X)
    name = component_of(source, detector.estimator_.predict(X))

    asked = pd.DataFrame({"x1": [0.0, 1.6, 9.0], "x2": [0.0, 0.3, -5.0]})
    print("Three new rows:")
    print(asked.join(detector.assign(asked, min_responsibility=LIMIT)).round(3).to_string(index=False))
    found = detector.assign(X, min_responsibility=LIMIT)
    print("\nThe 600 rows:", found["reason"].value_counts().to_dict())
    everyone = detector.estimator_.assign(X)
    ok = (found["reason"] == "ok").to_numpy()
    wrong = everyone["component"].to_numpy() != name
    for words, rows in (("labelled", ok), ("all, if each had to be labelled", np.ones(600, bool))):
        expected = (1 - everyone["probability"][rows]).sum()
        print(
            f"{words}: {rows.sum()} rows, {wrong[rows].sum()} in the wrong component, {expected:.1f} expected from the responsibilities"
        )

    with canvas(figsize=(12, 5), columns=2) as c:
        draw_map(c.axes[0, 0], detector, X)
        draw_errors(c.axes[0, 1], everyone["probability"].to_numpy(), wrong)
    c.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


def component_of(source, guess):
    """The true components by the numbers that the fit gave them: the component most of their rows are in."""
    return pd.crosstab(source, guess).idxmax(axis=1).to_numpy()[source]


def draw_map(ax, detector, X):
    x, y = np.meshgrid(np.linspace(-4, 8, 240), np.linspace(-4, 7.5, 240))
    answer = detector.assign(pd.DataFrame({"x1": x.ravel(), "x2": y.ravel()}), min_responsibility=LIMIT)
    code = answer["component"].mask(answer["reason"] == "ambiguous", -1).mask(answer["reason"] == "far", -2)
    shades = ListedColormap(["white", "0.75", *COLOURS[:3]])
    ax.pcolormesh(
        x, y, code.to_numpy().reshape(x.shape) + 2, cmap=shades, vmin=-0.5, vmax=4.5, alpha=0.45, rasterized=True
    )
    assignment(detector, X, min_responsibility=LIMIT, ax=ax)
    ax.set(xlim=(-4, 8), ylim=(-4, 7.5), xlabel="$x_1$", ylabel="$x_2$")
    ax.set_title("Where the answer is a component; grey: ambiguous; white: far")


def draw_errors(ax, probability, wrong):
    order = np.argsort(-probability, kind="stable")
    rows = np.arange(1, len(order) + 1)
    ax.plot(100 * rows / len(rows), np.cumsum(wrong[order]), color="black", label="in the wrong component")
    ax.plot(
        100 * rows / len(rows),
        np.cumsum(1 - probability[order]),
        color=COLOURS[1],
        linestyle="--",
        label="expected from the responsibilities",
    )
    ax.axvline(100 * np.mean(probability >= LIMIT), color="0.6", linewidth=1, label=f"probability at least {LIMIT:g}")
    ax.set(
        xlabel="rows labelled, the surest first (% of all)",
        ylabel="errors among them (rows)",
        xlim=(0, 100),
        ylim=(0, None),
    )
    ax.set_title("The fewer answers, the fewer errors;\nresponsibilities foretell how many")
    ax.legend(loc="upper left")


if __name__ == "__main__":
    main()
