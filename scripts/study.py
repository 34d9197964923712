r"""Run a study of methods, seeds and folds, and write one table with the paper's numbers beside ours.

    python scripts/study.py studies/methods.py --preset=cpu --output=runs/methods
    python scripts/study.py studies/methods.py --preset=full --output=runs/methods \
      --pretrain_root=/my/images --finetune_root=/my/labelled --pretrain_seeds=0,1,2 --folds=0,1,2,3,4
    python scripts/study.py --rebuild=runs/methods      # writes its tables again, in place

`--preset=cpu` uses simulated phantoms and takes less than an hour on two cores; its numbers show that everything
works, not which method is better on ultrasound. `--pretrain_root` and `--finetune_root` take a folder or CSV of images
in their place. Finished runs are not repeated and interrupted runs are resumed. Two methods that differ only in
fine-tuning share their pre-training. `--set NAME=VALUE` overrides a field of every fine-tuning run, `--set_pretrain`
one of every pre-training run; `--only` selects methods.

`--folds` are drawn from the images. Official folds are lists, one for each, with the column `split` and the fold in
their names: `--finetune_root='lists/busbra_{fold}.csv' --folds=1,2,3,4`. With `{fold}` in `--pretrain_root` too, every
fold has a pre-training of its own, so that it can use the training images without having seen the test images.

A method may start from a weight file in the folder of `--weights`, or be quoted; the table says of each row whether it
was run. The predictions of every network are kept in `cases.csv.gz`, from which `--rebuild` writes the table again
without the runs. `--ensembles` adds a row for the mean probabilities of all networks of a method, and with `--rebuild`
`--average="A;B"` one for two methods, such as networks and hand-made features, whose ensembles count the same.
"""

import argparse
import ast
import hashlib
import importlib.util
import inspect
import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deblur_mae_jax.data import buckets
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.reports import ensembles
from deblur_mae_jax.reports import study as table

FOLD = "{fold}"


def parse(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", help="file that defines the study, such as studies/methods.py")
    parser.add_argument("--output", help="folder of the runs and the table")
    parser.add_argument("--rebuild", default="", metavar="FOLDER", help="write the table again from the kept cases")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--pretrain_root", default="")
    parser.add_argument("--finetune_root", default="")
    parser.add_argument("--init_from", default="", help="run or weight file that a study starts from")
    parser.add_argument("--seeds", default="", help="seeds of fine-tuning, such as 0,1,2")
    parser.add_argument("--pretrain_seeds", default="0", help="seeds of pre-training, such as 0,1,2")
    parser.add_argument("--folds", default="0", help="test folds, such as 0,1,2,3,4")
    parser.add_argument("--only", default="", help="methods, separated by semicolons")
    parser.add_argument(
        "--reference", default="", help="method, or with --rebuild any row, that the others are compared with"
    )
    parser.add_argument(
        "--ensembles", action="store_true", help="also judge the mean probabilities of all classifiers of a method"
    )
    parser.add_argument("--average", default="", metavar="A;B", help="also judge the mean of two methods")
    parser.add_argument("--weights", default="", help="folder of weight files that some methods start from")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--set_pretrain", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--dry_run", action="store_true", help="print the runs and stop")
    parsed = parser.parse_args(arguments)
    if not parsed.rebuild and not (parsed.study and parsed.output):
        parser.error("a study and --output are needed, or --rebuild=FOLDER")
    if parsed.rebuild and (parsed.study or parsed.output):
        parser.error(
            "--rebuild=FOLDER writes the tables of that folder: copy the folder to keep the old ones, and leave out "
            "the study and --output"
        )
    if parsed.average and not parsed.rebuild:
        parser.error("--average needs --rebuild=FOLDER")
    return parsed


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


def load(name, preset):
    """Load the study that a file defines; a word after a colon is for the study, as for a config."""
    name, _, word = str(name).partition(":")
    path = Path(name)
    if not path.exists():
        raise UserError(f"'{path}' does not exist; the studies that come with this are in studies/")
    from studies.common import PRESETS

    if preset not in PRESETS:
        raise UserError(f"--preset={preset}. Choices: {', '.join(PRESETS)}")
    spec = importlib.util.spec_from_file_location("study_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if word and len(inspect.signature(module.get_study).parameters) < 2:
        raise UserError(f"'{path}' takes no word after a colon, and has ':{word}'")
    return module.get_study(preset, word) if word else module.get_study(preset)


def slug(text):
    """Turn text into a folder name."""
    return "".join(c if c.isalnum() else "_" for c in text).strip("_")


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


def _numbers(text, flag):
    """Whole numbers separated by commas. Raises `UserError`."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UserError(f"{flag}={text} must be whole numbers separated by commas, such as 0,1,2") from error


def _code(*content):
    """Eight letters that differ between settings."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


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


def of_fold(root, fold):
    """The folder or list of the images for one fold."""
    return root.replace(FOLD, str(fold))


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
        folder = f"pretrain_{slug(method['pretrain'])}_{_code(method['pretrain'], overrides)}"
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
        if source:
            overrides["init_from"] = str(source)
        config = method.get("finetune", "finetune" if source else "from_scratch")
        folder = f"{slug(name)}_fold{fold}_seed{seed}_{_code(config, overrides)}"
        place = Path(arguments.output).expanduser().resolve() / folder
        shown = Path(arguments.finetune_root, method.get("list", "")).name
        out.append(Run("finetune", name, training, seed, fold, place, config, overrides, shown))
    return out


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


def state_of(method, found, arguments):
    """What the table says of a row: run, quoted, or what is missing."""
    if method.get("quoted"):
        return "quoted"
    if found:
        return "run"
    missing = lacks(method, arguments)
    return f"needs {missing}" if missing else "not run"


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


def settings_of(runs):
    """Eight letters for each method, which are the same for all of its seeds and folds; folders may have moved.

    `settings` stands for all of them, `start` for those of the pre-training, which several methods may share.
    """
    apart, found = {"seed", "data.fold", "init_from"}, {}
    for run in runs:
        kept = {k: run.images if k == "data.root" else v for k, v in run.overrides.items() if k not in apart}
        found.setdefault(run.method, {})[run.kind] = (run.config, kept)
    starts = {run.folder: found[run.method]["pretrain"] for run in runs if run.kind == "pretrain"}
    for run in runs:
        source = Path(run.overrides.get("init_from", ""))
        if run.kind == "finetune" and source in starts:  # another method may have trained it
            found[run.method]["pretrain"] = starts[source]
    return {method: {"settings": _code(parts)} | ({"start": _code(parts["pretrain"])} if "pretrain" in parts else {})
            for method, parts in found.items()}  # fmt: skip


def require_same_settings(output, runs):
    """Raise `UserError` if the folder keeps runs of a method with other settings, which a table would mix."""
    if not (output / table.FACTS).exists():
        return
    kept, now = table.kept(output)[1]["methods"], settings_of(runs)
    mixed = [name for name, own in now.items() if kept.get(name, own).get("settings", "") not in ("", own["settings"])]
    if mixed:
        raise UserError(
            f"--output: '{output}' keeps runs of {', '.join(mixed)} with other settings or images; use another folder, "
            f"or remove its {table.FACTS} and {table.CASES}"
        )


def facts_of(study, runs, arguments):
    """What the table says besides the measures: methods with the paper's numbers, their states and leaks."""
    methods, settings = {}, settings_of(runs)
    for name, method in study["methods"].items():
        found = [run for run in runs if run.kind == "finetune" and run.method == name and finished(run.folder)]
        if not found and "quoted" not in study:
            continue
        measures = [json.loads((run.folder / "metrics.json").read_text()) for run in found]
        methods[name] = {
            "state": state_of(method, found, arguments),
            "leakage": any(m["leakage"] for m in measures),
            "paper": method.get("paper", {}),
        } | (settings[name] if found else {})
    facts = {
        "title": study["title"],
        "methods": methods,
        "phantoms": bool(study["phantoms"]) and not arguments.finetune_root,
        "small": arguments.preset == "cpu",
    }
    if any(method["paper"] for method in methods.values()):
        facts["paper_set"] = study.get("paper_set", "")
    if "quoted" in study:
        facts["quotes"] = list(study["quoted"])
    if arguments.ensembles:
        facts["ensembles"] = list(methods)
    reference = arguments.reference or study.get("reference", "")
    return facts | ({"reference": reference} if reference in methods else {})


def networks_of(runs):
    """The test cases of every finished fine-tuning."""
    return [
        table.read_network(run.folder, run.method, str(run.training), run.seed, run.fold)
        for run in runs
        if run.kind == "finetune" and finished(run.folder)
    ]


def joined(output, networks, facts, order=()):
    """These networks, and those that an earlier command with other seeds, folds or methods kept in the folder.

    order: the methods in the order of the study; rows that it lacks come last.
    """
    if not (output / table.FACTS).exists():
        return networks, facts
    before, old = table.kept(output)
    key = lambda n: (n.method, n.training, n.seed, n.fold)
    now = {key(n) for n in networks}
    earlier = [n for n in before if key(n) not in now]
    ran = {n.method for n in earlier}
    methods = facts["methods"] | {
        name: about for name, about in old["methods"].items()
        if name in ran and facts["methods"].get(name, {}).get("state") != "run"
    }  # fmt: skip
    for name in ran & set(old["methods"]) & set(methods):
        methods[name] = methods[name] | {"leakage": methods[name]["leakage"] or old["methods"][name]["leakage"]}
    order = [name for name in order if name in methods]
    methods = {name: methods[name] for name in [*order, *(name for name in methods if name not in order)]}
    carried = {
        "reference": facts.get("reference") or old.get("reference"),
        "averaged": old.get("averaged", []),
        "ensembles": list(dict.fromkeys([*old.get("ensembles", []), *facts.get("ensembles", [])])),
    }
    return networks + earlier, facts | {"methods": methods} | {k: v for k, v in carried.items() if v}


def write(output, networks, facts):
    """Write the tables and print them."""
    print(table.write(networks, facts, output))
    print(f"table {output / 'table.md'}")


def rebuild(arguments):
    """Write the tables of a kept study again, with the rows that are asked for."""
    folder = Path(arguments.rebuild).expanduser()
    networks, facts = table.kept(folder)
    pair = [name.strip() for name in arguments.average.split(";")] if arguments.average else []
    for name in pair:
        if name not in facts["methods"]:
            raise unknown("--average", name, facts["methods"])
    if pair and len(pair) != 2:
        raise UserError(f"--average={arguments.average} must name two methods, separated by a semicolon")
    if arguments.ensembles:
        facts["ensembles"] = list(facts["methods"])
    if pair and pair not in facts.get("averaged", []):
        facts["averaged"] = [*facts.get("averaged", []), pair]
    if arguments.reference:
        every = ensembles.add(networks, facts)[1]["methods"]  # the rows that --ensembles and --average add, too
        if arguments.reference not in every:
            raise unknown("--reference", arguments.reference, every)
        facts["reference"] = arguments.reference
    if arguments.reference or arguments.ensembles or pair:
        table.keep(networks, facts, folder)
    write(folder, networks, facts)


def main():
    """Plan, run, collect."""
    arguments = parse()
    try:
        if arguments.rebuild:
            rebuild(arguments)
            return
        study = load(arguments.study, arguments.preset)
        runs = plan(study, arguments)
        require_same_settings(Path(arguments.output).expanduser(), runs)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    if arguments.dry_run:
        for run in runs:
            state = "# done before: " if finished(run.folder) else ""
            print(state + shlex.join(command(run.folder, run.config, run.overrides)))
        print(f"# {len(runs)} runs: {sum(r.kind == 'pretrain' for r in runs)} of pre-training, the rest fine-tuning")
        return
    output = Path(arguments.output).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    failed = execute(runs)
    facts = facts_of(study, runs, arguments)
    try:
        networks, facts = joined(output, networks_of(runs), facts, list(study["methods"]))
        table.keep(networks, facts, output)
        write(output, networks, facts)
    except UserError as error:  # the runs are kept: the same command writes the table once the fault is mended
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    if failed:
        print(f"error: {len(failed)} run(s) failed or were left out: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
