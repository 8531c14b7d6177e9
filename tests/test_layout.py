"""The rules of docs/architecture.md: a test file per module, short files and functions, telling names, docstrings."""

import ast
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "rcnn"
MAX_LINES = 400
MAX_MEDIAN_FUNCTION = 12
VAGUE_NAMES = {"util", "utils", "misc", "common", "core", "base", "helper", "helpers"}
TESTED_ELSEWHERE = {"commands", "recipes", "kernels"}  # by their outcome; kernels by the tests of the op they implement
ONLY_TYPES = {"structures.py"}


def sources(*suffixes: str) -> list[Path]:
    """Every file of src and tests with one of the suffixes."""
    return sorted(p for top in (PACKAGE, ROOT / "tests") for p in top.rglob("*") if p.suffix in suffixes)


def namesake(module: Path) -> Path:
    """The test file that belongs to a module."""
    inside = module.relative_to(PACKAGE)
    return ROOT / "tests" / inside.with_name(f"test_{inside.name}")


def parsed() -> list[tuple[Path, ast.Module]]:
    """Every module of src with its syntax tree."""
    return [(path, ast.parse(path.read_text())) for path in sorted(PACKAGE.rglob("*.py"))]


def length(function: ast.FunctionDef) -> int:
    """Lines of a function, its docstring not counted."""
    lines = len(range(function.lineno, function.end_lineno or 0)) + 1
    return lines - len((ast.get_docstring(function, clean=False) or "").splitlines())


def bare_functions(tree: ast.Module) -> list[str]:
    """Public functions without a docstring; an override has that of its base, a forward that of its class."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    bodies = [tree.body, *(node.body for node in classes)]
    functions = [node for body in bodies for node in body if isinstance(node, ast.FunctionDef)]
    described = {node.name for node in functions if ast.get_docstring(node)} | {"forward"}
    return [node.name for node in functions if node.name not in described and not node.name.startswith("_")]


MODULES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.name.startswith("__")
    and path.name not in ONLY_TYPES
    and not TESTED_ELSEWHERE & set(path.relative_to(PACKAGE).parts)
]


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_every_module_has_a_namesake_test(module: Path) -> None:
    assert namesake(module).is_file(), f"{module.relative_to(ROOT)} has no {namesake(module).relative_to(ROOT)}"


def test_no_file_is_longer_than_one_idea() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in sources(".py", ".cpp", ".h", ".txt")}
    assert not {path.name: n for path, n in lengths.items() if n > MAX_LINES}


def test_no_name_says_nothing() -> None:
    assert not [path for path in sources(".py", ".cpp", ".h") if VAGUE_NAMES & {path.stem, path.parent.name}]


def test_functions_are_short() -> None:
    functions = [node for _, tree in parsed() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert median(map(length, functions)) <= MAX_MEDIAN_FUNCTION


def test_public_functions_have_docstrings() -> None:
    assert not {path.name: names for path, tree in parsed() if (names := bare_functions(tree))}


def test_packages_are_at_most_three_levels_deep() -> None:
    depths = {path: len(path.relative_to(PACKAGE).parts) - 1 for path in PACKAGE.rglob("__init__.py")}
    assert max(depths.values()) <= 3
