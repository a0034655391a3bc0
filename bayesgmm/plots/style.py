"""The one style of all figures: colours, sizes, names as labels, and the canvas that a figure is drawn on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from bayesgmm.core.parameters import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
"""Told apart by colour-blind readers (Okabe & Ito 2008; brown and grey for their yellow and black, which paper and lines take)."""

INK, MUTED, FAINT = "0.15", "0.45", "0.85"
"""Greys of what belongs to no component: lines and text, remarks, histograms."""

BAND_STYLE: dict[str, Any] = {"facecolor": "#5B6B82", "alpha": 0.35, "linewidth": 0}
HISTOGRAM_STYLE: dict[str, Any] = {"facecolor": "0.92", "edgecolor": "0.75", "linewidth": 0.6}
"""What posterior bands and rows of one feature look like."""

NAME_WIDTH = 36
"""Characters of a feature's name on an axis; the middle of a longer one is left out, because units stand at the end."""

RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "0.3",
    "axes.facecolor": "white",
    "axes.formatter.useoffset": True,
    "axes.formatter.use_mathtext": False,
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "normal",
    "figure.facecolor": "white",
    "figure.titlesize": 10,
    "font.size": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "text.color": INK,
    "text.usetex": False,
    "xtick.color": "0.3",
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": "0.3",
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}


def colour(k: int) -> str:
    """Colour of component k; they repeat after eight."""
    return COLOURS[k % len(COLOURS)]


def palette(n_components: int) -> FloatArray:
    """Colours of all components as red, green and blue (K, 3)."""
    return np.array([to_rgb(colour(k)) for k in range(n_components)])


def blend(responsibilities: FloatArray) -> FloatArray:
    """Mix of the components' colours by responsibilities (N, K): red, green and blue (N, 3)."""
    mixed: FloatArray = np.clip(responsibilities @ palette(responsibilities.shape[1]), 0.0, 1.0)
    return mixed


def label(name: object, width: int = NAME_WIDTH) -> str:
    """A name as text of a figure: one line, not too long, and never read as mathematics."""
    text = " ".join(str(name).split())
    if len(text) > width:
        head = (width - 1) * 2 // 3
        text = f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
    return text.replace("$", r"\$")


@dataclass(frozen=True, eq=False)
class Canvas:
    """Axes to draw on.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    axes : ndarray of Axes, shape (rows, columns)
    own : bool
        Whether the figure was made here, or the axes are the user's.
    """

    figure: Figure
    axes: np.ndarray
    own: bool

    @property
    def ax(self) -> Axes:
        """The first panel."""
        first: Axes = self.axes[0, 0]
        return first

    def title(self, *lines: str) -> None:
        """What the figure shows, above it; long lines are folded to its width."""
        if self.own:
            width = int(self.figure.get_size_inches()[0] * 13.5)
            self.figure.suptitle("\n".join(_folded(lines, width)), fontsize=10)
        else:
            width = int(self.ax.get_window_extent().width / self.figure.dpi * 13.5)
            self.ax.set_title("\n".join(_folded(lines, max(width, 30))), fontsize=9.5)

    def legend(self, handles: Sequence[Any], columns: int | None = None) -> None:
        """Legend below a figure of ours, inside the user's axes."""
        if not handles:
            return
        if not self.own:
            self.ax.legend(handles=handles, loc="best")
            return
        longest = max(len(h.get_label()) for h in handles)
        fitting = max(1, int(self.figure.get_size_inches()[0] * 16.5 / (longest + 7)))
        self.figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), columns or fitting), frameon=False
        )


def _folded(lines: Sequence[str], width: int) -> list[str]:
    """Lines no longer than a width, those of one sentence of about the same length; a number stays with its per cent."""
    out: list[str] = []
    for line in filter(None, lines):
        kept = line.replace(" %", "\u00a0%")
        parts = textwrap.wrap(kept, width)
        narrower = width
        while narrower > width // 2 and len(shorter := textwrap.wrap(kept, narrower)) == len(parts):
            parts, narrower = shorter, narrower - 2
        out += parts
    return out


def counted(n: int, thing: str, things: str | None = None) -> str:
    """A number with what it counts: "1 row", "1,200 rows"."""
    return f"{n:,} {thing if n == 1 else things or thing + 's'}"


@contextmanager
def canvas(
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    default: tuple[float, float] = (6.4, 4.4),
    rows: int = 1,
    columns: int = 1,
    **grid: Any,
) -> Iterator[Canvas]:
    """A new figure in this style, or the user's axes; a figure that cannot be finished is closed.

    Parameters
    ----------
    ax : Axes, optional
        The user's, for a figure of one panel.
    figsize : (float, float), optional
        Inches; default ``default``.
    default : (float, float)
    rows, columns : int, default 1
    **grid
        For ``plt.subplots``.

    Raises
    ------
    ValueError
        If ``ax`` is given for a figure of several panels.
    """
    import matplotlib.pyplot as plt

    if ax is not None and rows * columns > 1:
        raise ValueError(
            f"this figure has {rows * columns} panels and cannot be drawn into one ax: leave ax out, or ask for fewer features"
        )
    with mpl.rc_context(RC):
        if ax is not None:
            figure: Any = ax.get_figure(root=True)
            yield Canvas(figure, np.array([[ax]], dtype=object), own=False)
            return
        figure, axes = plt.subplots(
            rows, columns, figsize=figsize or default, layout="constrained", squeeze=False, **grid
        )
        for panel in axes.flat:
            # Ticks are made when a figure is drawn, by the settings of that moment.
            panel.tick_params(which="both", labelsize=8.5, color="0.3", labelcolor=INK)
        try:
            yield Canvas(figure, axes, own=True)
        except BaseException:
            plt.close(figure)
            raise


SHOWN_COMPONENTS = 12
"""Components that a legend names."""


def component_handles(weights: FloatArray, most: int = SHOWN_COMPONENTS, **style: Any) -> list[Line2D]:
    """A line of the legend for each component, with its weight; of more than ``most`` components the heaviest."""
    K = len(weights)
    shown = np.sort(np.argsort(-weights, kind="stable")[:most])
    handles = [
        Line2D([], [], color=colour(int(k)), label=f"component {k}: weight {weights[k]:.2f}", **style) for k in shown
    ]
    if len(shown) < K:
        handles.append(Line2D([], [], linestyle="", label=f"and {K - len(shown)} lighter ones"))
    return handles


def corner_matrix(c: Canvas, names: Sequence[str], diagonal: bool) -> Iterator[tuple[int, int, Axes]]:
    """Walk the lower panels of a matrix of pairs: row's feature, column's feature and panel; names at its edges.

    Parameters
    ----------
    c : Canvas
        Of d × d panels with a diagonal, else (d − 1) × (d − 1).
    names : sequence of str
        The d features.
    diagonal : bool
        Whether single features stand on the diagonal.
    """
    d = len(names)
    width = max(14, int(c.figure.get_size_inches()[0] / len(c.axes) * 11))
    for row in range(len(c.axes)):
        for column in range(len(c.axes)):
            panel = c.axes[row, column]
            i, j = (row, column) if diagonal else (row + 1, column)
            if j > i or (j == i and not diagonal):
                panel.set_axis_off()
                continue
            panel.locator_params(nbins=4)
            yield i, j, panel
            if i == d - 1:
                panel.set_xlabel(label(names[j], width))
            else:
                panel.tick_params(labelbottom=False)
            if j == 0 and i != j:
                panel.set_ylabel(label(names[i], width))
            elif i != j:
                panel.tick_params(labelleft=False)


def corner_legend(c: Canvas, handles: Sequence[Any]) -> None:
    """Legend in the empty upper corner of a matrix of pairs."""
    legend = c.axes[0, -1].legend(handles=handles, loc="upper right", frameon=False, borderaxespad=0)
    # It may reach beyond its panel and must not push the others aside.
    legend.set_in_layout(False)


def small_numbers(axis: Any) -> None:
    """Tick labels of very small or large numbers with their power of ten at the end of the axis."""
    axis.axes.ticklabel_format(axis=axis.axis_name, style="sci", scilimits=(-3, 5), useMathText=False)
