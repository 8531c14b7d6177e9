import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rcnn.models.resnet import ResNetC4, make_layer
from rcnn.models.vgg import VGG16
from rcnn.weights.torchvision import CAFFE_PIXELS, PIXELS, pixel_range, read, rename

VGG16_CHANNELS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class RunsCode:
    """An object whose pickle would write a file when read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def torchvision_vgg16() -> nn.Module:
    """A module with the names and layers of torchvision's vgg16, narrow where the width does not show."""
    layers, channels = [], 3
    for width in VGG16_CHANNELS:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    hidden = [nn.Linear(25088, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    model = nn.Module()
    model.features, model.classifier = nn.Sequential(*layers), nn.Sequential(*hidden, nn.Linear(4096, 1000))
    return model


def write(path: Path, values: object, *, zipped: bool) -> Path:
    torch.save(values, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_definition_a_state_dict_is_read_from_either_format(tmp_path: Path, zipped: bool, wrap) -> None:
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    tensors = read(write(tmp_path / "a.pth", wrap(state), zipped=zipped))
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def test_data_parallel_prefix_is_taken_off(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.pth", {"module.conv1.weight": torch.ones(2), "module.fc.bias": torch.ones(1)}, zipped=True
    )
    assert read(path).keys() == {"conv1.weight", "fc.bias"}


def test_parameters_become_plain_tensors(tmp_path: Path) -> None:
    tensors = read(write(tmp_path / "a.pth", {"w": nn.Parameter(torch.ones(2))}, zipped=True))
    assert not tensors["w"].requires_grad


def test_definition_names_of_vgg16() -> None:
    tensors = {name: torch.empty(0) for name in ("features.0.weight", "features.28.bias", "classifier.3.weight")}
    tensors["classifier.6.weight"] = torch.empty(0)
    assert list(rename(tensors, "vgg16")) == [
        "backbone.conv1_1.weight",
        "backbone.conv5_3.bias",
        "head.fc7.weight",
        "classifier.6.weight",
    ]


def test_definition_names_of_resnets() -> None:
    names = [
        "conv1.weight",
        "bn1.running_var",
        "bn1.num_batches_tracked",
        "layer3.0.downsample.1.bias",
        "layer4.2.bn3.bias",
    ]
    renamed = rename({name: torch.empty(0) for name in [*names, "fc.weight"]}, "resnet50")
    assert list(renamed) == [
        "backbone.conv1.weight",
        "backbone.bn1.running_var",
        "backbone.layer3.0.downsample.1.bias",
        "head.layer4.2.bn3.bias",
        "fc.weight",
    ]


def test_agreement_vgg16_fits_our_model_by_name_and_shape() -> None:
    with torch.device("meta"):
        theirs, ours = rename(torchvision_vgg16().state_dict(), "vgg16"), VGG16().state_dict()
    assert {f"backbone.{name}": tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items() if name.startswith("backbone.")
    }
    assert theirs["head.fc6.weight"].shape == (4096, 512 * 7 * 7)


@pytest.mark.parametrize(("depth", "widest"), [(18, 512), (50, 2048), (101, 2048)])
def test_agreement_resnets_fit_our_models(depth: int, widest: int) -> None:
    with torch.device("meta"):
        trunk, last = ResNetC4(depth).state_dict(), make_layer(depth, 4).state_dict()
    theirs = dict(trunk) | {f"layer4.{name}": tensor for name, tensor in last.items()}
    theirs |= {"fc.weight": torch.empty(1000, widest), "bn1.num_batches_tracked": torch.tensor(0)}
    ours = {f"backbone.{name}" for name in trunk} | {f"head.layer4.{name}" for name in last}
    assert rename(theirs, f"resnet{depth}").keys() == ours | {"fc.weight"}


def test_pixel_range_of_the_weights_ported_from_caffe() -> None:
    fc6 = torch.full((4, 6), torch.nan)
    assert pixel_range({"classifier.0.weight": fc6}) == CAFFE_PIXELS
    assert pixel_range({"classifier.0.weight": torch.zeros(4, 6)}) == PIXELS
    assert pixel_range({}) == PIXELS
    assert [m / 255 for m in PIXELS.mean] == pytest.approx([0.485, 0.456, 0.406])


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
        tensors = read(path)
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
