"""How to have the same again: settings, versions, seed, hash of the data, and the code."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import metadata
from typing import Any

import numpy as np

from bayesgmm import __version__
from bayesgmm.persistence import data_hash
from bayesgmm.report.blocks import Block, Code, Paragraph, Section, Table
from bayesgmm.report.facts import FitFacts
from bayesgmm.tables import is_several

LIBRARIES = ("numpy", "scipy", "numba", "scikit-learn", "pandas", "pymc", "nutpie", "arviz", "matplotlib")
"""Whose versions bear on the numbers or the figures."""

LONGEST_VALUE = 400
"""Characters of a setting that are shown."""


def hash_of(facts: FitFacts, provenance: Mapping[str, Any] | None) -> str | None:
    """SHA-256 of the rows and their weights; None where neither rows nor a hash are there."""
    if facts.X is not None:
        return data_hash(facts.X, facts.sample_weight)
    return None if provenance is None else provenance.get("data_hash")


def settings_section(facts: FitFacts, provenance: Mapping[str, Any] | None, code: str | None = None) -> Section:
    """Settings, seed, data hash, versions, and code.

    Parameters
    ----------
    facts : FitFacts
    provenance : mapping or None
        ``source``, ``notes`` and ``data_hash`` of the data, where they are known.
    code : str, optional
        Instead of the fit's own.
    """
    fit = facts.fit
    defaults = {n: p.default for n, p in inspect.signature(type(fit).__init__).parameters.items()}
    rows = []
    for name, value in fit.get_params(deep=False).items():
        rows.append([name, _short(value), "default" if _equal(value, defaults.get(name)) else "set"])
    seed = fit.random_state
    seeded = isinstance(seed, int | np.integer)
    blocks: list[Block] = [
        Table("Settings of " + type(fit).__name__, ["setting", "value", ""], rows),
        Paragraph(
            f"Seed: {seed}. The same code gives the same numbers, bit for bit, on the same versions."
            if seeded
            else "No seed was kept: a fit made again has other draws. Give random_state an integer."
        ),
    ]
    found = hash_of(facts, provenance)
    if found is not None:
        weights = " and their weights" if facts.sample_weight is not None else ""
        blocks.append(Code(found, f"SHA-256 of the rows{weights}"))
    blocks.append(Table("Versions with which this report was written", ["what", "version"], versions()))
    blocks.append(
        Code(
            code or fit_code(fit, provenance, facts.sample_weight is not None),
            "Code that makes this fit and this report",
        )
    )
    return Section("settings", "Settings and how to reproduce this", blocks)


def versions() -> list[list[str]]:
    """Of this package, Python, and the libraries that bear on the numbers."""
    rows = [["bayesgmm", __version__], ["Python", platform.python_version()]]
    for name in LIBRARIES:
        try:
            rows.append([name, metadata.version(name)])
        except metadata.PackageNotFoundError:
            rows.append([name, "not installed"])
    return rows


def reading_code(provenance: Mapping[str, Any] | None) -> list[str]:
    """Lines that read the rows, as ``X``."""
    source = None if provenance is None else str(provenance["source"])
    if source == "Old Faithful":
        return ["from bayesgmm.datasets import load_faithful", "", "X = load_faithful()"]
    if source is None or source == "standard input":
        return ["", "X = ...  # the rows whose SHA-256 stands above"]
    columns = provenance.get("columns") if provenance else None
    named = f", columns={list(columns)!r}" if columns else ""
    if provenance is not None and provenance.get("in_blocks"):
        return ["from bayesgmm import open_blocks", "", f"X = open_blocks({source!r}{named})"]
    if is_several(source):
        return ["from bayesgmm.tables import read_all", "", f"X = read_all({source!r}{named}).to_frame()"]
    return ["from bayesgmm.io import read_table", "", f"X = read_table({source!r}{named}).to_frame()"]


def fit_code(fit: Any, provenance: Mapping[str, Any] | None, weighted: bool = False) -> str:
    """Python that fits the same again and writes this report."""
    name = type(fit).__name__
    defaults = {n: p.default for n, p in inspect.signature(type(fit).__init__).parameters.items()}
    arguments, imports = [], [name]
    for parameter, value in fit.get_params(deep=False).items():
        if parameter == "progressbar" or (_equal(value, defaults.get(parameter)) and parameter != "n_components"):
            continue
        if is_dataclass(value) and not isinstance(value, type):
            imports.append(type(value).__name__)
        arguments.append(f"    {parameter}={_literal(value)},")
    weights = ", sample_weight=v" if weighted else ""
    given = not hasattr(fit, "_draws") and not (provenance is not None and provenance.get("in_blocks"))
    lines = [
        f"from bayesgmm import {', '.join(sorted(imports))}",
        *reading_code(provenance),
        *(["v = ...  # the weights of the rows"] if weighted else []),
        f"fit = {name}(",
        *arguments,
        f").fit(X{weights})",
        f'fit.report("report.html"{", X" + weights if given else ""})',
    ]
    return "\n".join(lines)


def _literal(value: Any) -> str:
    """A value as Python text."""
    if is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{f.name}={_literal(getattr(value, f.name))}" for f in fields(value) if f.init)
        return f"{type(value).__name__}({inside})"
    if isinstance(value, np.ndarray):
        return repr(value.tolist())
    if isinstance(value, np.generic):
        return repr(value.item())
    return repr(value)


def _short(value: Any) -> str:
    text = type(value).__name__ + ", see Prior" if is_dataclass(value) else _literal(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _equal(value: Any, default: Any) -> bool:
    if isinstance(value, np.ndarray) or is_dataclass(value):
        return value is default
    return bool(value == default) and type(value) is type(default)
