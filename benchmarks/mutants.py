"""Mutants of a module: one operator, number, condition or statement of a function changed at a time, in a process that has it loaded.

A mutant's code takes the place of the function's own in a forked child, so that nothing is imported anew; the child runs tests and ends
with what they end with. What Numba compiles is left alone, and so are messages, annotations and defaults.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import os
import signal
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

SWAPS: dict[type[ast.AST], Callable[[], ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_PAIRS = (("minimum", "maximum"), ("min", "max"), ("any", "all"), ("argmin", "argmax"))
NAMES = dict(_PAIRS) | {b: a for a, b in _PAIRS}


@dataclass(frozen=True)
class Mutant:
    """What is changed where."""

    module: str
    function: str
    line: int
    change: str
    place: int


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], ast.AST]]]:
    """What may be made of a node: in words, and from a copy of it."""
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
        swap = SWAPS[type(node.op)]
        yield f"{type(node.op).__name__} to {swap.__name__}", lambda n: _with(n, op=swap())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        compare = SWAPS[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} to {compare.__name__}", lambda n: _with(n, ops=[compare(), *n.ops[1:]])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield f"without {type(node.op).__name__}", lambda n: n.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} to {not node.value}", lambda n: _with(n, value=not n.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"{node.value} to {node.value + 1}", lambda n: _with(n, value=n.value + 1)
    if isinstance(node, ast.Attribute | ast.Name):
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        if name in NAMES:
            field = "attr" if isinstance(node, ast.Attribute) else "id"
            yield f"{name} to {NAMES[name]}", lambda n: _with(n, **{field: NAMES[name]})
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "condition turned round", lambda n: _with(n, test=ast.UnaryOp(ast.Not(), n.test))
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "statement gone", lambda n: ast.copy_location(ast.Pass(), n)


def _with(node: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _parts(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node below, with what holds it; not what is said to users, nor types."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "defaults", "kw_defaults", "type_params"):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.Raise | ast.JoinedStr) or not isinstance(child, ast.AST):
                continue
            yield node, name, place, child
            yield from _parts(child)


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(module)))


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods by name; not what is compiled."""
    for node in tree.body:
        for owner, inner in (
            [("", node)] if not isinstance(node, ast.ClassDef) else [(f"{node.name}.", n) for n in node.body]
        ):
            if isinstance(inner, ast.FunctionDef) and "njit" not in ast.unparse(inner.decorator_list or []):  # type: ignore[arg-type]
                yield f"{owner}{inner.name}", inner


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module's functions."""
    found = []
    for name, function in _functions(_tree(module)):
        place = 0
        for _, _, _, child in _parts(function):
            for words, _ in _changes(child):
                found.append(Mutant(module, name, getattr(child, "lineno", function.lineno), words, place))
                place += 1
    return found


def _code(mutant: Mutant) -> types.CodeType:
    """The mutated function's code."""
    tree = copy.deepcopy(_tree(mutant.module))
    function = dict(_functions(tree))[mutant.function]
    place = 0
    for holder, name, index, child in list(_parts(function)):
        for _, change in list(_changes(child)):
            if place == mutant.place:
                new = change(child)
                if index is None:
                    setattr(holder, name, new)
                else:
                    getattr(holder, name)[index] = new
            place += 1
    module = importlib.import_module(mutant.module)
    code = compile(ast.fix_missing_locations(tree), str(module.__file__), "exec")
    for part in mutant.function.split("."):
        code = next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == part)
    return code


def _put(mutant: Mutant) -> None:
    """Let the mutated code take the place of the function's own."""
    found: Any = importlib.import_module(mutant.module)
    for part in mutant.function.split("."):
        found = inspect.getattr_static(found, part)
    for unwrap in ("fget", "__func__", "__wrapped__", "func"):
        found = getattr(found, unwrap, None) or found
    found.__code__ = _code(mutant)


def verdict(mutant: Mutant | None, tests: Sequence[str], seconds: float) -> str:
    """Whether tests kill a mutant: "killed", "survived" or "never ends". None is the module as it is."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            if mutant is not None:
                _put(mutant)
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]))
        finally:
            os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "never ends"
