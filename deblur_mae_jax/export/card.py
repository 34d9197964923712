"""The model card of an export: the network, how to open it, how to prepare an image, the agreement with JAX."""

from __future__ import annotations

from typing import Any

from deblur_mae_jax import sides
from deblur_mae_jax.weight_formats import contract

NAME = "README.md"


def text(certificate: dict[str, Any]) -> str:
    """The model card as Markdown."""
    network = certificate["network"]
    format = contract.named(certificate["format"], network.get("model", ""))
    reader = format.TITLE
    what, about = (_of_volumes if network["axes"] == 3 else _of_images)(network)
    if "versions" in certificate["opens_with"]:
        reader += f" ({certificate['opens_with']['versions']})"
    about += f" Trained with deblur_mae_jax, written for {reader}. Not a medical device."
    steps = _volume_steps if network["axes"] == 3 else _image_steps
    search = _search_of(network, bool(certificate.get("searcher"))) if "setting" in network else []
    before = [*steps(certificate["preprocessing"]), *getattr(format, "CAUTIONS", ())]
    return _page(certificate, (what, about), format.snippet(certificate), before, search)


def _of_images(network: dict[str, Any]) -> tuple[str, str]:
    """(title, first sentence) of a network for 2-D images."""
    what = "an encoder and decoder, pre-trained by masked reconstruction"
    if network["kind"] == "classify":
        what = f"a classifier of {', '.join(network['classes'])}" if network["classes"] else "an encoder"
    if network["kind"] == "segment":
        decoder = {"unetpp": "U-Net++", "upernet": "UPerNet"}.get(network.get("decoder", ""), "UNETR")
        what = f"a segmentation of {', '.join(network['classes'][1:])} ({decoder})"
        network = network.get("encoder", network)
    chans = "one gray channel" if network["in_chans"] == 1 else "three channels"
    sizes = ", ".join(
        f"{words} {network[name]}"
        for name, words in (
            ("embed_dim", "width"),
            ("width", "first width"),
            ("depth", "depth"),
            ("depths", "blocks of each stage"),
            ("num_heads", "heads"),
            ("patch_size", "patches of"),
        )
        if name in network
    )
    return what, f"A network of {sizes}, for {sides.written(network['image_size'])} pixels and {chans}."


def _of_volumes(network: dict[str, Any]) -> tuple[str, str]:
    """(title, first sentence) of a network for volumes."""
    labels = ", ".join(network["classes"][1:])
    what = f"a segmentation of {labels}" if labels else "a pre-trained Swin-UNETR"
    return what, (
        f"Swin-UNETR of width {network['feature_size']}, crops of {sides.written(network['image_size'])} voxels, "
        f"patches merged in the order `{network['merge_order']}`."
    )


def _page(
    certificate: dict[str, Any],
    introduction: tuple[str, str],
    snippet: list[str],
    before: list[str],
    search: list[str],
) -> str:
    source, (what, about) = certificate["source"], introduction
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
        "Without the same preparation the results are meaningless.",
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
        splits = source.get("splits") or {"train": source.get("num_images", "?")}
        others = "".join(f", {count} {name}" for name, count in splits.items() if name != "train")
        lines.append(f"- Trained on {splits['train']} images{others}; fingerprint of all `{source['fingerprint']}`")
    if source.get("git", {}).get("commit"):
        changed = ", modified" if source["git"].get("modified") else ""
        lines.append(f"- Code `{source['git']['commit']}`{changed}")
    lines.append("- All settings of the run: `source.config` in `certificate.json`")
    return "\n".join(lines) + "\n"


def _resize_step(p: dict[str, Any]) -> str:
    if "resize_whole" in p:
        size = sides.of(p["resize_whole"])
        return (
            f"Resize the whole image to {size[0]} x {size[1]} pixels ({p['interpolation']}), whatever its proportions. "
            "Enlarge the results to the image (bilinear), then take the largest class of each pixel."
        )
    cut, to = sides.of(p["centre_crop"]), p["resize_short_side"]
    resize = f"Resize the short side to {to} ({p['interpolation']})"
    if not isinstance(to, int):
        resize = f"Resize the image, with its proportions, so that it covers {sides.written(to)} ({p['interpolation']})"
    return f"{resize}, and cut the central {cut[0]} x {cut[1]} pixels."


def _image_steps(p: dict[str, Any]) -> list[str]:
    gray = "8 bits, gray" if p["channels"] == 1 else "8 bits, RGB"
    steps = [f"Read the image as {gray} (16-bit images: `{p['bits16']}`)."]
    if p["max_side"]:
        steps.append(f"Shrink it to at most {p['max_side']} pixels on its long side (Lanczos).")
    resize = _resize_step(p)
    if p["degrade"] == "none":
        steps.append(resize)
    else:
        native = p["where"] == "native"
        sigmas = ", ".join(f"{sigma:g}" for sigma in p["sigmas"])
        level_text = f" Sigma of levels 1, 2, ...: {sigmas}." if sigmas else ""
        where = "at its own resolution" if native else "the result"
        degrade = f"Degrade {'it ' if native else ''}{where} with `{p['degrade']}`, as in training.{level_text}"
        steps += [degrade, resize] if native else [resize, degrade]
    colour = ", every channel the same gray image unless it has colours" if p["channels"] == 3 else ""
    return [*steps, f"Divide by 255, subtract {p['mean']}, divide by {p['std']}{colour}.", *_predict_steps(p)]


def _volume_steps(p: dict[str, Any]) -> list[str]:
    """The preprocessing steps of a volume."""
    low, high = p["ct_window"] or (-1000.0, 1000.0)
    spacing = " x ".join(f"{s:g}" for s in p["spacing"])
    out = ["Turn the volume to RAS orientation."]
    if spacing:
        out.append(f"Resample it to {spacing} mm (linear).")
    out += [
        f"CT: clip to {low:g} .. {high:g} HU and scale to 0..1. MR: subtract the mean and divide by the standard "
        "deviation of the voxels that are not zero, and leave the zeros.",
        f"Cut crops of {sides.written(p['image_size'])} voxels, or use a sliding window of that size.",
    ]
    return out + _predict_steps(p)


def _predict_steps(p: dict[str, Any]) -> list[str]:
    """How a segmentation predicts, by `config.infer` of the run."""
    infer, out = p.get("infer") or {}, []
    if "overlap" in infer:
        out.append(
            f"The run predicts with a sliding window, overlap {infer['overlap']:g}, weights {infer['blending']} "
            f'(MONAI: `sliding_window_inference(..., overlap={infer["overlap"]:g}, mode="{infer["blending"]}")`).'
        )
    if infer.get("flips"):
        views = 8 if "overlap" in infer else 2
        out.append(f"It averages the probabilities of {views} flipped views, each flipped back.")
    if infer.get("largest_component"):
        out.append("It keeps only the largest connected component of every label.")
    return out


def _search_of(network: dict[str, Any], held: bool) -> list[str]:
    """A sentence that states how the blur level of a new image is chosen, for a network with blur levels."""
    kind, value = network.get("setting") or ["", 0.0]
    sigma = network.get("high_pass", 0.0)
    how = {
        "search": f"a search in steps of {value:g} with the pre-trained network, "
        + ("`searcher.safetensors`" if held else "which this export does not hold")
        + (f", that compares what a Gaussian of sigma {sigma:g} removes" if sigma else ""),
        "fixed": f"always sigma {value:g}",
        "none": "always level 1",
        "random": "at random, as in training",
    }.get(kind)
    return [f"The level of blur of an image: {how}.", ""] if how else []


def _agreement(certificate: dict[str, Any]) -> list[str]:
    agreement = certificate["agreement"]
    if agreement["status"] != "measured":
        return [f"{agreement['status'].capitalize()}: {agreement['why']}."]
    versions = ", ".join(f"{k} {v}" for k, v in certificate["versions"].items())
    return [
        f"Measured with the same weights on fixed inputs, {agreement['precision']}, on a CPU; {versions}.",
        "",
        "| output | largest difference | largest value |",
        "|---|---|---|",
        *(
            f"| {name} | {item['max_difference']:.1e} | {item['max_value']:.2f} |"
            for name, item in agreement["outputs"].items()
        ),
    ]
