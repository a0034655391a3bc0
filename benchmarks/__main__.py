"""Speed and memory beside other programs: ``python -m benchmarks [--only em,gradient,…] [--quick] [--rows N] [--json FILE]``.

One table per comparison: both sides measured in turns in the same run, medians, and whether the target is met. The exit
code is 0 if everything was measured, whatever the figures are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Section

SECTIONS = (
    "roofline",
    "em",
    "gradient",
    "sampling",
    "overhead",
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
    parser.add_argument(
        "--rows", type=lambda text: int(float(text)), metavar="N", help="rows of outofcore; default: 1e7"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    return parser.parse_args(arguments)


def _table(section: Section) -> Table:
    table = Table(title=section.title, caption=f"against {section.against}", title_justify="left", title_style="bold")
    table.caption_justify = "left"
    for name in ("case", "threads (ours | peer)", "ours", "peer", "ratio", "target", "met", "note"):
        right = name in ("ours", "peer", "ratio", "target")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    words = {None: "–", True: "yes", False: "[bold]NOT MET[/bold]"}
    for row in section.rows:
        table.add_row(row.case, row.threads, row.ours, row.peer, row.ratio, row.target, words[row.met], row.note)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen sections; 0 if all were measured."""
    options = _parse(arguments)
    # Loads the numerical libraries: not before the arguments are known to be right.
    from benchmarks.machine import as_text, describe

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    machine = describe()
    for line in as_text(machine):
        console.print(line, markup=False)
    if options.quick:
        console.print("Quick run: sizes and repetitions are cut, and targets are not judged")
    console.print()
    results, failed = {}, []
    for name in options.only:
        begin = time.perf_counter()
        try:
            size = {"n_rows": options.rows} if name == "outofcore" and options.rows else {}
            section = importlib.import_module(f"benchmarks.{name}").run(options.quick, **size)
        except Exception:
            # One comparison that cannot be made must not cost the others.
            failed.append(name)
            console.print(f"{name}: could not be measured\n{traceback.format_exc()}", markup=False)
            continue
        results[name] = asdict(section)
        console.print(_table(section))
        for remark in section.remarks:
            console.print(f"  {remark}", markup=False)
        console.print(f"  measured in {time.perf_counter() - begin:.0f} s\n")
    judged = [row for section in results.values() for row in section["rows"] if row["met"] is not None]
    if judged:
        console.print(f"{sum(row['met'] for row in judged)} of {len(judged)} targets met")
    if failed:
        console.print(f"not measured: {', '.join(failed)}")
    if options.json is not None:
        report = {"machine": machine, "quick": options.quick, "sections": results, "failed": failed}
        options.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
