"""Mixtures and data that the tests share, made with plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bayesgmm.core.parameters import MixtureParameters
from tests.oracles import expand_covariances

STRUCTURES = ("full", "tied", "diag", "spherical")


@dataclass(frozen=True)
class Mixture:
    """A mixture in natural form: weights (K,), means (K, D), covariances packed and as matrices (K, D, D)."""

    weights: np.ndarray
    means: np.ndarray
    packed: np.ndarray
    covariances: np.ndarray

    @property
    def parameters(self) -> MixtureParameters:
        """The same in the kernel's form, through the explicit inverse."""
        return MixtureParameters(self.weights, self.means, np.linalg.cholesky(np.linalg.inv(self.covariances)))

    def sample(self, rng: np.random.Generator, n_rows: int) -> np.ndarray:
        """Rows of the mixture, in random order of the components."""
        labels = rng.choice(len(self.weights), size=n_rows, p=self.weights)
        noise = rng.standard_normal((n_rows, self.means.shape[1]))
        roots = np.linalg.cholesky(self.covariances)
        return np.ascontiguousarray(self.means[labels] + np.einsum("nij,nj->ni", roots[labels], noise))


def random_mixture(
    rng: np.random.Generator, n_components: int, n_features: int, covariance_type: str = "full", spread: float = 2.0
) -> Mixture:
    """Unequal weights, correlated features of unequal scales: no symmetry hides an error."""
    K, D = n_components, n_features
    weights = rng.dirichlet(np.full(K, 3.0))
    means = spread * rng.standard_normal((K, D))
    scales = np.exp(rng.uniform(-1, 1, (K, D)))
    if covariance_type in ("full", "tied"):
        A = rng.standard_normal((K, D, D + 2)) / np.sqrt(D + 2)
        matrices = (A @ A.swapaxes(1, 2) + 0.1 * np.eye(D)) * scales[:, :, None] * scales[:, None, :]
        packed = matrices if covariance_type == "full" else matrices[0]
    else:
        packed = scales if covariance_type == "diag" else scales[:, 0]
    return Mixture(weights, means, packed, expand_covariances(packed, covariance_type, K, D))


def softmax(a: np.ndarray) -> np.ndarray:
    """Log-ratios (K − 1,) to the simplex."""
    e = np.exp(np.append(a, 0.0))
    return e / e.sum()


class Coordinates:
    """Free coordinates of (π, μ, packed Σ): log-ratios, means, log-Cholesky factors or log variances, as one vector."""

    def __init__(self, covariance_type: str, K: int, D: int) -> None:
        self.K, self.D = K, D
        self.matrices = covariance_type in ("full", "tied")
        self.copies = 1 if covariance_type == "tied" else K
        self.shape = {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}[covariance_type]

    def flatten(self, weights: np.ndarray, means: np.ndarray, packed: np.ndarray) -> np.ndarray:
        if self.matrices:
            L = np.linalg.cholesky(packed).reshape(self.copies, self.D, self.D)
            diagonal = np.log(np.diagonal(L, axis1=1, axis2=2))
            spread = np.concatenate([diagonal.ravel(), L[:, *np.tril_indices(self.D, -1)].ravel()])
        else:
            spread = np.log(packed).ravel()
        return np.concatenate([np.log(weights[:-1] / weights[-1]), means.ravel(), spread])

    def unflatten(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        K, D = self.K, self.D
        weights, means, spread = softmax(u[: K - 1]), u[K - 1 : K - 1 + K * D].reshape(K, D), u[K - 1 + K * D :]
        if not self.matrices:
            return weights, means, np.exp(spread).reshape(self.shape)
        L = np.zeros((self.copies, D, D))
        L[:, range(D), range(D)] = np.exp(spread[: self.copies * D]).reshape(self.copies, D)
        L[:, *np.tril_indices(D, -1)] = spread[self.copies * D :].reshape(self.copies, -1)
        return weights, means, (L @ L.swapaxes(1, 2)).reshape(self.shape)
