"""Settings outside the program that its speed depends on, all in one place. Imports no JAX.

Only what has been measured to help, or is needed for a batch to fit, is set here; whatever the user has set
already is left alone. docs/performance.md says what each is worth, and which were tried without gain.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

# XLA on a CPU takes a step's memory from malloc and gives it back, gigabytes at a time. In pages of
# 2 MB instead of 4 kB the kernel has 500 times fewer of them to prepare: a ViT-B step takes 15 % less.
ALLOCATOR = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
# By default JAX takes three quarters of a GPU; a ViT-B at batch 1,024 needs more of 80 GB.
GPU_MEMORY = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment(environ: MutableMapping[str, str]) -> dict[str, str]:
    """What to set, given what is set: nothing that the user, or this machine, has decided."""
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
    except (AttributeError, OSError, ValueError):  # another system, another libc
        return False


def start_well() -> None:
    """Set `environment`; where malloc is concerned, by starting this program again.

    glibc reads its settings once, before Python starts. The process stays the same one (its number,
    its standard streams), and nothing has run yet but this module.
    """
    missing = environment(os.environ)
    os.environ.update(missing)
    if ALLOCATOR[0] in missing:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
