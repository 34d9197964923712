"""Run a study of methods, seeds and folds, and write one table with the paper's numbers beside ours.

    python scripts/study.py studies/methods.py --preset=cpu --output=runs/methods
    python scripts/study.py studies/methods.py --preset=full --output=runs/methods \\
      --pretrain_root=/my/images --finetune_root=/my/labelled --folds=0,1,2,3,4

`--preset=cpu` uses simulated phantoms and takes less than an hour on two cores; its numbers show that everything
works, not which method is better on ultrasound. Finished runs are not repeated and interrupted runs are resumed. Two
methods that differ only in fine-tuning share their pre-training. `--set NAME=VALUE` overrides a field of every
fine-tuning run, `--set_pretrain` one of every pre-training run; `--only` selects methods. A method may start from a
weight file in the folder of `--weights`, or be quoted; the table says of each row whether it was run.
"""

import argparse
import ast
import csv
import hashlib
import html
import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.metrics import statistics
from deblur_mae_jax.reports import page as report

SHOWN = ("accuracy", "f1_binary", "f1_macro", "auroc", "dice", "hd95", "surface_distance")
# Measures from 0 to 1 are shown in percent, distances in their own unit.
LENGTHS = ("hd95", "surface_distance")


def parse(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--output", required=True, help="folder of the runs and the table")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--pretrain_root", default="")
    parser.add_argument("--finetune_root", default="")
    parser.add_argument("--seeds", default="", help="seeds of fine-tuning, such as 0,1,2")
    parser.add_argument("--folds", default="0", help="test folds, such as 0,1,2,3,4")
    parser.add_argument("--only", default="", help="methods, separated by commas")
    parser.add_argument("--weights", default="", help="folder of weight files that some methods start from")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--set_pretrain", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--dry_run", action="store_true", help="print the runs and stop")
    return parser.parse_args(arguments)


def _overrides(items):
    out = {}
    for item in items:
        name, _, value = item.partition("=")
        if "=" not in item:
            raise UserError(f"--set: '{item}' must be NAME=VALUE")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[name] = value
    return out


def load(path, preset):
    """Load the study that a file defines."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"'{path}' does not exist; the studies that come with this are in studies/")
    from studies.common import PRESETS

    if preset not in PRESETS:
        raise UserError(f"--preset={preset}. Choices: {', '.join(PRESETS)}")
    spec = importlib.util.spec_from_file_location("study_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_study(preset)


def slug(text):
    """Turn text into a folder name."""
    return "".join(c if c.isalnum() else "_" for c in text).strip("_")


def plan(study, arguments):
    """Every run in order: (kind, method, seed, fold, folder, config file, overrides)."""
    out = Path(arguments.output).expanduser().resolve()
    seeds = [int(s) for s in arguments.seeds.split(",")] if arguments.seeds else study["seeds"]
    folds = [int(f) for f in arguments.folds.split(",")]
    only = [name.strip() for name in arguments.only.split(",") if name.strip()]
    unknown = [name for name in only if name not in study["methods"]]
    if unknown:
        raise UserError(f"--only: no method '{unknown[0]}'. Choices: {', '.join(study['methods'])}")
    runs, pretrained = [], {}
    for name, method in study["methods"].items():
        if (only and name not in only) or method.get("quoted"):
            continue
        source = weights_of(method, arguments.weights)
        if method.get("weights") and source is None:
            continue
        if method.get("pretrain"):
            overrides = {**study["pretrain"], **method.get("pretrain_overrides", {}),
                         **_overrides(arguments.set_pretrain)}  # fmt: skip
            if arguments.pretrain_root:
                overrides["data.root"] = str(Path(arguments.pretrain_root).expanduser().resolve())
            key = json.dumps([method["pretrain"], overrides], sort_keys=True, default=str)
            code = hashlib.sha256(key.encode()).hexdigest()[:8]
            source = out / f"pretrain_{slug(method['pretrain'])}_{code}"
            if key not in pretrained:
                pretrained[key] = source
                runs.append(("pretrain", name, 0, 0, source, method["pretrain"], overrides))
        for fold in folds:
            for seed in seeds:
                scratch = {} if source else method.get("scratch", study["scratch"])
                overrides = {**study["finetune"], **scratch, "seed": seed, "data.fold": fold,
                             **method.get("finetune_overrides", {}),
                             **_overrides(arguments.set)}  # fmt: skip
                if arguments.finetune_root:
                    overrides["data.root"] = str(Path(arguments.finetune_root).expanduser().resolve())
                if source:
                    overrides["init_from"] = str(source)
                config = method.get("finetune", "finetune" if source else "from_scratch")
                code = hashlib.sha256(json.dumps([config, overrides], sort_keys=True, default=str).encode())
                folder = out / f"{slug(name)}_fold{fold}_seed{seed}_{code.hexdigest()[:8]}"
                runs.append(("finetune", name, seed, fold, folder, config, overrides))
    return runs


def weights_of(method, folder):
    """The file or folder of weights that a method starts from; None if there is none."""
    name = method.get("weights")
    if not name or not folder:
        return None
    place = Path(folder).expanduser().resolve()
    choices = [place / name, *(place / f"{name}{end}" for end in (".safetensors", ".pth", ".pth.tar", ".bin"))]
    return next((path for path in choices if path.exists()), None)


def state_of(method, found, arguments):
    """What the table says of a row: run, quoted, or what is missing."""
    if method.get("quoted"):
        return "quoted"
    if found:
        return "run"
    if method.get("weights") and weights_of(method, arguments.weights) is None:
        return f"needs {method['weights']}"
    return "not run"


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
    """Run all unfinished runs. If a run fails, report it and continue with the others."""
    failed = []
    for number, (kind, name, seed, fold, folder, config, overrides) in enumerate(runs, start=1):
        what = f"[{number}/{len(runs)}] {kind} {name}, fold {fold}, seed {seed}"
        if finished(folder):
            print(f"{what}: done before", flush=True)
            continue
        print(what, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            done = subprocess.run(command(folder, config, overrides), cwd=ROOT, stdout=log, stderr=log)
        if done.returncode:
            last = (folder / "log.txt").read_text().strip().splitlines()[-1:]
            print(f"  failed: {' '.join(last)}", flush=True)
            failed.append(name)
    return failed


def collect(study, runs, folds, arguments):
    """One row per method: mean, standard deviation and interval of each measure, and the paper's number.

    Rows without a finished run are left out, except in a study that also quotes.
    """
    rows = []
    for name, method in study["methods"].items():
        found = []
        for kind, of, _, fold, folder, _, _ in runs:
            path = folder / "metrics.json"
            if kind == "finetune" and of == name and path.exists() and finished(folder):
                found.append((fold, json.loads(path.read_text())))
        if not found and "quoted" not in study:
            continue
        row = {"method": name, "runs": len(found), "leakage": any(n["leakage"] for _, n in found)}
        row |= {"state": state_of(method, found, arguments), "paper": method.get("paper", {})}
        for measure in SHOWN:
            entries = [(f, n["splits"][n["judged_on"]]["per_image"].get(measure)) for f, n in found]
            values = [(f, e["value"]) for f, e in entries if e and e["value"] is not None]
            if not values:
                continue
            if folds > 1:  # average the seeds within a fold, so that only folds vary
                n_train = np.mean([n["n_train"] for _, n in found])
                n_test = np.mean([n["splits"][n["judged_on"]]["images"] for _, n in found])
                by_fold = [np.mean([v for g, v in values if g == f]) for f in sorted({f for f, _ in values})]
                mean, sd, interval = statistics.over_folds(by_fold, n_train, n_test)
            else:
                mean, sd, interval = statistics.over_runs([v for _, v in values])
            by = 1.0 if measure in LENGTHS else 100.0
            row[measure] = {"mean": by * mean, "sd": by * sd, "low": by * interval.low,
                            "high": by * interval.high,
                            "paper": method.get("paper", {}).get(measure)}  # fmt: skip
        rows.append(row)
    return rows


def text_of(cell):
    """`89.1 ± 0.4 (88.1 to 90.1)`."""
    if cell is None:
        return ""
    text = f"{cell['mean']:.1f}" if cell["mean"] >= 10 else f"{cell['mean']:.2f}"
    if np.isfinite(cell["sd"]):
        text += f" ± {cell['sd']:.1f} ({cell['low']:.1f} to {cell['high']:.1f})"
    return text


def write(study, rows, output, folds, preset):
    """Write `table.md`, `table.csv` and `table.html`."""
    measures = [m for m in SHOWN if any(m in row for row in rows)]
    if "quoted" in study:  # measures that only the paper gives
        measures = [m for m in SHOWN if m in measures or any(m in row["paper"] for row in rows)]
    also = study.get("quoted", ())
    head = ["method", *(["state"] if also else []), "runs"]
    for measure in measures:
        head += [measure, f"{measure}, paper"]
    head += [f"{name}, paper" for name in also]
    body = []
    for row in rows:
        number = lambda value: "" if value is None else f"{value:.2f}"
        cells = [row["method"] + (" (LEAKAGE)" if row["leakage"] else ""), *([row["state"]] if also else [])]
        cells.append(str(row["runs"]))
        for measure in measures:
            cells += [text_of(row.get(measure)), number(row["paper"].get(measure))]
        cells += [number(row["paper"].get(name)) for name in also]
        body.append(cells)
    kind = "folds (Nadeau-Bengio)" if folds > 1 else "fine-tuning seeds (Student)"
    note = (
        f"Percent (distances in mm or pixels); mean ± standard deviation over {kind} and the 95 % interval of "
        "the mean; not over test cases. The paper's numbers were measured on its own images, not on these."
    )
    if preset == "cpu":
        note += " Simulated phantoms, a small network and a short training: not a result on ultrasound."
    lines = [f"# {study['title']}", "", "| " + " | ".join(head) + " |",
             "|" + "---|" * len(head), *("| " + " | ".join(cells) + " |" for cells in body), "", note]  # fmt: skip
    (output / "table.md").write_text("\n".join(lines) + "\n")
    with open(output / "table.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        names = ["mean", "sd", "low", "high", "paper"]
        out.writerow(["method", "runs", *(f"{m}_{n}" for m in measures for n in names)])
        for row in rows:
            values = [row.get(m, {}).get(n) for m in measures for n in names]
            out.writerow([row["method"], row["runs"], *values])
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>" for line in body)
    top = "".join(f"<th>{html.escape(c)}</th>" for c in head)
    page = report.head(study["title"]) + f"<table><thead><tr>{top}</tr></thead>{cells}</table>"
    (output / "table.html").write_text(f"{page}<p class=note>{html.escape(note)}</p></html>")
    print("\n".join(lines[2:]))
    print(f"table {output / 'table.md'}")


def main():
    """Plan, run, collect."""
    arguments = parse()
    try:
        study = load(arguments.study, arguments.preset)
        runs = plan(study, arguments)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    if arguments.dry_run:
        for *_, folder, config, overrides in runs:
            state = "# done before: " if finished(folder) else ""
            print(state + shlex.join(command(folder, config, overrides)))
        print(f"# {len(runs)} runs: {sum(r[0] == 'pretrain' for r in runs)} of pre-training, the rest fine-tuning")
        return
    output = Path(arguments.output).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    failed = execute(runs)
    folds = len(set(arguments.folds.split(",")))
    write(study, collect(study, runs, folds, arguments), output, folds, arguments.preset)
    if failed:
        print(f"error: {len(failed)} run(s) failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
