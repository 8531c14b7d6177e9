"""From named tensors into a model, with an account of what fitted."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rcnn.weights.networks import recognise, refuse_another

CLASS_ROWS = {"head.cls_score": 1, "head.bbox_pred": 4}  # outputs for each class, background first


class Line(NamedTuple):
    """One tensor of the account."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class TransferReport:
    """What a file gave a model."""

    source: str
    kept: tuple[Line, ...]  # in the model as the file has them
    initialised: tuple[Line, ...]  # in the model as its constructor made them
    skipped: tuple[Line, ...]  # only in the file

    def format(self) -> str:
        """The account as text: a line of counts, then a row for each tensor or group of tensors alike."""
        counts = f"{len(self.kept)} kept, {len(self.initialised)} initialised, {len(self.skipped)} skipped"
        groups = {"kept": self.kept, "initialised": self.initialised, "skipped": self.skipped}
        rows = [(title, *row) for title, lines in groups.items() for row in _rows(lines)]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        table = ("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows)
        return "\n".join([f"weights from {self.source}: {counts}", *(f"  {line.rstrip()}" for line in table)])


class _Fit(NamedTuple):
    value: Tensor | None  # None: the model keeps its own
    reason: str = ""


def load_into(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: object,
    classes: Sequence[str] = (),
    source_classes: Sequence[str] = (),
    share: bool = False,
) -> TransferReport:
    """Copies every tensor that fits by name and shape into the model, which must be freshly initialised.

    The last layers of another set of classes are left as initialised; where both lists of class names (without
    background) are given, the rows of background and of the classes in both are copied. On an error the model is as it
    was.

    Args:
        source: what the tensors were read from, for messages; see `open.read_weights`.
        share: put the tensors themselves into the model, where their dtype is the model's.

    Raises:
        ValueError: the tensors are another network's, or hold NaN or infinity.
    """
    own = model.state_dict()
    _refuse_another_network(own, tensors, str(source))
    pick = _ClassPick(tuple(classes), tuple(source_classes))
    fits = {name: _fit(name, target, tensors.get(name), pick, str(source)) for name, target in own.items()}
    _refuse_stranger(own, fits, tensors, str(source))
    _put(model, own, {name: fit.value for name, fit in fits.items() if fit.value is not None}, share=share)
    account = [(Line(name, tuple(own[name].shape), fit.reason), fit.value) for name, fit in fits.items()]
    return TransferReport(
        source=str(source),
        kept=tuple(line for line, value in account if value is not None),
        initialised=tuple(line for line, value in account if value is None),
        skipped=tuple(
            Line(name, tuple(value.shape), "the model has no such tensor")
            for name, value in tensors.items()
            if name not in own
        ),
    )


@torch.no_grad()
def _put(model: nn.Module, own: Mapping[str, Tensor], values: Mapping[str, Tensor], *, share: bool) -> None:
    if share:
        model.load_state_dict({name: value.to(own[name].dtype) for name, value in values.items()}, False, assign=True)
        return
    for name, value in values.items():
        own[name].copy_(value)


class _ClassPick(NamedTuple):
    """Which rows of a class layer come from where."""

    classes: tuple[str, ...]
    source_classes: tuple[str, ...]

    def differs(self) -> bool:
        return bool(self.classes and self.source_classes) and self.classes != self.source_classes

    def rows(self, target: Tensor, value: Tensor, size: int) -> _Fit | None:
        """`target` with the rows of shared classes from `value`; None when these are no layers of the classes."""
        expected = ((len(self.classes) + 1) * size, (len(self.source_classes) + 1) * size)
        if (target.shape[0], value.shape[0]) != expected or target.shape[1:] != value.shape[1:]:
            return None
        shared = [name for name in self.classes if name in self.source_classes]
        to = [0, *(self.classes.index(name) + 1 for name in shared)]
        of = [0, *(self.source_classes.index(name) + 1 for name in shared)]
        mixed = target.detach().clone().unflatten(0, (-1, size))
        mixed[to] = value.to(mixed).unflatten(0, (-1, size))[of]
        names = f": {', '.join(shared)}" if 0 < len(shared) <= 5 else ""
        return _Fit(mixed.flatten(0, 1), f"background and {len(shared)} of {len(self.classes)} classes{names}")


def _fit(name: str, target: Tensor, value: Tensor | None, pick: _ClassPick, source: str) -> _Fit:
    if value is None:
        return _Fit(None, "not in the file")
    size = CLASS_ROWS.get(name.rpartition(".")[0])
    mixed = pick.rows(target, value, size) if size and pick.differs() else None
    if mixed is None and target.shape != value.shape:
        return _Fit(None, _mismatch(name, target, value, source))
    if value.is_floating_point():
        finite = bool(value.sum().isfinite())  # a tenth of the time of looking at each
        bad = 0 if finite else value.numel() - int(value.isfinite().sum())
        if bad and bool(value.isnan().all()):
            return _Fit(None, "only NaN in the file")
        if bad:
            raise ValueError(
                f"{source}: {name} holds NaN or infinity in {bad} of {value.numel()} values; "
                "the training that wrote it diverged: use an earlier checkpoint"
            )
    return mixed or _Fit(value)


def _mismatch(name: str, target: Tensor, value: Tensor, source: str) -> str:
    shape, wanted = tuple(value.shape), tuple(target.shape)
    if name.startswith("backbone."):
        raise ValueError(
            f"{source}: {name} is {shape}, the recipe's backbone wants {wanted}: another network; "
            "choose the --model.backbone of the file, or other weights as --model.pretrained"
        )
    classes = ", another number of classes" if name.rpartition(".")[0] in CLASS_ROWS and shape[1:] == wanted[1:] else ""
    return f"{shape} in the file{classes}"


def _refuse_another_network(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    wanted = recognise(own)
    if wanted is not None:
        refuse_another(tensors, wanted.name, source=source)


def _refuse_stranger(
    own: Mapping[str, Tensor], fits: Mapping[str, _Fit], tensors: Mapping[str, Tensor], source: str
) -> None:
    needed = [name for name in own if name.startswith("backbone.")] or list(own)
    if any(fits[name].value is not None for name in needed):
        return
    raise ValueError(
        f"{source}: nothing in it fits the network: it holds {_first(tensors)}, the network has {_first(needed)}; "
        "give other weights as --model.pretrained, or choose the --model.backbone they are of"
    )


def _first(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _rows(lines: Iterable[Line]) -> list[tuple[str, str, str]]:
    """Lines as rows of text; those of one part of the network with one reason become one row."""
    groups = defaultdict(list)
    for line in lines:
        parts = line.name.split(".")
        part = parts[0] if parts[0] == "backbone" else ".".join(parts[: min(2, len(parts) - 1)])
        groups[part, line.reason].append(line)
    return [
        (group[0].name, str(group[0].shape), reason) if len(group) == 1 else (part, f"{len(group)} tensors", reason)
        for (part, reason), group in groups.items()
    ]
