"""Classes of a classifier over one feature: their densities, and how probable each is, with posterior bands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from bayesgmm.core import kernel
from bayesgmm.core.classification import joint_log_densities
from bayesgmm.core.parameters import FloatArray
from bayesgmm.estimators.classifier import MixtureClassifier
from bayesgmm.estimators.validation import check_table, feature_names, partial_labels
from bayesgmm.plots.style import INK, MUTED, canvas, colour, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = 0.9
"""Probability of the pointwise posterior bands, and of the intervals of observed shares."""

BAND_DRAWS = 1000
POINTS = 300
BINS = 26
SHARES = 10
"""Groups of rows, of about the same size, whose observed shares stand beside the probability."""


def class_probability(
    classifier: MixtureClassifier,
    X: ArrayLike | None = None,
    y: Any = None,
    *,
    shown: Any = None,
    limits: tuple[float, float] | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Densities of the classes and of all together, and below them the probability of a class, over one feature.

    With the posterior curves are its means, with pointwise 90 % bands. Where X and y are given there are also a histogram of each class,
    and for ten groups of rows of about the same size the observed share of the class with its 90 % interval (Agresti & Coull 1998).

    Parameters
    ----------
    classifier : MixtureClassifier
        Fitted to one feature.
    X : array-like of shape (N, 1), optional
        Rows to show.
    y : array-like of shape (N,), optional
        Their classes; unknown ones are left out.
    shown : object, optional
        The class whose probability is drawn. Default: the last one of two, all of more.
    limits : (float, float), optional
        Ends of the axis. Default: those of X, or of the central 99.9 % of 2,000 simulated rows.
    figsize : (float, float), optional
        Inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        If it is no ``MixtureClassifier``.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If it was fitted to several features, X comes without y, or ``shown`` is no class.
    """
    if not isinstance(classifier, MixtureClassifier):
        raise TypeError(f"class_probability draws a MixtureClassifier, got {type(classifier).__name__}")
    check_is_fitted(classifier)
    if classifier.n_features_in_ != 1:
        raise ValueError(
            f"class_probability draws one feature, and this classifier has {classifier.n_features_in_}: fit one to the feature alone"
        )
    if (X is None) != (y is None):
        raise ValueError("give X and y together, or neither")
    classes = classifier.classes_.tolist()
    if shown is not None and shown not in classes:
        raise ValueError(f"shown must be one of the classes {', '.join(map(repr, classes))}; got {shown!r}")
    drawn = [classes.index(shown)] if shown is not None else list(range(len(classes)))[-1 if len(classes) == 2 else 0 :]
    x, codes = _rows(classifier, X, y)
    low, high = limits or _limits(classifier, x)
    grid = np.linspace(low, high, POINTS)
    joint = _joint_densities(classifier, grid)
    name = label(feature_names(classifier)[0])
    with canvas(None, figsize, (6.4, 6.0), 2, 1, sharex=True) as c:
        top, bottom = c.axes[:, 0]
        if len(x):
            _histograms(top, x, codes, len(classes), low, high)
        for k in range(len(classes)):
            _curve(top, grid, joint[:, :, k], colour(k))
        top.plot(grid, joint.sum(axis=2).mean(axis=0), color=INK, linewidth=1.2)
        for k in drawn:
            _curve(bottom, grid, joint[:, :, k] / joint.sum(axis=2), colour(k))
            if len(x):
                _observed_shares(bottom, x, codes == k, colour(k) if len(drawn) > 1 else MUTED)
        unit = f"\n(per unit of {name})" if len(name) <= 22 and "(" not in name else ""
        top.set(ylabel=f"density × class probability{unit}", ylim=(0, None))
        of_one = f"probability of {label(classes[drawn[0]])}" if len(drawn) == 1 else "probability of each class"
        bottom.set(xlabel=name, ylabel=of_one, ylim=(-0.02, 1.02))
        handles: list[Any] = [
            Line2D([], [], color=colour(k), label=f"{label(name)}: {classifier.class_priors_[k]:.0%}")
            for k, name in enumerate(classes)
        ]
        handles.append(Line2D([], [], color=INK, linewidth=1.2, label="all together"))
        if len(joint) > 1:
            handles.append(Patch(color=MUTED, alpha=0.3, linewidth=0, label=f"{BAND:.0%} of the posterior"))
        if len(x):
            handles.append(
                Line2D([], [], color=MUTED, marker="o", markersize=4, linewidth=1, label="share in a tenth of the rows")
            )
        numbers = ", ".join(f"{label(n)} {K}" for n, K in classifier.n_components_.items())
        c.title(f"components of each class: {numbers}", "lines: posterior mean" if len(joint) > 1 else "lines: EM fit")
        c.legend(handles)
        return c.figure


def _rows(classifier: MixtureClassifier, X: Any, y: Any) -> tuple[FloatArray, np.ndarray]:
    """Values of the feature and places of their classes, rows of unknown class left out."""
    if X is None:
        return np.empty(0), np.empty(0, np.int64)
    table = check_table(classifier, X, reset=False)[:, 0]
    labels, known = partial_labels(y, len(table), classifier.classes_)
    places = {name: k for k, name in enumerate(classifier.classes_.tolist())}
    codes = np.array([places.get(name, -1) if there else -1 for name, there in zip(labels, known, strict=True)])
    return table[codes >= 0], codes[codes >= 0]


def _limits(classifier: MixtureClassifier, x: FloatArray) -> tuple[float, float]:
    if len(x) and np.ptp(x) > 0:
        return float(x.min()), float(x.max())
    low, high = np.quantile(classifier.sample(2000)[0], [0.0005, 0.9995])
    return float(low), float(high)


def _joint_densities(classifier: MixtureClassifier, grid: FloatArray) -> FloatArray:
    """ρ_c p(x given c) of every draw that the band is made of, one for EM: (draws, points, classes)."""
    blocks, points = classifier._layout.blocks, np.ascontiguousarray(grid[:, None])
    draws = classifier._posterior_draws()
    if draws is None:
        return np.exp(joint_log_densities(points, classifier._mixture._parameters, blocks))[None]
    some = [part[:: max(1, len(part) // BAND_DRAWS)] for part in draws]
    columns = []
    for block in blocks:
        w, m, P = (np.ascontiguousarray(part[:, block]) for part in some)
        columns.append(np.exp(kernel.pointwise_log_likelihood(points, w, m, P)))
    return np.stack(columns, axis=2)


def _curve(ax: Axes, grid: FloatArray, values: FloatArray, tint: str) -> None:
    if len(values) > 1:
        low, high = np.quantile(values, [(1 - BAND) / 2, (1 + BAND) / 2], axis=0)
        ax.fill_between(grid, low, high, color=tint, alpha=0.3, linewidth=0)
    ax.plot(grid, values.mean(axis=0), color=tint)


def _histograms(ax: Axes, x: FloatArray, codes: np.ndarray, n_classes: int, low: float, high: float) -> None:
    """Rows of each class, with an area that is their share of all."""
    edges = np.linspace(low, high, BINS + 1)
    for k in range(n_classes):
        own = x[codes == k]
        weight = np.full(len(own), 1 / len(x) / (edges[1] - edges[0]))
        ax.hist(own, edges.tolist(), weights=weight, color=colour(k), alpha=0.15)


def _observed_shares(ax: Axes, x: FloatArray, hit: np.ndarray, tint: str) -> None:
    cuts = np.quantile(x, np.linspace(0, 1, SHARES + 1))
    group = np.clip(np.searchsorted(cuts, x, side="right") - 1, 0, SHARES - 1)
    n = np.bincount(group, minlength=SHARES)
    there = np.flatnonzero(n)
    n, hits = n[there], np.bincount(group, weights=hit, minlength=SHARES)[there]
    centre = np.bincount(group, weights=x, minlength=SHARES)[there] / n
    # Two more rows of each kind: an interval also where all or none are of the class.
    middle = (hits + 2) / (n + 4)
    half = 1.645 * np.sqrt(middle * (1 - middle) / (n + 4))
    ax.vlines(centre, np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1), color=tint, linewidth=1)
    ax.plot(centre, hits / n, "o", color=tint, markersize=4)
