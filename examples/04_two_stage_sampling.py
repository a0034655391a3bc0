"""How a mixture makes a row, in two stages: draw a component by its weight, then draw the row from that component.

We only ever see the rows. Which component each came from is lost, and clustering is the attempt to get it back.
"""

import sys
from pathlib import Path

import numpy as np

from bayesgmm import GaussianMixture
from bayesgmm.plots import density
from bayesgmm.plots.style import COLOURS, canvas

N_ROWS = 800
WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[0.0, 0.0], [4.0, 1.0], [1.5, 4.0]])
COVARIANCES = np.array([[[1.5, 0.6], [0.6, 1.0]], [[0.6, -0.3], [-0.3, 0.8]], [[1.2, 0.0], [0.0, 0.3]]])


def main() -> None:
    rng = np.random.default_rng(0)
    component = rng.choice(3, size=N_ROWS, p=WEIGHTS)
    X = np.array([rng.multivariate_normal(MEANS[k], COVARIANCES[k]) for k in component])

    counts = np.bincount(component, minlength=3)
    for k in range(3):
        print(
            f"component {k}: weight {WEIGHTS[k]:.1f}, expected {N_ROWS * WEIGHTS[k]:.0f} rows, drawn {counts[k]}; "
            f"mean {MEANS[k].tolist()}, of its rows {X[component == k].mean(axis=0).round(2).tolist()}"
        )
    model = GaussianMixture.from_parameters(WEIGHTS, MEANS, COVARIANCES, random_state=0)
    guess = model.predict(X)
    print(
        f"Without stage 1, the mixture's best guess is right for {100 * np.mean(guess == component):.1f} % of the rows."
    )

    with canvas(figsize=(12, 4.2), columns=3) as c:
        draw(*c.axes[0], model, X, component)
    c.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


def draw(first, second, third, model, X, component):
    first.bar(range(3), np.bincount(component, minlength=3), color=COLOURS[:3], width=0.7)
    first.hlines(N_ROWS * WEIGHTS, np.arange(3) - 0.42, np.arange(3) + 0.42, color="black", linewidth=1.5)
    first.set(
        xticks=range(3),
        xlabel="component",
        ylabel="rows",
        title="Stage 1: a component for each row\nlines: rows expected",
    )
    for k in range(3):
        second.scatter(*X[component == k].T, s=9, color=COLOURS[k], alpha=0.7, linewidths=0, label=f"component {k}")
    second.set(xlabel="$x_1$", ylabel="$x_2$", title="Stage 2: the row from its component")
    density(model, X, ax=third)
    if legend := third.get_legend():
        legend.remove()
    third.set(xlabel="$x_1$", ylabel="$x_2$")
    third.set_title("What is seen: rows without their component\ncontours hold 25, 50, 75, 95 % of the mixture")
    second.set(xlim=third.get_xlim(), ylim=third.get_ylim())


if __name__ == "__main__":
    main()
