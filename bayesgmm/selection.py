"""How many components, and which structure: every criterion beside every other in one table, with its uncertainty."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from bayesgmm.core import kernel
from bayesgmm.core.covariance import STRUCTURES
from bayesgmm.core.hierarchical import HierarchicalPrior
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.core.threads import available_threads
from bayesgmm.exceptions import PriorFunctionError, warn_user
from bayesgmm.io import sole_writer
from bayesgmm.stacking import compare_elpds, stacking_weights
from bayesgmm.sweep import LONG_PASS, REFITS, SHORT_PASS, Folder, Key, Model, Plan, quiet, run, steps
from bayesgmm.tabulation import (
    COLUMNS,
    CRITERIA,
    DEFAULT_LABEL,
    Criterion,
    compare_models,
    criteria_table,
    in_words,
    listed,
    notes_of,
    sensitivity_table,
)

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "CRITERIA", "Criterion", "Selection", "compare_elpds", "select", "stacking_weights"]

METHODS = ("em", "laplace", "nuts")

EM_OPTIONS = ("n_init", "init_params", "tol", "max_iter", "reg_covar")
POSTERIOR_OPTIONS = ("draws", "tune", "chains", "target_ess", "max_draws", "n_init", "init_params", "max_iter", "cores")

NEGLIGIBLE_ELPD = 4.0
"""Difference of elpd below which models are not told apart, whatever its error (Sivula et al. 2025)."""

NEGLIGIBLE_BIC = 2.0
"""Difference of BIC "not worth more than a bare mention" (Kass & Raftery 1995); the same is taken for AIC, AICc and ICL."""


DOUBTFUL = ("EM not converged", "modes disagree", "not converged", "Laplace k-hat high")
"""Flags that speak against a fit as a whole."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Every model of a sweep with every criterion.

    Parameters
    ----------
    table : DataFrame
        One row a model, indexed by (covariance_type, n_components). What does not apply is ``pd.NA``, its reason in ``reason``.

        - ``n_parameters``, ``log_likelihood`` (nats), ``aic``, ``aicc``, ``bic``, ``icl``, ``smallest_component`` (rows): of EM's
          maximum-likelihood fit; smaller is better, on the deviance scale.
        - ``elpd_waic``, ``p_waic``, ``elpd_loo``, ``se``, ``p_loo``, ``max_pareto_k``: of the posterior; nats, larger is better.
          ``elpd_diff`` (to the best, ≤ 0) with its error ``dse`` over paired rows; ``weight``: stacking.
        - ``log_evidence`` ± ``log_evidence_se`` (nats) and ``probability``: p(model | data) over the models of the table, all equally
          probable beforehand but for the prior on K.
        - ``ari``, ``accuracy``, ``log_loss``: cross-validated on the labelled rows.
        - ``divergences``, ``max_rhat`` (largest R-hat of what does not depend on labels).
        - ``prior``: of the posterior, in words.
        - ``flags``: near-singular, EM not converged, modes disagree, labels not identified, not converged, k-hat high, evidence
          doubtful, failed.
    fits : mapping of (str, int) to estimator
        The posterior fits, or EM's where ``method="em"``.
    em_fits : mapping of (str, int) to GaussianMixture
        Maximum-likelihood fits.
    elpds : mapping of str to ELPDData
        LOO by model (``"full-2"``), as ``az.compare`` takes it; ``az.plot_compare`` takes what that returns. Of more than 100,000 rows in
        blocks they hold values of a subsample alone, and ``az.compare`` does not take them.
    method : str
    criteria : tuple of str
        Those that were asked for, or all that apply.
    n_rows : int
    interrupted : str or None
        What was finished where the user stopped the sweep.
    notes : tuple of str
        What is worth knowing of the comparison as a whole.
    sensitivity : DataFrame or None
        p(model | data) where the prior is varied; a row for each variation, "as given" first. Columns are (quantity, model), models by
        their names in ``elpds``: ``probability``, its Monte Carlo standard ``error``, ``log_evidence``, ``pareto_k`` of the draws
        that were reweighted (above 0.7 they do not reach that prior), ``refitted``: from a new fit. The precision of the prior on the
        means (κ₀, or B₀⁻¹) is multiplied by 0.1 and 10, the scale of the covariances (Λ₀, or that of C₀⁻¹) by ½ and 2.
    provenance : mapping or None
        Where the command read the rows: ``source``, ``columns``, ``notes`` of the reader, ``data_hash``.

    References
    ----------
    Akaike (1974), A new look at the statistical model identification, IEEE Transactions on Automatic Control 19, 716–723; Schwarz
    (1978), Estimating the dimension of a model, Annals of Statistics 6, 461–464; Biernacki, Celeux & Govaert (2000), Assessing a
    mixture model for clustering with the integrated completed likelihood, IEEE Transactions on Pattern Analysis and Machine
    Intelligence 22, 719–725; Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation
    and WAIC, Statistics and Computing 27, 1413–1432; Yao, Vehtari, Simpson & Gelman (2018), Using stacking to average Bayesian
    predictive distributions, Bayesian Analysis 13, 917–1007.
    """

    table: pd.DataFrame
    fits: Mapping[Key, Any]
    em_fits: Mapping[Key, Any]
    elpds: Mapping[str, Any]
    method: str
    criteria: tuple[str, ...]
    n_rows: int
    interrupted: str | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)
    sensitivity: pd.DataFrame | None = None
    provenance: Mapping[str, Any] | None = None

    def ranking(self, criterion: str) -> list[Key]:
        """Models by a criterion, best first.

        Parameters
        ----------
        criterion : str
            A name of ``criteria``.

        Returns
        -------
        list of (str, int)
            Models without a value are left out; near-singular ones come last under EM's criteria, because the likelihood is
            unbounded there and its value says nothing.

        Raises
        ------
        ValueError
            If the criterion is unknown, or was not computed.
        """
        if criterion not in self.criteria:
            raise ValueError(f"the criterion {criterion!r} is not in this selection: it has {', '.join(self.criteria)}")
        what = CRITERIA[criterion]
        values = self.table[what.column].dropna()
        sign = -1.0 if what.larger_is_better else 1.0

        def order(key: Key) -> tuple[bool, float, int]:
            singular = what.source == "em" and "near-singular" in self.table.loc[key, "flags"]
            return singular, sign * float(values[key]), int(self.table.loc[key, "n_parameters"])

        return sorted((_key(index) for index in values.index), key=order)

    def best(self, criterion: str) -> Key:
        """The model that a criterion picks.

        Parameters
        ----------
        criterion : str
            A name of ``criteria``, such as ``"bic"`` or ``"loo"``.

        Returns
        -------
        (str, int)
            Covariance structure and number of components: a key of ``fits``.

        Raises
        ------
        ValueError
            If the criterion is unknown, was not computed, or no model has a value.
        """
        ranking = self.ranking(criterion)
        if not ranking:
            raise ValueError(f"no model has a value of {criterion!r}: {_first_reason(self.table)}")
        return ranking[0]

    @cached_property
    def picks(self) -> dict[str, Key]:
        """What each criterion picks, by its name; those that have no value are left out."""
        rankings = {name: self.ranking(name) for name in self.criteria}
        return {name: ranking[0] for name, ranking in rankings.items() if ranking}

    def summary(self) -> str:
        """What each criterion picks, whether the runner-up is within its error, and which simpler model is as good.

        Returns
        -------
        str
            Two or three sentences; one more on what p(K | data) owes to the prior, and one where that is not the default.
        """
        if not self.picks:
            return f"No model could be judged: {_first_reason(self.table)}."
        sentences = [_picks_sentence(self.picks, len(self.table))]
        judge = next((name for name in ("loo", "bic", "aicc", "aic", "icl", "waic") if name in self.picks), None)
        if judge is not None:
            sentences += self._judged(judge)
        if "evidence" in self.picks:
            sentences += self._prior_sentences()
        return " ".join(sentences)

    def _prior_sentences(self) -> list[str]:
        """Under which prior the evidences are, where it is not the default, and how much they owe to it."""
        label = str(self.table.loc[self.best("evidence"), "prior"])
        out = []
        if label != DEFAULT_LABEL:
            out.append(f"Evidence and p(model | data) are under another prior than the default: {label}.")
        if self.sensitivity is None or self.sensitivity["probability"].shape[1] < 2:
            return out
        chances = self.sensitivity["probability"]
        others: dict[Key, list[str]] = {}
        for variation, name in chances.idxmax(axis=1).items():
            kind, _, K = name.rpartition("-")
            others.setdefault((kind, int(K)), []).append(str(variation))
        best = next(iter(others))
        ours = chances[f"{best[0]}-{best[1]}"]
        text = f"The most probable model is {in_words(best)}: {ours.iloc[0]:.2f} under the prior as given, "
        text += f"{ours.min():.2f} to {ours.max():.2f} where that is varied"
        del others[best]
        if not others:
            return [*out, f"{text}, and the most probable throughout."]
        changed = "; ".join(
            f"{in_words(key)} is the most probable with {listed(names)}" for key, names in others.items()
        )
        return [*out, f"{text}; {changed}."]

    def _judged(self, criterion: str) -> list[str]:
        """The runner-up and the simplest model that is as good, by one criterion."""
        ranking = self.ranking(criterion)
        if criterion in CRITERIA and CRITERIA[criterion].source == "em":
            sound = [key for key in ranking if "near-singular" not in self.table.loc[key, "flags"]]
            ranking = sound or ranking
        best = ranking[0]
        out = []
        if len(ranking) > 1:
            gap, error = self._gap(criterion, ranking[1])
            close = self._as_good(criterion, ranking[1])
            behind = f"{gap:.1f} ± {error:.1f}" if error is not None else f"{gap:.1f}"
            verdict = (
                "the two cannot be told apart" if close else "more than its error" if error is not None else "not close"
            )
            out.append(
                f"By {CRITERIA[criterion].title} the runner-up, {in_words(ranking[1])}, is {behind} behind: {verdict}."
            )
        size = self.table["n_parameters"]
        simpler = [k for k in ranking[1:] if size[k] < size[best] and self._as_good(criterion, k)]
        if simpler:
            simplest = min(simpler, key=lambda key: (size[key], ranking.index(key)))
            out.append(
                f"The simplest model that is as good is {in_words(simplest)}, with {size[simplest]} parameters against {size[best]}."
            )
        elif len(ranking) > 1:
            out.append(f"No simpler model is as good as {in_words(best)} by {CRITERIA[criterion].title}.")
        return out

    def _gap(self, criterion: str, key: Key) -> tuple[float, float | None]:
        """How far a model lies behind the best, and the error of that."""
        if criterion == "loo":
            return -float(self.table.loc[key, "elpd_diff"]), float(self.table.loc[key, "dse"])
        column = CRITERIA[criterion].column
        return abs(float(self.table.loc[key, column]) - float(self.table.loc[self.best(criterion), column])), None

    def _as_good(self, criterion: str, key: Key) -> bool:
        gap, error = self._gap(criterion, key)
        if error is not None:
            return gap < NEGLIGIBLE_ELPD or gap < 2 * error
        return gap < (NEGLIGIBLE_ELPD if criterion == "waic" else NEGLIGIBLE_BIC)

    @property
    def doubtful(self) -> tuple[str, ...]:
        """Models that a criterion picks although their own diagnostics speak against them, with the flags that do."""
        out = []
        for key in dict.fromkeys(self.picks.values()):
            flags = [flag for flag in str(self.table.loc[key, "flags"]).split(", ") if flag in DOUBTFUL]
            if flags:
                out.append(f"{in_words(key)} is picked, but its fit is not to be trusted yet ({', '.join(flags)})")
        return tuple(out)

    def score_samples(self, X: ArrayLike, weights: str | Mapping[Key, float] = "evidence") -> FloatArray:
        """Log predictive density of each row averaged over models: log Σ_m w_m p(x given data, m).

        Parameters
        ----------
        X : array-like of shape (N, D)
        weights : {"evidence", "stacking", "bic"} or mapping of (str, int) to float, default "evidence"
            "evidence": p(model | data) of the table, with the prior on K that it was made with. "stacking": the table's ``weight``,
            made for prediction. "bic": exp(−BIC/2) without near-singular fits, an approximation to the evidence that needs no
            posterior. A mapping, such as p(model | data) under a prior of one's own, is divided by its sum; models that it does not
            name have weight 0.

        Returns
        -------
        ndarray of shape (N,)
            Nats. With ``method="em"`` the models' densities are those of the maximum, not averaged over parameters.

        Raises
        ------
        ValueError
            If the selection has no such weights (EM has neither evidences nor stacking weights), or a mapping names a model that is
            not there, one without a fit, or a number that is negative or not finite.
        TypeError
            If weights are of another kind.

        Warns
        -----
        CriterionWarning
            If models are left out because they have no value of the criterion.

        References
        ----------
        Hoeting, Madigan, Raftery & Volinsky (1999), Bayesian model averaging: a tutorial, Statistical Science 14, 382–417, equation 1.
        Yao, Vehtari, Simpson & Gelman (2018), Bayesian Analysis 13, 917–1007, for stacking.
        """
        from bayesgmm.averaging import averaged_density

        return averaged_density(self, X, weights)

    def coclustering(
        self,
        X: ArrayLike | None = None,
        *,
        rows: ArrayLike | slice | None = None,
        pairs: ArrayLike | None = None,
        weights: str | Mapping[Key, float] = "evidence",
    ) -> FloatArray:
        """Probability that two rows come from the same component, averaged over draws and models.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            Default: the rows of the fits.
        rows : int array-like of shape (n,), boolean mask of shape (N,) or slice, optional
            Positions of the n rows to take, at most 5,000: the result has n² entries.
        pairs : int array-like of shape (P, 2), optional
            Positions of two rows each: only these are worked out, of however many rows.
        weights : {"evidence", "stacking", "bic"} or mapping of (str, int) to float, default "evidence"
            As in :meth:`score_samples`. "evidence" gives the posterior probability; stacking weights are made for predictions and
            are no probabilities of models.

        Returns
        -------
        ndarray of shape (N, N), (n, n) or (P,)
            Σ_m w_m E[Σ_k r_ik r_jk given data, m]; 1 for a row with itself.

        Raises
        ------
        ValueError
            As in :meth:`score_samples`; if the matrix would have more than 5,000 rows; if ``rows`` and ``pairs`` are both given; if X is
            None with ``method="em"``, whose fits do not keep the data.
        IndexError
            If a position is not one of a row.

        Warns
        -----
        CriterionWarning
            If models are left out because they have no value of the criterion.

        Notes
        -----
        Rows that the models were not fitted to do not change the posterior.
        """
        from bayesgmm.averaging import averaged_coclustering

        return averaged_coclustering(self, X, weights, rows, pairs)

    def plot(self) -> Figure:
        """Criteria against the number of components with their errors, one line a structure, and the weights.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from bayesgmm.plots import selection

        return selection(self)

    def report(
        self,
        path: str | Path,
        X: ArrayLike | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a report of the comparison, and of the model that it picks: one HTML file that needs no network.

        That model is picked by LOO; without it by BIC, then by the first other criterion that there is.

        Parameters
        ----------
        path : path
            The file; its folder must exist.
        X : array-like of shape (N, D), optional
            Rows, with ``method="em"``, whose fits do not keep them; without them the report has no figures of rows, no assignment and no
            anomalies, and says so. Posteriors hold their own.
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
            If X does not have the features of the fits.
        """
        from bayesgmm.report.page import check_target, selection_page, write_report

        check_target(path, overwrite)
        return write_report(selection_page(self, X, sample_weight), path, overwrite)

    def _repr_html_(self) -> str:
        from bayesgmm.report.notebook import selection_fragment

        return selection_fragment(self)

    def __str__(self) -> str:
        return "\n".join([self.summary(), *(f"- {note}" for note in self.notes)])


def _key(index: Any) -> Key:
    return str(index[0]), int(index[1])


def _picks_sentence(picks: Mapping[str, Key], n_models: int) -> str:
    by_model: dict[Key, list[str]] = {}
    for name, key in picks.items():
        by_model.setdefault(key, []).append(CRITERIA[name].title)
    parts = [f"{listed(names)} pick{'s' * (len(names) == 1)} {in_words(key)}" for key, names in by_model.items()]
    text = "; ".join(parts) + f", of {n_models} model{'s' * (n_models != 1)}."
    return text[0].upper() + text[1:]


def _first_reason(table: pd.DataFrame) -> str:
    reasons = [str(r) for r in table["reason"] if str(r)]
    return reasons[0] if reasons else "nothing is finished"


def select(
    X: ArrayLike,
    n_components: Iterable[int] | int = range(1, 7),
    covariance_types: Iterable[str] | str = ("full", "tied", "diag", "spherical"),
    method: str = "em",
    y: ArrayLike | None = None,
    criteria: Iterable[str] | str | None = None,
    *,
    sample_weight: ArrayLike | None = None,
    n_jobs: int | None = None,
    random_state: Any = None,
    prior: Any = "default",
    components_prior: str | tuple[str, float] | Mapping[int, float] = "uniform",
    sensitivity: bool = True,
    loo_refits: int = REFITS,
    out: str | Path | None = None,
    overwrite: bool = False,
    progressbar: bool = True,
    client: Client | None = None,
    **options: Any,
) -> Selection:
    """Fit mixtures over numbers of components and covariance structures, and put all criteria into one table.

    Parameters
    ----------
    X : array-like of shape (N, D), path, rows in blocks, or Dask array or DataFrame
        Rows that do not stand in memory are summed over where they are, one model after the other; without ``y``.
    n_components : iterable of int, default range(1, 7)
        Numbers of components K.
    covariance_types : iterable of str, default ("full", "tied", "diag", "spherical")
    method : {"em", "laplace", "nuts"}, default "em"
        "em" is maximum likelihood alone: AIC, AICc, BIC, ICL. With "laplace" and "nuts" the posterior of each model comes beside
        it, with WAIC, LOO and the evidence.
    y : array-like of shape (N,), optional
        Labels of some rows (−1, None or NaN is unknown): accuracy, log loss and adjusted Rand index by cross-validation.
    criteria : iterable of str, optional
        Of "aic", "aicc", "bic", "icl", "waic", "loo", "evidence", "ari", "accuracy", "log_loss". Default: all that apply. EM's own are
        always in the table.
    sample_weight : array-like of shape (N,), optional
        Frequency weights.
    n_jobs : int, optional
        Models that EM fits at a time; −1 is one a core. Default: one a core for some thousand to some hundred thousand rows; else one,
        because shorter passes wait for the interpreter and longer ones run on all cores by themselves. The result does not depend
        on it. Posteriors are sampled one after the other.
    random_state : int, RandomState, Generator or None, default None
        With an int each model's fit is the same whatever else is in the sweep.
    prior : "default", ConjugatePrior, HierarchicalPrior or SeparationPrior, default "default"
        Of the posteriors; EM is maximum likelihood. "default" is ``HierarchicalPrior()``, the same for every K and structure: evidences
        can be compared under such a prior alone. Any other is named in the table, the notes and the summary. The scale of
        ``ConjugatePrior()`` comes from a fit of each model, so that it depends on K.
    components_prior : "uniform", ("poisson", rate) or mapping of int to float, default "uniform"
        p(K) in p(model | data): equal; Poisson, cut to the K of the sweep; or a number ≥ 0 for each of them. Structures share it evenly.
    sensitivity : bool, default True
        With the evidence, look at it under varied priors too (``Selection.sensitivity``): from the draws, and from a new fit where they
        do not reach the other prior (k̂ > 0.7) and the model has 1 % of the probability or so there.
    loo_refits : int, default 10
        Rows of each model that LOO leaves out by sampling the posterior again, where importance sampling and moment matching fail: seconds
        for each where components are superfluous. Further such rows make the model's flag "k-hat high".
    out : path, optional
        Folder that takes every finished fit. A sweep that was stopped goes on from there when it is called again with the same data
        and settings; more K, structures and criteria may be asked of it.
    overwrite : bool, default False
        Begin anew in ``out`` whatever is there; what a selection wrote there before is removed, other files are left alone.
    progressbar : bool, default True
        Show the progress over models on standard error.
    client : distributed.Client, optional
        Of a Dask cluster, whose workers fit the models, EM and posterior, several at a time; the rows, which stand in memory here, travel
        to each worker once. The result does not depend on it, where the workers have processors of this kind.
    **options
        Of the fits: ``n_init``, ``init_params``, ``max_iter`` (all), ``tol``, ``reg_covar`` (EM), ``draws``, ``tune``, ``chains``,
        ``target_ess``, ``max_draws``, ``cores`` (posteriors). ``target_ess`` is 0 here, so that each posterior has the draws asked for.

    Returns
    -------
    Selection
        Ctrl-C ends the sweep with what is finished; ``interrupted`` says so.

    Raises
    ------
    ValueError
        If the data, the weights or the labels are at fault, the numbers of components are none or exceed the distinct rows, or a
        structure, criterion or method does not exist.
    TypeError
        If an option is unknown.
    DataError, FileExistsError
        If ``out`` holds a sweep of other data or settings, or other things.
    BlockingIOError
        If another process writes to ``out``.
    KeyboardInterrupt
        If the user stopped it before any model was finished.

    Notes
    -----
    A model that fails is a row with its reason. EM climbs from 2 ``n_init`` starts that all structures share, and goes on with the most
    promising ones (:func:`bayesgmm.core.em.race`); from 5,000 rows on they first climb on 2,500 of the rows.

    References
    ----------
    Akaike (1974), A new look at the statistical model identification, IEEE Transactions on Automatic Control 19, 716–723; Schwarz
    (1978), Estimating the dimension of a model, Annals of Statistics 6, 461–464; Biernacki, Celeux & Govaert (2000), Assessing a
    mixture model for clustering with the integrated completed likelihood, IEEE Transactions on Pattern Analysis and Machine
    Intelligence 22, 719–725; Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation
    and WAIC, Statistics and Computing 27, 1413–1432; Meng & Wong (1996), Simulating ratios of normalizing constants via a simple
    identity, Statistica Sinica 6, 831–860.

    Examples
    --------
    >>> from bayesgmm.datasets import load_faithful
    >>> found = select(load_faithful(), range(1, 4), "full", random_state=0, progressbar=False)
    >>> found.best("bic")
    ('full', 2)
    """
    if isinstance(loo_refits, bool) or not isinstance(loo_refits, int | np.integer) or loo_refits < 0:
        raise ValueError(f"loo_refits must be a whole number of at least 0; got {loo_refits!r}")
    plan, seed_given = _plan(
        X, n_components, covariance_types, method, y, criteria, sample_weight, n_jobs, random_state, prior, options
    )
    plan = replace(
        plan,
        log_prior_of_components=_prior_of_components(components_prior, plan),
        sensitivity=bool(sensitivity),
        loo_refits=loo_refits,
    )
    if out is None:
        return _swept(plan, None, progressbar, client)
    from bayesgmm.selection_files import keep

    if not Path(out).exists():
        Path(out).mkdir(parents=True)
    with sole_writer(out, wait=0.5):
        folder = Folder(out, plan, seed_given, overwrite)
        found = _swept(replace(plan, entropy=folder.entropy), folder, progressbar, client)
        keep(found, folder.path)
    return found


def _swept(plan: Plan, folder: Folder | None, progressbar: bool, client: Client | None = None) -> Selection:
    models = {key: Model(key) for key in plan.keys}
    with quiet() as caught:
        if folder is not None:
            for model in models.values():
                folder.load(model)
        interrupted = run(plan, models, lambda m: None if folder is None else folder.save(m), progressbar, client)
    _pass_on(caught)
    if interrupted is not None and not any(set(steps(plan)) <= m.done or "failed" in m.flags for m in models.values()):
        raise KeyboardInterrupt(interrupted)
    return _selection(plan, models, interrupted)


def _pass_on(caught: Sequence[warnings.WarningMessage]) -> None:
    """Warn once of what concerns the data; what concerns one model stands in its row."""
    from bayesgmm.exceptions import DataWarning

    for message in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, DataWarning)):
        warn_user(message, DataWarning)


def _plan(
    X: ArrayLike,
    n_components: Iterable[int] | int,
    covariance_types: Iterable[str] | str,
    method: str,
    y: ArrayLike | None,
    criteria: Iterable[str] | str | None,
    sample_weight: ArrayLike | None,
    n_jobs: int | None,
    random_state: Any,
    prior: Any,
    options: Mapping[str, Any],
) -> tuple[Plan, bool]:
    """Check everything at the door, before anything is fitted."""
    from bayesgmm.core.blocked import survey
    from bayesgmm.estimators.bayesian_gaussian_mixture import BayesianGaussianMixture
    from bayesgmm.estimators.blockwise import check_survey, row_blocks
    from bayesgmm.estimators.gaussian_mixture import GaussianMixture
    from bayesgmm.estimators.validation import (
        check_table,
        check_weights,
        feature_names,
        generator,
        n_distinct_rows,
        refuse_degenerate,
        warn_degenerate,
    )

    if isinstance(prior, str) and prior == "default":
        prior = HierarchicalPrior()
    if callable(prior):
        raise PriorFunctionError(
            "a prior given as a function is of one number of components and has no evidence: take a HierarchicalPrior, ConjugatePrior or "
            "SeparationPrior, or fit each BayesianGaussianMixture and compare them by bayesgmm.loo"
        )
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    kinds = (covariance_types,) if isinstance(covariance_types, str) else tuple(dict.fromkeys(covariance_types))
    unknown = [str(kind) for kind in kinds if kind not in STRUCTURES]
    if unknown or not kinds:
        raise ValueError(
            f"covariance_types must be of {', '.join(STRUCTURES)}; got {', '.join(map(repr, unknown)) or 'none'}"
        )
    ks = _numbers_of_components(n_components)
    names = _criteria(criteria, method, y is not None)
    given = isinstance(random_state, Integral)
    if given and random_state < 0:
        raise ValueError(f"random_state must not be negative; got {random_state}")
    entropy = int(random_state) if given else int(generator(random_state).integers(2**62))
    door = GaussianMixture()
    blocks, seen = row_blocks(door, X, sample_weight, reset=True), None
    if blocks is None:
        table = check_table(door, X, reset=True, min_rows=2)
        weights = check_weights(sample_weight, table)
        counted = table if weights is None else table[weights > 0]
        distinct = n_distinct_rows(counted, ks[-1])
        if distinct < ks[-1]:
            raise ValueError(
                f"n_components goes up to {ks[-1]}, but X has {distinct} distinct rows: ask for at most {distinct} components"
            )
    else:
        if y is not None:
            raise ValueError("labels (y) go with rows in memory: give a sample of them")
        seen = survey(blocks, entropy)
        check_survey(seen, ks[-1], feature_names(door), options.get("reg_covar", 1e-6), False)
        table, weights = seen.sample.rows, None if np.all(seen.sample.weights == 1) else seen.sample.weights
    if y is not None:
        _check_labels(y, len(table))
    known = {*EM_OPTIONS, *POSTERIOR_OPTIONS} if method != "em" else set(EM_OPTIONS)
    strange = [name for name in options if name not in known]
    if strange:
        raise TypeError(
            f"select() has no option {', '.join(map(repr, strange))} with method={method!r}; the options of the fits are "
            f"{', '.join(sorted(known))}"
        )
    em_options = {name: options[name] for name in EM_OPTIONS if name in options}
    posterior_options = {name: options[name] for name in POSTERIOR_OPTIONS if name in options} if method != "em" else {}
    if method != "em":
        # Components that the data do not carry have labels that wander: their parameters would never reach an effective size.
        posterior_options = {"target_ess": 0} | posterior_options
    # The estimators check their own options; all of them before the first fit.
    GaussianMixture(**em_options)._validate_params()
    if method != "em":
        BayesianGaussianMixture(prior=prior, **posterior_options)._validate_params()
        if not (isinstance(prior, ConjugatePrior) and prior.scale is not None):
            refuse_degenerate(table, ks[-1], feature_names(door))
    if blocks is None:
        warn_degenerate(table, ks[-1], feature_names(door), em_options.get("reg_covar", 1e-6))
    cores = available_threads()
    if n_jobs is None:
        cost = kernel.pass_cost(len(table), ks[-1], table.shape[1])
        n_jobs = cores if SHORT_PASS <= cost < LONG_PASS else 1
    elif int(n_jobs) != n_jobs or n_jobs == 0 or n_jobs < -1:
        raise ValueError(f"n_jobs must be a whole number of at least 1, or -1 for one a core; got {n_jobs!r}")
    plan = Plan(
        X=X,
        table=table,
        sample_weight=weights,
        feature_names=getattr(door, "feature_names_in_", None),
        labels=y,
        keys=tuple((kind, K) for kind in kinds for K in ks),
        method=method,
        criteria=names,
        prior=prior,
        entropy=entropy,
        em_options=em_options,
        posterior_options=posterior_options,
        n_jobs=1 if blocks is not None else cores if n_jobs == -1 else int(n_jobs),
        blocks=blocks,
        survey=seen,
    )
    return plan, given


def _numbers_of_components(n_components: Iterable[int] | int) -> list[int]:
    values: list[Any] = list(n_components) if isinstance(n_components, Iterable) else [n_components]
    if not values:
        raise ValueError("n_components is empty: give at least one number of components, such as range(1, 7)")
    for K in values:
        if isinstance(K, bool) or not isinstance(K, Integral) or K < 1:
            raise ValueError(f"n_components must be whole numbers of at least 1; got {K!r}")
    return sorted({int(K) for K in values})


def _criteria(criteria: Iterable[str] | str | None, method: str, labelled: bool) -> tuple[str, ...]:
    sources = {"em"} | ({"posterior"} if method != "em" else set()) | ({"labels"} if labelled else set())
    if criteria is None:
        return tuple(c.name for c in CRITERIA.values() if c.source in sources)
    asked = [criteria] if isinstance(criteria, str) else list(criteria)
    unknown = [str(name) for name in asked if name not in CRITERIA]
    if unknown or not asked:
        raise ValueError(f"criteria must be of {', '.join(CRITERIA)}; got {', '.join(map(repr, unknown)) or 'none'}")
    for name in asked:
        if CRITERIA[name].source not in sources:
            need = (
                "labels: give y" if CRITERIA[name].source == "labels" else "a posterior: use method='laplace' or 'nuts'"
            )
            raise ValueError(f"the criterion {name!r} needs {need}")
    return tuple(name for name in CRITERIA if name in asked)


def _prior_of_components(prior: Any, plan: Plan) -> dict[int, float]:
    """Logarithms of p(K), by K."""
    from bayesgmm.inference.components import log_prior_of_components

    if "evidence" not in plan.criteria and not (isinstance(prior, str) and prior == "uniform"):
        raise ValueError(
            "components_prior is a part of p(model | data), which needs the criterion 'evidence': use method='laplace' or 'nuts' and ask "
            "for it, or leave components_prior out"
        )
    ks = np.array(sorted({K for _, K in plan.keys}))
    try:
        values = log_prior_of_components(prior, ks)
    except (TypeError, ValueError) as error:
        raise type(error)(f"components_prior: {error}") from None
    return dict(zip(ks.tolist(), values.tolist(), strict=True))


def _check_labels(y: ArrayLike, n_rows: int) -> None:
    from bayesgmm.crossvalidation import known_labels

    labels, known = known_labels(y)
    if len(labels) != n_rows:
        raise ValueError(f"y has {len(labels)} labels for {n_rows} rows of X")
    if not known.any():
        raise ValueError("y has no known label (−1, None and NaN are unknown): label some rows, or leave y out")
    if len(set(labels[known])) < 2:
        raise ValueError(
            f"y has a single class among its known labels ({labels[known][0]!r}): two are needed to score components as classes"
        )


def _selection(plan: Plan, models: Mapping[Key, Model], interrupted: str | None) -> Selection:
    models = {key: models[key] for key in plan.keys}
    finished = {key: m for key, m in models.items() if set(steps(plan)) <= m.done}
    elpds = {m.name: m.elpd for m in finished.values() if m.elpd is not None and "loo" in plan.criteria}
    compare_models(plan, models, elpds)
    fits = {key: (m.em if plan.method == "em" else m.posterior) for key, m in models.items()}
    return Selection(
        table=criteria_table(plan, models, interrupted),
        fits={key: fit for key, fit in fits.items() if fit is not None},
        em_fits={key: m.em for key, m in models.items() if m.em is not None},
        elpds=elpds,
        method=plan.method,
        criteria=plan.criteria,
        n_rows=plan.n_rows,
        interrupted=interrupted,
        notes=notes_of(plan, models),
        sensitivity=sensitivity_table(plan, models),
    )
