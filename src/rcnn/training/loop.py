"""The training loop: straight code from the first batch to the last checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from rcnn import processes
from rcnn.inference.upload import Upload
from rcnn.structures import Batch
from rcnn.training.checkpoint import load_checkpoint, newest_sound, save_checkpoint
from rcnn.training.log import Log
from rcnn.training.schedule import Schedule
from rcnn.training.step import TrainStep
from rcnn.whereabouts import note


@runtime_checkable
class Epochs(Protocol):
    """What the loop needs of a loader: the batch of a step must depend on nothing but epoch and step."""

    def __len__(self) -> int:
        """Steps in an epoch."""
        ...

    def epoch(self, index: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from a step on."""
        ...


class StoppedError(Exception):
    """A signal asked the run to end; its state is saved."""


def train(
    step: TrainStep,
    loader: Epochs,
    schedule: Schedule,
    log: Log,
    *,
    folder: Path,
    save_every: int,
    keep: int,
) -> None:
    """Run updates until `schedule.total`, from the newest checkpoint in `folder` on, or from the start without one.

    A checkpoint is written every `save_every` updates, at the end, and when SIGTERM or SIGINT asks to stop. Of several
    processes rank 0 writes; all of them stop after the same step, whichever was asked.

    Raises:
        NonFiniteLossError: the loss was not finite; no weight was changed by it.
        StoppedError: a signal ended the run after its state was saved.
    """
    device = step.parameters[0].device
    upload = Upload(device)
    done = _restore(step, folder, device)
    log.rewind(done)
    step.model.train()
    vote = processes.Vote()
    with _asked_to_stop() as asked:
        for batch in _batches(loader, done, schedule.total):
            note(f"at step {done + 1}")
            lr = schedule(done)
            scalars = step(upload(batch), lr)
            done += 1
            epoch = done / len(loader)
            log.add(done, epoch, lr, scalars, batch)
            stop = vote(bool(asked))
            if done % save_every == 0 or done == schedule.total or stop:
                log.flush(epoch, lr)  # a checkpoint is only written after its losses were seen to be finite
                if processes.rank() == 0:
                    save_checkpoint(folder, done, _state(step), keep=keep)
            if stop and done < schedule.total:
                by = asked[0] if asked else "a signal to another process"
                raise StoppedError(f"stopped by {by} after step {done}; go on with --resume")
            note(f"waiting for the images of step {done + 1}")
        vote.close()


def _batches(loader: Epochs, done: int, total: int) -> Iterator[Batch]:
    while done < total:
        epoch, start = divmod(done, len(loader))
        for batch in loader.epoch(epoch, start):
            if done == total:
                return
            yield batch
            done += 1


def _state(step: TrainStep) -> dict[str, Any]:
    return {
        "model": step.model.state_dict(),
        "optimiser": step.optimiser.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore(step: TrainStep, folder: Path, device: torch.device) -> int:
    path = _find(folder)
    if path is None:
        return 0
    done, state = load_checkpoint(path, device)
    try:
        step.model.load_state_dict(state["model"])
        step.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([x.cpu() for x in state["cuda_rng"]])
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[-1].strip()
        raise ValueError(
            f"{folder}, step {done}: the checkpoint is of another network ({reason}); begin anew"
        ) from error
    return done


def _find(folder: Path) -> Path | None:
    """The checkpoint of rank 0 to go on from, on every machine."""
    found = newest_sound(folder) if processes.rank() == 0 else None
    name = processes.agree(found.name if found else None)
    if name is None:
        return None
    processes.share_file(folder / name)
    return folder / name


@contextmanager
def _asked_to_stop() -> Iterator[list[str]]:
    asked: list[str] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: object) -> None:
        asked.append(signal.Signals(number).name)

    try:
        for number in signals:
            signal.signal(number, note)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
