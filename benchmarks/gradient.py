"""One evaluation of log posterior and gradient, beside the model that people write, compiled by PyTensor to Numba.

Both sides are evaluated at the parameters the data were simulated from, on one thread. Their priors differ, so the
check that both evaluate the same mixture is on the likelihood: the peer's own, and ours as the log posterior less log
prior and log Jacobian.
"""

from __future__ import annotations

import math

import numpy as np

from benchmarks.measure import (
    Row,
    Section,
    Truth,
    interleaved,
    limited_threads,
    seconds_per_call,
    simulate,
    size,
    speed_row,
)

CASES = ((1_000, 2, 3, 8.0), (10_000, 8, 4, 12.0), (100_000, 2, 3, 15.0))
SPREAD = 2.5
AGREEMENT = 1e-6


def _measure(X: np.ndarray, truth: Truth, target: float | None, repetitions: int, block: float) -> Row:
    from bayesgmm import ConjugatePrior
    from bayesgmm.core.parameters import factors_from_covariances
    from bayesgmm.inference.compiled import CompiledPosterior
    from benchmarks import peer

    K = len(truth.weights)
    prior = ConjugatePrior().resolve(X, K)
    posterior = CompiledPosterior.from_data(X, K, "full", prior)
    theta = posterior.unconstrain(truth.weights, truth.means, factors_from_covariances(truth.covariances))
    log_posterior, gradient = posterior.logp_and_grad(theta)
    log_prior = prior.log_density(truth.weights, truth.means, truth.covariances, "full")
    likelihood = log_posterior - float(log_prior) - float(posterior.log_jacobian(theta))

    model = peer.build_model(X, K)
    values = peer.unconstrained(truth.weights, truth.means, truth.covariances)
    peer_likelihood = peer.log_likelihood(model, values)
    function = peer.log_posterior_and_gradient(model)
    arguments = [values[variable.name] for variable in model.continuous_value_vars]
    function(*arguments)

    same = math.isclose(likelihood, peer_likelihood, rel_tol=AGREEMENT)
    ours_s, peer_s = interleaved(
        seconds_per_call(lambda: posterior.logp_and_grad(theta), block),
        seconds_per_call(lambda: function(*arguments), block),
        repetitions,
    )
    difference = abs(likelihood - peer_likelihood) / abs(peer_likelihood)
    return speed_row(
        size(*X.shape, K),
        "1 | 1",
        ours_s,
        peer_s,
        target,
        note=f"{len(gradient)} parameters; likelihoods differ by {difference:.0e}" + ("" if same else " NOT THE SAME"),
        valid=same,
        log_likelihoods=[likelihood, peer_likelihood],
    )


def run(quick: bool) -> Section:
    """Measure every case on one thread."""
    rows = []
    for n_rows, n_features, n_components, target in CASES[:1] if quick else CASES:
        X, truth = simulate(n_rows, n_features, n_components, SPREAD)
        with limited_threads(1):
            rows.append(_measure(X, truth, None if quick else target, 3 if quick else 9, 0.02 if quick else 0.2))
    return Section(
        "Log posterior and gradient: time per call",
        "pm.Mixture of pm.MvNormal, LKJCholeskyCov per component, PyTensor mode='NUMBA', trust_input=True",
        tuple(rows),
        ("Ours: the log posterior that the sampler calls, called from Python",),
    )
