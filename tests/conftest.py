"""One Dask cluster for all tests that ask for it; what runs first; how many tables the laws of ``test_properties.py`` are held against."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings

# Few tables and always the same ones, or with --hypothesis-profile=many.
_ALWAYS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

settings.register_profile("few", max_examples=20, derandomize=True, phases=(Phase.explicit, Phase.generate), **_ALWAYS)
settings.register_profile("many", max_examples=200, derandomize=True, print_blob=True, **_ALWAYS)
settings.load_profile("few")

LONGEST = (
    "test_persistence",
    "test_dask",
    "test_package",
    "test_cli_select",
    "test_cli_cluster",
    "test_function_prior",
)
"""Files that take long: begun first, so that no process is left with one of them at the end."""


def pytest_collection_modifyitems(items):
    """Put the longest files first."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def client():
    """Client of two workers, processes of this machine."""
    pytest.importorskip("distributed", reason="distributed is not installed: pip install 'bayesgmm[dask]'")
    from bayesgmm.distributed import connected

    with connected(n_workers=2) as found:
        yield found
