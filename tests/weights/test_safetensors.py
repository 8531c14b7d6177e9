import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rcnn.weights.safetensors import DTYPES, header_value, load, save

HEADER = {"format": "rcnn-1", "classes": '["cat", "dog é"]'}


def some_tensors() -> dict[str, torch.Tensor]:
    """One tensor of every type, of shapes that need care."""
    tensors = {f"t.{name}": torch.arange(5).to(dtype) for dtype, name in DTYPES.items()}
    tensors["empty"] = torch.empty(0, 3)
    tensors["scalar"] = torch.tensor(2.5)
    tensors["transposed"] = torch.arange(6.0).view(2, 3).T
    tensors["channels_last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors["parameter"] = torch.nn.Parameter(torch.ones(2))
    return tensors


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes is an error of the system, as on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)


def test_definition_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", some_tensors(), HEADER)
    tensors, header = load(tmp_path / "a.safetensors")
    assert_same(tensors, some_tensors() | {"channels_last": tensors["channels_last"]})
    assert header == HEADER


def test_header_only(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", some_tensors(), HEADER)
    assert load(tmp_path / "a.safetensors", header_only=True) == ({}, HEADER)


def test_agreement_with_the_library_both_ways(tmp_path: Path) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in some_tensors().items()}
    save(tmp_path / "ours.safetensors", tensors, {})
    save_file(tensors, tmp_path / "theirs.safetensors")
    assert_same(load_file(tmp_path / "ours.safetensors"), tensors)
    assert_same(load(tmp_path / "theirs.safetensors")[0], tensors)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = {name: tensor.detach() for name, tensor in some_tensors().items() if name != "channels_last"}
    save(tmp_path / "a", tensors, HEADER)
    save(tmp_path / "b", dict(reversed(tensors.items())), HEADER)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_overwritten_file_does_not_change_tensors_read_before(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"x": torch.ones(4096)}, {})
    before, _ = load(path)
    save(path, {"x": torch.zeros(4096)}, {})
    assert torch.equal(before["x"], torch.ones(4096))


def test_a_full_disk_leaves_the_former_file_and_no_half_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, {"x": torch.ones(3)}, HEADER)
    with pytest.raises(OSError, match=r"model\.safetensors.*nothing was changed") as caught, largest_file(4096):
        save(path, {"x": torch.ones(100_000)}, HEADER)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert torch.equal(load(path)[0]["x"], torch.ones(3))


@given(share=st.floats(0, 0.999))
def test_a_file_cut_off_anywhere_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    save(folder / "whole", some_tensors(), HEADER)
    whole = (folder / "whole").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.safetensors: .*(cut off|no such)"):
        load(folder / "cut.safetensors")


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60])
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "foreign.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"foreign\.safetensors: not a safetensors file"):
        load(tmp_path / "foreign.safetensors")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent: no such file"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(tmp_path)


@pytest.mark.parametrize("text", [None, "[" * 100_000, "{", "7", '{"a": 1}'])
def test_a_value_of_the_header_is_of_its_kind_or_refused(tmp_path: Path, text: str | None) -> None:
    header = {} if text is None else {"classes": text}
    with pytest.raises(ValueError, match=r"a\.safetensors: .*'classes'.*; copy ") as caught:
        header_value(tmp_path / "a.safetensors", header, "classes", list)
    assert len(str(caught.value)) < 1000
    assert header_value("a", {"classes": '["b"]'}, "classes", list) == ["b"]


def test_the_message_on_a_damaged_header_is_short(tmp_path: Path) -> None:
    head = b'{"a": {"dtype": "' + b"F" * 100_000 + b'", "shape": [], "data_offsets": [0, 0]}}'
    (tmp_path / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(ValueError, match=r"a\.safetensors: not a safetensors file") as caught:
        load(tmp_path / "a.safetensors")
    assert len(str(caught.value)) < 1000
