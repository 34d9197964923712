"""The runs of a study: which there are, the settings and the folder of each, and their execution one by one."""

import ast
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from deblur_mae_jax.config import finetuning
from deblur_mae_jax.data import buckets
from deblur_mae_jax.errors import UserError, unknown

ROOT = Path(__file__).resolve().parent.parent
FOLD = "{fold}"
FOLDS = int(finetuning().data.folds)


class Run(NamedTuple):
    """One run of a study.

    training: the seed of its pre-training, "" where it starts from scratch.
    images: the name of its folder or list, the same for all folds; "" for phantoms.
    """

    kind: str
    method: str
    training: int | str
    seed: int
    fold: int
    folder: Path
    config: str
    overrides: dict
    images: str = ""

    @property
    def described(self):
        """Its seeds and fold in words."""
        if self.kind == "pretrain":
            return f"seed {self.training}"
        before = f"pre-training seed {self.training}, " if self.training != "" else ""
        return f"{before}fold {self.fold}, seed {self.seed}"


def plan(study, arguments):
    """Every run in order."""
    only = [name.strip() for name in arguments.only.split(";") if name.strip()]
    wrong = [name for name in only if name not in study["methods"]]
    if wrong:
        raise UserError(f"--only: no method '{wrong[0]}'. Choices: {'; '.join(study['methods'])}")
    if study.get("starts") and not (arguments.init_from and arguments.finetune_root):
        raise UserError("this study needs --init_from, a run or a weight file, and --finetune_root, a folder of lists")
    if arguments.init_from and not study.get("starts"):
        raise UserError(f"--init_from={arguments.init_from}: this study has its own pre-trainings")
    every = _numbers(arguments.folds, "--folds")
    roots = ("finetune_root", "pretrain_root")
    lists = [(flag, of_fold(getattr(arguments, flag), fold)) for flag in roots for fold in every]
    given = [(flag, getattr(arguments, flag)) for flag in ("init_from", "weights")]
    for flag, value in given + lists:
        if value and missing(value):
            raise UserError(f"--{flag}: '{missing(value)}' does not exist")
    if arguments.reference and arguments.reference not in study["methods"]:
        raise unknown("--reference", arguments.reference, study["methods"])
    runs, done = [], set()
    for name, method in study["methods"].items():
        if (only and name not in only) or method.get("quoted") or lacks(method, arguments):
            continue
        file = weights_of(method, arguments.weights)
        if arguments.init_from:
            file = _absolute(arguments.init_from)
        for folds in [[fold] for fold in every] if FOLD in arguments.pretrain_root else [every]:
            starts = pretrainings(study, name, method, folds[0], arguments) if method.get("pretrain") else []
            runs += [run for run in starts if run.folder not in done]
            done |= {run.folder for run in starts}
            for training, source in [(run.training, run.folder) for run in starts] or [("", file)]:
                runs += finetunings(study, name, method, (training, source), folds, arguments)
    if not runs:
        raise UserError(f"no method can be run: each needs a file that is not in '{arguments.finetune_root}'")
    return runs


def pretrainings(study, name, method, fold, arguments):
    """The pre-trainings of a method, one per seed. Methods that differ in fine-tuning alone share them.

    fold: number for a `--pretrain_root` that has a list for each.
    """
    out = []
    for seed in _numbers(arguments.pretrain_seeds, "--pretrain_seeds"):
        overrides = {**study["pretrain"], **method.get("pretrain_overrides", {}),
                     **_images(study, "pretrain", of_fold(arguments.pretrain_root, fold)),
                     **_overrides(arguments.set_pretrain, "--set_pretrain")}  # fmt: skip
        overrides |= {"seed": seed} if seed else {}
        folder = f"pretrain_{slug(method['pretrain'])}_{code(method['pretrain'], overrides)}"
        place = Path(arguments.output).expanduser().resolve() / folder
        shown = Path(arguments.pretrain_root).name
        out.append(Run("pretrain", name, seed, seed, 0, place, method["pretrain"], overrides, shown))
    return out


def finetunings(study, name, method, start, folds, arguments):
    """The fine-tunings of a method from one pre-training, from a file of weights or from scratch.

    start: number of the pre-training, "" if there is none, and where its weights are.
    """
    out, (training, source) = [], start
    seeds = _numbers(arguments.seeds, "--seeds") if arguments.seeds else study["seeds"]
    for fold, seed in itertools.product(folds, seeds):
        images = _images(study, "finetune", of_fold(arguments.finetune_root, fold), method.get("list", ""))
        scratch = {} if source else method.get("scratch", study["scratch"])
        overrides = {**study["finetune"], **scratch, "seed": seed, "data.fold": fold,
                     **method.get("finetune_overrides", {}), **images,
                     **_overrides(arguments.set, "--set")}  # fmt: skip
        count = int(overrides.get("data.folds", FOLDS))
        if fold >= count and FOLD not in arguments.finetune_root:
            raise UserError(
                f"--folds: {fold} is not below config.data.folds={count}; --set data.folds=N divides into N"
            )
        overrides["data.fold"] %= count  # of a list, only the validation images depend on it
        if source:
            overrides["init_from"] = str(source)
        config = method.get("finetune", "finetune" if source else "from_scratch")
        folder = f"{slug(name)}_fold{fold}_seed{seed}_{code(config, overrides)}"
        place = Path(arguments.output).expanduser().resolve() / folder
        shown = Path(arguments.finetune_root, method.get("list", "")).name
        out.append(Run("finetune", name, training, seed, fold, place, config, overrides, shown))
    return out


def of_fold(root, fold):
    """The folder or list of the images for one fold."""
    return root.replace(FOLD, str(fold))


def _images(study, kind, root, file=""):
    """Where the images of a kind of run come from: the user's folder or CSV, a list in this folder, or phantoms."""
    if not root:
        return study["phantoms"].get(kind, {})
    place = absolute(f"{root.rstrip('/')}/{file}" if file else root)
    return {"data.root": place} | ({"data.name": "manifest"} if place.endswith(".csv") else {})


def absolute(root):
    """The folders of "lung=ct;brain=mr" as absolute paths, because runs start in the repository; addresses stay."""
    parts = [part.partition("=") for part in root.split(";")]
    return ";".join(str(_absolute(path)) + equals + modality for path, equals, modality in parts)


def _absolute(path):
    return path if buckets.is_address(path) else Path(path).expanduser().resolve()


def missing(root):
    """The first of the paths in `root` that does not exist; None if all do, or are addresses."""
    paths = [part.partition("=")[0] for part in root.split(";")]
    return next((p for p in paths if not buckets.is_address(p) and not Path(p).expanduser().exists()), None)


def weights_of(method, folder):
    """The file or folder of weights that a method starts from; None if there is none."""
    name = method.get("weights")
    if not name or not folder:
        return None
    place = Path(folder).expanduser().resolve()
    choices = [place / name, *(place / f"{name}{end}" for end in (".safetensors", ".pth", ".pth.tar", ".bin"))]
    return next((path for path in choices if path.exists()), None)


def lacks(method, arguments):
    """The file that a method needs and that is not there; "" if it has all."""
    if method.get("weights") and weights_of(method, arguments.weights) is None:
        return method["weights"]
    file = method.get("list", "")
    return file if file and not (Path(arguments.finetune_root).expanduser() / file).exists() else ""


def _overrides(items, flag):
    out = {}
    for item in items:
        name, _, value = item.partition("=")
        if "=" not in item:
            raise UserError(f"{flag}: '{item}' must be NAME=VALUE")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[name] = value
    return out


def _numbers(text, flag):
    """Whole numbers separated by commas. Raises `UserError`."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UserError(f"{flag}={text} must be whole numbers separated by commas, such as 0,1,2") from error


def slug(text):
    """Turn text into a folder name."""
    return "".join(c if c.isalnum() else "_" for c in text).strip("_")


def code(*content):
    """Eight letters that differ between settings."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def finished(folder):
    """Whether a run is done."""
    path = folder / "result.json"
    return path.exists() and json.loads(path.read_text()).get("finished", False)


def command(folder, config, overrides):
    """The command line of a run."""
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    file, colon, words = config.partition(":")
    return [sys.executable, "main.py", f"--config=configs/{file}.py{colon}{words}", f"--workdir={folder}", *flags]


def execute(runs):
    """Run all unfinished runs. If a run fails, report it and continue with those that do not start from it."""
    failed = []
    trained = {str(run.folder): run.folder for run in runs if run.kind == "pretrain"}
    for number, run in enumerate(runs, start=1):
        what = f"[{number}/{len(runs)}] {run.kind} {run.method}, {run.described}"
        if finished(run.folder):
            print(f"{what}: done before", flush=True)
            continue
        print(what, flush=True)
        source = trained.get(run.overrides.get("init_from", ""))
        if source and not finished(source):
            print(f"  left out: its pre-training in {source} is not finished", flush=True)
            failed.append(run.method)
            continue
        run.folder.mkdir(parents=True, exist_ok=True)
        with open(run.folder / "log.txt", "a", encoding="utf-8") as log:
            line = command(run.folder, run.config, run.overrides)
            done = subprocess.run(line, cwd=ROOT, stdout=log, stderr=log)
        if done.returncode:
            lines = (run.folder / "log.txt").read_text().strip().splitlines()
            said = [line for line in lines if line.startswith("error:")] or lines  # stacks may follow the message
            print(f"  failed: {' '.join(said[-1:])}", flush=True)
            failed.append(run.method)
    return failed
