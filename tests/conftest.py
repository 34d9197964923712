"""Set up before JAX is imported: CPU, one compilation cache for all workers of a session."""

import gc
import io
import os
import sys
import tempfile
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
# Helpers that several tests share.
for folder in ("tests", "tests/data", "tests/input_pipeline"):
    sys.path.insert(0, str(ROOT / folder))

cache = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"deblur_mae_jax_{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ["JAX_PLATFORMS"] = "cpu"
# Halves the time to compile the many small programs; tests that count what the compiler makes run with optimisations.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Takes away another third of it; with optimisations it would save nothing, and the programs would be slower.
if "xla_cpu_use_fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
# Compiled programs stay in memory; looking through them for garbage every few hundred objects took 40 % of the time.
gc.set_threshold(100_000, 50, 50)


@pytest.fixture(scope="session")
def canned_png() -> bytes:
    """A picture that pages embed in place of their figures."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def figures_are_not_rendered(request, monkeypatch, canned_png):
    """Fast tests build figures and do not render them, which takes a third of a tiny run; those of reports do."""
    if "reports" in request.path.parts or "slow" in request.keywords:
        return
    from deblur_mae_jax.reports import page

    monkeypatch.setattr(page, "png", lambda figure: canned_png)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, or a skip that says how to get it."""
    root = os.environ.get("DEBLUR_MAE_DATA")
    if not root:
        pytest.skip("DEBLUR_MAE_DATA is not set: no real images to test on")
    return Path(root)


@pytest.fixture(scope="session")
def golden():
    """`golden(name)`: arrays made by running a reference implementation (tests/golden/README.md)."""
    import numpy as np

    def load(name):
        with np.load(ROOT / "tests" / "golden" / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)

    return load


def pytest_collection_modifyitems(config, items):
    """With SLOW_PART=1/4, leave out every slow test but a quarter that depends on its name alone."""
    part = os.environ.get("SLOW_PART")
    if not part:
        return
    number, count = (int(word) for word in part.split("/"))
    if not 1 <= number <= count:
        raise pytest.UsageError(f"SLOW_PART={part}: the first number must be between 1 and the second")
    other = [
        item for item in items
        if item.get_closest_marker("slow") and zlib.crc32(item.nodeid.encode()) % count != number - 1
    ]  # fmt: skip
    config.hook.pytest_deselected(items=other)
    items[:] = [item for item in items if item not in set(other)]
