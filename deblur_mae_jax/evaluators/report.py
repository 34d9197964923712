"""The pictures and the page of a run, readable offline."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

GAP = 6
MAX_SHEETS = 10  # on one page; all of them stay beside it as files
MEANING = {
    "eval_loss": "loss on the evaluation images",
    "eval_loss_of_mean": "the same if each image were predicted by its mean",
    "psnr_degraded": "PSNR of the degraded input (dB)",
    "psnr_restored": "PSNR of its reconstruction, nothing masked (dB)",
    "ssim_degraded": "SSIM of the degraded input",
    "ssim_restored": "SSIM of its reconstruction, nothing masked",
}
COLUMNS = {
    "clean": "clean",
    "degraded": "degraded input",
    "masked": "visible patches",
    "reconstructed": "reconstructed",
    "difference": "|difference| x 2",
    "restored": "nothing masked",
}


def _tile(array: np.ndarray, height: int) -> Image.Image:
    array = np.rint(np.clip(array, 0, 255)).astype(np.uint8)
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
    if height != image.height:
        width = round(image.width * height / image.height)
        image = image.resize((width, height), Image.Resampling.NEAREST)
    return image


def sheet(
    rows: list[list[np.ndarray]], columns: list[str], labels: list[str], tile: int = 0
) -> Image.Image:
    """A labelled table of pictures `(H, W, C)` in grey levels; small ones are enlarged whole times."""
    side = rows[0][0].shape[0]
    tile = tile or side * max(1, round(144 / side))
    font = ImageFont.load_default(size=13)
    lines = [label.split("\n") for label in labels]
    margin = max((int(font.getlength(part)) for parts in lines for part in parts), default=0)
    margin += 2 * GAP if margin else GAP
    width = margin + len(columns) * (tile + GAP)
    out = Image.new("RGB", (width, 26 + len(rows) * (tile + GAP)), "white")
    draw = ImageDraw.Draw(out)
    for c, name in enumerate(columns):
        draw.text((margin + c * (tile + GAP), 6), name, fill="black", font=font)
    for r, row in enumerate(rows):
        top = 26 + r * (tile + GAP)
        draw.multiline_text((GAP, top + 4), labels[r], fill="black", font=font)
        for c, picture in enumerate(row):
            out.paste(_tile(picture, tile), (margin + c * (tile + GAP), top))
    return out


def gallery(pictures: list[np.ndarray], labels: list[str], columns: int, tile: int) -> Image.Image:
    """Pictures `(H, W, C)` in grey levels, `tile` pixels high, each with its label above it."""
    font = ImageFont.load_default(size=13)
    rows = -(-len(pictures) // columns)
    tiles = [_tile(picture, tile) for picture in pictures]
    wide = max(image.width for image in tiles)
    out = Image.new("RGB", (columns * (wide + GAP) + GAP, rows * (tile + 26) + GAP), "white")
    draw = ImageDraw.Draw(out)
    for number, (image, label) in enumerate(zip(tiles, labels, strict=True)):
        x, y = GAP + number % columns * (wide + GAP), number // columns * (tile + 26)
        draw.text((x, y + 7), label, fill="black", font=font)
        out.paste(image, (x, y + 26))
    return out


def reconstruction_sheet(
    arrays: dict[str, np.ndarray], count: int, names: list[str], num_levels: int, step_size: float
) -> Image.Image:
    """Clean, degraded, masked, reconstructed and |difference| of the first `count` images."""
    rows, labels = [], []
    for i in range(min(count, len(arrays["clean"]))):
        pictures = {k: arrays[k][i] for k in COLUMNS if k in arrays}
        pictures["difference"] = 2 * np.abs(pictures["reconstructed"] - pictures["clean"])
        rows.append([pictures[k] for k in COLUMNS])
        label = Path(names[i]).stem[:16]
        if num_levels:
            level = int(arrays["level"][i])
            label += f"\nlevel {level}/{num_levels}"
            if step_size:
                label += f"\nsigma {level * step_size:.1f}"
        labels.append(label)
    return sheet(rows, list(COLUMNS.values()), labels)


def loss_figure(lines: list[dict[str, Any]]) -> Figure:
    """Training and evaluation loss, learning rate, and PSNR against the step."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)

    def curve(axis, key, **style):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), label=key.replace("_", " "), **style)

    curve(left, "loss", lw=0.8, color="tab:blue")
    curve(left, "eval_loss", marker="o", ms=3, color="tab:orange")
    curve(left, "eval_loss_of_mean", ls="--", color="gray")
    left.set(title="loss", xlabel="step", yscale="log")
    curve(middle, "learning_rate", color="tab:green")
    middle.set(title="learning rate", xlabel="step")
    curve(right, "psnr_degraded", ls="--", color="gray")
    curve(right, "psnr_restored", marker="o", ms=3, color="tab:red")
    right.set(title="PSNR (dB), nothing masked", xlabel="step")
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def png_of(image: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def embedded(data: bytes, alt: str) -> str:
    """A picture inside a page."""
    code = base64.b64encode(data).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{code}">'


def table_of(values: dict[str, Any]) -> str:
    """Two columns: what, and its value."""
    rows = "".join(
        f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>"
        for k, v in values.items()
    )
    return f"<table>{rows}</table>"


STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:1rem auto;padding:0 1rem;color:#222}
img{max-width:100%;height:auto;border:1px solid #ddd}
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.1rem}
table{border-collapse:collapse;display:block;overflow-x:auto}
th,td{text-align:left;padding:.15rem .8rem .15rem 0;border-bottom:1px solid #eee;font-weight:400}
thead th{color:#222;font-weight:600}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.warn{background:#fff3cd;border-left:4px solid #d39e00;padding:.5rem .8rem}.note{color:#555}
details{margin:.5rem 0}summary{cursor:pointer}
"""


def head(title: str) -> str:
    """The beginning of a page."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"
    )


def write(
    folder: Path,
    *,
    title: str,
    facts: dict[str, Any],
    latest: dict[str, Any],
    lines: list[dict[str, Any]],
    sheets: list[tuple[int, Path]],
    config: dict[str, Any],
    skipped: int,
) -> Path:
    """`index.html` with everything inside it; the newest reconstructions first."""
    if len(sheets) > MAX_SHEETS:  # the newest, and earlier ones evenly spaced
        chosen = np.linspace(0, len(sheets) - 1, MAX_SHEETS).round().astype(int)
        sheets = [sheets[i] for i in chosen]
    curves = png(loss_figure(lines))
    (folder / "loss.png").write_bytes(curves)
    parts = [head(title), table_of(facts)]
    if skipped:
        parts.append(f"<p>{skipped} files were not used: see <code>skipped.csv</code>.</p>")
    if latest:
        named = {MEANING.get(k, k): f"{v:.4f}" for k, v in latest.items()}
        parts += ["<h2>Evaluation</h2>", table_of(named)]
    parts += ["<h2>Curves</h2>", embedded(curves, "loss, learning rate, PSNR")]
    for number, (step, path) in enumerate(reversed(sheets)):
        picture = embedded(path.read_bytes(), f"reconstructions at step {step}")
        heading = f"Reconstructions at step {step}"
        if number == 0:
            parts.append(f"<h2>{heading}</h2>{picture}")
        else:
            parts.append(f"<details><summary>{heading}</summary>{picture}</details>")
    parts.append(f"<details><summary>Config</summary>{table_of(config)}</details></html>")
    path = folder / "index.html"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path
