"""Coverage-guided fuzzing (atheris) of what reads files: ``python -m benchmarks.fuzzing TARGET [options of libFuzzer]``.

- table: bytes as a file, read by ``read_table`` and by ``open_blocks``: a refusal (``DataError``), or finite numbers, the same by both;
- fit: a saved fit with values of ``fit.json`` replaced, hashes made right again, as somebody would who knew the format: a refusal, or a fit
  that scores without NaN;
- manifest: bytes as ``fit.json``;
- draws: the arrays of ``posterior.nc`` replaced, hashes made right again.

For tables Numba's compiler is off, so that the coverage of compiled functions counts too, and an index out of bounds is an error.
``benchmarks/validation/fuzz.py`` runs the targets for a while.
A crash leaves its input in a file, which is run again by naming it as an argument.
"""

from __future__ import annotations

import copy
import importlib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(tempfile.mkdtemp(prefix="bayesgmm-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
TEXTS = (
    b"a,b\n1,2\n3,4.5\n-6e-3,7\n",
    b"x\ty\r\n1\t2\r\n3\t4\r\n",
    b"a;b\n1,5;2\n3,25;4\n",
    b"a b c\n1 2 3\n4  5   6\n",
    b"1,2\n3,4\n5,6\n",
    b',x,y\n"row 1",1,2\n"row, 2",3,4\n',
    b"x,y\n1,2,\n3,4,\n",
    b"\xef\xbb\xbfa,b\n1,NA\n,inf\n",
    "\ufeffa,b\n1,2\n3,4\n".encode("utf-16-le"),
    b'"a\nb",c\n1,2\n\n\n3,4\n',
    b"k,label\n1,red\n2,blue\n3,red\n4,blue\n",
    b"a,b\nTrue,1\nFalse,2\n",
)


def _seeds() -> list[bytes]:
    """Tables of every format, each with a byte in front that says how it is read."""
    from io import BytesIO

    import numpy as np
    import pandas as pd

    found = list(TEXTS)
    X = np.arange(8.0).reshape(4, 2)
    fields = np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")])
    for array in (X, np.asfortranarray(X), X.astype("f4"), X.astype("i2"), X[:, 0], X > 3, fields):
        stream = BytesIO()
        np.save(stream, array)
        found.append(stream.getvalue())
    stream = BytesIO()
    pd.DataFrame({"a": X[:, 0], "b": [1, 2, None, 4], "c": list("wxyz")}).to_parquet(stream)
    return [bytes([i % 8]) + content for i, content in enumerate([*found, stream.getvalue()])]


def table(data: bytes) -> None:
    """Bytes as a file."""
    import numpy as np

    from bayesgmm.exceptions import DataError
    from bayesgmm.io import read_table
    from bayesgmm.tables import open_blocks

    if not data:
        return
    path = FOLDER / "data.csv"
    path.write_bytes(data[1:])
    options: dict[str, Any] = {0: {}, 1: {"columns": ["a"]}, 2: {"labels": "label"}}.get(data[0] % 8, {})
    whole = blocks = None
    with suppress(DataError):
        whole = read_table(path, **options)
    with suppress(DataError):
        rows = open_blocks(path, columns=options.get("columns"), block_rows=3)
        blocks = np.concatenate([np.empty((0, rows.n_features)), *rows])
    if whole is not None:
        assert np.isfinite(whole.values).all(), "read_table gave a number that is not finite"
        assert len(whole.values) >= 2 and whole.values.shape[1] == len(whole.columns)  # noqa: PT018
    if blocks is not None:
        assert np.isfinite(blocks).all(), "open_blocks gave a number that is not finite"
    if whole is not None and blocks is not None and "labels" not in options:
        assert np.array_equal(whole.values, blocks), f"two readers, two tables: {whole.values!r}, {blocks!r}"


def _saved(name: str) -> tuple[Path, Any]:
    """A saved fit, by EM or of a posterior, and rows to score."""
    import warnings

    from bayesgmm import BayesianGaussianMixture, GaussianMixture, SeparationPrior
    from bayesgmm.datasets import load_faithful

    X, folder = load_faithful()[:40], FOLDER / name
    short: dict[str, Any] = {
        "method": "laplace",
        "draws": 4,
        "chains": 2,
        "target_ess": 0,
        "n_init": 1,
        "random_state": 0,
    }
    fits: dict[str, Any] = {
        "em": GaussianMixture(2, prior="default", n_init=2, random_state=0),
        "posterior": BayesianGaussianMixture(2, progressbar=False, **short),
        "separation": BayesianGaussianMixture(1, prior=SeparationPrior(), progressbar=False, **short),
    }
    if not (folder / "fit.json").exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits[name].fit(X).save(folder)
    return folder, X


def _load_and_score(folder: Path, X: Any) -> None:
    """A refusal, or a fit that scores and classifies without NaN."""
    import warnings

    import numpy as np

    from bayesgmm.exceptions import DataError
    from bayesgmm.persistence import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            back = load(folder)
        except DataError:
            return
        rows = np.resize(X.to_numpy(dtype=float), (len(X), back.n_features_in_))
        assert not np.isnan(back.score_samples(rows)).any(), "a loaded fit scores NaN"
        assert np.allclose(back.predict_proba(rows).sum(axis=1), 1), "probabilities of a loaded fit do not sum to 1"


def _written(folder: Path, manifest: dict[str, Any]) -> None:
    """A manifest with its hash made right."""
    import json

    from bayesgmm import persistence

    if "draws_hash" in manifest and manifest["draws_hash"] is not None:
        manifest["draws_hash"] = persistence._file_hash(folder / persistence.DRAWS)
    manifest["manifest_hash"] = persistence._manifest_hash(manifest)
    (folder / persistence.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def manifest(data: bytes) -> None:
    """Bytes as ``fit.json``."""
    folder, X = _saved("em")
    kept = folder / "kept.json"
    if not kept.exists():
        kept.write_bytes((folder / "fit.json").read_bytes())
    (folder / "fit.json").write_bytes(data)
    _load_and_score(folder, X)


def fit(data: bytes) -> None:
    """Values of ``fit.json`` replaced, taken away, or put in another's place."""
    import atheris

    provider = atheris.FuzzedDataProvider(data)
    folder, X = _saved(provider.PickValueInList(["em", "em", "em", "posterior", "separation"]))
    changed = copy.deepcopy(_original(folder))
    for _ in range(provider.ConsumeIntInRange(1, 3)):
        parent, key = _place(changed, provider)
        what = provider.ConsumeIntInRange(0, 5)
        if what == 0 and isinstance(parent, dict):
            del parent[key]
        elif what == 1:
            other, at = _place(changed, provider)
            parent[key] = copy.deepcopy(other[at])
        elif what == 2:
            parent[key] = provider.ConsumeFloat()
        elif what == 3 and isinstance(parent[key], list):
            parent[key] = parent[key][: provider.ConsumeIntInRange(0, 3)]
        else:
            parent[key] = copy.deepcopy(provider.PickValueInList(VALUES))
        if not isinstance(changed, dict):
            return
    _written(folder, changed)
    _load_and_score(folder, X)


VALUES: list[Any] = [
    None,
    True,
    "",
    "x",
    "full",
    -1,
    0,
    1,
    3,
    10**30,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    [1.0, 2.0],
]


@cache
def _original(folder: Path) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    return found


def _place(tree: Any, provider: Any) -> tuple[Any, Any]:
    """Somewhere in nested dicts and lists: what holds it, and its key there."""
    while True:
        key = provider.PickValueInList(list(tree) if isinstance(tree, dict) else list(range(len(tree))))
        below = tree[key]
        if not isinstance(below, dict | list) or not below or provider.ConsumeIntInRange(0, 4) == 0:
            return tree, key
        tree = below


def draws(data: bytes) -> None:
    """Arrays of ``posterior.nc`` filled with other numbers, of another shape, or gone."""
    import atheris
    import h5py
    import numpy as np

    from bayesgmm.persistence import DRAWS

    provider = atheris.FuzzedDataProvider(data)
    saved, X = _saved(provider.PickValueInList(["posterior", "separation"]))
    # A folder of its own: a reader that fails may keep its file open.
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        folder = Path(shutil.copytree(saved, name, dirs_exist_ok=True))
        with np.errstate(over="ignore"), h5py.File(folder / DRAWS, "r+") as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            for _ in range(provider.ConsumeIntInRange(1, 2)):
                array = provider.PickValueInList(sorted(names))
                if array not in file:
                    continue
                what, values = provider.ConsumeIntInRange(0, 3), np.atleast_1d(file[array][()])
                if values.dtype.kind not in "fiu":
                    continue
                if what == 0:
                    values.flat[provider.ConsumeIntInRange(0, values.size - 1)] = _number(provider, values.dtype)
                    file[array][...] = values.reshape(file[array].shape)
                elif what == 1:
                    file[array][...] = np.full(file[array].shape, _number(provider, values.dtype))
                elif what == 2:
                    file[array][...] = -values.reshape(file[array].shape)
                else:
                    del file[array]
        _written(folder, copy.deepcopy(_original(saved)))
        _load_and_score(folder, X)


def _number(provider: Any, dtype: Any) -> Any:
    number = provider.ConsumeFloat()
    return number if dtype.kind == "f" else int(min(max(number, 0), 100)) if number == number else 0


TARGETS: dict[str, Callable[[bytes], None]] = {"table": table, "fit": fit, "manifest": manifest, "draws": draws}

TABLES = ["bayesgmm.delimited", "bayesgmm.formats", "bayesgmm.io", "bayesgmm.sources", "bayesgmm.tables"]
MODULES = {name: TABLES if name == "table" else ["bayesgmm.persistence"] for name in TARGETS}
"""What is instrumented."""
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "table": _seeds,
    "manifest": lambda: [(_saved("em")[0] / "fit.json").read_bytes()],
    # What a choice of changes is read from.
    "fit": lambda: [random.Random(i).randbytes(64) for i in range(100)],
    "draws": lambda: [random.Random(i).randbytes(64) for i in range(100)],
}


def main(arguments: list[str]) -> None:
    """Fuzz a target until libFuzzer ends."""
    import atheris

    if not arguments or arguments[0] not in TARGETS:
        sys.exit(
            f"usage: python -m benchmarks.fuzzing {'|'.join(TARGETS)} [options of libFuzzer, or inputs to run again]"
        )
    name, *more = arguments
    if name == "table":
        os.environ["NUMBA_DISABLE_JIT"] = "1"
    # Compiled code cannot be instrumented: what these modules stand on is imported before, and what fits need afterwards.
    for module in ("bayesgmm.core.hierarchical", "bayesgmm.core.em", "bayesgmm.core.blocks"):
        importlib.import_module(module)
    with atheris.instrument_imports(include=MODULES[name]):
        for module in MODULES[name]:
            importlib.import_module(module)
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(SEEDS[name]()):
        (corpus / f"{i:03}").write_bytes(seed)
    try:
        atheris.Setup(
            [sys.argv[0], *more, *([] if any(os.path.isfile(m) for m in more) else [str(corpus)])], TARGETS[name]
        )
        atheris.Fuzz()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
