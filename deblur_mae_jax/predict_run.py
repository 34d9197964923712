"""Classify (or segment, see `segment_run`) new images: `main.py --mode=predict --workdir=RUN --input=FOLDER
--output=FILE.csv`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import api, blur_search, dataset, network, pretrained, segment_run
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.image_folder import existing_root
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.evaluators.predictions import Predictions
from deblur_mae_jax.progress import Progress
from deblur_mae_jax.pytorch import files

CHUNK = 256


def run(run_folder: str | Path, images: str, output: str | Path = "", infer: str = "") -> Path:
    """Label maps (`segment_run`) or predictions (`classify`), as the run learnt it.

    run_folder: a workdir or a file of weights; of segmentations also several, "a,b,c", which are averaged.
    """
    folders = [str(run_folder)]
    if not Path(run_folder).expanduser().exists():
        folders = [name.strip() for name in str(run_folder).split(",") if name.strip()]
    first = Path(folders[0]).expanduser()
    known = files.is_weights(first)
    config = pretrained.load(first, "--workdir").config if known else pretrained.read_config(first)
    if network.kind(config) == "segment":
        return segment_run.run(folders, images, str(output), infer)
    if infer:
        raise UserError("--infer: only a segmentation has these fields")
    if len(folders) > 1:
        raise UserError("--workdir: several runs are averaged only where they segment")
    return classify(run_folder, images, output)


def classify(run_folder: str | Path, images: str, output: str | Path = "") -> Path:
    """Predictions of the classifier in `run_folder` for every image of a folder or CSV manifest.

    The images are blurred as the run's setting says, a D2MAE classifier's by a search. Files that
    cannot be used are listed beside the table. Returns the path of the CSV, `predictions_new.csv` in
    the run if no `output` is given.
    """
    say = Progress()
    trained = api.load(run_folder)
    if not trained.info.classes:
        raise UserError(f"--workdir: '{run_folder}' is no classifier; fine-tune it first")
    path = Path(output) if output else Path(run_folder) / "predictions_new.csv"
    if path.suffix != ".csv":
        raise UserError(f"--output: '{path}' must end in .csv")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot write to '{path.parent}': {error.strerror}") from error
    root = existing_root(images, "input")
    if root.is_file() and root.suffix.lower() != ".csv":
        raise UserError(
            f"--input: '{images}' is a file; name a folder of images, or a CSV manifest"
        )
    config = ConfigDict(trained.info.config.to_dict(), type_safe=False)
    config.data.name = "image_folder" if root.is_dir() else "manifest"
    config.data.root, config.data.split = str(root), "all"
    config.data.check, config.data.max_bad_fraction = "pixels", 0.999
    index = dataset.build_index(
        config, None, split="all", progress=lambda n, total: say.show(f"checking: {n} of {total}")
    )
    probabilities, levels = [], []
    for start in range(0, len(index), CHUNK):
        part = [index.source.read(i) for i in range(start, min(start + CHUNK, len(index)))]
        level = api.levels_for(trained, part)
        probabilities.append(api.predict(trained, part, level=level))
        levels.append(np.zeros(len(part), int) if level is None else level)
        say.show(f"predicting: {start + len(part)} of {len(index)}")
    level = np.concatenate(levels)
    sigma = np.full(len(index), np.nan)
    by_level = blur_search.all_sigmas(trained.info.network.inputs.degradation)
    if len(by_level):
        sigma = by_level[level - 1]
    classes = trained.info.classes
    names = index.source.labels or [""] * len(index)
    table = Predictions(
        classes,
        np.array(index.source.names),
        np.array(index.source.groups or [""] * len(index)),
        np.full(len(index), "new"),
        np.array([classes.index(name) if name in classes else -1 for name in names]),
        np.concatenate(probabilities),
        level,
        sigma,
    )
    table.write(path)
    if index.skipped:
        skipped = path.with_name(path.stem + "_skipped.csv")
        data_index.write_skipped(skipped, index.skipped)
        say.say(f"{len(index.skipped)} files left out, see {skipped}")
    counts = {c: int((table.probabilities.argmax(1) == i).sum()) for i, c in enumerate(classes)}
    say.say(f"{len(index)} images: " + ", ".join(f"{n} {c}" for c, n in counts.items()))
    say.say(f"predictions {path}")
    return path
