"""What is compiled once serves every size, structure and kind of memory; the command that compiles it beforehand."""

from __future__ import annotations

import json
import warnings

import numba as nb
import numpy as np
import pandas as pd
import pytest

from bayesgmm import AnomalyDetector, BayesianGaussianMixture, GaussianMixture, MixtureClassifier, select, warmup
from bayesgmm.cli import main
from bayesgmm.warmup import counted_compilations, warm_up

SHORT = {"draws": 20, "tune": 50, "chains": 2, "target_ess": 0, "random_state": 0, "progressbar": False}


@pytest.fixture(scope="module")
def warmed():
    return warm_up()


def rows(n, d, k=2):
    rng = np.random.default_rng([n, d])
    return np.concatenate([rng.normal(7.0 * c, 1.0, (n // k, d)) for c in range(k)])


def quietly(task):
    """Number of functions compiled by the task, whose few draws have it warn."""
    with warnings.catch_warnings(), counted_compilations() as counter:
        warnings.simplefilter("ignore")
        task()
    return counter.n_compiled


def test_the_counter_sees_a_compilation_and_no_second_one():
    @nb.njit
    def twice(x):
        return 2 * x

    with counted_compilations() as counter:
        assert twice(1) == 2
        assert counter.n_compiled == 1
        assert twice(3) == 6
    assert counter.n_compiled == 1
    twice(1.0)
    assert counter.n_compiled == 1, "what comes after the block is not counted"


def test_each_step_has_a_name_and_a_time(warmed):
    assert [step.name for step in warmed] == list(warmup.STEPS)
    assert all(step.seconds > 0 for step in warmed)


@pytest.mark.parametrize(("n", "d", "k"), [(60, 1, 1), (90, 3, 3), (2000, 6, 2), (80, 14, 2)])
@pytest.mark.parametrize("structure", ["full", "tied", "diag", "spherical"])
def test_em_compiles_nothing_more_at_other_sizes(warmed, n, d, k, structure):
    X = rows(n, d, k)

    def fit():
        mixture = GaussianMixture(k, covariance_type=structure, max_iter=5, random_state=0)
        mixture.fit(X, sample_weight=np.full(len(X), 2.0)).predict_proba(X)
        mixture.set_params(prior="default").fit(X).score_samples(X)

    assert quietly(fit) == 0


@pytest.mark.parametrize(("n", "d", "k", "structure"), [(60, 1, 1, "full"), (90, 3, 3, "tied"), (40, 5, 2, "diag")])
def test_a_posterior_compiles_nothing_more_at_other_sizes(warmed, n, d, k, structure):
    def fit():
        post = BayesianGaussianMixture(k, covariance_type=structure, **SHORT).fit(rows(n, d, k))
        post.predict_proba(rows(n, d, k))

    assert quietly(fit) == 0


def test_tables_in_memory_that_may_not_be_written_to_compile_nothing_more(warmed, tmp_path):
    X = rows(100, 4)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    expected = GaussianMixture(2, random_state=0).fit(X)
    X.flags.writeable = False
    column = pd.DataFrame({"a": X[:, 0]})

    def fit():
        for table in (X, mapped):
            mixture = GaussianMixture(2, random_state=0).fit(table)
            np.testing.assert_array_equal(mixture.means_, expected.means_)
            mixture.predict_proba(table)
        GaussianMixture(2, random_state=0).fit(column).score_samples(column)

    assert quietly(fit) == 0
    assert not X.flags.writeable


def test_what_is_built_on_fits_compiles_nothing_more(warmed):
    X = rows(90, 3, 3)
    y = np.repeat([0, 1, 2], 30)

    def fit():
        AnomalyDetector(GaussianMixture(3, random_state=0), n_simulated=200, random_state=0).fit(X).table(X)
        select(X, (1, 2), ("tied", "diag"), random_state=0, progressbar=False)
        MixtureClassifier(GaussianMixture(2, random_state=0), random_state=0).fit(X, y).predict_proba(X)
        GaussianMixture(3, covariance_type="diag", random_state=0).fit(X).standard_errors(X)

    assert quietly(fit) == 0


def test_the_command_tells_each_step_and_the_folder(warmed, capsys):
    assert main(["warmup"]) == 0
    *steps, last = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in steps] == list(warmup.STEPS)
    assert last.startswith("nothing was left to compile in")
    assert last.endswith(str(warmup.cache_folder()))


def test_the_command_is_quiet_or_prints_json(warmed, capsys, monkeypatch):
    monkeypatch.setattr(warmup, "STEPS", {"nothing": lambda X: None, "something": lambda X: nb.njit(lambda x: x)(1)})
    assert main(["warmup", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["warmup", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["compiled"] == 1
    assert [(step["name"], step["compiled"]) for step in told["steps"]] == [("nothing", 0), ("something", 1)]
    assert told["folder"] == str(warmup.cache_folder())


def test_a_folder_that_cannot_be_written_to_is_an_error(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(warmup, "cache_folder", lambda: tmp_path / "file" / "folder")
    assert main(["warmup"]) == 1
    assert "file" in capsys.readouterr().err
