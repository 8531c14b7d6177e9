import pytest
import torch

from rcnn.benchmark import operators, torchvision
from tests.benchmark.small import RECIPE, settings

WAYS = ("forward", "backward")
POOLS = [f"{op} {way}, 10 on 256x4x6" for op in ("roi_pool", "roi_align") for way in WAYS]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_our_operators_in_the_recipes_sizes(precision: str) -> None:
    tasks = operators.open_ours(settings("ops", batch=2, precision=precision))
    assert list(tasks) == ["nms 60 to 10", *POOLS]
    index, valid = tasks["nms 60 to 10"].run()
    assert index.shape == (2, 10) and valid.all()
    for forward, backward in zip(POOLS[::2], POOLS[1::2], strict=True):
        pooled, (gradient,) = tasks[forward].run(), tasks[backward].run()
        assert pooled.shape == (20, 256, 7, 7)
        assert gradient.shape == (2, 256, 4, 6) and gradient.any()
        assert {pooled.dtype, gradient.dtype} == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}


def test_both_nms_of_a_recipe_are_timed() -> None:
    names = list(operators.open_ours(settings("ops", recipe=type(RECIPE)(model=RECIPE.model))))
    assert names[:2] == ["nms 6000 to 300", "nms 12000 to 2000"]


def test_torchvisions_operators_agree_with_ours() -> None:
    try:
        torchvision.load_torchvision()
    except ValueError as error:
        pytest.skip(str(error))
    given = settings("ops", model={"offset": 0.0})
    ours, theirs = operators.open_ours(given), operators.open_torchvision(given)
    assert list(ours) == list(theirs)
    index, valid = ours["nms 60 to 10"].run()
    assert index[0][valid[0]].tolist() == theirs["nms 60 to 10"].run()[0].tolist()
    for name in POOLS:
        torch.testing.assert_close(ours[name].run(), theirs[name].run(), msg=name)
