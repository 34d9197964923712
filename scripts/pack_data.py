r"""Pack a data set into shards with an index, so that a run starts without listing or decoding anything.

    python scripts/pack_data.py /my/images /data/packed --workers=8
    python scripts/pack_data.py /hospital/export /data/packed --max_side=512 --encode=png
    python scripts/pack_data.py "/data/lung=ct" /data/packed_lung
    python main.py --config=configs/d2mae_thyroid.py --workdir=runs/a \
        --config.data.name=packed --config.data.root=/data/packed

SOURCE is a folder of images, a CSV, a folder of DICOM files, WebDataset tars, Hugging Face Parquet files, or a folder
of volumes with its modality. With --encode=keep the records hold the bytes of the image files, and training gives the
losses of the folder bit for bit; images from elsewhere (DICOM, arrays) are stored as PNG. Interrupted packing goes on
where it stopped when the same command is given again.

For DICOM, names and patients are keyed hashes; their key lies beside OUT, in OUT_private, and is not to be shared.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from deblur_mae_jax.config import DECODING
from deblur_mae_jax.data import packing, records, source_config
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.training.progress import Progress


def parse(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder, a CSV, tars, Parquet files; volumes: /folder=ct or /folder=mr")
    parser.add_argument("out", help="the folder of the packed set")
    parser.add_argument("--name", default="", help="config.data.name, if it cannot be seen from SOURCE")
    parser.add_argument("--encode", default="keep", choices=records.ENCODINGS)
    parser.add_argument("--max_side", type=int, default=1024, help="shrink larger images, pixels; 0: never")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3))
    parser.add_argument("--shard_mb", type=int, default=512, help="size of a shard, 10^6 bytes")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--licence", default="", help="text to keep with the set")
    parser.add_argument("--data", action="append", default=[], metavar="FIELD=VALUE", help="a field of config.data")
    return parser.parse_args(arguments)


def value_of(text):
    """The value of a field: a Python literal, or the text itself."""
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def shown(value):
    """A value as the command line takes it."""
    text = str(value)
    return text if text.replace(".", "").replace("_", "").isalnum() else f'"{text}"'


def main(arguments=None):
    """Pack the set, print what was done."""
    options = parse(arguments)
    progress, start = Progress(), time.monotonic()
    fields = {}
    for entry in options.data:
        name, equals, text = entry.partition("=")
        if not equals:
            raise UserError(f"--data: '{entry}' must be FIELD=VALUE, such as group_pattern='(p\\d+)'")
        fields[name] = value_of(text)
    config = source_config.config_for(options.source, options.name, channels=options.channels, **fields)
    if "max_side" in config.data:
        config.data.max_side = options.max_side
    packed = packing.pack(
        config, options.out, encode=options.encode, shard_mb=options.shard_mb, workers=options.workers,
        licence=options.licence, progress=lambda done, total: progress.update(f"packing: shard {done} of {total}"),
    )  # fmt: skip
    seconds = time.monotonic() - start
    progress.print(
        f"images {packed.num_images}, shards {packed.num_shards}, files left out {packed.num_skipped}, "
        f"{packed.num_images / seconds:.0f} images/s"
    )
    if packed.reused:
        progress.print(f"{packed.reused} shards were there already")
    if packed.num_skipped:
        progress.print(f"left out: {packed.path / packing.SKIPPED}")
    changed = {name: config.data[name] for name in ("max_side", *fields) if name in DECODING and name in config.data}
    defaults = source_config.config_for(options.source, options.name).data
    same = "".join(f" --config.data.{k}={shown(v)}" for k, v in changed.items() if v != defaults[k])
    channels = "" if options.channels == 1 else f" --config.model.in_chans={options.channels}"
    root = shlex.quote(str(packed.path))
    progress.print(f"use it with --config.data.name=packed --config.data.root={root}{same}{channels}")
    return packed


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
