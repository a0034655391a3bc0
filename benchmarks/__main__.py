"""Speed and memory beside other programs: ``python -m benchmarks [--only em,…] [--quick] [--rows N] [--markdown FILE] [--json FILE]``.

One table per comparison: both sides measured in turns in the same run, medians, and whether the target is met. The
exit code is 0 if everything was measured, whatever the figures are. ``--markdown`` writes the tables, ``--json``
every single figure, both with the machine and the versions; both files are brought up to date after each comparison.

scikit-learn and ``pm.Mixture`` with nutpie are peers of the package's own environment. NumPyro, pomegranate, R's
mclust and Stan are run where they are found (section ``others``): ``make peers`` makes an environment in ``.peers``
with JAX and NumPyro; ``--peers-python PATH`` names other interpreters; R needs Debian's r-cran-mclust, r-cran-rstan,
r-cran-bh, r-cran-rcppeigen, r-cran-rcppparallel and g++. pomegranate needs PyTorch, of which PyPI's default build is
several gigabytes: ``.peers/bin/pip install`` a CPU build of torch first, then pomegranate.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.foreign import VARIABLE
from benchmarks.measure import Row, Section

SECTIONS = (
    "roofline",
    "em",
    "gradient",
    "sampling",
    "overhead",
    "others",
    "first",
    "process",
    "memory",
    "selection",
    "predictive",
    "partition",
    "score",
    "acceleration",
    "outofcore",
    "distributed",
)
WIDTH = 190


def _chosen(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"choose from {', '.join(SECTIONS)}, not {', '.join(unknown) or 'nothing'}")
    return [name for name in SECTIONS if name in names]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", type=_chosen, default=list(SECTIONS), help=f"of {','.join(SECTIONS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; targets are not judged")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    parser.add_argument(
        "--rows", type=lambda text: int(float(text)), metavar="N", help="rows of outofcore; default: 1e7"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument(
        "--peers-python",
        metavar="PATH",
        help=f"interpreter that has NumPyro or pomegranate; several are parted by {os.pathsep!r} (default: {VARIABLE}, then .peers)",
    )
    return parser.parse_args(arguments)


MET = {None: "–", True: "yes", False: "NOT MET"}


def _columns(section: Section) -> dict[str, Callable[[Row], str]]:
    """Names of the columns of a section's table, and what stands in them."""
    columns: dict[str, Callable[[Row], str]] = {
        "case": lambda row: row.case,
        "threads (ours | peer)": lambda row: row.threads,
        "against": lambda row: row.against,
        "ours": lambda row: row.ours,
        "peer": lambda row: row.peer,
        "ratio": lambda row: row.ratio,
        "target": lambda row: row.target,
        "met": lambda row: MET[row.met],
        "note": lambda row: row.note,
    }
    if not any(row.against for row in section.rows):
        del columns["against"]
    return columns


def _table(section: Section) -> Table:
    table = Table(title=section.title, caption=f"against {section.against}", title_justify="left", title_style="bold")
    table.caption_justify = "left"
    columns = _columns(section)
    for name in columns:
        right = name in ("ours", "peer", "ratio", "target")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(cell(row), style="bold" if cell(row) == MET[False] else "") for cell in columns.values()))
    return table


def _markdown(machine: list[str], sections: Iterable[Section], quick: bool) -> str:
    """The same tables for a file."""
    lines = ["# Benchmarks", "", *(f"- {line}" for line in machine)]
    if quick:
        lines.append("- Quick run: sizes and repetitions are cut, and targets are not judged")
    for section in sections:
        columns = _columns(section)
        lines += ["", f"## {section.title}", "", f"Against {section.against}.", "", f"| {' | '.join(columns)} |"]
        lines.append("|" + "---|" * len(columns))
        for row in section.rows:
            lines.append("| " + " | ".join(cell(row).replace("|", "\\|") for cell in columns.values()) + " |")
        lines += ["", *(f"- {remark}" for remark in section.remarks)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen sections; 0 if all were measured."""
    options = _parse(arguments)
    if options.peers_python is not None:
        os.environ[VARIABLE] = options.peers_python
    # Loads the numerical libraries: not before the arguments are known to be right.
    from benchmarks.machine import as_text, describe

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    machine = describe()
    for line in as_text(machine):
        console.print(line, markup=False)
    if options.quick:
        console.print("Quick run: sizes and repetitions are cut, and targets are not judged")
    console.print()
    sections: dict[str, Section] = {}
    failed: list[str] = []

    def write() -> None:
        if options.markdown is not None:
            options.markdown.write_text(_markdown(as_text(machine), sections.values(), options.quick), encoding="utf-8")
        if options.json is not None:
            results = {name: asdict(section) for name, section in sections.items()}
            report = {"machine": machine, "quick": options.quick, "sections": results, "failed": failed}
            options.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    for name in options.only:
        begin = time.perf_counter()
        try:
            size = {"n_rows": options.rows} if name == "outofcore" and options.rows else {}
            section = importlib.import_module(f"benchmarks.{name}").run(options.quick, **size)
        except Exception:
            # One comparison that cannot be made must not cost the others.
            failed.append(name)
            write()
            console.print(f"{name}: could not be measured\n{traceback.format_exc()}", markup=False)
            continue
        sections[name] = section
        write()
        console.print(_table(section))
        for remark in section.remarks:
            console.print(f"  {remark}", markup=False)
        console.print(f"  measured in {time.perf_counter() - begin:.0f} s\n")
    judged = [row.met for section in sections.values() for row in section.rows if row.met is not None]
    if judged:
        console.print(f"{sum(judged)} of {len(judged)} targets met")
    if failed:
        console.print(f"not measured: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
