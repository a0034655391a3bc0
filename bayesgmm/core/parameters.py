"""Containers that travel between the rooms: the parameters of a mixture and the sums of one pass over the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    matrices = np.asarray(covariances, dtype=np.float64)
    # Correlation scale first, so that the factor of [[1e-200, 0], [0, 1e200]] is as exact as that of the identity.
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(np.diagonal(matrices, axis1=-2, axis2=-1))
        correlation = matrices / scale[..., None, :] / scale[..., :, None]
    good = np.isfinite(correlation).all(axis=(-2, -1)) & (scale > 0).all(axis=-1)
    if not np.all(good):
        raise np.linalg.LinAlgError(f"covariance matrix {int(np.argmin(np.ravel(good)))} is not positive definite")
    # With the order of the features reversed, the upper factor of Σ gives the lower factor of its inverse.
    reversed_order = correlation[..., ::-1, ::-1]
    try:
        lower = np.linalg.cholesky(reversed_order)
    except np.linalg.LinAlgError:
        first = _first_not_definite(reversed_order.reshape(-1, *reversed_order.shape[-2:]))
        raise np.linalg.LinAlgError(f"covariance matrix {first} is not positive definite") from None
    inverse = np.linalg.inv(lower)[..., ::-1, ::-1]
    return np.tril(np.swapaxes(inverse, -1, -2)) / scale[..., :, None]


def _first_not_definite(matrices: FloatArray) -> int:
    for index, matrix in enumerate(matrices):
        try:
            np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return index
    return 0


def upper_factors_from_covariances(covariances: FloatArray) -> FloatArray:
    """Upper factors C with Σ⁻¹ = C Cᵀ, scikit-learn's convention, for any leading axes.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a matrix is not positive definite.
    """
    # The lower factor of the matrix with its features in reverse order, turned back, is the upper one.
    return np.ascontiguousarray(factors_from_covariances(covariances[..., ::-1, ::-1])[..., ::-1, ::-1])
