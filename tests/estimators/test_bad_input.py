from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from bayesgmm import open_blocks
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.datasets import load_faithful
from bayesgmm.estimators.gaussian_mixture import GaussianMixture
from bayesgmm.exceptions import DataWarning
from tests.mixtures import STRUCTURES


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return np.vstack([rng.standard_normal((30, 2)), rng.standard_normal((30, 2)) + 8])


def assert_finite(fit: GaussianMixture, X: np.ndarray) -> None:
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "lower_bounds_"):
        assert np.isfinite(getattr(fit, name)).all(), name
    probabilities = fit.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    assert not np.isnan(fit.score_samples(X)).any()


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_values_that_are_not_finite_are_named_by_row_and_column(value, word, rows):
    table = load_faithful()
    table.loc[3, "eruptions"] = value
    with pytest.raises(ValueError, match=word) as error:
        GaussianMixture(2).fit(table)
    assert "row 3" in str(error.value)
    assert "'eruptions'" in str(error.value)
    rows[7, 1] = value
    with pytest.raises(ValueError, match=word) as error:
        GaussianMixture(2).fit(rows)
    assert "row 7, column 'x1'" in str(error.value)
    fit = GaussianMixture(2, random_state=0).fit(load_faithful())
    for method in (fit.predict, fit.predict_proba, fit.score_samples, fit.score, fit.bic, fit.icl):
        with pytest.raises(ValueError, match="row 3"):
            method(table)


def test_missing_values_of_pandas_are_named():
    table = pd.DataFrame({"a": pd.array([1, 2, None, 4], dtype="Int64"), "b": [1.0, 2.0, 3.0, 4.0]})
    with pytest.raises(ValueError, match="row 2, column 'a'"):
        GaussianMixture(2).fit(table)


@pytest.mark.parametrize(
    "column",
    [
        ["x", "y", "z", "x"],
        pd.array(["x", "y", "z", "x"], dtype="string"),
        pd.Categorical(["x", "y", "z", "x"]),
        pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-04"]),
    ],
    ids=["object", "string", "category", "datetime"],
)
def test_text_columns_are_named(column):
    table = pd.DataFrame({"size": [1.0, 2.0, 3.0, 5.0], "colour": column})
    with pytest.raises(ValueError, match="'colour'") as error:
        GaussianMixture(2).fit(table)
    assert "'size'" not in str(error.value)
    assert "--columns" in str(error.value)


@pytest.mark.parametrize("X", [[["a", "b"], ["c", "d"]], np.array([["1", "x"], ["2", "y"]], dtype=object)])
def test_text_in_arrays_is_refused(X):
    with pytest.raises((ValueError, TypeError), match="convert|numeric"):
        GaussianMixture(1).fit(X)


def test_complex_numbers_are_refused():
    with pytest.raises(ValueError, match="[Cc]omplex"):
        GaussianMixture(1).fit(np.ones((3, 2)) * 1j)


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_array, sparse.coo_array])
def test_sparse_matrices_are_refused_with_a_way_out(make, rows):
    with pytest.raises(TypeError, match="toarray"):
        GaussianMixture(2).fit(make(rows))
    with pytest.raises(TypeError, match="toarray"):
        GaussianMixture(2, random_state=0).fit(rows).predict(make(rows))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.empty((0, 2)), "0 sample"),
        (np.empty((5, 0)), "0 feature"),
        (np.ones((1, 2)), "minimum of 2"),
        (np.arange(5.0), "2D"),
        (np.ones((2, 2, 2)), "dim"),
        (3.0, "2D"),
        (pd.DataFrame({"a": []}), "0 sample"),
    ],
)
def test_tables_of_the_wrong_shape_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(1).fit(X)


def test_fewer_rows_than_components():
    with pytest.raises(ValueError, match="n_components = 4, n_samples = 3"):
        GaussianMixture(4).fit(np.arange(6.0).reshape(3, 2))


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_fewer_distinct_rows_than_components_warns_as_scikit_learn(covariance_type):
    X = np.repeat([[0.0, 0.0], [1.0, 3.0]], 10, axis=0)
    with pytest.warns(ConvergenceWarning, match=r"distinct rows \(2\) found smaller than n_components \(3\)"):
        fit = GaussianMixture(3, covariance_type=covariance_type, random_state=0).fit(X)
    assert_finite(fit, X)
    with pytest.warns(ConvergenceWarning), pytest.raises(ValueError, match="2 distinct rows"):
        GaussianMixture(3, covariance_type=covariance_type, reg_covar=0).fit(X)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::bayesgmm.exceptions.DataWarning")
@pytest.mark.parametrize("reg_covar", [0.0, 1e-6])
def test_fewer_rows_that_count_than_components(rows, reg_covar):
    """Only two rows have a weight: a fit without NaN, or an error that speaks of rows or weights."""
    v = np.zeros(len(rows))
    v[[0, 40]] = 1.0
    try:
        fit = GaussianMixture(3, reg_covar=reg_covar, random_state=0).fit(rows, sample_weight=v)
    except ValueError as error:
        assert re.search("weight|row|positive definite", str(error))  # noqa: PT017
        return
    assert reg_covar > 0
    assert_finite(fit, rows)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_constant_column_is_named(covariance_type, rows):
    table = pd.DataFrame({"size": rows[:, 0], "batch": 3.0, "weight": rows[:, 1]})
    with pytest.warns(DataWarning, match="'batch'") as caught:
        fit = GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(table)
    assert not any("'size'" in str(warning.message) for warning in caught)
    assert_finite(fit, table)
    with pytest.raises(ValueError, match="constant"):
        GaussianMixture(2, covariance_type=covariance_type, prior="default").fit(table)


@pytest.mark.filterwarnings("ignore::bayesgmm.exceptions.DataWarning")
@pytest.mark.parametrize("kind", ["constant", "duplicate", "collinear", "D > N"])
def test_singular_data_without_regularisation_is_one_clear_error(kind, rows):
    singular = {
        "constant": np.column_stack([rows, np.full(60, 2.0)]),
        "duplicate": np.column_stack([rows, rows[:, 0]]),
        "collinear": np.column_stack([rows, rows @ [1.0, -2.0] + 3]),
        "D > N": np.random.default_rng(0).standard_normal((7, 9)),
    }[kind]
    with pytest.raises(ValueError, match="positive definite") as error:
        GaussianMixture(2, reg_covar=0, random_state=0).fit(singular)
    assert "reg_covar" in str(error.value)
    assert "prior" in str(error.value)


@pytest.mark.filterwarnings("ignore::bayesgmm.exceptions.DataWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("kind", ["constant", "duplicate", "collinear", "D > N", "ties"])
def test_singular_data_with_regularisation_gives_finite_numbers(kind, covariance_type, rows):
    X = {
        "constant": np.column_stack([rows, np.full(60, 2.0)]),
        "duplicate": np.column_stack([rows, rows[:, 0]]),
        "collinear": np.column_stack([rows, rows @ [1.0, -2.0] + 3]),
        "D > N": np.random.default_rng(0).standard_normal((7, 9)),
        "ties": np.vstack([rows, np.full((20, 2), 4.0)]),
    }[kind]
    assert_finite(GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(X), X)


@pytest.mark.parametrize(
    "X", [np.arange(14.0).reshape(7, 2), np.random.default_rng(0).standard_normal((4, 6))], ids=["collinear", "D > N"]
)
def test_default_prior_refuses_what_cannot_scale_it_and_a_given_scale_helps(X):
    with pytest.raises(ValueError, match="collinear"):
        GaussianMixture(2, prior="default").fit(X)
    D = X.shape[1]
    fit = GaussianMixture(2, prior=ConjugatePrior(scale=np.eye(D)), random_state=0).fit(X)
    assert_finite(fit, X)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_scale_1e150_works_or_is_refused(covariance_type, rows):
    """Up to 1e150 the squares are in range: the same groups as in better units; beyond, one error that names the size."""
    expected = GaussianMixture(2, covariance_type=covariance_type, reg_covar=0, random_state=0).fit(rows).predict(rows)
    large = rows * (1e149 / np.abs(rows).max())
    fit = GaussianMixture(2, covariance_type=covariance_type, reg_covar=0, random_state=0).fit(large)
    assert_finite(fit, large)
    agreement = np.mean(fit.predict(large) == expected)
    assert agreement in (0.0, 1.0)
    for scale in (1e151, 1e200, 1e307):
        with pytest.raises(ValueError, match="[Rr]escale"):
            GaussianMixture(2, covariance_type=covariance_type).fit(rows / np.abs(rows).max() * scale)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("scale", [1e-150, 1e-100])
def test_tiny_scale_works_or_is_refused(covariance_type, scale, rows):
    """With reg_covar = 0 the same groups as in better units, or one error that speaks of the scale; never NaN."""
    expected = GaussianMixture(2, covariance_type=covariance_type, reg_covar=0, random_state=0).fit(rows).predict(rows)
    small = rows * scale
    try:
        fit = GaussianMixture(2, covariance_type=covariance_type, reg_covar=0, random_state=0).fit(small)
    except ValueError as error:
        assert re.search("[Rr]escale", str(error))  # noqa: PT017
        return
    assert_finite(fit, small)
    assert np.mean(fit.predict(small) == expected) in (0.0, 1.0)


def test_tiny_scale_is_swamped_by_reg_covar_and_says_so(rows):
    table = pd.DataFrame({"a": rows[:, 0], "tiny": rows[:, 1] * 1e-150})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = GaussianMixture(2, random_state=0).fit(table)
    messages = [str(w.message) for w in caught if issubclass(w.category, DataWarning)]
    assert len(messages) == 1
    assert "'tiny'" in messages[0]
    assert "'a'" not in messages[0]
    assert "reg_covar" in messages[0]
    assert_finite(fit, table)


def test_row_too_far_to_score_gets_a_component_all_the_same():
    """Beyond the reach of squares the density is −∞, and the responsibilities still name a component."""
    rng = np.random.default_rng(0)
    X = 1e-6 * np.concatenate([rng.standard_normal((40, 1)), rng.standard_normal((40, 1)) + 20])
    fit = GaussianMixture(2, reg_covar=0, random_state=0).fit(X)
    far = np.array([[1e149]])
    assert fit.score_samples(far)[0] == -np.inf
    np.testing.assert_allclose(fit.predict_proba(far).sum(axis=1), 1.0)
    assert fit.predict_proba(far).max() == 1.0


@pytest.mark.parametrize("columns", [1, 3])
def test_wrong_number_of_features_at_predict_time(columns, rows):
    fit = GaussianMixture(2, random_state=0).fit(rows)
    for method in (fit.predict, fit.predict_proba, fit.score_samples, fit.aic):
        with pytest.raises(ValueError, match=f"{columns} features.*expecting 2"):
            method(np.ones((4, columns)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.__setitem__(5, -1.0), "negative: row 5"),
        (lambda v: v.fill(0.0), "zero"),
        (lambda v: v.__setitem__(5, np.nan), "NaN"),
        (lambda v: v.__setitem__(5, np.inf), "infinity"),
    ],
)
def test_bad_weights(change, message, rows):
    v = np.ones(len(rows))
    change(v)
    with pytest.raises(ValueError, match=message):
        GaussianMixture(2).fit(rows, sample_weight=v)
    fit = GaussianMixture(2, random_state=0).fit(rows)
    for method in (fit.score, fit.aic, fit.bic, fit.icl):
        with pytest.raises(ValueError, match=message):
            method(rows, sample_weight=v)


@pytest.mark.parametrize("v", [np.ones(5), np.ones((60, 1)), np.ones((60, 2))])
def test_weights_of_the_wrong_shape(v, rows):
    with pytest.raises(ValueError, match="[Ss]ample.?weight"):
        GaussianMixture(2).fit(rows, sample_weight=v)


def test_weights_that_sum_to_one_observation_cannot_scale_a_prior(rows):
    with pytest.raises(ValueError, match="weight"):
        GaussianMixture(2, prior="default").fit(rows, sample_weight=np.full(60, 1 / 60))
    # Maximum likelihood depends on ratios of weights alone.
    a = GaussianMixture(2, random_state=0).fit(rows, sample_weight=np.full(60, 1 / 60))
    assert a.lower_bound_ == pytest.approx(GaussianMixture(2, random_state=0).fit(rows).lower_bound_, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ({"n_components": 0}, "n_components"),
        ({"n_components": -1}, "n_components"),
        ({"n_components": 1.5}, "n_components"),
        ({"n_components": "2"}, "n_components"),
        ({"covariance_type": "round"}, "'diag', 'full', 'spherical', 'tied'"),
        ({"init_params": "magic"}, "'kmeans'"),
        ({"tol": -1.0}, "tol"),
        ({"reg_covar": -1e-9}, "reg_covar"),
        ({"max_iter": -1}, "max_iter"),
        ({"n_init": 0}, "n_init"),
        ({"prior": "flat"}, "'default'"),
        ({"prior": 1.0}, "ConjugatePrior"),
        ({"random_state": "seed"}, "random_state"),
        ({"verbose_interval": 0}, "verbose_interval"),
    ],
)
def test_parameters_outside_their_range_list_what_is_allowed(arguments, allowed, rows):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        GaussianMixture(**arguments).fit(rows)
    names = re.findall(r"'\w[\w+-]*'", allowed)
    for part in names or [allowed]:
        assert part in str(error.value)


def test_unknown_parameter():
    with pytest.raises(TypeError, match="colour"):
        GaussianMixture(colour=1)
    with pytest.raises(ValueError, match="colour"):
        GaussianMixture().set_params(colour=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights_init": [0.2, 0.2]}, "sum to 1"),
        ({"weights_init": [1.2, -0.2]}, r"\[0, 1\]"),
        ({"weights_init": [1.0]}, "shape"),
        ({"means_init": [[0.0], [1.0]]}, "shape"),
        ({"means_init": [[np.nan, 0.0], [1.0, 1.0]]}, "finite"),
        ({"precisions_init": np.ones((2, 2))}, "shape"),
        ({"precisions_init": [[[1.0, 2.0], [2.0, 1.0]]] * 2}, "positive-definite"),
        ({"precisions_init": [[[1.0, 0.5], [0.0, 1.0]]] * 2}, "symmetric"),
        ({"covariance_type": "diag", "precisions_init": [[1.0, -1.0], [1.0, 1.0]]}, "positive-definite"),
        ({"covariance_type": "spherical", "precisions_init": [0.0, 1.0]}, "positive-definite"),
    ],
)
def test_bad_starts(arguments, message, rows):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(2, **arguments).fit(rows)


def test_prior_that_does_not_fit_the_data(rows):
    with pytest.raises(ValueError, match="2 features"):
        GaussianMixture(2, prior=ConjugatePrior(scale=np.eye(3))).fit(rows)
    with pytest.raises(ValueError, match="2 components"):
        GaussianMixture(2, prior=ConjugatePrior(weight_concentration=[1.0, 1.0, 1.0])).fit(rows)
    with pytest.raises(ValueError, match="weight_concentration"):
        GaussianMixture(2, prior=ConjugatePrior(weight_concentration=0.5)).fit(rows)


def test_methods_before_fit(rows):
    for name in ("predict", "predict_proba", "score_samples", "score", "aic", "bic", "icl"):
        with pytest.raises(NotFittedError):
            getattr(GaussianMixture(), name)(rows)
    with pytest.raises(NotFittedError):
        GaussianMixture().sample()


@pytest.mark.parametrize("n", [0, -3])
def test_sample_of_no_rows(n, rows):
    with pytest.raises(ValueError, match="n_samples"):
        GaussianMixture(2, random_state=0).fit(rows).sample(n)


def test_masked_values_are_refused_and_a_mask_that_hides_nothing_is_none(rows):
    masked = np.ma.masked_array(rows, np.zeros(rows.shape, dtype=bool))
    fit = GaussianMixture(2, random_state=0).fit(masked)
    np.testing.assert_array_equal(fit.means_, GaussianMixture(2, random_state=0).fit(rows).means_)
    masked.mask[4, 1] = True
    with pytest.raises(ValueError, match=r"1 masked values \(the first at \[4, 1\]\)"):
        GaussianMixture(2).fit(masked)
    with pytest.raises(ValueError, match="masked"):
        fit.predict(masked)
    with pytest.raises(ValueError, match="masked"):
        GaussianMixture(2).fit(open_blocks(masked))


def test_columns_of_one_name_are_refused(rows):
    table = pd.DataFrame(rows, columns=["a", "a"])
    with pytest.raises(ValueError, match="'a' is the name of several columns"):
        GaussianMixture(2).fit(table)


@pytest.mark.parametrize("weight", [1e300, 1.7e308])
def test_weights_whose_sums_overflow_are_refused(weight, rows):
    with pytest.raises(ValueError, match="sums? to .*range of float64"):
        GaussianMixture(2).fit(rows, sample_weight=np.full(60, weight))
    table = open_blocks(pd.DataFrame({"a": rows[:, 0], "v": weight / 60}), weights="v")
    with pytest.raises(ValueError, match="sums to"):
        GaussianMixture(2).fit(table)


def test_weights_count_against_the_size_of_the_data(rows):
    large = rows * (1e149 / np.abs(rows).max())
    with pytest.raises(ValueError, match="leave the range of float64"):
        GaussianMixture(2).fit(large, sample_weight=np.full(60, 1e12))
    # Weights of this size alone are no harm: only their ratios matter.
    a = GaussianMixture(2, reg_covar=0, random_state=0).fit(rows, sample_weight=np.full(60, 2.0**40))
    b = GaussianMixture(2, reg_covar=0, random_state=0).fit(rows)
    np.testing.assert_allclose(a.means_, b.means_, rtol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e-100])
def test_weights_whose_sums_vanish_are_refused(size, rows):
    """Their products with small numbers would be 0, and so would the means."""
    with pytest.raises(ValueError, match="sums to 6.0e-299"):
        GaussianMixture(1, reg_covar=0).fit(rows * size, sample_weight=np.full(60, 1e-300))
    a = GaussianMixture(2, reg_covar=0, random_state=0).fit(rows, sample_weight=np.full(60, 1e-100))
    np.testing.assert_allclose(a.means_, GaussianMixture(2, reg_covar=0, random_state=0).fit(rows).means_, rtol=1e-6)


def test_more_rows_than_can_be_drawn_are_not_resampled(rows):
    v = np.full(60, 1e20)
    fit = GaussianMixture(2, random_state=0).fit(rows, sample_weight=v)
    with pytest.raises(ValueError, match="more rows than can be drawn"):
        fit.bootstrap(rows, 3, v)


def test_numbers_too_large_to_add_are_refused_in_blocks_without_a_librarys_warning(rows):
    X = np.where(rows > 4, np.finfo(float).max, -np.finfo(float).max)
    with pytest.raises(ValueError, match="[Rr]escale"):
        GaussianMixture(2).fit(open_blocks(X))
