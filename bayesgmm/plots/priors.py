"""What a prior says before there are data: densities of the mixtures that it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from bayesgmm.core import kernel
from bayesgmm.core.covariance import structure
from bayesgmm.core.hierarchical import Prior
from bayesgmm.core.parameters import FloatArray, MixtureParameters, factors_from_covariances
from bayesgmm.plots import rows
from bayesgmm.plots.densities import curve_grid
from bayesgmm.plots.fitted import Draws, marginal
from bayesgmm.plots.shapes import ellipse
from bayesgmm.plots.style import (
    COLOURS,
    HISTOGRAM_STYLE,
    INK,
    canvas,
    corner_legend,
    corner_matrix,
    counted,
    label,
    small_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_FEATURES = 4

MEAN_DRAWS = 1000
"""Draws that the mean density is averaged over."""

LEVEL = 0.9
"""Share of a component inside its ellipse."""

REACH = 1.5
"""Ranges of the data on each side of them up to which the prior is shown."""


def prior_predictive(
    prior: Any,
    X: ArrayLike,
    *,
    n_components: int | None = None,
    covariance_type: str = "full",
    features: Sequence[int | str] | None = None,
    draws: int = 40,
    random_state: Any = 0,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Densities of mixtures drawn from a prior, with the data's histogram for scale: what the prior holds for possible.

    One feature: the density of each draw, their mean, and the histogram of the rows. More: the same on the diagonal of a matrix, and
    for each pair the ellipses that hold 90 % of every drawn component, over the rows. A prior that is fit for use covers the data
    without telling where they lie.

    Parameters
    ----------
    prior : ConjugatePrior, HierarchicalPrior, SeparationPrior or BayesianGaussianMixture
        Values that a prior leaves open are resolved from X. An estimator, fitted or not, gives its prior, K and covariance structure.
    X : array-like of shape (N, D)
        Rows for scale, finite.
    n_components : int, optional
        K, where ``prior`` is no estimator and has not been resolved.
    covariance_type : {"full", "tied", "diag", "spherical"}, default "full"
        Where ``prior`` is no estimator.
    features : sequence of int or str, optional
        At most four, by position or name of column. Default: the first four.
    draws : int, default 40
        Mixtures that are shown.
    random_state : int or Generator, default 0
    ax : Axes, optional
        To draw into, for one feature.
    figsize : (float, float), optional
        Inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        If ``prior`` is neither a prior nor an estimator that has one.
    ValueError
        If K is not known, X is not a finite table, a feature is unknown, or ``ax`` is given for a matrix.

    Notes
    -----
    Axes end one and a half ranges of the data beyond them, however far the prior reaches; the title says how much of it lies within.

    References
    ----------
    Gabry, J., Simpson, D., Vehtari, A., Betancourt, M. & Gelman, A. (2019). Visualization in Bayesian workflow. Journal of the Royal
    Statistical Society A 182, 389–402.
    """
    names, table = _table(X)
    chosen, K, kind = _prior_of(prior, n_components, covariance_type)
    resolved = chosen.resolve(table, K, kind)
    positions = _positions(features, names)
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws!r}")
    weights, means, packed, *_ = resolved.draw(np.random.default_rng(random_state), max(draws, MEAN_DRAWS), kind)
    factors = factors_from_covariances(structure(kind).expand(packed, *means.shape[1:]))
    drawn: Draws = (weights, means, np.ascontiguousarray(factors))
    head = f"{type(resolved).__name__}, {counted(K, 'component')}, {kind}"
    note = f"lines: {counted(draws, 'mixture')} drawn from the prior; thick: mean of {len(weights):,}"
    with canvas(
        ax,
        figsize,
        (6.4, 4.4) if len(positions) == 1 else (2.3 * len(positions), 2.25 * len(positions)),
        len(positions),
        len(positions),
    ) as c:
        if len(positions) == 1:
            inside = _curves(c.ax, table[:, positions[0]], marginal(drawn, positions), draws)
            name = label(names[positions[0]])
            c.ax.set(xlabel=name, ylabel="density")
            c.title(head, note, f"{100 * inside:.0f} % of the prior's rows lie within the axis")
            c.legend(_handles())
            return c.figure
        for i, j, panel in corner_matrix(c, [names[f] for f in positions], diagonal=True):
            if i == j:
                _curves(panel, table[:, positions[i]], marginal(drawn, [positions[i]]), draws)
                panel.set_yticks([])
            else:
                pair = [positions[j], positions[i]]
                _ellipses(panel, table[:, pair], marginal(drawn, pair), draws)
        c.title(head, note, f"ellipses hold {100 * LEVEL:.0f} % of each component")
        corner_legend(c, _handles())
        return c.figure


def _handles() -> list[Any]:
    return [
        Line2D([], [], color=INK, linewidth=1.8, label="mean"),
        Line2D([], [], color=COLOURS[0], linewidth=0.8, alpha=0.6, label="draws"),
        Patch(label="rows", **HISTOGRAM_STYLE),
    ]


def _table(X: ArrayLike) -> tuple[list[str], FloatArray]:
    names = [str(name) for name in X.columns] if hasattr(X, "columns") else None
    table = np.ascontiguousarray(X, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size or not np.all(np.isfinite(table)):
        raise ValueError(f"X must be a finite table of rows × features, got an array of shape {table.shape}")
    return names or [f"x{j}" for j in range(table.shape[1])], table


def _prior_of(prior: Any, n_components: int | None, covariance_type: str) -> tuple[Prior, int, str]:
    """A prior with its number of components and structure."""
    if isinstance(prior, Prior):
        alpha = np.asarray(prior.weight_concentration)
        known = len(alpha) if alpha.ndim else None
        if n_components is None and known is None:
            raise ValueError("n_components is not known: give it, or a resolved prior, or an estimator")
        return prior, int(n_components or known or 1), structure(covariance_type).name
    own = getattr(prior, "prior_", getattr(prior, "prior", None))
    if isinstance(own, str) and hasattr(prior, "draws"):
        from bayesgmm.core.priors import ConjugatePrior

        own = ConjugatePrior()
    if not isinstance(own, Prior):
        raise TypeError(f"prior_predictive takes a prior, or an estimator that has one; got {type(prior).__name__}")
    return own, int(prior.n_components), str(prior.covariance_type)


def _positions(features: Sequence[int | str] | None, names: list[str]) -> list[int]:
    D = len(names)
    if features is None:
        return list(range(min(D, MAX_FEATURES)))
    out = []
    for feature in [features] if isinstance(features, int | str) else features:
        if isinstance(feature, str) and feature in names:
            out.append(names.index(feature))
        elif isinstance(feature, int | np.integer) and -D <= feature < D:
            out.append(int(feature) % D)
        else:
            raise ValueError(f"feature {feature!r} is not one of the table's: {', '.join(map(repr, names[:10]))}")
    if not out or len(set(out)) < len(out) or len(out) > MAX_FEATURES:
        raise ValueError(f"features must be different ones, one to {MAX_FEATURES}; got {features!r}")
    return out


def _limits(x: FloatArray) -> tuple[float, float]:
    """Ends of an axis: the data with room on each side."""
    low, high = float(x.min()), float(x.max())
    room = REACH * ((high - low) or 1.0)
    return low - room, high + room


def _curves(ax: Axes, x: FloatArray, drawn: Draws, n_shown: int) -> float:
    """Histogram, densities of draws and their mean; the share of the prior's rows on the axis."""
    low, high = _limits(x)
    edges = rows.histogram_edges(x)
    heights = np.histogram(x, edges, density=True)[0]
    ax.stairs(heights, edges, fill=True, label="rows", **HISTOGRAM_STYLE)
    ax.stairs(heights, edges, color="0.35", linewidth=1.0, zorder=3)
    ends = np.array([low, high])
    for s in range(n_shown):
        one = MixtureParameters(*(part[s] for part in drawn))
        grid = curve_grid(one, ends)
        ax.plot(grid, np.exp(kernel.log_density(grid[:, None], one)), color=COLOURS[0], linewidth=0.8, alpha=0.35)
    grid = np.linspace(low, high, 401)
    mean = np.exp(kernel.posterior_predictive(grid[:, None], *drawn, with_responsibilities=False)[0])
    ax.plot(grid, mean, color=INK, linewidth=1.8, label="mean")
    # Narrow components of the prior may be of any height: the data say how high is worth seeing.
    ax.set(xlim=(low, high), ylim=(0, 2.5 * float(heights.max())))
    small_numbers(ax.yaxis)
    return float(np.trapezoid(mean, grid))


def _ellipses(ax: Axes, two: FloatArray, drawn: Draws, n_shown: int) -> None:
    for s in range(n_shown):
        for k in range(drawn[1].shape[1]):
            curve = ellipse(drawn[1][s, k], drawn[2][s, k], LEVEL)
            ax.plot(*curve.T, color=COLOURS[0], linewidth=0.6, alpha=0.3)
    rows.scatter(ax, two[:, 0], two[:, 1], alpha=0.45)
    ax.set(xlim=_limits(two[:, 0]), ylim=_limits(two[:, 1]))
