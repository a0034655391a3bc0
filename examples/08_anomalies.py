"""Anomalies: rows where the density is low, and rows of a component too small to be normal.

A threshold on the density is set by the false-alarm rate that one accepts. Around a posterior each row also gets the probability
that its density lies below it, and a tail probability: how often would the model itself make a row as unlikely as this?
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from bayesgmm import AnomalyDetector, BayesianGaussianMixture, GaussianMixture
from bayesgmm.plots.style import COLOURS, canvas

KINDS = {"ok": ("o", "0.6"), "far": ("X", COLOURS[1]), "small component": ("D", COLOURS[3])}


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
    posterior = BayesianGaussianMixture(n_components=3, method="laplace", random_state=0, progressbar=False)
    detector = AnomalyDetector(posterior, false_alarm=0.01, small_component=0.05, random_state=0).fit(X)
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

    with canvas(figsize=(12, 5), columns=2) as c:
        draw(*c.axes[0], detector, X, table)
    c.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


def draw(left, right, detector, X, table):
    x, y = X.to_numpy().T
    across, up = np.meshgrid(np.linspace(x.min() - 2, x.max() + 2, 160), np.linspace(y.min() - 0.4, y.max() + 0.4, 160))
    grid = pd.DataFrame({X.columns[0]: across.ravel(), X.columns[1]: up.ravel()})
    height = detector.score_samples(grid).reshape(across.shape)
    left.contour(across, up, height, levels=[detector.offset_], colors="black", linestyles="solid", linewidths=1.6)
    handles = [Line2D([], [], color="black", label="threshold")]
    order = np.argsort(table["tail_probability"].to_numpy())
    for kind, (marker, shade) in KINDS.items():
        those = (table["kind"] == kind).to_numpy()
        style = {"marker": marker, "color": shade, "linestyle": "", "markersize": 4 if kind == "ok" else 7}
        left.plot(x[those], y[those], alpha=0.8, markeredgewidth=0, **style)
        rank = np.flatnonzero(those[order]) + 1
        right.plot(rank, table["anomaly_probability"].to_numpy()[order][those[order]], clip_on=False, **style)
        handles.append(Line2D([], [], label=f"{kind}: {those.sum()} rows", **style))
    left.set(
        xlabel=X.columns[0],
        ylabel=X.columns[1],
        title="Far: beyond the threshold. Small component: dense, but few rows",
    )
    right.set(
        xscale="log",
        ylim=(-0.03, 1.03),
        xlabel="rank by tail probability",
        ylabel="probability that the density is below the threshold",
    )
    right.set_title("How sure that a row is far: near 0 or 1 for most, between them in doubt")
    c_legend(left, handles)


def c_legend(ax, handles):
    ax.figure.legend(handles=handles, loc="outside lower center", ncols=4)


if __name__ == "__main__":
    main()
