"""Every file with a `source` in `deblur_mae_jax/data` keeps `data/source.py`."""

import inspect

import pytest

from deblur_mae_jax import lookup
from deblur_mae_jax.data import dataset

SOURCES = lookup.modules_with("data", "AXES")


def test_the_sources_are_found():
    assert {"image_folder", "manifest", "tfds_source", "phantoms", "nifti", "phantoms3d"} <= set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_a_data_source_has_what_the_contract_names(name):
    module = SOURCES[name]
    assert module.AXES in (2, 3)
    assert set(module.READS) <= set(dataset.SAYS)
    assert list(inspect.signature(module.source).parameters)[:2] == ["data", "channels"]
    assert module.source.__doc__ and module.__doc__


@pytest.mark.parametrize("name", [n for n in SOURCES if n.startswith("phantoms")])
def test_simulated_images_need_no_files(name):
    from types import SimpleNamespace

    data = SimpleNamespace(num_images=3, side=32, phantom_seed=0, split="train", label_names=(), name=name)
    source = SOURCES[name].source(data, 1)
    image = source.read(0)
    assert len(source) == 3 and image.ndim == SOURCES[name].AXES + 1 and max(image.shape) == 32
    assert tuple(source.size_of(0)) == image.shape[:-1]
