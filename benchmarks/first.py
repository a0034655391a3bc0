"""Time to the first result, each in a process of its own: imports, EM, a posterior, commands.

"Warm" finds everything in the caches of Numba, "empty" nothing; both are in a new folder. A process in which the same rows are read and the
bare libraries imported is the peer where the target is one beyond imports, and runs in turns with ours. Wall-clock time is judged; the
processor's time of the process, all threads, stands beside it, since on a machine with other work the wall clock tells of that work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, Section, duration

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 1800

READ = "import numpy as np; X = np.loadtxt({table!r}, delimiter=',', skiprows=1)\n"
EM = READ + "from {package} import GaussianMixture; GaussianMixture(2, random_state=0).fit(X)"
POSTERIOR = (
    READ + "from bayesgmm import BayesianGaussianMixture\n"
    "BayesianGaussianMixture(2, draws={draws}, chains=4, random_state=1, progressbar=False).fit(X)"
)
BARE = READ + "import pymc, nutpie"
# The second model has other rows, features and components; told is when its first chain is started.
SECOND = (
    POSTERIOR
    + """
import json, time, warnings
from bayesgmm.inference import nuts
started, begin_chain = [], nuts.start_chain
def start_chain(*arguments):
    started.append(time.perf_counter())
    return begin_chain(*arguments)
nuts.start_chain = start_chain
rng = np.random.default_rng(0)
Z = np.concatenate([rng.normal(9.0 * k, 1.0, (150, 3)) for k in range(3)])
second = BayesianGaussianMixture(3, draws={draws}, chains=4, random_state=1, progressbar=False)
begin = time.perf_counter()
second.fit(Z)
print(json.dumps(started[0] - begin))
"""
)


@dataclass(frozen=True)
class Run:
    """Seconds of a process by the wall clock and by its processors, and the last line that it printed."""

    wall: float
    processor: float
    printed: str


def _run(arguments: Sequence[str], cache: Path) -> Run:
    flags = f"base_compiledir={cache / 'pytensor'}"
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(cache / "numba"),
        "PYTENSOR_FLAGS": flags,
        "PYTHONPATH": str(ROOT),
    }
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, *arguments], cwd=cache, env=environment, stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        printed = out.read().splitlines()
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)} failed:\n{errors.read()[-2000:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, printed[-1] if printed else "")


def _row(
    case: str,
    ours: Sequence[Run],
    limit: float | None,
    peer: Sequence[Run] = (),
    *,
    against: str = "",
    beyond: bool = False,
    quick: bool = False,
) -> Row:
    """A limit in seconds on the median of ours, or, ``beyond``, on that of the differences to the peer's runs."""
    walls = [run.wall for run in ours]
    seconds = float(np.median(walls))
    theirs = [run.wall for run in peer]
    judged = float(np.median(np.subtract(walls, theirs))) if beyond else seconds
    note = f"processor time {duration(float(np.median([run.processor for run in ours])))}"
    if peer:
        note += f" | {duration(float(np.median([run.processor for run in peer])))}"
    if beyond:
        note += f"; {'−' if judged < 0 else ''}{duration(abs(judged))} beyond the peer"
    return Row(
        case,
        "as they come",
        duration(seconds),
        duration(float(np.median(theirs))) if peer else "–",
        f"{np.median(theirs) / seconds:.2f}×" if peer else "–",
        "–" if limit is None else f"≤ {limit:g} s" + (" beyond" if beyond else ""),
        None if limit is None or quick else judged <= limit,
        note,
        {"ours": walls, "peer": theirs, "ours_processor": [r.processor for r in ours], "judged": judged},
        against,
    )


def run(quick: bool) -> Section:
    """Measure everything in fresh processes."""
    table = str(files("bayesgmm.datasets") / "faithful.csv")
    draws, repetitions = (100, 1) if quick else (1000, 5)
    texts = {"table": table, "draws": draws}
    em, sklearn_em = EM.format(package="bayesgmm", **texts), EM.format(package="sklearn.mixture", **texts)
    posterior, bare, second = (text.format(**texts) for text in (POSTERIOR, BARE, SECOND))
    with tempfile.TemporaryDirectory() as folder:
        warm = Path(folder) / "warm"
        warm.mkdir()

        def empty(arguments: Sequence[str]) -> Run:
            with tempfile.TemporaryDirectory() as cache:
                return _run(arguments, Path(cache))

        def turns(*tasks: Callable[[], Run], times: int = repetitions) -> list[list[Run]]:
            measured = [[task() for task in tasks] for _ in range(times)]
            return [list(runs) for runs in zip(*measured, strict=True)]

        def python(code: str) -> Callable[[], Run]:
            return lambda: _run(["-c", code], warm)

        def command(*arguments: str) -> Callable[[], Run]:
            return lambda: _run(["-m", "bayesgmm", *arguments], warm)

        first_posterior = empty(["-c", posterior])
        first_em = [empty(["-c", em]) for _ in range(1 if quick else 2)]
        _run(["-m", "bayesgmm", "warmup", "--quiet"], warm)
        fit = ("fit", table, "-k", "2", "--method", "em", "--quiet", "--force", "--out", str(Path(folder) / "fit"))
        score = (
            "score",
            str(Path(folder) / "fit"),
            table,
            "--force",
            "--quiet",
            "--out",
            str(Path(folder) / "scored.csv"),
        )
        for task in (python(sklearn_em), python(bare), command(*fit), command(*score)):
            task()
        imports, nothing = turns(python("import bayesgmm"), python("pass"))
        warm_em, peer_em = turns(python(em), python(sklearn_em))
        warm_posterior, bare_imports = turns(python(posterior), python(bare))
        told = [float(python(second)().printed) for _ in range(1 if quick else 3)]
        helps, versions, fits, scores = turns(command("--help"), command("--version"), command(*fit), command(*score))
    row = _row(
        "second model, N=450 D=3 K=3: until its first chain starts", [Run(s, s, "") for s in told], 0.5, quick=quick
    )
    rows = (
        _row("import bayesgmm", imports, 0.3, nothing, against="python -c pass", quick=quick),
        _row(
            "first EM fit, warm", warm_em, 2.0, peer_em, against="scikit-learn's import and fit, one start", quick=quick
        ),
        _row("first EM fit ever, caches empty", first_em, 10.0, quick=quick),
        _row(
            f"first posterior, warm, 4 × {draws} draws",
            warm_posterior,
            3.0,
            bare_imports,
            against="import pymc, nutpie",
            beyond=True,
            quick=quick,
        ),
        _row("first posterior ever, caches empty", [first_posterior], None, quick=quick),
        row,
        _row("bayesgmm --help", helps, 0.3, quick=quick),
        _row("bayesgmm --version", versions, 0.3, quick=quick),
        _row("bayesgmm fit --method em, table, figure and report", fits, None, quick=quick),
        _row("bayesgmm score, 272 rows", scores, None, quick=quick),
    )
    return Section(
        "Time to the first result, Old Faithful (N=272 D=2 K=2), fresh processes", "what each row says", rows
    )
