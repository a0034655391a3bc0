"""What a covariance matrix looks like: a circle, an ellipse along an axis, a tilted ellipse.

The diagonal holds the variances (how wide along each axis), the rest the covariance (how much the features move together).
The eigenvectors are the ellipse's axes; their lengths grow with the roots of the eigenvalues.
"""

import sys
from pathlib import Path

import numpy as np

from bayesgmm import GaussianMixture
from bayesgmm.plots import ellipses
from bayesgmm.plots.style import canvas

COVARIANCES = {
    "a circle": [[1.0, 0.0], [0.0, 1.0]],
    "wide along the first axis": [[5.0, 0.0], [0.0, 1.0]],
    "tilted: the features move together": [[1.0, 0.5], [0.5, 1.0]],
}


def main() -> None:
    with canvas(figsize=(11.5, 3.3), columns=3, sharex=True, sharey=True) as c:
        for ax, (words, covariance) in zip(c.axes[0], COVARIANCES.items(), strict=True):
            show(ax, words, np.array(covariance))
        c.axes[0, 0].set_ylabel("$x_2$")
        c.title("1500 rows each; ellipses hold 50 % and 90 % of the component, arrows are one standard deviation long")
    c.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


def show(ax, words, covariance):
    model = GaussianMixture.from_parameters([1.0], [[0.0, 0.0]], [covariance], random_state=0)
    X, _ = model.sample(1500)
    values, vectors = np.linalg.eigh(covariance)
    tilt = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])) % 180
    across = f"{tilt:.0f}°" if values[1] > values[0] else "none"
    (a, b), (_, d) = covariance
    print(f"{covariance.tolist()}: {words}")
    print(f"  standard deviations {a**0.5:.2f} and {d**0.5:.2f}, correlation {b / (a * d) ** 0.5:.2f}")
    print(f"  along its axes {values[1] ** 0.5:.2f} and {values[0] ** 0.5:.2f}; direction of the longer: {across}")
    print(f"  covariance of 1500 rows drawn from it: {np.cov(X.T).round(2).tolist()}")

    ellipses(model, X, ax=ax)
    if legend := ax.get_legend():
        legend.remove()
    for value, vector in zip(values, vectors.T, strict=True):
        ax.annotate("", np.sqrt(value) * vector, (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.6})
    ax.set(xlim=(-7.5, 7.5), ylim=(-4.5, 4.5), aspect="equal", xlabel="$x_1$", ylabel="")
    ax.set_title(f"$\\Sigma$ = [[{a:g}, {b:g}], [{b:g}, {d:g}]]\n{words}")


if __name__ == "__main__":
    main()
