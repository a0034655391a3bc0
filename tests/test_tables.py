from __future__ import annotations

import threading
import time

import numpy as np
import pandas as pd
import pytest

from bayesgmm import open_blocks, tables
from bayesgmm.core import threads
from bayesgmm.core.blocks import moments
from bayesgmm.exceptions import DataError
from bayesgmm.io import read_table
from bayesgmm.sources import open_source

pyarrow = pytest.importorskip("pyarrow")

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(rng.standard_normal((1000, 3)), columns=NAMES)


def write(frame, path, **options):
    if path.suffix == ".parquet":
        frame.to_parquet(path, **options)
    elif path.suffix == ".npy":
        np.save(path, frame.to_numpy())
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def rows_of(table):
    return np.concatenate(list(table))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".npy"])
def test_every_format_gives_the_same_rows_as_often_as_asked(frame, tmp_path, suffix):
    table = open_blocks(write(frame, tmp_path / f"data{suffix}"), block_rows=300)
    for _ in range(2):
        np.testing.assert_array_equal(rows_of(table), frame.to_numpy())
    assert table.columns == (("x1", "x2", "x3") if suffix == ".npy" else tuple(NAMES))
    found = table.total(moments)
    assert found.n_rows == 1000
    np.testing.assert_allclose(found.mean, frame.mean(), atol=1e-15)


def sources(frame, folder):
    """The same table said in every way."""
    (folder / "parts").mkdir()
    shuffled = frame[["c", "a", "b"]]
    for i, part in enumerate([frame[:400], shuffled[400:700], frame[700:]]):
        write(part, folder / "parts" / f"{i}.parquet")
    (folder / "parts" / ".hidden.parquet").write_bytes(b"no table")
    fortran = np.asfortranarray(frame.to_numpy())
    np.save(folder / "fortran.npy", fortran)
    np.save(folder / "records.npy", frame.to_records(index=False))
    pieces = [frame[:10], shuffled[10:600], frame[600:]]
    return {
        "folder": folder / "parts",
        "pattern": f"{folder}/parts/*.parquet",
        "list": sorted((folder / "parts").glob("[0-9]*")),
        "fortran": folder / "fortran.npy",
        "records": folder / "records.npy",
        "array": fortran,
        "frame": frame,
        "memory map": np.load(folder / "fortran.npy", mmap_mode="r"),
        "frames": pieces,
        "function": lambda: iter(pieces),
        "arrays": [frame[:10].to_numpy(), frame[10:].to_numpy()],
    }


@pytest.mark.parametrize(
    "way",
    ["folder", "pattern", "list", "fortran", "records", "array", "frame", "memory map", "frames", "function", "arrays"],
)
def test_every_way_to_say_a_table_gives_its_rows(frame, tmp_path, way):
    table = open_blocks(sources(frame, tmp_path)[way], block_rows=128)
    assert table.n_features == 3
    np.testing.assert_array_equal(rows_of(table), frame.to_numpy())


def test_columns_are_chosen_by_name_and_weights_are_no_feature(frame, tmp_path):
    heavy = frame.assign(w=np.arange(1000) % 3, name="text")
    for suffix in (".csv", ".parquet"):
        table = open_blocks(write(heavy, tmp_path / f"data{suffix}"), columns=["c", "a"], weights="w")
        np.testing.assert_array_equal(rows_of(table), frame[["c", "a"]])
        found = table.total(moments)
        assert found.weight == heavy["w"].sum()
        np.testing.assert_allclose(found.mean, np.average(frame[["c", "a"]], axis=0, weights=heavy["w"]), atol=1e-14)
    chosen = open_blocks([heavy[:500], heavy[500:]], columns=["b"], weights="w")
    np.testing.assert_array_equal(rows_of(chosen), frame[["b"]])
    assert open_blocks(frame.assign(w=1.0).to_numpy()).columns == ("x1", "x2", "x3", "x4")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, bool])
def test_types_of_numbers(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 2, (100, 2)).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    pd.DataFrame(values, columns=["a", "b"]).to_parquet(tmp_path / "x.parquet")
    for name in ("x.npy", "x.parquet"):
        np.testing.assert_array_equal(rows_of(open_blocks(tmp_path / name)), values)


def bad(frame, value, row=600):
    out = frame.copy()
    out.iloc[row, 1] = value
    return out


@pytest.mark.parametrize(
    ("suffix", "value", "says"),
    [
        (".parquet", np.nan, r"data.parquet: row 601, column 'b', in block 3: missing"),
        (".parquet", np.inf, r"data.parquet: row 601, column 'b', in block 3: infinite"),
        (".npy", -np.inf, r"data.npy: row 601, column 'x2', in block 3: infinite"),
        (".csv", np.nan, r"data.csv: line 602, column 'b', in block 1: missing"),
        (".csv", "abc", r"data.csv: line 602, column 'b', in block 1: text 'abc'"),
    ],
)
def test_what_is_no_number_is_named_by_file_block_and_row(frame, tmp_path, suffix, value, says):
    frame = bad(frame.astype(object) if isinstance(value, str) else frame, value)
    path = write(frame, tmp_path / f"data{suffix}")
    with pytest.raises(DataError, match=says):
        open_blocks(path, block_rows=256).total(moments)
    if not isinstance(value, str):
        with pytest.raises(DataError, match="the blocks: row 601"):
            open_blocks([frame[:300], frame[300:]]).total(moments)


def test_files_that_differ_in_their_columns_are_refused_by_name(frame, tmp_path):
    first = write(frame, tmp_path / "0.parquet")
    fewer = write(frame[["a", "b"]], tmp_path / "1.parquet")
    more = write(frame.assign(d=1.0), tmp_path / "2.csv")
    with pytest.raises(DataError, match=r"1.parquet has no column 'c'; its columns are 'a', 'b'"):
        open_blocks([first, fewer])
    with pytest.raises(DataError, match=r"2.csv has the column 'd', which .*0.parquet has not"):
        open_blocks([first, more])
    np.testing.assert_array_equal(rows_of(open_blocks([first, more], columns=NAMES))[1000:], frame)
    np.save(tmp_path / "3.npy", frame[["a", "b"]].to_numpy())
    with pytest.raises(DataError, match="3.npy has 2 columns, and .* has 3"):
        open_blocks([first, tmp_path / "3.npy"])
    with pytest.raises(DataError, match="block 2 has no column 'c'"):
        list(open_blocks([frame, frame[["a", "b"]]]))
    with pytest.raises(DataError, match="block 2 has 2 columns, and block 1 has 3"):
        list(open_blocks([frame.to_numpy(), frame[["a", "b"]].to_numpy()]))


def test_a_file_that_ends_in_the_middle_of_a_row(frame, tmp_path):
    path = write(frame, tmp_path / "data.csv")
    text = path.read_text().splitlines()
    path.write_text("\n".join([*text[:-1], text[-1].rpartition(",")[0]]))
    with pytest.raises(DataError, match="line 1001, in block 1: the file ends in the middle of a row: 2 of 3 fields"):
        open_blocks(path).total(moments)
    text[500] = "1.0"
    path.write_text("\n".join(text) + "\n")
    with pytest.raises(DataError, match="line 501, in block 1: the row is not complete: 1 of 3 fields"):
        open_blocks(path).total(moments)


def test_truncated_files(frame, tmp_path):
    path = write(frame, tmp_path / "data.parquet", row_group_size=100)
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"cannot read .*data.parquet"):
        open_blocks(path)
    damaged = bytearray(whole)
    damaged[len(whole) // 3 : len(whole) // 2] = bytes(len(whole) // 2 - len(whole) // 3)
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"cannot read .*data.parquet behind row"):
        open_blocks(path, block_rows=100).total(moments)
    numbers = write(frame, tmp_path / "data.npy")
    table = open_blocks(numbers)
    numbers.write_bytes(numbers.read_bytes()[:-9])
    with pytest.raises(DataError, match="it ends before its last row"):
        table.total(moments)
    with pytest.raises(DataError, match="cannot read"):
        open_blocks(numbers)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (lambda f, d: (f for _ in range(2)), "gives its rows once"),
        (lambda f, d: d / "nothing.csv", "No such file"),
        (lambda f, d: f"{d}/*.csv", "no file is called"),
        (lambda f, d: d, "has no table"),
        (lambda f, d: [], "no blocks"),
        (lambda f, d: 3.0, "cannot read blocks of rows from a float"),
        (lambda f, d: f.to_numpy()[None], "array of shape"),
        (lambda f, d: [f.assign(b="x")], "block 1: row 1 of the block, column 'b': text 'x'"),
        (lambda f, d: [[[1.0, 2.0]]], "block 1 is a list"),
    ],
)
def test_what_is_no_table_is_refused(frame, tmp_path, source, says):
    with pytest.raises(DataError, match=says):
        list(open_blocks(source(frame, tmp_path)))


def test_columns_that_are_not_there_or_hold_text(frame, tmp_path):
    path = write(frame.assign(name="x"), tmp_path / "data.parquet")
    with pytest.raises(DataError, match="no column 'z'"):
        open_blocks(path, columns=["z"])
    with pytest.raises(DataError, match="chosen twice"):
        open_blocks(path, columns=["a", "a"])
    with pytest.raises(DataError, match="'name' holds no numbers"):
        list(open_blocks(path))
    with pytest.raises(DataError, match="'name' holds text"):
        list(open_blocks(write(frame.assign(name="x"), tmp_path / "data.csv")))
    with pytest.raises(DataError, match="holds the weights"):
        open_blocks(path, columns=["a", "b"], weights="a")
    with pytest.raises(DataError, match="row 1 has the weight -1"):
        list(open_blocks([frame.assign(w=-1.0)], weights="w"))


def test_the_next_two_blocks_are_read_while_one_is_in_use_and_no_more():
    read, started = [], threading.Condition()

    def blocks():
        for i in range(12):
            with started:
                read.append(i)
                started.notify()
            yield np.full((5, 1), float(i))

    table = open_blocks(blocks)
    read.clear()
    for used, _ in enumerate(table):
        with started:
            assert started.wait_for(lambda used=used: len(read) >= min(used + 3, 12), timeout=10)
            assert len(read) <= used + 3
    assert not [t for t in threading.enumerate() if t.name.startswith("bayesgmm-reader")]


@pytest.mark.parametrize(("reading", "using", "all_cores"), [(3.0, 8.0, False), (3.0, 10.0, True), (1.0, 0.1, False)])
def test_a_core_is_left_to_the_reader_unless_it_idles(reading, using, all_cores, monkeypatch):
    """Seconds that a block takes to read and to use on one core less; the first is slow to read, as its file is opened."""
    clock = [0.0]
    monkeypatch.setattr(tables.time, "perf_counter", lambda: clock[0])
    monkeypatch.setenv("BAYESGMM_NUM_THREADS", "3")

    def read(seconds):
        clock[0] += seconds
        yield 1

    pace, seen = tables.Pace(), []
    found = 3 if all_cores else 2
    for blocks in (8, 8, 2):
        pace.begin()
        for number in range(blocks):
            pace.reading(read(reading + 100 * (number == 0)))
            with pace.using(number):
                seen.append(threads.available_threads())
                # All cores take two thirds of the time.
                clock[0] += using * 2 / seen[-1]
    assert seen == [2] * tables.TRIAL + [found] * (18 - tables.TRIAL)
    assert threads.available_threads() == 3
    with threads.at_most(1), tables.Pace().using(0):
        assert threads.available_threads() == 1


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_a_pass_of_few_blocks_is_a_guide_to_the_next(seconds, monkeypatch):
    monkeypatch.setenv("BAYESGMM_NUM_THREADS", "2")

    def blocks():
        for value in (1.0, 2.0):
            time.sleep(seconds)
            yield np.full((5, 1), value)

    seen = []

    def use(X, v, block):
        seen.append(threads.available_threads())
        time.sleep(0.01)
        return X.sum()

    table = open_blocks(blocks)
    assert table.total(use) == table.total(use) == 15.0
    assert seen == ([1, 1, 2, 2] if seconds == 0.0 else [1, 1, 1, 1])


def test_an_error_of_what_is_done_with_a_block_ends_the_reading(frame):
    def fail(X, v, block):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_blocks([frame, frame]).total(fail)
    assert not [t for t in threading.enumerate() if t.name.startswith("bayesgmm-reader")]


@pytest.mark.parametrize(
    "text",
    [
        b",xy\nrow 1,1,2\nrow 2,3,4\n",
        b"a b\x1cc\n1 2 3\n4  5   6\n",
        b"a\x0cb,c\n1,2\n3,4\n",
        b"a,b\x85c\n1,2\n3,4\n",
        b",x,y\nr,1,2\ns,3,4\n",
    ],
    ids=["row names and no name", "separator of files", "form feed", "next line", "no name"],
)
def test_both_readers_take_the_same_columns(text, tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(text)
    np.testing.assert_array_equal(rows_of(open_blocks(path)), read_table(path).values)


@pytest.mark.parametrize(
    "content", [b"\n\x1c", b"\n \n\t\n", b"\xff\xfe\n\x00\n\x00"], ids=["separator", "blanks", "UTF-16"]
)
def test_text_without_a_row_is_empty_or_refused(content, tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    for read in (read_table, lambda path: open_blocks(path).total(moments)):
        with pytest.raises(DataError):
            read(path)


def test_an_array_without_rows_is_told_so(tmp_path):
    np.save(tmp_path / "none.npy", np.empty((0, 2)))
    with pytest.raises(DataError, match="no rows of data"):
        read_table(tmp_path / "none.npy")
    with pytest.raises(DataError, match="has no rows: there is nothing to fit"):
        open_blocks(tmp_path / "none.npy").total(moments)
    with open_source(tmp_path / "none.npy") as source:
        assert source.names == ["x1", "x2"]


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': True, 'shape': (4\t\x00\x00\x00\x00",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 2), }",
        b"{'descr': 3, 'fortran_order': False, 'shape': (2, 2), }",
        b"[" * 100,
    ],
    ids=["cut", "huge", "no type", "nested"],
)
def test_whatever_numpy_breaks_with_is_one_error(header, tmp_path):
    path = tmp_path / "data.npy"
    padded = header.ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(32))
    for read in (read_table, open_blocks):
        with pytest.raises(DataError, match="cannot read"):
            read(path)
    with pytest.raises(DataError, match="cannot read"), open_source(path):
        pass


TEXTS = {
    "plain": b"a,b\n1,2\n3,4\n5,6\n7,8\n",
    "no end of line": b"a,b\n1,2\n3,4\n5,6\n7,8",
    "returns": b"a,b\r\n1,2\r\n3,4\r\n5,6\r\n7,8\r\n",
    "blank lines": b"\n\na,b\n1,2\n\n\n3,4\n5,6\n\n7,8\n\n",
    "newlines in quotes": b'a,b,t\n1,2,"x\n\ny, ""z"""\n3,4,"\n"\n5,6,w\n7,8,"\r\n9,9,9\r\n"\n',
    "no header": b"1;2\n3;4\n5;6\n7;8\n",
    "row names": b"a b\nr1 1 2\nr2 3 4\nr3 5 6\nr4 7 8\n",
    "byte order mark": b"\xef\xbb\xbfa,b\n1,2\n3,4\n5,6\n7,8\n",
    "latin-1": "a,b,ü\n1,2,ö\n3,4,ä\n5,6,ß\n7,8,é\n".encode("latin-1"),
    "utf-16": "a,b\n1,2\n3,4\n5,6\n7,8\n".encode("utf-16"),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("block_bytes", [8, 1 << 20])
def test_text_is_split_where_records_begin(name, block_bytes, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_bytes(TEXTS[name])
    columns = None if name in ("no header", "row names") else ["a", "b"]
    table = open_blocks(tmp_path / "rows.csv", columns=columns)
    opened = tables.open_source
    monkeypatch.setattr(tables, "open_source", lambda path, **_: opened(path, block_bytes=block_bytes))
    expected = np.arange(1.0, 9.0).reshape(4, 2)
    for n in (1, 2, 3, 4, 50):
        pieces = table.split(n)
        assert len(pieces) == 1 if name == "utf-16" else n == 1 or 1 < len(pieces) <= max(n, 4)
        np.testing.assert_array_equal(np.concatenate([block for piece in pieces for block in piece]), expected)


def test_a_bad_row_of_a_part_of_a_text_is_named_by_its_line(tmp_path):
    text = 'a,b,t\n1,2,"x\ny"\n3,4,z\n\n5,6,z\n7,NA,z\n'
    (tmp_path / "rows.csv").write_text(text)
    pieces = open_blocks(tmp_path / "rows.csv", columns=["a", "b"]).split(4)
    assert len(pieces) > 2
    with pytest.raises(DataError, match=r"rows.csv: line 7, column 'b', in block 1: missing"):
        for piece in pieces:
            list(piece)
    (tmp_path / "rows.csv").write_text(text[: -len(",NA,z\n")])
    with pytest.raises(DataError, match=r"line 7, in block 1: the file ends in the middle of a row: 1 of 3 fields"):
        for piece in open_blocks(tmp_path / "rows.csv", columns=["a", "b"]).split(4):
            list(piece)
    (tmp_path / "rows.csv").write_text(text[: -len(",NA,z\n")] + ',8,"z\n')
    with pytest.raises(DataError, match="a quoted field that begins in line 7 does not end"):
        open_blocks(tmp_path / "rows.csv", columns=["a", "b"]).split(4)


@pytest.mark.parametrize("kind", ["C", "Fortran", "structured", "vector"])
def test_an_npy_file_is_split_by_rows(kind, tmp_path):
    rows = np.random.default_rng(0).standard_normal((101, 1 if kind == "vector" else 3))
    stored = {"C": rows, "Fortran": np.asfortranarray(rows), "vector": rows[:, 0]}.get(kind)
    if stored is None:
        stored = np.array([tuple(row) for row in rows], dtype=[("a", float), ("b", float), ("c", float)])
    np.save(tmp_path / "rows.npy", stored)
    table = open_blocks(tmp_path / "rows.npy", block_rows=7)
    for n in (1, 4, 1000):
        pieces = table.split(n)
        assert len(pieces) == min(n, 101)
        np.testing.assert_array_equal(np.concatenate([block for piece in pieces for block in piece]), rows)
    rows[77, 0] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(DataError, match=r"rows.npy: row 78, column 'x1', in block 1: missing \(NaN\)"):
        list(open_blocks(tmp_path / "rows.npy").split(4)[3])
