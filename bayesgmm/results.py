"""What the command does with a table: fit a mixture, write the folder of results, tell the user."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.exceptions import DataError, SamplingInterrupted
from bayesgmm.io import OutputFolder, Table, atomic_path, write_csv, write_text
from bayesgmm.large import LargeTable, progress
from bayesgmm.report.blocks import number

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client
    from rich.console import Console

    from bayesgmm.selection import Selection

__all__ = [
    "OUTPUTS",
    "Outcome",
    "SelectionOutcome",
    "Reported",
    "fit",
    "fit_folder",
    "print_outcome",
    "print_selection",
    "print_selection_task",
    "print_task",
    "report",
    "select",
    "selection_to_json",
    "to_json",
    "write",
    "write_selection",
]

OUTPUTS = ("posterior.nc", "fit.json", "summary.csv", "assignments.csv", "mixture.png", "report.html", "WARNING.txt")

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_SHOWN_ROWS = 30


@dataclass(frozen=True, eq=False)
class Outcome:
    """A fitted mixture and how the fit went.

    Attributes
    ----------
    estimator : GaussianMixture or BayesianGaussianMixture
        Fitted to ``table``.
    table : Table or LargeTable
        The data.
    method : str
        ``"nuts"``, ``"laplace"`` or ``"em"``.
    seconds : float
        Wall time of the fit, imports and compilation included.
    messages : tuple of str
        The package's own warnings.
    interrupted : str or None
        What was kept of an interrupted fit; None where it ran to its end.
    resumed : bool
        Whether it began where another had ended.
    """

    estimator: Any
    table: Table | LargeTable
    method: str
    seconds: float
    messages: tuple[str, ...] = ()
    interrupted: str | None = None
    resumed: bool = False

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One line a parameter, its name in the first column: EM beside the posterior, or EM with standard errors."""
        arguments = (_rows(self.table),) if self.method == "em" and not self.unfinished else ()
        return self.estimator.summary(*arguments).reset_index(names="parameter")

    @property
    def unfinished(self) -> bool:
        """Whether it was interrupted in passes that take long: no more of them are made."""
        return self.interrupted is not None and isinstance(self.table, LargeTable)

    @property
    def converged(self) -> bool:
        """Whether the diagnostics allow the results to be used."""
        if self.method == "em":
            return bool(self.estimator.converged_)
        return bool(self.estimator.diagnostics_.ok)

    @property
    def verdict(self) -> str:
        """The diagnostics in a sentence."""
        if self.method != "em":
            return str(self.estimator.diagnostics_.verdict)
        n = self.estimator.n_iter_
        return f"EM {'converged' if self.converged else 'did not converge'} in {n} iteration{'s' if n != 1 else ''}."

    @property
    def problems(self) -> tuple[str, ...]:
        """What speaks against the results: the number, and what to do."""
        found = [self.interrupted] if self.interrupted else []
        found += [] if self.method == "em" else self.estimator.diagnostics_.problems
        return tuple(dict.fromkeys(found))

    @property
    def mode_weights(self) -> list[dict[str, Any]]:
        """What each mode of the posterior holds, one record a mode; none where there is one mode."""
        return [] if self.method == "em" else [vars(weight) for weight in self.estimator.diagnostics_.mode_weights]

    @property
    def relabelling_agreement(self) -> dict[str, float]:
        """How often two ways to relabel give a draw the same order."""
        return {} if self.method == "em" else dict(self.estimator.diagnostics_.relabelling_agreement)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing and speaks against nothing."""
        found = [] if self.method == "em" else list(self.estimator.diagnostics_.notes)
        if self.method != "em" and isinstance(self.table, Table):
            from bayesgmm.inference.power_scaling import sensitivity_sentence

            found.append(sensitivity_sentence(self.estimator.prior_sensitivity()))
        found += ["EM went on from the fit that was there"] * self.resumed
        if isinstance(self.table, LargeTable):
            if self.method == "em" and not self.resumed:
                found.append(
                    f"the starts were made from, and first climbed on, a sample of {self.estimator.initialised_on_} of "
                    f"{self.table.n_rows} rows; then every iteration was over all rows"
                )
            found.append(
                "assignments.csv is not written for a table that is read in blocks: bayesgmm score assigns its rows"
            )
        return tuple(found)


def fit_folder(path: str, force: bool, reuse: bool = False) -> OutputFolder:
    """Folder of a fit and its tables, in which one that was there can be loaded until the new one can.

    Raises
    ------
    FileExistsError
        As :class:`bayesgmm.io.OutputFolder`.
    """
    from bayesgmm.persistence import MANIFEST, previous_kept

    return OutputFolder(path, force, OUTPUTS, reuse, guard=previous_kept, last=MANIFEST)


def _rows(table: Table | LargeTable) -> Any:
    """What an estimator takes of a table."""
    return table.blocks if isinstance(table, LargeTable) else table.to_frame()


def unfinished_fit(path: str, options: dict[str, Any]) -> Any:
    """A fit by EM in a folder of results, to go on from.

    Raises
    ------
    DataError
        If there is none, or it is of another number of components or another structure.
    """
    from bayesgmm import GaussianMixture
    from bayesgmm.persistence import load

    found = load(path)
    if not isinstance(found, GaussianMixture):
        raise DataError(f"{path} holds a posterior, not a fit by EM to go on from")
    for name, what in (("n_components", "K"), ("covariance_type", "covariance")):
        if getattr(found, name) != options[name]:
            raise DataError(f"the fit in {path} has {what} = {getattr(found, name)}, and {options[name]} is asked for")
    return found


def fit(
    table: Table | LargeTable,
    method: str,
    options: dict[str, Any],
    progressbar: bool = False,
    begin: Any = None,
    client: Client | None = None,
) -> Outcome:
    """Fit a mixture to a table.

    Parameters
    ----------
    table : Table or LargeTable
        The data.
    method : {"nuts", "laplace", "em"}
        How.
    options : dict
        Arguments of the estimator's constructor.
    progressbar : bool, default=False
        Whether to show the progress of sampling.
    begin : GaussianMixture, optional
        A fit by EM to go on from.
    client : distributed.Client, optional
        Of a cluster whose workers run the chains.

    Returns
    -------
    Outcome

    Raises
    ------
    DataError
        Where the columns are not those of the fit to go on from.
    SamplingInterrupted
        Where the user stopped it and no draws were complete.
    """
    from bayesgmm.persistence import data_hash, provenance

    started = time.perf_counter()
    interrupted = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        if method == "em":
            from bayesgmm import GaussianMixture

            estimator: Any = GaussianMixture(**options)
            if begin is not None:
                _go_on_from(begin, estimator, table)
        else:
            from bayesgmm import BayesianGaussianMixture

            estimator = BayesianGaussianMixture(method=method, progressbar=progressbar, **options)
        try:
            if method == "em" and isinstance(table, LargeTable):
                with progress(progressbar) as callback:
                    estimator.fit(table.blocks, callback=callback)
            elif client is not None:
                estimator.fit(_rows(table), client=client)
            else:
                estimator.fit(_rows(table))
            interrupted = getattr(estimator, "_interrupted", None)
        except SamplingInterrupted as stop:
            if stop.estimator is None:
                raise
            estimator, interrupted = stop.estimator, str(stop)
    if begin is not None:
        estimator.set_params(warm_start=False)
    if not (interrupted and isinstance(table, LargeTable)):
        large = isinstance(table, LargeTable)
        found = table.data_hash() if isinstance(table, LargeTable) else data_hash(table.values)
        estimator._provenance = provenance(table.source, table.columns, table.notes, found, large)
    return Outcome(
        estimator, table, method, time.perf_counter() - started, _messages(caught), interrupted, begin is not None
    )


def _go_on_from(begin: Any, estimator: Any, table: Table | LargeTable) -> None:
    """Start an estimator where another ended."""
    names = tuple(getattr(begin, "feature_names_in_", table.columns))
    if names != tuple(table.columns) or begin.n_features_in_ != len(names):
        raise DataError(
            f"the fit to go on from has the columns {', '.join(names)}, and the table {', '.join(table.columns)}"
        )
    estimator.set_params(warm_start=True)
    estimator._set(begin._parameters, begin.covariances_)


def _messages(caught: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(warning.message) for warning in caught if _is_ours(warning)))


def _is_ours(warning: warnings.WarningMessage) -> bool:
    """Whether a warning speaks to the user of the package, and not to the developers of a library."""
    if warning.category.__module__.startswith("bayesgmm"):
        return True
    # scikit-learn wraps `fit`, so that a warning about the caller's line can name the wrapper
    named = warning.filename.startswith(_PACKAGE) or warning.filename.endswith(os.path.join("sklearn", "base.py"))
    return named and issubclass(warning.category, UserWarning)


def write(outcome: Outcome, folder: Path) -> list[str]:
    """Write every file of the results.

    Parameters
    ----------
    outcome : Outcome
        The fit.
    folder : path
        An empty folder.

    Returns
    -------
    list of str
        The names of the files.

    Raises
    ------
    OSError
        Where the disk is full or cannot be written.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome.estimator.save(folder)
            write_csv(folder / "summary.csv", outcome.summary)
            if isinstance(outcome.table, Table):
                write_csv(folder / "assignments.csv", _assignments(outcome, outcome.table))
            _write_figure(outcome, folder / "mixture.png")
            _write_report(outcome, folder / "report.html")
            if outcome.interrupted or not outcome.converged:
                write_text(folder / "WARNING.txt", "\n".join((outcome.verdict, *outcome.problems)) + "\n")
    except OSError as error:
        raise OSError(f"cannot write the results: {error.strerror or error}") from error
    except Exception as error:
        # the netCDF library reports a full disk as an error of its own
        if shutil.disk_usage(folder).free < 1 << 20:
            raise OSError("cannot write the results: no space left on device") from error
        raise
    return sorted(entry.name for entry in folder.iterdir())


def _assignments(outcome: Outcome, table: Table) -> pd.DataFrame:
    """One line a row of data: its most probable component, the probability of each, and the log density."""
    import pandas as pd

    X = table.to_frame()
    responsibilities = outcome.estimator.predict_proba(X)
    columns: dict[str, Any] = {"row": table.rows, "component": responsibilities.argmax(axis=1)}
    columns |= {f"responsibility_{k}": responsibilities[:, k] for k in range(responsibilities.shape[1])}
    columns["log_density"] = outcome.estimator.score_samples(X)
    return pd.DataFrame(columns)


def _write_figure(outcome: Outcome, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from bayesgmm.plots import mixture

    table = outcome.table
    figure = mixture(outcome.estimator, table.sample if isinstance(table, LargeTable) else table.to_frame())
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _write_report(outcome: Outcome, path: Path) -> None:
    from bayesgmm.report.page import fit_page, write_report

    table = outcome.table
    rows = (table.to_frame(),) if outcome.method == "em" and isinstance(table, Table) else ()
    write_report(fit_page(outcome.estimator, *rows), path)


@dataclass(frozen=True)
class Reported:
    """A report that was written.

    Attributes
    ----------
    path : Path
    level : {"good", "plain", "caution", "bad"}
        Of its verdict; "bad" where diagnostics failed.
    verdict : str
    """

    path: Path
    level: str
    verdict: str


def report(folder: str | Path, out: str | Path | None = None, data: str | None = None, force: bool = False) -> Reported:
    """Write the report on a folder of results.

    Parameters
    ----------
    folder : path
        Written by :func:`write` or :func:`write_selection`.
    out : path, optional
        The file. Default: ``report.html`` in the folder; a report that stands there is replaced.
    data : str, optional
        Table with the rows of a fit by EM, which does not hold them.
    force : bool, default False
        Whether a file that is there is replaced, whatever it is.

    Returns
    -------
    Reported

    Raises
    ------
    DataError
        If the folder holds no results or damaged ones, or ``data`` are not those of the fit.
    FileExistsError
        If the file exists and must not be replaced.
    OSError
        If it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from bayesgmm.persistence import MANIFEST as FIT
    from bayesgmm.persistence import load
    from bayesgmm.report.page import check_target, fit_page, is_report, selection_page, write_report
    from bayesgmm.selection_files import load_selection
    from bayesgmm.sweep import MANIFEST as SELECTION

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name one that bayesgmm fit, demo or select has written")
    target = folder / "report.html" if out is None else Path(out)
    force = force or (out is None and is_report(target))
    check_target(target, force)
    if (folder / SELECTION).exists():
        selection = load_selection(folder)
        page = selection_page(selection, _given_rows(data, selection.provenance, selection.method == "em"))
    elif (folder / FIT).exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = load(folder)
        noted = getattr(fitted, "_provenance", None)
        page = fit_page(fitted, _given_rows(data, noted, not hasattr(fitted, "_draws")))
    else:
        raise DataError(f"{folder} holds no results: neither {FIT} nor {SELECTION} is there")
    return Reported(write_report(page, target, force), page.verdict.level, str(page.verdict))


def _given_rows(data: str | None, noted: Any, needed: bool) -> Any:
    """The rows that the user named, if they are those of the fit."""
    if data is None:
        return None
    if not needed:
        raise DataError("a posterior holds its own rows: leave --data out")
    from bayesgmm.io import read_table
    from bayesgmm.persistence import data_hash
    from bayesgmm.tables import is_several, read_all

    columns = None if noted is None else noted.get("columns")
    table = read_all(data, columns) if is_several(data) else read_table(data, columns)
    if noted is not None and data_hash(table.values) != noted["data_hash"]:
        raise DataError(f"{data} does not hold the rows that the mixture was fitted to: their hash is another")
    return table.to_frame()


def to_json(outcome: Outcome, path: Path, files: list[str]) -> str:
    """Return the results as one JSON object; what is not a finite number is null."""
    estimator = outcome.estimator
    return json.dumps(
        _plain(
            {
                "data": {
                    "source": outcome.table.source,
                    "n_rows": _n_rows(outcome.table),
                    "columns": outcome.table.columns,
                    "notes": outcome.table.notes,
                },
                "method": outcome.method,
                "covariance_type": estimator.covariance_type,
                "weights": estimator.weights_,
                "means": estimator.means_,
                "covariances": estimator.covariances_,
                "summary": outcome.summary.to_dict(orient="records"),
                "converged": outcome.converged,
                "verdict": outcome.verdict,
                "problems": outcome.problems,
                "notes": outcome.notes,
                "mode_weights": outcome.mode_weights,
                "relabelling_agreement": outcome.relabelling_agreement,
                "interrupted": outcome.interrupted,
                "warnings": outcome.messages,
                "seconds": outcome.seconds,
                "out": path,
                "files": files,
            }
        ),
        allow_nan=False,
    )


def _plain(value: Any) -> Any:
    """Turn a value into what JSON knows."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _console() -> Console:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            # whoever read the output has seen enough; the results are still to be written
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    # a pipe or a file has no width of its own: do not fold tables there
    return Terminal(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)


def _n_rows(table: Table | LargeTable) -> int:
    return table.n_rows if isinstance(table, LargeTable) else len(table.values)


def print_task(table: Table | LargeTable, method: str, options: dict[str, Any]) -> None:
    """Tell what is about to be done."""
    console = _console()
    _print_table(console, table)
    how = {"nuts": "EM, then NUTS", "laplace": "EM, then a Laplace approximation", "em": "EM"}[method]
    k = options["n_components"]
    structure = options.get("covariance_type", "full")
    console.print(f"{k} component{'s' if k > 1 else ''}, covariance {structure}: {how}")


def _print_table(console: Console, table: Table | LargeTable) -> None:
    n_rows, n_columns = _n_rows(table), len(table.columns)
    names = ", ".join(table.columns[:6]) + (", …" if n_columns > 6 else "")
    columns = "column" if n_columns == 1 else "columns"
    console.print(f"{table.source}: {n_rows} rows, {n_columns} {columns} ({names})")
    for note in table.notes:
        console.print(f"note: {note}")


def print_outcome(outcome: Outcome, path: Path, files: list[str]) -> None:
    """Tell the result: estimates, diagnostics, and where the files are."""
    from rich.table import Table as Grid

    console = _console()
    summary = outcome.summary.drop(columns=["median", "ess_tail"], errors="ignore")
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    for j, column in enumerate(summary.columns):
        if j == 0:
            grid.add_column(str(column), overflow="fold")
        else:
            grid.add_column(str(column), justify="right", no_wrap=True)
    for row in summary.head(_SHOWN_ROWS).itertuples(index=False):
        grid.add_row(*map(_cell, row))
    console.print()
    console.print(grid)
    if len(summary) > _SHOWN_ROWS:
        console.print(f"… {len(summary) - _SHOWN_ROWS} more in summary.csv")
    console.print()
    console.print(outcome.verdict, style="green" if outcome.converged else "bold red")
    for remark in (*outcome.problems, *outcome.notes):
        console.print(f"- {remark}")
    console.print(f"{outcome.seconds:.1f} s; {', '.join(files)} in {path}")


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float | np.floating) else str(value)


@dataclass(frozen=True, eq=False)
class SelectionOutcome:
    """A selection and how it went.

    Attributes
    ----------
    selection : Selection
        Of mixtures of ``table``.
    table : Table
        The data.
    seconds : float
        Wall time, imports and compilation included.
    messages : tuple of str
        The package's own warnings.
    """

    selection: Selection
    table: Table | LargeTable
    seconds: float
    messages: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What speaks against the result."""
        stopped = self.selection.interrupted
        remedy = "; the same command goes on from there"
        return (*((stopped + remedy,) if stopped else ()), *self.selection.doubtful)


def select(table: Table | LargeTable, options: dict[str, Any], progressbar: bool = False) -> SelectionOutcome:
    """Compare mixtures of a table.

    Parameters
    ----------
    table : Table
        The data.
    options : dict
        Arguments of :func:`bayesgmm.select`.
    progressbar : bool, default=False
        Whether to show the progress over models.

    Returns
    -------
    SelectionOutcome

    Raises
    ------
    DataError
        Where no model could be fitted.
    """
    from bayesgmm.persistence import data_hash, provenance
    from bayesgmm.selection import select as run

    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        labels = _labels(table)
        y = None if labels is None else labels.values
        selection = run(_rows(table), y=y, progressbar=progressbar, **options)
    large = isinstance(table, LargeTable)
    found = table.data_hash() if isinstance(table, LargeTable) else data_hash(table.values)
    origin = provenance(table.source, table.columns, table.notes, found, large)
    selection = replace(selection, provenance=origin)
    if not selection.picks and not selection.interrupted:
        raise DataError(selection.summary())
    return SelectionOutcome(selection, table, time.perf_counter() - started, _messages(caught))


def write_selection(outcome: SelectionOutcome, path: str | Path) -> list[str]:
    """Write the table and the figure beside the fits that the sweep has written.

    Parameters
    ----------
    outcome : SelectionOutcome
    path : path
        The folder of the sweep.

    Returns
    -------
    list of str
        The names of the files and folders of the selection.

    Raises
    ------
    OSError
        Where the disk is full or cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from bayesgmm.report.page import selection_page, write_report
    from bayesgmm.selection_files import keep
    from bayesgmm.sweep import MODELS, OUTPUTS

    folder, selection = Path(path), outcome.selection
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_csv(folder / "selection.csv", selection.table.reset_index())
            with atomic_path(folder / "selection.png") as temporary:
                selection.plot().savefig(temporary, dpi=150)
            keep(selection, folder)
            held = isinstance(outcome.table, Table) and selection.method == "em"
            rows = _rows(outcome.table) if held else None
            write_report(selection_page(selection, rows), folder / "report.html", overwrite=True)
            if outcome.problems:
                write_text(folder / "WARNING.txt", "\n".join(outcome.problems) + "\n")
            else:
                (folder / "WARNING.txt").unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"cannot write the results: {error.strerror or error}") from error
    return sorted(entry.name for entry in folder.iterdir() if entry.name in (*OUTPUTS, MODELS))


def selection_to_json(outcome: SelectionOutcome, path: str | Path, files: list[str]) -> str:
    """Return a selection as one JSON object; what does not apply, and what is not a finite number, is null."""
    selection = outcome.selection
    rows, labels = selection.table.reset_index().astype(object), _labels(outcome.table)
    return json.dumps(
        _plain(
            {
                "data": {
                    "source": outcome.table.source,
                    "n_rows": _n_rows(outcome.table),
                    "columns": outcome.table.columns,
                    "notes": outcome.table.notes,
                    "labels": None
                    if labels is None
                    else {"column": labels.column, "n_known": labels.n_known, "classes": labels.classes},
                },
                "method": selection.method,
                "criteria": selection.criteria,
                "models": rows.where(rows.notna(), None).to_dict(orient="records"),
                "picks": {
                    name: {"covariance_type": kind, "n_components": K} for name, (kind, K) in selection.picks.items()
                },
                "summary": selection.summary(),
                "notes": selection.notes,
                "problems": outcome.problems,
                "interrupted": selection.interrupted,
                "warnings": outcome.messages,
                "seconds": outcome.seconds,
                "out": str(path),
                "files": files,
            }
        ),
        allow_nan=False,
    )


def _labels(table: Table | LargeTable) -> Any:
    return None if isinstance(table, LargeTable) else table.labels


def print_selection_task(
    table: Table | LargeTable, method: str, n_components: list[int], covariance_types: list[str]
) -> None:
    """Tell what is about to be compared."""
    console = _console()
    _print_table(console, table)
    if (labels := _labels(table)) is not None:
        classes = ", ".join(map(str, labels.classes[:6])) + (", …" if len(labels.classes) > 6 else "")
        console.print(
            f"labels {labels.column}: {labels.n_known} of {len(labels.values)} rows known, {len(labels.classes)} classes ({classes})"
        )
    how = {"nuts": "EM and NUTS", "laplace": "EM and a Laplace approximation", "em": "EM"}[method]
    n_models = len(n_components) * len(covariance_types)
    ks = ", ".join(map(str, n_components))
    console.print(
        f"K = {ks}; covariance {', '.join(covariance_types)}: {n_models} model{'s' * (n_models > 1)} by {how}"
    )


_SHOWN_COLUMNS = (
    "n_parameters",
    "log_likelihood",
    "aic",
    "bic",
    "icl",
    "elpd_loo",
    "elpd_diff",
    "dse",
    "weight",
    "max_pareto_k",
    "log_evidence",
    "log_evidence_se",
    "probability",
    "accuracy",
    "log_loss",
    "ari",
    "max_rhat",
)
_SHORT_TITLES = {
    "n_parameters": "p",
    "log_likelihood": "log lik.",
    "aic": "AIC",
    "bic": "BIC",
    "icl": "ICL",
    "elpd_loo": "elpd LOO",
    "elpd_diff": "diff.",
    "weight": "weight",
    "max_pareto_k": "k̂",
    "log_evidence": "log evid.",
    "log_evidence_se": "±",
    "probability": "p(M)",
    "accuracy": "acc.",
    "log_loss": "log loss",
    "ari": "ARI",
    "max_rhat": "R-hat",
}


def print_selection(outcome: SelectionOutcome, path: str | Path, files: list[str]) -> None:
    """Tell the result: the table, what the criteria pick, and where the files are."""
    from rich.table import Table as Grid

    console, selection = _console(), outcome.selection
    for columns in _blocks(_selection_columns(selection), console.width):
        grid = Grid(box=None, pad_edge=False, header_style="bold")
        for title, _ in columns:
            if title in _TEXT:
                grid.add_column(title, overflow="fold")
            else:
                grid.add_column(title, justify="right" if title != "covariance" else "left", no_wrap=True)
        for row in zip(*(cells for _, cells in columns), strict=True):
            grid.add_row(*row)
        console.print()
        console.print(grid)
    console.print()
    console.print(selection.summary())
    for remark in (*outcome.problems, *selection.notes):
        console.print(f"- {remark}")
    console.print(f"{outcome.seconds:.1f} s; {', '.join(files)} in {path}")


_TEXT, _TEXT_WIDTH = ("picked by", "flags"), 24


def _selection_columns(selection: Selection) -> list[tuple[str, list[str]]]:
    """Titles and cells of what is shown; columns without anything in them are left out."""
    import pandas as pd

    from bayesgmm.tabulation import criterion_text

    table = selection.table
    picked: dict[Any, list[str]] = {}
    for name, key in selection.picks.items():
        picked.setdefault(key, []).append(name)
    columns = [("covariance", [str(kind) for kind, _ in table.index]), ("K", [str(K) for _, K in table.index])]
    for name in _SHOWN_COLUMNS:
        if table[name].notna().any():
            cells = ["–" if value is pd.NA else criterion_text(name, value) for value in table[name]]
            columns.append((_SHORT_TITLES.get(name, name), cells))
    columns.append(("picked by", [", ".join(picked.get(key, ())) for key in table.index]))
    columns.append(("flags", [str(flags) for flags in table["flags"]]))
    return [(title, cells) for title, cells in columns if any(cells)]


def _blocks(columns: list[tuple[str, list[str]]], width: int) -> list[list[tuple[str, list[str]]]]:
    """Columns shared out over tables that fit the width, each with the covariance and K in front."""
    from rich.cells import cell_len

    def needs(column: tuple[str, list[str]]) -> int:
        widest = max(map(cell_len, (column[0], *column[1])))
        return 2 + (min(widest, _TEXT_WIDTH) if column[0] in _TEXT else widest)

    front, rest = columns[:2], columns[2:]
    blocks = [list(front)]
    for column in rest:
        if len(blocks[-1]) > len(front) and sum(map(needs, [*blocks[-1], column])) - 2 > width:
            blocks.append(list(front))
        blocks[-1].append(column)
    return blocks
