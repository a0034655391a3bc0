"""`GaussianMixture`: maximum likelihood or maximum a posteriori by EM, in scikit-learn's manners."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from bayesgmm import criteria
from bayesgmm.core import blocked, em, kernel, stepwise
from bayesgmm.core.blocks import Accumulate, RowBlocks
from bayesgmm.core.covariance import STRUCTURES, CovarianceStructure, structure
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.estimators.blockwise import (
    alone,
    batches,
    check_survey,
    is_blockwise,
    of_each_row,
    refuse_weights_of_blocks,
    row_blocks,
    table_of_rows,
)
from bayesgmm.estimators.validation import (
    Labels,
    check_distinct_rows,
    check_parameter_arrays,
    check_settings,
    check_table,
    check_weights,
    column_names,
    feature_names,
    generator,
    number_of_features,
    warn_degenerate,
)
from bayesgmm.exceptions import warn_user

if TYPE_CHECKING:
    import pandas as pd

    from bayesgmm.core.bootstrap import BootstrapReplicates
    from bayesgmm.core.information import StandardErrors


class GaussianMixture(DensityMixin, BaseEstimator):
    """Gaussian mixture fitted by expectation–maximisation.

    A drop-in for ``sklearn.mixture.GaussianMixture``: the same parameters, fitted attributes and methods, and beside them a
    conjugate prior, frequency weights, ICL, standard errors, and a report of every optimum that the starts found. Two
    defaults differ because speed pays for them: ``n_init=10`` (scikit-learn: 1) and
    ``tol=1e-8`` (1e-3; with ``max_iter=2000`` instead of 100).

    Parameters
    ----------
    n_components : int, default 1
        Number of components K.
    covariance_type : {"full", "tied", "diag", "spherical"}, default "full"
        Structure of the covariances.
    tol : float, default 1e-8
        EM ends when the mean log-likelihood per row (plus log prior per row under a prior) changes by less. The same
        meaning as scikit-learn's.
    reg_covar : float, default 1e-6
        Added to every variance. Not used when there is a prior, which makes it needless. EM is monotone at 0.
    max_iter : int, default 2000
        Iterations allowed to each start.
    n_init : int, default 10
        Number of starts. The first uses ``init_params``; the others mix the methods (with a model-based hierarchical start, and
        quantiles for one feature). The best optimum is kept; one that is near-singular on few rows only if there is
        no other. All distinct optima stand in ``modes_``.
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}, default "kmeans"
        Method of the first start. Centres chosen by "k-means++" and "random_from_data" get the rows nearest to them.
    weights_init : array-like of shape (K,), optional
        Starting weights. When weights, means or precisions are given there is one start.
    means_init : array-like of shape (K, D), optional
        Starting means.
    precisions_init : array-like of shape (K, D, D), (D, D), (K, D) or (K,), optional
        Starting precisions (inverse covariances), in the shape that full, tied, diag or spherical has.
    random_state : int, RandomState, Generator or None, default None
        Seed; an int gives the same fit every time, on any number of threads.
    warm_start : bool, default False
        Go on from the last fit, with one start.
    verbose : int, default 0
        1 prints the progress, 2 also the change and the time, every ``verbose_interval`` iterations.
    verbose_interval : int, default 10
        Iterations between two lines of progress.
    prior : None, "default" or ConjugatePrior, default None
        None is maximum likelihood. "default" is ``ConjugatePrior.fraley_raftery``, made to regularise EM; a
        :class:`ConjugatePrior` is resolved on the data. The fit is then the mode in (π, μ, Σ).
    keep_history : bool, default False
        Keep the parameters of every iteration of the best start in ``history_``. All iterations are plain steps of EM then.
    learning_decay : float, default 0.6
        α of ``partial_fit``, in (0.5, 1]: batch t + 1 moves the averages by (t + ``learning_offset``)^−α of the way. Smaller forgets
        sooner what was learned from rows before; 0.6 is the choice of Cappé & Moulines (2009).
    learning_offset : float, default 2.0
        Larger trusts the first batch more.
    acceleration : {"squarem", None}, default "squarem"
        "squarem" finishes a fit by extrapolated steps of EM (Varadhan & Roland 2008), none of which lowers the objective: a third
        of the passes where components overlap. None, and ``tol=0``, is plain EM to the end.

    Attributes
    ----------
    weights_ : ndarray of shape (K,)
    means_ : ndarray of shape (K, D)
    covariances_ : ndarray of shape (K, D, D), (D, D), (K, D) or (K,)
        Of full, tied, diag and spherical.
    precisions_ : ndarray of shape (K, D, D), (D, D), (K, D) or (K,)
        Inverse covariances.
    precisions_cholesky_ : ndarray of shape (K, D, D), (D, D), (K, D) or (K,)
        Upper triangular C with Σ⁻¹ = C Cᵀ, as scikit-learn has it.
    converged_ : bool
    n_iter_ : int
        Iterations of the best start: passes over the data, those of rejected extrapolations too.
    initialised_on_ : int
        Number of rows that the starts were made from and first climbed on: all, but for rows in blocks.
    lower_bound_ : float
        Mean log-likelihood per row at the fitted parameters (plus log prior per row under a prior).
    lower_bounds_ : list of float
        That at the start and after every iteration of the best start.
    modes_ : tuple of Mode
        Distinct optima, best first: objective, how many starts reached each, smallest component, smallest relative eigenvalue, and
        whether it is a spurious near-singular one. Of rows in blocks: those that were followed on all rows.
    prior_ : ConjugatePrior or None
        The prior with its resolved values.
    history_ : tuple of MixtureParameters
        With ``keep_history``: the parameters at the start and after every iteration.
    n_features_in_ : int
    feature_names_in_ : ndarray of str of shape (D,)
        When the table has column names.

    References
    ----------
    Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, JRSS B 39, 1–38.
    Fraley & Raftery (2007), Bayesian regularization for normal mixture estimation, Journal of Classification 24, 155–181.
    Cappé & Moulines (2009), On-line expectation–maximization algorithm for latent data models, JRSS B 71, 593–613.
    Varadhan & Roland (2008), Simple and globally convergent methods for accelerating the convergence of any EM algorithm,
    Scandinavian Journal of Statistics 35, 335–353.

    Examples
    --------
    >>> from bayesgmm import GaussianMixture
    >>> from bayesgmm.datasets import load_faithful
    >>> X = load_faithful()
    >>> em = GaussianMixture(n_components=2, random_state=0).fit(X)
    >>> em.means_.round(2)
    array([[ 4.29, 79.97],
           [ 2.04, 54.48]])
    >>> em.predict(X.head(2))
    array([0, 1])
    >>> round(em.bic(X), 1)
    2322.2
    """

    modes_: tuple[em.Mode, ...]
    lower_bounds_: list[float]

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions(set(STRUCTURES))],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "reg_covar": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions({"kmeans", "random", "random_from_data", "k-means++"})],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", None],
        "random_state": ["random_state", np.random.Generator],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
        "prior": [StrOptions({"default"}), ConjugatePrior, None],
        "keep_history": ["boolean"],
        "acceleration": [StrOptions({"squarem"}), None],
        "learning_decay": [Interval(Real, 0.5, 1.0, closed="right")],
        "learning_offset": [Interval(Real, 0.0, None, closed="left")],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-8,
        reg_covar: float = 1e-6,
        max_iter: int = 2000,
        n_init: int = 10,
        init_params: str = "kmeans",
        weights_init: ArrayLike | None = None,
        means_init: ArrayLike | None = None,
        precisions_init: ArrayLike | None = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        prior: str | ConjugatePrior | None = None,
        keep_history: bool = False,
        acceleration: str | None = "squarem",
        learning_decay: float = 0.6,
        learning_offset: float = 2.0,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.prior = prior
        self.keep_history = keep_history
        self.acceleration = acceleration
        self.learning_decay = learning_decay
        self.learning_offset = learning_offset

    @classmethod
    def from_parameters(
        cls,
        weights: ArrayLike,
        means: ArrayLike,
        covariances: ArrayLike,
        *,
        covariance_type: str = "full",
        **parameters: Any,
    ) -> Self:
        """A mixture with known parameters, ready to score, classify and sample.

        Parameters
        ----------
        weights : array-like of shape (K,)
            On the simplex.
        means : array-like of shape (K, D)
        covariances : array-like of shape (K, D, D), (D, D), (K, D) or (K,)
            In the shape that full, tied, diag or spherical has.
        covariance_type : {"full", "tied", "diag", "spherical"}, default "full"
        **parameters
            Further constructor parameters, such as ``random_state``.

        Returns
        -------
        GaussianMixture

        Raises
        ------
        ValueError
            If a shape is wrong, the weights do not sum to 1, or a covariance is not positive definite.
        """
        centres = np.asarray(means, dtype=float)
        if centres.ndim != 2:
            raise ValueError(f"means must have the shape (components, features), but got {centres.shape}")
        K, D = centres.shape
        kind = structure(covariance_type)
        proportions, checked = check_parameter_arrays(np.asarray(weights, dtype=float), centres, K, D)
        packed = _checked_matrices(covariances, kind, K, D, "covariances")
        mixture = cls(K, covariance_type=covariance_type, **parameters)
        mixture.n_features_in_ = D
        mixture.converged_, mixture.n_iter_ = True, 0
        mixture._set(
            MixtureParameters(np.asarray(proportions), np.asarray(checked), kind.factors(packed, K, D)), packed
        )
        return mixture

    def fit(
        self,
        X: ArrayLike,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        callback: Callable[[int, MixtureParameters, float], None] | None = None,
    ) -> Self:
        """Fit by EM from several starts.

        Rows need not stand in memory: a path, or :func:`bayesgmm.open_blocks` of files, memory maps or what yields blocks, is read a
        block at a time, once for each iteration. The starts are then made from, and first climbed on, a random sample of 100,000 rows;
        optima that it cannot tell from its best one, three at most, are followed on all rows and stand in ``modes_``.

        Interrupted (Ctrl-C), a fit keeps its last complete iteration, warns, and can be resumed with ``warm_start=True``.

        Parameters
        ----------
        X : array-like of shape (N, D), path, or rows in blocks
            A C-contiguous array of float64 or float32 is not copied: float32 is read as it is, here and where rows are scored, and all
            arithmetic is in float64, so that the fit is that of the same numbers in float64.
        y : ignored
        sample_weight : array-like of shape (N,), optional
            Frequency weights: a weight of 2 is the row twice. Rows in blocks have a column of them instead.
        callback : callable, optional
            ``callback(iteration, parameters, objective)`` at the start and after every iteration of every start.

        Returns
        -------
        GaussianMixture

        Raises
        ------
        ValueError
            If the input is not a finite numeric table with at least K rows, or no start gives positive definite covariances.
        """
        check_settings(self)
        for name in ("_stepwise", "n_samples_seen_", "_interrupted"):
            self.__dict__.pop(name, None)
        kept = _Kept(self._reporter(callback))
        try:
            blocks = row_blocks(self, X, sample_weight, reset=True)
            found = self._fit_table(X, sample_weight, kept) if blocks is None else self._fit_blocks(blocks, kept)
        except KeyboardInterrupt:
            if kept.parameters is None:
                raise
            self._keep_interrupted(kept)
            return self
        self._keep(found)
        if self.keep_history:
            self.history_ = found.best.history
        self._warn(found)
        return self

    def partial_fit(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Learn from a batch of rows, each seen once: stepwise EM (Cappé & Moulines 2009).

        The first batch is fitted as by :meth:`fit`, and any prior is resolved on it. Each later one moves the averages that EM's M-step
        needs a little of the way (``learning_decay``, ``learning_offset``), and the M-step follows; a prior counts once, against all
        rows so far. Batches should be alike in size, in random order, and some hundred rows each or more. After :meth:`fit` this goes
        on from there.

        Sets ``n_iter_`` to the number of batches, ``n_samples_seen_`` to that of rows, ``lower_bound_`` and ``lower_bounds_`` to the mean
        log density of each batch before it was learned, and ``converged_`` to False: a stream has no end.

        Parameters
        ----------
        X : array-like of shape (N, D), path, rows in blocks, or iterator of arrays
            A batch. Of blocks, each is one.
        y : ignored
        sample_weight : array-like of shape (N,), optional
            Frequency weights of one batch.

        Returns
        -------
        GaussianMixture

        Raises
        ------
        ValueError
            If a batch is no finite numeric table with the features of the first, or the first has fewer than K rows.

        Examples
        --------
        >>> import numpy as np
        >>> from bayesgmm import GaussianMixture
        >>> rng = np.random.default_rng(0)
        >>> em = GaussianMixture(2, random_state=0)
        >>> for _ in range(50):
        ...     em = em.partial_fit(rng.standard_normal((500, 1)) + 6 * rng.integers(2, size=(500, 1)))
        >>> np.sort(em.weights_.round(1))
        array([0.5, 0.5])
        >>> em.n_samples_seen_
        25000
        """
        check_settings(self)
        if is_blockwise(X):
            refuse_weights_of_blocks(sample_weight)
            for rows, weights in batches(X):
                self._learn(rows, weights)
            return self
        return self._learn(X, sample_weight)

    def _learn(self, X: ArrayLike, sample_weight: ArrayLike | None) -> Self:
        fitted = hasattr(self, "_parameters")
        table = check_table(self, X, reset=not fitted)
        weights = check_weights(sample_weight, table)
        kind, rng = structure(self.covariance_type), generator(self.random_state)
        state: stepwise.Stepwise | None = getattr(self, "_stepwise", None)
        if state is None and not fitted:
            found = self._fit_table(X, sample_weight, None)
            best, self.modes_ = found.best, found.modes
            assert best.statistics is not None
            bounds = [best.log_likelihood / best.statistics.total_weight]
            state, self.n_samples_seen_ = stepwise.begin(best, best.statistics), len(table)
        else:
            problem = em.Problem(table, kind, self.prior_ if hasattr(self, "prior_") else None, weights, self.reg_covar)
            if state is None:
                before = float(self.modes_[0].run.counts.sum()) if getattr(self, "modes_", ()) else problem.total_weight
                state, self.n_samples_seen_ = (
                    stepwise.resume(kind, self._parameters, self.covariances_, before),
                    round(before),
                )
                self.lower_bounds_ = []
            density = problem.e_step(state.parameters)
            state = stepwise.step(state, problem, density, self.learning_decay, self.learning_offset, rng)
            bounds = [*self.lower_bounds_, density.log_likelihood / problem.total_weight]
            self.n_samples_seen_ += len(table)
            if state.restarted:
                warn_user(
                    f"a component lost its rows in batch {state.n_steps} and was started anew: K = {self.n_components} may be more than "
                    "the stream carries, or the batches too small",
                    ConvergenceWarning,
                )
        self._stepwise = state
        self.converged_, self.n_iter_ = False, state.n_steps
        self.lower_bounds_, self.lower_bound_ = bounds, bounds[-1]
        self._set(state.parameters, state.covariances)
        return self

    def _fit_table(self, X: ArrayLike, sample_weight: ArrayLike | None, callback: em.Callback | None) -> em.EMFit:
        table = check_table(self, X, reset=True, min_rows=2, single=True)
        N = len(table)
        K = self.n_components
        weights = check_weights(sample_weight, table)
        if N < K:
            raise ValueError(f"Expected n_samples >= n_components but got n_components = {K}, n_samples = {N}")
        names = column_names(X, number_of_features(X))
        self.prior_ = self._resolve_prior(table, weights)
        if self.prior_ is None:
            warn_degenerate(table, K, names, self.reg_covar)
            check_distinct_rows(table, K, self.reg_covar)
        rng = generator(self.random_state)
        kind = structure(self.covariance_type)

        def seeded() -> tuple[MixtureParameters, FloatArray]:
            problem = em.Problem(table, kind, None, weights, max(self.reg_covar, 1e-12))
            return em.start(problem, K, self.init_params, rng)

        self.initialised_on_ = N
        return em.fit(
            table,
            K,
            self.covariance_type,
            prior=self.prior_,
            sample_weight=weights,
            reg_covar=self.reg_covar,
            tol=self.tol,
            max_iter=self.max_iter,
            n_init=self.n_init,
            init_params=self.init_params,
            rng=rng,
            starts=self._given_starts(table.shape[1], seeded),
            callback=callback,
            keep_history=self.keep_history,
            accelerated=self.acceleration is not None,
        )

    def _fit_blocks(self, blocks: RowBlocks, callback: em.Callback) -> em.EMFit:
        """Fit rows in blocks: from a subsample, then all of them at each step."""
        K, rng = self.n_components, generator(self.random_state)
        seen = blocked.survey(blocks, int(rng.integers(2**32)))
        check_survey(seen, K, feature_names(self), self.reg_covar, self.prior is not None)
        self.prior_ = blocked.resolve_prior(self.prior, blocks, seen, K, self.covariance_type)
        problem = blocked.problem_of(
            blocks,
            seen,
            self.covariance_type,
            self.prior_,
            reg_covar=self.reg_covar,
            tol=self.tol,
            max_iter=self.max_iter,
        )
        starts = self._given_starts(blocks.n_features, lambda: blocked.given_start(problem, K, self.init_params, rng))
        self.initialised_on_ = seen.moments.n_counted if starts else len(problem.X)
        if self.verbose:
            n_rows = seen.moments.n_rows
            print(f"{n_rows} rows in blocks" if starts else f"Starts on {self.initialised_on_} of {n_rows} rows")
        return blocked.fit(
            problem,
            K,
            n_init=self.n_init,
            init_params=self.init_params,
            rng=rng,
            starts=starts,
            callback=callback,
            keep_history=self.keep_history,
            accelerated=self.acceleration is not None,
        )

    def _keep_interrupted(self, kept: _Kept) -> None:
        """Take over the last complete iteration of a fit that was interrupted."""
        assert kept.parameters is not None
        kind = structure(self.covariance_type)
        self.modes_ = ()
        self.converged_, self.n_iter_ = False, kept.iteration
        self.lower_bound_, self.lower_bounds_ = kept.objective, [kept.objective]
        self._set(kept.parameters, kind.pack(kept.parameters.covariances))
        self._interrupted = (
            f"EM was interrupted: iteration {kept.iteration} is kept, which is no optimum; to go on from there, fit with "
            "warm_start=True (--resume at the command line)"
        )
        warn_user(self._interrupted, ConvergenceWarning)

    def _keep(self, found: em.EMFit) -> None:
        """Take over what EM found."""
        best = found.best
        self.modes_ = found.modes
        self.converged_, self.n_iter_ = bool(best.converged), int(best.n_iter)
        self.lower_bound_, self.lower_bounds_ = best.objective, list(best.lower_bounds)
        self._set(best.parameters, best.covariances)

    def _resolve_prior(self, X: FloatArray, weights: FloatArray | None) -> ConjugatePrior | None:
        if self.prior is None:
            return None
        if isinstance(self.prior, str):
            return ConjugatePrior.fraley_raftery(X, self.n_components, weights)
        return self.prior.resolve(X, self.n_components, self.covariance_type, weights)

    def _given_starts(
        self, D: int, seeded: Callable[[], tuple[MixtureParameters, FloatArray]]
    ) -> list[tuple[MixtureParameters, FloatArray]] | None:
        """The start that was given, whole or in part: ``seeded`` makes the rest."""
        kind, K = structure(self.covariance_type), self.n_components
        if self.warm_start and hasattr(self, "_parameters") and self.means_.shape == (K, D):
            return [(self._parameters, self.covariances_)]
        weights, means = check_parameter_arrays(self.weights_init, self.means_init, K, D)
        if weights is None and means is None and self.precisions_init is None:
            return None
        begin, packed = seeded()
        if self.precisions_init is not None:
            precisions = _checked_matrices(self.precisions_init, kind, K, D, "precisions")
            packed = kind.covariances_from_precisions(precisions)
        parameters = MixtureParameters(
            begin.weights if weights is None else weights,
            begin.means if means is None else means,
            kind.factors(packed, K, D),
        )
        return [(parameters, packed)]

    def _reporter(
        self, callback: Callable[[int, MixtureParameters, float], None] | None
    ) -> Callable[[int, MixtureParameters, float], None] | None:
        if not self.verbose:
            return callback
        state = {"start": 0, "objective": -np.inf, "time": time.perf_counter()}

        def report(iteration: int, parameters: MixtureParameters, objective: float) -> None:
            if iteration == 0:
                state["start"] += 1
                print(f"Initialization {state['start']:.0f}")
            elif iteration % self.verbose_interval == 0:
                now = time.perf_counter()
                detail = f"\t time lapse {now - state['time']:.5f}s\t ll change {objective - state['objective']:.5f}"
                print(f"  Iteration {iteration}" + (detail if self.verbose >= 2 else ""))
                state["time"] = now
            state["objective"] = objective
            if callback is not None:
                callback(iteration, parameters, objective)

        return report

    def _set(self, parameters: MixtureParameters, packed: FloatArray) -> None:
        kind = structure(self.covariance_type)
        self._parameters = parameters
        self.weights_, self.means_, self.covariances_ = parameters.weights, parameters.means, packed
        self.precisions_cholesky_ = kind.precisions_cholesky(packed)
        P = parameters.precision_factors
        self.precisions_ = kind.pack(P @ np.swapaxes(P, -1, -2))

    def _warn(self, found: em.EMFit) -> None:
        best = found.modes[0]
        if not self.converged_ and self.max_iter > 0:
            warn_user(
                f"EM did not converge in {self.n_iter_} iterations: raise max_iter (now {self.max_iter}) or tol (now {self.tol:g})",
                ConvergenceWarning,
            )
        if best.spurious:
            warn_user(
                f"every start ended near a singularity (smallest relative eigenvalue {best.smallest_eigenvalue:.1g}): the "
                "likelihood is unbounded there. Use prior='default', fewer components or a simpler covariance_type",
                ConvergenceWarning,
            )
        if best.run.n_reseeded:
            warn_user(
                f"components of the best fit had to be started anew {best.run.n_reseeded} times: K = {self.n_components} may be "
                "more than the data carry",
                ConvergenceWarning,
            )

    def fit_predict(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> Labels:
        """Fit, and give each row the component of highest responsibility.

        Parameters
        ----------
        X : array-like of shape (N, D)
        y : ignored
        sample_weight : array-like of shape (N,), optional

        Returns
        -------
        ndarray of shape (N,)
        """
        return self.fit(X, y, sample_weight=sample_weight).predict(X)

    def _table(self, X: ArrayLike, single: bool = False) -> FloatArray:
        check_is_fitted(self)
        return check_table(self, X, reset=False, single=single)

    def _of_rows(
        self, X: ArrayLike, function: Callable[..., Any], width: int | None = None, dtype: Any = np.float64
    ) -> Any:
        """A function of rows and of the parameters."""
        check_is_fitted(self)
        return of_each_row(self, X, partial(function, parameters=self._parameters), width, dtype)

    def score_samples(self, X: ArrayLike) -> FloatArray:
        """Log density of each row.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of shape (N,)
        """
        return self._of_rows(X, kernel.log_density)

    def score(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Mean log density of the rows.

        Parameters
        ----------
        X : array-like of shape (N, D)
        y : ignored
        sample_weight : array-like of shape (N,), optional

        Returns
        -------
        float
        """
        log_likelihood, total = self._log_likelihood(X, sample_weight)
        return log_likelihood / total

    def predict_proba(self, X: ArrayLike) -> FloatArray:
        """Responsibilities: the probability of each component for each row.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of shape (N, K)
        """
        return self._of_rows(X, _responsibilities, self.n_components)

    def predict(self, X: ArrayLike) -> Labels:
        """Component of highest responsibility for each row.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of shape (N,)
        """
        return self._of_rows(X, _labels, dtype=np.int64)

    def assign(
        self,
        X: ArrayLike,
        *,
        min_density: float | None = None,
        min_responsibility: float | None = None,
        min_log_density: float | None = None,
    ) -> pd.DataFrame:
        """Assign rows to components, or to none where it cannot know: −1.

        First a row whose density lies below the smallest allowed is "far"; then one whose highest responsibility is below the smallest
        allowed is "ambiguous"; any other belongs to the component of highest responsibility.

        Parameters
        ----------
        X : array-like of shape (N, D)
            A DataFrame's columns are taken by their names.
        min_density : float, optional
            Density per unit volume of the features. Default: no row is far.
        min_responsibility : float, optional
            In (0, 1]. Default: no row is ambiguous.
        min_log_density : float, optional
            The logarithm of ``min_density``, where that would be too small for a number.

        Returns
        -------
        DataFrame
            ``component`` (−1 unknown), ``probability`` (highest responsibility), ``log_density``, and ``reason``: "ok", "far" or
            "ambiguous". Of rows in blocks an iterator of such tables, one for each block; of a Dask collection a Dask DataFrame.

        Raises
        ------
        ValueError
            If a limit lies outside its range, both densities are given, or columns are missing.
        """
        check_is_fitted(self)
        from bayesgmm.assignment import assign_rows

        return table_of_rows(
            self,
            X,
            partial(
                assign_rows,
                alone(self),
                min_density=min_density,
                min_responsibility=min_responsibility,
                min_log_density=min_log_density,
            ),
        )

    def sample(self, n_samples: int = 1) -> tuple[FloatArray, Labels]:
        """Draw rows from the mixture by the two-stage process: a component by its weight, then a row from it.

        Parameters
        ----------
        n_samples : int, default 1

        Returns
        -------
        X : ndarray of shape (n_samples, D)
            Grouped by component, as scikit-learn does.
        y : ndarray of shape (n_samples,)
            Component of each row.

        Raises
        ------
        ValueError
            If ``n_samples`` < 1.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples}. The sampling requires at least one sample.")
        rng = generator(self.random_state)
        y = np.repeat(np.arange(len(self.weights_)), rng.multinomial(n_samples, self.weights_))
        return draw_rows(rng, y, self.means_, self._parameters.precision_factors), y

    def aic(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Akaike's criterion −2 loglik + 2 p; smaller is better (Akaike 1974).

        Parameters
        ----------
        X : array-like of shape (N, D)
        sample_weight : array-like of shape (N,), optional

        Returns
        -------
        float
        """
        return criteria.aic(self._log_likelihood(X, sample_weight)[0], self._n_parameters())

    def bic(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Schwarz's criterion −2 loglik + p log Σv; smaller is better (Schwarz 1978).

        Parameters
        ----------
        X : array-like of shape (N, D)
        sample_weight : array-like of shape (N,), optional

        Returns
        -------
        float
        """
        log_likelihood, total = self._log_likelihood(X, sample_weight)
        return criteria.bic(log_likelihood, self._n_parameters(), total)

    def icl(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Integrated completed likelihood BIC − 2 Σ_n v_n log max_k r_nk; smaller is better.

        The hard assignment stands in for the labels, as in mclust (whose sign is the opposite).

        Parameters
        ----------
        X : array-like of shape (N, D)
        sample_weight : array-like of shape (N,), optional

        Returns
        -------
        float

        References
        ----------
        Biernacki, Celeux & Govaert (2000), Assessing a mixture model for clustering with the integrated completed likelihood.
        """
        check_is_fitted(self)
        if (blocks := row_blocks(self, X, sample_weight, reset=False)) is not None:
            return self._icl_of(blocks)
        table = self._table(X, single=True)
        v = check_weights(sample_weight, table)
        r, density = kernel.responsibilities(table, self._parameters)
        log_likelihood, total = _summed(density, v)
        return criteria.icl(log_likelihood, self._n_parameters(), total, r, v)

    def _icl_of(self, blocks: RowBlocks) -> float:
        """ICL of rows in blocks, in one pass."""
        log_likelihood, total, unclear = blocks.total(partial(_completed, parameters=self._parameters))
        return criteria.bic(log_likelihood, self._n_parameters(), total) - 2 * float(unclear)

    def _log_likelihood(self, X: ArrayLike, sample_weight: ArrayLike | None) -> tuple[float, float]:
        check_is_fitted(self)
        if (blocks := row_blocks(self, X, sample_weight, reset=False)) is not None:
            found = blocks.total(Accumulate(self._parameters))
            return found.log_likelihood, found.total_weight
        table = self._table(X, single=True)
        v = check_weights(sample_weight, table)
        return _summed(kernel.log_density(table, self._parameters), v)

    def _n_parameters(self) -> int:
        """Number of free parameters."""
        return structure(self.covariance_type).n_parameters(*self.means_.shape)

    def standard_errors(
        self,
        X: ArrayLike,
        method: str = "information",
        sample_weight: ArrayLike | None = None,
        n_bootstrap: int = 999,
    ) -> StandardErrors:
        """Standard errors of weights, means and covariances.

        Parameters
        ----------
        X : array-like of shape (N, D)
            The data of the fit.
        method : {"information", "sandwich", "bootstrap"}, default "information"
            Inverse observed information (Louis 1982); the sandwich, right also where the model is not (White 1982); or the spread
            of refits to resampled rows.
        sample_weight : array-like of shape (N,), optional
        n_bootstrap : int, default 999
            Number of resamples for "bootstrap".

        Returns
        -------
        StandardErrors
            ``weights`` (K,), ``means`` (K, D), ``covariances`` (packed).

        Raises
        ------
        ValueError
            If the method is unknown.
        """
        from bayesgmm.core import information

        if method == "bootstrap":
            return self.bootstrap(X, n_bootstrap, sample_weight).standard_errors
        check_is_fitted(self)
        kind, prior = structure(self.covariance_type), getattr(self, "prior_", None)
        if (blocks := row_blocks(self, X, sample_weight, reset=False)) is not None:
            seen = blocked.survey(blocks, 0, 0)
            problem: em.Problem = blocked.problem_of(
                blocks, seen, self.covariance_type, prior, reg_covar=self.reg_covar
            )
        else:
            table = self._table(X)
            problem = em.Problem(table, kind, prior, check_weights(sample_weight, table), self.reg_covar)
        return information.standard_errors(problem, self._parameters, self.covariances_, method)

    def bootstrap(
        self, X: ArrayLike, n_bootstrap: int = 999, sample_weight: ArrayLike | None = None
    ) -> BootstrapReplicates:
        """Refit to resampled rows, from this fit as the start, and put the components in its order.

        Parameters
        ----------
        X : array-like of shape (N, D)
            The data of the fit.
        n_bootstrap : int, default 999
            Number of resamples B.
        sample_weight : array-like of shape (N,), optional

        Returns
        -------
        BootstrapReplicates
            ``weights`` (B, K), ``means`` (B, K, D), ``covariances`` (B, ...), and their standard errors and intervals.
        """
        from bayesgmm.core.bootstrap import bootstrap

        table = self._table(X)
        kind = structure(self.covariance_type)
        v = check_weights(sample_weight, table)
        prior = getattr(self, "prior_", None)
        problem = em.Problem(table, kind, prior, v, self.reg_covar, max(self.tol, 1e-6), max(self.max_iter, 100))
        return bootstrap(problem, self._parameters, self.covariances_, n_bootstrap, generator(self.random_state))

    def intervals(
        self,
        X: ArrayLike,
        prob: float = 0.9,
        method: str = "information",
        sample_weight: ArrayLike | None = None,
        n_bootstrap: int = 999,
    ) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Confidence intervals of weights, means, covariances, standard deviations and correlations.

        Parameters
        ----------
        X : array-like of shape (N, D)
            The data of the fit.
        prob : float, default 0.9
        method : {"information", "sandwich", "bootstrap"}, default "information"
            From standard errors by the observed information or the sandwich, with Student's t, χ² and Fisher's z in place of the normal
            where components have few rows (``bayesgmm.core.intervals``); or from pivots of refits to resampled rows.
        sample_weight : array-like of shape (N,), optional
        n_bootstrap : int, default 999
            Number of resamples for "bootstrap".

        Returns
        -------
        dict of str to (lower, upper)
            Arrays of the shapes of the standard errors; ``correlations`` where the structure has them.

        Raises
        ------
        ValueError
            If the method is unknown or ``prob`` lies outside (0, 1).

        Notes
        -----
        In data sets of three clusters far apart, 50 to 1000 rows in all, 95 % intervals of weights, means, variances and covariances
        cover 92 to 96 %; estimate ± 1.96 standard errors of the variances cover 86 % at 50 rows, percentiles of the bootstrap 77 %
        (``make validate``, study ``coverage``).

        Examples
        --------
        >>> from bayesgmm import GaussianMixture
        >>> from bayesgmm.datasets import load_faithful
        >>> X = load_faithful()
        >>> lower, upper = GaussianMixture(2, random_state=0).fit(X).intervals(X)["weights"]
        >>> lower.round(2), upper.round(2)
        (array([0.59, 0.31]), array([0.69, 0.41]))
        """
        from bayesgmm.core.intervals import check_prob, intervals

        check_prob(prob)
        if method == "bootstrap":
            return self.bootstrap(X, n_bootstrap, sample_weight).interval(prob, "pivotal")
        errors = self.standard_errors(X, method, sample_weight)
        return intervals(self._parameters, self.covariances_, errors, prob)

    def summary(self, X: ArrayLike | None = None, method: str = "information") -> pd.DataFrame:
        """Weights, means, standard deviations and correlations in one table.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            The data of the fit: adds a column of standard errors.
        method : {"information", "sandwich", "bootstrap"}, default "information"
            Of the standard errors.

        Returns
        -------
        DataFrame
            One row per parameter, columns ``em`` and, with X, ``standard_error``.
        """
        check_is_fitted(self)
        import pandas as pd

        from bayesgmm.inference.summary import parameter_values

        kind = structure(self.covariance_type)
        table = pd.DataFrame({"em": parameter_values(self._parameters, kind, feature_names(self))})
        if X is not None:
            errors = self.standard_errors(X, method).by_name(feature_names(self))
            table["standard_error"] = pd.Series(errors)
        return table.rename_axis("parameter")

    def save(self, path: str | Path) -> Path:
        """Write the fit to a folder as ``fit.json``, no pickle.

        Parameters
        ----------
        path : str or path
            Folder; made if needed.

        Returns
        -------
        path
        """
        check_is_fitted(self)
        from bayesgmm.persistence import save

        return save(self, path)

    def report(
        self,
        path: str | Path,
        X: ArrayLike | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a report of the fit: one HTML file with verdict, tables and figures that needs no network.

        Parameters
        ----------
        path : path
            The file; its folder must exist.
        X : array-like of shape (N, D), optional
            The data of the fit, which holds no rows itself. Without them the report has no standard errors, assignment and anomalies,
            and says so.
        sample_weight : array-like of shape (N,), optional
            Frequency weights that go with ``X``.
        overwrite : bool, default False
            Whether a file that is there is replaced.

        Returns
        -------
        pathlib.Path

        Raises
        ------
        FileExistsError
            If the file exists and ``overwrite`` is not set, or it is a folder.
        OSError
            If it cannot be written.
        ValueError
            If X does not have the fit's features, or weights come without X.
        """
        check_is_fitted(self)
        from bayesgmm.report.page import check_target, fit_page, write_report

        check_target(path, overwrite)
        return write_report(fit_page(self, X, sample_weight), path, overwrite)

    def _html_repr(self) -> str:
        """What notebooks show: weights, means and verdict of a fit; scikit-learn's parameters of one that is not fitted."""
        if not self.__sklearn_is_fitted__():
            return str(super()._html_repr())
        from bayesgmm.report.notebook import fit_fragment

        return fit_fragment(self)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_parameters")


def stop_if_interrupted(fit: Any) -> None:
    """Hand on the Ctrl-C that a fit has kept its last iteration at, where the fit is a step of more.

    Raises
    ------
    KeyboardInterrupt
    """
    if getattr(fit, "_interrupted", None):
        raise KeyboardInterrupt(fit._interrupted)


class _Kept:
    """The best that a fit has come to so far, iteration by iteration: what is left when it is interrupted."""

    def __init__(self, callback: em.Callback | None) -> None:
        self._callback = callback
        self.parameters: MixtureParameters | None = None
        self.iteration, self.objective = 0, -np.inf

    def __call__(self, iteration: int, parameters: MixtureParameters, objective: float) -> None:
        if objective >= self.objective:
            self.iteration, self.parameters, self.objective = iteration, parameters, objective
        if self._callback is not None:
            self._callback(iteration, parameters, objective)


def _responsibilities(X: FloatArray, parameters: MixtureParameters) -> FloatArray:
    return kernel.responsibilities(X, parameters)[0]


def _labels(X: FloatArray, parameters: MixtureParameters) -> Labels:
    return np.argmax(_responsibilities(X, parameters), axis=1)


def _completed(X: FloatArray, v: FloatArray | None, block: int, parameters: MixtureParameters) -> FloatArray:
    """Task: Σ_n v_n log p(x_n), Σ_n v_n and Σ_n v_n log max_k r_nk."""
    r, density = kernel.responsibilities(X, parameters)
    weights = np.ones(len(X)) if v is None else v
    return np.array([weights @ density, weights.sum(), weights @ np.log(r.max(axis=1))])


def draw_rows(rng: np.random.Generator, y: Labels, means: FloatArray, precision_factors: FloatArray) -> FloatArray:
    """One row for each component label: μ + P⁻ᵀ ε."""
    noise = rng.standard_normal((len(y), means.shape[1]))
    for k in range(len(means)):
        member = y == k
        noise[member] = means[k] + np.linalg.solve(precision_factors[k].T, noise[member].T).T
    return noise


def _checked_matrices(values: ArrayLike, kind: CovarianceStructure, K: int, D: int, name: str) -> FloatArray:
    packed = np.ascontiguousarray(values, dtype=float)
    if packed.shape != kind.shape(K, D):
        raise ValueError(
            f"The parameter '{kind.name} {name}' should have the shape of {kind.shape(K, D)}, but got {packed.shape}"
        )
    if not np.isfinite(packed).all():
        raise ValueError(f"'{kind.name} {name}' should be symmetric, positive-definite and finite")
    matrices = kind.expand(packed, K, D)
    if not np.allclose(matrices, np.swapaxes(matrices, -1, -2), rtol=1e-8, atol=0):
        raise ValueError(f"'{kind.name} {name}' should be symmetric, positive-definite")
    try:
        kind.factors(packed, K, D)
    except np.linalg.LinAlgError:
        raise ValueError(f"'{kind.name} {name}' should be symmetric, positive-definite") from None
    return packed


def _summed(log_density: FloatArray, v: FloatArray | None) -> tuple[float, float]:
    """Log-likelihood and total weight of rows with these log densities."""
    if v is None:
        return float(log_density.sum()), float(len(log_density))
    return float(v @ log_density), float(v.sum())
