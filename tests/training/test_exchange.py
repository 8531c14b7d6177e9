"""Gradients that the processes of a machine read from each other, against their mean."""

import torch
from torch import nn

from rcnn import processes
from rcnn.training.exchange import MOST, Exchange, can_exchange
from tests import ranks

CPU = torch.device("cpu")


def test_one_process_has_nobody_to_exchange_with() -> None:
    assert not can_exchange(CPU)


def parameters() -> list[nn.Parameter]:
    """Of lengths that fill no line of the cache, and one in another order of memory."""
    layouts = (torch.zeros(3), torch.zeros(5, 7), torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last))
    return [nn.Parameter(x) for x in layouts]


def gradients(own: list[nn.Parameter], rank: int, step: int) -> dict[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * rank + step)
    return {p: torch.randn(p.shape, generator=generator) for p in own}


def exchange_some() -> None:
    """Several times, in both types, then one that is not finite and one that is again."""
    rank, world, own = processes.rank(), processes.world(), parameters()
    assert can_exchange(CPU) and not can_exchange(torch.device("cuda")) and world <= MOST
    for dtype in (torch.float32, torch.bfloat16):
        exchange, good = Exchange(own, dtype), torch.tensor(1.0)
        for step in range(5):
            assert exchange(gradients(own, rank, step), good)
            for number in range(world):
                for p, expected in gradients(own, number, step).items():
                    assert torch.equal(exchange.places[p][number], expected.to(dtype))
                    assert exchange.places[p][number].stride() == p.stride()
            exchange.done()
        for broken in range(world):  # the last by its loss
            bad = rank == broken
            given, loss = gradients(own, rank, 9), good
            if bad and broken == world - 1:
                loss = torch.tensor(torch.inf)
            elif bad:
                given[own[1]][4, 6] = torch.nan
            assert not exchange(given, loss)
            exchange.done()
        assert exchange(gradients(own, rank, 0), good)
        exchange.done()


def test_every_process_reads_the_gradients_of_all() -> None:
    ended = ranks.run("tests.training.test_exchange:exchange_some", world=3)
    assert all(each.status == 0 for each in ended), ended


def refuse_machines() -> None:
    assert not can_exchange(CPU)


def test_machines_send_them() -> None:
    ended = ranks.run("tests.training.test_exchange:refuse_machines", world=2, machines=True)
    assert all(each.status == 0 for each in ended), ended
