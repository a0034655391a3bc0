"""The mixture that people write in PyMC by hand: the peer of the gradient, sampling and process rows.

Weights from a Dirichlet, means from a Normal, one ``LKJCholeskyCov`` per component, ``pm.Mixture`` of ``pm.MvNormal``.
Its priors are weakly informative and scaled to the data. They are not ours, so posteriors differ a little, and only the
likelihoods can be compared number by number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode


def build_model(X: np.ndarray, n_components: int) -> pm.Model:
    """The peer's model of the rows X (N, D)."""
    n_features = X.shape[1]
    deviation = X.std(axis=0)
    with pm.Model() as model:
        weights = pm.Dirichlet("weights", np.ones(n_components))
        means = pm.Normal("means", X.mean(axis=0), 2.5 * deviation, shape=(n_components, n_features))
        factors = [
            pm.LKJCholeskyCov(
                f"chol_{k}",
                n=n_features,
                eta=2.0,
                sd_dist=pm.HalfNormal.dist(deviation, shape=n_features),
                compute_corr=True,
                store_in_trace=False,
            )[0]
            for k in range(n_components)
        ]
        components = [pm.MvNormal.dist(mu=means[k], chol=factors[k]) for k in range(n_components)]
        pm.Mixture("x", w=weights, comp_dists=components, observed=X)
    return model


def start(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> dict[str, np.ndarray]:
    """Given parameters as the model's free variables: a starting point for nutpie."""
    lower = np.tril_indices(means.shape[1])
    point = {"weights": weights, "means": means}
    for k, factor in enumerate(np.linalg.cholesky(covariances)):
        point[f"chol_{k}"] = factor[lower]
    return point


def unconstrained(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> dict[str, np.ndarray]:
    """Given parameters as the model's value variables, by name."""
    logs = np.log(weights)
    values = {"weights_simplex__": (logs - logs.mean())[:-1], "means": means}
    diagonal = np.cumsum(np.arange(1, means.shape[1] + 1)) - 1
    for name, packed in start(weights, means, covariances).items():
        if name.startswith("chol_"):
            free = packed.copy()
            free[diagonal] = np.log(free[diagonal])
            values[f"{name}_cholesky-cov-packed__"] = free
    return values


def log_posterior_and_gradient(model: pm.Model) -> Any:
    """PyTensor function of the value variables, compiled by Numba: log posterior and its gradient."""
    variables = model.continuous_value_vars
    log_posterior = model.logp()
    outputs = [log_posterior, *pt.grad(log_posterior, variables)]
    return pytensor.function(variables, outputs, mode="NUMBA", trust_input=True)


def log_likelihood(model: pm.Model, values: dict[str, np.ndarray]) -> float:
    """Log-likelihood alone, interpreted: to check that both sides evaluate the same mixture."""
    function = pytensor.function(
        model.continuous_value_vars,
        model.observedlogp,
        mode=Mode(linker="py", optimizer="fast_compile"),
        on_unused_input="ignore",
    )
    return float(function(*(values[variable.name] for variable in model.continuous_value_vars)))


def draws_of(idata: Any, n_components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (chains, draws, K), means (…, K, D) and covariances (…, K, D, D) of a trace."""
    posterior = idata["posterior"]
    means = posterior["means"].values
    n_features = means.shape[-1]
    factors = np.zeros((*means.shape, n_features))
    rows, columns = np.tril_indices(n_features)
    for k in range(n_components):
        factors[:, :, k, rows, columns] = posterior[f"chol_{k}"].values
    return posterior["weights"].values, means, factors @ np.swapaxes(factors, -1, -2)
