"""A selection kept in the folder of its sweep, and read from there: the fits lie beside it, so that only the table is added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.exceptions import DataError
from bayesgmm.io import write_text
from bayesgmm.sweep import MANIFEST, Key, Model, load_model, read_manifest

if TYPE_CHECKING:
    import pandas as pd

    from bayesgmm.selection import Selection

RESULT = "result"
"""Where it stands in the sweep's manifest."""


def keep(selection: Selection, path: str | Path) -> None:
    """Add a selection to the manifest of its sweep.

    Parameters
    ----------
    selection : Selection
    path : path
        The folder that ``select(out=)`` has written.

    Raises
    ------
    DataError
        If there is no sweep in the folder.
    OSError
        If it cannot be written.
    """
    manifest = read_manifest(path)
    sensitivity = selection.sensitivity
    manifest[RESULT] = {
        "models": [[str(kind), int(K)] for kind, K in selection.table.index],
        "columns": {
            name: {"dtype": str(column.dtype), "values": [_plain(value) for value in column]}
            for name, column in selection.table.items()
        },
        "criteria": list(selection.criteria),
        "n_rows": selection.n_rows,
        "interrupted": selection.interrupted,
        "notes": list(selection.notes),
        "sensitivity": None
        if sensitivity is None
        else {
            "variations": [str(v) for v in sensitivity.index],
            "columns": [[*map(str, name), [_plain(v) for v in sensitivity[name]]] for name in sensitivity.columns],
        },
        "provenance": selection.provenance,
    }
    write_text(Path(path) / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def load_selection(path: str | Path) -> Selection:
    """Read a selection that ``select(out=path)`` or the command has finished.

    Parameters
    ----------
    path : path

    Returns
    -------
    Selection

    Raises
    ------
    DataError
        If there is none, it is not finished, or a file is truncated or altered.
    """
    from bayesgmm.selection import Selection

    manifest = read_manifest(path)
    if RESULT not in manifest:
        raise DataError(
            f"{path} holds a selection that is not finished: give the select command again, it goes on from there"
        )
    try:
        found = manifest[RESULT]
        method = manifest["settings"]["method"]
        keys: list[Key] = [(str(kind), int(K)) for kind, K in found["models"]]
        table = _table(keys, found["columns"])
        models = {key: Model(key) for key in keys}
        for model in models.values():
            load_model(path, model)
        fits = {key: (m.em if method == "em" else m.posterior) for key, m in models.items()}
        return Selection(
            table=table,
            fits={key: fit for key, fit in fits.items() if fit is not None},
            em_fits={key: m.em for key, m in models.items() if m.em is not None},
            elpds={m.name: m.elpd for m in models.values() if m.elpd is not None and "loo" in found["criteria"]},
            method=method,
            criteria=tuple(found["criteria"]),
            n_rows=int(found["n_rows"]),
            interrupted=found["interrupted"],
            notes=tuple(found["notes"]),
            sensitivity=_sensitivity(found["sensitivity"]),
            provenance=found["provenance"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{Path(path) / MANIFEST} is truncated or altered: {error}") from None


def _plain(value: Any) -> Any:
    """A cell as JSON knows it; what is missing is null."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str):
        return value
    if value is None or str(value) in ("<NA>", "nan"):
        return None
    return int(value) if isinstance(value, int | np.integer) else float(value)


def _table(keys: list[Key], columns: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd

    if any(len(column["values"]) != len(keys) for column in columns.values()):
        raise ValueError("a column of the table has not one value for each model")
    index = pd.MultiIndex.from_tuples(keys, names=["covariance_type", "n_components"])
    return pd.DataFrame({name: pd.array(c["values"], dtype=c["dtype"]) for name, c in columns.items()}, index=index)


def _sensitivity(found: dict[str, Any] | None) -> pd.DataFrame | None:
    import pandas as pd

    if found is None:
        return None
    names = pd.MultiIndex.from_tuples([(a, b) for a, b, _ in found["columns"]], names=["quantity", "model"])
    columns = [pd.Series(values, dtype=bool if a == "refitted" else float) for a, _, values in found["columns"]]
    table = pd.concat(columns, axis=1)
    table.columns, table.index = names, pd.Index(found["variations"], name="prior")
    return table
