"""The documents name tests, options, verbs and recipes that there are."""

import dataclasses
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rcnn.build import build_model
from rcnn.cli import VERBS
from rcnn.config import Eval, Model, Recipe
from rcnn.recipes.find import find_recipe, recipe_names

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{x}.md" for x in ("from-mx-rcnn", "fidelity", "own-data", "results", "distributed", "security")),
]
OPTION = re.compile(r"--(data|model|train|eval)\.([a-z_-]+)")
TESTS = re.compile(r"`(tests/[\w/]+\.py)?(::\w+)?`")


def known_options() -> set[tuple[str, str]]:
    groups = {group.name: getattr(Recipe(), group.name) for group in dataclasses.fields(Recipe)}
    names = [(name, field.name) for name, group in groups.items() for field in dataclasses.fields(group)]
    switches = [(group, name) for group, name in names if isinstance(getattr(groups[group], name), bool)]
    return {*names, *((group, f"no_{name}") for group, name in switches)}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_option_is_one(checkout: Path, name: str) -> None:
    found = {(group, option.replace("-", "_")) for group, option in OPTION.findall((checkout / name).read_text())}
    wrong = {f"{group}.{option}" for group, option in found - known_options() if not option.endswith("_")}
    assert not wrong


def test_every_verb_and_recipe_is_one(checkout: Path) -> None:
    text = "\n".join((checkout / name).read_text() for name in DOCUMENTS)
    assert set(re.findall(r"(?:`|^ {4}|&& )rcnn ([a-z]+)", text, re.MULTILINE)) <= set(VERBS)
    assert set(re.findall(r"rcnn train ([a-z0-9_]+)", text)) <= set(recipe_names())


@pytest.mark.parametrize(("document", "fewest"), [("from-mx-rcnn", 30), ("security", 25)])
def test_every_test_that_is_named_is_there(checkout: Path, document: str, fewest: int) -> None:
    text, file, count = (checkout / f"docs/{document}.md").read_text(), "", 0
    for path, name in TESTS.findall(text):
        file = path or file
        if not file:
            continue
        source = (checkout / file).read_text()
        assert not name or re.search(rf"^(async )?def {name[2:]}\(", source, re.MULTILINE), f"{file}{name}"
        count += 1
    assert count > fewest


def test_every_link_leads_somewhere(checkout: Path) -> None:
    for document in [checkout / name for name in DOCUMENTS] + sorted((checkout / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            assert target.startswith("http") or (document.parent / target).exists(), f"{document.name}: {target}"


def test_bytes_that_are_averaged_are_those_of_the_models(checkout: Path) -> None:
    rows = re.findall(r"^\| `(\w+)`, (\d+) \| (.*) \|$", (checkout / "docs/distributed.md").read_text(), re.MULTILINE)
    assert len(rows) == 5
    for name, classes, told in rows:
        recipe = find_recipe(name)
        joint, backbone_kept = (
            _trained(replace(recipe.model, frozen=frozen), recipe.eval, int(classes))
            for frozen in (recipe.model.frozen, ("all",))
        )
        sizes = (
            sum(joint.values()),
            joint["backbone"] + joint["rpn"],
            joint["backbone"] + joint["head"],
            backbone_kept["rpn"],
            backbone_kept["head"],
        )
        assert told == " | ".join(f"{4 * size / 1e6:.1f} MB" for size in sizes), name


def _trained(model: Model, rules: Eval, classes: int) -> Counter[str]:
    """Numbers trained, by part of the model."""
    counts: Counter[str] = Counter()
    with torch.device("meta"):
        for name, parameter in build_model(model, rules, classes).named_parameters():
            counts[name.partition(".")[0]] += parameter.numel() * parameter.requires_grad
    return counts
