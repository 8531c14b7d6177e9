import torch

from rcnn.models.rpn import RPN
from rcnn.ops.anchors import base_anchors, grid_anchors

SIZE = torch.tensor([[48, 64]])


def network(**changes: object) -> RPN:
    options = {"scales": (1, 2), "ratios": (1,), "stride": 16, "offset": 1.0, "partial_cells": False}
    return RPN(4, hidden=6, **(options | changes))


def test_shapes_and_anchors() -> None:
    rpn = network(ratios=(0.5, 1, 2))
    out = rpn(torch.randn(2, 4, 3, 5), SIZE.expand(2, 2))
    assert out.logits.shape == (2, 3 * 5 * 6) and out.deltas.shape == (2, 90, 4)
    base = base_anchors((1, 2), (0.5, 1, 2), stride=16, offset=1.0)
    assert torch.equal(out.anchors, grid_anchors(base, (3, 5), stride=16))
    assert out.anchors_valid.view(2, 3, 5, 6)[0, :, :4].all()
    assert not out.anchors_valid.view(2, 3, 5, 6)[:, :, 4].any()


def test_definition_of_which_channel_speaks_of_which_anchor() -> None:
    rpn = network()
    for layer in (rpn.conv, rpn.cls, rpn.box):
        torch.nn.init.zeros_(layer.weight)
    with torch.no_grad():
        rpn.cls.bias.copy_(torch.tensor([1.0, 2.0, 10.0, 20.0]))  # background of anchors 0 and 1, then object
        rpn.box.bias.copy_(torch.arange(8.0))
    out = rpn(torch.randn(1, 4, 2, 3), SIZE)
    assert torch.equal(out.logits, torch.tensor([9.0, 18.0]).repeat(1, 6))
    assert torch.equal(out.deltas, torch.arange(8.0).view(2, 4).repeat(1, 6, 1))


def test_the_logit_is_that_of_the_softmax_pair() -> None:
    rpn, features = network(), torch.randn(1, 4, 2, 3)
    pair = rpn.cls(rpn.conv(features).relu()).view(1, 2, 2, 2, 3)  # kind, anchor, row, column
    expected = pair.softmax(1)[:, 1].permute(0, 2, 3, 1).reshape(1, -1)
    assert torch.allclose(rpn(features, SIZE).logits.sigmoid(), expected, atol=1e-6)


def test_what_a_cell_says_stands_at_its_anchors() -> None:
    rpn, features = network(), torch.zeros(1, 4, 5, 7)
    before = rpn(features, SIZE)
    features[0, :, 3, 2] = 10
    after = rpn(features, SIZE)
    changed = (after.deltas != before.deltas).any(-1).view(5, 7, 2)
    assert changed[2:5, 1:4].all()
    assert changed.sum() == 9 * 2


def test_cells_partly_on_the_picture_are_a_choice() -> None:
    size = torch.tensor([[40, 50]])
    whole = network()(torch.zeros(1, 4, 3, 4), size).anchors_valid.view(3, 4, 2)
    partly = network(partial_cells=True)(torch.zeros(1, 4, 3, 4), size).anchors_valid
    assert whole[:2, :3].all() and whole.sum() == 2 * 3 * 2
    assert partly.all()


def test_first_weights_and_what_is_stored() -> None:
    rpn = RPN(64, hidden=128, scales=(8,), ratios=(1,), stride=16, offset=1.0, partial_cells=False)
    assert (rpn.conv.weight.std() - 0.01).abs() < 0.001
    assert set(rpn.state_dict()) == {f"{name}.{kind}" for name in ("conv", "cls", "box") for kind in ("weight", "bias")}


def test_results_are_float32_under_bf16() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = network()(torch.randn(1, 4, 2, 3), SIZE)
    assert out.logits.dtype == out.deltas.dtype == out.anchors.dtype == torch.float32
