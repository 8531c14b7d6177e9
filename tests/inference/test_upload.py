import pytest
import torch

from rcnn.inference.upload import Upload
from tests import tiny


def test_a_batch_that_is_there_is_not_copied() -> None:
    batch = tiny.batch()
    there = Upload(torch.device("cpu"))(batch)
    assert all(a is b for a, b in zip(batch, there, strict=True))


@pytest.mark.gpu
def test_batches_arrive_whole_while_the_gpu_is_busy() -> None:
    upload, busy = Upload(torch.device("cuda")), torch.randn(4096, 4096, device="cuda")
    batches = [tiny.batch(seed=i, canvas=(640, 960)) for i in range(6)]
    sums = []
    for batch in batches:
        there = upload(batch)
        busy = busy @ busy / 64
        sums.append([x.double().sum() for x in there])
        assert all(x.is_cuda for x in there)
        del there
    for batch, found in zip(batches, sums, strict=True):
        assert [x.item() for x in found] == [x.double().sum().item() for x in batch]
