"""The blur fingerprint of sites: distances are those of scipy, chance is chance, and the page says so."""

import csv
import sys

import numpy as np
import pytest
import tiny
from scipy.stats import wasserstein_distance

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.reports import blur_fingerprint

LEVELS = np.round(np.arange(0.3, 2.2, 0.2), 1)


def table(folder, shift=0.6, images=120):
    """Two sites whose optimal blur differs by about `shift` pixels; patients of three images."""
    random = np.random.default_rng(0)
    with open(folder / "blur_search.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image", "level", "sigma", "loss_1", "group", "scanner"])
        for i in range(images):
            site = i % 2
            patient = random.normal(0.8 + shift * site, 0.15)
            sigma = LEVELS[np.abs(LEVELS - patient).argmin()]
            out.writerow(
                [f"{'north' if site else 'south'}/{i}.png", 1, sigma, 0.1, f"p{i // 6}{site}", ("A", "B")[site]]
            )
    return folder


def test_sites_that_differ_and_sites_that_do_not(tmp_path):
    rows = blur_fingerprint.read(table(tmp_path) / "blur_search.csv")
    sigma = np.array([float(row["sigma"]) for row in rows])
    sites = blur_fingerprint.sites_of(rows, "folder")
    (found,) = blur_fingerprint.distances(sigma, sites, [row["group"] for row in rows], 200)
    south = np.array([s == "south" for s in sites])
    assert found.value == pytest.approx(wasserstein_distance(sigma[south], sigma[~south]))
    assert found.low < found.value < found.high and found.differs and found.chance < 0.4
    random = np.random.default_rng(1).permutation(sites).tolist()
    (none,) = blur_fingerprint.distances(sigma, random, [""] * len(rows), 200)
    assert not none.differs


def test_the_page(tmp_path, capsys):
    sys.path.insert(0, str(tiny.ROOT / "scripts"))
    import blur_fingerprint as script

    (found,) = script.main([str(table(tmp_path)), "--by=scanner"])
    page = (tmp_path / "fingerprint" / "index.html").read_text()
    assert {found.first, found.second} == {"A", "B"} and "differs" in page and "resamples of patients" in page
    assert "differs" in capsys.readouterr().out
    assert len((tmp_path / "fingerprint" / "distances.csv").read_text().splitlines()) == 2
    rows = ["image,site"] + [f"{'north' if i % 2 else 'south'}/{i}.png,{i % 3}" for i in range(120)]
    (tmp_path / "sites.csv").write_text("\n".join(rows) + "\n")
    assert len(script.main([str(tmp_path), "--by=site", f"--table={tmp_path / 'sites.csv'}"])) == 3
    with pytest.raises(UserError, match=r"no row for 1 images, the first 'south/0.png'"):
        (tmp_path / "sites.csv").write_text("\n".join([rows[0], *rows[2:]]) + "\n")
        script.main([str(tmp_path), "--by=site", f"--table={tmp_path / 'sites.csv'}"])


def test_bad_input_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        blur_fingerprint.read(tmp_path / "nothing.csv")
    rows = blur_fingerprint.read(table(tmp_path) / "blur_search.csv")
    with pytest.raises(UserError, match="--by: unknown name 'hospital'"):
        blur_fingerprint.sites_of(rows, "hospital")
    (tmp_path / "empty.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not the table of a blur search"):
        blur_fingerprint.read(tmp_path / "empty.csv")
    one = [row | {"scanner": "A"} for row in rows]
    with pytest.raises(UserError, match="all images are of one site, 'A'"):
        blur_fingerprint.write(tmp_path / "page", "title", one, "scanner")
