"""Responsibilities: Bayes' rule for "which component made this row?".

r_k(x) = weight_k × density_k(x) / sum over all components. They add up to 1; their sums over the rows are N times the
weights once EM has ended; and with a posterior they have a band, because the parameters are not known exactly.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from bayesgmm import BayesianGaussianMixture, GaussianMixture
from bayesgmm.datasets import load_faithful
from bayesgmm.plots import responsibilities
from bayesgmm.plots.style import canvas


def main() -> None:
    X = load_faithful()
    waiting = X[["waiting"]]
    em = GaussianMixture(n_components=2, random_state=0).fit(waiting)
    mean, sd = em.means_[:, 0], np.sqrt(em.covariances_[:, 0, 0])
    for minutes in (55.0, 67.0, 80.0):
        joint = em.weights_ * norm.pdf(minutes, mean, sd)
        by_hand, by_package = joint / joint.sum(), em.predict_proba(pd.DataFrame({"waiting": [minutes]}))[0]
        print(
            f"a wait of {minutes:g} minutes: weight × density {joint.round(5).tolist()}, "
            f"divided by their sum {by_hand.round(3).tolist()}; predict_proba {by_package.round(3).tolist()}"
        )
    r = em.predict_proba(waiting)
    print(
        f"sums of responsibilities {r.sum(axis=0).round(2).tolist()}; N × weights {(len(X) * em.weights_).round(2).tolist()}"
    )

    one = BayesianGaussianMixture(n_components=2, method="laplace", random_state=2, progressbar=False).fit(waiting)
    both = BayesianGaussianMixture(n_components=2, method="laplace", random_state=1, progressbar=False).fit(X)
    doubtful = [(fit.predict_proba(rows).max(axis=1) < 0.9).sum() for fit, rows in ((one, waiting), (both, X))]
    print(f"rows with no component above 90 %: {doubtful[0]} by waiting alone, {doubtful[1]} by both features")

    with canvas(figsize=(12, 5), columns=2) as c:
        left, right = c.axes[0]
        responsibilities(one, ax=left)
        left.set_title("By waiting alone, with a 90 % posterior band\nbelow: the eruptions in the mix of the colours")
        left.set_xlabel("waiting time to the next eruption (minutes)")
        responsibilities(both, ax=right)
        right.set_title("By both features: colours mix by responsibility,\nlarger is less certain; ellipses hold 90 %")
        right.set(xlabel="length of the eruption (minutes)", ylabel="waiting time to the next eruption (minutes)")
    c.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
