"""Weight files: safetensors, PyTorch's `.pth`, Hugging Face folders.

Pickles are read only with `torch.load(weights_only=True)` of torch 2.6 or newer, which builds
tensors and plain containers and executes no code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data.raster import stranger
from deblur_mae_jax.errors import UserError, one_line
from deblur_mae_jax.weight_formats.contract import State, Weights, recognise
from deblur_mae_jax.weight_formats.torch_calls import need_torch

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
IN_FOLDERS = (
    "model.safetensors",
    "d2mae.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
)
CERTIFICATE = "certificate.json"  # of an export
# Lists of the files of a network that was saved in parts.
SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# The keys under which training code stores the weights, and the prefixes that it adds to their names.
_INSIDE = (
    "model", "state_dict", "module", "model_state_dict", "network", "net", "backbone", "encoder", "weights",
    "teacher", "model_ema", "state_dict_ema", "ema", "student",
)  # fmt: skip
_WRAPPERS = ("module.", "_orig_mod.")
_PREFIXES = (
    *_WRAPPERS, "model.", "encoder.", "backbone.", "net.", "network.", "teacher.", "student.", "state_dict.", "vit.",
    "image_encoder.", "visual.", "trunk.", "feature_extractor.", "base_model.", "ema.", "model_ema.", "encoder_q.",
    "base_encoder.", "online_encoder.", "momentum_encoder.", "target_encoder.",
)  # fmt: skip
EPSILON = 1e-6  # of the layer normalisation of a ViT here, as in MAE's code and timm
# The header entry of a safetensors file that uses this library's own names.
OWN_NAMES = "deblur_mae_jax"


def is_weights(path: Path) -> bool:
    """Whether `path` is a weight file or a folder that holds one, not the workdir of a run."""
    if path.is_dir():
        return any((path / name).is_file() for name in (*IN_FOLDERS, *SHARDS))
    return path.is_file() and path.name != "config.json"


def read(path: Path, field: str) -> Weights:
    """Read weights under MAE's names. Raises `UserError` naming `field` and the file."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = next(folder / name for name in (*IN_FOLDERS, *SHARDS) if (folder / name).is_file())
    try:
        state, header, arguments, chosen = _read_file(path)
        damaged = sorted(k for k, v in state.items() if not np.isfinite(v).all())
        if damaged:
            raise UserError(f"NaN or infinite values in {', '.join(damaged[:3])}")
        state = {_without_wrappers(name): value for name, value in state.items()}
        format, notes = None, list[str]()
        if header.get("names") != OWN_NAMES:
            state, notes = _without_prefix(state)
            notes = chosen + notes
            format = recognise(state)
            state = format.to_ours(state)
    except UserError as error:
        raise UserError(f"{field}: '{path}': {error}") from error
    except Exception as error:  # the arrays have the names of a known network, but not its shapes
        raise UserError(f"{field}: '{path}': {misfit(error)}") from error
    config = _config_beside(folder, path)
    notes = [*notes, *_other_epsilon(config, folder / "config.json")]
    return Weights(path, state, format, header, config, arguments, notes)


def misfit(error: Exception) -> str:
    """What is said of arrays that have the names of a known network and cannot be converted."""
    return f"its arrays do not have the shapes of the network that their names belong to ({error})"


def _read_file(path: Path) -> tuple[State, dict[str, str], dict[str, Any], list[str]]:
    """The arrays of a file by name, its header, its training arguments, and notes. Raises `UserError`."""
    if path.name in SHARDS:
        return _read_shards(path), {}, {}, []
    with open(path, "rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            raise UserError(f"it is {stranger(path)}")
    if path.suffix.lower() == ".safetensors":
        return (*_safetensors(path), {}, [])
    if path.name.lower().endswith(PICKLES):
        state, arguments, notes = _pickle(path)
        return state, _header_beside(path), arguments, notes
    raise UserError(
        f"'{path.suffix or path.name}' is not a weight file. Choices: the workdir of a run, .safetensors, "
        f"{', '.join(PICKLES)}, a Hugging Face folder"
    )


def _header_beside(path: Path) -> dict[str, str]:
    """What `certificate.json` records of this very file, if one of our exports wrote it; {} if not."""
    try:
        certificate = json.loads((path.parent / CERTIFICATE).read_text(encoding="utf-8"))
        header, digest = certificate["header"], certificate["file"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    same = isinstance(header, dict) and hashlib.sha256(path.read_bytes()).hexdigest() == digest
    return {str(name): str(value) for name, value in header.items()} if same else {}


def _read_shards(index: Path) -> State:
    """The arrays of all files that the index of a folder names."""
    try:
        where = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"it is not a list of weight files: {type(error).__name__}") from error
    state: State = {}
    for name in sorted({str(part) for part in where.values()}):
        part = index.parent / name
        if Path(name).name != name or name == index.name:
            raise UserError(f"it names '{name}', which is in another folder or no weight file")
        if not part.is_file():
            raise UserError(f"the part '{name}' is missing")
        state |= {key: value for key, value in _read_file(part)[0].items() if where.get(key, name) == name}
    return state


def _without_prefix(state: State) -> tuple[State, list[str]]:
    """Remove a prefix such as `encoder.` from the names, if the rest is a known network and the names are not."""
    candidates: list[tuple[str, State]] = [("", state)]
    for removed, current in candidates:
        try:
            recognise(current)
        except UserError:
            for prefix in _PREFIXES:
                inner = {k.removeprefix(prefix): v for k, v in current.items() if k.startswith(prefix)}
                if inner and removed.count(".") < 4:
                    candidates.append((removed + prefix, inner))
            continue
        others = len(state) - len(current)
        notes = [f"{others} arrays outside '{removed[:-1]}' are not read"] if removed and others else []
        return current, notes
    return state, []


def _config_beside(folder: Path, path: Path) -> dict[str, Any]:
    """`config.json` and `preprocessor_config.json` of a Hugging Face or timm folder."""
    if path.name not in (*IN_FOLDERS, *SHARDS):
        return {}
    config: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "config.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        config |= content if isinstance(content, dict) else {}
    named = {"hidden_act": config.get("hidden_act", "gelu")}
    named["act_layer"] = (config.get("model_args") or {}).get("act_layer", "gelu")
    for field, activation in named.items():
        if activation != "gelu":
            raise UserError(f"'{folder / 'config.json'}': {field}={activation}; the networks here have the exact gelu")
    return config


def _other_epsilon(config: dict[str, Any], path: Path) -> list[str]:
    """A note if the file's normalisation layers add another number to the variance than the layers here."""
    epsilon = config.get("layer_norm_eps", EPSILON)
    if epsilon == EPSILON:
        return []
    return [
        f"'{path}': layer_norm_eps={epsilon}; the layers here have {EPSILON}, so results may differ slightly, and "
        "clearly where the values of a token are nearly equal"
    ]


def _without_wrappers(name: str) -> str:
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    return name


def _safetensors(path: Path) -> tuple[State, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            header = file.metadata() or {}
            # With ml_dtypes, which JAX brings, NumPy also holds bfloat16.
            state = {name: file.get_tensor(name) for name in names}
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        OverflowError,
        MemoryError,
    ) as error:
        raise UserError(f"it cannot be read; it is damaged or not a safetensors file: {error}") from error
    return {k: _plain(v) for k, v in state.items()}, header


def _pickle(path: Path) -> tuple[State, dict[str, Any], list[str]]:
    torch = need_torch("files of PyTorch (.pth)")
    _refuse_bomb(path)
    try:
        # Training scripts store their arguments in a Namespace, which holds only data.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost any exception
        refused = "weights_only" in str(error) or "Unsupported" in str(error)
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        script = "TorchScript" in str(error)
        load = "torch.jit.load(FILE).state_dict()" if script else "torch.load(FILE, weights_only=False)"
        which = (
            ""
            if script
            else (". The weights in it may be under 'state_dict' or 'model'; a whole network has .state_dict()")
        )
        why = (
            f"it {'is a TorchScript archive' if script else f'holds more than tensors{what}'}, so it is not opened: "
            f"loading it could run code. If you trust it, save its weights alone: torch.save({{'model': {load}}}, "
            f"NEW){which}"
            if refused or script
            else f"it cannot be read; it is damaged or not a PyTorch file: {one_line(error, 160)}"
        )
        raise UserError(why) from error
    arguments: dict[str, Any] = {}
    notes: list[str] = []
    if isinstance(content, dict):
        args = content.get("args")
        if isinstance(args, argparse.Namespace):
            arguments = vars(args)
        content, notes = _inside(content)
    if not isinstance(content, dict):
        raise UserError(f"it holds a {type(content).__name__}, not weights by name")
    state = {}
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            if value.is_quantized:
                raise UserError(f"'{name}' is quantised: save it as float32")
            value = value.detach()
            state[name] = _plain((value.float() if value.is_floating_point() else value).numpy())
    if not state:
        raise UserError(f"it holds no network, only entries called {', '.join(map(str, content)) or 'none'}")
    return state, arguments, notes


def _inside(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The weights among what training code saved, and a note if there are others beside them."""
    notes = []
    for name in _INSIDE:
        if not isinstance(content.get(name), dict) or not _holds_weights(content[name]):
            continue
        others = [key for key, value in content.items() if key != name and _holds_arrays(value)]
        if others:
            notes.append(f"its weights under '{name}' are read, not those under {', '.join(map(repr, others))}")
        content = content[name]
    return content, notes


def _holds_weights(value: dict[str, Any]) -> bool:
    """Whether there are arrays here or one level below; a dict called "model" may hold the settings of a network."""
    return _holds_arrays(value) or any(_holds_arrays(inner) for inner in value.values())


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, dict) and any(hasattr(inner, "is_floating_point") for inner in value.values())


def _refuse_bomb(path: Path) -> None:
    """Refuse an archive that is larger when it is unpacked. PyTorch stores its arrays uncompressed."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"it cannot be read; it is a damaged archive: {error}") from error
    if size > 2 * path.stat().st_size + 1_000_000:
        raise UserError(f"it is an archive that grows to {size / 1e9:.3g} GB when it is unpacked")


def _plain(value: np.ndarray) -> np.ndarray:
    """Numbers of any precision as float32, also those that only ml_dtypes knows; whole numbers as they are."""
    if value.dtype.kind in "iub":
        if value.dtype.itemsize == 1 and value.ndim > 1:
            raise UserError(f"it holds arrays of {value.dtype}, whose scale is not known: save it as float32")
        return value
    return value.astype(np.float32)
