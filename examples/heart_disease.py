"""A binary problem: is it the disease, given age? A mixture for each class, Bayes' rule, and how sure that is.

    python examples/heart_disease.py SAheart.csv --out heart_disease.png

reads the South African heart disease data of Hastie, Tibshirani & Friedman, The Elements of Statistical Learning (columns age, chd and
more). Without a CSV it takes scikit-learn's breast-cancer data. One feature first, then several. Writes heart_disease.png beside this
file (or where told).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats
from sklearn.datasets import load_breast_cancer
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bayesgmm import BayesianGaussianMixture, GaussianMixture, HierarchicalPrior, MixtureClassifier

COLOURS = ("#0072B2", "#D55E00")
FOLDS = StratifiedKFold(5, shuffle=True, random_state=0)


def read(path: str | None) -> tuple[pd.DataFrame, np.ndarray, str, str, int | str]:
    """Table, classes, what the first feature is called on an axis, the class whose probability is shown, components a class."""
    if path is None:
        cancer = load_breast_cancer(as_frame=True)
        names = ["mean area", "mean texture", "mean smoothness", "mean concavity"]
        return (
            cancer.data[names],
            cancer.target_names[cancer.target],
            "mean area of the cell nuclei",
            "malignant",
            "bic",
        )
    table = pd.read_csv(path)
    y = np.where(table["chd"] == 1, "disease", "none")
    return table[["age", "ldl", "adiposity", "sbp"]], y, "age (years)", "disease", 2


def posterior(n_components: int | str) -> MixtureClassifier:
    """A classifier whose classes may have components of very unlike spreads: the prior's scale is random."""
    sampler = BayesianGaussianMixture(prior=HierarchicalPrior(), target_ess=1000, progressbar=False)
    return MixtureClassifier(sampler, n_components=n_components, max_components=3, random_state=0)


def densities(classifier: MixtureClassifier, grid: np.ndarray) -> np.ndarray:
    """ρ_c p(x given c) of one feature for every draw: (draws, points, classes)."""
    draws = classifier.idata_["posterior"].to_dataset().stack(sample=("chain", "draw"))
    w, m, s = (
        draws[name].values.reshape(-1, draws.sizes["sample"]) for name in ("weights", "means", "standard_deviations")
    )
    each = w * stats.norm(m, s).pdf(grid[:, None, None])
    owner = draws["component_class"].values
    return np.stack([each[:, owner == c].sum(axis=1).T for c in classifier.classes_], axis=2)


def legend(ax: plt.Axes, columns: int) -> None:
    """Keys above the axes, where no curve can lie behind them."""
    ax.legend(
        frameon=False,
        fontsize=8,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.99),
        borderpad=0.2,
        columnspacing=1.2,
    )


def one_feature(
    axes: np.ndarray, X: pd.DataFrame, y: np.ndarray, label: str, shown: str, n_components: int | str
) -> MixtureClassifier:
    """Densities of the classes and of both together; probability of one class, with what the data say."""
    x = X.iloc[:, 0].to_numpy()
    post = posterior(n_components).fit(X, y)
    em = MixtureClassifier(n_components=post.n_components_, random_state=0).fit(X, y)
    grid = np.linspace(x.min(), x.max(), 300)
    joint = densities(post, grid)
    top, bottom = axes
    edges = np.linspace(x.min(), x.max(), 26)
    for c, (name, colour) in enumerate(zip(post.classes_, COLOURS, strict=True)):
        weight = np.full(np.sum(y == name), 1 / len(x) / (edges[1] - edges[0]))
        top.hist(x[y == name], edges, weights=weight, color=colour, alpha=0.15)
        low, high = np.quantile(joint[:, :, c], [0.05, 0.95], axis=0)
        top.fill_between(grid, low, high, color=colour, alpha=0.3, linewidth=0)
        top.plot(
            grid,
            joint[:, :, c].mean(axis=0),
            color=colour,
            label=f"{name} ({np.mean(y == name):.0%})",
        )
    top.plot(grid, joint.sum(axis=2).mean(axis=0), color="0.15", linewidth=1.2, label="both together")
    top.set(ylabel=f"density × class probability\n(per unit of {X.columns[0]})", ylim=(0, None))
    legend(top, 3)

    c = list(post.classes_).index(shown)
    probability = joint[:, :, c] / joint.sum(axis=2)
    low, high = np.quantile(probability, [0.05, 0.95], axis=0)
    bottom.fill_between(grid, low, high, color=COLOURS[c], alpha=0.3, linewidth=0, label="posterior, 90 %")
    bottom.plot(grid, probability.mean(axis=0), color=COLOURS[c], label="mean")
    table = pd.DataFrame(grid, columns=X.columns)
    bottom.plot(grid, em.predict_proba(table)[:, c], color="0.15", linestyle="--", linewidth=1.2, label="EM")
    cuts = np.quantile(x, np.linspace(0, 1, 11))
    group = np.clip(np.searchsorted(cuts, x, side="right") - 1, 0, 9)
    centres = np.array([x[group == g].mean() for g in range(10)])
    hits, n = np.array([[np.sum(y[group == g] == shown), np.sum(group == g)] for g in range(10)]).T
    share = hits / n
    # Agresti & Coull: also where none or all are of the class.
    middle = (hits + 2) / (n + 4)
    half = 1.645 * np.sqrt(middle * (1 - middle) / (n + 4))
    bottom.vlines(centres, np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1), color="0.45", linewidth=1)
    bottom.plot(centres, share, "o", color="0.45", markersize=4, label="tenths of the rows, 90 %")
    bottom.set(xlabel=label, ylabel=f"probability of {shown}", ylim=(-0.02, 1.02))
    legend(bottom, 4)
    return post


def several_features(ax: plt.Axes, X: pd.DataFrame, y: np.ndarray, shown: str) -> None:
    """Each row's probability by a posterior that has not seen it, with its spread."""
    mean, sd = np.empty(len(X)), np.empty(len(X))
    for rest, held in FOLDS.split(X, y):
        classifier = posterior(1).fit(X.iloc[rest], y[rest])
        c = list(classifier.classes_).index(shown)
        p, spread = classifier.predict_proba(X.iloc[held], return_std=True)
        mean[held], sd[held] = p[:, c], spread[:, c]
    place = np.argsort(np.argsort(mean))
    ax.vlines(place, np.clip(mean - 1.645 * sd, 0, 1), np.clip(mean + 1.645 * sd, 0, 1), color="0.75", linewidth=0.8)
    ax.plot(place, mean, "o", color="0.2", markersize=2.2)
    # Truth as two rows of ticks, so that neither class hides the other.
    for name, colour in zip(np.unique(y), COLOURS, strict=True):
        low, high = (1.03, 1.09) if name == shown else (-0.09, -0.03)
        ax.vlines(place[y == name], low, high, color=colour, linewidth=0.8)
        ax.annotate(
            f"in truth {name}",
            (0.02, high + 0.02 if name == shown else low - 0.02),
            (0.02, high + 0.015 if name == shown else low - 0.045),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            color=colour,
            fontsize=8,
        )
    ax.axhline(0.5, color="0.6", linewidth=0.8, zorder=0)
    ax.set(
        xlabel="rows, by this probability",
        ylabel=f"probability of {shown}, held out; lines: ± 1.645 sd",
        ylim=(-0.16, 1.16),
    )
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.set_title(", ".join(X.columns), fontsize=9)
    right = np.mean((mean > 0.5) == (y == shown))
    print(f"  the posterior, one component a class {right:.3f}")


def accuracies(X: pd.DataFrame, y: np.ndarray) -> None:
    """Cross-validated accuracy beside quadratic discriminant analysis."""
    quadratic = make_pipeline(StandardScaler(), QuadraticDiscriminantAnalysis())
    print(f"  quadratic discriminant analysis      {cross_val_score(quadratic, X, y, cv=FOLDS).mean():.3f}")
    for name, K in (("one component a class", 1), ("two components a class", 2), ("up to three, as BIC says", "bic")):
        mixture = MixtureClassifier(
            GaussianMixture(prior="default", n_init=4), n_components=K, max_components=3, random_state=0
        )
        print(f"  {name:36} {cross_val_score(mixture, X, y, cv=FOLDS).mean():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="?", help="CSV with age and chd; a path that does not end in .csv is that of the figure"
    )
    parser.add_argument("--out", help="where the figure goes")
    given = parser.parse_args()
    data = given.data if given.data and given.data.endswith(".csv") else None
    out = given.out or (given.data if given.data != data else None) or Path(__file__).with_suffix(".png")

    X, y, label, shown, n_components = read(data)
    figure = plt.figure(figsize=(11, 5.8), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
    top = figure.add_subplot(grid[0, 0])
    axes = np.array([top, figure.add_subplot(grid[1, 0], sharex=top)])
    post = one_feature(axes, X.iloc[:, :1], y, label, shown, n_components)
    print(f"components of each class: {post.n_components_}")
    print(post.diagnostics_.verdict)
    print(f"{X.columns[0]} alone, 5-fold accuracy:")
    accuracies(X.iloc[:, :1], y)
    print(f"{', '.join(X.columns)}:")
    accuracies(X, y)
    several_features(figure.add_subplot(grid[:, 1]), X, y, shown)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
