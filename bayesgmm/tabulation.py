"""From the finished models of a sweep to one table: its columns, what depends on the other models, reasons and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from bayesgmm.core.hierarchical import HierarchicalPrior, Prior
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.core.separation import SeparationPrior
from bayesgmm.stacking import compare_elpds
from bayesgmm.sweep import Key, Model, Plan, log_joint, steps

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Criterion:
    """A criterion by its name.

    Parameters
    ----------
    name : str
    column : str
        Of the table.
    title : str
        In words.
    source : {"em", "posterior", "labels"}
        What it needs.
    larger_is_better : bool
    error : str or None
        Column of its error.
    """

    name: str
    column: str
    title: str
    source: str
    larger_is_better: bool
    error: str | None = None


CRITERIA: dict[str, Criterion] = {
    c.name: c
    for c in (
        Criterion("aic", "aic", "AIC", "em", False),
        Criterion("aicc", "aicc", "AICc", "em", False),
        Criterion("bic", "bic", "BIC", "em", False),
        Criterion("icl", "icl", "ICL", "em", False),
        Criterion("waic", "elpd_waic", "WAIC", "posterior", True),
        Criterion("loo", "elpd_loo", "LOO", "posterior", True, "se"),
        Criterion("evidence", "log_evidence", "the evidence", "posterior", True, "log_evidence_se"),
        Criterion("ari", "ari", "the adjusted Rand index", "labels", True),
        Criterion("accuracy", "accuracy", "accuracy", "labels", True),
        Criterion("log_loss", "log_loss", "log loss", "labels", False),
    )
}

_INTEGERS = ("n_parameters", "divergences")
COLUMNS = (
    "n_parameters",
    "log_likelihood",
    "aic",
    "aicc",
    "bic",
    "icl",
    "elpd_waic",
    "p_waic",
    "elpd_loo",
    "se",
    "p_loo",
    "elpd_diff",
    "dse",
    "weight",
    "max_pareto_k",
    "log_evidence",
    "log_evidence_se",
    "probability",
    "ari",
    "accuracy",
    "log_loss",
    "divergences",
    "max_rhat",
    "smallest_component",
)
"""Numbers; ``prior``, ``flags`` and ``reason`` come after them."""

CRITERIA_COLUMNS = {
    **{c.column: c.name for c in CRITERIA.values() if c.source != "em"},
    "p_waic": "waic",
    **dict.fromkeys(("se", "p_loo", "elpd_diff", "dse", "weight", "max_pareto_k"), "loo"),
    **dict.fromkeys(("log_evidence_se", "probability"), "evidence"),
}
"""Columns that are filled only where their criterion was asked for."""


_DECIMALS = {
    "n_parameters": 0,
    **dict.fromkeys(("weight", "probability", "max_rhat", "accuracy", "log_loss", "ari"), 3),
    **dict.fromkeys(("max_pareto_k", "log_evidence_se"), 2),
}


def criterion_text(name: str, value: float) -> str:
    """A value of a column as text; tenths of a nat are what criteria are compared in."""
    return f"{float(value):.{_DECIMALS.get(name, 1)}f}"


def in_words(key: Key) -> str:
    """Name a model: ``K = 2 (full)``."""
    return f"K = {key[1]} ({key[0]})"


def listed(names: Sequence[str]) -> str:
    """Join names by commas and "and"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def sensitivity_table(plan: Plan, models: Mapping[Key, Model]) -> pd.DataFrame | None:
    """p(model | data) under each variation of the prior."""
    import pandas as pd

    from bayesgmm.inference.components import probabilities_with_errors
    from bayesgmm.inference.sensitivity import VARIATIONS

    judged = [m for m in models.values() if m.varied and np.isfinite(log_joint(plan, m))]
    if not judged or "sensitivity" not in steps(plan):
        return None
    names = [m.name for m in judged]
    rows = {}
    for variation in (None, *VARIATIONS):
        joint = np.array([log_joint(plan, m, variation) for m in judged])
        found = [{} if variation is None else m.varied[variation] for m in judged]
        own = [m.values.get("log_evidence_se", np.nan) for m in judged]
        errors = np.hypot(own, [one.get("standard_error", 0.0) for one in found])
        chances, spread, _, _ = probabilities_with_errors(joint, np.where(np.isfinite(errors), errors, 0.0))
        evidences = [m.values["log_evidence"] + one.get("change", 0.0) for m, one in zip(judged, found, strict=True)]
        rows["as given" if variation is None else variation] = [
            *chances,
            *spread,
            *evidences,
            *(one.get("pareto_k", np.nan) for one in found),
            *(bool(one.get("refitted", False)) for one in found),
        ]
    columns = pd.MultiIndex.from_product(
        [("probability", "error", "log_evidence", "pareto_k", "refitted"), names], names=["quantity", "model"]
    )
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    table.index.name = "prior"
    return table.astype({column: bool if column[0] == "refitted" else float for column in columns})


def compare_models(plan: Plan, models: Mapping[Key, Model], elpds: Mapping[str, Any]) -> None:
    """Numbers that a model has only beside the others: differences, weights, probabilities."""
    by_name = {m.name: m for m in models.values()}
    if elpds:
        row_weights = plan.sample_weight if plan.blocks is None else by_name[next(iter(elpds))].row_weights
        differences, weights = compare_elpds(elpds, row_weights)
        for name, weight in zip(elpds, weights, strict=True):
            difference, error = differences[name]
            by_name[name].values |= {"elpd_diff": difference, "dse": error, "weight": float(weight)}
    if "evidence" not in plan.criteria:
        return
    judged = [m for m in models.values() if np.isfinite(m.values.get("log_evidence", np.nan))]
    joint = np.array([log_joint(plan, m) for m in judged])
    if np.any(np.isfinite(joint)):
        for model, probability in zip(judged, softmax(joint), strict=True):
            model.values["probability"] = float(probability)


def criteria_table(plan: Plan, models: Mapping[Key, Model], interrupted: str | None) -> pd.DataFrame:
    """One row a model; see :class:`bayesgmm.selection.Selection`."""
    import pandas as pd

    index = pd.MultiIndex.from_tuples(list(models), names=["covariance_type", "n_components"])
    wanted = set(steps(plan))
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        shown = name not in CRITERIA_COLUMNS or CRITERIA_COLUMNS[name] in plan.criteria
        values = [m.values.get(name) if shown else None for m in models.values()]
        columns[name] = pd.array(values, dtype="Int64" if name in _INTEGERS else "Float64")
    label = None if plan.method == "em" else prior_label(plan.prior)
    columns["prior"] = pd.array([label if m.posterior is not None else None for m in models.values()], dtype="string")
    columns["flags"] = pd.array([", ".join(m.flags) for m in models.values()], dtype="string")
    columns["reason"] = pd.array([_reason(plan, m, wanted, interrupted) for m in models.values()], dtype="string")
    return pd.DataFrame(columns, index=index)


def _reason(plan: Plan, model: Model, wanted: set[str], interrupted: str | None) -> str:
    """Why columns of a row are empty, and what was done about doubtful ones."""
    if not model.done and not model.reasons:
        return "not fitted: the sweep was interrupted" if interrupted else "not fitted"
    reasons = [f"{name}: {why}" if name in COLUMNS else why for name, why in model.reasons.items()]
    if "failed" in model.flags:
        return "; ".join(reasons)
    if not wanted <= model.done:
        reasons.append("not finished: the sweep was interrupted")
    if plan.method == "em":
        reasons.append("WAIC, LOO and evidence need a posterior (method='laplace' or 'nuts')")
    else:
        missing = [t for t, n in (("WAIC", "waic"), ("LOO", "loo"), ("evidence", "evidence")) if n not in plan.criteria]
        if missing:
            reasons.append(f"{listed(missing)} not asked for")
    if plan.labels is None:
        reasons.append("no labels")
    return "; ".join(reasons)


def notes_of(plan: Plan, models: Mapping[Key, Model]) -> tuple[str, ...]:
    """What is worth knowing of the comparison as a whole."""
    notes = []

    for flag, what in (
        ("near-singular", "near-singular, so that the likelihood and AIC, BIC and ICL say nothing"),
        ("failed", "failed, see the column reason"),
        ("k-hat high", "LOO is not reliable for some rows (k-hat high)"),
    ):
        named = [in_words(key) for key, m in models.items() if flag in m.flags]
        if named:
            notes.append(f"{what}: {listed(named)}")
    if "evidence" in plan.criteria:
        notes += _prior_notes(plan)
    return tuple(notes)


def _prior_notes(plan: Plan) -> list[str]:
    """What p(model | data) rests on beside the data, where that is not the default."""
    notes, label = [], prior_label(plan.prior)
    if label != DEFAULT_LABEL:
        depends = isinstance(plan.prior, ConjugatePrior) and plan.prior.scale is None
        notes.append(
            f"the evidences are under another prior than the one made for comparing models, HierarchicalPrior(): {label}"
            + "; it depends on K and the structure, and p(model | data) on that" * depends
        )
    chances = {K: float(np.exp(value)) for K, value in plan.log_prior_of_components.items()}
    if chances and max(chances.values()) - min(chances.values()) > 1e-9:
        notes.append("p(model | data) has the prior on K " + ", ".join(f"{K}: {p:.3g}" for K, p in chances.items()))
    return notes


DEFAULT_LABEL = "hierarchical"


def prior_label(prior: Prior) -> str:
    """A prior in a few words: what kind it is, and whether its values are the defaults."""
    if isinstance(prior, HierarchicalPrior):
        names = ("mean_prior", "mean_covariance", "precision_shape", "hyper_shape", "hyper_rate")
        own = [name for name in names if getattr(prior, name) is not None]
        own += ["weight_concentration"] * bool(np.any(np.asarray(prior.weight_concentration) != 1))
        return DEFAULT_LABEL + (f" with {listed(own)} given" if own else "")
    if isinstance(prior, SeparationPrior):
        return f"separation, {prior.deviation_family} standard deviations"
    return "conjugate, scale from each model's fit" if prior.scale is None else "conjugate, scale given"
