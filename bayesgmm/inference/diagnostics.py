"""Whether a posterior can be trusted: convergence of what does not depend on labels first, then of the relabelled parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from bayesgmm.convergence import convergence
from bayesgmm.core.covariance import CovarianceStructure
from bayesgmm.core.em import matched_distance
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.inference.identification import Identification, rarely_filled
from bayesgmm.inference.modes import ModeWeight
from bayesgmm.inference.posterior import PosteriorDraws, derived

R_HAT_LIMIT = 1.01
ESS_LIMIT = 400
DIVERGENT_LIMIT = 0.001
SWITCHING_LIMIT = 0.05
"""Share of draws with another order of the components than the one before, above which they overlap too much to be named."""

WANDERING_R_HAT = 1.05
"""R-hat of a relabelled parameter from which on, with invariants at rest, its label is taken to wander."""

E_BFMI_LIMIT = 0.3
PARETO_K_LIMIT = 0.7

LEAST_AGREEMENT = 0.95
"""Share of draws that two ways to relabel must order alike for nothing to be said."""


@dataclass(frozen=True, eq=False)
class Diagnostics:
    """Convergence diagnostics of a posterior with a verdict in plain words.

    Parameters
    ----------
    ok : bool
        Whether nothing speaks against the draws.
    labels_identified : bool
        Whether the relabelled parameters converged: if not, only label-invariant results (densities, co-clustering,
        anomaly probabilities) can be used.
    verdict : str
        One or two sentences.
    problems : tuple of str
        What speaks against the draws: the number, and what to do.
    notes : tuple of str
        What is worth knowing and no problem.
    invariants : DataFrame
        R-hat, bulk and tail ESS of label-invariant quantities.
    parameters : DataFrame
        The same for every relabelled parameter.
    r_hat, ess_bulk, ess_tail : float
        Worst over both tables.
    n_divergent : int
    e_bfmi : ndarray of shape (chains,)
    permuted_share : float
        Share of draws whose components had to be put in another order.
    chain_modes : tuple of int
        For each chain the mode of EM it stayed nearest to.
    unvisited_modes : tuple of int
        Modes within 10 nats of the best that no chain stayed near, and next to no draws were.
    pareto_k : float or None
        Tail index of the importance ratios (method "laplace").
    identified_components : tuple of int
        Components that change no places, hold rows and are the same in all modes; the verdict says what the others do.
    mode_weights : tuple of ModeWeight
        What each mode holds of the posterior, where there are several.
    modes_combined : bool
        Whether the draws of different modes make one posterior by these weights: R-hat and ESS are then found within each
        mode, R-hat is that of the worst, and 1 / Σ_m w_m² / ESS_m stands for ESS.
    relabelling_agreement : dict of str to float
        Share of draws that two ways to relabel give the same order: "mode, ecr", "mode, stephens" and "ecr, stephens"; empty for one
        component. From a sample of draws and rows.
    """

    ok: bool
    labels_identified: bool
    verdict: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    invariants: pd.DataFrame
    parameters: pd.DataFrame
    r_hat: float
    ess_bulk: float
    ess_tail: float
    n_divergent: int
    e_bfmi: FloatArray
    permuted_share: float
    chain_modes: tuple[int, ...] = ()
    unvisited_modes: tuple[int, ...] = ()
    pareto_k: float | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    identified_components: tuple[int, ...] = ()
    mode_weights: tuple[ModeWeight, ...] = ()
    modes_combined: bool = False
    relabelling_agreement: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [self.verdict]
        lines += [f"- {p}" for p in self.problems]
        lines += [f"- {n}" for n in self.notes]
        return "\n".join(lines)


def convergence_table(values: Mapping[str, FloatArray]) -> pd.DataFrame:
    """R-hat, bulk and tail ESS (Vehtari et al. 2021) of named arrays (chains, draws)."""
    if not values:
        return pd.DataFrame(columns=["ess_bulk", "ess_tail", "r_hat"], dtype=float)
    stacked = np.stack(list(values.values()))
    table = pd.DataFrame(convergence(stacked)._asdict(), index=pd.Index(list(values), name="quantity"))
    # A quantity that is the same in every draw by construction (the weight at K = 1) has nothing to converge.
    table.loc[np.ptp(stacked, axis=(1, 2)) == 0, :] = np.nan
    return table


def convergence_within(values: Mapping[str, FloatArray], groups: Sequence[tuple[float, np.ndarray]]) -> pd.DataFrame:
    """The same where groups of draws are at modes of their own: the largest R-hat, and the ESS of the weighted mean.

    Parameters
    ----------
    values : mapping of str to ndarray of shape (chains, draws)
    groups : sequence of (float, ndarray of shape (chains, L))
        Weight of each mode and the places of its draws, chains joined; none: all draws are of one.
    """
    if not groups:
        return convergence_table(values)
    # The halves of a chain that was alone at its mode stand for two.
    places = [at if len(at) > 1 else at.reshape(2, -1) for _, at in groups]
    tables = [convergence_table({name: v.reshape(-1)[at] for name, v in values.items()}) for at in places]
    share = np.array([weight for weight, _ in groups])
    share = share / share.sum()
    out = tables[0].copy()
    out["r_hat"] = np.max([table["r_hat"] for table in tables], axis=0)
    for column in ("ess_bulk", "ess_tail"):
        out[column] = 1 / np.sum([w**2 / table[column] for w, table in zip(share, tables, strict=True)], axis=0)
    return out


def label_invariants(draws: PosteriorDraws, log_posterior: FloatArray) -> dict[str, FloatArray]:
    """Quantities that do not depend on the order of the components, each (chains, draws)."""
    w, m, P = draws.weights, draws.means, draws.precision_factors
    log_det = -2 * np.sum(np.log(np.diagonal(P, axis1=-2, axis2=-1)), axis=-1)
    center = np.einsum("csk,cskj->csj", w, m)
    within = np.einsum("csk,cskij->csij", w, draws.covariances)
    deviation = m - center[:, :, None]
    total = within + np.einsum("csk,cski,cskj->csij", w, deviation, deviation)
    scale = np.sqrt(np.diagonal(total, axis1=-2, axis2=-1))
    correlation = total / scale[..., None] / scale[..., None, :]
    out = {
        "log_posterior": log_posterior,
        "log_determinant_within": np.einsum("csk,csk->cs", w, log_det),
        "log_determinant_total": np.linalg.slogdet(correlation)[1] + 2 * np.log(scale).sum(axis=-1),
        "overall_mean[0]": center[..., 0],
    }
    if w.shape[-1] > 1:
        out["largest_weight"] = w.max(axis=-1)
        out["smallest_weight"] = w.min(axis=-1)
    return out


def scalar_parameters(
    draws: PosteriorDraws, kind: CovarianceStructure, names: Sequence[str], pairs: Sequence[str]
) -> dict[str, FloatArray]:
    """Every free quantity of a summary by its name, each (chains, draws): weights, means, deviations, correlations."""
    labels = {"component": [str(k) for k in range(draws.weights.shape[-1])], "feature": names, "feature_pair": pairs}
    out: dict[str, FloatArray] = {}
    for variable, (values, dims) in derived(draws, kind).items():
        if variable == "covariances":
            continue
        for index in np.ndindex(values.shape[2:]):
            where = ", ".join(labels[d][i] for d, i in zip(dims, index, strict=True))
            out[f"{variable}[{where}]"] = values[(slice(None), slice(None), *index)]
    return out


def nearest_modes(draws: PosteriorDraws, modes: Sequence[MixtureParameters], scale: FloatArray) -> tuple[int, ...]:
    """For each chain the mode whose components its average draw matches best."""
    out = []
    for c in range(draws.n_chains):
        average = MixtureParameters(
            draws.weights[c].mean(axis=0), draws.means[c].mean(axis=0), np.median(draws.precision_factors[c], axis=0)
        )
        out.append(int(np.argmin([matched_distance(average, mode, scale) for mode in modes])))
    return tuple(out)


def diagnose(
    draws: PosteriorDraws,
    kind: CovarianceStructure,
    names: Sequence[str],
    pairs: Sequence[str],
    log_posterior: FloatArray,
    *,
    diverging: FloatArray | None = None,
    energy: FloatArray | None = None,
    permuted_share: float = 0.0,
    switching_share: float = 0.0,
    modes: Sequence[MixtureParameters] = (),
    near_modes: int = 0,
    scale: FloatArray | None = None,
    pareto_k: float | None = None,
    effective_size: float | None = None,
    target_ess: float = ESS_LIMIT,
    max_draws: int | None = None,
    stopped_early: str | None = None,
    remarks: Sequence[str] = (),
    groups: Sequence[tuple[float, np.ndarray]] = (),
    chain_modes: Sequence[int] = (),
    visited_modes: Sequence[int] = (),
    doubts: Sequence[str] = (),
    changed_places: FloatArray | None = None,
    differing: Sequence[int] = (),
    n_rows: float | None = None,
) -> Diagnostics:
    """Diagnose relabelled draws.

    Parameters
    ----------
    draws : PosteriorDraws
        Relabelled.
    kind : CovarianceStructure
    names, pairs : sequence of str
        Features and pairs of features.
    log_posterior : ndarray of shape (chains, draws)
    diverging : ndarray of shape (chains, draws), optional
    energy : ndarray of shape (chains, draws), optional
    permuted_share : float
    switching_share : float
        Share of draws whose components stand in another order than in their chain's draw before.
    modes : sequence of MixtureParameters
        Distinct modes of EM, best first.
    near_modes : int
        How many of them lie within 10 nats of the best.
    scale : ndarray of shape (D,), optional
        Standard deviations of the data.
    pareto_k, effective_size : float, optional
        Of the importance resampling, for method "laplace": draws are then independent, and R-hat is not what decides.
    target_ess : float
        Effective sample size that was asked for.
    max_draws : int, optional
        Draws per chain at which sampling ends all the same.
    stopped_early : str, optional
        Why sampling ended before its time.
    remarks : sequence of str
        What the sampler had to note.
    groups : sequence of (float, ndarray of shape (chains, L)), optional
        Weight of each mode and the places of its draws, chains joined, where these make one posterior by weights.
    chain_modes : sequence of int, optional
        The mode of each chain, where it is known; by default the one that its average draw is nearest to.
    visited_modes : sequence of int, optional
        Modes that chains went to and left again, or that are known to hold next to nothing.
    doubts : sequence of str
        What else speaks against the draws.
    changed_places : ndarray of shape (K,), optional
        Share of draws in which a component changes places.
    differing : sequence of int
        Components that are not the same in all modes.
    n_rows : float, optional
        N, or the sum of the rows' weights: by it components are empty.

    Returns
    -------
    Diagnostics
    """
    invariants = convergence_within(label_invariants(draws, log_posterior), groups)
    parameters = convergence_within(scalar_parameters(draws, kind, names, pairs), groups)
    problems: list[str] = []
    notes: list[str] = list(remarks)
    limit = min(ESS_LIMIT, target_ess)
    unvisited: tuple[int, ...] = ()
    e_bfmi = np.empty(0)
    n_divergent = 0
    identified = True
    wandering = () if changed_places is None else tuple(np.flatnonzero(changed_places > SWITCHING_LIMIT).tolist())
    if stopped_early:
        problems.append(stopped_early)
    problems += doubts
    if pareto_k is not None:
        size = float(effective_size or 0.0)
        # Draws of a poor approximation that change places are of components that overlap.
        identified = draws.weights.shape[-1] == 1 or pareto_k <= PARETO_K_LIMIT or permuted_share < 0.01
        if not pareto_k <= PARETO_K_LIMIT:
            problems.append(
                f"the Laplace approximation does not fit the posterior (Pareto k̂ = {pareto_k:.2f} > {PARETO_K_LIMIT}): "
                "use method='nuts'"
            )
        if size < limit:
            problems.append(
                f"the importance weights leave an effective sample size of {size:.0f} (< {limit:.0f}): raise draws, or use "
                "method='nuts'"
            )
    else:
        bad = invariants[invariants["r_hat"] > R_HAT_LIMIT]
        if len(bad):
            problems.append(
                f"chains disagree on {bad['r_hat'].idxmax()} (R-hat = {bad['r_hat'].max():.3f} > {R_HAT_LIMIT}), which does not "
                "depend on labels: they sit on different modes or are too short; look at modes_, raise draws and tune, "
                "or use fewer components"
            )
        worst = _largest(parameters["r_hat"])
        few = _smallest(parameters[["ess_bulk", "ess_tail"]])
        smallest = min(few, _smallest(invariants[["ess_bulk", "ess_tail"]]))
        # With the invariants at rest and a component's parameters far from it, the label wanders; a little above the
        # limit the chains are short. Separated components keep their order for the length of a chain.
        wanders = switching_share > SWITCHING_LIMIT or not worst <= WANDERING_R_HAT or few < min(100, limit)
        identified = draws.weights.shape[-1] == 1 or not wanders
        if not identified and not len(bad):
            wandering = tuple(sorted({*wandering, *_restless(parameters, draws.weights.shape[-1], min(100, limit))}))
        judged = np.isfinite(worst)
        name = parameters["r_hat"].idxmax() if judged else ""
        if not judged:
            problems.append(f"{draws.n_draws} draws per chain are too few to judge convergence: raise draws")
        elif not identified and not len(bad):
            problems.append(
                f"the components cannot be told apart from draw to draw ({name}: R-hat = {worst:.3f}, smallest ESS "
                f"{few:.0f}; {switching_share:.0%} of the draws change their order): values per component mean "
                "little; densities, co-clustering and anomaly probabilities do not depend on it. Use fewer components"
            )
        else:
            if worst > R_HAT_LIMIT and not len(bad):
                problems.append(f"R-hat of {name} is {worst:.3f} (> {R_HAT_LIMIT}): raise draws")
            if smallest < limit:
                problems.append(f"the smallest effective sample size is {smallest:.0f} (< {limit:.0f}): raise draws")
        n_draws = draws.n_draws
        if smallest >= target_ess > 0:
            notes.append(
                f"the asked effective sample size ({target_ess:.0f}) was reached with {n_draws} draws per chain"
            )
        elif target_ess > 0 and max_draws is not None and not stopped_early:
            notes.append(
                f"sampling ended at the budget of {n_draws} draws per chain (max_draws = {max_draws}) with the smallest "
                f"effective sample size at {smallest:.0f}, short of the {target_ess:.0f} asked for"
            )
        if diverging is not None:
            n_divergent = int(np.sum(diverging))
            share = n_divergent / diverging.size
            if share > DIVERGENT_LIMIT:
                problems.append(
                    f"{n_divergent} divergent transitions ({share:.2%}): parts of the posterior may be missed; raise tune or "
                    "use a stronger prior"
                )
        if energy is not None and energy.shape[1] > 3:
            e_bfmi = np.square(np.diff(energy, axis=1)).mean(axis=1) / energy.var(axis=1, ddof=1)
            if np.min(e_bfmi) < E_BFMI_LIMIT:
                problems.append(
                    f"E-BFMI = {np.min(e_bfmi):.2f} (< {E_BFMI_LIMIT}): the tails are explored slowly; raise draws"
                )
        if len(modes) and scale is not None:
            chain_modes = chain_modes or nearest_modes(draws, modes, scale)
            unvisited = tuple(m for m in range(near_modes) if m not in {*chain_modes, *visited_modes})
            if len(set(chain_modes)) > 1 and len(bad) and not visited_modes:
                where = ", ".join(f"chain {c} near mode {m}" for c, m in enumerate(chain_modes))
                problems.append(f"chains ended near different modes of EM ({where})")
            if unvisited:
                notes.append(
                    f"EM found mode{'s' * (len(unvisited) > 1)} {', '.join(map(str, unvisited))} within 10 nats of the best; "
                    "no chain stayed there (see modes_)"
                )
    if permuted_share > 0:
        notes.append(f"{permuted_share:.1%} of the draws had their components put back in order")
    found = Identification(
        draws.weights.shape[-1],
        wandering,
        tuple(differing),
        {} if n_rows is None or draws.weights.shape[-1] == 1 else rarely_filled(draws.weights, n_rows),
    )
    both = pd.concat([invariants, parameters])
    r_hat = _largest(both["r_hat"])
    bulk, tail = _smallest(both["ess_bulk"]), _smallest(both["ess_tail"])
    return Diagnostics(
        ok=not problems,
        labels_identified=identified and not differing,
        verdict=f"{_verdict(problems, r_hat, bulk, tail, pareto_k, effective_size, identified)} {found}".rstrip(),
        problems=tuple(problems),
        notes=tuple(notes),
        invariants=invariants,
        parameters=parameters,
        r_hat=r_hat,
        ess_bulk=bulk,
        ess_tail=tail,
        n_divergent=n_divergent,
        e_bfmi=e_bfmi,
        permuted_share=permuted_share,
        chain_modes=tuple(chain_modes),
        unvisited_modes=unvisited,
        pareto_k=pareto_k,
        identified_components=found.identified,
        modes_combined=bool(groups),
    )


def _restless(parameters: pd.DataFrame, n_components: int, fewest: float) -> list[int]:
    """Components whose weight or means have an R-hat or an effective sample size of a label that wanders."""
    out = []
    for k in range(n_components):
        own = parameters[[name == f"weights[{k}]" or name.startswith(f"means[{k}, ") for name in parameters.index]]
        if not _largest(own["r_hat"]) <= WANDERING_R_HAT or _smallest(own[["ess_bulk", "ess_tail"]]) < fewest:
            out.append(k)
    return out


def _largest(values: pd.Series) -> float:
    """Largest R-hat; infinite where the draws are too few for any."""
    known = values.dropna()
    return float(known.max()) if len(known) else float("inf")


def _smallest(values: pd.DataFrame | pd.Series) -> float:
    """Smallest effective sample size; 0 where the draws are too few for any."""
    known = values.to_numpy().ravel()
    known = known[~np.isnan(known)]
    return float(known.min()) if len(known) else 0.0


def _verdict(
    problems: Sequence[str],
    r_hat: float,
    bulk: float,
    tail: float,
    pareto_k: float | None,
    effective_size: float | None,
    identified: bool,
) -> str:
    if pareto_k is not None:
        numbers = f"Pareto k̂ = {pareto_k:.2f}, effective sample size {effective_size:.0f}"
    else:
        numbers = f"largest R-hat {r_hat:.3f}, smallest ESS {bulk:.0f} (bulk) and {tail:.0f} (tail)"
    if not problems:
        return f"The draws can be trusted: {numbers}."
    if not identified:
        return f"The draws cannot be trusted component by component: {numbers}."
    return f"The draws are not to be trusted yet: {numbers}."
