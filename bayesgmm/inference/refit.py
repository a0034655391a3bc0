"""The posterior of the same model given other rows: started from known modes, with the prior held fixed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bayesgmm.core import em
from bayesgmm.core.covariance import CovarianceStructure
from bayesgmm.core.hierarchical import Prior
from bayesgmm.core.parameters import FloatArray
from bayesgmm.exceptions import SamplingInterrupted
from bayesgmm.inference import sampling
from bayesgmm.inference.diagnostics import Diagnostics

EM_TOL = 1e-9

R_HAT_LIMIT = 1.05
"""Of label-invariant quantities. Looser than a first fit's: densities averaged over some thousand short-chain draws need no more."""

DIVERGENT_LIMIT = 0.01
PARETO_K_LIMIT = 0.7


@dataclass(frozen=True, eq=False)
class FittedModel:
    """What a refit keeps of a fit: everything but the rows.

    Parameters
    ----------
    kind : CovarianceStructure
    prior : ConjugatePrior, HierarchicalPrior or SeparationPrior
        As resolved on the full data.
    modes : tuple of Mode
        Of EM on the full data, best first.
    names : tuple of str
        Feature names.
    method : {"nuts", "laplace"}
    """

    kind: CovarianceStructure
    prior: Prior
    modes: tuple[em.Mode, ...]
    names: tuple[str, ...]
    method: str = "nuts"


def refit(
    model: FittedModel,
    X: FloatArray,
    sample_weight: FloatArray | None,
    rng: np.random.Generator,
    draws: int = 250,
    chains: int = 4,
    tune: int = 400,
    cores: int | None = None,
    target_ess: float = 0.0,
) -> sampling.Result:
    """Sample the posterior of a fitted model given other rows.

    EM climbs from each near mode of the full data; then as in a first fit. Nothing is compiled anew.

    Parameters
    ----------
    model : FittedModel
    X : ndarray of shape (N, D)
    sample_weight : ndarray of shape (N,) or None
    rng : numpy.random.Generator
    draws : int, default 250
        Per chain.
    chains : int, default 4
    tune : int, default 400
    cores : int, optional
    target_ess : float, default 0.0
        Smallest effective sample size for whose sake sampling goes on, up to four times ``draws``.

    Returns
    -------
    Result
        Relabelled draws and their diagnostics.

    Raises
    ------
    SamplingInterrupted
        If the user stopped it: a part of the draws is of no use here.
    DegenerateFitError
        If no mode survives without the rows that were left out.
    """
    em_rng, sampler_rng = rng.spawn(2)
    runs = [m.run for m in model.modes]
    near = sampling.near_modes(runs, model.kind, model.prior, sample_weight, len(X))
    starts = [(runs[m].parameters, runs[m].covariances) for m in near]
    found = em.fit(
        X,
        len(model.modes[0].run.counts),
        model.kind.name,
        prior=model.prior.for_em.at_least_uniform(),
        sample_weight=sample_weight,
        tol=EM_TOL,
        rng=em_rng,
        starts=starts,
    )
    result = sampling.sample_posterior(
        sampling.Task(
            X=X,
            sample_weight=sample_weight,
            kind=model.kind,
            prior=model.prior,
            modes=tuple(m.run for m in found.modes),
            names=model.names,
        ),
        sampling.Settings(
            method=model.method,
            draws=draws,
            tune=tune,
            chains=chains,
            target_ess=target_ess,
            max_draws=4 * draws,
            cores=cores,
            progressbar=False,
        ),
        sampler_rng,
    )
    if result.interrupted is not None:
        raise SamplingInterrupted(f"a refit to {len(X)} rows was interrupted: {result.interrupted}")
    return result


def serious_problems(diagnostics: Diagnostics, n_draws: int) -> list[str]:
    """What makes predictive densities of a refit doubtful; labels and tails of single parameters do not matter to them.

    Parameters
    ----------
    diagnostics : Diagnostics
    n_draws : int
        In all chains.
    """
    if diagnostics.pareto_k is not None:
        if diagnostics.pareto_k <= PARETO_K_LIMIT:
            return []
        return [f"the Laplace approximation does not fit the posterior (k̂ = {diagnostics.pareto_k:.2f})"]
    found = []
    worst = float(diagnostics.invariants["r_hat"].max())
    if worst > R_HAT_LIMIT:
        found.append(f"chains disagree (R-hat = {worst:.2f} on a quantity that does not depend on labels)")
    if diagnostics.n_divergent > DIVERGENT_LIMIT * n_draws:
        found.append(f"{diagnostics.n_divergent} divergent transitions")
    return found
