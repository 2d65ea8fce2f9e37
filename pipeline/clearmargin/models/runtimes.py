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
from torch import Tensor

from clearmargin.errors import ConfigError, nearest
from clearmargin.models.parts import Part

__all__ = ["RUNTIMES", "Runtime", "runtime"]


@dataclass(frozen=True)
class Runtime:
    """How parts are written and computed.

    Attributes:
        package: What must be importable, of the package's extra ``export``.
        suffix: Of a part's file.
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
    found = RUNTIMES[name]
    try:
        import_module(found.package)
        import_module("onnx")
    except ImportError:
        raise ConfigError(
            f"runtime '{name}' needs packages that are not installed: pip install 'clearmargin[export]'"
        ) from None
    return found


def _write_onnx(part: Part, path: Path) -> None:
    names = [f"input_{k}" for k in range(len(part.inputs))]
    with warnings.catch_warnings(), torch.inference_mode():
        # The exporter that replaces this one takes minutes over shapes that vary; torch is capped to where it is.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            part.module,
            part.inputs,
            str(path),
            dynamo=False,
            input_names=names,
            # Sizes of images, numbers of regions and of tokens vary; channels follow from the weights.
            dynamic_axes={
                name: {axis: f"{name}_{axis}" for axis in range(tensor.ndim)}
                for name, tensor in zip(names, part.inputs, strict=True)
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
    names = [given.name for given in session.get_inputs()]

    def compute(tensors: Sequence[Tensor]) -> list[Tensor]:
        arrays = {name: t.contiguous().numpy() for name, t in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

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

    def compute(tensors: Sequence[Tensor]) -> list[Tensor]:
        found = compiled([t.contiguous().numpy() for t in tensors])
        # the next call writes over these
        return [torch.from_numpy(found[k].copy()) for k in range(len(compiled.outputs))]

    return compute


RUNTIMES: dict[str, Runtime] = {
    "onnx": Runtime("onnxruntime", ".onnx", _write_onnx, _load_onnx),
    "openvino": Runtime("openvino", ".xml", _write_openvino, _load_openvino),
}
