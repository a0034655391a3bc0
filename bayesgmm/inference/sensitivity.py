"""How the evidence moves when the prior is varied: the draws reweighted, or a refit where they cannot stand for the other posterior.

With prior and likelihood as densities of the same θ, m'/m = ∫ p'(θ) L(θ) dθ / m = E[p'(θ)/p(θ)] over the posterior under p. The mean is
taken over Pareto-smoothed ratios; their k̂ says whether it can be trusted.

References
----------
Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72).
Kallioinen, Paananen, Bürkner & Vehtari (2024), Detecting and diagnosing prior and likelihood sensitivity with power-scaling,
Statistics and Computing 34, 57.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from bayesgmm.core.covariance import structure
from bayesgmm.core.hierarchical import HierarchicalPrior, Prior
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.separation import SeparationPrior
from bayesgmm.inference.bridge import Half
from bayesgmm.inference.diagnostics import PARETO_K_LIMIT, Diagnostics
from bayesgmm.inference.evidence import log_evidence
from bayesgmm.inference.posterior import PosteriorDraws
from bayesgmm.inference.sampling import EFFECTIVE_SIZE

MEAN_FACTORS, SCALE_FACTORS = (0.1, 10.0), (0.5, 2.0)
"""By what the prior's precision of the means and its scale of the covariances are multiplied."""

VARIATIONS = (
    *(f"precision of the means × {f:g}" for f in MEAN_FACTORS),
    *(f"scale × {f:g}" for f in SCALE_FACTORS),
)

REFIT_DRAWS = 300
"""Draws of each chain of a refit, where the fit has no fewer."""


@dataclass(frozen=True)
class EvidenceChange:
    """Log evidence under another prior less that under the fit's own, in nats.

    Parameters
    ----------
    change : float
    standard_error : float
        Monte Carlo standard error of ``change``.
    pareto_k : float
        k̂ of the ratios of the two priors over the draws: above 0.7 ``change`` is not to be trusted. −inf where they are all equal.
    """

    change: float
    standard_error: float
    pareto_k: float

    @property
    def reliable(self) -> bool:
        """Whether k̂ is at most 0.7."""
        return self.pareto_k <= PARETO_K_LIMIT


def varied_priors(prior: Prior) -> dict[str, Prior]:
    """The variations of a resolved prior that evidences are looked at under, by name (:data:`VARIATIONS`).

    Parameters
    ----------
    prior : ConjugatePrior, HierarchicalPrior or SeparationPrior
        Resolved.

    Returns
    -------
    dict of str to prior
        κ₀ × 0.1 and × 10, Λ₀ × ½ and × 2. Their analogues for a hierarchical prior: B₀⁻¹ by the same factors, and G₀ divided by
        those of the scale: the Σ_k go with C₀, and C₀ with G₀⁻¹. For a separation prior s⁻² and the squared scale of the deviations.
    """
    if isinstance(prior, HierarchicalPrior):
        spread, rate = np.asarray(prior.mean_covariance), np.asarray(prior.hyper_rate)
        priors: list[Prior] = [replace(prior, mean_covariance=spread / f) for f in MEAN_FACTORS]
        priors += [replace(prior, hyper_rate=rate / f) for f in SCALE_FACTORS]
    elif isinstance(prior, SeparationPrior):
        of_means, deviations = np.asarray(prior.mean_scale), np.asarray(prior.deviation_scale)
        priors = [replace(prior, mean_scale=of_means / np.sqrt(f)) for f in MEAN_FACTORS]
        priors += [replace(prior, deviation_scale=deviations * np.sqrt(f)) for f in SCALE_FACTORS]
    else:
        priors = [replace(prior, mean_precision=prior.mean_precision * f) for f in MEAN_FACTORS]
        priors += [replace(prior, scale=prior.resolved_scale * f) for f in SCALE_FACTORS]
    return dict(zip(VARIATIONS, priors, strict=True))


def evidence_change(post: Any, prior: Prior) -> EvidenceChange:
    """How much the log evidence of a fit changes under another prior, from its draws alone.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted.
    prior : ConjugatePrior, HierarchicalPrior or SeparationPrior
        Resolved; of the same class as the fit's.

    Returns
    -------
    EvidenceChange

    Notes
    -----
    The rate C₀ of a hierarchical prior is integrated out of both densities, so that its draws add nothing to the variance.

    The mean of an empty component is a draw from its prior, and its ratio to a prior of a tenth of the precision has k = 0.9. Where
    components are seldom empty k̂ may not show this; the change is then too low by some hundredths of a nat.
    """
    from bayesgmm.pointwise import psis_weights

    draws, name = post._draws, structure(post.covariance_type).name
    at = (*draws.flat(), name)
    ratios = np.asarray(prior.log_density_from_factors(*at)) - np.asarray(post.prior_.log_density_from_factors(*at))
    S, first, counts = len(ratios), np.arange(len(ratios)), np.ones(len(ratios))
    independent = post.diagnostics_.pareto_k is not None
    if independent:
        # Resampled draws: the copies of one are one.
        _, first, copies = np.unique(ratios, return_index=True, return_counts=True)
        counts = copies.astype(float)
    half = Half(ratios[first, None], ratios[first], counts, 0 if independent else draws.n_chains)
    size = half.effective_size(np.exp(ratios[first] - ratios.max()))
    log_weights, pareto_k = (found[0] for found in psis_weights(ratios[None], min(1.0, size / S)))
    # Smoothing leaves the smallest ratio alone: what it lost to make the weights sum to 1 is the log of their sum.
    smallest = int(np.argmin(ratios))
    change = float(ratios[smallest] - log_weights[smallest] - np.log(S))
    variance = half.mean_and_variance(S * np.exp(log_weights[first]))[1]
    if independent:
        # S draws resampled of 2 S proposals: what their weights were worth, and that half of them were left out.
        variance *= max(1.0, S / float(post.idata_.attrs.get(EFFECTIVE_SIZE, S)) + 0.5)
    # Beyond k̂ = ½ the ratios have no variance, and the error of their mean falls with the draws as S^(k̂ − 1), not S^(−½).
    slower = size ** float(np.clip(pareto_k - 0.5, 0.0, 0.5))
    return EvidenceChange(change, slower * float(np.sqrt(variance)), float(pareto_k))


@dataclass(frozen=True, eq=False)
class _Refit:
    """What :func:`log_evidence` reads of a fit."""

    _X: FloatArray
    _sample_weight: FloatArray | None
    covariance_type: str
    prior_: Prior
    modes_: tuple[Any, ...]
    _draws: PosteriorDraws
    idata_: Any
    diagnostics_: Diagnostics


def change_by_refit(post: Any, prior: Prior, random_state: int | np.random.Generator = 0) -> EvidenceChange:
    """The same from a new fit under the other prior, by the same method, started from the modes of the first.

    Where draws under p cannot stand for those under p', the reverse may well be: the wider of two priors covers the narrower. So the
    new draws are reweighted back to the fit's own prior; where that fails too, the new fit's evidence is taken by bridge sampling.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted.
    prior : ConjugatePrior, HierarchicalPrior or SeparationPrior
        Resolved.
    random_state : int or numpy.random.Generator, default 0

    Returns
    -------
    EvidenceChange
        ``pareto_k`` is that of the way back; −inf where it was not needed. Its error after bridge sampling is that of both evidences.

    Raises
    ------
    ValueError
        As :func:`bayesgmm.inference.evidence.log_evidence`.
    SamplingInterrupted
        If the user stopped it.
    """
    from bayesgmm.inference.refit import FittedModel, refit

    rng = np.random.default_rng(random_state)
    names = tuple(str(name) for name in post.idata_["posterior"]["feature"].values)
    model = FittedModel(structure(post.covariance_type), prior, tuple(post.modes_), names, post.method_)
    tune = 200 if isinstance(post.tune, str) else int(post.tune)
    draws = min(REFIT_DRAWS, post._draws.n_draws) if post.method_ == "nuts" else post._draws.n_draws
    result = refit(model, post._X, post._sample_weight, rng, draws, post._draws.n_chains, tune, post.cores)
    fit = _Refit(
        post._X,
        post._sample_weight,
        post.covariance_type,
        prior,
        tuple(SimpleNamespace(run=run) for run in result.modes),
        result.draws,
        result.idata,
        result.diagnostics,
    )
    back = evidence_change(fit, post.prior_)
    if back.reliable:
        return replace(back, change=-back.change)
    ours, theirs = log_evidence(post, random_state=rng), log_evidence(fit, random_state=rng)
    error = float(np.hypot(ours.standard_error, theirs.standard_error))
    return EvidenceChange(theirs.log_evidence - ours.log_evidence, error, -np.inf)
