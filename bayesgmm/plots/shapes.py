"""The shapes of the components: ellipses over the rows with the spread of posterior draws, and the four structures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import patheffects
from matplotlib.collections import LineCollection
from numpy.typing import ArrayLike

from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.plots import rows
from bayesgmm.plots.densities import density
from bayesgmm.plots.fitted import Draws, Fitted, evenly_spaced, fitted, marginal, marginal_parameters, reordered
from bayesgmm.plots.style import (
    MUTED,
    blend,
    canvas,
    colour,
    component_handles,
    corner_legend,
    corner_matrix,
    counted,
    label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = (0.5, 0.9)
"""Probability inside each component's ellipses."""

SHOWN_DRAWS = 60
MAX_FEATURES = 4

STRUCTURE_ROWS = 5_000
"""Rows that the four structures are fitted to at most."""

STRUCTURE_STARTS, STRUCTURE_TOL = 4, 1e-6
"""Starts and tolerance of these fits: what a figure can show."""


def mixture(fit: Any, X: ArrayLike | None = None, *, figsize: tuple[float, float] | None = None) -> Figure:
    """The one figure of a fit: :func:`density` of a single feature, :func:`ellipses` of more.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted or loaded.
    X : array-like of shape (N, D), optional
        Rows to show. A posterior's own where left out.
    figsize : (float, float), optional
        Inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError, ValueError
        As those two do.

    References
    ----------
    McLachlan & Peel (2000), Finite Mixture Models, Wiley.
    """
    if getattr(fit, "n_features_in_", 0) == 1:
        return density(fit, X, figsize=figsize)
    return ellipses(fit, X, figsize=figsize)


def ellipses(
    fit: Any,
    X: ArrayLike | None = None,
    *,
    levels: Sequence[float] = LEVELS,
    draws: int = SHOWN_DRAWS,
    features: Sequence[int | str] | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """The ellipses that hold given shares of each component, with those of posterior draws behind them, over the rows.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted or loaded, with two features or more.
    X : array-like of shape (N, D), optional
        Rows to show, coloured by responsibilities. A posterior's own where left out.
    levels : sequence of float, default (0.5, 0.9)
        Probability of a component inside each of its ellipses. In a matrix it is that of the two features alone.
    draws : int, default 60
        Posterior draws whose outermost ellipses are shown thin. EM's fit has none.
    features : sequence of int or str, optional
        Two to four, by position or name. Default: all, or the four in which the components differ most.
    ax : Axes, optional
        To draw into, for two features.
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
        If there is one feature alone, a level lies outside (0, 1), or X does not have the fit's features.

    References
    ----------
    McLachlan & Peel (2000), Finite Mixture Models, Wiley.
    """
    shares = sorted(check_levels(levels))
    if draws < 0:
        raise ValueError(f"draws must not be negative; got {draws}")
    view = fitted(fit, X)
    chosen, remark = view.separating(features, MAX_FEATURES)
    if len(chosen) < 2:
        raise ValueError("an ellipse needs two features, and there is one: see bayesgmm.plots.density")
    behind = view.some_draws(draws) if view.draws is not None and draws else None
    colours = None if view.X is None else blend(view.responsibilities)

    def panel(ax: Axes, pair: Sequence[int]) -> None:
        if view.X is not None:
            rows.scatter(ax, view.X[:, pair[0]], view.X[:, pair[1]], colours)
        if behind is not None:
            draw_spread(ax, marginal(behind, pair), shares[-1], view.identified)
        draw_ellipses(ax, marginal_parameters(view.typical, pair), shares, halo=crowded(view))
        ax.set(xlim=plane_limits(view, pair[0]), ylim=plane_limits(view, pair[1]))

    percent = " and ".join(f"{100 * share:.3g} %" for share in shares)
    note = f"ellipses hold {percent} of each component ({view.drawn})"
    if behind is not None:
        note += f"; thin: {100 * shares[-1]:.3g} % ellipses of {len(behind[0])} posterior draws"
    handles = component_handles(view.typical.weights)
    d = len(chosen)
    if d == 2:
        with canvas(ax, figsize, (6.4, 5.2)) as c:
            panel(c.ax, chosen)
            c.ax.set(xlabel=label(view.names[chosen[0]]), ylabel=label(view.names[chosen[1]]))
            c.title(view.described, note, remark)
            c.legend(handles)
            return c.figure
    with canvas(ax, figsize, (2.9 * (d - 1), 2.8 * (d - 1)), d - 1, d - 1, sharex="col", sharey="row") as c:
        for i, j, below in corner_matrix(c, [view.names[f] for f in chosen], diagonal=False):
            panel(below, [chosen[j], chosen[i]])
        c.title(view.described, note, remark)
        corner_legend(c, handles)
        return c.figure


def check_levels(levels: Sequence[float]) -> list[float]:
    """Probabilities between 0 and 1.

    Raises
    ------
    ValueError
        If there is none, or one lies outside.
    """
    shares = [float(share) for share in np.atleast_1d(levels)]
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"levels must be probabilities between 0 and 1; got {levels!r}")
    return shares


def crowded(view: Fitted) -> bool:
    """Whether rows fill the plane, so that lines need a light edge to be seen."""
    return view.X is not None and rows.is_binned(len(view.X))


def plane_limits(view: Fitted, feature: int) -> tuple[float, float]:
    """Ends of an axis: the rows', and the components' where they do not reach much farther."""
    one = marginal_parameters(view.typical, [feature])
    reach = 2.6 / one.precision_factors[:, 0, 0]
    low, high = float((one.means[:, 0] - reach).min()), float((one.means[:, 0] + reach).max())
    if view.X is not None:
        ends = rows.limits(view.X[:, feature])
        room = 0.3 * (ends[1] - ends[0])
        low, high = min(max(low, ends[0] - room), ends[0]), max(min(high, ends[1] + room), ends[1])
    return low, high


def draw_ellipses(ax: Axes, two: MixtureParameters, levels: Sequence[float] = LEVELS, halo: bool = False) -> None:
    """Mean and ellipses of each component of a mixture of two features, with a light edge if asked."""
    effects = [patheffects.withStroke(linewidth=3.4, foreground="white")] if halo else []
    for k in range(two.n_components):
        for level in levels:
            curve = ellipse(two.means[k], two.precision_factors[k], level)
            ax.plot(*curve.T, color=colour(k), linewidth=1.8, zorder=3, path_effects=effects)
        ax.plot(
            *two.means[k], marker="+", color=colour(k), markersize=10, markeredgewidth=2, zorder=3, path_effects=effects
        )


def draw_spread(ax: Axes, draws: Draws, level: float, identified: bool) -> None:
    """Ellipses of posterior draws, grey where a component is not the same in all of them."""
    _, means, factors = draws
    for k in range(means.shape[1]):
        curves = [ellipse(m, P, level, points=60) for m, P in zip(means[:, k], factors[:, k], strict=True)]
        ax.add_collection(
            LineCollection(curves, colors=colour(k) if identified else MUTED, linewidths=0.4, alpha=0.35, zorder=2)
        )


def ellipse(mean: FloatArray, precision_factor: FloatArray, level: float, points: int = 100) -> FloatArray:
    """The curve that holds a share of a normal distribution of two features.

    Parameters
    ----------
    mean : ndarray of shape (2,)
    precision_factor : ndarray of shape (2, 2)
        Lower P with Σ⁻¹ = P Pᵀ.
    level : float
        Probability inside.
    points : int, default 100

    Returns
    -------
    ndarray of shape (points, 2)
        μ + P⁻ᵀ u with u on the circle whose squared radius is the χ²₂ quantile −2 log(1 − level).
    """
    angle = np.linspace(0, 2 * np.pi, points)
    circle = np.sqrt(-2 * np.log1p(-level)) * np.stack([np.cos(angle), np.sin(angle)])
    curve: FloatArray = mean + np.linalg.solve(precision_factor.T, circle).T
    return curve


STRUCTURES = {
    "spherical": "circles",
    "diag": "axis-aligned ellipses",
    "full": "tilted ellipses",
    "tied": "one shape for all",
}


def structures(
    X: ArrayLike,
    n_components: int,
    *,
    levels: Sequence[float] = LEVELS,
    features: Sequence[int | str] | None = None,
    figsize: tuple[float, float] | None = None,
    random_state: Any = 0,
) -> Figure:
    """The same rows under the four covariance structures, fitted by EM, side by side, with their BIC.

    Circles look like circles where the features have the same units and spread; their size does not follow the units.

    Parameters
    ----------
    X : array-like of shape (N, D)
        With two features or more. Of more than 5,000 rows the structures are fitted to an evenly spaced part, and the title says so.
    n_components : int
        Each structure is fitted from 4 starts, to a change of 1e-6 per row.
    levels : sequence of float, default (0.5, 0.9)
        Probability of a component inside each of its ellipses.
    features : sequence of int or str, optional
        The two to show. Default: those in which the components of "full" differ most.
    figsize : (float, float), optional
        Inches.
    random_state : int, RandomState, Generator or None, default 0

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If X is not a finite table with two features or more, or a level lies outside (0, 1).

    References
    ----------
    Banfield & Raftery (1993), Model-based Gaussian and non-Gaussian clustering, Biometrics 49, 803–821.
    """
    from bayesgmm.estimators.gaussian_mixture import GaussianMixture, stop_if_interrupted

    shares = sorted(check_levels(levels))
    n_rows = len(X)  # type: ignore[arg-type]
    kept = evenly_spaced(n_rows, STRUCTURE_ROWS)
    part: Any = X if len(kept) == n_rows else X.iloc[kept] if hasattr(X, "iloc") else np.asarray(X)[kept]
    views = {}
    for kind in STRUCTURES:
        fit = GaussianMixture(
            n_components, covariance_type=kind, n_init=STRUCTURE_STARTS, tol=STRUCTURE_TOL, random_state=random_state
        ).fit(part)
        stop_if_interrupted(fit)
        if fit.n_features_in_ < 2:
            raise ValueError("structures differ in two features or more, and X has one")
        views[kind] = fitted(fit, X)
    views = {kind: reordered(view, views["full"].typical) for kind, view in views.items()}
    pair, _ = views["full"].separating(features, 2)
    if len(pair) != 2:
        raise ValueError(f"two features are shown; got {features!r}")
    D = views["full"].n_features
    with canvas(None, figsize, (8.0, 7.0), 2, 2, sharex=True, sharey=True) as c:
        for ax, (kind, view) in zip(c.axes.flat, views.items(), strict=True):
            rows.scatter(ax, view.rows[:, pair[0]], view.rows[:, pair[1]], blend(view.responsibilities))
            draw_ellipses(ax, marginal_parameters(view.typical, pair), shares, halo=crowded(view))
            bic = view.fit.bic(part)
            ax.set(xlim=plane_limits(views["full"], pair[0]), ylim=plane_limits(views["full"], pair[1]))
            ax.set_title(f"{kind}: {STRUCTURES[kind]}\n{view.fit._n_parameters()} parameters, BIC {bic:,.1f}")
        for row in c.axes:
            row[0].set_ylabel(label(views["full"].names[pair[1]]))
        for ax in c.axes[-1]:
            ax.set_xlabel(label(views["full"].names[pair[0]]))
        percent = " and ".join(f"{100 * share:.3g} %" for share in shares)
        fitted_to = "" if len(kept) == n_rows else f", fitted to {len(kept):,} of them"
        c.title(
            f"{n_rows:,} rows{fitted_to}, {counted(n_components, 'component')}, EM fits",
            f"ellipses hold {percent} of each component; BIC: lower is better",
            ""
            if D == 2
            else f"2 of {D} features" + (": those in which the components differ most" if features is None else ""),
        )
        return c.figure
