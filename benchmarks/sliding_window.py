"""Time the segmentation of a volume with a sliding window: ours against MONAI's, same network and windows.

    python -m benchmarks.sliding_window
    python -m benchmarks.sliding_window --window=96 --feature=48 --volume=256,256,160

The network is a Swin-UNETR with fresh weights and 14 classes (BTCV), in float32. Windows overlap by half and are
blended with a Gaussian; four are predicted at a time; the result is the class of every voxel. The two take turns, one
volume each after an untimed one, in processes of their own, with the huge pages that `main.py` asks for. Needs PyTorch
and MONAI (`pip install -e ".[pytorch]"`).
"""

import argparse
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import common, turns
from benchmarks.swin_unetr_step import like_jax

CLASSES, OVERLAP, TOGETHER = 14, 0.5, 4


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", default="112,96,96", help="voxels of each axis, separated by commas")
    parser.add_argument("--window", type=int, default=64, help="voxels of a window's side")
    parser.add_argument("--feature", default="12", help="12, 24 or 48")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def volume(arguments):
    """The same volume for both, `(D, H, W)` float32."""
    shape = tuple(int(side) for side in arguments.volume.split(","))
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def ours(arguments):
    """What `main.py` does with a volume."""
    import jax
    import jax.numpy as jnp
    from ml_collections import ConfigDict

    from deblur_mae_jax import sharding
    from deblur_mae_jax.inference.segmenter import Segmenter
    from deblur_mae_jax.models import swin_unetr

    sides = (arguments.window,) * 3
    model = swin_unetr.Model(arguments.feature, num_classes=CLASSES, image_size=arguments.window)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *sides, 1)))["params"]
    network = SimpleNamespace(model=model, axes=3, inputs=SimpleNamespace(sides=sides))
    infer = ConfigDict({
        "overlap": OVERLAP, "blending": "gaussian", "batch_size": TOGETHER, "flips": False, "largest_component": False,
    })  # fmt: skip
    segmenter = Segmenter(network, sharding.make_mesh(), infer)
    image = volume(arguments)[..., None]

    def peak():
        found = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return found / 2**20 if found else None

    return lambda: segmenter.of_volume([params], image), peak, {}


def theirs(arguments):
    """MONAI's `sliding_window_inference` and argmax."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.inferers import sliding_window_inference
        from monai.networks.nets import SwinUNETR

    like_jax()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SwinUNETR(1, CLASSES, feature_size=int(arguments.feature)).to(device).eval()
    image = torch.from_numpy(volume(arguments))[None, None].to(device)

    def run():
        with torch.inference_mode():
            scores = sliding_window_inference(image, arguments.window, TOGETHER, model, OVERLAP, mode="gaussian")
            scores.argmax(1).to(torch.uint8).cpu().numpy()

    def peak():
        return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None

    return run, peak, {"threads": torch.get_num_threads()}


def main():
    """Measure, print, write JSON."""
    a = parse()
    if a.worker:
        library = a.worker.split(":")[0]
        turns.work(library, lambda: (ours if library == "jax" else theirs)(a))
        return
    options = [f"--{k}={getattr(a, k)}" for k in ("volume", "window", "feature")]
    row = turns.measured(__file__, options, "segment", "monai", a.rounds)
    print(turns.shown("sliding window", row, "monai"))
    content = {k: getattr(a, k) for k in ("volume", "window", "feature", "rounds")} | {"sliding_window": row}
    common.write(a.output, "sliding_window", __doc__.splitlines()[0], content)


if __name__ == "__main__":
    main()
