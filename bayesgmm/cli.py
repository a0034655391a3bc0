"""The ``bayesgmm`` command: a table in, a folder of results out.

Exit codes: 0 done; 1 the data or the run is at fault, with one line on standard error; 2 wrong usage; 3 done, but the
convergence diagnostics failed (the results are written and marked); 130 interrupted.
"""

from __future__ import annotations

import _thread
import argparse
import csv
import json
import logging
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from bayesgmm import __version__
from bayesgmm.exceptions import ClusterError, DataError

if TYPE_CHECKING:
    from bayesgmm.io import OutputFolder, Table
    from bayesgmm.large import LargeTable

DONE, AT_FAULT, USAGE, NOT_CONVERGED, INTERRUPTED = 0, 1, 2, 3, 130

_SAMPLING_OPTIONS = ("draws", "chains", "tune", "target_ess", "mode_weights", "relabelling")
_STRUCTURES = ("full", "tied", "diag", "spherical")
_EM_CRITERIA = ("aic", "aicc", "bic", "icl")
_POSTERIOR_CRITERIA = ("waic", "loo", "evidence")
_LABEL_CRITERIA = ("accuracy", "log_loss", "ari")


class _Parser(argparse.ArgumentParser):
    """A parser that names the options which would have been accepted."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            allowed = sorted(option for option in self._option_string_actions if option.startswith("--"))
            message = f"{message}; the options are {', '.join(allowed)}"
        super().error(message)


def _integer(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, not {text!r}")
        return int(text)

    return parse


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, not {text!r}")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, not {text!r}")
    return value


def _tune(text: str) -> int | str:
    return text if text == "auto" else _integer(10)(text)


def _numbers_of_components(text: str) -> list[int]:
    """Read ``1-6`` or ``1,3,5-8``."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise argparse.ArgumentTypeError(f"expected numbers of components such as 1-6 or 2,4,8, not {text!r}")
        found |= set(range(int(first), int(last) + 1))
    return sorted(found)


def _of(*allowed: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if name not in allowed]
        if unknown or not names:
            raise argparse.ArgumentTypeError(f"choose from {', '.join(allowed)}, not {', '.join(unknown) or 'nothing'}")
        return list(dict.fromkeys(names))

    return parse


def _names(text: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line, without importing anything that takes time."""
    parser = _Parser(
        prog="bayesgmm",
        description="Gaussian mixtures with uncertainty: EM, and from its modes a full posterior.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bayesgmm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    common = _Parser(add_help=False, allow_abbrev=False)
    common.add_argument("--quiet", action="store_true", help="print nothing but errors and warnings")
    common.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    common.add_argument("--force", action="store_true", help="write into a folder that is not empty")

    fit = commands.add_parser(
        "fit",
        parents=[common],
        allow_abbrev=False,
        help="fit a mixture to a table",
        description="Fit a Gaussian mixture to the numeric columns of a table and write the results into a folder: "
        "posterior.nc, fit.json, summary.csv, assignments.csv, mixture.png and report.html.",
        epilog="Exit codes: 0 done; 1 the data or the run is at fault; 2 wrong usage; 3 done, but the convergence "
        "diagnostics failed (the results are written and marked); 130 interrupted.",
    )
    fit.add_argument(
        "data",
        metavar="DATA",
        help="CSV, TSV, Parquet or .npy, a folder of such files, or a pattern in quotes such as 'data/*.parquet'; - reads standard input",
    )
    fit.add_argument(
        "-k", "--components", type=_integer(1), required=True, metavar="K", help="number of components of the mixture"
    )
    fit.add_argument("--out", required=True, metavar="DIR", help="folder for the results; made where it does not exist")
    fit.add_argument("--columns", type=_names, metavar="A,B", help="columns to use (default: all)")
    fit.add_argument(
        "--covariance",
        choices=_STRUCTURES,
        default="full",
        help="structure of the covariance matrices (default: full)",
    )
    fit.add_argument(
        "--method",
        choices=("nuts", "laplace", "em"),
        help="nuts: posterior by sampling; laplace: by an approximation; em: maximum likelihood (default: nuts; laplace on a cluster)",
    )
    fit.add_argument(
        "--resume",
        action="store_true",
        help="with --method em: go on from the fit in DIR, which was interrupted, and put the new one in its place",
    )
    _add_place_options(
        fit, "its workers read DATA, a file, folder or pattern; of NUTS on up to 1 GiB each runs a chain at a time"
    )
    _add_sampling_options(fit)
    fit.add_argument(
        "--mode-weights",
        choices=("evidence", "stacking", "none"),
        help="what draws of separate modes are combined by (default: evidence; none: each has as many draws as chains had there)",
    )
    fit.add_argument(
        "--relabelling",
        choices=("mode", "ecr", "stephens"),
        help="how draws are put in one order of the components (default: mode)",
    )
    fit.set_defaults(parser=fit, run=_fit)

    select = commands.add_parser(
        "select",
        parents=[common],
        allow_abbrev=False,
        help="compare numbers of components and covariance structures",
        description="Fit mixtures over numbers of components and covariance structures to the numeric columns of a table, and put "
        "all criteria side by side: selection.csv, selection.png, report.html, and every fit in "
        "models/. A run that was stopped goes on when the "
        "same command is given again.",
        epilog="Exit codes: 0 done; 1 the data or the run is at fault; 2 wrong usage; 3 done, but a criterion picks a model whose "
        "convergence diagnostics failed (the results are written and marked); 130 interrupted (what is finished is kept).",
    )
    select.add_argument(
        "data",
        metavar="DATA",
        help="CSV, TSV, Parquet or .npy, a folder of such files, or a pattern in quotes such as 'data/*.parquet'; - reads standard input",
    )
    select.add_argument(
        "-k",
        "--components",
        type=_numbers_of_components,
        default=list(range(1, 7)),
        metavar="K",
        help="numbers of components, such as 1-6 or 2,4,8 (default: 1-6)",
    )
    select.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the results; made where it does not exist"
    )
    select.add_argument("--columns", type=_names, metavar="A,B", help="columns to use (default: all)")
    select.add_argument(
        "--labels",
        metavar="COLUMN",
        help="a column of classes, numbers or text, known for some rows (empty, NA and -1 are unknown); it is not fitted: how well "
        "components predict it is cross-validated (accuracy, log loss, adjusted Rand index)",
    )
    select.add_argument(
        "--covariance",
        type=_of(*_STRUCTURES),
        default=list(_STRUCTURES),
        metavar="A,B",
        help=f"structures of the covariance matrices, of {', '.join(_STRUCTURES)} (default: all)",
    )
    select.add_argument(
        "--criteria",
        type=_of(*_EM_CRITERIA, *_POSTERIOR_CRITERIA, *_LABEL_CRITERIA),
        metavar="A,B",
        help=f"of {', '.join((*_EM_CRITERIA, *_POSTERIOR_CRITERIA))}, and with --labels {', '.join(_LABEL_CRITERIA)} "
        "(default: all that the method has, and those of the labels)",
    )
    select.add_argument(
        "--method",
        choices=("em", "laplace", "nuts"),
        help="em: maximum likelihood alone; laplace, nuts: the posterior beside it (default: nuts where a criterion of "
        f"{', '.join(_POSTERIOR_CRITERIA)} is asked for, else em)",
    )
    _add_place_options(
        select,
        "each of its workers fits a model at a time; of a table of more than 1 GiB each reads a part, for all models",
    )
    _add_sampling_options(select)
    select.set_defaults(parser=select, run=_select)

    _add_score(commands)

    demo = commands.add_parser(
        "demo",
        parents=[common],
        allow_abbrev=False,
        help="fit two components to the eruptions of Old Faithful",
        description="Fit two components to the eruptions of Old Faithful, which the package carries.",
    )
    demo.add_argument("--out", default="bayesgmm-demo", metavar="DIR", help="default: bayesgmm-demo")
    demo.set_defaults(parser=demo, run=_demo)

    warmup = commands.add_parser(
        "warmup",
        allow_abbrev=False,
        help="compile beforehand what the first fit would wait for",
        description="Compile everything that Numba compiles for EM, posteriors, selection, anomalies, classes and files, once. It is kept "
        "on disk, and serves every number of rows, features and components.",
    )
    warmup.add_argument("--quiet", action="store_true", help="print nothing but errors and warnings")
    warmup.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    warmup.set_defaults(parser=warmup, run=_warmup)

    report = commands.add_parser(
        "report",
        parents=[common],
        allow_abbrev=False,
        help="write a report on a folder of results",
        description="Write one HTML file, with verdict, tables and figures, on a folder that bayesgmm fit, demo or select has written.",
        epilog="Exit codes: 0 done; 1 the folder or the file is at fault; 2 wrong usage; 3 done, but the convergence diagnostics "
        "failed (the report says so at its top); 130 interrupted.",
    )
    report.add_argument("folder", metavar="DIR", help="folder of results")
    report.add_argument(
        "--out", metavar="FILE", help="default: report.html in DIR, in the place of the report that stands there"
    )
    report.add_argument(
        "--data",
        metavar="DATA",
        help="the table that was fitted, for fits by EM alone, which hold no rows; others need none",
    )
    report.set_defaults(parser=report, run=_report)
    return parser


def _add_score(commands: Any) -> None:
    score = commands.add_parser(
        "score",
        allow_abbrev=False,
        help="say of new rows whether they fit in, and where they belong",
        description="Score new rows by a fit that 'bayesgmm fit' wrote. Each row comes out as it stood, in its place, with columns "
        "behind it: log predictive density; tail probability (the share of the model's own rows that lie less dense); over the "
        "posterior, the probability that it is an anomaly (not of an EM fit); the probability that its component is a small one, below "
        "2 % of the rows; its kind (ok, far, small component); its component (-1 unknown), the probability of that, and the reason (ok, "
        "far, ambiguous). A row with a value that is no finite number is kept: its results are empty, its "
        "component is -1, and its reason is missing, not a number or infinite. Tables of any length are streamed.",
        epilog="Exit codes: 0 done; 1 the data or the run is at fault; 2 wrong usage; 3 done, but the fit's own convergence "
        "diagnostics had failed; 130 interrupted. A file is written whole or not at all.",
    )
    score.add_argument("fit", metavar="DIR", help="folder that 'bayesgmm fit' wrote, by any method")
    score.add_argument("data", metavar="NEW", help="CSV, TSV, Parquet or .npy; - reads standard input")
    score.add_argument(
        "--out",
        default="-",
        metavar="FILE",
        help="where to write: Parquet if it ends in .parquet, else text with the delimiter of the input "
        "(default: -, standard output)",
    )
    threshold = score.add_mutually_exclusive_group()
    threshold.add_argument(
        "--false-alarm",
        type=_share,
        metavar="RATE",
        help="far is what is less dense than all but this share of the model's own rows (default: 0.01)",
    )
    threshold.add_argument(
        "--f-min",
        type=_number,
        metavar="F",
        help="far is what is less dense than this, per unit volume of the features",
    )
    threshold.add_argument("--log-f-min", type=_number, metavar="LOG_F", help="the same as a natural logarithm")
    score.add_argument(
        "--min-responsibility",
        type=_share,
        default=0.9,
        metavar="P",
        help="a row whose component is less probable is ambiguous (default: 0.9)",
    )
    score.add_argument(
        "--draws", type=_integer(1), metavar="N", help="draws of the posterior to use, evenly thinned (default: 100)"
    )
    score.add_argument(
        "--columns",
        type=_names,
        metavar="A,B",
        help="columns that hold the fit's features, in its order (default: those of the same names)",
    )
    score.add_argument("--prefix", default="", metavar="TEXT", help="begin the names of the results' columns with this")
    score.add_argument("--strict", action="store_true", help="stop at the first value that is no finite number")
    score.add_argument(
        "--seed", type=_integer(0), metavar="N", default=0, help="seed of the random numbers (default: 0)"
    )
    score.add_argument("--quiet", action="store_true", help="print nothing but the results, errors and warnings")
    score.add_argument(
        "--json",
        action="store_true",
        help="print the summary as one JSON object (on standard error where the results go to standard output)",
    )
    score.add_argument("--force", action="store_true", help="overwrite a file")
    score.set_defaults(parser=score, run=_score)


def _add_place_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Where a table is read, and who works on it."""
    parser.add_argument(
        "--out-of-core",
        action="store_true",
        help="with --method em or laplace: read the table in blocks, once for each iteration, instead of into memory (default: where it is "
        "more than 1 GiB on disk)",
    )
    cluster = parser.add_mutually_exclusive_group()
    cluster.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help=f"work on the Dask cluster of this scheduler, such as tcp://10.0.0.1:8786; {what}",
    )
    cluster.add_argument(
        "--local-cluster",
        type=_integer(1),
        metavar="N",
        help="work on N Dask workers that are started on this machine",
    )


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=_integer(0), metavar="N", default=0, help="seed of the random numbers (default: 0)"
    )
    parser.add_argument("--draws", type=_integer(4), metavar="N", help="draws per chain (default: 1000)")
    parser.add_argument("--chains", type=_integer(1), metavar="N", help="chains (default: 4)")
    parser.add_argument("--tune", type=_tune, metavar="N", help="warm-up draws per chain, or auto (default: auto)")
    parser.add_argument("--target-ess", type=_integer(0), metavar="ESS", help="effective draws to reach (default: 400)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str or None, default=None
        The arguments; None takes them from ``sys.argv``.

    Returns
    -------
    int
        The exit code.
    """
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        with _terminal_for_users():
            return arguments.run(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:
        # the reader of standard output has gone; what is left to print must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (ClusterError, DataError, FileExistsError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error))
    except MemoryError:
        return _fail("out of memory")
    except (ValueError, TypeError) as error:
        return _fail(str(error))
    except Exception as error:  # a traceback helps nobody who did not write the code
        return _fail(f"unexpected {type(error).__name__}: {error} (BAYESGMM_TRACEBACK=1 shows where)")


@contextmanager
def _terminal_for_users() -> Iterator[None]:
    """Keep from the terminal what libraries tell their developers, and let no library swallow Ctrl-C."""

    def hook(unraisable: Any) -> None:
        # where C calls Python (Numba's cache does), an interrupt is printed and lost: send it again
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            resent.append(threading.Timer(0.1, _thread.interrupt_main))
            resent[-1].start()
        else:
            previous(unraisable)

    resent: list[threading.Timer] = []
    threshold, previous = logging.root.manager.disable, sys.unraisablehook
    logging.disable(logging.WARNING)
    sys.unraisablehook = hook
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for timer in resent:
            timer.cancel()
        logging.disable(threshold)
        sys.unraisablehook = previous


def _fail(message: str, code: int = AT_FAULT) -> int:
    if os.environ.get("BAYESGMM_TRACEBACK") and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    print(f"bayesgmm: {'error: ' if code == AT_FAULT else ''}{' '.join(message.split())}", file=sys.stderr)
    return code


def _sampling_options(arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    options = {name: value for name in _SAMPLING_OPTIONS if (value := getattr(arguments, name, None)) is not None}
    if method == "em" and options:
        given = ", ".join("--" + name.replace("_", "-") for name in options)
        arguments.parser.error(f"{given}: not with --method em, which draws nothing")
    if options.get("mode_weights") == "none":
        options["mode_weights"] = None
    return options


def _select(arguments: argparse.Namespace) -> int:
    asked = arguments.criteria or ()
    posterior = [name for name in asked if name in _POSTERIOR_CRITERIA]
    method = arguments.method or ("nuts" if posterior else "em")
    if method == "em" and posterior:
        arguments.parser.error(f"--criteria {','.join(posterior)}: not with --method em, which has no posterior")
    by_labels = [name for name in asked if name in _LABEL_CRITERIA]
    if by_labels and arguments.labels is None:
        arguments.parser.error(f"--criteria {','.join(by_labels)}: not without --labels COLUMN")
    if asked and arguments.labels is not None and not by_labels:
        asked = [*asked, *_LABEL_CRITERIA]
    options = _sampling_options(arguments, method)
    on_cluster = _refuse_impossible_places(arguments, method)
    from bayesgmm import results

    silent = arguments.quiet or arguments.json
    options |= {
        "n_components": arguments.components,
        "covariance_types": arguments.covariance,
        "method": method,
        "criteria": asked or None,
        "random_state": arguments.seed,
        "out": arguments.out,
        "overwrite": arguments.force,
    }
    with _cluster(arguments) as client:
        parted = on_cluster and _is_large(arguments.data) and arguments.labels is None
        table = _table_on(arguments, client) if parted else _table_here(arguments, method, arguments.labels)
        if not silent:
            results.print_selection_task(table, method, arguments.components, arguments.covariance)
        options["client"] = None if parted else client
        outcome = results.select(table, options, progressbar=not silent and sys.stderr.isatty())
    files = results.write_selection(outcome, arguments.out)
    if arguments.json:
        print(results.selection_to_json(outcome, arguments.out, files))
    elif not silent:
        results.print_selection(outcome, arguments.out, files)
    if not arguments.json:
        told = () if silent else outcome.problems
        for message in (*outcome.messages, *outcome.problems):
            if message not in told:
                print(f"bayesgmm: warning: {message}", file=sys.stderr)
    if outcome.selection.interrupted:
        return INTERRUPTED
    return NOT_CONVERGED if outcome.selection.doubtful else DONE


def _report(arguments: argparse.Namespace) -> int:
    from bayesgmm import results

    written = results.report(arguments.folder, arguments.out, arguments.data, arguments.force)
    if arguments.json:
        print(json.dumps({"out": str(written.path), "level": written.level, "verdict": written.verdict}))
    elif not arguments.quiet:
        print(f"{written.verdict}\n\n{written.path}")
    return NOT_CONVERGED if written.level == "bad" else DONE


def _fit(arguments: argparse.Namespace) -> int:
    on_cluster = arguments.scheduler is not None or arguments.local_cluster is not None
    method = arguments.method or ("laplace" if on_cluster else "nuts")
    options = _sampling_options(arguments, method)
    _refuse_impossible_places(arguments, method)
    if arguments.resume and method != "em":
        arguments.parser.error(f"--resume: not with --method {method}, whose draws begin anew")
    from bayesgmm.results import fit_folder, unfinished_fit

    options |= {
        "n_components": arguments.components,
        "covariance_type": arguments.covariance,
        "random_state": arguments.seed,
    }
    begin = unfinished_fit(arguments.out, options) if arguments.resume else None
    output = fit_folder(arguments.out, arguments.force or arguments.resume)
    with _cluster(arguments) as client:
        if not on_cluster:
            return _run(arguments, output, _table_here(arguments, method), method, options, begin)
        if method == "nuts" and not _is_large(arguments.data):
            return _run(arguments, output, _table_here(arguments, method), method, options, client=client)
        return _run(arguments, output, _table_on(arguments, client), method, options, begin)


def _refuse_impossible_places(arguments: argparse.Namespace, method: str) -> bool:
    """Refuse places that a table cannot be read from, or worked on; and whether there is a cluster."""
    on_cluster = arguments.scheduler is not None or arguments.local_cluster is not None
    if on_cluster and arguments.data == "-":
        arguments.parser.error("--scheduler and --local-cluster: not with standard input, which no worker can read")
    if on_cluster and arguments.out_of_core:
        arguments.parser.error("--out-of-core: not on a cluster, whose workers hold what they have room for")
    if arguments.out_of_core and method == "nuts":
        arguments.parser.error("--out-of-core: not with --method nuts, which needs the rows in memory")
    if arguments.out_of_core and arguments.data == "-":
        arguments.parser.error("--out-of-core: not with standard input, which can be read only once")
    if arguments.out_of_core and getattr(arguments, "labels", None) is not None:
        arguments.parser.error("--out-of-core: not with --labels, which need the rows in memory")
    return on_cluster


@contextmanager
def _cluster(arguments: argparse.Namespace) -> Iterator[Any]:
    """A client of the cluster that was named; None without one."""
    if arguments.scheduler is None and arguments.local_cluster is None:
        yield None
        return
    from bayesgmm.distributed import connected

    with connected(arguments.scheduler, arguments.local_cluster) as client:
        yield client


def _is_large(data: str) -> bool:
    from bayesgmm import tables

    return tables.bytes_on_disk(data) > tables.LARGE_BYTES


def _table_on(arguments: argparse.Namespace, client: Any) -> LargeTable:
    """The table, parted among the workers of a cluster."""
    from bayesgmm.large import look_at

    return look_at(arguments.data, arguments.columns, client)


def _table_here(arguments: argparse.Namespace, method: str, labels: str | None = None) -> Table | LargeTable:
    """The table: read, or where it is large and EM or Laplace will do, opened to be read in blocks."""
    from bayesgmm import tables
    from bayesgmm.io import read_table

    if arguments.data == "-":
        return read_table(arguments.data, arguments.columns, labels)
    if arguments.out_of_core or (method != "nuts" and labels is None and _is_large(arguments.data)):
        from bayesgmm.large import look_at

        return look_at(arguments.data, arguments.columns)
    if tables.is_several(arguments.data) and labels is None:
        return tables.read_all(arguments.data, arguments.columns)
    return read_table(arguments.data, arguments.columns, labels)


def _score(arguments: argparse.Namespace) -> int:
    to_file = arguments.out != "-"
    from bayesgmm import scoring

    scoring.check_output(arguments.data, arguments.out, arguments.force)
    threshold = {name: getattr(arguments, name) for name in ("false_alarm", "f_min", "log_f_min")}
    silent = arguments.quiet or arguments.json
    try:
        scorer = scoring.make_scorer(
            arguments.fit,
            **threshold,
            min_responsibility=arguments.min_responsibility,
            n_draws=arguments.draws or scoring.DEFAULT_DRAWS,
            seed=arguments.seed,
        )
        found = scoring.score(
            arguments.data,
            arguments.out,
            scorer,
            columns=arguments.columns,
            prefix=arguments.prefix,
            strict=arguments.strict,
            progressbar=not silent and sys.stderr.isatty() and (to_file or not sys.stdout.isatty()),
        )
    except KeyboardInterrupt:
        return _fail(
            "interrupted; " + ("nothing was written" if to_file else "the output is not complete"), INTERRUPTED
        )
    if arguments.json:
        print(scoring.scoring_to_json(found), file=sys.stdout if to_file else sys.stderr)
        return DONE if scorer.converged else NOT_CONVERGED
    if not silent:
        scoring.print_scoring(found)
    for message in scorer.messages:
        print(f"bayesgmm: warning: {message}", file=sys.stderr)
    if not scorer.converged:
        print(f"bayesgmm: warning: the fit's own diagnostics had failed: {scorer.verdict}", file=sys.stderr)
    return DONE if scorer.converged else NOT_CONVERGED


def _warmup(arguments: argparse.Namespace) -> int:
    from bayesgmm import warmup

    silent = arguments.quiet or arguments.json
    live = not silent and sys.stdout.isatty()

    def begin(name: str) -> None:
        if live:
            print(f"{name}: compiling …", end="\r", flush=True)

    def done(step: warmup.Step) -> None:
        if not silent:
            print(f"{step.name}: {step.n_compiled} functions compiled, {step.seconds:.1f} s", flush=True)

    steps = warmup.warm_up(begin, done)
    n_compiled, seconds = sum(step.n_compiled for step in steps), sum(step.seconds for step in steps)
    if arguments.json:
        kept = [{"name": step.name, "compiled": step.n_compiled, "seconds": step.seconds} for step in steps]
        print(
            json.dumps(
                {"compiled": n_compiled, "seconds": seconds, "folder": str(warmup.cache_folder()), "steps": kept}
            )
        )
    elif not silent:
        what = f"{n_compiled} functions compiled" if n_compiled else "nothing was left to compile"
        print(f"{what} in {seconds:.1f} s; compiled code is kept in {warmup.cache_folder()}")
    return DONE


def _demo(arguments: argparse.Namespace) -> int:
    import numpy as np

    from bayesgmm.datasets import load_faithful
    from bayesgmm.io import Table
    from bayesgmm.results import fit_folder

    output = fit_folder(arguments.out, arguments.force, reuse=True)
    faithful = load_faithful()
    values = np.ascontiguousarray(faithful.to_numpy(dtype=np.float64))
    table = Table(values, tuple(faithful.columns), "Old Faithful", np.arange(1, len(values) + 1))
    return _run(arguments, output, table, "nuts", {"n_components": 2, "random_state": 0})


def _run(
    arguments: argparse.Namespace,
    output: OutputFolder,
    table: Table | LargeTable,
    method: str,
    options: dict[str, Any],
    begin: Any = None,
    client: Any = None,
) -> int:
    """Fit, write and tell: what every command that fits a mixture does with a table."""
    from bayesgmm import results

    silent = arguments.quiet or arguments.json
    with output as folder:
        if not silent:
            results.print_task(table, method, options)
        shown = not silent and sys.stderr.isatty()
        outcome = results.fit(table, method, options, progressbar=shown, begin=begin, client=client)
        files = results.write(outcome, folder)
    if arguments.json:
        print(results.to_json(outcome, output.path, files))
    elif not silent:
        results.print_outcome(outcome, output.path, files)
    if not arguments.json:
        told = () if silent else outcome.problems
        for message in outcome.messages:
            if message not in told:
                print(f"bayesgmm: warning: {message}", file=sys.stderr)
    if outcome.interrupted:
        return INTERRUPTED
    return DONE if outcome.converged else NOT_CONVERGED
