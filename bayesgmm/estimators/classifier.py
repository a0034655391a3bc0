"""`MixtureClassifier`: a Gaussian mixture for each class, and Bayes' rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from bayesgmm.core import classes as class_mixtures
from bayesgmm.core import classification, em, kernel
from bayesgmm.core.classes import ClassLayout, LabelledProblem
from bayesgmm.core.covariance import CovarianceStructure, structure
from bayesgmm.core.hierarchical import Prior
from bayesgmm.core.impropriety import check_class_posterior
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.estimators.bayesian_gaussian_mixture import BayesianGaussianMixture
from bayesgmm.estimators.class_arguments import CRITERIA, Template, check_priors, check_reject, numbers_of_components
from bayesgmm.estimators.gaussian_mixture import GaussianMixture
from bayesgmm.estimators.validation import (
    check_classes,
    check_settings,
    check_table,
    check_weights,
    feature_names,
    generator,
    named_columns,
    partial_labels,
    refuse_degenerate,
    warn_degenerate,
)
from bayesgmm.exceptions import DataWarning, PriorFunctionError, SamplingInterrupted, warn_user

if TYPE_CHECKING:
    from xarray import DataTree

    from bayesgmm.inference.diagnostics import Diagnostics
    from bayesgmm.inference.posterior import PosteriorDraws

CALIBRATION_ROWS = 20_000
"""Rows that are simulated to find the density below which a given share of them lies."""

MODE_COMBINATIONS = 12
"""Combinations of the classes' modes that the posterior is looked for around, at most."""


class MixtureClassifier(ClassifierMixin, BaseEstimator):
    """Classification by one Gaussian mixture a class and Bayes' rule, by EM or with the whole posterior.

    p(c given x) is proportional to ρ_c Σ_k w_k|c N(x; μ_k, Σ_k), the sum over the components of class c. With one component a class
    this is quadratic discriminant analysis (covariances of maximum likelihood, divisor n_c), linear where ``covariance_type="tied"``;
    with more it is mixture discriminant analysis.

    Rows of unknown class take part in the fit: all classes together are one mixture with weights π_k = ρ_c w_k|c, of which a labelled
    row sees its class's components alone, and the likelihood is maximised, or the posterior sampled, for all rows at once.

    Parameters
    ----------
    estimator : GaussianMixture or BayesianGaussianMixture, optional
        How the mixtures are fitted: covariance structure, prior, starts, and for the posterior how it is sampled. It is cloned. A
        ``GaussianMixture`` (the default) is fitted by EM, a ``BayesianGaussianMixture`` by sampling. Given starts (``weights_init`` …),
        ``warm_start``, ``verbose`` and ``keep_history`` have no meaning here.
        A "tied" covariance is shared by all components of all classes.
    n_components : int, dict or {"bic", "aic", "icl"}, optional
        Components of every class, or of each by its label; or the criterion that chooses it for each class from 1 … ``max_components``,
        by EM under maximum likelihood on the class's labelled rows. Default: ``estimator.n_components``, which is 1 unless given.
    max_components : int, default 5
        The most that a criterion may choose. A class has no more components than rows.
    priors : array-like of shape (C,) or dict, optional
        Class probabilities ρ, in the order of ``classes_`` or by label; positive, with sum 1. Default: estimated with the mixtures, from
        the frequencies of the classes among the labelled rows and from the unlabelled ones. It rests on labels that are
        missing at random: where a class was labelled more often, give ``priors``.
    reject : float, optional
        Rows that no class explains are predicted as ``reject_label``: those whose log density lies below the level under which this
        share, 0 < reject < 1, of the model's own draws lie (the rate of false alarms; 20,000 simulated rows).
    reject_log_density : float, optional
        The same with a given log density log p(x), which has units: natural logarithm, per unit of the features.
    reject_label : object, optional
        What rejected rows are called. Default: −1 where classes are numbers, "unknown" where they are text, else None. It must not be a
        class.
    random_state : int, RandomState, Generator or None, default None
        Seed of the fit, the calibration of ``reject`` and :meth:`sample`. None: that of ``estimator``.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
    class_priors_ : ndarray of shape (C,)
        ρ: given, estimated, or its posterior mean.
    mixtures_ : dict
        By class, a fitted estimator of the same kind as ``estimator`` that is p(x given the class): ``weights_`` (sum 1), ``means_``,
        ``covariances_``, ``score_samples``, ``predict_proba``, ``sample``, and with the posterior ``summary()`` and ``diagnostics_``, whose
        verdict is on all classes. ``modes_`` and ``idata_`` are the classifier's.
    n_components_ : dict
        By class, the number of components.
    component_criteria_ : dict
        By class, the criterion of each number of components, where one chose.
    component_class_ : ndarray of shape (K,)
        Class of each component, where all stand in one list (``idata_``, ``modes_``).
    reject_log_density_ : float
        Log density below which rows are rejected; −inf for none.
    false_alarm_ : float
        Share of the model's own draws that lie below it.
    modes_ : tuple of Mode
        Distinct optima of EM over all components, best first.
    prior_ : ConjugatePrior, HierarchicalPrior, SeparationPrior or None
        The prior with its resolved values, common to all classes.
    idata_ : DataTree
        With the posterior: one tree for all components; ``component_class`` is a coordinate of the components, ``class_priors`` a variable
        (constant data where given), ``class_code`` among the observed data is the row's class, −1 unknown, and ``log_likelihood`` is that
        of the row together with its class.
    diagnostics_ : Diagnostics
        With the posterior: its convergence, with a verdict in words.
    map_ : MixtureParameters
        With the posterior: the mode in (π, μ, Σ), all components.
    converged_, n_iter_, lower_bound_ : bool, int, float
        With EM: of the last climb, over all rows.
    n_features_in_ : int
    feature_names_in_ : ndarray of str of shape (D,)
        When the table has column names.

    Notes
    -----
    *Labels.* None, NaN and −1 are unknown. Where the only labels are −1 and 1 they are two classes: mark unknown ones by NaN or None.

    *The prior is one for all classes.* It is resolved from all rows, labelled or not, but for the scale of a ``ConjugatePrior``: that
    comes from fits of each class's labelled rows (S_w pooled over classes), so that the distance between classes does not enter.
    "default" of a ``GaussianMixture`` is Fraley & Raftery's with S, the covariance within classes: Λ₀ = S / (K/C)^(2/D), K/C being the
    average number of components. A scale that is the same for all classes draws unlike spreads together a little; give
    ``ConjugatePrior(scale=...)``, or use ``HierarchicalPrior()``, whose scale is random. Weights π over all K components are
    Dirichlet(α), so that class probabilities are Dirichlet(Σ_k α_k), the sum over each class's components. Given ``priors`` take the
    place of the class totals of π in the likelihood; w_k|c keeps its Dirichlet distribution.

    *One posterior, not one a class.* The sampler sees all classes at once, whether rows are unlabelled or not. Where all are labelled and
    no covariance is shared, the posterior is the product of those of the classes, and separate fits under the same resolved prior
    give the same answer; the joint run then needs no second way, has one verdict, and changes continuously as labels are removed.

    *Two averages.* ``predict_proba`` averages p(c given x, θ) over draws: x itself does not bear on θ. The ratio of averaged densities,
    ``class_log_density`` with ``class_priors_``, lets it, and differs far from the data.

    References
    ----------
    Hastie, T. & Tibshirani, R. (1996). Discriminant analysis by Gaussian mixtures. Journal of the Royal Statistical Society B 58, 155–176.
    Fraley, C. & Raftery, A. E. (2002). Model-based clustering, discriminant analysis, and density estimation. Journal of the American
    Statistical Association 97, 611–631.
    Nigam, K., McCallum, A. K., Thrun, S. & Mitchell, T. (2000). Text classification from labeled and unlabeled documents using EM.
    Machine Learning 39, 103–134.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from bayesgmm import MixtureClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = MixtureClassifier(random_state=0).fit(X, y)
    >>> classifier.predict(X[[0, 60, 140]])
    array([0, 1, 2])
    >>> round(classifier.score(X, y), 2)
    0.98
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "estimator": [GaussianMixture, BayesianGaussianMixture, None],
        "n_components": [Interval(Integral, 1, None, closed="left"), dict, StrOptions(set(CRITERIA)), None],
        "max_components": [Interval(Integral, 1, None, closed="left")],
        "priors": ["array-like", dict, None],
        "reject": [Interval(Real, 0.0, 1.0, closed="neither"), None],
        "reject_log_density": [Real, None],
        "reject_label": "no_validation",
        "random_state": ["random_state", np.random.Generator],
    }

    def __init__(
        self,
        estimator: GaussianMixture | BayesianGaussianMixture | None = None,
        *,
        n_components: int | Mapping[Any, int] | str | None = None,
        max_components: int = 5,
        priors: ArrayLike | Mapping[Any, float] | None = None,
        reject: float | None = None,
        reject_log_density: float | None = None,
        reject_label: Any = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.n_components = n_components
        self.max_components = max_components
        self.priors = priors
        self.reject = reject
        self.reject_log_density = reject_log_density
        self.reject_label = reject_label
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the mixtures of all classes.

        Parameters
        ----------
        X : array-like of shape (N, D)
        y : array-like of shape (N,)
            Classes, numbers or text; None, NaN and −1 are unknown, and these rows are used too.
        sample_weight : array-like of shape (N,), optional
            Frequency weights: a weight of 2 is the row twice.

        Returns
        -------
        MixtureClassifier

        Raises
        ------
        ValueError
            If X is not a finite numeric table, y has another length or no two classes, a class has fewer distinct labelled rows than
            components (or a single one where nothing regularises its covariance), classes in ``priors`` or ``n_components`` are missing
            or not in y, or ``priors`` do not sum to 1.
        SamplingInterrupted
            If the user stopped the sampler; what was drawn is in the exception's ``estimator``.
        """
        check_settings(self)
        table = check_table(self, X, reset=True, min_rows=2)
        found, codes = check_classes(y, len(table))
        weights = check_weights(sample_weight, table)
        template = self._template()
        rng = generator(template.random_state)
        self.classes_ = found
        self._reject_label = check_reject(self.reject, self.reject_log_density, self.reject_label, found)
        order = np.argsort(np.where(codes < 0, len(found), codes), kind="stable")
        rows, v = np.ascontiguousarray(table[order]), None if weights is None else weights[order]
        layout = ClassLayout(
            names=tuple(map(str, found.tolist())),
            components=(1,) * len(found),
            rows=tuple(np.bincount(codes[codes >= 0], minlength=len(found)).tolist()),
            n_unlabelled=int(np.sum(codes < 0)),
            priors=check_priors(self.priors, found),
            positions=order,
        )
        wanted = template.n_components if self.n_components is None else self.n_components
        numbers, self.component_criteria_ = numbers_of_components(
            wanted, self.max_components, rows, v, found, layout, template, rng
        )
        self._layout = replace(layout, components=numbers)
        self.n_components_ = dict(zip(found.tolist(), numbers, strict=True))
        self.component_class_ = found[self._layout.class_of_component]
        template.set_params(n_components=sum(numbers))
        template.n_features_in_ = self.n_features_in_
        if hasattr(self, "feature_names_in_"):
            template.feature_names_in_ = self.feature_names_in_
        if isinstance(template, BayesianGaussianMixture):
            interrupted = self._fit_posterior(template, rows, v, rng)
            self._finish(template)
            if interrupted is not None:
                raise SamplingInterrupted(interrupted, self)
            for problem in self.diagnostics_.problems:
                warn_user(problem, ConvergenceWarning)
        else:
            best = self._fit_em(template, rows, v, rng)
            self._finish(template)
            template._warn(best)
        return self

    def _template(self) -> Template:
        """The estimator whose settings are used, as a copy of its own."""
        template = GaussianMixture() if self.estimator is None else clone(self.estimator)
        template._validate_params()
        if self.random_state is not None:
            template.set_params(random_state=self.random_state)
        starts = ("weights_init", "means_init", "precisions_init")
        given = [name for name in starts if getattr(template, name, None) is not None]
        if given:
            raise ValueError(
                f"{', '.join(given)} of the estimator cannot start the mixtures of several classes: leave it out"
            )
        return template

    def _problem(self, template: Template, X: FloatArray, v: FloatArray | None) -> LabelledProblem:
        return LabelledProblem(
            X,
            structure(template.covariance_type),
            None if self.prior_ is None else self.prior_.for_em.at_least_uniform(),
            v,
            getattr(template, "reg_covar", 0.0),
            template.tol,
            template.max_iter,
            classes=self._layout,
        )

    def _fit_em(
        self, template: GaussianMixture, X: FloatArray, v: FloatArray | None, rng: np.random.Generator
    ) -> em.EMFit:
        """Climb; the mixture of all components goes into ``template``."""
        self.prior_: Prior | None = self._em_prior(template, X, v)
        if self.prior_ is None:
            warn_degenerate(X, self._layout.n_components, feature_names(self), template.reg_covar)
        elif np.min(self.prior_.resolved_concentration) < 1:
            raise ValueError(
                "a mode needs weight_concentration ≥ 1: below 1 the prior density is unbounded at weight 0"
            )
        problem = self._problem(template, X, v)
        found = class_mixtures.fit_classes(problem, n_init=template.n_init, init_params=template.init_params, rng=rng)
        template._keep(found)
        weights = self._layout.scaled(template.weights_)
        template._set(replace(template._parameters, weights=weights), template.covariances_)
        self.modes_, self.converged_, self.n_iter_ = template.modes_, template.converged_, template.n_iter_
        self.lower_bound_ = template.lower_bound_
        self.class_priors_ = self._layout.totals(weights)
        return found

    def _em_prior(self, template: GaussianMixture, X: FloatArray, v: FloatArray | None) -> ConjugatePrior | None:
        if template.prior is None:
            return None
        if isinstance(template.prior, str):
            return class_mixtures.fraley_raftery(X, self._layout, v)
        return class_mixtures.resolve_prior(template.prior, X, self._layout, template.covariance_type, v)

    def _fit_posterior(
        self, template: BayesianGaussianMixture, X: FloatArray, v: FloatArray | None, rng: np.random.Generator
    ) -> str | None:
        """Sample; the mixture of all components goes into ``template``. Where the user stopped it, what was kept comes back in words."""
        from bayesgmm.inference import sampling

        if callable(template.prior):
            raise PriorFunctionError(
                "a prior given as a function is of one mixture, and classes share theirs: take a ConjugatePrior, HierarchicalPrior or "
                "SeparationPrior"
            )
        prior: Prior = ConjugatePrior() if isinstance(template.prior, str) else template.prior
        if not (isinstance(prior, ConjugatePrior) and prior.scale is not None):
            refuse_degenerate(X, self._layout.n_components, feature_names(self))
        prior = self.prior_ = class_mixtures.resolve_prior(prior, X, self._layout, template.covariance_type, v)
        check_class_posterior(prior, X, self._layout, template.covariance_type, v, feature_names(self))
        em_rng, sampler_rng = rng.spawn(2)
        problem = self._problem(template, X, v)
        found = class_mixtures.fit_classes(
            problem,
            n_init=template.n_init,
            init_params=template.init_params,
            rng=em_rng,
            n_combinations=MODE_COMBINATIONS,
        )
        task = sampling.Task(
            X=X,
            sample_weight=v,
            kind=problem.kind,
            prior=prior,
            modes=tuple(mode.run for mode in found.modes),
            names=tuple(feature_names(self)),
            classes=self._layout,
        )
        result = sampling.sample_posterior(task, template._settings(), sampler_rng)
        modes = (*found.modes, *result.met)
        self.modes_ = tuple(modes[m] for m in result.mode_order)
        self.map_ = template.map_ = self.modes_[0].run.parameters
        self.idata_: DataTree = result.idata
        self.diagnostics_: Diagnostics = result.diagnostics
        template._draws = result.draws
        template._take_point_estimates(self.diagnostics_.labels_identified)
        self.class_priors_ = self._layout.totals(result.draws.flat()[0]).mean(axis=0)
        return result.interrupted

    def _finish(self, mixture: Template) -> None:
        """What follows from the mixture of all components: those of the classes, and the level of rejection."""
        self._mixture = mixture
        self.mixtures_ = {
            label: self._class_mixture(c, block)
            for c, (label, block) in enumerate(zip(self.classes_.tolist(), self._layout.blocks, strict=True))
        }
        self.reject_log_density_, self.false_alarm_ = -np.inf, 0.0
        if self.reject is None and self.reject_log_density is None:
            return
        density = self._log_density(mixture.sample(CALIBRATION_ROWS)[0])
        if self.reject is not None:
            self.reject_log_density_ = float(np.quantile(density, self.reject))
        elif self.reject_log_density is not None:
            self.reject_log_density_ = float(self.reject_log_density)
        self.false_alarm_ = float(np.mean(density < self.reject_log_density_))
        if self.reject_log_density is not None and self.false_alarm_ > 0.5:
            warn_user(
                f"reject_log_density: {100 * self.false_alarm_:.0f} % of the model's own rows lie below {self.reject_log_density:.6g} and "
                "would be rejected",
                DataWarning,
            )

    def _class_mixture(self, c: int, block: slice) -> Template:
        whole = self._mixture
        kind = structure(whole.covariance_type)
        own = clone(whole).set_params(n_components=self._layout.components[c])
        own.n_features_in_ = self.n_features_in_
        if hasattr(self, "feature_names_in_"):
            own.feature_names_in_ = self.feature_names_in_
        if isinstance(whole, GaussianMixture):
            packed = whole.covariances_[block] if "component" in kind.free_dims else whole.covariances_
            own.converged_, own.n_iter_ = whole.converged_, whole.n_iter_
            own._set(_part(whole._parameters, block), packed)
        else:
            own.map_ = _part(whole.map_, block)
            own._draws = _draws_of(whole._draws, block)
            own.diagnostics_ = _own_parameters(self.diagnostics_, own._draws, kind, feature_names(self))
            own._take_point_estimates(self.diagnostics_.labels_identified)
        return own

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "reject_log_density_")

    def _table(self, X: ArrayLike) -> FloatArray:
        check_is_fitted(self)
        return check_table(self, X, reset=False)

    def _posterior_draws(self) -> tuple[FloatArray, FloatArray, FloatArray] | None:
        """Weights, means and precision factors of every draw; None for EM."""
        return self._mixture._draws.flat() if isinstance(self._mixture, BayesianGaussianMixture) else None

    def _log_density(self, table: FloatArray) -> FloatArray:
        draws = self._posterior_draws()
        if draws is None:
            return kernel.log_density(table, self._mixture._parameters)
        return kernel.posterior_predictive(table, *draws, with_responsibilities=False)[0]

    def score_samples(self, X: ArrayLike) -> FloatArray:
        """Log density of each row, all classes together: log Σ_c ρ_c p(x given c), with the posterior averaged over draws.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of shape (N,)
        """
        return self._log_density(self._table(X))

    def class_log_density(self, X: ArrayLike) -> FloatArray:
        """Log density of each row given each class, log p(x given c), with the posterior averaged over draws.

        Parameters
        ----------
        X : array-like of shape (N, D)
            A DataFrame's columns are matched by name.

        Returns
        -------
        ndarray of shape (N, C)
        """
        check_is_fitted(self)
        table, draws = self._table(named_columns(self, X)), self._posterior_draws()
        if draws is None:
            parameters = self._mixture._parameters
            within = replace(parameters, weights=self._layout.within_class(parameters.weights))
            return classification.joint_log_densities(table, within, self._layout.blocks)
        weights, means, factors = draws
        within_draws = (self._layout.within_class(weights), means, factors)
        return classification.average_class_log_densities(table, within_draws, self._layout.blocks)

    @overload
    def predict_proba(self, X: ArrayLike, return_std: Literal[False] = ...) -> FloatArray: ...
    @overload
    def predict_proba(self, X: ArrayLike, return_std: Literal[True]) -> tuple[FloatArray, FloatArray]: ...
    def predict_proba(self, X: ArrayLike, return_std: bool = False) -> FloatArray | tuple[FloatArray, FloatArray]:
        """Probability of each class, with the posterior averaged over draws.

        Parameters
        ----------
        X : array-like of shape (N, D)
        return_std : bool, default False
            With the posterior: also the standard deviation over draws of each probability.

        Returns
        -------
        probabilities : ndarray of shape (N, C)
            In the order of ``classes_``. Rejected rows have theirs too.
        sd : ndarray of shape (N, C)
            With ``return_std``.

        Raises
        ------
        ValueError
            If ``return_std`` is asked for of a fit by EM.
        """
        table, draws = self._table(X), self._posterior_draws()
        if draws is None:
            if return_std:
                raise ValueError("EM has no draws: return_std needs estimator=BayesianGaussianMixture(...)")
            return np.exp(self._log_probabilities(table))
        if return_std:
            return classification.averaged_class_probabilities(table, draws, self._layout.blocks)
        return self._layout.totals(kernel.posterior_predictive(table, *draws)[1])

    def predict_log_proba(self, X: ArrayLike) -> FloatArray:
        """Logarithm of :meth:`predict_proba`, finite also where the probability is below the smallest number.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of shape (N, C)
        """
        return self._log_probabilities(self._table(X))

    def _log_probabilities(self, table: FloatArray) -> FloatArray:
        draws = self._posterior_draws()
        if draws is None:
            return classification.class_log_probabilities(table, self._mixture._parameters, self._layout.blocks)
        return classification.average_class_log_probabilities(table, draws, self._layout.blocks)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Most probable class of each row, or ``reject_label`` where no class explains it.

        Parameters
        ----------
        X : array-like of shape (N, D)

        Returns
        -------
        ndarray of shape (N,)
        """
        table, draws = self._table(X), self._posterior_draws()
        if draws is None:
            probability = self._log_probabilities(table)
            density = kernel.log_density(table, self._mixture._parameters)
        else:
            density, r = kernel.posterior_predictive(table, *draws)
            probability = self._layout.totals(r)
        labels = self.classes_[np.argmax(probability, axis=1)]
        if self.reject is None and self.reject_log_density is None:
            return labels
        out = labels.astype(_common_type(self.classes_, self._reject_label))
        out[density < self.reject_log_density_] = self._reject_label
        return out

    def score(self, X: ArrayLike, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy: the share of rows whose class is predicted. Rows of unknown class do not count; rejected ones are not right.

        Parameters
        ----------
        X : array-like of shape (N, D)
        y : array-like of shape (N,)
        sample_weight : array-like of shape (N,), optional

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If y has another length than X, or no known label.
        """
        predicted = self.predict(X)
        labels, known = partial_labels(y, len(predicted), self.classes_)
        if not known.any():
            raise ValueError("y has no known label (−1, None and NaN are unknown): there is nothing to score by")
        weights = check_weights(sample_weight, self._table(X))
        right = np.array([bool(a == b) for a, b in zip(predicted[known].tolist(), labels[known], strict=True)])
        return float(np.average(right, weights=None if weights is None else weights[known]))

    def sample(self, n_samples: int = 1) -> tuple[FloatArray, np.ndarray]:
        """Draw rows with their classes: a class by its prior, then a row from its mixture; with the posterior each of its own draw.

        Parameters
        ----------
        n_samples : int, default 1

        Returns
        -------
        X : ndarray of shape (n_samples, D)
        y : ndarray of shape (n_samples,)
            Class of each row.

        Raises
        ------
        ValueError
            If ``n_samples`` < 1.
        """
        check_is_fitted(self)
        rows, component = self._mixture.sample(n_samples)
        return rows, self.component_class_[component]


def _part(parameters: MixtureParameters, block: slice) -> MixtureParameters:
    """The mixture of one class."""
    weights = parameters.weights[block]
    return MixtureParameters(weights / weights.sum(), parameters.means[block], parameters.precision_factors[block])


def _draws_of(draws: PosteriorDraws, block: slice) -> PosteriorDraws:
    """Draws of the mixture of one class."""
    weights = draws.weights[..., block]
    return replace(
        draws,
        weights=weights / weights.sum(axis=-1, keepdims=True),
        means=draws.means[:, :, block],
        precision_factors=draws.precision_factors[:, :, block],
    )


def _own_parameters(
    diagnostics: Diagnostics, draws: PosteriorDraws, kind: CovarianceStructure, names: list[str]
) -> Diagnostics:
    """The verdict on all classes, with the table of one class's parameters."""
    from bayesgmm.inference.diagnostics import convergence_table, scalar_parameters
    from bayesgmm.inference.posterior import feature_pairs

    return replace(
        diagnostics, parameters=convergence_table(scalar_parameters(draws, kind, names, feature_pairs(names)))
    )


def _common_type(classes: np.ndarray, label: Any) -> np.dtype[Any]:
    """Type of an array that holds the classes and the label of rejected rows."""
    own = np.asarray(label).dtype
    if {classes.dtype.kind, own.kind} <= {"i", "u", "f"} or {classes.dtype.kind, own.kind} == {"U"}:
        return np.promote_types(classes.dtype, own)
    return np.dtype(object)
