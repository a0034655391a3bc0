from __future__ import annotations

import numpy as np
import pytest

from bayesgmm import plots
from bayesgmm.averaging import coclustering
from bayesgmm.plots.checks import replicated_counts, similarity_order
from tests.plots.conftest import all_text, laplace, panels, table


def test_counts_of_replicated_tables_are_those_of_simulated_rows():
    rng = np.random.default_rng(0)
    S, N = 4000, 50
    weights = rng.dirichlet([4, 4], S)
    means = np.array([[[0.0], [3.0]]]) + 0.2 * rng.standard_normal((S, 2, 1))
    sds = np.exp(0.2 * rng.standard_normal((S, 2)))
    edges = np.linspace(-2, 6, 9)
    found = replicated_counts((weights, means, 1 / sds[:, :, None, None]), edges, N, rng)
    member = (rng.random((S, N)) > weights[:, :1]).astype(int)
    rows = np.arange(S)[:, None]
    x = means[rows, member, 0] + sds[rows, member] * rng.standard_normal((S, N))
    counts = np.stack([np.histogram(x[s], edges)[0] for s in range(S)])
    expected = np.quantile(counts, [0.05, 0.5, 0.95], axis=0, method="inverted_cdf")
    # Quantiles of whole numbers, each from 4,000 tables: at most one apart.
    assert np.abs(np.stack(found) - expected).max() <= 1
    assert np.mean(np.stack(found) == expected) > 0.7


def test_check_shows_the_rows_in_each_bin(post, X):
    figure = plots.predictive_check(post)
    figure.canvas.draw()
    shown = panels(figure)
    assert [ax.get_xlabel() for ax in shown] == list(X.columns)
    outside = total = 0
    for ax in shown:
        band = ax.patches[0].get_data()
        observed = np.concatenate([line.get_xydata() for line in ax.lines if line.get_marker() in ("o", "X")])
        observed = observed[np.argsort(observed[:, 0])]
        counts = np.histogram(X[ax.get_xlabel()], band.edges)[0]
        np.testing.assert_array_equal(observed[:, 1], counts)
        missed = (counts < band.baseline) | (counts > band.values)
        marked = sum(len(line.get_xydata()) for line in ax.lines if line.get_marker() == "X")
        assert marked == missed.sum()
        outside, total = outside + missed.sum(), total + len(counts)
    assert f"{outside} of {total} bins lie outside their 90 % band" in all_text(figure)
    # The data do come from such a mixture.
    assert outside < 0.2 * total


def test_check_finds_a_mixture_that_does_not_fit():
    X = table(1, 600)
    figure = plots.predictive_check(laplace(X, 1))
    words = all_text(figure).partition(" bins lie")[0].split()
    assert int(words[-3]) > 0.4 * int(words[-1])


def test_map_is_the_probability_of_the_same_component(post, X):
    ax = panels(plots.coclustering(post))[0]
    shown = np.asarray(ax.images[0].get_array())
    order = similarity_order(post.coclustering())
    np.testing.assert_allclose(shown, post.coclustering()[np.ix_(order, order)], atol=1e-12)
    # The two groups stand together: each is one block.
    assert np.count_nonzero(np.diff(post.predict(X)[order])) == 1
    assert "mean of 600 posterior draws" in all_text(ax.figure)


def test_em_has_a_map_too(em, X):
    ax = panels(plots.coclustering(em, X))[0]
    r = em.predict_proba(X)
    expected = r @ r.T
    np.fill_diagonal(expected, 1.0)
    order = similarity_order(expected)
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), expected[np.ix_(order, order)], atol=1e-9)
    assert "EM fit, without its uncertainty" in all_text(ax.figure)


def test_rows_can_be_in_the_order_of_a_partition(post):
    labels = np.arange(120) % 3
    labels[:6] = 2
    figure = plots.coclustering(post, partition=labels)
    order = similarity_order(post.coclustering(), labels)
    counts = np.bincount(labels)
    largest_first = np.argsort(-counts, kind="stable")
    np.testing.assert_array_equal(labels[order], np.repeat(largest_first, counts[largest_first]))
    lines = [line.get_ydata()[0] for line in panels(figure)[0].lines if len(set(line.get_ydata())) == 1]
    np.testing.assert_array_equal(lines, np.cumsum(np.sort(counts)[::-1])[:2])
    with pytest.raises(ValueError, match="one label for each of the 120 rows"):
        plots.coclustering(post, partition=labels[:5])


def test_of_many_rows_some_are_shown(post, X):
    ax = panels(plots.coclustering(post, max_rows=30))[0]
    assert ax.images[0].get_array().shape == (30, 30)
    assert "30 rows shown, drawn at random" in all_text(ax.figure)
    chosen = np.sort(np.random.default_rng(0).choice(120, 30, replace=False))
    expected = coclustering(X.to_numpy(), [(1.0, post._draws.flat())], rows=chosen)
    np.testing.assert_allclose(np.sort(ax.images[0].get_array().ravel()), np.sort(expected.ravel()), atol=1e-12)
    with pytest.raises(ValueError, match="max_rows must lie between 2 and 5000"):
        plots.coclustering(post, max_rows=1)
