"""Expected log predictive densities in ArviZ's containers, so that ``az.compare`` takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from arviz_stats.utils import ELPDData
from xarray import DataArray

from bayesgmm.core.parameters import FloatArray


@dataclass(kw_only=True, repr=False)
class ELPDDataWAIC(ELPDData):
    """WAIC as an ``ELPDData``: the scale is that of the log density (higher is better), not the deviance's.

    Parameters
    ----------
    p_waic_i : DataArray, optional
        Pointwise variance of the log-likelihood over the draws, the effective number of parameters.
    """

    _kind: ClassVar[str] = "waic"

    p_waic_i: Any = None


def pointwise_array(values: FloatArray, like: DataArray | None = None, name: str = "elpd_i") -> DataArray:
    """Values of the rows with dims and coordinates.

    Parameters
    ----------
    values : ndarray of shape (N,)
    like : DataArray, optional
        Takes its dims and coordinates; default is the one dim ``obs_id``.
    name : str, default "elpd_i"
    """
    if like is None:
        return DataArray(values, dims=["obs_id"], name=name)
    return DataArray(values.reshape(like.shape), dims=like.dims, coords=like.coords, name=name)
