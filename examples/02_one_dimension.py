"""One-dimensional Gaussians: the mean moves the bell, the standard deviation widens it; bells with weights make a mixture.

A density says how many rows to expect per unit of x. It may exceed 1; its area is always 1. EM gets the weights, means and
standard deviations back from the rows alone.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from bayesgmm import GaussianMixture
from bayesgmm.plots import density
from bayesgmm.plots.style import COLOURS, canvas

WEIGHTS, MEANS, SDS = np.array([0.5, 0.3, 0.2]), np.array([-2.0, 1.0, 3.0]), np.array([1.0, 0.35, 1.5])


def main() -> None:
    truth = GaussianMixture.from_parameters(WEIGHTS, MEANS[:, None], SDS[:, None, None] ** 2, random_state=0)
    values, _ = truth.sample(2000)
    X = pd.DataFrame(values, columns=["x"])
    fit = GaussianMixture(n_components=3, random_state=0).fit(X)

    normal = np.random.default_rng(0).standard_normal(100_000)
    for width in (1, 2, 3):
        inside, seen = 2 * norm.cdf(width) - 1, np.mean(np.abs(normal) < width)
        print(
            f"within {width} standard deviation{'s' * (width > 1)} of the mean: {inside:.4f}; of 100,000 draws {seen:.4f}"
        )
    print("\nMixture of three, true and as EM finds it in 2000 rows:")
    order = np.argsort(fit.means_[:, 0])
    sd = np.sqrt(fit.covariances_[order, 0, 0])
    found = np.column_stack([WEIGHTS, fit.weights_[order], MEANS, fit.means_[order, 0], SDS, sd])
    columns = pd.MultiIndex.from_product([["weight", "mean", "sd"], ["true", "EM"]])
    print(pd.DataFrame(found, columns=columns).round(2).to_string())

    with canvas(figsize=(10.5, 4.4), columns=2) as c:
        draw(*c.axes[0], fit, X)
    c.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


def draw(left, right, fit, X):
    grid = np.linspace(-6, 8, 800)
    for mean, sd, shade in zip(MEANS, SDS, COLOURS, strict=False):
        bell = GaussianMixture.from_parameters([1.0], [[mean]], [[[sd**2]]])
        height = np.exp(bell.score_samples(grid[:, None]))
        left.plot(grid, height, color=shade, label=f"mean {mean:g}, standard deviation {sd:g}")
        inside = np.abs(grid - mean) <= sd
        left.fill_between(grid[inside], height[inside], color=shade, alpha=0.25, linewidth=0)
    left.set(xlabel="x", ylabel="density per unit of x")
    left.set_title("Three Gaussians, each of area 1\nshaded: one standard deviation about the mean, 68 % of it")
    left.set_ylim(0, 1.45)
    left.legend(loc="upper right")
    density(fit, X, ax=right)
    right.set_title("Their mixture with weights 0.5, 0.3, 0.2:\n2000 rows drawn from it, and what EM finds in them")


if __name__ == "__main__":
    main()
