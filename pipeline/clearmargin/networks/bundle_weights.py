"""Weights out of MONAI bundles, such as those of the Model Zoo: found, checked by what the bundle says, and loaded.

Configurations are read as data: nothing of a bundle is evaluated, imported or run.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from clearmargin.config import parse_yaml
from clearmargin.errors import ConfigError, InputError
from clearmargin.files import parse_json
from clearmargin.networks.backbones import find_prefix, load_weights, read_weights

__all__ = ["load_unet"]

log = logging.getLogger(__name__)

# MONAI's names, ours, the argument of the norm with its default, and the last layer.
_NETWORKS: dict[str, tuple[str, str, Any, str]] = {
    "SegResNet": ("segresnet", "norm", ("GROUP", {"num_groups": 8}), "conv_final.2."),
    "DynUNet": ("dynunet", "norm_name", ("INSTANCE", {"affine": True}), "output_block."),
}
_COARSER = "deep_supervision_heads."
_LAST = {ours: last for ours, _, _, last in _NETWORKS.values()}


def load_unet(unet: nn.Module, path: Path, architecture: str) -> None:
    """Load a semantic network's weights; its last layer too if it has as many classes.

    Args:
        unet: MONAI's SegResNet or DynUNet, as `semantic_cc.build_unet` makes it.
        path: A bundle's folder, or a state dict.
        architecture: ``segresnet`` or ``dynunet``.

    Raises:
        InputError: There are no weights, or they are of another architecture, norm, width or depth.
    """
    if path.is_dir():
        _check(path, architecture)
    state = read_weights(path)
    own = unet.state_dict()
    last = (_LAST[architecture], _COARSER)
    body = [key for key in own if not key.startswith(last)]
    prefix = find_prefix(state, body)
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    others = [k for k in own if k.startswith(last) and (k not in state or state[k].shape != own[k].shape)]
    if others:
        log.info("%s: the last layer is of other classes than the card's, and begins anew", path.name)
        state |= {key: value for key, value in own.items() if key.startswith(last)}
    if architecture == "dynunet":  # maps that are of training alone may be of other levels
        state = {key: value for key, value in state.items() if key in own or not key.startswith(_COARSER)}
    load_weights(unet, state, architecture)


def _check(bundle: Path, architecture: str) -> None:
    """Refuse a bundle whose configuration names another network, or another norm: the shapes alone may agree.

    Raises:
        InputError: It does.
    """
    definition = _network_def(bundle)
    target = str(definition.get("_target_", "")).rpartition(".")[2]
    if not target or target == "BundleNetwork":  # one of ours has the norm that ours have
        return
    if target not in _NETWORKS:
        raise InputError(
            f"the network of bundle '{bundle.name}' is a {target}: model.weights takes {' or '.join(_NETWORKS)}, by "
            "model.architecture"
        )
    ours, argument, default, _ = _NETWORKS[target]
    if ours != architecture:
        raise InputError(
            f"the network of bundle '{bundle.name}' is a {target}: set model.architecture to {ours}"
        )
    norm = definition.get(argument, default)
    if isinstance(norm, str) and norm.startswith(("$", "@", "%")):
        log.warning("%s: its norm is an expression, which is not evaluated: not compared", bundle.name)
        return
    name, options = (norm, {}) if isinstance(norm, str) else (norm[0], norm[1] if len(norm) > 1 else {})
    if str(name).upper() != "GROUP" or options.get("num_groups", 8) != 8:
        raise InputError(
            f"the network of bundle '{bundle.name}' has the norm {name} {options or ''}, ours is GROUP of 8: the same "
            "weights would mean something else"
        )


def _network_def(bundle: Path) -> dict[str, Any]:
    """Return what a bundle's configurations say of its network; nothing if none does."""
    for name in ("inference", "evaluate", "train"):
        for suffix in (".json", ".yaml", ".yml"):
            path = bundle / "configs" / f"{name}{suffix}"
            if not path.is_file():
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
            try:
                content = parse_json(text) if suffix == ".json" else parse_yaml(text, path.name)
            except (ValueError, ConfigError) as error:
                raise InputError(f"'configs/{path.name}' of the bundle is not readable: {error}") from None
            definition = (
                content.get("network_def", content.get("network")) if isinstance(content, dict) else None
            )
            if isinstance(definition, dict):
                return definition
    return {}
