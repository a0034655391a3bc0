"""The numbers of a fit that a report tells, each found once: its tables and its sentences take them from here."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.core.covariance import structure
from bayesgmm.core.intervals import named_intervals
from bayesgmm.core.parameters import FloatArray
from bayesgmm.estimators.validation import check_weights, feature_names
from bayesgmm.report.blocks import Said, percent

if TYPE_CHECKING:
    import pandas as pd

    from bayesgmm.plots.fitted import Fitted

CI_PROB = 0.9
"""Probability of every interval."""

SURE = 0.9
"""Probability of its component from which on a row counts as sure."""

SHOWN_FEATURES = 6
"""Features that tables of parameters show."""

COMPARED_PARAMETERS = 1500
"""Free parameters up to which EM's standard errors are worked out."""

LEFT_OUT_ROWS = 20_000
"""Rows up to which each is left out before its density is judged."""

DETECTOR_WORK = 100_000_000
"""Rows × draws that the detector averages over; of more rows fewer draws are taken."""

TOP_ROWS = 10

FALSE_ALARM = 0.01

DISCOVERY_RATE = 0.05


@dataclass(frozen=True)
class Component:
    """One component as it is told.

    Parameters
    ----------
    index : int
    weight : Said
    lower, upper : Said or None
        Ends of the interval of the weight.
    rows, unsure : int or None
        Rows whose most probable component it is, and those of them below 90 %.
    """

    index: int
    weight: Said
    lower: Said | None
    upper: Said | None
    rows: int | None
    unsure: int | None

    def in_words(self) -> str:
        """Weight and its interval."""
        if self.lower is None or self.upper is None or self.weight.value == 1:
            return f"component {self.index} has a weight of {self.weight}"
        low = self.lower.text.removesuffix(" %")
        return f"component {self.index} has a weight of {self.weight} ({100 * CI_PROB:.0f} % interval {low} to {self.upper})"


@dataclass(frozen=True, eq=False)
class Anomalies:
    """Rows of low density.

    Parameters
    ----------
    n_rows, flagged, discoveries : int
        Rows; those below the threshold; those at a false-discovery rate of 5 %.
    expected : Said
        Rows that a right model would have below the threshold.
    log_threshold : float
    top : DataFrame
        The rows of lowest density, with their explanations.
    left_out : bool
        Whether each row was left out of the posterior that judges it.
    n_draws : int
        Draws that were used; 1 for EM.
    """

    n_rows: int
    flagged: int
    discoveries: int
    expected: Said
    log_threshold: float
    top: pd.DataFrame
    left_out: bool
    n_draws: int


@dataclass(frozen=True, eq=False)
class FitFacts:
    """A fit, its rows, and what is found out from the two when it is asked for.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
    X : ndarray of shape (N, D) or None
        Rows; None where EM's fit came without them.
    sample_weight : ndarray of shape (N,) or None
    """

    fit: Any
    X: FloatArray | None
    sample_weight: FloatArray | None = None

    @property
    def is_posterior(self) -> bool:
        """Whether there are draws."""
        return hasattr(self.fit, "_draws")

    @property
    def K(self) -> int:
        """Number of components."""
        return len(self.fit.weights_)

    @property
    def D(self) -> int:
        """Number of features."""
        return int(self.fit.n_features_in_)

    @cached_property
    def names(self) -> list[str]:
        """Of the features."""
        return feature_names(self.fit)

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the fit."""
        if self.is_posterior:
            return bool(self.fit.diagnostics_.ok)
        return bool(self.fit.converged_) and not self.near_singular

    @property
    def near_singular(self) -> bool:
        """Whether the best optimum of EM is a near-singular one."""
        modes = getattr(self.fit, "modes_", ())
        return bool(modes and modes[0].spurious)

    @property
    def identified(self) -> bool:
        """Whether a component is the same in every draw."""
        return not self.is_posterior or bool(self.fit.diagnostics_.labels_identified)

    @cached_property
    def table(self) -> Any:
        """The rows with the names that the fit knows them by."""
        names = getattr(self.fit, "feature_names_in_", None)
        if names is None or self.X is None:
            return self.X
        import pandas as pd

        return pd.DataFrame(self.X, columns=names)

    @cached_property
    def view(self) -> Fitted:
        """The fit as figures see it."""
        from bayesgmm.plots.fitted import fitted

        return fitted(self.fit, None if self.is_posterior else self.table)

    @cached_property
    def shown(self) -> list[int]:
        """Positions of the features that tables show."""
        return self.view.separating(None, SHOWN_FEATURES)[0]

    @property
    def shown_remark(self) -> str:
        """Which features tables show, where they do not show all."""
        if len(self.shown) == self.D:
            return ""
        listed = ", ".join(f"“{self.names[j]}”" for j in self.shown)
        why = "those in which the components differ most" if self.K > 1 else "the first ones"
        return f"{len(self.shown)} of {self.D} features are shown, {why}: {listed}."

    @cached_property
    def summary(self) -> pd.DataFrame:
        """``fit.summary()``; for EM with rows, standard errors and the ends of intervals beside the estimates."""
        if self.is_posterior:
            return self.fit.summary(CI_PROB)
        table = self.fit.summary()
        if self.X is None or self.fit._n_parameters() > COMPARED_PARAMETERS:
            return table
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            errors = self.fit.standard_errors(self.table, sample_weight=self.sample_weight)
        by_name = errors.by_name(self.names)
        ends = named_intervals(self.fit._parameters, self.fit.covariances_, errors, CI_PROB, self.names)
        table["standard_error"] = [by_name[name] for name in table.index]
        table["lower"], table["upper"] = zip(*(ends[name] for name in table.index), strict=True)
        table.attrs["notes"] = errors.notes
        return table

    @cached_property
    def compared(self) -> pd.DataFrame | None:
        """``compare(em, post)`` with the maximum of the likelihood that EM climbs to from the mode; None where there is no sound one."""
        if not self.is_posterior:
            return None
        from bayesgmm.comparison import compare
        from bayesgmm.estimators.gaussian_mixture import GaussianMixture

        fit, kind = self.fit, structure(self.fit.covariance_type)
        if kind.n_parameters(self.K, self.D) > COMPARED_PARAMETERS:
            return None
        mode = fit.map_
        P = mode.precision_factors
        em = GaussianMixture(
            self.K,
            covariance_type=fit.covariance_type,
            weights_init=mode.weights,
            means_init=mode.means,
            precisions_init=kind.pack(P @ np.swapaxes(P, -1, -2)),
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                em.fit(fit._X, sample_weight=fit._sample_weight)
                if not em.converged_ or em.modes_[0].spurious:
                    return None
                return compare(em, fit, fit._X, CI_PROB, sample_weight=fit._sample_weight)
            except (ValueError, np.linalg.LinAlgError):
                return None

    @cached_property
    def _rows_by_component(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows in each component, and those of them that are not sure."""
        if self.X is None:
            return None
        r = self.view.responsibilities
        own, sure = np.argmax(r, axis=1), r.max(axis=1) >= SURE
        return np.bincount(own, minlength=self.K), np.bincount(own[~sure], minlength=self.K)

    @property
    def n_unsure(self) -> int | None:
        """Rows without a component above 90 %."""
        return None if self._rows_by_component is None else int(self._rows_by_component[1].sum())

    @cached_property
    def components(self) -> list[Component]:
        """Components in their order."""
        lower, upper = self.interval_columns
        out = []
        for k in range(self.K):
            line = self.summary.loc[f"weights[{k}]"]
            weight = percent(line["mean" if self.is_posterior else "em"])
            low, high = (None, None) if lower is None else (percent(line[lower]), percent(line[upper]))
            rows, unsure = None, None
            if self._rows_by_component is not None:
                rows, unsure = (int(counts[k]) for counts in self._rows_by_component)
            out.append(Component(k, weight, low, high, rows, unsure))
        return out

    @property
    def interval_columns(self) -> tuple[str | None, str | None]:
        """Names of the summary's columns with the ends of the intervals; None where it has none."""
        columns = list(self.summary.columns)
        if self.is_posterior:
            low, high = (c for c in columns if c.endswith("%"))
            return low, high
        return ("lower", "upper") if "lower" in columns else (None, None)

    @property
    def left_out(self) -> bool:
        """Whether each row is left out of the posterior that judges its density."""
        return self.is_posterior and self.X is not None and len(self.X) <= LEFT_OUT_ROWS

    @cached_property
    def detector(self) -> Any:
        """Of anomalies, around this fit."""
        from sklearn.frozen import FrozenEstimator

        from bayesgmm.anomaly import AnomalyDetector

        n_rows = 1 if self.X is None else len(self.X)
        return AnomalyDetector(
            FrozenEstimator(self.fit),
            false_alarm=FALSE_ALARM,
            n_draws=max(50, min(1000, DETECTOR_WORK // n_rows)),
            refits=0,
            random_state=0,
        ).fit(None)

    @cached_property
    def anomalies(self) -> Anomalies | None:
        """Rows of low density by :class:`bayesgmm.AnomalyDetector`; None without rows."""
        if self.X is None:
            return None
        import pandas as pd
        from scipy.stats import false_discovery_control

        X, rows, detector, left_out = self.table, self.X, self.detector, self.left_out
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = detector.table(None if left_out else X)
            density = table["log_density"].to_numpy()
            chosen = np.argsort(density, kind="stable")[:TOP_ROWS]
            explained = detector.explain(X.iloc[chosen] if hasattr(X, "iloc") else rows[chosen], ci_prob=CI_PROB)
        top = pd.concat([table.iloc[chosen].reset_index(drop=True), explained], axis=1)
        top.insert(0, "row", chosen + 1)
        adjusted = false_discovery_control(table["tail_probability"].to_numpy(), method="bh")
        return Anomalies(
            n_rows=len(X),
            flagged=int((density < detector.offset_).sum()),
            discoveries=int((adjusted <= DISCOVERY_RATE).sum()),
            expected=Said(FALSE_ALARM * len(X), f"{FALSE_ALARM * len(X):,.{0 if len(X) >= 10_000 else 1}f}"),
            log_threshold=float(detector.offset_),
            top=top,
            left_out=left_out,
            n_draws=len(detector._draws[0]),
        )


def facts_of(fit: Any, X: Any = None, sample_weight: Any = None) -> FitFacts:
    """Check a fit and its rows.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted.
    X : array-like of shape (N, D), optional
        For EM, which holds no rows. A posterior's own are taken.
    sample_weight : array-like of shape (N,), optional
        Frequency weights that go with ``X``.

    Returns
    -------
    FitFacts

    Raises
    ------
    ValueError
        If X does not have the fit's features, or weights come without X.
    """
    if hasattr(fit, "_draws"):
        # A fit whose rows were read in blocks holds none.
        return FitFacts(fit, getattr(fit, "_X", None), getattr(fit, "_sample_weight", None))
    if X is None:
        if sample_weight is not None:
            raise ValueError("sample_weight goes with X: give X too")
        return FitFacts(fit, None)
    table = fit._table(X)
    return FitFacts(fit, table, check_weights(sample_weight, table))
