"""Figures of a report: which, with what words, and inlined as SVG where that is small and as PNG where it is not."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm import garbage
from bayesgmm.report.blocks import Block, Figure, Paragraph

if TYPE_CHECKING:
    import matplotlib.figure

SVG_BYTES = 160_000
"""Size up to which a figure is inlined as SVG."""

PNG_BYTES = 500_000
"""Size above which a PNG is drawn with fewer dots."""

RESOLUTIONS = (160, 110, 80)


def inline(name: str, draw: Callable[[], Any], alt: str, caption: str) -> Block:
    """Draw a figure and put it into a block; a figure that cannot be drawn is a paragraph that says why.

    Parameters
    ----------
    name : str
        Of the function in :mod:`bayesgmm.plots`.
    draw : callable
        Gives a matplotlib figure, or ArviZ's PlotCollection.
    alt, caption : str

    Returns
    -------
    Figure or Paragraph
    """
    import matplotlib.pyplot as plt

    with plt.ioff():
        before = set(plt.get_fignums())
        try:
            drawn = draw()
            figure = drawn if hasattr(drawn, "get_size_inches") else drawn.get_viz("figure")
            figure = figure.item() if hasattr(figure, "item") else figure
            width, height = (round(96 * inches) for inches in figure.get_size_inches())
            return Figure(name, encoded(figure), alt, caption, width, height)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            return Paragraph(f"The figure “{name}” could not be drawn: {error}.", "caution")
        finally:
            for n in set(plt.get_fignums()) - before:
                plt.close(n)
                garbage.made(garbage.FIGURE)


def encoded(figure: matplotlib.figure.Figure) -> str:
    """A figure as a data URI; the same figure gives the same bytes."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "bayesgmm", "svg.fonttype": "path"}):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    if len(drawn.getvalue()) <= SVG_BYTES:
        return _uri("image/svg+xml", drawn.getvalue())
    for dpi in RESOLUTIONS:
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi, metadata={"Software": None})
        if len(drawn.getvalue()) <= PNG_BYTES:
            break
    return _uri("image/png", drawn.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
