"""The point estimate of a clustering: against brute force over its draws, known truth, and at the door."""

from __future__ import annotations

import warnings
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score

import bayesgmm
from bayesgmm import BayesianGaussianMixture, Partition, load
from bayesgmm import partition as module
from bayesgmm.core.allocations import draw_allocations
from tests.core.test_partitions import ROUNDING, loss_by_pairs

LOSSES = ("vi", "binder")


def fitted(X: object, n_components: int, **options: object) -> BayesianGaussianMixture:
    weights = options.pop("sample_weight", None)
    estimator = BayesianGaussianMixture(
        n_components,
        **({"method": "laplace", "draws": 100, "n_init": 4, "random_state": 0, "progressbar": False} | options),
    )
    with warnings.catch_warnings():
        # Overlapping components cannot be told apart, and the fit says so; partitions do not mind.
        warnings.simplefilter("ignore")
        return estimator.fit(X, sample_weight=weights)


@pytest.fixture(scope="module")
def separated() -> tuple[BayesianGaussianMixture, np.ndarray]:
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1, 2], [40, 30, 20])
    X = np.array([[0, 0], [12, 0], [0, 12]])[truth] + rng.standard_normal((90, 2))
    return fitted(pd.DataFrame(X, columns=["a", "b"]), 3), truth


@pytest.fixture(scope="module")
def overlapping() -> BayesianGaussianMixture:
    """Two groups that touch, and one component more than groups."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((80, 2))
    X[:35] += [3.2, 0.0]
    return fitted(X, 3)


@pytest.fixture(scope="module", params=LOSSES)
def found(request, overlapping) -> Partition:
    return overlapping.partition(loss=request.param)


@pytest.fixture(scope="module")
def allocations(overlapping) -> np.ndarray:
    """The allocations that the partition is made from: the first stream of the seed, all draws."""
    return draw_allocations(overlapping._X, *overlapping._draws.flat(), np.random.default_rng(0).spawn(3)[0])


def expected_loss(z: np.ndarray, labels: np.ndarray, loss: str, v: np.ndarray | None = None) -> np.ndarray:
    weights = np.ones(len(z)) if v is None else v
    return np.array([loss_by_pairs(labels, z[:, s], loss, weights) for s in range(z.shape[1])])


# the estimate


@pytest.mark.parametrize("loss", LOSSES)
def test_separated_clusters_are_the_truth(separated, loss):
    post, truth = separated
    found = post.partition(loss=loss)
    np.testing.assert_array_equal(found.labels, truth)
    assert found.n_clusters == 3
    assert found.expected_loss == pytest.approx(0, abs=1e-6)
    assert found.ball.radius == pytest.approx(0, abs=ROUNDING)
    np.testing.assert_array_equal(found.ball.horizontal.labels, truth)
    assert np.all(found.own_coclustering > 1 - 1e-6)
    assert all(other.adjusted_rand == 1 for other in found.comparisons.values())


def test_overlapping_components_are_one_cluster(overlapping):
    found = overlapping.partition(loss="vi")
    assert found.n_clusters < 3
    # The third component, which the data do not need, is a part of another's cluster.
    assert found.comparisons["em"].n_clusters == 3
    assert found.comparisons["em"].adjusted_rand < 1


def test_the_expected_loss_is_the_mean_over_the_draws(found, allocations):
    distances = expected_loss(allocations, found.labels, found.loss)
    assert found.n_draws == allocations.shape[1] == 400
    assert found.expected_loss == pytest.approx(distances.mean(), abs=ROUNDING)
    # Laplace's draws are nearly independent: the error is near that of 400.
    assert found.expected_loss_error == pytest.approx(distances.std(ddof=1) / 20, rel=0.3)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_estimate_is_no_worse_than_what_it_is_compared_with(overlapping, loss):
    found = overlapping.partition(loss=loss, n_draws=100)
    thinned, _ = module._thinned(overlapping._draws, 100)
    allocations = draw_allocations(overlapping._X, *thinned, np.random.default_rng(0).spawn(3)[0])
    every = [expected_loss(allocations, allocations[:, s], found.loss).mean() for s in range(100)]
    assert found.comparisons["best draw"].expected_loss == pytest.approx(min(every), abs=ROUNDING)
    for other in found.comparisons.values():
        assert found.expected_loss <= other.expected_loss + ROUNDING
        assert other.expected_loss == pytest.approx(
            expected_loss(allocations, other.labels, found.loss).mean(), abs=ROUNDING
        )
        assert other.distance == pytest.approx(
            loss_by_pairs(found.labels, other.labels, found.loss, np.ones(80)), abs=ROUNDING
        )
        assert other.adjusted_rand == pytest.approx(adjusted_rand_score(found.labels, other.labels))
        assert other.n_clusters == len(np.unique(other.labels))


def test_em_and_k_means_are_what_they_are_called(overlapping, found):
    mode = overlapping.map_
    density = mode.weights * np.stack(
        [multivariate_normal(m, C).pdf(overlapping._X) for m, C in zip(mode.means, mode.covariances)], axis=1
    )
    assert adjusted_rand_score(found.comparisons["em"].labels, density.argmax(axis=1)) == 1
    groups = found.comparisons["kmeans"].labels
    centres = np.stack([overlapping._X[groups == k].mean(axis=0) for k in range(3)])
    distance = np.linalg.norm(overlapping._X[:, None] - centres, axis=2)
    # A fixed point of Lloyd's: every row is with the nearest mean.
    np.testing.assert_array_equal(distance.argmin(axis=1), groups)


def test_the_mean_coclustering_is_that_of_the_draws(found, allocations):
    together = np.mean(allocations[:, None] == allocations[None], axis=2)
    others = ~np.eye(80, dtype=bool)
    expected = [together[i, (found.labels == found.labels[i]) & others[i]].mean() for i in range(80)]
    np.testing.assert_allclose(found.own_coclustering, expected, atol=ROUNDING)
    means = np.stack(
        [[together[i, (found.labels == a) & others[i]].mean() for a in range(found.n_clusters)] for i in range(80)]
    )
    means[np.arange(80), found.labels] = -1
    np.testing.assert_array_equal(found.rival, means.argmax(axis=1))


# the credible ball


@pytest.mark.parametrize("credible", [0.5, 0.95])
def test_the_ball_is_the_smallest_and_its_extremes_are_the_farthest(overlapping, allocations, found, credible):
    ball = overlapping.partition(loss=found.loss, credible=credible).ball
    distances = expected_loss(allocations, found.labels, found.loss)
    sizes = np.array([len(np.unique(allocations[:, s])) for s in range(len(distances))])
    radii = np.unique(np.round(distances, 10))
    smallest = next(r for r in radii if np.mean(distances <= r + 1e-9) >= credible)
    assert ball.radius == pytest.approx(smallest, abs=1e-9)
    inside = distances <= smallest + 1e-9
    for extreme, allowed in (
        (ball.horizontal, inside),
        (ball.vertical_upper, inside & (sizes == sizes[inside].min())),
        (ball.vertical_lower, inside & (sizes == sizes[inside].max())),
    ):
        assert extreme.distance == pytest.approx(distances[allowed].max(), abs=ROUNDING)
        assert extreme.n_clusters == len(np.unique(extreme.labels))
        assert extreme.n_clusters in sizes[allowed]
        assert extreme.distance == pytest.approx(
            loss_by_pairs(extreme.labels, found.labels, found.loss, np.ones(80)), abs=ROUNDING
        )
        assert any(adjusted_rand_score(extreme.labels, allocations[:, s]) == 1 for s in np.flatnonzero(allowed))
    assert ball.credible == credible


# labels, seeds, draws, weights


def test_the_labels_of_the_components_have_no_say(overlapping, found):
    rng = np.random.default_rng(3)
    draws = overlapping._draws
    orders = np.argsort(rng.random((400, 3)), axis=1)
    same = module.partition(
        overlapping._X, draws.permuted(orders), overlapping.map_, np.random.default_rng(0), loss=found.loss
    )
    np.testing.assert_array_equal(same.labels, found.labels)
    assert same.expected_loss == pytest.approx(found.expected_loss, abs=ROUNDING)
    np.testing.assert_array_equal(same.ball.horizontal.labels, found.ball.horizontal.labels)


def test_the_same_seed_gives_the_same_answer(overlapping, found, monkeypatch):
    monkeypatch.setenv("BAYESGMM_NUM_THREADS", "2")
    again = overlapping.partition(loss=found.loss, random_state=0)
    np.testing.assert_array_equal(again.labels, found.labels)
    assert again.expected_loss == found.expected_loss
    assert overlapping.partition(loss=found.loss, random_state=1).expected_loss != found.expected_loss


def test_draws_are_thinned_evenly_from_each_chain(overlapping):
    found = overlapping.partition(n_draws=50)
    assert found.n_draws == 48
    draws, shape = module._thinned(overlapping._draws, 50)
    assert shape == (4, 12)
    np.testing.assert_array_equal(
        draws[0].reshape(4, 12, 3), overlapping._draws.weights[:, [0, 8, 16, 25, 33, 41, 50, 58, 66, 75, 83, 91]]
    )
    assert overlapping.partition(n_draws=1_000_000).n_draws == 400


def test_weights_count_rows_that_many_times():
    rng = np.random.default_rng(4)
    X = np.concatenate([rng.standard_normal((25, 1)), rng.standard_normal((15, 1)) + 2.5])
    v = rng.integers(1, 4, 40).astype(float)
    post = fitted(X, 2, sample_weight=v)
    found = post.partition()
    z = draw_allocations(post._X, *post._draws.flat(), np.random.default_rng(0).spawn(3)[0])
    assert found.expected_loss == pytest.approx(expected_loss(z, found.labels, "vi", v).mean(), abs=ROUNDING)
    for other in found.comparisons.values():
        assert found.expected_loss <= other.expected_loss + ROUNDING
    # Rows given as X count once each.
    once = post.partition(X)
    assert once.expected_loss == pytest.approx(expected_loss(z, once.labels, "vi").mean(), abs=ROUNDING)


def test_other_rows_a_single_row_and_a_single_component(separated):
    post, _ = separated
    rows = pd.DataFrame([[0.1, 0.2], [12.0, 0.5], [11.5, -0.3]], columns=["a", "b"])
    np.testing.assert_array_equal(post.partition(rows).labels, [1, 0, 0])
    one = post.partition(rows[:1])
    assert one.n_clusters == 1
    assert one.expected_loss == 0
    np.testing.assert_array_equal(one.rival, [-1])
    np.testing.assert_array_equal(one.own_coclustering, [1.0])
    single = fitted(post._X, 1, draws=20).partition()
    assert single.n_clusters == 1
    assert single.expected_loss == single.expected_loss_error == 0


def test_a_limit_on_clusters_is_kept_and_said(overlapping):
    found = overlapping.partition(max_clusters=1)
    assert found.n_clusters == 1
    assert "max_clusters=1 rules out" in str(found)
    assert overlapping.partition(loss="binder", max_clusters=80).expected_loss <= (
        overlapping.partition(loss="binder").expected_loss + ROUNDING
    )


def test_a_loaded_posterior_has_the_same_partition(separated, tmp_path):
    post, _ = separated
    saved, loaded = post.partition(), load(post.save(tmp_path / "fit")).partition()
    np.testing.assert_array_equal(loaded.labels, saved.labels)
    assert loaded.expected_loss == saved.expected_loss


def test_rows_at_the_end_of_the_range_do_not_overflow():
    rng = np.random.default_rng(5)
    X = (rng.standard_normal((40, 1)) + np.repeat([0, 9], 20)[:, None]) * 1e120
    found = fitted(X, 2, draws=20).partition()
    np.testing.assert_array_equal(found.labels, np.repeat([0, 1], 20))


# what the user sees


def test_the_summary_says_what_was_found(found):
    text = str(found)
    assert text.startswith(f"80 rows in {found.n_clusters} cluster")
    assert f"expected loss {found.expected_loss:.4g} ± " in text
    assert (" bits" in text) == (found.loss == "vi")
    for words in (
        "EM's partition",
        "k-means' partition",
        "best single draw",
        "adjusted Rand index",
        "95 % of the posterior",
    ):
        assert words in text
    unsure = sum(found.own_coclustering < 0.9)
    assert f"{unsure} of 80 rows share" in text
    assert sum(found.sizes) == 80
    assert list(found.sizes) == sorted(found.sizes, reverse=True)


def test_a_result_cannot_be_changed(found):
    with pytest.raises(FrozenInstanceError):
        found.loss = "other"
    assert replace(found, notes=("a note",)).notes == ("a note",)
    assert bayesgmm.Partition is Partition


# at the door


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "rand"}, r"loss must be one of 'vi', 'binder'; got 'rand'"),
        ({"n_draws": 0}, "n_draws must be a whole number of at least 1 or None; got 0"),
        ({"n_draws": 2.5}, "n_draws must be a whole number"),
        ({"n_restarts": 0}, "n_restarts must be a whole number of at least 1; got 0"),
        ({"max_clusters": True}, "max_clusters must be a whole number of at least 1 or None; got True"),
        ({"credible": 1.0}, "credible must be a probability between 0 and 1, both excluded; got 1.0"),
        ({"credible": "95"}, "credible must be a probability"),
        ({"random_state": "seed"}, "seed"),
    ],
)
def test_arguments_out_of_range_are_named(overlapping, options, message):
    with pytest.raises(ValueError, match=message):
        overlapping.partition(**options)


def test_too_many_rows_ask_for_a_sample(overlapping):
    with pytest.raises(
        ValueError, match="partition of 20001 rows .* at most 20000 rows .* give X=, a sample of the rows"
    ):
        overlapping.partition(np.zeros((20_001, 2)))


def test_other_columns_are_refused(separated, overlapping):
    post, _ = separated
    with pytest.raises(ValueError, match="feature names"):
        post.partition(pd.DataFrame([[0.0, 0.0]], columns=["b", "c"]))
    with pytest.raises(ValueError, match="3 features"):
        overlapping.partition(np.zeros((4, 3)))


def test_an_unfitted_model_says_so():
    with pytest.raises(NotFittedError):
        BayesianGaussianMixture(2).partition()
