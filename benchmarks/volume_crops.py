"""Random crops of packed volumes: reading the blocks of a crop, against reading the whole volume and cutting it.

    python -m benchmarks.volume_crops [--volumes=4] [--side=96] [--output=FILE]

Volumes of 512 x 512 x 200 voxels are made from a smooth random field with noise, packed, and read by one thread.
Pairs of readings take turns. The bytes that are sent to the device at each step are those of the crop or of the volume.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks import common
from deblur_mae_jax.data import dataset, packing, records, source_config

SHAPE = (512, 512, 200)


def volume(seed):
    """int16 Hounsfield units: a body with organs in noise, surrounded by air."""
    random = np.random.default_rng(seed)
    organs = ndimage.zoom(random.normal(0, 80, (16, 16, 8)), (32, 32, 25), order=1)
    inside = (np.linspace(-1, 1, 512)[:, None] ** 2 / 0.6 + np.linspace(-1, 1, 512)[None] ** 2 / 0.4 < 1)[..., None]
    return np.where(inside, organs + random.normal(0, 15, SHAPE), -1000 + random.normal(0, 5, SHAPE)).astype(np.int16)


def measure(folder, count, side, repeats):
    """Pack volumes, then read crops in both ways."""
    config = source_config.config_for(f"{folder / 'set'}=ct")
    start = time.monotonic()
    packed = packing.pack(config, folder / "packed")
    seconds = time.monotonic() - start
    config = source_config.config_for(str(folder / "packed"), "packed", volumes=True)
    source = dataset.load_source(config, "all")
    random = np.random.default_rng(0)
    times = {"blocks": [], "whole": []}
    for number in range(repeats + 1):
        index = number % count
        first = [int(random.integers(0, n - side + 1)) for n in SHAPE]
        part = tuple(slice(a, a + side) for a in first)
        found = {}
        for name, read in (("blocks", source.lazy), ("whole", source.read)):
            begin = time.perf_counter()
            found[name] = np.array(read(index)[part])
            if number:  # the first opens the shard
                times[name].append(time.perf_counter() - begin)
        assert np.array_equal(found["blocks"], found["whole"])
    ratios = np.array(times["whole"]) / np.array(times["blocks"])
    voxels = int(np.prod(SHAPE))
    return {
        "shape": SHAPE, "crop": side, "block": records.BLOCK, "volumes": count, "crops": repeats,
        "bytes_per_voxel": round(sum(p.stat().st_size for p in packed.path.glob("data-*d")) / voxels / count, 2),
        "seconds_to_pack_a_volume": round(seconds / count, 2),
        "ms_blocks": round(1e3 * float(np.median(times["blocks"])), 1),
        "ms_whole": round(1e3 * float(np.median(times["whole"])), 1),
        "whole_over_blocks": round(float(np.median(ratios)), 1),
        "ratio_from_to": [round(float(q), 1) for q in np.quantile(ratios, [0.1, 0.9])],
        "mb_to_device_blocks": round(2e-6 * side**3, 1), "mb_to_device_whole": round(2e-6 * voxels, 1),
    }  # fmt: skip


def main():
    """Make volumes, pack, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--block", type=int, default=records.BLOCK)
    parser.add_argument("--output", default="")
    options = parser.parse_args()
    records.BLOCK = options.block
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "set").mkdir()
        for i in range(options.volumes):
            nib.save(nib.Nifti1Image(volume(i), np.diag([0.8, 0.8, 2.5, 1])), folder / "set" / f"{i}.nii")
        content = measure(folder, options.volumes, options.side, options.repeats)
    print(json.dumps(content, indent=2))
    common.write(options.output, "volume_crops", __doc__.splitlines()[0], content)


if __name__ == "__main__":
    main()
