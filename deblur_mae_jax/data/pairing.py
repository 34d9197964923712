"""Find the masks among the files of a folder, and the image that each belongs to."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Protocol

from deblur_mae_jax.data import naming, spelling
from deblur_mae_jax.data.listing import File
from deblur_mae_jax.data.source import Skipped

_INNER_SUFFIX = re.compile(r"\.(png|jpe?g|tiff?|bmp|gif|nii(\.gz)?|mha|nrrd)$", re.I)
# Files of a folder that are opened to see whether it holds masks.
SAMPLES = 8


class Record(Protocol):
    """What is written down while files are arranged: files that are left out, and assumptions."""

    skipped: list[Skipped]
    notes: list[str]


@dataclasses.dataclass
class Item:
    """A file, and what its name says of it.

    stem: its name without suffix.
    rest: its folders without those that name a split, or say that they hold images or masks.
    """

    file: File
    stem: str
    split: str
    rest: tuple[str, ...]
    role: str
    masks: list[tuple[str, File]] = dataclasses.field(default_factory=list)

    @property
    def place(self) -> tuple[str, tuple[str, ...]]:
        """Where its masks are expected."""
        return self.split, tuple(spelling.composed(part).casefold() for part in self.rest)


def without_derived(items: list[Item], record: Record) -> list[Item]:
    """Leave out pictures that were made from images beside them: overlays, heat maps, predictions.

    Beside a folder of images without labels, the folder `labelled` holds images, and is no class.
    """
    unlabelled = any(naming.UNLABELLED.match(folder) for item in items for folder in item.file.folders)
    made = [_made_from(item, unlabelled) for item in items]
    stems = {item.stem.casefold() for item, stem in zip(items, made, strict=True) if not stem}
    kept = []
    for item, stem in zip(items, made, strict=True):
        if stem and stem.casefold() in stems:
            record.skipped.append(Skipped(item.file.name, f"a picture made from an image, '{stem}'"))
        else:
            item.rest = tuple(f for f in item.rest if not (unlabelled and naming.LABELLED.match(f)))
            kept.append(item)
    return kept


def _made_from(item: Item, unlabelled: bool) -> str:
    """The name of the image from which a picture was made, by its own name; "" for an image.

    unlabelled: whether there is a folder of images without labels, beside which `labelled` holds images with labels.
    """
    folders = [f for f in item.file.folders if not (unlabelled and naming.LABELLED.match(f))]
    if any(naming.DERIVED.search(folder) for folder in folders):
        return naming.DERIVED.sub("", item.stem) or item.stem
    shorter = naming.DERIVED.sub("", item.stem)
    return shorter if shorter != item.stem else ""


def unnamed_masks(
    images: list[Item], looks_like_mask: Callable[[str], bool], record: Record
) -> tuple[list[Item], list[Item]]:
    """Find masks under names that are not known: a second folder, or a second ending, with the names of the images."""
    by_stem: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in images:
        by_stem[item.split, item.stem.casefold()].append(item)
    kinds: dict[str, list[Item]] = defaultdict(list)
    for item in images:
        folder = "/".join(item.file.folders)
        same = by_stem[item.split, item.stem.casefold()]
        if any(other.file.folders == item.file.folders for other in same if other is not item):
            kinds[f"the files '*{item.file.base[-4:].lower()}' in folder '{folder}'"].append(item)
            continue
        if len(same) > 1:
            kinds[f"the files of folder '{folder}'"].append(item)
            continue
        _, tail = _without_ending(item, by_stem)
        if tail:
            kinds[f"the files ending in '{tail}'"].append(item)
    masks: list[Item] = []
    folder_sizes = Counter("/".join(item.file.folders) for item in images)
    for kind, members in kinds.items():
        folder = "/".join(members[0].file.folders)
        if kind.startswith("the files of") and len(members) < folder_sizes[folder]:
            continue
        step = max(1, len(members) // SAMPLES)
        if not all(looks_like_mask(item.file.path) for item in members[::step][:SAMPLES]):
            continue
        record.notes.append(f"{kind} are read as masks: they have the names of images and the values of masks")
        for item in members:
            masks.append(item)
            item.role = "found"
            if kind.startswith("the files of"):  # beside the folder of images, so its name says nothing more
                item.rest = item.rest[:-1]
            elif kind.startswith("the files ending"):
                item.stem = _without_ending(item, by_stem)[0]
    if len(masks) == len(images):  # everything looks like a mask: then these are the images
        record.notes.clear()
        return images, []
    chosen = {id(item) for item in masks}
    return [item for item in images if id(item) not in chosen], masks


def _without_ending(item: Item, by_stem: dict[tuple[str, str], list[Item]]) -> tuple[str, str]:
    """The name of the image beside a file that has one more word, also after a word for a mask; and that ending.

    `x_roi` and `x_mask_tumor` are beside `x`. ("", "") if there is no such image.
    """
    start, mark, word = _last_word(item.stem)
    named = naming.of_mask(start) if word else None
    choices = [start, named.case] if named is not None and named.at_end else [start]
    for name in filter(None, choices):
        beside = by_stem.get((item.split, name.casefold()), [])
        if word and any(other.file.folders == item.file.folders for other in beside):
            return name, item.stem[len(name) + len(mark) :].lower()
    return "", ""


def _last_word(stem: str) -> tuple[str, str, str]:
    found = re.match(r"^(.+)([-_. ])([A-Za-z]+)$", stem)
    return (found[1], found[2], found[3].lower()) if found else (stem, "", "")


def _case(mask: Item) -> str:
    """The name of the case that a mask is of, in lower case."""
    named = naming.of_mask(mask.stem)
    return (named.case if named is not None else mask.stem).casefold()


class _Images:
    """Finds the images that a mask belongs to."""

    def __init__(self, images: list[Item], candidates: list[Item], volumes: bool):
        self.volumes = volumes
        self.cases = {(mask.place, _case(mask)) for mask in candidates}
        self.exact: dict[tuple, list[Item]] = defaultdict(list)
        self.channel: dict[tuple, list[Item]] = defaultdict(list)
        self.leading: dict[tuple, list[Item]] = defaultdict(list)
        self.anywhere: dict[tuple, list[Item]] = defaultdict(list)
        self.places: dict[tuple, list[Item]] = defaultdict(list)
        cases = naming.channel_cases(item.stem for item in images)
        for item in images:
            stem = item.stem.casefold()
            self.exact[item.place, stem].append(item)
            case = naming.without_channel(stem)[0]
            self.channel[item.place, case if case in cases else stem].append(item)
            self.leading[item.place, naming.without_leading_word(stem)].append(item)
            self.anywhere[item.split, stem].append(item)
            self.places[item.place].append(item)

    def of(self, mask: Item) -> list[Item]:
        """The images of a mask; empty if none fits, or if several do and only one may."""
        named = naming.of_mask(mask.stem)
        tries = [mask.stem.casefold()]
        if named is not None:
            numbered = (named.case + named.number).casefold()  # x_mask_1 is of x_1, unless that has x_1_mask
            if named.number and (mask.place, numbered) not in self.cases:
                tries.append(numbered)
            tries.append(named.case.casefold())
        if inner := _INNER_SUFFIX.sub("", tries[-1]):  # 1.png.mask.png, masks/1.png.png
            tries.append(inner)
        for stem in filter(None, tries):
            if found := self.exact.get((mask.place, stem)):
                return found
            if found := self.channel.get((mask.place, stem)):
                return found
        found = self.exact.get((mask.place, _last_word(mask.stem)[0].casefold()), [])  # rois/1_roi.png
        if len(found) == 1 and named is None:
            return found
        found = self.leading.get((mask.place, naming.without_leading_word(tries[-1])), [])
        # `spleen_1_seg` is not the mask of `liver_1`: the same number is not enough where a word is left.
        own_word = naming.without_leading_word(tries[-1]) != tries[-1]
        if tries[-1] and len(found) == 1 and not own_word:
            return found
        beside = self.places.get(mask.place, [])
        if tries[-1]:
            beside = [item for item in beside if self._extends(item, tries[-1])] if len(beside) < 4096 else []
        elif len({naming.visit(item.stem) for item in beside}) > 1:
            return []  # examinations of one patient, with a mask that does not say of which
        if beside and (self.volumes or len(beside) == 1) and (tries[-1] or mask.rest):
            return beside
        return []

    def _extends(self, item: Item, case: str) -> bool:
        """Whether the name of an image is that of a mask's case and a sequence: no other visit, and no longer case."""
        stem = item.stem.casefold()
        if not stem.startswith(tuple(case + sep for sep in "-_. ")) or not naming.is_same_visit(stem[len(case) + 1 :]):
            return False
        longer = (stem[:end] for end in range(len(case) + 1, len(stem)) if stem[end] in "-_. ")
        return not any((item.place, other) in self.cases for other in longer)

    def elsewhere(self, mask: Item) -> list[Item]:
        """The only image of a mask's name, in a folder around or below that of the mask, if it has no mask yet."""
        named = naming.of_mask(mask.stem)
        tries = [mask.stem.casefold(), named.case.casefold() if named else ""]
        found = [item for stem in filter(None, tries) for item in self.anywhere.get((mask.split, stem), [])]
        if len(found) != 1 or found[0].masks:
            return []
        shorter = min(len(found[0].rest), len(mask.rest))
        return found if found[0].rest[:shorter] == mask.rest[:shorter] else []


def pair(
    images: list[Item],
    candidates: list[Item],
    looks_like_mask: Callable[[str], bool],
    volumes: bool,
    record: Record,
) -> None:
    """Give each image its masks. Candidates that prove to be images are added to `images`."""
    candidates = _without_doubtful(images, candidates, looks_like_mask, record)
    finder = _Images(images, candidates, volumes)
    alone: dict[str, list[Item]] = defaultdict(list)
    paired_folders: set[str] = set()
    later: list[Item] = []
    for mask in candidates:
        if not _give(mask, finder.of(mask), paired_folders):
            later.append(mask)
    for mask in later:
        if not _give(mask, finder.elsewhere(mask), paired_folders):
            alone["/".join(mask.file.folders)].append(mask)
    for item in images:
        _choose(item, record)
    for folder, masks in alone.items():
        step = max(1, len(masks) // SAMPLES)
        sample = masks[::step][:SAMPLES]
        if folder not in paired_folders and not any(looks_like_mask(mask.file.path) for mask in sample):
            # A class called `label`, or images whose names end in "seg".
            _are_images(masks, images, "volumes" if volumes else "images", record)
            continue
        what = "a label map without a volume" if volumes else "a mask without an image"
        record.skipped += [Skipped(mask.file.name, f"{what} of its name") for mask in masks]


def _without_doubtful(
    images: list[Item], candidates: list[Item], looks_like_mask: Callable[[str], bool], record: Record
) -> list[Item]:
    """The candidates without those called `msk`, musculoskeletal, that hold the values of images; they are images."""
    doubtful: dict[str, list[Item]] = defaultdict(list)
    for mask in candidates:
        named = naming.of_mask(mask.stem)
        words = {named.word if named else "", *(word for f in mask.file.folders for word in naming.words_of_masks(f))}
        if words - {""} <= {"msk", "msks"} and words - {""}:
            doubtful["/".join(mask.file.folders)].append(mask)
    chosen: set[int] = set()
    for masks in doubtful.values():
        step = max(1, len(masks) // SAMPLES)
        if not any(looks_like_mask(mask.file.path) for mask in masks[::step][:SAMPLES]):
            _are_images(masks, images, "images", record)
            chosen |= {id(mask) for mask in masks}
    return [mask for mask in candidates if id(mask) not in chosen]


def _are_images(masks: list[Item], images: list[Item], what: str, record: Record) -> None:
    """Add files to the images that are named like masks. Adds a note."""
    record.notes.append(
        f"{len(masks)} files are named like masks, the first '{masks[0].file.name}', but hold the values of {what}: "
        f"they are read as {what}"
    )
    for mask in masks:
        role_folders = [f for f in mask.file.folders if naming.of_folder(f).role == "mask"]
        mask.rest = (*mask.rest, *role_folders)
        images.append(mask)


def owners(images: list[Item], candidates: list[Item], volumes: bool) -> list[Item | None]:
    """The image of each candidate by its name and folder; `None` where there is none, or several."""
    finder = _Images(images, candidates, volumes)
    return [next(iter(finder.of(mask) or finder.elsewhere(mask)), None) for mask in candidates]


def _give(mask: Item, images: list[Item], paired_folders: set[str]) -> bool:
    """Give a mask to its images. Returns whether there are any."""
    if not images:
        return False
    paired_folders.add("/".join(mask.file.folders))
    named = naming.of_mask(mask.stem)
    exact = any(item.stem.casefold() == mask.stem.casefold() for item in images)
    kind = "~found" if mask.role == "found" else "" if exact or named is None else named.word
    for item in images:
        item.masks.append((kind, mask.file))
    return True


def _choose(item: Item, record: Record) -> None:
    """Keep the masks of an image that are of one kind: the one of its own name, or those with the same word."""
    if len(item.masks) < 2:
        return
    item.masks.sort(key=lambda mask: (mask[0], mask[1].name))
    first = item.masks[0][0]
    kept = [mask for mask in item.masks if mask[0] == first]
    for _, file in item.masks[len(kept) :]:
        record.skipped.append(Skipped(file.name, f"a further mask of '{item.file.name}'"))
    folders = sorted({"/".join(file.folders) for _, file in kept})
    words = different_words([file.base for _, file in kept])
    apart = f"in the folders {', '.join(folders[:4])}" if len(folders) > 1 else ""
    apart = apart or (f"that are called {' and '.join(words[:4])}" if words else "")
    if apart:
        why = (
            f"one of the masks of '{item.file.name}' {apart}, which may mean different classes: give one mask with a "
            "number per class, or a CSV"
        )
        record.skipped += [Skipped(file.name, why) for _, file in kept]
        kept = []
    item.masks = kept


def different_words(names: Iterable[str]) -> list[str]:
    """The words in which the names of masks of one image differ, such as liver and spleen; [] if only numbers do."""
    words = [set(re.findall(r"[^\W\d_]+", name.casefold())) for name in names]
    shared = set.intersection(*words) if words else set()
    own = [" ".join(sorted(each - shared)) for each in words]
    # `x_mask` and `x_mask_1` have the same words, and so have `lesion` and `lesion 2`.
    return sorted(set(filter(None, own))) if len(set(own)) > 1 else []


def say_joined(images: list[Item], record: Record) -> None:
    """Note which masks are joined, and which are shared by several volumes."""
    shared: dict[str, list[Item]] = defaultdict(list)
    for item in images:
        for _, file in item.masks:
            shared[file.name].append(item)
    most = max(shared.values(), key=len, default=[])
    if len(most) > 1:
        count = sum(len(items) > 1 for items in shared.values())
        record.notes.append(
            f"masks that several volumes share: {count}, such as that of {', '.join(i.file.name for i in most[:3])}"
        )
    several = [item for item in images if len(item.masks) > 1]
    if several:
        record.notes.append(
            f"images with several masks: {len(several)}, the first '{several[0].file.name}': they are joined"
        )
