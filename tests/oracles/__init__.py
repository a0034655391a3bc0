"""Independent answers for the tests: plain NumPy and SciPy, nothing of the package itself.

`densities` holds the mixture density, the responsibilities, the sums of one pass and the prior's density;
`enumeration` sums a small mixture's posterior over every allocation of rows to components.
"""

from __future__ import annotations

from .densities import (
    PriorValues,
    expand_covariances,
    expand_draws,
    log_prior,
    mixture_log_densities_of_draws,
    mixture_log_density,
    responsibilities,
    weighted_sums,
)
from .enumeration import Enumeration, one_component_log_evidence

__all__ = [
    "Enumeration",
    "PriorValues",
    "expand_covariances",
    "expand_draws",
    "log_prior",
    "mixture_log_densities_of_draws",
    "mixture_log_density",
    "one_component_log_evidence",
    "responsibilities",
    "weighted_sums",
]
