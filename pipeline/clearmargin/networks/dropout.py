"""Dropout that is on if it is asked for, whatever mode a network is in.

``detect`` never depends on ``training``, and Monte Carlo dropout wants it on in prediction: so it is switched by
`dropping` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SwitchedDropout", "dropping", "has_dropout", "switch_dropout"]

_KINDS = {nn.Dropout: F.dropout, nn.Dropout2d: F.dropout2d, nn.Dropout3d: F.dropout3d}


class SwitchedDropout(nn.Module):
    """One of torch's dropouts, off but within `dropping`."""

    def __init__(self, of: nn.Dropout | nn.Dropout2d | nn.Dropout3d) -> None:
        super().__init__()
        self.p, self.drop, self.active = of.p, _KINDS[type(of)], False

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values``, within `dropping` with some of them 0 and the others scaled up."""
        return self.drop(values, self.p, training=self.active)


def switch_dropout(network: nn.Module) -> nn.Module:
    """Return the network with each of torch's dropouts replaced by one that `dropping` switches."""
    for name, module in list(network.named_modules()):
        if type(module) in _KINDS:
            above, _, last = name.rpartition(".")
            setattr(network.get_submodule(above), last, SwitchedDropout(module))
    return network


def has_dropout(network: nn.Module) -> bool:
    """Return whether `dropping` changes anything."""
    return any(isinstance(m, SwitchedDropout) and m.p > 0 for m in network.modules())


@contextmanager
def dropping(network: nn.Module) -> Iterator[None]:
    """Switch a network's dropout on."""
    switched = [m for m in network.modules() if isinstance(m, SwitchedDropout)]
    before = [m.active for m in switched]
    for module in switched:
        module.active = True
    try:
        yield
    finally:
        for module, active in zip(switched, before, strict=True):
            module.active = active
