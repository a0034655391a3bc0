from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from bayesgmm import GaussianMixture, plots
from bayesgmm.plots.style import blend, palette
from tests.plots.conftest import all_text, panels, table


@pytest.fixture(scope="module")
def overlapping():
    """Rows of which many are uncertain, in an order that says nothing."""
    rng = np.random.default_rng(4)
    X = rng.standard_normal((300, 2))
    X[rng.random(300) < 0.4] += [2.0, 1.0]
    X = pd.DataFrame(X, columns=["a (cm)", "b (kg)"])
    return X, GaussianMixture(2, random_state=0, n_init=3).fit(X)


def test_points_are_coloured_by_responsibility_and_grow_with_uncertainty(overlapping):
    X, fit = overlapping
    ax = panels(plots.responsibilities(fit, X))[0]
    points = ax.collections[0]
    r = fit.predict_proba(X)
    # The uncertain ones are drawn last, on top.
    order = np.argsort(1 - r.max(axis=1), kind="stable")
    np.testing.assert_allclose(points.get_offsets(), X.to_numpy()[order])
    np.testing.assert_allclose(points.get_facecolors()[:, :3], blend(r[order]), atol=1e-9)
    areas = points.get_sizes()
    np.testing.assert_allclose(areas / areas[0], (1 + 8 * (1 - r[order].max(axis=1))) / (1 + 8 * (1 - r.max())))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a (cm)", "b (kg)")
    assert f"rows with no component above 90 %: {(r.max(axis=1) < 0.9).sum()}" in all_text(ax.figure)


def test_responsibilities_of_a_posterior_are_averaged(post, X):
    ax = panels(plots.responsibilities(post))[0]
    r = post.predict_proba(X)
    colours = ax.collections[0].get_facecolors()[:, :3]
    np.testing.assert_allclose(np.sort(colours, axis=0), np.sort(blend(r), axis=0), atol=1e-9)
    assert "mean of 600 draws" in all_text(ax.figure)
    assert "2 of 3 features: those in which the components differ most" in all_text(ax.figure)


def test_along_one_feature_the_band_holds_the_draws(post1):
    ax = panels(plots.responsibilities(post1))[0]
    curves = [line.get_xydata() for line in ax.lines if len(line.get_xydata()) > 100]
    x = curves[0][:, 0]
    expected = post1.predict_proba(pd.DataFrame({"feature a": x}))
    np.testing.assert_allclose(np.column_stack([curve[:, 1] for curve in curves]), expected, atol=1e-12)
    at = len(x) // 2
    posterior = post1.idata_["posterior"]
    chosen = np.linspace(0, 599, 500).astype(int)
    weights, means, sds = (
        posterior[name].values.reshape(600, 2)[chosen] for name in ("weights", "means", "standard_deviations")
    )
    density = weights / sds * np.exp(-0.5 * ((x[at] - means) / sds) ** 2)
    share = density[:, 0] / density.sum(axis=1)
    band = ax.collections[0].get_paths()[0].vertices
    ends = np.sort(np.unique(band[np.isclose(band[:, 0], x[at]), 1]))[[0, -1]]
    np.testing.assert_allclose(ends, np.quantile(share, [0.05, 0.95]), rtol=1e-9)


@pytest.mark.parametrize("kind", ["em", "posterior"])
def test_kmeans_stands_beside_the_mixture(kind, overlapping, post, X):
    rows, fit = (X, post) if kind == "posterior" else overlapping
    figure = plots.soft_and_hard(fit, rows)
    left, right = panels(figure)
    soft = fit.predict(rows)
    Z = (rows - rows.mean()) / rows.std(ddof=0)
    hard = KMeans(2, n_init=10, random_state=0).fit_predict(Z.to_numpy())
    if (hard != soft).mean() > 0.5:
        hard = 1 - hard
    np.testing.assert_allclose(left.collections[0].get_facecolors()[:, :3], palette(2)[hard], atol=1e-9)
    np.testing.assert_allclose(right.collections[0].get_facecolors()[:, :3], blend(fit.predict_proba(rows)), atol=1e-9)
    text = all_text(figure)
    assert f"k-means puts {(hard != soft).sum()} row" in text
    assert f"adjusted Rand index {adjusted_rand_score(soft, hard):.2f}" in text


def test_one_feature_is_stacked(post1, X1):
    left, right = panels(plots.soft_and_hard(post1))
    for ax, shares in ((left, np.eye(2)[post1.predict(X1)]), (right, post1.predict_proba(X1))):
        steps = [patch.get_data() for patch in ax.patches]
        heights = [np.sum(step.values - step.baseline) for step in steps]
        np.testing.assert_allclose(heights, shares.sum(axis=0), atol=1e-9)


def test_many_rows_are_binned():
    X = table(2, 20_001)
    fit = GaussianMixture(2, n_init=1, random_state=0).fit(X)
    ax = panels(plots.responsibilities(fit, X))[0]
    assert len(ax.images) == 1
    assert not ax.collections
    assert "bins: mean colour of their rows" in all_text(ax.figure)


def test_one_component():
    X = table(2)
    figure = plots.soft_and_hard(GaussianMixture(1).fit(X), X)
    assert "k-means puts 0 rows elsewhere (adjusted Rand index 1.00)" in all_text(figure)


def test_three_features_do_not_fit_a_plane(post):
    with pytest.raises(ValueError, match="3 features are asked for, and this figure takes at most 2"):
        plots.responsibilities(post, features=[0, 1, 2])
    with pytest.raises(ValueError, match="in the plane of two features"):
        plots.soft_and_hard(post, features=[0])
