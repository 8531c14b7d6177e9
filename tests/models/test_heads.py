import pytest
import torch

from rcnn.models.heads import FCHead, Layer4Head, RoiHead, Stage4HeadV2


def test_definition_of_the_fc_head() -> None:
    head = FCHead(4, 3, hidden=8, dropout=0.5, num_classes=2).eval()
    x = torch.randn(5, 4, 3, 3)
    embedded = head.fc7(head.fc6(x.reshape(5, 36)).relu()).relu()
    logits, deltas = head(x)
    assert torch.allclose(logits, head.cls_score(embedded), atol=1e-6)
    assert torch.allclose(deltas, head.bbox_pred(embedded), atol=1e-6)
    assert logits.shape == (5, 3) and deltas.shape == (5, 12)


def test_the_fc_head_reads_channels_first_whatever_the_memory_format() -> None:
    head = FCHead(4, 3, hidden=8, dropout=0.0, num_classes=2)
    x = torch.randn(5, 4, 3, 3)
    assert torch.allclose(head(x)[0], head(x.to(memory_format=torch.channels_last))[0], atol=1e-6)


def test_dropout_works_in_training_only_and_by_the_seed() -> None:
    head = FCHead(4, 3, hidden=64, dropout=0.5, num_classes=2)
    x, seed = torch.randn(6, 4, 3, 3), torch.tensor([7, 8])
    with torch.no_grad():
        dropped = head.train().embed(x, seed)
        assert not torch.equal(dropped, head.embed(x)) and torch.equal(dropped, head.embed(x, seed))
        assert torch.equal(head.eval().embed(x, seed), head.embed(x))


def test_dropout_of_an_image_does_not_depend_on_the_batch() -> None:
    head = FCHead(4, 3, hidden=64, dropout=0.5, num_classes=2).train()
    x, seed = torch.randn(6, 4, 3, 3), torch.tensor([7, 8])
    with torch.no_grad():
        apart = torch.cat([head.embed(x[:3], seed[:1]), head.embed(x[3:], seed[1:])])
    assert torch.allclose(head.embed(x, seed), apart, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "channels", "size", "width"),
    [(Layer4Head(18, 4), 256, 7, 512), (Layer4Head(50, 4), 1024, 14, 2048), (Stage4HeadV2(50, 4), 1024, 14, 2048)],
    ids=["resnet18", "resnet50", "resnet50_v2"],
)
def test_shapes_of_stage_heads(head: RoiHead, channels: int, size: int, width: int) -> None:
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        assert head.eval().embed(x).shape == (2, width)
        logits, deltas = head(x)
    assert logits.shape == (2, 5) and deltas.shape == (2, 20)


def test_definition_of_stage_heads() -> None:
    x = torch.randn(1, 256, 6, 6)
    head = Layer4Head(18, 2)
    with torch.no_grad():
        expected = head.layer4(x).mean((2, 3))
        assert expected.shape == (1, 512) and torch.equal(head.embed(x), expected)
    with torch.device("meta"):
        assert [name for name, _ in head.named_children()] == ["cls_score", "bbox_pred", "layer4"]
        names = [name for name, _ in Stage4HeadV2(50, 2).named_children()]
    assert names == ["cls_score", "bbox_pred", "stage4_unit1", "stage4_unit2", "stage4_unit3", "bn1"]


def test_first_weights_have_the_spread_of_the_paper() -> None:
    head = FCHead(4, 3, hidden=512, dropout=0.0, num_classes=20)
    assert head.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert head.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not head.cls_score.bias.any() and not head.bbox_pred.bias.any()


def test_results_are_float32_under_bf16() -> None:
    head = FCHead(4, 3, hidden=8, dropout=0.0, num_classes=2)
    with torch.autocast("cpu", torch.bfloat16):
        logits, deltas = head(torch.randn(2, 4, 3, 3).bfloat16())
    assert logits.dtype == deltas.dtype == torch.float32


def test_an_outsiders_head_must_embed() -> None:
    with pytest.raises(NotImplementedError):
        RoiHead(4, 2)(torch.zeros(1, 4, 1, 1))
