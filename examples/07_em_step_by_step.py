"""EM step by step on Old Faithful: guess who made which row, fit to the guess, and again.

E-step: responsibilities at the current parameters. M-step: weights, means and covariances of the rows so weighted. The
log-likelihood never goes down. The start here is a poor one on purpose; a GIF of the climb is written beside the figure.
"""

import sys
from pathlib import Path

import numpy as np

from bayesgmm import GaussianMixture
from bayesgmm.datasets import load_faithful
from bayesgmm.plots import animate_em, em_steps


def main() -> None:
    X = load_faithful().rename(columns={"eruptions": "eruption (minutes)", "waiting": "waiting (minutes)"})
    fit = GaussianMixture(
        n_components=2, means_init=[[3.6, 70.0], [3.4, 72.0]], reg_covar=0, keep_history=True, random_state=0
    ).fit(X)
    bounds = len(X) * np.array(fit.lower_bounds_)
    print("iteration  log-likelihood  weights        means (minutes)")
    for step in sorted({0, 1, 2, 5, 8, 12, 20, fit.n_iter_} & set(range(len(bounds)))):
        p = fit.history_[step]
        print(f"{step:9d}  {bounds[step]:14.3f}  {p.weights.round(3).tolist()}  {p.means.round(2).tolist()}")
    print(
        f"Iterations: {fit.n_iter_}. Smallest change of the log-likelihood in one of them: {np.diff(bounds).min():+.2g}."
    )

    target = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
    figure = em_steps(fit, X, iterations=(0, 1, 5, 8, 20))
    figure.savefig(target, dpi=120)
    animate_em(fit, X, target.with_suffix(".gif"))


if __name__ == "__main__":
    main()
