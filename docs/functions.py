"""Write the reference page of the Python interface: `python docs/functions.py > docs/reference/python.md`."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import deblur_mae_jax as dm
from deblur_mae_jax import api
from deblur_mae_jax.data.packing import Packed
from deblur_mae_jax.inference.blur_search import Table

SECTIONS = {
    "Load": ("load",),
    "Use a network": ("encode", "predict", "segment", "reconstruct", "search_blur", "prepare"),
    "Images and files": ("degrade", "pack", "export_to_pytorch"),
}
# What the functions return, with the properties that a user reads.
OBJECTS = {
    "dm.TrainedNetwork": (dm.TrainedNetwork, ("model", "weights_hash")),
    "Table": (Table, ("best", "best_sigma")),
    "Packed": (Packed, ()),
    "dm.UserError": (dm.UserError, ()),
}
_FIELD = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.+)")


def page() -> str:
    """The page, in Markdown."""
    images = [part for part in inspect.getdoc(api).split("\n\n")[1:] if not part.startswith(" ")]
    lines = ["# Python functions", "", "```python", *_session(), "```", ""]
    lines += ["`trained` is what `dm.load` returns. This page is generated from the docstrings.", ""]
    lines += ["## Images", "", *"\n\n".join(images).split("\n"), ""]
    for title, names in SECTIONS.items():
        lines += [f"## {title}", ""]
        for name in names:
            function = getattr(dm, name)
            lines += [f"### dm.{name}", "", "```python", *_call(name, function), "```", "", *_prose(function), ""]
    lines += ["## Objects", ""]
    for name, (kind, properties) in OBJECTS.items():
        lines += [f"### {name}", "", *_prose(kind)]
        lines += [f"- `{key}`: {inspect.getdoc(getattr(kind, key)).splitlines()[0]}" for key in properties] + [""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _session() -> list[str]:
    """The lines of the README's example."""
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    return re.search(r"## Python\n\n```python\n(.+?)\n```", readme, re.DOTALL)[1].splitlines()


def _plain(function) -> inspect.Signature:
    """Its signature without types."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)


def _call(name: str, function) -> list[str]:
    """How it is called, in lines of at most 110 characters."""
    given = str(_plain(function)).replace("'", '"')
    text = f"dm.{name}{given}"
    if len(text) <= 110:
        return [text]
    inner = given[1:-1]
    return [f"dm.{name}(", f"    {inner},", ")"]


def _prose(thing) -> Iterator[str]:
    """The docstring, with its parameters as a list."""
    listed = False
    for line in inspect.getdoc(thing).splitlines():
        field = _FIELD.fullmatch(line)
        if field and not listed:
            yield ""
        if field:
            names = ", ".join(f"`{name}`" for name in field[1].split(", "))
            yield f"- {names}: {field[2]}"
        elif listed and line.startswith("    "):
            yield f"  {line.strip()}"
        else:
            if listed and line:
                yield ""
            yield line
        listed = bool(field) or (listed and line.startswith("    "))


if __name__ == "__main__":
    print(page(), end="")
