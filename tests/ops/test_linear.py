"""The linear layer on matrix tiles: against the layer in float64, and the compiled kernel with the reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.ops import kernels
from rcnn.ops import linear as module
from rcnn.ops.linear import PANEL, STEP, linear, linear_reference, pack_weight, pays

native = kernels.module_for(torch.device("cpu"))
has_tiles = native is not None and hasattr(native, "has_amx") and native.has_amx()
with_tiles = pytest.mark.skipif(not has_tiles, reason="needs a processor with AMX, on Linux, and the C++ kernels")
IMPLEMENTATIONS = [
    pytest.param(linear_reference, id="reference"),
    pytest.param(lambda x, weight, bias, relu: linear(x, weight, bias, relu=relu), id="tiles", marks=with_tiles),
]
each = pytest.mark.parametrize("run", IMPLEMENTATIONS)

# rows, inputs, outputs
SIZES = [
    (1, 32, 1), (16, 32, 32), (17, 64, 33), (31, 256, 31), (32, 288, 64), (33, 512, 257), (47, 544, 300), (48, 32, 513),
    (300, 800, 21), (320, 64, 40), (321, 64, 256), (650, 96, 70),
]  # fmt: skip


def layer(rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows + inputs + outputs)
    x, weight = torch.randn(rows, inputs).bfloat16(), (torch.randn(outputs, inputs) / inputs**0.5).bfloat16()
    return x, weight, torch.randn(outputs)


@each
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("relu", [False, True])
def test_it_is_the_layer_rounded_once(run: Callable[..., Tensor], size: tuple[int, int, int], relu: bool) -> None:
    x, weight, bias = layer(*size)
    exact = F.linear(x.double(), weight.double(), bias.double())
    exact = F.relu(exact) if relu else exact
    found = run(x, pack_weight(weight), bias, relu)
    assert found.dtype == torch.bfloat16 and found.shape == exact.shape
    assert ((found - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()  # half a unit of bfloat16, and of the sum


@each
def test_one_row_and_one_weight_by_hand(run: Callable[..., Tensor]) -> None:
    """The weight of output 33 (the second panel) and input 34 (the second step)."""
    x, weight, bias = torch.zeros(1, 64).bfloat16(), torch.zeros(34, 64).bfloat16(), torch.zeros(34)
    x[0, 34], weight[33, 34], bias[2] = 3, -2, 1.5
    expected = torch.zeros(34)
    expected[33], expected[2] = -6, 1.5
    assert torch.equal(run(x, pack_weight(weight), bias, False)[0].float(), expected)
    assert torch.equal(run(x, pack_weight(weight), bias, True)[0].float(), expected.relu())


@each
def test_what_is_no_number_stays_in_its_row(run: Callable[..., Tensor]) -> None:
    x, weight, bias = layer(40, 64, 40)
    expected = run(x, pack_weight(weight), bias, True)
    x[35, 7] = torch.nan
    found = run(x, pack_weight(weight), bias, True)
    assert found[35].isnan().all() and torch.equal(found[:35], expected[:35]) and torch.equal(found[36:], expected[36:])


@with_tiles
def test_the_same_bits_from_any_number_of_threads_and_from_rows_out_of_order() -> None:
    x, weight, bias = layer(333, 320, 700)
    packed, threads = pack_weight(weight), torch.get_num_threads()
    expected = linear(x, packed, bias)
    assert torch.equal(linear(x.t().contiguous().t(), packed, bias), expected)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(linear(x, packed, bias), expected)
    finally:
        torch.set_num_threads(threads)


@with_tiles
def test_wrong_shapes_are_refused() -> None:
    assert native is not None
    x, weight, bias = layer(4, 64, 40)
    for rows, packed in (
        (x[:, :48], pack_weight(weight)),
        (x, pack_weight(weight)[:1]),
        (x.float(), pack_weight(weight)),
    ):
        with pytest.raises(ValueError, match="linear: shapes"):
            native.linear(rows.contiguous(), packed, bias, x.new_empty(4, 40), False, 1)


def test_no_rows() -> None:
    x, weight, bias = layer(4, 64, 40)
    assert linear(x[:0], pack_weight(weight), bias).shape == (0, 40)


@pytest.mark.parametrize(
    ("inputs", "rows", "dtype", "expected"),
    [
        (25088, 300, torch.bfloat16, has_tiles),
        (25088, 300, torch.float32, False),
        (25088, 8, torch.bfloat16, False),
        (25080, 300, torch.bfloat16, False),
        (2048, 300, torch.bfloat16, False),
    ],
)
def test_which_layers_it_is_for(inputs: int, rows: int, dtype: torch.dtype, expected: bool) -> None:
    with torch.device("meta"):
        wide = nn.Linear(inputs, 4096)
    assert pays(wide, torch.empty(rows, inputs, dtype=dtype)) == expected


def test_without_the_kernels_the_reference_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCNN_KERNELS", "reference")
    x, weight, bias = layer(20, 64, 40)
    assert not pays(nn.Linear(25088, 1024, device="meta"), torch.empty(300, 25088, dtype=torch.bfloat16))
    assert torch.equal(linear(x, pack_weight(weight), bias), linear_reference(x, pack_weight(weight), bias, False))


def test_the_sizes_of_a_tile_are_those_of_the_kernel() -> None:
    assert pack_weight(torch.zeros(PANEL + 1, 2 * STEP).bfloat16()).shape == (2, 2, module.PANEL * module.STEP)
