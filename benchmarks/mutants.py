"""Mutants of a module: one operator, number, condition or statement of a function changed at a time, in a process that has it loaded.

A mutant's code takes the place of the function's own in a forked child, so that nothing is imported anew; the child runs the tests that
reach the changed statement, as an earlier run of all tests has recorded, the quick ones first. What Numba compiles is left alone, and so
are messages, annotations and defaults.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import json
import os
import signal
import sys
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
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
UNSEEN = ("strict", "copy")
"""Arguments that check, or that spare memory, and do not change what is returned."""

_PAIRS = (("minimum", "maximum"), ("min", "max"), ("any", "all"), ("argmin", "argmax"))
NAMES = dict(_PAIRS) | {b: a for a, b in _PAIRS}


@dataclass(frozen=True)
class Mutant:
    """What is changed where; ``lines``: first and last of the statement, or of the head of a compound one."""

    module: str
    function: str
    line: int
    change: str
    place: int
    lines: tuple[int, int]


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
            if isinstance(child, ast.keyword) and child.arg in UNSEEN:
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
            if isinstance(inner, ast.FunctionDef) and not _compiled(inner):
                yield f"{owner}{inner.name}", inner


def _compiled(function: ast.FunctionDef) -> bool:
    return any(name in ast.unparse(each) for each in function.decorator_list for name in ("njit", "intrinsic"))


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module's functions."""
    found = []
    for name, function in _functions(_tree(module)):
        place = 0
        lines = _lines(function)
        for _, _, _, child in _parts(function):
            for words, _ in _changes(child):
                line = getattr(child, "lineno", function.lineno)
                found.append(Mutant(module, name, line, words, place, lines.get(child, (line, line))))
                place += 1
    return found


def _lines(function: ast.FunctionDef) -> dict[ast.AST, tuple[int, int]]:
    """Of every node of a function, the lines of the innermost statement that holds it, without the body of a compound one."""
    found = {}
    for statement in ast.walk(function):
        if isinstance(statement, ast.stmt):
            body = getattr(statement, "body", None)
            end = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
            span = (statement.lineno, max(statement.lineno, end))
            # Statements come before those that they hold: the innermost is written last.
            found |= dict.fromkeys(ast.walk(statement), span)
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


class _Recorder:
    """Plugin for pytest: which lines of some files each test reaches, and for how long it runs."""

    TOOL = 4

    def __init__(self, files: Sequence[str]) -> None:
        self.files = set(files)
        self.lines: set[tuple[str, int]] = set()
        self.shared: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self.tests: dict[str, dict[str, Any]] = {}
        monitor = sys.monitoring
        monitor.use_tool_id(self.TOOL, "mutants")
        monitor.register_callback(self.TOOL, monitor.events.LINE, self._line)
        monitor.set_events(self.TOOL, monitor.events.LINE)

    def _line(self, code: types.CodeType, line: int) -> Any:
        if code.co_filename in self.files:
            self.lines.add((code.co_filename, line))
        # Once a test is enough; what is no file of ours is reported once more a test at most.
        return sys.monitoring.DISABLE

    def pytest_runtest_logreport(self, report: Any) -> None:
        file = report.nodeid.partition("::")[0]
        if report.when == "setup":
            # What a fixture of the file has run was run for all its tests.
            self.shared[file] |= self.lines
        elif report.when == "call":
            self.tests[report.nodeid] = {"seconds": report.duration, "passed": report.passed, "lines": self.lines}
        self.lines = set()
        sys.monitoring.restart_events()

    def found(self) -> dict[str, Any]:
        """By test, its seconds and its lines by file; only tests that passed."""
        result = {}
        for name, test in self.tests.items():
            lines = defaultdict(list)
            for file, line in sorted(test["lines"] | self.shared[name.partition("::")[0]]):
                lines[file].append(line)
            if test["passed"]:
                result[name] = {"seconds": test["seconds"], "lines": dict(lines)}
        return result


PYTEST = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "slow or not slow")


def record(tests: str, modules: Sequence[str], to: Path) -> None:
    """Run a file of tests in a forked child and write which lines of the modules each of them reaches."""
    names = {str(importlib.import_module(module).__file__): module for module in modules}

    def run() -> int:
        import pytest

        recorder = _Recorder(list(names))
        pytest.main([*PYTEST, tests], plugins=[recorder])
        found = recorder.found()
        for test in found.values():
            test["lines"] = {names[file]: lines for file, lines in test["lines"].items()}
        to.write_text(json.dumps(found), encoding="utf-8")
        return 0

    _in_child(run, 1800.0)


def reaching(mutant: Mutant, recorded: dict[str, Any], limit: float) -> list[str]:
    """Tests that reach a mutant, for so many seconds in all: quick ones first, of many functions, and the own file's."""
    first, last = mutant.lines
    own = f"tests/core/test_{mutant.module.rpartition('.')[2]}.py"
    by_function: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for name, test in recorded.items():
        if any(first <= line <= last for line in test["lines"].get(mutant.module, ())):
            by_function[name.partition("[")[0]].append((test["seconds"], name))
    ranked = sorted(
        ((seconds + 0.01) * (1 + rank / 4) / (4 if name.startswith(own) else 1), seconds, name)
        for tests in by_function.values()
        for rank, (seconds, name) in enumerate(sorted(tests))
    )
    chosen, spent = [], 0.0
    for _, needs, name in ranked:
        if spent + needs < limit or not chosen:
            spent += needs + 0.01
            chosen.append(name)
    return chosen


def verdict(mutant: Mutant | None, tests: Sequence[str], seconds: float) -> str:
    """Whether tests kill a mutant: "killed", "survived" or "never ends". None is the module as it is."""

    def run() -> int:
        if mutant is not None:
            _put(mutant)
        import pytest

        return int(pytest.main(["-x", *PYTEST, *tests]))

    if not tests:
        return "survived"
    return {0: "survived", None: "never ends"}.get(_in_child(run, seconds), "killed")


def _in_child(run: Callable[[], int], seconds: float) -> int | None:
    """Run something in a forked, silent process; its exit code, None where it had to be stopped."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            code = run()
        finally:
            os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
