"""scikit-learn's base class without what it loads and never calls.

``sklearn.base`` imports ``scipy.stats`` and pandas for helpers of other classes: a quarter of the time to a first fit. While it is
imported, stand-ins take their places; the first use of one, by whomever, loads the real module. Afterwards the import system has none of
them left.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

DEFERRED = ("pandas", "scipy.stats")


class _StandIn(ModuleType):
    """A module that is loaded when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name == "__spec__" and sys.modules.get(self.__name__) is self:
            # The import system takes a module without a specification for one that is loaded.
            raise AttributeError(name)
        return getattr(_load(self), name)


def _load(stand_in: ModuleType) -> ModuleType:
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]
    return importlib.import_module(stand_in.__name__)


def import_sklearn_base() -> None:
    """Import ``sklearn.base``; nothing where it is imported already."""
    if "sklearn.base" not in sys.modules:
        with stood_in_for():
            importlib.import_module("sklearn.base")


@contextmanager
def stood_in_for(names: Sequence[str] = DEFERRED) -> Iterator[None]:
    """Have modules that are installed and not loaded stood in for; one that is used meanwhile is loaded, and stays."""
    stand_ins = [_StandIn(name) for name in names if name not in sys.modules and find_spec(name) is not None]
    for stand_in in stand_ins:
        del stand_in.__spec__
        sys.modules[stand_in.__name__] = stand_in
    try:
        yield
    finally:
        for stand_in in stand_ins:
            if sys.modules.get(stand_in.__name__) is stand_in:
                del sys.modules[stand_in.__name__]
