"""Whether the mixture could have made the data, and which rows belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from scipy.special import ndtr

from bayesgmm.core.parameters import FloatArray
from bayesgmm.plots import rows
from bayesgmm.plots.fitted import Draws, check_fit, fitted, marginal, need_draws
from bayesgmm.plots.style import BAND_STYLE, INK, canvas, label, small_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = 0.9
REPLICATES = 400
"""Draws that a replicated table is made from each."""

OUTSIDE, MEDIAN = "#D55E00", "#5B6B82"

MAX_FEATURES = 6

SHOWN_ROWS = 500
"""Rows of a co-clustering matrix."""

MAX_DRAWS = 4000
"""Draws that its probabilities are averaged over."""


def predictive_check(
    post: Any,
    *,
    features: Sequence[int | str] | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Posterior-predictive check: the histogram of each feature beside those of tables that the posterior would give.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted or loaded.
    features : sequence of int or str, optional
        At most six, by position or name. Default: all, or the six in which the components differ most.
    figsize : (float, float), optional
        Inches.

    Returns
    -------
    matplotlib.figure.Figure
        For each bin the rows observed, and the band that holds 90 % of the rows that replicated tables of the same size have there.
        Where the model is right about one bin in ten lies outside, or fewer where counts are small; the title counts them.

    Raises
    ------
    TypeError
        If ``post`` has no posterior draws.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If a feature is unknown, or more than six are asked for.

    Notes
    -----
    No rows are simulated: given a draw the number of rows in a bin is binomial with the probability that the draw's mixture gives it,
    so that any number of rows takes the same time. 400 draws are taken. The rows are those of the fit, which makes the check lenient
    (Gelman, Meng & Stern 1996); with ``sample_weight`` a row counts as often as it weighs.

    References
    ----------
    Gelman, Meng & Stern (1996), Posterior predictive assessment of model fitness via realized discrepancies, Statistica Sinica 6, 733–807.
    """
    need_draws(post, "predictive_check")
    view = fitted(post)
    chosen, remark = view.separating(features, MAX_FEATURES)
    draws = view.some_draws(REPLICATES)
    rng = np.random.default_rng(0)
    columns = min(3, len(chosen))
    n_lines = -(-len(chosen) // columns)
    size = (max(5.2, 3.2 * columns), 1.1 + 2.5 * n_lines)
    with canvas(None, figsize, size, n_lines, columns) as c:
        outside = total = 0
        for ax, feature in zip(c.axes.flat, chosen, strict=False):
            x = view.rows[:, feature]
            edges = rows.histogram_edges(x, most=40)
            observed = np.histogram(x, edges, weights=view.row_weights)[0]
            low, middle, high = replicated_counts(marginal(draws, [feature]), edges, float(observed.sum()), rng)
            ax.stairs(high, edges, baseline=low, fill=True, **BAND_STYLE)
            ax.stairs(middle, edges, baseline=None, color=MEDIAN, linewidth=1.0)
            missed = (observed < low) | (observed > high)
            centres = (edges[1:] + edges[:-1]) / 2
            for those, marker, shade, points in ((~missed, "o", INK, 3.5), (missed, "X", OUTSIDE, 6.0)):
                if those.any():
                    ax.plot(
                        centres[those], observed[those], marker, color=shade, markersize=points, clip_on=False, zorder=3
                    )
            ax.set(xlabel=label(view.names[feature], 30), xlim=(edges[0], edges[-1]))
            ax.set_ylim(bottom=0)
            ax.locator_params(nbins=5)
            small_numbers(ax.yaxis)
            outside, total = outside + int(missed.sum()), total + len(observed)
        for ax in list(c.axes.flat)[len(chosen) :]:
            ax.set_axis_off()
        for line in c.axes:
            line[0].set_ylabel("rows in a bin")
        c.title(
            f"posterior-predictive check: {view.described}",
            f"{outside} of {total} bins lie outside their 90 % band; by chance about {0.1 * total:.0f} or fewer",
            remark,
        )
        c.legend(
            [
                Line2D([], [], color=INK, marker="o", linestyle="", markersize=3.5, label="observed"),
                Line2D([], [], color=OUTSIDE, marker="X", linestyle="", markersize=6, label="outside the band"),
                Patch(label=f"{100 * BAND:.0f} % of replicated tables ({len(draws[0])} draws)", **BAND_STYLE),
                Line2D([], [], color=MEDIAN, linewidth=1.0, label="their median"),
            ]
        )
        return c.figure


def replicated_counts(
    draws: Draws, edges: FloatArray, n_rows: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Lower end, median and upper end of the number of rows in each bin over replicated tables of one feature."""
    weights, means, factors = draws
    share = np.zeros((len(weights), len(edges) - 1))
    for k in range(weights.shape[1]):
        below = ndtr((edges - means[:, [k], 0]) * factors[:, [k], 0, 0])
        share += weights[:, [k]] * np.diff(below, axis=1)
    counts = rng.binomial(round(float(n_rows)), np.clip(share, 0.0, 1.0))
    low, middle, high = np.quantile(counts, [(1 - BAND) / 2, 0.5, (1 + BAND) / 2], axis=0, method="inverted_cdf")
    return low, middle, high


def coclustering(
    fit: Any,
    X: ArrayLike | None = None,
    *,
    partition: ArrayLike | None = None,
    max_rows: int = SHOWN_ROWS,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    random_state: int = 0,
) -> Figure:
    """Probability that two rows come from the same component, as a map whose rows are put in order of what belongs together.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted or loaded. EM's fit gives Σ_k r_ik r_jk without the posterior's uncertainty.
    X : array-like of shape (N, D), optional
        Rows. A posterior's own where left out; EM's fit needs them.
    partition : array-like of shape (N,), optional
        Labels to order the rows by, largest group first; within a group, and everywhere without them, hierarchical clustering of
        1 − probability (average linkage) orders.
    max_rows : int, default 500
        Of more rows a random part is shown, and the title says so. At most 5,000.
    ax : Axes, optional
        To draw into.
    figsize : (float, float), optional
        Inches.
    random_state : int, default 0
        Of that part.

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
        If there are no rows, ``max_rows`` lies outside 2 … 5,000, or the labels are not as many as the rows.

    References
    ----------
    Fritsch & Ickstadt (2009), Improved criteria for clustering based on the posterior similarity matrix, Bayesian Analysis 4, 367–391.
    """
    from bayesgmm.averaging import MAX_ROWS
    from bayesgmm.averaging import coclustering as probabilities

    check_fit(fit)
    view = fitted(fit, X, need_rows=True, what="coclustering")
    if not 2 <= max_rows <= MAX_ROWS:
        raise ValueError(f"max_rows must lie between 2 and {MAX_ROWS}; got {max_rows}")
    N = len(view.rows)
    chosen = np.arange(N)
    if max_rows < N:
        chosen = np.sort(np.random.default_rng(random_state).choice(N, max_rows, replace=False))
    labels = None
    if partition is not None:
        labels = np.asarray(partition)
        if labels.shape != (N,):
            raise ValueError(f"partition must have one label for each of the {N} rows; got shape {labels.shape}")
        labels = labels[chosen]
    draws = view.some_draws(MAX_DRAWS)
    together = probabilities(view.rows[chosen], [(1.0, draws)])
    order = similarity_order(together, labels)
    with canvas(ax, figsize, (6.0, 5.4)) as c:
        n = len(chosen)
        picture = c.ax.imshow(
            together[np.ix_(order, order)],
            cmap="Blues",
            vmin=0,
            vmax=1,
            extent=(0, n, n, 0),
            interpolation="none" if n <= 200 else "antialiased",
        )
        bar = c.figure.colorbar(picture, ax=c.ax, shrink=0.85)
        bar.set_label("probability of the same component", fontsize=9)
        bar.ax.tick_params(labelsize=8.5)
        if labels is not None:
            for end in np.flatnonzero(np.diff(np.unique(labels[order], return_inverse=True)[1])) + 1:
                c.ax.axhline(float(end), color=INK, linewidth=0.6)
                c.ax.axvline(float(end), color=INK, linewidth=0.6)
        by = "hierarchical clustering" if labels is None else "the partition, then hierarchical clustering"
        c.ax.set(xlabel=f"rows, in the order of {by}", ylabel="rows, in the same order")
        part = "" if n == N else f"{n:,} rows shown, drawn at random"
        source = (
            "EM fit, without its uncertainty" if view.draws is None else f"mean of {len(draws[0]):,} posterior draws"
        )
        c.title(f"co-clustering: {view.described}", "; ".join(filter(None, [source, part])))
        return c.figure


def similarity_order(together: FloatArray, labels: np.ndarray | None = None) -> np.ndarray:
    """Order of rows in which those that belong together stand together: by labels if given, then by average linkage."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    def clustered(members: np.ndarray) -> np.ndarray:
        if len(members) < 3:
            return members
        apart = 1 - together[np.ix_(members, members)]
        np.fill_diagonal(apart, 0.0)
        tree = linkage(
            squareform(np.maximum(apart, 0.0), checks=False), "average", optimal_ordering=len(members) <= 600
        )
        return members[leaves_list(tree)]

    everything = np.arange(len(together))
    if labels is None:
        return clustered(everything)
    values, counts = np.unique(labels, return_counts=True)
    groups = values[np.argsort(-counts, kind="stable")]
    return np.concatenate([clustered(everything[labels == value]) for value in groups])
