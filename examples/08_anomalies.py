"""Anomalies: rows where the density is low, and rows of a component too small to be normal.

A threshold on the density is set by the false-alarm rate that one accepts. Around a posterior each row also gets the probability
that its density lies below it, and a tail probability: how often would the model itself make a row as unlikely as this?
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

from bayesgmm import AnomalyDetector, BayesianGaussianMixture, GaussianMixture
from bayesgmm.plots import anomaly_density, flagged_share, ranked_scores
from bayesgmm.plots.style import canvas


def rows() -> tuple[pd.DataFrame, np.ndarray]:
    """Two large groups, a tiny one of 8 rows, and 6 rows strewn over the plane."""
    large = GaussianMixture.from_parameters(
        [0.6, 0.4], [[20.0, 1.0], [32.0, 2.0]], [[[4.0, 0.3], [0.3, 0.06]], [[6.0, -0.4], [-0.4, 0.1]]], random_state=3
    )
    tiny = GaussianMixture.from_parameters([1.0], [[20.0, 3.0]], [[[0.25, 0.0], [0.0, 0.005]]], random_state=0)
    strewn = np.random.default_rng(12).uniform([10, 0], [42, 4], (6, 2))
    values = np.vstack([large.sample(500)[0], tiny.sample(8)[0], strewn])
    made = np.repeat(["large groups", "tiny group", "strewn"], [500, 8, 6])
    return pd.DataFrame(values, columns=["temperature (°C)", "vibration (mm/s)"]), made


def main() -> None:
    X, made = rows()
    # The smallest component has two places where it may be, as the verdict says: densities average over both.
    warnings.simplefilter("ignore", ConvergenceWarning)
    posterior = BayesianGaussianMixture(n_components=3, method="laplace", random_state=0, progressbar=False)
    detector = AnomalyDetector(posterior, false_alarm=0.01, small_component=0.05, random_state=0).fit(X)
    print(detector.estimator_.diagnostics_.verdict)
    table = detector.table()
    print(
        f"Threshold: log density {detector.offset_:.2f}; {100 * detector.false_alarm_:.1f} % of the model's own rows lie below it."
    )
    print(pd.crosstab(pd.Series(made, name="made as"), table["kind"]).to_string())
    worst = table.nsmallest(8, "tail_probability")
    print("\nThe rows of smallest tail probability, each left out of the fit that judges it:")
    print(X.join(worst[["tail_probability", "anomaly_probability", "kind"]], how="right").round(4).to_string())
    found = detector.discoveries(rate=0.05)["discovery"]
    right = (found & (made != "large groups")).sum()
    print(
        f"\nDiscoveries at a false-discovery rate of 5 %: {found.sum()}, of which {right} are not of the large groups."
    )

    with canvas(figsize=(14, 5.2), columns=3) as c:
        left, middle, right = c.axes[0]
        anomaly_density(detector, ax=left)
        left.set_title(
            "The threshold as a contour; rows beyond it are far,\nthose of a small component are dense, but few"
        )
        ranked_scores(detector, top=16, ax=middle)
        middle.set_title(
            "The 16 lowest log densities, with 90 % intervals\nand tail probabilities; line: the threshold"
        )
        flagged_share(detector, ax=right)
        right.get_legend().set_frame_on(True)
        right.get_legend().get_frame().set(facecolor="white", edgecolor="none", alpha=1)
        right.set_title("Rows that a threshold flags, and how many it would flag\nif all came from the model")
    c.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
