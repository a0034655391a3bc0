"""Tables in and files out: what is read, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import errno
import io
import os
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bayesgmm.exceptions import DataError
from bayesgmm.io import OutputFolder, atomic_path, read_table, write_csv, write_text

NUMBERS = np.array([[3.6, 79.0], [1.8, 54.0], [-1e-3, 1e150]])


@pytest.fixture
def csv_file(tmp_path):
    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "length,wait\n3.6,79\n1.8,54\n-1e-3,1e150\n"),
        ("a.csv", "length,wait\r\n3.6,79\r\n1.8,54\r\n-1e-3,1e150"),
        ("a.tsv", "length\twait\n3.6\t79\n1.8\t54\n-1e-3\t1e150\n"),
        ("a.txt", "length;wait\n3.6;79\n1.8;54\n-1e-3;1e150\n"),
        ("a.txt", "length;wait\n3,6;79\n1,8;54\n-1e-3;1e150\n"),
        ("a.txt", "length wait\n3.6 79\n1.8   54\n-1e-3 1e150\n"),
        ("a.csv", '"length","wait"\n"3.6","79"\n"1.8","54"\n"-1e-3","1e150"\n'),
        ("a.csv", '"","length","wait"\n"1",3.6,79\n"2",1.8,54\n"3",-1e-3,1e150\n'),
        ("a.txt", '"length" "wait"\n"Mazda RX4" 3.6 79\n"2" 1.8 54\n"3" -1e-3 1e150\n'),
        ("a.csv", "length,wait,\n3.6,79,\n1.8,54,\n-1e-3,1e150,\n"),
        ("a.csv", "\n\nlength, wait\n3.6, 79\n\n1.8, 54\n-1e-3, 1e150\n\n"),
        ("a.csv", "length,wait\n3.6,79\n1.8,54\n-1e-3,1e150\n".encode("utf-8-sig")),
        ("a.csv", "length,wait\n3.6,79\n1.8,54\n-1e-3,1e150\n".encode("utf-16")),
    ],
)
def test_text_of_many_dialects_gives_the_same_table(csv_file, name, text):
    table = read_table(csv_file(text, name))
    np.testing.assert_array_equal(table.values, NUMBERS)
    assert table.columns == ("length", "wait")
    assert table.values.dtype == np.float64
    assert table.values.flags.c_contiguous
    assert table.rows.tolist() == [1, 2, 3]


def test_numbers_survive_text_bit_for_bit(csv_file):
    # shortest exact text of random bits: a parser that rounds differs in the last place of about half of them
    values = np.random.default_rng(0).normal(size=(500, 3)) * 10.0 ** np.arange(-150, 151, 150)
    path = csv_file(pd.DataFrame(values, columns=list("abc")).to_csv(index=False))
    np.testing.assert_array_equal(read_table(path).values, values)


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_standard_input_is_read_and_its_delimiter_found(monkeypatch, delimiter):
    text = f"a{delimiter}b\n1{delimiter}2\n3{delimiter}4\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    table = read_table("-")
    assert table.source == "standard input"
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4]])


def test_a_stream_that_cannot_be_rewound_is_read():
    reader, writer = os.pipe()
    os.write(writer, b"a,b\n1,2\n3,4\n")
    os.close(writer)
    np.testing.assert_array_equal(read_table(f"/dev/fd/{reader}").values, [[1, 2], [3, 4]])
    os.close(reader)


def test_a_file_without_header_loses_no_row_and_says_so(csv_file):
    table = read_table(csv_file("1,2\n3,4\n5,6\n"))
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4], [5, 6]])
    assert table.columns == ("x1", "x2")
    assert any("no header" in note for note in table.notes)


def test_the_default_header_of_pandas_is_no_row(csv_file):
    table = read_table(csv_file(pd.DataFrame(NUMBERS).to_csv(index=False)))
    np.testing.assert_array_equal(table.values, NUMBERS)
    assert table.columns == ("0", "1")


def test_row_names_are_left_out_and_said_so(csv_file):
    table = read_table(csv_file(pd.DataFrame(NUMBERS, columns=["a", "b"]).to_csv()))
    np.testing.assert_array_equal(table.values, NUMBERS)
    assert any("row names" in note for note in table.notes)


def test_one_column_is_a_table(csv_file):
    assert read_table(csv_file("velocity\n9172\n9350\n")).values.shape == (2, 1)


def test_integers_and_booleans_become_floats(csv_file):
    table = read_table(csv_file("a,b,c\n1,True,2.5\n0,False,3.5\n"))
    np.testing.assert_array_equal(table.values, [[1, 1, 2.5], [0, 0, 3.5]])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int8, np.uint64, bool])
def test_npy_of_every_real_type(tmp_path, dtype):
    array = np.asfortranarray(np.arange(6).reshape(3, 2).astype(dtype))
    np.save(tmp_path / "a.npy", array)
    table = read_table(tmp_path / "a.npy")
    np.testing.assert_array_equal(table.values, array.astype(float))
    assert table.values.flags.c_contiguous
    assert table.columns == ("x1", "x2")


def test_npy_of_one_dimension_and_with_named_fields(tmp_path):
    np.save(tmp_path / "one.npy", np.arange(4.0))
    assert read_table(tmp_path / "one.npy").values.shape == (4, 1)
    np.save(tmp_path / "named.npy", np.array([(1, 2.0), (3, 4.0)], dtype=[("a", int), ("b", float)]))
    table = read_table(tmp_path / "named.npy")
    assert table.columns == ("a", "b")
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4]])


def test_parquet_with_nullable_and_decimal_columns(tmp_path):
    frame = pd.DataFrame(
        {
            "i": pd.array([1, 2], dtype="Int64"),
            "b": pd.array([True, False], dtype="boolean"),
            "d": [Decimal("1.5"), Decimal("2.5")],
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    np.testing.assert_array_equal(table.values, [[1, 1, 1.5], [2, 0, 2.5]])


def test_columns_are_chosen_in_the_order_given(csv_file):
    table = read_table(csv_file("a,name,b\n1,x,2\n3,y,4\n"), columns=["b", "a"])
    np.testing.assert_array_equal(table.values, [[2, 1], [4, 3]])
    assert table.columns == ("b", "a")


def test_to_frame_keeps_names(csv_file):
    frame = read_table(csv_file("a,b\n1,2\n3,4\n")).to_frame()
    pd.testing.assert_frame_equal(frame, pd.DataFrame({"a": [1.0, 3.0], "b": [2.0, 4.0]}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ["is empty"]),
        ("\n \n", ["is empty"]),
        ("a,b\n", ["no rows of data"]),
        ("a,b\n1,2\n", ["one row of data", "at least two"]),
        (
            "a,b\n1,\n3,4\n5,inf\n",
            ["2 values are", "row 1 (line 2), column 'b': missing", "row 3 (line 4)", "infinite"],
        ),
        ("1,2\n3,NA\n5,6\n", ["1 value is", "row 2 (line 2), column 'x2': missing"]),
        ("a,b\n\n1,2\n3,\n", ["row 2, column 'b': missing"]),
        ("a\n" + "nan\n1\n" * 9, ["9 values are", "row 9", "and 4 more"]),
        ("a,b\n1,2\n3,4\n5,6\n7,oops\n", ["row 4 (line 5), column 'b': text 'oops'"]),
        ("a,b\n1,True\n3,\n5,False\n", ["row 2 (line 3), column 'b': missing"]),
        ("a,kind,b\n1,x,2\n3,y,4\n", ["column 'kind' holds text", "--columns a,b"]),
        ('a,kind,"b,c"\n1,x,2\n3,y,4\n', ["column 'kind' holds text", '--columns a,"b,c"']),
        ("name,kind\nu,x\nv,y\n", ["no numeric column", "'name', 'kind'"]),
        ("when\n2020-01-01\n2020-01-02\n", ["no numeric column"]),
        ("a,b\n1,2\n3,4,5\n", ["Expected 2 fields in line 3, saw 3"]),
        ("a,b\n1,2,\n3,4,\n", ["more fields than the header"]),
        ("x\n3,6\n4,5\n", ["more fields than the header"]),
        (b"a,b\n1,\0\n", ["neither text nor"]),
        (b"PK\x03\x04 and so on", ["neither text nor"]),
    ],
)
def test_a_bad_table_is_refused_in_one_line_that_says_where(csv_file, text, says):
    path = csv_file(text)
    with pytest.raises(DataError) as caught:
        read_table(path)
    message = str(caught.value)
    assert all(part in message for part in says), message
    assert str(path) in message
    assert "\n" not in message


def test_a_latin_1_header_is_read(csv_file):
    assert read_table(csv_file("größe,b\n1,2\n3,4\n".encode("latin-1"))).columns == ("größe", "b")


def test_unknown_repeated_and_no_columns_are_refused(csv_file):
    path = csv_file("a,b\n1,2\n3,4\n")
    with pytest.raises(DataError, match="no column 'c'; its columns are 'a', 'b'"):
        read_table(path, columns=["a", "c"])
    with pytest.raises(DataError, match="twice"):
        read_table(path, columns=["a", "a"])
    with pytest.raises(DataError, match="no column is chosen"):
        read_table(path, columns=[])


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.csv: No such file"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="it is a folder"):
        read_table(tmp_path)


def test_damaged_and_unfit_arrays_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    np.save(tmp_path / "complex.npy", np.zeros((3, 2), dtype=complex))
    np.save(tmp_path / "whole.npy", np.zeros((300, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:1000])
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "other.parquet").write_text("a,b\n1,2\n")
    for name, says in {
        "objects.npy": "cannot read",
        "cube.npy": r"shape \(2, 2, 2\)",
        "complex.npy": "no numeric column",
        "cut.npy": "cannot read",
        "cut.parquet": "cannot read",
        "other.parquet": "is not a .parquet file",
    }.items():
        with pytest.raises(DataError, match=says):
            read_table(tmp_path / name)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    pd.DataFrame(NUMBERS, columns=["a", "b"]).to_parquet(tmp_path / "a.parquet")

    def without_pyarrow(*args, **kwargs):
        raise ImportError("Missing optional dependency 'pyarrow'")

    monkeypatch.setattr(pd, "read_parquet", without_pyarrow)
    with pytest.raises(DataError, match=r"bayesgmm\[parquet\]"):
        read_table(tmp_path / "a.parquet")


def test_atomic_path_replaces_whole_or_leaves_the_old(tmp_path):
    target = tmp_path / "result.png"
    target.write_text("old")
    with pytest.raises(OSError, match="No space left"), atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.png"]
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["result.png"]


def test_writing_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "new\n")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new\n"


def test_written_csv_reads_back_exactly(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(1).normal(size=(20, 2)), columns=["a", "b"])
    write_csv(tmp_path / "a.csv", frame)
    np.testing.assert_array_equal(read_table(tmp_path / "a.csv").values, frame.to_numpy())


def test_output_folder_appears_whole_with_its_parents(tmp_path):
    path = tmp_path / "deep" / "er" / "out"
    with OutputFolder(path) as folder:
        write_text(folder / "a.txt", "1")
        assert not path.exists()
    assert os.listdir(path) == ["a.txt"]
    assert os.listdir(tmp_path) == ["deep"]


def test_a_failed_run_leaves_nothing_and_keeps_the_old(tmp_path):
    with pytest.raises(RuntimeError), OutputFolder(tmp_path / "out") as folder:
        write_text(folder / "a.txt", "1")
        raise RuntimeError
    assert os.listdir(tmp_path) == []

    old = tmp_path / "old"
    old.mkdir()
    (old / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), OutputFolder(old, force=True, outputs=["a.txt"]) as folder:
        write_text(folder / "a.txt", "new")
        raise KeyboardInterrupt
    assert os.listdir(old) == ["a.txt"]
    assert (old / "a.txt").read_text() == "old"


def test_an_existing_folder_is_refused_without_force(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="--force"):
        OutputFolder(tmp_path)
    with pytest.raises(FileExistsError, match="not a folder"):
        OutputFolder(tmp_path / "thesis.tex", force=True)


def test_force_removes_stale_results_and_nothing_else(tmp_path):
    for name in ("thesis.tex", "posterior.nc", "fit.json"):
        (tmp_path / name).write_text("old")
    with OutputFolder(tmp_path, force=True, outputs=["posterior.nc", "fit.json"]) as folder:
        write_text(folder / "fit.json", "new")
    assert sorted(os.listdir(tmp_path)) == ["fit.json", "thesis.tex"]
    assert (tmp_path / "fit.json").read_text() == "new"


def test_reuse_takes_a_folder_of_its_own_results_only(tmp_path):
    (tmp_path / "fit.json").write_text("old")
    OutputFolder(tmp_path, outputs=["fit.json"], reuse=True)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError):
        OutputFolder(tmp_path, outputs=["fit.json"], reuse=True)


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to"):
        OutputFolder(tmp_path / "file" / "out").__enter__()
    with pytest.raises(OSError, match="cannot write to"):
        OutputFolder(Path("/proc/nowhere")).__enter__()


@pytest.mark.parametrize(
    ("cells", "expected", "classes"),
    [
        (["x", "y", "", "NA", "x", "y"], ["x", "y", None, None, "x", "y"], ("x", "y")),
        (["x", "y", "-1", '" "', "x", "y"], ["x", "y", None, None, "x", "y"], ("x", "y")),
        (["2", "0", "", "-1", "0", "2"], [2, 0, None, None, 0, 2], (0, 2)),
        (["0.5", "-1.0", "1.5", "nan", "0.5", "1.5"], [0.5, None, 1.5, None, 0.5, 1.5], (0.5, 1.5)),
        (["True", "False", "", "True", "False", "True"], [True, False, None, True, False, True], (False, True)),
    ],
)
def test_a_column_of_labels_is_no_feature(csv_file, cells, expected, classes):
    rows = "".join(f"{i},{label},{i * i}\n" for i, label in enumerate(cells))
    table = read_table(csv_file(f"a,kind,b\n{rows}"), labels="kind")
    assert table.columns == ("a", "b")
    np.testing.assert_array_equal(table.values[:, 1], np.arange(6.0) ** 2)
    assert table.labels.values.tolist() == expected
    # 1.0 == 1: whole numbers with gaps are still whole numbers
    assert [str(c) for c in table.labels.classes] == [str(c) for c in classes]
    assert table.labels.n_known == sum(value is not None for value in expected)
    assert read_table(csv_file(f"a,kind,b\n{rows}"), ["b"], "kind").columns == ("b",)


def test_labels_of_parquet_and_npy(tmp_path):
    kinds = pd.Categorical(["u", None, "v", "v", "u"])
    pd.DataFrame({"a": range(5), "kind": kinds}).to_parquet(tmp_path / "a.parquet")
    labels = read_table(tmp_path / "a.parquet", labels="kind").labels
    assert (labels.values.tolist(), labels.classes) == (["u", None, "v", "v", "u"], ("u", "v"))
    np.save(tmp_path / "a.npy", np.array([[0.5, 1], [0.1, -1], [0.2, 0], [0.3, 1], [0.4, 0]]))
    assert read_table(tmp_path / "a.npy", labels="x2").labels.values.tolist() == [1, None, 0, 1, 0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": "knd"}, "no column 'knd' for the labels; its columns are 'a', 'kind', 'none', 'one', 'each'"),
        ({"labels": "kind", "columns": ["a", "kind"]}, "'kind' holds the labels, so it cannot be a feature"),
        ({"labels": "none"}, r"column 'none' has no known label \(empty, NA and -1 are unknown\)"),
        ({"labels": "one"}, "column 'one' has a single class, 'x': at least two"),
        ({"labels": "each"}, "'each' has 4 different labels in 4 labelled rows: labels are classes"),
        ({"labels": "kind", "columns": ["b"]}, "no column 'b'"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(csv_file, options, says):
    path = csv_file("a,kind,none,one,each\n1,u,,x,p\n2,v,-1,,q\n3,u,NA,x,r\n4,v,,x,s\n")
    with pytest.raises(DataError, match=says):
        read_table(path, **options)


def test_labels_alone_are_refused(csv_file):
    with pytest.raises(DataError, match="no column beside that of the labels, 'kind'"):
        read_table(csv_file("kind\nu\nv\nu\nv\n"), labels="kind")


def test_text_that_a_spreadsheet_takes_for_a_formula_is_quoted(tmp_path):
    frame = pd.DataFrame({"=cmd()": ["=1+1", "+1", "-1", "−1", "@x", "\t=1", "fine", "1-2"], "number": -np.arange(8.0)})
    write_csv(tmp_path / "a.csv", frame)
    lines = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "'=cmd(),number"
    assert [line.rpartition(",")[0] for line in lines[1:]] == [
        "'=1+1",
        "'+1",
        "'-1",
        "'−1",
        "'@x",
        "'\t=1",
        "fine",
        "1-2",
    ]
    assert [line.rpartition(",")[2] for line in lines[1:3]] == ["-0.0", "-1.0"]
    # The table in hand is as it was.
    assert list(frame.columns) == ["=cmd()", "number"]
    assert frame.iloc[0, 0] == "=1+1"


def test_what_came_into_a_folder_meanwhile_is_not_mixed_with(tmp_path):
    with pytest.raises(FileExistsError, match="not empty"), OutputFolder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("ours")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "b.txt").write_text("theirs")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.txt"]
