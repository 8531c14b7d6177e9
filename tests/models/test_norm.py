import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.models.norm import FrozenBatchNorm


def random_norm(channels: int, **options: bool) -> FrozenBatchNorm:
    norm = FrozenBatchNorm(channels, eps=2e-5, **options)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.1, 3)
    return norm


def by_definition(x: Tensor, norm: FrozenBatchNorm) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps)


def test_definition_is_batch_normalisation_in_evaluation() -> None:
    norm, x = random_norm(5), torch.randn(2, 5, 3, 4)
    assert torch.allclose(norm(x), by_definition(x, norm), atol=1e-5)
    assert torch.equal(norm.train()(x), norm.eval()(x))


def test_fix_gamma_counts_the_weight_as_1() -> None:
    norm, x = random_norm(3, fix_gamma=True), torch.randn(2, 3, 3, 4)
    expected = F.batch_norm(x, norm.running_mean, norm.running_var, torch.ones(3), norm.bias, eps=norm.eps)
    assert torch.allclose(norm(x), expected, atol=1e-5)


def test_it_is_frozen_and_its_names_are_those_of_batch_norm() -> None:
    norm = FrozenBatchNorm(4)
    assert not any(p.requires_grad for p in norm.parameters())
    assert set(norm.state_dict()) | {"num_batches_tracked"} == set(nn.BatchNorm2d(4).state_dict())
