"""ARCHITECTURE.md names every module, and no lower room imports a higher one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import bayesgmm

PACKAGE = Path(bayesgmm.__file__).parent
DOCUMENT = PACKAGE.parent / "ARCHITECTURE.md"
MODULES = sorted(
    str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if file.name not in ("__init__.py", "__main__.py")
)
FORBIDDEN = {
    "core": ("bayesgmm.inference", "bayesgmm.estimators", "bayesgmm.io", "bayesgmm.plots", "bayesgmm.persistence"),
    "inference": ("bayesgmm.estimators", "bayesgmm.plots", "bayesgmm.persistence", "bayesgmm.cli", "bayesgmm.results"),
    "estimators": ("bayesgmm.plots", "bayesgmm.cli", "bayesgmm.results"),
}
HEAVY = (
    "pymc",
    "pytensor",
    "arviz",
    "arviz_base",
    "arviz_stats",
    "pandas",
    "sklearn",
    "matplotlib",
    "nutpie",
    "xarray",
)


@pytest.mark.skipif(not DOCUMENT.exists(), reason="an installed package has no ARCHITECTURE.md beside it")
def test_every_module_is_named_and_every_name_exists():
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", DOCUMENT.read_text(encoding="utf-8")))
    assert named == set(MODULES)


def imported(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", [m for m in MODULES if m.partition("/")[0] in FORBIDDEN])
def test_no_arrow_runs_back_up(module):
    room = module.partition("/")[0]
    upward = {name for name in imported(module) if name.startswith(FORBIDDEN[room])}
    assert not upward
    if room == "core":
        assert not {name for name in imported(module) if name.split(".")[0] in HEAVY}
