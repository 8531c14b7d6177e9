import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rcnn.download import install as module
from rcnn.download.catalogue import Item
from rcnn.download.fetch import DownloadError
from rcnn.download.install import Places, install, is_unpacked, refuse_full_disk
from tests.download.archives import write_any
from tests.download.server import Site, Watcher, remote, serve, status

HOLDS = ("VOCdevkit/VOC2007/ImageSets/Main/trainval.txt",)
CONTENTS = {HOLDS[0]: b"000005\n", "VOCdevkit/VOC2007/JPEGImages/000005.jpg": b"picture" * 1000}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "data", tmp_path / "weights")


def archive_item(site: Site, tmp_path: Path, contents: dict[str, bytes], name: str = "voc.tar") -> Item:
    content = write_any(tmp_path / name, contents).read_bytes()
    (tmp_path / name).unlink()
    file = remote(content, site.add(f"/{name}", serve(content)), name=name, holds=HOLDS)
    return Item("voc", "a small VOC", "none", (file,))


@pytest.fixture
def voc(site: Site, tmp_path: Path) -> Item:
    return archive_item(site, tmp_path, CONTENTS)


@pytest.fixture
def weights(site: Site) -> Item:
    file = remote(b"weights" * 1000, site.add("/w", serve(b"weights" * 1000)), name="vgg16.pth")
    return Item("vgg16", "weights", "none", (file,), weights=True)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_definition_a_data_set_is_unpacked_and_stamped(voc: Item, places: Places, watcher: Watcher) -> None:
    assert install(voc, places, watcher) == places.data
    assert files(places.data / "VOCdevkit") == {k.removeprefix("VOCdevkit/"): v for k, v in CONTENTS.items()}
    assert sorted(os.listdir(places.data)) == ["VOCdevkit", "downloads"]
    assert os.listdir(places.data / "downloads") == ["voc.tar.unpacked.json"]


def test_definition_weights_are_a_file(weights: Item, places: Places, watcher: Watcher) -> None:
    assert install(weights, places, watcher) == places.weights / "vgg16.pth"
    assert files(places.weights) == {"vgg16.pth": b"weights" * 1000}
    assert not places.data.exists()


def test_nothing_is_done_twice(site: Site, voc: Item, weights: Item, places: Places, watcher: Watcher) -> None:
    for _ in range(2):
        install(voc, places, watcher)
        install(weights, places, watcher)
    assert [path for path, _ in site.requests] == ["/voc.tar", "/w"]
    assert any("is unpacked already" in note for note in watcher.notes)


def test_a_folder_inside_the_data(voc: Item, places: Places, watcher: Watcher) -> None:
    assert install(replace(voc, folder="coco"), places, watcher) == places.data / "coco"
    assert (places.data / "coco" / HOLDS[0]).is_file()
    assert sorted(os.listdir(places.data / "coco")) == ["VOCdevkit"]


def test_a_data_folder_that_was_moved_is_still_known(
    site: Site, voc: Item, places: Places, watcher: Watcher, tmp_path: Path
) -> None:
    install(voc, places, watcher)
    os.rename(places.data, tmp_path / "elsewhere")
    places.data.symlink_to(tmp_path / "elsewhere")
    install(voc, places, watcher)
    assert len(site.requests) == 1


def test_what_was_deleted_or_is_of_another_version_is_fetched_again(
    site: Site, voc: Item, places: Places, watcher: Watcher
) -> None:
    install(voc, places, watcher)
    assert is_unpacked(voc.files[0], places.data, places)
    assert not is_unpacked(replace(voc.files[0], sha256="0" * 64), places.data, places)
    shutil.rmtree(places.data / "VOCdevkit")
    install(voc, places, watcher)
    assert len(site.requests) == 2 and (places.data / HOLDS[0]).is_file()
    (places.data / "downloads" / "voc.tar.unpacked.json").write_text("{")
    assert not is_unpacked(voc.files[0], places.data, places)


def test_archives_are_kept_if_wished(voc: Item, places: Places, watcher: Watcher) -> None:
    install(voc, replace(places, keep=True), watcher)
    assert sorted(os.listdir(places.data / "downloads")) == ["voc.tar", "voc.tar.unpacked.json"]


def test_an_archive_put_there_by_hand_is_used(site: Site, voc: Item, places: Places, watcher: Watcher) -> None:
    install(voc, replace(places, keep=True), watcher)
    shutil.rmtree(places.data / "VOCdevkit")
    site.add("/voc.tar", status(404))
    install(voc, places, watcher)
    assert len(site.requests) == 1 and (places.data / HOLDS[0]).is_file()


def test_an_archive_without_what_it_should_hold(site: Site, places: Places, watcher: Watcher, tmp_path: Path) -> None:
    item = archive_item(site, tmp_path, {"VOCdevkit/readme.txt": b"x"})
    with pytest.raises(ValueError, match=r"voc\.tar: does not hold VOCdevkit/VOC2007/ImageSets/Main/trainval\.txt"):
        install(item, places, watcher)
    assert os.listdir(places.data) == ["downloads"]
    assert os.listdir(places.data / "downloads") == ["voc.tar"]


def test_strangers_in_an_archive_are_left_out(site: Site, places: Places, watcher: Watcher, tmp_path: Path) -> None:
    strange = {"._VOCdevkit": b"mac", "downloads/voc.tar.unpacked.json": b"{}", "__MACOSX/x": b"mac"}
    install(archive_item(site, tmp_path, CONTENTS | strange, "voc.zip"), places, watcher)
    assert sorted(os.listdir(places.data)) == ["VOCdevkit", "downloads"]
    assert json.loads((places.data / "downloads" / "voc.zip.unpacked.json").read_text())["digest"]
    assert sum("no part of the data set" in note for note in watcher.notes) == 3


def test_files_of_the_user_are_not_changed(voc: Item, places: Places, watcher: Watcher) -> None:
    mine = places.data / HOLDS[0]
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match=r"trainval\.txt: is there already.*--data-dir"):
        install(voc, places, watcher)
    assert mine.read_text() == "mine"
    assert not list(places.data.glob(".*"))
    assert not is_unpacked(voc.files[0], places.data, places)
    mine.unlink()
    install(voc, places, watcher)
    assert mine.read_bytes() == CONTENTS[HOLDS[0]]


@pytest.mark.parametrize("step", ["unpack", "merge"])
def test_an_interruption_leaves_nothing_half(
    voc: Item, places: Places, watcher: Watcher, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, step, interrupted)
        install(voc, places, watcher)
    assert os.listdir(places.data) == ["downloads"]
    (places.data / ".voc.tar.unpacking").mkdir()  # what a kill leaves
    (places.data / ".voc.tar.unpacking" / "half.txt").write_text("half")
    install(voc, places, watcher)
    assert sorted(os.listdir(places.data)) == ["VOCdevkit", "downloads"]


def test_a_disk_too_small_is_seen_first(
    site: Site, voc: Item, weights: Item, places: Places, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(places.data.parent)
    needed = 2 * voc.expected

    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=count))

    free(needed)
    refuse_full_disk([voc, weights], places)
    free(needed - 1)
    with pytest.raises(DownloadError, match=r"data: needs about .* are free on its disk; make room"):
        refuse_full_disk([voc], places)
    assert site.requests == []
    places.archive(voc.files[0]).parent.mkdir(parents=True)
    places.archive(voc.files[0]).with_name("voc.tar.part").write_bytes(b"x")  # what is there needs no room
    refuse_full_disk([voc], places)
    monkeypatch.undo()
    install(voc, places, watcher)
    install(weights, places, watcher)
    free(0)
    refuse_full_disk([voc, weights], places)


def test_a_file_in_the_place_of_a_folder(voc: Item, places: Places) -> None:
    places.data.write_text("mine")
    with pytest.raises(ValueError, match="data: is a file, not a folder"):
        refuse_full_disk([voc], places)
