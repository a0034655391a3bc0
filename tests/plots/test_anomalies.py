"""Figures of anomalies: marks, lines, intervals and shares against the detector's own numbers and against counting."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

from bayesgmm import AnomalyDetector, GaussianMixture, plots
from bayesgmm.plots import rows, screening
from tests.plots.conftest import all_text, laplace


def around(fit, **options):
    return AnomalyDetector(FrozenEstimator(fit), n_simulated=4000, random_state=0, refits=0, **options).fit(None)


def marked(figure, kind) -> np.ndarray:
    """Places of the marks of a kind."""
    found = [part.get_offsets() for part in figure.axes[0].collections if part.get_label() == kind]
    return np.concatenate(found) if found else np.empty((0, 2))


def the_line(ax, where):
    """The line across the axes at this place, along x or y."""
    return [line for line in ax.lines if any(np.allclose(np.asarray(part, float), where) for part in line.get_data())]


@pytest.fixture(scope="module")
def plane():
    """Two groups of 60 and 3 rows, and three rows that are far from both."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((63, 2))
    X[60:] = [12, 12] + 0.3 * rng.standard_normal((3, 2))
    far = np.array([[-7.0, 7.0], [6.0, -5.0], [0.0, 9.0]])
    names = ["eruptions $", "a very long name of a feature that no axis has room for (minutes)"]
    return pd.DataFrame(X, columns=names), pd.DataFrame(np.vstack([X, far]), columns=names)


@pytest.fixture(scope="module")
def detector(plane):
    return around(laplace(plane[0]), small_component=0.12)


@pytest.fixture(scope="module")
def em_detector(plane):
    return around(GaussianMixture(2, random_state=0).fit(plane[0]), small_component=0.12)


@pytest.fixture(scope="module")
def one(X1, post1):
    return around(post1, false_alarm=0.05)


@pytest.mark.parametrize("which", ["detector", "em_detector"])
def test_marks_on_the_plane_are_the_rows_that_the_detector_flags(which, plane, request):
    detector, X = request.getfixturevalue(which), plane[1]
    figure = plots.anomaly_density(detector, X)
    kind = detector.table(X)["kind"].to_numpy()
    assert (kind == "far").sum() >= 3
    assert (kind == "small component").sum() >= 1
    np.testing.assert_array_equal(kind == "far", detector.predict(X) == -1)
    for name in ("far", "small component"):
        np.testing.assert_array_equal(marked(figure, name), X.to_numpy()[kind == name])
    assert f"{(kind == 'far').sum()} far, {(kind == 'small component').sum()} in a small component" in all_text(figure)
    assert {"row 63", "row 64", "row 65"} <= {text.get_text() for text in figure.axes[0].texts}


def test_the_contour_lies_where_the_density_is_the_threshold(detector, plane):
    figure = plots.anomaly_density(detector, plane[1])
    lines = [part for part in figure.axes[0].collections if type(part).__name__ == "QuadContourSet" and not part.filled]
    at = np.concatenate([path.vertices for path in lines[0].get_paths()])
    assert len(at) > 50
    # Log density is linear between points of the grid, some 0.2 apart: its second derivative of about 1 leaves 0.2²/8 and
    # more where the narrow component bends.
    error = detector.decision_function(pd.DataFrame(at, columns=plane[0].columns))
    assert np.median(np.abs(error)) < 0.02
    assert np.quantile(np.abs(error), 0.9) < 0.5


def test_of_many_features_the_contour_is_as_rare_as_the_threshold(X, post):
    detector = around(post, false_alarm=0.1)
    figure = plots.anomaly_density(detector, X, features=["feature c", 0])
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("feature c", "feature a")
    contour = [part for part in ax.collections if type(part).__name__ == "QuadContourSet" and not part.filled][0]
    at = np.concatenate([path.vertices for path in contour.get_paths()])
    group = post.idata_["posterior"]
    w, m = (group[name].values for name in ("weights", "means"))
    S = w.shape[0] * w.shape[1]
    w, m = w.reshape(S, 2), m.reshape(S, 2, 3)[..., [2, 0]]
    V = group["covariances"].values.reshape(S, 2, 3, 3)[..., [2, 0], :][..., [2, 0]]
    rng = np.random.default_rng(5)
    member = (rng.random(S) > w[:, 0]).astype(int)

    def density(points, some):
        return np.mean(
            [sum(w[s, k] * stats.multivariate_normal(m[s, k], V[s, k]).pdf(points) for k in (0, 1)) for s in some],
            axis=0,
        )

    some = np.arange(0, S, 6)
    simulated = np.array([rng.multivariate_normal(m[s, member[s]], V[s, member[s]]) for s in range(S)])
    level = np.median(density(at[::5], some))
    # 600 simulated rows and a sixth of the draws: a standard error of 0.012.
    assert abs((density(simulated, some) < level).mean() - 0.1) < 0.04
    assert "flagged by all 3 features" in all_text(figure)
    with pytest.raises(ValueError, match="two features"):
        plots.anomaly_density(detector, X, features=[0])


def test_one_feature_has_the_threshold_as_a_line_and_its_rows_beneath(one, X1):
    X = pd.concat([X1, pd.DataFrame({"feature a": [-9.0, 25.0]})], ignore_index=True)
    figure = plots.anomaly_density(one, X)
    ax = figure.axes[0]
    assert the_line(ax, one.offset_)
    grid, height = ax.lines[0].get_data()
    seen = np.isfinite(height)
    score = one.score_samples(pd.DataFrame({"feature a": grid}))
    np.testing.assert_allclose(height[seen], score[seen], rtol=1e-10)
    # Cut off where the rows stand, well below the threshold.
    assert seen[score > one.offset_ - 0.3].all()
    assert not seen.all()
    flagged = X["feature a"][one.predict(X) == -1]
    np.testing.assert_array_equal(marked(figure, "far")[:, 0], flagged)
    shaded = [part for part in ax.collections if part.get_alpha() == 0.08][0]
    inside = np.concatenate([path.vertices[:, 0] for path in shaded.get_paths()])
    assert (one.decision_function(pd.DataFrame({"feature a": inside})) < 0).all()
    assert marked(figure, "far")[:, 1].max() < ax.get_yticks().min()


def test_ranked_scores_intervals_are_quantiles_over_the_draws(one, X1):
    X = X1.set_index(pd.Index([f"day {i}" for i in range(len(X1))]))
    figure = plots.ranked_scores(one, X, top=7)
    ax = figure.axes[0]
    lowest = np.argsort(one.score_samples(X))[:7]
    points = [line for line in ax.lines if line.get_marker() in ("o", "X")]
    np.testing.assert_allclose([line.get_xdata()[0] for line in points], np.sort(one.score_samples(X))[:7], rtol=1e-10)
    assert [text.get_text() for text in ax.get_yticklabels()] == [f"day {i}" for i in lowest]
    assert the_line(ax, one.offset_)
    group = one.estimator_.idata_["posterior"]
    w, m, s = (group[name].values.reshape(-1, 2) for name in ("weights", "means", "standard_deviations"))
    each = np.log((w * stats.norm(m, s).pdf(X1.to_numpy()[lowest, 0][:, None, None])).sum(axis=2))
    segments = np.array(ax.collections[0].get_segments())
    np.testing.assert_allclose(segments[:, :, 0], np.quantile(each, [0.05, 0.95], axis=1).T, rtol=1e-9)
    tails = one.predictive_tail_probability(X)[lowest]
    assert [t.get_text() for t in ax.texts[:7]] == [f"{p:.2g}" for p in tails]


def test_ranked_scores_of_fitted_rows_leave_them_out(one):
    figure = plots.ranked_scores(one, top=5)
    points = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() in ("o", "X")]
    np.testing.assert_allclose(points, np.sort(one.leave_one_out_scores())[:5], rtol=1e-12)
    segments = np.array(figure.axes[0].collections[0].get_segments())[:, :, 0]
    lowest = np.argsort(one.leave_one_out_scores())[:5]
    each = np.sort(plots.anomalies.kernel.pointwise_log_likelihood(one.estimator_._X[lowest], *one._draws), axis=0)
    # Weights 1/p move every end down, never beyond the draws.
    plain = np.quantile(each, [0.05, 0.95], axis=0).T
    assert (segments <= plain + 1e-9).all()
    assert (segments >= each[0][:, None]).all()
    assert "judged by the others" in all_text(figure)


def test_ranked_scores_around_em_say_that_there_is_no_interval(em_detector, plane):
    figure = plots.ranked_scores(em_detector, plane[1], top=500)
    assert "no interval" in all_text(figure)
    assert len(figure.axes[0].get_yticks()) == len(plane[1])
    far = plane[1].copy()
    far.iloc[-1] = 1e4
    assert "arrows" in all_text(plots.ranked_scores(em_detector, far, top=9))


@pytest.mark.parametrize("given", [True, False])
def test_flagged_share_counts_the_rows(one, X1, given):
    X = X1 if given else None
    figure = plots.flagged_share(one, X)
    ax = figure.axes[0]
    curve = next(line for line in ax.lines if line.get_drawstyle() == "steps-post")
    rates, share = curve.get_data()
    some = rates[[0, len(rates) // 2, -2]]
    np.testing.assert_array_equal(share[[0, len(rates) // 2, -2]], one.flagged(X, some)["share"])
    scores = one.score_samples(X1) if given else one.leave_one_out_scores()
    own = next(line for line in ax.lines if line.get_marker() == "o")
    assert own.get_xdata()[0] == one.false_alarm_
    assert own.get_ydata()[0] == (scores < one.offset_).mean()
    assert the_line(ax, one.false_alarm_)
    band = ax.collections[0].get_paths()[0].vertices
    at = rates[len(rates) // 2]
    ends = np.unique(band[np.isclose(band[:, 0], at), 1])
    N = len(X1)
    np.testing.assert_allclose(ends[[0, -1]], stats.binom.ppf([0.05, 0.95], N, at) / N)


def test_no_anomalies(em_detector, plane):
    X = plane[0].iloc[:5] * 0
    text = all_text(plots.anomaly_density(em_detector, X))
    assert "flagged: no row" in text
    assert "0 rows flagged (drawn at the lower edge)" in all_text(plots.flagged_share(em_detector, X))
    plots.ranked_scores(em_detector, X)
    assert "0 far, 0 ambiguous" in all_text(plots.assignment(em_detector, X))


def test_assignment_marks_what_assign_does_not_know(post, X, detector, plane):
    figure = plots.assignment(post, X, min_responsibility=0.999999, min_log_density=-6)
    reason = post.assign(X, min_responsibility=0.999999, min_log_density=-6)["reason"]
    assert {"far", "ok"} <= set(reason)
    at = X.to_numpy()[:, plots.fitted.fitted(post).plane(None)[0]]
    for name in ("far", "ambiguous"):
        np.testing.assert_array_equal(marked(figure, name), at[reason == name])
    figure = plots.assignment(detector, plane[1], min_responsibility=0.9)
    reason = detector.assign(plane[1], min_responsibility=0.9)["reason"]
    np.testing.assert_array_equal(marked(figure, "far"), plane[1].to_numpy()[reason == "far"])
    told = figure.axes[0].collections[0]
    component = detector.assign(plane[1], min_responsibility=0.9)["component"]
    wanted = plots.style.palette(2)[component[component >= 0]]
    np.testing.assert_allclose(told.get_facecolors()[:, :3], wanted)


def test_one_component_one_feature_and_thirty(X1):
    single = around(GaussianMixture(1).fit(X1), false_alarm=0.05)
    for draw in (plots.anomaly_density, plots.ranked_scores, plots.flagged_share, plots.assignment):
        assert draw(single, X1).axes
    wide = np.random.default_rng(0).standard_normal((80, 30))
    thirty = around(GaussianMixture(1, covariance_type="diag").fit(wide))
    assert "2 of 30 features" in all_text(plots.anomaly_density(thirty, wide))
    assert "2 of 30 features" in all_text(plots.assignment(thirty, wide))


def test_many_rows_are_binned_and_all_flagged_ones_marked(em_detector, plane, monkeypatch):
    monkeypatch.setattr(rows, "BINNED_ROWS", 40)
    figure = plots.anomaly_density(em_detector, plane[1])
    assert figure.axes[0].images
    assert len(marked(figure, "far")) == (em_detector.predict(plane[1]) == -1).sum()
    assert plots.assignment(em_detector, plane[1]).axes[0].images
    monkeypatch.setattr(rows, "BINNED_ROWS", 2)
    assert "at most 2 marks" in all_text(plots.anomaly_density(em_detector, plane[1]))


def test_into_the_users_axes(em_detector, one, plane):
    for draw in (plots.anomaly_density, plots.ranked_scores, plots.flagged_share, plots.assignment):
        figure, ax = plt.subplots()
        assert draw(em_detector, plane[1], ax=ax) is figure
        assert ax.get_title()


def test_bad_input(em_detector, plane, post):
    with pytest.raises(TypeError, match="takes a fitted AnomalyDetector; got BayesianGaussianMixture"):
        plots.ranked_scores(post)
    with pytest.raises(NotFittedError):
        plots.flagged_share(AnomalyDetector())
    for draw in (plots.anomaly_density, plots.ranked_scores, plots.flagged_share, plots.assignment):
        with pytest.raises(ValueError, match="give X"):
            draw(em_detector)
    with pytest.raises(ValueError, match="top must be"):
        plots.ranked_scores(em_detector, plane[1], top=0)
    with pytest.raises(ValueError, match="own threshold"):
        plots.assignment(em_detector, plane[1], min_log_density=-3)
    with pytest.raises(ValueError, match="min_responsibility"):
        plots.assignment(em_detector, plane[1], min_responsibility=2)


@pytest.mark.filterwarnings("ignore:.*cannot be left out reliably")
@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("which", ["detector", "one"])
def test_many_rows_are_screened_to_the_same_answers(which, left_out, request, monkeypatch):
    # Limits are lowered so that a table that can be checked is "very many rows".
    found = request.getfixturevalue(which)
    given = found.estimator_._X
    names = getattr(found, "feature_names_in_", None)
    X = None if left_out else pd.DataFrame(given, columns=names) if names is not None else given
    table = found.table(X)
    monkeypatch.setattr(screening, "ALL_DRAWS", 1)
    monkeypatch.setattr(screening, "LEFT_OUT_ROWS", 1)
    seen = screening.screen(found, X, given, lowest=7)
    assert "40 of 600 draws" in seen.remark
    assert list(seen.kind) == list(table["kind"])
    # The lowest are exact: by the same draws and weights, but for the order of sums.
    lowest = table["log_density"].sort_values(kind="stable").iloc[:7]
    np.testing.assert_array_equal(np.argsort(seen.log_density, kind="stable")[:7], lowest.index)
    np.testing.assert_allclose(seen.log_density[lowest.index], lowest, rtol=1e-12)
    # The others are means over 40 of 600 draws: within a few of their errors, which are about 0.1 here.
    np.testing.assert_allclose(seen.log_density, table["log_density"], atol=1.0)
    named = screening.lowest_rows(found, X, given, 5)
    np.testing.assert_array_equal(named.index, lowest.index[:5])
    figure = plots.flagged_share(found, X)
    assert "by all where it matters" in all_text(figure)
