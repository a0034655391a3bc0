from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from bayesgmm import GaussianMixture, load, plots
from bayesgmm.datasets import load_galaxies
from bayesgmm.plots.climb import ANIMATION_FRAMES, frames
from bayesgmm.plots.style import blend
from tests.plots.conftest import all_text, panels


def test_each_panel_is_its_iteration(em, X):
    assert em.n_iter_ > 5
    figure = plots.em_steps(em, X, iterations=(0, 3, 9999), features=[0, 1])
    figure.canvas.draw()
    *steps, trace = panels(figure)
    assert [ax.get_title() for ax in steps] == ["start", "iteration 3", f"iteration {em.n_iter_} (the last)"]
    for ax, at in zip(steps, (0, 3, em.n_iter_), strict=True):
        parameters = em.history_[at]
        crosses = np.array([line.get_xydata()[0] for line in ax.lines if line.get_marker() == "+"])
        np.testing.assert_allclose(crosses, parameters.means[:, :2])
        at_it = GaussianMixture.from_parameters(parameters.weights, parameters.means, parameters.covariances)
        expected = blend(at_it.predict_proba(X.to_numpy()))
        np.testing.assert_allclose(ax.collections[0].get_facecolors()[:, :3], expected, atol=1e-7)
    curve, dots = (line.get_xydata() for line in trace.lines)
    np.testing.assert_allclose(curve[:, 1], em.lower_bounds_)
    np.testing.assert_allclose(dots, [[at, em.lower_bounds_[at]] for at in (0, 3, em.n_iter_)])
    assert trace.get_ylabel() == "log-likelihood per row"


def test_steps_over_one_feature_are_densities(X1):
    fit = GaussianMixture(2, init_params="random", n_init=1, keep_history=True, random_state=1).fit(X1)
    ax = panels(plots.em_steps(fit, X1, iterations=[1]))[0]
    parameters = fit.history_[1]
    at_it = GaussianMixture.from_parameters(parameters.weights, parameters.means, parameters.covariances)
    x, y = ax.lines[0].get_xydata().T
    np.testing.assert_allclose(y, np.exp(at_it.score_samples(x[:, None])), rtol=1e-9)


def test_steps_need_a_history_and_say_how_to_keep_one(em, X, post, tmp_path):
    with pytest.raises(ValueError, match="keep_history=True"):
        plots.em_steps(GaussianMixture(2, n_init=1, random_state=0).fit(X), X)
    with pytest.raises(ValueError, match="a saved fit never has one"):
        plots.em_steps(load(em.save(tmp_path / "em")), X)
    with pytest.raises(TypeError, match="the steps are those of EM"):
        plots.em_steps(post, X)
    with pytest.raises(ValueError, match="numbers from 0"):
        plots.em_steps(em, X, iterations=(-1, 2))


def test_animation_has_a_frame_for_each_iteration(em, X, tmp_path):
    path = plots.animate_em(em, X, tmp_path / "em.gif", figsize=(3, 3), frames_per_second=5)
    with Image.open(path) as film:
        assert film.size == (240, 240)
        n_frames = film.n_frames
        assert film.info["duration"] == 200
        first = np.asarray(film.convert("RGB"), dtype=int)
        film.seek(n_frames - 1)
        assert film.info["duration"] == 2000
        last = np.asarray(film.convert("RGB"), dtype=int)
    # Frames that look the same are merged, and they alone.
    assert 3 < n_frames <= len(frames(em.n_iter_))
    assert (np.abs(first - last).max(axis=2) > 60).mean() > 0.01
    assert path.stat().st_size < 300_000
    assert plt.get_fignums() == []


def test_animation_is_written_whole_or_not_at_all(em, X, tmp_path, monkeypatch):
    path = tmp_path / "em.gif"
    path.write_bytes(b"as it was")

    def fail(*arguments, **keywords):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.animate_em(em, X, path, figsize=(2, 2))
    assert path.read_bytes() == b"as it was"
    assert [file.name for file in tmp_path.iterdir()] == ["em.gif"]
    assert plt.get_fignums() == []


def test_animation_says_what_is_wrong_with_its_name_or_speed(em, X, tmp_path):
    with pytest.raises(ValueError, match=r"should end in \.gif"):
        plots.animate_em(em, X, tmp_path / "em.mp4")
    with pytest.raises(ValueError, match="frames_per_second must be above 0"):
        plots.animate_em(em, X, tmp_path / "em.gif", frames_per_second=0)


@pytest.mark.parametrize("last", [0, 1, 39, 40, 41, 2000])
def test_frames_reach_from_the_start_to_the_last(last):
    steps = frames(last)
    assert (steps[0], steps[-1]) == (0, last)
    assert steps == sorted(set(steps))
    assert len(steps) <= ANIMATION_FRAMES
    assert np.all(np.diff(np.diff(steps[: -(len(steps) // 2) or None])) >= 0)


def test_modes_are_counted_by_their_starts():
    fit = GaussianMixture(4, n_init=15, random_state=1).fit(load_galaxies())
    ax = panels(plots.modes(fit))[0]
    assert len(fit.modes_) > 1
    assert [bar.get_width() for bar in ax.patches] == [mode.n_starts for mode in fit.modes_]
    best, second = fit.modes_[:2]
    gap = second.run.log_likelihood - best.run.log_likelihood
    assert ax.texts[0].get_text().startswith("best")
    assert ax.texts[1].get_text().startswith(f"{gap:.1f} nats".replace("-", "\u2212"))
    assert f"{len(fit.modes_)} distinct optima of EM from 15 starts" in all_text(ax.figure)


def test_modes_of_a_posterior_and_of_a_known_mixture(post):
    figure = plots.modes(post)
    assert "log posterior below that of the best" in all_text(figure)
    with pytest.raises(ValueError, match="made from known parameters"):
        plots.modes(GaussianMixture.from_parameters([1.0], [[0.0]], [[[1.0]]]))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_spurious_modes_are_hatched():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.standard_normal((60, 2)), np.full((4, 2), 3.0) + 1e-7 * rng.standard_normal((4, 2))])
    fit = GaussianMixture(3, n_init=12, reg_covar=0, random_state=0).fit(X)
    spurious = [mode.spurious for mode in fit.modes_]
    assert any(spurious)
    ax = panels(plots.modes(fit))[0]
    assert [bar.get_hatch() is not None for bar in ax.patches] == spurious[: len(ax.patches)]
    assert "spurious: near-singular on few rows" in all_text(ax.figure)
