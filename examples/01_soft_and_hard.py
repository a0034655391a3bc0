"""Soft against hard clustering: k-means says which cluster, a mixture says how surely.

k-means cuts half way between two centres, whatever the clusters' widths. A mixture has a width for each component and gives
every row a probability of each; where components overlap it says so.
"""

import sys
from pathlib import Path

import pandas as pd
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from bayesgmm import GaussianMixture
from bayesgmm.plots import soft_and_hard


def main() -> None:
    truth = GaussianMixture.from_parameters(
        weights=[0.6, 0.4],
        means=[[0, 0], [4, 0.5]],
        covariances=[[[4, 0], [0, 4]], [[0.3, 0.1], [0.1, 0.3]]],
        random_state=2,
    )
    values, source = truth.sample(600)
    X = pd.DataFrame(values, columns=["first feature (a.u.)", "second feature (a.u.)"])
    hard = KMeans(2, n_init=10, random_state=0).fit_predict(X / X.std(ddof=0))
    fit = GaussianMixture(n_components=2, random_state=0).fit(X)
    r = fit.predict_proba(X)

    print("600 rows from two components, one wide and one narrow.")
    print("Agreement with the component that each row came from (adjusted Rand index, 1 is perfect):")
    print(
        f"  k-means {adjusted_rand_score(source, hard):.2f}, mixture {adjusted_rand_score(source, r.argmax(axis=1)):.2f}"
    )
    print(
        f"Rows for which the mixture gives no component 90 %: {(r.max(axis=1) < 0.9).sum()}. k-means has no such answer."
    )
    row = int((r.max(axis=1)).argmin())
    print(f"Its least certain row: probabilities {r[row, 0]:.2f} and {r[row, 1]:.2f}.")

    figure = soft_and_hard(fit, X)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
