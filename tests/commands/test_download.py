"""`rcnn download` as a user runs it, with a catalogue of small files on a server of this machine."""

import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcnn.commands import download
from rcnn.commands.download import main
from rcnn.data.open import open_dataset
from rcnn.data.shapes import write_shapes
from rcnn.download import catalogue, exchange, fetch
from rcnn.download.catalogue import Item
from tests.download.archives import write_any
from tests.download.server import Site, remote, running_site, serve, status


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    monkeypatch.setattr(exchange, "STALL", 5.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    with running_site() as running:
        yield running


@pytest.fixture
def voc(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """A catalogue whose voc07 is a few drawn shapes, in two archives like the real one's."""
    shapes = tmp_path / "made"
    write_shapes(shapes, train=4, test=2, seed=0)
    archives = []
    for name, image_set in (("trainval.tar", "trainval"), ("test.tgz", "test")):
        paths = [path for path in shapes.rglob(f"{image_set}*") if path.is_file()]
        members = {f"VOCdevkit/VOC2007/{path.relative_to(shapes).as_posix()}": path.read_bytes() for path in paths}
        content = write_any(tmp_path / "made" / name, members).read_bytes()
        holds = (f"VOCdevkit/VOC2007/ImageSets/Main/{image_set}.txt",)
        archives.append(remote(content, site.add(f"/{name}", serve(content)), name=name, holds=holds))
    weights = remote(b"w" * 5000, site.add("/w", serve(b"w" * 5000)), name="vgg16.pth")
    items = (
        Item("voc07", "shapes", "free", tuple(archives)),
        Item("vgg16", "weights", "free", (weights,), weights=True),
    )
    monkeypatch.setattr(catalogue, "ITEMS", items)
    return site


def test_a_data_set_and_weights_from_the_web_to_the_reader(voc: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["voc07", "vgg16"]) == 0
    told = capsys.readouterr().err
    assert re.search(r"^trainval\.tar .* of .*/s$", told, re.MULTILINE) and "unpacking test.tgz" in told
    assert "voc07: in " in told and "vgg16: in weights/vgg16.pth" in told
    assert Path("weights/vgg16.pth").read_bytes() == b"w" * 5000
    assert len(open_dataset("voc", "data/VOCdevkit", "2007_trainval", classes=("circle", "square", "triangle"))) == 4
    assert len(open_dataset("voc", "data/VOCdevkit", "2007_test", classes=("circle", "square", "triangle"))) == 2
    assert len(voc.requests) == 3
    assert main(["voc07", "vgg16", "vgg16"]) == 0
    assert len(voc.requests) == 3 and "is unpacked already" in capsys.readouterr().err


def test_options(voc: Site, tmp_path: Path) -> None:
    assert main(["voc07", "vgg16", "--data-dir", "big/data", "--weights-dir", "big/w", "--keep-archives"]) == 0
    assert sorted(os.listdir("big/data/downloads")) == [
        "test.tgz", "test.tgz.unpacked.json", "trainval.tar", "trainval.tar.unpacked.json",
    ]  # fmt: skip
    assert os.listdir("big/w") == ["vgg16.pth"]
    assert sorted(os.listdir(tmp_path)) == ["big", "made"]


def test_list_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    shown = capsys.readouterr()
    assert "coco2017" in shown.out and "20.4 GB" in shown.out and "CC BY 4.0" in shown.out and not shown.err
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0 and "--weights-dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["which? rcnn download NAME...", "voc07", "resnet101"]),
        (["voc7"], ["'voc7'", "did you mean voc07?"]),
        (["vgg16", "coco"], ["'coco'", "did you mean coco"]),
    ],
)
def test_mistakes(argv: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        main(argv)
    assert all(word in str(caught.value) for word in words)
    assert os.listdir(tmp_path) == []


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_address(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="is there a network") as caught:
        main(["resnet18"])
    message = str(caught.value)
    assert not isinstance(caught.value, ValueError)  # the command line tells by this: 1, not 2
    assert "resnet18.pth could not be downloaded" in message and "download.pytorch.org" in message
    assert "put it at weights/resnet18.pth" in message


def test_the_first_fault_stops_and_keeps_the_rest(voc: Site) -> None:
    voc.add("/test.tgz", status(404))
    with pytest.raises(OSError, match=r"test\.tgz could not be downloaded"):
        main(["voc07", "vgg16"])
    assert Path("data/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt").is_file()
    assert not Path("weights").exists()


def test_an_interruption_says_how_to_go_on(
    voc: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download.Lines, "count", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["vgg16"])
    assert "the same command goes on" in capsys.readouterr().err


def test_lines_are_few_and_say_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 6))  # seconds
    monkeypatch.setattr(download.time, "perf_counter", lambda: float(next(clock)))
    with download.Lines() as lines:
        for done in (10, 20, 30, 40, 50, 60):
            lines.count("a.tar", done * 10**6, 60 * 10**6)
        lines.count("b.tar", 5, None)
        lines.count("b.tar", 5, None)
        lines.count("b.tar", 5, None)
    assert capsys.readouterr().err.splitlines() == [
        "a.tar 30.0 MB of 60.0 MB  1.7 MB/s  18 s left",
        "a.tar 50.0 MB of 60.0 MB  1.7 MB/s  6 s left",
        "a.tar 60.0 MB of 60.0 MB  1.7 MB/s",
        "b.tar 5 bytes",
    ]


BARS = """
import sys
from rcnn.commands.download import Bars
assert sys.stderr.isatty()
with Bars() as bars:
    bars.count("a.tar", 1_000_000, 2_000_000)
    bars.note("a.tar: [broke off] after 1000000 of 2000000 bytes")
    bars.count("a.tar", 2_000_000, 2_000_000)
    bars.count("b.tgz", 5, None)
"""


def test_a_bar_on_a_terminal(checkout: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", BARS], stderr=theirs, env=environment, check=True, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "[broke off] after 1000000 of 2000000 bytes" in shown
    assert "2.0/2.0 MB" in shown and "b.tgz" in shown
