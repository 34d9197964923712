"""Keep compiled programs between processes, so that the next start of the same program takes seconds."""

from __future__ import annotations

from pathlib import Path

import jax

from deblur_mae_jax.errors import ADDRESS

DEFAULT = "~/.cache/deblur_mae_jax/xla"
# JAX keeps programs that took a second to compile. Those of `dm.encode` and of an evaluation take half a second each.
AT_LEAST_SECONDS = 0.1


def use(setting: str) -> None:
    """Keep compiled programs in a folder, unless the user has already set one through JAX.

    setting: the folder; "auto": the user's cache folder; "": none.
    """
    if setting and not getattr(jax.config, "jax_compilation_cache_dir", None):
        folder = DEFAULT if setting == "auto" else setting
        # JAX itself reads and writes addresses such as gs://bucket/cache.
        path = folder if ADDRESS.match(folder) else str(Path(folder).expanduser())
        jax.config.update("jax_compilation_cache_dir", path)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", AT_LEAST_SECONDS)
