"""One update: loss, backward, clip, optimiser. The sole owner of compilation, capture and precision in training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rcnn import processes
from rcnn.inference.capture import Captured
from rcnn.inference.step import compiled
from rcnn.models.faster_rcnn import FasterRCNN
from rcnn.structures import Batch
from rcnn.training.descent import descend, keep_low
from rcnn.training.distributed import Gradients, Share
from rcnn.training.exchange import Exchange, can_exchange

Loss = Callable[[FasterRCNN, Batch], dict[str, Tensor]]


class TrainStep:
    """Updates the model by one batch and returns the batch's scalars, still on the device; see Captured for a GPU.

    A loss or a gradient that is not finite changes no weight: the optimiser skips that update, and the loss is NaN.

    Args:
        clip: each element of the gradient is clamped to [-clip, clip]; 0: off.
        bf16: autocast of convolutions and matrix products; weights, losses and boxes stay float32.
        backend: of torch.compile; None runs eagerly.
        share: of this process and its passes in the images of a step; None: the batch is the step.
    """

    def __init__(
        self,
        model: FasterRCNN,
        loss: Loss,
        optimiser: torch.optim.Optimizer,
        *,
        clip: float,
        bf16: bool,
        backend: str | None = None,
        share: Share | None = None,
    ) -> None:
        self.model = model
        self.optimiser = optimiser
        self.clip = clip
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        device = self.parameters[0].device
        self.lr = torch.zeros((), device=device) if device.type == "cuda" else None  # where a graph reads it

        def forward(batch: Batch) -> dict[str, Tensor]:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return loss(model, batch)

        self.forward = compiled(forward, backend)
        self.exchange = None
        if can_exchange(device):
            processes.make_alike(model.state_dict().values())
            self.exchange = Exchange(self.parameters, torch.bfloat16 if bf16 else torch.float32)
        self.gradients = Gradients(model, self.forward, share, reduces=self.exchange is None)
        self.update = Captured(self._update, device)
        own = self.gradients.parallel is None and (share is None or share.passes == 1)  # else they add up in float32
        self.keeps_low = own and bf16 and backend is None and device.type == "cpu"

    def __call__(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        """One update at learning rate `lr`; the batch is already on the model's device."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr if self.lr is None else self.lr
        if self.lr is not None:
            self.lr.fill_(lr)
        return self.update(batch)

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        if self.keeps_low:
            keep_low(self.model, factors=self.exchange is None)
        scalars = self.gradients(batch)
        finite = self._descend(scalars["loss"])
        scalars["loss"] = torch.where(finite, scalars["loss"], torch.nan)
        return scalars

    def _descend(self, loss: Tensor) -> Tensor:
        """Update the weights where loss and gradients are finite, and say whether they are."""
        if loss.device.type == "cpu":
            return torch.tensor(descend(self.model, self.optimiser, loss, clip=self.clip, exchange=self.exchange))
        if self.clip:
            nn.utils.clip_grad_value_(self.parameters, self.clip)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        finite = loss.isfinite() & nn.utils.get_total_norm(gradients).isfinite()
        self.optimiser.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]: fused ones read it
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return finite


def sgd(model: nn.Module, *, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Fused SGD over what is trained; weight decay on weights only, not on biases and normalisation.

    Source: MXNet's rule, which mx-rcnn trained with (decay on `*_weight`).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    for parameter in trained:  # else a first update that is skipped leaves them uninitialised
        optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser
