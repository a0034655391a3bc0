"""Draws as they come from a sampler: constrained, put in one order of the components, and judged, within modes where these are separate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.core import em
from bayesgmm.core.parameters import FloatArray
from bayesgmm.inference import posterior
from bayesgmm.inference.compiled import MixturePosterior
from bayesgmm.inference.diagnostics import LEAST_AGREEMENT, WANDERING_R_HAT, Diagnostics, diagnose
from bayesgmm.inference.identification import changed_places
from bayesgmm.inference.laplace import LaplaceApproximation
from bayesgmm.inference.modes import (
    NOTABLE,
    VISITED,
    ModeCells,
    ModeWeight,
    Visits,
    differing_components,
    laplace_weights,
    visits,
    weights_of_draws,
)
from bayesgmm.inference.nuts import Chains
from bayesgmm.inference.posterior import PosteriorDraws
from bayesgmm.inference.relabel import permuted_share, relabel_within, switching_share
from bayesgmm.inference.relabel_rows import agreement, relabel_by

if TYPE_CHECKING:
    from bayesgmm.inference.sampling import Settings, Task

_FIELDS = {
    "weights": "weights",
    "means": "means",
    "precision_factors": "precision_factors",
    "scale_factor": "scale_factors",
}


@dataclass(frozen=True, eq=False)
class Setup:
    """What is sampled, with its modes in the order that the result has them.

    Parameters
    ----------
    task : Task
        Its modes are those that hold mass, best first, then the others.
    settings : Settings
    cells : ModeCells
        Of the modes that hold mass.
    given : Task
        As it came.
    merged : tuple of EMRun
        Modes of EM that climbed to the mode of another.
    met : tuple of Mode
        Modes that chains led to.
    """

    task: Task
    settings: Settings
    cells: ModeCells
    given: Task
    merged: tuple[em.EMRun, ...]
    met: tuple[em.Mode, ...] = ()

    @property
    def approximations(self) -> Sequence[LaplaceApproximation]:
        """Of the modes that hold mass."""
        return self.cells.approximations

    @property
    def modes(self) -> tuple[em.EMRun, ...]:
        """All modes, in order."""
        return (*self.task.modes, *self.merged)

    @property
    def mode_order(self) -> tuple[int, ...]:
        """Their places among the given ones, then among those met."""
        known = [id(run) for run in (*self.given.modes, *(mode.run for mode in self.met))]
        return tuple(known.index(id(run)) for run in self.modes)


@dataclass(frozen=True, eq=False)
class Judged:
    """Relabelled draws, what the diagnostics say of them, and where they were.

    Parameters
    ----------
    raw, draws : PosteriorDraws
        As sampled, and in one order.
    diagnostics : Diagnostics
    permutations : ndarray of shape (chains · draws, K)
        That put the components in that order.
    seen : Visits or None
        None for a single mode.
    separate : bool
        Whether the diagnostics are those within the modes.
    """

    raw: PosteriorDraws
    draws: PosteriorDraws
    diagnostics: Diagnostics
    permutations: np.ndarray
    seen: Visits | None
    separate: bool


def judge(
    compiled: MixturePosterior,
    setup: Setup,
    chains: Chains,
    *,
    pareto_k: float | None = None,
    effective_size: float | None = None,
    notes: Sequence[str] = (),
    separate: bool | None = None,
    weights: Sequence[ModeWeight] = (),
    doubts: Sequence[str] = (),
) -> Judged:
    """Constrain, relabel and diagnose draws.

    ``separate`` says whether they are judged within the modes, which then have ``weights`` (Laplace's, until others are known). Unless it
    is given they are where chains seldom went from mode to mode; if some did, only if the chains then agree.

    Parameters
    ----------
    compiled : MixturePosterior
        The posterior that was sampled.
    setup : Setup
    chains : Chains
    pareto_k, effective_size : float, optional
        Of importance resampling.
    notes : sequence of str
        What the sampler had to note.
    separate : bool, optional
    weights : sequence of ModeWeight
    doubts : sequence of str
        What else speaks against the draws.

    Returns
    -------
    Judged
    """
    C, S, P = chains.theta.shape
    parts = compiled.constrain(chains.theta.reshape(-1, P))
    raw = PosteriorDraws(**{_FIELDS[name]: part.reshape(C, S, *part.shape[1:]) for name, part in parts.items()})
    seen = visits(setup.cells, raw) if len(setup.cells) > 1 else None
    try_it = seen is not None and pareto_k is None and setup.settings.mode_weights is not None and seen.apart
    for within in (try_it, False) if separate is None else (separate,):
        permutations = _orders(setup, raw, seen if within else None)
        draws = raw.permuted(permutations)
        diagnostics = _diagnosed(
            setup, chains, draws, permutations, seen, within, weights, pareto_k, effective_size, notes, doubts
        )
        if (
            seen is not None
            and within
            and (separate or seen.stayed or diagnostics.invariants["r_hat"].max() <= WANDERING_R_HAT)
        ):
            break
    return Judged(raw, draws, diagnostics, permutations, seen, within)


def _diagnosed(
    setup: Setup,
    chains: Chains,
    draws: PosteriorDraws,
    permutations: np.ndarray,
    seen: Visits | None,
    within: bool,
    weights: Sequence[ModeWeight],
    pareto_k: float | None,
    effective_size: float | None,
    notes: Sequence[str],
    doubts: Sequence[str],
) -> Diagnostics:
    """Diagnostics of relabelled draws, within modes or of all together."""
    task, settings, cells = setup.task, setup.settings, setup.cells
    groups: list[tuple[float, np.ndarray]] = []
    differing: list[int] = []
    if seen is not None and within:
        weights = weights or laplace_weights(cells, seen)
        groups = [(w.weight, seen.rectangle(w.mode)) for w in weights if w.mode in seen.visited]
    if seen is not None and (within or pareto_k is not None):
        weights = weights or weights_of_draws(cells, seen, effective_size)
        notable = [w.mode for w in weights if w.weight >= NOTABLE]
        differing = differing_components(draws, np.where(np.isin(seen.nearest, notable), seen.nearest, -1))
    ordered = permutations.reshape(draws.weights.shape)
    return diagnose(
        draws,
        task.kind,
        task.names,
        posterior.feature_pairs(task.names),
        chains.stats["lp"],
        diverging=chains.stats.get("diverging"),
        energy=chains.stats.get("energy"),
        permuted_share=permuted_share(permutations),
        switching_share=switching_share(ordered),
        modes=[run.parameters for run in task.modes],
        near_modes=len(cells),
        scale=np.std(task.X, axis=0) if task.blocked is None else task.problem.feature_scale(),
        pareto_k=pareto_k,
        effective_size=effective_size,
        target_ess=settings.target_ess,
        max_draws=settings.max_draws,
        stopped_early=interruption(chains, settings),
        remarks=notes,
        groups=groups,
        chain_modes=() if seen is None else seen.owners,
        visited_modes=_without_mention(seen, weights),
        doubts=doubts,
        changed_places=_unsettled(ordered, pareto_k, seen),
        differing=differing,
        n_rows=task.problem.total_weight,
    )


def _without_mention(seen: Visits | None, weights: Sequence[ModeWeight]) -> list[int]:
    """Modes that chains went to and left again, and those that are known to hold next to nothing."""
    if seen is None:
        return []
    light = [w.mode for w in weights if w.method == "importance" and w.weight + w.error < VISITED]
    return [*light, *(() if seen.stayed else seen.visited)]


def _unsettled(permutations: np.ndarray, pareto_k: float | None, seen: Visits | None) -> FloatArray:
    """Share of the draws in which each component changes places: from draw to draw, or from its mode's for independent ones."""
    if pareto_k is None:
        return changed_places(permutations)
    if seen is None:
        return np.asarray(np.mean(permutations != np.arange(permutations.shape[2]), axis=(0, 1)))
    # Each mode's approximation has an order of its own.
    changed = np.zeros(seen.orders.shape, dtype=bool)
    for mode in np.unique(seen.nearest).tolist():
        own = seen.nearest == mode
        orders, times = np.unique(seen.orders[own], axis=0, return_counts=True)
        changed[own] = seen.orders[own] != orders[times.argmax()]
    return np.asarray(changed.mean(axis=(0, 1)))


def _orders(setup: Setup, raw: PosteriorDraws, seen: Visits | None) -> np.ndarray:
    """Permutations (chains · draws, K) to the first mode's order, by way of that of the nearest mode where modes are separate."""
    task, method = setup.task, setup.settings.relabelling
    blocks = setup.cells.interchangeable
    parts = (*raw.flat(), raw.covariances.reshape(-1, *raw.covariances.shape[2:]))

    def by(chosen: Any, mode: int) -> np.ndarray:
        w, m, P, sigma = (part[chosen] for part in parts)
        reference = _reference(task, mode)
        return relabel_by(method, task.X, (w, m, P), sigma, reference, sample_weight=task.sample_weight, blocks=blocks)

    if seen is None:
        return by(slice(None), 0)
    out = np.empty(parts[0].shape, dtype=np.int64)
    nearest = seen.nearest.reshape(-1)
    for mode in np.unique(nearest).tolist():
        weights, means, sigma = _reference(task, mode)
        aligned = relabel_within(blocks, weights[None], means[None], sigma[None], _reference(task, 0))[0]
        chosen = nearest == mode
        out[chosen] = by(chosen, mode)[:, aligned]
    return out


def _reference(task: Task, mode: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    at = task.modes[mode].parameters
    return at.weights, at.means, at.covariances


def with_agreement(setup: Setup, judged: Judged) -> Judged:
    """Say how far three ways to relabel agree; of separate modes, for each and on average.

    Parameters
    ----------
    setup : Setup
    judged : Judged

    Returns
    -------
    Judged
        With ``relabelling_agreement``, and a note where some two of them differ in more than a few draws.
    """
    K = judged.raw.weights.shape[2]
    if K == 1:
        return judged
    task, raw = setup.task, judged.raw
    flat, nearest = raw.flat(), None
    if judged.seen is not None and judged.separate:
        nearest = judged.seen.nearest.reshape(-1)
    found, sizes = [], []
    for mode in (0,) if nearest is None else np.unique(nearest).tolist():
        own = slice(None) if nearest is None else nearest == mode
        w, m, P = (part[own] for part in flat)
        v, blocks = task.sample_weight, setup.cells.interchangeable
        reference = _reference(task, mode)
        found.append(agreement(task.X, (w, m, P), reference, sample_weight=v, blocks=blocks))
        sizes.append(len(w))
    shares = {name: float(np.average([each[name] for each in found], weights=sizes)) for name in found[0]}
    notes = judged.diagnostics.notes
    if min(shares.values()) < LEAST_AGREEMENT:
        said = ", ".join(f"{name.replace(', ', ' and ')} {share:.0%}" for name, share in shares.items())
        notes = (
            *notes,
            f"ways to relabel agree on part of the draws ({said}): values per component hang on the choice",
        )
    return replace(judged, diagnostics=replace(judged.diagnostics, notes=notes, relabelling_agreement=shares))


def interruption(chains: Chains, settings: Settings) -> str | None:
    """What was kept of an interrupted run, in words."""
    if not chains.interrupted:
        return None
    n_chains, n_draws = chains.theta.shape[:2]
    return f"stopped by the user: {n_chains} chains with {n_draws} of {settings.draws} draws were kept"
