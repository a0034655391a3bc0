"""Old Faithful from end to end, as an analyst would report it: how many groups, what they are, how sure, which rows are odd.

Choose K; fit by EM and by MCMC; ask whether the draws can be trusted before anything else; put both fits side by side; look at
groups, rows in doubt and anomalies; and check whether the model could have made the data.
"""

import sys
from pathlib import Path

from sklearn.frozen import FrozenEstimator

from bayesgmm import AnomalyDetector, BayesianGaussianMixture, GaussianMixture, compare, select
from bayesgmm.datasets import load_faithful
from bayesgmm.plots import density, ellipses, number_of_components, responsibilities
from bayesgmm.plots.style import canvas


def main() -> None:
    X = load_faithful().rename(columns={"eruptions": "eruption (minutes)", "waiting": "waiting (minutes)"})
    found = select(
        X, range(1, 5), "full", method="laplace", criteria=["bic", "icl", "loo", "evidence"], sensitivity=False,
        random_state=0, progressbar=False,
    )  # fmt: skip
    print("1. How many?", found.summary())
    K = found.best("icl")[1]
    print(f"   ICL counts groups that keep apart: the rest of this report has K = {K}.")

    em = GaussianMixture(n_components=K, random_state=0).fit(X)
    post = BayesianGaussianMixture(n_components=K, random_state=0, progressbar=False).fit(X)
    print("\n2. Can it be trusted?", post.diagnostics_.verdict)
    print("\n3. EM ± standard error beside the posterior")
    print(compare(em, post)[["em", "em_se", "posterior_median", "lower", "upper"]].round(3).to_string())
    print("\n4. Groups:", post.partition())

    detector = AnomalyDetector(FrozenEstimator(post), false_alarm=0.01, random_state=0).fit(None)
    table = detector.table(min_responsibility=0.9)
    print("\n5. Rows:", table["reason"].value_counts().to_dict())
    odd = table.nsmallest(5, "tail_probability")
    print(X.join(odd[["tail_probability", "anomaly_probability", "kind"]], how="right").round(4).to_string())

    with canvas(figsize=(12, 9), rows=2, columns=2) as c:
        (first, second), (third, fourth) = c.axes
        ellipses(post, ax=first)
        first.set_title("Components: ellipses of 50 and 90 % at the posterior means,\nthin: 90 % ellipses of 60 draws")
        number_of_components(found, ax=second)
        second.set_title(
            f"How many components the density asks for, by the evidence;\nICL, which counts groups that keep apart, picks K = {K}"
        )
        responsibilities(post, ax=third)
        far = X[table["kind"] == "far"].to_numpy()
        third.plot(*far.T, "o", markersize=12, markerfacecolor="none", markeredgecolor="black")
        third.set_title(
            f"Rows in the mix of the components' colours;\nrings: the {len(far)} rows beyond the threshold of 1 % false alarms"
        )
        density(post, features=["waiting (minutes)"], ax=fourth)
        fourth.set_title(
            "Waiting times: density of the posterior, its 90 % band,\nand the components with their weights"
        )
    figure = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png")
    c.figure.savefig(figure, dpi=110)
    print("\n6. All of it on one page, to hand on:", post.report(figure.with_suffix(".html")).name)


if __name__ == "__main__":
    main()
