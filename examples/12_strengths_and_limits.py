"""What a Gaussian mixture can and cannot do.

It fits any density with enough components, but a component need not be a group. Full covariances cost parameters by D².
EM stops at local optima: many starts show them, and a posterior takes them by their mass. Noise: a few outliers drag a component or
take one; a prior does not undo that. Tail probabilities and "I do not know" tell which rows they are, where the outliers have
no component of their own or one that is small.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import make_circles
from sklearn.metrics import adjusted_rand_score

from bayesgmm import AnomalyDetector, BayesianGaussianMixture, GaussianMixture
from bayesgmm.plots import ellipses, modes
from bayesgmm.plots.style import COLOURS, canvas


def main() -> None:
    with canvas(figsize=(13, 8), rows=2, columns=3) as c:
        rings(c.axes[0, 0])
        parameter_counts(c.axes[0, 1])
        local_optima(c.axes[0, 2])
        outliers(*c.axes[1])
    c.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


def show(ax, fit, X, title):
    ellipses(fit, X, levels=(0.9,), ax=ax)
    ax.get_legend().remove()
    ax.set(xlabel="$x_1$", ylabel="$x_2$", title=title)


def rings(ax):
    X, ring = make_circles(500, noise=0.06, factor=0.45, random_state=0)
    new, _ = make_circles(500, noise=0.06, factor=0.45, random_state=1)
    two = GaussianMixture(n_components=2, random_state=0).fit(X)
    many = GaussianMixture(n_components=14, prior="default", n_init=3, random_state=0).fit(X)
    agreement = round(adjusted_rand_score(ring, two.predict(X)), 2) + 0.0
    print(f"Two rings: K = 2 agrees with them by {agreement:.2f} (adjusted Rand index, 1 is perfect).")
    print(f"  Log density of new rows: {two.score(new):.2f} nats a row with K = 2, {many.score(new):.2f} with K = 14.")
    better = many.score(new) - two.score(new)
    words = f"K = 2 agrees with the rings by {agreement:.2f} (Rand index);\nK = 14, shown, describes new rows {better:+.2f} nats better"
    show(ax, many, X, words)


def parameter_counts(ax):
    D, K = np.arange(1, 51), 3
    counts = {"full": K * D * (D + 1) / 2, "tied": D * (D + 1) / 2, "diag": K * D, "spherical": K + 0 * D}
    for (kind, covariance), shade in zip(counts.items(), COLOURS, strict=False):
        ax.semilogy(D, K - 1 + K * D + covariance, color=shade, label=kind)
    at = {kind: int(K - 1 + K * 50 + covariance[-1]) for kind, covariance in counts.items()}
    print(f"Parameters of three components in 50 features: {at}")
    ax.set(
        xlabel="features D",
        ylabel="parameters (K = 3)",
        title=f"Parameters grow with D²:\nfull covariances have {at['full']:,} at D = 50",
    )
    ax.legend(loc="lower right")


def local_optima(ax):
    centres = [[0, 0], [3, 0], [20, 0], [23, 0], [0, 20], [3, 20]]
    X, _ = GaussianMixture.from_parameters(
        np.full(6, 1 / 6), centres, np.full(6, 0.8), covariance_type="spherical", random_state=1
    ).sample(300)
    settings = {"n_components": 6, "covariance_type": "spherical", "init_params": "random_from_data", "random_state": 0}
    fit = GaussianMixture(n_init=40, **settings).fit(X)
    lost = (fit.modes_[0].objective - np.array([mode.objective for mode in fit.modes_[1:]])) * len(X)
    print(
        f"Three pairs of groups, 40 starts of EM: {len(fit.modes_)} optima, the best from {fit.modes_[0].n_starts} of them."
    )
    if len(lost):
        print(
            f"  The second is {lost[0]:.0f} nats below, so that the posterior has e^-{lost[0]:.0f} times the height there."
        )
    post = BayesianGaussianMixture(method="laplace", draws=250, progressbar=False, **settings).fit(X)
    print(f"  Posterior by Laplace approximation: {post.diagnostics_.verdict}")
    modes(fit, ax=ax)
    if legend := ax.get_legend():
        legend.remove()
    ax.set_xlim(0, 2.2 * fit.modes_[0].n_starts)
    ax.set_title(
        f"Local optima: three pairs of groups, K = 6,\n{len(fit.modes_)} from 40 starts; hatched: near-singular on few rows"
    )


def outliers(left, middle, right):
    clean, source = GaussianMixture.from_parameters(
        [0.5, 0.5], [[0.0, 0.0], [5.0, 0.0]], np.full(2, 0.8), covariance_type="spherical", random_state=3
    ).sample(240)
    noise = np.random.default_rng(1).uniform([-8, 8], [14, 20], (10, 2))
    X = pd.DataFrame(np.vstack([clean, noise]), columns=["x1", "x2"])
    print("Two groups of about 120 rows, sd 0.9 in every direction, and outliers (groups found: adjusted Rand index):")
    for n, K, prior, ax in (
        (0, 2, None, None),
        (2, 2, None, left),
        (10, 2, None, middle),
        (10, 2, "default", None),
        (10, 3, None, None),
    ):
        rows = X[: 240 + n]
        fit = GaussianMixture(K, prior=prior, random_state=0).fit(rows)
        agreement = adjusted_rand_score(source, fit.predict(X[:240]))
        widest = np.sqrt(np.linalg.eigvalsh(fit.covariances_).max())
        sizes = ", ".join(f"{size:.0f}" for size in fit.weights_ * len(rows))
        how = f"{n} outliers, K = {K}{', with a prior' if prior else ''}"
        print(f"  {how}: components of {sizes} rows, widest sd {widest:.1f}, groups found: {agreement:.2f}")
        if ax is not None:
            show(
                ax,
                fit,
                rows,
                f"{how}: components of {sizes} rows,\nwidest sd {widest:.1f} (true 0.9); groups found: {agreement:.2f}",
            )
    middle.set_ylim(left.set_ylim(-6, 22))
    recognised(right, X)


def recognised(ax, X):
    """Rows that a detector takes for anomalies, by the mixture inside it: the outliers, and the others."""
    places, found = [], []
    for place, (words, K, rows) in enumerate(
        (("K = 2, fitted\nto all", 2, X), ("K = 3, fitted\nto all", 3, X), ("K = 2, fitted\nwithout them", 2, X[:240]))
    ):
        posterior = BayesianGaussianMixture(K, method="laplace", draws=250, random_state=0, progressbar=False)
        detector = AnomalyDetector(posterior, small_component=0.06, random_state=0).fit(rows)
        kind = detector.table(X)["kind"].to_numpy()
        counts = {name: (np.sum(kind[240:] == name), np.sum(kind[:240] == name)) for name in ("far", "small component")}
        (far, false_far), (small, false_small) = counts.values()
        how = words.replace("\n", " ")
        print(
            f"  posterior, {how}: outliers far {far}, in a small component {small}; of the others {false_far} and {false_small}"
        )
        places.append(words)
        found.append(counts)
        bottom = 0
        for (name, (hits, _)), shade in zip(counts.items(), (COLOURS[1], COLOURS[3]), strict=True):
            ax.bar(place, hits, bottom=bottom, color=shade, width=0.6, label=name if place == 0 else None)
            bottom += hits
        false = sum(each[1] for each in counts.values())
        ax.annotate(
            f"and {false} of 240 others", (place, bottom), (0, 4), textcoords="offset points", ha="center", fontsize=8
        )
    ax.set(xticks=range(3), xticklabels=places, ylim=(0, 13.5), ylabel="outliers recognised, of 10")
    ax.set_title("Who recognises the outliers? A mixture that was fitted\nto them as well has made room for them")
    ax.legend(loc="upper left", ncols=2)


if __name__ == "__main__":
    main()
