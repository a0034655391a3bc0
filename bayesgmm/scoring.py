"""What ``bayesgmm score`` does: a saved fit, new rows, and for each what the fit says of it, streamed."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bayesgmm.assignment import UNKNOWN
from bayesgmm.estimators.validation import LARGEST_SCALE
from bayesgmm.exceptions import DataError
from bayesgmm.formats import default_names
from bayesgmm.io import atomic_path, quoted
from bayesgmm.sinks import ParquetSink, TextSink
from bayesgmm.sources import FAULTS, Block, FrameSource, TextSource, open_source

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Scorer",
    "Scoring",
    "check_output",
    "make_scorer",
    "match_columns",
    "print_scoring",
    "score",
    "scoring_to_json",
]

DEFAULT_RESPONSIBILITY, DEFAULT_DRAWS = 0.9, 100


@dataclass(frozen=True, eq=False)
class Scorer:
    """A fit with its threshold settled.

    Attributes
    ----------
    table : callable
        Rows (n, D) to a DataFrame of n rows: floats, whole numbers and words.
    features : tuple of str or None
        Names of the columns that it was fitted to; None where it does not know them.
    n_features : int
    log_threshold : float
        Log density below which a row is far.
    false_alarm : float
        Share of the model's own rows below it.
    draws, all_draws : int or None
        Draws used, of how many; None of an EM fit.
    converged : bool
        Whether the fit's own diagnostics allow it to be used.
    verdict : str
        They in a sentence.
    messages : tuple of str
        What the package warned of.
    """

    table: Callable[[NDArray[np.float64]], pd.DataFrame]
    features: tuple[str, ...] | None
    n_features: int
    log_threshold: float
    false_alarm: float
    draws: int | None
    all_draws: int | None
    converged: bool
    verdict: str
    messages: tuple[str, ...] = ()


@dataclass(eq=False)
class Scoring:
    """What was written, counted.

    Attributes
    ----------
    source : str
    out : str
    scorer : Scorer
    columns : list of str
        The columns of results.
    notes : list of str
        What was decided while reading and the user should know.
    rows, far, small_component, ambiguous : int
        Rows in all, and by what is said of them.
    marked : dict of str to int
        Rows without a result, by their fault.
    seconds : float
    """

    source: str
    out: str
    scorer: Scorer
    columns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int = 0
    far: int = 0
    small_component: int = 0
    ambiguous: int = 0
    marked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAULTS[1:], 0))
    seconds: float = 0.0

    def count(self, results: pd.DataFrame) -> None:
        """Add a block's results."""
        self.rows += len(results)
        self.far += int((results["kind"] == "far").sum())
        self.small_component += int((results["kind"] == "small component").sum())
        self.ambiguous += int((results["reason"] == "ambiguous").sum())
        for fault in self.marked:
            self.marked[fault] += int((results["reason"] == fault).sum())


def make_scorer(
    path: str | Path,
    *,
    false_alarm: float | None = None,
    f_min: float | None = None,
    log_f_min: float | None = None,
    min_responsibility: float = DEFAULT_RESPONSIBILITY,
    n_draws: int = DEFAULT_DRAWS,
    seed: int = 0,
) -> Scorer:
    """Load a fit and settle its threshold.

    Parameters
    ----------
    path : str or path
        A folder that ``bayesgmm fit`` or :func:`bayesgmm.save` wrote.
    false_alarm, f_min, log_f_min : float, optional
        The threshold, as :class:`bayesgmm.AnomalyDetector` takes it.
    min_responsibility : float, default 0.9
        Highest responsibility below which a row's component is ambiguous.
    n_draws : int, default 100
        Draws of a posterior that are used, evenly thinned.
    seed : int, default 0
        Of the rows simulated for the tail probability.

    Returns
    -------
    Scorer

    Raises
    ------
    DataError
        Where the folder holds no fit.
    ValueError
        Where the threshold is not one that a density can have.
    """
    import pandas as pd
    from sklearn.frozen import FrozenEstimator

    from bayesgmm.anomaly import AnomalyDetector
    from bayesgmm.persistence import load

    fit = load(path)
    detector = AnomalyDetector(
        FrozenEstimator(fit),
        false_alarm=false_alarm,
        f_min=f_min,
        log_f_min=log_f_min,
        n_draws=n_draws,
        random_state=seed,
    )

    names = getattr(fit, "feature_names_in_", None)

    def table(X: NDArray[np.float64]) -> pd.DataFrame:
        rows = X if names is None else pd.DataFrame(X, columns=names, copy=False)
        return detector.table(rows, min_responsibility=min_responsibility)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        detector.fit(None)
        table(np.ascontiguousarray(fit.means_[:1], dtype=np.float64))
    diagnostics = getattr(fit, "diagnostics_", None)
    draws = getattr(fit, "_draws", None)
    converged = bool(fit.converged_ if diagnostics is None else diagnostics.ok)
    return Scorer(
        table,
        None if names is None else tuple(map(str, names)),
        int(fit.n_features_in_),
        float(detector.offset_),
        float(detector.false_alarm_),
        None if draws is None else len(draws.thinned(n_draws).flat()[0]),
        None if draws is None else len(draws.flat()[0]),
        converged,
        ("EM did not converge" if diagnostics is None else str(diagnostics.verdict)) if not converged else "",
        tuple(dict.fromkeys(str(warning.message) for warning in caught)),
    )


def check_output(source: str, out: str, force: bool) -> None:
    """Refuse an output that would do harm, before anything is read.

    Raises
    ------
    DataError
        Where ``out`` is the input, a folder, in no folder, or of a format that is not written.
    FileExistsError
        Where it exists and is not to be overwritten.
    """
    if out == "-":
        return
    path = Path(out)
    if path.is_dir():
        raise DataError(f"cannot write to {out}: it is a folder; name a file")
    if path.exists() and not path.is_file():
        raise DataError(f"cannot write to {out}: it is no file; --out - writes to standard output")
    if path.suffix.lower() == ".npy":
        raise DataError(f"cannot write to {out}: .npy holds no words; name a .csv, .tsv or .parquet file")
    if not path.absolute().parent.is_dir():
        raise DataError(f"cannot write to {out}: there is no folder {path.parent}")
    if source != "-" and path.exists() and os.path.exists(source) and os.path.samefile(source, out):
        raise DataError(f"{out} is the input itself: name another file for the results")
    if path.exists() and not force:
        raise FileExistsError(f"{out} exists; name another file or add --force")


def match_columns(
    source: TextSource | FrameSource, scorer: Scorer, chosen: Sequence[str] | None = None
) -> tuple[list[int], list[str]]:
    """Find the features of a fit among the columns of a table.

    Parameters
    ----------
    source : TextSource or FrameSource
    scorer : Scorer
    chosen : sequence of str, optional
        The columns that hold the features, in their order; by default those of the same names. Where the table or the fit has no names,
        they are told by position.

    Returns
    -------
    columns : list of int
        Places in ``source.names``.
    notes : list of str

    Raises
    ------
    DataError
        Where columns are missing (all are named), appear twice, or are not as many as the features.
    """
    features, names, D = scorer.features, source.names, scorer.n_features
    if chosen is not None and len(chosen) != D:
        raise DataError(f"--columns names {len(chosen)}, but the fit has {D}: {quoted(features or default_names(D))}")
    wanted = chosen if chosen is not None else features or default_names(D)
    missing = [name for name in wanted if name not in names]
    if missing:
        unnamed = not source.named or features in (None, tuple(default_names(D)))
        candidates = source.candidates
        if chosen is None and unnamed and len(candidates) == D:
            note = "the columns are taken in the order of the fit's"
            return candidates, [f"{note}: {quoted(features)}" if features else note]
        if chosen is None and unnamed:
            raise DataError(
                f"{source.name} has {len(candidates)} columns, and the fit {D} features ({quoted(wanted)}): without names they are told "
                "by position, and must be as many; or name them with --columns"
            )
        many = "columns" if len(missing) > 1 else "column"
        raise DataError(
            f"{source.name} lacks the {many} {quoted(missing)} of the fit's {quoted(wanted)}; its columns are {quoted(names)}"
            if chosen is None
            else f"{source.name} has no {many} {quoted(missing)}; its columns are {quoted(names)}"
        )
    twice = [name for name in wanted if list(names).count(name) > 1 or list(wanted).count(name) > 1]
    if twice:
        raise DataError(f"{source.name}: the column {quoted(dict.fromkeys(twice))} appears twice")
    return [list(names).index(name) for name in wanted], []


def score(
    source: str,
    out: str,
    scorer: Scorer,
    *,
    columns: Sequence[str] | None = None,
    prefix: str = "",
    strict: bool = False,
    progressbar: bool = False,
    **sizes: int,
) -> Scoring:
    """Score a table of any length, a block at a time.

    Parameters
    ----------
    source, out : str
        Paths; ``"-"`` is standard input, or output.
    scorer : Scorer
    columns : sequence of str, optional
        The columns that hold the features, in their order.
    prefix : str, default ""
        Put before the names of the columns of results.
    strict : bool, default False
        Whether a value that is not a finite number is an error; otherwise its row is marked.
    progressbar : bool, default False
        Whether to show progress on standard error.
    **sizes
        ``block_bytes`` and ``block_rows`` of :func:`bayesgmm.sources.open_source`.

    Returns
    -------
    Scoring

    Raises
    ------
    DataError
        Where the table cannot be read or lacks columns, or has bad values under ``strict``. A file ``out`` is then as it was.
    """
    begin = time.perf_counter()
    with ExitStack() as stack:
        rows = stack.enter_context(open_source(source, **sizes))
        features, notes = match_columns(rows, scorer, columns)
        rows.choose(features)
        header = _results(
            scorer,
            Block(np.empty((0, scorer.n_features)), np.empty((0, scorer.n_features), np.int8), np.empty(0, np.int64)),
        )
        names = [prefix + name for name in header.columns]
        taken = [name for name in names if rows.named and name in rows.names]
        if taken:
            raise DataError(
                f"{rows.name} has {'columns' if len(taken) > 1 else 'a column'} named as results are, {quoted(taken)}: "
                "give the results' names a beginning of their own with --prefix"
            )
        if isinstance(rows, TextSource):
            notes = [*rows.layout.notes, *notes]
            if not rows.named and not out.lower().endswith((".parquet", ".pq")):
                notes.append("no header, so none is written")
        found = Scoring(rows.name, "standard output" if out == "-" else out, scorer, names, notes)
        sink = stack.enter_context(_open_sink(out, rows, features))
        advance = stack.enter_context(_progress(rows)) if progressbar else None
        sink.begin(header.set_axis(names, axis=1))
        for block in rows.blocks():
            if strict:
                _check(rows, block, features)
            results = _results(scorer, block)
            found.count(results)
            sink.write(block, results.set_axis(names, axis=1))
            if advance is not None:
                advance(found.rows)
        sink.close()
    found.seconds = time.perf_counter() - begin
    return found


def _results(scorer: Scorer, block: Block) -> pd.DataFrame:
    """What is said of every row of a block; marked rows have a reason and component −1 alone."""
    fault = np.where(
        block.faults.any(axis=1), block.faults[np.arange(len(block.faults)), (block.faults > 0).argmax(axis=1)], 0
    )
    good = np.flatnonzero(fault == 0)
    values = block.values if len(good) == len(fault) else block.values[good]
    if not len(good):
        # no rows, but the same columns
        return _spread(scorer.table(np.zeros((1, scorer.n_features))).iloc[:0], good, fault)
    # the largest numbers that can be squared; beyond them a density is zero in floating point
    beyond = (np.abs(values) > LARGEST_SCALE).any(axis=1)
    if beyond.any():
        values = np.clip(values, -LARGEST_SCALE, LARGEST_SCALE)
    results = scorer.table(np.ascontiguousarray(values))
    if beyond.any():
        results.loc[beyond, ["log_density", "tail_probability"]] = [-np.inf, 0.0]
    return results if len(good) == len(fault) else _spread(results, good, fault)


def _spread(results: pd.DataFrame, good: NDArray[np.int64], fault: NDArray[np.int8]) -> pd.DataFrame:
    import pandas as pd

    n = len(fault)
    columns: dict[str, Any] = {}
    for name in results.columns:
        cells = results[name].to_numpy()
        empty: Any = {"f": np.nan, "i": UNKNOWN}.get(cells.dtype.kind)
        columns[name] = np.full(n, empty, dtype=cells.dtype if cells.dtype.kind in "fi" else object)
        columns[name][good] = cells
    bad = fault > 0
    columns["reason"][bad] = np.array(FAULTS, dtype=object)[fault[bad]]
    return pd.DataFrame(columns)


def _check(rows: TextSource | FrameSource, block: Block, features: list[int]) -> None:
    bad = np.argwhere(block.faults > 0)
    if not len(bad):
        return
    row, column = map(int, bad[0])
    what = FAULTS[block.faults[row, column]]
    shown = "" if what == "missing" else f", {rows.cell(block, row, column)[:40]!r}"
    raise DataError(
        f"{rows.name}, {rows.place} {block.places[row]}, column {rows.names[features[column]]!r}: {what}{shown}; "
        "without --strict such rows are kept and marked"
    )


@contextmanager
def _open_sink(out: str, rows: TextSource | FrameSource, features: list[int]) -> Iterator[TextSink | ParquetSink]:
    suffix = Path(out).suffix.lower()
    try:
        if out == "-":
            yield TextSink(sys.stdout.buffer, rows)
            return
        with atomic_path(out) as temporary:
            if suffix in (".parquet", ".pq"):
                yield ParquetSink(temporary, rows, features)
            else:
                with open(temporary, "wb") as stream:
                    yield TextSink(stream, rows, "\t" if suffix == ".tsv" else ",")
    except BrokenPipeError:
        raise
    except OSError as error:
        # the temporary name says nothing to the user
        what = os.strerror(error.errno) if error.errno else str(error)
        where = "standard output" if out == "-" else out
        raise DataError(f"cannot write to {where}: {what}") from error


@contextmanager
def _progress(rows: TextSource | FrameSource) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    layout = (SpinnerColumn(), BarColumn(), TextColumn("{task.fields[rows]:,} rows"), TimeElapsedColumn())
    with Progress(*layout, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None if rows.progress is None else 1.0, rows=0)

        def advance(n_rows: int) -> None:
            bar.update(task, completed=rows.progress, rows=n_rows)

        yield advance


def scoring_to_json(found: Scoring) -> str:
    """Return the summary as one JSON object; what is not a finite number is null."""
    scorer = found.scorer
    threshold = scorer.log_threshold
    return json.dumps(
        {
            "source": found.source,
            "out": found.out,
            "columns": found.columns,
            "notes": found.notes,
            "rows": found.rows,
            "far": found.far,
            "small_component": found.small_component,
            "ambiguous": found.ambiguous,
            "marked": found.marked,
            "log_threshold": threshold if np.isfinite(threshold) else None,
            "false_alarm": scorer.false_alarm,
            "draws": scorer.draws,
            "all_draws": scorer.all_draws,
            "converged": scorer.converged,
            "warnings": list(scorer.messages),
            "seconds": round(found.seconds, 3),
        },
        allow_nan=False,
    )


def print_scoring(found: Scoring) -> None:
    """Tell on standard error what was counted, by which threshold, and where it is."""
    scorer, n = found.scorer, found.rows

    def share(count: int) -> str:
        return f"{count:,}" + (f" ({100 * count / n:.3g} %)" if n else "")

    lines = [
        f"{n:,} {'row' if n == 1 else 'rows'} of {found.source} in {found.seconds:.1f} s"
        if n
        else f"{found.source} has no rows"
    ]
    lines += found.notes
    lines += [
        f"far from every component  {share(found.far)}",
        f"in a small component      {share(found.small_component)}",
        f"ambiguous                 {share(found.ambiguous)}",
    ]
    marked = ", ".join(f"{fault} {count:,}" for fault, count in found.marked.items() if count)
    if marked:
        lines.append(f"marked, without a result  {share(sum(found.marked.values()))}: {marked}")
    lines.append(
        f"threshold                 log density {scorer.log_threshold:.6g}, below which lie {100 * scorer.false_alarm:.3g} % of the "
        "model's own rows"
    )
    if scorer.draws is not None and scorer.all_draws is not None:
        more = ", --draws N for more" if scorer.draws < scorer.all_draws else ""
        lines.append(f"posterior                 {scorer.draws} of {scorer.all_draws} draws{more}")
    lines.append(f"written to {found.out}")
    print("\n".join(lines), file=sys.stderr)
