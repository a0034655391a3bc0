"""What every study shares: one task per data set over processes, and a file of JSON lines that keeps the results."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

import bayesgmm
from benchmarks.measure import all_threads

Key = tuple[Any, ...]
"""What a data set is named by, in JSON's plain values."""

Task = Callable[..., dict[str, Any]]

WIDTH = 150


@dataclass(frozen=True)
class Options:
    """Arguments of the command; None leaves the choice to the study."""

    quick: bool = False
    full: bool = False
    out: Path | None = None
    data_sets: int | None = None
    method: str | None = None
    draws: int | None = None
    seed: int = 0
    workers: int | None = None
    report: bool = False
    figures: Path | None = None
    """A file beside which figures go, under its name and the study's; None for none."""

    def draw(self, study: str, figure: Callable[[Path], None]) -> None:
        """Have a study's figure drawn to its file, where figures are wanted."""
        if self.figures is not None:
            self.figures.parent.mkdir(parents=True, exist_ok=True)
            figure(self.figure_of(study))

    def figure_of(self, study: str) -> Path:
        """Where a study's figure goes."""
        assert self.figures is not None
        return self.figures.with_name(f"{self.figures.stem}_{study}.png")

    def number_of(self, usual: int, quick: int, full: int) -> int:
        """Data sets of each cell: as many as were asked for, else what the kind of run takes."""
        return self.data_sets or (quick if self.quick else full if self.full else usual)


@cache
def console() -> Console:
    """Standard output, wide where it is no terminal; what it prints can be exported."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, record=True)


def stored(study: str, settings: dict[str, Any], out: Path | None) -> dict[Key, dict[str, Any]]:
    """Results of an earlier run of this study with the same settings; a line that was cut short is left out."""
    found: dict[Key, dict[str, Any]] = {}
    if out is None or not out.exists():
        return found
    for line in out.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["study"] == study and record["settings"] == settings:
            found[tuple(record["key"])] = record["result"]
    return found


def times(study: str, seconds: float, cpu_seconds: float, options: Options) -> tuple[float, float]:
    """Seconds and CPU seconds of a study, with those of earlier runs with the same file of results; this run's are added there."""
    if options.out is None or not options.out.exists():
        return seconds, cpu_seconds
    kept = stored(f"{study}-seconds", {"version": bayesgmm.__version__}, options.out)
    both = [each["seconds"] for each in kept.values()]
    if not options.report:
        both.append([seconds, cpu_seconds])
        _store(options.out, f"{study}-seconds", {"version": bayesgmm.__version__}, (len(kept),), {"seconds": both[-1]})
    return sum(each[0] for each in both), sum(each[1] for each in both)


def _store(out: Path, study: str, settings: dict[str, Any], key: Key, result: dict[str, Any]) -> None:
    record = {"study": study, "settings": settings, "key": key, "result": result}
    with out.open("a", encoding="utf-8") as stream:
        # The newline first: it ends a line that was cut short.
        stream.write("\n" + json.dumps(record))


def _end_with_parent() -> None:
    """End this worker if the process that it works for is killed: it would wait for work for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def collect(
    study: str, task: Task, keys: Sequence[Key], settings: dict[str, Any], options: Options
) -> tuple[dict[Key, dict[str, Any]], int]:
    """Run what is not stored yet, over processes of one thread each, storing every result as it comes.

    Parameters
    ----------
    study : str
    task : callable
        ``task(*key, **settings)`` returns the result, of JSON's plain values; a function of a module, for spawned processes.
    keys : sequence of tuple
        In the order in which they are begun.
    settings : dict
        What a result depends on besides its key.
    options : Options

    Returns
    -------
    results : dict
        By key.
    failed : int
        Data sets without a result; why is printed.
    """
    stamped = settings | {"version": bayesgmm.__version__}
    kept = stored(study, stamped, options.out)
    results = {key: kept[key] for key in keys if key in kept}
    wanted = [key for key in keys if key not in results]
    failed = 0
    if not wanted or options.report:
        console().print(f"{study}: {len(results)} of {len(keys)} results stored")
        return results, failed
    # One thread a process: the processes are the parallel part. Spawned ones read these when they start.
    for name in ("BAYESGMM_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    screen = Console(stderr=True)
    workers = options.workers or all_threads()
    with ProcessPoolExecutor(workers, context, _end_with_parent) as pool, Progress(console=screen) as progress:
        bar = progress.add_task(study, total=len(keys), completed=len(results))
        try:
            running = {pool.submit(task, *key, **settings): key for key in wanted}
            for future in as_completed(running):
                key = running[future]
                progress.advance(bar)
                try:
                    results[key] = future.result()
                except Exception as error:
                    failed += 1
                    screen.print(f"{study} {key} failed: {error!r}", markup=False)
                    continue
                if options.out is not None:
                    _store(options.out, study, stamped, key, results[key])
        except BaseException:
            # Leaving the pool waits for everything in its queue: hundreds of fits that nobody wants any more.
            pool.shutdown(cancel_futures=True)
            raise
    return {key: results[key] for key in keys if key in results}, failed
