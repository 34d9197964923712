"""Segment new images: arrays (`dm.segment`), or files (`main.py --mode=predict --workdir=RUN --input=FOLDER`)."""

from __future__ import annotations

import ast
import csv
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import api, dataset, network, sharding, workdir
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.grid import place
from deblur_mae_jax.data.image_folder import existing_root
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.progress import Progress
from deblur_mae_jax.segmenter import Segmenter

# What is done to an image before the network; it must be the same for all members of an ensemble.
PREPARATION = ("image_size", "task.degrade", "task.blur_site", "data.spacing", "data.ct_window", "data.mean",
"data.std",
               "data.max_side", "data.bits16", "search.setting")  # fmt: skip
CHUNK = 256


def infer_fields(config: ConfigDict, text: str) -> ConfigDict:
    """`config.infer` with the fields of `text`, such as "flips=True,overlap=0.7"."""
    infer = ConfigDict(config.infer.to_dict())
    for part in (p for p in text.split(",") if p.strip()):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in infer:
            raise unknown("--infer", name, infer.keys())
        try:
            infer[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            try:
                infer[name] = value
            except TypeError as error:
                raise UserError(
                    f"--infer: {name}='{value}' must be like {infer[name]!r}"
                ) from error
    return infer


def load_members(folders: list[str]) -> list[api.Trained]:
    """The runs of an ensemble; they must be of one kind."""
    members = [api.load(folder) for folder in folders]
    first = members[0].info
    for folder, member in zip(folders, members, strict=True):
        if network.kind(member.info.config) != "segment":
            raise UserError(f"--workdir: '{folder}' is no segmentation run")
        same = member.info.classes == first.classes and member.model == first.network.model
        same &= member.info.mask_values == first.mask_values
        same &= all(
            workdir.flat(member.info.config).get(name) == workdir.flat(first.config).get(name)
            for name in PREPARATION
        )
        if not same:
            raise UserError(
                f"--workdir: '{folder}' has other labels, another network or another preparation than "
                f"'{folders[0]}': they cannot be averaged"
            )
    return members


def run(folders: list[str], images: str, output: str = "", infer: str = "") -> Path:
    """Label maps of every image of a folder or CSV, by one run or the mean of several; returns their folder.

    A volume is written as NIfTI on its own voxels, a picture as PNG, with the values of the masks that were
    learnt from; beside them `segmentations.csv` with the size of every label. Files that cannot be used are listed in
    `skipped.csv`.
    """
    say = Progress()
    members = load_members(folders)
    info = members[0].info
    out = Path(output) if output else Path(folders[0]) / "segmentations" / "new"
    if out.suffix in (".csv", ".gz", ".nii", ".png"):
        raise UserError(f"--output: '{out}' must be a folder, the label maps go there")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot write to '{out}': {error.strerror}") from error
    config = ConfigDict(info.config.to_dict(), type_safe=False)
    is_3d = network.num_axes(config) == 3
    config.data.split, config.data.root = "all", images
    config.data.max_bad_fraction, config.data.check = 0.999, "header" if is_3d else "pixels"
    if is_3d:
        config.data.name = "nifti"
    else:
        root = existing_root(images, "input")
        config.data.name = "image_folder" if root.is_dir() else "manifest"
    try:
        index = dataset.build_index(
            config,
            None,
            split="all",
            progress=lambda n, total: say.show(f"checking: {n} of {total}"),
        )
    except UserError as error:
        raise UserError(str(error).replace("config.data.root", "--input")) from error
    extras = {}
    if not is_3d and info.network.inputs.degradation.num_levels:
        levels: list[int] = []
        for start in range(0, len(index), CHUNK):
            some = range(start, min(start + CHUNK, len(index)))
            pictures = [index.source.read(i) for i in some]
            found = api.given_levels(members[0], pictures, None, len(some))
            assert found is not None
            levels += found.tolist()
        extras["level"] = np.array(levels, np.int32)
    loader = Loader(index, config.model.in_chans, extras)
    segmenter = Segmenter(info.network, sharding.make_mesh(), infer_fields(info.config, infer))
    values = np.array(info.mask_values, np.uint8)
    weights = [member.params for member in members]
    rows: list[list[Any]] = []
    taken: set[Path] = set()
    for position, labels in segmenter.each(weights, loader, range(len(index))):
        grid = index.source.grid_of(position)
        own = grid.finish(labels)
        path = grid.save(values[own], place(out, index.source.names[position], taken))
        voxel = float(np.prod(grid.spacing))
        counts = np.bincount(own.ravel(), minlength=len(values))[1:]
        for label, count in zip(info.classes[1:], counts, strict=True):
            unit = f"{grid.unit}3" if is_3d else grid.unit
            written = path.relative_to(out).as_posix()
            rows.append([index.source.names[position], label, voxel * int(count), unit, written])
        say.show(f"segmenting: {position + 1} of {len(index)}")
    with open(out / "segmentations.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "size", "unit", "file"])
        table.writerows(rows)
    skipped = [*index.skipped, *loader.failed]
    if skipped:
        data_index.write_skipped(out / "skipped.csv", skipped)
        say.say(f"{len(skipped)} files left out, see {out / 'skipped.csv'}")
    say.say(f"{len(rows) // max(1, len(values) - 1)} images, label maps in {out}")
    return out


def segment(
    trained: api.Trained, images: api.Images, *, level: Any = None, **infer: Any
) -> list[np.ndarray]:
    """The class of every pixel or voxel, uint8 `(*space)`, numbers into `trained.info.classes`.

    Pictures as for `predict`. Volumes: a list of float arrays `(D, H, W)` in RAS, scaled as a run scales them
    (CT window to 0..1; MR standardised over its non-zero voxels). infer: fields of `config.infer`, such as flips=True.
    """
    info = trained.info
    if network.kind(info.config) != "segment":
        raise UserError(f"segment: '{info.path}' is no segmentation run")
    strange = sorted(set(infer) - set(info.config.infer))
    if strange:
        raise UserError(
            f"segment: no field '{strange[0]}'. Choices: {', '.join(info.config.infer)}"
        )
    fields = ConfigDict(info.config.infer.to_dict() | infer)
    name = f"segmenter {sorted(fields.items())}"
    if name not in info.programs:  # with what it compiled
        info.programs[name] = Segmenter(info.network, sharding.make_mesh(), fields)
    segmenter = info.programs[name]
    if network.num_axes(info.config) == 3:
        volumes = [np.asarray(v, np.float32) for v in images]
        for number, volume in enumerate(volumes):
            if volume.ndim != 3 or not np.isfinite(volume).all():
                raise UserError(
                    f"images: volume {number} of shape {volume.shape} must be finite and have 3 axes"
                )
        return [segmenter.of_volume([trained.params], v[..., None]) for v in volumes]
    ready = api.as_list(images)
    levels = api.given_levels(trained, ready, level, len(ready))
    out: list[np.ndarray] = []
    for start, count, examples in api.batches(
        ready, info.network.inputs.in_chans, segmenter.batch_size
    ):
        rows = [{k: v[i] for k, v in examples.items()} for i in range(count)]
        for i, row in enumerate(rows):
            if levels is not None:
                row["level"] = np.int32(levels[start + i])
        out += segmenter.of_pictures([trained.params], rows)
    return out
