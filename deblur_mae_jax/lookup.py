"""Find the module that a name in a config refers to. Errors list the choices.

There is no registry: the modules are found by listing the package.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterable
from typing import Any

from deblur_mae_jax.errors import UserError, unknown


def module_names(package: str) -> list[str]:
    """Names of the modules of `deblur_mae_jax.<package>`."""
    path = importlib.import_module(f"deblur_mae_jax.{package}").__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))


def modules_with(package: str, attribute: str) -> dict[str, Any]:
    """The modules of a package that have `attribute`, by name."""
    modules = {name: importlib.import_module(f"deblur_mae_jax.{package}.{name}") for name in module_names(package)}
    return {name: module for name, module in modules.items() if hasattr(module, attribute)}


def module(package: str, name: str, attribute: str, field: str) -> Any:
    """Import `deblur_mae_jax.<package>.<name>`, which must have `attribute`.

    field: config field that holds the name, for the error message.
    Raises `UserError` with the choices.
    """
    if name in module_names(package):
        loaded = importlib.import_module(f"deblur_mae_jax.{package}.{name}")
        if hasattr(loaded, attribute):
            return loaded
    raise unknown(field, name, modules_with(package, attribute))


def call(function: Callable[..., Any], section: str, fields: dict[str, Any], **more: Any) -> Any:
    """Call `function(**fields, **more)` after checking that `function` accepts each of the `fields`.

    section: section of the config that holds the fields, for the error message.
    A function with `**fields` accepts the fields of the dataclass that it returns. One with `**passed_on` checks
    further fields itself.
    Raises `UserError` with the name of the field.
    """
    accepted = _arguments(function)
    checks_itself = "passed_on" in inspect.signature(function).parameters
    for name in fields:
        if name not in accepted and not checks_itself:
            choices: Iterable[str] = accepted - set(more)
            raise UserError(
                f"{unknown(f'config.{section}', name, choices)} config.{section}.name chooses what takes these fields"
            )
    return function(**fields, **more)


def _arguments(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
    if len(names) < len(parameters):
        built = typing.get_type_hints(function).get("return")
        names |= set(getattr(built, "__dataclass_fields__", {})) - {"parent", "name"}
    return names
