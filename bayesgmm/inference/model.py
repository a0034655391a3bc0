"""The PyMC model of a Gaussian mixture with the labels summed out.

    π ~ Dirichlet(α)
    P_k = V A_k,  V Vᵀ = Λ₀⁻¹,  A_k lower: squared diagonal ~ χ², below it ~ Normal(0, 1)   (Σ_k⁻¹ = P_k P_kᵀ)
    μ_k given Σ_k ~ Normal(m₀, Σ_k / κ₀)
    x_n given π, μ, P ~ Σ_k π_k Normal(μ_k, Σ_k)

The second line is Bartlett's decomposition of Σ_k ~ inverse-Wishart(ν₀, Λ₀); the diagonal structures have χ² variables
alone. Under a hierarchical prior μ_k ~ Normal(b₀, B₀), and V is random: V = L T⁻¹ with L Lᵀ = G₀ and T lower, its squared
diagonal ~ χ², below it ~ Normal(0, 1), which is Bartlett's decomposition of C₀ = (V Vᵀ)⁻¹/2 ~ W(g₀, G₀) from the last feature
on. Sizes are symbolic throughout, so that the same code makes the graph that is compiled once for every data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from numpy.typing import ArrayLike
from pymc.logprob.transforms import SimplexTransform

from bayesgmm.core.covariance import structure
from bayesgmm.core.function_prior import FunctionPrior
from bayesgmm.core.hierarchical import Prior
from bayesgmm.core.impropriety import check_posterior
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.separation import SeparationPrior
from bayesgmm.inference.layout import BartlettLayout, ModelInputs, checked_rows
from bayesgmm.inference.op import mixture_log_likelihood
from bayesgmm.inference.posterior import feature_pairs
from bayesgmm.inference.prior_ops import LogWeights, MeansLogDensity, PrecisionFactors, ScaleFactor, SeparatedFactors


def _covariances(layout: BartlettLayout, factors: Any) -> Any:
    """Covariances of symbolic precision factors (K, D, D), packed by the structure's dims."""
    if not layout.off_diagonal:
        variances = pt.diagonal(factors, axis1=-2, axis2=-1) ** -2.0
        return variances if layout.by_feature else variances[:, 0]
    inverse = pt.linalg.solve_triangular(factors, pt.eye(factors.shape[-1]), lower=True, b_ndim=2)
    matrices = inverse.mT @ inverse
    return matrices if layout.by_component else matrices[0]


class _Simplex(SimplexTransform):
    """PyMC's simplex transform through the log weights: the same numbers from fewer nodes, and no underflow."""

    def backward(self, value: Any, *inputs: Any) -> Any:
        return pt.exp(LogWeights()(value))

    def log_jac_det(self, value: Any, *inputs: Any) -> Any:
        log_weights = LogWeights()(value)
        return pt.log(log_weights.shape[0].astype("float64")) + pt.sum(log_weights)


def _means_dist(mean_prior: Any, mean_precision: Any, factors: Any, size: Any) -> Any:
    noise = pm.Normal.dist(0.0, 1.0, size=factors.shape[:2])
    deviation = pt.linalg.solve_triangular(factors.mT, noise[..., None], lower=False, b_ndim=2)[..., 0]
    return mean_prior + deviation / pt.sqrt(mean_precision)


def _means_logp(value: Any, mean_prior: Any, mean_precision: Any, factors: Any) -> Any:
    return MeansLogDensity()(value, mean_prior, mean_precision, factors)[0]


def _table_dist(n_rows: Any, sample_weight: Any, weights: Any, means: Any, factors: Any, size: Any) -> Any:
    n_features = means.shape[1]
    labels = pm.Categorical.dist(weights, size=(n_rows,))
    noise = pm.Normal.dist(0.0, 1.0, size=(n_rows, n_features))
    roots = pt.linalg.solve_triangular(factors.mT, pt.eye(n_features), lower=False, b_ndim=2)
    return means[labels] + (noise[:, None, :] * roots[labels]).sum(axis=-1)


def _table_logp(value: Any, n_rows: Any, sample_weight: Any, weights: Any, means: Any, factors: Any) -> Any:
    return mixture_log_likelihood(value, sample_weight, pt.log(weights), means, factors)[0]


def _bartlett(inputs: ModelInputs, layout: BartlettLayout) -> tuple[Any, Any]:
    """The χ² and Normal variables behind the covariances, as matrices."""
    degrees = pt.constant(inputs.degrees_of_freedom, name="degrees_of_freedom")
    squares: Any = pm.ChiSquared(
        "bartlett_diagonal",
        degrees if layout.by_feature else degrees[0],
        dims=layout.dims("feature" if layout.by_feature else None),
    )
    below: Any = np.empty((1, 0))
    if layout.off_diagonal:
        below = pm.Normal("bartlett_offdiagonal", 0.0, 1.0, dims=layout.dims("feature_pair"))
        below = below if layout.by_component else below[None, :]
    return _as_matrix(squares, layout), below


def _as_matrix(values: Any, layout: BartlettLayout) -> Any:
    """Variables of the dims that a structure has, as (K or 1, D or 1)."""
    values = values if layout.by_component else values[None]
    return values if layout.by_feature else values[:, None]


def _separated(inputs: ModelInputs, layout: BartlettLayout) -> Any:
    """Precision factors of standard deviations and correlations, and these with their variables."""
    terms = inputs.deviation_terms if layout.by_feature else inputs.deviation_terms[:, 0]
    _, linear, center, curvature, rate, power = terms
    dims = layout.dims("feature" if layout.by_feature else None)
    families = {
        0.0: lambda: pm.LogNormal("deviations", center, curvature**-0.5, dims=dims),
        2.0: lambda: pm.HalfNormal("deviations", (2 * rate) ** -0.5, dims=dims),
        1.0: lambda: pm.Gamma("deviations", linear, rate, dims=dims),
        -1.0: lambda: pm.InverseGamma("deviations", -linear, rate, dims=dims),
    }
    excess: Any = families[float(np.ravel(power)[0])]()
    floor = inputs.deviation_floor
    pm.Deterministic("standard_deviations", (floor if layout.by_feature else floor[0]) + excess, dims=dims)
    logits: Any = np.empty((1, 0))
    if layout.off_diagonal:
        shapes, pairs = inputs.beta_shapes, layout.dims("feature_pair")
        sticks: Any = pm.Beta("correlation_sticks", shapes, shapes, dims=pairs)
        logits = pt.log(sticks) - pt.log1p(-sticks)
        logits = logits if layout.by_component else logits[None, :]
    factors = SeparatedFactors()(pt.log(_as_matrix(excess, layout)), floor, logits, inputs.n_components)
    if layout.off_diagonal:
        inverse = pt.linalg.solve_triangular(factors, pt.eye(inputs.n_features), lower=True, b_ndim=2)
        matrices = inverse.mT @ inverse
        deviations = pt.sqrt(pt.diagonal(matrices, axis1=-2, axis2=-1))
        rows, columns = np.tril_indices(inputs.n_features, -1)
        each = matrices[:, rows, columns] / (deviations[:, rows] * deviations[:, columns])
        pm.Deterministic("correlations", each if layout.by_component else each[0], dims=pairs)
    return factors


def _random_scale(inputs: ModelInputs, layout: BartlettLayout, rate_factor: Any) -> Any:
    """V = L T⁻¹ with the variables behind T, and C₀ as the structure has it."""
    degrees = pt.constant(inputs.hyper_degrees_of_freedom, name="hyper_degrees_of_freedom")
    by_feature = layout.by_feature
    squares: Any = pm.ChiSquared(
        "scale_diagonal", degrees if by_feature else degrees[0], dims=("feature",) if by_feature else ()
    )
    below: Any = np.empty(0)
    if layout.off_diagonal:
        below = pm.Normal("scale_offdiagonal", 0.0, 1.0, dims="feature_pair")
    V = ScaleFactor()(rate_factor, squares if by_feature else squares[None], below)
    if layout.off_diagonal:
        inverse = pt.linalg.solve_triangular(V, pt.eye(V.shape[-1]), lower=True, b_ndim=2)
        pm.Deterministic("precision_rate", 0.5 * inverse.mT @ inverse, dims=("feature", "feature_bis"))
    else:
        rates = 0.5 * pt.diagonal(V) ** -2.0
        pm.Deterministic("precision_rate", rates if by_feature else rates[0], dims=("feature",) if by_feature else ())
    return V


def _spread_means(X: FloatArray, n_components: int) -> FloatArray:
    """Means of K slices of the data across their first principal axis: components start apart."""
    # By the range, which does not overflow where squares would.
    scale = np.ptp(X, axis=0)
    standard = (X - np.mean(X, axis=0)) / np.where(scale > 0, scale, 1.0)
    axis = np.linalg.eigh(standard.T @ standard)[1][:, -1]
    order = np.argsort(standard @ axis, kind="stable")
    bounds = np.linspace(0, len(X), n_components + 1).astype(int)
    return np.stack([X[order[a : max(a + 1, b)]].mean(axis=0) for a, b in zip(bounds[:-1], bounds[1:], strict=True)])


def _rows(model: pm.Model, X: FloatArray, sample_weight: FloatArray) -> tuple[Any, Any]:
    """The table and its weights as data of the model."""
    model.add_coord("obs_id", length=len(X))
    rows = pm.Data("X", X, dims=("obs_id", "feature"))
    if len(sample_weight):
        return rows, pm.Data("sample_weight", sample_weight, dims="obs_id")
    return rows, pt.constant(sample_weight, name="sample_weight")


def _observe(X: Any, sample_weight: Any, weights: Any, means: Any, factors: Any) -> None:
    """The likelihood of the whole table, by one pass."""
    pm.CustomDist(
        "x",
        X.shape[0],
        sample_weight,
        weights,
        means,
        factors,
        dist=_table_dist,
        logp=_table_logp,
        signature="(),(w),(k),(k,d),(k,d,d)->(n,d)",
        class_name="GaussianMixture",
        observed=X,
        dims=("obs_id", "feature"),
    )


def model_from_variables(
    X: FloatArray,
    n_components: int,
    covariance_type: str,
    variables: PriorVariables,
    sample_weight: FloatArray,
    feature_names: Sequence[Any] | None = None,
) -> tuple[pm.Model, tuple[Any, Any, Any]]:
    """Build the PyMC model whose prior is the user's own.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    n_components : int
    covariance_type : {"full", "tied", "diag", "spherical"}
    variables : callable
        See :func:`build_model`.
    sample_weight : ndarray of shape (N,) or (0,)
    feature_names : sequence, optional

    Returns
    -------
    model : pymc.Model
    weights, means, precision_factors : TensorVariable of shape (K,), (K, D) and (K, D, D)

    Raises
    ------
    ValueError
        If what comes back is no mapping with ``weights``, ``means`` and one of ``covariances``, ``covariance_factors`` and
        ``precision_factors``, or has other dimensions than the structure.
    """
    K, D = n_components, X.shape[1]
    names = list(range(D)) if feature_names is None else list(feature_names)
    if len(names) != D:
        raise ValueError(f"feature_names has {len(names)} names for {D} features")
    with pm.Model(coords={"component": range(K), "feature": names, "feature_bis": names}) as model:
        rows, v = _rows(model, X, sample_weight)
        given = variables()
        if not isinstance(given, Mapping) or not {"weights", "means"} <= set(given):
            raise ValueError(
                "the function given as prior must return a mapping with 'weights', 'means' and the covariances"
            )
        parts = [name for name in OF_COVARIANCES if name in given]
        if len(parts) != 1:
            raise ValueError(
                f"the function given as prior must return one of {', '.join(OF_COVARIANCES)}; got {', '.join(given)}"
            )
        weights, means, of_covariances = (pt.as_tensor_variable(given[name]) for name in ("weights", "means", parts[0]))
        layout = BartlettLayout.of(structure(covariance_type))
        matrices = layout.off_diagonal or parts[0] != "covariances"
        expected = {"weights": 1, "means": 2, parts[0]: layout.by_component + (2 if matrices else layout.by_feature)}
        for name, value in zip(expected, (weights, means, of_covariances), strict=True):
            if value.ndim != expected[name]:
                raise ValueError(
                    f"{name} of a {covariance_type} prior has {expected[name]} dimensions; got {value.ndim}"
                )
        factors = _factors_of(parts[0], of_covariances, layout, K, D)
        if "covariances" not in model.named_vars:
            pm.Deterministic("covariances", _covariances(layout, factors), dims=structure(covariance_type).free_dims)
        _observe(rows, v, weights, means, factors)
    return model, (weights, means, factors)


OF_COVARIANCES = ("covariances", "covariance_factors", "precision_factors")
"""What a user's own prior may give: Σ as the structure has it, L with Σ = L Lᵀ, or P with Σ⁻¹ = P Pᵀ, all lower."""

PriorVariables = Callable[[], Mapping[str, Any]]


def _factors_of(name: str, value: Any, layout: BartlettLayout, K: int, D: int) -> Any:
    """Precision factors (K, D, D)."""
    if name == "covariances" and not layout.off_diagonal:
        roots = value**-0.5
        roots = roots if layout.by_feature else pt.repeat(roots[:, None], D, axis=1)
        return roots[:, :, None] * pt.eye(D)
    value = value if layout.by_component else value[None]
    if name != "precision_factors":
        # Σ in the reverse order of features has a lower factor L; in order it is then U Uᵀ with U upper, and P = U⁻ᵀ.
        covariances = value if name == "covariances" else value @ value.mT
        upper = pt.linalg.cholesky(covariances[:, ::-1, ::-1])[:, ::-1, ::-1]
        value = pt.linalg.solve_triangular(upper.mT, pt.eye(D), lower=True, b_ndim=2)
    return value if layout.by_component else pt.repeat(value, K, axis=0)


def model_from_inputs(
    inputs: ModelInputs, covariance_type: str, feature_names: Sequence[Any] | None = None
) -> pm.Model:
    """Build the PyMC model of given inputs.

    Parameters
    ----------
    inputs : ModelInputs
    covariance_type : {"full", "tied", "diag", "spherical"}
    feature_names : sequence, optional
        Labels of the dims ``feature`` and ``feature_bis``; 0 … D − 1 when None.

    Returns
    -------
    pymc.Model
    """
    kind = structure(covariance_type)
    layout = BartlettLayout.of(kind)
    K, D = inputs.n_components, inputs.n_features
    names = list(range(D)) if feature_names is None else list(feature_names)
    if len(names) != D:
        raise ValueError(f"feature_names has {len(names)} names for {D} features")
    start = _spread_means(inputs.X, K)
    concentration, mean_prior, mean_precision, scale_factor = (
        pt.constant(getattr(inputs, name), name=name)
        for name in ("weight_concentration", "mean_prior", "mean_precision", "scale_factor")
    )
    with pm.Model(coords={"component": range(K), "feature": names, "feature_bis": names}) as model:
        X, sample_weight = _rows(model, inputs.X, inputs.sample_weight)

        weights = pm.Dirichlet("weights", concentration, dims="component", default_transform=_Simplex())
        if layout.off_diagonal:
            model.add_coord("feature_pair", feature_pairs([str(name) for name in names]))
        if inputs.separated:
            factors = _separated(inputs, layout)
        else:
            squares, below = _bartlett(inputs, layout)
        if inputs.means_apart:
            of_means: Any = pt.constant(np.broadcast_to(inputs.mean_factor, (K, D, D)).copy(), name="mean_factors")
        else:
            of_means = factors = PrecisionFactors()(scale_factor, squares, below, concentration.shape[0])
        means = pm.CustomDist(
            "means",
            mean_prior,
            mean_precision,
            of_means,
            dist=_means_dist,
            logp=_means_logp,
            support_point=lambda rv, size, *parameters: pt.constant(start),
            signature="(d),(),(k,d,d)->(k,d)",
            class_name="NormalGivenPrecisionFactors",
            dims=("component", "feature"),
        )
        if inputs.hierarchical:
            V = _random_scale(inputs, layout, scale_factor)
            factors = PrecisionFactors()(V, squares, below, concentration.shape[0])
        pm.Deterministic("covariances", _covariances(layout, factors), dims=kind.free_dims)
        _observe(X, sample_weight, weights, means, factors)
    return model


def build_model(
    X: ArrayLike,
    n_components: int,
    covariance_type: str = "full",
    prior: str | Prior | FunctionPrior | PriorVariables = "default",
    sample_weight: ArrayLike | None = None,
    feature_names: Sequence[Any] | None = None,
) -> pm.Model:
    r"""Build the PyMC model of a Bayesian Gaussian mixture, labels summed out.

    The model samples with plain ``pm.sample``; ``BayesianGaussianMixture`` samples the same posterior faster.

    Parameters
    ----------
    X : array-like of shape (N, D)
        Observations, finite.
    n_components : int
        K.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
        Structure of the covariances, with scikit-learn's meaning.
    prior : "default", ConjugatePrior, HierarchicalPrior, SeparationPrior or callable, default="default"
        Prior; values that it leaves open are scaled by the data. A function without arguments is called in the model's context, makes
        whatever PyMC variables it likes, and returns a mapping: ``weights`` (K,), ``means`` (K, D), and either ``covariances`` of the
        structure's shape, ``covariance_factors`` (L with Σ = L Lᵀ) or ``precision_factors`` (lower P with Σ⁻¹ = P Pᵀ), these two (K, D, D)
        or, tied, (D, D). Whether the posterior is proper is then the user's to know.
    sample_weight : array-like of shape (N,), optional
        Weights of the observations in the log-likelihood; predictive draws ignore them.
    feature_names : sequence of length D, optional
        Labels of the dims ``feature`` and ``feature_bis``; the columns of a DataFrame, else 0 … D − 1.

    Returns
    -------
    pymc.Model
        Free variables ``weights`` (component), ``bartlett_diagonal``, ``bartlett_offdiagonal`` (full and tied) and
        ``means`` (component, feature); deterministic ``covariances``; observed ``x`` (obs_id, feature), whose log
        density is one number, that of the whole table. Under a hierarchical prior also free ``scale_diagonal`` and ``scale_offdiagonal``
        (full and tied) and deterministic ``precision_rate``, C₀. Under a separation prior ``deviations`` (above their floor) and
        ``correlation_sticks``, (1 + ρ)/2 of the canonical partial correlations ρ, stand in place of the Bartlett variables, and there are
        deterministic ``standard_deviations`` and ``correlations``. Under a prior of the user's the free variables are theirs.

    Raises
    ------
    ValueError
        If the data, weights or an option are not usable.
    ImproperPosteriorError
        If the posterior is improper under a :class:`SeparationPrior`.

    References
    ----------
    Diebolt & Robert (1994), Estimation of finite mixture distributions through Bayesian sampling, Journal of the Royal Statistical
    Society B 56, 363–375; Bartlett (1933), On the theory of statistical regression, Proceedings of the Royal Society of Edinburgh 53,
    260–283.

    Examples
    --------
    >>> import numpy as np, pymc as pm, bayesgmm
    >>> model = bayesgmm.build_model(np.random.default_rng(0).normal(size=(50, 2)), n_components=2)
    >>> [variable.name for variable in model.free_RVs]
    ['weights', 'bartlett_diagonal', 'bartlett_offdiagonal', 'means']
    """
    if feature_names is None and hasattr(X, "columns"):
        feature_names = list(X.columns)
    if isinstance(prior, FunctionPrior):
        prior = prior.called
    if callable(prior):
        table, given_weights = checked_rows(X, covariance_type, sample_weight)
        return model_from_variables(table, n_components, covariance_type, prior, given_weights, feature_names)[0]
    inputs = ModelInputs.resolve(X, n_components, covariance_type, prior, sample_weight)
    if isinstance(prior, SeparationPrior):
        v = inputs.sample_weight if len(inputs.sample_weight) else None
        resolved = prior.resolve(inputs.X, n_components, covariance_type, v)
        check_posterior(resolved, inputs.X, n_components, covariance_type, v, feature_names or range(inputs.n_features))
    return model_from_inputs(inputs, covariance_type, feature_names)
