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
without the runs. `--ensembles` adds a row for the mean probabilities of all networks of a method. With `--rebuild`,
`--average="A;B"` adds a row for the mean of two methods, such as networks and hand-made features; both ensembles have
the same weight.
"""

import argparse
import importlib.util
import inspect
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deblur_mae_jax.errors import UserError, counted, unknown
from deblur_mae_jax.reports import ensembles
from deblur_mae_jax.reports import study as table
from studies import results, runs


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
    every = ensembles.add(networks, facts)[1]["methods"]  # also refuses an average that is not possible, unkept
    if arguments.reference:
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
        planned = runs.plan(study, arguments)
        results.require_same_settings(Path(arguments.output).expanduser(), planned)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    if arguments.dry_run:
        for run in planned:
            state = "# done before: " if runs.finished(run.folder) else ""
            print(state + shlex.join(runs.command(run.folder, run.config, run.overrides)))
        first = sum(run.kind == "pretrain" for run in planned)
        print(f"# {len(planned)} runs: {first} of pre-training, the rest fine-tuning")
        return
    output = Path(arguments.output).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    failed = runs.execute(planned)
    facts = results.facts_of(study, planned, arguments)
    try:
        networks, facts = results.joined(output, results.networks_of(planned), facts, list(study["methods"]))
        table.keep(networks, facts, output)
        write(output, networks, facts)
    except UserError as error:  # the runs are kept: the same command writes the table once the fault is mended
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    if failed:
        print(f"error: {counted(len(failed), 'run')} failed or left out: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
