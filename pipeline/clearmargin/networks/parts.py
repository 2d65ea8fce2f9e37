"""The parts of a network that a runtime can stand in for: modules from tensors to tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Part", "RuntimePart", "Structure", "find_parts", "replace_parts"]

Structure = int | list[Any] | None
"""Where a flat row's tensors lie: a position, a list of structures, or none for an argument left out."""

Compiled = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A module with one call of it, as a runtime's converter wants both.

    Attributes:
        name: Its path in the network, as ``get_submodule`` takes it.
        module: From the inputs, one after the other, to the outputs, one after the other.
        inputs: Of that call.
        outputs: Structure of what the module returned.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    outputs: Structure


class _Flat(nn.Module):
    """A module of lists of tensors as one of tensors: what converters understand."""

    def __init__(self, module: nn.Module, arguments: Structure) -> None:
        super().__init__()
        self.module, self.arguments = module, arguments

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_flatten(self.module(*_rebuild(self.arguments, tensors)))[0])


class RuntimePart(nn.Module):
    """A part of a network that a runtime computes. It has no weights and learns nothing."""

    def __init__(self, compiled: Compiled, outputs: Structure) -> None:
        super().__init__()
        self.compiled, self.outputs = compiled, outputs

    def forward(self, *arguments: Any) -> Any:
        """Return what the part that this stands for returns, lists in place of tuples."""
        return _rebuild(self.outputs, self.compiled(_flatten(list(arguments))[0]))


def find_parts(network: nn.Module, names: Sequence[str], detect: Callable[[], object]) -> list[Part]:
    """Return the parts of a network, each with its first call during ``detect``.

    Args:
        network: In which the parts lie.
        names: Their paths; one that the network was built without is left out.
        detect: Makes the network look at an image; a part that it does not call is left out.
    """
    calls: dict[str, tuple[Any, Any]] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, arguments, result, name=name: calls.setdefault(name, (arguments, result)) and None
        )
        for name in names
        if getattr(network, name, network) is not None
    ]
    try:
        with torch.inference_mode():
            detect()
    finally:
        for hook in hooks:
            hook.remove()
    parts = []
    for name, (arguments, result) in calls.items():
        tensors, structure = _flatten(list(arguments))
        parts.append(
            Part(
                name=name,
                module=_Flat(network.get_submodule(name), structure).eval(),
                inputs=tuple(t.clone() for t in tensors),
                outputs=_flatten(result)[1],
            )
        )
    return parts


def replace_parts(network: nn.Module, parts: dict[str, RuntimePart]) -> None:
    """Put runtime parts into the places of a network's own, by their paths."""
    for name, part in parts.items():
        above, _, last = name.rpartition(".")
        setattr(network.get_submodule(above), last, part)


def _flatten(value: Any) -> tuple[list[Tensor], Structure]:
    tensors: list[Tensor] = []

    def walk(item: Any) -> Structure:
        if item is None:
            return None
        if isinstance(item, Tensor):
            tensors.append(item)
            return len(tensors) - 1
        if isinstance(item, list | tuple):
            return [walk(one) for one in item]
        raise TypeError(f"a part takes and gives tensors and lists of them, not {type(item).__name__}")

    structure = walk(value)
    return tensors, structure


def _rebuild(structure: Structure, tensors: Sequence[Tensor]) -> Any:
    if structure is None:
        return None
    if isinstance(structure, int):
        return tensors[structure]
    return [_rebuild(one, tensors) for one in structure]
