from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.path import Path
from scipy import stats

from bayesgmm import GaussianMixture, plots
from bayesgmm.plots import rows
from bayesgmm.plots.densities import BAND, REGIONS
from tests.plots.conftest import all_text, laplace, panels, table


def line(ax, name):
    return next(line for line in ax.lines if line.get_label() == name).get_xydata().T


def test_curve_is_the_predictive_density(post1):
    ax = panels(plots.density(post1))[0]
    x, y = line(ax, "density")
    np.testing.assert_allclose(y, np.exp(post1.score_samples(pd.DataFrame({"feature a": x}))), rtol=1e-10)
    assert ax.get_xlabel() == "feature a"
    assert ax.get_ylabel() == "density per unit of feature a"


def test_band_holds_its_share_of_the_draws_at_each_point(post1):
    ax = panels(plots.density(post1))[0]
    band = ax.collections[0].get_paths()[0].vertices
    x = line(ax, "density")[0]
    posterior = post1.idata_["posterior"]
    weights, means, sds = (
        posterior[name].values.reshape(600, 2) for name in ("weights", "means", "standard_deviations")
    )
    for at in x[:: len(x) // 7]:
        density = (weights * stats.norm(means, sds).pdf(at)).sum(axis=1)
        low, high = np.sort(np.unique(band[np.isclose(band[:, 0], at), 1]))[[0, -1]]
        np.testing.assert_allclose([low, high], np.quantile(density, [0.05, 0.95]), rtol=1e-9)
        # Of 600 draws the quantiles leave out 30 on each side.
        assert np.mean((density >= low) & (density <= high)) == pytest.approx(BAND, abs=1.1 / 600)
    assert "band: 90 % of the posterior at each point (600 draws)" in all_text(ax.figure)


def test_components_are_dashed_and_add_up_to_one(post1):
    ax = panels(plots.density(post1))[0]
    dashed = [line.get_xydata().T for line in ax.lines if line.get_linestyle() == "--"]
    areas = [np.trapezoid(y, x) for x, y in dashed]
    # The axis leaves out some thousandths of the tails.
    np.testing.assert_allclose(areas, post1.weights_, atol=0.02)
    histogram = next(patch for patch in ax.patches if patch.get_label() == "rows").get_data()
    assert np.sum(histogram.values * np.diff(histogram.edges)) == pytest.approx(1.0)


def test_histogram_counts_rows_by_their_weights(X1):
    weight = np.where(np.arange(120) < 40, 5.0, 1.0)
    fit = laplace(X1, 1)
    fit.fit(X1, sample_weight=weight)
    ax = panels(plots.density(fit))[0]
    histogram = next(patch for patch in ax.patches if patch.get_label() == "rows").get_data()
    expected = np.histogram(X1["feature a"], histogram.edges, weights=weight)[0]
    np.testing.assert_allclose(histogram.values * np.diff(histogram.edges), expected / 280)


def test_contours_enclose_their_share_of_the_mixture():
    truth = GaussianMixture.from_parameters(
        [0.7, 0.3], [[0, 0], [5, 3]], [[[1, 0.5], [0.5, 1]], [[0.5, 0], [0, 2]]], random_state=1
    )
    ax = panels(plots.density(truth))[0]
    contours = ax.collections[0]
    sample = truth.sample(20_000)[0]
    for path, share in zip(contours.get_paths(), sorted(REGIONS, reverse=True), strict=True):
        vertices = path.vertices
        # A contour is one height of the density, but for the grid's interpolation.
        heights = truth.score_samples(vertices[:-1])
        assert np.ptp(heights) < 0.12
        inside = np.zeros(len(sample), dtype=bool)
        for polygon in path.to_polygons():
            inside |= Path(polygon).contains_points(sample)
        # 10,000 simulated rows place the contour, 20,000 measure it: four standard errors of the two together.
        assert inside.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) * 1.5e-4) + 0.002)


@pytest.mark.parametrize("D", [3, 6])
def test_matrix_has_densities_on_its_diagonal_and_pairs_below(D):
    X = table(D)
    figure = plots.density(GaussianMixture(2, n_init=1, random_state=0).fit(X), X)
    figure.canvas.draw()
    d = min(D, 4)
    assert len(panels(figure)) == d * (d + 1) // 2
    assert ("4 of 6 features: those in which the components differ most" in all_text(figure)) == (D == 6)
    assert "no posterior draws, so no band" in all_text(figure)
    corner = next(ax for ax in panels(figure) if ax.get_xlabel() and ax.get_ylabel())
    points = next(c for c in corner.collections if len(c.get_offsets()) == 120).get_offsets()
    np.testing.assert_allclose(points, X[[corner.get_xlabel(), corner.get_ylabel()]])


def test_the_features_chosen_are_those_that_tell_the_components_apart():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 30))
    X[:150, [4, 11, 17, 23]] += [6, 7, 8, 9]
    fit = GaussianMixture(2, covariance_type="diag", n_init=1, random_state=0).fit(X)
    figure = plots.density(fit)
    assert [ax.get_xlabel() for ax in panels(figure) if ax.get_xlabel()] == ["x4", "x11", "x17", "x23"]
    assert "4 of 30 features" in all_text(figure)
    assert panels(plots.density(fit, features=[29]))[0].get_xlabel() == "x29"
    with pytest.raises(ValueError, match="5 features are asked for, and this figure takes at most 4"):
        plots.density(fit, features=range(5))


def test_a_diagonal_curve_is_the_marginal(post):
    ax = panels(plots.density(post, features=["feature c"]))[0]
    x, y = line(ax, "density")
    posterior = post.idata_["posterior"]
    weights = posterior["weights"].values.reshape(600, 2)
    means, sds = (
        posterior[name].sel(feature="feature c").values.reshape(600, 2) for name in ("means", "standard_deviations")
    )
    expected = [(weights * stats.norm(means, sds).pdf(at)).sum(axis=1).mean() for at in x[::50]]
    np.testing.assert_allclose(y[::50], expected, rtol=1e-9)


def test_a_narrow_component_is_drawn_and_its_peak_cut_off_said():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal(80), 2 + 1e-5 * rng.standard_normal(8)])[:, None]
    fit = GaussianMixture.from_parameters([0.9, 0.1], [[0], [2]], [[[1]], [[1e-10]]])
    ax = panels(plots.density(fit, x))[0]
    assert "peak is cut off" in all_text(ax.figure)
    peak = line(ax, "density")[1].max()
    # The density's height at the narrow component's mean.
    assert peak == pytest.approx(np.exp(fit.score_samples([[2.0]])[0]), rel=1e-6)
    assert ax.get_ylim()[1] < 0.01 * peak


def test_many_rows_are_binned_with_their_mean_colour():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, rows.BINNED_ROWS + 1))
    colours = rng.random((len(x), 3))
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    rows.scatter(ax, x, y, colours)
    assert not ax.collections
    (image,) = ax.images
    x0, x1, y0, y1 = image.get_extent()
    picture = image.get_array()
    edges = [np.linspace(x0, x1, rows.BINS + 1), np.linspace(y0, y1, rows.BINS + 1)]
    counts = np.histogram2d(x, y, edges)[0].T
    np.testing.assert_array_equal(picture[..., 3] > 0, counts > 0)
    summed = np.histogram2d(x, y, edges, weights=colours[:, 1])[0].T
    np.testing.assert_allclose(picture[..., 1][counts > 0], (summed / np.maximum(counts, 1))[counts > 0], atol=1e-9)
    densest = np.unravel_index(counts.argmax(), counts.shape)
    assert picture[..., 3].max() == picture[(*densest, 3)]


def test_a_histogram_of_a_constant_or_far_outlier_stays_small():
    assert len(rows.histogram_edges(np.full(10, 3.0))) <= 81
    far = np.append(np.random.default_rng(0).standard_normal(1000), 1e9)
    assert len(rows.histogram_edges(far)) <= 81
