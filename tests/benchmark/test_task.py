import pytest
import torch
from torch import nn

from rcnn.benchmark.task import Task, count_work, time_task
from rcnn.models.quantised import PackedConv, QuantisedConv, has_kernels
from rcnn.ops.large_linear import large_linear, large_linear_weight
from rcnn.ops.weight_gradient import weight_gradient
from rcnn.ops.winograd import transform_weight, winograd

CPU = torch.device("cpu")


def test_timing_runs_once() -> None:
    calls = []
    assert time_task(Task(lambda: calls.append(1), "fp32", CPU)) >= 0
    assert calls == [1]


def test_an_operator_is_timed_while_the_processor_is_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run, which wakes it, takes 30 ms on this clock and the others 3."""
    times = iter([0.030, *[0.003] * 20])
    clock = [0.0]

    def run() -> None:
        clock[0] += next(times)

    monkeypatch.setattr("rcnn.benchmark.task.time.perf_counter", lambda: clock[0])
    assert time_task(Task(run, "fp32", CPU, operator=True)) == pytest.approx(0.003)
    assert len(list(times)) == 13  # 30 ms and seven times 3 are more than 50


def test_work_of_a_product_by_hand() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert count_work(Task(lambda: a @ b, "fp32", CPU)).flops == 2 * 3 * 5 * 7


def test_work_counts_the_backward_pass_and_what_the_head_is_given() -> None:
    head = nn.Linear(5, 7, bias=False)
    task = Task(lambda: [head(torch.ones(n, 5)).sum().backward() for n in (3, 4)], "fp32", CPU, head=head)
    work = count_work(task)
    assert work.rois == 7
    assert work.flops == 2 * (2 * 7 * 5 * 7)  # forward, and the weights' gradient


def test_winograds_convolution_counts_as_the_direct_one() -> None:
    x, weight = torch.ones(2, 5, 4, 7), transform_weight(torch.ones(3, 5, 3, 3))
    task = Task(lambda: winograd(x, weight, torch.zeros(3)), "fp32", CPU)
    assert count_work(task).flops == 2 * (2 * 3 * 4 * 7) * (5 * 9)


@pytest.mark.skipif(not has_kernels(CPU), reason="int8 wants a processor with VNNI or AMX")
def test_a_convolution_in_int8_counts_as_one_in_floating_point() -> None:
    conv = nn.Conv2d(5, 3, 3, padding=1)
    quantised = QuantisedConv(conv)
    quantised.fill(conv, torch.tensor([[0.1, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    packed = PackedConv(quantised, torch.float32)
    task = Task(lambda: packed(torch.ones(2, 5, 4, 7)), "fp32", CPU)
    assert count_work(task).flops == 2 * (2 * 3 * 4 * 7) * (5 * 9)


def test_the_gradient_of_a_weight_is_the_work_that_pytorch_counts() -> None:
    grad, x, weight = torch.ones(2, 3, 4, 7).bfloat16(), torch.ones(2, 5, 4, 7).bfloat16(), torch.ones(3, 5, 3, 3)
    theirs = (grad, x, weight.bfloat16(), [3], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])
    expected = count_work(Task(lambda: torch.ops.aten.convolution_backward(*theirs), "bf16", CPU)).flops
    assert expected == 2 * (2 * 3 * 4 * 7) * (5 * 9)
    assert count_work(Task(lambda: weight_gradient(grad, x), "bf16", CPU)).flops == expected


def test_the_products_of_a_large_linear_layer_are_the_work_that_pytorch_counts() -> None:
    x, weight, grad = torch.ones(20, 256).bfloat16(), torch.ones(32, 256).bfloat16(), torch.ones(20, 32).bfloat16()
    ours = [lambda: large_linear(x, weight, weight[:, 0]), lambda: large_linear_weight(grad, x)]
    theirs = [lambda: nn.functional.linear(x, weight, weight[:, 0]), lambda: grad.t() @ x]
    for one, other in zip(ours, theirs, strict=True):
        expected = count_work(Task(other, "bf16", CPU)).flops
        assert expected == 2 * 20 * 256 * 32 and count_work(Task(one, "bf16", CPU)).flops == expected


def test_counting_leaves_nothing_behind() -> None:
    head = nn.Linear(5, 7)
    count_work(Task(lambda: head(torch.ones(1, 5)), "fp32", CPU, head=head))
    assert not head._forward_pre_hooks
