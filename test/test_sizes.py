"""What a reader has to keep in mind at once stays small."""

import ast
from pathlib import Path

PYTHON = Path(__file__).resolve().parents[1] / "python"

FUNCTION, CLASS = 60, 300
"""Lines at most, decorators left out."""

EXCUSE = "# long: "
"""Behind a longer one's first line, with the reason."""


def too_long(source: str) -> list[str]:
    lines = source.splitlines()
    found = []
    for node in ast.walk(ast.parse(source)):
        limit = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > limit and EXCUSE not in lines[node.lineno - 1]:
                found.append(f"{node.name}: {length} lines")
    return found


def test_functions_and_classes_are_short_or_say_why_not() -> None:
    found = {str(file.relative_to(PYTHON)): too_long(file.read_text()) for file in PYTHON.rglob("*.py")}
    assert {file: names for file, names in found.items() if names} == {}


def test_one_line_too_many_is_found_unless_it_is_excused() -> None:
    body = "    x = 1\n" * FUNCTION
    assert too_long(f"def f():\n{body}") == ["f: 61 lines"]
    assert too_long(f"def f():  {EXCUSE}a table\n{body}") == []
    assert too_long("def f():\n" + "    x = 1\n" * (FUNCTION - 1)) == []
