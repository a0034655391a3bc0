"""What a figure takes from a fit: its rows, the mixture that stands for it, and posterior draws, thinned to what a figure needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bayesgmm.core import kernel
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray, MixtureParameters, factors_from_covariances, marginal_factors
from bayesgmm.estimators.validation import feature_names
from bayesgmm.plots.style import counted, label

Draws = tuple[FloatArray, FloatArray, FloatArray]
"""Weights (S, K), means (S, K, D) and precision factors (S, K, D, D)."""

ROW_DRAWS = 20_000_000
"""Rows × draws that responsibilities are averaged over; of more rows fewer draws are taken, at least 20."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fit as figures see it.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
    names : tuple of str
        Feature names.
    X : ndarray of shape (N, D) or None
        Rows to show.
    typical : MixtureParameters
        The mixture that is drawn: EM's fit, posterior means, or the mode where components cannot be told apart.
    draws : tuple of ndarray or None
        All posterior draws, chains joined; None for EM.
    identified : bool
        Whether a component is the same in every draw.
    """

    fit: Any
    names: tuple[str, ...]
    X: FloatArray | None
    typical: MixtureParameters
    draws: Draws | None
    identified: bool

    @property
    def rows(self) -> FloatArray:
        """The rows, where there are some."""
        assert self.X is not None
        return self.X

    @property
    def n_components(self) -> int:
        """Number of components K."""
        return self.typical.n_components

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return self.typical.n_features

    @property
    def n_draws(self) -> int:
        """Number of posterior draws; 0 for EM."""
        return 0 if self.draws is None else len(self.draws[0])

    def some_draws(self, n_draws: int) -> Draws:
        """At most ``n_draws`` draws, evenly spaced over the chains; EM's fit as the one draw that it is."""
        if self.draws is None:
            p = self.typical
            return p.weights[None], p.means[None], p.precision_factors[None]
        chosen = evenly_spaced(self.n_draws, n_draws)
        weights, means, factors = (np.ascontiguousarray(part[chosen]) for part in self.draws)
        return weights, means, factors

    @cached_property
    def row_weights(self) -> FloatArray | None:
        """How often each row counts, where the rows are those of a weighted fit."""
        weights: FloatArray | None = getattr(self.fit, "_sample_weight", None)
        return weights if weights is not None and np.array_equal(self.rows, self.fit._X) else None

    @cached_property
    def n_averaged(self) -> int:
        """Draws that :attr:`responsibilities` are averaged over."""
        return min(self.n_draws, max(20, ROW_DRAWS // max(1, len(self.rows))))

    @cached_property
    def responsibilities(self) -> FloatArray:
        """Responsibilities of the rows (N, K), averaged over draws that belong together; the mode's where none do."""
        if self.draws is None or not self.identified:
            return kernel.responsibilities(self.rows, self.typical)[0]
        return kernel.posterior_predictive(self.rows, *self.some_draws(self.n_averaged))[1]

    @property
    def described(self) -> str:
        """Rows, components and structure, for a title."""
        rows = "" if self.X is None else f"{counted(len(self.X), 'row')}, "
        return f"{rows}{counted(self.n_components, 'component')}, covariance {self.fit.covariance_type}"

    @property
    def drawn(self) -> str:
        """What the mixture that stands for the fit is, for a title."""
        if self.draws is None:
            return "EM fit"
        return "posterior means" if self.identified else "the mode found by EM, as components are not identified"

    def separating(self, features: Sequence[int | str] | None, most: int) -> tuple[list[int], str]:
        """Positions of the features to show, and a remark where that is not all of them.

        Parameters
        ----------
        features : sequence of int or str or None
            Positions or names; None chooses those in which the components differ most: by the share of the mixture's variance
            that lies between components.
        most : int
            How many to choose at most.

        Raises
        ------
        ValueError
            If a feature is unknown or named twice, or there are more than ``most``.
        """
        D = self.n_features
        if features is not None:
            chosen = self.positions(features)
            if len(chosen) > most:
                raise ValueError(f"{len(chosen)} features are asked for, and this figure takes at most {most}")
            shown = ", ".join(label(self.names[j], 24) for j in chosen)
            return chosen, "" if len(chosen) == D else f"{len(chosen)} of {D} features: {shown}"
        if most >= D:
            return list(range(D)), ""
        best = sorted(np.argsort(-self._between_share(), kind="stable")[:most].tolist())
        why = "those in which the components differ most" if self.n_components > 1 else "the first ones"
        return best, f"{most} of {D} features: {why}"

    def plane(self, features: Sequence[int | str] | None) -> tuple[list[int], str]:
        """Positions of the two features of a plane, and a remark where there are more; see :meth:`separating`.

        Raises
        ------
        ValueError
            If they are not two, or a feature is unknown.
        """
        pair, remark = self.separating(features, 2)
        if len(pair) != 2:
            raise ValueError(f"rows are shown in the plane of two features; got {features!r}")
        return pair, remark

    def positions(self, features: Sequence[int | str]) -> list[int]:
        """Positions of features given by position or name.

        Raises
        ------
        ValueError
            If one is unknown, or named twice.
        """
        out = []
        for feature in [features] if isinstance(features, int | str) else features:
            if isinstance(feature, str) and feature in self.names:
                out.append(self.names.index(feature))
            elif isinstance(feature, int | np.integer) and -self.n_features <= feature < self.n_features:
                out.append(int(feature) % self.n_features)
            else:
                raise ValueError(
                    f"feature {feature!r} is not one of the fit's: {', '.join(map(repr, self.names[:10]))}"
                )
        if len(set(out)) < len(out) or not out:
            raise ValueError(f"features must be different ones, at least one; got {features!r}")
        return out

    def _between_share(self) -> FloatArray:
        """Share of each feature's variance (D,) that lies between components."""
        p = self.typical
        within = p.weights @ np.diagonal(p.covariances, axis1=-2, axis2=-1)
        between = p.weights @ (p.means - p.weights @ p.means) ** 2
        share: FloatArray = between / (between + within)
        return share


def fitted(fit: Any, X: ArrayLike | None = None, *, need_rows: bool = False, what: str = "this figure") -> Fitted:
    """Take from a fit what a figure needs.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted.
    X : array-like of shape (N, D), optional
        Rows to show; a posterior's own where left out.
    need_rows : bool, default False
        Whether there is nothing to show without rows.
    what : str
        The figure, for the message.

    Raises
    ------
    TypeError
        If ``fit`` is neither.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If rows are needed and neither given nor held by the fit, or X is not a finite table with the fit's features.
    """
    check_fit(fit)
    if X is not None:
        table = fit._table(X)
    else:
        table = getattr(fit, "_X", None)
        if table is None and need_rows:
            raise ValueError(f"{what} shows rows, and a fit by EM does not keep its own: give X")
    names = tuple(feature_names(fit))
    if not hasattr(fit, "_draws"):
        return Fitted(fit, names, table, fit._parameters, None, True)
    identified = bool(fit.diagnostics_.labels_identified)
    return Fitted(fit, names, table, _typical(fit, identified), fit._draws.flat(), identified)


def check_fit(fit: Any) -> None:
    """Refuse what is no fit.

    Raises
    ------
    TypeError
        If ``fit`` is no estimator of this package.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    """
    from sklearn.utils.validation import check_is_fitted

    if isinstance(fit, type) or not (hasattr(fit, "_table") and hasattr(fit, "covariance_type")):
        given = fit.__name__ if isinstance(fit, type) else type(fit).__name__
        raise TypeError(f"figures take a fitted GaussianMixture or BayesianGaussianMixture; got {given}")
    check_is_fitted(fit)


def need_draws(fit: Any, what: str) -> None:
    """Refuse a fit without posterior draws.

    Raises
    ------
    TypeError
        If ``fit`` is no estimator of this package, or EM's.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    """
    check_fit(fit)
    if not hasattr(fit, "_draws"):
        raise TypeError(
            f"{what} shows posterior draws, and a fit by EM has none: fit a BayesianGaussianMixture, or see "
            "GaussianMixture.summary(X) for estimates with standard errors"
        )


def _typical(fit: Any, identified: bool) -> MixtureParameters:
    """Posterior means, or the mode where components are not the same from draw to draw."""
    if not identified:
        mode: MixtureParameters = fit.map_
        return mode
    matrices = structure(fit.covariance_type).expand(fit.covariances_, *fit.means_.shape)
    return MixtureParameters(fit.weights_, fit.means_, factors_from_covariances(matrices))


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """At most ``most`` of n positions, evenly spaced."""
    if n <= most:
        return np.arange(n)
    return np.linspace(0, n - 1, most).astype(int)


def marginal(draws: Draws, features: Sequence[int]) -> Draws:
    """Draws of the mixture's marginal in some features."""
    weights, means, factors = draws
    if list(features) == list(range(means.shape[-1])):
        return draws
    return weights, np.ascontiguousarray(means[..., list(features)]), marginal_factors(factors, features)


def marginal_parameters(parameters: MixtureParameters, features: Sequence[int]) -> MixtureParameters:
    """The marginal of a mixture in some features."""
    return MixtureParameters(*marginal((parameters.weights, parameters.means, parameters.precision_factors), features))


def reordered(view: Fitted, like: MixtureParameters) -> Fitted:
    """A fit by EM with its components in the order, and so the colours, of those of another that they are nearest to."""
    from scipy.optimize import linear_sum_assignment

    p = view.typical
    scale = np.sqrt(like.weights @ (like.means - like.weights @ like.means) ** 2) + np.sqrt(
        like.weights @ np.diagonal(like.covariances, axis1=-2, axis2=-1)
    )
    distance = (((like.means[:, None] - p.means[None]) / scale) ** 2).sum(axis=-1)
    order = linear_sum_assignment(distance)[1]
    return replace(view, typical=MixtureParameters(p.weights[order], p.means[order], p.precision_factors[order]))
