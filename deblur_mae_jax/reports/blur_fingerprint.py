"""The blur fingerprint of sites: how the optimal blur of their images is distributed, and how far sites are apart.

The optimal blurriness search of D2MAE (eq. 4 and 5) finds a sigma for every image. Its distribution differs between
scanners, presets and hospitals, so that distances between the distributions of sites describe a domain shift.
"""

from __future__ import annotations

import csv
import dataclasses
import html
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import wasserstein_distance

from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.metrics import statistics
from deblur_mae_jax.reports import page

RESAMPLES = 1000
MAX_SITES = 12


@dataclasses.dataclass(frozen=True)
class Distance:
    """The Wasserstein distance between two sites, in pixels of sigma.

    low, high: 95 % interval by resampling patients within both sites.
    chance: distance that 95 % of random divisions of the same patients stay below.
    p: share of these divisions with at least this distance, adjusted for the number of pairs by Holm's method.
    """

    first: str
    second: str
    value: float
    low: float
    high: float
    chance: float
    p: float

    @property
    def differs(self) -> bool:
        """Whether the distance is larger than chance, at the 5 % level over all pairs."""
        return self.p < 1 - statistics.LEVEL


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the table of a blur search. Raises `UserError`."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"RUN: '{path}' cannot be read: {error.strerror}; run configs/blur_search.py first") from error
    if not rows or "sigma" not in rows[0]:
        raise UserError(f"RUN: '{path}' is not the table of a blur search")
    return rows


def sites_of(rows: Sequence[dict[str, str]], by: str) -> list[str]:
    """The site of every image. Raises `UserError`.

    by: "folder" (the first folder of its name), or a column of the table: "label", "group", "scanner", ...
    """
    if by == "folder":
        return [row["image"].split("/")[0] if "/" in row["image"] else "no folder" for row in rows]
    columns = [name for name in rows[0] if name not in ("image", "level", "sigma") and not name.startswith("loss_")]
    if by not in columns:
        raise unknown("--by", by, ["folder", *columns])
    return [row[by] or "not stated" for row in rows]


def distances(
    sigma: np.ndarray, sites: Sequence[str], patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> list[Distance]:
    """The distance between every two sites, with an interval over patients.

    sigma: optimal sigma of every image `(N,)`, pixels.
    sites, patients: of every image; "" for an image that is a patient of its own.
    """
    names = [patient or f"image {i}" for i, patient in enumerate(patients)]
    by_site: dict[str, dict[str, list[float]]] = {}
    for value, site, name in zip(sigma, sites, names, strict=True):
        by_site.setdefault(site, {}).setdefault(name, []).append(float(value))
    ordered = sorted(by_site, key=lambda site: -sum(map(len, by_site[site].values())))[:MAX_SITES]
    random = np.random.default_rng(seed)
    found = [
        _between(a, b, list(by_site[a].values()), list(by_site[b].values()), (resamples, random))
        for a, b in itertools.combinations(ordered, 2)
    ]
    adjusted = statistics.holm([d.p for d in found])
    return [dataclasses.replace(d, p=p) for d, p in zip(found, adjusted, strict=True)]


def _between(
    first: str,
    second: str,
    left: list[list[float]],
    right: list[list[float]],
    sampling: tuple[int, np.random.Generator],
) -> Distance:
    resamples, random = sampling
    flat = lambda groups: np.concatenate([np.asarray(g) for g in groups])
    value = wasserstein_distance(flat(left), flat(right))
    draw = lambda groups: [groups[i] for i in random.integers(0, len(groups), len(groups))]
    drawn = [wasserstein_distance(flat(draw(left)), flat(draw(right))) for _ in range(resamples)]
    both = left + right
    shuffled = []
    for _ in range(resamples):
        order = random.permutation(len(both))
        parts = [both[i] for i in order[: len(left)]], [both[i] for i in order[len(left) :]]
        shuffled.append(wasserstein_distance(flat(parts[0]), flat(parts[1])))
    low, high = np.percentile(drawn, [2.5, 97.5])
    at_least = sum(other >= value - 1e-12 for other in shuffled)
    p = (1 + at_least) / (1 + resamples)
    return Distance(first, second, float(value), float(low), float(high), float(np.percentile(shuffled, 95)), p)


def figure(sigma: np.ndarray, sites: Sequence[str]) -> Figure:
    """The histogram of every site, as shares of its images."""
    names, counts = np.unique(np.asarray(sites), return_counts=True)
    names = names[np.argsort(-counts)][:MAX_SITES]
    levels = np.unique(sigma)
    out = Figure(figsize=(7, 1.0 + 1.1 * len(names)), layout="constrained")
    axes = out.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    step = float(np.diff(levels).min()) if len(levels) > 1 else 0.1
    for axis, name in zip(axes, names, strict=True):
        own = sigma[np.asarray(sites) == name]
        axis.bar(levels, [(own == level).mean() for level in levels], width=0.8 * step, color="#4477aa")
        axis.axvline(own.mean(), color="#cc3311", linewidth=1)
        axis.set_ylabel(f"{name[:18]}\n{len(own)}", rotation=0, ha="right", va="center")
    axes[-1].set_xlabel("optimal sigma, pixels (red: mean)")
    out.suptitle("Share of the images of each site by optimal blur", fontsize=11)
    return out


def write(folder: Path, title: str, rows: list[dict[str, str]], by: str, resamples: int = RESAMPLES) -> list[Distance]:
    """Write `index.html` and `distances.csv` into `folder`. Raises `UserError` if there is only one site."""
    sigma = np.array([float(row["sigma"]) for row in rows])
    sites = sites_of(rows, by)
    if len(set(sites)) < 2:
        raise UserError(f"--by={by}: all images are of one site, '{sites[0]}'")
    patients = [row.get("group", "") for row in rows]
    found = distances(sigma, sites, patients, resamples)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "distances.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["first", "second", "distance", "low", "high", "by_chance", "p"])
        out.writerows(
            [d.first, d.second, *(f"{x:.4f}" for x in (d.value, d.low, d.high, d.chance, d.p))] for d in found
        )
    body = "".join(
        f"<tr><td>{html.escape(d.first)}</td><td>{html.escape(d.second)}</td><td class=n>{d.value:.3f}</td>"
        f"<td class=n>{d.low:.3f} to {d.high:.3f}</td><td class=n>{d.chance:.3f}</td><td class=n>{d.p:.3f}</td>"
        f"<td>{'differs' if d.differs else 'within chance'}</td></tr>"
        for d in sorted(found, key=lambda d: -d.value)
    )
    names = ("site", "site", "distance", "95 % interval", "by chance", "p (Holm)", "")
    head = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    unit = "patients" if any(patients) else "images (no patients are known)"
    page.write(folder, title, [
        f"<p>{len(rows)} images of {len(set(sites))} sites ({html.escape(by)}).</p>",
        page.embedded(page.png(figure(sigma, sites)), "histograms"),
        "<h2>Distances between sites</h2>",
        f"<table>{head}<tbody>{body}</tbody></table>",
        "<p class=note>Wasserstein distance between the distributions of the optimal sigma, in pixels. The interval "
        f"comes from {resamples} resamples of {unit} within both sites. It describes the distance, which is never "
        "negative, and does not test it. 95 % of the random divisions of the same patients into two sites of the same "
        "sizes stay below the distance by chance. p is the share of the divisions with at least the distance found, "
        "adjusted for the number of pairs; below 0.05 the sites differ.</p>",
        *([f"<p class=note>The {MAX_SITES} largest sites are compared.</p>"] if len(set(sites)) > MAX_SITES else []),
    ])  # fmt: skip
    return found
