"""The sections of a report on one fit: data, components, figures, assignment and anomalies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from bayesgmm.core.covariance import structure
from bayesgmm.report.blocks import (
    Block,
    Bullets,
    Paragraph,
    Section,
    Table,
    number,
    percent,
    rounded,
    sentence,
    spelled,
)
from bayesgmm.report.facts import CI_PROB, DISCOVERY_RATE, FALSE_ALARM, LEFT_OUT_ROWS, SURE, FitFacts
from bayesgmm.report.figures import inline
from bayesgmm.report.verdicts import anomaly_sentences, assignment_sentences, counted

SHOWN_PARAMETERS = 120
"""Lines of a table of parameters."""

SHOWN_DATA_FEATURES = 40

FIGURE_FEATURES = 4
"""Features that density and ellipses show at most."""

COCLUSTERED_ROWS = 2000
"""Rows up to which the map of co-clustering is shown."""

INTERVAL = f"{100 * CI_PROB:.0f} % interval"

INTERVAL_WIDTH = 3.3
"""Standard deviations that a 90 % interval is wide."""

NOT_TRUSTED = "The diagnostics of this fit failed: the numbers of this section are no results."


def doubt(facts: FitFacts) -> list[Block]:
    """What a section of a failed fit begins with."""
    if facts.ok:
        return []
    text = NOT_TRUSTED
    if not facts.identified:
        text += (
            " The components cannot be told apart from draw to draw, so that what is said of one component "
            "is the mode's or an average over "
            "components of different kinds."
        )
    return [Paragraph(text, "caution")]


def data_section(facts: FitFacts, provenance: Mapping[str, Any] | None) -> Section:
    """Where the rows come from, what was left out, and what the features are like."""
    blocks: list[Block] = []
    if provenance is not None:
        blocks.append(Paragraph(f"Read from {provenance['source']}."))
    if facts.X is None:
        blocks.append(Paragraph("A fit by EM holds no rows, and none were given, so that nothing can be said of them."))
        blocks.append(Bullets([f"feature {j}: {name}" for j, name in enumerate(facts.names[:SHOWN_DATA_FEATURES])]))
    else:
        n, D = facts.X.shape
        text = f"{counted(n, 'row')} of {counted(D, 'feature')}."
        v = facts.sample_weight
        if v is not None:
            text += f" Rows have frequency weights between {number(v.min())} and {number(v.max())}, {number(v.sum())} in all."
            if zero := int((v == 0).sum()):
                text += f" {counted(zero, 'row')} of weight 0 did not count."
        blocks.append(Paragraph(text))
    notes = [sentence(str(note)) for note in (provenance or {}).get("notes", ())]
    if facts.X is not None:
        notes.insert(0, "No row was dropped: tables with missing or infinite values are refused, and not mended.")
    blocks += [Bullets(notes)] if notes else []
    if facts.X is not None:
        blocks.append(_features(facts))
    return Section("data", "Data", blocks)


def _features(facts: FitFacts) -> Table:
    assert facts.X is not None
    rows = []
    for j in range(min(facts.D, SHOWN_DATA_FEATURES)):
        x = facts.X[:, j]
        rows.append([facts.names[j], x.mean(), x.std(ddof=1), x.min(), float(np.median(x)), x.max()])
    more = facts.D - SHOWN_DATA_FEATURES
    return Table(
        "The features",
        ["feature", "mean", "standard deviation", "smallest", "median", "largest"],
        rows,
        f"{more} more features are not shown." if more > 0 else "",
    )


def components_section(facts: FitFacts) -> Section:
    """Weights, means and standard deviations of the components, and EM beside the posterior."""
    blocks = doubt(facts)
    has_interval = facts.interval_columns[0] is not None
    columns = ["component", "weight", *([f"{INTERVAL}: from", "to"] if has_interval else [])]
    columns += ["rows", f"of them below {100 * SURE:.0f} %"] if facts.X is not None else []
    lines = []
    for c in facts.components:
        line: list[Any] = [c.index, c.weight]
        line += [c.lower, c.upper] if has_interval else []
        lines.append([*line, c.rows, c.unsure] if facts.X is not None else line)
    estimate = "posterior mean" if facts.is_posterior else "maximum of EM"
    note = f"Weight: {estimate}. "
    if facts.X is not None:
        note += "Rows: those whose most probable component this is"
        if facts.is_posterior and facts.view.identified:
            note += f", by probabilities averaged over {spelled(facts.view.n_averaged)} draws"
        note += f"; a row is below {100 * SURE:.0f} % where no component has that probability."
    blocks.append(Table("The components", columns, lines, note))
    blocks.append(_places(facts))
    blocks += _em_beside(facts) if facts.is_posterior else _em_alone(facts)
    return Section("components", "Components", blocks)


def _name(variable: str, *where: object) -> str:
    return f"{variable}[{', '.join(map(str, where))}]"


def _spread_name(facts: FitFacts, k: int, j: int) -> str:
    """Name of the standard deviation of feature j in component k, which structures may share."""
    dims = structure(facts.fit.covariance_type).deviation_dims
    where = {"component": str(k), "feature": facts.names[j]}
    return _name("standard_deviations", *(where[d] for d in dims))


def _rounded(facts: FitFacts, line: Any, columns: Sequence[Any]) -> list[Any]:
    """A line of the summary, each number with the digits that its error leaves."""
    error = line["sd"] if facts.is_posterior else line.get("standard_error", np.nan)
    return [rounded(line[c], error) for c in columns]


def _places(facts: FitFacts) -> Table:
    """Mean and standard deviation of each feature in each component."""
    low, high = facts.interval_columns
    estimate = "mean" if facts.is_posterior else "em"
    rows = []
    for j in facts.shown:
        for k in range(facts.K):
            mean = facts.summary.loc[_name("means", k, facts.names[j])]
            spread = facts.summary.loc[_spread_name(facts, k, j)]
            columns_of = [estimate, *([] if low is None else [low, high])]
            rows.append([facts.names[j], k, *_rounded(facts, mean, columns_of), *_rounded(facts, spread, columns_of)])
    columns = ["feature", "component", "mean"]
    columns += ["from", "to", "standard deviation", "from", "to"] if low is not None else ["standard deviation"]
    note = f"From … to: {INTERVAL}. " if low is not None else ""
    more = len(rows) - SHOWN_PARAMETERS
    note += facts.shown_remark
    if more > 0:
        note += f" {more} more lines are not shown; fit.summary() has all."
    return Table("Where the components lie", columns, rows[:SHOWN_PARAMETERS], note)


def _kept(facts: FitFacts, names: Any) -> list[str]:
    """Parameters of the features that are shown."""
    hidden = {facts.names[j] for j in range(facts.D)} - {facts.names[j] for j in facts.shown}
    if not hidden:
        return list(names)

    def shows(name: str) -> bool:
        inside = name.partition("[")[2].removesuffix("]")
        return not any(
            inside == h or h in inside.split(", ") or h in inside.rpartition(", ")[2].split(":") for h in hidden
        )

    return [name for name in names if shows(name)]


def _left_over(facts: FitFacts, total: int, shown: int) -> str:
    return "" if shown >= total else f" {total - shown} more are not shown; fit.summary() has all."


def _em_beside(facts: FitFacts) -> list[Block]:
    """EM's estimates beside the posterior's."""
    low, high = facts.interval_columns
    table, compared = facts.summary, facts.compared
    kept = _kept(facts, table.index)[:SHOWN_PARAMETERS]
    left = _left_over(facts, len(table), len(kept))
    ends = [f"{INTERVAL}: from", "to"]
    if compared is None:
        rows = [
            [
                p,
                *_rounded(facts, table.loc[p], ("map", "median", "sd", low, high)),
                rounded(table.loc[p, "r_hat"], 0.01),
            ]
            for p in kept
        ]
        note = (
            "EM: the mode under the posterior's prior. The maximum of the likelihood is not beside it, because EM finds no sound one from "
            "here, or there are too many parameters for its standard errors." + left
        )
        columns = ["parameter", "EM", "posterior median", "sd", *ends, "R-hat"]
        return [Table("EM beside the posterior", columns, rows, note)]
    rows = []
    for p in kept:
        line = compared.loc[p]
        of_em = [rounded(line[c], min(line["em_se"], line["posterior_sd"])) for c in ("em", "em_se")]
        of_posterior = [
            rounded(line[c], line["posterior_sd"]) for c in ("posterior_median", "posterior_sd", "lower", "upper")
        ]
        rows.append([p, *of_em, *of_posterior, rounded(line["shift"], 0.1), line["parts"]])
    part = int((compared["parts"] != "").sum())
    said = (
        f"EM and the posterior part in {part} of {counted(len(compared), 'parameter')}."
        if part
        else f"EM and the posterior agree in all {counted(len(compared), 'parameter')}."
    )
    if not facts.ok:
        said = ""
    notes = [sentence(str(n)) for n in compared.attrs.get("notes", ())]
    note = (
        "EM: maximum of the likelihood, ± standard error by the observed information, climbed to from the posterior's mode. Shift: median "
        "less EM, in posterior standard deviations. They part in location where that is above 0.5 or EM "
        "lies outside the interval, in spread "
        "where the posterior standard deviation is not within 0.67 to 1.5 standard errors." + left
    )
    columns = ["parameter", "EM", "± se", "posterior median", "sd", *ends, "shift", "they part in"]
    return [
        Table("EM beside the posterior", columns, rows, note),
        *([Paragraph(said)] if said else []),
        *([Bullets(notes)] if notes else []),
    ]


def _em_alone(facts: FitFacts) -> list[Block]:
    """EM's estimates, with standard errors where there are rows."""
    table = facts.summary
    kept = _kept(facts, table.index)[:SHOWN_PARAMETERS]
    columns = [c for c in ("em", "standard_error", "lower", "upper") if c in table]
    titles = {"em": "EM", "standard_error": "± se", "lower": f"{INTERVAL}: from", "upper": "to"}
    rows = [[p, *_rounded(facts, table.loc[p], columns)] for p in kept]
    note = (
        "Standard errors by the observed information."
        if "standard_error" in table
        else "No standard errors without rows."
    )
    note += " There is no posterior to stand beside them." + _left_over(facts, len(table), len(kept))
    notes = [sentence(str(n)) for n in table.attrs.get("notes", ())]
    return [
        Table("EM's estimates", ["parameter", *(titles[c] for c in columns)], rows, note),
        *([Bullets(notes)] if notes else []),
    ]


def figures_section(facts: FitFacts) -> Section:
    """The figures of a fit."""
    from bayesgmm import plots

    fit, X = facts.fit, None if facts.is_posterior else facts.table
    what = f"{counted(facts.K, 'component')}, covariance {fit.covariance_type}"
    features = _features_in_words(facts)
    uncertainty = " A band or thin lines show the posterior's spread." if facts.is_posterior else ""
    rows = "" if facts.X is None else f" over {counted(len(facts.X), 'row')}"
    blocks = doubt(facts)
    blocks.append(
        inline(
            "density",
            partial(plots.density, fit, X),
            f"The fitted density of {features}{rows}: {what}.",
            "The fitted density. One feature: a curve with its components; two: lines that enclose 25, 50, 75 and 95 % of the mixture; "
            "more: a matrix of pairs." + _of_these(facts, FIGURE_FEATURES),
        )
    )
    if facts.D > 1:
        blocks.append(
            inline(
                "ellipses",
                partial(plots.ellipses, fit, X),
                f"Ellipses of the components in {features}{rows}: {what}.{uncertainty}",
                "Each component as the ellipses that hold given shares of it."
                + uncertainty
                + _of_these(facts, FIGURE_FEATURES),
            )
        )
    if facts.X is not None and facts.K > 1:
        blocks.append(
            inline(
                "responsibilities",
                partial(plots.responsibilities, fit, X),
                f"Rows coloured by the probabilities of their components; {spelled(facts.n_unsure)} of {spelled(len(facts.X))} are below "
                f"{100 * SURE:.0f} %.",
                "Which component each row comes from: colours are mixed by probability, and unsure rows are larger (many rows: bins)."
                + _of_these(facts, 2),
            )
        )
    if facts.is_posterior:
        blocks += _posterior_figures(facts)
    if len(getattr(fit, "modes_", ())) > 1:
        blocks.append(
            inline(
                "modes",
                partial(plots.modes, fit),
                f"Bars: how many starts of EM ended in each of {len(fit.modes_)} optima, with the distance of each to the best.",
                "The optima that EM found, and how often each was reached.",
            )
        )
    return Section("figures", "Figures", blocks)


def _posterior_figures(facts: FitFacts) -> list[Block]:
    from bayesgmm import plots

    fit = facts.fit
    blocks = [
        inline(
            "forest",
            partial(plots.forest, fit),
            "Intervals of weights, means, standard deviations and correlations of each component, with EM's value marked.",
            "What the posterior says of each parameter: median, 50 % and 90 % interval; EM's mode is marked.",
        ),
    ]
    if facts.X is not None:
        blocks.append(
            inline(
                "predictive_check",
                partial(plots.predictive_check, fit),
                "Histogram of each feature beside the band of histograms that the posterior would give.",
                "Would this posterior give such data? Most points should lie in the band; a pattern of points "
                "outside it is what the mixture misses.",
            )
        )
    if not facts.identified and facts.X is not None and len(facts.X) <= COCLUSTERED_ROWS:
        blocks.append(
            inline(
                "coclustering",
                partial(plots.coclustering, fit),
                "Map of the probability that two rows come from the same component, rows in order of what belongs together.",
                "Which rows belong together, whatever the components are called: this does not depend on labels.",
            )
        )
    if not facts.ok and fit.method_ == "nuts":
        blocks.append(
            inline(
                "rank",
                partial(plots.rank, fit),
                "Ranks of each chain's draws among all draws, less even ones; chains that agree stay near zero.",
                "Chains that agree stay near zero, those that sit elsewhere leave it; see Diagnostics.",
            )
        )
    return blocks


def _of_these(facts: FitFacts, most: int) -> str:
    """Which features a figure of some shows."""
    if most >= facts.D:
        return ""
    chosen = facts.view.separating(None, most)[0]
    return f" Shown are {most} of {facts.D} features: {', '.join(f'“{facts.names[j]}”' for j in chosen)}."


def _features_in_words(facts: FitFacts) -> str:
    names = facts.names if facts.D <= 4 else []
    return ", ".join(names) if names else counted(facts.D, "feature")


def rows_section(facts: FitFacts) -> Section:
    """Assignment of rows, and those of lowest density."""
    found = facts.anomalies
    if found is None:
        text = "Rows are needed to assign them and to look for anomalies: a fit by EM holds none, and none were given."
        return Section("rows", "Assignment and anomalies", [Paragraph(text)])
    from bayesgmm import plots

    blocks = doubt(facts)
    if facts.ok:
        blocks.append(Paragraph(" ".join((*assignment_sentences(facts), *anomaly_sentences(facts)))))
    posterior = facts.is_posterior
    columns = ["row", "log density", "tail probability", *(["anomaly probability"] if posterior else []), "kind"]
    columns += [
        "nearest component",
        "features that contribute",
        "Mahalanobis distance",
        *([INTERVAL] if posterior else []),
    ]
    lines = []
    for _, r in found.top.iterrows():
        line = [int(r["row"]), r["log_density"], r["tail_probability"]]
        line += [percent(r["anomaly_probability"])] if posterior else []
        error = (r["upper"] - r["lower"]) / INTERVAL_WIDTH if posterior else np.nan
        line += [str(r["kind"]), int(r["nearest_component"]), str(r["features"]).replace("(-", "(−")]
        line += [rounded(r["mahalanobis"], error)]
        line += [f"{rounded(r['lower'], error)} to {rounded(r['upper'], error)}"] if posterior else []
        lines.append(line)
    note = (
        "Rows are counted from 1. Tail probability: of a density as low as this or lower, under the model. "
        f"Far: below the threshold, log density {spelled(found.log_threshold)}; {100 * FALSE_ALARM:.0f} % of the model's own rows are. "
    )
    if posterior:
        note += (
            f"Anomaly probability: that the row's density is below the threshold, over {spelled(found.n_draws)} draws. "
        )
        note += (
            "Each row is left out of the posterior that judges it. "
            if found.left_out
            else f"With more than {spelled(LEFT_OUT_ROWS)} rows none is left out of the posterior that judges it. "
        )
    note += "Features: residual given all others, in standard deviations."
    blocks.append(Table(f"The {len(lines)} rows of lowest density", columns, lines, note))
    blocks.append(
        Table(
            "Thresholds",
            ["how", "rows", "expected of a right model"],
            [
                [
                    f"below the density that {100 * FALSE_ALARM:.0f} % of the model's own rows fall below",
                    found.flagged,
                    found.expected,
                ],
                [
                    f"anomalies at a false-discovery rate of {100 * DISCOVERY_RATE:.0f} % (Benjamini & Hochberg)",
                    found.discoveries,
                    None,
                ],
            ],
        )
    )
    X = None if facts.left_out else facts.table
    blocks.append(
        inline(
            "anomaly_density",
            partial(plots.anomaly_density, facts.detector, X, row_names=range(1, found.n_rows + 1)),
            f"The rows with the line at which the density is that of the threshold; {counted(found.flagged, 'row')} below it marked.",
            "The rows below the threshold, where they lie." + _of_these(facts, 2),
        )
    )
    return Section("rows", "Assignment and anomalies", blocks)
