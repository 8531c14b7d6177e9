import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from rcnn.models.heads import FCHead, Stage4HeadV2
from rcnn.models.resnet_v2 import ResNetV2C4
from rcnn.models.vgg import VGG16
from rcnn.weights.mxnet import BFLOAT16, DTYPES, RENAME, RENAME_BACK, RESNET_PIXELS, V1, V2, V3, from_mxnet, read
from rcnn.weights.open import read_weights
from rcnn.weights.transfer import load_into
from tests.weights.damage import assert_all_handled, assert_handled, damaged

VERSIONS = (0, V1, V2, V3)  # 0: the format before versions
FLAGS = {dtype: flag for flag, dtype in DTYPES.items() if flag != BFLOAT16}


def encode_array(array: np.ndarray, version: int, flag: int) -> bytes:
    """One array as MXNet of that version writes it."""
    head = b"".join(
        (
            struct.pack("<I", version) if version else b"",
            struct.pack("<i", 0) if version in (V2, V3) else b"",
            struct.pack("<i", array.ndim),
            struct.pack(f"<{array.ndim}{'q' if version else 'I'}", *array.shape),
        )
    )
    if array.ndim == 0 and version != V3:  # an array without value
        return head
    return head + struct.pack("<3i", 1, 0, flag) + array.tobytes()


def encode(values: Mapping[str, np.ndarray], version: int, flag: int | None = None) -> bytes:
    """A .params file."""
    data = [encode_array(a, version, FLAGS[a.dtype] if flag is None else flag) for a in values.values()]
    names = [struct.pack("<Q", len(name.encode())) + name.encode() for name in values]
    count = struct.pack("<Q", len(values))
    return struct.pack("<QQ", 0x112, 0) + count + b"".join(data) + count + b"".join(names)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", FLAGS, ids=str)
def test_definition_every_version_and_type(tmp_path: Path, version: int, dtype: np.dtype) -> None:
    values = {"arg:odd é": np.arange(3).astype(dtype), "aux:x": np.arange(24).reshape(2, 3, 4).astype(dtype)}
    found = read(write(tmp_path / "a.params", encode(values, version)))
    assert found.keys() == values.keys()
    for name in values:
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], values[name])


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    exact = torch.tensor([1.0, -2.5, 3.0e20]).bfloat16()
    bits = exact.view(torch.int16).numpy().view(np.uint16)
    found = read(write(tmp_path / "a.params", encode({"x": bits}, V2, BFLOAT16)))
    np.testing.assert_array_equal(found["x"], exact.float().numpy())


def test_arrays_without_value_are_empty_and_scalars_are_scalars(tmp_path: Path) -> None:
    scalar = {"x": np.array(2.0, np.float32), "y": np.ones(2, np.float32)}
    for version in VERSIONS:
        found = read(write(tmp_path / "a.params", encode(scalar, version)))
        assert found["x"].shape == (() if version == V3 else (0,))
        np.testing.assert_array_equal(found["y"], [1, 1])


@given(
    values=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8),
        arrays.arrays(st.sampled_from(list(FLAGS)), arrays.array_shapes(max_dims=5, min_side=0, max_side=4)),
        max_size=4,
    ),
    version=st.sampled_from(VERSIONS),
)
def test_property_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, np.ndarray], version: int
) -> None:
    found = read(write(tmp_path_factory.mktemp("p") / "a.params", encode(values, version)))
    assert found.keys() == values.keys()
    for name in values:
        assert found[name].shape == values[name].shape
        assert found[name].tobytes() == values[name].tobytes()


@given(data=st.data())
def test_property_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    values = {"arg:w": np.ones((2, 3), np.float32), "aux:m": np.ones(4, np.float64)}
    content = bytearray(encode(values, data.draw(st.sampled_from(VERSIONS))))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    size = data.draw(st.integers(0, len(content)))
    path = write(tmp_path_factory.mktemp("p") / "damaged.params", bytes(content[:size]))
    try:
        found = read(path)
    except ValueError as error:
        assert "damaged.params" in str(error)
    else:
        assert sum(array.nbytes for array in found.values()) <= 2 * size  # bfloat16 doubles


@pytest.mark.parametrize(
    ("file", "near"),
    [
        ("golden/mxnet19-0000.params", ()),
        ("weights/mtcnn/det1-0001.params", (b"arg:conv1_weight", b"arg:conv4_2_weight")),
        ("weights/mtcnn/det2-0001.params", (b"arg:conv1_weight", b"arg:conv4_weight")),
    ],
)
def test_property_thousands_of_damaged_real_files_are_read_or_refused_in_bounded_memory(
    shared: Path, tmp_path: Path, file: str, near: tuple[bytes, ...]
) -> None:
    content = (shared / file).read_bytes()
    copies = damaged(content, 2000, seed=zlib.crc32(file.encode()), near=near)
    assert 50 < assert_all_handled(lambda path: from_mxnet(read(path)), tmp_path, copies) < 1950  # both ways were taken


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<QQQ", 0x112, 0, 10**6) + bytes(12 * 10**6),  # a million arrays of no value, four bytes each
        struct.pack("<QQQ", 0x112, 0, 8000) + bytes(12 * 8000),
        struct.pack("<QQQI32Q3i", 0x112, 0, 1, V2, *[2**62] * 32, 1, 0, 0),
        struct.pack("<QQQII3i", 0x112, 0, 1, 1, 2**32 - 1, 1, 0, 0),
    ],
    ids=["a million arrays", "many arrays", "endless sides", "a long side"],
)
def test_what_a_file_claims_costs_no_memory(tmp_path: Path, content: bytes) -> None:
    assert not assert_handled(read, tmp_path / "a.params", content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"hello, world", "not an MXNet"),
        (struct.pack("<QQQ", 0x112, 0, 2**60), "items claimed"),
        (struct.pack("<QQQIIi", 0x112, 0, 1, V2, 1, 0), "sparse"),
        (struct.pack("<QQQI", 0x112, 0, 1, 33), "33 axes"),
        (struct.pack("<QQQIi", 0x112, 0, 1, V1, -2), "-2 axes"),
        (struct.pack("<QQQIiq", 0x112, 0, 1, V1, 1, -5), "shape"),
        (struct.pack("<QQQIII3i", 0x112, 0, 1, 2, 2**31, 2**31, 1, 0, 0), "bytes wanted"),
        (struct.pack("<QQQII3i", 0x112, 0, 1, 1, 1, 1, 0, 99), "type of numbers 99"),
        (struct.pack("<QQQIi2q3iQ", 0x112, 0, 1, V1, 2, 0, 2**62, 1, 0, 0, 0), "shape|different names"),
        (encode({"x": np.ones(1, np.float32)}, V2)[:-17] + struct.pack("<Q", 0), "1 arrays, but 0 different names"),
        (encode({"x": np.ones(1, np.float32), "y": np.ones(1, np.float32)}, V2)[:-1] + b"x", "1 different names"),
        (encode({"x": np.ones(1, np.float32)}, V2)[:-1] + b"\xff", "no text"),
    ],
)
def test_lies_are_refused_with_file_and_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.params: .*({reason})"):
        read(write(tmp_path / "a.params", content))


def test_agreement_with_a_file_of_mxnet_19(shared: Path) -> None:
    found = read(shared / "golden" / "mxnet19-0000.params")
    with np.load(shared / "golden" / "mxnet19-0000.npz") as expected:
        assert {name.partition(":")[2] or name for name in found} == {n.partition(":")[2] or n for n in expected.files}
        for name in expected.files:
            array = found.get(name, found.get(f"arg:{name}", found.get(f"aux:{name}")))
            assert array is not None
            assert array.dtype == expected[name].dtype
            np.testing.assert_array_equal(array, expected[name])


def test_agreement_with_files_of_2016(shared: Path) -> None:
    found = read(shared / "weights" / "mtcnn" / "det1-0001.params")
    shapes = {name: array.shape for name, array in found.items()}
    assert len(shapes) == 13
    assert shapes["arg:conv1_weight"] == (10, 3, 3, 3)
    assert shapes["arg:conv4_2_weight"] == (4, 32, 1, 1)
    assert all(np.isfinite(array).all() and 0 < array.std() < 5 for array in found.values())


def test_definition_names() -> None:
    assert RENAME["conv1_1_weight"] == "backbone.conv1_1.weight"
    assert RENAME["fc6_bias"] == "head.fc6.bias"
    assert RENAME["rpn_conv_3x3_weight"] == "rpn.conv.weight"
    assert RENAME["rpn_cls_score_bias"] == "rpn.cls.bias"
    assert RENAME["rpn_bbox_pred_weight"] == "rpn.box.weight"
    assert RENAME["stage3_unit23_conv2_weight"] == "backbone.stage3_unit23.conv2.weight"
    assert RENAME["stage4_unit1_sc_weight"] == "head.stage4_unit1.sc.weight"
    assert RENAME["bn_data_moving_var"] == "backbone.bn_data.running_var"
    assert RENAME["bn1_gamma"] == "head.bn1.weight"
    assert RENAME["bn0_beta"] == "backbone.bn0.bias"


def test_vgg19_is_told_from_vgg16(tmp_path: Path) -> None:
    layers = [f"conv{s}_{i}" for s, count in enumerate((2, 2, 4, 4, 4), 1) for i in range(1, count + 1)]
    values = {f"arg:{layer}_weight": np.ones((2, 2, 3, 3), np.float32) for layer in layers}
    path = write(tmp_path / "vgg19-0000.params", encode(values, 0))
    with pytest.raises(ValueError, match=r"vgg19-0000\.params \(MXNet\): this file holds vgg19 \(conv5_4.*wants vgg16"):
        read_weights(path, "vgg16")


def test_property_renaming_is_one_to_one() -> None:
    assert len(RENAME_BACK) == len(RENAME)
    assert all(RENAME_BACK[ours] == theirs for theirs, ours in RENAME.items())


def model(name: str) -> nn.Module:
    """Backbone, RPN layers and head of a golden network, without memory."""
    with torch.device("meta"):
        whole = nn.Module()
        if name == "vgg16":
            whole.backbone, whole.head = VGG16(), FCHead(512, 7, hidden=4096, dropout=0.5, num_classes=20)
        else:
            depth = int(name.removeprefix("resnet"))
            whole.backbone, whole.head = ResNetV2C4(depth), Stage4HeadV2(depth, 20)
        whole.rpn = nn.Module()
        whole.rpn.conv = nn.Conv2d(whole.backbone.channels, 512, 3)
        whole.rpn.cls, whole.rpn.box = nn.Conv2d(512, 18, 1), nn.Conv2d(512, 36, 1)
    return whole


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "resnet101"])
def test_agreement_every_golden_parameter_has_its_place_in_our_model(shared: Path, name: str) -> None:
    groups = json.loads((shared / "golden" / f"{name}_shapes.json").read_text())
    theirs = {RENAME[n]: tuple(shape) for group in groups.values() for n, shape in group.items()}
    assert theirs == {n: tuple(tensor.shape) for n, tensor in model(name).state_dict().items()}


def test_prefixes_go_and_unknown_names_stay() -> None:
    values = {"arg:conv0_weight": np.ones(1, np.float32), "aux:bn0_moving_mean": np.ones(1, np.float32)}
    tensors = from_mxnet(values | {"arg:fc8_weight": np.ones(1, np.float32)})
    assert list(tensors) == ["backbone.conv0.weight", "backbone.bn0.running_mean", "fc8_weight"]


def test_values_are_float32_of_their_own_memory() -> None:
    stored = np.frombuffer(b"\0" + np.arange(3, dtype=np.float16).tobytes(), np.float16, offset=1)
    tensors = from_mxnet({"arg:conv1_1_bias": stored, "arg:count": np.arange(2)})
    assert tensors["backbone.conv1_1.bias"].dtype == torch.float32
    assert tensors["count"].dtype == torch.int64
    tensors["backbone.conv1_1.bias"].add_(1)
    np.testing.assert_array_equal(stored, [0, 1, 2])


def test_doubles_beyond_float32_become_infinite_and_are_refused_when_loaded() -> None:
    tensors = from_mxnet({"arg:conv0_weight": np.array([1e300, 1.0])})
    assert tensors["backbone.conv0.weight"].tolist() == [np.inf, 1]
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"conv0": nn.Linear(1, 1)})})
    model["backbone"]["conv0"].weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"conv0\.weight holds NaN or infinity in 1 of 2 values"):
        load_into(model, tensors, source="a.params")


def test_a_wrong_box_layer_is_refused_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.params", encode({"arg:bbox_pred_bias_test": np.ones(6, np.float32)}, V2))
    with pytest.raises(ValueError, match=r"a\.params: bbox_pred_bias_test has the shape \(6,\)"):
        read_weights(path, "vgg16")


def test_gamma_of_bn_data_is_one_whatever_is_stored() -> None:
    tensors = from_mxnet({"arg:bn_data_gamma": np.full(3, 7.0), "arg:bn0_gamma": np.full(3, 7.0)})
    assert tensors["backbone.bn_data.weight"].tolist() == [1, 1, 1]
    assert tensors["backbone.bn0.weight"].tolist() == [7, 7, 7]


def test_the_box_layer_for_testing_wins_and_is_normalised_again() -> None:
    rng = np.random.default_rng(zlib.crc32(b"bbox"))
    weight, bias = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    std = np.tile(np.float32([0.1, 0.1, 0.2, 0.2]), 2)
    test = {"arg:bbox_pred_weight_test": weight * std[:, None], "arg:bbox_pred_bias_test": bias * std}
    for stale in (1.0, 3.0):  # 3: as if each class had had deviations of its own
        raw = {"arg:bbox_pred_weight": weight * stale, "arg:bbox_pred_bias": bias * stale}
        tensors = from_mxnet(raw | test)
        assert tensors.keys() == {"head.bbox_pred.weight", "head.bbox_pred.bias"}
        np.testing.assert_allclose(tensors["head.bbox_pred.weight"], weight, rtol=1e-6)
        np.testing.assert_allclose(tensors["head.bbox_pred.bias"], bias, rtol=1e-6)
    with pytest.raises(ValueError, match="bbox_pred_bias_test has the shape"):
        from_mxnet({"bbox_pred_bias_test": np.ones(6, np.float32)})


def test_agreement_a_file_fills_a_pre_activation_trunk(tmp_path: Path) -> None:
    trunk = nn.ModuleDict({"backbone": ResNetV2C4(50)})
    values = {name: np.full(tensor.shape, 0.5, np.float32) for name, tensor in trunk.state_dict().items()}
    path = tmp_path / "resnet-50-0000.params"
    path.write_bytes(encode({f"arg:{RENAME_BACK[name]}": array for name, array in values.items()}, V2))
    tensors, source = read_weights(path, "resnet50_v2")
    report = load_into(trunk, tensors, source=source)
    assert len(report.kept) == len(values)
    assert trunk["backbone"].bn_data.weight.tolist() == [1, 1, 1]
    assert trunk["backbone"].bn0.weight.unique().tolist() == [0.5]
    assert source.pixels == RESNET_PIXELS
    with pytest.raises(ValueError, match=r"holds resnet50_v2 .*wants resnet101_v2"):
        read_weights(path, "resnet101_v2")
