"""Standard errors of an EM fit: inverse observed information and the sandwich.

Louis (1982): with s_nk the score of row n if its label were k, and H_nk the Hessian of the same,

    s_n = Σ_k r_nk s_nk        −∂² log p(x_n) = −Σ_k r_nk H_nk − [Σ_k r_nk s_nk s_nkᵀ − s_n s_nᵀ]

the information of the labelled data less what the missing labels take away. All of it comes from one pass over blocks of rows
(Gram matrices of scores), exact to rounding, at the cost of about P passes of EM for P parameters; no step size has to be
chosen, as it must for differences of gradients. The meat of the sandwich, Σ_n v_n s_n s_nᵀ, is a by-product.

The pass works in coordinates in which every component is a unit normal: μ_k + L_k u and L_k (I + E) L_kᵀ with
L_k = P_k⁻ᵀ. There the information of the labelled data is N_k times a constant diagonal, whatever the scale and the
correlation of the data. A conjugate prior acts as extra observations of known labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag, eigh, solve_triangular

from bayesgmm.core import em, kernel
from bayesgmm.core.covariance import CovarianceStructure, structure
from bayesgmm.core.parameters import Additive, FloatArray, MixtureParameters, SufficientStatistics
from bayesgmm.core.threads import over_chunks
from bayesgmm.exceptions import warn_user

BoolArray = NDArray[np.bool_]

METHODS = ("information", "sandwich")
MAX_PARAMETERS = 4000
"""Largest number of free parameters whose information matrix is formed (128 MB)."""

BOUNDARY = 1e-8
"""A weight, or a share of the rows, below this counts as 0."""

SINGULAR = 1e-8
"""A direction in which less than this share of the labelled data's information is left is not determined."""

HELD_UP = 0.5
"""Share of a variance from which on it is ``reg_covar`` that holds it up, and not the data."""

TOUCHED = 1e-3
"""Share of a parameter's variance, were the labels known, in what ``reg_covar`` holds up, from which on it is not determined either."""

OFF_OPTIMUM = 0.5
"""Standard errors between the parameters and the optimum from which on there is a warning."""

BLOCK_ELEMENTS = 2_000_000
"""Size of the largest array of scores (rows of a block × P); 16 MB."""

MAX_PARTS = 8
"""Pieces of a block of rows whose sums are made beside one another."""


class InformationWarning(UserWarning):
    """Some standard errors do not exist or should not be trusted; the message says which."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StandardErrors:
    """Standard errors of a fitted mixture. What is not determined has the standard error infinity, never NaN.

    Parameters
    ----------
    weights : ndarray of shape (K,)
    means : ndarray of shape (K, D)
        In the units of the data.
    covariances : ndarray
        Packed as the structure; in squared units.
    standard_deviations : ndarray
        (K, D) full and diag, (D,) tied, (K,) spherical. Delta method.
    correlations : ndarray or None
        (K, D (D − 1) / 2) full, (D (D − 1) / 2,) tied, in the order of ``np.tril_indices(D, -1)``; None where the structure
        has none. Delta method.
    method : {"information", "sandwich", "bootstrap"}
    covariance_type : str
        Name of the structure.
    covariance_matrix : ndarray of shape (P, P)
        Of the free parameters: weights 1 … K − 1, means row by row, then the free entries of the packed covariances (lower
        triangles row by row). A parameter that is not determined has an infinite variance and covariances 0.
    undetermined : tuple of int
        Components with a parameter that the data do not determine.
    notes : tuple of str
        What is wrong, in words.
    """

    weights: FloatArray
    means: FloatArray
    covariances: FloatArray
    standard_deviations: FloatArray
    correlations: FloatArray | None
    method: str
    covariance_type: str
    covariance_matrix: FloatArray
    undetermined: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def by_name(
        self, feature_names: Sequence[str], order: Sequence[int] | np.ndarray | None = None
    ) -> dict[str, float]:
        """Standard errors of weights, means, standard deviations and correlations by the names of a summary's rows.

        Parameters
        ----------
        feature_names : sequence of str
        order : sequence of int, optional
            Which component stands first, second, …; the fit's own order when None.

        Returns
        -------
        dict of str to float
            Keys such as ``means[0, waiting]`` and ``correlations[0, eruptions:waiting]``.
        """
        arrays = {
            "weights": self.weights,
            "means": self.means,
            "standard_deviations": self.standard_deviations,
            "correlations": self.correlations,
        }
        return named_scalars(arrays, structure(self.covariance_type), feature_names, order)


def named_scalars(
    arrays: Mapping[str, FloatArray | None],
    kind: CovarianceStructure,
    feature_names: Sequence[str],
    order: Sequence[int] | np.ndarray | None = None,
) -> dict[str, float]:
    """Numbers of weights, means, standard deviations and correlations by the names of a summary's rows.

    Parameters
    ----------
    arrays : mapping of str to ndarray or None
        ``weights``, ``means``, ``standard_deviations`` and ``correlations``, of the shapes that :class:`StandardErrors` has.
    kind : CovarianceStructure
    feature_names : sequence of str
    order : sequence of int, optional
        Which component stands first, second, …; the fit's own order when None.

    Returns
    -------
    dict of str to float
    """
    names = list(feature_names)
    rows, cols = np.tril_indices(len(names), -1)
    labels = {"feature": names, "feature_pair": [f"{names[j]}:{names[i]}" for i, j in zip(rows, cols, strict=True)]}
    dims_of = {
        "weights": ("component",),
        "means": ("component", "feature"),
        "standard_deviations": kind.deviation_dims,
        "correlations": kind.correlation_dims,
    }
    out: dict[str, float] = {}
    for variable, dims in dims_of.items():
        values = arrays.get(variable)
        if values is None or dims is None:
            continue
        if order is not None and "component" in dims:
            values = values[list(order)]
        for index in np.ndindex(values.shape):
            where = [str(i) if d == "component" else labels[d][i] for d, i in zip(dims, index, strict=True)]
            out[f"{variable}[{', '.join(where)}]"] = float(values[index])
    return out


class FreeEntries:
    """The free numbers of packed covariances, read off the structure's dims: for each owner of a covariance, q entries."""

    def __init__(self, kind: CovarianceStructure, n_components: int, n_features: int) -> None:
        self.kind, self.n_components, self.n_features = kind, n_components, n_features
        self.symmetric, self.pooled = "feature_bis" in kind.free_dims, "feature" not in kind.free_dims
        if self.symmetric:
            self.rows, self.cols = np.tril_indices(n_features)
        else:
            self.rows = self.cols = np.arange(1 if self.pooled else n_features)
        self.size = len(self.rows)
        self.diagonal = self.rows == self.cols
        self.multiplicity = np.where(self.diagonal, 1.0, 2.0)
        self.owners = n_components if "component" in kind.free_dims else 1
        self.basis = np.zeros((self.size, n_features, n_features))
        self.basis[np.arange(self.size), self.rows, self.cols] = 1.0
        self.basis[np.arange(self.size), self.cols, self.rows] = 1.0
        if self.pooled:
            self.basis[0] = np.eye(n_features)

    def contract(self, matrices: FloatArray) -> FloatArray:
        """tr(J_a M) for symmetric M (..., D, D) and every J_a = ∂Σ/∂entry a, shape (..., q)."""
        if self.pooled:
            return np.trace(matrices, axis1=-2, axis2=-1)[..., None]
        return self.multiplicity * matrices[..., self.rows, self.cols]

    def squares(self, z: FloatArray) -> FloatArray:
        """½ tr(J_a (z zᵀ − I)) of rows z (B, D), shape (B, q): the score of a unit normal's covariance."""
        if self.pooled:
            return 0.5 * (np.einsum("bj,bj->b", z, z)[:, None] - self.n_features)
        return 0.5 * self.multiplicity * (z[:, self.rows] * z[:, self.cols] - self.diagonal)

    def take(self, packed: FloatArray) -> FloatArray:
        """Free entries (..., owners · q) of packed covariances."""
        lead = packed.shape[: packed.ndim - len(self.kind.free_dims)]
        entries = packed[..., self.rows, self.cols] if self.symmetric else packed
        return entries.reshape(*lead, self.owners * self.size)

    def put(self, entries: FloatArray) -> FloatArray:
        """Packed covariances of free entries (owners · q)."""
        packed = np.empty(self.kind.shape(self.n_components, self.n_features))
        if self.symmetric:
            values = entries.reshape(*packed.shape[:-2], self.size)
            packed[..., self.rows, self.cols] = packed[..., self.cols, self.rows] = values
            return packed
        packed[...] = entries.reshape(packed.shape)
        return packed

    def deviations(self, packed: FloatArray) -> FloatArray:
        """Standard deviations (..., owners, 1 or D) of packed covariances."""
        entries = self.take(packed)
        return np.sqrt(entries.reshape(*entries.shape[:-1], self.owners, self.size)[..., self.diagonal])

    def correlations(self, packed: FloatArray) -> FloatArray:
        """Correlations (..., owners, pairs) of packed covariances."""
        entries = self.take(packed)
        entries = entries.reshape(*entries.shape[:-1], self.owners, self.size)[..., ~self.diagonal]
        deviations = self.deviations(packed)
        i, j = self.rows[~self.diagonal], self.cols[~self.diagonal]
        return entries / deviations[..., i] / deviations[..., j]

    def drop_shared(self, values: FloatArray) -> FloatArray:
        """Values (..., owners, n) without the axes along which they are the same."""
        values = values if "component" in self.kind.deviation_dims else values[..., 0, :]
        return values if "feature" in self.kind.deviation_dims else values[..., 0]


class ScoreCoordinates:
    """Coordinates in which every component is a unit normal: weights, then K · D of u, then owners · q of E.

    Parameters
    ----------
    kind : CovarianceStructure
    parameters : MixtureParameters
    active : ndarray of bool of shape (K,), optional
        Components whose weight may move. Default: all.
    with_prior : bool, default True
        Whether a prior determines what a component without rows has of its own.
    """

    def __init__(
        self,
        kind: CovarianceStructure,
        parameters: MixtureParameters,
        active: BoolArray | None = None,
        with_prior: bool = True,
    ) -> None:
        K, D = parameters.n_components, parameters.n_features
        self.parameters, self.free = parameters, FreeEntries(kind, K, D)
        pi = parameters.weights
        self.active = np.ones(K, dtype=bool) if active is None else active
        reference = int(np.argmax(np.where(self.active, pi, -1.0)))
        movable = np.flatnonzero(self.active & (np.arange(K) != reference))
        self.n_weights = len(movable)
        self.from_weights = np.zeros((K, self.n_weights))
        self.from_weights[movable, np.arange(self.n_weights)] = 1.0
        self.from_weights[reference] = -1.0
        self.log_weight_gradient = self.from_weights / np.where(self.active, pi, 1.0)[:, None]
        self.size = self.n_weights + K * D + self.free.owners * self.free.size
        # What a component without rows and without a prior has of its own cannot be estimated.
        kept = np.ones(K, dtype=bool) if with_prior else self.active
        own = kept if self.free.owners == K else np.ones(1, dtype=bool)
        self.kept = np.concatenate([np.ones(self.n_weights, bool), np.repeat(kept, D), np.repeat(own, self.free.size)])

    def mean_slots(self, k: int) -> slice:
        """Where the u of component k lie."""
        begin = self.n_weights + k * self.free.n_features
        return slice(begin, begin + self.free.n_features)

    def covariance_slots(self, k: int) -> slice:
        """Where the E of component k, or of all, lies."""
        owner = k if self.free.owners > 1 else 0
        begin = self.n_weights + self.free.n_components * self.free.n_features + owner * self.free.size
        return slice(begin, begin + self.free.size)

    def slots(self, k: int) -> np.ndarray:
        """Both."""
        index = np.arange(self.size)
        return np.concatenate([index[self.mean_slots(k)], index[self.covariance_slots(k)]])

    def add(self, total: FloatArray, k: int, block: FloatArray) -> None:
        """Add the block (1 + D + q) of component k, its first row and column along ∂log π_k, to a matrix (P, P)."""
        w, slots = self.log_weight_gradient[k], self.slots(k)
        W = slice(0, self.n_weights)
        total[W, W] += block[0, 0] * np.outer(w, w)
        total[W, slots] += np.outer(w, block[0, 1:])
        total[slots, W] += np.outer(block[0, 1:], w)
        total[np.ix_(slots, slots)] += block[1:, 1:]

    def held_up(self, reg_covar: float) -> tuple[FloatArray | None, BoolArray]:
        """Directions of the covariances that have their variance from ``reg_covar``.

        Returns
        -------
        turn : ndarray of shape (P, P) or None
            Coordinates along the principal axes of what ``reg_covar`` adds to each covariance, in units of that; None where it holds up
            nothing.
        held : ndarray of bool of shape (P,)
            Those along which it does.
        """
        free, held = self.free, np.zeros(self.size, dtype=bool)
        P = self.parameters.precision_factors[: free.owners]
        shares, axes = np.linalg.eigh(reg_covar * np.swapaxes(P, 1, 2) @ P)
        if not (shares > HELD_UP).any():
            return None, held
        turn = np.eye(self.size)
        for owner in range(free.owners):
            slots, low = self.covariance_slots(owner), shares[owner] > HELD_UP
            if free.symmetric:
                turned = axes[owner] @ free.basis @ axes[owner].T
                # Entries in units in which all pairs of axes weigh the same.
                turn[slots, slots] = turned[:, free.rows, free.cols].T / np.sqrt(free.multiplicity)
                held[slots] = low[free.rows] | low[free.cols]
            else:
                held[slots] = reg_covar * np.square(np.diagonal(P[owner]))[: free.size] > HELD_UP
        return turn, held

    def to_natural(self) -> tuple[FloatArray, FloatArray]:
        """Jacobian of (all K weights, means, free covariance entries) in units of ``scale``, and ``scale``."""
        free, P = self.free, self.parameters.precision_factors
        roots = np.linalg.solve(np.swapaxes(P, 1, 2), np.broadcast_to(np.eye(free.n_features), P.shape))
        deviations = np.linalg.norm(roots, axis=2)
        scaled = roots / deviations[:, :, None]
        blocks = [(scaled[k] @ free.basis @ scaled[k].T)[:, free.rows, free.cols].T for k in range(free.owners)]
        entry_scale = deviations[: free.owners, free.rows] * deviations[: free.owners, free.cols]
        scale = np.concatenate([np.ones(free.n_components), deviations.ravel(), entry_scale.ravel()])
        return block_diag(self.from_weights, *scaled, *blocks), scale


def standard_errors(
    problem: em.Problem, parameters: MixtureParameters, packed: FloatArray, method: str = "information"
) -> StandardErrors:
    """Standard errors at fitted parameters from the information in the data.

    Parameters
    ----------
    problem : Problem
        Data, structure, weights and prior of the fit. Under a prior the information is that of the log posterior in
        (π, μ, Σ).
    parameters : MixtureParameters
        The fit; should be an optimum of the problem.
    packed : ndarray
        Its covariances, packed.
    method : {"information", "sandwich"}, default "information"
        "information" is I⁻¹, the inverse observed information (Louis 1982). "sandwich" is I⁻¹ V I⁻¹ with
        V = Σ_n v_n (s_n − s̄)(s_n − s̄)ᵀ (White 1982, theorem 3.2), right also where the components are not normal; s_n are scores
        of the likelihood, centred because under a prior they do not sum to 0. Frequency weights count as repeated rows.

    Returns
    -------
    StandardErrors

    Raises
    ------
    ValueError
        If the method is unknown or there are more than ``MAX_PARAMETERS`` free parameters.

    Warns
    -----
    InformationWarning
        If the information is singular (the message names the components), a weight is at its boundary 0, or the parameters
        are not at the optimum.

    References
    ----------
    Louis (1982), Finding the observed information matrix when using the EM algorithm, JRSS B 44, 226–233.
    White (1982), Maximum likelihood estimation of misspecified models, Econometrica 50, 1–25.
    """
    if method not in METHODS:
        raise ValueError(f"method must be 'information', 'sandwich' or 'bootstrap'; got {method!r}")
    K, D = parameters.n_components, parameters.n_features
    n_parameters = problem.kind.n_parameters(K, D)
    if n_parameters > MAX_PARAMETERS:
        raise ValueError(
            f"{n_parameters} free parameters are more than the {MAX_PARAMETERS} whose information matrix is formed: use "
            "method='bootstrap', or a simpler covariance_type"
        )
    active = parameters.weights >= BOUNDARY
    if problem.prior is None:
        active &= problem.e_step(parameters).counts >= BOUNDARY * problem.total_weight
    coordinates = ScoreCoordinates(problem.kind, parameters, active, problem.prior is not None)
    sums = problem.total(ScoreMoments(coordinates, problem.n_threads))
    meat = sums.meat
    observed, expected, gradient, slope = _information(problem, coordinates, sums.grams, meat)

    jacobian, scale = coordinates.to_natural()
    turn, held = coordinates.held_up(problem.reg_covar if problem.prior is None else 0.0)
    if turn is not None:
        observed, expected, meat = (turn.T @ matrix @ turn for matrix in (observed, expected, meat))
        gradient, slope, jacobian = turn.T @ gradient, turn.T @ slope, jacobian @ turn
    kept, fixed = np.flatnonzero(coordinates.kept & ~held), np.flatnonzero(coordinates.kept & held)
    part = np.ix_(kept, kept)
    # Where the labelled data's information is the identity, eigenvalues are the shares of it that are left.
    whiten = solve_triangular(np.linalg.cholesky(expected[part]), np.eye(len(kept)), lower=True).T
    root, null = _inverse_root(whiten.T @ observed[part] @ whiten)
    natural = jacobian[:, kept] @ whiten
    total = np.sum(natural**2, axis=1)
    upheld = np.sum(jacobian[:, fixed] ** 2 / np.diagonal(expected)[fixed], axis=1)
    propped = upheld > TOUCHED * (upheld + total)
    lost = np.sum((natural @ null) ** 2, axis=1) > 1e-6 * total
    lost |= np.concatenate([~coordinates.active, ~coordinates.kept[coordinates.n_weights :]])
    natural, root = natural @ root, whiten @ root
    if method == "sandwich":
        spread = (meat - np.outer(slope, slope) / problem.total_weight)[part]
        scaled = natural @ (root.T @ spread @ root) @ natural.T
    else:
        scaled = natural @ natural.T
    # Newton's decrement: how far the optimum lies from here, at most, in standard errors of any linear function.
    distance = float(np.linalg.norm(root.T @ gradient[kept]))
    undetermined, notes = _report(coordinates, lost, propped, distance)
    for note in notes:
        warn_user(note, InformationWarning)
    return _collect(coordinates.free, scaled, scale, lost | propped, packed, method, undetermined, notes)


def _inverse_root(information: FloatArray) -> tuple[FloatArray, FloatArray]:
    """R with R Rᵀ the inverse of a symmetric matrix where its eigenvalues exceed ``SINGULAR``; the other eigenvectors."""
    identity = np.eye(len(information))
    try:
        np.linalg.cholesky(information - SINGULAR * identity)
        lower = np.linalg.cholesky(information)
    except np.linalg.LinAlgError:
        values, vectors = eigh(information)
        determined = values > SINGULAR
        return vectors[:, determined] / np.sqrt(values[determined]), vectors[:, ~determined]
    return solve_triangular(lower, identity, lower=True).T, identity[:, :0]


@dataclass(frozen=True, eq=False)
class ScoreSums(Additive):
    """Sums over rows of products of scores; those over parts of the rows add with ``+``.

    Parameters
    ----------
    log_likelihood : float
        Σ_n v_n log p(x_n).
    total_weight : float
        Σ_n v_n.
    grams : ndarray of shape (K, 1 + D + q, 1 + D + q)
        Σ_n v_n r_nk a aᵀ with a = (1, score of component k about its mean and covariance).
    meat : ndarray of shape (P, P)
        Σ_n v_n s_n s_nᵀ.
    """

    log_likelihood: float
    total_weight: float
    grams: FloatArray
    meat: FloatArray

    def missing_information(self, coordinates: ScoreCoordinates) -> FloatArray:
        """What the missing labels take away (P, P): Σ_n v_n (Σ_k r_nk s_nk s_nkᵀ − s_n s_nᵀ) (Louis 1982)."""
        out = -self.meat
        for k, gram in enumerate(self.grams):
            coordinates.add(out, k, gram)
        return out

    def statistics(self, parameters: MixtureParameters) -> SufficientStatistics:
        """The sums of the one pass at the same parameters."""
        D = parameters.n_features
        roots = np.linalg.inv(parameters.precision_factors)
        first = self.grams[:, 0, 1 : 1 + D, None]
        second = self.grams[:, 1 : 1 + D, 1 : 1 + D]
        return SufficientStatistics(
            self.log_likelihood,
            self.total_weight,
            self.grams[:, 0, 0].copy(),
            (np.swapaxes(roots, 1, 2) @ first)[..., 0],
            np.swapaxes(roots, 1, 2) @ second @ roots,
        )


@dataclass(frozen=True, eq=False)
class ScoreMoments:
    """Task (:data:`bayesgmm.core.blocks.Task`): products of the scores of rows, in pieces of them."""

    coordinates: ScoreCoordinates
    n_threads: int | None = None

    def __call__(self, X: FloatArray, v: FloatArray | None, block: int) -> ScoreSums:
        """Sums over the rows of a block."""
        size, (K, T) = self.coordinates.size, self._shape()
        rows = max(64, min(8192, BLOCK_ELEMENTS // max(1, size)))
        # Few partial sums, of pieces that depend on the problem alone.
        chunk_rows = rows * max(1, -(-len(X) // (rows * MAX_PARTS)))
        parts: list[ScoreSums | None] = [None] * max(1, -(-len(X) // chunk_rows))

        def task(chunk: int, start: int, stop: int) -> None:
            total = ScoreSums(0.0, 0.0, np.zeros((K, T, T)), np.zeros((size, size)))
            for begin in range(start, stop, rows):
                part = slice(begin, min(stop, begin + rows))
                weight = None if v is None else v[part]
                total = self._add(total, X[part], weight)
            parts[chunk] = total

        over_chunks(len(X), chunk_rows, kernel.pass_cost(len(X), K, X.shape[1]) * T, self.n_threads, task)
        out = ScoreSums(0.0, 0.0, np.zeros((K, T, T)), np.zeros((size, size)))
        for done in parts:
            out = out if done is None else out + done
        return out

    def _shape(self) -> tuple[int, int]:
        parameters = self.coordinates.parameters
        return parameters.n_components, 1 + parameters.n_features + self.coordinates.free.size

    def _add(self, total: ScoreSums, X: FloatArray, v: FloatArray | None) -> ScoreSums:
        """Add a few rows to the sums."""
        coordinates, parameters, free = self.coordinates, self.coordinates.parameters, self.coordinates.free
        D, grams = parameters.n_features, total.grams
        r, log_density = kernel.responsibilities(X, parameters, 1)
        root = None if v is None else np.sqrt(v)
        scores = np.zeros((len(X), coordinates.size))
        scores[:, : coordinates.n_weights] = r @ coordinates.log_weight_gradient
        for k in map(int, np.flatnonzero(coordinates.active)):
            member = np.flatnonzero(r[:, k] > kernel.NEGLIGIBLE)
            z = (X[member] - parameters.means[k]) @ parameters.precision_factors[k]
            own = np.hstack([np.ones((len(z), 1)), z, free.squares(z)])
            share = r[member, k, None]
            scores[:, coordinates.mean_slots(k)][member] = share * own[:, 1 : 1 + D]
            scores[:, coordinates.covariance_slots(k)][member] += share * own[:, 1 + D :]
            own *= np.sqrt(share) if root is None else np.sqrt(share) * root[member, None]
            grams[k] += own.T @ own
        if root is not None:
            scores *= root[:, None]
        np.add(total.meat, scores.T @ scores, out=total.meat)
        weight = float(len(X)) if v is None else float(v.sum())
        likelihood = float(log_density.sum()) if v is None else float(v[v > 0] @ log_density[v > 0])
        return replace(
            total, log_likelihood=total.log_likelihood + likelihood, total_weight=total.total_weight + weight
        )


def _information(
    problem: em.Problem, coordinates: ScoreCoordinates, grams: FloatArray, meat: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Observed information, that of the labelled data at their optimum, gradients of the objective and of the likelihood."""
    parameters, free, prior = coordinates.parameters, coordinates.free, problem.prior
    K, D = parameters.n_components, parameters.n_features
    identity = np.eye(D)
    observed, expected = meat.copy(), np.zeros_like(meat)
    gradient, likelihood_gradient = np.zeros(coordinates.size), np.zeros(coordinates.size)
    # The prior of a structure that pools over components or axes, shared out over what it pools.
    pooled_over = problem.kind.divisor(np.ones(K), D)
    if prior is not None:
        extra_scatter = problem.kind.expand(
            np.broadcast_to(problem.kind.prior_scatter(prior) / pooled_over, problem.kind.shape(K, D)), K, D
        )
        extra = np.broadcast_to(np.ravel(problem.kind.prior_divisor(prior, K, D) / pooled_over), (K,))
    for k in range(K):
        gram, P = grams[k], parameters.precision_factors[k]
        count, slope, scatter = gram[0, 0], gram[0, 1 : 1 + D], gram[1 : 1 + D, 1 : 1 + D]
        slots = coordinates.slots(k)
        likelihood_gradient[: coordinates.n_weights] += count * coordinates.log_weight_gradient[k]
        likelihood_gradient[slots] += gram[0, 1:]
        mean_count = covariance_count = weight_count = count
        if prior is not None:
            pull = (prior.resolved_mean - parameters.means[k]) @ P
            weight_count = count + prior.resolved_concentration[k] - 1
            mean_count, covariance_count = count + prior.mean_precision, count + extra[k]
            slope = slope + prior.mean_precision * pull
            scatter = scatter + P.T @ extra_scatter[k] @ P + prior.mean_precision * np.outer(pull, pull)
        gradient[: coordinates.n_weights] += weight_count * coordinates.log_weight_gradient[k]
        gradient[slots] += np.concatenate([slope, 0.5 * free.contract(scatter - covariance_count * identity)])
        coordinates.add(observed, k, _labelled(free, weight_count, mean_count, covariance_count, slope, scatter) - gram)
        ideal = max(weight_count, np.finfo(float).tiny)
        coordinates.add(
            expected, k, _labelled(free, ideal, mean_count, covariance_count, 0 * slope, covariance_count * identity)
        )
    return observed, expected, gradient, likelihood_gradient


def _labelled(
    free: FreeEntries,
    weight_count: float,
    mean_count: float,
    covariance_count: float,
    slope: FloatArray,
    scatter: FloatArray,
) -> FloatArray:
    """Information of labelled rows about (log π_k, u, E), for first and second moments of whitened rows.

    −∂² of −n/2 log|Σ| − ½ tr(Σ⁻¹ S) at Σ = I along J_a and J_b is tr(J_a J_b (S − n I / 2)).
    """
    D = free.n_features
    out = np.zeros((1 + D + free.size, 1 + D + free.size))
    out[0, 0] = weight_count
    out[1 : 1 + D, 1 : 1 + D] = mean_count * np.eye(D)
    out[1 + D :, 1 : 1 + D] = free.basis @ slope
    out[1 : 1 + D, 1 + D :] = out[1 + D :, 1 : 1 + D].T
    products = free.basis @ (scatter - 0.5 * covariance_count * np.eye(D))
    out[1 + D :, 1 + D :] = free.contract(0.5 * (products + np.swapaxes(products, 1, 2)))
    return out


def _report(
    coordinates: ScoreCoordinates, lost: BoolArray, held: BoolArray, distance: float
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Components with undetermined parameters, and what is wrong in words."""
    K, D = coordinates.free.n_components, coordinates.free.n_features

    def owners(entries: BoolArray) -> BoolArray:
        own = entries[:K] | entries[K : K + K * D].reshape(K, D).any(axis=1)
        return own | entries[K + K * D :].reshape(coordinates.free.owners, -1).any(axis=1)

    def named(own: BoolArray) -> str:
        which = list(map(int, np.flatnonzero(own & coordinates.active)))
        return f"component{'s' * (len(which) > 1)} {', '.join(map(str, which))}" if which else ""

    notes = []
    for k in map(int, np.flatnonzero(~coordinates.active)):
        also = "; its mean and covariance are the prior's" if coordinates.kept[coordinates.mean_slots(k)].all() else ""
        notes.append(f"component {k} has no rows (its weight is at the boundary 0), so it has no standard errors{also}")
    if which := named(owners(lost)):
        notes.append(
            f"the observed information is singular (or this is no maximum) in parameters of {which}: the data do not "
            "determine them, and their standard errors are infinite. Use fewer components, a simpler covariance_type, a "
            "prior or the bootstrap"
        )
    if which := named(owners(held & ~lost)):
        notes.append(
            f"reg_covar makes up more than half of a variance of {which}: the data do not determine what it holds up (a constant column, "
            "or collinear ones), and its standard errors are infinite. Drop such columns, or lower reg_covar"
        )
    if distance > OFF_OPTIMUM:
        notes.append(
            f"the parameters may lie up to {distance:.2g} of their standard errors from the optimum: fit these data with a "
            "smaller tol (and a reg_covar that is small against the variances)"
        )
    return tuple(int(k) for k in np.flatnonzero(owners(lost | held))), tuple(notes)


def _collect(
    free: FreeEntries,
    scaled: FloatArray,
    scale: FloatArray,
    lost: BoolArray,
    packed: FloatArray,
    method: str,
    undetermined: tuple[int, ...],
    notes: tuple[str, ...],
) -> StandardErrors:
    """Standard errors from the covariance matrix of all weights, means and free entries in units of ``scale``."""
    K, D = free.n_components, free.n_features
    with np.errstate(over="ignore"):
        errors = np.where(lost, np.inf, np.sqrt(np.maximum(np.diagonal(scaled), 0.0)) * scale)
        matrix = scaled * scale * scale[:, None]
    matrix[lost] = matrix[:, lost] = 0.0
    matrix[lost, lost] = np.inf
    estimated = np.arange(len(scale)) != K - 1
    entries = errors[K + K * D :].reshape(free.owners, free.size)
    correlations = None
    if free.symmetric and D > 1:
        rho = free.correlations(packed).reshape(free.owners, -1)
        pairs = np.flatnonzero(~free.diagonal)
        variances = np.flatnonzero(free.diagonal)
        ends = np.stack([variances[free.rows[pairs]], variances[free.cols[pairs]]])
        out = np.empty_like(rho)
        for owner in range(free.owners):
            slope = np.zeros((len(pairs), free.size))
            slope[np.arange(len(pairs)), pairs] = 1.0
            slope[np.arange(len(pairs)), ends] = -0.5 * rho[owner]
            begin = K + K * D + owner * free.size
            block = scaled[begin : begin + free.size, begin : begin + free.size]
            out[owner] = np.sqrt(np.maximum(np.einsum("pi,ij,pj->p", slope, block, slope, optimize=True), 0.0))
            gone = ~np.isfinite(entries[owner])
            out[owner, gone[pairs] | gone[ends].any(axis=0)] = np.inf
        correlations = out if "component" in free.kind.free_dims else out[0]
    deviations = free.deviations(packed).reshape(free.owners, -1)
    return StandardErrors(
        weights=errors[:K],
        means=errors[K : K + K * D].reshape(K, D),
        covariances=free.put(entries),
        standard_deviations=free.drop_shared(entries[:, free.diagonal] / (2 * deviations)),
        correlations=correlations,
        method=method,
        covariance_type=free.kind.name,
        covariance_matrix=matrix[np.ix_(estimated, estimated)],
        undetermined=undetermined,
        notes=notes,
    )
