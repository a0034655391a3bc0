"""Whether the tests would notice: mutants of the core and of the criteria (``benchmarks/mutants.py``), and how many the tests kill.

A random sample of all mutants, or all; each is run against the tests that reach its statement until the first fails, the quick ones
first and not for longer than ``SECONDS``. Survivors are printed with their place. Some change nothing that can be seen (a bound that is
never reached, a tolerance); the others are gaps in the tests.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.validation.runs import Options, collect, console

ROOT = Path(__file__).parents[2]
CORE = ROOT / "bayesgmm" / "core"
COMPILED = ("lanes", "clustering")
"""Nothing of these is run by Python: they are compiled, or make what is."""

MODULES = (
    "bayesgmm.criteria",
    *(f"bayesgmm.core.{path.stem}" for path in sorted(CORE.glob("[a-z]*.py")) if path.stem not in COMPILED),
)

OTHERS = (
    "criteria",
    "properties",
    "partition",
    "crossvalidation",
    "tables",
    "anomaly",
    "estimators/gaussian_mixture",
    "estimators/classifier",
    "estimators/rows_in_blocks",
    "estimators/scikit_learn_module",
    "inference/hierarchical",
    "inference/separation",
    "inference/function_prior",
    "inference/integrated_scale",
)
TESTS = (
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests" / "core").glob("test_*.py"))),
    *(str(Path("tests", name).with_name(f"test_{Path(name).name}.py")) for name in OTHERS),
)
"""Not those that need long for each mutant: what samples, and what runs programs."""

RUN, QUICK_RUN, FULL_RUN = 60, 3, 100_000
TARGET = 0.9
SECONDS = 40.0


@cache
def _loaded() -> None:
    """All that the tests import and load, once, before the first child is forked."""
    import warnings

    import arviz  # noqa: F401
    import nutpie  # noqa: F401
    import pymc  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401

    from bayesgmm import GaussianMixture
    from bayesgmm.datasets import load_faithful

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("full", "tied", "diag", "spherical"):
            GaussianMixture(2, covariance_type=kind).fit(load_faithful())


@cache
def every() -> list[tuple[str, int]]:
    """All mutants, by module and number."""
    from benchmarks.mutants import mutants

    return [(module, number) for module in MODULES for number in range(len(mutants(module)))]


def chosen(n: int, seed: int) -> list[tuple[str, int]]:
    """The mutants that are run: a random sample, the first of which stay when it grows."""
    return [every()[int(i)] for i in np.random.default_rng(seed).permutation(len(every()))[:n]]


def one_record(tests: str, source: str, folder: Path) -> dict[str, Any]:
    """Which lines the tests of a file reach."""
    from benchmarks.mutants import record

    _loaded()
    to = folder / f"{tests.replace('/', '_')}.json"
    record(tests, MODULES, to)
    return {"reach": json.loads(to.read_text(encoding="utf-8"))}


def one_mutant(module: str, number: int, source: str, recorded: Path) -> dict[str, Any]:
    """Run the tests that reach a mutant against it."""
    from benchmarks.mutants import mutants, reaching, verdict

    _loaded()
    mutant, begin = mutants(module)[number], time.perf_counter()
    tests = reaching(mutant, _recorded(recorded), SECONDS)
    found = verdict(mutant, tests, 3 * SECONDS)
    place = f"{mutant.function}, line {mutant.line}: {mutant.change}"
    return {"verdict": found, "place": place, "tests": len(tests), "seconds": time.perf_counter() - begin}


@cache
def _recorded(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _source() -> str:
    """Hash of the package and of its tests: of other code, results say nothing."""
    found = hashlib.sha256()
    for path in sorted([*(ROOT / "bayesgmm").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def run(options: Options) -> int:
    """Print the table and the survivors; return 1 where too many survive, with mutants that failed to run."""
    keys = chosen(options.number_of(RUN, QUICK_RUN, FULL_RUN), options.seed)
    files = TESTS[:2] if options.quick else TESTS
    settings = {"source": _source()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reach, unread = collect(
            "mutation-reach", partial(one_record, folder=folder), [(file,) for file in files], settings, options
        )
        recorded = folder / "recorded.json"
        recorded.write_text(json.dumps({test: r for each in reach.values() for test, r in each["reach"].items()}))
        results, failed = collect("mutation", partial(one_mutant, recorded=recorded), keys, settings, options)
    table = Table(title="Mutants of the core and of the criteria")
    for heading in ("module", "mutants", "run", "killed", "share"):
        table.add_column(heading, justify="left" if heading == "module" else "right", no_wrap=True)
    killed = 0
    for module in MODULES:
        own = [r for (of, _), r in results.items() if of == module]
        dead = sum(r["verdict"] != "survived" for r in own)
        killed += dead
        share = f"{100 * dead / len(own):.0f} %" if own else "–"
        table.add_row(module, str(sum(of == module for of, _ in every())), str(len(own)), str(dead), share)
    share = killed / max(1, len(results))
    screen = console()
    screen.print(table)
    for (module, number), r in sorted(results.items()):
        if r["verdict"] == "survived":
            screen.print(f"survived {r['tests']} tests: {module} ({number}): {r['place']}", markup=False)
    met = share >= TARGET
    screen.print(
        f"{killed} of {len(results)} killed, {100 * share:.0f} %; target: {100 * TARGET:.0f} %: "
        + ("–" if options.quick else "met" if met else "NOT MET"),
        markup=False,
    )
    return int(not met and not options.quick) + failed + unread
