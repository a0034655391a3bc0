"""Errors that the package raises by a name of its own."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

_PACKAGE = os.path.dirname(os.path.abspath(__file__))


class DataError(ValueError):
    """The table of numbers is at fault: what is wrong, where it stands, and what to do stand in the message."""


class ClusterError(RuntimeError):
    """A Dask cluster cannot do the work: no scheduler, no worker, or workers that die of it; the message says what to do."""


class SamplingInterrupted(KeyboardInterrupt):
    """Sampling was stopped by the user before it was done.

    It is a ``KeyboardInterrupt``, so that code which handles Ctrl-C needs to know nothing of it.

    Parameters
    ----------
    message : str, default="sampling was interrupted"
        What was interrupted, and how far it had come.
    estimator : object or None, default=None
        The estimator, fitted to the draws that were complete; None where there were none.
    """

    def __init__(self, message: str = "sampling was interrupted", estimator: Any = None) -> None:
        super().__init__(message)
        self.estimator = estimator


class SamplingError(RuntimeError):
    """The sampler could not start or go on; the message says why and what to try."""


class RowsNotHeldError(DataError, AttributeError):
    """What needs the rows of a fit was asked of one whose rows were read in blocks and do not stand in memory."""


class CostWarning(UserWarning):
    """What was asked for will take long; the message says how long, and what to do instead."""


class DataWarning(UserWarning):
    """The data make part of a result doubtful; the message says which part and what to do."""


class CriterionWarning(UserWarning):
    """A criterion rests on too little for some rows (WAIC's variances, LOO's importance weights); the message names them."""


class ImproperPosteriorError(DataError):
    """The posterior has no finite integral under this prior and these rows; the message names them and offers another value."""


class PriorFunctionError(ValueError):
    """Something was asked of a prior given as a function that a function cannot say; the message says what to take instead."""


class PriorWarning(UserWarning):
    """The prior makes part of a result doubtful; the message says which part, and offers another value."""


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's code that led here: the first that is neither this package's nor scikit-learn's.

    Parameters
    ----------
    message : str
    category : type of Warning
    """
    ours = [_PACKAGE]
    if (sklearn := sys.modules.get("sklearn")) is not None and sklearn.__file__:
        ours.append(os.path.dirname(sklearn.__file__))
    warnings.warn(message, category, stacklevel=2, skip_file_prefixes=tuple(ours))
