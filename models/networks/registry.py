"""All network families, each registered once: what is listed here can be trained, exported, rebuilt and is tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from models.errors import InvalidConfig, InvalidModel
from models.networks.family import Family, Network, NetworkConfig
from models.networks.rsunet import RSUNET
from models.networks.vd2d import VD2D_FAMILY
from models.networks.vd2d3d import VD2D3D_FAMILY

FAMILIES: dict[str, Family] = {family.name: family for family in (RSUNET, VD2D_FAMILY, VD2D3D_FAMILY)}


def family_of(config: NetworkConfig) -> Family:
    """The family that a configuration belongs to; raises `InvalidConfig` if none."""
    for family in FAMILIES.values():
        if isinstance(config, family.config):
            return family
    raise InvalidConfig(f"network: expected a configuration of {', '.join(FAMILIES)}, got {type(config).__name__}")


def preset(family: str, name: str, out_channels: int, widths: tuple[int, ...]) -> NetworkConfig:
    """A preset of a family; raises `InvalidConfig`, which lists the known names, for unknown ones."""
    if family not in FAMILIES:
        raise InvalidConfig(f"network: unknown family {family!r}; known: {', '.join(FAMILIES)}")
    presets = FAMILIES[family].presets
    if name not in presets:
        raise InvalidConfig(f"network: {family} has no preset {name!r}; known: {', '.join(presets)}")
    return presets[name](out_channels, widths)


def build(config: NetworkConfig) -> Network:
    """The network of a configuration, randomly initialised."""
    return family_of(config).build(config)


def described(config: NetworkConfig) -> dict[str, Any]:
    """Family and fields of a configuration, as checkpoints hold them; `read_config` reads them."""
    fields: Any = config
    return {"family": family_of(config).name, "config": asdict(fields)}


def read_config(family: str, config: Mapping[str, Any]) -> NetworkConfig:
    """The configuration that a checkpoint or card describes; raises `InvalidModel` for what no family understands."""
    if family not in FAMILIES:
        raise InvalidModel(f"network: expected one of the families {', '.join(FAMILIES)}, got {family!r}")
    try:
        return FAMILIES[family].read(frozen(config))
    except (TypeError, InvalidConfig) as error:
        raise InvalidModel(f"network: this is not the architecture of a {family} ({error})") from error


def frozen(value: Any) -> Any:
    """A copy in which lists, at any depth, are tuples, as configurations hold them."""
    if isinstance(value, Mapping):
        return {key: frozen(item) for key, item in value.items()}
    return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value
