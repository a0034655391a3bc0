from __future__ import annotations

import numpy as np
import pytest

from bayesgmm.inference.identification import Identification, changed_places, rarely_filled


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Identification(3, (), (), {}), ""),
        (
            Identification(4, (2, 3), (), {}),
            "Components 0 and 1 are identified; components 2 and 3 change places from draw to draw.",
        ),
        (
            Identification(3, (2,), (), {2: 0.4}),
            "Components 0 and 1 are identified; component 2 holds less than one row in 40% of the draws (fewer components may do).",
        ),
        (
            Identification(2, (), (0, 1), {}),
            "No component is identified: components 0 and 1 differ from mode to mode (look at them mode by mode).",
        ),
        (
            Identification(5, (1, 2), (3,), {4: 0.9}),
            "Component 0 is identified; components 1 and 2 change places from draw to draw; component 4 holds less than one row in 90% of "
            "the draws (fewer components may do); component 3 differs from mode to mode (look at it mode by mode).",
        ),
    ],
)
def test_what_is_identified_is_said(found, expected):
    assert str(found) == expected


def test_empty_components_are_those_that_hold_less_than_a_row():
    weights = np.full((2, 10, 2), 0.5)
    weights[0, :4] = [0.995, 0.005]
    assert rarely_filled(weights, 100) == {1: 0.2}
    assert rarely_filled(weights, 1000) == {}


def test_places_are_compared_with_the_draw_before():
    orders = np.array([[[0, 1, 2], [0, 2, 1], [0, 2, 1]], [[0, 1, 2], [0, 1, 2], [0, 1, 2]]])
    np.testing.assert_allclose(changed_places(orders), [0, 0.25, 0.25])
    np.testing.assert_array_equal(changed_places(orders[:, :1]), 0)
