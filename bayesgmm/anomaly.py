"""`AnomalyDetector`: which rows belong nowhere, with the probability that each does, at a false-alarm rate that is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from bayesgmm.assignment import UNKNOWN, assign_rows, log_threshold, reasons, tell_unidentified
from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.quantiles import around_quantile
from bayesgmm.core.tails import PredictiveTail, batch_error, draw_quantiles, mean_over_batches
from bayesgmm.estimators.bayesian_gaussian_mixture import BayesianGaussianMixture
from bayesgmm.estimators.blockwise import alone, is_blockwise, of_each_row, row_blocks, table_of_rows
from bayesgmm.estimators.gaussian_mixture import GaussianMixture, stop_if_interrupted
from bayesgmm.estimators.validation import check_settings, check_weights, feature_names, generator, named_columns
from bayesgmm.exceptions import CriterionWarning, DataWarning, warn_user

if TYPE_CHECKING:
    import pandas as pd

    from bayesgmm.inference.left_out import LeftOut

DEFAULT_FALSE_ALARM = 0.01
BLOCK_ROWS = 65536
RATES = (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1)


class AnomalyDetector(OutlierMixin, BaseEstimator):
    """Anomalies of a Gaussian mixture, by its density and with the uncertainty of its parameters.

    A row is an anomaly where its density lies below a threshold f_min. Around a posterior that is a probability: over the draws θ,
    P(p(x given θ) < f_min). And P(p(x_new) ≤ p(x)), x_new from the posterior predictive distribution, is a p-value in any number of
    dimensions, whose rate of false alarms is that of the model with the uncertainty of its parameters in it.

    Parameters
    ----------
    estimator : GaussianMixture, BayesianGaussianMixture or FrozenEstimator, optional
        Cloned and fitted; one that is fitted goes in as ``sklearn.frozen.FrozenEstimator(fit)``. Default: ``GaussianMixture()``
        with this detector's ``random_state``.
    contamination : float, optional
        Share of the fitted rows, in (0, 0.5], that are to lie below the threshold.
    f_min : float, optional
        The threshold as a density, per unit volume of the features.
    log_f_min : float, optional
        Its logarithm, where the density would be too small for a number.
    false_alarm : float, optional
        In (0, 1). The threshold below which just this share of the model's own predictive draws fall. At most one of the four is given;
        none of them means ``false_alarm=0.01``.
    small_component : float, default 0.02
        Weight below which a component is too small to be normal: rows in it are anomalies of another kind. It does not move the
        threshold, and :meth:`predict` does not use it.
    n_draws : int, default 1000
        Draws of a posterior that are used, evenly thinned.
    n_simulated : int, default 20_000
        Rows simulated from the model: tail probabilities down to 1e-6 are then within 3 to 6 %.
    refits : int, default 10
        Fitted rows that are left out by sampling again at most, where importance sampling cannot; half a second or more for each.
    random_state : int, RandomState, Generator or None, default None

    Attributes
    ----------
    estimator_ : GaussianMixture or BayesianGaussianMixture
    offset_ : float
        The threshold, log f_min.
    false_alarm_ : float
        Share of the model's own draws that fall below it.
    n_features_in_ : int
    feature_names_in_ : ndarray of str of shape (D,)
        When the table has column names.

    Notes
    -----
    ``X=None``, in the methods that take it, means the rows that a posterior was fitted to, each left out in turn: a row must not vouch
    for itself. This is done by Pareto-smoothed importance sampling, and by sampling again where that does not do.

    References
    ----------
    Gelman, Meng & Stern (1996), Posterior predictive assessment of model fitness via realized discrepancies, Statistica Sinica 6.
    Box (1980), Sampling and Bayes' inference in scientific modelling and robustness, JRSS A 143 (the predictive tail probability).

    Examples
    --------
    >>> from bayesgmm import AnomalyDetector, GaussianMixture
    >>> from bayesgmm.datasets import load_faithful
    >>> X = load_faithful()
    >>> detector = AnomalyDetector(GaussianMixture(2), random_state=0).fit(X)
    >>> new = X.head(2).assign(waiting=[75, 90])
    >>> detector.predict(new)
    array([ 1, -1])
    >>> detector.table(new)["kind"].tolist()
    ['ok', 'far']
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [GaussianMixture, BayesianGaussianMixture, FrozenEstimator, None],
        "contamination": [Interval(Real, 0, 0.5, closed="right"), None],
        "f_min": [Real, None],
        "log_f_min": [Real, None],
        "false_alarm": [Interval(Real, 0, 1, closed="neither"), None],
        "small_component": [Interval(Real, 0, 1, closed="left")],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "n_simulated": [Interval(Integral, 100, None, closed="left")],
        "refits": [Interval(Integral, 0, None, closed="left")],
        "random_state": ["random_state", np.random.Generator],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        contamination: float | None = None,
        f_min: float | None = None,
        log_f_min: float | None = None,
        false_alarm: float | None = None,
        small_component: float = 0.02,
        n_draws: int = 1000,
        n_simulated: int = 20_000,
        refits: int = 10,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.contamination = contamination
        self.f_min = f_min
        self.log_f_min = log_f_min
        self.false_alarm = false_alarm
        self.small_component = small_component
        self.n_draws = n_draws
        self.n_simulated = n_simulated
        self.refits = refits
        self.random_state = random_state

    def fit(self, X: ArrayLike | None, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the mixture where it is not fitted, and settle the threshold.

        Parameters
        ----------
        X : array-like of shape (N, D) or None
            None for a fitted mixture, unless ``contamination`` asks for rows.
        y : ignored
        sample_weight : array-like of shape (N,), optional
            Frequency weights.

        Returns
        -------
        AnomalyDetector

        Raises
        ------
        ValueError
            If more than one threshold is given, it is not one that a density can have, or the input is bad.
        TypeError
            If a frozen estimator is not of this package.
        """
        check_settings(self)
        given = [
            name for name in ("contamination", "f_min", "log_f_min", "false_alarm") if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are each a threshold: give one of them")
        limit = log_threshold(self.f_min, self.log_f_min, ("f_min", "log_f_min"))
        self.estimator_ = self._fitted(X, sample_weight)
        self.n_features_in_ = self.estimator_.n_features_in_
        if hasattr(self.estimator_, "feature_names_in_"):
            self.feature_names_in_ = self.estimator_.feature_names_in_
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        self._bayesian = hasattr(self.estimator_, "_draws")
        self._simulate()
        if self.contamination is not None:
            self.offset_ = self._contaminated(X, sample_weight)
        elif np.isfinite(limit):
            self.offset_ = self._checked(limit)
        else:
            rate = DEFAULT_FALSE_ALARM if self.false_alarm is None else float(self.false_alarm)
            self.offset_ = self._tail.curve.quantile(rate)
        self.false_alarm_ = float(self._tail.curve.probability(np.array([self.offset_]))[0])
        self._left_out_cache: dict[Any, LeftOut] = {}
        return self

    def _fitted(self, X: Any, sample_weight: Any) -> Any:
        if isinstance(self.estimator, FrozenEstimator):
            fit = self.estimator.estimator
            if not isinstance(fit, GaussianMixture | BayesianGaussianMixture):
                raise TypeError(
                    f"a GaussianMixture or BayesianGaussianMixture of bayesgmm is needed; the frozen estimator is a {type(fit).__name__}"
                )
            check_is_fitted(fit)
            return fit
        if X is None:
            raise ValueError("X is needed to fit the mixture; one that is fitted goes in as FrozenEstimator(fit)")
        fit = GaussianMixture(random_state=self.random_state) if self.estimator is None else clone(self.estimator)
        fit.fit(X, sample_weight=sample_weight)
        stop_if_interrupted(fit)
        return fit

    def _simulate(self) -> None:
        """Take the draws that are used, and simulate rows from them."""
        fit, rng = self.estimator_, generator(self.random_state)
        self._draws: tuple[FloatArray, FloatArray, FloatArray]
        self._per_effective = 1.0
        if self._bayesian:
            thinned = fit._draws.thinned(int(self.n_draws))
            self._draws, self._edges = thinned.flat(), thinned.batch_edges()
            if fit.method_ == "laplace":
                from bayesgmm.inference.loo import relative_efficiency_of

                self._per_effective = 1 / relative_efficiency_of(fit, 1)
        else:
            p = fit._parameters
            self._draws = (p.weights[None], p.means[None], p.precision_factors[None])
            self._edges = np.array([0, 1])
        self._tail = PredictiveTail.simulate(*self._draws, int(self.n_simulated), rng, self._edges)

    def _html_repr(self) -> str:
        """What notebooks show: the threshold and the mixture; scikit-learn's parameters where it is not fitted."""
        if not hasattr(self, "offset_"):
            return str(super()._html_repr())
        from bayesgmm.report.notebook import detector_fragment

        return detector_fragment(self)

    def _contaminated(self, X: Any, sample_weight: Any) -> float:
        if X is None:
            if not self._bayesian:
                raise ValueError("contamination is a share of rows: give X, or a false_alarm rate instead")
            X, sample_weight = self.estimator_._X, self.estimator_._sample_weight
        if (blocks := row_blocks(self.estimator_, X, sample_weight, reset=False)) is not None:
            below, above = around_quantile(
                blocks, partial(type(self)._log_density, self._alone(False)), float(self.contamination or 0)
            )
            return 0.5 * (below + above)
        table = self.estimator_._table(X)
        scores, v = self._log_density(table), check_weights(sample_weight, table)
        order = np.argsort(scores, kind="stable")
        count = np.cumsum(np.ones(len(scores)) if v is None else v[order])
        last = int(np.searchsorted(count, float(self.contamination or 0) * count[-1] * (1 - 1e-12)))
        above = scores[order[min(last + 1, len(order) - 1)]]
        return float(0.5 * (scores[order[last]] + above))

    def _checked(self, limit: float) -> float:
        at_means = kernel.posterior_predictive(self.estimator_.means_, *self._draws, with_responsibilities=False)[0]
        highest = float(max(self._tail.log_density.max(), at_means.max()))
        name = "log_f_min" if self.f_min is None else "f_min"
        if limit > highest:
            raise ValueError(
                f"{name} lies above the density's maximum (log density {highest:.6g} against log f_min {limit:.6g}): every row would be "
                "flagged. Densities are per unit volume of the features"
            )
        share = float(self._tail.curve.probability(np.array([limit]))[0])
        if share > 0.5:
            warn_user(
                f"{name}: {100 * share:.0f} % of the model's own rows lie below log f_min = {limit:.6g} and would be flagged",
                DataWarning,
            )
        return limit

    def _table(self, X: Any) -> FloatArray:
        check_is_fitted(self)
        table: FloatArray = self.estimator_._table(X)
        return table

    def _rows(self, X: Any) -> FloatArray:
        """Rows with columns taken by name; the fitted ones for None."""
        check_is_fitted(self)
        if X is None:
            self._need_rows()
            rows: FloatArray = self.estimator_._X
            return rows
        return self._table(named_columns(self.estimator_, X))

    def _need_rows(self) -> None:
        if not self._bayesian:
            raise ValueError("a GaussianMixture does not hold the rows of its fit, and cannot leave them out: give X")

    def _of_rows(self, X: Any, function: Callable[..., Any], width: int | None = None, errors: bool = False) -> Any:
        """What a method of rows (n, D) says, of a table in memory, of rows in blocks, or of a Dask collection when it is computed."""
        check_is_fitted(self)
        return of_each_row(self.estimator_, X, partial(function, self._alone(errors)), width)

    def _alone(self, errors: bool) -> Self:
        """What workers need to judge rows: the detector without the rows of its fit and, unless errors are wanted, what these rest on."""
        out = copy.copy(self)
        out.estimator, out._left_out_cache = None, {}
        del out.estimator_
        nothing, tail = np.empty(0), self._tail
        out._tail = PredictiveTail(tail.curve, tail.batches if errors else (), nothing[:, None], nothing, nothing)
        return out

    def _log_density(self, table: FloatArray) -> FloatArray:
        return kernel.posterior_predictive(table, *self._draws, with_responsibilities=False)[0]

    def score_samples(self, X: ArrayLike) -> FloatArray:
        """Log density of each row; of a posterior the log predictive density.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of shape (N,)
        """
        scores: FloatArray = self._of_rows(X, type(self)._log_density)
        return scores

    def leave_one_out_scores(self) -> FloatArray:
        """Log predictive density of each fitted row, given the others.

        Returns
        -------
        ndarray of shape (N,)

        Raises
        ------
        ValueError
            Around a GaussianMixture, which does not hold its rows.
        """
        check_is_fitted(self)
        self._need_rows()
        return self._left_out(tails=False).log_density

    def decision_function(self, X: ArrayLike) -> FloatArray:
        """Log density less the threshold: negative for anomalies.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of shape (N,)
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Say −1 of anomalies, 1 of other rows.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of int of shape (N,)
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def predictive_tail_probability(
        self, X: ArrayLike | None = None, *, return_error: bool = False
    ) -> FloatArray | tuple[FloatArray, FloatArray]:
        """P(p(x_new) ≤ p(x)), x_new from the predictive distribution: small for rows that lie where hardly any would.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            A DataFrame's columns are taken by their names. Default: the fitted rows, each left out.
        return_error : bool, default False
            Also the Monte Carlo standard error, of the simulated rows and of the draws (batch means).

        Returns
        -------
        ndarray of shape (N,), or two of them
            Uniform on [0, 1] for rows of the predictive distribution. Values too small for the simulated rows to tell are given as the
            smallest that they can.
        """
        if X is None:
            self._rows(None)
            left = self._left_out()
            return (left.tail_probability, left.tail_error) if return_error else left.tail_probability
        found = self._by_name(X, partial(type(self)._tails, return_error=return_error), return_error)
        return (found[:, 0], found[:, 1]) if return_error else found[:, 0]

    def _by_name(self, X: Any, function: Callable[..., Any], errors: bool = False) -> Any:
        """A probability and its error (N, 2), of rows whose columns are taken by name."""
        check_is_fitted(self)
        return self._of_rows(named_columns(self.estimator_, X), function, 2, errors)

    def _tails(self, rows: FloatArray, return_error: bool) -> FloatArray:
        """Tail probabilities and their errors (n, 2)."""
        out = np.zeros((len(rows), 2))
        for part in _parts(len(rows)):
            if not return_error:
                out[part, 0] = self._tail.curve.probability(self._log_density(rows[part]))
                continue
            by_batch = kernel.predictive_averages(
                rows[part], *self._draws, edges=self._edges, with_responsibilities=False
            ).log_density
            density = mean_over_batches(by_batch, self._edges)
            out[part, 0] = self._tail.curve.probability(density)
            out[part, 1] = self._tail.error(density, by_batch, self._per_effective)
        return out

    def anomaly_probability(
        self,
        X: ArrayLike | None = None,
        *,
        threshold: str = "fixed",
        false_alarm: float | None = None,
        return_error: bool = False,
    ) -> FloatArray | tuple[FloatArray, FloatArray]:
        """Posterior probability that a row's density lies below the threshold, P(p(x given θ) < f_min).

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            A DataFrame's columns are taken by their names. Default: the fitted rows, each left out.
        threshold : {"fixed", "draw"}, default "fixed"
            "fixed": f_min is ``exp(offset_)`` for all draws. "draw": each draw has its own, below which a share ``false_alarm``
            of its own rows lie; the answer is then about how unusual a row is under θ, whatever the height of θ's density.
        false_alarm : float, optional
            For "draw". Default: ``false_alarm_``.
        return_error : bool, default False
            Also the Monte Carlo standard error (batch means over the draws).

        Returns
        -------
        ndarray of shape (N,), or two of them

        Raises
        ------
        AttributeError
            Around a GaussianMixture, which has no draws: see :meth:`predict` and :meth:`predictive_tail_probability`.
        ValueError
            If ``threshold`` is unknown or ``false_alarm`` lies outside (0, 1).
        """
        check_is_fitted(self)
        if not self._bayesian:
            raise AttributeError(
                "anomaly_probability is over the draws of a posterior, and a GaussianMixture has none: use predict or "
                "predictive_tail_probability, or detect with a BayesianGaussianMixture"
            )
        if threshold not in ("fixed", "draw"):
            raise ValueError(f'threshold must be "fixed" or "draw"; got {threshold!r}')
        if threshold == "fixed" and false_alarm is not None:
            raise ValueError(
                'false_alarm goes with threshold="draw"; a fixed threshold is set when the detector is made'
            )
        rate = self.false_alarm_ if false_alarm is None else _checked_rate(false_alarm, "false_alarm")
        if X is None:
            self._rows(None)
            left = self._left_out(None if threshold == "fixed" else rate)
            return (left.below, left.below_error) if return_error else left.below
        limits = self._thresholds(None if threshold == "fixed" else rate)
        found = self._by_name(X, partial(type(self)._below, limits=limits))
        return (found[:, 0], found[:, 1]) if return_error else found[:, 0]

    def _below(self, rows: FloatArray, limits: FloatArray) -> FloatArray:
        """Probabilities to lie below each draw's threshold, and their errors (n, 2)."""
        out = np.empty((len(rows), 2))
        sizes = np.diff(self._edges) / self._edges[-1]
        for part in _parts(len(rows)):
            below = kernel.predictive_averages(
                rows[part], *self._draws, edges=self._edges, thresholds=limits, with_responsibilities=False
            ).below
            out[part, 0], out[part, 1] = below @ sizes, batch_error(below, self._per_effective)
        return out

    def _thresholds(self, rate: float | None) -> FloatArray:
        """Log density of each draw below which a row is an anomaly: the fixed one, or the draw's own quantile."""
        if rate is None:
            return np.full(len(self._draws[0]), self.offset_)
        return _own_quantiles(rate, self._draws)

    def _left_out(self, rate: float | None = None, tails: bool = True) -> LeftOut:
        """Leave-one-out values of the fitted rows, found once for each kind of threshold; the densities alone without tails."""
        done = self._left_out_cache
        if not tails and done:
            return next(iter(done.values()))
        if (rate, tails) not in done:
            done[rate, tails] = self._leave_out(None, rate, tails, int(self.refits))
        return done[rate, tails]

    def _leave_out(self, chosen: NDArray[np.int64] | None, rate: float | None, tails: bool, refits: int) -> LeftOut:
        """Leave-one-out values of fitted rows, by their positions; of all for None."""
        from bayesgmm.inference.left_out import leave_out
        from bayesgmm.pointwise import named_rows

        fit = self.estimator_
        left = leave_out(
            fit,
            self._draws,
            self._tail,
            self._thresholds(rate),
            thin=max(1, len(fit._draws.flat()[0]) // len(self._draws[0])),
            refits=refits,
            own_curves=tails,
            own_thresholds=None if rate is None else partial(_own_quantiles, rate),
            rows=chosen,
            random_state=np.random.default_rng(0),
        )
        if len(left.unreliable):
            warn_user(
                f"{len(left.unreliable)} rows cannot be left out reliably (Pareto k̂ too high; {named_rows(left.unreliable)}): their "
                "probabilities are by importance sampling all the same, and they may vouch for themselves in part",
                CriterionWarning,
            )
        return left

    def conformal_pvalue(self, X: ArrayLike | None = None) -> FloatArray:
        """Rank of each row's log density among the leave-one-out log densities of the fitted rows.

        Valid, but for the reuse of the fit, without the model being right: for a row that is exchangeable with the fitted ones it is
        uniform on 1/(N + 1), …, 1. No value is smaller than 1/(N + 1).

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            Default: the fitted rows, ranked among each other.

        Returns
        -------
        ndarray of shape (N,)

        References
        ----------
        Laxhammar & Falkman (2010), Conformal prediction for distribution-independent anomaly detection; Barber, Candès, Ramdas &
        Tibshirani (2021), Predictive inference with the jackknife+, Annals of Statistics 49, 486–507.
        """
        check_is_fitted(self)
        reference, v = self.leave_one_out_scores(), self.estimator_._sample_weight
        order = np.argsort(reference, kind="stable")
        counts = np.concatenate([[0.0], np.cumsum(np.ones(len(order)) if v is None else v[order])])
        ranks = partial(_ranks, ordered=reference[order], counts=counts)
        if X is None:
            found: FloatArray = ranks(reference) / counts[-1]
            return found
        above: FloatArray = self._of_rows(
            named_columns(self.estimator_, X), partial(type(self)._conformal, ranks=ranks)
        )
        return (1 + above) / (1 + counts[-1])

    def _conformal(self, rows: FloatArray, ranks: Callable[[FloatArray], FloatArray]) -> FloatArray:
        return ranks(np.concatenate([self._log_density(rows[part]) for part in _parts(len(rows))]))

    def assign(self, X: ArrayLike | None = None, *, min_responsibility: float | None = None) -> pd.DataFrame:
        """Assign rows to components, or to none: −1 where the density is below the threshold, or no component dominates.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            Default: the fitted rows of a posterior (not left out).
        min_responsibility : float, optional
            Highest responsibility below which a row is ambiguous.

        Returns
        -------
        DataFrame
            See :meth:`bayesgmm.GaussianMixture.assign`, of rows in blocks and Dask collections too.
        """
        check_is_fitted(self)
        fit = self.estimator_
        limits: dict[str, Any] = {"min_responsibility": min_responsibility, "min_log_density": self.offset_}
        if self._bayesian:
            tell_unidentified(fit)
        if X is None:
            return assign_rows(fit, self._rows(None), **limits)
        return table_of_rows(fit, X, partial(assign_rows, alone(fit), **limits))

    def table(
        self, X: ArrayLike | None = None, *, min_responsibility: float | None = None, errors: bool = False
    ) -> pd.DataFrame:
        """All that is said of each row, side by side.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            A DataFrame's columns are taken by their names, and its index is kept. Default: the fitted rows of a posterior, where density,
            tail and anomaly probability leave the row out.
        min_responsibility : float, optional
            Highest responsibility below which a row's component is ambiguous.
        errors : bool, default False
            Add Monte Carlo standard errors of the two probabilities.

        Returns
        -------
        DataFrame
            ``log_density``; ``tail_probability``; ``anomaly_probability`` (a posterior alone); ``small_component_probability``: that the
            row's component has a weight below ``small_component``, Σ_k r_nk 1(π_k < share) averaged over draws; ``kind``: "far" (log
            density below ``offset_``), "small component" (that probability above 1/2) or "ok"; ``component`` (−1 unknown),
            ``component_probability``, and ``reason``: "ok", "far" or "ambiguous". Of rows in blocks an iterator of such tables, one for
            each block; of a Dask collection a Dask DataFrame.

        Raises
        ------
        ValueError
            If ``min_responsibility`` lies outside (0, 1], columns are missing, or X is None around a GaussianMixture.
        """
        import pandas as pd

        if min_responsibility is not None and not 0 < min_responsibility <= 1:
            raise ValueError(f"min_responsibility must lie in (0, 1]; got {min_responsibility}")
        check_is_fitted(self)
        if self._bayesian:
            tell_unidentified(self.estimator_)
        if X is not None and is_blockwise(X):
            said = partial(
                type(self)._table_of, self._alone(errors), min_responsibility=min_responsibility, errors=errors
            )
            return table_of_rows(self.estimator_, X, said)
        rows = self._rows(X)
        frames = [self._table_of(rows[part], min_responsibility, errors) for part in _parts(len(rows))]
        found = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
        if X is None:
            self._put_left_out(found, self._left_out(), min_responsibility, errors)
        index = getattr(X, "index", None)
        if index is not None and not callable(index):
            found.index = index
        return found

    def _table_of(self, rows: FloatArray, min_responsibility: float | None, errors: bool) -> pd.DataFrame:
        import pandas as pd

        edges = self._edges if errors else np.array([0, len(self._draws[0])])
        found = kernel.predictive_averages(
            rows,
            *self._draws,
            edges=edges,
            thresholds=self._thresholds(None) if self._bayesian else None,
            marked=self._draws[0] < self.small_component,
        )
        density = mean_over_batches(found.log_density, edges)
        columns: dict[str, Any] = {"log_density": density, "tail_probability": self._tail.curve.probability(density)}
        if errors:
            columns["tail_error"] = self._tail.error(density, found.log_density, self._per_effective)
        if self._bayesian:
            columns["anomaly_probability"] = found.below @ (np.diff(edges) / edges[-1])
            if errors:
                columns["anomaly_error"] = batch_error(found.below, self._per_effective)
        columns["small_component_probability"] = found.marked_mass
        columns["kind"] = columns["component"] = np.argmax(found.responsibilities, axis=1)
        columns["component_probability"] = found.responsibilities.max(axis=1, initial=0.0)
        return self._say(pd.DataFrame(columns), min_responsibility)

    def _table_left_out(self, chosen: NDArray[np.int64]) -> pd.DataFrame:
        """The table of some fitted rows, by their positions, and of no others; none is left out by a refit."""
        found = self._table_of(np.ascontiguousarray(self._rows(None)[chosen]), None, False)
        return self._put_left_out(found, self._leave_out(chosen, None, tails=False, refits=0), None, False)

    def _put_left_out(
        self, frame: pd.DataFrame, left: LeftOut, min_responsibility: float | None, errors: bool
    ) -> pd.DataFrame:
        frame["log_density"], frame["tail_probability"] = left.log_density, left.tail_probability
        frame["anomaly_probability"] = left.below
        if errors:
            frame["tail_error"], frame["anomaly_error"] = left.tail_error, left.below_error
        return self._say(frame, min_responsibility)

    def _say(self, frame: pd.DataFrame, min_responsibility: float | None) -> pd.DataFrame:
        """Put the kind of anomaly and the reason into words, from the numbers of the same row."""
        density, probability = frame["log_density"].to_numpy(), frame["component_probability"].to_numpy()
        small = frame["small_component_probability"].to_numpy() > 0.5
        frame["kind"] = np.where(density < self.offset_, "far", np.where(small, "small component", "ok")).astype(object)
        frame["reason"] = reasons(density, probability, self.offset_, min_responsibility)
        frame["component"] = np.where(frame["reason"] == "ok", frame["component"], UNKNOWN)
        return frame

    def explain(self, X: ArrayLike | None = None, *, ci_prob: float = 0.9, top: int = 3) -> pd.DataFrame:
        """Nearest component of each row, its Mahalanobis distance, and the features that contribute most.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            Default: the fitted rows of a posterior (not left out).
        ci_prob : float, default 0.9
            Of the distance's interval.
        top : int, default 3
            Features that are named.

        Returns
        -------
        DataFrame
            See :func:`bayesgmm.explanation.explain_rows`. Of rows in blocks an iterator of such tables, one for each block; of a Dask
            collection a Dask DataFrame.
        """
        check_is_fitted(self)
        from bayesgmm.explanation import explain_rows

        fit = self.estimator_
        how: dict[str, Any] = {"names": feature_names(fit), "ci_prob": ci_prob, "top": top}
        if X is None:
            return explain_rows(fit, self._rows(None), **how)
        return table_of_rows(fit, X, partial(explain_rows, alone(fit), **how))

    def discoveries(self, X: ArrayLike | None = None, *, rate: float = 0.05, method: str = "bh") -> pd.DataFrame:
        """Anomalies among many rows at a false-discovery rate, from the predictive tail probabilities.

        The null hypothesis of each row is that it comes from the mixture. In expectation at most ``rate`` of the discoveries are such rows.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            Default: the fitted rows of a posterior, each left out.
        rate : float, default 0.05
            False-discovery rate, in (0, 1).
        method : {"bh", "by"}, default "bh"
            Benjamini & Hochberg (1995), for independent or positively dependent rows; Benjamini & Yekutieli (2001), for any.

        Returns
        -------
        DataFrame
            ``tail_probability``, ``adjusted`` (smallest rate at which the row is a discovery) and ``discovery``.

        Raises
        ------
        ValueError
            If ``rate`` lies outside (0, 1) or the method is unknown.
        """
        import pandas as pd
        from scipy.stats import false_discovery_control

        _checked_rate(rate, "rate")
        if method not in ("bh", "by"):
            raise ValueError(f'method must be "bh" or "by"; got {method!r}')
        p = np.asarray(self.predictive_tail_probability(X))
        adjusted = false_discovery_control(p, method=method)
        frame = pd.DataFrame({"tail_probability": p, "adjusted": adjusted, "discovery": adjusted <= rate})
        return frame

    def flagged(self, X: ArrayLike | None = None, false_alarms: Sequence[float] = RATES) -> pd.DataFrame:
        """How many rows would be flagged at each threshold.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            Default: the fitted rows of a posterior, each left out.
        false_alarms : sequence of float
            Rates whose thresholds are looked at.

        Returns
        -------
        DataFrame
            One row a rate: ``log_f_min``; ``expected``, rows that a right model would have below it; ``flagged``; ``share``; for a
            posterior ``expected_above``: the expected share of flagged rows whose density in truth exceeds f_min, the mean of
            1 − P(p(x given θ) < f_min) over them. That is no false-discovery rate: it does not ask where the rows come from.
        """
        import pandas as pd

        check_is_fitted(self)
        rates = [_checked_rate(rate, "false_alarms") for rate in false_alarms]
        limits = np.array([self._tail.curve.quantile(rate) for rate in rates])
        counts = self._n_below(X, limits)
        n_rows, flagged = counts[0], counts[1 : len(rates) + 1]
        found = pd.DataFrame(
            {
                "false_alarm": rates,
                "log_f_min": limits,
                "expected": n_rows * np.array(rates),
                "flagged": flagged.astype(int),
                "share": flagged / n_rows,
            }
        )
        if self._bayesian:
            with np.errstate(invalid="ignore"):
                found["expected_above"] = counts[len(rates) + 1 :] / flagged
        return found.set_index("false_alarm")

    def _n_below(self, X: Any, limits: FloatArray) -> FloatArray:
        """Number of rows, of rows below each limit, and the expected number of these that lie above it in truth: (1 + 2 R,)."""
        if X is None:
            rows = self._rows(None)
            return self._flag(rows, None, 0, limits, self.leave_one_out_scores())
        flag = partial(type(self)._flag, self._alone(False), limits=limits)
        blocks = row_blocks(self.estimator_, X, reset=False)
        if blocks is not None:
            return np.asarray(blocks.total(flag))
        rows = self._rows(X)
        return self._flag(rows, None, 0, limits)

    def _flag(
        self,
        rows: FloatArray,
        v: FloatArray | None,
        block: int,
        limits: FloatArray,
        density: FloatArray | None = None,
    ) -> FloatArray:
        """Task: what :meth:`_n_below` says of the rows of a block."""
        density = self._log_density(rows) if density is None else density
        above = np.zeros(len(limits) if self._bayesian else 0)
        flagged = np.array([np.count_nonzero(density < limit) for limit in limits], dtype=float)
        for r in np.flatnonzero(flagged) if self._bayesian else ():
            at = np.ascontiguousarray(rows[density < limits[r]])
            below = kernel.predictive_averages(
                at, *self._draws, thresholds=np.full(len(self._draws[0]), limits[r]), with_responsibilities=False
            ).below
            above[r] = len(at) - float(below.sum())
        return np.concatenate([[float(len(rows))], flagged, above])


def _own_quantiles(rate: float, draws: tuple[FloatArray, FloatArray, FloatArray]) -> FloatArray:
    """Quantile of each draw's own log density, the same every time it is asked for."""
    return draw_quantiles(*draws, rate, np.random.default_rng(0))


def _ranks(scores: FloatArray, ordered: FloatArray, counts: FloatArray) -> FloatArray:
    """Counts of reference values up to each score."""
    return counts[np.searchsorted(ordered, scores, side="right")]


def _checked_rate(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1); got {value}")
    return float(value)


def _parts(n_rows: int) -> Iterator[slice]:
    for start in range(0, max(1, n_rows), BLOCK_ROWS):
        yield slice(start, start + BLOCK_ROWS)
