"""Delimited text in bytes, against Python's own csv module, float and format."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from bayesgmm.delimited import (
    CODE,
    COMPLETE,
    FLOAT,
    INTEGER,
    MISSING,
    MORE_FIELDS,
    OPEN_QUOTE,
    PARSED,
    UNREAD,
    append_columns,
    parse_numbers,
    split_records,
)


def as_bytes(text):
    return np.frombuffer(text.encode(), dtype=np.uint8)


def split(text, n_fields, delimiter=",", final=True):
    return split_records(as_bytes(text), ord(delimiter), np.arange(n_fields), final)


def cells(records):
    data = records.data.tobytes()
    return [[data[a:b].decode() if a >= 0 else None for a, b in row] for row in records.bounds]


@pytest.fixture
def awkward():
    """Numbers over the whole range, halves and ties of rounding included."""
    rng = np.random.default_rng(0)
    everywhere = rng.standard_normal(20_000) * 10.0 ** rng.uniform(-307, 307, 20_000)
    edges = [
        0.0,
        -0.0,
        5e-324,
        1.7e308,
        9999999.5,
        0.00099999995,
        999999.95,
        1e7,
        123456.75,
        1234567.5,
        1234568.5,
        1e-4,
    ]
    edges += [9.9999995, 1e22, 1e23, -np.inf, np.inf]
    return np.concatenate([everywhere, rng.standard_normal(20_000), rng.integers(-(10**6), 10**6, 500) / 8, edges])


def test_numbers_are_read_to_the_nearest(awkward):
    texts = [*map(repr, awkward.tolist()), "1", "+2.50", "-.5", "3.", "1e5", "7E-3", "000123456789012345678"]
    records, *_ = split("\n".join(texts), 1)
    values, states = parse_numbers(records, ord("."))
    read = states[:, 0] == PARSED
    np.testing.assert_array_equal(values[read, 0], [float(text) for text, r in zip(texts, read, strict=True) if r])
    # left to Python: what is infinite or close to the end of the range, and large whole numbers halfway between two numbers, such as 1e23
    left = np.array([abs(float(text)) for text in texts])[~read]
    assert ((left > 1e260) | (left < 1e-250) | ((left > 2**53) & (left < 1e24))).all()
    assert (~read).mean() < 0.1


@pytest.mark.parametrize("text", ["abc", "1.2.3", "1e", "e5", "-", ".", "1 2", "0x1F", "1_000", "inf", "1,5"])
def test_what_is_no_plain_number_is_left_to_be_looked_at(text):
    records, *_ = split(text, 1, ";")
    assert parse_numbers(records, ord("."))[1][0, 0] == UNREAD


def test_empty_cells_are_missing_and_quotes_and_blanks_are_seen_through():
    records, *_ = split('"1.5"; 2 ;\n3;""\n', 3, ";")
    values, states = parse_numbers(records, ord("."))
    np.testing.assert_array_equal(states, [[PARSED, PARSED, MISSING], [PARSED, MISSING, MISSING]])
    np.testing.assert_array_equal(values[states == PARSED], [1.5, 2, 3])


def test_numbers_are_written_as_by_c(awkward):
    records, *_ = split("x\n" * len(awkward), 1)
    text = append_columns(
        records,
        awkward[:, None],
        np.array([FLOAT]),
        [],
        delimiter=ord(","),
        decimal=ord("."),
        n_fields=1,
        missing=b"",
        rows=np.arange(len(awkward)),
    )
    assert text.decode().splitlines() == [f"x,{value:.7g}" for value in awkward]


def test_words_integers_and_gaps_are_written():
    records, *_ = split("a,b\r\n\r\nc\n", 2)
    values = np.array([[0, -120, np.nan], [1, 10**12, 2.5]])
    text = append_columns(
        records,
        values,
        np.array([CODE, INTEGER, FLOAT]),
        [b"far", b"ok"],
        delimiter=ord(","),
        decimal=ord("."),
        n_fields=2,
        missing=b"",
        rows=np.array([0, -1, 1]),
    )
    assert text == b"a,b,far,-120,\r\n\r\nc,,ok,1000000000000,2.5\n"


def test_records_are_those_of_the_csv_module():
    rng = np.random.default_rng(1)
    pieces = ["a", "1.5", "", " x", '"q"', '"a,b"', '"two\nlines"', '"r\r\nn"', '"he said ""no"""', 'in"side', "é"]
    rows = [[pieces[i] for i in rng.integers(0, len(pieces), 3)] for _ in range(400)]
    text = "".join(",".join(row) + ("\r\n" if n % 3 else "\n") for n, row in enumerate(rows))
    records, consumed, _, outcome = split(text, 3)
    assert (outcome, consumed) == (COMPLETE, len(text.encode()))
    ours = [[next(csv.reader(io.StringIO(cell, newline="")), [""])[0] for cell in row] for row in cells(records)]
    assert ours == list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True))
    # line numbers: ends of lines before the record, those inside quotes included
    starts = text.encode()
    assert records.lines.tolist() == [starts[:start].count(b"\n") for start in records.starts]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_cut_anywhere_loses_nothing(newline):
    text = newline.join(["a,1", '"b' + newline + '",2', "", "c,3"])
    whole, *_ = split(text, 2)
    for cut in range(len(text) + 1):
        first, consumed, n_lines, _ = split(text[:cut], 2, final=False)
        rest, _, _, outcome = split(text[consumed:], 2)
        assert outcome == COMPLETE
        assert cells(first) + cells(rest) == cells(whole)
        assert [*first.lines, *(rest.lines + n_lines)] == whole.lines.tolist()


def test_blanks_part_fields_where_they_are_the_delimiter():
    records, *_ = split(' 1  2\t"a b" \n\n3 4 5\n', 3, " ")
    assert cells(records.rows()) == [["1", "2", '"a b"'], ["3", "4", "5"]]
    assert records.n_fields.tolist() == [3, 0, 3]


def test_faults_of_the_text_are_told_with_their_place():
    records, consumed, n_lines, outcome = split("1,2\n1,2,3\n", 2)
    assert (len(records), consumed, n_lines, outcome) == (1, 4, 1, MORE_FIELDS)
    records, consumed, n_lines, outcome = split('1,2\n1,"2\n', 2)
    assert (len(records), consumed, n_lines, outcome) == (1, 4, 1, OPEN_QUOTE)
