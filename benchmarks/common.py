"""Code shared by the benchmarks: configs, device names, result files, the memory of a process."""

from __future__ import annotations

import ast
import concurrent.futures
import functools
import importlib.util
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def load_config(path: str, *changes: str) -> Any:
    """`get_config()` of a config file, then `field=value` changes as on the command line."""
    spec = importlib.util.spec_from_file_location("benchmark_config", ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    for change in changes:
        name, _, text = change.partition("=")
        *place, field = name.split(".")
        node = config
        for part in place:
            node = node[part]
        node[field] = _value(text, node[field])
    return config


def _value(text: str, old: Any) -> Any:
    if isinstance(old, bool):
        return text in ("True", "true", "1")
    if old is None:  # a field that is not set yet
        return ast.literal_eval(text)
    return type(old)(text)


def simulated(config: Any, images: int, side: int, batch: int, steps: int = 1000) -> Any:
    """The config on phantoms kept on the device, for timing."""
    config.data.name, config.data.store = "phantoms", "resident"
    config.data.num_images, config.data.side, config.data.num_threads = images, side, 1
    config.optim.batch_size, config.optim.accum_steps, config.optim.steps = batch, 1, steps
    return config


def write_images(folder: Path, count: int, side: int) -> None:
    """Write `count` phantoms, `side` pixels high, as PNG files, so that a run reads its images."""
    folder.mkdir()
    workers = min(os.cpu_count() or 1, count // 32)  # a worker starts in the time of some dozen images
    if workers < 2:
        _write_some(folder, count, side, range(count))
        return
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        shares = [pool.submit(_write_some, folder, count, side, range(w, count, workers)) for w in range(workers)]
        for share in shares:
            share.result()


def _write_some(folder: Path, count: int, side: int, numbers: range) -> None:
    from PIL import Image

    from deblur_mae_jax.data import dataset

    config = load_config("configs/quickstart.py")
    config.data.num_images, config.data.side = count, side
    source = dataset.load_source(config)
    for number in numbers:
        Image.fromarray(source.read(number)[..., 0]).save(folder / f"{number:06d}.png")


@functools.cache
def _product() -> Any:
    import jax

    return jax.jit(lambda a, b: a @ b)


def product_speed(dtype: Any, size: int = 2048, repeats: int = 8) -> float:
    """FLOP/s of one large matrix product."""
    import jax

    a = jax.random.normal(jax.random.key(0), (size, size), dtype)  # a GPU multiplies constants faster
    program = _product()
    program(a, a).block_until_ready()
    started = time.perf_counter()
    for _ in range(repeats):
        out = program(a, a)
    out.block_until_ready()
    return 2 * size**3 * repeats / (time.perf_counter() - started)


def device_name() -> str:
    """The kind of the first device, as a part of a file name; of a CPU with its name and family."""
    import jax

    from deblur_mae_jax.workdir import run_folder

    kind = jax.devices()[0].device_kind
    if kind == "cpu":  # the ratios differ between processors
        kind += " " + run_folder.processor().partition(", ")[0].replace("family ", "")
    return re.sub(r"[^A-Za-z0-9]+", "_", kind).strip("_").lower()


def write(output: str, name: str, what: str, content: dict[str, Any]) -> Path:
    """`content` with the environment and the command, as JSON, in `output` or among the results."""
    from deblur_mae_jax.workdir import run_folder

    path = Path(output) if output else RESULTS / f"{name}_{device_name()}.json"
    module = Path(sys.argv[0]).stem
    arguments = [a for a in sys.argv[1:] if not a.startswith("--output")]
    command = " ".join(["python -m", f"benchmarks.{module}", *arguments])
    path.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_json(path, {"what": what, "command": command, "environment": run_folder.environment(), **content})
    print(path)
    return path


def resident_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process on Linux."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    return 1024 * int(found.group(1)) if found else 0


def forget_peak() -> None:
    """Reset `VmHWM` to the memory that is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
