"""Studies over data whose truth is known: ``python -m benchmarks.validate [--only coverage,criteria,…] [--quick | --full] [--out FILE]``.

- anomaly: false-alarm rates on fresh rows, and injected anomalies found;
- coverage: how often intervals hold the truth: posteriors by NUTS and Laplace, EM with observed information and bootstrap;
- criteria: how often each criterion picks the right number of components, and what its choice costs in prediction;
- degenerate: degenerate input of every kind through the public API and the command;
- endurance: whether memory stays flat over very many fits;
- evidence: whether the standard error of the log evidence is its scatter;
- fuzz: coverage-guided fuzzing of the table readers and of the loader;
- galaxies: p(K) of the galaxies beside the published values;
- laplace: means and standard deviations by Laplace and importance resampling beside those by NUTS, at many rows.
- relabelling: shuffled draws brought back by the assignment to the mode, ECR and Stephens' algorithm;
- mutation: how many mutants of the core and of the criteria the tests kill;
- sbc: simulation-based calibration of the posterior for every prior and structure, and whether it sees a fault that is sown.

Each prints a table; its module in ``benchmarks/validation`` says what is measured. With ``--out`` every result is kept in a
file of JSON lines as it comes: a run that was stopped, even killed, goes on from there, and a larger one takes over what is done.
``--markdown`` writes all tables to a page with date, versions and machine, and figures beside it. The exit code is 1 where a target is
missed or a data set failed.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

STUDIES = (
    "sbc",
    "coverage",
    "evidence",
    "anomaly",
    "laplace",
    "criteria",
    "galaxies",
    "relabelling",
    "degenerate",
    "fuzz",
    "endurance",
    "mutation",
)


def _chosen(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in STUDIES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"choose from {', '.join(STUDIES)}, not {', '.join(unknown) or 'nothing'}")
    return [name for name in STUDIES if name in names]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validate", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", type=_chosen, default=list(STUDIES), help=f"of {','.join(STUDIES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="little of each, to see that it runs; targets not judged")
    parser.add_argument("--full", action="store_true", help="as much of each as the README's figures are from (hours)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep results there, and go on from it")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed there too")
    parser.add_argument("--data-sets", type=int, metavar="R", help="per cell (seeds, for evidence)")
    parser.add_argument("--method", choices=("em", "laplace", "nuts"), help="of coverage and criteria (em: criteria)")
    parser.add_argument("--draws", type=int, help="per chain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, metavar="P", help="processes (default: one a core)")
    parser.add_argument("--report", action="store_true", help="run nothing: print what --out holds")
    options = parser.parse_args(arguments)
    if options.data_sets is not None and options.data_sets < 2:
        parser.error("--data-sets must be at least 2: the error of a figure needs two")
    if options.report and options.out is None:
        parser.error("--report needs --out: the results of an earlier run")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen studies.

    Returns
    -------
    int
        0 where every target is reached, else 1.
    """
    parsed = _parse(arguments)
    # Loads the numerical libraries: not before the arguments are known to be right.
    from benchmarks.validation.runs import Options, console, times

    given = {name: value for name, value in vars(parsed).items() if name not in ("only", "markdown")}
    options = Options(**given, figures=parsed.markdown or parsed.out)
    done = []
    for name in parsed.only:
        begin, busy = time.perf_counter(), _cpu_seconds()
        study = importlib.import_module(f"benchmarks.validation.{name}")
        missed = study.run(options)
        seconds, busy = time.perf_counter() - begin, _cpu_seconds() - busy
        # A cell of a table ends at a bar.
        what = study.__doc__.partition("\n")[0].replace("|", r"\|")
        console().print(f"{name}: {seconds:.0f} s, {busy:.0f} s of CPU\n")
        printed = console().export_text().rpartition(f"{name}: ")[0].rstrip()
        done.append(Done(name, what, *times(name, seconds, busy, options), missed, printed))
        if parsed.markdown is not None:
            _write(parsed.markdown, done, options)
    return int(any(study.missed for study in done))


class Done(NamedTuple):
    """A study that was run."""

    name: str
    what: str
    seconds: float
    cpu_seconds: float
    missed: int
    printed: str


def _cpu_seconds() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


def _write(path: Path, done: Sequence[Done], options: Any) -> None:
    """The page: date, versions and machine; a line a study; their tables and figures."""
    from datetime import date

    from bayesgmm.io import write_text
    from benchmarks.machine import as_text, describe

    seconds, busy = sum(study.seconds for study in done), sum(study.cpu_seconds for study in done)
    arguments = " ".join(name for name in ("--quick", "--full") if getattr(options, name[2:]))
    lines = [
        "# What `make validate` found",
        "",
        f"{date.today():%d %B %Y}; {seconds / 60:.0f} minutes ({busy / 60:.0f} of CPU), with those of runs that this one went on from.",
        f"Written by `python -m benchmarks.validate {arguments}{' ' * bool(arguments)}--markdown FILE`.",
        "",
        *(f"- {line}" for line in as_text(describe())),
        "",
        "| study | what it looks at | minutes | of CPU | targets missed, with data sets that failed |",
        "|---|---|---|---|---|",
        *(
            f"| [{s.name}](#{s.name}) | {s.what} | {s.seconds / 60:.1f} | {s.cpu_seconds / 60:.1f} | {s.missed} |"
            for s in done
        ),
    ]
    for study in done:
        lines += ["", f"## {study.name}", "", "```text", study.printed, "```"]
        figure = options.figure_of(study.name)
        if figure.exists():
            lines += ["", f"![{study.what}]({figure.name})"]
    write_text(path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
