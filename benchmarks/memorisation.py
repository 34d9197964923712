"""Does a pre-trained decoder redraw text that was burned into its training images?

    python -m benchmarks.memorisation --steps=4000 --output=memorisation.json

Half of the simulated training images carry a text of their patient, six random characters; as many images of other
patients, whose texts the network has never seen, are the control. All patches with text are hidden, and the decoder
predicts them. If it has memorised, its error is lower on the texts of its training images (AUC above 50 %), and its
prediction is nearer to the right text than to those of the others. A second network is trained without the images that
`scripts/find_text.py` lists (`--guard`, needs the `ocr` extra).
"""

import argparse
import csv
import string
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import deblur_mae_jax as dm
from benchmarks import common
from deblur_mae_jax.data.phantoms import Phantoms
from deblur_mae_jax.metrics import statistics, weighted
from deblur_mae_jax.models import masking

SIDE, PLACE, FONT = 96, (8, 8), 16


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120, help="training images with text, and without, and controls")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--guard", action="store_true", help="also train without the images that find_text.py lists")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="fields of the pre-training")
    parser.add_argument("--output", default="")
    return parser.parse_args()


def written(picture, text):
    """A picture `(H, W)` with white text on black in its corner."""
    image = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=FONT)
    left, top, right, bottom = draw.textbbox(PLACE, text, font=font)
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=0)
    draw.text(PLACE, text, fill=255, font=font)
    return np.asarray(image)


def patients(count, seed):
    """`count` pictures without text, the same with it, the texts, and the patients."""
    source, rng = Phantoms(count, seed=seed, side=SIDE, views_per_patient=2), np.random.default_rng(seed)
    numbers = np.array([source.patient(i) for i in range(count)])
    letters = list(string.ascii_uppercase + string.digits)
    texts = ["".join(rng.choice(letters, 6)) for _ in range(numbers.max() + 1)]
    plain = [source.read(i)[..., 0] for i in range(count)]
    marked = [written(picture, texts[number]) for picture, number in zip(plain, numbers, strict=True)]
    return plain, marked, np.array([texts[number] for number in numbers]), numbers


def train(folder, workdir, a):
    """Pre-train a small MAE on the pictures in a folder."""
    fields = {
        "data.root": folder, "data.name": "image_folder", "task.degrade": "none", "model.conditioning": "none",
        "task.mask_ratio": 0.75, "model.depth": 2, "optim.steps": a.steps, "optim.batch_size": a.batch,
        "optim.base_lr": 1.2e-2, "report.every_epochs": 1e6, "report.eval_split": "", "report.num_images": 2,
        "report.num_eval_images": 4, "checkpoint.every_epochs": 1e6, "log.tensorboard": False,
    } | dict(item.split("=", 1) for item in a.set)  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    line = [sys.executable, "main.py", "--config=configs/quickstart.py", f"--workdir={workdir}", *flags]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return dm.load(workdir)


def predicted(trained, plain, marked):
    """(predictions, truth) of the patches with text, `(N, M, P*P*C)` each."""
    import jax

    model = trained.model
    x, without = dm.prepare(trained, marked), dm.prepare(trained, plain)
    patches, clean = (np.asarray(masking.patchify(v, model.patch_size)) for v in (x, without))
    text = (np.abs(patches - clean).max(axis=2) > 1e-3).any(axis=0)
    noise = np.broadcast_to(np.where(text, 1.0, 0.0) + np.linspace(0, 0.5, len(text)), patches.shape[:2])
    call = lambda images, noise: model.apply(
        {"params": trained.params}, images, noise=noise, mask_ratio=float(text.mean())
    )  # fmt: skip
    out, more = jax.jit(call)(x, noise.astype(np.float32))
    assert (np.asarray(more["mask"]) == text).all()
    goal = patches
    if trained.network.task.norm_pix_loss:
        goal = (goal - goal.mean(axis=2, keepdims=True)) / np.sqrt(goal.var(axis=2, ddof=1, keepdims=True) + 1e-6)
    return np.asarray(out)[:, text], goal[:, text]


def judged(trained, seen, unseen):
    """AUC of the error for membership, with its interval over patients, and how often the right text is the nearest."""
    errors, named = [], []
    for plain, marked, texts, _ in (seen, unseen):
        pred, goal = predicted(trained, plain, marked)
        errors.append(((pred - goal) ** 2).mean(axis=(1, 2)))
        apart = ((pred[:, None] - goal[None]) ** 2).mean(axis=(2, 3))
        named.append(float((texts[apart.argmin(axis=1)] == texts).mean()))
    labels = np.repeat([1, 0], [len(e) for e in errors])
    score = -np.concatenate(errors)
    p = np.stack([-score, score], axis=1)
    groups = np.array([f"{part}-{number}" for part, found in enumerate((seen, unseen)) for number in found[3]])
    auc = float(weighted.MEASURES["auroc"](labels, p, np.ones((1, len(labels))))[0])
    interval = statistics.over_patients(labels, p, groups, weighted.MEASURES["auroc"])
    return {
        "auc": auc, "low": interval.low, "high": interval.high, "error_seen": float(errors[0].mean()),
        "error_unseen": float(errors[1].mean()), "named_seen": named[0], "named_unseen": named[1],
        "by_chance": 1 / len(set(seen[2])),
    }  # fmt: skip


def listed(folder, workdir):
    """The names of the images in which text is found."""
    table = workdir / "text.csv"
    line = [sys.executable, "scripts/find_text.py", str(folder), f"--output={table}"]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    with open(table, newline="", encoding="utf-8") as file:
        return {Path(row["image"]).name for row in csv.DictReader(file)}


def main():
    """Measure, print, write JSON."""
    a, rows = parse(), {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        seen, unseen, others = patients(a.images, 1), patients(a.images, 2), patients(a.images, 3)
        folder = place / "images"
        folder.mkdir()
        for name, pictures in (("marked", seen[1]), ("plain", others[0])):
            for i, picture in enumerate(pictures):
                Image.fromarray(picture).save(folder / f"{name}_{i:04d}.png")
        rows["all images"] = judged(train(folder, place / "all", a), seen, unseen)
        if a.guard:
            found = listed(folder, place)
            for name in found:
                (folder / name).unlink()
            row = judged(train(folder, place / "guarded", a), seen, unseen)
            marked = sum(name.startswith("marked") for name in found)
            rows["without what find_text.py lists"] = row | {"listed": marked, "listed_wrongly": len(found) - marked}
    for name, row in rows.items():
        print(f"{name}: AUC {row['auc']:.3f} ({row['low']:.3f} to {row['high']:.3f}), right text nearest "
              f"{row['named_seen']:.1%} of seen, {row['named_unseen']:.1%} of unseen, {row['by_chance']:.1%} by chance",
              flush=True)  # fmt: skip
    common.write(a.output, "memorisation", __doc__.splitlines()[0], {**vars(a), "rows": rows})


if __name__ == "__main__":
    main()
