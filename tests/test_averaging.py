"""Averages over draws and models against exact enumeration, against scipy, and at the door."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import reduce

import arviz as az
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from bayesgmm import BayesianGaussianMixture, ConjugatePrior, averaging, select
from bayesgmm.averaging import coclustering, model_weights
from bayesgmm.exceptions import CriterionWarning
from bayesgmm.selection import Selection
from tests.mixtures import random_mixture
from tests.oracles import Enumeration, PriorValues, expand_draws, mixture_log_densities_of_draws

KS = (1, 2, 3)
SEVEN = np.array([-2.1, -1.7, -1.2, 0.3, 1.4, 1.9, 3.2])[:, None]
POINTS = np.linspace(-4, 5, 7)[:, None]


def groups(n_rows: int = 60) -> pd.DataFrame:
    """Two groups that touch: no probability is 0 or 1."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((n_rows, 2)) @ np.array([[1.0, 0.4], [0.0, 1.0]])
    X[: n_rows // 3] += 2.5
    return pd.DataFrame(X, columns=["a", "b"])


@pytest.fixture(scope="module")
def found() -> Selection:
    """Two structures and two K, some draws each, everything asked for."""
    return select(
        groups(), (1, 2), ("full", "diag"), "laplace", draws=40, n_init=3, random_state=0, progressbar=False, y=None
    )


@pytest.fixture(scope="module")
def em() -> Selection:
    return select(groups(), (1, 2), ("full", "diag"), n_init=3, random_state=0, progressbar=False)


def by_hand(fit: BayesianGaussianMixture, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log densities (S, N) and r_ik r_jk summed over k (S, N, N) of every draw, from the DataTree by scipy."""
    posterior = fit.idata_.posterior
    K, D = fit.n_components, X.shape[1]
    covariances = expand_draws(posterior["covariances"].to_numpy(), fit.covariance_type, K, D)
    flat = [v.reshape(-1, *v.shape[2:]) for v in (posterior["weights"].to_numpy(), posterior["means"].to_numpy())]
    density, joint = mixture_log_densities_of_draws(X, *flat, covariances.reshape(-1, K, D, D))
    r = np.exp(joint - density[:, None, :])
    return density, np.einsum("skn,skm->snm", r, r)


# against the exact posterior


@pytest.fixture(scope="module")
def enumerated() -> tuple[Selection, dict[int, Enumeration]]:
    """Seven rows, K = 1, 2, 3 under one prior: a selection by NUTS, and the exact posteriors."""
    values = PriorValues(np.array([1.5]), np.array([0.2]), 0.3, 5.0, np.array([[1.5]]))
    prior = ConjugatePrior(
        weight_concentration=1.5,
        mean_prior=values.mean_prior,
        mean_precision=values.mean_precision,
        degrees_of_freedom=values.degrees_of_freedom,
        scale=values.scale,
    )
    selection = select(
        SEVEN, KS, "full", "nuts", prior=prior, criteria="evidence", draws=1500, random_state=0, progressbar=False
    )
    exact = {K: Enumeration(SEVEN, replace(values, weight_concentration=np.full(K, 1.5)), n_components=K) for K in KS}
    return selection, exact


@pytest.mark.parametrize("quantity", ["density", "coclustering"])
def test_averages_over_evidences_are_the_exact_ones(enumerated, quantity):
    selection, exact = enumerated
    shares = softmax([exact[K].log_evidence for K in KS])
    # Otherwise one model would be all there is to the average.
    assert shares.min() > 0.04
    first, second = np.triu_indices(len(SEVEN), 1)
    each, variance = [], 0.0
    for share, K in zip(shares, KS, strict=True):
        fit, posterior = selection.fits["full", K], exact[K]
        chains = fit.idata_.posterior["weights"].shape[:2]
        if quantity == "density":
            each.append(np.exp(posterior.predictive_log_density(POINTS)))
            draws = np.exp(by_hand(fit, POINTS)[0]).reshape(*chains, -1)
        else:
            each.append(posterior.coclustering()[first, second])
            draws = by_hand(fit, SEVEN)[1][:, first, second].reshape(*chains, -1)
        if K > 1 or quantity == "density":
            error = np.array([float(az.mcse(draws[..., i], method="mean")) for i in range(draws.shape[-1])])
            variance = variance + (share * error) ** 2
    expected = shares @ np.array(each)
    for share, value, K in zip(shares, each, KS, strict=True):
        slope = share * (value - expected)
        variance = variance + (slope * float(selection.table.loc[("full", K), "log_evidence_se"])) ** 2
    actual = (
        np.exp(selection.score_samples(POINTS)) if quantity == "density" else selection.coclustering()[first, second]
    )
    # Four standard errors of what is averaged, draws' and evidences': 28 comparisons exceed it once in some 500 seeds.
    np.testing.assert_array_less(np.abs(actual - expected), 4 * np.sqrt(variance))
    # No model alone would pass for the average.
    for value in each:
        assert np.max(np.abs(value - expected) / np.sqrt(variance)) > 4


# against sums by hand


@pytest.mark.parametrize("kind", ["evidence", "stacking", "bic", "mapping"])
def test_averages_are_sums_by_hand(found, kind):
    X = groups().to_numpy()
    column = {"evidence": "probability", "stacking": "weight", "bic": "bic", "mapping": None}[kind]
    keys = list(found.fits)
    if column is None:
        asked = {keys[1]: 3.0, keys[3]: 1.0, keys[0]: 0.0}
        w = np.array([asked.get(key, 0.0) for key in keys]) / 4
    else:
        asked, w = kind, found.table[column].astype(float).to_numpy()
        w = softmax(-0.5 * w) if kind == "bic" else w
    density = together = 0.0
    for key, weight in zip(keys, w, strict=True):
        log_density, products = by_hand(found.fits[key], X)
        density = density + weight * np.exp(log_density).mean(axis=0)
        together = together + weight * products.mean(axis=0)
    np.fill_diagonal(together, 1.0)
    # The same sums in another order, through the kernel's exponential (relative 1e-13 or so).
    np.testing.assert_allclose(found.score_samples(groups(), weights=asked), np.log(density), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.coclustering(groups(), weights=asked), together, rtol=0, atol=1e-9)
    assert model_weights(found, asked) == pytest.approx({k: v for k, v in zip(keys, w, strict=True) if v > 0})


def test_em_fits_are_averaged_by_bic_or_as_asked(em):
    X = groups()
    assert list(em.fits) == list(em.em_fits)
    w = softmax(-0.5 * em.table["bic"].astype(float).to_numpy())
    each = [fit.score_samples(X) for fit in em.fits.values()]
    expected = reduce(np.logaddexp, [np.log(share) + one for share, one in zip(w, each, strict=True)])
    np.testing.assert_allclose(em.score_samples(X, "bic"), expected, rtol=1e-12)
    r = em.fits["full", 2].predict_proba(X)
    together = r @ r.T
    np.fill_diagonal(together, 1.0)
    only = {("full", 2): 1.0}
    np.testing.assert_allclose(em.coclustering(X, weights=only), together, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(em.score_samples(X, only), em.fits["full", 2].score_samples(X))


def test_densities_that_underflow_are_averaged(found):
    far = pd.DataFrame([[80.0, -90.0]], columns=["a", "b"])
    each = np.array([found.fits[key].score_samples(far)[0] for key in found.fits])
    # exp of it is 0 in float64
    assert each.max() < -800
    averaged = found.score_samples(far, weights=dict.fromkeys(found.fits, 1.0))[0]
    assert each.max() - np.log(len(each)) <= averaged <= each.max()


# rows, pairs and blocks


@pytest.fixture(scope="module")
def draws() -> tuple[np.ndarray, list]:
    """Rows, and two models of 11 and 7 draws."""
    rng = np.random.default_rng(1)
    X = random_mixture(rng, 3, 2).sample(rng, 40)
    models = []
    for share, K, S in ((0.7, 3, 11), (0.3, 2, 7)):
        p = [random_mixture(rng, K, 2).parameters for _ in range(S)]
        parts = [np.array([getattr(one, name) for one in p]) for name in ("weights", "means", "precision_factors")]
        models.append((share, tuple(parts)))
    return X, models


@pytest.mark.parametrize("block", [1, 700, 4_000_000])
@pytest.mark.parametrize("dense", [0, 32])
def test_rows_and_pairs_are_parts_of_the_whole_whatever_the_blocks(draws, block, dense, monkeypatch):
    X, models = draws
    whole = coclustering(X, models)
    np.testing.assert_array_equal(whole, whole.T)
    monkeypatch.setattr(averaging, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(averaging, "DENSE", dense)
    # sums in another order
    same = {"rtol": 0, "atol": 1e-13}
    np.testing.assert_allclose(coclustering(X, models), whole, **same)
    some = np.array([5, 39, -1, 0, 5])
    mask = np.arange(40) % 3 == 0
    for rows in (some, mask, slice(3, 30, 4), [2], []):
        at = np.arange(40)[np.asarray(rows, dtype=int) if isinstance(rows, list) else rows]
        np.testing.assert_allclose(coclustering(X, models, rows=rows), whole[np.ix_(at, at)], **same)
    pairs = np.random.default_rng(2).integers(-40, 40, (90, 2))
    np.testing.assert_allclose(coclustering(X, models, pairs=pairs), whole[pairs[:, 0], pairs[:, 1]], **same)
    np.testing.assert_allclose(coclustering(X, models, pairs=[(7, 7), (7, 8)]), [1.0, whole[7, 8]], **same)
    assert coclustering(X, models, pairs=np.empty((0, 2), dtype=int)).shape == (0,)


def test_many_rows_are_refused_unless_a_part_is_asked_for(draws):
    _, models = draws
    X = np.random.default_rng(0).standard_normal((averaging.MAX_ROWS + 1, 2))
    with pytest.raises(ValueError, match=r"5001 × 5001 numbers.*at most 5000.*give rows=.*or pairs="):
        coclustering(X, models)
    part = coclustering(X, models, rows=[0, 5000])
    # sums in another order
    np.testing.assert_allclose(coclustering(X, models, pairs=[[0, 5000]]), part[0, 1], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"rows": [0, 40]}, IndexError, "rows do not fit 40 rows: index 40"),
        ({"rows": np.ones(39, dtype=bool)}, IndexError, "rows do not fit 40 rows: boolean"),
        ({"rows": [0.5]}, IndexError, "rows must be whole numbers"),
        ({"rows": [[0, 1]]}, IndexError, "rows must be whole numbers"),
        ({"pairs": [[0, 40]]}, IndexError, "pairs do not fit 40 rows: index 40"),
        ({"pairs": [0, 1]}, ValueError, r"pairs must be whole numbers of shape \(P, 2\); got int64 of shape \(2,\)"),
        ({"pairs": [[0.0, 1.0]]}, ValueError, "pairs must be whole numbers"),
        ({"pairs": [[0, 1]], "rows": [0]}, ValueError, "rows or pairs, not both"),
    ],
)
def test_bad_rows_and_pairs_are_one_clear_error(draws, options, error, says):
    with pytest.raises(error, match=says):
        coclustering(*draws, **options)


def test_a_posterior_has_its_own(found):
    fit = found.fits["full", 2]
    alone = fit.coclustering()
    np.testing.assert_array_equal(alone, fit.coclustering(groups()))
    only = {("full", 2): 5.0}
    np.testing.assert_array_equal(found.coclustering(weights=only), alone)
    np.testing.assert_allclose(fit.coclustering(pairs=[[0, 1], [4, 4]]), [alone[0, 1], 1.0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(fit.coclustering(rows=[3, 1]), alone[np.ix_([3, 1], [3, 1])], rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="feature names"):
        found.coclustering(groups().assign(c=1.0))


# weights that are not there


@pytest.mark.parametrize(
    ("weights", "error", "says"),
    [
        ("loo", ValueError, "one of evidence, stacking, bic or a mapping; got 'loo'"),
        ([0.5, 0.5], TypeError, "mapping of .covariance_type, n_components. to a number; got list"),
        ({2: 1.0}, ValueError, "name the model 2, which is not in this selection: it has .'diag', 1."),
        ({("tied", 2): 1.0}, ValueError, "name the model .'tied', 2."),
        ({("full", 2): -1.0}, ValueError, r"K = 2 \(full\) must be a finite number of at least 0; got -1.0"),
        ({("full", 2): float("nan")}, ValueError, "got nan"),
        ({("full", 2): pd.NA}, ValueError, "got <NA>"),
        ({("full", 2): 0.0}, ValueError, "no model a weight above 0"),
        ({}, ValueError, "no model a weight above 0"),
    ],
)
def test_bad_weights_are_one_clear_error(found, weights, error, says):
    with pytest.raises(error, match=says):
        found.score_samples(groups(), weights)
    with pytest.raises(error, match=says):
        found.coclustering(weights=weights)


@pytest.mark.parametrize("weights", ["evidence", "stacking"])
def test_em_alone_has_no_such_weights(em, weights):
    with pytest.raises(ValueError, match=r"EM's fits alone: use method='laplace' or 'nuts', or weights='bic'"):
        em.score_samples(groups(), weights)
    with pytest.raises(ValueError, match="do not keep the data: give X"):
        em.coclustering(weights="bic")


def test_what_was_not_asked_for_is_said(found):
    table = found.table.assign(probability=pd.array([None] * 4, dtype="Float64"))
    without = replace(found, table=table, criteria=("bic", "loo"))
    with pytest.raises(ValueError, match="needs the criterion 'evidence', which was not asked for.*'stacking'"):
        without.score_samples(groups())
    with pytest.raises(ValueError, match="no model has a weight by evidence"):
        replace(found, table=table).score_samples(groups())


def test_models_without_a_value_are_left_out_and_named(found):
    shares = [0.25, None, 0.75, 0.0]
    table = found.table.assign(probability=pd.array(shares, dtype="Float64"))
    some = replace(found, table=table)
    with pytest.warns(CriterionWarning, match=r"1 model has no weight by evidence and is left out: K = 2 \(full\);"):
        assert model_weights(some) == {("full", 1): 0.25, ("diag", 1): 0.75}
    with pytest.warns(CriterionWarning) as w:
        some.score_samples(groups())
    assert w[0].filename == __file__
    singular = replace(found, table=found.table.assign(flags=pd.array(["near-singular"] * 3 + [""], dtype="string")))
    with pytest.warns(CriterionWarning, match="3 models have no weight by bic and are left out"):
        assert model_weights(singular, "bic") == {("diag", 2): 1.0}
    with warnings.catch_warnings(), pytest.raises(ValueError, match="no model has weights by BIC: all are near-sing"):
        flags = pd.array(["near-singular"] * 4, dtype="string")
        model_weights(replace(found, table=found.table.assign(flags=flags)), "bic")


def test_a_model_without_its_fit_is_named(found):
    fits = {key: fit for key, fit in found.fits.items() if key != ("full", 2)}
    table = found.table.assign(reason=pd.array(["", "the posterior failed: no density", "", ""], dtype="string"))
    with pytest.raises(ValueError, match=r"K = 2 \(full\) has the weight 0.5 but no fit: the posterior failed"):
        replace(found, fits=fits, table=table).score_samples(groups(), {("full", 2): 2, ("full", 1): 2})
