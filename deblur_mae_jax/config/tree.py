"""A config as a tree: fields read, set and copied by their dotted names."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict, config_dict


def change(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """Set fields by their dotted names; returns `config`."""
    for name, value in values.items():
        node, leaf = _node(config, name)
        node[leaf] = value
    return config


def copy(config: ConfigDict, values: dict[str, Any] | None = None) -> ConfigDict:
    """Copy a config, with type checks off, and set `values` in the copy by their dotted names."""
    return change(ConfigDict(config.to_dict(), type_safe=False), values or {})


def flat(config: ConfigDict) -> dict[str, Any]:
    """Flatten a config to dotted names and plain values. Tuples become lists, as JSON reads them back."""
    out: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, (dict, ConfigDict)):
                walk(f"{name}.", value)
            else:
                out[name] = list(value) if isinstance(value, tuple) else value

    walk("", config)
    return out


def nested(values: dict[str, Any]) -> ConfigDict:
    """The inverse of `flat`. Lists become tuples."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        node = out
        *sections, leaf = name.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = tuple(value) if isinstance(value, list) else value
    return ConfigDict(out, type_safe=False)


def unset(config: ConfigDict, name: str) -> None:
    """Make a field unset and keep its type."""
    node, leaf = _node(config, name)
    kind = node.get_type(leaf)
    del node[leaf]
    node[leaf] = config_dict.placeholder(kind)


def _node(config: ConfigDict, name: str) -> tuple[ConfigDict, str]:
    """The section that holds the field of this dotted name, and the field's own name."""
    *sections, leaf = name.split(".")
    for section in sections:
        config = config[section]
    return config, leaf
