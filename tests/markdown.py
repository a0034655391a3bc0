"""Python blocks of Markdown pages, run in order in one namespace, and what the page says they print."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n*^```\n(?!\$ )(?P<said>.*?)^```\n)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A block of code, the line it begins on, and the output that follows it on the page (None: the page shows none)."""

    code: str
    line: int
    said: str | None


def blocks(text: str) -> Iterator[Block]:
    """Fenced Python blocks; a fence without a language straight after one is its output, unless it is a session of the shell."""
    for found in BLOCK.finditer(text):
        yield Block(found["code"], text.count("\n", 0, found.start()) + 2, found["said"])


def printed(block: Block, page: str, namespace: dict[str, Any]) -> str:
    """Run a block; an error names the page's line."""
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), namespace)
    return out.getvalue()


def words_and_numbers(text: str) -> tuple[list[str], list[float]]:
    """What stands around the numbers, without blanks, and the numbers."""
    words = [word for part in NUMBER.split(text) for word in part.split()]
    return words, [float(number) for number in NUMBER.findall(text)]
