"""Rows that belong nowhere: on the density, ranked, counted against the nominal rate, and told "I do not know"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import patheffects
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from bayesgmm.anomaly import AnomalyDetector
from bayesgmm.assignment import log_threshold, reasons
from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.tails import PredictiveTail
from bayesgmm.estimators.validation import named_columns
from bayesgmm.plots import rows
from bayesgmm.plots.densities import BAND, curve_grid, plane_axis
from bayesgmm.plots.fitted import Fitted, evenly_spaced, fitted, marginal, marginal_parameters
from bayesgmm.plots.screening import lowest_rows, screen
from bayesgmm.plots.shapes import plane_limits
from bayesgmm.plots.style import BAND_STYLE, INK, MUTED, canvas, colour, component_handles, counted, label, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THRESHOLD = "#B2182B"
"""Colour of the threshold and of what lies below it."""

MARKS: dict[str, dict[str, Any]] = {
    "far": {"marker": "X", "color": THRESHOLD},
    "small component": {"marker": "D", "color": "#542788"},
    "ambiguous": {"marker": "s", "color": "#E69F00"},
}
"""Kinds of marked rows, told apart by form as well as colour."""

NAMED_ROWS, CROWDED = 5, 50
"""Most anomalous rows that are named, and marks from which on none is."""

CUT = 10.0
"""A ranked score is cut off where it lies so many times farther from the threshold than the middle one."""

RATES = 240
"""Nominal rates at which flagged rows are counted."""


def anomaly_density(
    detector: AnomalyDetector,
    X: ArrayLike | None = None,
    *,
    features: Sequence[int | str] | None = None,
    row_names: Sequence[object] | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """The density with the threshold f_min, and the rows, those that are flagged marked by kind.

    One feature: the log density with a pointwise 90 % posterior band, the threshold as a line, the region below it shaded, the rows
    beneath.
    Two: the rows over the contour at f_min. More: the rows in a plane, with the contour that as large a share of the mixture's marginal
    lies outside as lies below f_min in all features; rows are flagged by all features.

    Parameters
    ----------
    detector : AnomalyDetector
        Fitted.
    X : array-like of shape (N, D), optional
        Rows to judge. Default: the fitted rows of a posterior, each left out.
    features : sequence of int or str, optional
        The two to show, by position or name. Default: those in which the components differ most.
    row_names : sequence, optional
        A name for each row. Default: a DataFrame's index, else positions from 0.
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
        If ``detector`` is no AnomalyDetector.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If there are no rows, X does not have the fit's features, or those to show are not two.

    Notes
    -----
    More than 20,000 rows are shown as bins (one feature: so many of them, evenly spaced), and so many marks of a kind at most.
    Flags are the detector's. Of very many rows all draws are used, and fitted rows are left out, only where that can change a flag.

    References
    ----------
    Bishop (1994), Novelty detection and neural network validation, IEE Proceedings – Vision, Image and Signal Processing 141, 217–222.
    """
    _check_detector(detector)
    view, names = _view(detector, X), _row_names(X) if row_names is None else row_names
    table = view.rows
    judged = screen(detector, X, table, NAMED_ROWS)
    kind = judged.kind
    if view.n_features == 1:
        view.positions(features if features is not None else [0])
    pair, remark = ([0], "") if view.n_features == 1 else view.plane(features)
    with canvas(ax, figsize, (6.4, 4.6 if len(pair) == 1 else 5.2)) as c:
        if len(pair) == 1:
            x, y = table[:, 0], _curve(c.ax, detector, view)
            line, shaded = f"line: log f_min = {detector.offset_:.4g}", True
        else:
            x, y = table[:, pair[0]], table[:, pair[1]]
            line, shaded = _threshold_contour(c.ax, detector, view, pair)
        ordinary = np.flatnonzero(kind == "ok")
        if len(pair) == 1:
            ordinary = ordinary[evenly_spaced(len(ordinary), rows.BINNED_ROWS)]
        limits = c.ax.get_xlim(), c.ax.get_ylim()
        if len(ordinary):
            rows.scatter(c.ax, x[ordinary], y[ordinary], alpha=0.45)
        c.ax.set(xlim=limits[0], ylim=limits[1])
        cut = _mark(c.ax, x, y, kind, ("far", "small component"))
        far = np.flatnonzero(kind == "far")
        if len(pair) == 2 and len(far) <= CROWDED:
            lowest = far[np.argsort(judged.log_density[far], kind="stable")[:NAMED_ROWS]]
            _name_rows(c.ax, x, y, lowest, names)
        c.title(
            f"{view.described}{_left_out_note(X)}",
            f"{line}; {_percent(detector.false_alarm_)} of the model's own rows lie below f_min",
            f"flagged: {_flagged_note(kind)}{cut}",
            judged.remark,
            remark,
        )
        handles = [
            Line2D([], [], color=INK, linewidth=1.8, label="log density"),
            Patch(label=f"{100 * BAND:.0f} % band", **BAND_STYLE),
        ]
        handles = handles[: 1 + (view.draws is not None)] if len(pair) == 1 else []
        if shaded:
            handles.append(Line2D([], [], color=THRESHOLD, linewidth=1.3, label="threshold"))
            handles.append(Patch(facecolor="#F9ECEE", edgecolor=THRESHOLD, linewidth=0.4, label="below it"))
        c.legend(handles + _mark_handles(kind, ("far", "small component")))
        return c.figure


def _curve(ax: Axes, detector: AnomalyDetector, view: Fitted) -> FloatArray:
    """Log density of one feature over the line of the threshold; heights for the rows beneath."""
    draws, offset = detector._draws, detector.offset_
    grid = curve_grid(view.typical, view.rows[:, 0])
    middle = kernel.posterior_predictive(grid[:, None], *draws, with_responsibilities=False)[0]
    top = float(middle.max())
    if view.draws is not None:
        each = kernel.pointwise_log_likelihood(grid[:, None], *draws)
        low, high = np.quantile(each, [(1 - BAND) / 2, (1 + BAND) / 2], axis=0)
        top = max(top, float(high.max()))
    # Far rows would press the threshold against the top.
    bottom = min(offset - 0.35 * (top - offset), max(float(middle.min()), offset - 2 * abs(top - offset)))
    strip = 0.14 * (top - bottom)
    if view.draws is not None:
        ax.fill_between(grid, np.maximum(low, bottom), np.maximum(high, bottom), **BAND_STYLE)
    ax.fill_between(
        grid,
        0,
        1,
        where=(middle < offset).tolist(),
        color=THRESHOLD,
        alpha=0.08,
        linewidth=0,
        transform=ax.get_xaxis_transform(),
    )
    ax.plot(grid, np.where(middle < bottom, np.nan, middle), color=INK, linewidth=1.8)
    ax.axhline(offset, color=THRESHOLD, linewidth=1.3)
    ax.axhline(bottom, color="0.3", linewidth=0.8)
    name = label(view.names[0])
    ax.set(xlim=(grid[0], grid[-1]), ylim=(bottom - 1.25 * strip, top + 0.04 * (top - bottom)))
    ax.set(xlabel=name, ylabel="log density" if len(name) > 30 else f"log density (per unit of {name})")
    ax.set_yticks([tick for tick in ax.get_yticks() if bottom <= tick <= top + 0.04 * (top - bottom)])
    heights: FloatArray = bottom - strip * (0.15 + 0.95 * rows.jitter(len(view.rows)))
    return heights


def _threshold_contour(ax: Axes, detector: AnomalyDetector, view: Fitted, pair: Sequence[int]) -> tuple[str, bool]:
    """Contour at the threshold, what lies below it shaded; what the line is in words, and whether it is in view."""
    draws, two = marginal(detector._draws, pair), marginal_parameters(view.typical, pair)
    if view.n_features == 2:
        level, line = detector.offset_, f"line: log f_min = {detector.offset_:.4g}"
    else:
        simulated = PredictiveTail.simulate(*draws, int(detector.n_simulated), np.random.default_rng(0))
        level = simulated.curve.quantile(detector.false_alarm_)
        line = f"rows are flagged by all {view.n_features} features; line: as rare in these two as f_min is in all"
    # Room for a threshold that lies farther out than the rows.
    spans = (np.array(rows.limits(np.array(plane_limits(view, feature)), 0.12)) for feature in pair)
    x, y = (plane_axis(two, axis, span) for axis, span in enumerate(spans))
    points = np.column_stack([part.ravel() for part in np.meshgrid(x, y)])
    above = kernel.posterior_predictive(points, *draws, with_responsibilities=False)[0].reshape(len(y), len(x)) - level
    crossed = bool(above.min() < 0 < above.max())
    if crossed:
        ax.contourf(x, y, above, levels=[above.min() - 1, 0], colors=[THRESHOLD], alpha=0.08, zorder=0)
        ax.contour(x, y, above, levels=[0.0], colors=[THRESHOLD], linewidths=1.3, zorder=2)
    else:
        line += ", out of view"
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.set(xlabel=label(view.names[pair[0]]), ylabel=label(view.names[pair[1]]))
    return line, crossed


def ranked_scores(
    detector: AnomalyDetector,
    X: ArrayLike | None = None,
    *,
    top: int = 30,
    row_names: Sequence[object] | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """The lowest log densities in order, with a 90 % interval over the draws, the threshold and tail probabilities.

    Parameters
    ----------
    detector : AnomalyDetector
        Fitted.
    X : array-like of shape (N, D), optional
        Rows to judge; a DataFrame's index names them. Default: the fitted rows of a posterior, each left out.
    top : int, default 30
        Rows to show at most.
    row_names : sequence, optional
        A name for each row. Default: a DataFrame's index, else positions from 0.
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
        If ``detector`` is no AnomalyDetector.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If there are no rows, X does not have the fit's features, or ``top`` is less than 1.

    Notes
    -----
    The point is the log of the density averaged over draws, and so lies high in the interval, which is of each draw's log density. For rows
    that are left out the draws are weighted by Pareto-smoothed importance sampling. Around EM's fit there is no interval.

    References
    ----------
    Bishop (1994), Novelty detection and neural network validation, IEE Proceedings – Vision, Image and Signal Processing 141, 217–222;
    Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC, Statistics and
    Computing 27, 1413–1432.
    """
    _check_detector(detector)
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
        raise ValueError(f"top must be a whole number of rows, at least 1; got {top!r}")
    view, names = _view(detector, X), _row_names(X) if row_names is None else row_names
    table = view.rows
    judged = lowest_rows(detector, X, table, top)
    order = judged.index.to_numpy()
    score, offset = judged["log_density"].to_numpy(), detector.offset_
    low, high = _intervals(detector, table, order, X is None)
    edge = min(offset, float(np.median(score))) - CUT * max(1.0, float(np.median(np.abs(score - offset))))
    height = np.arange(len(order))[::-1]
    with canvas(ax, figsize, (6.4, 2.0 + 0.19 * len(order))) as c:
        c.ax.axvline(offset, color=THRESHOLD, linewidth=1.3)
        kind = judged["kind"].to_numpy()
        tints = [MARKS[str(each)]["color"] if each in MARKS else INK for each in kind]
        c.ax.hlines(height, np.maximum(low, edge), np.maximum(high, edge), colors=tints, linewidth=1.6, alpha=0.45)
        for at, value, name, tint in zip(height, score, kind, tints, strict=True):
            marker = "<" if value < edge else MARKS.get(str(name), {"marker": "o"})["marker"]
            c.ax.plot(max(value, edge), at, marker, color=tint, markersize=5.5, markeredgewidth=0, clip_on=False)
            if value < edge:
                c.ax.annotate(
                    f"{value:,.4g}", (edge, at), (6, 0), textcoords="offset points", va="center", fontsize=7.5
                )
        c.ax.set(ylim=(-0.8, len(order) - 0.2), yticks=height, xlabel="log density")
        c.ax.set_yticklabels([_row_name(names, i) for i in order])
        ends = [offset, *np.maximum([*low, *high, *score], edge)]
        c.ax.set_xlim(*rows.limits(np.array(ends)[np.isfinite(ends)]))
        smallest = detector._tail.curve.resolution
        for at, p in zip(height, judged["tail_probability"], strict=True):
            words = f"≤ {smallest:.1g}" if p <= smallest else f"{p:.2g}"
            c.ax.text(1.02, at, words, transform=c.ax.get_yaxis_transform(), va="center", fontsize=8)
        c.ax.text(1.02, len(order), "tail\nprobability", transform=c.ax.get_yaxis_transform(), fontsize=8, color=MUTED)
        interval = (
            f"bars: {100 * BAND:.0f} % of the draws ({len(detector._draws[0]):,})"
            if view.draws is not None
            else "EM fit: no draws, so no interval"
        )
        c.title(
            f"{view.described}{_left_out_note(X)}",
            f"the {counted(len(order), 'row')} of lowest density; {interval}",
            "" if (score >= edge).all() else "arrows: the score lies farther to the left, at the number beside it",
        )
        handles = [Line2D([], [], color=THRESHOLD, linewidth=1.3, label=f"threshold: log f_min = {offset:.4g}")]
        handles += _mark_handles(kind, ("far", "small component"), counts=False)
        if (kind == "ok").any():
            handles.append(Line2D([], [], color=INK, marker="o", linestyle="", markersize=5, label="not flagged"))
        c.legend(handles)
        return c.figure


def _intervals(
    detector: AnomalyDetector, table: FloatArray, chosen: np.ndarray, left_out: bool
) -> tuple[FloatArray, FloatArray]:
    """Quantiles over the draws of the chosen rows' log densities; none (empty) around EM's fit."""
    if not hasattr(detector.estimator_, "_draws"):
        none = np.full(len(chosen), np.nan)
        return none, none
    each = kernel.pointwise_log_likelihood(np.ascontiguousarray(table[chosen]), *detector._draws)
    ends = [(1 - BAND) / 2, (1 + BAND) / 2]
    if not left_out:
        low, high = np.quantile(each, ends, axis=0)
        return low, high
    from bayesgmm.pointwise import psis_weights

    counts = detector.estimator_._sample_weight
    power = np.ones(len(chosen)) if counts is None else np.minimum(counts[chosen], 1.0)
    weights = np.exp(psis_weights(np.ascontiguousarray(-each.T * power[:, None]))[0])
    found = [
        np.quantile(values, ends, weights=w, method="inverted_cdf") for values, w in zip(each.T, weights, strict=True)
    ]
    low, high = np.array(found).T
    return low, high


def flagged_share(
    detector: AnomalyDetector,
    X: ArrayLike | None = None,
    *,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Share of rows that each threshold flags against its nominal false-alarm rate.

    Rows of a right model follow the diagonal, nine times in ten within the band at each rate. A curve above it on the left: rows where
    the model expects hardly any, anomalies, or tails that are heavier than the model's.

    Parameters
    ----------
    detector : AnomalyDetector
        Fitted.
    X : array-like of shape (N, D), optional
        Rows to judge. Default: the fitted rows of a posterior, each left out.
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
        If ``detector`` is no AnomalyDetector.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If there are no rows, or X does not have the fit's features.

    Notes
    -----
    The band is binomial, of independent rows. Rates are no smaller than the simulated rows can tell (``n_simulated``).

    References
    ----------
    Bayarri & Berger (2000), P values for composite null models, Journal of the American Statistical Association 95, 1127–1142.
    """
    from scipy.stats import binom

    _check_detector(detector)
    view = _view(detector, X)
    table = view.rows
    N, own, curve = len(table), detector.false_alarm_, detector._tail.curve
    judged = screen(detector, X, table)
    density = np.sort(judged.log_density)
    lowest = min(max(0.3 / N, curve.resolution), 0.005, max(0.5 * own, curve.resolution))
    rates = np.geomspace(lowest, 1.0, RATES)
    share = np.searchsorted(density, [curve.quantile(rate) for rate in rates], side="left") / N
    low, high = (binom.ppf(end, N, rates) / N for end in ((1 - BAND) / 2, (1 + BAND) / 2))
    # No row has no place on a logarithmic axis.
    bottom = min(0.5 / N, lowest)
    flagged = int(np.searchsorted(density, detector.offset_, side="left"))
    with canvas(ax, figsize, (6.0, 5.0)) as c:
        c.ax.fill_between(rates, np.maximum(low, bottom), np.maximum(high, bottom), **BAND_STYLE)
        c.ax.plot([lowest, 1], [lowest, 1], color=MUTED, linewidth=1.2, linestyle="--")
        seen = share > 0
        c.ax.plot(rates[seen], share[seen], color=colour(0), linewidth=2, drawstyle="steps-post")
        c.ax.axvline(own, color=THRESHOLD, linewidth=1.3)
        c.ax.plot(own, max(flagged / N, bottom), "o", color=THRESHOLD, markersize=7, clip_on=False, zorder=4)
        c.ax.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(bottom, 1.1))
        c.ax.set(xlabel="nominal false-alarm rate", ylabel="share of rows flagged")
        none = "" if flagged else " (drawn at the lower edge)"
        c.title(
            f"{view.described}{_left_out_note(X)}",
            f"threshold log f_min = {detector.offset_:.4g}: {flagged:,} rows flagged{none}, {_expected(own * N)} expected",
            judged.remark,
        )
        c.legend(
            [
                Line2D([], [], color=colour(0), linewidth=2, label="rows"),
                Line2D([], [], color=MUTED, linewidth=1.2, linestyle="--", label="a right model"),
                Patch(label=f"{100 * BAND:.0f} % of right models at each rate", **BAND_STYLE),
                Line2D([], [], color=THRESHOLD, linewidth=1.3, marker="o", label="the detector's threshold"),
            ]
        )
        return c.figure


def assignment(
    fit: Any,
    X: ArrayLike | None = None,
    *,
    min_responsibility: float | None = None,
    min_log_density: float | None = None,
    features: Sequence[int | str] | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Rows in the colour of their component; those far from all, and those that no component dominates, marked: "I do not know".

    Parameters
    ----------
    fit : GaussianMixture, BayesianGaussianMixture or AnomalyDetector
        Fitted.
    X : array-like of shape (N, D), optional
        Rows. A posterior's own where left out (not left out in turn); EM's fit needs them.
    min_responsibility : float, optional
        In (0, 1]. Highest responsibility below which a row is ambiguous.
    min_log_density : float, optional
        Log density below which a row is far. A detector has its own threshold.
    features : sequence of int or str, optional
        The two to show, by position or name. Default: those in which the components differ most.
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
        If ``fit`` is neither.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If there are no rows, a limit lies outside its range, or a detector is given a threshold.

    Notes
    -----
    As :meth:`bayesgmm.BayesianGaussianMixture.assign` says, by all draws for up to 20 million rows × draws, and by fewer for more. Where
    components are not identified responsibilities are the mode's. More than 20,000 rows are shown as bins.

    References
    ----------
    Chow (1970), On optimum recognition error and reject tradeoff, IEEE Transactions on Information Theory 16, 41–46.
    """
    if isinstance(fit, AnomalyDetector):
        check_is_fitted(fit)
        if min_log_density is not None:
            raise ValueError("the detector has its own threshold: leave min_log_density out, or give the fit itself")
        limit, view = fit.offset_, _view(fit, X)
    else:
        limit = log_threshold(None, min_log_density, ("min_density", "min_log_density"))
        view = fitted(fit, X, need_rows=True, what="assignment")
    if min_responsibility is not None and not 0 < min_responsibility <= 1:
        raise ValueError(f"min_responsibility must lie in (0, 1]; got {min_responsibility}")
    pair, remark = ([0], "") if view.n_features == 1 else view.plane(features)
    density, r = _density_and_responsibilities(view)
    reason = reasons(density, r.max(axis=1), limit, min_responsibility)
    x = view.rows[:, pair[0]]
    y = rows.jitter(len(x)) if len(pair) == 1 else view.rows[:, pair[1]]
    told = np.flatnonzero(reason == "ok")
    with canvas(ax, figsize, (6.4, 3.0 if len(pair) == 1 else 5.2)) as c:
        if len(told):
            rows.scatter(c.ax, x[told], y[told], palette(view.n_components)[np.argmax(r[told], axis=1)], alpha=0.65)
        cut = _mark(c.ax, x, y, reason, ("far", "ambiguous"))
        c.ax.set(xlim=rows.limits(x), xlabel=label(view.names[pair[0]]))
        if len(pair) == 1:
            c.ax.set(ylim=(-0.06, 1.06), yticks=[])
            c.ax.spines["left"].set_visible(False)
        else:
            c.ax.set(ylim=rows.limits(y), ylabel=label(view.names[pair[1]]))
        limits = [f"far: log density below {limit:.4g}"] if np.isfinite(limit) else []
        if min_responsibility is not None:
            limits.append(f"ambiguous: no component above {100 * min_responsibility:.4g} %")
        far, doubtful = int((reason == "far").sum()), int((reason == "ambiguous").sum())
        c.title(
            view.described,
            f'"I do not know": {far:,} far, {doubtful:,} ambiguous{cut}',
            "; ".join(limits) or "no limits are given, so every row has a component",
            _source(view),
            remark,
            "heights only part the rows" if len(pair) == 1 else "",
        )
        handles: list[Any] = component_handles(view.typical.weights, linestyle="", marker="o", markersize=6)
        c.legend(handles + _mark_handles(reason, ("far", "ambiguous")))
        return c.figure


def _density_and_responsibilities(view: Fitted) -> tuple[FloatArray, FloatArray]:
    if view.draws is None:
        r, density = kernel.responsibilities(view.rows, view.typical)
        return density, r
    density, r = kernel.posterior_predictive(view.rows, *view.some_draws(view.n_averaged))[:2]
    return density, r if view.identified else view.responsibilities


def _source(view: Fitted) -> str:
    if view.draws is None:
        return ""
    what = "densities and responsibilities" if view.identified else "densities"
    mode = "" if view.identified else "; components are those of the mode, as they are not identified"
    return f"{what}: mean of {counted(view.n_averaged, 'draw')}{mode}"


def _view(detector: AnomalyDetector, X: Any) -> Fitted:
    """The fit and the rows that are judged; a table's columns by their names, as the detector takes them."""
    fit = detector.estimator_
    return fitted(fit, None if X is None else named_columns(fit, X), need_rows=True)


def _check_detector(detector: Any) -> None:
    if not isinstance(detector, AnomalyDetector):
        given = detector.__name__ if isinstance(detector, type) else type(detector).__name__
        raise TypeError(
            f"this figure takes a fitted AnomalyDetector; got {given}. Around a fit: AnomalyDetector(FrozenEstimator(fit)).fit(None)"
        )
    check_is_fitted(detector)


def _mark(ax: Axes, x: FloatArray, y: FloatArray, kind: np.ndarray, wanted: Sequence[str]) -> str:
    """Mark the rows of some kinds; a remark where there are too many to show."""
    remark = ""
    for name in wanted:
        at = np.flatnonzero(kind == name)
        if len(at) > rows.BINNED_ROWS:
            at = at[evenly_spaced(len(at), rows.BINNED_ROWS)]
            remark = f" (at most {rows.BINNED_ROWS:,} marks of a kind)"
        if len(at):
            ax.scatter(
                x[at],
                y[at],
                s=42 if len(at) <= 100 else 16 if len(at) <= rows.RASTERISED_ROWS else 5,
                edgecolors="white",
                linewidths=0.5 if len(at) <= rows.RASTERISED_ROWS else 0,
                rasterized=len(at) > rows.RASTERISED_ROWS,
                zorder=4,
                label=name,
                **MARKS[name],
            )
    return remark


def _mark_handles(kind: np.ndarray, wanted: Sequence[str], counts: bool = True) -> list[Line2D]:
    handles = []
    for name in wanted:
        n = int((kind == name).sum())
        if n:
            text = f"{name}: {counted(n, 'row')}" if counts else name
            handles.append(
                Line2D([], [], linestyle="", markersize=7, markeredgecolor="white", label=text, **MARKS[name])
            )
    return handles


def _name_rows(ax: Axes, x: FloatArray, y: FloatArray, chosen: np.ndarray, names: Any) -> None:
    """Names beside rows, on the side where there is room."""
    low, high = ax.get_xlim()
    for i in chosen:
        left = x[i] > low + 0.8 * (high - low)
        ax.annotate(
            _row_name(names, i, 14),
            (x[i], y[i]),
            xytext=(-6 if left else 6, 3),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=7.5,
            zorder=5,
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        )


def _row_names(X: Any) -> Any:
    """A table's index, where it has one."""
    index = getattr(X, "index", None)
    return None if index is None or callable(index) else index


def _row_name(names: Any, i: int, width: int = 24) -> str:
    return label(f"row {i}" if names is None else names[i] if isinstance(names[i], str) else f"row {names[i]}", width)


def _flagged_note(kind: np.ndarray) -> str:
    far, small = (int((kind == name).sum()) for name in ("far", "small component"))
    return f"{far:,} far, {small:,} in a small component" if far or small else "no row"


def _left_out_note(X: Any) -> str:
    return "; each row judged by the others" if X is None else ""


def _expected(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
