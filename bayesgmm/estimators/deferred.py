"""scikit-learn's base class without what it loads and never calls.

``sklearn.base`` imports ``scipy.stats`` and pandas for helpers of other classes: most of the seconds to a first fit. While it is imported,
stand-ins take their places; the first use of one, by whomever, loads the real module, and afterwards nothing of them is left to be found.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

DEFERRED = ("pandas", "scipy.stats")


class _StandIn(ModuleType):
    """A module that is loaded when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name == "__spec__":
            raise AttributeError(name)
        return getattr(_load(self), name)


def _load(stand_in: ModuleType) -> ModuleType:
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]
    return importlib.import_module(stand_in.__name__)


def import_sklearn_base() -> None:
    """Import ``sklearn.base``; nothing where it is imported already, or one of the others is."""
    if "sklearn.base" in sys.modules:
        return
    stand_ins = [_StandIn(name) for name in DEFERRED if name not in sys.modules and _is_installed(name)]
    for stand_in in stand_ins:
        # The import system takes a module without a specification for one that is loaded.
        del stand_in.__spec__
        sys.modules[stand_in.__name__] = stand_in
    try:
        importlib.import_module("sklearn.base")
    finally:
        for stand_in in stand_ins:
            if sys.modules.get(stand_in.__name__) is stand_in:
                del sys.modules[stand_in.__name__]


def _is_installed(name: str) -> bool:
    return find_spec(name) is not None
