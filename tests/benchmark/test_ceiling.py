import pytest
import torch

from rcnn.benchmark import ceiling
from rcnn.benchmark.ceiling import measure_ceiling


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_rate_is_that_of_the_fastest_run(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = []

    def seconds(task: ceiling.Task) -> float:
        result = task.run()
        assert isinstance(result, torch.Tensor)
        assert result.numel() == 64 * 64
        dtypes.append(result.dtype)
        return 0.5 if len(dtypes) == 3 else 1.0

    monkeypatch.setattr(ceiling, "time_task", seconds)
    assert measure_ceiling(precision, torch.device("cpu"), size=64) == 2 * 64**3 / 0.5
    assert dtypes == [ceiling.DTYPES[precision]] * (2 * ceiling.RUNS)


def test_both_forms_are_the_same_product() -> None:
    results = []

    def seconds(task: ceiling.Task) -> float:
        result = task.run()
        assert isinstance(result, torch.Tensor)
        results.append(result if result.dim() == 2 else result.permute(0, 2, 3, 1).reshape(64, 64))
        return 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceiling, "time_task", seconds)
        measure_ceiling("fp32", torch.device("cpu"), size=64)
    a_b, convolved = results[0], results[-1]
    assert a_b.shape == convolved.shape
    assert not torch.equal(a_b, torch.zeros_like(a_b))
