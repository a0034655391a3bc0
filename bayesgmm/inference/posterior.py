"""Posterior draws of a mixture: in one order of the components, derived quantities, and ArviZ's DataTree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from bayesgmm import garbage
from bayesgmm.core import kernel
from bayesgmm.core.classes import ClassLayout
from bayesgmm.core.covariance import CovarianceStructure
from bayesgmm.core.hierarchical import HierarchicalPrior, Prior, pack_rate
from bayesgmm.core.parameters import FloatArray, covariances_from_factors
from bayesgmm.core.separation import SeparationPrior

if TYPE_CHECKING:
    from xarray import DataTree

    from bayesgmm.inference.compiled import MixturePosterior

LOG_LIKELIHOOD_LIMIT = 20_000_000
"""Draws × rows up to which the pointwise log-likelihood is stored with the posterior (160 MB)."""


COMPONENT_DIM = "component_id"
"""The components' dim in the DataTree. The PyMC model says ``component``, which ``az.psense_summary`` needs for its own use."""


@dataclass(frozen=True, eq=False)
class PosteriorDraws:
    """Draws of a mixture's parameters.

    Parameters
    ----------
    weights : ndarray of shape (chains, draws, K)
    means : ndarray of shape (chains, draws, K, D)
    precision_factors : ndarray of shape (chains, draws, K, D, D)
    scale_factors : ndarray of shape (chains, draws, D, D), optional
        Lower V with V Vᵀ = (2 C₀)⁻¹ of a hierarchical prior.
    """

    weights: FloatArray
    means: FloatArray
    precision_factors: FloatArray
    scale_factors: FloatArray | None = None

    @property
    def n_chains(self) -> int:
        """Number of chains."""
        return int(self.weights.shape[0])

    @property
    def n_draws(self) -> int:
        """Number of draws per chain."""
        return int(self.weights.shape[1])

    @property
    def covariances(self) -> FloatArray:
        """Covariance matrices (chains, draws, K, D, D)."""
        return covariances_from_factors(self.precision_factors)

    def flat(self, every: int = 1) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Weights, means and precision factors with chains joined, every ``every``-th draw."""
        K, D = self.means.shape[2:]
        return (
            np.ascontiguousarray(self.weights.reshape(-1, K)[::every]),
            np.ascontiguousarray(self.means.reshape(-1, K, D)[::every]),
            np.ascontiguousarray(self.precision_factors.reshape(-1, K, D, D)[::every]),
        )

    def thinned(self, n_draws: int) -> PosteriorDraws:
        """About ``n_draws`` draws in all, evenly spaced in each chain; itself where there are no more."""
        keep = self.thinning(n_draws)
        if len(keep) == self.n_draws:
            return self
        scale = None if self.scale_factors is None else self.scale_factors[:, keep]
        return PosteriorDraws(self.weights[:, keep], self.means[:, keep], self.precision_factors[:, keep], scale)

    def thinning(self, n_draws: int) -> np.ndarray:
        """Which draws of each chain :meth:`thinned` keeps."""
        each = min(self.n_draws, -(-n_draws // self.n_chains))
        return np.linspace(0, self.n_draws - 1, each).round().astype(int)

    def batch_edges(self) -> np.ndarray:
        """Edges of batches of consecutive draws for batch means, over the draws of :meth:`flat`.

        About √n batches of √n draws in a chain (Flegal & Jones 2010), and no batch over two chains.
        """
        n_batches = max(1, int(np.sqrt(self.n_draws)))
        within = np.linspace(0, self.n_draws, n_batches + 1).round().astype(np.int64)
        starts = self.n_draws * np.arange(self.n_chains)
        return np.append((starts[:, None] + within[:-1]).ravel(), self.n_chains * self.n_draws)

    def permuted(self, permutations: np.ndarray) -> PosteriorDraws:
        """Draws with the components of each in the order of ``permutations`` (chains · draws, K)."""
        order = permutations.reshape(self.weights.shape)
        return PosteriorDraws(
            np.take_along_axis(self.weights, order, axis=2),
            np.take_along_axis(self.means, order[..., None], axis=2),
            np.take_along_axis(self.precision_factors, order[..., None, None], axis=2),
            self.scale_factors,
        )

    def taken(self, at: np.ndarray) -> PosteriorDraws:
        """Draws at places (chains, draws) among those of :meth:`flat`."""
        weights, means, factors = (part[at] for part in self.flat())
        scale = self.scale_factors
        return PosteriorDraws(
            weights, means, factors, None if scale is None else scale.reshape(-1, *scale.shape[2:])[at]
        )

    def unconstrained_by(self, compiled: MixturePosterior, which: ArrayLike | None = None) -> FloatArray:
        """Points of a posterior's unconstrained coordinates, one for each draw (chains joined), or for some."""
        parts = list(self.flat())
        if self.scale_factors is not None and compiled.inputs.hierarchical:
            parts.append(self.scale_factors.reshape(-1, *self.scale_factors.shape[2:]))
        return compiled.unconstrain(*(part if which is None else part[np.asarray(which)] for part in parts))

    def precision_rates(self, kind: CovarianceStructure) -> FloatArray | None:
        """C₀ of a hierarchical prior, (chains, draws, D, D), (chains, draws, D) or (chains, draws) as the structure has it."""
        if self.scale_factors is None:
            return None
        V = self.scale_factors
        inverse = np.linalg.solve(V, np.broadcast_to(np.eye(V.shape[-1]), V.shape))
        return pack_rate(0.5 * np.swapaxes(inverse, -1, -2) @ inverse, kind.name)


@dataclass(frozen=True, eq=False)
class OwnVariables:
    """Variables of a user's own prior.

    Parameters
    ----------
    values : mapping of str to ndarray of shape (S, ...)
        Of all draws, chains joined.
    dims : mapping of str to tuple of str or None
        Of each variable in the user's model.
    coords : mapping of str to sequence
        Of these dims, but for those of every posterior.
    permutations : ndarray of shape (S, K)
        That put the components of each draw in order: along a dim ``component`` the variables follow.
    """

    values: Mapping[str, FloatArray]
    dims: Mapping[str, tuple[str, ...] | None]
    coords: Mapping[str, Sequence[Any]]
    permutations: np.ndarray

    def in_order(self, name: str) -> FloatArray:
        """Values of a variable, the components in the order of the draws."""
        value, dims = self.values[name], self.dims[name] or ()
        for axis, dim in enumerate(dims, start=1):
            if dim == "component":
                index = self.permutations.reshape(len(value), *(-1 if a == axis else 1 for a in range(1, value.ndim)))
                value = np.take_along_axis(value, index, axis=axis)
        return value


def derived(draws: PosteriorDraws, kind: CovarianceStructure) -> dict[str, tuple[FloatArray, tuple[str, ...]]]:
    """The posterior's variables with their dims: weights, means, covariances, standard deviations, correlations.

    Correlations are left out where the structure has none.
    """
    matrices = draws.covariances
    D = matrices.shape[-1]
    deviations = np.sqrt(np.diagonal(matrices, axis1=-2, axis2=-1))
    out: dict[str, tuple[FloatArray, tuple[str, ...]]] = {
        "weights": (draws.weights, ("component",)),
        "means": (draws.means, ("component", "feature")),
        "covariances": (kind.pack(matrices), kind.free_dims),
        "standard_deviations": (_distinct(deviations, "feature", kind.deviation_dims), kind.deviation_dims),
    }
    if kind.correlation_dims is not None and D > 1:
        rows, columns = np.tril_indices(D, -1)
        correlations = matrices[..., rows, columns] / (deviations[..., rows] * deviations[..., columns])
        out["correlations"] = (_distinct(correlations, "feature_pair", kind.correlation_dims), kind.correlation_dims)
    return out


def _distinct(values: FloatArray, last: str, dims: tuple[str, ...]) -> FloatArray:
    """Values (chains, draws, component, last) along the dims in which they differ."""
    values = values if "component" in dims else values[:, :, 0]
    return np.ascontiguousarray(values if last in dims else values[..., 0])


def feature_pairs(names: Sequence[str]) -> list[str]:
    """Names of the pairs of features, in the order of the correlations."""
    rows, columns = np.tril_indices(len(names), -1)
    return [f"{names[int(j)]}:{names[int(i)]}" for i, j in zip(rows, columns, strict=True)]


def pointwise_log_likelihood(draws: PosteriorDraws, X: FloatArray, classes: ClassLayout | None = None) -> FloatArray:
    """Log density of every row under every draw, shape (chains, draws, N); of a row of known class, together with that class."""
    weights, means, factors = draws.flat()
    if classes is None:
        out = kernel.pointwise_log_likelihood(X, weights, means, factors)
    else:
        out = np.empty((len(weights), len(X)))
        for rows, block in classes.passes:
            w, m, P = (np.ascontiguousarray(part[:, block]) for part in (weights, means, factors))
            out[:, rows] = kernel.pointwise_log_likelihood(X[rows], w, m, P)
    return out.reshape(draws.n_chains, draws.n_draws, len(X))


def log_prior(draws: PosteriorDraws, prior: Prior, kind: CovarianceStructure) -> FloatArray:
    """Log prior density of every draw, shape (chains, draws), in the coordinates that the prior is stated in.

    These are (π, μ, Σ), under a hierarchical prior (π, μ, Σ, C₀), under a separation prior (π, μ, σ, R).
    """
    at = (draws.weights, draws.means, draws.precision_factors, kind.name)
    if isinstance(prior, HierarchicalPrior):
        return np.asarray(prior.log_density_from_factors(*at, draws.scale_factors))
    if isinstance(prior, SeparationPrior):
        return np.asarray(prior.log_density_from_factors(*at, as_stated=True))
    return np.asarray(prior.log_density_from_factors(*at))


def data_tree(
    draws: PosteriorDraws,
    kind: CovarianceStructure,
    X: FloatArray | None,
    sample_weight: FloatArray | None,
    names: Sequence[str],
    prior: Prior,
    sample_stats: Mapping[str, FloatArray],
    attributes: Mapping[str, Any],
    classes: ClassLayout | None = None,
    prior_density: FloatArray | None = None,
    own: OwnVariables | None = None,
) -> DataTree:
    """Package a posterior with ArviZ's groups.

    Parameters
    ----------
    draws : PosteriorDraws
        In one order of the components.
    kind : CovarianceStructure
    X : ndarray of shape (N, D) or None
        None where the rows do not stand in memory: there is then nothing observed, and no pointwise log-likelihood.
    sample_weight : ndarray of shape (N,) or None
    names : sequence of str
        Feature names.
    prior : ConjugatePrior, HierarchicalPrior or SeparationPrior
        Resolved.
    sample_stats : mapping of str to ndarray of shape (chains, draws)
    attributes : mapping
        Attributes of the root.
    classes : ClassLayout, optional
        Of rows some of which have a known class; X is sorted by it, the result is not. The dims ``component_id`` then have a coordinate
        ``component_class``, and there are ``class_priors`` (estimated, or constant data) and the observed ``class_code``, −1 unknown.
    prior_density : ndarray of shape (chains, draws), optional
        Log prior density of the draws, where the prior cannot say it.
    own : OwnVariables, optional
        Go into the posterior beside the others.

    Returns
    -------
    DataTree
        Groups posterior, sample_stats, log_prior, observed_data, constant_data; log_likelihood where
        draws × rows ≤ ``LOG_LIKELIHOOD_LIMIT``.
    """
    import arviz_base

    variables = derived(draws, kind)
    coords: dict[str, Any] = {
        COMPONENT_DIM: np.arange(draws.weights.shape[-1]),
        "feature": list(names),
        "feature_bis": list(names),
    }
    observed: dict[str, Any] = {}
    if X is not None:
        coords["obs_id"] = np.arange(len(X))
        observed["x"] = X
    dims: dict[str, list[str]] = {
        name: [COMPONENT_DIM if dim == "component" else dim for dim in its_dims]
        for name, (_, its_dims) in variables.items()
    }
    if "correlations" in variables:
        coords["feature_pair"] = feature_pairs(names)
    dims |= {
        "x": ["obs_id", "feature"],
        "sample_weight": ["obs_id"],
    }
    constant: dict[str, Any] = {}
    for name, (value, its_dims) in prior.constants().items():
        constant[name] = value
        dims[name] = [COMPONENT_DIM if dim == "component" else dim for dim in its_dims]
    extra: dict[str, FloatArray] = {}
    rates = draws.precision_rates(kind)
    if rates is not None:
        extra["precision_rate"] = rates
        dims["precision_rate"] = ["feature", "feature_bis"][: rates.ndim - 2]
    if own is not None:
        coords |= dict(own.coords)
        for name, own_dims in own.dims.items():
            value = own.in_order(name)
            extra[name] = value.reshape(draws.n_chains, draws.n_draws, *value.shape[1:])
            if own_dims is not None:
                dims[name] = [COMPONENT_DIM if dim == "component" else dim for dim in own_dims]
    if sample_weight is not None:
        constant["sample_weight"] = sample_weight if classes is None else classes.in_table_order(sample_weight)
    if X is not None and classes is not None:
        observed = {name: classes.in_table_order(value) for name, value in (("x", X), ("class_code", classes.codes))}
        coords["class"] = list(classes.names)
        dims |= {"class_code": ["obs_id"], "class_priors": ["class"]}
        if classes.priors is None:
            extra["class_priors"] = classes.totals(draws.weights)
        else:
            constant["class_priors"] = classes.priors
    groups: dict[str, dict[str, Any]] = {
        "posterior": {name: values for name, (values, _) in variables.items()} | extra,
        "sample_stats": dict(sample_stats),
        "log_prior": {"prior": log_prior(draws, prior, kind) if prior_density is None else prior_density},
        **({} if X is None else {"observed_data": observed}),
        "constant_data": constant,
    }
    tree = arviz_base.from_dict(groups, coords=coords, dims=dims, attrs={"/": dict(attributes)})
    if classes is not None:
        owners = np.asarray(classes.names)[classes.class_of_component]
        for name in ("posterior", "constant_data"):
            tree[name].dataset = tree[name].to_dataset().assign_coords(component_class=(COMPONENT_DIM, owners))
    garbage.made(tree.nbytes)
    if X is not None and draws.n_chains * draws.n_draws * len(X) <= LOG_LIKELIHOOD_LIMIT:
        add_log_likelihood(tree, draws, X, classes)
    return tree


def add_log_likelihood(
    tree: DataTree, draws: PosteriorDraws, X: FloatArray, classes: ClassLayout | None = None
) -> None:
    """Add the group ``log_likelihood`` with one value per chain, draw and row."""
    import xarray as xr

    posterior = tree["posterior"]
    values = pointwise_log_likelihood(draws, X, classes)
    if classes is not None:
        values = classes.in_table_order(values, axis=2)
    garbage.made(values.nbytes)
    tree["log_likelihood"] = xr.DataTree(
        xr.Dataset(
            {"x": (("chain", "draw", "obs_id"), values)},
            coords={"chain": posterior["chain"].values, "draw": posterior["draw"].values, "obs_id": np.arange(len(X))},
        )
    )


def add_sampled_chains(
    tree: DataTree, draws: PosteriorDraws, kind: CovarianceStructure, lp: FloatArray, chain_modes: Sequence[int]
) -> None:
    """Add the group ``sampled_chains``: chains as they were sampled, where the posterior is made of them by weights.

    Parameters
    ----------
    tree : DataTree
    draws : PosteriorDraws
        In the same order of the components as the posterior.
    kind : CovarianceStructure
    lp : ndarray of shape (chains, draws)
        Log posterior density.
    chain_modes : sequence of int
        The mode that each chain stayed at: the coordinate ``mode`` along ``chain``.
    """
    import xarray as xr

    like = tree["posterior"].to_dataset()
    at = {name: like.coords[name] for name in like.coords if name not in ("chain", "draw")}
    variables: dict[str, Any] = {
        name: (("chain", "draw", *(COMPONENT_DIM if dim == "component" else dim for dim in dims)), values)
        for name, (values, dims) in derived(draws, kind).items()
    }
    coords = at | {
        "chain": np.arange(draws.n_chains),
        "draw": np.arange(draws.n_draws),
        "mode": ("chain", np.asarray(chain_modes)),
    }
    tree["sampled_chains"] = xr.DataTree(xr.Dataset(variables | {"lp": (("chain", "draw"), lp)}, coords=coords))


def add_posterior_predictive(tree: DataTree, draws: PosteriorDraws, n_rows: int, rng: np.random.Generator) -> None:
    """Add the group ``posterior_predictive``: one simulated table of ``n_rows`` rows for every draw."""
    import xarray as xr

    posterior = tree["posterior"]
    K, D = draws.means.shape[2:]
    weights, means, factors = draws.flat()
    tables = np.empty((len(weights), n_rows, D))
    for s in range(len(weights)):
        tables[s] = simulate(rng, n_rows, weights[s], means[s], factors[s])[0]
    garbage.made(tables.nbytes)
    tree["posterior_predictive"] = xr.DataTree(
        xr.Dataset(
            {"x": (("chain", "draw", "obs_id", "feature"), tables.reshape(draws.n_chains, draws.n_draws, n_rows, D))},
            coords={
                "chain": posterior["chain"].values,
                "draw": posterior["draw"].values,
                "obs_id": np.arange(n_rows),
                "feature": posterior["feature"].values,
            },
        )
    )


def simulate(
    rng: np.random.Generator, n_rows: int, weights: FloatArray, means: FloatArray, precision_factors: FloatArray
) -> tuple[FloatArray, np.ndarray]:
    """Rows and labels from one mixture by the two-stage process."""
    labels = rng.choice(len(weights), size=n_rows, p=weights / weights.sum())
    rows = rng.standard_normal((n_rows, means.shape[1]))
    for k in np.unique(labels):
        member = labels == k
        rows[member] = means[k] + np.linalg.solve(precision_factors[k].T, rows[member].T).T
    return rows, labels
