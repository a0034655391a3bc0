"""A prior that a function of the user's makes: what of a prior it has, and a clear refusal of what it has not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.priors import ConjugatePrior, DataSummary, EMStartedPrior
from bayesgmm.exceptions import PriorFunctionError


@dataclass(frozen=True, eq=False)
class FunctionPrior(EMStartedPrior):
    """A prior written in PyMC by the user.

    It can be sampled under. It has no density at given weights, means and covariances, and no draws, so that what needs these
    (evidence, moment matching, rows in blocks, classes) is refused.

    Parameters
    ----------
    function : callable or None
        See :func:`bayesgmm.build_model`. None in a fit that was loaded: a function is not saved.
    name : str
        Of the function.
    em_prior : ConjugatePrior, optional
        Under which EM looks for starts. Default: :meth:`bayesgmm.ConjugatePrior.fraley_raftery`.
    """

    function: Callable[[], Mapping[str, Any]] | None
    name: str
    em_prior: ConjugatePrior | None = None

    weight_concentration = 1.0
    mean_prior = None

    @classmethod
    def of(cls, function: Callable[[], Mapping[str, Any]]) -> FunctionPrior:
        """Name a function by itself."""
        return cls(function, getattr(function, "__qualname__", None) or type(function).__name__)

    def _resolve(self, data: DataSummary, K: int) -> FunctionPrior:
        if self.em_prior is not None:
            return self
        start = replace(ConjugatePrior.from_moments(data.mean, data.covariance, K), weight_concentration=np.ones(K))
        return replace(self, em_prior=start.resolve_from(data, K))

    @property
    def is_resolved(self) -> bool:
        """Whether its starts are known; the rest is the function's."""
        return self.em_prior is not None

    def called(self) -> Mapping[str, Any]:
        """What the function returns, called inside a model.

        Raises
        ------
        PriorFunctionError
            If it was not saved with the fit.
        """
        if self.function is None:
            raise PriorFunctionError(
                f"the prior of this fit is the function {self.name!r}, which is not saved with it: use "
                "build_model(X, n_components, covariance_type, prior=function)"
            )
        return self.function()

    def constants(self) -> dict[str, tuple[FloatArray, tuple[str, ...]]]:
        """No values: they are the function's."""
        return {}

    @property
    def choices(self) -> dict[str, str]:
        """The name of the function."""
        return {"function": self.name}

    def _refuse(self) -> NoReturn:
        raise PriorFunctionError(
            f"this needs the density or draws of the prior at given weights, means and covariances, and the prior is a function "
            f"({self.name}), which does not say them: take a ConjugatePrior, HierarchicalPrior or SeparationPrior"
        )

    def log_density_from_factors(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        self._refuse()

    def draw(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        self._refuse()

    @property
    def resolved_concentration(self) -> FloatArray:
        """Refuse."""
        self._refuse()

    @property
    def resolved_mean(self) -> FloatArray:
        """Refuse."""
        self._refuse()

    def __str__(self) -> str:
        return f"prior made by the function {self.name}"
