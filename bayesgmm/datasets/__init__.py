"""Small real data that the examples and ``bayesgmm demo`` use."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load_faithful", "load_galaxies"]


def _load(filename: str) -> pd.DataFrame:
    import pandas as pd

    with (files(__name__) / filename).open("rb") as stream:
        return pd.read_csv(stream)


def load_faithful() -> pd.DataFrame:
    """Eruptions of the Old Faithful geyser, Yellowstone National Park, Wyoming.

    The waiting times are whole minutes and the lengths are rounded too, so that both columns have many ties.

    Returns
    -------
    pandas.DataFrame of shape (272, 2)
        ``eruptions`` : float, length of an eruption, minutes.
        ``waiting`` : int, waiting time to the next eruption, minutes.

    References
    ----------
    Azzalini, A. & Bowman, A. W. (1990). A look at some data on the Old Faithful geyser. Applied Statistics 39, 357-365.
    This version of the data is that of R's ``datasets::faithful``.
    """
    return _load("faithful.csv")


def load_galaxies() -> pd.DataFrame:
    """Velocities of 82 galaxies from six well-separated conic sections of the Corona Borealis region.

    Returns
    -------
    pandas.DataFrame of shape (82, 1)
        ``velocity`` : int, velocity of recession, km/s.

    Notes
    -----
    The values are those of R's ``MASS::galaxies``, which published analyses use. Its 78th value reads 26690, where the
    paper has 26960.

    References
    ----------
    Roeder, K. (1990). Density estimation with confidence sets exemplified by superclusters and voids in the galaxies.
    Journal of the American Statistical Association 85, 617-624.
    """
    return _load("galaxies.csv")
