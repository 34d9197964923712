"""Classify hand-made features by logistic regression, and add the row to a study: what a network should beat.

    pip install scikit-image  # not among the requirements of a run
    python -m benchmarks.hand_made_features --root=busbra.csv --study=runs/methods_busbra

The features of an image are its histogram of oriented gradients, of local binary patterns and of gray levels, and a
thumbnail. The strength of the regularisation is chosen by cross-validation over the patients of the training images;
the test images are judged once. ROOT is the CSV or folder that the study was fine-tuned on, with a test split; if the
study has folds, the name of its lists with {fold} in it.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from deblur_mae_jax.config import finetuning
from deblur_mae_jax.data import dataset
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.reports import study

NAME = "hand-made features"
SIDE, STRENGTHS = 128, (1e-4, 1e-3, 1e-2, 1e-1)


def features(image):
    """`(H, W)` gray levels 0..255 -> a vector."""
    from PIL import Image
    from skimage.feature import hog, local_binary_pattern

    picture = Image.fromarray(image)
    small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    gradients = hog(small / 255, orientations=8, pixels_per_cell=(16, 16), cells_per_block=(2, 2))
    patterns = [
        np.histogram(local_binary_pattern(small, 8, radius, "uniform"), bins=10, range=(0, 10))[0] / small.size
        for radius in (1, 3)
    ]
    levels = np.histogram(small, bins=32, range=(0, 256))[0] / small.size
    thumbnail = np.asarray(picture.resize((12, 12), Image.Resampling.BOX)).ravel() / 255
    return np.concatenate([gradients, *patterns, levels, thumbnail])


def read(root):
    """(features, labels, groups, splits, names) of a set, its classes in alphabetical order."""
    config = finetuning()
    config.data.root = str(Path(root).expanduser().resolve())
    config.data.name = "manifest" if str(root).endswith(".csv") else config.data.name
    config.data.split, config.model.in_chans = "all", 1
    source = dataset.load_source(inherit.resolve(config)[0])
    if source.splits is None or "test" not in source.splits:
        raise UserError(f"--root: '{root}' has no test split")
    x = np.stack([features(source.read(i)[..., 0]) for i in range(len(source.names))])
    names = np.array(source.names)
    groups = names if source.groups is None else np.where(np.array(source.groups) == "", names, source.groups)
    return x, np.array(source.labels), groups, np.array(source.splits), names


def classifier(x, labels, groups):
    """Logistic regression with the strength that cross-validation over patients prefers, by AUROC."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(x, labels, groups)
    search = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, scoring="roc_auc_ovr", cv=list(folds))
    return search.fit(x, labels)


def row_of(root, like):
    """The predictions for the test images of `like`, a network of the study that was fine-tuned on `root`."""
    x, labels, groups, splits, names = read(root)
    test = splits == "test"
    model = classifier(x[~test], labels[~test], groups[~test])
    p = model.predict_proba(x[test])
    place = {name: i for i, name in enumerate(names[test])}
    missing = sorted(set(like.images) - set(place))
    if missing:
        raise UserError(f"--root: '{root}' has no test image '{missing[0]}', which the study has")
    order = np.array([place[name] for name in like.images])
    found = list(model.best_estimator_.classes_)
    if not like.classes or set(found) != set(like.classes):
        raise UserError(f"--root: '{root}' is trained on the classes {found}; the study has {like.classes}")
    columns = {"label": np.array([float(like.classes.index(name)) for name in labels[test][order]])}
    columns |= {f"p_{name}": p[order, found.index(name)] for name in like.classes}
    chosen = model.best_params_["logisticregression__C"]
    print(f"fold {like.fold}: C = {chosen:g}, {x.shape[1]} features, {test.sum()} test images", flush=True)
    return study.Network(NAME, "", 0, like.fold, like.images, like.groups, columns)


def main():
    """Fit, predict, add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CSV or folder of the study's labelled images")
    parser.add_argument("--study", required=True, help="folder of a finished study")
    a = parser.parse_args()
    folder = Path(a.study).expanduser()
    networks, facts = study.kept(folder)
    networks = [n for n in networks if n.method != NAME]
    like = {n.fold: n for n in networks}
    rows = [row_of(a.root.replace("{fold}", str(fold)), like[fold]) for fold in sorted(like)]
    # They are fitted on the images that the networks learn from, whose copies among the test images help them, too.
    leakage = any(about["leakage"] for name, about in facts["methods"].items() if name != NAME)
    facts["methods"][NAME] = {"state": "run", "leakage": leakage, "paper": {}, "fixed": True}
    networks += rows
    study.keep(networks, facts, folder)
    print(study.write(networks, facts, folder))


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        sys.exit(f"error: {problem}")
