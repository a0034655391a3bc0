"""Rows out, block by block, with columns of results beside them: as text, or as Parquet."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from bayesgmm.delimited import CODE, FLOAT, INTEGER, Records, append_columns, split_records
from bayesgmm.exceptions import DataError
from bayesgmm.formats import fields
from bayesgmm.sources import Block, FrameSource, TextSource

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ParquetSink", "TextSink"]


class TextSink:
    """Delimited text: what was text stays so byte for byte, with the results appended to each line.

    Parameters
    ----------
    stream : binary file
    source : TextSource or FrameSource
        Where the rows come from; its delimiter, decimal mark, encoding and ends of lines are kept.
    delimiter : str, default ","
        For rows that were no text.
    """

    def __init__(self, stream: BinaryIO, source: TextSource | FrameSource, delimiter: str = ",") -> None:
        self._stream, self._source = stream, source
        self._delimiter, self._decimal, self._n_fields = delimiter, ".", len(source.names)
        self._codec = None
        if isinstance(source, TextSource):
            self._delimiter, self._decimal = source.layout.delimiter, source.layout.decimal
            self._n_fields = source.n_fields
            if source.byte_order_mark:
                self._codec = "utf-16-le" if source.byte_order_mark == codecs.BOM_UTF16_LE else "utf-16-be"
                self._stream.write(source.byte_order_mark)
        # an empty field between blanks would be none
        self._missing = b"NA" if self._delimiter == " " else b""

    def begin(self, results: pd.DataFrame) -> None:
        """Write the header, where there is one."""
        source = self._source
        names = self._delimiter.join(map(self._quoted, results.columns))
        if isinstance(source, FrameSource):
            header = self._text_of(source, None) if source.named else b""
            self._write(header.rstrip(b"\n") + f"{self._delimiter}{names}\n".encode() if header else b"")
        elif source.named:
            self._write(source.header + f"{self._delimiter}{names}".encode(source.codec) + source.newline)
        else:
            self._write(source.before_rows)

    def write(self, block: Block, results: pd.DataFrame) -> None:
        """Write the rows of a block with the results of each."""
        records = block.records if block.records is not None else self._records(block)
        is_row = records.n_fields > 0
        values, kinds, words = _coded(results)
        self._write(
            append_columns(
                records,
                values,
                kinds,
                [self._quoted(word).encode() for word in words],
                delimiter=ord(self._delimiter),
                decimal=ord(self._decimal),
                n_fields=self._n_fields,
                missing=self._missing,
                rows=np.where(is_row, np.cumsum(is_row) - 1, -1),
            )
        )

    def close(self) -> None:
        """Hand on what is held back."""
        self._stream.flush()

    def _write(self, text: bytes) -> None:
        self._stream.write(text if self._codec is None else text.decode("utf-8").encode(self._codec))

    def _quoted(self, word: str) -> str:
        special = self._delimiter in word or '"' in word or "\n" in word
        return '"' + word.replace('"', '""') + '"' if special else word

    def _records(self, block: Block) -> Records:
        text = self._text_of(self._source, block)
        slots = np.full(self._n_fields, -1, dtype=np.int64)
        records, *_ = split_records(np.frombuffer(text, dtype=np.uint8), ord(self._delimiter), slots, True)
        if len(block.values) != len(records.rows()):
            # a row whose only cell is empty looks like a blank line; it is a row all the same
            records.n_fields[:] = np.maximum(records.n_fields, 1)
        return records

    def _text_of(self, source: Any, block: Block | None) -> bytes:
        import pandas as pd

        frame = pd.DataFrame(columns=source.names) if block is None else block.frame
        assert frame is not None
        text: str = frame.to_csv(sep=self._delimiter, index=False, header=block is None, lineterminator="\n")
        return text.encode()


class ParquetSink:
    """A Parquet file, a row group a block.

    Columns that were Parquet stay as they were. Of text, the columns that were read as numbers become numbers (null where there is no
    number), and the others stay text (null where the field is empty).

    Parameters
    ----------
    path : str or path
    source : TextSource or FrameSource
    features : sequence of int
        Columns of the source, by place, that were read as numbers.
    """

    def __init__(self, path: str | Path, source: TextSource | FrameSource, features: list[int]) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise DataError(
                "cannot write Parquet without pyarrow; install it with pip install 'bayesgmm[parquet]'"
            ) from error
        self._pa, self._pq = pa, pq
        self._path, self._source, self._features = path, source, features
        self._writer: Any = None

    def begin(self, results: pd.DataFrame) -> None:
        """Open the file: only now are the columns known."""
        pa, source = self._pa, self._source
        types = {"f": pa.float64(), "i": pa.int64(), "O": pa.string()}
        added = [pa.field(name, types[_kind(results[name])]) for name in results.columns]
        if isinstance(source, FrameSource) and source.schema is not None:
            self._columns = source.schema
        elif isinstance(source, FrameSource):
            self._columns = None
        else:
            names = [""] * source.row_names + source.names
            numbers = {source.row_names + j for j in self._features}
            self._columns = pa.schema(
                [pa.field(name, pa.float64() if j in numbers else pa.string()) for j, name in enumerate(names)]
            )
        self._added = pa.schema(added)
        if self._columns is not None:
            self._open()

    def _open(self) -> None:
        schema = self._columns
        for field in self._added:
            schema = schema.append(field)
        self._schema, self._writer = schema, self._pq.ParquetWriter(self._path, schema)

    def write(self, block: Block, results: pd.DataFrame) -> None:
        """Write the rows of a block with the results of each."""
        pa = self._pa
        if block.records is not None:
            arrays = self._cells(block)
        elif block.batch is not None:
            arrays = list(block.batch.columns)
        else:
            batch = pa.RecordBatch.from_pandas(block.frame, preserve_index=False)
            arrays = list(batch.columns)
            if self._columns is None:
                self._columns = batch.schema.remove_metadata()
        if self._writer is None:
            self._open()
        for field in self._added:
            arrays.append(pa.array(results[field.name].to_numpy(), type=field.type, from_pandas=True))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the end of the file."""
        if self._writer is None:
            self._columns = self._pa.schema([self._pa.field(name, self._pa.float64()) for name in self._source.names])
            self._open()
        self._writer.close()

    def _cells(self, block: Block) -> list[Any]:
        source, pa = self._source, self._pa
        assert isinstance(source, TextSource)
        assert block.records is not None
        rows, data = block.records.rows(), block.records.data.tobytes()
        feature = {source.row_names + j: place for place, j in enumerate(self._features)}
        arrays = []
        for j in range(source.n_fields):
            if j in feature:
                arrays.append(pa.array(block.values[:, feature[j]], type=pa.float64(), from_pandas=True))
                continue
            bounds = rows.bounds[:, j].tolist()
            texts = (data[begin:end].decode(source.codec, "replace") if end > begin else None for begin, end in bounds)
            cells = [fields(text, source.layout.delimiter)[0] if text and text[0] == '"' else text for text in texts]
            arrays.append(pa.array(cells, type=pa.string()))
        return arrays


def _kind(column: pd.Series) -> str:
    return column.dtype.kind if column.dtype.kind in "fi" else "O"


def _coded(results: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Columns as one array of numbers, their kinds, and the words that the numbers of words stand for."""
    import pandas as pd

    values, kinds = np.empty(results.shape), np.empty(results.shape[1], dtype=np.int64)
    words: list[str] = []
    for j, name in enumerate(results.columns):
        column = results[name]
        kind = _kind(column)
        kinds[j] = {"f": FLOAT, "i": INTEGER, "O": CODE}[kind]
        if kind != "O":
            values[:, j] = column.to_numpy()
            continue
        codes, found = pd.factorize(column.to_numpy(dtype=object))
        values[:, j] = np.where(codes < 0, np.nan, codes + len(words))
        words += list(map(str, found))
    return values, kinds, words
