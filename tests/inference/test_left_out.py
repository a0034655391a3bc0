from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.frozen import FrozenEstimator

from bayesgmm import AnomalyDetector, BayesianGaussianMixture
from bayesgmm.core.tails import simulate
from bayesgmm.inference import left_out
from bayesgmm.inference.loo import loo_posterior
from tests.mixtures import random_mixture


@pytest.fixture(scope="module")
def post():
    rng = np.random.default_rng(6)
    X = random_mixture(rng, 2, 2, spread=5.0).sample(rng, 150)
    return BayesianGaussianMixture(2, method="laplace", draws=500, random_state=0, progressbar=False).fit(X)


@pytest.fixture(scope="module")
def detector(post):
    return AnomalyDetector(FrozenEstimator(post), n_draws=2000, random_state=0).fit(None)


def test_densities_are_those_of_psis_loo(post, detector):
    with pytest.warns(UserWarning, match="Pareto"):
        reference = loo_posterior(post, refits=0, moment_matching=False)
    found = detector.leave_one_out_scores()
    plain = reference.pareto_k < 0.5
    assert plain.sum() > 140
    # Rows whose weights hardly vary are not smoothed: a thousandth of a nat.
    np.testing.assert_allclose(found[plain], np.array(reference.loo.elpd_i)[plain], atol=2e-3)


def test_every_row_has_weights_of_its_own(post, detector):
    """Probabilities by plain importance weights, one row and one draw at a time."""
    left = detector._left_out()
    draws = detector._draws
    log_likelihood = left_out.kernel.pointwise_log_likelihood(post._X, *draws)
    for n in np.argsort(left.log_density)[[0, 10, 75, 149]]:
        if n in left.refitted:
            continue
        weights = np.exp(-log_likelihood[:, n] - logsumexp(-log_likelihood[:, n]))
        assert left.below[n] == pytest.approx(weights @ (log_likelihood[:, n] < detector.offset_), abs=0.01)
        # Fresh rows from the reweighted draws, and their density there.
        rng = np.random.default_rng(int(n))
        which = rng.choice(len(weights), 2000, p=weights)
        rows, importance = simulate(*(part[which] for part in draws), 2000, rng)
        every = left_out.kernel.pointwise_log_likelihood(rows, *draws)
        density = logsumexp(every + np.log(weights)[:, None], axis=0)
        share = np.average(density <= left.log_density[n], weights=importance)
        # 2,000 weighted rows: about 5 % of p and 0.012 at p = 1/2.
        assert left.tail_probability[n] == pytest.approx(share, rel=0.2, abs=0.04)


def test_one_curve_for_all_rows_where_there_are_many(post, detector, monkeypatch):
    own = detector._left_out().tail_probability
    monkeypatch.setattr(left_out, "EXACT_PRODUCTS", 0.0)
    common = AnomalyDetector(FrozenEstimator(post), n_draws=2000, random_state=0).fit(None)._left_out()
    # One row of 150 hardly moves the others' curve.
    np.testing.assert_allclose(common.tail_probability, own, rtol=0.25, atol=0.03)
    assert not np.array_equal(common.tail_probability, own)


@pytest.mark.slow
def test_copies_of_a_row_vouch_for_it():
    """A row of weight 5 loses one copy only."""
    rng = np.random.default_rng(0)
    X = np.append(rng.standard_normal(40), 4.0)[:, None]
    v = np.ones(41)
    single = BayesianGaussianMixture(1, random_state=0, progressbar=False).fit(X)
    v[-1] = 5
    several = BayesianGaussianMixture(1, random_state=0, progressbar=False).fit(X, sample_weight=v)
    p = [
        AnomalyDetector(FrozenEstimator(fit), refits=1, random_state=0).fit(None).predictive_tail_probability()[-1]
        for fit in (single, several)
    ]
    assert p[1] > 20 * p[0]


def test_a_refit_that_fails_leaves_the_row_to_importance_sampling(post, monkeypatch):
    monkeypatch.setattr(left_out, "good_k", lambda _: -1.0)

    def fail(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(left_out, "refit_without", fail)
    detector = AnomalyDetector(FrozenEstimator(post), refits=2, random_state=0).fit(None)
    with pytest.warns(UserWarning, match="cannot be left out reliably"):
        left = detector._left_out()
    assert len(left.refitted) == 0
    assert len(left.unreliable) > 2
    assert np.isfinite(left.tail_probability).all()
