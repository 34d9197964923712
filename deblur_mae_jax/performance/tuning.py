"""Process settings that affect the speed, all in one place. This module does not import JAX.

It sets only what measurably helps or is needed to fit a batch into memory, and never changes a setting of the
user. docs/performance-cpu.md lists the gain of each setting, and the settings that gave no gain.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

# XLA on a CPU allocates and frees the memory of a step with malloc, gigabytes at a time. With pages of
# 2 MB instead of 4 kB the kernel prepares 500 times fewer pages, and a ViT-B step takes 15 % less time.
ALLOCATOR = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
# By default JAX takes three quarters of the GPU memory; a ViT-B at batch 1,024 needs more than that of 80 GB.
GPU_MEMORY = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Return the variables to set, except those that the user or this machine has already determined."""
    wanted = dict([GPU_MEMORY])
    if _has_huge_pages():
        wanted |= dict([ALLOCATOR])
    return {name: value for name, value in wanted.items() if name not in environ}


def _has_huge_pages() -> bool:
    """Whether glibc's malloc (2.35 or newer) can ask this kernel for huge pages."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        recent = tuple(int(number) for number in version.split(".")[:2]) >= (2, 35)
        return name == "glibc" and recent and "[never]" not in HUGE_PAGES.read_text()
    except (AttributeError, OSError, ValueError):  # a different system or libc
        return False


def start_well() -> None:
    """Set the variables of `environment`; for malloc settings, restart this program.

    A restart is needed because glibc reads its settings once, before Python starts. The process keeps
    its number and its standard streams, and only this module has run so far.
    """
    missing = environment(os.environ)
    os.environ.update(missing)
    if ALLOCATOR[0] in missing:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def profile_well(environ: MutableMapping[str, str]) -> None:
    """Before a run with `--profile`, let a GPU launch kernel by kernel: a trace does not name those of a CUDA graph."""
    option = "--xla_gpu_enable_command_buffer"
    given = environ.get("XLA_FLAGS", "")
    if option not in given:
        environ["XLA_FLAGS"] = f"{given} {option}=".strip()


def give_back_memory() -> None:
    """Return freed memory to the system, where glibc would keep it: what a compilation used is never needed again.

    After a Swin-UNETR for cubes of 64 voxels was compiled, this was 0.8 GB, more than its step needs.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (AttributeError, OSError):  # a different system or libc
        return
