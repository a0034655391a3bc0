"""Rows with known classes: all classes together are one mixture, and a labelled row belongs to its class's components alone.

Class c has the components of one contiguous block, C_c, with π_k = ρ_c w_k|c, ρ_c the prior probability of the class. With the rows
sorted by class, the log-likelihood

    Σ_{n labelled c} v_n log Σ_{k in C_c} π_k N_k(x_n) + Σ_{n unlabelled} v_n log Σ_k π_k N_k(x_n)

is a sum of passes of the kernel, each over a slice of the rows and a slice of the components; so are the E-step and the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, override

import numpy as np
from numpy.typing import NDArray

from bayesgmm.core import em, kernel, seeding
from bayesgmm.core.covariance import CovarianceStructure
from bayesgmm.core.parameters import FloatArray, MixtureParameters, SufficientStatistics
from bayesgmm.core.priors import ROWS_AT_ONCE, ConjugatePrior, MixturePrior, TableSummary, refuse_singular

NEAR_NATS = 10.0
"""Combinations of the classes' modes within this of the best are starts of their own."""

LabelArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ClassLayout:
    """Which components are whose, and which rows are known to be whose.

    Rows are sorted: those of the first class, those of the second …, then those of unknown class.

    Parameters
    ----------
    names : tuple of str
        The C classes, for messages and tables.
    components : tuple of int
        K_c, number of components of each class.
    rows : tuple of int
        Number of labelled rows of each class.
    n_unlabelled : int, default 0
    priors : ndarray of shape (C,), optional
        ρ, where it is given. None: estimated with the weights.
    positions : ndarray of shape (N,), optional
        Place of each row in the table that was sorted; None where it was sorted already.
    """

    names: tuple[str, ...]
    components: tuple[int, ...]
    rows: tuple[int, ...]
    n_unlabelled: int = 0
    priors: FloatArray | None = None
    positions: LabelArray | None = None

    @property
    def n_components(self) -> int:
        """K = Σ_c K_c."""
        return sum(self.components)

    @property
    def blocks(self) -> tuple[slice, ...]:
        """The components of each class."""
        return _slices(self.components)

    @property
    def labelled(self) -> tuple[slice, ...]:
        """The labelled rows of each class."""
        return _slices(self.rows)

    @property
    def n_labelled(self) -> int:
        """Number of labelled rows."""
        return sum(self.rows)

    @property
    def groups(self) -> LabelArray:
        """Passes (G, 4): first row and one past the last, first component and one past the last."""
        found = [
            (rows.start, rows.stop, block.start, block.stop)
            for rows, block in zip(self.labelled, self.blocks, strict=True)
            if rows.stop > rows.start
        ]
        if self.n_unlabelled:
            found.append((self.n_labelled, self.n_labelled + self.n_unlabelled, 0, self.n_components))
        return np.array(found, dtype=np.int64)

    @property
    def passes(self) -> tuple[tuple[slice, slice], ...]:
        """The same as slices of rows and of components."""
        return tuple((slice(a, b), slice(i, j)) for a, b, i, j in self.groups.tolist())

    @property
    def class_of_component(self) -> LabelArray:
        """Class 0 … C − 1 of each component, (K,)."""
        return np.repeat(np.arange(len(self.components)), self.components)

    @property
    def codes(self) -> LabelArray:
        """Class 0 … C − 1 of each row in sorted order, −1 unknown, (N,)."""
        known = np.repeat(np.arange(len(self.rows)), self.rows)
        return np.concatenate([known, np.full(self.n_unlabelled, -1)])

    def totals(self, weights: FloatArray) -> FloatArray:
        """Sum of the weights (..., K) of each class, (..., C)."""
        return np.add.reduceat(weights, [block.start for block in self.blocks], axis=-1)

    def scaled(self, weights: FloatArray) -> FloatArray:
        """Weights (..., K) with which each class has its given prior; as they are where the priors are estimated."""
        if self.priors is None:
            return weights
        return self.within_class(weights) * self.priors[self.class_of_component]

    def within_class(self, weights: FloatArray) -> FloatArray:
        """Weights w_k|c (..., K) that sum to 1 in each class."""
        return weights / self.totals(weights)[..., self.class_of_component]

    def in_table_order(self, values: Any, axis: int = 0) -> Any:
        """Values of the sorted rows in the order of the table that was sorted."""
        if self.positions is None:
            return values
        return np.take(values, np.argsort(self.positions), axis=axis)


def _slices(sizes: Sequence[int]) -> tuple[slice, ...]:
    stops = np.cumsum(sizes).tolist()
    return tuple(slice(stop - size, stop) for stop, size in zip(stops, sizes, strict=True))


@dataclass(frozen=True, eq=False)
class LabelledProblem(em.Problem):
    """A problem of EM some of whose rows have a known class.

    Parameters
    ----------
    classes : ClassLayout
        Of the rows of ``X``, which are sorted by it. Given priors ρ hold each class's weights to their sum.
    """

    classes: ClassLayout = field(kw_only=True)

    @override
    def e_step(self, parameters: MixtureParameters, moments: str | None = None) -> SufficientStatistics:
        K, D = parameters.means.shape
        form = self.kind.moments if moments is None else moments
        weights = np.ascontiguousarray(self.classes.scaled(parameters.weights))
        counts, first = np.zeros(K), np.zeros((K, D))
        second = np.zeros({"full": (K, D, D), "pooled": (1, D, D), "diagonal": (K, D)}[form])
        log_likelihood = 0.0
        for rows, block in self.classes.passes:
            part = MixtureParameters(weights[block], parameters.means[block], parameters.precision_factors[block])
            v = None if self.sample_weight is None else self.sample_weight[rows]
            sums = kernel.accumulate(self.X[rows], part, v, self.n_threads, form)
            log_likelihood += sums.log_likelihood
            counts[block] += sums.counts
            first[block] += sums.first
            second[slice(None) if form == "pooled" else block] += sums.second
        return SufficientStatistics(log_likelihood, self.total_weight, counts, first, second)

    @override
    def m_step(self, statistics: SufficientStatistics, means: FloatArray) -> tuple[MixtureParameters, FloatArray]:
        parameters, packed = super().m_step(statistics, means)
        return self.admissible(parameters), packed

    @override
    def admissible(self, parameters: MixtureParameters) -> MixtureParameters:
        return replace(parameters, weights=self.classes.scaled(parameters.weights))

    @override
    def initial_assignment(self, method: str, n_components: int, rng: np.random.Generator) -> np.ndarray:
        codes = self._likely_classes()
        v = self.sample_weight
        parts = []
        for c, block in enumerate(self.classes.blocks):
            rows, K = np.flatnonzero(codes == c), self.classes.components[c]
            own: np.ndarray = np.zeros(len(rows), np.int64)
            if K > 1:
                own = seeding.initial_assignment(method, self.X[rows], K, None if v is None else v[rows], rng)
            parts.append((rows, block, own))
        if all(own.ndim == 1 for _, _, own in parts):
            labels = np.empty(len(self.X), np.int64)
            for rows, block, own in parts:
                labels[rows] = block.start + own
            return labels
        resp = np.zeros((len(self.X), n_components))
        for rows, block, own in parts:
            resp[rows, block] = own if own.ndim == 2 else np.eye(block.stop - block.start)[own]
        return resp

    def _likely_classes(self) -> LabelArray:
        """Class of each row: its own, or where unknown that of the nearest class by the pooled covariance."""
        codes, classes = self.classes.codes, self.classes
        if not classes.n_unlabelled:
            return codes
        v = self.sample_weight
        pooled = within_class_covariance(self.X, classes, v)
        pooled += 1e-6 * np.diag(self.feature_scale() ** 2)
        centres, counts = _class_means(self.X, classes, v)
        centred = [np.linalg.solve(np.linalg.cholesky(pooled), (self.X[classes.n_labelled :] - m).T) for m in centres]
        prior = np.log(counts if classes.priors is None else classes.priors)
        score = prior[:, None] - 0.5 * np.stack([np.sum(y * y, axis=0) for y in centred])
        codes[classes.n_labelled :] = np.argmax(score, axis=0)
        return codes

    @override
    def badly_fitted(
        self, parameters: MixtureParameters, lost: NDArray[np.bool_], rng: np.random.Generator
    ) -> LabelArray:
        out = np.empty(len(lost), np.int64)
        for rows, block in zip(self.classes.labelled, self.classes.blocks, strict=True):
            if lost[block].any():
                part = MixtureParameters(*(p[block] for p in _arrays(parameters)))
                v = None if self.sample_weight is None else self.sample_weight[rows]
                own = em.Problem(self.X[rows], self.kind, None, v, n_threads=self.n_threads)
                members = np.flatnonzero(lost[block])
                out[block.start + members] = rows.start + own.badly_fitted(part, lost[block], rng)
        return out[lost]


def _arrays(parameters: MixtureParameters) -> tuple[FloatArray, FloatArray, FloatArray]:
    return parameters.weights, parameters.means, parameters.precision_factors


def _class_means(X: FloatArray, classes: ClassLayout, v: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    """Mean (C, D) and total weight (C,) of each class's labelled rows."""
    means = [np.average(X[rows], axis=0, weights=None if v is None else v[rows]) for rows in classes.labelled]
    return np.stack(means), class_counts(classes, v)


def class_counts(classes: ClassLayout, v: FloatArray | None) -> FloatArray:
    """Total weight of each class's labelled rows, (C,)."""
    return np.array([rows.stop - rows.start if v is None else v[rows].sum() for rows in classes.labelled], dtype=float)


def within_class_covariance(X: FloatArray, classes: ClassLayout, v: FloatArray | None) -> FloatArray:
    """Covariance (D, D) of the labelled rows about their classes' means, Σ_c n_c S_c / Σ_c n_c with S_c of divisor n_c."""
    counts = class_counts(classes, v)
    pooled = np.zeros((X.shape[1], X.shape[1]))
    for rows, mean in zip(classes.labelled, _class_means(X, classes, v)[0], strict=True):
        for start in range(rows.start, rows.stop, ROWS_AT_ONCE):
            part = slice(start, min(start + ROWS_AT_ONCE, rows.stop))
            centred = X[part] - mean
            pooled += (centred if v is None else centred * v[part, None]).T @ centred
    return pooled / counts.sum()


def fraley_raftery(X: FloatArray, classes: ClassLayout, v: FloatArray | None) -> ConjugatePrior:
    """The prior that regularises EM, common to all classes: Λ₀ = S / (K/C)^(2/D), S the covariance within the classes.

    κ₀ = 0.01, ν₀ = D + 2, α = 1 and m₀ the mean of all rows, as :meth:`ConjugatePrior.fraley_raftery`, which this is for one class.

    Parameters
    ----------
    X : ndarray of shape (N, D)
        Sorted.
    classes : ClassLayout
    v : ndarray of shape (N,) or None

    Returns
    -------
    ConjugatePrior
        Resolved.

    Raises
    ------
    ValueError
        If a column is constant within every class, or columns are collinear there.
    """
    K, C, D = classes.n_components, len(classes.names), X.shape[1]
    scale = _regularising_scale(X, classes, v) / (K / C) ** (2 / D)
    return ConjugatePrior(np.ones(K), np.average(X, axis=0, weights=v), 0.01, D + 2.0, scale)


def _regularising_scale(X: FloatArray, classes: ClassLayout, v: FloatArray | None) -> FloatArray:
    pooled = within_class_covariance(X, classes, v)
    total, C = class_counts(classes, v).sum(), len(classes.names)
    pooled *= total / max(total - C, 1.0)
    refuse_singular(pooled, "within the classes the data")
    return pooled


def resolve_prior[P: MixturePrior](
    prior: P, X: FloatArray, classes: ClassLayout, covariance_type: str, v: FloatArray | None
) -> P:
    """Resolve a prior that all classes have in common.

    What is not given comes from all rows, labelled or not, as for a single mixture, but for the scale of a :class:`ConjugatePrior`:
    Λ₀ = (D + 2) S_w, where S_w = Σ_c n_c/n Σ_{k in C_c} w_k|c Σ_k is pooled over maximum a posteriori fits of each class's labelled
    rows, and does not contain the distance between classes.

    Parameters
    ----------
    prior : ConjugatePrior, HierarchicalPrior or SeparationPrior
    X : ndarray of shape (N, D)
        Sorted.
    classes : ClassLayout
    covariance_type : {"full", "tied", "diag", "spherical"}
    v : ndarray of shape (N,) or None

    Returns
    -------
    ConjugatePrior, HierarchicalPrior or SeparationPrior
    """
    return prior.resolve_from(_ClassSummary(X, classes, covariance_type, v), classes.n_components)


class _ClassSummary(TableSummary):
    """A table's summary, but for S_w, which does not contain the distance between classes."""

    def __init__(self, X: FloatArray, classes: ClassLayout, covariance_type: str, v: FloatArray | None) -> None:
        super().__init__(X, classes.n_components, covariance_type, v)
        self._classes = classes

    @property
    @override
    def within_covariance(self) -> FloatArray:
        return _within_components(self.X, self._classes, self.covariance_type, self.sample_weight)


def _within_components(X: FloatArray, classes: ClassLayout, covariance_type: str, v: FloatArray | None) -> FloatArray:
    """S_w of :func:`resolve_prior`."""
    D = X.shape[1]
    pooled, counts = _regularising_scale(X, classes, v), class_counts(classes, v)
    total = np.zeros((D, D))
    for rows, K, share in zip(classes.labelled, classes.components, counts / counts.sum(), strict=True):
        own, weight = X[rows], None if v is None else v[rows]
        mean = np.average(own, axis=0, weights=weight)
        prior = ConjugatePrior(np.ones(K), mean, 0.01, D + 2.0, pooled / K ** (2 / D))
        rng = np.random.default_rng(0)
        best = em.fit(own, K, covariance_type, prior=prior, sample_weight=weight, rng=rng).best.parameters
        total += share * best.within_covariance
    return total


def fit_class(problem: LabelledProblem, c: int, n_init: int, init_params: str, rng: np.random.Generator) -> em.EMFit:
    """Fit the mixture of one class to its labelled rows."""
    rows, block, v = problem.classes.labelled[c], problem.classes.blocks[c], problem.sample_weight
    prior = problem.prior
    if prior is not None:
        prior = replace(prior, weight_concentration=prior.resolved_concentration[block])
    return em.fit(
        problem.X[rows],
        problem.classes.components[c],
        problem.kind.name,
        prior=prior,
        sample_weight=None if v is None else v[rows],
        reg_covar=problem.reg_covar,
        tol=problem.tol,
        max_iter=problem.max_iter,
        n_init=n_init,
        init_params=init_params,
        rng=rng,
        n_threads=problem.n_threads,
    )


def fit_classes(
    problem: LabelledProblem,
    *,
    n_init: int = 10,
    init_params: str = "kmeans",
    rng: np.random.Generator,
    n_combinations: int = 1,
) -> em.EMFit:
    """Fit the mixtures of all classes together.

    Each class is fitted to its labelled rows, from ``n_init`` starts. Together these optima are the optimum of all where every row is
    labelled and no covariance is shared. Otherwise EM goes on from there with all rows, and from ``n_init`` more starts made with
    the unlabelled rows given to the nearest class.

    Parameters
    ----------
    problem : LabelledProblem
    n_init : int, default 10
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}, default "kmeans"
    rng : numpy.random.Generator
    n_combinations : int, default 1
        How many combinations of the classes' modes to start from at most, those within 10 nats of the best.

    Returns
    -------
    EMFit

    Raises
    ------
    DegenerateFitError
        If no start led to positive definite covariances, with the class where it was one.
    """
    classes = problem.classes
    alone = not classes.n_unlabelled and "component" in problem.kind.free_dims
    seeds = rng.spawn(len(classes.names) + 1)
    fits: list[em.EMFit] = []
    for c, name in enumerate(classes.names):
        try:
            fits.append(fit_class(problem, c, n_init, init_params, seeds[c]))
        except em.DegenerateFitError as error:
            if alone:
                raise em.DegenerateFitError(f"class {name}: {error}") from None
    starts: list[tuple[str, em.Start]] = []
    if len(fits) == len(classes.names):
        for modes in _combinations(problem, fits, n_combinations):
            begin = _together(problem, [mode.run for mode in modes])
            starts.append(("the classes' own", lambda _, begin=begin: begin))  # type: ignore[misc]
    if not alone:
        methods = seeding.mixed_starts(init_params, n_init, problem.X.shape[1])
        if max(classes.components) == 1:
            methods = methods[:1]
        starts += [(method, partial(em.start, problem, classes.n_components, method)) for method in methods]
    return em.fit_problem(problem, starts, seeds[-1])


def _combinations(problem: LabelledProblem, fits: Sequence[em.EMFit], n_combinations: int) -> list[tuple[em.Mode, ...]]:
    """Modes, one of each class, best sum first."""
    totals = class_counts(problem.classes, problem.sample_weight)
    near = [
        [(m, (f.modes[0].objective - m.objective) * total) for m in f.modes[:n_combinations] if not m.spurious]
        or [(f.modes[0], 0.0)]
        for f, total in zip(fits, totals, strict=True)
    ]
    near = [[(m, lost) for m, lost in of_class if lost <= NEAR_NATS] for of_class in near]
    # Few classes have many modes; where many do, those of the first stand for their combinations.
    while np.prod([len(of_class) for of_class in near], dtype=float) > 10_000:
        near[int(np.argmax([len(of_class) for of_class in near]))].pop()
    together = sorted(
        ((sum(lost for _, lost in choice), tuple(m for m, _ in choice)) for choice in product(*near)),
        key=lambda pair: pair[0],
    )
    return [modes for lost, modes in together[:n_combinations] if lost <= NEAR_NATS]


def _together(problem: LabelledProblem, runs: Sequence[em.EMRun]) -> tuple[MixtureParameters, FloatArray]:
    """One mixture of the classes' own."""
    classes, kind = problem.classes, problem.kind
    counts = class_counts(classes, problem.sample_weight)
    shares = counts / counts.sum() if classes.priors is None else classes.priors
    weights = np.concatenate([share * run.parameters.weights for share, run in zip(shares, runs, strict=True)])
    means = np.concatenate([run.parameters.means for run in runs])
    packed = _pooled(kind, runs, counts)
    return MixtureParameters(weights, means, kind.factors(packed, *means.shape)), packed


def _pooled(kind: CovarianceStructure, runs: Sequence[em.EMRun], counts: FloatArray) -> FloatArray:
    """Packed covariances of all components; a shared one is the classes' average."""
    if "component" in kind.free_dims:
        return np.concatenate([run.covariances for run in runs])
    return np.asarray(np.average([run.covariances for run in runs], axis=0, weights=counts))
