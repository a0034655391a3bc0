"""The shipped data against what their sources publish about them."""

from __future__ import annotations

import pandas as pd
import pytest

from bayesgmm.datasets import load_faithful, load_galaxies


def test_faithful_has_the_published_moments():
    faithful = load_faithful()
    assert faithful.shape == (272, 2)
    assert list(faithful.columns) == ["eruptions", "waiting"]
    # R: colMeans(faithful), sapply(faithful, sd), cor(faithful)[1, 2], to the 7 digits that R prints
    assert faithful.mean().tolist() == pytest.approx([3.487783, 70.897059], abs=5e-7)
    assert faithful.std().tolist() == pytest.approx([1.141371, 13.594974], abs=5e-7)
    assert faithful.corr().iloc[0, 1] == pytest.approx(0.9008112, abs=5e-8)


def test_galaxies_are_those_of_mass():
    velocity = load_galaxies()["velocity"]
    assert len(velocity) == 82
    # Roeder (1990): 9172 to 34279 km/s; row 78 is the misprint that R's MASS carries
    assert (velocity.min(), velocity.max()) == (9172, 34279)
    assert velocity.iloc[77] == 26690


def test_every_call_gives_a_copy():
    first = load_faithful()
    first.iloc[:, 0] = 0.0
    pd.testing.assert_frame_equal(
        load_faithful().tail(1), pd.DataFrame({"eruptions": 4.467, "waiting": 74}, index=[271])
    )
