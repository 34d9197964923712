"""The model card of an export: what it is, how to open it, what to do to an image first, how well it agrees."""

from __future__ import annotations

from typing import Any

from deblur_mae_jax.pytorch import volume_exports

NAME = "README.md"


def text(certificate: dict[str, Any]) -> str:
    """Markdown."""
    network = certificate["network"]
    if certificate["format"] in volume_exports.FORMATS:
        what, about = volume_exports.introduction(certificate)
        before = volume_exports.steps(network)
        return _page(certificate, what, about, volume_exports.snippet(certificate), before, [])
    classify = network["task"] == "classify"
    chans = "one gray channel" if network["in_chans"] == 1 else "three channels"
    what = (
        f"a classifier of {', '.join(network['classes'])}"
        if network["classes"]
        else "an encoder"
        if classify
        else "an encoder and decoder, pre-trained by masked reconstruction"
    )
    about = (
        f"ViT, {network['embed_dim']} wide, {network['depth']} deep, {network['num_heads']} heads, patches of "
        f"{network['patch_size']} at {network['image_size']} pixels, {chans}. Trained with deblur_mae_jax, "
        f"written for {_reader(certificate)}. Not a medical device."
    )
    before = _steps(certificate["preprocessing"])
    return _page(certificate, what, about, _snippet(certificate), before, _search_of(network))


def _page(
    certificate: dict[str, Any],
    what: str,
    about: str,
    snippet: list[str],
    before: list[str],
    search: list[str],
) -> str:
    source = certificate["source"]
    lines = [
        f"# {what[0].upper()}{what[1:]}",
        "",
        about,
        "",
        "## Open it",
        "",
        "```python",
        *snippet,
        "```",
        "",
        "## Before the network",
        "",
        *(f"{i}. {step}" for i, step in enumerate(before, 1)),
        "",
        *search,
        "Without the same preparation the numbers mean nothing.",
        "",
        "## Agreement with JAX",
        "",
        *_agreement(certificate),
        "",
        "## Origin",
        "",
        f"- File `{certificate['file']['name']}`, SHA-256 `{certificate['file']['sha256']}`, "
        f"{certificate['file']['tensors']} tensors, {certificate['file']['numbers']:,} numbers",
        *(f"- Changed: {line}" for line in certificate["changed"]),
        *(f"- Left out: {line}" for line in certificate["left_out"]),
        f"- Weights `{source['weights']}`, exported {certificate['exported']}",
    ]
    if "fingerprint" in source:
        lines.append(
            f"- Trained on {source.get('num_images', '?')} images, fingerprint `{source['fingerprint']}`"
        )
    if source.get("git", {}).get("commit"):
        changed = ", modified" if source["git"].get("modified") else ""
        lines.append(f"- Code `{source['git']['commit']}`{changed}")
    lines.append("- All settings of the run: `source.config` in `certificate.json`")
    return "\n".join(lines) + "\n"


def _reader(certificate: dict[str, Any]) -> str:
    return {
        "mae": "the code of MAE and DeblurringMIM",
        "timm": "timm",
        "hf": "Hugging Face transformers",
        "d2mae": "PyTorch alone",
    }[certificate["format"]]


def _snippet(certificate: dict[str, Any]) -> list[str]:
    opens, name = certificate["opens_with"], certificate["file"]["name"]
    network = certificate["network"]
    read = (
        ["from safetensors.torch import load_file", f'state = load_file("{name}")']
        if name.endswith(".safetensors")
        else [f'state = torch.load("{name}", weights_only=True)']
    )
    if certificate["format"] == "timm":
        arguments = ", ".join(f"{k}={v!r}" for k, v in opens["arguments"].items())
        return [
            "import timm, torch",
            *read,
            f'model = timm.create_model("{opens["model"]}", pretrained=False, {arguments})',
            "model.load_state_dict(state, strict=True)",
        ]
    if certificate["format"] == "hf":
        return [
            f"from transformers import {opens['class']}",
            f'model = {opens["class"]}.from_pretrained(".")',
        ]
    if certificate["format"] == "mae":
        inner = "" if name.endswith(".safetensors") else '["model"]'
        model = "models_vit.VisionTransformer" if network["task"] == "classify" else (
            "models_mae.MaskedAutoencoderViT"
        )  # fmt: skip
        return [
            "import torch",
            *read,
            f"model = {model}(...)  # of MAE's code, with the sizes above",
            f"model.load_state_dict(state{inner}, strict=True)",
        ]
    lines = ["import torch", "from modeling_d2mae import load"]
    lines.append(
        'model = load(".")' if name == "d2mae.safetensors" else f'model = load(".", "{name}")'
    )
    lines.append("image = torch.from_numpy(array)  # (H, W), grey levels 0..255")
    if network["sigmas"] and network["task"] != "classify":
        lines.append("level, errors = model.search(image)")
    if network["task"] == "classify" and network["classes"]:
        return [*lines, "probabilities = model.predict(image)"]
    seen = ", level" if network["sigmas"] else ""
    told = ", level" if network["conditioning"] != "none" else ""
    call = "features" if network["task"] == "classify" else "encode"
    lines.append(f"out = model.{call}(model.view(image{seen}){told})")
    return lines


def _steps(p: dict[str, Any]) -> list[str]:
    gray = "8 bits, gray" if p["channels"] == 1 else "8 bits, RGB"
    steps = [f"Read the image as {gray} (16-bit images: `{p['bits16']}`)."]
    if p["max_side"]:
        steps.append(f"Shrink it to at most {p['max_side']} pixels on its long side (Lanczos).")
    resize = (
        f"Resize the short side to {p['resize_short_side']} ({p['interpolation']}), and cut the central "
        f"{p['centre_crop']} x {p['centre_crop']} pixels."
    )
    if p["degrade"] == "none":
        steps.append(resize)
    else:
        native = p["where"] == "native"
        sigmas = ", ".join(f"{sigma:g}" for sigma in p["sigmas"])
        known = f" Sigma of levels 1, 2, ...: {sigmas}." if sigmas else ""
        where = "at its own resolution" if native else "the result"
        degrade = f"Degrade {'it ' if native else ''}{where} with `{p['degrade']}`, as in training.{known}"
        steps += [degrade, resize] if native else [resize, degrade]
    colour = (
        ", every channel the same gray image unless it has colours" if p["channels"] == 3 else ""
    )
    return [*steps, f"Divide by 255, subtract {p['mean']}, divide by {p['std']}{colour}."]


def _search_of(network: dict[str, Any]) -> list[str]:
    """How the level of blur of a new image is found, for a classifier that has levels."""
    kind, value = network.get("setting") or ["", 0.0]
    how = {
        "search": f"a search in steps of {value:g} with the pre-trained network, `searcher.safetensors`",
        "fixed": f"always sigma {value:g}",
        "none": "always level 1",
        "random": "at random, as in training",
    }.get(kind)
    return [f"The level of blur of an image: {how}.", ""] if how else []


def _agreement(certificate: dict[str, Any]) -> list[str]:
    found = certificate["agreement"]
    if found["status"] != "measured":
        return [f"{found['status'].capitalize()}: {found['why']}."]
    versions = ", ".join(f"{k} {v}" for k, v in certificate["versions"].items())
    return [
        f"The same weights on fixed inputs, {found['precision']}, CPU; {versions}.",
        "",
        "| output | largest difference | largest value |",
        "|---|---|---|",
        *(
            f"| {name} | {item['max_difference']:.1e} | {item['max_value']:.2f} |"
            for name, item in found["outputs"].items()
        ),
    ]
