from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import bayesgmm
from bayesgmm import BayesianGaussianMixture, ConjugatePrior, GaussianMixture, load, persistence
from bayesgmm.cli import main
from bayesgmm.datasets import load_faithful
from bayesgmm.exceptions import DataError
from bayesgmm.io import sole_writer

FAITHFUL = load_faithful()


@pytest.fixture(scope="module")
def post() -> BayesianGaussianMixture:
    fit = BayesianGaussianMixture(2, draws=800, tune=200, random_state=3, progressbar=False)
    return fit.fit(FAITHFUL, sample_weight=np.tile([1.0, 2.0], 136)).sample_posterior_predictive()


@pytest.fixture(scope="module")
def em() -> GaussianMixture:
    return GaussianMixture(3, covariance_type="tied", n_init=2, random_state=1).fit(FAITHFUL)


@pytest.fixture(scope="module")
def saved_once(post, tmp_path_factory) -> Path:
    return post.save(tmp_path_factory.mktemp("fits") / "post")


@pytest.fixture
def saved(saved_once, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved_once, tmp_path / "fit"))


def edit(folder: Path, change) -> None:
    file = folder / "fit.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest)
    file.write_text(json.dumps(manifest), encoding="utf-8")


def test_posterior_comes_back_bit_for_bit(post, saved_once):
    back = load(saved_once)
    assert type(back) is BayesianGaussianMixture
    for name in ("weights", "means", "precision_factors"):
        np.testing.assert_array_equal(getattr(back._draws, name), getattr(post._draws, name))
    np.testing.assert_array_equal(back.predict_proba(FAITHFUL), post.predict_proba(FAITHFUL))
    np.testing.assert_array_equal(back.score_samples(FAITHFUL), post.score_samples(FAITHFUL))
    np.testing.assert_array_equal(back.predict(FAITHFUL), post.predict(FAITHFUL))
    np.testing.assert_array_equal(back.coclustering(FAITHFUL[:9]), post.coclustering(FAITHFUL[:9]))
    for a, b in zip(back.sample(50), post.sample(50), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("weights_", "means_", "covariances_", "n_features_in_"):
        np.testing.assert_array_equal(getattr(back, name), getattr(post, name))
    assert list(back.feature_names_in_) == ["eruptions", "waiting"]
    pd.testing.assert_frame_equal(back.summary(), post.summary())
    for name in ("weights", "means", "precision_factors"):
        np.testing.assert_array_equal(getattr(back.map_, name), getattr(post.map_, name))


def test_data_tree_comes_back_with_every_group(post, saved_once):
    back = load(saved_once).idata_
    assert set(back.children) == set(post.idata_.children)
    for group in post.idata_.children:
        ours, theirs = post.idata_[group].to_dataset(), back[group].to_dataset()
        assert set(ours.variables) == set(theirs.variables)
        for name in ours.variables:
            assert ours[name].dims == theirs[name].dims
            np.testing.assert_array_equal(ours[name].values, theirs[name].values)
        for name in ours.data_vars:
            assert ours[name].dtype == theirs[name].dtype
    assert back.attrs["sampler"] == "nuts"


def test_diagnostics_settings_prior_and_modes_come_back(post, saved_once):
    back = load(saved_once)
    a, b = post.diagnostics_, back.diagnostics_
    assert str(a) == str(b)
    for name in ("ok", "labels_identified", "r_hat", "ess_bulk", "ess_tail", "n_divergent", "chain_modes", "pareto_k"):
        assert getattr(a, name) == getattr(b, name)
    np.testing.assert_array_equal(a.e_bfmi, b.e_bfmi)
    pd.testing.assert_frame_equal(a.parameters, b.parameters)
    pd.testing.assert_frame_equal(a.invariants, b.invariants)
    assert back.get_params() == post.get_params()
    for name in ("weight_concentration", "mean_prior", "mean_precision", "degrees_of_freedom", "scale"):
        np.testing.assert_array_equal(getattr(post.prior_, name), getattr(back.prior_, name))
    assert [m.objective for m in back.modes_] == [m.objective for m in post.modes_]
    assert [m.n_starts for m in back.modes_] == [m.n_starts for m in post.modes_]
    for x, y in zip(back.modes_, post.modes_, strict=True):
        np.testing.assert_array_equal(x.run.parameters.precision_factors, y.run.parameters.precision_factors)
        np.testing.assert_array_equal(x.run.covariances, y.run.covariances)


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize(("K", "D"), [pytest.param(1, 1, marks=pytest.mark.slow), (2, 2)])
def test_every_structure_and_size_comes_back(covariance_type, K, D, tmp_path):
    X = FAITHFUL.to_numpy(dtype=float)[:, :D]
    prior = ConjugatePrior(weight_concentration=2.0, mean_precision=0.1)
    fit = BayesianGaussianMixture(
        K, covariance_type=covariance_type, prior=prior, method="laplace", draws=150, random_state=0, progressbar=False
    ).fit(X)
    back = load(fit.save(tmp_path / "fit"))
    np.testing.assert_array_equal(back.score_samples(X), fit.score_samples(X))
    np.testing.assert_array_equal(back.covariances_, fit.covariances_)
    assert back.covariances_.shape == fit.covariances_.shape
    assert back.diagnostics_.pareto_k == fit.diagnostics_.pareto_k
    assert not hasattr(back, "feature_names_in_")
    # A loaded fit can be saved again, and fitted again with its prior.
    np.testing.assert_array_equal(load(back.save(tmp_path / "again")).means_, fit.means_)
    np.testing.assert_allclose(back.fit(X).prior_.scale, fit.prior_.scale, rtol=1e-12)


def test_em_comes_back_bit_for_bit(em, tmp_path):
    back = load(em.save(tmp_path / "em"))
    assert type(back) is GaussianMixture
    assert sorted(os.listdir(tmp_path / "em")) == ["fit.json"]
    for name in (
        "weights_",
        "means_",
        "covariances_",
        "precisions_",
        "precisions_cholesky_",
        "lower_bound_",
        "lower_bounds_",
        "n_iter_",
        "converged_",
        "n_features_in_",
        "feature_names_in_",
    ):
        np.testing.assert_array_equal(getattr(back, name), getattr(em, name), err_msg=name)
        assert type(getattr(back, name)) is type(getattr(em, name)), name
    np.testing.assert_array_equal(back.predict_proba(FAITHFUL), em.predict_proba(FAITHFUL))
    np.testing.assert_array_equal(back.score_samples(FAITHFUL), em.score_samples(FAITHFUL))
    assert back.bic(FAITHFUL) == em.bic(FAITHFUL)
    assert back.get_params() == em.get_params()
    assert [str(m) for m in back.modes_] == [str(m) for m in em.modes_]


def test_em_with_a_prior_or_given_starts_and_from_parameters(tmp_path):
    X = FAITHFUL.to_numpy(dtype=float)
    fit = GaussianMixture(2, prior="default", means_init=[[2.0, 50.0], [4.5, 80.0]], random_state=0).fit(X)
    back = load(fit.save(tmp_path / "a"))
    np.testing.assert_array_equal(back.means_init, [[2.0, 50.0], [4.5, 80.0]])
    np.testing.assert_array_equal(back.prior_.scale, fit.prior_.scale)
    assert back.prior == "default"
    np.testing.assert_array_equal(back.fit(X).means_, fit.means_)
    known = GaussianMixture.from_parameters([0.3, 0.7], [[0.0], [4.0]], [[[1.0]], [[2.0]]])
    back = load(known.save(tmp_path / "b"))
    np.testing.assert_array_equal(back.score_samples([[1.0], [9.0]]), known.score_samples([[1.0], [9.0]]))


def test_files_are_json_and_netcdf_and_nothing_else(saved_once):
    assert sorted(p.name for p in saved_once.iterdir()) == ["fit.json", "posterior.nc"]
    manifest = json.loads((saved_once / "fit.json").read_text(encoding="utf-8"))
    assert manifest["package_version"] == bayesgmm.__version__
    assert manifest["format_version"] == persistence.FORMAT_VERSION
    assert manifest["n_rows"] == 272
    assert manifest["prior"]["mean_precision"] == 0.01
    assert (saved_once / "posterior.nc").read_bytes()[1:4] == b"HDF"


def test_any_reader_of_netcdf_sees_the_draws(post, saved_once):
    with netCDF4.Dataset(saved_once / "posterior.nc") as file:
        np.testing.assert_array_equal(file["posterior"]["means"][:], post.idata_["posterior"]["means"].values)


# --- refused --------------------------------------------------------------------------------------------------------


def test_newer_format_is_refused(saved):
    edit(saved, lambda m: m.update(format_version=persistence.FORMAT_VERSION + 1, package_version="9.9"))
    with pytest.raises(DataError, match=r"format version 2, written by bayesgmm 9\.9.*upgrade"):
        load(saved)


@pytest.mark.parametrize("version", [None, "1", 1.5])
def test_version_that_is_no_whole_number_is_refused(saved, version):
    edit(saved, lambda m: m.update(format_version=version))
    with pytest.raises(DataError, match="format version"):
        load(saved)


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(DataError, match=r"fit\.json is missing"):
        load(tmp_path / "nowhere")
    (saved / "posterior.nc").unlink()
    with pytest.raises(DataError, match=r"posterior\.nc is missing"):
        load(saved)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["fit.json", "posterior.nc"])
def test_truncated_files_are_refused(saved, name, share):
    file = saved / name
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="truncated or altered"):
        load(saved)


def test_altered_draws_are_refused(saved):
    file = saved / "posterior.nc"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="altered"):
        load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["map"]["weights"].__setitem__(0, 0.9),
        lambda m: m["prior"].update(mean_precision=5.0),
        lambda m: m["diagnostics"].update(ok=True, verdict="The draws can be trusted"),
        lambda m: m["settings"].update(draws=9),
    ],
    ids=["map", "prior", "diagnostics", "settings"],
)
def test_altered_manifests_are_refused(saved, change):
    edit(saved, change)
    with pytest.raises(DataError, match="altered"):
        load(saved)


def test_altered_em_fit_is_refused(em, tmp_path):
    folder = em.save(tmp_path / "em")
    edit(folder, lambda m: m["fit"]["parameters"]["means"][0].__setitem__(0, 99.0))
    with pytest.raises(DataError, match="altered"):
        load(folder)


def test_draws_that_are_not_finite_are_refused(saved):
    file = saved / "posterior.nc"
    with netCDF4.Dataset(file, "r+") as content:
        content["posterior"]["means"][0, 3, 0, 0] = np.nan
    # The manifest made right again, as somebody would who knew the format: the draws themselves are still looked at.
    edit(saved, lambda m: m.update(draws_hash=persistence._file_hash(file)))
    edit(saved, lambda m: m.update(manifest_hash=persistence._manifest_hash(m)))
    with pytest.raises(DataError, match="not finite"):
        load(saved)


def test_draws_of_another_fit_are_refused(saved, tmp_path):
    other = BayesianGaussianMixture(2, method="laplace", draws=100, random_state=0, progressbar=False).fit(FAITHFUL)
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "posterior.nc", saved / "posterior.nc")
    with pytest.raises(DataError, match="not the file"):
        load(saved)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '"text"',
        '{"format": "something else", "format_version": 1}',
        '{"format": "bayesgmm fit", "format_version": 1}',
        '{"format": "bayesgmm fit", "format_version": 1, "prior": null, "settings": {}, "estimator": "Other"}',
        '{"format": "bayesgmm fit", "format_version": 1, "prior": 3, "settings": {"covariance_type": "full"}}',
    ],
)
def test_manifests_of_other_kinds_are_refused(tmp_path, content):
    (tmp_path / "fit.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError):
        load(tmp_path)


@pytest.mark.parametrize(
    "key", ["settings", "prior", "estimator", "modes", "map", "draws_hash", "diagnostics", "n_features"]
)
def test_manifests_with_a_part_missing_are_refused(saved, key):
    edit(saved, lambda m: m.pop(key))
    with pytest.raises(DataError):
        load(saved)


def test_manifest_that_is_no_text_is_refused(saved):
    (saved / "fit.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="truncated or altered"):
        load(saved)


def test_unfitted_estimators_are_not_saved(tmp_path):
    for estimator in (GaussianMixture(2), BayesianGaussianMixture(2)):
        with pytest.raises(NotFittedError):
            estimator.save(tmp_path / "fit")
    assert not (tmp_path / "fit").exists()


# --- whole or not at all --------------------------------------------------------------------------------------------


def test_no_temporary_files_are_left(post, tmp_path):
    folder = post.save(tmp_path / "a" / "b")
    post.save(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["fit.json", "posterior.nc"]
    np.testing.assert_array_equal(load(folder).means_, post.means_)


@pytest.mark.parametrize(
    "where", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("draws", "manifest")), "rename"]
)
def test_a_failing_write_leaves_the_previous_fit_whole(post, saved, monkeypatch, where):
    other = BayesianGaussianMixture(2, method="laplace", draws=100, random_state=0, progressbar=False).fit(FAITHFUL)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    if where == "draws":
        monkeypatch.setattr(xr.DataTree, "to_netcdf", fail)
    elif where == "manifest":
        monkeypatch.setattr(Path, "write_text", fail)
    else:
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        other.save(saved)
    monkeypatch.undo()
    assert sorted(p.name for p in saved.iterdir()) == ["fit.json", "posterior.nc"]
    np.testing.assert_array_equal(load(saved)._draws.means, post._draws.means)


def test_saving_leaves_the_fit_as_it_was(post, tmp_path):
    before = set(post.idata_.children)
    post.save(tmp_path / "fit")
    assert set(post.idata_.children) == before


@pytest.fixture(scope="module")
def two() -> tuple[BayesianGaussianMixture, BayesianGaussianMixture]:
    """Small fits, which are written quickly."""
    template = BayesianGaussianMixture(
        1, method="laplace", draws=40, chains=1, target_ess=0, n_init=1, progressbar=False
    )
    first, second = (clone(template).set_params(random_state=seed).fit(FAITHFUL[:30]) for seed in (0, 1))
    return first, second


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.slow
def test_killed_at_any_moment_a_save_leaves_the_old_fit_or_the_new_one(two, tmp_path):
    first, second = two
    folder = first.save(tmp_path / "fit")
    begun = time.perf_counter()
    for fit in (second, first, second):
        fit.save(folder)
    takes = (time.perf_counter() - begun) / 3
    known = [fit._draws.means.tobytes() for fit in two]
    chance, seen = random.Random(0), []
    hears, tells = os.pipe()
    for turn in range(100):
        child = os.fork()
        if child == 0:
            try:
                os.write(tells, b".")
                # The other one first: a kill after about one save comes while its files take their names.
                for fit in (two if turn % 2 else two[::-1]) * 100:
                    fit.save(folder)
            finally:
                os._exit(1)
        os.read(hears, 1)
        # On a busy machine a save takes longer than those before: the kills should come during the first or the second.
        reach = 2 * takes if len(set(seen)) == 2 else (2 + turn // 5) * takes
        time.sleep(chance.uniform(0, reach))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # What load checks before it reads the draws, which takes longer: they are read every tenth time.
        manifest = persistence._read_manifest(folder)
        persistence._draws_file(folder, manifest["draws_hash"])
        seen.append(manifest["settings"]["random_state"])
        if turn % 10 == 0:
            assert load(folder)._draws.means.tobytes() == known[seen[-1]]
    # Both were found: the kills came while there was something to lose.
    assert set(seen) == {0, 1}
    second.save(folder)
    left = {p.name for p in folder.iterdir() if not p.name.endswith((".partial.nc", ".partial.json"))}
    assert left == {"fit.json", "posterior.nc"}


def test_between_the_two_files_the_old_fit_can_be_loaded(two, post, saved, monkeypatch):
    other = two[0]
    replace = os.replace

    def stop(source, target):
        if Path(target).name == "fit.json":
            raise OSError(errno.EIO, "the power is gone")
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    for _ in range(2):
        with pytest.raises(OSError, match="power"):
            other.save(saved)
        np.testing.assert_array_equal(load(saved)._draws.means, post._draws.means)
    monkeypatch.undo()
    other.save(saved)
    np.testing.assert_array_equal(load(saved)._draws.means, other._draws.means)
    assert sorted(p.name for p in saved.iterdir()) == ["fit.json", "posterior.nc"]


def test_two_that_write_to_one_folder_do_so_in_turn(two, tmp_path):
    folder = two[0].save(tmp_path / "fit")
    writers = [threading.Thread(target=lambda fit=fit: [fit.save(folder) for _ in range(2)]) for fit in two]
    for writer in writers:
        writer.start()
    known = [fit._draws.means.tobytes() for fit in two]
    while any(writer.is_alive() for writer in writers):
        assert load(folder)._draws.means.tobytes() in known
    assert load(folder)._draws.means.tobytes() in known


def test_a_folder_that_another_writes_to_is_refused(post, tmp_path):
    folder = post.save(tmp_path / "fit")
    with sole_writer(folder):
        with pytest.raises(BlockingIOError, match=r"another process is writing to .*: wait for it"):
            sole_writer(folder, wait=0.05).__enter__()
        with pytest.raises(BlockingIOError, match="another process"):
            bayesgmm.select(FAITHFUL, [1], "full", out=folder, progressbar=False)


# --- hashes that are right, and a fit that is none ------------------------------------------------------------------


def rewritten(folder: Path, change) -> None:
    """A manifest changed by somebody who knows the format."""
    edit(folder, change)
    edit(folder, lambda m: m.update(manifest_hash=persistence._manifest_hash(m)))


def _of_map(name: str, value):
    return lambda m: m["map"].update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        _of_map("weights", [0.9, 0.9]),
        _of_map("weights", [1.5, -0.5]),
        _of_map("weights", [float("nan"), 1.0]),
        _of_map("means", [[1.0, 2.0]]),
        _of_map("means", "text"),
        _of_map("precision_factors", [[[1.0, 0.0], [0.0, -1.0]]] * 2),
        _of_map("precision_factors", [[[1.0, 5.0], [0.0, 1.0]]] * 2),
        lambda m: m["settings"].update(n_components=3),
        lambda m: m["settings"].update(n_components="many"),
        lambda m: m["settings"].update(covariance_type="round"),
        lambda m: m["settings"].update(colour="red"),
        lambda m: m["settings"].update(draws=-1),
        lambda m: m.update(settings=[1]),
        lambda m: m.update(n_features=3),
        lambda m: m.update(feature_names=["a"]),
        lambda m: m.update(feature_names=[1, 2]),
        lambda m: m.update(prior={"scale": None}),
        lambda m: m.update(prior={"scale": [[1.0, 0.0], [0.0, -1.0]]}),
        lambda m: m.update(modes=[3]),
        lambda m: m.update(diagnostics={}),
        lambda m: m["diagnostics"].update(parameters=None),
        lambda m: m.update(format_version=-1),
    ],
)
def test_a_manifest_that_describes_no_fit_is_refused(saved, change):
    rewritten(saved, change)
    with pytest.raises(DataError):
        load(saved)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("weights", lambda a: a * 2),
        ("weights", lambda a: -a),
        ("means", lambda a: a * np.inf),
    ],
)
def test_draws_that_are_no_mixtures_are_refused(saved, name, change):
    file = saved / "posterior.nc"
    with netCDF4.Dataset(file, "r+") as content:
        content["posterior"][name][...] = change(content["posterior"][name][...])
    edit(saved, lambda m: m.update(draws_hash=persistence._file_hash(file)))
    rewritten(saved, lambda m: None)
    with pytest.raises(DataError, match="not finite|weights"):
        load(saved)


def test_draws_that_no_library_can_read_are_refused(saved):
    file = saved / "posterior.nc"
    file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    edit(saved, lambda m: m.update(draws_hash=persistence._file_hash(file)))
    rewritten(saved, lambda m: None)
    with pytest.raises(DataError, match="not a complete fit"):
        load(saved)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a": 1', "\ufeff{}"])
def test_text_that_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "fit.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="truncated or altered"):
        load(tmp_path)


def test_no_path_in_a_fit_is_followed(post, tmp_path, monkeypatch):
    """A fit names the table that it was made of; loading and reporting open nothing outside its folder."""
    folder = post.save(tmp_path / "fit")
    outside = tmp_path / "secret.csv"
    outside.write_text("a,b\n1,2\n")
    traces = ["../secret.csv", str(outside), f"file://{outside}", "/etc/passwd"]
    rewritten(
        folder,
        lambda m: m.update(
            provenance={"source": traces[0], "columns": traces, "notes": traces, "data_hash": traces[1]}
        ),
    )
    opened = []
    real = open

    def watched(path, *arguments, **options):
        opened.append(os.path.realpath(path) if isinstance(path, str | os.PathLike) else path)
        return real(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", watched)
    monkeypatch.setattr("io.open", watched)
    back = load(folder)
    page = back.report(tmp_path / "page.html")
    assert str(outside) not in opened
    assert "/etc/passwd" not in opened
    assert "root:" not in page.read_text(encoding="utf-8")


# --- nowhere to write -----------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no small disk can be made here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_error_and_keeps_the_fit_before(em, post, full_disk):
    folder = em.save(full_disk / "fit")
    before = (folder / "fit.json").read_bytes()
    with pytest.raises(OSError, match="No space left"):
        post.save(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["fit.json"]
    assert (folder / "fit.json").read_bytes() == before
    np.testing.assert_array_equal(load(folder).means_, em.means_)


def test_a_full_disk_at_the_command_line(full_disk, tmp_path, capsys):
    data = tmp_path / "data.csv"
    FAITHFUL.to_csv(data, index=False)
    code = main(["fit", str(data), "-k", "2", "--method", "em", "--out", str(full_disk / "out"), "--quiet"])
    said = capsys.readouterr().err
    assert code == 1
    assert said.startswith("bayesgmm: error: ")
    assert "No space left" in said
    assert said.count("\n") == 1
    assert list(full_disk.iterdir()) == []


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_sweep_on_a_full_disk_goes_on_when_there_is_room(full_disk):
    sweep = {"random_state": 0, "n_init": 1, "progressbar": False}
    with pytest.raises(OSError, match=r"No space left on device: .*sweep"):
        bayesgmm.select(FAITHFUL, range(1, 9), out=full_disk / "sweep", **sweep)
    kept = {file: file.read_bytes() for file in (full_disk / "sweep").rglob("em/fit.json")}
    assert len(kept) > 2
    subprocess.run(["mount", "-o", "remount,size=8m", str(full_disk)], check=True)
    found = bayesgmm.select(FAITHFUL, range(1, 9), out=full_disk / "sweep", **sweep)
    # What was finished was not fitted again, and all is as it would have been.
    assert all(file.read_bytes() == content for file, content in kept.items())
    pd.testing.assert_frame_equal(found.table, bayesgmm.select(FAITHFUL, range(1, 9), **sweep).table)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_one_error(em, tmp_path):
    """In a process of its own, whose files may grow to 4 KiB and no further."""
    folder = em.save(tmp_path / "fit")
    before = (folder / "fit.json").read_bytes()
    code = (
        "import resource, signal; import bayesgmm; from bayesgmm.datasets import load_faithful\n"
        "fit = bayesgmm.GaussianMixture(4, random_state=0).fit(load_faithful())\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"try:\n    fit.save({str(folder)!r})\nexcept OSError as error:\n    print('refused:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused: ")
    assert (folder / "fit.json").read_bytes() == before
    assert [p.name for p in folder.iterdir()] == ["fit.json"]


@pytest.fixture
def read_only(tmp_path):
    """A folder that nobody can write to: mounted so, because permissions mean nothing to root."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no read-only disk can be made here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_folder_is_one_error(em, post, read_only, tmp_path, capsys):
    for fit in (em, post):
        with pytest.raises(OSError, match="[Rr]ead-only"):
            fit.save(read_only / "fit")
        with pytest.raises(OSError, match="[Rr]ead-only"):
            fit.report(read_only / "report.html")
    with pytest.raises(OSError, match="[Rr]ead-only"):
        bayesgmm.select(FAITHFUL, [1], "full", out=read_only / "sweep", progressbar=False)
    data = tmp_path / "data.csv"
    FAITHFUL.to_csv(data, index=False)
    for arguments in (
        ["fit", str(data), "-k", "1", "--method", "em", "--out", str(read_only / "out"), "--quiet"],
        ["select", str(data), "-k", "1", "--out", str(read_only / "out"), "--quiet"],
    ):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("bayesgmm: error: ")
        assert "ead-only" in said
        assert said.count("\n") == 1


@pytest.mark.slow
def test_two_processes_that_write_to_one_folder_leave_a_whole_fit(two, tmp_path):
    """Writers in processes of their own, both at once: whatever is read between is the one fit or the other.

    One that waits too long for the other, as on a busy machine, is refused, and tries again.
    """
    folder = two[0].save(tmp_path / "fit")
    known = [fit._draws.means.tobytes() for fit in two]
    for seed, fit in enumerate(two):
        fit.save(tmp_path / f"own{seed}")
    code = (
        "import sys, bayesgmm\nfit, left = bayesgmm.load(sys.argv[1]), 5\n"
        "while left:\n    try:\n        fit.save(sys.argv[2])\n        left -= 1\n    except BlockingIOError:\n        pass\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / f"own{seed}"), str(folder)]) for seed in (0, 1)
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(known.index(load(folder)._draws.means.tobytes()))
    assert [writer.wait() for writer in writers] == [0, 0]
    assert load(folder)._draws.means.tobytes() in known
    assert sorted(p.name for p in folder.iterdir()) == ["fit.json", "posterior.nc"]
