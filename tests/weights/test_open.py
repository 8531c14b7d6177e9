import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rcnn.models.heads import Layer4Head
from rcnn.models.resnet import ResNetC4
from rcnn.weights import safetensors, torchvision
from rcnn.weights.mxnet import VGG_PIXELS
from rcnn.weights.open import read_weights
from rcnn.weights.pixels import PixelRange
from rcnn.weights.transfer import load_into

VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
RESNET50_BLOCKS = ((1, 3), (2, 4), (3, 6))


def vgg16() -> dict[str, torch.Tensor]:
    return {f"features.{i}.weight": torch.full((1, 1, 1, 1), float(i)) for i in VGG16_CONVOLUTIONS}


def resnet50() -> dict[str, torch.Tensor]:
    places = ((s, b, c) for s, blocks in RESNET50_BLOCKS for b in range(blocks) for c in (1, 2, 3))
    return {f"layer{s}.{b}.conv{c}.weight": torch.ones(1, 1, 1, 1) for s, b, c in places}


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "no_extension"])
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_definition_the_content_decides_not_the_extension(tmp_path: Path, name: str, container: str) -> None:
    path = tmp_path / name
    if container == "safetensors":
        save_file(vgg16(), path)
    else:
        torch.save(vgg16(), path, _use_new_zipfile_serialization=container == "zip")
    tensors, source = read_weights(path, "vgg16")
    assert tensors["backbone.conv5_3.weight"].item() == 28
    assert len(tensors) == 13
    assert str(source) == f"{path} (torchvision's names)"
    assert source.pixels == torchvision.PIXELS


@pytest.mark.parametrize("length", range(8, 300, 8))
def test_no_length_of_a_safetensors_header_looks_like_another_format(tmp_path: Path, length: int) -> None:
    head = json.dumps({"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    head += b" " * max(0, length - len(head))
    (tmp_path / "a").write_bytes(len(head).to_bytes(8, "little") + head)
    assert list(read_weights(tmp_path / "a", "vgg16")[0]) == ["x"]


def test_our_own_file_keeps_its_names_and_tells_its_classes_and_input(tmp_path: Path) -> None:
    recipe = {"model": {"pixel_mean": [1, 2.5, 3], "pixel_std": [1.0, 1.0, 2.0]}}
    header = {"format": "rcnn-1", "classes": '["cat", "dog"]', "recipe": json.dumps(recipe)}
    tensors = {"backbone.conv1_1.weight": torch.ones(2), "conv1.weight": torch.ones(1)}
    safetensors.save(tmp_path / "model.safetensors", tensors, header)
    found, source = read_weights(tmp_path / "model.safetensors", "resnet50")
    assert found.keys() == tensors.keys()
    assert source.classes == ("cat", "dog")
    assert source.pixels == PixelRange((1.0, 2.5, 3.0), (1.0, 1.0, 2.0))


@pytest.mark.parametrize(
    "header", [{}, {"classes": "nonsense", "recipe": "[]"}, {"recipe": '{"model": {"pixel_mean": 3}}'}]
)
def test_our_own_file_with_a_poor_header_still_gives_its_tensors(tmp_path: Path, header: dict[str, str]) -> None:
    safetensors.save(tmp_path / "a", {"x": torch.ones(1)}, header | {"format": "rcnn-1"})
    tensors, source = read_weights(tmp_path / "a", "vgg16")
    assert list(tensors) == ["x"]
    assert (source.classes, source.pixels) == ((), None)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet101", "resnet50_v2"])
def test_another_network_is_refused(tmp_path: Path, backbone: str) -> None:
    torch.save(resnet50(), tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=rf"a\.pth .*holds resnet50 \(layer3\.5\.conv3.*wants {backbone}; .*--model.backbone"
    ):
        read_weights(tmp_path / "a.pth", backbone)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "an HDF5 file"),
        (b"plainly nothing", "starts with b'plainly '"),
    ],
)
def test_an_unknown_file_is_refused_with_the_known_formats(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.bin: .*{reason}.*known formats: \.safetensors.*\.pth.*\.params"):
        read_weights(tmp_path / "a.bin", "vgg16")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent: no such file"):
        read_weights(tmp_path / "absent", "vgg16")
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(tmp_path, "vgg16")


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
def test_a_file_cut_off_is_refused_by_name(tmp_path: Path, container: str, share: float) -> None:
    path = tmp_path / "cut.pth"
    if container == "safetensors":
        save_file(vgg16(), path)
    else:
        torch.save(vgg16(), path, _use_new_zipfile_serialization=container == "zip")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"cut\.pth: .*again"):
        read_weights(path, "vgg16")


class Detector(nn.Module):
    """The parts of a ResNet-18 detector that the trunk file is about."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = ResNetC4(18), Layer4Head(18, 3)


def test_the_real_trunk_fills_the_backbone(shared: Path) -> None:
    file = shared / "weights" / "resnet18_c4_bnfolded_fp32.safetensors"
    tensors, source = read_weights(file, "resnet18")
    model = Detector()
    report = load_into(model, tensors, source=source)
    assert {line.name for line in report.kept} == {n for n in model.state_dict() if n.startswith("backbone.")}
    assert not report.skipped
    assert torch.equal(model.backbone.layer3[1].conv2.weight, safetensors.load(file)[0]["layer3.1.conv2.weight"])
    assert torch.allclose(model.backbone.bn1.scale_and_shift()[0], torch.ones(64), atol=1e-6)


def test_real_mxnet_files_are_recognised_as_strangers(shared: Path) -> None:
    tensors, source = read_weights(shared / "weights" / "mtcnn" / "det1-0001.params", "vgg16")
    with pytest.raises(ValueError, match=r"det1-0001\.params \(MXNet\): nothing in it fits"):
        load_into(Detector(), tensors, source=source)


@pytest.mark.parametrize("name", ["det1.caffemodel", "no_extension"])
def test_a_real_caffe_file_is_known_by_content_and_a_cut_one_by_suffix(shared: Path, tmp_path: Path, name: str) -> None:
    content = (shared / "weights" / "mtcnn" / "det1.caffemodel").read_bytes()
    (tmp_path / name).write_bytes(content)
    tensors, source = read_weights(tmp_path / name, "vgg16")
    assert tensors["conv1/0"].shape == (10, 3, 3, 3)
    assert source.kind == "Caffe"
    (tmp_path / "cut.caffemodel").write_bytes(content[:60])
    with pytest.raises(ValueError, match=r"cut\.caffemodel: damaged at byte 10: 111 bytes wanted, 50 left"):
        read_weights(tmp_path / "cut.caffemodel", "vgg16")


def test_a_web_page_named_caffemodel_is_still_a_web_page(tmp_path: Path) -> None:
    (tmp_path / "a.caffemodel").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"a\.caffemodel: a web page"):
        read_weights(tmp_path / "a.caffemodel", "vgg16")


def test_vgg16_caffe_takes_bgr_and_is_changed_to_rgb(tmp_path: Path) -> None:
    tensors = {name: torch.rand(2, 3, 1, 1) for name in vgg16()}
    layers = ("classifier.6.weight", "classifier.0.weight", "classifier.3.weight")
    torch.save(tensors | {name: torch.ones(1, 1) for name in layers}, tmp_path / "vgg16_caffe.pth")
    found, source = read_weights(tmp_path / "vgg16_caffe.pth", "vgg16")
    assert source.pixels == VGG_PIXELS
    assert torch.equal(found["backbone.conv1_1.weight"], tensors["features.0.weight"].flip(1))
    assert torch.equal(found["backbone.conv1_2.weight"], tensors["features.2.weight"])


@pytest.mark.parametrize("container", ["zip", "safetensors"])
def test_detectors_that_are_not_read_are_named(tmp_path: Path, container: str) -> None:
    tensors = {"backbone.body.conv1.weight": torch.ones(1), "roi_heads.box_predictor.cls_score.weight": torch.ones(1)}
    path = tmp_path / "fasterrcnn_resnet50_fpn.pth"
    torch.save(tensors, path) if container == "zip" else save_file(tensors, path)
    with pytest.raises(ValueError, match=r"fpn\.pth: this is a detector of torchvision \(backbone\.body\.conv1"):
        read_weights(path, "resnet50")


def test_a_file_that_knows_its_input_is_not_told_another(tmp_path: Path) -> None:
    torch.save(vgg16(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth \(torchvision's names\): its input is known without --pixels caffe"):
        read_weights(tmp_path / "a.pth", "vgg16", "caffe")


@pytest.mark.parametrize("recipe", ["[" * 100_000, '{"model": 7}', f'{{"model": {{"pixel_mean": [{10**400}, 1, 1]}}}}'])
def test_a_header_that_makes_no_sense_says_nothing_of_the_pixels(tmp_path: Path, recipe: str) -> None:
    header = {"format": "rcnn-model-1", "classes": '["a"]', "recipe": recipe}
    safetensors.save(tmp_path / "a.safetensors", {"w": torch.ones(1)}, header)
    tensors, source = read_weights(tmp_path / "a.safetensors", "vgg16")
    assert list(tensors) == ["w"] and source.pixels is None and source.classes == ("a",)
