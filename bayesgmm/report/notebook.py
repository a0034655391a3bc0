"""What notebooks show of a fit, a selection or a detector: the verdict and one small table. Nothing is computed that takes time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bayesgmm.report.blocks import Table, Verdict, number, percent, sentence
from bayesgmm.report.facts import FitFacts
from bayesgmm.report.page import environment
from bayesgmm.report.verdicts import summary_line

if TYPE_CHECKING:
    from bayesgmm.selection import Selection

MOST_COMPONENTS = 12

MOST_FEATURES = 6

MOST_MODELS = 24


def fit_fragment(fit: Any) -> str:
    """A fitted mixture as a fragment of HTML: what its diagnostics say, weights and means.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted.

    Returns
    -------
    str
    """
    K, D = fit.means_.shape
    name = f"{type(fit).__name__}: {K} component{'s' if K > 1 else ''}, covariance {fit.covariance_type}"
    return _fragment(name, _fit_verdict(fit), [_components(fit, K, D)])


def _fit_verdict(fit: Any) -> Verdict:
    posterior = hasattr(fit, "_draws")
    ok = FitFacts(fit, None).ok
    problems = [sentence(text) for text in fit.diagnostics_.problems] if posterior else []
    return Verdict("good" if ok and posterior else "plain" if ok else "bad", summary_line(fit), problems)


def _components(fit: Any, K: int, D: int) -> Table:
    from bayesgmm.estimators.validation import feature_names

    names = feature_names(fit)[:MOST_FEATURES]
    estimate = "EM"
    if hasattr(fit, "_draws"):
        estimate = (
            "posterior mean" if fit.diagnostics_.labels_identified else "mode; the components cannot be told apart"
        )
    rows = [
        [k, percent(fit.weights_[k]), *(float(x) for x in fit.means_[k, :MOST_FEATURES])]
        for k in range(min(K, MOST_COMPONENTS))
    ]
    left = [f"{K - MOST_COMPONENTS} more components"] if K > MOST_COMPONENTS else []
    left += [f"{D - MOST_FEATURES} more features"] if D > MOST_FEATURES else []
    note = f"{' and '.join(left)} not shown. " if left else ""
    return Table(
        f"Weights and means ({estimate})",
        ["component", "weight", *(f"mean of {name}" for name in names)],
        rows,
        note + "summary() has more, report(path) all.",
    )


def selection_fragment(selection: Selection) -> str:
    """A selection as a fragment of HTML: what its summary says, and the criteria model by model.

    Parameters
    ----------
    selection : Selection

    Returns
    -------
    str
    """
    from bayesgmm.report.selection_sections import models_table

    doubtful = [sentence(text) for text in selection.doubtful]
    bad = bool(doubtful) or not selection.picks
    if bad:
        verdict = Verdict(
            "bad", "A fit that is picked is not to be trusted yet." if doubtful else selection.summary(), doubtful
        )
    else:
        level = "caution" if selection.interrupted else "plain"
        extra = [sentence(selection.interrupted)] if selection.interrupted else []
        verdict = Verdict(level, selection.summary(), extra)
    table = models_table(selection)
    note = table.note
    if len(table.rows) > MOST_MODELS:
        note += f" {len(table.rows) - MOST_MODELS} more models are in selection.table."
    small = Table(table.title, table.columns, table.rows[:MOST_MODELS], note)
    return _fragment(f"Selection of {len(table.rows)} models by {selection.method}", verdict, [small])


def detector_fragment(detector: Any) -> str:
    """A fitted anomaly detector as a fragment of HTML: its threshold, and whether the mixture in it can be trusted.

    Parameters
    ----------
    detector : AnomalyDetector
        Fitted.

    Returns
    -------
    str
    """
    fit = detector.estimator_
    K, D = fit.means_.shape
    rows = [
        ["threshold, log density", number(detector.offset_).replace("-", "−")],
        ["share of the model's own rows below it", percent(detector.false_alarm_).text],
        ["mixture", f"{type(fit).__name__}, {K} component{'s' if K > 1 else ''}, covariance {fit.covariance_type}"],
        ["features", str(D)],
        ["small component", f"weight below {percent(detector.small_component)}"],
    ]
    table = Table("The detector", ["what", "value"], rows, "table(X) says all of each row.")
    return _fragment("AnomalyDetector", _fit_verdict(fit), [table, _components(fit, K, D)])


def _fragment(title: str, verdict: Verdict, tables: list[Table]) -> str:
    return environment().get_template("notebook.html.j2").render(title=title, verdict=verdict, tables=tables)
