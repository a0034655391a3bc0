"""Figures on matplotlib: the data, the components, and how uncertain they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray, MixtureParameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe & Ito (2008): told apart by colour-blind readers."""

ELLIPSE_LEVELS = (0.5, 0.9)
"""Probability inside each component's ellipses."""

SHOWN_DRAWS = 60
SHOWN_ROWS = 5000
SHOWN_FEATURES = 4


def mixture_figure(estimator: Any, X: ArrayLike) -> Figure:
    """The data with the fitted components and the spread of their posterior draws.

    One feature: histogram, density and components with a 90 % band. Two: rows with the ellipses that hold 50 % and 90 % of
    each component, and those of posterior draws behind them. More: a matrix of pairs of the first four features.

    Parameters
    ----------
    estimator : GaussianMixture or BayesianGaussianMixture
        Fitted.
    X : array-like of shape (N, D)
        The data. Of more than 5,000 rows an evenly spaced part is drawn.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    from bayesgmm.estimators.validation import feature_names

    table = np.ascontiguousarray(X, dtype=float)
    names = feature_names(estimator)
    draws = estimator._draws.flat() if hasattr(estimator, "_draws") else None
    fitted = _typical(estimator, draws)
    if table.shape[1] == 1:
        figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
        _density_panel(ax, table[:, 0], fitted, draws, names[0])
        _title(figure, estimator, table, draws, bands=True)
        return figure
    responsibilities = estimator.predict_proba(X)[:: max(1, len(table) // SHOWN_ROWS)]
    rows = table[:: max(1, len(table) // SHOWN_ROWS)]
    shown = min(table.shape[1], SHOWN_FEATURES)
    if shown == 2:
        figure, ax = plt.subplots(figsize=(7, 5.5), layout="constrained")
        _pair_panel(ax, rows, responsibilities, fitted, draws, (0, 1))
        ax.set(xlabel=names[0], ylabel=names[1])
        ax.legend(loc="best", frameon=False)
    else:
        figure, axes = plt.subplots(shown - 1, shown - 1, figsize=(3 * shown, 3 * shown), layout="constrained")
        for i in range(1, shown):
            for j in range(shown - 1):
                ax = axes[i - 1, j]
                if j >= i:
                    ax.set_axis_off()
                    continue
                _pair_panel(ax, rows, responsibilities, fitted, draws, (j, i))
                ax.set(xlabel=names[j] if i == shown - 1 else "", ylabel=names[i] if j == 0 else "")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        axes[0, -1].legend(handles, labels, loc="upper right", frameon=False)
    _title(figure, estimator, table, draws)
    return figure


def _typical(estimator: Any, draws: tuple[FloatArray, FloatArray, FloatArray] | None) -> MixtureParameters:
    """The mixture whose ellipses are drawn: EM's fit, or posterior means (the mode where labels are not identified)."""
    if draws is None:
        parameters: MixtureParameters = estimator._parameters
        return parameters
    if not estimator.diagnostics_.labels_identified:
        mode: MixtureParameters = estimator.map_
        return mode
    from bayesgmm.core.covariance import structure
    from bayesgmm.core.parameters import factors_from_covariances

    kind = structure(estimator.covariance_type)
    matrices = kind.expand(estimator.covariances_, *estimator.means_.shape)
    return MixtureParameters(estimator.weights_, estimator.means_, factors_from_covariances(matrices))


def _title(
    figure: Figure, estimator: Any, X: FloatArray, draws: tuple[FloatArray, ...] | None, bands: bool = False
) -> None:
    components = f"{estimator.n_components} component{'s' * (estimator.n_components > 1)}"
    what = f"{len(X)} rows, {components}, covariance {estimator.covariance_type}"
    if draws is None:
        note = "EM fit"
    elif bands:
        note = "lines: posterior mean; bands: 90 % of the posterior"
    elif estimator.diagnostics_.labels_identified:
        note = f"thick: posterior means; thin: {min(SHOWN_DRAWS, len(draws[0]))} posterior draws; 50 % and 90 % of each component"
    else:
        note = "thick: the mode found by EM; thin: posterior draws (components not identified)"
    figure.suptitle(f"{what}\n{note}", fontsize=10)


def _pair_panel(
    ax: Axes,
    rows: FloatArray,
    responsibilities: FloatArray,
    fitted: MixtureParameters,
    draws: tuple[FloatArray, FloatArray, FloatArray] | None,
    pair: tuple[int, int],
) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    K = fitted.n_components
    palette = np.array([to_rgb(COLOURS[k % len(COLOURS)]) for k in range(K)])
    ax.scatter(
        rows[:, pair[0]],
        rows[:, pair[1]],
        s=max(3.0, min(22.0, 4000 / len(rows))),
        c=np.clip(responsibilities @ palette, 0, 1),
        alpha=0.55,
        linewidths=0,
        rasterized=True,
    )
    matrices = fitted.covariances
    select = np.ix_(pair, pair)
    if draws is not None:
        _, means, factors = (part[:: max(1, len(part) // SHOWN_DRAWS)] for part in draws)
        for k in range(K):
            curves = [
                ellipse(m[list(pair)], np.linalg.inv(P @ P.T)[select], ELLIPSE_LEVELS[-1])
                for m, P in zip(means[:, k], factors[:, k], strict=True)
            ]
            ax.add_collection(LineCollection(curves, colors=COLOURS[k % len(COLOURS)], linewidths=0.4, alpha=0.35))
    for k in range(K):
        for level in ELLIPSE_LEVELS:
            curve = ellipse(fitted.means[k, list(pair)], matrices[k][select], level)
            label = f"component {k}: weight {fitted.weights[k]:.2f}" if level == ELLIPSE_LEVELS[0] else None
            ax.plot(*curve.T, color=COLOURS[k % len(COLOURS)], linewidth=1.8, label=label)
        ax.plot(
            *fitted.means[k, list(pair)], marker="+", color=COLOURS[k % len(COLOURS)], markersize=10, markeredgewidth=2
        )


def ellipse(mean: FloatArray, covariance: FloatArray, level: float, points: int = 100) -> FloatArray:
    """The curve (points, 2) that holds the probability ``level`` of a two-dimensional normal."""
    angle = np.linspace(0, 2 * np.pi, points)
    radius = np.sqrt(-2 * np.log1p(-level))
    circle = radius * np.column_stack([np.cos(angle), np.sin(angle)])
    curve: FloatArray = mean + circle @ np.linalg.cholesky(covariance).T
    return curve


def _density_panel(
    ax: Axes,
    x: FloatArray,
    fitted: MixtureParameters,
    draws: tuple[FloatArray, FloatArray, FloatArray] | None,
    name: str,
) -> None:
    ax.hist(x, bins="auto", density=True, color="0.85", edgecolor="0.7", linewidth=0.5)
    margin = 0.05 * np.ptp(x)
    grid = np.linspace(x.min() - margin, x.max() + margin, 512)
    if draws is None:
        ax.plot(grid, np.exp(kernel.log_density(grid[:, None], fitted)), color="black", linewidth=1.8, label="density")
    else:
        weights, means, factors = (np.ascontiguousarray(part[:: max(1, len(part) // 500)]) for part in draws)
        curves = np.exp(kernel.pointwise_log_likelihood(grid[:, None], weights, means, factors))
        low, high = np.quantile(curves, [0.05, 0.95], axis=0)
        ax.fill_between(grid, low, high, color="black", alpha=0.2, linewidth=0)
        ax.plot(grid, curves.mean(axis=0), color="black", linewidth=1.8, label="density")
    for k in range(fitted.n_components):
        one = MixtureParameters(np.ones(1), fitted.means[k : k + 1], fitted.precision_factors[k : k + 1])
        curve = fitted.weights[k] * np.exp(kernel.log_density(grid[:, None], one))
        label = f"component {k}: weight {fitted.weights[k]:.2f}"
        ax.plot(grid, curve, color=COLOURS[k % len(COLOURS)], linewidth=1.5, linestyle="--", label=label)
    ax.set(xlabel=name, ylabel=f"density (per unit of {name})")
    ax.legend(frameon=False)


MARKERS = {"full": "o", "tied": "s", "diag": "^", "spherical": "D"}
"""One for each structure: told apart without colour."""


def selection_figure(selection: Any) -> Figure:
    """Criteria against the number of components, one line a structure, with errors; stacking weights and probabilities as bars.

    Criteria on the deviance scale are shown as differences to the best (0, smaller is better), predictive densities and evidences as
    differences to the best (0, larger is better): LOO's errors are those of the paired difference. Rings mark what each criterion
    picks; hollow markers are models whose flags speak against the criterion: near-singular ones for EM's; for the posterior's, one that
    did not converge, and LOO or an evidence that is itself doubtful. A cut axis is said. AICc stands for AIC where both are there.

    Parameters
    ----------
    selection : Selection

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    from bayesgmm.selection import CRITERIA

    picks = selection.picks
    curves = [
        name
        for name in ("bic", "icl", "aic", "aicc", "waic", "loo", "evidence", "accuracy", "log_loss", "ari")
        if name in picks
    ]
    if {"aic", "aicc"} <= set(curves):
        curves.remove("aic")
    bars = [(column, title) for column, title in _BARS.items() if selection.table[column].notna().any()]
    n_panels = max(1, len(curves) + len(bars))
    n_columns = n_panels if n_panels <= 3 else min(4, -(-n_panels // 2))
    n_rows = -(-n_panels // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(1.0 + 3.6 * n_columns, 0.8 + 2.9 * n_rows), layout="constrained", squeeze=False
    )
    panels = list(axes.ravel())
    hollow = [
        _criterion_panel(ax, selection, CRITERIA[name], picks[name]) for ax, name in zip(panels, curves, strict=False)
    ]
    for ax, (column, title) in zip(panels[len(curves) :], bars, strict=False):
        _bar_panel(ax, selection, column, title)
    for ax in panels[len(curves) + len(bars) :]:
        ax.set_axis_off()
    kinds = list(dict.fromkeys(selection.table.index.get_level_values(0)))
    handles = [
        plt.Line2D([], [], color=_structure_colour(kind), marker=MARKERS[kind], markersize=5, label=kind)
        for kind in kinds
    ]
    for label, size in [("picked", 11)] + [("hollow: not reliable, see flags", 5)] * any(hollow):
        ring = plt.Line2D([], [], linestyle="", marker="o", markersize=size, label=label)
        ring.set(markerfacecolor="none", markeredgecolor="0.3")
        handles.append(ring)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    fit = {"em": "EM", "laplace": "EM; posterior by Laplace", "nuts": "EM; posterior by NUTS"}[selection.method]
    figure.suptitle(f"{selection.n_rows} rows, {len(selection.table)} models ({fit})", fontsize=10)
    return figure


_BARS = {"weight": "Stacking weight (LOO)", "probability": "p(model | data)"}


def _structure_colour(kind: str) -> str:
    return COLOURS[list(MARKERS).index(kind)]


_AGAINST = {
    "em": ("near-singular",),
    "posterior": ("not converged", "modes disagree", "Laplace k-hat high"),
    "labels": (),
    "loo": ("k-hat high",),
    "evidence": ("evidence doubtful",),
}
"""Flags that speak against a criterion, by its source and by its name."""


def _unreliable(criterion: Any, flags: str) -> bool:
    against = (*_AGAINST[criterion.source], *_AGAINST.get(criterion.name, ()))
    return any(flag in against for flag in flags.split(", "))


def _criterion_panel(ax: Axes, selection: Any, criterion: Any, picked: tuple[str, int]) -> bool:
    """One criterion as differences to what it picks; says whether a marker is hollow."""
    table = selection.table
    values = table[criterion.column].astype("float64")
    share = criterion.source == "labels"
    difference = values if share else values - values[picked]
    error = {"loo": "dse", "evidence": "log_evidence_se"}.get(criterion.name)
    kinds = list(dict.fromkeys(table.index.get_level_values(0)))
    any_hollow = False
    for place, kind in enumerate(kinds):
        line = difference.xs(kind, level=0).dropna()
        if line.empty:
            continue
        # Side by side, so that error bars of the same K do not hide one another.
        x = line.index.to_numpy(dtype=float) + 0.08 * (place - (len(kinds) - 1) / 2)
        colour = _structure_colour(kind)
        ax.plot(x, line, color=colour, linewidth=1.3, alpha=0.9)
        if error is not None:
            bars = table[error].xs(kind, level=0).astype("float64").reindex(line.index)
            ax.errorbar(x, line, yerr=bars, fmt="none", ecolor=colour, elinewidth=1.0, capsize=2.5)
        hollow = np.array([_unreliable(criterion, table.loc[(kind, k), "flags"]) for k in line.index])
        any_hollow |= bool(hollow.any())
        for chosen, face in ((~hollow, colour), (hollow, "white")):
            ax.plot(x[chosen], line[chosen], MARKERS[kind], color=colour, markerfacecolor=face, markersize=5)
        if kind == picked[0] and picked[1] in line.index:
            at = list(line.index).index(picked[1])
            ax.plot(x[at], line.iloc[at], "o", markersize=12, markerfacecolor="none", markeredgecolor="0.3", zorder=0)
    title = criterion.title.removeprefix("the ")
    scale = {"em": " (deviance)", "posterior": " (nats)", "labels": ""}[criterion.source]
    better = "higher" if criterion.larger_is_better else "lower"
    ax.set_title(f"{title[0].upper()}{title[1:]}: {better} is better", fontsize=10)
    ax.set_ylabel(title if share else f"difference to the best{scale}", fontsize=9)
    cut = "" if share else _cut_axis(ax, difference.dropna().to_numpy(), criterion.larger_is_better)
    _component_axis(ax, table, cut)
    return any_hollow


def _cut_axis(ax: Axes, difference: FloatArray, larger_is_better: bool) -> str:
    """Cut off models so far from the best that the others would fall on one line; says how many."""
    size = np.sort(np.abs(difference))
    if len(size) < 4:
        return ""
    # What the better half needs, with room; a single distant model does not decide the axis.
    limit = max(4.0 * float(size[(len(size) - 1) // 2]), 20.0)
    outside = int(np.sum(size > limit))
    if not outside:
        return ""
    margin = 0.08 * limit
    ax.set_ylim((-limit, margin) if larger_is_better else (-margin, limit))
    return f"{outside} model{'s' * (outside > 1)} beyond the axis"


def _bar_panel(ax: Axes, selection: Any, column: str, title: str) -> None:
    """A share for every model, side by side at each K."""
    values = selection.table[column].astype("float64")
    kinds = list(dict.fromkeys(values.index.get_level_values(0)))
    width = 0.8 / len(kinds)
    for place, kind in enumerate(kinds):
        line = values.xs(kind, level=0).dropna()
        x = line.index.to_numpy(dtype=float) + width * (place - (len(kinds) - 1) / 2)
        ax.bar(x, line, width=0.9 * width, color=_structure_colour(kind))
    ax.set_title(title, fontsize=10)
    ax.set_ylim(0, 1.02)
    ax.set_ylabel("share", fontsize=9)
    _component_axis(ax, selection.table, "")


def _component_axis(ax: Axes, table: Any, remark: str) -> None:
    ks = sorted(set(table.index.get_level_values(1)))
    ax.set_xlim(ks[0] - 0.6, ks[-1] + 0.6)
    ax.set_xticks(ks if len(ks) <= 12 else ks[:: -(-len(ks) // 12)])
    ax.set_xlabel("components K" + (f" ({remark})" if remark else ""), fontsize=9)
    ax.grid(axis="y", color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)
