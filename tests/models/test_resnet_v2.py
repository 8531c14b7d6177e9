import pytest
import torch

from rcnn.models.norm import FrozenBatchNorm
from rcnn.models.resnet_v2 import EPS, UNITS, PreActivationUnit, ResNetV2C4, stage_units
from rcnn.testing import assert_is_backbone


@pytest.mark.parametrize("depth", [50, 101])
def test_definition_names_are_mxnets_with_dots(depth: int) -> None:
    with torch.device("meta"):
        state = {name: tuple(tensor.shape) for name, tensor in ResNetV2C4(depth).state_dict().items()}
    assert state["bn_data.bias"] == (3,)
    assert state["conv0.weight"] == (64, 3, 7, 7)
    assert state["stage1_unit1.bn1.running_mean"] == (64,)
    assert state["stage1_unit1.sc.weight"] == (256, 64, 1, 1)
    assert state["stage2_unit1.conv2.weight"] == (128, 128, 3, 3)
    assert state[f"stage3_unit{UNITS[depth][2]}.conv3.weight"] == (1024, 256, 1, 1)
    assert "stage2_unit2.sc.weight" not in state
    assert not any(name.startswith(("stage4", "bn1")) for name in state)


def test_every_normalisation_has_mxnets_epsilon_and_only_bn_data_fixes_gamma() -> None:
    with torch.device("meta"):
        norms = {n: m for n, m in ResNetV2C4(50).named_modules() if isinstance(m, FrozenBatchNorm)}
    assert {norm.eps for norm in norms.values()} == {EPS} == {2e-5}
    assert [name for name, norm in norms.items() if norm.fix_gamma] == ["bn_data"]


@pytest.mark.parametrize(("channels", "stride", "first"), [(8, 1, False), (6, 2, True), (6, 1, True)])
def test_definition_of_a_unit(channels: int, stride: int, first: bool) -> None:
    unit = PreActivationUnit(channels, 8, stride, first=first)
    for norm in (unit.bn1, unit.bn2, unit.bn3):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, channels, 6, 7)
    kept = x.clone()
    activated = unit.bn1(x).relu()
    y = unit.conv3(unit.bn3(unit.conv2(unit.bn2(unit.conv1(activated)).relu())).relu())
    shortcut = unit.sc(activated) if first else x
    assert torch.allclose(unit(x), y + shortcut, atol=1e-5)
    assert torch.equal(x, kept)


def test_the_output_is_a_raw_sum_at_a_sixteenth() -> None:
    backbone = ResNetV2C4(50).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    assert features.shape == (1, 1024, 4, 6)
    assert features.min() < 0  # no ReLU after the last sum


def test_it_keeps_the_contract_of_a_backbone() -> None:
    assert_is_backbone(ResNetV2C4(50))


def test_stages_begin_with_a_stride_except_the_first() -> None:
    with torch.device("meta"):
        strides = [[u.conv2.stride[0] for u in stage_units(50, stage).values()] for stage in (1, 2, 3, 4)]
    assert strides == [[1, 1, 1], [2, 1, 1, 1], [2, 1, 1, 1, 1, 1], [2, 1, 1]]
