"""Galaxies: are there three groups of velocities, four, or six?

82 galaxies, and published answers from three to nine. Criteria ask different questions, and p(K | data) depends on what one holds
probable beforehand. A density needs no choice: it can be averaged over K.
"""

import sys
from pathlib import Path

import numpy as np

from bayesgmm import select
from bayesgmm.datasets import load_galaxies
from bayesgmm.inference.components import posterior_over_components
from bayesgmm.plots import density
from bayesgmm.plots.style import COLOURS, canvas

PRIORS = {"uniform": "uniform", "Poisson(1)": ("poisson", 1.0), "Poisson(3)": ("poisson", 3.0)}


def main() -> None:
    X = (load_galaxies() / 1000).rename(columns={"velocity": "velocity (1000 km/s)"})
    found = select(
        X, range(3, 8), "full", method="nuts", chains=2, draws=800, criteria=["aic", "bic", "icl", "evidence"], sensitivity=False,
        random_state=0, progressbar=False,
    )  # fmt: skip
    table = found.table.droplevel(0)
    print(table[["aic", "bic", "icl", "log_evidence", "log_evidence_se", "flags"]].round(2).to_string())
    print(found.summary())
    evidence, errors = (
        {K: float(value) for K, value in table[name].items()} for name in ("log_evidence", "log_evidence_se")
    )
    shares = {words: posterior_over_components(evidence, prior, errors) for words, prior in PRIORS.items()}
    print("\np(K | data), by the prior on K (3 to 7):")
    for words, posterior in shares.items():
        print(
            f"  {words:10s} "
            + "  ".join(f"K={K}: {p:.2f}" for K, p in zip(evidence, posterior.probabilities, strict=True))
        )

    with canvas(figsize=(13, 4.8), columns=3) as c:
        draw(*c.axes[0], X, found, shares)
    c.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


def draw(left, middle, right, X, found, shares):
    density(found.fits["full", 3], ax=left)
    left.set_title("Three components: density and 90 % band")
    left.set_ylim(0, 0.3)
    ks = np.array(sorted({K for _, K in found.fits}))
    for place, (shade, (words, posterior)) in enumerate(zip(COLOURS, shares.items(), strict=False)):
        at = ks + 0.26 * (place - 1)
        p = posterior.probabilities
        middle.bar(at, p, width=0.24, color=shade, label=f"{words} prior")
        middle.errorbar(at, p, [p - posterior.lower, posterior.upper - p], fmt="none", ecolor="black", elinewidth=1)
    middle.set(xlabel="components K", ylabel="p(K | data)")
    middle.set_title("How many? It depends on the prior on K\n(bars: 90 % Monte Carlo intervals)")
    middle.legend()
    grid = np.linspace(7, 37, 400)
    rows = X.iloc[:1].loc[[0] * len(grid)].assign(**{X.columns[0]: grid})
    right.hist(X.to_numpy()[:, 0], bins=30, density=True, color="0.92", edgecolor="0.75")
    for shade, K in zip(COLOURS, (3, 4, 6), strict=False):
        right.plot(grid, np.exp(found.fits["full", K].score_samples(rows)), color=shade, label=f"K = {K}")
    right.plot(grid, np.exp(found.score_samples(rows)), color="black", linestyle="--", label="averaged over K")
    right.set(xlabel=X.columns[0], ylabel=left.get_ylabel(), title="The predictive density by K, and averaged over K")
    right.legend()


if __name__ == "__main__":
    main()
