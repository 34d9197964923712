"""A network, a task and a weight format are one file each: a toy of each trains, fine-tunes, exports and comes back."""

import json
import sys
import textwrap

import numpy as np
import pytest
import tiny

from deblur_mae_jax import train
from deblur_mae_jax.config import change
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export.export import export
from deblur_mae_jax.pretrained import trained_network

TOY_MODEL = '''
"""Two linear layers on every patch; no attention, no masking."""

import flax.linen as nn
import jax.numpy as jnp

from deblur_mae_jax import sides
from deblur_mae_jax.models import masking
from deblur_mae_jax.models.contract import Rules

KINDS = ("reconstruct", "classify")
AXES = 2


class Toy(nn.Module):
    image_size: sides.Size = 16
    patch_size: int = 8
    in_chans: int = 1
    width: int = 16
    num_classes: int = 0
    dtype: str = "float32"

    @property
    def mask_grid(self):
        return sides.divided(self.image_size, self.patch_size)

    @property
    def mask_size(self):
        return self.patch_size

    def setup(self):
        self.embed = nn.Dense(self.width)
        if self.num_classes:
            self.head = nn.Dense(self.num_classes)
        else:
            self.paint = nn.Dense(self.patch_size**2 * self.in_chans)

    def _tokens(self, images):
        return nn.relu(self.embed(masking.patchify(images, self.patch_size)))

    def features(self, images, level=None, **options):
        return self._tokens(images).mean(axis=1)

    def __call__(self, images, level=None, **options):
        if self.num_classes:
            return self.head(self.features(images)), {}
        mask = jnp.zeros((images.shape[0], sides.count(self.image_size, self.patch_size)))
        return self.paint(self._tokens(images)), {"mask": mask}


def Model(variant: str = "", *, num_levels: int = 0, **fields) -> Toy:
    return Toy(**fields)


def flops_per_image(model, mask_ratio=0.0, training=True):
    return 2.0 * sides.count(model.image_size) * model.width * (3 if training else 1)


RULES = Rules(
    layers=lambda model: (1, lambda name: 0 if name == "embed" else 1),
    heads=("head",),
    encodes=lambda name: name.startswith("embed"),
    adapt=lambda weights, needed, before, model: Adapted(
        {k: v for k, v in weights.items() if k in needed}, lambda k: not k.startswith("embed")
    ),
)
from deblur_mae_jax.models.contract import Adapted  # noqa: E402
'''

TOY_TASK = '''
"""Absolute error instead of the squared one."""

import jax.numpy as jnp

from deblur_mae_jax.models import masking
from deblur_mae_jax.tasks.contract import Kind, Task

KIND = Kind("reconstruct", axes=(2,), evaluator="pretraining")


def make(model, *, strength: float = 1.0) -> Task:
    def loss(params, batch, keys):
        pred, out = model.apply({"params": params}, batch["inputs"], level=batch.get("level"))
        goal = masking.patchify(batch["targets"], model.patch_size)
        error = strength * jnp.abs(pred - goal).mean(axis=(1, 2))
        return error, {"pred": pred, "target": goal, "mask": out["mask"], "counted": None}

    return Task(loss)
'''

TOY_FORMAT = '''
"""Every name behind a prefix; opened by NumPy."""

import json

import numpy as np

from deblur_mae_jax.weight_formats.contract import Converted, Inferred, Opened

NAME = "toy"
TITLE = "a toy"
MODELS = ("toy_model",)
NEEDS = ()


def matches(names):
    return any(name.startswith("toy.") for name in names)


def to_ours(state):
    return {name.removeprefix("toy."): value for name, value in state.items()}


def infer(weights):
    return Inferred(json.loads(weights.header["config"]), json.loads(weights.header["classes"]), [])


def from_ours(network, state):
    return Converted({f"toy.{name}": value for name, value in state.items()})


def opens_with(network):
    return {"library": "numpy"}


def companions(folder, network, opens, weights):
    (folder / "note.txt").write_text(f"{network['width']} wide\\n")


def snippet(certificate):
    return ["from safetensors.numpy import load_file"]


def open(file, certificate):
    from safetensors.numpy import load_file

    state, P = load_file(file), certificate["network"]["patch_size"]

    def logits(x, level):
        B, C, H, W = x.shape
        patches = x.reshape(B, C, H // P, P, W // P, P).transpose(0, 2, 4, 3, 5, 1).reshape(B, -1, P * P * C)
        tokens = np.maximum(patches @ state["toy.embed.weight"].T + state["toy.embed.bias"], 0)
        return tokens.mean(1) @ state["toy.head.weight"].T + state["toy.head.bias"]

    return Opened(None, logits=logits)
'''


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """The three files, in folders that are looked into as the package's own."""
    import deblur_mae_jax.models
    import deblur_mae_jax.tasks
    import deblur_mae_jax.weight_formats

    files = {"models": ("toy_model", TOY_MODEL), "tasks": ("toy_task", TOY_TASK)}
    files["weight_formats"] = ("toy_format", TOY_FORMAT)
    for package, (name, text) in files.items():
        folder = tmp_path / package
        folder.mkdir()
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
        path = getattr(deblur_mae_jax, package).__path__
        monkeypatch.setattr(getattr(deblur_mae_jax, package), "__path__", [*path, str(folder)])
    yield tmp_path
    for package, (name, _) in files.items():
        sys.modules.pop(f"deblur_mae_jax.{package}.{name}", None)


def toy_config(base, **overrides):
    """A config of this kind with the toy network."""
    config = tiny.config(base, **overrides).unlock()
    config.model = type(config)({"name": "toy_model", "variant": "", "patch_size": 8, "in_chans": 1, "width": 16})
    config.model.dtype = "float32"
    return config


@pytest.mark.slow
def test_a_toy_of_each_trains_fine_tunes_exports_and_comes_back(toys):
    config = toy_config("quickstart", task__degrade="blur.gaussian(sigma=1.1)", optim__steps=3)
    config.task = type(config)({"name": "toy_task", "degrade": "blur.gaussian(sigma=1.1)"})
    config.task.blur_site, config.task.strength = "native", 2.0
    first = train.train_and_evaluate(config, toys / "pretrained")
    assert first.finished and "psnr_restored" in first.measures
    assert "toy.Toy" not in (toys / "pretrained" / "report" / "index.html").read_text()

    fine = toy_config("finetune", init_from=str(toys / "pretrained"), image_size=16, optim__layer_decay=0.5)
    change(fine, {"data.phantom_seed": 1})
    result = train.train_and_evaluate(fine, toys / "fine")
    assert result.finished and 0 <= result.measures["test_accuracy"] <= 1
    before, after = (trained_network.load(toys / name) for name in ("pretrained", "fine"))
    assert before.params["embed"]["kernel"].shape == after.params["embed"]["kernel"].shape
    assert after.classes == ["benign", "malignant"]

    folder = export(toys / "fine", "toy")
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["agreement"]["outputs"]["logits"]["max_difference"] < 1e-5
    assert (folder / "note.txt").read_text() == "16 wide\n"
    assert "written for a toy" in (folder / "README.md").read_text()
    back = trained_network.load(folder / "model.safetensors")
    np.testing.assert_array_equal(back.params["embed"]["kernel"], after.params["embed"]["kernel"])

    again = toy_config("finetune", init_from=str(folder / "model.safetensors"), image_size=16)
    assert train.train_and_evaluate(again, toys / "again").finished


@pytest.mark.slow
def test_a_toy_does_not_fit_what_it_is_not_for(toys):
    with pytest.raises(UserError, match=r"config\.task: unknown name 'strengh'\. Did you mean 'strength'"):
        config = toy_config("quickstart")
        config.task = type(config)({"name": "toy_task", "degrade": "none", "blur_site": "native", "strengh": 1.0})
        train.train_and_evaluate(config, toys / "typo")
    with pytest.raises(UserError, match=r"config\.model: unknown name 'wide'\. Did you mean 'width'"):
        config = toy_config("quickstart")
        config.model.wide = 3
        train.train_and_evaluate(config, toys / "typo2")
    with pytest.raises(UserError, match="--format=toy: it has no place for config"):
        from tiny_runs import pretraining

        export(pretraining(), "toy")
