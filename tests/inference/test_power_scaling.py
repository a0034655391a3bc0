from __future__ import annotations

import arviz as az
import numpy as np
import pandas as pd
import pytest

from bayesgmm import BayesianGaussianMixture, ConjugatePrior, SeparationPrior
from bayesgmm.inference.power_scaling import CONFLICT, STRONG, sensitivity_sentence


def fit(X, prior, K=1, **options):
    return BayesianGaussianMixture(K, prior=prior, method="laplace", random_state=0, progressbar=False, **options).fit(
        X
    )


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(7, 1, (40, 2))])


def test_sensitivities_are_arvizs(X):
    post = fit(X, SeparationPrior(), K=2)
    table = post.prior_sensitivity()
    theirs = az.psense_summary(post.idata_, var_names=["means", "weights"], round_to=10)
    for k in range(2):
        # The same draws and densities, the log-likelihood added up in another order.
        assert table["prior"][f"weights[{k}]"] == pytest.approx(theirs["prior"][f"weights[{k}]"], rel=1e-6)
        assert table["likelihood"][f"means[{k}, x0]"] == pytest.approx(
            theirs["likelihood"][f"means[{k}, x0]"], rel=1e-6
        )
    for name, row in az.psense_summary(
        post.idata_, var_names=["standard_deviations", "correlations"], round_to=10
    ).iterrows():
        variable, where = str(name).rstrip("]").split("[")
        ours = table.loc[f"{variable}[{', '.join(part.strip() for part in where.split(','))}]"]
        assert tuple(ours[["prior", "likelihood"]]) == pytest.approx((row["prior"], row["likelihood"]), rel=1e-6)
    summary = post.summary()
    assert list(table.index) == list(summary.index)
    assert list(summary["prior_sensitivity"]) == list(table["prior"])
    object.__setattr__(post.diagnostics_, "labels_identified", False)
    assert "prior_sensitivity" not in post.summary()
    assert not table["diagnosis"].any()
    assert "the data decide" in sensitivity_sentence(table)


def test_a_prior_in_conflict_is_flagged_where_it_is():
    x = np.random.default_rng(0).standard_normal((20, 1))
    prior = SeparationPrior(mean_prior=[4.0], mean_scale=[0.5])
    table = fit(pd.DataFrame(x, columns=["km/h"]), prior).prior_sensitivity()
    assert table["diagnosis"]["means[0, km/h]"] == CONFLICT
    assert "means[0, km/h]" in sensitivity_sentence(table)
    # The weight of one component is 1.
    assert table.loc["weights[0]", ["prior", "likelihood"]].tolist() == [0, 0]


def test_power_scaling_of_a_normal_mean_against_a_direct_reweighting():
    """The prior of a mean alone known to decide: twenty rows under a prior with the weight of two thousand."""
    x = np.random.default_rng(0).standard_normal((20, 1))
    table = fit(x, ConjugatePrior(mean_precision=2000.0)).prior_sensitivity()
    assert table["diagnosis"]["means[0, x0]"] == STRONG
    assert table["likelihood"]["means[0, x0]"] < table["prior"]["means[0, x0]"]


def test_weights_count_and_components_that_cannot_be_told_apart_have_invariants(X):
    doubled = fit(np.repeat(X, 2, axis=0), SeparationPrior(), K=2).prior_sensitivity()
    weighted = BayesianGaussianMixture(
        2, prior=SeparationPrior(), method="laplace", random_state=0, progressbar=False
    ).fit(X, sample_weight=np.full(len(X), 2.0))
    # Frequency weights are repeated rows; the prior is scaled by the same data but for the divisor n − 1.
    np.testing.assert_allclose(weighted.prior_sensitivity()["likelihood"], doubled["likelihood"], rtol=0.3)
    post = fit(X[:60], SeparationPrior(), K=1)
    object.__setattr__(post.diagnostics_, "labels_identified", False)
    assert "log_determinant_within" in post.prior_sensitivity().index
