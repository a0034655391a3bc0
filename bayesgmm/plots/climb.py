"""EM at work: its steps as panels and as an animation, and the optima that its starts ended in."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from bayesgmm.core import kernel
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.plots import rows
from bayesgmm.plots.densities import component_curve, curve_grid
from bayesgmm.plots.fitted import Fitted, check_fit, evenly_spaced, fitted, marginal_parameters
from bayesgmm.plots.shapes import LEVELS, crowded, draw_ellipses, plane_limits
from bayesgmm.plots.style import (
    HISTOGRAM_STYLE,
    INK,
    MUTED,
    Canvas,
    blend,
    canvas,
    colour,
    component_handles,
    counted,
    label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ITERATIONS = (0, 1, 2, 5, 20)

ANIMATION_ROWS = 3_000
"""Rows of an animation at most."""

ANIMATION_FRAMES = 30
"""Iterations of an animation at most; there are more of them at the start, where most happens."""

ANIMATION_DPI = 80

PALETTE = 64
"""Colours of an animation."""

SHOWN_MODES = 15


def em_steps(
    fit: Any,
    X: ArrayLike,
    *,
    iterations: Sequence[int] = ITERATIONS,
    features: Sequence[int | str] | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """EM at chosen iterations, a panel each, and the log-likelihood along the way.

    Parameters
    ----------
    fit : GaussianMixture
        Fitted with ``keep_history=True``.
    X : array-like of shape (N, D)
        Rows, coloured by the responsibilities of each iteration.
    iterations : sequence of int, default (0, 1, 2, 5, 20)
        0 is the start. Iterations after the last stand for the last.
    features : sequence of int or str, optional
        The two to show, by position or name. Default: those in which the components differ most.
    figsize : (float, float), optional
        Inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        If ``fit`` is no mixture of this package.
    ValueError
        If the fit has kept no history, an iteration is negative, or X does not have the fit's features.

    References
    ----------
    Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, Journal of the Royal Statistical Society B
    39, 1–38.
    """
    history = _history(fit)
    view = fitted(fit, X)
    last = len(history) - 1
    steps = _steps(iterations, last)
    pair, remark = ([0], "") if view.n_features == 1 else view.plane(features)
    n_panels = len(steps) + 1
    columns = min(3, n_panels)
    n_rows = -(-n_panels // columns)
    with canvas(None, figsize, (3.1 * columns, 0.7 + 2.7 * n_rows), n_rows, columns) as c:
        panels = list(c.axes.flat)
        for at, (ax, step) in enumerate(zip(panels, steps, strict=False)):
            step_panel(ax, view, history[step], pair)
            ax.set_title("start" if step == 0 else f"iteration {step}" + (" (the last)" if step == last else ""))
            if len(pair) == 2 and at % columns == 0:
                ax.set_ylabel(label(view.names[pair[1]], 26))
            ax.set_xlabel(label(view.names[pair[0]], 30))
            ax.locator_params(nbins=5)
        trace_panel(panels[len(steps)], fit, steps)
        for ax in panels[n_panels:]:
            ax.set_axis_off()
        how = "colour: responsibilities at that iteration"
        shapes = (
            "dashed: components times weight, line: density"
            if len(pair) == 1
            else "ellipses hold 50 % and 90 % of each component"
        )
        c.title(f"EM: {view.described}, {last} iterations", f"{shapes}; {how}" if len(pair) == 2 else shapes, remark)
        c.legend(component_handles(view.typical.weights))
        return c.figure


def _history(fit: Any) -> tuple[MixtureParameters, ...]:
    check_fit(fit)
    if hasattr(fit, "_draws"):
        raise TypeError(
            "the steps are those of EM: give a GaussianMixture fitted with keep_history=True, not a posterior"
        )
    history: tuple[MixtureParameters, ...] = getattr(fit, "history_", ())
    if not history:
        raise ValueError(
            "this fit has kept no history of its iterations (a saved fit never has one): fit again with "
            "GaussianMixture(..., keep_history=True)"
        )
    return history


def _steps(iterations: Sequence[int], last: int) -> list[int]:
    asked = [int(step) for step in np.atleast_1d(iterations)]
    if not asked or min(asked) < 0:
        raise ValueError(f"iterations must be numbers from 0 (the start) on; got {iterations!r}")
    return sorted({min(step, last) for step in asked})


def step_panel(ax: Axes, view: Fitted, parameters: MixtureParameters, shown: Sequence[int]) -> None:
    """The rows and one iteration's components, over one feature or two."""
    if len(shown) == 1:
        x = view.rows[:, 0]
        edges = rows.histogram_edges(x)
        heights = np.histogram(x, edges, density=True)[0]
        ax.stairs(heights, edges, fill=True, **HISTOGRAM_STYLE)
        grid = curve_grid(parameters, x)
        total = np.exp(kernel.log_density(grid[:, None], parameters))
        ax.plot(grid, total, color=INK, linewidth=1.6)
        for k in range(parameters.n_components):
            curve = parameters.weights[k] * component_curve(grid, parameters, k)
            ax.plot(grid, curve, color=colour(k), linewidth=1.5, linestyle="--")
        ax.set(
            xlim=(grid[0], grid[-1]),
            ylim=(0, 1.05 * max(heights.max(), min(total.max(), 2 * heights.max()))),
            yticks=[],
        )
        return
    r = kernel.responsibilities(view.rows, parameters)[0]
    rows.scatter(ax, view.rows[:, shown[0]], view.rows[:, shown[1]], blend(r))
    draw_ellipses(ax, marginal_parameters(parameters, shown), LEVELS, halo=crowded(view))
    ax.set(xlim=plane_limits(view, shown[0]), ylim=plane_limits(view, shown[1]))


def trace_panel(ax: Axes, fit: Any, steps: Sequence[int]) -> None:
    """The objective of EM at every iteration, and the iterations that are shown."""
    bounds = np.asarray(fit.lower_bounds_)
    ax.plot(np.arange(len(bounds)), bounds, color=INK, linewidth=1.4)
    ax.plot(list(steps), bounds[list(steps)], "o", color=colour(1), markersize=5)
    what = "log-likelihood" if getattr(fit, "prior_", None) is None else "log posterior"
    ax.set(xlabel="iteration", ylabel=f"{what} per row", title="dots: the iterations shown")
    ax.locator_params(axis="x", integer=True, nbins=5)
    ax.locator_params(axis="y", nbins=5)


def animate_em(
    fit: Any,
    X: ArrayLike,
    path: str | os.PathLike[str],
    *,
    features: Sequence[int | str] | None = None,
    frames_per_second: float = 4,
    figsize: tuple[float, float] = (5.6, 4.8),
) -> Path:
    """EM at work as an animated GIF, from the kept history: rows, components and log-likelihood at each iteration.

    Parameters
    ----------
    fit : GaussianMixture
        Fitted with ``keep_history=True``.
    X : array-like of shape (N, D)
        Rows. Of more than 3,000 an evenly spaced part is shown.
    path : str or path
        Ends in ``.gif``. Written whole or not at all.
    features : sequence of int or str, optional
        The two to show, by position or name. Default: those in which the components differ most.
    frames_per_second : float, default 4
    figsize : (float, float), default (5.6, 4.8)
        Inches, of 80 pixels.

    Returns
    -------
    pathlib.Path
        The file. At most 30 iterations are shown, closer at the start; the last stays for two seconds.

    Raises
    ------
    TypeError
        If ``fit`` is no mixture of this package.
    ValueError
        If the fit has kept no history, the name does not end in ``.gif``, or X does not have the fit's features.
    OSError
        If the file cannot be written.

    References
    ----------
    Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, Journal of the Royal Statistical Society B
    39, 1–38.
    """
    import matplotlib.pyplot as plt
    from PIL import Image

    from bayesgmm.io import atomic_path

    target = Path(path)
    if target.suffix.lower() != ".gif":
        raise ValueError(f"an animation is written as a GIF: {str(target)!r} should end in .gif")
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second must be above 0; got {frames_per_second}")
    history = _history(fit)
    whole = fitted(fit, X)
    kept = evenly_spaced(len(whole.rows), ANIMATION_ROWS)
    view = Fitted(fit, whole.names, whole.rows[kept], whole.typical, None, True)
    pair, _ = ([0], "") if view.n_features == 1 else view.plane(features)
    steps = frames(len(history) - 1)
    with canvas(None, figsize, figsize, 2, 1, gridspec_kw={"height_ratios": [3.4, 1]}) as c:
        part = "" if len(kept) == len(whole.rows) else f" ({len(kept):,} shown)"
        K = counted(view.n_components, "component")
        c.figure.suptitle(f"EM: {counted(len(whole.rows), 'row')}{part}, {K}", fontsize=10)
        pictures = [_picture(c, fit, view, history, step, pair) for step in steps]
        plt.close(c.figure)
    # One palette without dithering: nothing flickers, and the file is a third as large.
    colours = pictures[-1].quantize(PALETTE, dither=Image.Dither.NONE)
    first, *rest = (picture.quantize(palette=colours, dither=Image.Dither.NONE) for picture in pictures)
    shown_for = round(1000 / frames_per_second)
    with atomic_path(target) as temporary:
        first.save(
            temporary,
            save_all=True,
            append_images=rest,
            duration=[shown_for] * len(rest) + [max(2000, shown_for)],
            loop=0,
        )
    return target


def _picture(
    c: Canvas, fit: Any, view: Fitted, history: Sequence[MixtureParameters], step: int, shown: Sequence[int]
) -> Any:
    """One iteration as a picture."""
    from PIL import Image

    above, below = c.axes[:, 0]
    above.clear()
    below.clear()
    step_panel(above, view, history[step], shown)
    above.set_title("start" if step == 0 else f"iteration {step}")
    above.set_xlabel(label(view.names[shown[0]]))
    if len(shown) == 2:
        above.set_ylabel(label(view.names[shown[1]]))
    trace_panel(below, fit, [step])
    below.set(title="", ylabel="log-lik. per row")
    if step == 0:
        # Laid out once: nothing moves but EM.
        c.figure.draw_without_rendering()
        c.figure.set_layout_engine("none")
    stream = io.BytesIO()
    c.figure.savefig(stream, format="png", dpi=ANIMATION_DPI)
    return Image.open(stream).convert("RGB")


def frames(last: int, most: int = ANIMATION_FRAMES) -> list[int]:
    """Iterations of an animation from 0 to the last: all of the first, then ever farther apart."""
    if last < most:
        return list(range(last + 1))
    steps: list[int] = list(range(most // 2))
    rest = np.geomspace(most // 2, last, most - most // 2)
    return sorted({*steps, *np.round(rest).astype(int).tolist()})


def modes(fit: Any, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
    """The distinct optima that the starts of EM ended in: how often each was reached, and how far it is below the best.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted or loaded. At most 15 optima are shown.
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
        If ``fit`` is no mixture of this package.
    ValueError
        If it was made from known parameters and has no optima.

    References
    ----------
    McLachlan & Peel (2000), Finite Mixture Models, Wiley.
    """
    check_fit(fit)
    found = getattr(fit, "modes_", ())
    if not found:
        raise ValueError("this mixture has no optima of EM: it was made from known parameters")
    shown = found[:SHOWN_MODES]
    starts = np.array([mode.n_starts for mode in shown])
    below = np.array([(mode.objective - found[0].objective) * mode.run.counts.sum() for mode in shown])
    with canvas(ax, figsize, (6.4, 1.5 + 0.32 * max(3, len(shown)))) as c:
        places = np.arange(len(shown))
        bars = c.ax.barh(places, starts, height=0.65, color=[colour(0)] + [MUTED] * (len(shown) - 1))
        for bar, mode in zip(bars, shown, strict=True):
            if mode.spurious:
                bar.set(facecolor="white", edgecolor=MUTED, hatch="////")
        for place, mode, gap in zip(places, shown, below, strict=True):
            words = "best" if place == 0 else f"{gap:,.1f} nats".replace("-", "\u2212")
            rows_of_it = f"smallest component {mode.smallest_count:.3g} rows"
            c.ax.annotate(
                f"{words}; {rows_of_it}",
                (mode.n_starts, place),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        c.ax.set(
            yticks=places, yticklabels=[f"optimum {place}" for place in places], xlabel="starts of EM that ended there"
        )
        c.ax.set_ylim(max(3, len(shown)) - 0.4, -0.6)
        c.ax.set_xlim(0, 1.9 * starts.max())
        c.ax.locator_params(axis="x", integer=True, nbins=6)
        total = sum(mode.n_starts for mode in found)
        objective = "log-likelihood" if getattr(fit, "prior_", None) is None else "log posterior"
        more = f"; the first {len(shown)} are shown" if len(found) > len(shown) else ""
        c.title(
            f"{counted(len(found), 'distinct optimum', 'distinct optima')} of EM from {counted(total, 'start')}{more}",
            f"nats: {objective} below that of the best, in all",
        )
        if any(mode.spurious for mode in shown):
            c.legend(
                [Patch(facecolor="white", edgecolor=MUTED, hatch="////", label="spurious: near-singular on few rows")]
            )
        return c.figure
