from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rcnn.models.heads import FCHead
from rcnn.models.vgg import STAGES, VGG16
from rcnn.weights import mxnet
from rcnn.weights.caffe import from_caffe, read, recognises
from rcnn.weights.open import read_weights
from rcnn.weights.pixels import PixelRange
from rcnn.weights.transfer import load_into
from tests.weights.damage import assert_all_handled, assert_handled, damaged

VGG_LAYERS = [f"conv{s}_{i}" for s, widths in enumerate(STAGES, 1) for i in range(1, len(widths) + 1)]
HEADS = {"rpn_conv/3x3": "rpn.conv", "rpn_cls_score": "rpn.cls", "rpn_bbox_pred": "rpn.box"}
HEADS |= {name: f"head.{name}" for name in ("fc6", "fc7", "cls_score", "bbox_pred")}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    head = b""
    while value >= 0x80:
        head, value = head + bytes([value & 0x7F | 0x80]), value >> 7
    return head + bytes([value])


def field(number: int, content: bytes | int) -> bytes:
    """A field of a number or of bytes."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def unpacked(array: np.ndarray, number: int) -> bytes:
    tag = varint(number << 3 | (5 if array.itemsize == 4 else 1))
    return b"".join(tag + value.tobytes() for value in array.ravel())


def blob(array: np.ndarray, *, legacy: bool = False, packed: bool = True) -> bytes:
    """A BlobProto of the array; float64 as double_data."""
    sides = b"".join(map(varint, array.shape))
    old = b"".join(field(i, side) for i, side in enumerate(((1,) * (4 - array.ndim)) + array.shape, 1))
    number = 8 if array.dtype == np.float64 else 5
    values = field(number, array.tobytes()) if packed else unpacked(array, number)
    diff = field(6, np.ones(array.size, np.float32).tobytes())
    return (old if legacy else field(7, field(1, sides))) + diff + values


def net(layers: Mapping[str, list[bytes]], *, old: bool = False) -> bytes:
    """A NetParameter of layers with encoded blobs; old = V1 layers."""
    name, blobs, layer = (4, 6, 2) if old else (1, 7, 100)
    encoded = (field(name, n.encode()) + b"".join(field(blobs, b) for b in bs) for n, bs in layers.items())
    return field(1, b"a net") + b"".join(field(layer, content) for content in encoded)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_definition_every_way_to_write_a_blob(tmp_path: Path, old: bool, packed: bool, dtype: type) -> None:
    weight, bias = np.arange(120).reshape(5, 2, 3, 4).astype(dtype), np.arange(5).astype(dtype)
    layers = {"a/é": [blob(x, legacy=old, packed=packed) for x in (weight, bias)], "data": []}
    found = read(write(tmp_path / "a", net(layers, old=old)))
    assert list(found) == ["a/é/0", "a/é/1"]
    assert found["a/é/0"].dtype == dtype
    np.testing.assert_array_equal(found["a/é/0"], weight)
    np.testing.assert_array_equal(found["a/é/1"], bias.reshape(1, 1, 1, 5) if old else bias)


def test_values_in_several_pieces_are_joined(tmp_path: Path) -> None:
    values = np.arange(50, dtype=np.float32)
    long_tag = b"\xad\x00" + values[40:41].tobytes()  # a tag of two bytes where one would do
    content = field(5, values[:20].tobytes()) + unpacked(values[20:40], 5) + long_tag + unpacked(values[41:], 5)
    found = read(write(tmp_path / "a", net({"x": [content + field(7, field(1, 5) + field(1, b"\x0a"))]})))
    np.testing.assert_array_equal(found["x/0"], values.reshape(5, 10))


def test_a_blob_without_sides_is_a_vector(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a", net({"x": [field(5, b"\0\0\x80\x3f" * 3)]})))
    np.testing.assert_array_equal(found["x/0"], [1, 1, 1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (field(1, b"a net"), "no layer with weights"),
        (b"\xa2\x06\xff\xff\xff\xff\x0f", "byte 7: 4294967295 bytes wanted, 0 left"),
        (b"\xa2\x06" + b"\xff" * 10, "byte 2: a number of more than ten bytes"),
        (b"\xa2\x06\xff", "byte 2: a number that is cut off"),
        (b"\xa3\x06", r"byte 0: no field .*number 100, wire type 3"),
        (b"\x02\x00", r"byte 0: no field .*number 0"),
        (field(100, 3), "field 100 in wire type 0"),
        (field(100, field(7, 3)), "field 7 in wire type 0"),
        (field(100, field(1, b"\xff")), "byte 5: a name that is no text"),
        (field(100, field(1, b"x" * 257)), "a name of 257 bytes"),
        (net({"x": [field(5, b"12345")]}), "5 bytes of numbers of 4"),
        (net({"x": [field(8, b"12345")]}), "5 bytes of numbers of 8"),
        (net({"x": [b"\x2d\0\0"]}), "4 bytes wanted, 2 left"),
        (net({"x": [field(5, 3)]}), "field 5 in wire type 0"),
        (net({"x": [field(7, field(1, b"\x02" * 33))]}), "more than 32 axes"),
        (net({"x": [field(7, field(1, b"\x02" * 20)) * 2]}), "more than 32 axes"),
        (net({"x": [field(7, field(1, -5))]}), "a negative side -5"),
        (net({"x": [field(7, field(1, b"\x80"))]}), "cut off"),
        (net({"x": [field(1, 2) + field(2, 2**40) + field(3, 1) + field(4, 1)]}), "shape .* with 0 values"),
        (net({"x": [field(7, field(1, 2**62) * 2 + field(1, 0))]}), "an array of shape"),
        (net({"x": [field(7, field(1, 2)) + field(5, b"\0" * 4)]}), r"shape \(2,\) with 1 values"),
        (net({"x": [b""]}) + net({"x": [b""]}), "a second array x/0"),
        (net({"x": [b""] * 70_000}), "more than 8192 arrays"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # not megabytes of content
)
def test_lies_are_refused_with_file_place_and_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.caffemodel: .*{reason}"):
        read(write(tmp_path / "a.caffemodel", content))


@pytest.mark.parametrize("net_name", ["det1", "det2"])
def test_agreement_with_the_same_network_of_mxnet(shared: Path, net_name: str) -> None:
    folder = shared / "weights" / "mtcnn"
    found, theirs = read(folder / f"{net_name}.caffemodel"), mxnet.read(folder / f"{net_name}-0001.params")
    renamed = {}
    for key, array in found.items():
        layer, number = key.lower().replace("-", "_").split("/")
        parameter = "gamma" if "prelu" in layer else ("weight", "bias")[int(number)]
        renamed[f"arg:{layer}_{parameter}"] = array
    assert theirs.keys() <= renamed.keys()
    for name, expected in theirs.items():
        np.testing.assert_array_equal(upright(name, renamed[name]), expected, err_msg=name)


def upright(name: str, array: np.ndarray) -> np.ndarray:
    """As MXNet's copy: those Caffe nets were trained on pictures with rows and columns exchanged, and on BGR."""
    if name == "arg:conv4_weight":  # linear, on 64 maps of 3 x 3
        return array.reshape(128, 64, 3, 3).swapaxes(2, 3).reshape(128, 576)
    array = array.swapaxes(2, 3) if array.ndim == 4 else array
    return array[:, ::-1] if name == "arg:conv1_weight" else array


@pytest.mark.slow
@pytest.mark.parametrize("net_name", ["det1", "det2"])
def test_property_thousands_of_damaged_real_files_are_read_or_refused_in_bounded_memory(
    shared: Path, tmp_path: Path, net_name: str
) -> None:
    content = (shared / "weights" / "mtcnn" / f"{net_name}.caffemodel").read_bytes()
    near = (b"conv1", b"PReLU1", b"conv2", b"conv3", b"conv4")

    def read_and_rename(path: Path) -> None:
        recognises(path)
        from_caffe(read(path))

    copies = damaged(content, 2000, seed=len(content), near=near)
    assert 50 < assert_all_handled(read_and_rename, tmp_path, copies) < 1950  # both ways were taken


LONG_NAME = b"x" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        field(100, field(1, LONG_NAME) + field(7, b"") * 10_000),  # the name would stand in ten thousand keys
        field(100, field(7, b"") * 200_000),
        field(100, field(1, b"x") + field(7, field(7, field(1, b"\xff" * 100_000)))),
        b"".join(field(100, field(1, b"%d" % i) + field(7, b"")) for i in range(8_300)),
    ],
    ids=["a long name", "many arrays", "a long side", "many layers"],
)
def test_what_a_file_claims_costs_no_memory(tmp_path: Path, content: bytes) -> None:
    assert not assert_handled(read, tmp_path / "a.caffemodel", content)


def small(layer: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Weight and bias of a layer of VGG16 with few channels."""
    shape = (8, 6) if layer in ("fc6", "fc7", "fc8", "cls_score", "bbox_pred") else (8, 3, 3, 3)
    return [rng.normal(size=s).astype(np.float32) for s in (shape, shape[:1])]


@pytest.mark.parametrize("old", [True, False])
def test_definition_an_imagenet_file_under_our_names(tmp_path: Path, old: bool) -> None:
    rng = np.random.default_rng(16)
    values = {layer: small(layer, rng) for layer in [*VGG_LAYERS, "fc6", "fc7", "fc8"]}
    layers = {layer: [blob(x, legacy=old) for x in both] for layer, both in values.items()}
    tensors, source = read_weights(write(tmp_path / "anything", net(layers, old=old)), "vgg16")
    names = {f"backbone.{layer}": layer for layer in VGG_LAYERS} | {"head.fc6": "fc6", "head.fc7": "fc7"}
    assert tensors.keys() == {f"{n}.{p}" for n in names for p in ("weight", "bias")} | {"fc8/0", "fc8/1"}
    assert source.pixels == mxnet.VGG_PIXELS
    assert source.conventions == {"offset": 1.0, "roi_op": "pool", "beyond": 1.0}
    for name, layer in names.items():
        weight, bias = values[layer]
        weight = weight[:, [2, 1, 0]] if layer == "conv1_1" else weight  # BGR to RGB
        np.testing.assert_array_equal(tensors[f"{name}.weight"], weight)
        np.testing.assert_array_equal(tensors[f"{name}.bias"], bias)


@pytest.mark.parametrize("old", [True, False])
def test_the_first_convolution_gives_the_same_for_rgb_as_caffes_for_bgr(tmp_path: Path, old: bool) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    arrays = read(write(tmp_path / "a", net({"conv1_1": [blob(weight, legacy=old)]}, old=old)))
    ours = from_caffe(arrays)["backbone.conv1_1.weight"].double()
    rgb = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    expected = nn.functional.conv2d(rgb.flip(1), torch.from_numpy(weight).double())
    torch.testing.assert_close(nn.functional.conv2d(rgb, ours), expected)


def test_the_box_layer_is_normalised_and_the_rpns_is_not() -> None:
    ones = np.ones((8, 2), np.float32)
    tensors = from_caffe({"bbox_pred/0": ones, "bbox_pred/1": ones[:, 0], "rpn_bbox_pred/1": ones[:, 0]})
    expected = torch.tensor([10.0, 10, 5, 5]).repeat(2)
    torch.testing.assert_close(tensors["head.bbox_pred.bias"], expected)
    torch.testing.assert_close(tensors["head.bbox_pred.weight"], expected[:, None].expand(8, 2))
    assert tensors["rpn.box.bias"].tolist() == [1] * 8


def test_a_wrong_box_layer_is_refused_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.caffemodel", net({"bbox_pred": [blob(np.ones((6, 2), np.float32))]}))
    with pytest.raises(ValueError, match=r"a\.caffemodel: bbox_pred \(weight\) has the shape \(6, 2\)"):
        read_weights(path, "vgg16")


def detector() -> nn.Module:
    """Py-faster-rcnn's VGG16 for two classes, with heads of few channels."""
    whole = nn.Module()
    whole.backbone, whole.head = VGG16(), FCHead(512, 7, hidden=8, dropout=0.5, num_classes=2)
    whole.rpn = nn.Module()
    whole.rpn.conv = nn.Conv2d(512, 8, 3)
    whole.rpn.cls, whole.rpn.box = nn.Conv2d(8, 18, 1), nn.Conv2d(8, 36, 1)
    return whole


def test_agreement_a_final_file_fills_every_parameter_of_the_detector(tmp_path: Path) -> None:
    state = detector().state_dict()
    names = {layer: f"backbone.{layer}" for layer in VGG_LAYERS} | HEADS
    values = {n: [np.full(state[f"{ours}.{p}"].shape, 0.5, np.float32) for p in ("weight", "bias")]
              for n, ours in names.items()}  # fmt: skip
    path = write(tmp_path / "VGG16_final.caffemodel", net({n: [blob(x) for x in v] for n, v in values.items()}))
    tensors, source = read_weights(path, "vgg16")
    assert str(source) == f"{path} (Caffe)"
    assert source.pixels == PixelRange((122.7717, 115.9465, 102.9801))  # not the mean of the VGG authors
    model = detector()
    report = load_into(model, tensors, source=source)
    assert len(report.kept) == len(state)
    assert not report.skipped
    assert model.state_dict()["rpn.conv.weight"].unique().tolist() == [0.5]


def test_vgg19_is_told_from_vgg16(tmp_path: Path) -> None:
    layers = [*VGG_LAYERS, "conv3_4", "conv4_4", "conv5_4"]
    path = write(tmp_path / "a", net({layer: [blob(np.ones((2, 2, 1, 1), np.float32))] for layer in layers}))
    with pytest.raises(ValueError, match=r"holds vgg19 .*wants vgg16"):
        read_weights(path, "vgg16")
