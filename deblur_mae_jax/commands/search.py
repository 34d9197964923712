"""The blur search as a separate run: `main.py --config=configs/blur_search.py`."""

from __future__ import annotations

import contextlib
import dataclasses
import html
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import api, sharding
from deblur_mae_jax.config import flat, without_effect
from deblur_mae_jax.data import dataset
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.index import Index
from deblur_mae_jax.data.source import BadImage, Skipped
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference import blur_search
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.reports import blur_search as report
from deblur_mae_jax.reports import page
from deblur_mae_jax.training.progress import Progress
from deblur_mae_jax.workdir import lock, run_folder
from deblur_mae_jax.workdir.run_folder import Workdir

STRIPS = 6


@dataclasses.dataclass
class SearchResult:
    """The result of a blur search."""

    table: blur_search.Table
    report: Path


def run(config: ConfigDict, workdir: str | Path, dry_run: bool = False) -> SearchResult:
    """Search the images of `config.data` with the network of `config.init_from`.

    Writes `blur_search.csv` and a page with D2MAE's figure 3. Raises `UserError`.
    """
    if dry_run:
        raise UserError("--dry_run: a blur search trains nothing; run it on a few images instead")
    folder = Workdir(workdir)
    with lock.hold(folder):
        return _search(config, folder)


def _require_searcher(trained: TrainedNetwork, name: str) -> None:
    """Raise `UserError` if the network does not reconstruct whole images."""
    if trained.network.kind != "reconstruct":
        raise UserError(f"config.init_from: '{name}' has no decoder; name a pre-training run")
    if trained.network.task.sample is not None:
        raise UserError(
            f"config.init_from: '{name}' is a DiffMAE, which changes only masked patches and so "
            "reconstructs every level of blur equally well; name a run of D2MAE"
        )


def _search(config: ConfigDict, folder: Workdir) -> SearchResult:
    progress = Progress()
    config, source, lines = inherit.resolve(config)
    trained = inherit.require_source(source, "a blur search")
    _require_searcher(trained, config.init_from)
    blur_search.check_high_pass(config.search.high_pass)
    setting = blur_search.parse(config.search.setting, trained.network.inputs.degradation)
    if setting is None or setting.kind != "search":
        raise UserError(
            f"config.search.setting={config.search.setting} searches nothing: the network of "
            f"config.init_from was trained with '{trained.config.task.degrade}'. Choices: search(step), "
            "with a network trained with levels of blur (D2MAE)"
        )
    sharding.require_same(config=flat(config), commit=run_folder.git_state() if jax.process_count() > 1 else None)
    run_folder.claim(folder, config)
    for line in [*lines, *without_effect(config)]:
        progress.print(line)
    first = jax.process_index() == 0
    index = dataset.build_index(
        config,
        folder.index() if first else None,
        progress=lambda done, total: progress.update(f"checking images: {done} of {total}"),
        check="pixels",
    )
    if first:
        data_index.write_skipped(folder.skipped, index.skipped)
    table = blur_search.search(
        trained,
        index,
        sharding.make_mesh(),
        step=setting.step,
        high_pass=config.search.high_pass,
        batch_size=config.search.batch_size,
        cache=config.search.cache,
        num_threads=config.data.num_threads,
        show=lambda done, total: progress.update(f"blur search: {done} of {total} images"),
    )
    table, lost = _readable(table)
    if first:
        if lost:
            reason = "it could not be read any more during the search"
            data_index.write_skipped(folder.skipped, [*index.skipped, *(Skipped(name, reason) for name in lost)])
            progress.print(f"{len(lost)} images could not be read any more, see {folder.shown(folder.skipped)}")
        if not table.names:
            raise UserError("config.data.root: none of the images can be read any more")
        _write(folder, config, trained, index, table)
        for line in _summary(trained, table, len(index)):
            progress.print(line)
        progress.print(f"table       {folder.shown(folder.blur_search)}")
        progress.print(f"report      {folder.shown(folder.page)}")
    return SearchResult(table, folder.page)


def _summary(trained: TrainedNetwork, table: blur_search.Table, asked: int) -> list[str]:
    """asked: number of images of the set."""
    rate = ""
    if table.searched:
        images = table.searched / table.seconds
        rate = f", {images:.1f} images/s, {images * gflop(trained, len(table.levels)):.1f} GFLOP/s"
    counts = {f"{s:g}": int((table.best_sigma == s).sum()) for s in table.sigmas}
    return [
        f"searched {table.searched} images{rate}; {asked - table.searched} looked up",
        "images for each best sigma: " + ", ".join(f"{n} at {s}" for s, n in counts.items()),
    ]


def _write(
    folder: Workdir, config: ConfigDict, trained: TrainedNetwork, index: Index, table: blur_search.Table
) -> None:
    """Write the table and the page."""
    places = {name: place for place, name in enumerate(index.source.names)}
    rows = [places[name] for name in table.names]
    of = index.source
    known = {"label": of.labels, "group": of.groups, "scanner": of.scanners}
    table.write(
        folder.blur_search,
        {name: [values[row] for row in rows] for name, values in known.items() if values is not None},
    )
    _write_page(folder, config, trained, index, table, rows)


def _readable(table: blur_search.Table) -> tuple[blur_search.Table, list[str]]:
    """The table without images that have no losses, because they could not be read, and their names."""
    kept = np.flatnonzero(~np.isnan(table.losses).any(axis=1))
    lost = sorted(set(table.names) - {table.names[row] for row in kept})
    names = [table.names[row] for row in kept]
    return dataclasses.replace(table, names=names, losses=table.losses[kept]), lost


def gflop(trained: TrainedNetwork, num_levels: int) -> float:
    """GFLOP of the matrix products of a search, per image."""
    return num_levels * trained.network.forward_flops / 1e9


def _write_page(
    workdir: Workdir,
    config: ConfigDict,
    trained: TrainedNetwork,
    index: Index,
    table: blur_search.Table,
    rows: list[int],
) -> None:
    """rows: the place of each image of the table in the index."""
    folder = workdir.make_report()
    labels = index.source.labels
    labels = None if labels is None else [labels[row] for row in rows]
    histogram = page.figures(folder, {"histogram.png": report.histogram(table, labels)})
    figures = {"Sigma of the set": histogram["histogram.png"]}
    numbers, images = [], []
    for number in np.unique(np.linspace(0, len(rows) - 1, STRIPS).astype(int)).tolist():
        with contextlib.suppress(BadImage, OSError):  # a strip less
            images.append(index.source.read(rows[number]))
            numbers.append(number)
    views = [api.reconstruct(trained, images, mask_ratio=0.0, level=int(level)) for level in table.levels if images]
    for row, number in enumerate(numbers):
        strip = report.strip(
            views[0]["clean"][row],
            np.stack([view["degraded"][row] for view in views]),
            np.stack([view["reconstructed"][row] for view in views]),
            table,
            number,
        )
        figures[table.names[number]] = page.png(strip)
    seconds = f"{table.seconds:.1f} s" if table.searched else "looked up"
    facts = {
        "images": len(rows),
        "network": config.init_from,
        "degradation": trained.config.task.degrade,
        "levels tried": ", ".join(f"{s:g}" for s in table.sigmas) + " (sigma)",
        "searched now": f"{table.searched} images, {seconds}",
        "GFLOP per image": f"{gflop(trained, len(table.levels)):.2f}",
        "mean sigma": f"{table.best_sigma.mean():.3f}",
    }
    sigma = config.search.high_pass
    compared = f" in what a Gaussian of sigma {sigma:g} removes (config.search.high_pass)" if sigma else ""
    page.write(folder, f"{workdir.name}: optimal blurriness search", [
        page.table_of(facts),
        "<p class=note>The best level of an image is the one whose unmasked reconstruction is closest to "
        f"the original{compared}; at a tie, the smallest level. The search uses no labels.</p>",
        *(f"<h2>{html.escape(name)}</h2>{page.embedded(data, name)}" for name, data in figures.items()),
    ])  # fmt: skip
