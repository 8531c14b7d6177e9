"""Recipes by name or path."""

import importlib.util
import json
import pkgutil
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType

import rcnn.recipes
from rcnn.config import Recipe, recipe_from_dict


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(m.name for m in pkgutil.iter_modules(rcnn.recipes.__path__) if m.name != "find")


def recipe_summary(name: str) -> str:
    """The first line of the recipe's docstring."""
    return (import_module(f"rcnn.recipes.{name}").__doc__ or "").strip().splitlines()[0]


def find_recipe(name: str) -> Recipe:
    """The recipe by name, by the path of a Python file that sets RECIPE, or of a recipe.json.

    Raises:
        ValueError: no such recipe, or the file does not make one.
    """
    if name in recipe_names():
        return import_module(f"rcnn.recipes.{name}").RECIPE
    path = Path(name)
    if path.suffix not in (".py", ".json"):
        close = get_close_matches(name, recipe_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else "give a name or the path of a .py or .json file."
        raise ValueError(f"unknown recipe {name!r}; {hint} Known: {', '.join(recipe_names())}")
    if not path.is_file():
        raise ValueError(f"{name}: no such recipe file")
    return _from_json(path) if path.suffix == ".json" else _from_python(path)


def _from_json(path: Path) -> Recipe:
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    return recipe_from_dict(values, where=str(path))


def _from_python(path: Path) -> Recipe:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except TypeError as error:  # a misspelt field of a dataclass
        raise ValueError(f"{path}: {error}; see rcnn/config.py for the fields of a recipe") from error
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    return _recipe_of(module, path)


def _recipe_of(module: ModuleType, path: Path) -> Recipe:
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{path}: must set RECIPE to an rcnn.Recipe, found {type(recipe).__name__}")
    return recipe
