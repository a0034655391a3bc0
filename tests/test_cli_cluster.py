"""The command on a Dask cluster: workers read the files, and what is wrong with a cluster is said in one line."""

from __future__ import annotations

import json
import re
import socket
import time
import warnings

import numpy as np
import pandas as pd
import pytest

from bayesgmm import BayesianGaussianMixture, GaussianMixture, load, select
from bayesgmm.cli import main

pytest.importorskip("distributed", reason="distributed is not installed: pip install 'bayesgmm[dask]'")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(5)
    return rng.permutation(np.concatenate([rng.normal(0, 1, (900, 2)), rng.normal(5, 1, (600, 2))]))


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    frame = pd.DataFrame(rows, columns=["a", "b"]).assign(name="text")
    frame.iloc[:700].to_parquet(path / "0.parquet", row_group_size=200)
    frame.iloc[700:][["b", "name", "a"]].to_parquet(path / "1.parquet")
    return path


def test_files_are_fitted_on_workers_of_this_machine(folder, rows, tmp_path, capfd):
    arguments = [
        "fit",
        str(folder / "*.parquet"),
        "-k",
        "2",
        "--method",
        "em",
        "--columns",
        "a,b",
        "--local-cluster",
        "2",
    ]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    out, err = capfd.readouterr()
    # not a word of Dask's
    assert err == ""
    said = json.loads(out)
    assert said["data"]["n_rows"] == 1500
    assert re.search(r"\d partitions on 2 workers, held in their memory", " ".join(said["data"]["notes"]))
    fit, expected = load(tmp_path / "out"), GaussianMixture(2, random_state=0).fit(rows)
    assert abs(fit.lower_bound_ - expected.lower_bound_) < 1e-7
    assert fit.feature_names_in_.tolist() == ["a", "b"]


def test_a_scheduler_that_is_not_there(folder, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    begin = time.monotonic()
    out = tmp_path / "out"
    assert (
        main(["fit", str(folder / "0.parquet"), "-k", "2", "--scheduler", f"127.0.0.1:{port}", "--out", str(out)]) == 1
    )
    assert time.monotonic() - begin < 10
    err = capsys.readouterr().err
    assert err.startswith(f"bayesgmm: error: no Dask scheduler answers at 127.0.0.1:{port} (Connection refused)")
    assert err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scheduler", "a:1", "--local-cluster", "2"], "not allowed with"),
        (["--local-cluster", "0"], "at least 1"),
        (["--local-cluster", "2", "--out-of-core"], "--out-of-core"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(more, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "data.csv", "-k", "2", "--out", str(tmp_path / "out"), *more])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["fit", "-", "-k", "2", "--out", str(tmp_path / "out"), "--local-cluster", "2"])
    assert "standard input" in capsys.readouterr().err


@pytest.mark.slow
def test_chains_and_models_run_on_the_workers(client, rows, tmp_path, capfd):
    data = tmp_path / "rows.csv"
    pd.DataFrame(rows, columns=["a", "b"]).to_csv(data, index=False)
    fit = ["fit", str(data), "-k", "2", "--method", "nuts", "--draws", "200", "--chains", "2", "--quiet"]
    assert main([*fit, "--scheduler", client.scheduler.address, "--out", str(tmp_path / "fit")]) in (0, 3)
    expected = BayesianGaussianMixture(2, method="nuts", draws=200, chains=2, random_state=0, progressbar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected.fit(rows)
    np.testing.assert_array_equal(
        load(tmp_path / "fit").idata_["posterior"]["means"], expected.idata_["posterior"]["means"]
    )
    select_them = ["select", str(data), "-k", "1-2", "--covariance", "full", "--quiet"]
    assert main([*select_them, "--scheduler", client.scheduler.address, "--out", str(tmp_path / "models")]) == 0
    table = select(rows, [1, 2], "full", random_state=0, progressbar=False).table
    np.testing.assert_array_equal(pd.read_csv(tmp_path / "models" / "selection.csv")["bic"], table["bic"].astype(float))
    assert "Traceback" not in capfd.readouterr().err
