"""One Dask cluster for all tests of a session that ask for it."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def client():
    """Client of two workers, processes of this machine."""
    pytest.importorskip("distributed", reason="distributed is not installed: pip install 'bayesgmm[dask]'")
    from bayesgmm.distributed import connected

    with connected(n_workers=2) as found:
        yield found
