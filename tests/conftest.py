"""Set up before JAX is imported: CPU, one compilation cache for all workers of a session."""

import gc
import os
import sys
import tempfile
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
# Halves the time to compile the many small programs; the slow tests run with optimisations.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Nearly halves it once more.
if "xla_cpu_use_fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
# Compiled programs stay in memory; looking through them for garbage every few hundred objects took 40 % of the time.
gc.set_threshold(100_000, 50, 50)


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
