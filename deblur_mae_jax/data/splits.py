"""Split the images into training, validation and test sets.

Splits are named by the source or drawn here. A drawn split never divides a patient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from deblur_mae_jax.data import spelling
from deblur_mae_jax.data.index import require_some
from deblur_mae_jax.data.source import Checked, Skipped, Source, subset
from deblur_mae_jax.errors import UserError, counted, did_you_mean

SPLITS = ("train", "val", "test")
# The class of every image in a segmentation task, whose labels are masks.
ANY = "image"


def folds(labels: Sequence[str], groups: Sequence[str] | None, num_folds: int, seed: int = 0) -> np.ndarray:
    """The fold number of every image `(N,)`, stratified by label. No group (patient) is divided between folds.

    An image with an empty group forms its own group. The result depends on (labels, groups, seed) alone.
    """
    if num_folds < 2:
        raise UserError(f"config.data.folds={num_folds} must be at least 2")
    by_class = [
        f"group {g}" if g else f"image {i}" for i, g in enumerate(groups if groups is not None else [""] * len(labels))
    ]
    if len(set(by_class)) < num_folds:
        patients = len(set(by_class))
        raise UserError(
            f"config.data.folds={num_folds}: there are only {patients} patient(s) to divide (such as '{by_class[0]}'). "
            "If these are no patients, change config.data.group_pattern or the column 'group'"
        )
    rarest = min((list(labels).count(name), name) for name in set(labels))
    if rarest[0] < num_folds:
        raise UserError(
            f"config.data.folds={num_folds}: "
            + (f"class '{rarest[1]}' has" if rarest[1] != ANY else "there are")
            + f" only {counted(rarest[0], 'image')}, fewer than the folds."
            f"{did_you_mean(rarest[1], set(labels) - {rarest[1]})} "
            "Mend the name, use fewer folds, or name the splits in a CSV"
        )
    # Imported here because scikit-learn would delay the start of every run by a second.
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    fold = np.empty(len(by_class), int)
    for number, (_, held_out) in enumerate(splitter.split(by_class, list(labels), by_class)):
        fold[held_out] = number
    return fold


def divide(labels: Sequence[str], groups: Sequence[str] | None, num_folds: int, fold: int, seed: int = 0) -> np.ndarray:
    """Assign every image to "train", "val" or "test" `(N,)`.

    Fold `fold` is the test split and the next fold the validation split. Five folds give the papers' 3:1:1.
    """
    if not 0 <= fold < num_folds:
        raise UserError(f"config.data.fold={fold} must be in 0..{num_folds - 1}")
    if num_folds < 3:
        raise UserError(f"config.data.folds={num_folds} must be at least 3 to train, validate and test")
    numbers = folds(labels, groups, num_folds, seed)
    out = np.full(len(numbers), "train", dtype="<U5")
    out[numbers == fold] = "test"
    out[numbers == (fold + 1) % num_folds] = "val"
    return out


@dataclasses.dataclass
class Labelled:
    """A source whose images have a class and a split.

    split: "train", "val" or "test" for every image `(N,)`.
    classes: names of the classes, by class number.
    lines: notes on the origin of the splits, for the user.
    """

    source: Source
    split: np.ndarray
    classes: list[str]
    lines: list[str]


def concatenate(sources: Sequence[Source]) -> Source:
    """Concatenate sources. The result has labels and masks only if all sources have them, and groups if any has."""
    ends = np.cumsum([len(source) for source in sources])

    def through(field: str) -> Callable | None:
        functions = [getattr(source, field) for source in sources]
        return None if any(f is None for f in functions) else _Concatenated(functions, ends)

    def joined(field: str) -> list | None:
        lists = [getattr(source, field) for source in sources]
        return None if any(x is None for x in lists) else [v for x in lists for v in x]

    read = through("read")
    assert read is not None
    seen: dict[str, Skipped] = {s.name: s for source in sources for s in source.skipped}
    notes = list(dict.fromkeys(note for source in sources for note in source.notes))
    groups = None
    if any(source.groups is not None for source in sources):  # one split may have no patients
        groups = [name for source in sources for name in source.groups or [""] * len(source)]
        # A patient may be spelled differently in another split.
        said: list[str] = []
        groups = spelling.one_patient(groups, said)
        notes += [line for line in said if line not in notes]
    return Source(
        [name for source in sources for name in source.names],
        read,
        through("header"),
        through("stamp"),
        labels=joined("labels"),
        groups=groups,
        masks=through("masks"),
        masked=joined("masked"),
        mask_stamp=through("mask_stamp"),
        grids=through("grids"),
        lazy=through("lazy"),
        whole=through("whole"),
        skipped=list(seen.values()),
        examine=through("examine"),
        examine_mask=through("examine_mask"),
        mask_names=sources[0].mask_names,
        notes=notes,
        splits=joined("splits"),
        unused=_still_unused(sources),
        keys=joined("keys"),
        clips=joined("clips"),
        scanners=joined("scanners"),
        color_frac=through("color_frac"),
        checked=_all_checked(sources),
        modalities=joined("modalities"),
        dtype=sources[0].dtype,
    )


def _all_checked(sources: Sequence[Source]) -> Checked | None:
    parts = [source.checked for source in sources]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]

    def joined(field: str) -> list | None:
        lists = [getattr(part, field) for part in known]
        return None if any(x is None for x in lists) else [v for x in lists for v in x]

    hashes = joined("hashes") or []
    sizes = np.concatenate([part.sizes for part in known])
    return Checked(sizes, hashes, joined("masks"), joined("mask_values"), joined("edge_values"))


def _still_unused(sources: Sequence[Source]) -> dict[str, int]:
    """The splits that none of the sources uses."""
    used = {split for source in sources for split in source.splits or []}
    return {split: n for source in sources for split, n in source.unused.items() if split not in used}


@dataclasses.dataclass(frozen=True)
class _Concatenated:  # a class, not a closure: worker processes must be able to unpickle it
    functions: list[Callable]
    ends: np.ndarray

    def __call__(self, index: int):
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.functions[number](index - int(self.ends[number - 1] if number else 0))


def labelled(load: Callable[[str], Source], data, by_mask: bool = False) -> Labelled:
    """The labelled images that `config.data` names, with their splits. Raises `UserError`.

    load: `split name -> source`.
    data: `config.data`. `split`, `val_split` and `test_split` name splits of the source. With "", the last two
        are drawn from `split` by whole patients (`folds`, `fold`, `split_seed`). "auto" uses the source's
        "val" and "test" if they exist, and draws them if not. `test_split="none"` omits the test split.
    by_mask: use the images that have masks, instead of those that have labels.
    """
    named = {"train": data.split, "val": data.val_split, "test": data.test_split}
    if named["val"] == "none":
        raise UserError(
            "config.data.val_split=none: the best weights are chosen on the validation images; "
            "'' takes them from the training split"
        )
    sources: dict[str, Source] = {}
    for name, wanted in named.items():
        if name == "train" or wanted not in ("", "none"):
            loaded = _load(load, name, wanted, data, sources, by_mask)
            if loaded is None:
                named[name] = ""
            else:
                sources[name] = loaded
    source = concatenate(list(sources.values())) if len(sources) > 1 else sources["train"]
    if len(set(source.names)) < len(source.names):
        raise UserError(
            "config.data: the same image is in two splits; config.data.split="
            f"{data.split}, val_split={data.val_split}, test_split={data.test_split}"
        )
    if by_mask:
        masked = source.masked or [True] * len(source)
        source = dataclasses.replace(source, labels=[ANY if has else "" for has in masked])
    labels = source.labels or []
    keep = np.array([i for i, name in enumerate(labels) if name])
    lack = "no mask" if by_mask else "no label"
    unlabelled = [Skipped(source.names[i], lack) for i, name in enumerate(labels) if not name]
    names = np.repeat(list(sources), [len(loaded) for loaded in sources.values()])[keep]
    source = dataclasses.replace(subset(source, keep), skipped=[*source.skipped, *unlabelled])
    made_here = [n for n in ("val", "test") if named[n] == ""]
    if made_here:
        names = _take(names, source.labels or [], source.groups, made_here, data)
    classes = sorted(set(source.labels or [])) if by_mask else _classes_of(source, data.positive, len(unlabelled))
    lines = [] if by_mask else _alike(classes)
    if data.fold and "test" not in made_here:
        what = "only the validation images are those of this fold" if made_here else "this setting has no effect"
        lines.append(f"config.data.fold={data.fold}: the data define the test split themselves, so {what}")
    if made_here:
        known = source.groups and any(source.groups)
        grouped = "whole patients" if known else "image by image, because no patients are known"
        lines.append(
            f"{' and '.join(made_here)} drawn from the images of config.data.split={data.split}: {grouped}, fold "
            f"{data.fold} of {data.folds}"
        )
    return Labelled(source, names, classes, lines)


def _classes_of(source: Source, positive: str, unlabelled: int) -> list[str]:
    """The classes in alphabetical order, the positive one of two last. Raises `UserError`."""
    classes = sorted(set(source.labels or []))
    if len(classes) < 2:
        lost = f" {unlabelled} images have no label." if unlabelled else ""
        why = "".join(f" ({note})" for note in source.notes if "label" in note)
        raise UserError(
            f"config.data.root: only one class, '{classes[0]}', has images; a classifier needs two.{lost}{why}"
        )
    if not positive:
        return classes
    if len(classes) != 2 or positive not in classes:
        raise UserError(
            f"config.data.positive='{positive}' must be one of two classes; the classes are {', '.join(classes)}"
        )
    return [*(c for c in classes if c != positive), positive]


def _alike(classes: list[str]) -> list[str]:
    """A line on classes that differ in leading zeros alone, which a table program may have removed from some rows."""
    numbers: dict[int, list[str]] = {}
    for name in classes:
        if name.isdecimal():
            numbers.setdefault(int(name), []).append(name)
    return [
        f"the classes {' and '.join(repr(name) for name in names)} differ in leading zeros alone and count as "
        f"{len(names)} classes"
        for names in numbers.values()
        if len(names) > 1
    ]


def _load(load, name: str, wanted: str, data, sources: dict[str, Source], by_mask: bool) -> Source | None:
    """Load one named split. Returns `None` for "auto" if the source has no such split."""
    automatic = wanted == "auto"
    try:
        source = load(name if automatic else wanted)
    except UserError as error:
        if automatic:
            return None
        field = "split" if name == "train" else f"{name}_split"
        line = str(error).replace("config.data.split", f"config.data.{field}")
        hint = "" if name == "train" else f" '' takes it from config.data.split={data.split}."
        raise UserError(line + (hint if field in line else "")) from error
    if not automatic and data.root:
        require_some(source, str(data.root))
    # A source without splits returns all its images for any name.
    if automatic and (not source.names or set(source.names) & set(sources["train"].names)):
        return None
    if by_mask:
        if source.masks is None or (source.masked is not None and not any(source.masked)):
            if automatic:
                return None
            raise UserError(
                "config.data.root: the images have no masks: a folder needs sub-folders `images` and `masks` with the "
                "same file names, a CSV a column 'mask'"
            )
        return source
    if source.labels is None or not any(source.labels):
        why = [note for note in source.notes if "not classes" in note or "not clear" in note]
        raise UserError(
            f"{_of_split(name, data)} have no labels: a folder needs one sub-folder per class, a CSV a column "
            "'label'" + "".join(f" ({note})" for note in why)
        )
    return source


def _of_split(name: str, data) -> str:
    """The images of a split, for a message: which field names it, unless it is the whole set."""
    if name == "train":
        return "config.data.root: the images"
    return f"config.data.{name}_split={data[f'{name}_split']}: the images of this split"


def require(classes: list[str], labels: np.ndarray, indices: dict[str, np.ndarray], data) -> None:
    """Raise `UserError` for an empty split, or a class that no training image has."""
    for name in SPLITS:
        if not len(indices.get(name, ())) and not (name == "test" and data.test_split == "none"):
            field = "split" if name == "train" else f"{name}_split"
            raise UserError(f"config.data.{field}: the {name} split has no labelled image that can be used")
    absent = sorted(set(range(len(classes))) - set(labels[indices["train"]].tolist()))
    if absent:
        name = classes[absent[0]]
        known = [classes[i] for i in set(labels[indices["train"]].tolist())]
        count = int(np.isin(np.arange(len(labels)), np.concatenate(list(indices.values())))[labels == absent[0]].sum())
        raise UserError(
            f"config.data.split={data.split}: no training image of class '{name}', which {counted(count, 'image')} of "
            f"the other splits have.{did_you_mean(name, known)}"
        )


def fraction(labels: np.ndarray, share: float, seed: int, held: Sequence[Iterable[int]] = ()) -> np.ndarray:
    """Sorted indices of a random share of every class, at least one image per class.

    held: the values of every image's mask; an image is added for each value that the share has not.
    """
    if not 0 < share <= 1:
        raise UserError(f"config.data.fraction={share} must be in (0, 1]")
    generator = np.random.Generator(np.random.Philox(key=[seed, 1 << 40]))
    chosen = []
    for number in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == number))
        chosen.append(members[: max(1, round(share * len(members)))])
    kept = np.concatenate(chosen)
    for value in sorted(set().union(*held)):
        if not any(value in held[i] for i in kept):
            holders = np.flatnonzero([value in values for values in held])
            kept = np.append(kept, generator.choice(holders))
    return np.sort(kept)


def _take(names, labels, groups, missing: list[str], data) -> np.ndarray:
    """Move training images to the missing validation and test splits."""
    inside = np.flatnonzero(names == "train")
    labels_inside = [labels[i] for i in inside]
    patients = None if groups is None else [groups[i] for i in inside]
    if len(missing) == 2:
        fold = divide(labels_inside, patients, data.folds, data.fold, data.split_seed)
    else:
        number = folds(labels_inside, patients, data.folds, data.split_seed)
        if not 0 <= data.fold < data.folds:
            raise UserError(f"config.data.fold={data.fold} must be in 0..{data.folds - 1}")
        fold = np.where(number == data.fold, missing[0], "train")
    out = names.copy()
    out[inside] = fold
    return out


def missing_classes(classes: list[str], labels: np.ndarray, indices: dict[str, np.ndarray]) -> list[str]:
    """One line for every split that lacks classes."""
    lines = []
    for name, numbers in indices.items():
        inside = set(labels[numbers].tolist())
        absent = [c for i, c in enumerate(classes) if i not in inside]
        if absent:
            lines.append(
                f"the {name} split has no image of class {', '.join(absent)}; averages over classes leave it out"
            )
    return lines
