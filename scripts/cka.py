"""How much fine-tuning changed a Swin-UNETR: linear CKA of two encoders at their five stages (DAE, MIDL 2024, app. D).

    python scripts/cka.py runs/dae runs/segmenter --root="/my/volumes=mr"

Both networks receive the same central cubes. Each row of a feature matrix is a cube and holds all values of a hidden
state; with --rows=tokens each row is a token. The paper's numbers (DAE: 0.091, 0.012, 0.011,
0.003, 0.001) are far below what features of the same inputs usually give, and the paper does not state how they were
flattened.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax.data import dataset
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.metrics import similarity
from deblur_mae_jax.pretrained import trained_network

TOKENS = 4096  # the maximum number of tokens, drawn once


def parse(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="a run, or a file of weights")
    parser.add_argument("second")
    parser.add_argument("--root", default="", help="the volumes; default: those of the second run")
    parser.add_argument("--split", default="", help="a split of the data; default: all")
    parser.add_argument("--count", type=int, default=32, help="how many volumes")
    parser.add_argument("--rows", choices=("crops", "tokens"), default="crops")
    parser.add_argument("--unbiased", action="store_true", help="the estimator of Song et al. (2012)")
    return parser.parse_args(arguments)


def hidden_states(trained, examples):
    """The five hidden states of all examples, as NumPy arrays."""
    model, cubes = trained.network.model, trained.network.inputs

    @jax.jit
    def encode(params, example):
        batch = cubes.evaluate(example, stream_keys(0, 0, np.arange(1)))
        return model.apply({"params": params}, batch["targets"], method=model.encode)

    found = [jax.device_get(encode(trained.params, example)) for example in examples]
    return [np.concatenate([states[i] for states in found]) for i in range(len(found[0]))]


def compare(arguments):
    """CKA of each stage."""
    runs = [trained_network.load(path, "RUN") for path in (arguments.first, arguments.second)]
    for run in runs:
        if run.network.axes != 3:
            raise UserError(f"'{run.path}' is a network for 2-D images; this is for volumes")
    side = runs[0].network.model.image_size
    if side != runs[1].network.model.image_size:
        raise UserError(f"the networks see cubes of {side} and {runs[1].network.model.image_size} voxels")
    config = ConfigDict(runs[1].config.to_dict(), type_safe=False)
    if arguments.root:
        config.data.name, config.data.root = "nifti", arguments.root
    config.data.split, config.data.check = arguments.split or "all", "header"
    index = dataset.build_index(config, None, split=config.data.split)
    loader = Loader(index, config.model.in_chans)
    chosen = np.unique(np.linspace(0, len(index) - 1, min(arguments.count, len(index))).astype(int))
    examples = [{k: v[None] for k, v in loader.example(int(n)).items() if k in ("image", "size")} for n in chosen]
    first, second = (hidden_states(run, examples) for run in runs)
    values = []
    for a, b in zip(first, second, strict=True):
        if arguments.rows == "tokens":
            a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
            some = np.random.default_rng(0).permutation(len(a))[:TOKENS]
            a, b = a[some], b[some]
        else:
            a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        values.append(similarity.linear_cka(a, b, arguments.unbiased))
    print(f"linear CKA of {len(chosen)} cubes of {side} voxels, rows are {arguments.rows}")
    for number, value in enumerate(values, start=1):
        print(f"  stage {number}  {value:.4f}")
    return values


def main():
    """Run and report errors in one line."""
    try:
        compare(parse())
    except (UserError, ValueError) as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
