"""The shapes of the components: ellipses over the rows, with the spread of posterior draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.plots.style import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ELLIPSE_LEVELS = (0.5, 0.9)
"""Probability inside each component's ellipses."""

SHOWN_DRAWS = 60
SHOWN_ROWS = 5000
SHOWN_FEATURES = 4


def mixture(estimator: Any, X: ArrayLike) -> Figure:
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


def ellipses(fit: Any, X: ArrayLike) -> Figure:
    """Ellipses."""
    return mixture(fit, X)
