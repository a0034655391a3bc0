"""``bayesgmm score``: what it writes beside each row, against the detector on the whole table, and that the rows stay as they stood."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import multivariate_normal
from sklearn.frozen import FrozenEstimator

import bayesgmm
from bayesgmm import scoring, sinks, sources
from bayesgmm.cli import main
from bayesgmm.datasets import load_faithful
from bayesgmm.exceptions import DataError

RESULTS = [
    "log_density",
    "tail_probability",
    "anomaly_probability",
    "small_component_probability",
    "kind",
    "component",
    "component_probability",
    "reason",
]
# seven significant digits are printed
PRINTED = {"rtol": 5.1e-7, "atol": 1e-300}


@pytest.fixture(scope="module")
def posterior(tmp_path_factory):
    """A posterior of Old Faithful, saved."""
    fit = bayesgmm.BayesianGaussianMixture(2, method="laplace", draws=250, chains=2, random_state=0, progressbar=False)
    folder = tmp_path_factory.mktemp("posterior")
    fit.fit(load_faithful().astype(float)).save(folder)
    return folder


@pytest.fixture(scope="module")
def em(tmp_path_factory):
    """The same by EM."""
    folder = tmp_path_factory.mktemp("em")
    bayesgmm.GaussianMixture(2, random_state=0).fit(load_faithful().astype(float)).save(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(em):
    """The fit by EM with its threshold settled."""
    return scoring.make_scorer(em)


@pytest.fixture(scope="module")
def rows():
    """New rows, with some far from every component and some between the two, in another order of columns."""
    rng = np.random.default_rng(5)
    near = load_faithful().astype(float).sample(40, random_state=1).to_numpy()
    between = rng.uniform([2.5, 60], [3.2, 72], (40, 2))
    values = np.concatenate([near, between, rng.uniform([0, 20], [8, 140], (20, 2))])
    return pd.DataFrame({"id": [f"r{n}" for n in range(100)], "waiting": values[:, 1], "eruptions": values[:, 0]})


def write(folder, text, name="new.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def scored(scorer, path, out, **options):
    """What is written to a file, as bytes."""
    scoring.score(str(path), str(out), scorer, **options)
    return out.read_bytes()


def assert_same_results(found, expected):
    for name in expected.columns:
        if expected[name].dtype.kind == "f":
            np.testing.assert_allclose(found[name], expected[name], err_msg=name, **PRINTED)
        else:
            assert found[name].tolist() == expected[name].tolist()


def test_results_are_the_detectors_in_the_order_of_the_rows(tmp_path, posterior, rows):
    path, out = tmp_path / "new.csv", tmp_path / "out.csv"
    rows.to_csv(path, index=False)
    scorer = scoring.make_scorer(posterior, false_alarm=0.001, min_responsibility=0.999, n_draws=60)
    # blocks of a few rows each
    found = scoring.score(str(path), str(out), scorer, block_bytes=300)
    detector = bayesgmm.AnomalyDetector(
        FrozenEstimator(bayesgmm.load(posterior)), false_alarm=0.001, n_draws=60, random_state=0
    )
    expected = detector.fit(None).table(rows, min_responsibility=0.999)
    table = pd.read_csv(out)
    assert table.columns.tolist() == [*rows.columns, *RESULTS] == [*rows.columns, *expected.columns]
    pd.testing.assert_frame_equal(table[rows.columns.tolist()], rows)
    assert_same_results(table, expected)
    assert (found.rows, found.far) == (100, (expected["kind"] == "far").sum())
    assert found.ambiguous == (expected["reason"] == "ambiguous").sum()
    assert 0 < found.far < 100
    assert found.ambiguous > 0
    assert (scorer.draws, scorer.all_draws) == (60, 500)


def test_em_densities_are_those_of_scipy(tmp_path, em, scorer, rows):
    path = tmp_path / "new.csv"
    rows.to_csv(path, index=False)
    table = pd.read_csv(io.BytesIO(scored(scorer, path, tmp_path / "out.csv")))
    assert "anomaly_probability" not in table
    fit = bayesgmm.load(em)
    density = sum(
        w * multivariate_normal(m, c).pdf(rows[["eruptions", "waiting"]])
        for w, m, c in zip(fit.weights_, fit.means_, fit.covariances_, strict=True)
    )
    np.testing.assert_allclose(table["log_density"], np.log(density), **PRINTED)
    np.testing.assert_array_equal(table["kind"] == "far", np.log(density) < scorer.log_threshold)


AWKWARD = {
    "quotes, newlines and CRLF": (
        b'note,"waiting",eruptions\r\n"two\r\nlines, one ""field""",79,3.60\r\n\r\nplain,"54",  1.8\r\nshort\r\nlast,6.2e1,+2.283',
        "utf-8",
        4,
    ),
    "tabs and old ends of lines": (b"eruptions\twaiting\r3.6\t79\r1.8\t54\r", "utf-8", 2),
    "decimal commas": ("waiting;eruptions;Größe\n79;3,6;a,b\n54;1,8;x\n".encode(), "utf-8", 2),
    "a byte order mark": ("\ufeff\neruptions,waiting,ü\n3.6,79,ß\n".encode(), "utf-8", 1),
    "latin-1": ("eruptions,waiting,ü\n3.6,79,ß\n".encode("latin-1"), "latin-1", 1),
    "UTF-16": ("eruptions,waiting,ü\n3.6,79,ß\n".encode("utf-16"), "utf-16", 1),
    "blanks": (b'"eruptions" "waiting"\n"r1"  3.6 79\n"r2"  1.8 54\n', "utf-8", 2),
    "no header": (b"3.6,79\n1.8,54\n", "utf-8", 2),
}


@pytest.mark.parametrize("case", AWKWARD)
@pytest.mark.parametrize("block_bytes", [7, 1 << 20])
def test_the_text_of_the_rows_stays_as_it_stood(tmp_path, scorer, case, block_bytes):
    raw, encoding, n_rows = AWKWARD[case]
    out = tmp_path / "out.csv"
    found = scoring.score(str(write(tmp_path, raw)), str(out), scorer, block_bytes=block_bytes)
    assert found.rows == n_rows
    before, after = (data.decode(encoding) for data in (raw, out.read_bytes()))
    # what was appended is taken away again, at the end of each record
    delimiter = next(d for d in "\t;, " if d in before)
    names = delimiter.join(found.columns)
    assert case == "no header" or names in after
    words = "ok|far|ambiguous|missing"
    cell = rf'(?:"[^"]*"|[^\s"{delimiter}]*)'
    appended = re.compile(
        rf"(?:{re.escape(delimiter)}{cell}){{{len(found.columns) - 1}}}{re.escape(delimiter)}(?:{words})(?=[\r\n]|$)"
    )
    stripped = appended.sub("", after.replace(delimiter + names, ""))
    # a short row is filled up, so that the results stand in their columns
    assert stripped.replace("short" + 2 * delimiter, "short") == before
    assert len(appended.findall(after)) == n_rows


def test_decimal_commas_are_written_and_read(tmp_path, scorer):
    comma = scored(scorer, write(tmp_path, "waiting;eruptions\n79;3,6\n54;1,8\n"), tmp_path / "a.csv")
    point = scored(scorer, write(tmp_path, "waiting,eruptions\n79,3.6\n54,1.8\n"), tmp_path / "b.csv")
    assert comma.decode().replace(",", ".").replace(";", ",") == point.decode()


def test_rows_without_a_number_are_kept_marked_and_counted(tmp_path, em, capsys):
    cells = ["3.6", "", "NA", "abc", "inf", "1_0", "True", "3.600000000000000000000", "nan"]
    path = write(tmp_path, "eruptions,waiting\n" + "".join(f"{cell},79\n" for cell in cells))
    out = tmp_path / "out.csv"
    assert main(["score", str(em), str(path), "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"] == 9
    assert summary["marked"] == {"missing": 3, "not a number": 2, "infinite": 1}
    table = pd.read_csv(out, keep_default_na=False)
    assert table["eruptions"].tolist() == cells
    reasons = ["ok", "missing", "missing", "not a number", "infinite", "not a number", "far", "ok", "missing"]
    assert table["reason"].tolist() == reasons
    marked = table[table["reason"].isin(sources.FAULTS[1:])]
    assert (marked["component"] == -1).all()
    assert (marked[["log_density", "tail_probability", "kind", "component_probability"]] == "").all(axis=None)
    assert table.loc[7, "log_density"] == table.loc[0, "log_density"]


def test_strict_stops_at_the_first_with_its_place(tmp_path, em, capsys):
    path = write(tmp_path, 'eruptions,"note\nin two lines",waiting\n3.6,"a\nb",79\n\n1.8,c,abc\n,c,54\n')
    out = write(tmp_path, "old", "out.csv")
    assert main(["score", str(em), str(path), "--out", str(out), "--force", "--strict"]) == 1
    printed = capsys.readouterr()
    assert "line 6, column 'waiting': not a number, 'abc'" in printed.err
    assert (printed.out, out.read_text()) == ("", "old")
    assert not list(tmp_path.glob(".*partial*"))


def test_numbers_beyond_any_range_are_far_and_never_nan(tmp_path, posterior):
    path = write(tmp_path, "eruptions,waiting\n1e300,79\n3.6,-1e150\n1e100,1e100\n-1.7e308,1.7e308\n")
    table = pd.read_csv(io.BytesIO(scored(scoring.make_scorer(posterior, n_draws=10), path, tmp_path / "out.csv")))
    assert table.notna().all(axis=None)
    assert (table["kind"] == "far").all()
    assert (table["component"] == -1).all()
    assert (table["log_density"] < -1e150).all()
    assert (table["log_density"][[0, 3]] == -np.inf).all()
    assert (table["tail_probability"][[0, 3]] == 0).all()
    assert (table["anomaly_probability"] == 1).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("waiting,other\n79,1\n", ["lacks the column 'eruptions'", "'waiting', 'other'"]),
        ("a,b\n79,1\n", ["lacks the columns 'eruptions', 'waiting'"]),
        ("eruptions,waiting,waiting\n1,2,3\n", ["'waiting' appears twice"]),
        ("1,2,3\n1,2,3\n", ["3 columns", "2 features", "by position"]),
        ("eruptions,waiting,kind\n3.6,79,x\n", ["'kind'", "--prefix"]),
        ("eruptions,waiting\n3.6,79\n3.6,79,1\n", ["line 3 has more fields than the header, which has 2"]),
        ('eruptions,waiting\n3.6,79\n3.6,"79\n', ["quoted field", "line 3"]),
        ("eruptions,waiting\n3.6,79,1,2\n", ["more fields than the header"]),
        ("", ["is empty"]),
        (b"PK\x03\x04", ["neither text nor Parquet"]),
    ],
)
def test_what_is_wrong_with_a_table_is_said_once(tmp_path, scorer, text, says):
    with pytest.raises(DataError) as caught:
        scored(scorer, write(tmp_path, text), tmp_path / "out.csv")
    assert all(part in str(caught.value) for part in says)
    assert os.listdir(tmp_path) == ["new.csv"]


def test_a_header_alone_gives_a_header(tmp_path, em, capsys):
    path, out = write(tmp_path, "waiting,eruptions\n"), tmp_path / "out.csv"
    assert main(["score", str(em), str(path), "--out", str(out)]) == 0
    names = ",".join(name for name in RESULTS if name != "anomaly_probability")
    assert out.read_text() == f"waiting,eruptions,{names}\n"
    assert "has no rows" in capsys.readouterr().err


def test_columns_may_be_named_and_results_too(tmp_path, scorer):
    path = write(tmp_path, "kind,w,e\nx,79,3.6\n")
    plain = scored(scorer, write(tmp_path, "eruptions,waiting\n3.6,79\n", "plain.csv"), tmp_path / "a.csv").decode()
    renamed = scored(scorer, path, tmp_path / "b.csv", columns=["e", "w"], prefix="gmm_").decode()
    assert renamed.splitlines()[1] == plain.splitlines()[1].replace("3.6,79", "x,79,3.6")
    assert renamed.splitlines()[0].startswith("kind,w,e,gmm_log_density,")
    with pytest.raises(DataError, match="no column 'v'; its columns are 'kind', 'w', 'e'"):
        scored(scorer, path, tmp_path / "c.csv", columns=["e", "v"])
    with pytest.raises(DataError, match="names 1, but the fit has 2: 'eruptions', 'waiting'"):
        scored(scorer, path, tmp_path / "c.csv", columns=["e"])


def test_a_fit_without_names_goes_by_position(tmp_path):
    X = load_faithful().to_numpy(dtype=float)
    bayesgmm.GaussianMixture(2, random_state=0).fit(X).save(tmp_path / "fit")
    scorer = scoring.make_scorer(tmp_path / "fit")
    np.save(tmp_path / "X.npy", X[:5])
    from_array = pd.read_csv(io.BytesIO(scored(scorer, tmp_path / "X.npy", tmp_path / "a.csv")), header=None)
    path = write(tmp_path, "p,q\n" + "".join(f"{a!r},{b!r}\n" for a, b in X[:5].tolist()))
    from_text = pd.read_csv(io.BytesIO(scored(scorer, path, tmp_path / "b.csv")))
    np.testing.assert_array_equal(from_array.to_numpy(), from_text.to_numpy())
    assert len(from_array) == 5


@pytest.fixture
def parquet(tmp_path, rows):
    """The rows as Parquet, with types that text does not know."""
    table = pa.table(
        {
            "eruptions": pa.array([None, *rows["eruptions"][1:]]),
            "when": pa.array(np.arange(100), type=pa.timestamp("us")),
            "waiting": pa.array(rows["waiting"].to_numpy(), type=pa.float32()),
            "count": pa.array([*range(99), None], type=pa.int16()),
            "kinds": pa.array([["a", "b"]] * 100),
        }
    )
    pq.write_table(table, tmp_path / "new.parquet", row_group_size=30)
    return table


def test_parquet_stays_parquet(tmp_path, em, scorer, parquet):
    scored(scorer, tmp_path / "new.parquet", tmp_path / "out.parquet", block_rows=17)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.select(parquet.column_names).equals(parquet)
    results = found.drop_columns(parquet.column_names).to_pandas()
    assert results["reason"][0] == "missing"
    detector = bayesgmm.AnomalyDetector(FrozenEstimator(bayesgmm.load(em)), random_state=0).fit(None)
    X = parquet.select(["eruptions", "waiting"]).to_pandas().astype(float)[1:]
    expected = detector.table(X, min_responsibility=0.9)
    pd.testing.assert_frame_equal(results[1:], expected, check_dtype=False, rtol=1e-12)


def test_parquet_to_text_and_text_to_parquet(tmp_path, scorer, parquet, rows):
    as_parquet = tmp_path / "new.parquet"
    scored(scorer, as_parquet, tmp_path / "a.parquet")
    expected = pq.read_table(tmp_path / "a.parquet").to_pandas()
    text = pd.read_csv(io.BytesIO(scored(scorer, as_parquet, tmp_path / "a.tsv", block_rows=17)), sep="\t")
    assert text.columns.tolist() == expected.columns.tolist()
    for name in ("waiting", "count", "log_density", "component"):
        np.testing.assert_allclose(text[name], expected[name].astype(float), rtol=5.1e-7)
    assert text["reason"].tolist() == expected["reason"].tolist()

    path = write(tmp_path, 'id,waiting,eruptions\n"a,""b""",79,3.6\n007,abc,1.8\n,54,1.8\n')
    scored(scorer, path, tmp_path / "b.parquet", block_bytes=20)
    table = pq.read_table(tmp_path / "b.parquet")
    assert table.select(["id", "waiting", "eruptions"]).to_pylist() == [
        {"id": 'a,"b"', "waiting": 79.0, "eruptions": 3.6},
        {"id": "007", "waiting": None, "eruptions": 1.8},
        {"id": None, "waiting": 54.0, "eruptions": 1.8},
    ]
    assert table["reason"].to_pylist() == ["ok", "not a number", "ok"]


def test_standard_input_and_output_in_a_process(tmp_path, em, scorer):
    path = write(tmp_path, "eruptions,waiting\n3.6,79\n1.8,54\n")
    expected = scored(scorer, path, tmp_path / "a.csv")
    command = [sys.executable, "-m", "bayesgmm", "score", str(em), "-", "--json"]
    done = subprocess.run(command, input=path.read_bytes(), capture_output=True, check=True)
    assert done.stdout == expected
    assert json.loads(done.stderr)["rows"] == 2


def test_parquet_comes_through_standard_input_too(tmp_path, scorer, parquet, monkeypatch):
    raw = (tmp_path / "new.parquet").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
    expected = scored(scorer, tmp_path / "new.parquet", tmp_path / "a.csv")
    assert scored(scorer, "-", tmp_path / "b.csv") == expected


def test_the_summary_says_what_was_counted(tmp_path, posterior, capsys):
    path, out = write(tmp_path, "eruptions,waiting\n3.6,79\n9,9\nNA,2\n"), tmp_path / "out.csv"
    assert main(["score", str(posterior), str(path), "--out", str(out), "--log-f-min", "-9", "--draws", "7"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    for part in ("3 rows", "1 (33.3 %)", "missing 1", "log density -9", "8 of 500 draws, --draws N for more", str(out)):
        assert part in printed.err


def test_outputs_that_would_do_harm_are_refused(tmp_path, em, capsys):
    path, out = write(tmp_path, "eruptions,waiting\n3.6,79\n"), write(tmp_path, "old", "out.csv")
    (tmp_path / "link.csv").symlink_to(path)
    for where, says in (
        (out, "add --force"),
        (path, "is the input itself"),
        (tmp_path / "link.csv", "is the input itself"),
        (tmp_path, "it is a folder"),
        (tmp_path / "no" / "out.csv", "there is no folder"),
        (tmp_path / "out.npy", "name a .csv"),
        ("/dev/null", "it is no file"),
    ):
        force = [] if where == out else ["--force"]
        assert main(["score", str(em), str(path), "--out", str(where), *force]) == 1
        assert says in capsys.readouterr().err
    assert out.read_text() == "old"
    assert main(["score", str(em), str(path), "--out", str(out), "--force", "--quiet"]) == 0
    assert out.read_text().startswith("eruptions,waiting,log_density")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_failing_write_leaves_the_old_file_whole(tmp_path, em, capsys, monkeypatch, failure, suffix):
    path, out = write(tmp_path, "eruptions,waiting\n3.6,79\n"), write(tmp_path, "old", f"out{suffix}")

    def fail(self, block, results):
        raise failure

    monkeypatch.setattr(sinks.ParquetSink if suffix == ".parquet" else sinks.TextSink, "write", fail)
    interrupted = isinstance(failure, KeyboardInterrupt)
    code = main(["score", str(em), str(path), "--out", str(out), "--force"])
    assert code == (130 if interrupted else 1)
    assert ("nothing was written" if interrupted else "No space left on device") in capsys.readouterr().err
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["new.csv", out.name]


def test_a_fit_that_failed_its_diagnostics_scores_with_a_warning(tmp_path, capsys):
    with pytest.warns(match="not converge"):
        bayesgmm.GaussianMixture(2, n_init=1, max_iter=1, random_state=0).fit(load_faithful().astype(float)).save(
            tmp_path / "fit"
        )
    path, out = write(tmp_path, "eruptions,waiting\n3.6,79\n"), tmp_path / "out.csv"
    assert main(["score", str(tmp_path / "fit"), str(path), "--out", str(out), "--quiet"]) == 3
    assert "EM did not converge" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--false-alarm", "0"],
        ["--false-alarm", "1.5"],
        ["--false-alarm", "0.1", "--f-min", "1"],
        ["--min-responsibility", "nan"],
        ["--draws", "0"],
        ["--log-f-min", "low"],
    ],
)
def test_wrong_usage_is_refused_before_anything_is_loaded(options):
    with pytest.raises(SystemExit) as exit:
        main(["score", "nowhere", "nothing.csv", *options])
    assert exit.value.code == 2


@pytest.mark.parametrize(("value", "says"), [("-1", "must be positive"), ("1e9", "every row would be flagged")])
def test_a_threshold_that_no_density_has_is_refused(tmp_path, em, capsys, value, says):
    path = write(tmp_path, "eruptions,waiting\n3.6,79\n")
    assert main(["score", str(em), str(path), f"--f-min={value}"]) == 1
    assert says in capsys.readouterr().err
