"""Expected log predictive densities in ArviZ's containers, so that ``az.compare`` takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from arviz_stats.utils import ELPDData, ELPDDataLOOSubsample
from xarray import DataArray

from bayesgmm.core.parameters import FloatArray
from bayesgmm.pointwise import standard_error, weighted


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


@dataclass(kw_only=True, repr=False)
class ELPDDataLOOBlocks(ELPDDataLOOSubsample):
    """LOO of many rows in blocks: its pointwise values are those of the subsample alone, in the order of its rows.

    ``az.compare`` wants values of all rows; :func:`bayesgmm.stacking.compare_elpds` takes these.
    """


def elpd_fields(
    elpd_i: FloatArray, p_i: FloatArray, n_samples: int, like: DataArray | None, sample_weight: FloatArray | None
) -> dict[str, Any]:
    """The fields that every ``ELPDData`` has, from pointwise values of one copy of each row.

    Parameters
    ----------
    elpd_i : ndarray of shape (N,)
    p_i : ndarray of shape (N,)
        Effective numbers of parameters.
    n_samples : int
        Draws, or fits, behind the values.
    like : DataArray or None
        Takes its dims and coordinates.
    sample_weight : ndarray of shape (N,) or None
    """
    values = weighted(elpd_i, sample_weight)
    return {
        "elpd": float(values.sum()),
        "se": standard_error(elpd_i, sample_weight),
        "p": float(weighted(p_i, sample_weight).sum()),
        "n_samples": n_samples,
        "n_data_points": len(values),
        "scale": "log",
        "elpd_i": pointwise_array(values, like),
    }


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
