"""The chains that the draws come from, by ArviZ: traces and ranks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from cycler import cycler

from bayesgmm.inference.posterior import COMPONENT_DIM
from bayesgmm.plots.fitted import Fitted, fitted, need_draws
from bayesgmm.plots.parameters import TITLES, pair_positions, pairs_of
from bayesgmm.plots.style import COLOURS, RC, label

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

CHAIN_FEATURES = 2
CHAIN_COMPONENTS = 4

SINGULAR = {name: title.removesuffix("s") for name, title in TITLES.items()}


def trace(
    post: Any,
    var_names: str | Sequence[str] | None = None,
    *,
    features: Sequence[int | str] | None = None,
    backend: str | None = None,
    **options: Any,
) -> PlotCollection:
    """The draws of each chain one after another, by ArviZ; divergent ones are marked.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted or loaded.
    var_names : str or sequence of str, optional
        Variables of ``post.idata_.posterior``. Default: weights, means and standard deviations.
    features : sequence of int or str, optional
        By position or name. Default: all, or the two in which the components differ most. Of more than four components the heaviest
        are shown.
    backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
        ArviZ's.
    **options
        Further arguments of ``arviz_plots.plot_trace``.

    Returns
    -------
    arviz_plots.PlotCollection

    Raises
    ------
    TypeError
        If ``post`` has no posterior draws.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If a variable or feature is unknown, or there is nothing that varies.

    References
    ----------
    Gabry, Simpson, Vehtari, Betancourt & Gelman (2019), Visualization in Bayesian workflow, Journal of the Royal Statistical Society A 182,
    389–402.
    """
    import arviz_plots

    return _by_arviz(
        arviz_plots.plot_trace, "draws of each chain in order", post, var_names, features, backend, options
    )


def rank(
    post: Any,
    var_names: str | Sequence[str] | None = None,
    *,
    features: Sequence[int | str] | None = None,
    backend: str | None = None,
    **options: Any,
) -> PlotCollection:
    """Ranks of each chain's draws among all, as differences to even ones, by ArviZ: chains that agree stay near zero.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted or loaded.
    var_names : str or sequence of str, optional
        Variables of ``post.idata_.posterior``. Default: weights, means and standard deviations.
    features : sequence of int or str, optional
        By position or name. Default: all, or the two in which the components differ most. Of more than four components the heaviest
        are shown.
    backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
        ArviZ's.
    **options
        Further arguments of ``arviz_plots.plot_rank``.

    Returns
    -------
    arviz_plots.PlotCollection

    Raises
    ------
    TypeError, NotFittedError, ValueError
        As :func:`trace` does.

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization: an improved R-hat, Bayesian
    Analysis 16, 667–718.
    """
    import arviz_plots

    return _by_arviz(
        arviz_plots.plot_rank,
        "ranks of each chain's draws, less even ones",
        post,
        var_names,
        features,
        backend,
        options,
    )


def _by_arviz(
    plot: Any,
    what: str,
    post: Any,
    var_names: str | Sequence[str] | None,
    features: Sequence[int | str] | None,
    backend: str | None,
    options: dict[str, Any],
) -> PlotCollection:
    need_draws(post, plot.__name__.removeprefix("plot_"))
    view = fitted(post)
    tree, remark = _chosen_draws(view, var_names, features)
    settings = RC | {"axes.prop_cycle": cycler(color=COLOURS), "figure.constrained_layout.use": True}
    with mpl.rc_context(settings):
        collection = plot(tree, backend=backend, **_arviz_options(tree, plot.__name__, backend, options))
        if collection.backend == "matplotlib":
            figure = collection.viz["figure"].item()
            figure.suptitle(
                "\n".join(filter(None, [f"{what}, one colour a chain", view.described, remark])), fontsize=10
            )
    return collection


def _arviz_options(tree: Any, name: str, backend: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """What ArviZ is told unless the user says otherwise: sizes of a report, titles of one line, thin lines."""
    from arviz_base import rcParams
    from arviz_base.labels import BaseLabeller

    class Spoken(BaseLabeller):
        def var_name_to_str(self, var_name: str | None) -> str:
            return SINGULAR.get(str(var_name), label(var_name))

        def dim_coord_to_str(self, dim: Hashable, coord_val: Any, coord_idx: Any) -> str:
            return f"component {coord_val}" if dim == COMPONENT_DIM else str(coord_val)

        def sel_to_str(self, sel: Any, isel: Any) -> str:
            parts = [self.dim_coord_to_str(dim, sel[dim], isel[dim]) for dim in sel]
            return (", " if sum(map(len, parts)) < 24 else "\n").join(parts)

    given: dict[str, Any] = {"labeller": Spoken()}
    if (backend or rcParams["plot.backend"]) == "matplotlib":
        posterior = tree["posterior"]
        n_panels = sum(v.size // (v.sizes["chain"] * v.sizes["draw"]) for v in posterior.data_vars.values())
        columns = min(4, n_panels)
        given |= {
            "col_wrap": columns,
            "figure_kwargs": {"figsize": (max(2.4 * columns, 4.8), 1.0 + 1.85 * -(-n_panels // columns))},
        }
        if name == "plot_trace":
            given["visuals"] = {"trace": {"alpha": 0.7, "width": 0.6}}
    return given | options


def _chosen_draws(
    view: Fitted, var_names: str | Sequence[str] | None, features: Sequence[int | str] | None
) -> tuple[Any, str]:
    """A DataTree with the variables, features and components to show, names as labels, and a remark."""
    import xarray as xr

    stored = view.fit.idata_["posterior"].to_dataset()
    asked = (
        [var_names] if isinstance(var_names, str) else list(var_names or ("weights", "means", "standard_deviations"))
    )
    unknown = [name for name in asked if name not in stored]
    if unknown:
        raise ValueError(f"the posterior has no {', '.join(map(repr, unknown))}: it has {', '.join(map(str, stored))}")
    chosen, remark = view.separating(features, CHAIN_FEATURES if features is None else view.n_features)
    names = view.names
    kept = np.sort(np.argsort(-view.typical.weights, kind="stable")[:CHAIN_COMPONENTS])
    if len(kept) < view.n_components:
        remark = "; ".join(filter(None, [remark, f"{len(kept)} of {view.n_components} components: the heaviest"]))
    wanted = {
        COMPONENT_DIM: kept.tolist(),
        "feature": chosen,
        "feature_bis": chosen,
        "feature_pair": pair_positions(chosen),
    }
    spoken = {
        "feature": [label(names[j], 24) for j in chosen],
        "feature_bis": [label(names[j], 24) for j in chosen],
        "feature_pair": [" : ".join(label(name, 16) for name in pairs_of(names)[p]) for p in wanted["feature_pair"]],
    }
    part = stored[asked].isel({dim: places for dim, places in wanted.items() if dim in stored[asked].dims})
    part = part.assign_coords({dim: labels for dim, labels in spoken.items() if dim in part.dims})
    moving = [name for name in asked if part[name].size and float(part[name].max() - part[name].min()) > 0]
    if not moving:
        raise ValueError(f"{', '.join(asked)}: the same in every draw (the weight of one component is 1)")
    groups = {"posterior": part[moving]}
    if "sample_stats" in view.fit.idata_.children:
        groups["sample_stats"] = view.fit.idata_["sample_stats"].to_dataset()
    return xr.DataTree.from_dict(groups), remark
