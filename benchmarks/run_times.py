"""Say where the time of finished runs went, and what share of the training steps their evaluation took.

    make demo3d
    python -m benchmarks.run_times runs/quickstart3d runs/quickstart3d_segmenter

Remove `~/.cache/deblur_mae_jax` and the runs first, so that the programs are compiled. `time.json` of a workdir holds
the seconds. `--output=FILE` keeps them as JSON.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from benchmarks.common import write


def of_run(folder: str) -> dict[str, float]:
    """Seconds by kind of work over all starts of a run, and evaluation relative to steps."""
    seconds: Counter[str] = Counter()
    for start in json.loads((Path(folder) / "time.json").read_text()):
        seconds.update(start["seconds"])
    out = {name: round(value, 2) for name, value in seconds.items()}
    return out | {"evaluate_over_steps": round(seconds["evaluate"] / seconds["steps"], 3)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--output", default="")
    arguments = parser.parse_args()
    measured = {Path(run).name: of_run(run) for run in arguments.runs}
    print(json.dumps(measured, indent=1))
    if arguments.output:
        write(arguments.output, "run_times", "where the time of a run went, in seconds", {"runs": measured})
