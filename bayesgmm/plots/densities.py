"""The density of a mixture over its data: a curve with its posterior band, contours, or a matrix of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.plots import rows
from bayesgmm.plots.fitted import Draws, Fitted, fitted, marginal, marginal_parameters
from bayesgmm.plots.style import (
    BAND_STYLE,
    HISTOGRAM_STYLE,
    INK,
    SHOWN_COMPONENTS,
    canvas,
    colour,
    component_handles,
    corner_legend,
    corner_matrix,
    label,
    small_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = 0.9
"""Probability of the pointwise posterior band."""

BAND_DRAWS = 1000
"""Draws whose curves make the band."""

SURFACE_DRAWS = 200
"""Draws that a density of two features is averaged over."""

REGIONS = (0.25, 0.5, 0.75, 0.95)
"""Probability inside the contours."""

REGION_ROWS = 10_000
"""Simulated rows whose densities say how high the contours lie; the probability inside is then off by some 0.005."""

GRID = 110
"""Points along each side of the plane that contours are drawn from."""

MAX_FEATURES = 4


def density(
    fit: Any,
    X: ArrayLike | None = None,
    *,
    features: Sequence[int | str] | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """The fitted density with the data: one feature as a curve, two as contours, more as a matrix of both.

    One feature: histogram, density (posterior mean) with a pointwise 90 % posterior band, and each component times its weight.
    Two: contours that enclose 25, 50, 75 and 95 % of the mixture, over the rows. More: these for each pair, with the single features
    on the diagonal.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted or loaded.
    X : array-like of shape (N, D), optional
        Rows to show. A posterior's own where left out; without any, the density stands alone.
    features : sequence of int or str, optional
        At most four, by position or name; their marginal is shown. Default: all, or the four in which the components differ most.
    ax : Axes, optional
        To draw into, for one or two features.
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
        If X does not have the fit's features, a feature is unknown, or ``ax`` is given for a matrix.

    Notes
    -----
    Curves average all draws; the band has 1,000 and a surface 200 of them, evenly spaced. More than 20,000 rows are shown as bins.

    References
    ----------
    Gelman, Carlin, Stern, Dunson, Vehtari & Rubin (2013), Bayesian Data Analysis, third edition, chapter 22.
    """
    view = fitted(fit, X)
    chosen, remark = view.separating(features, MAX_FEATURES)
    if len(chosen) == 1:
        return _curve_figure(view, chosen[0], remark, ax, figsize)
    if len(chosen) == 2:
        return _surface_figure(view, chosen, remark, ax, figsize)
    with canvas(ax, figsize, (2.3 * len(chosen), 2.25 * len(chosen)), len(chosen), len(chosen)) as c:
        simulated = _simulated(view)
        missed = 0
        for i, j, panel in corner_matrix(c, [view.names[f] for f in chosen], diagonal=True):
            if i == j:
                curve_panel(panel, view, chosen[i])
                panel.set_yticks([])
            else:
                missed += surface_panel(panel, view, [chosen[j], chosen[i]], simulated)
        for i in range(len(chosen)):
            limits = c.axes[i, i].get_xlim()
            for below in range(i, len(chosen)):
                c.axes[below, i].set_xlim(limits)
            for left in range(i):
                c.axes[i, left].set_ylim(limits)
        c.title(view.described, _band_note(view), _contour_note(view, missed), remark)
        corner_legend(c, _handles(view, band=True, most=8))
        return c.figure


def _curve_figure(
    view: Fitted, feature: int, remark: str, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    with canvas(ax, figsize) as c:
        cut = curve_panel(c.ax, view, feature)
        name = label(view.names[feature])
        c.ax.set(xlabel=name, ylabel="density" if len(name) > 30 else f"density per unit of {name}")
        c.title(view.described, _band_note(view), "a narrower component's peak is cut off" if cut else "", remark)
        c.legend(_handles(view, band=True))
        return c.figure


def _surface_figure(
    view: Fitted, pair: Sequence[int], remark: str, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    with canvas(ax, figsize, (6.4, 5.2)) as c:
        missed = surface_panel(c.ax, view, pair, _simulated(view), labels=True)
        c.ax.set(xlabel=label(view.names[pair[0]]), ylabel=label(view.names[pair[1]]))
        c.title(view.described, _contour_note(view, missed), remark)
        c.legend(_handles(view, band=False))
        return c.figure


def _band_note(view: Fitted) -> str:
    if view.draws is None:
        return "line: density of the EM fit (no posterior draws, so no band)"
    note = f"line: posterior mean; band: {100 * BAND:.0f} % of the posterior at each point ({len(view.some_draws(BAND_DRAWS)[0])} draws)"
    return note if view.identified else f"{note}; components: {view.drawn}"


def _contour_note(view: Fitted, missed: int) -> str:
    shares = ", ".join(f"{100 * share:.0f}" for share in REGIONS)
    source = "EM fit" if view.draws is None else f"mean of {len(view.some_draws(SURFACE_DRAWS)[0])} posterior draws"
    note = f"contours enclose {shares} % of the mixture ({source})"
    return f"{note}; {missed} too narrow to be drawn" if missed else note


def _handles(view: Fitted, band: bool, most: int = SHOWN_COMPONENTS) -> list[Any]:
    handles: list[Any] = []
    if band:
        handles.append(Line2D([], [], color=INK, linewidth=1.8, label="density"))
        if view.draws is not None:
            handles.append(Patch(label=f"{100 * BAND:.0f} % band", **BAND_STYLE))
    if band and view.X is not None:
        handles.append(Patch(label="rows", **HISTOGRAM_STYLE))
    style = {"linestyle": "--"} if band else {"linestyle": "", "marker": "P", "markersize": 8}
    return handles + component_handles(view.typical.weights, most, **style)


def curve_panel(ax: Axes, view: Fitted, feature: int) -> bool:
    """Histogram, density with band, and components of one feature; says whether a peak is cut off."""
    one = marginal_parameters(view.typical, [feature])
    x = None if view.X is None else view.X[:, feature]
    grid = curve_grid(one, x)
    top = np.inf
    if x is not None:
        edges = rows.histogram_edges(x)
        heights = np.histogram(x, edges, density=True, weights=view.row_weights)[0]
        ax.stairs(heights, edges, fill=True, label="rows", **HISTOGRAM_STYLE)
        top = float(heights.max())
    if view.draws is None:
        middle = np.exp(kernel.log_density(grid[:, None], one))
        highest = middle.max()
    else:
        draws = marginal(view.draws, [feature])
        middle = np.exp(kernel.posterior_predictive(grid[:, None], *draws, with_responsibilities=False)[0])
        curves = np.exp(
            kernel.pointwise_log_likelihood(grid[:, None], *marginal(view.some_draws(BAND_DRAWS), [feature]))
        )
        low, high = np.quantile(curves, [(1 - BAND) / 2, (1 + BAND) / 2], axis=0)
        ax.fill_between(grid, low, high, label="band", **BAND_STYLE)
        highest = max(middle.max(), high.max())
    ax.plot(grid, middle, color=INK, linewidth=1.8, label="density")
    for k in range(view.n_components):
        ax.plot(grid, one.weights[k] * component_curve(grid, one, k), color=colour(k), linewidth=1.5, linestyle="--")
    ax.set_xlim(grid[0], grid[-1])
    small_numbers(ax.yaxis)
    cut = highest > 4 * top
    ax.set_ylim(0, 1.05 * (2 * top if cut else max(highest, top if np.isfinite(top) else 0)))
    return cut


def component_curve(grid: FloatArray, parameters: MixtureParameters, k: int) -> FloatArray:
    """Density of component k of a mixture of one feature, without its weight."""
    one = MixtureParameters(np.ones(1), parameters.means[k : k + 1], parameters.precision_factors[k : k + 1])
    return np.exp(kernel.log_density(grid[:, None], one))


def curve_grid(parameters: MixtureParameters, x: FloatArray | None, points: int = 401) -> FloatArray:
    """Points that a curve of one feature is drawn at: even ones, and closer ones where a component is narrow."""
    means, deviations = parameters.means[:, 0], 1 / parameters.precision_factors[:, 0, 0]
    if x is not None and x.max() > x.min():
        low, high = rows.limits(x)
    else:
        low, high = float((means - 4 * deviations).min()), float((means + 4 * deviations).max())
    near = means[:, None] + deviations[:, None] * np.linspace(-5, 5, 51)
    grid = np.concatenate([np.linspace(low, high, points), near.ravel()])
    return np.unique(grid[(grid >= low) & (grid <= high)])


def _simulated(view: Fitted) -> FloatArray:
    """Rows of the mixture, from draws by turns: the same every time."""
    rng = np.random.default_rng(0)
    weights, means, factors = view.some_draws(SURFACE_DRAWS)
    which = np.arange(REGION_ROWS) % len(weights)
    cumulative = np.cumsum(weights, axis=1)[which]
    member = (rng.random(REGION_ROWS)[:, None] * cumulative[:, -1:] > cumulative).sum(axis=1)
    member = np.minimum(member, view.n_components - 1)
    out = rng.standard_normal((REGION_ROWS, view.n_features))
    for k in range(view.n_components):
        mine = member == k
        P = factors[which[mine], k]
        out[mine] = means[which[mine], k] + np.linalg.solve(np.swapaxes(P, 1, 2), out[mine, :, None])[..., 0]
    return out


def region_heights(simulated: FloatArray, draws: Draws, shares: Sequence[float] = REGIONS) -> FloatArray:
    """Heights of the density above which a share of its mass lies, from rows that follow it; ascending."""
    log_density = kernel.posterior_predictive(simulated, *draws, with_responsibilities=False)[0]
    return np.exp(np.quantile(log_density, np.sort(1 - np.asarray(shares))))


def surface_panel(ax: Axes, view: Fitted, pair: Sequence[int], simulated: FloatArray, labels: bool = False) -> int:
    """Rows, contours of the density and means of two features; the number of contours that the grid could not show."""
    draws = marginal(view.some_draws(SURFACE_DRAWS), pair)
    two = marginal_parameters(view.typical, pair)
    if view.X is not None:
        rows.scatter(ax, view.X[:, pair[0]], view.X[:, pair[1]], alpha=0.45)
    x, y = (plane_axis(two, axis, _span(view, simulated, feature)) for axis, feature in enumerate(pair))
    points = np.column_stack([part.ravel() for part in np.meshgrid(x, y)])
    height = np.exp(kernel.posterior_predictive(points, *draws, with_responsibilities=False)[0]).reshape(len(y), len(x))
    wanted = np.unique(region_heights(np.ascontiguousarray(simulated[:, pair]), draws))
    shown = wanted[(wanted < height.max()) & (wanted > height.min())]
    if len(shown):
        # Relative heights: matplotlib's tolerances are absolute, and densities may be of any size.
        lines = ax.contour(
            x,
            y,
            height / height.max(),
            levels=shown / height.max(),
            colors=INK,
            linewidths=np.linspace(0.8, 1.7, len(shown)),
            zorder=2,
        )
        if labels and len(shown) == len(REGIONS):
            shares = [f"{100 * share:.0f} %" for share in sorted(REGIONS, reverse=True)]
            ax.clabel(lines, fmt=dict(zip(lines.levels, shares, strict=True)), fontsize=7.5)
    for k, mean in enumerate(two.means):
        ax.plot(*mean, "P", color=colour(k), markersize=9, markeredgecolor="white", markeredgewidth=1.0, zorder=4)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    return len(REGIONS) - len(shown)


def _span(view: Fitted, simulated: FloatArray, feature: int) -> FloatArray:
    """Values that an axis has to hold: the rows', and nearly all of what the mixture gives."""
    ends = np.quantile(simulated[:, feature], [0.002, 0.998])
    return ends if view.X is None else np.append(ends, [view.X[:, feature].min(), view.X[:, feature].max()])


def plane_axis(parameters: MixtureParameters, axis: int, values: FloatArray) -> FloatArray:
    """Points along an axis that holds the values: even ones, and closer ones where a component is narrow."""
    one = marginal_parameters(parameters, [axis])
    even = curve_grid(one, values, GRID)
    deviations = 1 / one.precision_factors[:, 0, 0]
    narrow = deviations < 6 * (even[-1] - even[0]) / GRID
    if not narrow.any():
        return np.linspace(even[0], even[-1], GRID)
    near = one.means[narrow] + deviations[narrow, None] * np.linspace(-3.5, 3.5, 29)
    grid = np.concatenate([np.linspace(even[0], even[-1], GRID), near.ravel()[: 29 * 8]])
    return np.unique(grid[(grid >= even[0]) & (grid <= even[-1])])
