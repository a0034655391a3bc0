from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from scipy import stats

from bayesgmm import BayesianGaussianMixture, ConjugatePrior, GaussianMixture, HierarchicalPrior, SeparationPrior, plots
from bayesgmm.plots.priors import MEAN_DRAWS
from tests.plots.conftest import all_text, panels, table

FAMILIES = (ConjugatePrior(), HierarchicalPrior(), SeparationPrior(eta=3))


@pytest.mark.parametrize("prior", FAMILIES, ids=lambda prior: type(prior).__name__)
def test_lines_are_densities_of_the_priors_draws(prior):
    X = table(1)
    ax = panels(plots.prior_predictive(prior, X, n_components=2, draws=3, random_state=5))[0]
    weights, means, covariances, *_ = prior.resolve(X, 2).draw(np.random.default_rng(5), MEAN_DRAWS)
    sigma = np.sqrt(covariances[..., 0])
    thin = [line.get_xydata().T for line in ax.lines if line.get_label() != "mean"]
    assert len(thin) == 3
    for s, (x, y) in enumerate(thin):
        expected = (weights[s] * stats.norm(means[s, :, 0], sigma[s, :, 0]).pdf(x[:, None])).sum(axis=1)
        np.testing.assert_allclose(y, expected, rtol=1e-8, atol=1e-12)
    x, y = next(line.get_xydata().T for line in ax.lines if line.get_label() == "mean")
    at = len(x) // 3
    expected = (weights * stats.norm(means[..., 0], sigma[..., 0]).pdf(x[at])).sum(axis=1).mean()
    assert y[at] == pytest.approx(expected, rel=1e-8)
    histogram = next(patch for patch in ax.patches if patch.get_label() == "rows").get_data()
    assert np.sum(histogram.values * np.diff(histogram.edges)) == pytest.approx(1.0)


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_pairs_show_an_ellipse_for_every_drawn_component(covariance_type):
    X = table(3)
    figure = plots.prior_predictive(
        SeparationPrior(), X, n_components=2, covariance_type=covariance_type, draws=4, features=["feature c", 0]
    )
    axes = panels(figure)
    assert len(axes) == 3
    off = next(ax for ax in axes if len(ax.lines) == 8)
    _, means, covariances = (
        SeparationPrior().resolve(X, 2, covariance_type).draw(np.random.default_rng(0), MEAN_DRAWS, covariance_type)
    )
    curve = off.lines[0].get_xydata()
    np.testing.assert_allclose(curve[:-1].mean(axis=0), means[0, 0, [2, 0]], rtol=1e-8)
    variance = {"full": lambda c: c[0, 0, 2, 2], "tied": lambda c: c[0, 2, 2], "diag": lambda c: c[0, 0, 2]}
    expected = variance.get(covariance_type, lambda c: c[0, 0])(covariances)
    # 90 % of a normal lie within the χ²₂ quantile; 100 points around the ellipse reach its end to 0.1 %.
    reach = (curve[:, 0] - means[0, 0, 2]).max()
    assert reach == pytest.approx(np.sqrt(stats.chi2(2).ppf(0.9) * expected), rel=2e-3)
    assert "ellipses hold 90 %" in all_text(figure)


def test_estimators_give_their_prior_components_and_structure(post):
    text = all_text(plots.prior_predictive(post, table(3)))
    assert "ConjugatePrior, 2 components, full" in text
    unfitted = BayesianGaussianMixture(3, covariance_type="diag", prior=SeparationPrior())
    assert "SeparationPrior, 3 components, diag" in all_text(plots.prior_predictive(unfitted, table(1)))


def test_what_cannot_be_shown_is_refused():
    X = table(2)
    with pytest.raises(ValueError, match="n_components is not known"):
        plots.prior_predictive(SeparationPrior(), X)
    with pytest.raises(TypeError, match="takes a prior"):
        plots.prior_predictive(GaussianMixture(2), X)
    with pytest.raises(ValueError, match="'z' is not one of the table's"):
        plots.prior_predictive(SeparationPrior(), X, n_components=2, features=["z"])
    with pytest.raises(ValueError, match="finite table"):
        plots.prior_predictive(SeparationPrior(), [[np.nan]], n_components=2)
    with pytest.raises(ValueError, match="4 panels"):
        plots.prior_predictive(SeparationPrior(), X, n_components=2, ax=mpl.pyplot.figure().add_subplot())
