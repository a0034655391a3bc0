"""Containers that travel between the rooms: the parameters of a mixture and the sums of one pass over the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MixtureParameters:
    """One Gaussian mixture in the form that the kernel reads, whatever its covariance structure.

    Parameters
    ----------
    weights : ndarray of shape (K,)
        Mixing proportions π on the simplex.
    means : ndarray of shape (K, D)
        Component means μ, in the units of the data.
    precision_factors : ndarray of shape (K, D, D)
        Lower triangular P with inv(Σ_k) = P_k P_kᵀ.
    """

    weights: FloatArray
    means: FloatArray
    precision_factors: FloatArray

    @property
    def n_components(self) -> int:
        """Number of components K."""
        return int(self.means.shape[0])

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return int(self.means.shape[1])

    @property
    def covariances(self) -> FloatArray:
        """Covariance matrices Σ, shape (K, D, D)."""
        return covariances_from_factors(self.precision_factors)


@dataclass(frozen=True, eq=False)
class SufficientStatistics:
    """The sums of one pass over the data at given parameters; sums over parts of the data add with ``+``.

    Parameters
    ----------
    log_likelihood : float
        Σ_n v_n log p(x_n).
    total_weight : float
        Σ_n v_n.
    counts : ndarray of shape (K,)
        N_k = Σ_n v_n r_nk.
    first : ndarray of shape (K, D)
        S1_k = Σ_n v_n r_nk (x_n − μ_k).
    second : ndarray of shape (K, D, D)
        S2_k = Σ_n v_n r_nk (x_n − μ_k)(x_n − μ_k)ᵀ.
    """

    log_likelihood: float
    total_weight: float
    counts: FloatArray
    first: FloatArray
    second: FloatArray

    def __add__(self, other: SufficientStatistics) -> SufficientStatistics:
        return SufficientStatistics(
            self.log_likelihood + other.log_likelihood,
            self.total_weight + other.total_weight,
            self.counts + other.counts,
            self.first + other.first,
            self.second + other.second,
        )


def covariances_from_factors(precision_factors: FloatArray) -> FloatArray:
    """Covariance matrices Σ = (P Pᵀ)⁻¹ of lower factors P, for any leading axes."""
    n_features = precision_factors.shape[-1]
    inverse = np.linalg.solve(precision_factors, np.broadcast_to(np.eye(n_features), precision_factors.shape))
    return np.swapaxes(inverse, -1, -2) @ inverse


def factors_from_covariances(covariances: FloatArray) -> FloatArray:
    """Lower factors P with Σ⁻¹ = P Pᵀ, for any leading axes.

    Parameters
    ----------
    covariances : ndarray of shape (..., D, D)
        Symmetric positive definite matrices.

    Returns
    -------
    ndarray of shape (..., D, D)
        Lower triangular, positive diagonal.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a matrix is not positive definite.
    """
    shape = covariances.shape
    flat = np.ascontiguousarray(covariances, dtype=np.float64).reshape(-1, shape[-1], shape[-1])
    factors = np.empty_like(flat)
    for index, matrix in enumerate(flat):
        # Correlation scale first, so that the factor of [[1e-200, 0], [0, 1e200]] is as exact as that of the identity.
        scale = np.sqrt(np.diagonal(matrix))
        if not (np.all(np.isfinite(matrix)) and np.all(scale > 0)):
            raise np.linalg.LinAlgError(f"covariance matrix {index} is not positive definite")
        correlation = matrix / scale / scale[:, None]
        # With the order of the features reversed, the upper factor of Σ gives the lower factor of its inverse.
        lower, info = lapack.dpotrf(correlation[::-1, ::-1], lower=1)
        if info != 0:
            raise np.linalg.LinAlgError(f"covariance matrix {index} is not positive definite")
        inverse, _ = lapack.dtrtri(lower, lower=1)
        factors[index] = np.tril(inverse[::-1, ::-1].T) / scale[:, None]
    return factors.reshape(shape)


def upper_factors_from_covariances(covariances: FloatArray) -> FloatArray:
    """Upper factors C with Σ⁻¹ = C Cᵀ, scikit-learn's convention, for any leading axes.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a matrix is not positive definite.
    """
    # The lower factor of the matrix with its features in reverse order, turned back, is the upper one.
    return np.ascontiguousarray(factors_from_covariances(covariances[..., ::-1, ::-1])[..., ::-1, ::-1])
