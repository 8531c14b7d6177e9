import pytest
import torch

from rcnn.inference.device import choose_device, use_bf16

CPU = torch.device("cpu")


def test_devices_by_name() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", r"--device gpu: not a device; use auto, cpu"),
        ("cuda:99", r"--device cuda:99: this machine has \d+ CUDA devices"),
        ("meta", r"--device meta: meta is not supported; use auto, cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_device(name)


def test_precision() -> None:
    assert use_bf16("bf16", CPU) and not use_bf16("fp32", CPU)
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert use_bf16("auto", CPU) == fast
