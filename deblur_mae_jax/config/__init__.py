"""Every field of a run's config, and every kind of run.

A kind of run is a function of `recipes.py`: `pretraining()`, `diffmae()`, `convmae()`, `simmim()`, `finetuning()`,
`convvit()`, `beit()`, `backbones()`, `linear_probe()`, `probe()`, `blur_search()`, `contrastive()`, `dino_v2()`,
`segmentation()`, `segmenter()`, `volumes()`, `pretext()`, `volume_segmentation()`. Each picks groups of fields
(`fields.py`, `kinds.py`) and states the values in which it differs from their defaults (`values.py`). The files of
`configs/` call one of them and change what their method needs; the command line changes the rest.
`python -m deblur_mae_jax.config` prints the reference page.

A field that is unset (`None`, a typed placeholder) is inherited from the network in `init_from`, or set by the model's
variant.
"""

from deblur_mae_jax.config.earlier import upgrade
from deblur_mae_jax.config.effects import without_effect
from deblur_mae_jax.config.kinds import (
    DECODING,
    GROUPS,
    INHERITED_BY_IMAGES,
    INHERITS,
    decoding,
    fields_of,
    without_source,
)  # fmt: skip
from deblur_mae_jax.config.recipes import (
    PROBED,
    backbones,
    beit,
    blur_search,
    contrastive,
    convmae,
    convvit,
    deblurring,
    diffmae,
    dino_v2,
    finetuning,
    linear_probe,
    on_organ,
    pick,
    pretext,
    pretraining,
    probe,
    segmentation,
    segmenter,
    simmim,
    volume_segmentation,
    volumes,
)  # fmt: skip
from deblur_mae_jax.config.tree import change, copy, flat, nested
from deblur_mae_jax.config.values import VALUES

__all__ = [
    "DECODING",
    "GROUPS",
    "INHERITED_BY_IMAGES",
    "INHERITS",
    "PROBED",
    "VALUES",
    "backbones",
    "beit",
    "blur_search",
    "change",
    "contrastive",
    "convmae",
    "convvit",
    "copy",
    "deblurring",
    "decoding",
    "diffmae",
    "dino_v2",
    "fields_of",
    "finetuning",
    "flat",
    "linear_probe",
    "nested",
    "on_organ",
    "pick",
    "pretext",
    "pretraining",
    "probe",
    "segmentation",
    "segmenter",
    "simmim",
    "upgrade",
    "volume_segmentation",
    "volumes",
    "without_effect",
    "without_source",
]  # fmt: skip
