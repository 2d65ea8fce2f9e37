"""Weights of a plain ViT for EoMT: timm's names turned into transformers', patches and positions resampled."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor, nn

from clearmargin.errors import InputError
from clearmargin.networks.backbones import load_weights

__all__ = ["load_vit", "rename_vit"]

_ENCODER = ("embeddings", "layers", "layernorm")
_HEADS = ("query", "mask_head", "upscale_block", "class_predictor")
_PATCHES = "embeddings.patch_embeddings.projection.weight"
_PLACES = "embeddings.position_embeddings.weight"
_REQUIRED = (
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "norm.weight",
    "norm.bias",
)

# timm's names of a block's parts, and transformers'
_BLOCK = {
    "norm1": "norm1",
    "attn.proj": "attention.out_proj",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls2.gamma": "layer_scale2.lambda1",
}


def load_vit(vit: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the encoder, and of an EoMT's weights also what else has the same shape, into transformers' EoMT.

    Args:
        vit: ``EomtForUniversalSegmentation``.
        state: State of a timm ViT or of transformers' EoMT. Patches and position embeddings of another size are
            resampled.

    Raises:
        InputError: The weights are of another architecture: width, depth, registers.
    """
    if any(key.startswith("blocks.") for key in state):
        state = rename_vit(state)
    encoder = nn.ModuleDict({name: vit.get_submodule(name) for name in _ENCODER})
    own = encoder.state_dict()
    deeper = [key for key in state if key.startswith("layers.") and key not in own]
    if deeper:
        raise InputError(
            f"the weights do not fit eomt: they have {len(deeper)} entries of layers that it lacks "
            f"(first: {deeper[0]}); are they of another architecture? model.layers is the number of layers"
        )
    load_weights(encoder, _resampled(state, own), "eomt")
    heads = {k: v for k, v in vit.state_dict().items() if k.startswith(_HEADS)}
    fitting = {k: state[k] for k, v in heads.items() if k in state and state[k].shape == v.shape}
    vit.load_state_dict(fitting, strict=False)


def rename_vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a timm ViT's state dict under transformers' names of EoMT; its classifier is left out.

    A position embedding of the class token is added to the token itself. What the ViT lacks is filled in: no
    registers, and layer scales of 1.

    Raises:
        InputError: It is a ViT of another kind.
    """
    missing = [key for key in _REQUIRED if key not in state]
    if missing:
        raise InputError(f"the weights lack {', '.join(missing)}: eomt starts from a ViT with a class token")
    width = state["cls_token"].shape[-1]
    places = state["pos_embed"][0]
    extra = int(_is_square(len(places) - 1))
    renamed = {
        "embeddings.cls_token": state["cls_token"] + places[:extra].sum(0),
        "embeddings.register_tokens": state.get("reg_token", torch.zeros(1, 0, width)),
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        _PLACES: places[extra:],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for key, value in state.items():
        if not key.startswith("blocks."):
            continue
        _, number, part = key.split(".", 2)
        renamed |= {f"layers.{number}.{name}": v for name, v in _block_entry(part, value).items()}
        for scale in ("layer_scale1", "layer_scale2"):
            renamed.setdefault(f"layers.{number}.{scale}.lambda1", torch.ones(width))
    return renamed


def _block_entry(part: str, value: Tensor) -> dict[str, Tensor]:
    name, _, kind = part.rpartition(".")
    if name == "attn.qkv":
        return {f"attention.{which}_proj.{kind}": v for which, v in zip("qkv", value.chunk(3), strict=True)}
    if part in _BLOCK:
        return {_BLOCK[part]: value}
    return {f"{_BLOCK.get(name, name)}.{kind}": value}


def _resampled(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with patches (FlexiViT's pseudo-inverse) and positions (bicubic) of the size wanted."""
    state = dict(state)
    if _PATCHES in state and state[_PATCHES].shape[2:] != own[_PATCHES].shape[2:]:
        state[_PATCHES] = resample_patch_embed(state[_PATCHES], list(own[_PATCHES].shape[2:]))
    if _PLACES in state and len(state[_PLACES]) != len(own[_PLACES]) and _is_square(len(state[_PLACES])):
        before, after = math.isqrt(len(state[_PLACES])), math.isqrt(len(own[_PLACES]))
        square = state[_PLACES].T.reshape(1, -1, before, before)
        moved = F.interpolate(
            square, size=(after, after), mode="bicubic", align_corners=False, antialias=True
        )
        state[_PLACES] = moved[0].flatten(1).T
    return state


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number
