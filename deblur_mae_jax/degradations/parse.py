"""Degradations by name: `"blur.gaussian(sigma=1.1)|noise.gaussian_noise(0.1)"` -> `Degradation`.

`blur` is a module of this package and `gaussian` its function. The module may be omitted if the name
of the function is unique. Arguments are Python literals. There is no registry: the package is listed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from deblur_mae_jax import lookup
from deblur_mae_jax.degradations import contract
from deblur_mae_jax.errors import UserError, unknown


def factories() -> dict[str, Callable[..., contract.Degradation]]:
    """Every function of the degradations package that returns a `Degradation`, by `module.name`."""
    functions: dict[str, Callable[..., contract.Degradation]] = {}
    for module_name in lookup.module_names("degradations"):
        module = importlib.import_module(f"deblur_mae_jax.degradations.{module_name}")
        for name, value in vars(module).items():
            if (
                inspect.isfunction(value)
                and not name.startswith("_")
                and value.__module__ == module.__name__
                and value.__annotations__.get("return") in ("Degradation", contract.Degradation)
                and name not in ("fixed", "chain")
            ):
                functions[f"{module_name}.{name}"] = value
    return functions


def call_spec(text: str, factories: dict[str, Callable[..., Any]], field: str) -> Any:
    """Evaluate one `"module.name(arg=literal)"` against `factories`."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
        name = ast.unparse(call.func)
        args = [ast.literal_eval(a) for a in call.args]
        kwargs = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
    except (SyntaxError, ValueError) as error:
        raise UserError(
            f"{field}: cannot read '{text}'. Write a name with literal arguments, such as 'blur.gaussian(sigma=1.1)'."
        ) from error
    by_short: dict[str, list[str]] = {}
    for full in factories:
        by_short.setdefault(full.rsplit(".", 1)[1], []).append(full)
    if name not in factories:
        matches = by_short.get(name, [])
        if len(matches) != 1:
            written = [known.removeprefix("contract.") for known in factories]  # "none" is written alone
            raise unknown(field, name, [*written, *by_short] if "." not in name else written)
        name = matches[0]
    factory = factories[name]
    try:
        inspect.signature(factory).bind(*args, **kwargs)
    except TypeError as error:
        signature = inspect.signature(factory)
        plain = ", ".join(f"{p.name}={p.default!r}" for p in signature.parameters.values())
        raise UserError(f"{field}: '{text}': {error}. Its arguments: {name}({plain}).") from error
    try:
        return factory(*args, **kwargs)
    except (ValueError, TypeError) as error:
        raise UserError(f"{field}: '{text}': {error}") from error


def degradation(text: str, field: str = "config.task.degrade") -> contract.Degradation:
    """Build a degradation, or several joined by `|`, from its config string."""
    functions = factories()
    steps = [call_spec(spec, functions, field) for spec in text.split("|")]
    try:
        return contract.chain(steps)
    except ValueError as error:
        raise UserError(f"{field}: '{text}': {error}") from error
