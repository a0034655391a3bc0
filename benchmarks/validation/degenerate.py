"""Degenerate tables through the public API and the command: none may end in NaN, hang, a foreign error or warning, or a wrong answer.

A case (``tests/degenerate.py``) is a task (EM, prior, standard errors, bootstrap, streams, blocks, files, classifier, detector, selection,
Laplace and NUTS under three priors, the command in this process and in one of its own), a table (constant, collinear, duplicated, of one
row, of 1e±150, with infinity, …), how it is handed in (types, orders, strides, DataFrames of five kinds, masks, …), weights, a covariance
structure and K. It is right where it is refused in one clear error, or fitted with numbers that agree with densities and
closed forms computed there. Every fault is printed with code that makes it again.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from rich.table import Table

from benchmarks.validation.runs import Options, collect, console

CASES, QUICK_CASES, FULL_CASES = 10_000, 300, 50_000
CHUNK = 50
ENDS = ("fitted", "fitted with a warning", "refused")


def one_chunk(number: int, *, seed: int) -> dict[str, Any]:
    """Run the cases of a chunk; how many ended how, by task, and the faults with code for each."""
    from tests.degenerate import as_code, case_of, outcome

    begin, ends, faults = time.perf_counter(), Counter[str](), []
    for case in (case_of(i, seed) for i in range(number * CHUNK, (number + 1) * CHUNK)):
        ended, fault = outcome(case)
        ends[f"{case.task}/{ended}"] += 1
        if fault is not None:
            faults.append([fault, as_code(case)])
    return {"ends": dict(ends), "faults": faults, "seconds": time.perf_counter() - begin}


def run(options: Options) -> int:
    """Print the table; return the number of faults, with chunks that failed."""
    n_cases = options.number_of(CASES, QUICK_CASES, FULL_CASES)
    keys = [(number,) for number in range(-(-n_cases // CHUNK))]
    results, failed = collect("degenerate", one_chunk, keys, {"seed": options.seed}, options)
    ends = Counter[str]()
    for result in results.values():
        ends.update(result["ends"])
    faults = [fault for result in results.values() for fault in result["faults"]]
    table = Table(title=f"{ends.total()} cases of degenerate input: how they end")
    for heading in ("task", *ENDS):
        table.add_column(heading, justify="left" if heading == "task" else "right", no_wrap=True)
    for task in sorted({key.rpartition("/")[0] for key in ends}):
        table.add_row(task, *(str(ends[f"{task}/{end}"]) for end in ENDS))
    table.add_section()
    table.add_row("in all", *(str(sum(n for key, n in ends.items() if key.endswith(f"/{end}"))) for end in ENDS))
    screen = console()
    screen.print(table)
    for fault, code in faults:
        screen.print(f"{fault}\n    {code}", markup=False)
    met = "met" if not faults and not failed else "NOT MET"
    screen.print(f"{len(faults)} faults; target: none: {met}", markup=False)
    return len(faults) + failed
