"""Rows of a table in a plane: as points, or binned into a picture where there are many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgb

from bayesgmm.core.parameters import FloatArray
from bayesgmm.plots.fitted import evenly_spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINNED_ROWS = 20_000
"""Rows above which a plane shows bins, coloured by the mean of their rows, and not points."""

RASTERISED_ROWS = 2_000
"""Rows above which points are stored as a picture in vector formats."""

BINS = 180
"""Bins along each side of a plane."""

GREY = to_rgb("0.45")


def is_binned(n_rows: int) -> bool:
    """Whether so many rows are shown as bins."""
    return n_rows > BINNED_ROWS


def scatter(
    ax: Axes,
    x: FloatArray,
    y: FloatArray,
    colours: FloatArray | None = None,
    sizes: FloatArray | float | None = None,
    alpha: float = 0.6,
) -> None:
    """Show rows in a plane.

    Parameters
    ----------
    ax : Axes
    x, y : ndarray of shape (N,)
    colours : ndarray of shape (N, 3), optional
        Default grey. A bin has the mean of its rows'.
    sizes : ndarray of shape (N,) or float, optional
        Areas in points²; by the number of rows where left out. Bins have none.
    alpha : float, default 0.6
        Opacity of a point. That of a bin grows with the logarithm of its rows.
    """
    if is_binned(len(x)):
        _bins(ax, x, y, colours)
        return
    ax.scatter(
        x,
        y,
        s=max(3.0, min(22.0, 4000 / max(1, len(x)))) if sizes is None else sizes,
        c=[GREY] if colours is None else colours,
        alpha=alpha,
        linewidths=0,
        rasterized=len(x) > RASTERISED_ROWS,
        zorder=1,
    )


def _bins(ax: Axes, x: FloatArray, y: FloatArray, colours: FloatArray | None) -> None:
    (x0, x1), (y0, y1) = limits(x), limits(y)
    column = np.minimum(((x - x0) * (BINS / (x1 - x0))).astype(np.int64), BINS - 1)
    row = np.minimum(((y - y0) * (BINS / (y1 - y0))).astype(np.int64), BINS - 1)
    cell = row * BINS + column
    counts = np.bincount(cell, minlength=BINS * BINS)
    filled = np.maximum(counts, 1)
    picture = np.empty((BINS, BINS, 4))
    for channel in range(3):
        if colours is None:
            picture[..., channel] = GREY[channel]
        else:
            summed = np.bincount(cell, weights=colours[:, channel], minlength=BINS * BINS)
            picture[..., channel] = (summed / filled).reshape(BINS, BINS)
    # A single row stays visible beside thousands.
    strength = 0.2 + 0.8 * np.log(filled) / max(np.log(filled.max()), 1.0)
    picture[..., 3] = np.where(counts > 0, strength, 0.0).reshape(BINS, BINS)
    ax.imshow(
        np.clip(picture, 0, 1),
        extent=(x0, x1, y0, y1),
        origin="lower",
        aspect="auto",
        interpolation="none",
        rasterized=True,
        zorder=1,
    )
    ax.set(xlim=(x0, x1), ylim=(y0, y1))


def limits(x: FloatArray, margin: float = 0.04) -> tuple[float, float]:
    """Ends of an axis that holds the values, with room; never of no length."""
    low, high = float(x.min()), float(x.max())
    room = margin * (high - low)
    if not room > 1e-12 * max(abs(low), abs(high)):
        room = max(1.0, abs(low)) * 1e-3
    return low - room, high + room


def histogram_edges(x: FloatArray, most: int = 80) -> FloatArray:
    """Edges of a histogram of 8 to ``most`` bins.

    Two thirds of Freedman & Diaconis' width, and not fewer bins than 1.3 √N: their width goes by the quartiles, which lie in
    different components of a mixture.
    """
    low, high = float(x.min()), float(x.max())
    if not high > low:
        low, high = limits(x)
    part = x[evenly_spaced(len(x), 100_000)]
    q1, q3 = np.quantile(part, [0.25, 0.75])
    width = 4 / 3 * (q3 - q1) / len(x) ** (1 / 3)
    by_quartiles = most if width <= 0 else np.ceil((high - low) / width)
    n_bins = int(np.clip(max(by_quartiles, 1.3 * np.sqrt(len(x))), 8, most))
    return np.linspace(low, high, n_bins + 1)


def jitter(n: int) -> FloatArray:
    """Heights in [0, 1) that part rows of one feature: a low-discrepancy sequence, the same every time."""
    heights: FloatArray = np.modf(np.arange(1, n + 1) * 0.6180339887498949)[0]
    return heights
