"""Runtimes that compute a network's parts in place of torch. A new one is two functions and one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clearmargin.errors import ConfigError, nearest
from clearmargin.networks.parts import Part

__all__ = ["RUNTIMES", "Runtime", "runtime"]


@dataclass(frozen=True)
class Runtime:
    """How parts are written and computed.

    Attributes:
        package: What must be importable, of the package's extra ``export``.
        suffix: Suffix of a part's file.
        write: Writes one part to a path with that suffix.
        load: Returns what computes the part in a file, with a number of threads.
    """

    package: str
    suffix: str
    write: Callable[[Part, Path], None]
    load: Callable[[Path, int], Callable[[Sequence[Tensor]], list[Tensor]]]


def runtime(name: str) -> Runtime:
    """Return a runtime by name.

    Raises:
        ConfigError: It is not known, or its package is not installed.
    """
    if name not in RUNTIMES:
        raise ConfigError(f"no runtime '{name}': {nearest(name, RUNTIMES)}")
    entry = RUNTIMES[name]
    try:
        import_module(entry.package)
        import_module("onnx")
    except ImportError:
        raise ConfigError(
            f"runtime '{name}' needs packages that are not installed: pip install 'clearmargin[export]'"
        ) from None
    return entry


_LAST = "_channels_last"  # of a tensor's name in a graph: it is (B, h, w, C) there


class _KeepsLayouts(nn.Module):
    """A part whose graph takes and gives each tensor in the memory layout that torch has it in.

    A graph knows of no layouts. As ``(B, h, w, C)`` maps of channels last go from part to part, and to what reads
    pixels out of them, as they lie; ONNX Runtime reorders its blocks of channels into this as fast as into planes.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[bool], outputs: Sequence[bool]) -> None:
        super().__init__()
        self.module, self.inputs, self.outputs = module, inputs, outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = (_channels_first(t) if last else t for t, last in zip(tensors, self.inputs, strict=True))
        outputs = zip(self.module(*given), self.outputs, strict=True)
        return tuple(_channels_last(t) if last else t for t, last in outputs)


def _channels_first(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 3, 1, 2)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1)


def _lies_channels_last(tensor: Tensor) -> bool:
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return last and not tensor.is_contiguous()


def _array(name: str, tensor: Tensor) -> NDArray[Any]:
    """Return what a graph's input of that name takes."""
    array: NDArray[Any] = (_channels_last(tensor) if name.endswith(_LAST) else tensor).contiguous().numpy()
    return array


def _tensor(name: str, array: NDArray[Any]) -> Tensor:
    """Return what a graph's output of that name is."""
    tensor = torch.from_numpy(array)
    return _channels_first(tensor) if name.endswith(_LAST) else tensor


def _write_onnx(part: Part, path: Path) -> None:
    with torch.inference_mode():
        results = part.module(*part.inputs)
    layouts = {
        kind: [_lies_channels_last(t) for t in tensors]
        for kind, tensors in (("input", part.inputs), ("output", results))
    }
    names = {
        kind: [f"{kind}_{k}{_LAST if last else ''}" for k, last in enumerate(layouts[kind])]
        for kind in layouts
    }
    inputs = tuple(
        _channels_last(t) if last else t for t, last in zip(part.inputs, layouts["input"], strict=True)
    )
    with warnings.catch_warnings(), torch.inference_mode():
        # The exporter that replaces this one takes minutes over shapes that vary; torch is capped to if it is.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _KeepsLayouts(part.module, layouts["input"], layouts["output"]).eval(),
            inputs,
            str(path),
            dynamo=False,
            input_names=names["input"],
            output_names=names["output"],
            # Sizes of images, numbers of regions and of tokens vary; channels follow from the weights.
            dynamic_axes={
                name: {axis: f"{name}_{axis}" for axis in range(tensor.ndim)}
                for name, tensor in zip(names["input"], inputs, strict=True)
            },
        )


def _load_onnx(path: Path, threads: int) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Each part has threads of its own, and torch has too: threads that wait by spinning when a part is done would
    # take the next one's cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # warnings name the file's path
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    takes = [given.name for given in session.get_inputs()]
    gives = [output.name for output in session.get_outputs()]

    def compute(tensors: Sequence[Tensor]) -> list[Tensor]:
        arrays = {name: _array(name, t) for name, t in zip(takes, tensors, strict=True)}
        return [_tensor(name, array) for name, array in zip(gives, session.run(None, arrays), strict=True)]

    return compute


def _write_openvino(part: Part, path: Path) -> None:
    import openvino

    through = path.with_suffix(".onnx")
    _write_onnx(part, through)
    try:
        # compressed weights would be rounded to 16 bits
        openvino.save_model(openvino.convert_model(through), path, compress_to_fp16=False)
    finally:
        through.unlink()


@cache
def _openvino_core() -> Any:
    """Return the only core of the process.

    A core's CPU plugin gives the process an alternate signal stack, and puts back the one before it when it goes. Of
    several that do not go last in first out, one that is freed stays in place, and the next signal that Python
    handles, such as Ctrl-C, ends the process without a word.
    """
    import openvino

    return openvino.Core()


def _load_openvino(path: Path, threads: int) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # some CPUs would compute in bfloat16
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled: Any = _openvino_core().compile_model(path, "CPU", settings)
    takes = [given.get_any_name() for given in compiled.inputs]
    gives = [output.get_any_name() for output in compiled.outputs]

    def compute(tensors: Sequence[Tensor]) -> list[Tensor]:
        arrays = [_array(name, t) for name, t in zip(takes, tensors, strict=True)]
        outputs = compiled(arrays, share_outputs=False)  # copies: the next call writes over its own
        return [_tensor(name, outputs[k]) for k, name in enumerate(gives)]

    return compute


RUNTIMES: dict[str, Runtime] = {
    "onnx": Runtime("onnxruntime", ".onnx", _write_onnx, _load_onnx),
    "openvino": Runtime("openvino", ".xml", _write_openvino, _load_openvino),
}
