"""Densities of a Gaussian mixture and of its conjugate prior, through scipy.stats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import logsumexp


@dataclass(frozen=True)
class PriorValues:
    """A conjugate prior with every value given (no defaults from data).

    Attributes
    ----------
    weight_concentration : ndarray of shape (K,)
        Dirichlet concentrations.
    mean_prior : ndarray of shape (D,)
        Centre of the means.
    mean_precision : float
        κ₀: a mean given Σ is Normal(mean_prior, Σ / κ₀).
    degrees_of_freedom : float
        ν₀ of the inverse-Wishart.
    scale : ndarray of shape (D, D)
        Λ₀ of the inverse-Wishart.
    """

    weight_concentration: np.ndarray
    mean_prior: np.ndarray
    mean_precision: float
    degrees_of_freedom: float
    scale: np.ndarray


def expand_covariances(covariances: np.ndarray, covariance_type: str, n_components: int, n_features: int) -> np.ndarray:
    """Covariances in scikit-learn's shapes as full matrices, (K, D, D).

    Parameters
    ----------
    covariances : ndarray
        full (K, D, D), tied (D, D), diag (K, D) or spherical (K,).
    covariance_type : str
        Name of the structure.
    n_components, n_features : int
        K and D.

    Returns
    -------
    ndarray of shape (K, D, D)
    """
    covariances = np.asarray(covariances, dtype=float)
    if covariance_type == "full":
        return covariances
    if covariance_type == "tied":
        return np.stack([covariances] * n_components)
    if covariance_type == "diag":
        return np.stack([np.diag(row) for row in covariances])
    if covariance_type == "spherical":
        return np.stack([value * np.eye(n_features) for value in covariances])
    raise ValueError(covariance_type)


def expand_draws(covariances: np.ndarray, covariance_type: str, n_components: int, n_features: int) -> np.ndarray:
    """Draws of covariances in scikit-learn's shapes as full matrices.

    Parameters
    ----------
    covariances : ndarray
        Any leading axes, then scikit-learn's shape for the structure.
    covariance_type : str
        Name of the structure.
    n_components, n_features : int
        K and D.

    Returns
    -------
    ndarray of shape (..., K, D, D)
    """
    if covariance_type == "full":
        return covariances
    if covariance_type == "tied":
        return np.repeat(covariances[..., None, :, :], n_components, axis=-3)
    variances = covariances if covariance_type == "diag" else covariances[..., None]
    return variances[..., None] * np.eye(n_features)


def mixture_log_densities_of_draws(
    X: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log densities of rows under each of S mixtures, by linear solves rather than through scipy.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    covariances : ndarray of shape (S, K, D, D)

    Returns
    -------
    log_density : ndarray of shape (S, N)
        log p(x_n).
    log_joint : ndarray of shape (S, K, N)
        log π_k + log N(x_n; μ_k, Σ_k).
    """
    factors = np.linalg.cholesky(covariances)
    y = np.linalg.solve(factors, np.swapaxes(X[None, None] - means[:, :, None], 2, 3))
    log_determinant = 2 * np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1)
    constant = X.shape[1] * np.log(2 * np.pi)
    log_normal = -0.5 * (np.square(y).sum(axis=2) + log_determinant[..., None] + constant)
    log_joint = log_normal + np.log(weights)[..., None]
    return logsumexp(log_joint, axis=1), log_joint


def component_log_densities(X: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """log N(x_n; μ_k, Σ_k), shape (N, K), from full covariances (K, D, D)."""
    columns = [
        np.atleast_1d(stats.multivariate_normal(mean, covariance).logpdf(X))
        for mean, covariance in zip(means, covariances, strict=True)
    ]
    return np.stack(columns, axis=1)


def mixture_log_density(X: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """log Σ_k π_k N(x_n; μ_k, Σ_k).

    Parameters
    ----------
    X : ndarray of shape (N, D)
    weights : ndarray of shape (K,)
    means : ndarray of shape (K, D)
    covariances : ndarray of shape (K, D, D)

    Returns
    -------
    ndarray of shape (N,)
    """
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    return logsumexp(component_log_densities(X, means, covariances) + log_weights, axis=1)


def responsibilities(X: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """p(z_n = k given x_n), shape (N, K), from full covariances (K, D, D)."""
    with np.errstate(divide="ignore"):
        joint = component_log_densities(X, means, covariances) + np.log(weights)
    return np.exp(joint - logsumexp(joint, axis=1, keepdims=True))


def weighted_sums(
    X: np.ndarray,
    weights: np.ndarray,
    means: np.ndarray,
    covariances: np.ndarray,
    sample_weight: np.ndarray | None = None,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """The sums of one pass over the data, centred at the given means.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    weights : ndarray of shape (K,)
    means : ndarray of shape (K, D)
    covariances : ndarray of shape (K, D, D)
    sample_weight : ndarray of shape (N,), optional
        v_n; ones when not given.

    Returns
    -------
    log_likelihood : float
        Σ_n v_n log p(x_n).
    counts : ndarray of shape (K,)
        N_k = Σ_n v_n r_nk.
    first : ndarray of shape (K, D)
        S1_k = Σ_n v_n r_nk (x_n − μ_k).
    second : ndarray of shape (K, D, D)
        S2_k = Σ_n v_n r_nk (x_n − μ_k)(x_n − μ_k)ᵀ.
    """
    v = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    r = v[:, None] * responsibilities(X, weights, means, covariances)
    log_likelihood = float(v @ mixture_log_density(X, weights, means, covariances))
    centred = X[:, None, :] - means
    first = np.einsum("nk,nkd->kd", r, centred)
    second = np.einsum("nk,nkd,nke->kde", r, centred, centred)
    return log_likelihood, r.sum(axis=0), first, second


def log_prior(
    weights: np.ndarray, means: np.ndarray, covariances: np.ndarray, prior: PriorValues, covariance_type: str
) -> float:
    """Log density of the conjugate prior at (π, μ, Σ), in these natural coordinates.

    The base measure is Lebesgue's on the first K − 1 weights, on the means, and on the distinct entries of each
    covariance: D (D + 1) / 2 of every full matrix (one matrix when tied), the variances when diag or spherical.

    Parameters
    ----------
    weights : ndarray of shape (K,)
    means : ndarray of shape (K, D)
    covariances : ndarray
        In scikit-learn's shape for the structure.
    prior : PriorValues
        Or any object with the same fields.
    covariance_type : {"full", "tied", "diag", "spherical"}

    Returns
    -------
    float
    """
    n_components, n_features = means.shape
    total = 0.0
    if n_components > 1:
        total += float(stats.dirichlet(np.asarray(prior.weight_concentration, dtype=float)).logpdf(weights))
    expanded = expand_covariances(covariances, covariance_type, n_components, n_features)
    for mean, covariance in zip(means, expanded, strict=True):
        total += float(stats.multivariate_normal(prior.mean_prior, covariance / prior.mean_precision).logpdf(mean))
    nu = prior.degrees_of_freedom - n_features + 1
    variances = np.diag(prior.scale)
    if covariance_type == "full":
        for covariance in covariances:
            total += float(stats.invwishart(prior.degrees_of_freedom, prior.scale).logpdf(covariance))
    elif covariance_type == "tied":
        total += float(stats.invwishart(prior.degrees_of_freedom, prior.scale).logpdf(covariances))
    elif covariance_type == "diag":
        total += float(stats.invgamma(nu / 2, scale=variances / 2).logpdf(covariances).sum())
    elif covariance_type == "spherical":
        total += float(stats.invgamma(nu / 2, scale=variances.mean() / 2).logpdf(covariances).sum())
    return total
