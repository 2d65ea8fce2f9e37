"""One step of training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clearmargin.errors import TrainingError
from clearmargin.models.clock import Clock
from clearmargin.networks.network import LAYOUTS, Targets
from clearmargin.training.checkpoint import TrainingState

__all__ = ["TrainingStep"]

# Of pictures and of volumes.

Batch = tuple[Tensor, list[Targets]]


@dataclass(kw_only=True)
class TrainingStep:
    """What a step does with its batches.

    Attributes:
        state: The weights, their average and the optimiser: changed by each call.
        compute_losses: Called with images and targets, gives named scalar losses (``loss_module``).
        device: Where batches go.
        clip_norm: Largest norm of a step's gradient.
        ema: Decay of the averaged weights; 0 keeps none.
        amp: Whether to compute in bfloat16 if that is safe.
        clock: Counts ``transfer``, ``forward``, ``backward`` and ``update``.
    """

    state: TrainingState
    compute_losses: nn.Module
    device: torch.device
    clip_norm: float
    ema: float
    amp: bool = False
    clock: Clock = field(default_factory=Clock)

    def __call__(self, batches: Sequence[Batch], *, number: int, rate: float) -> dict[str, Tensor]:
        """Change the weights once, by the mean gradient of ``batches``; return the mean losses and their sum, ``loss``.

        Raises:
            TrainingError: The loss is not finite; the weights are as they were.
        """
        for parameters in self.state.optimiser.param_groups:
            parameters["lr"] = rate * parameters.get("rate", 1.0)
        self.state.optimiser.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for count, batch in enumerate(batches, 1):
            with self.clock("transfer"):
                images = batch[0].to(self.device, memory_format=LAYOUTS[batch[0].ndim - 2], non_blocking=True)
                targets = [t.to(self.device) for t in batch[1]]
            with self._alone(last=count == len(batches)):
                for name, value in self._learn(images, targets, len(batches), number).items():
                    share = value.detach() / len(batches)
                    totals[name] = totals[name] + share if name in totals else share
        with self.clock("update"):
            nn.utils.clip_grad_norm_(self.state.network.parameters(), self.clip_norm)
            self.state.optimiser.step()
            if self.ema:
                self.state.move_average(self.ema, number)
        return totals

    def _learn(self, images: Tensor, targets: list[Targets], batches: int, number: int) -> dict[str, Tensor]:
        with self.clock("forward"):
            with torch.autocast("cuda", torch.bfloat16) if self.amp else nullcontext():
                losses: dict[str, Tensor] = self.compute_losses(images, targets)
                loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} in step {number + 1} "
                    f"({', '.join(f'{k} {v.item():.3g}' for k, v in losses.items())}); the checkpoint of epoch "
                    f"{self.state.epoch} is kept: resume with a lower training.learning_rate or training.clip_norm"
                )
        with self.clock("backward"):
            (loss / batches).backward()  # type: ignore[no-untyped-call]
        return {"loss": loss, **losses}

    def _alone(self, *, last: bool) -> AbstractContextManager[object]:
        """Return a context in which processes do not average their gradients: all but a step's last batch."""
        if last or not isinstance(self.compute_losses, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.compute_losses.no_sync()
