"""Gaussian mixtures fitted twice by the same arithmetic: EM in milliseconds, and a full posterior by NUTS.

Public names are loaded when they are first used, so that ``import bayesgmm`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesgmm.anomaly import AnomalyDetector
    from bayesgmm.comparison import compare
    from bayesgmm.core.hierarchical import HierarchicalPrior
    from bayesgmm.core.priors import ConjugatePrior
    from bayesgmm.core.separation import SeparationPrior
    from bayesgmm.criteria import loo, waic
    from bayesgmm.crossvalidation import kfold, labelled_scores
    from bayesgmm.estimators.bayesian_gaussian_mixture import BayesianGaussianMixture
    from bayesgmm.estimators.classifier import MixtureClassifier
    from bayesgmm.estimators.gaussian_mixture import GaussianMixture
    from bayesgmm.inference.model import build_model
    from bayesgmm.partition import Partition
    from bayesgmm.persistence import load, save
    from bayesgmm.selection import Selection, select
    from bayesgmm.tables import open_blocks

__version__ = "0.1.0"

__all__ = [
    "AnomalyDetector",
    "BayesianGaussianMixture",
    "ConjugatePrior",
    "GaussianMixture",
    "HierarchicalPrior",
    "MixtureClassifier",
    "Partition",
    "Selection",
    "SeparationPrior",
    "__version__",
    "build_model",
    "compare",
    "kfold",
    "labelled_scores",
    "load",
    "loo",
    "open_blocks",
    "save",
    "select",
    "waic",
]

_HOMES = {
    "AnomalyDetector": "bayesgmm.anomaly",
    "BayesianGaussianMixture": "bayesgmm.estimators.bayesian_gaussian_mixture",
    "ConjugatePrior": "bayesgmm.core.priors",
    "GaussianMixture": "bayesgmm.estimators.gaussian_mixture",
    "HierarchicalPrior": "bayesgmm.core.hierarchical",
    "MixtureClassifier": "bayesgmm.estimators.classifier",
    "Partition": "bayesgmm.partition",
    "Selection": "bayesgmm.selection",
    "SeparationPrior": "bayesgmm.core.separation",
    "build_model": "bayesgmm.inference.model",
    "compare": "bayesgmm.comparison",
    "kfold": "bayesgmm.crossvalidation",
    "labelled_scores": "bayesgmm.crossvalidation",
    "load": "bayesgmm.persistence",
    "loo": "bayesgmm.criteria",
    "open_blocks": "bayesgmm.tables",
    "save": "bayesgmm.persistence",
    "select": "bayesgmm.selection",
    "waic": "bayesgmm.criteria",
}


_MODULES = ("criteria", "plots")
"""Modules that are reached as attributes of the package, without an import of their own."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"bayesgmm.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
