"""What a study keeps of its finished runs: the test cases, and what its table says of each method besides measures."""

import json
from pathlib import Path

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.reports import study as table
from studies import runs as study_runs


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
    codes = {}
    for method, parts in found.items():
        codes[method] = {"settings": study_runs.code(parts)}
        if "pretrain" in parts:
            codes[method]["start"] = study_runs.code(parts["pretrain"])
    return codes


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


def state_of(method, found, arguments):
    """What the table says of a row: run, quoted, or what is missing."""
    if method.get("quoted"):
        return "quoted"
    if found:
        return "run"
    missing = study_runs.lacks(method, arguments)
    return f"needs {missing}" if missing else "not run"


def facts_of(study, runs, arguments):
    """What the table says besides the measures: methods with the paper's numbers, their states and leaks."""
    methods, settings = {}, settings_of(runs)
    for name, method in study["methods"].items():
        found = [
            run for run in runs if run.kind == "finetune" and run.method == name and study_runs.finished(run.folder)
        ]
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
        if run.kind == "finetune" and study_runs.finished(run.folder)
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
