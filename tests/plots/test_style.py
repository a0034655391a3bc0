from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.colors import to_rgb

import bayesgmm
from bayesgmm import GaussianMixture, plots
from bayesgmm.plots import style
from tests.plots.conftest import laplace

NAMES = [
    "<script>alert(1)</script> & <b>",
    "prix_en_$ et $x^2$ (€/m²)",
    "x" * 150 + " " + "y" * 40 + " [km/s]",
    "_a\nb",
]


def test_the_package_reaches_its_figures_as_an_attribute():
    assert bayesgmm.__getattr__("plots") is plots
    assert "plots" in dir(bayesgmm)
    assert all(callable(getattr(plots, name)) and getattr(plots, name).__doc__ for name in plots.__all__)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("waiting (min)", "waiting (min)"),
        ("two\n lines\t", "two lines"),
        ("$x$", r"\$x\$"),
        ("x" * 100 + " [km/s]", "x" * 23 + "…" + "x" * 5 + " [km/s]"),
    ],
)
def test_label_is_one_short_line_without_mathematics(name, shown):
    assert style.label(name) == shown
    assert not is_math_text(style.label(name))
    assert len(style.label(name).replace("\\", "")) <= style.NAME_WIDTH


def test_colours_are_told_apart_and_mix_by_responsibility():
    colours = style.palette(len(style.COLOURS))
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert apart[np.triu_indices(len(colours), 1)].min() > 0.25
    np.testing.assert_allclose(style.blend(np.eye(3)), [to_rgb(c) for c in style.COLOURS[:3]])
    np.testing.assert_allclose(style.blend(np.array([[0.25, 0.75]]))[0], colours[:2].T @ [0.25, 0.75])
    assert style.colour(len(style.COLOURS)) == style.COLOURS[0]


def test_long_titles_are_folded_to_the_width_and_numbers_keep_their_per_cent():
    line = "words " * 30 + "and 90 % of them"
    folded = style._folded([line, "", "short"], 60)
    assert max(map(len, folded)) <= 60
    assert " ".join(folded).replace("\u00a0", " ") == f"{line} short"
    assert min(map(len, folded[:-1])) > 0.6 * max(map(len, folded))


def test_the_legend_names_the_heaviest_of_many_components():
    weights = np.arange(1, 21) / 210
    labels = [handle.get_label() for handle in style.component_handles(weights)]
    assert labels[0] == "component 8: weight 0.04"
    assert labels[-1] == "and 8 lighter ones"
    assert len(labels) == style.SHOWN_COMPONENTS + 1


@pytest.mark.parametrize("function", ["density", "ellipses", "responsibilities", "trace"])
def test_settings_and_backend_of_the_user_stay(function, post):
    with mpl.rc_context({"font.size": 17, "axes.facecolor": "black", "text.usetex": True}):
        before = dict(mpl.rcParams)
        made = getattr(plots, function)(post)
        assert dict(mpl.rcParams) == before
        figure = made.viz["figure"].item() if function == "trace" else made
        assert to_rgb(figure.axes[0].get_facecolor()) == (1, 1, 1)
        assert not any(text.get_usetex() for text in figure.axes[0].texts)


def test_axes_of_the_user_are_drawn_into(post, X):
    figure, (left, right) = plt.subplots(1, 2)
    assert plots.ellipses(post, features=[0, 1], ax=left) is figure
    assert plots.coclustering(post, ax=right) is figure
    assert left.get_xlabel() == "feature a"
    assert left.get_legend() is not None
    assert "ellipses" in left.get_title()
    assert plt.get_fignums() == [figure.number]


def test_axes_of_the_user_cannot_hold_a_matrix(post):
    figure, ax = plt.subplots()
    with pytest.raises(ValueError, match="9 panels and cannot be drawn into one ax"):
        plots.density(post, ax=ax)
    assert plt.get_fignums() == [figure.number]


def test_a_figure_that_fails_is_not_left_open(monkeypatch, post):
    def fail(*arguments, **keywords):
        raise RuntimeError("in the middle")

    monkeypatch.setattr("bayesgmm.plots.densities.surface_panel", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        plots.density(post)
    assert plt.get_fignums() == []


def test_size_is_the_one_asked_for(post):
    assert tuple(plots.forest(post, figsize=(5, 4)).get_size_inches()) == (5, 4)


@pytest.fixture(scope="module")
def oddly_named():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.standard_normal((60, 4)), columns=NAMES)
    X.iloc[:20] += 5
    return X, laplace(X), GaussianMixture(2, n_init=1, keep_history=True, random_state=0).fit(X)


@pytest.mark.parametrize(
    "function",
    [
        "density",
        "ellipses",
        "forest",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("responsibilities", "soft_and_hard", "posterior", "predictive_check", "trace", "rank")
        ),
    ],
)
def test_names_with_odd_characters_are_shown_as_they_are(function, oddly_named):
    _, post, _ = oddly_named
    made = getattr(plots, function)(post)
    figure = made.viz["figure"].item() if function in ("trace", "rank") else made
    figure.canvas.draw()
    texts = [t.get_text() for t in figure.findobj(mpl.text.Text)]
    assert not any(is_math_text(line) for text in texts for line in text.splitlines())
    # The second feature, "_a b", has no dollar; the first is shortened alone.
    assert any("prix_en_" in text or "_a b" in text for text in texts)


@pytest.mark.slow
def test_steps_of_em_have_odd_names_too(oddly_named):
    X, _, em = oddly_named
    figure = plots.em_steps(em, X)
    figure.canvas.draw()
    assert not any(is_math_text(t.get_text()) for t in figure.findobj(mpl.text.Text))


# what figures refuse


def test_what_is_no_fit_is_refused():
    with pytest.raises(TypeError, match=r"take a fitted GaussianMixture .*; got str"):
        plots.density("fit")
    with pytest.raises(TypeError, match="got GaussianMixture"):
        plots.density(GaussianMixture)
    with pytest.raises(Exception, match="not fitted"):
        plots.density(GaussianMixture())


@pytest.mark.parametrize("function", ["forest", "posterior", "trace", "rank", "predictive_check"])
def test_figures_of_draws_say_that_em_has_none(function, em):
    with pytest.raises(TypeError, match=f"{function} shows posterior draws, and a fit by EM has none"):
        getattr(plots, function)(em)


@pytest.mark.parametrize("function", ["responsibilities", "soft_and_hard", "coclustering"])
def test_figures_of_rows_say_that_em_keeps_none(function, em):
    with pytest.raises(ValueError, match=rf"{function} shows rows, .* give X"):
        getattr(plots, function)(em)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["no such"], "feature 'no such' is not one of the fit's: 'feature a'"),
        ([3], "feature 3 is not one"),
        ([0, "feature a"], "must be different ones"),
        ([], "at least one"),
    ],
)
def test_features_that_are_not_there(features, message, post):
    with pytest.raises(ValueError, match=message):
        plots.density(post, features=features)
    assert plt.get_fignums() == []
