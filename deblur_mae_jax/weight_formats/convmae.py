"""The names of ConvMAE's code, which DeblurringMIM's Deblurring ConvMAE has too: autoencoders and classifiers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from deblur_mae_jax import config as fields
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import convvit
from deblur_mae_jax.weight_formats import torch_calls, vit
from deblur_mae_jax.weight_formats.contract import WEIGHTS, Converted, Inferred, Opened, State, Weights
from deblur_mae_jax.workdir import run_folder

NAME = "convmae"
TITLE = "the code of ConvMAE and DeblurringMIM; modeling_convmae.py beside the weights"
MODELS = ("convvit_mae", "convvit")
NEEDS = ("torch",)
MODELING = torch_calls.STANDALONE / "modeling_convmae.py"
# The heads of the published network; those of others are not in the file.
HEADS, DECODER_HEADS = {768: 12}, {512: 16}


def matches(names: set[str]) -> bool:
    """Whether there is the first of several patch embeddings."""
    return "patch_embed1.proj.weight" in names


def to_ours(state: State) -> State:
    """The same names; a head without classes where there is neither a decoder nor a head."""
    if "decoder_pred.weight" not in state and "head.weight" not in state and "patch_embed4.weight" in state:
        width = state["patch_embed4.weight"].shape[0]
        empty = state["patch_embed4.weight"][:0]
        state = state | {"head.weight": empty.reshape(0, width), "head.bias": empty[:, 0]}
    return state


def infer(weights: Weights) -> Inferred:
    """The config, from the header or from the shapes. Raises `UserError`."""
    if "config" in weights.header:
        saved = fields.upgrade(json.loads(weights.header["config"]))
        return Inferred(saved, json.loads(weights.header.get("classes", "[]")), [])
    state, notes = weights.state, list[str]()
    decodes = "decoder_pred.weight" in state
    values = fields.flat(fields.convmae() if decodes else fields.convvit())
    values |= {k: v for k, v in fields.without_source(2).items() if k in values and values[k] is None}
    kernel, table = state["patch_embed1.proj.weight"], state["pos_embed"]
    grid = round(table.shape[1] ** 0.5)
    if kernel.ndim != 4 or kernel.shape[1] not in (1, 3) or grid**2 != table.shape[1]:
        raise UserError(f"a network with {kernel.shape[1]} channels and {table.shape[1]} positions is not known")
    width = table.shape[2]
    values |= {
        "image_size": grid * convvit.PATCH, "model.in_chans": kernel.shape[1], "model.patch_size": convvit.PATCH,
        "model.stem_dims": tuple(int(state[f"patch_embed{n}.proj.weight"].shape[0]) for n in (1, 2)),
        "model.stem_depths": (vit.depth_of(state, "blocks1"), vit.depth_of(state, "blocks2")), "model.embed_dim": width,
        "model.depth": vit.depth_of(state, "blocks3"), "model.num_heads": _heads(width, HEADS, 64, notes),
        "model.attention": "xla",
    }  # fmt: skip
    if decodes:
        inner = state["decoder_pred.weight"].shape[1]
        values |= {
            "model.decoder_embed_dim": inner, "model.decoder_depth": vit.depth_of(state, "decoder_blocks"),
            "model.decoder_num_heads": _heads(inner, DECODER_HEADS, 32, notes),
            "task.norm_pix_loss": bool(weights.arguments.get("norm_pix_loss", True)),
        }  # fmt: skip
    else:
        values |= {"model.drop_path": 0.0, "model.head_init": 0.01}
    values |= vit.normalisation(weights.config, kernel.shape[1], notes)
    if str(weights.arguments.get("model", "")).startswith("dmae"):
        values["task.degrade"] = "blur.gaussian(sigma=1.1)"
        notes.append("its training arguments say that it learned to deblur: degradation blur.gaussian(sigma=1.1)")
    return Inferred(values, vit.classes_of(state.get("head.weight"), weights.config), notes)


def _heads(width: int, usual: dict[int, int], of_one: int, notes: list[str]) -> int:
    if width in usual:
        return usual[width]
    guess = max(1, width // of_one)
    notes.append(f"a width of {width} is not a usual size; we assume {guess} attention heads")
    return guess


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """As it is."""
    if network["conditioning"] != "none":
        raise UserError(
            f"--format={NAME}: the network has a code of the blur level, for which ConvMAE has no place. Choices: none"
        )
    return Converted(state)


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """The class ConvMAE in the Python file beside the weights."""
    return {"library": "torch", "class": "ConvMAE", "file": MODELING.name}


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """Write `config.json` and the file that defines the network in PyTorch."""
    run_folder.write_json(folder / "config.json", network)
    shutil.copyfile(MODELING, folder / MODELING.name)


def snippet(certificate: dict[str, Any]) -> list[str]:
    """Python that loads the network and applies it."""
    name, classes = certificate["file"]["name"], certificate["network"]["classes"]
    return [
        "import torch",
        "from modeling_convmae import load",
        'model = load(".")' if name == WEIGHTS else f'model = load(".", "{name}")',
        "# images (B, C, H, W), normalised as above",
        "logits = model.classify(images)" if classes else "tokens = model.encode(images)",
    ]


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """Open it with the Python file beside the weights; every name and shape must match."""
    beside = file.with_name(MODELING.name)
    model = torch_calls.modeling(beside if beside.exists() else MODELING).ConvMAE(certificate["network"])
    model.load_state_dict(torch_calls.state_of(file), strict=True)
    model.eval()
    functions: dict[str, Any] = {
        "tokens": lambda x, level: model.encode(x),
        "reconstruct": lambda x, level, ratio, noise: model(x, ratio, noise),
    }
    if certificate["network"]["kind"] == "classify":
        functions = {"features": lambda x, level: model.features(x), "logits": lambda x, level: model.classify(x)}
    return Opened(model, **torch_calls.calls(**functions))
