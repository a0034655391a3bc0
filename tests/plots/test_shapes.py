from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from scipy import stats

from bayesgmm import BayesianGaussianMixture, GaussianMixture, plots
from bayesgmm.core.parameters import factors_from_covariances
from bayesgmm.plots.shapes import SHOWN_DRAWS, ellipse
from tests.plots.conftest import all_text, laplace, panels, table


def curves(ax):
    return [line.get_xydata() for line in ax.lines if len(line.get_xydata()) > 10]


def crosses(ax):
    return np.array([line.get_xydata()[0] for line in ax.lines if line.get_marker() == "+"])


@pytest.mark.parametrize("kind", ["em", "posterior"])
@pytest.mark.parametrize(("D", "n_panels"), [(1, 1), (2, 1), (3, 3), (6, 6)])
def test_panels_and_their_labels(kind, D, n_panels):
    X = table(D)
    fit = laplace(X) if kind == "posterior" else GaussianMixture(2, n_init=2, random_state=0).fit(X)
    figure = plots.mixture(fit, X)
    figure.canvas.draw()
    shown = panels(figure)
    assert len(shown) == n_panels
    text = all_text(figure)
    assert "120 rows, 2 components, covariance full" in text
    assert all(f"component {k}: weight 0." in text for k in range(2))
    assert ("EM fit" in text) == (kind == "em")
    if D > 1:
        labels = {ax.get_xlabel() for ax in shown} | {ax.get_ylabel() for ax in shown}
        assert labels - {""} <= set(X.columns)
        assert len(labels - {""}) == min(D, 4)


@pytest.mark.parametrize("levels", [(0.5, 0.9), 0.75])
def test_ellipses_stand_where_the_fit_has_them(levels, post):
    ax = panels(plots.ellipses(post, features=["feature a", "feature c"], levels=levels))[0]
    shares = np.atleast_1d(levels)
    np.testing.assert_allclose(crosses(ax), post.means_[:, [0, 2]])
    drawn = curves(ax)
    assert len(drawn) == 2 * len(shares)
    for place, curve in enumerate(drawn):
        k, level = place // len(shares), shares[place % len(shares)]
        d = curve - post.means_[k, [0, 2]]
        inverse = np.linalg.inv(post.covariances_[k][np.ix_([0, 2], [0, 2])])
        np.testing.assert_allclose(np.einsum("nd,de,ne->n", d, inverse, d), stats.chi2(2).ppf(level), rtol=1e-8)


def test_thin_ellipses_are_those_of_posterior_draws(post):
    ax = panels(plots.ellipses(post, features=[0, 1], draws=40))[0]
    spreads = [c for c in ax.collections if isinstance(c, mpl.collections.LineCollection)]
    assert [len(c.get_segments()) for c in spreads] == [40, 40]
    posterior = post.idata_["posterior"]
    means = posterior["means"].values.reshape(600, 2, 3)[:, :, :2]
    chosen = np.linspace(0, 599, 40).astype(int)
    for k, spread in enumerate(spreads):
        # All but the last point, which is the first again.
        centres = [segment[:-1].mean(axis=0) for segment in spread.get_segments()]
        np.testing.assert_allclose(centres, means[chosen, k], atol=1e-9)
    assert "thin: 90 % ellipses of 40 posterior draws" in all_text(ax.figure)
    none = panels(plots.ellipses(post, features=[0, 1], draws=0))[0]
    assert not any(isinstance(c, mpl.collections.LineCollection) for c in none.collections)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_ellipse_holds_its_probability(level):
    rng = np.random.default_rng(2)
    mean, covariance = np.array([3.0, -1.0]), np.array([[4.0, 1.5], [1.5, 1.0]])
    path = mpl.path.Path(ellipse(mean, factors_from_covariances(covariance), level, points=400))
    inside = path.contains_points(rng.multivariate_normal(mean, covariance, 20_000))
    # Binomial error, at four of them.
    assert inside.mean() == pytest.approx(level, abs=4 * 0.5 / np.sqrt(20_000))


def test_rows_have_the_colours_of_their_responsibilities(post, X):
    ax = panels(plots.ellipses(post, X, features=[0, 1]))[0]
    points = ax.collections[0]
    np.testing.assert_allclose(points.get_offsets(), X.iloc[:, :2])
    np.testing.assert_allclose(points.get_facecolors()[:, :3], plots.style.blend(post.predict_proba(X)), atol=1e-9)


@pytest.mark.parametrize("covariance_type", ["tied", "diag", "spherical"])
def test_every_structure(covariance_type):
    X = table(2)
    fit = laplace(X, covariance_type=covariance_type)
    ax = panels(plots.ellipses(fit))[0]
    curve = curves(ax)[1] - fit.means_[0]
    lengths = curve.max(axis=0) / np.sqrt(stats.chi2(2).ppf(0.9))
    sds = {
        "tied": lambda c: np.sqrt(np.diagonal(c)),
        "diag": lambda c: np.sqrt(c[0]),
        "spherical": lambda c: np.sqrt(c[[0, 0]]),
    }
    # 100 points come within 0.1 % of the ellipse's end.
    np.testing.assert_allclose(lengths, sds[covariance_type](fit.covariances_), rtol=2e-3)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_unidentified_components_are_said_to_be_the_modes():
    X = np.random.default_rng(0).standard_normal((50, 2))
    fit = BayesianGaussianMixture(4, draws=50, tune=60, chains=2, target_ess=0, random_state=0, progressbar=False)
    fit.fit(X)
    assert not fit.diagnostics_.labels_identified
    ax = panels(plots.ellipses(fit))[0]
    assert "the mode found by EM, as components are not identified" in all_text(ax.figure)
    np.testing.assert_allclose(crosses(ax), fit.map_.means)
    spread = [c for c in ax.collections if isinstance(c, mpl.collections.LineCollection)]
    assert len({tuple(c.get_color()[0]) for c in spread}) == 1
    assert len(spread[0].get_segments()) == SHOWN_DRAWS
    assert "components are not identified: what is shown of one mixes several" in all_text(plots.forest(fit))


def test_more_components_than_colours():
    many = GaussianMixture.from_parameters(np.full(10, 0.1), np.arange(20.0).reshape(10, 2), np.stack([np.eye(2)] * 10))
    plots.mixture(many, table(2).to_numpy()).canvas.draw()


def test_one_feature_has_no_ellipse(post1, post):
    with pytest.raises(ValueError, match="an ellipse needs two features"):
        plots.ellipses(post1)
    with pytest.raises(ValueError, match="levels must be probabilities"):
        plots.ellipses(post, levels=(0.5, 1.5))
    with pytest.raises(ValueError, match="draws must not be negative"):
        plots.ellipses(post, draws=-1)


def test_structures_stand_side_by_side_with_their_bic():
    X = table(2)
    figure = plots.structures(X, 2)
    figure.canvas.draw()
    shown = panels(figure)
    assert len(shown) == 4
    order = []
    for ax in shown:
        kind = ax.get_title().partition(":")[0]
        fit = GaussianMixture(2, covariance_type=kind, n_init=4, tol=1e-6, random_state=0).fit(X)
        assert f"{fit._n_parameters()} parameters, BIC {fit.bic(X):,.1f}" in ax.get_title()
        order.append(crosses(ax)[0])
    # The same component has the same colour in all four.
    assert np.ptp(order, axis=0).max() < 1


def test_structures_of_many_rows_are_fitted_to_a_part():
    X = table(2, 6_000)
    assert "6,000 rows, fitted to 5,000 of them" in all_text(plots.structures(X, 1))
    with pytest.raises(ValueError, match="X has one"):
        plots.structures(X[["feature a"]], 2)
