"""The documents name tests, options, verbs and recipes that there are."""

import dataclasses
import re
from pathlib import Path

import pytest

from rcnn.cli import VERBS
from rcnn.config import Recipe
from rcnn.recipes.find import recipe_names

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{x}.md" for x in ("from-mx-rcnn", "fidelity", "own-data", "results")),
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


def test_every_test_that_is_named_is_there(checkout: Path) -> None:
    text, file, count = (checkout / "docs/from-mx-rcnn.md").read_text(), "", 0
    for path, name in TESTS.findall(text):
        file = path or file
        if not file:
            continue
        source = (checkout / file).read_text()
        assert not name or re.search(rf"^(async )?def {name[2:]}\(", source, re.MULTILINE), f"{file}{name}"
        count += 1
    assert count > 30


def test_every_link_leads_somewhere(checkout: Path) -> None:
    for document in [checkout / name for name in DOCUMENTS] + sorted((checkout / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            assert target.startswith("http") or (document.parent / target).exists(), f"{document.name}: {target}"
