"""The bootstrap of an EM fit: refits to resampled rows, each started at the fit and put in its order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from bayesgmm.core import em
from bayesgmm.core.covariance import structure
from bayesgmm.core.information import FreeEntries, InformationWarning, StandardErrors
from bayesgmm.core.intervals import Estimated, Limits, check_prob, covariance_limits
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.exceptions import warn_user

BOOTSTRAP_NATS = 1e-5
"""A climb of the bootstrap ends when an iteration gains less than this in all: warm starts that stop early would all stay
close to the fit, and the spread would come out too small."""

MOST_ROWS = 2**53
"""Counts of rows beyond this are no whole numbers of float64."""


@dataclass(frozen=True, eq=False)
class BootstrapReplicates:
    """Refits to resampled rows, components in the order of the fit.

    Parameters
    ----------
    weights : ndarray of shape (B, K)
    means : ndarray of shape (B, K, D)
    covariances : ndarray of shape (B, ...)
        Packed.
    n_failed : int
        Resamples left out because a component lost its rows or its variance in them.
    covariance_type : str
        Name of the structure.
    fit : MixtureParameters
        What was refitted.
    n_unconverged : int
        Replicates that are used although EM ended at ``max_iter``.
    """

    weights: FloatArray
    means: FloatArray
    covariances: FloatArray
    n_failed: int
    covariance_type: str
    fit: MixtureParameters
    n_unconverged: int = 0

    @property
    def _free(self) -> FreeEntries:
        return FreeEntries(structure(self.covariance_type), *self.means.shape[1:])

    @property
    def standard_deviations(self) -> FloatArray:
        """Standard deviations (B, ...), of the shape that :class:`bayesgmm.core.information.StandardErrors` has."""
        return self._free.drop_shared(self._free.deviations(self.covariances))

    @property
    def correlations(self) -> FloatArray | None:
        """Correlations (B, ...), shaped like :class:`bayesgmm.core.information.StandardErrors`; None where the structure has none."""
        free = self._free
        if not free.symmetric or free.n_features == 1:
            return None
        values = free.correlations(self.covariances)
        return values if "component" in free.kind.free_dims else values[:, 0]

    @property
    def standard_errors(self) -> StandardErrors:
        """Standard deviations over the replicates (Efron 1979)."""
        B = len(self.weights)
        flat = [self.weights[:, :-1], self.means.reshape(B, -1), self._free.take(self.covariances)]
        estimates = np.concatenate(flat, axis=1)
        scale = np.maximum(_spread(estimates), np.finfo(float).tiny)
        standard = (estimates - estimates[0]) / scale
        correlations = self.correlations
        with np.errstate(over="ignore"):
            matrix = np.atleast_2d(np.cov(standard, rowvar=False)) * scale * scale[:, None]
        return StandardErrors(
            weights=_spread(self.weights),
            means=_spread(self.means),
            covariances=_spread(self.covariances),
            standard_deviations=_spread(self.standard_deviations),
            correlations=None if correlations is None else _spread(correlations),
            method="bootstrap",
            covariance_type=self.covariance_type,
            covariance_matrix=matrix,
            notes=_bootstrap_notes(B, self.n_failed, self.n_unconverged),
        )

    def interval(self, prob: float = 0.9, kind: str = "percentile") -> dict[str, Limits]:
        """Equal-tailed intervals.

        Parameters
        ----------
        prob : float, default 0.9
        kind : {"percentile", "pivotal"}, default "percentile"
            "percentile" takes quantiles of the replicates (Efron & Tibshirani 1993, section 13.3): short for components of few rows, whose
            variances every resample makes smaller once more. "pivotal" takes those of how far replicates lie from the fit: means
            studentised (Hall 1988), variances as ratios, correlations on Fisher's scale; weights, which need none, by percentiles.

        Returns
        -------
        dict of str to (lower, upper)
            For weights, means, covariances, standard_deviations and (where the structure has them) correlations.

        Raises
        ------
        ValueError
            If ``prob`` lies outside (0, 1) or the kind is unknown.

        References
        ----------
        Hall, P. (1988). Theoretical comparison of bootstrap confidence intervals. Annals of Statistics 16, 927–953.
        """
        check_prob(prob)
        if kind not in ("percentile", "pivotal"):
            raise ValueError(f"kind must be 'percentile' or 'pivotal'; got {kind!r}")
        tails = ((1 - prob) / 2, (1 + prob) / 2)
        values = {"weights": self.weights}
        if kind == "percentile":
            values |= {"means": self.means, "covariances": self.covariances}
            values["standard_deviations"] = self.standard_deviations
            if self.correlations is not None:
                values["correlations"] = self.correlations
        found = {
            name: (np.quantile(v, tails[0], axis=0), np.quantile(v, tails[1], axis=0)) for name, v in values.items()
        }
        return found if kind == "percentile" else found | self._pivotal(*tails)

    def _pivotal(self, low: float, high: float) -> dict[str, Limits]:
        """Limits of all but the weights from quantiles of pivots."""
        free, fit = self._free, self.fit
        packed = free.kind.pack(fit.covariances)

        def ratios(values: FloatArray, at_fit: FloatArray) -> Estimated:
            """A variance, without the bias that resampling shows, and its limits."""
            q_low, middle, q_high = np.quantile(values, [low, 0.5, high], axis=0)
            return at_fit**2 / middle, at_fit**2 / q_high, at_fit**2 / q_low

        entries = free.take(self.covariances).reshape(len(self.weights), free.owners, free.size)
        variances = free.deviations(packed).reshape(free.owners, -1) ** 2
        _, smallest, largest = ratios(entries[..., free.diagonal], variances)
        ends = np.empty((2, free.owners, free.size))
        ends[0][:, free.diagonal], ends[1][:, free.diagonal] = smallest, largest
        error = np.sqrt(variances / fit.weights[:, None])
        pivots = (self.means - fit.means) / np.sqrt(entries[..., free.diagonal] / self.weights[..., None])
        q_low, q_high = np.quantile(pivots, [low, high], axis=0)
        deviations = free.drop_shared(np.sqrt(smallest)), free.drop_shared(np.sqrt(largest))
        found: dict[str, Limits] = {
            "means": (fit.means - q_high * error, fit.means - q_low * error),
            "standard_deviations": deviations,
        }
        if self.correlations is not None:

            def limits(direction: FloatArray, value: FloatArray) -> Estimated:
                return ratios(np.einsum("opq,boq->bop", direction, entries), value)

            ends[0][:, ~free.diagonal], ends[1][:, ~free.diagonal] = covariance_limits(free, packed, limits)
            rho = free.correlations(packed).reshape(self.correlations.shape[1:])
            z_low, z_high = np.quantile(np.arctanh(self.correlations), [low, high], axis=0)
            z = 2 * np.arctanh(rho)
            found["correlations"] = np.tanh(z - z_high), np.tanh(z - z_low)
        found["covariances"] = free.put(ends[0].ravel()), free.put(ends[1].ravel())
        return found


def _spread(values: FloatArray) -> FloatArray:
    """Standard deviation over the first axis, whatever the scale of the values."""
    size = np.maximum(np.max(np.abs(values), axis=0), np.finfo(float).tiny)
    return size * np.std(values / size, axis=0, ddof=1)


def bootstrap(
    problem: em.Problem,
    parameters: MixtureParameters,
    packed: FloatArray,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> BootstrapReplicates:
    """Nonparametric bootstrap: refit to rows drawn with replacement, each time from the fit as the start.

    Resampling draws frequency weights for the same rows, so X is never copied. The prior is held fixed. Frequency
    weights v are Σ v (rounded) rows, drawn in proportion to v.

    Parameters
    ----------
    problem : Problem
    parameters : MixtureParameters
        The fit.
    packed : ndarray
        Its covariances, packed.
    n_bootstrap : int
        Number of resamples B.
    rng : numpy.random.Generator

    Returns
    -------
    BootstrapReplicates

    Raises
    ------
    ValueError
        If ``n_bootstrap`` < 2, or the weights sum to less than 2 rows or to more than can be drawn.
    DegenerateFitError
        If fewer than 2 resamples could be fitted.

    Warns
    -----
    InformationWarning
        If more than 5 % of the resamples failed or did not converge.

    References
    ----------
    Efron (1979), Bootstrap methods: another look at the jackknife, Annals of Statistics 7, 1–26.
    O'Hagan, Murphy, Scrucca & Gormley (2019), Investigation of parameter uncertainty in clustering using a Gaussian mixture
    model via jackknife, bootstrap and weighted likelihood bootstrap, Computational Statistics 34, 1779–1813.
    """
    n_rows = round(problem.total_weight)
    if n_bootstrap < 2:
        raise ValueError(f"n_bootstrap must be at least 2; got {n_bootstrap}")
    if n_rows < 2:
        raise ValueError(f"frequency weights that sum to {problem.total_weight:g} are too few rows to resample")
    if n_rows > MOST_ROWS:
        raise ValueError(
            f"frequency weights that sum to {problem.total_weight:g} are more rows than can be drawn: divide them by a typical one"
        )
    v = problem.sample_weight
    chances = np.full(len(problem.X), 1 / len(problem.X)) if v is None else v / v.sum()
    tol = min(problem.tol, max(BOOTSTRAP_NATS / problem.total_weight, 1e-13))
    found: list[tuple[FloatArray, FloatArray, FloatArray]] = []
    n_failed = n_unconverged = 0
    for _ in range(n_bootstrap):
        drawn = replace(problem, sample_weight=rng.multinomial(n_rows, chances).astype(np.float64), tol=tol)
        try:
            run = em.climb(drawn, parameters, packed, rng)
        except (em.DegenerateFitError, np.linalg.LinAlgError):
            n_failed += 1
            continue
        # A component that was started anew is another one: its replicate says nothing about the fit's.
        if run.n_reseeded:
            n_failed += 1
            continue
        n_unconverged += not run.converged
        order = _fit_order(run.parameters, parameters)
        matrices = problem.kind.expand(run.covariances, *run.parameters.means.shape)
        found.append((run.parameters.weights[order], run.parameters.means[order], problem.kind.pack(matrices[order])))
    if len(found) < 2:
        raise em.DegenerateFitError(
            f"{n_failed} of {n_bootstrap} resamples lost a component: use fewer components, a simpler covariance_type or "
            "a prior"
        )
    if n_failed + n_unconverged > 0.05 * n_bootstrap:
        for note in _bootstrap_notes(len(found), n_failed, n_unconverged):
            warn_user(note, InformationWarning)
    weights, means, covariances = (np.stack(part) for part in zip(*found, strict=True))
    return BootstrapReplicates(weights, means, covariances, n_failed, problem.kind.name, parameters, n_unconverged)


def _bootstrap_notes(n_used: int, n_failed: int, n_unconverged: int) -> tuple[str, ...]:
    notes = []
    if n_failed:
        notes.append(
            f"{n_failed} of {n_used + n_failed} resamples lost a component and are left out: the spread of the others is too small"
        )
    if n_unconverged:
        notes.append(f"EM did not converge in {n_unconverged} of {n_used} resamples: raise max_iter")
    return tuple(notes)


def _fit_order(replicate: MixtureParameters, fit: MixtureParameters) -> np.ndarray:
    """Order of the replicate's components that comes closest to the fit's, in units of the spread within components."""
    spread = np.sqrt(np.diagonal(fit.covariances, axis1=1, axis2=2))
    within = np.sqrt(fit.weights @ spread**2)

    def features(mixture: MixtureParameters) -> FloatArray:
        deviations = np.sqrt(np.diagonal(mixture.covariances, axis1=1, axis2=2))
        return np.column_stack([mixture.means / within, deviations / within, mixture.weights])

    distance = np.sum((features(fit)[:, None] - features(replicate)[None]) ** 2, axis=2)
    return linear_sum_assignment(distance)[1]
