"""Decide what each file of a folder is: an image or a mask, in which split, of which class and patient.

It is the only place that decides this, for images and for volumes.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from deblur_mae_jax.data import naming, pairing, spelling
from deblur_mae_jax.data.listing import File
from deblur_mae_jax.data.pairing import Item
from deblur_mae_jax.data.source import Skipped
from deblur_mae_jax.errors import UserError

# Folders of sites, scanners or folds, which hold folders of the classes.
_SITE = re.compile(
    r"(hospital|site|cent(er|re)|clinic|institut\w*|scanner|vendor|device|machine|fold|batch|part|set)[ _-]?\w{0,12}$",
    re.I,
)
LIST = "a CSV with the column 'label' names them"

# A mask that more images share says nothing of their patient.
MOST_SHARING = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """An image or a volume.

    masks: paths of its masks; several are joined.
    split: "train", "val", "test" or "pool"; "" if the folder names no splits.
    label: its class, "" if unknown.
    group: its patient, "" if unknown.
    """

    file: File
    masks: tuple[str, ...] = ()
    split: str = ""
    label: str = ""
    group: str = ""


@dataclasses.dataclass
class Layout:
    """The cases of a folder, in the order of their names.

    skipped: files that are left out.
    notes: assumptions that were made, for the user.
    """

    cases: list[Case]
    skipped: list[Skipped]
    notes: list[str]

    def of_splits(self, split: str, root: object) -> list[Case]:
        """The cases of the splits that `config.data.split` names; all, if the folder names no splits.

        Raises `UserError` if it has none of them.
        """
        chosen, _ = naming.choose_splits([case.split for case in self.cases], split, f"'{root}'")
        return [self.cases[i] for i in chosen]


def arrange(
    files: Sequence[File],
    stem_of: Callable[[str], str],
    looks_like_mask: Callable[[str], bool],
    *,
    group_pattern: str = "",
    volumes: bool = False,
) -> Layout:
    """Decide what each of `files` is.

    stem_of: name of a file without its suffix.
    looks_like_mask: whether a file, given by its path, holds the values of a mask. Called for files whose names leave
        this open.
    group_pattern: `config.data.group_pattern`.
    volumes: all volumes beside a label map share it, as the sequences of one examination do.
    Raises `UserError` for an invalid pattern.
    """
    layout = Layout([], [], [])
    items = pairing.without_derived(_items(files, stem_of, layout), layout)
    images, candidates = [i for i in items if i.role != "mask"], [i for i in items if i.role == "mask"]
    images, found = pairing.unnamed_masks(images, looks_like_mask, layout)
    candidates += found
    pairing.pair(images, candidates, looks_like_mask, volumes, layout)
    images.sort(key=lambda item: item.file.name)
    labels, depth = ([""] * len(images), 0) if volumes else _labels(images, layout)
    groups = _groups(images, labels, depth, group_pattern, volumes, layout)
    masks = [tuple(file.path for _, file in item.masks) for item in images]
    groups = one_patient_per_mask(groups, masks, [item.file.name for item in images], layout.notes)
    for item, label, group in zip(images, labels, groups, strict=True):
        layout.cases.append(Case(item.file, tuple(file.path for _, file in item.masks), item.split, label, group))
    pairing.say_joined(images, layout)
    return layout


def masks_among(files: Sequence[File], stem_of: Callable[[str], str], *, volumes: bool = False) -> dict[str, str]:
    """Find the files that are named like the mask of another one, in a list in which all should be images.

    The result has the path of the image by the path of the mask. Other arguments: as in `arrange`.
    """
    items = _items(files, stem_of, Layout([], [], []))
    images, candidates = [i for i in items if i.role != "mask"], [i for i in items if i.role == "mask"]
    found = pairing.owners(images, candidates, volumes)
    return {mask.file.path: image.file.path for mask, image in zip(candidates, found, strict=True) if image is not None}


def _items(files: Sequence[File], stem_of: Callable[[str], str], layout: Layout) -> list[Item]:
    """Read the names of the folders. Files beside split folders are left out."""
    splits = _split_folders(files)
    items = []
    for file in files:
        rest, split, role = [], "", ""
        for depth, folder in enumerate(file.folders):
            meaning = naming.of_folder(folder)
            own = splits.get("/".join(file.folders[: depth + 1]), "")
            split = own or split
            if meaning.role and role != "mask":
                role = meaning.role
            if not meaning.role and not own:
                rest.append(folder)
        stem = spelling.composed(stem_of(file.base))
        if role != "mask" and naming.of_mask(stem) is not None:
            role = "mask"
        if splits and not split:
            outer = sorted({path.rsplit("/", 1)[-1] for path in splits})
            layout.skipped.append(Skipped(file.name, f"beside the split folders {', '.join(outer[:4])}"))
            continue
        items.append(Item(file, stem, split, tuple(rest), role))
    return items


def _split_folders(files: Sequence[File]) -> dict[str, str]:
    """The folders that are splits, by their path.

    A level with folders of several splits is preferred: in `training_data/train` and `training_data/test` the outer
    folder is no split.
    """
    siblings: dict[str, set[str]] = defaultdict(set)
    for file in files:
        for depth, folder in enumerate(file.folders):
            siblings["/".join(file.folders[:depth])].add(folder)
    found: dict[str, dict[str, str]] = {}
    for parent, names in siblings.items():
        of_parent = naming.split_folders(names)
        if of_parent:
            found[parent] = {f"{parent}/{name}" if parent else name: split for name, split in of_parent.items()}
    several = {parent: paths for parent, paths in found.items() if len(set(paths.values())) > 1}
    if several:
        return {path: split for paths in several.values() for path, split in paths.items()}
    return {path: split for paths in found.values() for path, split in paths.items()}


def _labels(images: list[Item], layout: Layout) -> tuple[list[str], int]:
    """The class of every image, and the number of the folder that names it.

    That is the first folder that is no split and not called like `images`, or the one below it.
    """
    firsts = {item.rest[0] for item in images if item.rest}
    seconds = {item.rest[1] for item in images if len(item.rest) > 1}
    depth = 0
    wrapped = len(firsts) == 1 and all(len(item.rest) > 1 for item in images) and len(seconds) > 1
    if wrapped and not naming.like_patients(seconds, 2):
        depth = 1
        layout.notes.append(f"all images are in '{next(iter(firsts))}'; its sub-folders are the classes")
    raw = [item.rest[depth] if len(item.rest) > depth else "" for item in images]
    masked = sum(bool(item.masks) for item in images) * 2 > len(images)  # a folder to segment needs no classes
    patients = naming.like_patients(raw) or (masked and naming.like_numbered_patients(raw))
    if patients and all(raw):
        below = _repeated_below(images, depth)
        cure = f"; if {' and '.join(below[:3])} inside of them are the classes, {LIST}" if below else ""
        layout.notes.append(
            f"the folders {', '.join(sorted(set(raw))[:3])} ... look like patients: they are groups, not classes{cure}"
        )
        return [""] * len(images), depth
    raw = _classes_below(images, raw, depth, layout)
    same = _same_folders(images, depth)
    if same and all(_SITE.match(name) for name in raw):
        layout.notes.append(
            f"{same}: it is not clear which of them are the classes, so the images have no labels; {LIST}"
        )
        return [""] * len(images), depth
    if same:
        layout.notes.append(f"{same}; the first are taken as the classes. If the others are, {LIST}")
    if naming.like_numbered_patients(filter(None, raw)):
        below = _repeated_below(images, depth)
        pattern = 'config.data.group_pattern="(?:^|/)([^/]+)/[^/]+$"'
        layout.notes.append(
            f"the classes {', '.join(sorted(set(filter(None, raw)))[:3])} ... are numbered like patients; if they are "
            + (f"patients and {' and '.join(below[:3])} the classes, {LIST}" if below else f"patients, give {pattern}")
        )
    unlabelled = [name for name in raw if naming.UNLABELLED.match(name)]
    if unlabelled:
        layout.notes.append(f"{len(unlabelled)} images in '{unlabelled[0]}' have no class")
        raw = ["" if naming.UNLABELLED.match(name) else name for name in raw]
    labels, lines = spelling.canonical(raw)
    layout.notes += [f"classes: {line}" for line in lines]
    # A folder may be called "none" or "NA", unlike an empty cell of a table.
    return [label or name for label, name in zip(labels, raw, strict=True)], depth


def _classes_below(images: list[Item], raw: list[str], depth: int, layout: Layout) -> list[str]:
    """The classes `raw`, without folders such as `augmented` that hold folders with the names of the other classes."""
    below: dict[str, set[str]] = defaultdict(set)
    for item, name in zip(images, raw, strict=True):
        below[name].add(item.rest[depth + 1] if len(item.rest) > depth + 1 else "")
    plain = {name for name, inner in below.items() if inner == {""}}
    wraps = {name for name, inner in below.items() if name and inner <= plain - {name}}
    for name in sorted(wraps):
        layout.notes.append(
            f"'{name}' holds the folders {', '.join(sorted(below[name])[:3])}, as the classes are called: its images "
            "have these classes. If they are copies of other images, remove them: copies must not be divided between "
            "training and test"
        )
    return [item.rest[depth + 1] if name in wraps else name for item, name in zip(images, raw, strict=True)]


def _repeated_below(images: list[Item], depth: int) -> list[str]:
    """The folders below those of this depth, if all images are in such folders and each name occurs several times."""
    inner = [item.rest[depth + 1] if len(item.rest) > depth + 1 else "" for item in images]
    places = {(item.rest[depth], name) for item, name in zip(images, inner, strict=True) if name}
    counts = Counter(name for _, name in places)
    if not all(inner) or len(counts) < 2 or min(counts.values()) < 2 or any(map(naming.is_id, counts)):
        return []
    return sorted(counts)


def _same_folders(images: list[Item], depth: int) -> str:
    """In words, that the folders of this depth all hold folders of the same names; "" if they do not."""
    below: dict[str, set[str]] = defaultdict(set)
    for item in images:
        if len(item.rest) <= depth + 1 or naming.is_id(item.rest[depth + 1]):
            return ""
        below[item.rest[depth]].add(item.rest[depth + 1])
    if len(below) < 2:
        return ""
    first, *others = below.values()
    if len(first) < 2 or any(names != first for names in others):
        return ""
    outer, inner = (", ".join(sorted(names)[:3]) for names in (below, first))
    return f"the folders {outer} all hold the folders {inner}"


def _groups(
    images: list[Item], labels: list[str], depth: int, pattern: str, volumes: bool, layout: Layout
) -> list[str]:
    """The patient of every image: by `group_pattern`, else by folders that look like patients.

    depth: number of the folder that names the class, which may look like a patient: `covid19`.
    """
    if pattern:
        return groups_by_pattern([item.file.name for item in images], pattern, layout.notes)
    groups = []
    shared = _shared_depth(images)
    for item, label in zip(images, labels, strict=True):
        below = item.rest[max(shared, depth + 1 if label else 0) :]
        own = [folder for folder in below if naming.is_id(folder)]
        own.sort(key=lambda folder: not folder.lower().startswith("sub-"))  # BIDS
        name = own[0] if own else ""
        # Short numbers are counted anew in every class.
        groups.append(f"{label}/{name}" if name.isdigit() and len(name) < 5 and label else name)
    if volumes and not any(groups):
        groups = volumes_of_one([item.stem for item in images], ["/".join(item.rest) for item in images])
    if any(groups):
        example = next(g for g in groups if g)
        count = len({g for g in groups if g})
        layout.notes.append(f"{count} patients are taken from the folders and names, such as '{example}'")
        return groups
    layout.notes += filter(None, [naming.views([item.stem for item in images])])
    deeper = next((item for item in images if any(labels) and len(item.rest) > 1), None)
    if deeper is not None and not volumes:
        layout.notes.append(
            f"the folders below the classes, such as '{deeper.rest[-1]}', are not used; if they are patients, give "
            'config.data.group_pattern="([^/]+)/[^/]+$"'
        )
    return groups


def volumes_of_one(stems: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Patients of volumes by their names: without channel, sequence and visit, or by folder where names repeat.

    stems: names of the files without suffix.
    folders: the folder of each.
    """
    cases = naming.channel_cases(stems)
    patients = []
    for stem in stems:
        case = naming.without_channel(stem)[0]
        patients.append(case if case.casefold() in cases else naming.without_visit(naming.without_sequence(stem)))
    if len(set(stems)) < len(stems) and all(folders):  # smith/T1 and jones/T1, or T1/p1 and T2/p1
        patients = [naming.patient_of_folder(*pair) for pair in zip(folders, patients, strict=True)]
    return patients if 1 < len(set(patients)) < len(patients) else [""] * len(stems)


def one_patient_per_mask(
    groups: Sequence[str], masks: Sequence[Sequence[str]], names: Sequence[str], notes: list[str]
) -> list[str]:
    """The patients of images, where images with the same mask are of one patient. Adds notes.

    groups: the patient of every image; "" for an image that is a patient of its own.
    masks: the mask files of every image.
    """
    sharing = defaultdict[str, list[int]](list)
    for number, files in enumerate(masks):
        for file in files:
            sharing[file].append(number)
    many = [numbers for numbers in sharing.values() if len(numbers) > MOST_SHARING]
    if many:  # such as one empty mask for all healthy images
        notes.append(
            f"{len(many)} masks are shared by more than {MOST_SHARING} images, the first by that of "
            f"'{names[many[0][0]]}': these images are not taken for one patient"
        )
    own: list[str | int] = [group or number for number, group in enumerate(groups)]
    first: dict[str | int, str | int] = {}

    def patient(of: str | int) -> str | int:
        while of in first:
            of = first[of]
        return of

    joined = []
    for numbers in sharing.values():
        patients = list(dict.fromkeys(patient(own[number]) for number in numbers))
        if 1 < len(numbers) <= MOST_SHARING and len(patients) > 1:
            patients.sort(key=lambda name: isinstance(name, int))  # a stated name before a number
            first |= dict.fromkeys(patients[1:], patients[0])
            joined.append(numbers[0])
    if not joined:
        return list(groups)
    notes.append(
        f"images that share a mask are one patient: {len(joined)} masks, the first that of '{names[joined[0]]}'"
    )
    leaders = set(first.values())
    whole = [patient(name) for name in own]
    return [
        name if isinstance(name, str) else names[name] if name in leaders else group
        for name, group in zip(whole, groups, strict=True)
    ]


def _shared_depth(images: list[Item]) -> int:
    """The number of outer folders that all images share, such as the name of the data set."""
    depth = 0
    while images and all(len(item.rest) > depth and item.rest[depth] == images[0].rest[depth] for item in images):
        depth += 1
    return depth


def groups_by_pattern(names: Sequence[str], pattern: str, notes: list[str]) -> list[str]:
    """The patient of every name: the first group of a regular expression, or its whole match. "" without a match.

    Raises `UserError` for an invalid pattern, or one that matches no name.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"config.data.group_pattern='{pattern}' is not a regular expression: {error}") from error
    found = [compiled.search(name) for name in names]
    groups = ["" if m is None else (m[1] if compiled.groups else m[0]) or "" for m in found]
    if names and not any(groups):
        raise UserError(f"config.data.group_pattern='{pattern}' matches no name; the first is '{names[0]}'")
    missing = [name for name, group in zip(names, groups, strict=True) if not group]
    if missing:
        notes.append(
            f"{len(missing)} names do not match config.data.group_pattern, the first '{missing[0]}': each is a patient "
            "of its own"
        )
    return groups


def groups_of_names(names: Sequence[str], groups: list[str] | None, pattern: str, notes: list[str]) -> list[str] | None:
    """The patients that a set states, else those that `config.data.group_pattern` finds in the names."""
    if not pattern:
        return groups
    if groups is not None and any(groups):
        notes.append("config.data.group_pattern is not used: the set states the patients")
        return groups
    return groups_by_pattern(names, pattern, notes)


def unused(cases: Sequence[Case], used: Sequence[Case]) -> dict[str, int]:
    """The number of cases in each split that is not used."""
    chosen = {case.file.name for case in used}
    return dict(Counter(case.split for case in cases if case.file.name not in chosen))
