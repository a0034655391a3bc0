"""The posterior over the number of components: log evidences and a prior on K."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, logsumexp, softmax

from bayesgmm.core.parameters import FloatArray

if TYPE_CHECKING:
    from bayesgmm.inference.evidence import Evidence

SIMULATIONS = 4000
"""Draws of normal log evidences that carry their errors over to the probabilities."""


@dataclass(frozen=True, eq=False)
class ComponentsPosterior:
    """Posterior over the number of components.

    Parameters
    ----------
    n_components : ndarray of shape (M,), int
        K, ascending.
    probabilities : ndarray of shape (M,)
        p(K | X); they sum to 1.
    standard_errors : ndarray of shape (M,)
        Monte Carlo standard deviations of the probabilities; 0 where no errors were given.
    lower, upper : ndarray of shape (M,)
        5 % and 95 % quantiles of the same.
    prior : ndarray of shape (M,)
        p(K), scaled to sum to 1 over the K that are compared.
    """

    n_components: np.ndarray
    probabilities: FloatArray
    standard_errors: FloatArray
    lower: FloatArray
    upper: FloatArray
    prior: FloatArray

    @property
    def mode(self) -> int:
        """Most probable K."""
        return int(self.n_components[np.argmax(self.probabilities)])

    def __str__(self) -> str:
        rows = zip(self.n_components, self.probabilities, self.standard_errors, strict=True)
        return ", ".join(f"p(K = {K}) = {p:.3f} ± {error:.3f}" for K, p, error in rows)


def posterior_over_components(
    log_evidences: Mapping[int, float | Evidence] | ArrayLike,
    prior: str | tuple[str, float] | Mapping[int, float] = "uniform",
    errors: Mapping[int, float] | ArrayLike | None = None,
    *,
    random_state: int | np.random.Generator = 0,
) -> ComponentsPosterior:
    """Posterior over the number of components from log evidences and a prior on K.

    p(K | X) ∝ p(X | K) p(K), over the K given. Evidences mean something beside each other only for the same data, and under
    priors that do not depend on K.

    Parameters
    ----------
    log_evidences : mapping of int to float or Evidence, or array-like of shape (M,)
        log p(X | K) in nats; an array is K = 1 … M. −inf is an evidence of 0.
    prior : "uniform", ("poisson", rate) or mapping of int to float, default "uniform"
        p(K): equal for all K given; Poisson with this rate, cut to the K given; or a number ≥ 0 for each of them.
    errors : mapping of int to float or array-like of shape (M,), optional
        Standard errors of the log evidences; those of ``Evidence`` values are taken when this is None.
    random_state : int or numpy.random.Generator, default 0
        Of the simulation that carries the errors over: 4,000 draws of normal log evidences.

    Returns
    -------
    ComponentsPosterior

    Raises
    ------
    ValueError
        If nothing is given, a value is NaN or +inf, an error is negative, K < 1, or the prior leaves no K a chance.
    TypeError
        If ``prior`` is of none of the three kinds.

    Examples
    --------
    >>> print(posterior_over_components({1: -1130.0, 2: -1115.2, 3: -1116.0}, errors={1: 0.0, 2: 0.02, 3: 0.05}))
    p(K = 1) = 0.000 ± 0.000, p(K = 2) = 0.690 ± 0.011, p(K = 3) = 0.310 ± 0.011
    """
    given = _by_components(log_evidences, "log_evidences")
    if not given:
        raise ValueError("log_evidences is empty: give one for each number of components")
    ks = np.array(sorted(given))
    if ks[0] < 1:
        raise ValueError(f"a number of components must be at least 1; log_evidences has {ks[0]}")
    found = [given[int(K)] for K in ks]
    values = np.array([float(getattr(v, "log_evidence", v)) for v in found])
    for K, value in zip(ks, values, strict=True):
        if np.isnan(value) or value == np.inf:
            raise ValueError(f"the log evidence of K = {K} is {value}: leave K out, or look at why it failed")
    if errors is None:
        spread = np.array([float(getattr(v, "standard_error", 0.0)) for v in found])
    else:
        named = _by_components(errors, "errors")
        if set(named) != set(given):
            raise ValueError(f"errors are for K = {sorted(named)}, log_evidences for K = {ks.tolist()}")
        spread = np.array([float(named[int(K)]) for K in ks])
    if not np.all(np.isfinite(spread)) or np.any(spread < 0):
        raise ValueError(f"errors must be finite and not negative; got {spread}")
    log_prior = log_prior_of_components(prior, ks)
    joint = values + log_prior
    if np.all(joint == -np.inf):
        raise ValueError("no number of components has both an evidence and a prior probability above 0")
    probabilities, errors_of_them, lower, upper = probabilities_with_errors(joint, spread, random_state)
    return ComponentsPosterior(ks, probabilities, errors_of_them, lower, upper, np.exp(log_prior))


def probabilities_with_errors(
    log_joint: FloatArray, errors: FloatArray, random_state: int | np.random.Generator = 0
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Probabilities of models from the logs of evidence times prior, and what the errors of the evidences do to them.

    Parameters
    ----------
    log_joint : ndarray of shape (M,)
        −inf is a probability of 0.
    errors : ndarray of shape (M,)
        Standard errors of the log evidences.
    random_state : int or numpy.random.Generator, default 0

    Returns
    -------
    probabilities, standard_errors, lower, upper : ndarray of shape (M,)
        The last two are 5 % and 95 % quantiles.
    """
    probabilities = softmax(log_joint)
    if not np.any(errors > 0):
        return probabilities, np.zeros(len(log_joint)), probabilities, probabilities
    noise = np.random.default_rng(random_state).standard_normal((SIMULATIONS, len(log_joint)))
    simulated = softmax(log_joint + errors * noise, axis=1)
    lower, upper = np.quantile(simulated, [0.05, 0.95], axis=0)
    return probabilities, simulated.std(axis=0), lower, upper


def _by_components(values: Any, name: str) -> dict[int, Any]:
    """Values by number of components; an array is K = 1 … M."""
    if isinstance(values, Mapping):
        for K in values:
            if not isinstance(K, int | np.integer):
                raise ValueError(f"the keys of {name} must be numbers of components; got {K!r}")
        return {int(K): value for K, value in values.items()}
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(
            f"{name} must be a mapping of K to a number, or an array for K = 1 … M; got shape {array.shape}"
        )
    return dict(enumerate(array.tolist(), start=1))


def log_prior_of_components(prior: Any, ks: np.ndarray) -> FloatArray:
    """Log p(K), normalised over the K given; raises as :func:`posterior_over_components` does."""
    if isinstance(prior, str) and prior == "uniform":
        values = np.zeros(len(ks))
    elif isinstance(prior, Mapping):
        missing = [int(K) for K in ks if K not in prior]
        if missing:
            raise ValueError(f"prior has no probability for K = {missing}")
        chances = np.array([float(prior[int(K)]) for K in ks])
        if not np.all(np.isfinite(chances)) or np.any(chances < 0) or not chances.any():
            raise ValueError(f"prior must be finite numbers ≥ 0, one of them above 0; got {chances}")
        with np.errstate(divide="ignore"):
            values = np.log(chances)
    elif isinstance(prior, tuple) and len(prior) == 2 and prior[0] == "poisson":
        rate = float(prior[1])
        if not (np.isfinite(rate) and rate > 0):
            raise ValueError(f"the rate of a Poisson prior must be a positive number; got {prior[1]}")
        values = ks * np.log(rate) - gammaln(ks + 1.0)
    else:
        raise TypeError(f'prior must be "uniform", ("poisson", rate) or a mapping of K to a probability; got {prior!r}')
    return values - logsumexp(values)
