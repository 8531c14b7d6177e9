import re
from urllib.parse import urlsplit

import pytest

from rcnn.download import catalogue
from rcnn.download.catalogue import ITEMS, RemoteFile, find_item, in_words, table
from rcnn.recipes.find import find_recipe, recipe_names

FILES = [(item, file) for item in ITEMS for file in item.files]


def test_definition_a_name_and_its_files() -> None:
    voc07 = find_item("voc07")
    assert [file.name for file in voc07.files] == ["VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"]
    assert voc07.expected == 460032000 + 451020800
    assert find_item("vgg16_caffe").files[0].sha256 == "88682ab5"
    assert find_item("resnet18").files[0].name == "resnet18.pth"


def test_the_names_of_the_contract_are_there() -> None:
    wanted = "voc07 voc12 coco2014 coco2017 minival selective_search vgg16 vgg16_caffe vgg16_caffemodel"
    wanted += " resnet18 resnet50 resnet101"
    assert [item.name for item in ITEMS] == wanted.split()


@pytest.mark.parametrize(("item", "file"), FILES, ids=lambda value: value.name)
def test_every_file_can_be_checked_and_bounded(item: catalogue.Item, file: RemoteFile) -> None:
    assert file.has_digest and file.expected > 10**7 and file.limit <= 2 * file.expected
    assert re.fullmatch("[0-9a-f]*", file.sha256 + file.md5)
    assert item.weights != bool(file.holds)
    assert not item.weights or file.name in (f"{item.name}.pth", "VGG_ILSVRC_16_layers.caffemodel")
    # Without https, only bytes whose sha256 is known.
    assert all(urlsplit(url).scheme == "https" or len(file.sha256) == 64 for url in file.urls)


def test_names_of_torchvision_carry_the_digest() -> None:
    weights = [file for item, file in FILES if item.weights and file.name.endswith(".pth")]
    assert len(weights) == 5
    assert all(file.urls[0].endswith(f"-{file.sha256[:8]}.pth") for file in weights)


def test_no_two_archives_have_one_name() -> None:
    names = [file.name for _, file in FILES]
    assert len(set(names)) == len(names)


def test_data_sets_are_where_the_recipes_look() -> None:
    roots = {f"data/{item.folder or file.holds[0].split('/')[0]}" for item, file in FILES if not item.weights}
    wanted = {find_recipe(name).data.root for name in recipe_names() if name.endswith(("voc07", "voc0712", "coco"))}
    assert wanted == {"data/VOCdevkit", "data/coco"} and wanted <= roots


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"'voc7'; did you mean voc07\? known: voc07, voc12"):
        find_item("voc7")
    with pytest.raises(ValueError, match=r"'imagenet'.*known: voc07"):
        find_item("imagenet")


def test_the_table_says_name_size_and_check(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = table().splitlines()
    assert len(lines) == 2 * len(ITEMS) and max(map(len, lines)) <= 120
    assert re.match(r"voc07 +911\.1 MB  Pascal VOC 2007", lines[0]) and "checked by sha256; pictures" in lines[1]
    bare = RemoteFile("x.zip", ("https://localhost/x.zip",), about=5_000)
    monkeypatch.setattr(catalogue, "ITEMS", (catalogue.Item("x", "an x", "none", (bare,)),))
    assert table().splitlines()[0] == "x  ~5.0 kB  an x"
    assert "the server's word for its size" in table()


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (46830571, "46.8 MB"), (2 * 10**10, "20.0 GB")],
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert in_words(count) == words
