import json
from pathlib import Path

import pytest

from rcnn.config import Recipe, Train, recipe_to_dict
from rcnn.recipes.find import find_recipe, recipe_names, recipe_summary


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_found_by_name_and_says_its_command_and_what_to_expect(name: str) -> None:
    assert isinstance(find_recipe(name), Recipe)
    assert recipe_summary(name).endswith(".")
    text = __import__(f"rcnn.recipes.{name}", fromlist=["x"]).__doc__
    assert "    rcnn " in text and "Expected: " in text


def test_a_python_file_and_a_json_file(tmp_path: Path) -> None:
    python = written(
        tmp_path,
        "mine.py",
        "from rcnn import Recipe\nfrom rcnn.config import Train\nRECIPE = Recipe(train=Train(lr=0.5))",
    )
    saved = written(tmp_path, "recipe.json", json.dumps(recipe_to_dict(Recipe(train=Train(lr=0.5)))))
    assert find_recipe(python) == find_recipe(saved) == Recipe(train=Train(lr=0.5))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "RECIPE = 3", r"a\.py: must set RECIPE to an rcnn\.Recipe, found int"),
        ("a.py", "", r"a\.py: must set RECIPE to an rcnn\.Recipe, found NoneType"),
        ("a.py", "def (", r"a\.py: SyntaxError"),
        ("a.py", "import nowhere_at_all", r"a\.py: ModuleNotFoundError: .*nowhere_at_all"),
        ("a.py", "from rcnn.config import Train\nTrain(lrr=1)", r"a\.py: .*'lrr'.*config\.py"),
        ("a.json", "{", r"a\.json: not JSON"),
        ("a.json", '{"train": {"lrr": 1}}', r"a\.json: unknown key train\.lrr; did you mean train\.lr\?"),
    ],
)
def test_a_file_that_makes_no_recipe_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_recipe(written(tmp_path, name, text))


def test_an_unknown_name_gets_a_suggestion_or_the_list() -> None:
    with pytest.raises(ValueError, match=r"'vgg16_voc'; did you mean vgg16_voc0?7?"):
        find_recipe("vgg16_voc")
    with pytest.raises(ValueError, match=r"'zzz'; give a name or the path.*Known: .*vgg16_voc07"):
        find_recipe("zzz")
    with pytest.raises(ValueError, match=r"zzz\.py: no such recipe file"):
        find_recipe("zzz.py")
