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
from deblur_mae_jax.training import experiment
from deblur_mae_jax.workdir import checkpoint


def replay(capture: Path) -> list[tuple[str, float]]:
    """(image name, loss) of every example of the captured step, worst first."""
    path = capture / "capture.json"
    if not path.exists():
        raise UserError(f"'{capture}' is not a capture: it holds no capture.json")
    record = json.loads(path.read_text())
    config = ConfigDict(record["config"])
    run = experiment.build(config, None)
    state = checkpoint.load_tree(capture / "state", run.make_state())
    step = record["step"] - 1
    batch = next(run.store.batches(step, 1))
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    keys = stream_keys(record["seed"], step, jnp.arange(config.optim.batch_size))

    @jax.jit
    def losses(params, arrays, batch):
        return run.network.task.loss(
            params, run.network.inputs.train(run.store.gather(arrays["images"], batch), keys), keys
        )[0]

    values = np.asarray(losses(state.params, run.arrays, batch))
    pairs = list(zip(record["names"], values.tolist(), strict=True))
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
