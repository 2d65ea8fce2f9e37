"""Networks: torch lives here. A new network is a file, with its configuration on top, and an entry of ``NETWORKS``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from clearmargin.config import Settings, validate
from clearmargin.errors import ConfigError, nearest

if TYPE_CHECKING:
    from clearmargin.core import LabelMap
    from clearmargin.networks.cores import Encode
    from clearmargin.networks.network import Network
    from clearmargin.networks.planning import Learns, NetworkSettings

__all__ = [
    "NETWORKS",
    "NetworkEntry",
    "build_network",
    "config_class",
    "encoder",
    "learns",
    "learnt_names",
    "network_config",
]


_MOST_LAYERS, _MOST_OF_A_SIZE = 1_000, 1_000_000


class NetworkEntry(NamedTuple):
    """Where a network lies: its module is imported when it is used, since torch is heavy."""

    module: str
    config: str
    network: str


NETWORKS: dict[str, NetworkEntry] = {
    "mask_rcnn": NetworkEntry("clearmargin.networks.mask_rcnn", "MaskRCNNConfig", "MaskRCNN"),
    "yolact": NetworkEntry("clearmargin.networks.yolact", "YOLACTConfig", "YOLACT"),
    "solov2": NetworkEntry("clearmargin.networks.solov2", "SOLOv2Config", "SOLOv2"),
    "semantic_cc": NetworkEntry("clearmargin.networks.semantic_cc", "SemanticCCConfig", "SemanticCC"),
    "semantic_cc_3d": NetworkEntry(
        "clearmargin.networks.semantic_cc_3d", "SemanticCC3DConfig", "SemanticCC3D"
    ),
    "mask_rcnn_3d": NetworkEntry("clearmargin.networks.mask_rcnn_3d", "MaskRCNN3DConfig", "MaskRCNN3D"),
    "mask2former": NetworkEntry("clearmargin.networks.mask2former", "Mask2FormerConfig", "Mask2Former"),
    "eomt": NetworkEntry("clearmargin.networks.eomt", "EoMTConfig", "EoMT"),
    "heatmap": NetworkEntry("clearmargin.networks.heatmap", "HeatmapConfig", "Heatmap"),
    "heatmap_3d": NetworkEntry("clearmargin.networks.heatmap_3d", "Heatmap3DConfig", "Heatmap3D"),
}


def config_class(network: str) -> type[NetworkSettings]:
    """Return a network's configuration class, which says what it reads and what it wants of a data set.

    Raises:
        ConfigError: There is no such network.
    """
    schema: type[NetworkSettings] = _load(network, "config")
    return schema


def network_config(section: dict[str, Any], *, name: str = "model") -> Settings:
    """Return the ``model`` section of a configuration as its network's own config class.

    Raises:
        ConfigError: ``network`` is missing or unknown, the rest does not fit its class, or a number is beyond any
            network.
    """
    schema: type[Settings] = _load(section.get("network"), "config")
    config = validate(section, schema, name=name)
    _refuse_absurd(config, name)
    return config


def _refuse_absurd(config: Settings, name: str) -> None:
    """Refuse sizes and counts that no network has: building it would fill the memory, or never end.

    Raises:
        ConfigError: With the first of them.
    """
    for option, value in config.model_dump().items():
        most = _MOST_LAYERS if option.endswith("layers") else _MOST_OF_A_SIZE
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number > most:
                raise ConfigError(f"{name}.{option}: {number} is beyond any network: at most {most}")


def learns(config: Settings) -> frozenset[Learns]:
    """Return what a network of this configuration learns: masks, landmarks, or both."""
    main = config_class(config.model_dump()["network"]).learns
    return frozenset({main, "landmarks"} if getattr(config, "landmarks", None) is not None else {main})


def learnt_names(config: Settings, label_map: LabelMap) -> tuple[str, ...]:
    """Return what a network tells apart, in the order of its channels: classes, or types of landmarks."""
    if config_class(config.model_dump()["network"]).learns == "landmarks":
        return tuple(point.name for point in label_map.points)
    return label_map.names


def encoder(config: Settings, classes: int) -> Encode | None:
    """Return what draws the further targets of a network of a config; None if it has none."""
    return cast("NetworkSettings", config).encode(classes)


def build_network(
    config: Settings, *, classes: int, pretrained: bool, channels: int = 3, points: int = 0
) -> Network:
    """Return the network of a config for ``classes`` classes (background not counted).

    Args:
        config: As ``network_config`` returns it.
        classes: Number of what it tells apart (`learnt_names`).
        pretrained: Whether the backbone starts from its pretrained weights; a checkpoint needs none.
        channels: Channels of the images.
        points: Types of landmarks, which a network finds beside instances if its configuration says so.
    """
    beside = {"points": points} if getattr(config, "landmarks", None) is not None else {}
    network: Network = _load(config.model_dump()["network"], "network")(
        config, classes=classes, channels=channels, pretrained=pretrained, **beside
    )
    return network


def _load(name: Any, what: str) -> Any:
    from importlib import import_module

    if name not in NETWORKS:
        raise ConfigError(f"no model '{name}': {nearest(str(name), NETWORKS)}")
    entry = NETWORKS[name]
    return getattr(import_module(entry.module), getattr(entry, what))
