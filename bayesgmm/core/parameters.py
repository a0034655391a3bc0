"""Containers that travel between the rooms: the parameters of a mixture and the sums of one pass over the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, cast

import numba as nb
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
SingleArray = NDArray[np.float32]


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

    @property
    def within_covariance(self) -> FloatArray:
        """S_w = Σ_k π_k Σ_k (D, D), the covariance within the components."""
        return np.einsum("k,kij->ij", self.weights, self.covariances)


class Additive:
    """A dataclass of sums over a part of the data: two of them add field by field."""

    def __add__(self, other: Self) -> Self:
        """Over both parts."""
        names = [field.name for field in fields(cast(Any, self))]
        return type(self)(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True, eq=False)
class SufficientStatistics(Additive):
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
    second : ndarray of shape (K, D, D), (1, D, D) or (K, D)
        S2_k = Σ_n v_n r_nk (x_n − μ_k)(x_n − μ_k)ᵀ; where the covariances need no more than that, their sum over k or their diagonals.
    """

    log_likelihood: float
    total_weight: float
    counts: FloatArray
    first: FloatArray
    second: FloatArray


def covariances_from_factors(precision_factors: FloatArray) -> FloatArray:
    """Covariance matrices Σ = (P Pᵀ)⁻¹ of lower factors P, for any leading axes."""
    n_features = precision_factors.shape[-1]
    inverse = np.linalg.solve(precision_factors, np.broadcast_to(np.eye(n_features), precision_factors.shape))
    return np.swapaxes(inverse, -1, -2) @ inverse


def marginal_factors(precision_factors: FloatArray, features: Sequence[int]) -> FloatArray:
    """Lower factors of the marginal of some features, for any leading axes; no covariance is formed and inverted.

    Parameters
    ----------
    precision_factors : ndarray of shape (..., D, D)
        Lower P with Σ⁻¹ = P Pᵀ.
    features : sequence of int
        The d features, in the order wanted.

    Returns
    -------
    ndarray of shape (..., d, d)
        Lower Q with (Σ of the features)⁻¹ = Q Qᵀ, positive diagonal.
    """
    D = precision_factors.shape[-1]
    # Σ = A Aᵀ with A = P⁻ᵀ. The rows of the features, in reverse order, have the QR factor that, turned back, is upper.
    A = np.swapaxes(np.linalg.solve(precision_factors, np.broadcast_to(np.eye(D), precision_factors.shape)), -1, -2)
    R = np.linalg.qr(np.swapaxes(A[..., list(features)[::-1], :], -1, -2), mode="r")
    upper = np.swapaxes(R, -1, -2)[..., ::-1, ::-1]
    upper = upper * np.sign(np.diagonal(upper, axis1=-2, axis2=-1))[..., None, :]
    identity = np.broadcast_to(np.eye(len(features)), upper.shape)
    return np.ascontiguousarray(np.swapaxes(np.linalg.solve(upper, identity), -1, -2))


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
    matrices = np.ascontiguousarray(covariances, dtype=np.float64)
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    factors = np.zeros_like(flat)
    failed = _inverse_factors(flat, factors)
    if failed >= 0:
        raise np.linalg.LinAlgError(f"covariance matrix {failed} is not positive definite")
    return factors.reshape(matrices.shape)


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _inverse_factors(covariances, factors):
    """Fill lower factors of the inverses; the index of the first matrix that is not positive definite, or −1."""
    D = covariances.shape[1]
    scale, lower, inverse = np.empty(D), np.zeros((D, D)), np.zeros((D, D))
    for k in range(covariances.shape[0]):
        # Correlation scale first, so that the factor of [[1e-200, 0], [0, 1e200]] is as exact as that of the identity.
        for j in range(D):
            scale[j] = math.sqrt(covariances[k, j, j])
            if not (scale[j] > 0.0 and scale[j] < np.inf):
                return k
        # With the order of the features reversed, the Cholesky factor of Σ, inverted and turned back, is that of Σ⁻¹.
        for i in range(D):
            for j in range(i + 1):
                row, column = D - 1 - i, D - 1 - j
                total = covariances[k, row, column] / scale[row] / scale[column]
                for m in range(j):
                    total -= lower[i, m] * lower[j, m]
                if i > j:
                    lower[i, j] = total / lower[j, j]
                elif total > 0.0:
                    lower[i, i] = math.sqrt(total)
                else:
                    return k
        for j in range(D):
            inverse[j, j] = 1.0 / lower[j, j]
            for i in range(j + 1, D):
                total = 0.0
                for m in range(j, i):
                    total -= lower[i, m] * inverse[m, j]
                inverse[i, j] = total / lower[i, i]
        for i in range(D):
            for j in range(i + 1):
                factors[k, i, j] = inverse[D - 1 - j, D - 1 - i] / scale[i]
    return -1


def upper_factors_from_covariances(covariances: FloatArray) -> FloatArray:
    """Upper factors C with Σ⁻¹ = C Cᵀ, scikit-learn's convention, for any leading axes.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a matrix is not positive definite.
    """
    # The lower factor of the matrix with its features in reverse order, turned back, is the upper one.
    try:
        return np.ascontiguousarray(factors_from_covariances(covariances[..., ::-1, ::-1])[..., ::-1, ::-1])
    except np.linalg.LinAlgError:
        # At the edge of positive definiteness rounding may let the one order pass and not the other: by QR of the lower factor.
        factors = factors_from_covariances(covariances)
        lower = np.swapaxes(np.linalg.qr(np.swapaxes(factors[..., ::-1, :], -1, -2), mode="r"), -1, -2)
        lower = lower * np.sign(np.diagonal(lower, axis1=-2, axis2=-1))[..., None, :]
        return np.ascontiguousarray(lower[..., ::-1, ::-1])
