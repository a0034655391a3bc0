"""A binary problem: is it the disease, given age? A mixture for each class, Bayes' rule, and how sure that is.

    python examples/06_heart_disease.py SAheart.csv --out heart_disease.png

reads the South African heart disease data of Hastie, Tibshirani & Friedman, The Elements of Statistical Learning (columns age, chd and
more). Without a CSV it takes scikit-learn's breast-cancer data. One feature first, then several. Writes 06_heart_disease.png and
06_heart_disease_several.png beside this file (or where told).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bayesgmm import BayesianGaussianMixture, GaussianMixture, HierarchicalPrior, MixtureClassifier, plots

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
    X = X.rename(columns={X.columns[0]: label})
    alone = X.iloc[:, :1]
    post = posterior(n_components).fit(alone, y)
    print(f"components of each class: {post.n_components_}")
    print(post.diagnostics_.verdict)
    figure = plots.class_probability(post, alone, y, shown=shown)
    em = MixtureClassifier(n_components=post.n_components_, random_state=0).fit(alone, y)
    grid = pd.DataFrame({label: np.linspace(alone.min().item(), alone.max().item(), 300)})
    probability = em.predict_proba(grid)[:, list(em.classes_).index(shown)]
    below = figure.axes[1]
    below.plot(grid[label], probability, color="0.15", linestyle="--", linewidth=1.2, label="EM")
    below.legend(handles=below.lines[-1:], loc="upper left", frameon=False)
    figure.savefig(out, dpi=120)
    print(f"{label} alone, 5-fold accuracy:")
    accuracies(alone, y)

    print(f"{', '.join(X.columns)}:")
    accuracies(X, y)
    figure, ax = plt.subplots(figsize=(7, 5), layout="constrained")
    several_features(ax, X, y, shown)
    figure.savefig(Path(out).with_stem(Path(out).stem + "_several"), dpi=120)


if __name__ == "__main__":
    main()
