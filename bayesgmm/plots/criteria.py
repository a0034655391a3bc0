"""Choosing K: criteria, weights and probabilities against the number of components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.core.parameters import FloatArray
from bayesgmm.plots.style import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"full": "o", "tied": "s", "diag": "^", "spherical": "D"}
"""One for each structure: told apart without colour."""


def selection(selection: Any) -> Figure:
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
