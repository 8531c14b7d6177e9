import pytest
import torch
from torch import Tensor, nn

from rcnn.weights.transfer import load_into


class Detector(nn.Module):
    """The names of a detector around a few numbers."""

    def __init__(self, num_classes: int = 2, hidden: int = 5) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Module()
        self.head.fc6 = nn.Linear(4, hidden)
        self.head.cls_score = nn.Linear(hidden, num_classes + 1)
        self.head.bbox_pred = nn.Linear(hidden, 4 * (num_classes + 1))


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def names(lines: tuple) -> set[str]:
    return {line.name for line in lines}


def same(model: nn.Module, expected: dict[str, Tensor], prefix: str = "") -> bool:
    found = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
    return bool(found) and all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_definition_a_whole_model_is_kept() -> None:
    tensors, model = copies(Detector()), Detector()
    report = load_into(model, tensors, source="a.pth")
    assert same(model, tensors)
    assert names(report.kept) == set(tensors)
    assert report.initialised == report.skipped == ()


def test_parameters_still_train_and_keep_their_identity() -> None:
    model = Detector()
    before = list(model.parameters())
    load_into(model, copies(Detector()), source="a.pth")
    assert all(a is b and a.requires_grad for a, b in zip(before, model.parameters(), strict=True))


def test_what_is_missing_keeps_its_first_value_and_what_is_left_over_is_said() -> None:
    tensors, model = copies(Detector()), Detector()
    fresh = copies(model)
    backbone = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    report = load_into(model, backbone | {"fc.weight": torch.ones(1000, 4)}, source="a.pth")
    assert same(model, tensors, "backbone.")
    assert same(model, fresh, "head.")
    assert {line.reason for line in report.initialised} == {"not in the file"}
    assert [(line.name, line.shape) for line in report.skipped] == [("fc.weight", (1000, 4))]


def test_another_number_of_classes_is_initialised_and_said() -> None:
    tensors, model = copies(Detector(num_classes=20)), Detector(num_classes=2)
    fresh = copies(model)
    report = load_into(model, tensors, source="a.pth")
    assert same(model, fresh, "head.cls_score.")
    assert same(model, fresh, "head.bbox_pred.")
    assert same(model, tensors, "head.fc6.")
    reasons = {line.name: line.reason for line in report.initialised}
    assert reasons["head.cls_score.weight"] == "(21, 5) in the file, another number of classes"
    assert set(reasons) == {f"head.{layer}.{p}" for layer in ("cls_score", "bbox_pred") for p in ("weight", "bias")}


@pytest.mark.parametrize("classes", [("dog", "horse", "cat"), ("dog", "cat"), ("cat", "dog", "bird", "cow")])
def test_rows_of_shared_classes_are_kept_by_name(classes: tuple[str, ...]) -> None:
    known = ("cat", "bird", "dog")
    tensors, model = copies(Detector(3)), Detector(len(classes))
    fresh = copies(model)
    report = load_into(model, tensors, source="a.pth", classes=classes, source_classes=known)
    assert not report.initialised
    for name, size in (("cls_score", 1), ("bbox_pred", 4)):
        for kind in ("weight", "bias"):
            key = f"head.{name}.{kind}"
            found, old, new = (t[key].unflatten(0, (-1, size)) for t in (model.state_dict(), tensors, fresh))
            assert torch.equal(found[0], old[0])
            for i, c in enumerate(classes, 1):
                assert torch.equal(found[i], old[known.index(c) + 1] if c in known else new[i])
    reason = next(line.reason for line in report.kept if line.name == "head.cls_score.bias")
    assert reason.startswith(f"background and {len(set(classes) & set(known))} of {len(classes)} classes: ")


def test_the_same_classes_in_the_same_order_are_simply_kept() -> None:
    tensors, model = copies(Detector(2)), Detector(2)
    report = load_into(model, tensors, source="a.pth", classes=("a", "b"), source_classes=("a", "b"))
    assert same(model, tensors)
    assert not any(line.reason for line in report.kept)


def test_another_width_below_the_class_layers_is_no_question_of_classes() -> None:
    report = load_into(
        Detector(2), copies(Detector(3, hidden=7)), source="a", classes=("a",) * 2, source_classes=("b",) * 3
    )
    reasons = {line.name: line.reason for line in report.initialised}
    assert reasons["head.cls_score.weight"] == "(4, 7) in the file"
    assert reasons["head.fc6.weight"] == "(7, 4) in the file"


def test_half_precision_and_other_memory_formats_are_converted() -> None:
    tensors, model = copies(Detector().half()), Detector().to(memory_format=torch.channels_last)
    load_into(model, tensors, source="a.pth")
    assert model.backbone[0].weight.dtype == torch.float32
    assert model.backbone[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.backbone[0].weight, tensors["backbone.0.weight"].float())


def test_shared_tensors_are_the_models_own() -> None:
    tensors, model = copies(Detector()), Detector()
    model.backbone[0].weight.requires_grad_(False)
    del tensors["head.fc6.bias"]
    tensors["head.fc6.weight"] = tensors["head.fc6.weight"].half()
    fresh = model.head.fc6.bias.clone()
    report = load_into(model, tensors, source="a.pth", share=True)
    assert names(report.initialised) == {"head.fc6.bias"} and torch.equal(model.head.fc6.bias, fresh)
    own = dict(model.state_dict(keep_vars=True))
    shared = {name for name, tensor in tensors.items() if own[name].data_ptr() == tensor.data_ptr()}
    assert shared == set(tensors) - {"head.fc6.weight"}
    assert own["head.fc6.weight"].dtype == torch.float32
    assert torch.equal(own["head.fc6.weight"], tensors["head.fc6.weight"].float())
    assert [name for name, x in own.items() if not x.requires_grad and x.is_floating_point()] == [
        "backbone.0.weight", "backbone.1.running_mean", "backbone.1.running_var",
    ]  # fmt: skip


def test_values_whose_sum_is_not_finite_may_be() -> None:
    tensors, model = copies(Detector()), Detector()
    tensors["head.fc6.weight"].fill_(3e38)
    load_into(model, tensors, source="a.pth")
    assert torch.equal(model.head.fc6.weight, tensors["head.fc6.weight"])


def test_nan_is_refused_by_name_and_nothing_is_loaded() -> None:
    tensors, model = copies(Detector()), Detector()
    fresh = copies(model)
    tensors["head.fc6.weight"][1, 2] = torch.inf
    with pytest.raises(ValueError, match=r"a\.pth: head\.fc6\.weight holds NaN or infinity in 1 of 20 values"):
        load_into(model, tensors, source="a.pth")
    assert same(model, fresh)


def test_a_tensor_of_nothing_but_nan_counts_as_missing() -> None:
    tensors = copies(Detector())
    tensors["head.fc6.weight"].fill_(torch.nan)
    report = load_into(Detector(), tensors, source="a.pth")
    assert [(line.name, line.reason) for line in report.initialised] == [("head.fc6.weight", "only NaN in the file")]


def test_another_backbone_is_refused_by_shape() -> None:
    tensors = copies(Detector())
    tensors["backbone.0.weight"] = torch.ones(8, 3, 3, 3)
    with pytest.raises(
        ValueError, match=r"backbone\.0\.weight is \(8, 3, 3, 3\), the recipe's backbone wants \(4, 3, 3, 3\)"
    ):
        load_into(Detector(), tensors, source="a.pth")


def test_a_file_that_fits_nothing_is_refused() -> None:
    strange = {f"conv{i}.w": torch.ones(1) for i in range(5)}
    with pytest.raises(
        ValueError,
        match=r"a\.pth: nothing in it fits .*holds conv0\.w, conv1\.w, conv2\.w and 2 more.*backbone\.0\.weight",
    ):
        load_into(Detector(), strange, source="a.pth")
    only_head = {name: tensor for name, tensor in copies(Detector()).items() if name.startswith("head.")}
    with pytest.raises(ValueError, match="nothing in it fits"):
        load_into(Detector(), only_head, source="a.pth")


def test_a_known_network_in_place_of_another_is_refused_by_its_name() -> None:
    def resnet(blocks: tuple[int, ...]) -> dict[str, Tensor]:
        stages = ((s, b) for s, n in enumerate(blocks, 1) for b in range(n))
        return {f"backbone.layer{s}.{b}.conv{c}.weight": torch.ones(4, 4, 1, 1) for s, b in stages for c in (1, 2, 3)}

    class Resnet50(nn.Module):
        def state_dict(self) -> dict[str, Tensor]:
            return resnet((3, 4, 6))

    with pytest.raises(ValueError, match=r"this file holds resnet101 \(layer3\.22.*wants resnet50"):
        load_into(Resnet50(), resnet((3, 4, 23)), source="a.pth")


def test_the_account_as_text() -> None:
    tensors = copies(Detector(num_classes=20)) | {"fc.weight": torch.ones(1000, 4)}
    del tensors["head.fc6.weight"]
    lines = load_into(Detector(), tensors, source="a.pth (torchvision's names)").format().splitlines()
    assert lines[0] == "weights from a.pth (torchvision's names): 8 kept, 5 initialised, 1 skipped"
    assert [line.split() for line in lines[1:3]] == [
        ["kept", "backbone", "7", "tensors"],
        ["kept", "head.fc6.bias", "(5,)"],
    ]
    assert any(line.startswith("  initialised  head.cls_score.weight  (3, 5)") for line in lines)
    assert " ".join(lines[-1].split()) == "skipped fc.weight (1000, 4) the model has no such tensor"
