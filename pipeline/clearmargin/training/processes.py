"""The processes that train together, started by torchrun; one if it is not used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from clearmargin.networks.network import Network

__all__ = ["ProcessGroup", "distributed_module", "loss_module", "process_group"]


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train together.

    Attributes:
        rank: Its number; process 0 decides, writes and logs.
        local: Its number on this machine, which is that of its GPU.
        size: How many there are.
    """

    rank: int = 0
    local: int = 0
    size: int = 1

    def shared(self, value: Any) -> Any:
        """Return what process 0 has for ``value``; every process must call it."""
        if self.size == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, by NCCL on GPUs and gloo elsewhere; leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup()
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)  # objects are shared through the current device
    try:
        yield ProcessGroup(distributed.get_rank(), local, distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


class _Losses(nn.Module):
    """``losses`` as ``forward``, which is what DistributedDataParallel synchronises."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, targets: list[Any]) -> dict[str, Tensor]:
        return self.network.losses(images, targets)


def loss_module(network: Network, device: torch.device, group: ProcessGroup) -> nn.Module:
    """Return a module whose call gives the network's losses; gradients are averaged over the group."""
    return _Losses(network) if group.size == 1 else distributed_module(network, device)


def distributed_module(network: Network, device: torch.device) -> nn.Module:
    """Return such a module of one process among those that are joined."""
    return nn.parallel.DistributedDataParallel(
        _Losses(network),
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=True,  # a batch without instances leaves the mask head unused
    )
