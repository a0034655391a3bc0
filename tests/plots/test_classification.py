from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.exceptions import NotFittedError

from bayesgmm import BayesianGaussianMixture, GaussianMixture, MixtureClassifier, plots
from bayesgmm.plots import classification


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.repeat(["ill", "well"], [60, 90])
    X = pd.DataFrame({"age $": np.where(y == "ill", 60, 40) + 8 * rng.standard_normal(150)})
    return X, y


@pytest.fixture(scope="module")
def post(data):
    sampler = BayesianGaussianMixture(method="laplace", draws=100, target_ess=0, progressbar=False, random_state=0)
    return MixtureClassifier(sampler).fit(*data)


def test_curves_and_bands_are_those_of_the_draws(post, data):
    figure = plots.class_probability(post, *data, shown="ill")
    top, bottom = figure.axes
    grid = top.lines[0].get_xdata()
    group = post.idata_["posterior"]
    w, m, s = (group[name].values.reshape(400, 2) for name in ("weights", "means", "standard_deviations"))
    joint = w * stats.norm(m, s).pdf(grid[:, None, None])
    for k in range(2):
        np.testing.assert_allclose(top.lines[k].get_ydata(), joint[:, :, k].mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(top.lines[2].get_ydata(), joint.sum(axis=2).mean(axis=1), rtol=1e-9)
    probability = joint[:, :, 0] / joint.sum(axis=2)
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), probability.mean(axis=1), rtol=1e-9)
    table = pd.DataFrame(grid, columns=data[0].columns)
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), post.predict_proba(table)[:, 0], rtol=1e-8)
    band = bottom.collections[0].get_paths()[0].vertices
    for at in (50, 150, 250):
        ends = np.sort(np.unique(band[np.isclose(band[:, 0], grid[at]), 1]))[[0, -1]]
        np.testing.assert_allclose(ends, np.quantile(probability[at], [0.05, 0.95]), rtol=1e-9)
    assert bottom.get_xlabel() == r"age \$"
    assert bottom.get_ylabel() == "probability of ill"
    plt.close(figure)


def test_shares_and_histograms_count_the_rows(post, data):
    X, y = data
    figure = plots.class_probability(post, X, np.where(np.arange(150) < 10, None, y), shown="ill")
    top, bottom = figure.axes
    areas = {}
    for patch in top.patches:
        areas[patch.get_facecolor()] = areas.get(patch.get_facecolor(), 0) + patch.get_height() * patch.get_width()
    np.testing.assert_allclose(sorted(areas.values()), [50 / 140, 90 / 140])
    x, share = bottom.lines[-1].get_data()
    kept, ill = X.to_numpy()[10:, 0], (y == "ill")[10:]
    order = np.argsort(kept)
    tenths = np.array_split(order, 10)
    np.testing.assert_allclose(share, [ill[part].mean() for part in tenths])
    np.testing.assert_allclose(x, [kept[part].mean() for part in tenths])
    plt.close(figure)


def test_em_has_no_band_and_three_classes_are_all_drawn():
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], 40)
    X = y[:, None] * 4.0 + rng.standard_normal((120, 1))
    found = MixtureClassifier(random_state=0).fit(X, y)
    figure = plots.class_probability(found, limits=(-2, 10), figsize=(5, 5))
    top, bottom = figure.axes
    assert len(bottom.lines) == 3
    assert not top.collections
    grid = bottom.lines[0].get_xdata()
    assert (grid[0], grid[-1]) == (-2, 10)
    total = sum(line.get_ydata() for line in bottom.lines)
    np.testing.assert_allclose(total, 1)
    np.testing.assert_allclose(bottom.lines[1].get_ydata(), found.predict_proba(grid[:, None])[:, 1], rtol=1e-9)
    text = " ".join(t.get_text() for t in figure.legends[0].get_texts())
    assert "posterior" not in text
    plt.close(figure)
    free = plots.class_probability(found)
    low, high = free.axes[0].lines[0].get_xdata()[[0, -1]]
    assert low < 0
    assert high > 8
    plt.close(free)


def test_bad_input(data):
    X, y = data
    found = MixtureClassifier().fit(X, y)
    with pytest.raises(ValueError, match="X and y together"):
        plots.class_probability(found, X)
    with pytest.raises(ValueError, match=r"shown must be one of the classes 'ill', 'well'; got 'dead'"):
        plots.class_probability(found, shown="dead")
    with pytest.raises(ValueError, match="this classifier has 2"):
        plots.class_probability(MixtureClassifier().fit(np.column_stack([X, X.to_numpy() ** 2]), y))
    with pytest.raises(TypeError, match="got GaussianMixture"):
        plots.class_probability(GaussianMixture())
    with pytest.raises(NotFittedError):
        plots.class_probability(MixtureClassifier())
    assert classification.BAND == 0.9
