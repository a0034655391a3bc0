"""Choosing K: criteria, weights and probabilities against the number of components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesgmm.core.parameters import FloatArray
from bayesgmm.plots.style import COLOURS, INK, canvas, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"full": "o", "tied": "s", "diag": "^", "spherical": "D"}
"""One for each structure: told apart without colour."""


def selection(selection: Any, *, figsize: tuple[float, float] | None = None) -> Figure:
    """Criteria against the number of components, one line a structure, with errors; stacking weights and probabilities as bars.

    Criteria on the deviance scale are shown as differences to the best (0, smaller is better), predictive densities and evidences as
    differences to the best (0, larger is better): LOO's errors are those of the paired difference. Rings mark what each criterion
    picks; hollow markers are models whose flags speak against the criterion: near-singular ones for EM's; for the posterior's, one that
    did not converge, and LOO or an evidence that is itself doubtful. A cut axis is said. AICc stands for AIC where both are there.

    Parameters
    ----------
    selection : Selection
    figsize : (float, float), optional
        Inches.

    Returns
    -------
    matplotlib.figure.Figure

    References
    ----------
    Akaike (1974), A new look at the statistical model identification, IEEE Transactions on Automatic Control 19, 716–723; Schwarz
    (1978), Estimating the dimension of a model, Annals of Statistics 6, 461–464; Biernacki, Celeux & Govaert (2000), Assessing a
    mixture model for clustering with the integrated completed likelihood, IEEE Transactions on Pattern Analysis and Machine
    Intelligence 22, 719–725; Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation
    and WAIC, Statistics and Computing 27, 1413–1432.
    """
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
    columns = n_panels if n_panels <= 3 else min(4, -(-n_panels // 2))
    lines = -(-n_panels // columns)
    with canvas(None, figsize, (1.0 + 3.1 * columns, 0.8 + 2.7 * lines), lines, columns) as c:
        panels = list(c.axes.flat)
        hollow = [
            _criterion_panel(ax, selection, CRITERIA[name], picks[name])
            for ax, name in zip(panels, curves, strict=False)
        ]
        for ax, (column, title) in zip(panels[len(curves) :], bars, strict=False):
            _bar_panel(ax, selection, column, title)
        for ax in panels[len(curves) + len(bars) :]:
            ax.set_axis_off()
        kinds = list(dict.fromkeys(selection.table.index.get_level_values(0)))
        handles = [
            Line2D([], [], color=_structure_colour(kind), marker=MARKERS[kind], markersize=5, label=kind)
            for kind in kinds
        ]
        for text, size in [("picked", 11)] + [("hollow: not reliable, see flags", 5)] * any(hollow):
            ring = Line2D([], [], linestyle="", marker="o", markersize=size, label=text)
            ring.set(markerfacecolor="none", markeredgecolor="0.3")
            handles.append(ring)
        c.legend(handles)
        fit = {"em": "EM", "laplace": "EM; posterior by Laplace", "nuts": "EM; posterior by NUTS"}[selection.method]
        c.title(f"{counted(selection.n_rows, 'row')}, {counted(len(selection.table), 'model')} ({fit})")
        return c.figure


def number_of_components(found: Any, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
    """p(K | data) as bars, with its 90 % Monte Carlo interval and the prior p(K) beside it where they are known.

    Parameters
    ----------
    found : Selection or ComponentsPosterior
        What :func:`bayesgmm.select` gives with evidences (summed over the structures, each drawn in its own colour), or
        :func:`bayesgmm.inference.components.posterior_over_components`.
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
        If ``found`` is neither.
    ValueError
        If a selection has no evidences.

    References
    ----------
    Richardson & Green (1997), On Bayesian analysis of mixtures with an unknown number of components, Journal of the Royal Statistical
    Society B 59, 731–792.
    """
    if hasattr(found, "probabilities") and hasattr(found, "lower"):
        return _components_figure(found, ax, figsize)
    if not hasattr(found, "table"):
        raise TypeError(f"p(K | data) is of a Selection or a ComponentsPosterior; got {type(found).__name__}")
    values = found.table["probability"].astype("float64").dropna()
    if values.empty:
        raise ValueError(
            "this selection has no p(model | data): it needs evidences, select(..., method='nuts' or 'laplace') with "
            "'evidence' among the criteria"
        )
    ks = sorted(set(found.table.index.get_level_values(1)))
    kinds = list(dict.fromkeys(values.index.get_level_values(0)))
    with canvas(ax, figsize, (5.4, 3.8)) as c:
        base = dict.fromkeys(ks, 0.0)
        for kind in kinds:
            for k, share in values.xs(kind, level=0).items():
                c.ax.bar(
                    k, share, bottom=base[k], width=0.7, color=_structure_colour(kind), edgecolor="white", linewidth=0.6
                )
                base[k] += float(share)
        _share_axis(c.ax, ks, list(base.values()), list(base.values()))
        best = max(base, key=lambda k: base[k])
        c.title(
            f"{counted(found.n_rows, 'row')}: p(K | data), most probable K = {best} ({base[best]:.2f})",
            "colours: covariance structures" if len(kinds) > 1 else f"covariance {kinds[0]}",
        )
        if len(kinds) > 1:
            c.legend([Patch(facecolor=_structure_colour(kind), label=kind) for kind in kinds])
        return c.figure


def _components_figure(found: Any, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    ks = [int(k) for k in found.n_components]
    with canvas(ax, figsize, (5.4, 3.8)) as c:
        c.ax.bar(ks, found.probabilities, width=0.7, color=COLOURS[0])
        reach = np.abs(np.stack([found.lower, found.upper]) - found.probabilities)
        c.ax.errorbar(ks, found.probabilities, yerr=reach, fmt="none", ecolor=INK, elinewidth=1.0, capsize=3)
        c.ax.plot(ks, found.prior, "D", markerfacecolor="white", markeredgecolor=INK, markersize=5)
        _share_axis(c.ax, ks, found.probabilities, np.maximum(found.upper, found.prior))
        c.title(
            f"p(K | data), most probable K = {found.mode}",
            "bars of error: 90 % over Monte Carlo errors of the evidences",
        )
        c.legend(
            [
                Patch(facecolor=COLOURS[0], label="p(K | data)"),
                Line2D(
                    [],
                    [],
                    linestyle="",
                    marker="D",
                    markerfacecolor="white",
                    markeredgecolor=INK,
                    markersize=5,
                    label="prior p(K)",
                ),
            ]
        )
        return c.figure


def _share_axis(ax: Axes, ks: Sequence[int], shares: Any, heights: Any) -> None:
    """Axes of probabilities, with each written at a height."""
    for k, share, height in zip(ks, shares, heights, strict=True):
        text = f"{share:.2f}" if share >= 0.005 else ""
        ax.annotate(text, (k, height), (0, 4), textcoords="offset points", ha="center", fontsize=8)
    ax.set(xlabel="components K", ylabel="probability", ylim=(0, 1.12 * max(heights)))
    ax.set_xticks(ks if len(ks) <= 15 else ks[:: -(-len(ks) // 15)])
    ax.grid(axis="y", color="0.92", linewidth=0.6)


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
