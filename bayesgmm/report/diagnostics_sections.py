"""The sections of a report on whether a fit can be trusted: diagnostics with what each means, optima of EM, priors."""

from __future__ import annotations

from typing import Any

import numpy as np

from bayesgmm.core.function_prior import FunctionPrior
from bayesgmm.core.hierarchical import HierarchicalPrior
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.core.separation import SeparationPrior
from bayesgmm.report.blocks import (
    Block,
    Bullets,
    Paragraph,
    Section,
    Table,
    percent,
    rounded,
    sentence,
    spelled,
)
from bayesgmm.report.facts import FitFacts
from bayesgmm.report.verdicts import counted

SHOWN_WORST = 10

SHOWN_MODES = 15

METHODS = {
    "bridge": "bridge sampling",
    "importance": "importance sampling",
    "laplace": "Laplace approximation",
    "draws": "share of the draws",
    "stacking": "stacking",
}
"""How the weight of a mode was found, in words."""

LARGEST_MATRIX = 5
"""Features up to which a matrix of a prior is shown whole."""


def diagnostics_section(facts: FitFacts) -> Section:
    """What the diagnostics found, each with its limit and its meaning."""
    if facts.is_posterior:
        blocks = _of_posterior(facts)
    else:
        blocks = [
            Paragraph(
                f"EM {'converged' if facts.fit.converged_ else 'did not converge'} in {counted(facts.fit.n_iter_, 'iteration')}. That is "
                "all that EM can say of itself: no sampler was run."
            )
        ]
    return Section("diagnostics", "Diagnostics", [*blocks, *_modes(facts), *_weights_of_modes(facts)])


def _of_posterior(facts: FitFacts) -> list[Block]:
    from bayesgmm.inference import diagnostics as limits

    found, draws = facts.fit.diagnostics_, facts.fit._draws
    chains, length = draws.weights.shape[:2]
    total = chains * length
    blocks: list[Block] = [Paragraph(found.verdict, "" if found.ok else "caution")]
    if found.problems:
        blocks.append(Bullets([sentence(text) for text in found.problems]))
    target = min(limits.ESS_LIMIT, facts.fit.target_ess)

    def line(what: str, value: Any, limit: str, fine: bool, meaning: str) -> list[Any]:
        return [what, value, limit, "yes" if fine else "NO", meaning]

    rows = []
    if facts.fit.method_ == "laplace":
        k = found.pareto_k
        rows.append(
            line(
                "Pareto k̂",
                None if k is None else rounded(k, 0.1),
                f"≤ {limits.PARETO_K_LIMIT}",
                k is not None and k <= limits.PARETO_K_LIMIT,
                "how far the normal approximations are from the posterior: above the limit reweighting cannot mend them",
            )
        )
    else:
        share = found.n_divergent / total
        rows += [
            line(
                "largest R-hat",
                rounded(found.r_hat, 0.01),
                f"≤ {limits.R_HAT_LIMIT}",
                found.r_hat <= limits.R_HAT_LIMIT,
                "whether chains that began in different places tell the same: 1 where they do",
            ),
            line(
                "smallest bulk ESS",
                round(found.ess_bulk),
                f"≥ {target:.0f}" if target > 0 else "none asked for",
                found.ess_bulk >= target,
                "independent draws that the draws are worth, for a parameter's middle",
            ),
            line(
                "smallest tail ESS",
                round(found.ess_tail),
                f"≥ {target:.0f}" if target > 0 else "none asked for",
                found.ess_tail >= target,
                "the same for the ends of a 90 % interval",
            ),
            line(
                "divergent transitions",
                found.n_divergent,
                f"≤ {100 * limits.DIVERGENT_LIMIT:.1f} % of the draws",
                share <= limits.DIVERGENT_LIMIT,
                "places where the sampler lost its way: the posterior may be missed there",
            ),
        ]
        if len(found.e_bfmi):
            lowest = float(np.min(found.e_bfmi))
            rows.append(
                line(
                    "smallest E-BFMI",
                    rounded(lowest, 0.1),
                    f"≥ {limits.E_BFMI_LIMIT}",
                    lowest >= limits.E_BFMI_LIMIT,
                    "whether the sampler moves freely between the posterior's middle and its tails",
                )
            )
    rows.append(
        line(
            "components identified",
            "yes" if found.labels_identified else "no",
            "yes",
            found.labels_identified,
            "whether a component is the same in every draw: if not, what is said of one component means little",
        )
    )
    if found.relabelling_agreement:
        lowest = min(found.relabelling_agreement.values())
        rows.append(
            line(
                "ways to relabel agree",
                f"{lowest:.0%} of the draws",
                f"≥ {100 * limits.LEAST_AGREEMENT:.0f} %",
                lowest >= limits.LEAST_AGREEMENT,
                "whether the nearest mode, ECR and Stephens' algorithm name the components alike: the lowest of the three",
            )
        )
    blocks.append(
        Table(
            "Diagnostics",
            ["what", "value", "limit", "passed", "what it means"],
            rows,
            f"{spelled(chains)} chain{'s' if chains > 1 else ''} of {counted(length, 'draw')} each; "
            f"{percent(found.permuted_share)} of the draws had their components put back in order.",
        )
    )
    if found.notes:
        blocks.append(Bullets([sentence(text) for text in found.notes]))
    if facts.fit.method_ != "laplace":
        blocks += _convergence(facts)
    return blocks


def _convergence(facts: FitFacts) -> list[Block]:
    found = facts.fit.diagnostics_
    columns = ["quantity", "R-hat", "bulk ESS", "tail ESS"]

    def lines(table: Any) -> list[list[Any]]:
        return [
            [str(name), rounded(row["r_hat"], 0.01), *(_count(row[c]) for c in ("ess_bulk", "ess_tail"))]
            for name, row in table.iterrows()
        ]

    worst = found.parameters.sort_values("r_hat", ascending=False, kind="stable").head(SHOWN_WORST)
    return [
        Table(
            "What does not depend on the names of the components",
            columns,
            lines(found.invariants),
            "These converge first: if they do not, nothing can be used; if they alone do, densities, "
            "co-clustering and tail probabilities can.",
        ),
        Table(
            "The parameters that converged worst",
            columns,
            lines(worst),
            f"{len(worst)} of {counted(len(found.parameters), 'parameter')}; fit.diagnostics_.parameters has all.",
        ),
    ]


def _count(value: float) -> int | None:
    return None if np.isnan(value) else round(value)


def _modes(facts: FitFacts) -> list[Block]:
    modes = getattr(facts.fit, "modes_", ())
    if not modes:
        return []
    rows = []
    for m, mode in enumerate(modes[:SHOWN_MODES]):
        below = (mode.objective - modes[0].objective) * float(mode.run.counts.sum())
        rows.append(
            [
                m,
                below,
                mode.n_starts,
                float(mode.smallest_count),
                float(mode.smallest_eigenvalue),
                "near-singular" if mode.spurious else "",
            ]
        )
    more = len(modes) - SHOWN_MODES
    note = (
        "Different optima are different explanations of the same rows. Relative to the best, in nats "
        "(differences of the objective, summed over rows)."
    )
    chains = facts.fit.diagnostics_.chain_modes if facts.is_posterior else ()
    if chains:
        note += " Chains stayed nearest to: " + ", ".join(f"chain {c} to {m}" for c, m in enumerate(chains)) + "."
    if more > 0:
        note += f" {more} more are not shown."
    columns = [
        "optimum",
        "nats to the best",
        "starts that ended there",
        "rows in its smallest component",
        "smallest relative eigenvalue",
        "",
    ]
    return [Table("Optima that EM found", columns, rows, note)]


def _weights_of_modes(facts: FitFacts) -> list[Block]:
    """What each mode holds of the posterior; nothing where there is one."""
    weights = facts.fit.diagnostics_.mode_weights if facts.is_posterior else ()
    if not weights:
        return []
    rows = [
        [
            w.mode,
            w.weight,
            w.error,
            None if np.isnan(w.log_mass) else w.log_mass,
            w.laplace,
            METHODS[w.method],
            ", ".join(map(str, w.chains)) or "none",
        ]
        for w in weights
    ]
    combined = facts.fit.diagnostics_.modes_combined
    note = (
        "The draws are taken from the modes by these weights; the diagnostics above are those within the modes."
        if combined
        else "The draws are as they were sampled."
    )
    columns = ["optimum", "weight", "standard error", "log mass", "by Laplace", "found by", "chains there"]
    return [Table("What each optimum holds of the posterior", columns, rows, note)]


def prior_section(facts: FitFacts) -> Section:
    """The prior as it was used, every value with its meaning."""
    prior = getattr(facts.fit, "prior_", None)
    if prior is None:
        return Section("prior", "Prior", [Paragraph("None: EM maximised the likelihood.")])
    origin = getattr(facts.fit, "prior", None)
    given = "It was given" if not isinstance(origin, str) and origin is not None else "It is the default"
    text = f"{type(prior).__name__}. {given}; what it took from the data was settled once, before fitting, and then held fixed."
    if isinstance(prior, FunctionPrior):
        rows = [["", "function", prior.name, "made its variables in PyMC; their draws are in idata_"]]
    elif isinstance(prior, SeparationPrior):
        rows = _separation(prior)
    else:
        rows = _hierarchical(prior) if isinstance(prior, HierarchicalPrior) else _conjugate(prior)
    parts: list[Any] = [
        Paragraph(text),
        Table("The prior's values", ["symbol", "name", "value", "what it means"], rows),
    ]
    if hasattr(facts.fit, "prior_sensitivity") and getattr(facts.fit, "_X", None) is not None:
        from bayesgmm.inference.power_scaling import sensitivity_sentence

        parts.append(Paragraph(sensitivity_sentence(facts.fit.prior_sensitivity())))
    return Section("prior", "Prior", parts)


def _conjugate(prior: ConjugatePrior) -> list[list[Any]]:
    return [
        [
            "α",
            "weight_concentration",
            _value(prior.weight_concentration),
            "weights ~ Dirichlet(α); 1 is uniform over all weights",
        ],
        ["m₀", "mean_prior", _value(prior.mean_prior), "centre of the means, in the units of the data"],
        ["κ₀", "mean_precision", _value(prior.mean_precision), "the prior on a mean counts as this many rows"],
        [
            "ν₀",
            "degrees_of_freedom",
            _value(prior.degrees_of_freedom),
            "covariance ~ inverse-Wishart(ν₀, Λ₀): larger holds it closer to Λ₀",
        ],
        ["Λ₀", "scale", _value(prior.scale), "scale of the covariances within components, in squared units"],
    ]


def _hierarchical(prior: HierarchicalPrior) -> list[list[Any]]:
    return [
        [
            "α",
            "weight_concentration",
            _value(prior.weight_concentration),
            "weights ~ Dirichlet(α); 1 is uniform over all weights",
        ],
        ["b₀", "mean_prior", _value(prior.mean_prior), "centre of the means, in the units of the data"],
        ["B₀", "mean_covariance", _value(prior.mean_covariance), "covariance of the means, in squared units"],
        ["c₀", "precision_shape", _value(prior.precision_shape), "covariance⁻¹ given C₀ ~ Wishart(c₀, C₀)"],
        [
            "g₀",
            "hyper_shape",
            _value(prior.hyper_shape),
            "C₀ ~ Wishart(g₀, G₀): the scale of the covariances is itself random",
        ],
        ["G₀", "hyper_rate", _value(prior.hyper_rate), "in squared units of the data"],
    ]


def _separation(prior: SeparationPrior) -> list[list[Any]]:
    families = {
        "lognormal": "median, with the shape as standard deviation of the logarithm",
        "halfnormal": "standard deviation of the normal whose absolute value it is",
        "gamma": "scale of a Gamma with this shape",
        "inversegamma": "scale of an inverse Gamma with this shape",
    }
    rows = [
        [
            "α",
            "weight_concentration",
            _value(prior.weight_concentration),
            "weights ~ Dirichlet(α); 1 is uniform over all weights",
        ],
        ["m", "mean_prior", _value(prior.mean_prior), "centre of the means, in the units of the data"],
        [
            "s",
            "mean_scale",
            _value(prior.mean_scale),
            "standard deviations of the means, independent of the covariances",
        ],
        ["", "deviation_family", prior.deviation_family, "family of the standard deviations within components"],
        ["", "deviation_scale", _value(prior.deviation_scale), families[prior.deviation_family]],
    ]
    if prior.deviation_shape is not None:
        rows.append(["", "deviation_shape", _value(prior.deviation_shape), "larger holds them closer together"])
    if np.any(np.asarray(prior.deviation_floor) > 0):
        rows.append(["", "deviation_floor", _value(prior.deviation_floor), "no standard deviation is below this"])
    what = "correlations ~ LKJ(η): 1 is uniform over correlation matrices, more favours small correlations"
    return [*rows, ["η", "eta", _value(prior.eta), what]]


def _value(value: Any) -> str:
    """A hyperparameter; a large matrix by its diagonal, equal values once."""
    array = np.asarray(value, dtype=float)
    if array.ndim == 0:
        return f"{float(array):.4g}"
    if array.ndim == 1 and len(array) > 1 and np.all(array == array[0]):
        return f"{array[0]:.4g} for each of {len(array)}"
    if array.ndim == 2 and len(array) > LARGEST_MATRIX:
        diagonal = np.diagonal(array)
        size = f"{len(array)} × {len(array)} matrix, diagonal from"
        return f"{size} {diagonal.min():.4g} to {diagonal.max():.4g}; fit.prior_ has all"
    if array.ndim == 1 and len(array) > 2 * LARGEST_MATRIX:
        return f"{len(array)} values from {array.min():.4g} to {array.max():.4g}; fit.prior_ has all"
    if array.ndim == 1:
        return "(" + ", ".join(f"{x:.4g}" for x in array) + ")"
    return "; ".join("(" + ", ".join(f"{x:.4g}" for x in line) + ")" for line in array)
