"""Rerun the training step of a failure capture, image by image.

    python scripts/replay_step.py runs/d2mae/failures/step_1234

A run stops when its loss is not finite and writes such a folder with the state, the config and the
images of the step. This script prints the loss of every image of that batch, largest first.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax.data import buckets
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.training import experiment
from deblur_mae_jax.workdir import weights
from deblur_mae_jax.workdir.run_folder import Workdir


def replay(capture: Path) -> list[tuple[str, float]]:
    """(image name, loss) of every example of the captured step, worst first."""
    path = capture / "capture.json"
    if not path.exists():
        raise UserError(f"'{capture}' is not a capture: it holds no capture.json")
    record = json.loads(path.read_text())
    # The folder of the run holds the network that it starts from, for a search of blur levels or for its features.
    folder = Workdir(capture.resolve().parents[1])
    config, source, _ = inherit.resolve(ConfigDict(record["config"]), folder if folder.config.exists() else None)
    run = experiment.build(config, folder if folder.config.exists() else None, source)
    state = weights.load_tree(capture / "state", run.state_shapes)
    step = record["step"] - 1
    batch = next(run.store.batches(step, 1))
    share = jax.tree.leaves(batch)[0].shape[1]

    @jax.jit
    def losses(params, arrays, part, first):
        keys = stream_keys(record["seed"], step, first + jnp.arange(share))
        at = run.choose_level(arrays["search"]) if run.choose_level is not None else None
        prepared = run.network.inputs.train(run.store.gather(arrays["images"], part), keys, at)
        return run.network.task.loss(params, prepared | {"progress": step / run.total_steps}, keys)[0]

    values: list[float] = []
    for number in range(jax.tree.leaves(batch)[0].shape[0]):  # the parts whose gradients the step accumulates
        part = {name: array[number] for name, array in batch.items()}
        values += losses(state.params, run.arrays, part, number * share).tolist()
    pairs = list(zip(record["names"], values, strict=True))
    return sorted(pairs, key=lambda pair: -np.nan_to_num(pair[1], nan=np.inf))


def _here(capture: str) -> Path:
    """The folder of a capture, or a copy of it if it is at an address."""
    if not buckets.is_address(capture):
        return Path(capture)
    local = buckets.scratch(capture)
    with buckets.reaching("CAPTURE", capture, "read"):
        buckets.copy_tree(buckets.at(capture, "CAPTURE"), local)
    return local


def main() -> None:
    """Print the table."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        for name, loss in replay(_here(sys.argv[1])):
            print(f"{loss:12.6g}  {name}")
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
