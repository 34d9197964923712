"""The blur search as a run of its own: `main.py --config=configs/blur_search.py`."""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import api, blur_search, dataset, lookup, sharding, transfer, workdir
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.evaluators import report, search_figures
from deblur_mae_jax.progress import Progress

STRIPS = 6


@dataclasses.dataclass
class SearchResult:
    """What a blur search left."""

    table: blur_search.Table
    report: Path


def run(config: ConfigDict, workdir_path: str | Path, dry_run: bool = False) -> SearchResult:
    """Search the images of `config.data` with the network of `config.init_from`.

    Writes `blur_search.csv` and a page with the pictures of D2MAE's figure 3. Raises `UserError`.
    """
    if dry_run:
        raise UserError("--dry_run: a blur search trains nothing; run it on a few images instead")
    folder, say = Path(workdir_path), Progress()
    config, source, lines = transfer.resolve(config)
    trained = transfer.require_source(source, "a blur search")
    if not hasattr(trained.network.model, "decode"):
        raise UserError(
            f"config.init_from: '{config.init_from}' has no decoder; name a pre-training run"
        )
    setting = blur_search.parse(config.search.setting, trained.network.inputs.degradation)
    if setting is None or setting.kind != "search":
        raise UserError(
            f"config.search.setting={config.search.setting} searches nothing: the network of "
            f"config.init_from was trained with '{trained.config.task.degrade}'. Choices: search(step), "
            "with a network trained with levels of blur (D2MAE)"
        )
    if config.task.degrade != trained.config.task.degrade:
        raise UserError(
            f"config.task.degrade='{config.task.degrade}': a search uses the degradation that the network of "
            f"config.init_from was trained with, '{trained.config.task.degrade}'"
        )
    workdir.claim(folder, config)
    for line in lines:
        say.say(line)
    index = dataset.build_index(
        config,
        folder,
        progress=lambda done, total: say.show(f"checking images: {done} of {total}"),
        check="pixels",
    )
    first = jax.process_index() == 0
    if first:
        data_index.write_skipped(folder / "skipped.csv", index.skipped)
    table = blur_search.search(
        trained,
        index,
        sharding.make_mesh(),
        step=setting.step,
        batch_size=config.search.batch_size,
        cache=config.search.cache,
        num_threads=config.data.num_threads,
        show=lambda done, total: say.show(f"blur search: {done} of {total} images"),
    )
    page = folder / "report" / "index.html"
    if first:
        table.write(folder / "blur_search.csv")
        _write_page(page, config, trained, index, table)
        counts = {f"{s:g}": int((table.best_sigma == s).sum()) for s in table.sigmas}
        rate = ""
        if table.searched:
            images = table.searched / table.seconds
            rate = (
                f", {images:.1f} images/s, {images * gflop(trained, len(table.levels)):.1f} GFLOP/s"
            )
        say.say(f"searched {table.searched} images{rate}; {len(index) - table.searched} looked up")
        say.say("images by best sigma: " + ", ".join(f"{s}: {n}" for s, n in counts.items()))
        say.say(f"table       {folder / 'blur_search.csv'}")
        say.say(f"report      {page}")
    return SearchResult(table, page)


def gflop(trained: Any, num_levels: int) -> float:
    """GFLOP of the matrix products of a search, per image."""
    name = trained.config.model.name
    count = lookup.function("models", name, "flops_per_image", "config.model.name")
    return num_levels * count(trained.network.model, 0.0, training=False) / 1e9


def _write_page(path: Path, config: Any, trained: Any, index: Any, table: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    labels = index.source.labels
    pictures = {"Sigma of the set": report.png(search_figures.histogram(table, labels))}
    (path.parent / "histogram.png").write_bytes(pictures["Sigma of the set"])
    numbers = np.unique(np.linspace(0, len(index) - 1, STRIPS).astype(int)).tolist()
    images = [index.source.read(number) for number in numbers]
    network = api.of(trained)
    views = [
        api.reconstruct(network, images, mask_ratio=0.0, level=int(level)) for level in table.levels
    ]
    for place, number in enumerate(numbers):
        figure = search_figures.strip(
            views[0]["clean"][place],
            np.stack([view["degraded"][place] for view in views]),
            np.stack([view["reconstructed"][place] for view in views]),
            table,
            number,
        )
        pictures[index.source.names[number]] = report.png(figure)
    seconds = f"{table.seconds:.1f} s" if table.searched else "looked up"
    facts = {
        "images": len(index),
        "network": config.init_from,
        "degradation": trained.config.task.degrade,
        "levels tried": ", ".join(f"{s:g}" for s in table.sigmas) + " (sigma)",
        "searched now": f"{table.searched} images, {seconds}",
        "GFLOP per image": f"{gflop(trained, len(table.levels)):.2f}",
        "mean sigma": f"{table.best_sigma.mean():.3f}",
    }
    parts = [
        report.head(f"{path.parent.parent.resolve().name}: optimal blurriness search"),
        report.table_of(facts),
        "<p class=note>For every image the level whose reconstruction, nothing masked, is nearest to "
        "the original; the smallest at a tie. No label is used.</p>",
    ]
    for name, data in pictures.items():
        parts += [f"<h2>{html.escape(name)}</h2>", report.embedded(data, name)]
    path.write_text("\n".join([*parts, "</html>"]), encoding="utf-8")
