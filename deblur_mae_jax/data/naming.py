"""What the names of files and folders mean: splits, masks, patients, views of one patient.

The rules cover the public sets BUSI, BUS-BRA, TN3K, DDTI, MMOTU, HC18, CAMUS, BraTS, MSD, nnU-Net, BTCV, FeTA, ACDC,
AMOS, KiTS and LiTS, and folders that are organised like them.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from deblur_mae_jax.errors import UserError

SPLIT_NAMES = {
    "train": "train", "training": "train", "trainval": "train", "trn": "train", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "development": "val", "test": "test", "testing": "test", "tst": "test",
    "pool": "pool", "eval": "val", "evaluation": "val", "holdout": "test",
}  # fmt: skip
# Abbreviations that name a split only beside a word for images or masks: imagesTr, labelsTs, imagesVa.
SHORT_SPLITS = {"tr": "train", "va": "val", "ts": "test", "te": "test"}
IMAGE_WORDS = {"image", "images", "img", "imgs", "original", "originals", "imaging"}
MASK_WORDS = {
    "mask", "masks", "gt", "gts", "groundtruth", "groundtruths", "truth", "label", "labels", "labelmap", "labelmaps",
    "seg", "segs", "segmentation", "segmentations", "annotation", "annotations", "annot", "annots", "dseg", "msk",
    "msks",
}  # fmt: skip
# Folders of images without a class.
UNLABELLED = re.compile(r"^(?:un-?label+ed|un-?annotated|no[-_ ]?label)$", re.I)
# Folders of images with a class beside them; alone, of pictures with marks.
LABELLED = re.compile(r"^(?:label+ed|annotated)$", re.I)
# Pictures that were made from images: overlays, heat maps, predictions.
DERIVED = re.compile(
    r"(?:^|[-_. ])(?:overlay|heat[-_ ]?map|heat|superpixel|prediction|pred|visuali[sz]ation|gradcam|saliency|annotated|"
    r"marked|labell?ed|contour|contoured|outlined?|caliper|measured|measurement)s?$",
    re.I,
)
# Backups and unfinished downloads.
UNFINISHED = (".bak", ".tmp", ".part", ".crdownload", ".download", ".old", ".swp", "~")
# Words that say nothing about what a folder holds.
FILLERS = {"set", "data", "dataset", "folder", "split", "png", "jpg", "nii", "ground", "lesion", "tumor", "tumour",
           "binary", "map", "maps", "files", "mha", "manual", "roi", "rois", "machine", "human"}  # fmt: skip
_TOKENS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")
_WORD = (
    r"(?:mask|gt|ground[-_ ]?truth|seg|segmentation|segmented|label|labels|labelmap|annotation|annot|dseg|msk|binary)"
)
# x_mask.png, benign (4)_mask_1.png, 000_HC_Annotation.png, patient0001_2CH_ED_gt.mhd
_MASK_END = re.compile(rf"^(?P<case>.*?)(?:^|[-_. ])(?P<word>{_WORD})s?(?P<number>[-_ ]?\(?\d{{1,2}}\)?)?$", re.I)
# mask_0001-l.png, segmentation-0.nii, label0001.nii.gz
_MASK_START = re.compile(rf"^(?P<word>{_WORD})s?(?:[-_. ](?P<case>.+)|(?P<number>\d.*))$", re.I)
_CHANNEL = re.compile(r"_(000\d)$")
# Folders with a number that name no patient: sequences, sessions, folds, dates.
_NO_PATIENT = re.compile(
    r"^(?:t[12](?:w|ce|c|n|f|gd)?|\d+(?:\.\d+)?t|(?:run|ses|session|fold|dataset|task|visit|series|scan|part|batch|split|"
    r"set|timepoint|echo|acq|seq|site|center|centre|hospital|year|week|month|day|level|grade|stage)[-_ ]?\d.*|"
    r"(?:19|20)\d\d(?:[-_]?\d\d){0,2})$",
    re.I,
)
_SEQUENCES = "t1|t2|t1ce|t1c|t1n|t1w|t1gd|t2w|t2f|flair|pd|mra|dti|dwi|adc|swi|asl"
_SEQUENCE = re.compile(rf"[-_. ](?:{_SEQUENCES}|ct|pet)$", re.I)
# Folders of one sequence, of one modality, of one examination, and of one place, each with volumes of many patients.
_SEQUENCE_FOLDER = re.compile(rf"^(?:{_SEQUENCES})$", re.I)
_MODALITY_FOLDER = re.compile(r"^(?:ct|mri?|pet|pt)$", re.I)
_EXAMINATION_FOLDER = re.compile(
    r"^(?:(?:ses|session|visit|series|scan|timepoint|tp|year|week|month|day|exam)[-_ ]?\d.*|"
    r"(?:19|20)\d\d(?:[-_.]?\d\d){0,2}|baseline|follow[-_ ]?up\d*|fu\d*|bl)$",
    re.I,
)
_PLACE_FOLDER = re.compile(
    r"^(?:site|cent(?:er|re)|hospital|clinic|scanner|vendor|batch|part|fold|dataset|set|task)[-_ ]?\w{0,3}$", re.I
)
NUMBER = r"\d+"
# Parts of a name that say which examination of a patient it is.
_VISIT = re.compile(
    r"^(?:fu|follow|followup|bl|baseline|visit|ses|session|tp|timepoint|scan|day|week|month|year|m(?=\d))\d*$", re.I
)
_VIEW = re.compile(
    r"^(?P<id>.*\d.*?)[-_ ](?P<view>[lr]|left|right|lt|rt|cc|mlo|long|longitudinal|trans|transverse|sag|sagittal|ax|"
    r"axial|cor|coronal|[a-d]|\d{1,3}|000\d|(?:frame|view|img|image|slice)[-_]?\d+)$",
    re.I,
)


class Meaning(NamedTuple):
    """What the name of a folder says.

    split: "train", "val", "test" or "pool", or "".
    role: "image" or "mask", or "".
    """

    split: str = ""
    role: str = ""


def of_folder(name: str) -> Meaning:
    """The meaning of the name of one folder, such as `labelsTr`, `test-mask`, `Ground Truth`, `validation`."""
    tokens = [t.lower() for t in _TOKENS.findall(name)]
    known = {*SPLIT_NAMES, *SHORT_SPLITS, *IMAGE_WORDS, *MASK_WORDS, *FILLERS}
    words = [t for t in tokens if not t.isdigit()]
    if not words or any(t not in known for t in words):
        return Meaning()
    role = "mask" if MASK_WORDS & set(words) else "image" if IMAGE_WORDS & set(words) else ""
    splits = {SPLIT_NAMES[t] for t in words if t in SPLIT_NAMES}
    split = next(iter(splits)) if len(splits) == 1 else "train" if splits == {"train", "val"} else ""
    if splits and not split:
        return Meaning()
    if not split and role:
        split = next((SHORT_SPLITS[t] for t in words if t in SHORT_SPLITS), "")
    if not split and not role:
        return Meaning()
    if len(tokens) > len(words) and not role:
        return Meaning()  # train2, test_01: not one of the usual splits
    return Meaning(split, role)


def words_of_masks(folder: str) -> set[str]:
    """The words of the name of a folder that mean masks, in lower case."""
    return MASK_WORDS & {t.lower() for t in _TOKENS.findall(folder)} if of_folder(folder).role == "mask" else set()


def split_of(folder: str) -> tuple[str, str]:
    """The split that some word of a name says, and the rest of the name: `x_train1` is `("train", "x")`.

    ("", name) if there is no such word, or words of several splits.
    """
    tokens = [t.lower() for t in _TOKENS.findall(folder) if not t.isdigit()]
    found = {split for token in tokens if (split := _split_word(token))}
    if found == {"train", "val"}:  # train_val: both are for training
        found = {"train"}
    if len(found) != 1:
        return "", folder
    rest = [token for token in tokens if not _split_word(token) and token not in FILLERS]
    return next(iter(found)), "_".join(rest)


def _split_word(token: str) -> str:
    return SPLIT_NAMES.get(token) or SPLIT_NAMES.get(re.sub(r"(set|data|s)$", "", token), "")


def split_folders(siblings: Iterable[str]) -> dict[str, str]:
    """The folders among `siblings` that are splits, with their splits.

    Names that differ only in the split are splits, such as `x_train` and `x_test`. So are all, if each names a split.
    A single `train` is one too; a single folder with the name of another split may be a class.
    """
    names = sorted(set(siblings))
    found = {name: split_of(name) for name in names}
    out: dict[str, str] = {}
    for rest in {rest for split, rest in found.values() if split}:
        group = {name: split for name, (split, own) in found.items() if split and own == rest}
        if len(set(group.values())) > 1:
            out |= group
    splits = {name: split for name, (split, _) in found.items() if split}
    if len(splits) == len(names) and len(set(splits.values())) > 1:
        out |= splits
    short = {name: SHORT_SPLITS[name.lower()] for name in names if name.lower() in SHORT_SPLITS}
    if len(short) == len(names) > 1:
        out |= short
    for name in names:
        meaning = of_folder(name)
        alone = meaning.split and (meaning.role or meaning.split == "train" or len(splits) == len(names))
        if alone and not out.get(name):
            out[name] = meaning.split
    return out


def split_name(text: str) -> str:
    """The usual name of a split: "validation", "Dev", "test_set" and " VAL " have one. Other names are kept."""
    text = text.strip()
    split, rest = split_of(text)
    return split if split and not rest else text


def split_of_shard(path: str) -> str:
    """The split in the path of a file of many images, such as "train/0000" or "set-train-00001"; "" without one."""
    for part in reversed(path.split("/")):
        found = [SPLIT_NAMES[word] for word in re.split(r"[-_.\s]+", part.lower()) if word in SPLIT_NAMES]
        if found:
            return found[0]
    return ""


def wanted_splits(text: str) -> set[str]:
    """The splits that `config.data.split` names; empty for all."""
    names = {split_name(name) for name in text.split("+") if name.strip()}
    return set() if "all" in {name.lower() for name in names} else names


def choose_splits(splits: Sequence[str], text: str, place: str) -> tuple[list[int], dict[str, int]]:
    """The examples of the splits that `config.data.split` names, and how many each other split has.

    All examples, if none has a split. Raises `UserError` if no example is of such a split.

    splits: the split of every example; "" if it has none.
    text: `config.data.split`.
    place: what is read, for the message.
    """
    wanted, present = wanted_splits(text), {split for split in splits if split}
    if not wanted or not present:
        return list(range(len(splits))), {}
    # The default names several splits, and not all of them need to exist.
    if not wanted & present:
        choices = ", ".join(sorted(present))
        raise UserError(f"config.data.split: '{text}' is not a split of {place}. Choices: {choices}, all.")
    unused = Counter(split or "no split" for split in splits if split not in wanted)
    return [i for i, split in enumerate(splits) if split in wanted], dict(unused)


class MaskName(NamedTuple):
    """The parts of the name of a file that is called like a mask.

    case: the name without the word for a mask; "" if nothing remains.
    word: the word for a mask, in lower case.
    at_end: whether the word stands at the end.
    number: what follows the word at the end, such as "_1" of `x_mask_1`; "" if nothing does.
    """

    case: str
    word: str
    at_end: bool
    number: str = ""


def of_mask(stem: str) -> MaskName | None:
    """Read a file name (without suffix) as that of a mask. `None` if it is not called like one."""
    found = _MASK_END.match(stem)
    if found and (found["case"] or not found["number"]):
        case = found["case"].rstrip("-_. ")
        inner = of_mask(case) if case else None  # 1_binary_mask
        case = inner.case if inner and inner.at_end else case
        return MaskName(case, found["word"].lower(), True, found["number"] or "")
    found = _MASK_START.match(stem)
    if found:
        return MaskName(found["case"] or found["number"], found["word"].lower(), False)
    return None


def without_channel(stem: str) -> tuple[str, str]:
    """Split nnU-Net's channel number off a name: `case_0001` is `("case", "0001")`; "" without one."""
    found = _CHANNEL.search(stem)
    return (stem[: found.start()], found[1]) if found else (stem, "")


def without_leading_word(stem: str) -> str:
    """A name without its leading word: `bus_0001-l`, `img0001` and `volume-3` are `0001-l`, `0001` and `3`."""
    return re.sub(r"^[A-Za-z]+(?:[-_ ][A-Za-z]+)*[-_ ]?(?=\d)", "", stem)


def like_patients(folders: Iterable[str], at_least: int = 12) -> bool:
    """Whether folders are named like patients: many, and each a number, or a short word and a number."""
    names = set(folders)
    return len(names) >= at_least and all(is_id(name) for name in names)


def like_numbered_patients(folders: Iterable[str]) -> bool:
    """Whether two or more folders are numbered like patients: `P00` to `P09`, but not `BIRADS3` to `BIRADS5`."""
    names = sorted(set(folders))
    shapes = {re.sub(r"\d+", lambda m: f"<{len(m[0])}>", name.casefold()) for name in names}
    padded = any(re.search(r"(?<!\d)0\d", name) for name in names) or all(re.search(r"\d{3}", name) for name in names)
    return len(names) > 1 and len(shapes) == 1 and padded and all(is_id(name) for name in names)


def is_id(folder: str) -> bool:
    """Whether the name of a folder could be the identifier of a patient, such as `p01`, `case_003` or `sub-r001`."""
    if _NO_PATIENT.match(folder) or not re.search(r"\d", folder):
        return False
    words = re.findall(r"[^\W\d_]+", folder)
    return folder.lower().startswith("sub-") or (len(words) <= 4 and all(len(word) <= 12 for word in words))


def without_sequence(stem: str) -> str:
    """The name of a volume without that of its sequence: `IXI001-Guys-01-T1` is `IXI001-Guys-01`."""
    return _SEQUENCE.sub("", stem)


def patient_of_folder(folder: str, case: str) -> str:
    """The patient of a volume whose file name other folders have, too: that of its folder, or of its name.

    Folders of sequences, examinations and places are no patients: `smith/visit1/T1` is of `smith`, `T1/p1` of `p1`.

    folder: with `/` between its parts.
    case: the name of the volume without sequence and visit.
    """
    parts, many = folder.split("/"), False
    while parts:
        if _PLACE_FOLDER.match(parts[-1]) or (_MODALITY_FOLDER.match(parts[-1]) and re.fullmatch(r"\d{1,4}", case)):
            many = True  # it counts its patients anew, so its name is a part of theirs
            break
        if _SEQUENCE_FOLDER.match(parts[-1]) or _MODALITY_FOLDER.match(parts[-1]):
            many = True
        elif not _EXAMINATION_FOLDER.match(parts[-1]):
            break
        parts.pop()
    return "/".join([*parts, case] if not parts or (many and is_id(case)) else parts)


def without_visit(stem: str) -> str:
    """A name without words at its end that say which examination of a patient it is: `p1_fu` is `p1`."""
    words = re.split(r"([-_. ])", stem)
    while len(words) > 2 and _VISIT.match(words[-1]):
        words = words[:-2]
    return "".join(words)


def is_same_visit(rest: str) -> bool:
    """Whether the rest of a volume's name after that of its mask, "T1" or "art", can be one of its sequences.

    It cannot if it names another examination of the patient, such as "fu_T1".
    """
    return not any(_VISIT.match(word) for word in re.split(r"[-_. ]", rest))


def visit(stem: str) -> str:
    """The words of a name that say which examination of a patient it is, with their numbers; "" without them."""
    words = re.split(r"[-_. ]", stem.casefold())
    found = [i for i, word in enumerate(words) if _VISIT.match(word)]
    return " ".join(" ".join([words[i], *(w for w in words[i + 1 : i + 2] if w.isdigit())]) for i in found)


def channel_cases(stems: Iterable[str]) -> set[str]:
    """The names of cases with nnU-Net's channels, which start at `_0000`; in lower case."""
    return {stem.casefold()[:-5] for stem in stems if stem.endswith("_0000")}


def views(stems: Sequence[str]) -> str:
    """What names that look like several views of one patient suggest, such as `bus_0004-l` and `bus_0004-r`.

    A sentence with a pattern for `config.data.group_pattern`; "" if they do not look like that.
    """
    ids = [found["id"] if (found := _VIEW.match(stem)) else "" for stem in stems]
    counts = Counter(i for i in ids if i)
    several = sum(count for count in counts.values() if count > 1)
    if several < max(4, 0.2 * len(stems)) or sum(count > 1 for count in counts.values()) < 2:
        return ""
    shapes = Counter(re.sub(r"\d+", "0", i) for i in ids if i)
    pattern = _pattern_of(shapes)
    known = [match[1] for stem in stems if (match := re.search(pattern, stem))]
    if len(set(known)) < 2 or len(set(known)) >= len(known):
        return ""
    others = f"; {len(stems) - len(known)} names do not match it" if len(known) < len(stems) else ""
    return (
        f"names such as '{stems[0]}' look like several views of one patient, and no patients are known; "
        f'config.data.group_pattern="{pattern}" makes {len(set(known))} patients of {len(known)} images{others}'
    )


def _pattern_of(shapes: Counter[str]) -> str:
    """A pattern for the names of patients from their shapes, in which 0 stands for any number.

    If shapes differ in a word before the same rest, `benign_bus_0` and `malignant_bus_0`, it is that of the rest.
    """
    shape, start = shapes.most_common(1)[0][0], "(?:^|/)"  # the names that the pattern is for have folders before them
    ends = itertools.takewhile(lambda chars: len(set(chars)) == 1, zip(*(name[::-1] for name in shapes), strict=False))
    rest = "".join(chars[0] for chars in ends)[::-1]
    if len(shapes) > 1:
        rest = re.sub(r"^[A-Za-z0]*(?=[-_ ])", "", rest).lstrip("-_ ")
        if re.search(r"[A-Za-z].*0", rest):
            shape, start = rest, "(?:^|[-_ /])"
    escaped = re.escape(shape).replace(r"\ ", " ").replace(r"\-", "-")
    return f"{start}({escaped.replace('0', NUMBER)})"
