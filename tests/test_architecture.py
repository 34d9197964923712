"""Imports point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "deblur_mae_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Which third parties and which parts of ours each part may import, at any level of a file.
ALLOWED = {
    "degradations": {"jax", "numpy", "deblur_mae_jax.degradations", "deblur_mae_jax.errors"},
    "masking.py": {"jax"},
    "losses.py": {"jax"},
    "views.py": {"jax"},
    "models": {
        "jax", "numpy", "flax", "absl", "deblur_mae_jax.models", "deblur_mae_jax.masking",
        "deblur_mae_jax.sharding",
        "deblur_mae_jax.errors",
    },
    "tasks": {
        "jax", "deblur_mae_jax.losses", "deblur_mae_jax.masking", "deblur_mae_jax.errors",
        "deblur_mae_jax.augment",
    },
    "data": {
        "numpy", "scipy", "PIL", "grain", "absl", "tensorflow_datasets", "deblur_mae_jax.data",
        "sklearn", "imagehash", "nibabel",
        "deblur_mae_jax.errors",
    },
    "optim.py": {"jax", "optax", "deblur_mae_jax.errors"},
    "sharding.py": {"jax", "numpy"},
    "checkpoint.py": {"jax", "numpy", "orbax", "deblur_mae_jax.errors"},
    "augment.py": {"jax", "deblur_mae_jax.views", "deblur_mae_jax.errors"},
    "pytorch/names.py": {"numpy", "flax", "deblur_mae_jax.errors"},
    "pytorch/channels.py": {"numpy", "flax"},
    "pytorch/formats.py": {"numpy", "deblur_mae_jax.errors"},
    "pytorch/modeling_d2mae.py": {"torch"},
    "pytorch/modeling_swin.py": {"torch", "monai", "safetensors"},
    "errors.py": set(),
    "progress.py": set(),
}  # fmt: skip
STANDARD = set(__import__("sys").stdlib_module_names) | {"__future__"}
ONLY_IN = {
    "orbax": {"checkpoint.py"},
    "clu": {"metrics.py", "train.py", "cost.py"},
    "torch": {"pytorch"},
    "timm": {"pytorch"},
    "transformers": {"pytorch"},
    "monai": {"pytorch"},
    "flax": {"models", "steps.py", "pytorch", "pretrained.py", "warm_start.py"},
    "sklearn": {"data", "evaluators", "probes.py"},
    "statsmodels": {"evaluators"},
    "MLstatkit": {"evaluators"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "matplotlib": {"evaluators"},
    "dm_pix": {"evaluators"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "deblur_mae_jax":
                yield from (f"deblur_mae_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def part(path):
    return path.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
    for name in imports(path):
        top = name.split(".")[0]
        if top in STANDARD:
            continue
        if top in ONLY_IN:
            assert part(path) in ONLY_IN[top], f"{path.name} imports {name}"
        own = path.relative_to(PACKAGE).as_posix()
        if own in ALLOWED or part(path) in ALLOWED:
            allowed = ALLOWED.get(own) or ALLOWED[part(path)]
            assert any(name == a or name.startswith(f"{a}.") for a in allowed), (
                f"{path.relative_to(ROOT)} imports {name}; it may import {sorted(allowed)}"
            )


def test_configs_import_only_configs():
    for path in (ROOT / "configs").glob("*.py"):
        assert all(n.split(".")[0] in ("configs", "ml_collections") for n in imports(path)), path


def test_only_main_tools_and_tests_import_the_loop():
    for path in FILES:
        if path.name == "run.py":
            continue
        assert "deblur_mae_jax.train" not in set(imports(path)), path


def test_no_file_has_two_reasons_to_exist():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 420, f"{path.name} is too long to be one thing"
