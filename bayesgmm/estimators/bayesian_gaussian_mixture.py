"""`BayesianGaussianMixture`: the posterior of a Gaussian mixture with the labels summed out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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

from bayesgmm.core import blocked, em, kernel
from bayesgmm.core.blocks import RowBlocks
from bayesgmm.core.covariance import STRUCTURES, structure
from bayesgmm.core.function_prior import FunctionPrior
from bayesgmm.core.hierarchical import HierarchicalPrior, Prior
from bayesgmm.core.impropriety import check_posterior
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.core.separation import SeparationPrior
from bayesgmm.distributed import is_dask
from bayesgmm.estimators.blockwise import alone, check_survey, of_each_row, row_blocks, table_of_rows
from bayesgmm.estimators.validation import (
    Labels,
    check_settings,
    check_table,
    check_weights,
    feature_names,
    generator,
    refuse_degenerate,
)
from bayesgmm.exceptions import PriorFunctionError, RowsNotHeldError, SamplingInterrupted, warn_user

if TYPE_CHECKING:
    import pandas as pd
    import pymc as pm
    from distributed import Client
    from xarray import DataTree

    from bayesgmm.inference.diagnostics import Diagnostics
    from bayesgmm.inference.evidence import Evidence
    from bayesgmm.inference.loo import PosteriorLoo
    from bayesgmm.inference.posterior import PosteriorDraws
    from bayesgmm.inference.sampling import Settings
    from bayesgmm.partition import Partition

_SKLEARN_NAMES = {
    "weight_concentration_prior_type": "a finite mixture has a Dirichlet prior: prior=ConjugatePrior(weight_concentration=...)",
    "weight_concentration_prior": "prior=ConjugatePrior(weight_concentration=...)",
    "mean_precision_prior": "prior=ConjugatePrior(mean_precision=...)",
    "mean_prior": "prior=ConjugatePrior(mean_prior=...)",
    "degrees_of_freedom_prior": "prior=ConjugatePrior(degrees_of_freedom=...)",
    "covariance_prior": "prior=ConjugatePrior(scale=...)",
}


class _HeldInMemory:
    """An attribute that a fit to a table in memory sets; of one to rows in blocks it says that they are not there."""

    def __get__(self, fit: Any, owner: Any = None) -> Any:
        if hasattr(fit, "_draws"):
            raise RowsNotHeldError(
                "this needs the rows of the fit, which were read in blocks and do not stand in memory: give the rows it is wanted for "
                "as X, or fit a table in memory, for example a sample of the rows"
            )
        raise AttributeError("a mixture that is not fitted holds no rows")


class BayesianGaussianMixture(DensityMixin, BaseEstimator):
    """Posterior of a Gaussian mixture by NUTS (or a corrected Laplace approximation), started from the modes of EM.

    EM from several starts finds the modes; each is polished in the unconstrained coordinates of a PyMC model with the labels summed
    out and approximated by a normal; NUTS runs in the coordinates that this makes round. Draws are put in one order of the
    components, diagnosed and packaged for ArviZ.

    Parameters
    ----------
    n_components : int, default 1
        Number of components K.
    covariance_type : {"full", "tied", "diag", "spherical"}, default "full"
        Structure of the covariances.
    prior : "default", ConjugatePrior, HierarchicalPrior, SeparationPrior or callable, default "default"
        "default" is ``ConjugatePrior()``: κ₀ = 0.01, ν₀ = D + 2, Λ₀ = (D + 2) S_w, resolved from the data once and kept in
        ``prior_``. ``HierarchicalPrior()`` is the same for every K and structure: evidences are compared under it.
        ``SeparationPrior()`` has priors of their own for standard deviations and correlations, as in PyMC and Stan. A function without
        arguments makes whatever PyMC variables it likes and returns weights, means and covariances: see :func:`build_model`. It is
        sampled through that PyMC model, compiled once (a minute at its first use, some seconds from then on), with rows in memory;
        the variables of the function stand in ``idata_`` too. What needs the prior's density elsewhere (the evidence, classes,
        ``select``, rows in blocks) raises :class:`bayesgmm.exceptions.PriorFunctionError`.
    method : {"auto", "nuts", "laplace"}, default "auto"
        "auto" is "nuts" for rows in memory, and "laplace" for rows in blocks or on a cluster, where NUTS takes a pass over all of them for
        each of its steps. "laplace" draws from normal approximations of the modes and resamples with Pareto-smoothed importance weights;
        fast, and right where ``diagnostics_.pareto_k`` ≤ 0.7.
    draws : int, default 1000
        Draws per chain after warm-up.
    tune : int or "auto", default "auto"
        Warm-up draws per chain; "auto" is 200, enough in whitened coordinates.
    chains : int, default 4
        Number of chains. They are shared out over the modes within 10 nats of the best (of EM's objective; under another
        prior, of the mass that each mode has in the model itself), overdispersed, and one of them (of two or more) starts from a
        random partition of the rows.
    target_ess : float, default 400
        Sampling goes on, ``draws`` at a time, until the smallest bulk and tail effective sample size of every relabelled
        parameter reaches this.
    max_draws : int, default 10000
        Draws per chain at which it stops all the same, and says so.
    mode_weights : {"evidence", "stacking"} or None, default "evidence"
        What draws of chains that stayed at different modes are combined by. "evidence": the posterior's own mass of each mode, by bridge
        sampling. "stacking": the weights of the best leave-one-out predictive mixture, of use where the model is wrong; the draws are then
        not those of the posterior. None: not at all; every mode has as many draws as chains stayed there. Where all chains are at one mode,
        or go from mode to mode, it makes no difference.
    relabelling : {"mode", "ecr", "stephens"}, default "mode"
        How draws are put in one order of the components: by the assignment to the mode that is closest in Kullback–Leibler divergence, by
        the rows' allocations (ECR, iterative), or by the divergence of the rows' classification probabilities.
        ``diagnostics_.relabelling_agreement`` says how often they differ.
    n_init : int, default 10
        Starts of EM.
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}, default "kmeans"
        Method of EM's first start.
    tol : float, default 1e-9
        Tolerance of EM (change of the objective per row).
    max_iter : int, default 1000
        Iterations allowed to each start of EM.
    random_state : int, RandomState, Generator or None, default None
        The same int gives the same draws, bit for bit.
    cores : int, optional
        Chains that run at a time. Default: all cores, or one where a pass over the data is so short (some thousand rows) that
        chains would wait for one another. The draws do not depend on it.
    progressbar : bool, default True
        Show the progress of sampling.

    Attributes
    ----------
    idata_ : DataTree
        Groups posterior (weights, means, covariances, standard_deviations, correlations; under a hierarchical prior its rate C₀ as
        ``precision_rate``), sample_stats, log_likelihood,
        log_prior, observed_data, constant_data. Where chains stayed at different modes, ``mode`` in sample_stats is that of each draw;
        where these are combined, sampled_chains has the chains as they were, with the coordinate ``mode``.
    diagnostics_ : Diagnostics
        Convergence, with a verdict in words.
    map_ : MixtureParameters
        Mode in (π, μ, Σ) found by EM under the prior; under the other priors, under their ``em_prior``.
    modes_ : tuple of Mode
        Distinct modes of EM, best first; under the other priors in the order of the mass that each has in the model itself, those
        that have next to none, or climb to the same mode as another, last. ``n_starts`` is 0 for one that a chain led to.
    mode_weights_ : DataFrame
        A row for each mode of the posterior: ``weight`` with its ``error``, ``log_mass`` with its, Laplace's approximation of it, the
        ``method`` and the ``chains`` that stayed there.
    prior_ : ConjugatePrior, HierarchicalPrior, SeparationPrior or FunctionPrior
        The prior with its resolved values.
    weights_, means_, covariances_ : ndarray of shape (K,), (K, D), and that of GaussianMixture's
        Posterior means of the relabelled draws where the components are identified, else the mode (with a warning).
    n_features_in_ : int
    feature_names_in_ : ndarray of str of shape (D,)
        When the table has column names.

    References
    ----------
    Frühwirth-Schnatter (2006), Finite Mixture and Markov Switching Models, Springer, sections 3.5 and 6.3.
    Hoffman & Gelman (2014), The No-U-Turn sampler, JMLR 15, 1593–1623.
    Papastamoulis & Iliopoulos (2010), An artificial allocations based solution to the label switching problem, JCGS 19, 313–331.
    Stephens (2000), Dealing with label switching in mixture models, JRSS B 62, 795–809.
    Yao, Vehtari & Gelman (2022), Stacking for non-mixing Bayesian computations, JMLR 23(79), 1–45.

    Examples
    --------
    >>> from bayesgmm import BayesianGaussianMixture
    >>> from bayesgmm.datasets import load_faithful
    >>> X = load_faithful()
    >>> post = BayesianGaussianMixture(n_components=2, random_state=0, progressbar=False).fit(X)
    >>> post.diagnostics_.ok
    True
    >>> post.summary()["median"].head(2).round(2).tolist()
    [0.64, 0.36]
    >>> post.predict_proba(X.head(2)).round(2)
    array([[1., 0.],
           [0., 1.]])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions(set(STRUCTURES))],
        "prior": [StrOptions({"default"}), ConjugatePrior, HierarchicalPrior, SeparationPrior, FunctionPrior, callable],
        "method": [StrOptions({"auto", "nuts", "laplace"})],
        "draws": [Interval(Integral, 4, None, closed="left")],
        "tune": [StrOptions({"auto"}), Interval(Integral, 10, None, closed="left")],
        "chains": [Interval(Integral, 1, None, closed="left")],
        "target_ess": [Interval(Real, 0, None, closed="left")],
        "max_draws": [Interval(Integral, 1, None, closed="left")],
        "mode_weights": [StrOptions({"evidence", "stacking"}), None],
        "relabelling": [StrOptions({"mode", "ecr", "stephens"})],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions({"kmeans", "random", "random_from_data", "k-means++"})],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state", np.random.Generator],
        "cores": [Interval(Integral, 1, None, closed="left"), None],
        "progressbar": ["boolean"],
    }

    _X: Any = _HeldInMemory()
    _sample_weight: Any = _HeldInMemory()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse scikit-learn's names of the prior's arguments with the names of ours."""
        for name, ours in _SKLEARN_NAMES.items():
            if name in kwargs:
                raise TypeError(f"{name} is scikit-learn's name of a variational prior; here it is {ours}")
        return super().__new__(cls)

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        prior: str | Prior = "default",
        method: str = "auto",
        draws: int = 1000,
        tune: int | str = "auto",
        chains: int = 4,
        target_ess: float = 400,
        max_draws: int = 10_000,
        mode_weights: str | None = "evidence",
        relabelling: str = "mode",
        n_init: int = 10,
        init_params: str = "kmeans",
        tol: float = 1e-9,
        max_iter: int = 1000,
        random_state: Any = None,
        cores: int | None = None,
        progressbar: bool = True,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.prior = prior
        self.method = method
        self.draws = draws
        self.tune = tune
        self.chains = chains
        self.target_ess = target_ess
        self.max_draws = max_draws
        self.mode_weights = mode_weights
        self.relabelling = relabelling
        self.n_init = n_init
        self.init_params = init_params
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.cores = cores
        self.progressbar = progressbar

    def fit(
        self,
        X: ArrayLike,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        *,
        client: Client | None = None,
    ) -> Self:
        """Sample the posterior.

        Rows need not stand in memory: a path, or :func:`bayesgmm.open_blocks` of files, memory maps or what yields blocks, is read a
        block at a time. ``method="laplace"`` then takes a handful of passes over the rows beyond EM's: one for the curvature at each
        mode, one or two for the way there, and one or two that score all draws. "nuts" takes a pass for each of its steps, and says
        beforehand how long that will be. LOO, WAIC and the evidence
        want the rows again: :meth:`loo` and :meth:`log_evidence` take them as ``X``. Anomaly of fitted rows and partitions need them in
        memory, and ``idata_`` has neither observed data nor their log-likelihood.

        Parameters
        ----------
        X : array-like of shape (N, D), path, or rows in blocks
        y : ignored
        sample_weight : array-like of shape (N,), optional
            Frequency weights: a weight of 2 is the row twice. Rows in blocks have a column of them instead.
        client : distributed.Client, optional
            Of a Dask cluster, on whose workers the chains of NUTS run; the rows, which stand in memory here, travel to each worker once.
            The draws do not depend on it, where the workers have processors of this kind.

        Returns
        -------
        BayesianGaussianMixture

        Raises
        ------
        ValueError
            If the input is not a finite numeric table, or too degenerate for the prior to be scaled by it; if a client is given that
            has nothing to do, because there are no chains or the rows are in blocks.
        ClusterError
            If the cluster cannot do it.
        ImproperPosteriorError
            If the posterior is improper under a :class:`SeparationPrior`; the message names the rows and what to change.
        SamplingInterrupted
            If the user stopped the sampler; what was drawn is in the exception's ``estimator``.
        """
        check_settings(self)
        em_rng, sampler_rng = generator(self.random_state).spawn(2)
        blocks = row_blocks(self, X, sample_weight, reset=True)
        if client is not None and (blocks is not None or self._method(False) != "nuts"):
            raise ValueError(
                "client is for the chains of NUTS over rows in memory; a Dask collection is summed over on the client that holds it"
            )
        problem = None
        if blocks is None:
            found = self._fit_table(X, sample_weight, em_rng)
        else:
            problem, found = self._fit_blocks(blocks, em_rng)
        self.modes_ = found.modes
        self._sample(sampler_rng, problem, client)
        return self

    def _prior(self) -> Any:
        if isinstance(self.prior, str):
            return ConjugatePrior()
        return FunctionPrior.of(self.prior) if callable(self.prior) else self.prior

    def _refuse_improper(self, X: FloatArray, sample_weight: FloatArray | None) -> None:
        check_posterior(self.prior_, X, self.n_components, self.covariance_type, sample_weight, feature_names(self))

    def _fit_table(self, X: ArrayLike, sample_weight: ArrayLike | None, rng: np.random.Generator) -> em.EMFit:
        """Modes of EM for a table in memory."""
        table = check_table(self, X, reset=True, min_rows=2)
        weights = check_weights(sample_weight, table)
        own_scale = isinstance(self.prior, ConjugatePrior) and self.prior.scale is not None
        if not own_scale:
            refuse_degenerate(table, self.n_components, feature_names(self))
        self.prior_: Any = self._prior().resolve(table, self.n_components, self.covariance_type, weights)
        self._refuse_improper(table, weights)
        self._X, self._sample_weight = table, weights
        return em.fit(
            table,
            self.n_components,
            self.covariance_type,
            prior=self.prior_.for_em.at_least_uniform(),
            sample_weight=weights,
            tol=self.tol,
            max_iter=self.max_iter,
            n_init=self.n_init,
            init_params=self.init_params,
            rng=rng,
        )

    def _fit_blocks(self, blocks: RowBlocks, rng: np.random.Generator) -> tuple[blocked.BlockedProblem, em.EMFit]:
        """Modes of EM for rows in blocks: from a subsample, then all of them at each step."""
        seen = blocked.survey(blocks, int(rng.integers(2**32)))
        K, kind, prior = self.n_components, self.covariance_type, self._prior()
        if isinstance(prior, FunctionPrior):
            raise PriorFunctionError(
                "a prior given as a function is sampled with the rows in memory: fit a table, or take a ConjugatePrior, "
                "HierarchicalPrior or SeparationPrior for rows in blocks"
            )
        check_survey(seen, K, feature_names(self), 0.0, True)
        self.prior_ = prior.resolve_from(blocked.BlockSummary(blocks, seen, K, kind), K)
        # What any rows among the sample make improper, all rows do.
        self._refuse_improper(seen.sample.rows, seen.sample.weights)
        settings = {"tol": self.tol, "max_iter": self.max_iter}
        problem = blocked.problem_of(blocks, seen, kind, self.prior_.for_em.at_least_uniform(), **settings)
        for held in ("_X", "_sample_weight"):
            self.__dict__.pop(held, None)
        return problem, blocked.fit(problem, K, n_init=self.n_init, init_params=self.init_params, rng=rng)

    def _sample(self, rng: np.random.Generator, problem: blocked.BlockedProblem | None, client: Client | None) -> None:
        from bayesgmm.inference import sampling

        result = sampling.sample_posterior(
            sampling.Task(
                X=self._X if problem is None else problem.X,
                sample_weight=self._sample_weight if problem is None else problem.sample_weight,
                kind=structure(self.covariance_type),
                prior=self.prior_,
                modes=tuple(m.run for m in self.modes_),
                names=tuple(feature_names(self)),
                blocked=problem,
            ),
            replace(self._settings(in_blocks=problem is not None), client=client),
            rng,
        )
        # Best first in the model itself, whose prior EM may not have had.
        modes = (*self.modes_, *result.met)
        self.modes_ = tuple(replace(modes[m], run=run) for m, run in zip(result.mode_order, result.modes, strict=True))
        self.map_ = self.modes_[0].run.parameters
        self._draws: PosteriorDraws = result.draws
        self.idata_: DataTree = result.idata
        self.diagnostics_: Diagnostics = result.diagnostics
        self._set_point_estimates()
        if result.interrupted is not None:
            raise SamplingInterrupted(result.interrupted, self)
        for spoken in self.diagnostics_.problems:
            warn_user(spoken, ConvergenceWarning)

    def _settings(self, in_blocks: bool = False) -> Settings:
        """How the posterior of rows in memory, or in blocks, is sampled."""
        from bayesgmm.inference.sampling import Settings

        return Settings(
            method=self._method(in_blocks),
            draws=int(self.draws),
            tune=200 if isinstance(self.tune, str) else int(self.tune),
            chains=int(self.chains),
            target_ess=float(self.target_ess),
            max_draws=int(max(self.max_draws, self.draws)),
            cores=self.cores,
            progressbar=bool(self.progressbar),
            mode_weights=self.mode_weights,
            relabelling=self.relabelling,
        )

    def _set_point_estimates(self) -> None:
        if not self.diagnostics_.labels_identified:
            warn_user(
                "weights_, means_ and covariances_ are the mode's: the draws' components cannot be told apart, or differ from mode to mode",
                ConvergenceWarning,
            )
        self._take_point_estimates(self.diagnostics_.labels_identified)

    def _take_point_estimates(self, identified: bool) -> None:
        """Posterior means, or the mode where components cannot be told apart."""
        kind = structure(self.covariance_type)
        if identified:
            weights, means, factors = self._draws.flat()
            self.weights_, self.means_ = weights.mean(axis=0), means.mean(axis=0)
            self.covariances_ = kind.pack(self._draws.covariances).mean(axis=(0, 1))
        else:
            self.weights_, self.means_ = self.map_.weights, self.map_.means
            self.covariances_ = kind.pack(self.map_.covariances)

    @property
    def method_(self) -> str:
        """How the draws were made, "nuts" or "laplace"."""
        return self._method("_X" not in self.__dict__)

    def _method(self, in_blocks: bool) -> str:
        if self.method != "auto":
            return self.method
        return "laplace" if in_blocks else "nuts"

    @property
    def mode_weights_(self) -> pd.DataFrame:
        """What each mode holds of the posterior, with its error and where that number comes from."""
        check_is_fitted(self)
        from bayesgmm.inference.modes import weights_table

        return weights_table(self.diagnostics_.mode_weights, self._draws.n_chains)

    @property
    def pymc_model_(self) -> pm.Model:
        """The PyMC model of this fit, with named dims; built when asked for."""
        check_is_fitted(self)
        from bayesgmm.inference.model import build_model

        return build_model(
            self._X,
            self.n_components,
            self.covariance_type,
            self.prior_,
            self._sample_weight,
            feature_names=feature_names(self),
        )

    def _table(self, X: ArrayLike) -> FloatArray:
        check_is_fitted(self)
        return check_table(self, X, reset=False)

    def _of_rows(
        self, X: ArrayLike, function: Callable[..., Any], width: int | None = None, dtype: Any = np.float64
    ) -> Any:
        """A function of rows and of the draws."""
        check_is_fitted(self)
        return of_each_row(self, X, partial(function, draws=self._draws.flat()), width, dtype)

    def score_samples(self, X: ArrayLike) -> FloatArray:
        """Log posterior-predictive density of each row: log of the density averaged over draws.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of shape (N,)
        """
        return self._of_rows(X, _log_density)

    def score(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Mean log posterior-predictive density of the rows.

        Parameters
        ----------
        X : array-like of shape (N, D)
        y : ignored
        sample_weight : array-like of shape (N,), optional

        Returns
        -------
        float
        """
        check_is_fitted(self)
        if (blocks := row_blocks(self, X, sample_weight, reset=False)) is not None:
            total, weight = blocks.total(partial(_summed_log_density, draws=self._draws.flat()))
            return float(total / weight)
        table = self._table(X)
        return float(np.average(self.score_samples(X), weights=check_weights(sample_weight, table)))

    def predict_proba(self, X: ArrayLike) -> FloatArray:
        """Responsibilities averaged over the relabelled draws.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of shape (N, K)
        """
        return self._of_rows(X, _responsibilities, self.n_components)

    def predict(self, X: ArrayLike) -> Labels:
        """Component of highest average responsibility for each row.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of shape (N,)
        """
        return self._of_rows(X, _labels, dtype=np.int64)

    def fit_predict(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> Labels:
        """Fit, and give each row its most probable component.

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

    def assign(
        self,
        X: ArrayLike | None = None,
        *,
        min_density: float | None = None,
        min_responsibility: float | None = None,
        min_log_density: float | None = None,
    ) -> pd.DataFrame:
        """Assign rows to components, or to none where it cannot know: −1.

        First a row whose log predictive density lies below the smallest allowed is "far"; then one whose highest responsibility is below
        the smallest allowed is "ambiguous"; any other belongs to the component of highest responsibility.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            A DataFrame's columns are taken by their names. Default: the rows of the fit.
        min_density : float, optional
            Density per unit volume of the features. Default: no row is far.
        min_responsibility : float, optional
            In (0, 1]. Default: no row is ambiguous.
        min_log_density : float, optional
            The logarithm of ``min_density``, where that would be too small for a number.

        Returns
        -------
        DataFrame
            ``component`` (−1 unknown), ``probability`` (highest responsibility, averaged over draws), ``sd`` (its standard deviation over
            the draws), ``log_density``, and ``reason``: "ok", "far" or "ambiguous". Of rows in blocks an iterator of such tables, one for
            each block; of a Dask collection a Dask DataFrame.

        Raises
        ------
        ValueError
            If a limit lies outside its range, both densities are given, or columns are missing.
        """
        check_is_fitted(self)
        from bayesgmm.assignment import assign_rows, tell_unidentified

        tell_unidentified(self)
        limits: dict[str, Any] = {
            "min_density": min_density,
            "min_responsibility": min_responsibility,
            "min_log_density": min_log_density,
        }
        if X is None:
            return assign_rows(self, self._X, **limits)
        return table_of_rows(self, X, partial(assign_rows, alone(self), **limits))

    def sample(self, n_samples: int = 1) -> tuple[FloatArray, Labels]:
        """Draw rows from the posterior predictive: a posterior draw, a component by its weight, then a row from it.

        Parameters
        ----------
        n_samples : int, default 1

        Returns
        -------
        X : ndarray of shape (n_samples, D)
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
        weights, means, factors = self._draws.flat()
        which = rng.integers(len(weights), size=n_samples)
        cumulative = np.cumsum(weights[which], axis=1)
        y = np.minimum(
            (rng.random(n_samples)[:, None] * cumulative[:, -1:] > cumulative).sum(axis=1), self.n_components - 1
        )
        rows = np.empty((n_samples, means.shape[2]))
        for start in range(0, n_samples, 65536):
            part = slice(start, start + 65536)
            P = factors[which[part], y[part]]
            noise = rng.standard_normal((len(P), means.shape[2], 1))
            rows[part] = means[which[part], y[part]] + np.linalg.solve(np.swapaxes(P, 1, 2), noise)[..., 0]
        return rows, y

    def coclustering(
        self,
        X: ArrayLike | None = None,
        *,
        rows: ArrayLike | slice | None = None,
        pairs: ArrayLike | None = None,
    ) -> FloatArray:
        """Posterior probability that two rows come from the same component: Σ_k r_ik r_jk averaged over draws.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            Default: the rows of the fit.
        rows : int array-like of shape (n,), boolean mask of shape (N,) or slice, optional
            Positions of the n rows to take, at most 5,000: the result has n² entries.
        pairs : int array-like of shape (P, 2), optional
            Positions of two rows each: only these are worked out, of however many rows.

        Returns
        -------
        ndarray of shape (N, N), (n, n) or (P,)
            1 for a row with itself.

        Raises
        ------
        ValueError
            If the matrix would have more than 5,000 rows, or ``rows`` and ``pairs`` are both given.
        IndexError
            If a position is not one of a row.

        Notes
        -----
        Rows are independent given the parameters; rows that the mixture was not fitted to do not change the posterior.
        """
        check_is_fitted(self)
        from bayesgmm.averaging import coclustering

        return coclustering(self._X if X is None else self._table(X), [(1.0, self._draws.flat())], rows, pairs)

    def partition(
        self,
        X: ArrayLike | None = None,
        *,
        loss: str = "vi",
        n_draws: int | None = None,
        n_restarts: int = 16,
        max_clusters: int | None = None,
        credible: float = 0.95,
        random_state: Any = 0,
    ) -> Partition:
        """Point estimate of the clustering: the partition of the rows with the smallest posterior expected loss.

        Every row gets a component under every draw, drawn from its responsibilities; the partition that is closest to these on average
        is searched for by greedy sweeps from many starts. The labels of the components have no say in it.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            At most 20,000 rows. Default: the rows of the fit.
        loss : {"vi", "binder"}, default "vi"
            Variation of information in bits, or Binder's loss with equal costs as a share of the ordered pairs of rows. "vi" tends to
            fewer clusters; "binder" judges pairs of rows one by one.
        n_draws : int, optional
            Draws that are used at most, taken evenly from each chain. Default: 4,000, or fewer where N × draws would exceed 20 million (one
            byte each).
        n_restarts : int, default 16
            Searches beside those that start from EM's partition, k-means' and the best single draw.
        max_clusters : int, optional
            Clusters at most. Default: K.
        credible : float, default 0.95
            Posterior probability of the credible ball.
        random_state : int, RandomState, Generator or None, default 0
            The same int gives the same partition, on any number of threads.

        Returns
        -------
        Partition
            ``labels``, ``n_clusters``, ``expected_loss`` and its error, ``ball``, ``comparisons`` with EM, k-means and the best
            single draw, ``mean_coclustering`` of each row with each cluster; ``print`` shows a summary.

        Raises
        ------
        ValueError
            If the loss is unknown, a number is out of range, the columns are not those of the fit, or there are more than 20,000 rows.

        Notes
        -----
        The expected loss is exact over the draws, not a bound. It is no larger than that of EM's partition, k-means' or the best
        single draw, unless ``max_clusters`` rules these out. A greedy search may stop short of the global minimum; more restarts make it
        less likely.

        The weights of the fit count: sizes of clusters are sums of weights, whole or not, and the copies of a row of weight 2 stay
        together, in the estimate and in every draw. Rows given as ``X`` count once each.

        References
        ----------
        Dahl, Johnson & Müller (2022), Search algorithms and loss functions for Bayesian clustering, JCGS 31, 1189–1201.
        Wade & Ghahramani (2018), Bayesian cluster analysis: point estimation and credible balls, Bayesian Analysis 13, 559–626.
        """
        check_is_fitted(self)
        from bayesgmm.partition import partition

        return partition(
            self._X if X is None else self._table(X),
            self._draws,
            self.map_,
            generator(random_state),
            loss=loss,
            sample_weight=self._sample_weight if X is None else None,
            n_draws=n_draws,
            n_restarts=n_restarts,
            max_clusters=max_clusters,
            credible=credible,
        )

    def compute_log_likelihood(self) -> Self:
        """Add the pointwise log-likelihood to ``idata_`` where it was too large to be stored at once.

        Returns
        -------
        BayesianGaussianMixture
        """
        check_is_fitted(self)
        from bayesgmm.inference import posterior

        if "log_likelihood" not in self.idata_.children:
            posterior.add_log_likelihood(self.idata_, self._draws, self._X)
        return self

    def sample_posterior_predictive(self) -> Self:
        """Add the group ``posterior_predictive`` to ``idata_``: one simulated table for every draw.

        Returns
        -------
        BayesianGaussianMixture
        """
        check_is_fitted(self)
        from bayesgmm.inference import posterior

        posterior.add_posterior_predictive(self.idata_, self._draws, len(self._X), generator(self.random_state))
        return self

    def summary(self, ci_prob: float = 0.9) -> pd.DataFrame:
        """One table: the mode found by EM beside posterior mean, sd, interval, effective sample sizes and R-hat.

        Parameters
        ----------
        ci_prob : float, default 0.9
            Probability of the equal-tailed interval.

        Returns
        -------
        DataFrame
            One row per weight, mean, standard deviation and correlation. Where the fit holds its rows and components are identified, the
            last column is ``prior_sensitivity``, from 0.05 on a hint that the prior has a say in it: see :meth:`prior_sensitivity`.

        Raises
        ------
        ValueError
            If ``ci_prob`` lies outside (0, 1).
        """
        check_is_fitted(self)
        from bayesgmm.inference.summary import posterior_summary

        kind = structure(self.covariance_type)
        table = posterior_summary(self._draws, self.map_, kind, feature_names(self), self.diagnostics_, ci_prob)
        if self.diagnostics_.labels_identified and getattr(self, "_X", None) is not None:
            table["prior_sensitivity"] = self.prior_sensitivity()["prior"]
        return table

    def prior_sensitivity(self) -> pd.DataFrame:
        """What each quantity owes to the prior: prior and likelihood are raised to a power near 1, and the draws reweighted.

        Returns
        -------
        DataFrame
            One row per weight, mean, standard deviation and correlation (where components cannot be told apart, per label-invariant
            quantity): ``prior`` and ``likelihood``, how far its distribution moves per doubling of the power, and ``diagnosis``. It is
            empty, or where ``prior`` reaches 0.05 "strong prior or weak data", or "possible conflict of prior and data" where
            ``likelihood`` does too.

        Notes
        -----
        The prior's density is that of the group ``log_prior`` of ``idata_``: in (π, μ, Σ), or in (π, μ, σ, R) under a separation prior. A
        density raised to a power depends on its coordinates, most for few rows.

        References
        ----------
        Kallioinen, Paananen, Bürkner & Vehtari (2024), Detecting and diagnosing prior and likelihood sensitivity with power-scaling,
        Statistics and Computing 34, 57.
        """
        check_is_fitted(self)
        known: tuple[PosteriorDraws, pd.DataFrame] | None = getattr(self, "_sensitivity", None)
        if known is None or known[0] is not self._draws:
            from bayesgmm.inference.power_scaling import prior_sensitivity

            self._sensitivity = known = (self._draws, prior_sensitivity(self, feature_names(self)))
        return known[1].copy()

    def loo(
        self,
        X: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        refits: int = 10,
        subsample_above: int | None = 100_000,
        random_state: Any = 0,
    ) -> PosteriorLoo:
        """Leave-one-out predictive density of the fitted rows, with WAIC beside it, added up over blocks of rows.

        Parameters
        ----------
        X : array-like of shape (N, D), path, rows in blocks, or Dask array or DataFrame, optional
            The rows of the fit, where it does not hold them. On a cluster each partition says its part. Default: the rows that it holds.
        sample_weight : array-like of shape (N,), optional
            Frequency weights that go with ``X``; of a Dask collection partitioned alike.
        refits : int, default 10
            Rows that are left out by sampling the posterior again at most, where importance sampling and moment matching fail. Of rows in
            blocks none is.
        subsample_above : int or None, default 100_000
            With more rows LOO is estimated from a random subsample of 2,000 (WAIC is of all rows). None: never.
        random_state : int, RandomState, Generator or None, default 0
            The same int gives two models the same subsample.

        Returns
        -------
        PosteriorLoo
            ``loo`` and ``waic``, ``pareto_k``, ``treated`` rows and ``notes``. Of a Dask collection ``pointwise`` is a Dask array (N, 4),
            worked out when it is computed: log mean likelihood, variance of the log-likelihood over draws, log leave-one-out density, k̂.

        Raises
        ------
        ValueError
            If the rows are not those of the fit, or the log-likelihood of one is not finite (it is named).

        Warns
        -----
        CriterionWarning
            If k̂ is above its threshold in some rows; they are named.

        References
        ----------
        Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC,
        Statistics and Computing 27, 1413–1432.
        Magnusson, Vehtari, Jonasson & Andersen (2020), Leave-one-out cross-validation for Bayesian model comparison in large data,
        AISTATS, PMLR 108.
        """
        check_is_fitted(self)
        from bayesgmm.inference.blocked_loo import loo_of_blocks, pointwise_of
        from bayesgmm.inference.loo import loo_posterior

        rng = generator(random_state)
        blocks = None if X is None else row_blocks(self, X, sample_weight, reset=False)
        if blocks is None:
            rows = None if X is None else self._table(X)
            return loo_posterior(
                self, rows, sample_weight, refits=refits, subsample_above=subsample_above, random_state=rng
            )
        found = loo_of_blocks(self, blocks, subsample_above=subsample_above, random_state=rng)
        if not is_dask(X):
            return found
        return replace(found, pointwise=of_each_row(self, X, pointwise_of(self, found.r_eff), 4))

    def log_evidence(
        self,
        X: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        max_permutations: int = 720,
        n_proposals: int | None = None,
        random_state: Any = 0,
    ) -> Evidence:
        """Log marginal likelihood log p(X) by bridge sampling, with its standard error; Laplace's beside it.

        Parameters
        ----------
        X : path, rows in blocks, or Dask array or DataFrame of shape (N, D), optional
            The rows of the fit, where it does not hold them: some ten passes over them. Default: the rows that it holds.
        sample_weight : Dask array or Series of shape (N,), optional
            Frequency weights of a Dask collection, partitioned alike.
        max_permutations : int, default 720
            Orders of the components that the proposal is folded over at most: all of them up to K = 6.
        n_proposals : int, optional
            Draws of each of the two proposals; default: as many as half the draws.
        random_state : int, RandomState, Generator or None, default 0

        Returns
        -------
        Evidence
            ``log_evidence``, ``standard_error``, ``laplace``, ``converged``, ``notes`` and more.

        Raises
        ------
        ValueError
            See :func:`bayesgmm.inference.evidence.log_evidence`: too few draws, or a prior that tells components apart. If X is a table in
            memory: a fit to one holds it.
        """
        check_is_fitted(self)
        from bayesgmm.inference.evidence import log_evidence

        blocks = None if X is None else row_blocks(self, X, sample_weight, reset=False)
        if X is not None and blocks is None:
            raise ValueError(
                "X is given as rows in blocks, for a fit to such rows: a fit to a table in memory holds it"
            )
        return log_evidence(
            self,
            blocks,
            max_permutations=max_permutations,
            n_proposals=n_proposals,
            random_state=generator(random_state),
        )

    def save(self, path: str | Path) -> Path:
        """Write the fit to a folder: ``posterior.nc`` and ``fit.json``, no pickle.

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

    def report(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a report of the fit: one HTML file with verdict, tables and figures that needs no network.

        Parameters
        ----------
        path : path
            The file; its folder must exist.
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
        """
        check_is_fitted(self)
        from bayesgmm.report.page import check_target, fit_page, write_report

        check_target(path, overwrite)
        return write_report(fit_page(self), path, overwrite)

    def _html_repr(self) -> str:
        """What notebooks show: weights, means and verdict of a fit; scikit-learn's parameters of one that is not fitted."""
        if not self.__sklearn_is_fitted__():
            return str(super()._html_repr())
        from bayesgmm.report.notebook import fit_fragment

        return fit_fragment(self)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_draws")


FlatDraws = tuple[FloatArray, FloatArray, FloatArray]


def _log_density(X: FloatArray, draws: FlatDraws) -> FloatArray:
    return kernel.posterior_predictive(X, *draws, with_responsibilities=False)[0]


def _responsibilities(X: FloatArray, draws: FlatDraws) -> FloatArray:
    return kernel.posterior_predictive(X, *draws)[1]


def _labels(X: FloatArray, draws: FlatDraws) -> Labels:
    return np.argmax(_responsibilities(X, draws), axis=1)


def _summed_log_density(X: FloatArray, v: FloatArray | None, block: int, draws: FlatDraws) -> FloatArray:
    """Task: Σ_n v_n log p(x_n) and Σ_n v_n."""
    density = _log_density(X, draws)
    return np.array([density.sum(), len(X)] if v is None else [v @ density, v.sum()])
