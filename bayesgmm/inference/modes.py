"""Posterior mass of separate modes, and draws of chains that stayed at different ones combined by it.

Chains that seldom go from mode to mode tell what each mode looks like and little of how much of the posterior it holds: about as many
draws come from a mode as chains were begun there. Here every point of the parameter space belongs to the mode that it is nearest
to, in whatever order of its components and in the divergence that draws are relabelled by (:mod:`bayesgmm.inference.relabel`). The
integral of the posterior over such a cell is estimated by bridge sampling from the draws there; where there are none, by importance
sampling from the Laplace approximation. The cells are all of the space, so that the integrals' shares are the posterior's own, and
draws taken in these shares are draws of the posterior.

Stacking weighs the modes by how well their mixture predicts rows that are left out (Yao, Vehtari & Gelman 2022): not what the
posterior says, but a better forecast where the model is wrong.

References
----------
Frühwirth-Schnatter, S. (2004). Estimating marginal likelihoods for mixture and Markov switching models using bridge sampling
techniques. Econometrics Journal 7, 143–167.
Yao, Y., Vehtari, A. & Gelman, A. (2022). Stacking for non-mixing Bayesian computations: the curse and blessing of multimodal
posteriors. Journal of Machine Learning Research 23(79), 1–45.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaln, logsumexp

from bayesgmm.core import kernel
from bayesgmm.core.classes import ClassLayout
from bayesgmm.core.parameters import FloatArray, covariances_from_factors
from bayesgmm.inference.bridge import Half
from bayesgmm.inference.compiled import MixturePosterior
from bayesgmm.inference.folding import ComponentBlocks
from bayesgmm.inference.laplace import LaplaceApproximation, log_densities
from bayesgmm.inference.posterior import PosteriorDraws
from bayesgmm.inference.relabel import nearest_reference

if TYPE_CHECKING:
    import pandas as pd

STAYED = 0.95
"""Share of its draws that a chain has at one mode if it stayed there."""

FEW_CHANGES = 100
"""Effective sample size of a mode's share of the draws below which the chains do not tell what the mode holds."""

FEW_VISITS = 30
"""Visits of chains to a mode below which the same is true: few visits may last long by chance."""

SHORTEST_STAY = 20
"""Draws that a chain must have at a mode for them to count; and a quarter of what the chain that was there most has."""

LARGEST_WEIGHT_ERROR = 0.05
"""Standard error of a mode's weight up to which draws are combined by the weights."""

LARGEST_UNSEEN = 0.05
"""Weight of the modes without draws up to which the others are combined without them."""

VISITED = 0.01
"""Share of all draws that must be at a mode for it to be visited, where chains go from mode to mode."""

NOTABLE = 0.05
"""Weight from which on a mode counts for whether components are the same in all."""

NEGLIGIBLE = 1e-3
"""Weight by Laplace's approximation below which a mode without draws is given no other."""

N_PROPOSALS = 1000
"""Draws of a Laplace approximation that the mass of a mode without chains is found from."""

N_BOOTSTRAP = 100
"""Bayesian bootstraps of the rows that the errors of stacking weights are found from."""

STACKED_DRAWS = 1000
"""Draws of a mode, evenly spaced, that its leave-one-out densities are made from."""

N_NOISE = 4000
"""Draws of the log masses that the errors of the weights are found from."""

BLOCK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class ModeWeight:
    """How much of the posterior a mode holds.

    Parameters
    ----------
    mode : int
        Its place in ``modes_``.
    weight, error : float
        Share and its standard error. By ``method`` "stacking", weight in the predictive mixture.
    log_mass, log_mass_error : float
        Log integral of prior times likelihood over the part of the parameters that is nearest to this mode, in all orders of the
        components, with its standard error; NaN where it was not needed.
    laplace : float
        The same by Laplace's approximation.
    method : {"bridge", "importance", "laplace", "draws", "stacking"}
        Where the weight comes from: bridge sampling; importance sampling from the Laplace approximation; that approximation alone;
        the share of the draws, where these go from mode to mode; stacking.
    chains : tuple of int
        Chains that stayed there.
    """

    mode: int
    weight: float
    error: float
    log_mass: float
    log_mass_error: float
    laplace: float
    method: str
    chains: tuple[int, ...] = ()


class ModeCells:
    """The parameter space cut into what is nearest to each mode.

    Parameters
    ----------
    posterior : MixturePosterior
    approximations : sequence of LaplaceApproximation
    """

    def __init__(self, posterior: MixturePosterior, approximations: Sequence[LaplaceApproximation]) -> None:
        self.posterior, self.approximations = posterior, approximations
        at = [posterior.constrain(a.center) for a in approximations]
        inputs = getattr(posterior, "inputs", None)  # None under a prior of the user's own
        classes: ClassLayout | None = None if inputs is None else inputs.classes
        self.interchangeable = (slice(0, len(at[0]["weights"])),) if classes is None else tuple(classes.blocks)
        self.references = [
            (p["weights"], p["means"], covariances_from_factors(p["precision_factors"][None])[0]) for p in at
        ]

    def __len__(self) -> int:
        return len(self.references)

    @property
    def comparable(self) -> bool:
        """Whether components that may change places have the same prior, so that all orders of a mode hold the same mass."""
        alpha = self.posterior.inputs.weight_concentration
        return all(bool(np.ptp(alpha[block]) <= 1e-12 * alpha[block].max()) for block in self.interchangeable)

    @property
    def log_copies(self) -> float:
        """Log of the number of orders of the components that look the same to the posterior."""
        return float(sum(gammaln(block.stop - block.start + 1) for block in self.interchangeable))

    def of(self, weights: FloatArray, means: FloatArray, factors: FloatArray) -> tuple[np.ndarray, np.ndarray]:
        """Nearest mode (S,) of draws, and the order (S, K) that puts them in that mode's."""
        sigma = covariances_from_factors(factors)
        return nearest_reference(self.interchangeable, weights, means, sigma, self.references)

    def of_points(self, theta: FloatArray) -> tuple[np.ndarray, np.ndarray]:
        """The same of points (S, P); −1 where a point has no number for what it stands for."""
        parts = self.posterior.constrain(theta)
        at = [parts[name] for name in ("weights", "means", "precision_factors")]
        fine = np.all([np.isfinite(part).reshape(len(theta), -1).all(axis=1) for part in at], axis=0)
        fine &= np.diagonal(at[2], axis1=2, axis2=3).min(axis=(1, 2)) > 0
        nearest = np.full(len(theta), -1)
        orders = np.tile(np.arange(at[0].shape[1]), (len(theta), 1))
        if fine.any():
            nearest[fine], orders[fine] = self.of(*(part[fine] for part in at))
        return nearest, orders

    def density_within(self, m: int, theta: FloatArray, as_it_stands: bool = False) -> FloatArray:
        """Log posterior of points (S, P) nearest to mode m, −inf elsewhere; ``as_it_stands``: and in its own order alone."""
        nearest, orders = self.of_points(theta)
        inside = nearest == m
        if as_it_stands:
            inside &= np.all(orders == np.arange(orders.shape[1]), axis=1)
        out = np.full(len(theta), -np.inf)
        if inside.any():
            out[inside] = log_densities(self.posterior, theta[inside])
        return np.where(np.isfinite(out), out, -np.inf)


@dataclass(frozen=True, eq=False)
class Visits:
    """Where the draws of each chain were.

    Parameters
    ----------
    nearest : ndarray of shape (chains, draws), int
        The mode that each draw is nearest to.
    orders : ndarray of shape (chains, draws, K), int
        What puts it in the order of that mode.
    n_modes : int
    """

    nearest: np.ndarray
    orders: np.ndarray
    n_modes: int

    @property
    def totals(self) -> FloatArray:
        """Share of all draws at each mode, (M,)."""
        return np.bincount(self.nearest.ravel(), minlength=self.n_modes) / self.nearest.size

    @property
    def owners(self) -> tuple[int, ...]:
        """The mode that most draws of each chain are nearest to."""
        return tuple(int(np.bincount(own, minlength=self.n_modes).argmax()) for own in self.nearest)

    def members(self, m: int) -> dict[int, np.ndarray]:
        """Draws at mode m by the chains that stayed there: places among all draws, chains joined."""
        S = self.nearest.shape[1]
        found = {c: np.flatnonzero(own == m) + c * S for c, own in enumerate(self.nearest)}
        least = max(SHORTEST_STAY, max(map(len, found.values())) / 4)
        return {c: at for c, at in found.items() if len(at) >= least}

    def chains(self, m: int) -> tuple[int, ...]:
        """Chains that stayed at mode m."""
        return tuple(self.members(m))

    def rectangle(self, m: int) -> np.ndarray:
        """Places (chains, L) of as many draws of each of these chains, evenly spaced, in their order; L is even."""
        members = list(self.members(m).values())
        L = min(map(len, members)) // 2 * 2
        return np.stack([at[np.linspace(0, len(at) - 1, L).round().astype(int)] for at in members])

    @property
    def visited(self) -> tuple[int, ...]:
        """Modes that hold draws worth speaking of, in order."""
        return tuple(m for m in range(self.n_modes) if self.totals[m] >= VISITED and self.members(m))

    def effective_size(self, m: int) -> float:
        """Number of independent draws that the share of a mode is worth; 0 where each chain is at one mode all the time."""
        here = (self.nearest == m) * 1.0
        return Half(np.empty(0), np.empty(0), np.ones(here.size), len(here)).effective_size(here.ravel())

    def n_visits(self, m: int) -> int:
        """How often a chain came to a mode, or began there."""
        here = np.pad(self.nearest == m, ((0, 0), (1, 0)))
        return int(np.sum(here[:, 1:] & ~here[:, :-1]))

    @property
    def stayed(self) -> bool:
        """Whether every chain had nearly all of its draws at one mode."""
        owners = np.array(self.owners)[:, None]
        return bool(np.all(np.mean(self.nearest == owners, axis=1) >= STAYED))

    @property
    def apart(self) -> bool:
        """Whether chains go from mode to mode too seldom for their draws to tell what each mode holds."""
        several = self.visited if len(self.visited) > 1 else ()
        return any(self.n_visits(m) < FEW_VISITS or self.effective_size(m) < FEW_CHANGES for m in several)


def visits(cells: ModeCells, draws: PosteriorDraws) -> Visits:
    """Find out which mode each draw is nearest to."""
    nearest, orders = cells.of(*draws.flat())
    shape = (draws.n_chains, draws.n_draws)
    return Visits(nearest.reshape(shape), orders.reshape(*shape, -1), len(cells))


@dataclass(frozen=True)
class _Mass:
    log_mass: float
    error: float
    method: str
    doubts: tuple[str, ...] = ()


def mode_masses(
    cells: ModeCells, seen: Visits, draws: PosteriorDraws, lp: FloatArray, rng: np.random.Generator
) -> tuple[list[ModeWeight], list[str]]:
    """Mass of every mode, from the draws of the chains that stayed there or from its Laplace approximation.

    Parameters
    ----------
    cells : ModeCells
    seen : Visits
        Of chains that seldom went from mode to mode.
    draws : PosteriorDraws
        As sampled.
    lp : ndarray of shape (chains, draws)
        Log posterior density of each, in the coordinates of ``cells.posterior``.
    rng : numpy.random.Generator

    Returns
    -------
    weights : list of ModeWeight
    doubts : list of str
        What speaks against them.
    """
    symmetric = len(cells.interchangeable) == 1
    at_modes = np.array([a.log_evidence for a in cells.approximations]) + cells.log_copies
    by_laplace = np.exp(at_modes - logsumexp(at_modes))
    masses: list[_Mass] = []
    for m in range(len(cells)):
        halves = _halves(cells, seen, draws, lp, m) if symmetric and m in seen.visited else None
        if halves is not None:
            masses.append(_bridged(cells, halves, m, rng))
        elif m in seen.visited or by_laplace[m] > NEGLIGIBLE:
            masses.append(_by_importance(cells, m, rng))
        else:
            masses.append(_Mass(float(at_modes[m]), 1.0, "laplace"))
    logs, errors = np.array([mass.log_mass for mass in masses]), np.array([mass.error for mass in masses])
    weights, weight_errors = shares_with_errors(logs, errors)
    doubts = [f"mode {m}: {doubt}" for m, mass in enumerate(masses) for doubt in mass.doubts]
    if not cells.comparable:
        doubts.append(
            "the prior's weight_concentration differs between components, so that the orders of a mode hold unlike masses"
        )
    found = [
        ModeWeight(
            m,
            float(weights[m]),
            float(weight_errors[m]),
            mass.log_mass,
            mass.error,
            float(at_modes[m]),
            mass.method,
            seen.chains(m) if m in seen.visited else (),
        )
        for m, mass in enumerate(masses)
    ]
    return found, doubts


def laplace_weights(cells: ModeCells, seen: Visits) -> list[ModeWeight]:
    """Weights by Laplace's approximations alone, for a first look."""
    at_modes = np.array([a.log_evidence for a in cells.approximations]) + cells.log_copies
    weights, errors = shares_with_errors(at_modes, np.ones(len(at_modes)))
    return [
        ModeWeight(m, float(weights[m]), float(errors[m]), float(at), 1.0, float(at), "laplace", seen.chains(m))
        for m, at in enumerate(at_modes)
    ]


def shares_with_errors(log_masses: FloatArray, errors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Shares of masses of which the logarithms are known, with independent errors, and the errors of the shares.

    The errors are standard deviations over normal log masses: a linear formula would not do for large errors.
    """
    w = np.exp(log_masses - logsumexp(log_masses))
    noise = np.random.default_rng(0).standard_normal((N_NOISE, len(w)))
    logs = log_masses + errors * noise
    varied = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    return w, np.sqrt(np.mean((varied - w) ** 2, axis=0))


def hidden_modes(cells: ModeCells, seen: Visits) -> list[int]:
    """Modes that by Laplace's approximation hold part of the posterior, and that chains did not stay at."""
    at_modes = np.array([a.log_evidence for a in cells.approximations])
    weights = np.exp(at_modes - logsumexp(at_modes))
    return [m for m in range(len(cells)) if m not in seen.visited and weights[m] >= VISITED]


def _halves(cells: ModeCells, seen: Visits, draws: PosteriorDraws, lp: FloatArray, m: int) -> tuple[Half, Half] | None:
    """First and second half of the draws of each chain at mode m, as many of each; None where they are too few."""
    from bayesgmm.inference.evidence import SMALLEST_HALF

    at = seen.rectangle(m)
    each = at.shape[1] // 2
    if len(at) * each < SMALLEST_HALF:
        return None
    ordered = draws.permuted(seen.orders.reshape(seen.nearest.size, -1))

    def half(chosen: np.ndarray) -> Half:
        theta = ordered.unconstrained_by(cells.posterior, chosen)
        return Half(theta, lp.reshape(-1)[chosen], np.ones(len(chosen)), len(at))

    return half(at[:, :each].ravel()), half(at[:, each:].ravel())


def _bridged(cells: ModeCells, halves: tuple[Half, Half], m: int, rng: np.random.Generator) -> _Mass:
    from bayesgmm.inference.evidence import bridge_halves

    posterior = cells.posterior
    blocks = ComponentBlocks.of(posterior.slices, posterior.inputs.n_components, posterior.covariance_type)
    found = bridge_halves(lambda theta: cells.density_within(m, theta), blocks, cells.approximations[m], halves, rng)
    return _Mass(found.log_integral, found.standard_error, "bridge", found.problems)


def _by_importance(cells: ModeCells, m: int, rng: np.random.Generator) -> _Mass:
    """Mass of one copy of a mode from draws of its Laplace approximation, times the copies."""
    from bayesgmm.inference.diagnostics import PARETO_K_LIMIT
    from bayesgmm.pointwise import psis_weights

    mode = cells.approximations[m]
    theta = mode.center + rng.standard_normal((N_PROPOSALS, len(mode.center))) @ mode.factor.T
    ratios = cells.density_within(m, theta, as_it_stands=True) - mode.log_normal_density(theta)
    inside = np.isfinite(ratios)
    if inside.sum() < N_PROPOSALS / 10:
        return _Mass(mode.log_evidence + cells.log_copies, 1.0, "laplace")
    top = ratios[inside].max()
    values = np.where(inside, np.exp(ratios - top), 0.0)
    log_mass = float(top + np.log(values.mean()))
    error = float(values.std() / values.mean() / np.sqrt(N_PROPOSALS))
    pareto_k = float(psis_weights(ratios[inside][None])[1][0])
    if pareto_k > PARETO_K_LIMIT:
        # The draws miss the tail, and their spread does not tell by how much.
        error = max(error, abs(log_mass - mode.log_evidence), 1.0)
    return _Mass(log_mass + cells.log_copies, error, "importance")


def weights_of_draws(cells: ModeCells, seen: Visits, effective_size: float | None = None) -> list[ModeWeight]:
    """Weights of modes that the draws go between: their shares, with Monte Carlo errors.

    Parameters
    ----------
    cells : ModeCells
    seen : Visits
    effective_size : float, optional
        Of independent draws; by default it is that of each share in the chains.
    """
    at_modes = [a.log_evidence + cells.log_copies for a in cells.approximations]
    out = []
    for m in range(len(cells)):
        share = float(seen.totals[m])
        size = seen.effective_size(m) if effective_size is None else effective_size
        error = float(np.sqrt(share * (1 - share) / size)) if size > 0 else 1.0
        if effective_size is None:
            error = max(error, share * (1 - share) / np.sqrt(max(1, seen.n_visits(m))))
        chains = seen.chains(m) if effective_size is None else ()
        out.append(ModeWeight(m, share, error, np.nan, np.nan, float(at_modes[m]), "draws", chains))
    return out


def stacked(
    weights: Sequence[ModeWeight],
    seen: Visits,
    draws: PosteriorDraws,
    X: FloatArray,
    sample_weight: FloatArray | None,
    rng: np.random.Generator,
) -> list[ModeWeight]:
    """Stacking weights of the modes that chains stayed at, in the place of their shares of the posterior.

    Each mode's draws are one predictive distribution, whose leave-one-out densities come by Pareto-smoothed importance sampling; the
    weights maximise the score of the mixture (Yao, Vehtari & Gelman 2022, section 2.2). Their errors are standard deviations over
    Bayesian bootstraps of the rows.

    Parameters
    ----------
    weights : sequence of ModeWeight
        By evidence.
    seen : Visits
    draws : PosteriorDraws
    X : ndarray of shape (N, D)
    sample_weight : ndarray of shape (N,) or None
    rng : numpy.random.Generator

    Returns
    -------
    list of ModeWeight
        Modes without chains have weight 0.
    """
    from bayesgmm.stacking import stacking_weights

    v = np.ones(len(X)) if sample_weight is None else sample_weight
    each = np.stack([_left_out(X, seen, draws, m) for m in seen.visited], axis=1)
    found = stacking_weights(each, v)
    repeats = [stacking_weights(each, v * rng.standard_exponential(len(X))) for _ in range(N_BOOTSTRAP)]
    errors = np.std(repeats, axis=0, ddof=1)
    by_mode = dict(zip(seen.visited, zip(found, errors, strict=True), strict=True))
    out = []
    for w in weights:
        weight, error = by_mode.get(w.mode, (0.0, 0.0))
        out.append(
            ModeWeight(
                w.mode, float(weight), float(error), w.log_mass, w.log_mass_error, w.laplace, "stacking", w.chains
            )
        )
    return out


def _left_out(X: FloatArray, seen: Visits, draws: PosteriorDraws, m: int) -> FloatArray:
    """Leave-one-out log densities (N,) of the rows by the draws of one mode."""
    from bayesgmm.pointwise import PointwiseCriteria

    at = np.concatenate(list(seen.members(m).values()))
    at = at[np.unique(np.linspace(0, len(at) - 1, min(len(at), STACKED_DRAWS)).round().astype(int))]
    weights, means, factors = (np.ascontiguousarray(part[at]) for part in draws.flat())
    criteria = PointwiseCriteria(r_eff=1.0)
    rows = max(1, BLOCK_ELEMENTS // len(at))
    for start in range(0, len(X), rows):
        criteria.add(
            kernel.pointwise_log_likelihood(np.ascontiguousarray(X[start : start + rows]), weights, means, factors)
        )
    return criteria.elpd_loo_i


def combined_places(seen: Visits, weights: Sequence[ModeWeight], rng: np.random.Generator) -> np.ndarray:
    """Which draws (of chains joined) make one posterior: of each mode as many as its weight says, evenly spaced.

    The draws of a mode stay in their order, so that their autocorrelation shows in the new chains; which mode comes next is a
    matter of chance.

    Parameters
    ----------
    seen : Visits
    weights : sequence of ModeWeight
        Modes without chains have no draws, whatever their weights.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (chains, draws), int
    """
    C, S = seen.nearest.shape
    share = np.array([w.weight if w.mode in seen.visited else 0.0 for w in weights])
    exact = share / share.sum() * C * S
    counts = np.floor(exact).astype(int)
    counts[np.argsort(-(exact - counts), kind="stable")[: C * S - counts.sum()]] += 1
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    out = np.empty(C * S, dtype=int)
    for m in np.flatnonzero(counts):
        own = np.concatenate(list(seen.members(int(m)).values()))
        out[labels == m] = own[((np.arange(counts[m]) + 0.5) * len(own) / counts[m]).astype(int)]
    return out.reshape(C, S)


def differing_components(draws: PosteriorDraws, nearest: np.ndarray) -> list[int]:
    """Components that are not the same from mode to mode: some mean, deviation or weight lies elsewhere.

    Parameters
    ----------
    draws : PosteriorDraws
        In one order.
    nearest : ndarray of shape (chains, draws), int
        The mode of each draw, −1 for draws that do not count.

    Returns
    -------
    list of int
        Those for which two modes differ by over 3 standard deviations within them.
    """
    deviations = np.sqrt(np.diagonal(draws.covariances, axis1=-2, axis2=-1))
    values = np.concatenate([draws.weights[..., None], draws.means, np.log(deviations)], axis=-1)
    groups = [values[nearest == m] for m in np.unique(nearest[nearest >= 0])]
    centres, spreads = (np.stack([f(group, axis=0) for group in groups]) for f in (np.median, np.std))
    apart = np.ptp(centres, axis=0) > 3 * np.sqrt(np.mean(spreads**2, axis=0))
    return [int(k) for k in np.flatnonzero(apart.any(axis=-1))]


def weights_table(weights: Sequence[ModeWeight], n_chains: int) -> pd.DataFrame:
    """Weights of the modes as a table, one row a mode; a single mode holds everything.

    Parameters
    ----------
    weights : sequence of ModeWeight
    n_chains : int

    Returns
    -------
    DataFrame
        By ``mode``: weight, error, log_mass, log_mass_error, laplace, method, chains.
    """
    import pandas as pd

    alone = ModeWeight(0, 1.0, 0.0, np.nan, np.nan, np.nan, "single", tuple(range(n_chains)))
    return pd.DataFrame([vars(w) for w in weights or (alone,)]).set_index("mode")


def in_words(weights: Sequence[ModeWeight], least: float = 0.0) -> str:
    """Weights with their errors, as ``mode 0: 0.93 ± 0.02, mode 1: …``."""
    return ", ".join(f"mode {w.mode}: {w.weight:.3f} ± {w.error:.3f}" for w in weights if w.weight >= least)
