"""Which component a row comes from: soft assignment, its uncertainty, and k-means' hard answer beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from bayesgmm.core import kernel
from bayesgmm.core.clustering import nearest_centre
from bayesgmm.core.parameters import FloatArray
from bayesgmm.plots import rows
from bayesgmm.plots.densities import BAND, curve_grid
from bayesgmm.plots.fitted import Fitted, evenly_spaced, fitted, marginal_parameters
from bayesgmm.plots.shapes import crowded, draw_ellipses, plane_limits
from bayesgmm.plots.style import blend, canvas, colour, component_handles, counted, label, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVE_DRAWS = 500
"""Draws whose responsibilities make the band over one feature."""

KMEANS_ROWS, KMEANS_STARTS = 20_000, 10
"""Rows that k-means is fitted to at most, and its starts."""


def responsibilities(
    fit: Any,
    X: ArrayLike | None = None,
    *,
    features: Sequence[int | str] | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """The rows coloured by their responsibilities, larger where it is uncertain which component they come from.

    One feature: the probability of each component along it, with a 90 % posterior band, above the rows. More: rows in the plane of
    two features; the colour mixes those of the components, the area grows with 1 − max_k r_nk.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted or loaded.
    X : array-like of shape (N, D), optional
        Rows. A posterior's own where left out; EM's fit needs them.
    features : sequence of int or str, optional
        The two to show, by position or name. Default: those in which the components differ most. Responsibilities are by all.
    ax : Axes, optional
        To draw into.
    figsize : (float, float), optional
        Inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        If ``fit`` is no mixture of this package.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If there are no rows, or X does not have the fit's features.

    Notes
    -----
    Of a posterior they are averaged over draws; where components are not identified they are the mode's. More than 20,000 rows are
    shown as bins with the mean colour of their rows.

    References
    ----------
    McLachlan & Peel (2000), Finite Mixture Models, Wiley.
    """
    view = fitted(fit, X, need_rows=True, what="responsibilities")
    if view.n_features == 1:
        return _along_one_feature(view, ax, figsize)
    pair, remark = view.plane(features)
    r = view.responsibilities
    uncertainty = 1 - r.max(axis=1)
    with canvas(ax, figsize, (6.4, 5.2)) as c:
        size = max(4.0, min(18.0, 4000 / len(r)))
        order = np.argsort(uncertainty, kind="stable") if not crowded(view) else slice(None)
        x, y = view.rows[:, pair[0]], view.rows[:, pair[1]]
        areas = size * (1 + 8 * uncertainty[order])
        rows.scatter(c.ax, x[order], y[order], blend(r[order]), areas, alpha=0.7)
        draw_ellipses(c.ax, marginal_parameters(view.typical, pair), (0.9,), halo=crowded(view))
        c.ax.set(xlim=plane_limits(view, pair[0]), ylim=plane_limits(view, pair[1]))
        c.ax.set(xlabel=label(view.names[pair[0]]), ylabel=label(view.names[pair[1]]))
        how = "bins: mean colour of their rows" if crowded(view) else "larger: less certain"
        doubtful = int((uncertainty > 0.1).sum())
        c.title(
            view.described,
            f"colour: {_source(view)}; {how}; ellipses hold 90 % of each component",
            f"rows with no component above 90 %: {doubtful:,}",
            remark,
        )
        handles: list[Any] = component_handles(view.typical.weights)
        if not crowded(view):
            handles += [
                Line2D(
                    [],
                    [],
                    linestyle="",
                    marker="o",
                    color="0.5",
                    alpha=0.7,
                    markeredgewidth=0,
                    markersize=np.sqrt(size * (1 + 8 * (1 - top))),
                    label=f"largest responsibility {top:.0%}".replace("%", " %"),
                )
                for top in (1.0, 0.5)
            ]
        c.legend(handles)
        return c.figure


def _source(view: Fitted) -> str:
    if view.draws is None:
        return "responsibilities of the EM fit"
    if not view.identified:
        return "responsibilities at the mode (components are not identified)"
    return f"responsibilities (mean of {view.n_averaged:,} draws)"


def _along_one_feature(view: Fitted, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    x = view.rows[:, 0]
    grid = curve_grid(view.typical, x)
    typical = kernel.responsibilities(grid[:, None], view.typical)[0]
    banded = view.draws is not None and view.identified
    with canvas(ax, figsize) as c:
        if banded:
            low, middle, high = _responsibility_band(view, grid)
        else:
            middle = typical
        for k in range(view.n_components):
            if banded:
                c.ax.fill_between(grid, low[:, k], high[:, k], color=colour(k), alpha=0.2, linewidth=0)
            c.ax.plot(grid, middle[:, k], color=colour(k), linewidth=1.8)
        shown = evenly_spaced(len(x), rows.BINNED_ROWS)
        heights = -0.05 - 0.1 * rows.jitter(len(shown))
        rows.scatter(c.ax, x[shown], heights, blend(view.responsibilities[shown]))
        c.ax.axhline(0, color="0.3", linewidth=0.8)
        c.ax.set(xlim=(grid[0], grid[-1]), ylim=(-0.18, 1.03), xlabel=label(view.names[0]), ylabel="responsibility")
        c.ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
        band = f"; band: {100 * BAND:.0f} % of the posterior at each point" if banded else ""
        part = "" if len(shown) == len(x) else f" ({len(shown):,} of them, evenly spaced)"
        c.title(
            view.described, f"{_source(view)}{band}", f"below: the rows{part} in the mix of the components' colours"
        )
        c.legend(component_handles(view.typical.weights))
        return c.figure


def _responsibility_band(view: Fitted, grid: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Lower end, mean and upper end of the responsibilities along a grid, each (points, K)."""
    draws = view.some_draws(CURVE_DRAWS)
    weights, means, factors = draws
    K = view.n_components
    low, high = np.empty((len(grid), K)), np.empty((len(grid), K))
    total = kernel.pointwise_log_likelihood(grid[:, None], weights, means, factors)
    one = np.ones((len(weights), 1))
    for k in range(K):
        alone = kernel.pointwise_log_likelihood(
            grid[:, None], one, np.ascontiguousarray(means[:, [k]]), np.ascontiguousarray(factors[:, [k]])
        )
        share = np.exp(np.minimum(np.log(weights[:, [k]]) + alone - total, 0.0))
        low[:, k], high[:, k] = np.quantile(share, [(1 - BAND) / 2, (1 + BAND) / 2], axis=0)
    assert view.draws is not None
    return low, kernel.posterior_predictive(grid[:, None], *view.draws)[1], high


def soft_and_hard(
    fit: Any,
    X: ArrayLike | None = None,
    *,
    features: Sequence[int | str] | None = None,
    figsize: tuple[float, float] | None = None,
    random_state: Any = 0,
) -> Figure:
    """k-means' hard answer beside the mixture's soft one.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted or loaded.
    X : array-like of shape (N, D), optional
        Rows. A posterior's own where left out; EM's fit needs them.
    features : sequence of int or str, optional
        The two to show, by position or name. Default: those in which the components differ most. Both answers are by all features.
    figsize : (float, float), optional
        Inches.
    random_state : int, RandomState or None, default 0
        Of k-means (scikit-learn, 10 starts, features divided by their standard deviations, at most 20,000 rows for the centres).

    Returns
    -------
    matplotlib.figure.Figure
        Clusters have the colours of the components that they share most rows with; the title has the adjusted Rand index of the two.

    Raises
    ------
    TypeError, NotFittedError, ValueError
        As :func:`responsibilities` does.

    References
    ----------
    Lloyd (1982), Least squares quantization in PCM, IEEE Transactions on Information Theory 28, 129–137; McLachlan & Peel (2000), Finite
    Mixture Models, Wiley.
    """
    from sklearn.metrics import adjusted_rand_score

    view = fitted(fit, X, need_rows=True, what="soft_and_hard")
    r = view.responsibilities
    hard = kmeans_labels(view, r, random_state)
    soft = r.argmax(axis=1)
    differ = int((hard != soft).sum())
    index = adjusted_rand_score(soft, hard) if view.n_components > 1 else 1.0
    with canvas(None, figsize, (9.2, 4.9), 1, 2, sharex=True, sharey=True) as c:
        left, right = c.axes[0]
        if view.n_features == 1:
            _stacked(left, view, np.eye(view.n_components)[hard])
            _stacked(right, view, r)
            left.set_ylabel("rows in a bin")
            for ax in (left, right):
                ax.set_xlabel(label(view.names[0]))
            remark = ""
        else:
            pair, remark = view.plane(features)
            x, y = view.rows[:, pair[0]], view.rows[:, pair[1]]
            rows.scatter(left, x, y, palette(view.n_components)[hard])
            rows.scatter(right, x, y, blend(r))
            draw_ellipses(right, marginal_parameters(view.typical, pair), (0.9,), halo=crowded(view))
            for ax in (left, right):
                ax.set(
                    xlim=plane_limits(view, pair[0]),
                    ylim=plane_limits(view, pair[1]),
                    xlabel=label(view.names[pair[0]]),
                )
            left.set_ylabel(label(view.names[pair[1]]))
        left.set_title("k-means: each row belongs to one cluster")
        right.set_title("mixture: colours mix by responsibility")
        c.title(
            f"{view.described}; {_source(view)}",
            f"k-means puts {counted(differ, 'row')} elsewhere (adjusted Rand index {index:.2f})",
            remark,
        )
        c.legend(component_handles(view.typical.weights))
        return c.figure


def kmeans_labels(view: Fitted, r: FloatArray, random_state: Any = 0) -> np.ndarray:
    """Clusters of k-means on standardised features (N,), numbered like the components that they share most rows with."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    K = view.n_components
    if K == 1:
        return np.zeros(len(view.rows), dtype=np.int64)
    part = view.rows[evenly_spaced(len(view.rows), KMEANS_ROWS)]
    origin, spread = part.mean(axis=0), part.std(axis=0)
    scale = 1 / np.where(spread > 0, spread, 1.0)
    Z = (part - origin) * scale
    n_clusters = min(K, len(np.unique(Z, axis=0))) if len(Z) < 1000 else K
    # One thread: passes this short wait for one another on a busy machine.
    with threadpool_limits(1):
        found = KMeans(n_clusters, n_init=KMEANS_STARTS, random_state=random_state).fit(Z)
    labels = (
        found.labels_ if len(Z) == len(view.rows) else nearest_centre(view.rows, origin, scale, found.cluster_centers_)
    )
    shared = np.zeros((K, K))
    for k in range(K):
        shared[:, k] = np.bincount(labels, weights=r[:, k], minlength=K)
    clusters, components = linear_sum_assignment(-shared)
    name = np.empty(K, dtype=np.int64)
    name[clusters] = components
    return name[labels]


def _stacked(ax: Axes, view: Fitted, shares: FloatArray) -> None:
    """Histogram of one feature in which each row is divided among the components."""
    x = view.rows[:, 0]
    edges = rows.histogram_edges(x)
    base = np.zeros(len(edges) - 1)
    for k in range(shares.shape[1]):
        top = base + np.histogram(x, edges, weights=shares[:, k])[0]
        ax.stairs(top, edges, baseline=base, fill=True, color=colour(k), alpha=0.8)
        base = top
