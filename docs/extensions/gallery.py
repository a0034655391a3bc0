"""A page for each script in examples/: what it says of itself, its code, what it prints and its figure.

A script is run again where it, or code of the package (docstrings and comments apart), has changed.
"""

from __future__ import annotations

import ast
import hashlib
import html
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sphinx.util import logging

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "gallery"
CACHE = ROOT / "build" / "gallery"
LIMIT_SECONDS = 600

logger = logging.getLogger(__name__)


def code_of_package() -> str:
    """What the package's modules do, without what they say."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "bayesgmm").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                del node.body[0]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def run(script: Path, package: str) -> tuple[str, list[Path]]:
    """What a script prints, and its figures: the one that was asked for first."""
    key = hashlib.sha256(script.read_bytes() + package.encode()).hexdigest()[:16]
    folder = CACHE / f"{script.stem}-{key}"
    printed, figure = folder / "printed.txt", folder / "figure.png"
    if not (printed.exists() and figure.exists()):
        logger.info("running %s", script.name)
        for old in CACHE.glob(f"{script.stem}-*"):
            shutil.rmtree(old)
        folder.mkdir(parents=True)
        environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        command = [sys.executable, str(script), str(figure)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env=environment, timeout=LIMIT_SECONDS, check=False
        )
        if done.returncode != 0 or not figure.exists():
            raise RuntimeError(f"{script.name} failed:\n{done.stderr[-2000:]}")
        printed.write_text(done.stdout.replace(str(folder) + os.sep, ""), encoding="utf-8")
    others = sorted({*folder.glob("*.png"), *folder.glob("*.gif")} - {figure})
    return printed.read_text(encoding="utf-8"), [figure, *others]


def page(script: Path, printed: str, figures: Sequence[str]) -> tuple[str, str]:
    """Title and text of a script's page."""
    source = script.read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(source)) or script.stem
    title, _, rest = said.partition("\n\n")
    title = title.replace("\n", " ").rstrip(".")
    code = source.split('"""', 2)[2].lstrip()
    parts = [f"# {title}", "", dedented(rest), ""]
    for name in figures:
        parts += [f"```{{image}} {name}", f":alt: {title}", "```", ""]
    if printed.strip():
        parts += ["## What it prints", "", "```text", printed.rstrip(), "```", ""]
    parts += ["## Code", "", f"`examples/{script.name}`", "", "```python", code.rstrip(), "```", ""]
    return title, "\n".join(parts)


def dedented(text: str) -> str:
    """Prose of a docstring as Markdown; indented lines are commands."""
    out = []
    for paragraph in text.split("\n\n"):
        indented = all(line.startswith("    ") for line in paragraph.splitlines())
        out.append(f"```text\n{paragraph.strip()}\n```" if indented and paragraph.strip() else paragraph)
    return "\n\n".join(out)


def write(path: Path, text: str) -> None:
    """Write where something has changed, so that Sphinx does not read the page again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def build(app: Any) -> None:
    PAGES.mkdir(exist_ok=True)
    package, cards, names, kept = code_of_package(), [], [], {"index.md"}
    for script in sorted((ROOT / "examples").glob("*.py")):
        if script.stem.startswith("_"):
            continue
        printed, figures = run(script, package)
        targets = [PAGES / figure.name.replace("figure", script.stem, 1) for figure in figures]
        title, text = page(script, printed, [target.name for target in targets])
        write(PAGES / f"{script.stem}.md", text)
        for figure, target in zip(figures, targets, strict=True):
            if not target.exists() or target.read_bytes() != figure.read_bytes():
                shutil.copyfile(figure, target)
        names.append(script.stem)
        kept |= {target.name for target in targets} | {f"{script.stem}.md"}
        cards.append(
            f'<a href="{script.stem}.html"><img src="../_images/{script.stem}.png" alt="" loading="lazy">'
            f"<span>{html.escape(title)}</span></a>"
        )
    for old in PAGES.iterdir():
        if old.name not in kept:
            old.unlink()
    intro = "Every figure and every line of output here was made by the script beside it when this site was built."
    listing = ["# Gallery", "", intro, "", "```{raw} html", '<div class="gallery">', *cards, "</div>", "```", ""]
    write(PAGES / "index.md", "\n".join([*listing, "```{toctree}", ":hidden:", "", *names, "```", ""]))


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", build)
    return {"parallel_read_safe": True}
