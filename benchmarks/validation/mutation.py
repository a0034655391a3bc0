"""Whether the tests would notice: mutants of the core and of the criteria (``benchmarks/mutants.py``), and how many the tests kill.

A sample of each module's mutants, or all of them; each is run against the tests of its module until the first fails. Survivors are printed
with their place. Some change nothing that can be seen (a bound that is never reached, a tolerance); the others are gaps in the tests.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.validation.runs import Options, collect, console

TESTS = {
    "bayesgmm.criteria": ["tests/test_criteria.py"],
    "bayesgmm.core.parameters": ["tests/core/test_parameters.py", "tests/test_properties.py"],
    "bayesgmm.core.covariance": ["tests/core/test_covariance.py", "tests/test_properties.py", "tests/core/test_em.py"],
    "bayesgmm.core.priors": ["tests/core/test_priors.py", "tests/test_properties.py"],
    "bayesgmm.core.em": ["tests/core/test_em.py", "tests/test_properties.py"],
    "bayesgmm.core.information": ["tests/core/test_information.py"],
}
EACH, QUICK_EACH, FULL_EACH = 4, 1, 10_000
TARGET = 0.9
SECONDS = 180.0


@cache
def _loaded() -> None:
    """All that the tests import and load, once, before the first child is forked."""
    import warnings

    import arviz  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401

    from bayesgmm import GaussianMixture
    from bayesgmm.datasets import load_faithful

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("full", "tied", "diag", "spherical"):
            GaussianMixture(2, covariance_type=kind).fit(load_faithful())


def chosen(module: str, n: int, seed: int) -> list[int]:
    """The mutants of a module that are run: a random sample, the first of which stay when it grows."""
    from benchmarks.mutants import mutants

    return [int(i) for i in np.random.default_rng(seed).permutation(len(mutants(module)))[:n]]


def one_mutant(module: str, number: int) -> dict[str, Any]:
    """Run the tests against a mutant."""
    from benchmarks.mutants import mutants, verdict

    _loaded()
    mutant, begin = mutants(module)[number], time.perf_counter()
    found = verdict(mutant, TESTS[module], SECONDS)
    place = f"{mutant.function}, line {mutant.line}: {mutant.change}"
    return {"verdict": found, "place": place, "seconds": time.perf_counter() - begin}


def run(options: Options) -> int:
    """Print the table and the survivors; return 1 where too many survive, with mutants that failed to run."""
    from benchmarks.mutants import mutants

    n = options.number_of(EACH, QUICK_EACH, FULL_EACH)
    keys = [(module, number) for module in TESTS for number in chosen(module, n, options.seed)]
    results, failed = collect("mutation", one_mutant, keys, {}, options)
    table = Table(title="Mutants of the core and of the criteria")
    for heading in ("module", "mutants", "run", "killed", "share"):
        table.add_column(heading, justify="left" if heading == "module" else "right", no_wrap=True)
    killed = 0
    for module in TESTS:
        own = [r for (name, _), r in results.items() if name == module]
        dead = sum(r["verdict"] != "survived" for r in own)
        killed += dead
        table.add_row(
            module, str(len(mutants(module))), str(len(own)), str(dead), f"{100 * dead / max(1, len(own)):.0f} %"
        )
    share = killed / max(1, len(results))
    screen = console()
    screen.print(table)
    for (module, _), r in results.items():
        if r["verdict"] == "survived":
            screen.print(f"survived: {module}.{r['place']}", markup=False)
    met = share >= TARGET
    screen.print(
        f"{killed} of {len(results)} killed, {100 * share:.0f} %; target: {100 * TARGET:.0f} %: "
        + ("–" if options.quick else "met" if met else "NOT MET"),
        markup=False,
    )
    return int(not met and not options.quick) + failed
