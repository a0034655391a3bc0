"""The exact posterior of a small Gaussian mixture, by summing over every allocation of rows to components.

Given the allocation z, the conjugate prior of the mixture is conjugate to its data: p(X | z) and the posterior of
(π, μ, Σ) are closed forms (Murphy 2007, "Conjugate Bayesian analysis of the Gaussian distribution"), and p(z) is
Dirichlet-multinomial. The mixture's posterior is then a finite mixture over the K^N allocations, and every number
here is exact but for rounding, except `Enumeration.draw`, whose draws are independent and exact.

Given z, with κ_k = κ₀ + N_k, m_k = (κ₀ m₀ + Σ_{z_n = k} x_n) / κ_k and
B_k = Σ_{z_n = k} (x_n − m₀)(x_n − m₀)ᵀ − κ_k (m_k − m₀)(m_k − m₀)ᵀ:

| structure | covariance given z | log determinant |
|---|---|---|
| full | Σ_k ~ IW(ν₀ + N_k, Λ₀ + B_k) | D ≤ 2: one chi-squared variable |
| tied | Σ ~ IW(ν₀ + N, Λ₀ + Σ_k B_k) | D ≤ 2: one chi-squared variable |
| diag | Σ_k,jj ~ InvGamma((ν + N_k) / 2, (Λ₀,jj + B_k,jj) / 2), ν = ν₀ − D + 1 | D chi-squared variables |
| spherical | σ²_k ~ InvGamma((ν + D N_k) / 2, (tr Λ₀ / D + tr B_k) / 2) | one chi-squared variable |
"""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import chdtrc, chdtri, gammaln, logsumexp, multigammaln

from .densities import PriorValues

LOG_2PI = float(np.log(2 * np.pi))
LOG_2 = float(np.log(2.0))


class Enumeration:
    """Exact posterior of a Gaussian mixture of few rows.

    Parameters
    ----------
    X : ndarray of shape (N, D)
        Few rows: K^N allocations are enumerated.
    prior : PriorValues
        Or any object with the same fields.
    n_components : int, default=2
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
    allowed : ndarray of shape (N, K) of bool, optional
        Components that each row may belong to; all by default.
    blocks : sequence of slice, optional
        Components of each class, with ``class_priors``.
    class_priors : sequence of float, optional
        Known probabilities of the classes, whose weights are then Dirichlet within each class.

    Attributes
    ----------
    allocations : ndarray of shape (K^N, N) of int
        Fewer where some are not allowed.
    log_allocation_evidence : ndarray of shape (K^N,)
        log p(z) p(X | z).
    log_evidence : float
        log p(X).
    allocation_probabilities : ndarray of shape (K^N,)
        p(z | X).
    """

    def __init__(
        self,
        X: np.ndarray,
        prior: PriorValues,
        n_components: int = 2,
        covariance_type: str = "full",
        allowed: np.ndarray | None = None,
        blocks: tuple[slice, ...] | None = None,
        class_priors: tuple[float, ...] = (1.0,),
    ) -> None:
        X = np.asarray(X, dtype=float)
        n_rows, n_features = X.shape
        self.covariance_type = covariance_type
        self.n_components = n_components
        self.n_features = n_features
        self.prior = prior
        self.allocations = np.array(list(product(range(n_components), repeat=n_rows)), dtype=int).reshape(-1, n_rows)
        if allowed is not None:
            self.allocations = self.allocations[allowed[np.arange(n_rows), self.allocations].all(axis=1)]

        members = (self.allocations[:, :, None] == np.arange(n_components)).astype(float)
        self._counts = members.sum(axis=1)
        self._concentrations = self._counts + np.broadcast_to(prior.weight_concentration, (n_components,))
        self._set_conditional_posterior(X - prior.mean_prior, members)

        alpha = np.broadcast_to(prior.weight_concentration, (n_components,)).astype(float)
        log_p_allocation = (gammaln(self._concentrations) - gammaln(alpha)).sum(axis=1)
        self._mixing = np.empty_like(self._concentrations)
        for block, share in zip(blocks or (slice(0, n_components),), class_priors, strict=True):
            own, total = self._counts[:, block].sum(axis=1), alpha[block].sum()
            log_p_allocation = log_p_allocation + own * np.log(share) + gammaln(total) - gammaln(total + own)
            self._mixing[:, block] = share * self._concentrations[:, block] / (total + own)[:, None]
        self.log_allocation_evidence = log_p_allocation + self._log_marginal_likelihood(n_rows)
        self.log_evidence = float(logsumexp(self.log_allocation_evidence))
        self.allocation_probabilities = np.exp(self.log_allocation_evidence - self.log_evidence)

    def _set_conditional_posterior(self, centred: np.ndarray, members: np.ndarray) -> None:
        """Posterior values of (μ, Σ) given each allocation; `centred` is X − m₀, `members` one-hot (A, N, K)."""
        prior, D, K = self.prior, self.n_features, self.n_components
        self._precisions = prior.mean_precision + self._counts
        shift = np.einsum("ank,nd->akd", members, centred) / self._precisions[..., None]
        self._locations = prior.mean_prior + shift
        scatter = np.einsum("ank,nd,ne->akde", members, centred, centred)
        scatter -= self._precisions[..., None, None] * shift[..., :, None] * shift[..., None, :]
        nu = prior.degrees_of_freedom - D + 1
        if self.covariance_type == "full":
            self._prior_degrees, self._prior_scale = float(prior.degrees_of_freedom), np.array(prior.scale, float)
            self._degrees = self._prior_degrees + self._counts
            self._scales = self._prior_scale + scatter
        elif self.covariance_type == "tied":
            self._prior_degrees, self._prior_scale = float(prior.degrees_of_freedom), np.array(prior.scale, float)
            self._degrees = np.full_like(self._counts, self._prior_degrees + len(centred))
            pooled = self._prior_scale + scatter.sum(axis=1)
            self._scales = np.repeat(pooled[:, None], K, axis=1)
        elif self.covariance_type == "diag":
            self._prior_degrees, self._prior_scale = nu, np.diag(np.diag(prior.scale)).astype(float)
            self._degrees = nu + self._counts
            self._scales = (self._prior_scale + scatter) * np.eye(D)
        elif self.covariance_type == "spherical":
            self._prior_degrees, self._prior_scale = nu, np.trace(prior.scale) / D * np.eye(D)
            self._degrees = nu + D * self._counts
            trace = np.trace(scatter, axis1=-2, axis2=-1)
            self._scales = self._prior_scale + trace[..., None, None] * np.eye(D)
        else:
            raise ValueError(self.covariance_type)

    def _log_normaliser(self, degrees: np.ndarray | float, scales: np.ndarray) -> np.ndarray:
        """Log integral over one covariance of its unnormalised density, whichever family the structure has."""
        degrees = np.asarray(degrees, dtype=float)
        D = self.n_features
        if self.covariance_type in ("full", "tied"):
            log_gamma = np.vectorize(lambda half: multigammaln(half, D))(degrees / 2)
            return degrees * D / 2 * LOG_2 + log_gamma - degrees / 2 * np.linalg.slogdet(scales)[1]
        variances = np.diagonal(scales, axis1=-2, axis2=-1)
        if self.covariance_type == "spherical":
            variances = variances[..., :1]
        half = degrees[..., None] / 2
        return (gammaln(half) - half * np.log(variances / 2)).sum(axis=-1)

    def _log_marginal_likelihood(self, n_rows: int) -> np.ndarray:
        """log p(X | z) of every allocation."""
        D = self.n_features
        change = self._log_normaliser(self._degrees, self._scales)
        change = change - self._log_normaliser(self._prior_degrees, self._prior_scale)
        covariance_part = change[:, 0] if self.covariance_type == "tied" else change.sum(axis=1)
        mean_part = D / 2 * np.log(self.prior.mean_precision / self._precisions).sum(axis=1)
        return -n_rows * D / 2 * LOG_2PI + mean_part + covariance_part

    def weight_means(self) -> np.ndarray:
        """E[π given X], shape (K,), where labels tell components apart."""
        return self.allocation_probabilities @ self._mixing

    def component_probabilities(self) -> np.ndarray:
        """p(z_n = k | X), shape (N, K), where labels tell components apart."""
        one_hot = self.allocations[:, :, None] == np.arange(self.n_components)
        return np.einsum("a,ank->nk", self.allocation_probabilities, one_hot.astype(float))

    def coclustering(self) -> np.ndarray:
        """p(z_i = z_j | X), shape (N, N)."""
        same = self.allocations[:, :, None] == self.allocations[:, None, :]
        return np.einsum("a,aij->ij", self.allocation_probabilities, same.astype(float))

    def predictive_log_density(self, points: np.ndarray) -> np.ndarray:
        """log p(x | X) at points (M, D): a mixture of Student-t densities over allocations and components."""
        points = np.asarray(points, dtype=float).reshape(-1, self.n_features)
        terms = []
        for index in np.ndindex(*self._counts.shape):
            weight = self.allocation_probabilities[index[0]] * self._mixing[index]
            terms.append(np.log(weight) + self._student_log_density(points, index))
        return logsumexp(np.stack(terms), axis=0)

    def _student_log_density(self, points: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
        precision, degrees = self._precisions[index], self._degrees[index]
        spread = self._scales[index] * (precision + 1) / precision
        if self.covariance_type == "diag":
            width = np.sqrt(np.diag(spread) / degrees)
            return stats.t.logpdf(points, degrees, loc=self._locations[index], scale=width).sum(axis=1)
        # An inverse-Wishart's marginal loses D − 1 degrees of freedom; an inverse-gamma's does not.
        lost = 0 if self.covariance_type == "spherical" else self.n_features - 1
        df = degrees - lost
        return np.atleast_1d(stats.multivariate_t(self._locations[index], spread / df, df=df).logpdf(points))

    def joint_log_density(self, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> float:
        """log p(X, π, μ, Σ) as Σ_z p(z) p(X | z) p(π, μ, Σ | z, X).

        Equal to log-likelihood plus log prior at every point, which ties this file to `densities` (Chib 1995).

        Parameters
        ----------
        weights : ndarray of shape (K,)
        means : ndarray of shape (K, D)
        covariances : ndarray
            In scikit-learn's shape for the structure.

        Returns
        -------
        float
        """
        terms = []
        for a, log_evidence in enumerate(self.log_allocation_evidence):
            value = log_evidence
            if self.n_components > 1:
                value += stats.dirichlet(self._concentrations[a]).logpdf(weights)
            for k in range(self.n_components):
                own = covariances if self.covariance_type == "tied" else covariances[k]
                value += self._covariance_log_density((a, k), own) if k == 0 or self.covariance_type != "tied" else 0.0
                full = own if np.ndim(own) == 2 else np.diag(np.broadcast_to(own, (self.n_features,)))
                spread = full / self._precisions[a, k]
                value += stats.multivariate_normal(self._locations[a, k], spread).logpdf(means[k])
            terms.append(value)
        return float(logsumexp(terms))

    def _covariance_log_density(self, index: tuple[int, int], covariance: np.ndarray) -> float:
        degrees, scale = self._degrees[index], self._scales[index]
        if self.covariance_type in ("full", "tied"):
            return float(stats.invwishart(degrees, scale).logpdf(covariance))
        width = scale[0, 0] if self.covariance_type == "spherical" else np.diag(scale)
        return float(np.sum(stats.invgamma(degrees / 2, scale=width / 2).logpdf(covariance)))

    def larger_weight_mean(self) -> float:
        """E[max(π₁, π₂) | X] for K = 2, from beta probabilities."""
        first, second = self._concentrations.T
        given_allocation = first * stats.beta(first + 1, second).sf(0.5) + second * stats.beta(second + 1, first).sf(
            0.5
        )
        return float(self.allocation_probabilities @ (given_allocation / (first + second)))

    def log_determinant_cdf(self, values: np.ndarray) -> np.ndarray:
        """P(log |Σ| ≤ value | X) of the component with the larger weight, for K ≤ 2 and D ≤ 2, exactly.

        Given z the weights and the covariances are independent; P(π_k is the larger) is a beta probability. For
        W ~ Wishart(ν, I) of dimension 2, 2 |W|^(1/2) is chi-squared with 2 ν − 2 degrees of freedom
        (Anderson 2003, section 7.5).

        Parameters
        ----------
        values : ndarray of shape (M,)

        Returns
        -------
        ndarray of shape (M,)

        Raises
        ------
        ValueError
            If K > 2 or D > 2, where there is no such closed form.
        """
        if self.n_components > 2 or self.n_features > 2:
            raise ValueError("log_determinant_cdf needs at most 2 components and 2 features.")
        values = np.atleast_1d(np.asarray(values, dtype=float))
        probability = self.allocation_probabilities[:, None] * self.larger_weight_probability()
        return np.array([(probability * self._log_determinant_cdf_given_allocation(value)).sum() for value in values])

    def larger_weight_probability(self) -> np.ndarray:
        """P(π_k is the largest | z) for K ≤ 2, shape (K^N, K)."""
        if self.n_components == 1:
            return np.ones((len(self.allocations), 1))
        first = stats.beta(self._concentrations[:, 0], self._concentrations[:, 1]).sf(0.5)
        return np.stack([first, 1 - first], axis=1)

    def _log_determinant_cdf_given_allocation(self, value: float) -> np.ndarray:
        log_scale = np.linalg.slogdet(self._scales)[1]
        if self.n_features == 1:
            return chdtrc(self._degrees, np.exp(log_scale - value))
        if self.covariance_type == "spherical":
            return chdtrc(self._degrees, np.exp((log_scale - value) / 2))
        if self.covariance_type in ("full", "tied"):
            return chdtrc(2 * self._degrees - 2, 2 * np.exp((log_scale - value) / 2))
        # diag: the product of two independent chi-squared variables; the first is integrated out by quadrature over
        # its own probability, u = (1 − cos t) / 2 bunching nodes at both ends, where the quantile function is steep.
        nodes, weights = np.polynomial.legendre.leggauss(60)
        angle = np.pi * (nodes + 1) / 2
        u, weights = (1 - np.cos(angle)) / 2, weights * np.pi / 4 * np.sin(angle)
        distinct, where = np.unique(self._degrees, return_inverse=True)
        other = chdtri(distinct[:, None], 1 - u)[where.reshape(self._degrees.shape)]
        tail = chdtrc(self._degrees[..., None], np.exp(log_scale - value)[..., None] / other)
        return tail @ weights

    def log_determinant_quantiles(self, probabilities: np.ndarray) -> np.ndarray:
        """Quantiles of log |Σ| of the component with the larger weight; limits as for `log_determinant_cdf`."""
        log_scale = np.linalg.slogdet(self._scales)[1]
        low, high = log_scale.min() - 60.0, log_scale.max() + 60.0
        return np.array(
            [brentq(lambda t, p=p: self.log_determinant_cdf(t)[0] - p, low, high, xtol=1e-9) for p in probabilities]
        )

    def draw(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Independent exact draws from the posterior of (π, μ, Σ), with the allocation each came from.

        Parameters
        ----------
        rng : numpy.random.Generator
        size : int
            Number of draws, S.

        Returns
        -------
        weights : ndarray of shape (S, K)
        means : ndarray of shape (S, K, D)
        covariances : ndarray of shape (S, K, D, D)
            Expanded to full matrices for every structure.
        allocations : ndarray of shape (S, N) of int
        """
        K, D = self.n_components, self.n_features
        counts = rng.multinomial(size, self.allocation_probabilities / self.allocation_probabilities.sum())
        weights, means, covariances = np.empty((size, K)), np.empty((size, K, D)), np.empty((size, K, D, D))
        start = 0
        for a in np.flatnonzero(counts).tolist():
            rows = slice(start, start + counts[a])
            start += counts[a]
            weights[rows] = rng.dirichlet(self._concentrations[a], counts[a])
            for k in range(K):
                if k > 0 and self.covariance_type == "tied":
                    covariances[rows, k] = covariances[rows, 0]
                else:
                    covariances[rows, k] = self._draw_covariances((a, k), rng, counts[a])
                factors = np.linalg.cholesky(covariances[rows, k] / self._precisions[a, k])
                noise = rng.standard_normal((counts[a], D))
                means[rows, k] = self._locations[a, k] + np.einsum("sde,se->sd", factors, noise)
        order = rng.permutation(size)
        allocations = np.repeat(self.allocations, counts, axis=0)
        return weights[order], means[order], covariances[order], allocations[order]

    def _draw_covariances(self, index: tuple[int, int], rng: np.random.Generator, size: int) -> np.ndarray:
        degrees, scale, D = self._degrees[index], self._scales[index], self.n_features
        if self.covariance_type in ("full", "tied"):
            draws = stats.invwishart(degrees, scale).rvs(size=size, random_state=rng)
            return np.reshape(draws, (size, D, D))
        width = np.diag(scale)
        shape = (size, 1) if self.covariance_type == "spherical" else (size, D)
        variances = width / 2 / rng.gamma(degrees / 2, size=shape)
        return variances[:, :, None] * np.eye(D)


def one_component_log_evidence(X: np.ndarray, prior: PriorValues, covariance_type: str = "full") -> float:
    """log p(X) of a single Gaussian (K = 1), one row at a time.

    p(X) = Π_n p(x_n | x_1 … x_{n−1}), each factor a Student-t whose values are updated row by row: another route than
    the ratio of normalising constants in `Enumeration`.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    prior : PriorValues
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
        At K = 1 tied is full.

    Returns
    -------
    float
    """
    D = X.shape[1]
    location, precision = np.array(prior.mean_prior, dtype=float), float(prior.mean_precision)
    scale = np.array(prior.scale, dtype=float)
    whole = covariance_type in ("full", "tied")
    degrees = float(prior.degrees_of_freedom) - (0 if whole else D - 1)
    if covariance_type == "spherical":
        scale = np.trace(scale) / D * np.eye(D)
    total = 0.0
    for x in np.asarray(X, dtype=float):
        grown = (precision + 1) / precision
        if covariance_type == "diag":
            width = np.sqrt(np.diag(scale) * grown / degrees)
            total += float(stats.t.logpdf(x, degrees, loc=location, scale=width).sum())
        else:
            df = degrees - D + 1 if whole else degrees
            total += float(stats.multivariate_t(location, scale * grown / df, df=df).logpdf(x))
        step = np.outer(x - location, x - location) * precision / (precision + 1)
        scale = scale + (np.trace(step) * np.eye(D) if covariance_type == "spherical" else step)
        location = (precision * location + x) / (precision + 1)
        precision += 1
        degrees += D if covariance_type == "spherical" else 1
    return total
