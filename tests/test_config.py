import ast
import dataclasses
import inspect
import json
import typing

import pytest

from rcnn.config import Data, Eval, Model, Recipe, Train, recipe_from_dict, recipe_to_dict
from rcnn.recipes.find import find_recipe, recipe_names


def from_json(recipe: Recipe) -> dict:
    return json.loads(json.dumps(recipe_to_dict(recipe)))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_json(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe_from_dict(from_json(recipe), where="x") == recipe


def test_definition_what_is_left_out_has_its_default() -> None:
    recipe = recipe_from_dict({"train": {"lr": 0.5, "lr_steps": [3, 5]}, "data": {"classes": ["cat"]}}, where="x")
    assert recipe == Recipe(data=Data(classes=("cat",)), train=Train(lr=0.5, lr_steps=(3, 5)))
    assert recipe_from_dict({}, where="x") == Recipe()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, r"f\.json: unknown key trian; did you mean train\?"),
        ({"train": {"learning_rate": 1}}, r"f\.json: unknown key train\.learning_rate; known keys: .*lr.*momentum"),
        ({"train": {"warm_up": 1}}, r"f\.json: unknown key train\.warm_up; did you mean train\.warmup\?"),
        ({"train": {"batch": "two"}}, r"f\.json: .*int.*train\.batch"),
        ({"train": {"batch": 1.5}}, r"f\.json: .*int.*train\.batch"),
        ({"data": {"flip": 1}}, r"f\.json: .*bool.*data\.flip"),
        ({"data": {"classes": "cat"}}, r"f\.json: .*array.*data\.classes"),
        ({"model": {"backbone": "alexnet"}}, r"f\.json: .*'alexnet'.*model\.backbone"),
        ({"model": {"pixel_mean": [1, 2]}}, r"f\.json: .*length 3.*model\.pixel_mean"),
        ({"data": 3}, r"f\.json: .*\.data"),
        ([1], r"f\.json: "),
        (None, r"f\.json: "),
    ],
)
def test_what_is_wrong_is_named_with_its_path(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_from_dict(values, where="f.json")


@pytest.mark.parametrize("group", [Data, Model, Train, Eval])
def test_every_choice_has_an_explanation_under_it_which_help_shows(group: type) -> None:
    (tree,) = ast.parse(inspect.getsource(group)).body
    assert isinstance(tree, ast.ClassDef)
    for line, below in zip(tree.body[1:], [*tree.body[2:], None], strict=True):
        if isinstance(line, ast.AnnAssign):
            assert isinstance(below, ast.Expr) and ast.get_source_segment(inspect.getsource(group), below), line.lineno


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().train.lr = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("group", [Data, Model, Train, Eval])
def test_defaults_are_of_their_own_type(group: type) -> None:
    defaults = recipe_to_dict(Recipe())[group.__name__.lower()]
    assert set(defaults) == set(typing.get_type_hints(group))
    assert recipe_from_dict({group.__name__.lower(): json.loads(json.dumps(defaults))}, where="x") == Recipe()
