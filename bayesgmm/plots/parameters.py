"""What the posterior says of the parameters: intervals and densities, with EM's value marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D

from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.inference.posterior import PosteriorDraws, derived
from bayesgmm.plots.fitted import Fitted, fitted, need_draws
from bayesgmm.plots.rows import limits
from bayesgmm.plots.style import INK, MUTED, Canvas, canvas, colour, label, small_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTERVALS = (0.5, 0.9)
"""Probability of the thick and the thin equal-tailed interval."""

MAX_FEATURES = 4
MAX_COMPONENTS = 12
MAX_PAIRS = 6

TITLES = {
    "weights": "weights",
    "means": "means",
    "standard_deviations": "standard deviations",
    "correlations": "correlations",
}


@dataclass(frozen=True, eq=False)
class Entry:
    """One parameter in a panel: its component (None where all share it), draws (chains, draws) and EM's value."""

    component: int | None
    draws: FloatArray
    em: float


@dataclass(frozen=True, eq=False)
class Panel:
    """The parameters of one kind and feature: title, name on the axis, and one entry a component."""

    title: str
    name: str
    entries: tuple[Entry, ...]


def forest(
    post: Any,
    em: Any = None,
    *,
    features: Sequence[int | str] | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Posterior intervals of weights, means, standard deviations and correlations, with EM's value marked.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted or loaded.
    em : GaussianMixture, optional
        A fit by EM to mark, put in the posterior's order. Default: the mode that EM found under the posterior's own prior.
    features : sequence of int or str, optional
        At most four, by position or name. Default: all, or the four in which the components differ most.
    figsize : (float, float), optional
        Inches.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for the weights, and one for each feature's means and standard deviations and each pair's correlations (of the first
        six pairs). Dot: median; thick: 50 %, thin: 90 % equal-tailed interval. Of more than 12 components the heaviest are shown.

    Raises
    ------
    TypeError
        If ``post`` has no posterior draws, or ``em`` is no fit by EM.
    sklearn.exceptions.NotFittedError
        If one of them is not fitted.
    ValueError
        If they differ in components, features or covariance_type, or a feature is unknown.

    References
    ----------
    Gabry, Simpson, Vehtari, Betancourt & Gelman (2019), Visualization in Bayesian workflow, Journal of the Royal Statistical Society A 182,
    389–402.
    """
    view, panels, marked, remark = _panels_of(post, em, features, "forest")
    height = 0.85 + 0.21 * max(len(panel.entries) for panel in panels)
    found = [intervals(panel) for panel in panels]
    longest = max(len(text) for of_panel in found for text in of_panel.texts)
    with _grid(panels, figsize, height, columns=3, width=2.1 + 0.062 * max(longest, 17)) as c:
        for ax, panel, of_panel in zip(c.axes.flat, panels, found, strict=False):
            _forest_panel(ax, panel, of_panel)
        _finish(c, len(panels))
        c.title(f"posterior of {view.described} ({view.n_draws:,} draws)", _caution(view), remark)
        thin, thick = f"{100 * INTERVALS[1]:.0f} %", f"{100 * INTERVALS[0]:.0f} %"
        c.legend(
            [
                Line2D([], [], color=MUTED, linewidth=1.2, label=f"{thin} interval"),
                Line2D([], [], color=MUTED, linewidth=3.6, label=f"{thick} interval"),
                Line2D([], [], color=MUTED, marker="o", linestyle="", markersize=5, label="median"),
                _em_handle(marked, marker="D"),
            ]
        )
        return c.figure


def posterior(
    post: Any,
    em: Any = None,
    *,
    features: Sequence[int | str] | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Posterior densities of weights, means, standard deviations and correlations, with EM's value marked.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted or loaded.
    em : GaussianMixture, optional
        A fit by EM to mark, put in the posterior's order. Default: the mode that EM found under the posterior's own prior.
    features : sequence of int or str, optional
        At most four, by position or name. Default: all, or the four in which the components differ most.
    figsize : (float, float), optional
        Inches.

    Returns
    -------
    matplotlib.figure.Figure
        Panels as :func:`forest` has them; each curve is a kernel density estimate of one component's draws (ArviZ's, corrected at
        the ends of the range), dashed at EM's value.

    Raises
    ------
    TypeError, NotFittedError, ValueError
        As :func:`forest` does.

    References
    ----------
    Gabry, Simpson, Vehtari, Betancourt & Gelman (2019), Visualization in Bayesian workflow, Journal of the Royal Statistical Society A 182,
    389–402.
    """
    view, panels, marked, remark = _panels_of(post, em, features, "posterior")
    with _grid(panels, figsize, 1.75, columns=4 if len(panels) > 6 else 3, width=2.4) as c:
        for ax, panel in zip(c.axes.flat, panels, strict=False):
            for entry in panel.entries:
                _density_line(ax, entry)
            ax.set(title=panel.title, xlabel=panel.name, yticks=[])
            ax.set_ylim(bottom=0)
            ax.set_xlim(_reach(panel))
            ax.spines["left"].set_visible(False)
        _finish(c, len(panels))
        c.title(
            f"posterior of {view.described} ({view.n_draws:,} draws)",
            "height: posterior density of each parameter",
            _caution(view),
            remark,
        )
        shown = sorted({entry.component for panel in panels for entry in panel.entries if entry.component is not None})
        handles = [Line2D([], [], color=colour(k), label=f"component {k}") for k in shown]
        if any(entry.component is None for panel in panels for entry in panel.entries):
            handles.append(Line2D([], [], color=INK, label="all components"))
        c.legend([*handles, _em_handle(marked, linestyle="--")])
        return c.figure


def _panels_of(
    post: Any, em: Any, features: Sequence[int | str] | None, what: str
) -> tuple[Fitted, list[Panel], str, str]:
    """The view, the panels, what is marked, and remarks."""
    need_draws(post, what)
    view = fitted(post)
    marked, parameters = _marked(post, em)
    chosen, remark = view.separating(features, MAX_FEATURES)
    kept = np.sort(np.argsort(-view.typical.weights, kind="stable")[:MAX_COMPONENTS])
    if len(kept) < view.n_components:
        remark = "; ".join(filter(None, [remark, f"{len(kept)} of {view.n_components} components: the heaviest"]))
    panels = list(_panels(post, parameters, view.names, chosen, kept))
    return view, panels, marked, remark


def _marked(post: Any, em: Any) -> tuple[str, MixtureParameters]:
    """EM's value in words, and its parameters in the posterior's order."""
    if em is None:
        return "mode found by EM", post.map_
    from bayesgmm.comparison import check_pair, posterior_order

    check_pair(em, post)
    order = posterior_order(em, post, structure(em.covariance_type))
    return "EM fit", MixtureParameters(em.weights_[order], em.means_[order], em._parameters.precision_factors[order])


def _panels(
    post: Any, em: MixtureParameters, names: Sequence[str], features: Sequence[int], components: np.ndarray
) -> Iterator[Panel]:
    kind = structure(post.covariance_type)
    single = PosteriorDraws(em.weights[None, None], em.means[None, None], em.precision_factors[None, None])
    at_em = derived(single, kind)
    wanted = {"feature": list(features), "feature_pair": pair_positions(features)[:MAX_PAIRS]}
    spoken = {
        "feature": [label(name, 30) for name in names],
        "feature_pair": [f"{label(first, 28)} and\n{label(second, 28)}" for first, second in pairs_of(names)],
    }
    for variable, (values, dims) in derived(post._draws, kind).items():
        if variable == "covariances" or (variable == "weights" and em.n_components == 1):
            continue
        others = [dim for dim in dims if dim != "component"]
        for at in wanted[others[0]] if others else [None]:
            entries = []
            for k in components if "component" in dims else [None]:
                index = tuple(i for i in (k, at) if i is not None)
                entries.append(
                    Entry(
                        None if k is None else int(k),
                        values[(slice(None), slice(None), *index)],
                        float(at_em[variable][0][(0, 0, *index)]),
                    )
                )
            name = "share of rows" if variable == "weights" else "all features" if at is None else spoken[others[0]][at]
            yield Panel(TITLES[variable], name, tuple(entries))


def pair_positions(features: Sequence[int]) -> list[int]:
    """Positions among the correlations of the pairs that some features make."""
    ordered = sorted(features)
    return [i * (i - 1) // 2 + j for place, i in enumerate(ordered) for j in ordered[:place]]


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of features in the order of the correlations."""
    above, left = np.tril_indices(len(names), -1)
    return [(names[int(j)], names[int(i)]) for i, j in zip(above, left, strict=True)]


def _grid(
    panels: Sequence[Panel], figsize: tuple[float, float] | None, height: float, columns: int, width: float
) -> Any:
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    return canvas(None, figsize, (max(width * columns, 4.6), 0.9 + height * rows), rows, columns)


def _finish(c: Canvas, n_panels: int) -> None:
    for ax in list(c.axes.flat)[n_panels:]:
        ax.set_axis_off()
    for ax in list(c.axes.flat)[:n_panels]:
        ax.locator_params(axis="x", nbins=4)
        small_numbers(ax.xaxis)


def _caution(view: Fitted) -> str:
    return "" if view.identified else "components are not identified: what is shown of one mixes several"


def _em_handle(marked: str, **style: Any) -> Line2D:
    if "marker" in style:
        return Line2D(
            [], [], linestyle="", markersize=5, markerfacecolor="white", markeredgecolor=INK, label=marked, **style
        )
    return Line2D([], [], color=INK, label=marked, **style)


def _reach(panel: Panel) -> tuple[float, float]:
    """Ends of an axis that holds 99 % of each parameter's draws, and EM's values."""
    ends = [np.quantile(entry.draws, [0.005, 0.995]) for entry in panel.entries]
    values = np.concatenate([*ends, [entry.em for entry in panel.entries]])
    return limits(values, 0.08)


@dataclass(frozen=True, eq=False)
class Intervals:
    """Intervals of a panel's parameters (n, 2), their medians (n,), and the same in words."""

    thick: FloatArray
    thin: FloatArray
    medians: FloatArray
    texts: tuple[str, ...]


def intervals(panel: Panel) -> Intervals:
    """Equal-tailed 50 % and 90 % intervals and medians of the parameters in a panel."""
    thick, thin = (
        np.array([np.quantile(entry.draws, [(1 - share) / 2, (1 + share) / 2]) for entry in panel.entries])
        for share in INTERVALS
    )
    medians = np.array([np.median(entry.draws) for entry in panel.entries])
    digits = decimals(np.diff(thin, axis=1))
    texts = tuple(interval_text([m, *ends], digits) for m, ends in zip(medians, thin, strict=True))
    return Intervals(thick, thin, medians, texts)


def _forest_panel(ax: Axes, panel: Panel, found: Intervals) -> None:
    for place, entry in enumerate(panel.entries):
        shade = INK if entry.component is None else colour(entry.component)
        ax.plot(found.thin[place], [place, place], color=shade, linewidth=1.2, solid_capstyle="butt")
        ax.plot(found.thick[place], [place, place], color=shade, linewidth=3.6, solid_capstyle="butt")
        ax.plot(found.medians[place], place, "o", color=shade, markersize=5)
        ax.plot(entry.em, place, "D", markerfacecolor="white", markeredgecolor=INK, markersize=4.5, zorder=4)
        beside = ax.get_yaxis_transform()
        ax.text(1.03, place, found.texts[place], transform=beside, va="center", fontsize=7.5, color=INK)
    names = ["all" if entry.component is None else str(entry.component) for entry in panel.entries]
    ax.set(title=panel.title, xlabel=panel.name, yticks=range(len(names)), yticklabels=names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_ylabel("component" if panel.entries[0].component is not None else "")
    ax.grid(axis="x", color="0.92", linewidth=0.6)


def decimals(widths: FloatArray) -> int:
    """Decimals that the shortest of some intervals gives a meaning; −1 where numbers need an exponent."""
    narrow = float(np.min(widths[widths > 0], initial=np.inf))
    if not np.isfinite(narrow):
        return 2
    digits = int(1 - np.floor(np.log10(narrow)))
    return -1 if digits > 6 or digits < -4 else max(digits, 0)


def interval_text(numbers: Sequence[float], digits: int) -> str:
    """A median with the ends of its interval."""
    form = "{:.4g}" if digits < 0 else f"{{:.{digits}f}}"
    middle, low, high = (form.format(float(number)).replace("-", "\u2212") for number in numbers)
    return f"{middle} [{low}, {high}]"


def _density_line(ax: Axes, entry: Entry) -> None:
    shade = INK if entry.component is None else colour(entry.component)
    draws = entry.draws.ravel()
    if np.ptp(draws) > 0:
        from arviz_stats.base import array_stats

        grid, height, _ = array_stats.kde(draws)
        ax.plot(grid, height, color=shade, linewidth=1.5)
        ax.fill_between(grid, 0, height, color=shade, alpha=0.15, linewidth=0)
    ax.axvline(entry.em, color=shade, linestyle="--", linewidth=1.2)
