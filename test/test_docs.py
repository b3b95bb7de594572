"""What the pages name exists: links, our files, and modules to run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "examples", "benchmark", "sgl-kernel")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]

LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
FILE = re.compile(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|toml|svg|png))`")
BASE = re.compile(r"[Bb]elow\s+`([\w./-]+)`")
MODULE = re.compile(r"python -m (benchmark(?:\.\w+)*)")


def missing(text: str, folder: Path) -> list[str]:
    """What a page in `folder` names and is not there.

    A file may be named from the repository's root, from the page's folder, or from any folder that the page
    introduces with the words "below `folder`".
    """
    bases = [ROOT, folder, *(ROOT / base for base in BASE.findall(text))]
    links = [link for link in LINK.findall(text) if "://" not in link and not (folder / link).exists()]
    files = [file for file in FILE.findall(text) if not any((base / file).exists() for base in bases)]
    modules = [module for module in MODULE.findall(text) if not _runs(ROOT / module.replace(".", "/"))]
    return links + files + modules


def _runs(module: Path) -> bool:
    return module.with_suffix(".py").exists() or (module / "__main__.py").exists()


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    assert missing(page.read_text(), page.parent) == []


def test_what_is_missing_is_found() -> None:
    page = """
[here](structure.md), [not here](nowhere.md#part), [elsewhere](https://example.org/nowhere.md);
`docs/structure.md`, `docs/nowhere.md`; below `python/sglang/srt/blend`: `core/planner.py`, `core/no.py`;
`python -m benchmark.paper quick`, `python -m benchmark.nothing`.
"""
    found = ["nowhere.md", "docs/nowhere.md", "core/no.py", "benchmark.nothing"]
    assert missing(page, ROOT / "docs") == found
