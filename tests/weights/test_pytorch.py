import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rcnn.weights.pytorch import read


class RunsCode:
    """An object whose pickle would write a file when read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def write(path: Path, values: object, *, zipped: bool) -> Path:
    torch.save(values, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_definition_a_state_dict_is_read_from_either_format(tmp_path: Path, zipped: bool, wrap) -> None:
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    tensors = read(write(tmp_path / "a.pth", wrap(state), zipped=zipped)).tensors
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def test_data_parallel_prefix_is_taken_off(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.pth", {"module.conv1.weight": torch.ones(2), "module.fc.bias": torch.ones(1)}, zipped=True
    )
    assert read(path).tensors.keys() == {"conv1.weight", "fc.bias"}


@pytest.mark.parametrize("zipped", [True, False])
def test_what_stands_beside_is_told_and_numbers_of_numpy_are_passed_over(tmp_path: Path, zipped: bool) -> None:
    values = {
        "model": {"w": torch.ones(1)},
        "config": {"caffe_pretrain": True, "env": "a"},
        "other_info": {"best_map": np.float64(0.71), "epoch": np.int32(3)},
        "optimizer": {"param_groups": [{"lr": 0.1, "params": [0]}], "state": {0: {"momentum_buffer": torch.ones(1)}}},
    }
    found = read(write(tmp_path / "a.pth", values, zipped=zipped))
    assert list(found.tensors) == ["w"]
    assert found.beside["config"] == values["config"]
    assert found.beside["other_info"].keys() == {"best_map", "epoch"}
    assert not isinstance(found.beside["other_info"]["best_map"], np.generic)
    assert read(write(tmp_path / "b.pth", {"w": torch.ones(1)}, zipped=zipped)).beside == {}


def test_parameters_become_plain_tensors(tmp_path: Path) -> None:
    tensors = read(write(tmp_path / "a.pth", {"w": nn.Parameter(torch.ones(2))}, zipped=True)).tensors
    assert not tensors["w"].requires_grad


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    trap = tmp_path / "trap"
    path = write(tmp_path / "evil.pth", {"w": torch.ones(1), "x": RunsCode(trap)}, zipped=zipped)
    with pytest.raises(ValueError, match=r"evil\.pth: holds Python objects .*run code.*state_dict\(\)"):
        read(path)
    assert not trap.exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(RunsCode(trap)))
    with pytest.raises(ValueError, match=r"evil\.pkl: "):
        read(tmp_path / "evil.pkl")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("module", "what"),
    [
        ("mmengine.logging.history_buffer", "a checkpoint of mmdetection"),
        ("detectron2.config", "a checkpoint of detectron2"),
        ("numpy.core.multiarray", "a pickle of NumPy arrays, as in detectron2's model zoo"),
        ("ultralytics.nn.tasks", "a YOLO model of Ultralytics"),
    ],
)
def test_files_of_other_programs_are_named(tmp_path: Path, module: str, what: str) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02c" + module.encode() + b"\nThing\n)R.")
    with pytest.raises(ValueError, match=rf"a\.pkl: {what}, which is not read yet: it holds .*{module}\.Thing"):
        read(tmp_path / "a.pkl")


@pytest.mark.parametrize("values", [{}, [torch.ones(1)], {"epoch": 3}, 7])
def test_a_file_without_a_state_dict(tmp_path: Path, values: object) -> None:
    with pytest.raises(ValueError, match=r"a\.pth: no state dict"):
        read(write(tmp_path / "a.pth", values, zipped=True))


def test_odd_tensors_are_refused_by_name(tmp_path: Path) -> None:
    endless = torch.zeros(1).expand(2**40)
    for tensor, reason in ((torch.eye(3).to_sparse(), "sparse"), (torch.ones(1) * 1j, "complex"), (endless, "fewer")):
        with pytest.raises(ValueError, match=rf"a\.pth: odd: .*{reason}"):
            read(write(tmp_path / "a.pth", {"odd": tensor}, zipped=True))


@pytest.mark.parametrize("zipped", [True, False])
@given(data=st.data())
def test_property_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, zipped: bool, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    state = {"conv1.weight": torch.arange(12.0).view(3, 4), "bn1.bias": torch.ones(5)}
    content = bytearray(write(folder / "whole.pth", state, zipped=zipped).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged.pth"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        tensors = read(path).tensors
    except ValueError as error:
        assert "damaged.pth" in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


def test_numpy_archives_and_missing_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    with pytest.raises(ValueError, match=r"a\.npz: not a whole PyTorch file"):
        read(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="absent: no such file"):
        read(tmp_path / "absent")


def test_a_compressed_archive_cannot_fill_the_memory(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.pth", {"w": torch.ones(2)}, zipped=True)
    with zipfile.ZipFile(whole) as given_, zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in given_.namelist():
            packed.writestr(name, given_.read(name))
    with pytest.raises(ValueError, match=r"a\.pth: not a whole PyTorch file \(its parts are compressed"):
        read(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bytearray_of_gigabytes_is_not_made(tmp_path: Path, zipped: bool) -> None:
    path = write(tmp_path / "a.pth", {"w": torch.ones(2), "x": bytearray(1)}, zipped=zipped)
    with pytest.raises(ValueError, match=r"a\.pth: not a whole PyTorch file \(it makes a bytearray"):
        read(path)


def test_keys_that_are_no_texts_are_passed_over(tmp_path: Path) -> None:
    nested = ()
    for _ in range(20):
        nested = (nested, nested)  # two million characters as text, and every level more doubles them
    values = {"model": {"w": torch.ones(1), nested: torch.ones(1)}, nested: 3, "epoch": 1}
    found = read(write(tmp_path / "a.pth", values, zipped=True))
    assert list(found.tensors) == ["w"] and found.beside == {"epoch": 1}
