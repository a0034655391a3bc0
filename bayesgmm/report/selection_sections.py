"""The section of a report on how many components, and which structure."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bayesgmm.report.blocks import Block, Bullets, Paragraph, Said, Section, Table, percent, sentence
from bayesgmm.report.figures import inline
from bayesgmm.report.verdicts import chances_of_components, judge_of

if TYPE_CHECKING:
    from bayesgmm.selection import Selection

SHARES = ("weight", "probability", "accuracy")

TITLES = {
    "n_parameters": "parameters",
    "log_likelihood": "log likelihood",
    "aic": "AIC",
    "aicc": "AICc",
    "bic": "BIC",
    "icl": "ICL",
    "elpd_waic": "elpd WAIC",
    "elpd_loo": "elpd LOO",
    "se": "± se",
    "elpd_diff": "difference to the best",
    "dse": "± its error",
    "weight": "stacking weight",
    "max_pareto_k": "largest k̂",
    "log_evidence": "log evidence",
    "log_evidence_se": "± error",
    "probability": "p(model | data)",
    "accuracy": "accuracy",
    "log_loss": "log loss",
    "ari": "adjusted Rand index",
    "max_rhat": "largest R-hat",
}
"""Columns of a selection that are shown, in this order."""

MEANINGS = {
    "em": "AIC, AICc, BIC and ICL judge EM's maximum of the likelihood; smaller is better. BIC asks which "
    "model is true, AIC which predicts best, "
    "ICL which has clear groups.",
    "posterior": "elpd (WAIC, LOO) estimates how well new rows would be predicted, in nats; larger is better. "
    "The evidence is the probability of "
    "the data under a model, its prior included; p(model | data) follows from it.",
    "labels": "Accuracy, log loss and adjusted Rand index say how well the components predict the classes that are known, cross-validated.",
}


def choice_section(selection: Selection, ok: bool) -> Section:
    """What the criteria come to, model by model.

    Parameters
    ----------
    selection : Selection
    ok : bool
        Whether what is picked can be relied on.
    """
    from bayesgmm import plots
    from bayesgmm.tabulation import CRITERIA, in_words

    blocks: list[Block] = []
    if not ok:
        blocks.append(
            Paragraph(
                "A fit that is picked failed its diagnostics: what the criteria say of it below is no result.",
                "caution",
            )
        )
    else:
        blocks.append(Paragraph(selection.summary()))
    blocks += [Bullets([sentence(text) for text in selection.doubtful])] if selection.doubtful else []
    judge = judge_of(selection)
    if judge is not None:
        title = CRITERIA[judge].title
        blocks.append(
            Paragraph(f"The rest of this report is on {in_words(selection.best(judge))}, which {title} picks.")
        )
    blocks.append(
        inline(
            "selection",
            partial(plots.selection, selection),
            "Criteria against the number of components, a line for each covariance structure; rings mark what each criterion picks.",
            "The criteria against the number of components; rings mark what each picks, hollow markers what speaks against itself.",
        )
    )
    chances = chances_of_components(selection)
    if len(chances) > 1:
        blocks.append(
            inline(
                "number_of_components",
                partial(plots.number_of_components, selection),
                "Bars: the probability of each number of components, given the data.",
                "How probable each number of components is, given the data and the prior.",
            )
        )
    blocks.append(models_table(selection))
    sources = {CRITERIA[name].source for name in selection.criteria} | {"em"}
    notes = [MEANINGS[source] for source in ("em", "posterior", "labels") if source in sources]
    blocks.append(Bullets([*notes, *(sentence(note) for note in selection.notes)]))
    if len(chances) > 1:
        rows = [[K, percent(p)] for K, p in sorted(chances.items())]
        blocks.append(
            Table("The number of components, given the data", ["K", "p(K | data)"], rows, "Summed over structures.")
        )
    if selection.sensitivity is not None:
        blocks.append(_sensitivity(selection))
    return Section("choice", "How many components", blocks)


def models_table(selection: Selection) -> Table:
    """One line a model: its criteria, what picks it, and what speaks against it."""
    import pandas as pd

    from bayesgmm.tabulation import CRITERIA, criterion_text

    table = selection.table
    picked: dict[Any, list[str]] = {}
    for name, key in selection.picks.items():
        picked.setdefault(key, []).append(CRITERIA[name].title.removeprefix("the "))
    shown = [name for name in TITLES if name in table and table[name].notna().any()]
    rows = []
    for kind, K in table.index:
        line: list[Any] = [str(kind), int(K)]
        for name in shown:
            value = table.loc[(kind, K), name]
            if pd.isna(value):
                line.append(None)
            elif name in SHARES:
                line.append(percent(value))
            else:
                line.append(Said(float(value), criterion_text(name, value).replace("-", "−")))
        rows.append([*line, ", ".join(picked.get((kind, K), ())), str(table.loc[(kind, K), "flags"] or "")])
    return Table(
        "All models",
        ["covariance", "K", *(TITLES[name] for name in shown), "picked by", "flags"],
        rows,
        "Flags speak against a fit or a number of its line.",
    )


def _sensitivity(selection: Selection) -> Table:
    found = selection.sensitivity
    assert found is not None
    chances = found["probability"]
    shown = [name for name in chances.columns if (chances[name] >= 0.005).any()]
    rows = [[str(variation), *(percent(line[name]) for name in shown)] for variation, line in chances.iterrows()]
    return Table(
        "p(model | data) under other priors",
        ["prior", *shown],
        rows,
        "Models that never reach 0.5 % are not shown. A conclusion that turns over here rests on the prior.",
    )
