"""Numbers that a run cannot mean are refused before any data are read, in 2-D and 3-D."""

import math

import pytest
import tiny
import tiny_volumes

from deblur_mae_jax import config as fields
from deblur_mae_jax.data import dataset
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.training import checks, experiment

VOLUMES = ("dae_ct_mr", "segment_volumes")


def changed(name, values):
    config = inherit.resolve(tiny_volumes.config_of() if name == "dae_ct_mr" else tiny_volumes.segmentation(name))[0]
    return tiny_volumes.changed(config.copy_and_resolve_references(), values)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("segment_volumes", "data.foreground", 50.0), ("segment_volumes", "data.foreground", -0.5),
        ("segment_volumes", "augment.flip_probability", 20.0), ("segment_volumes", "augment.rotate_probability", -1.0),
        ("segment_volumes", "augment.intensity_probability", 7.0),
        ("segment_volumes", "augment.intensity_scale", -3.0), ("segment_volumes", "report.tolerance", math.nan),
        ("dae_ct_mr", "task.contrast_weight", -1.0), ("dae_ct_mr", "task.temperature", math.nan),
        ("dae_ct_mr", "task.temperature", 0.0),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_named(name, field, value):
    checks.check(changed(name, {}))
    with pytest.raises(UserError, match=rf"config\.{field}={value} must be"):
        checks.check(changed(name, {field: value}))


@pytest.mark.parametrize("name", [path.stem for path in tiny.ROOT.glob("configs/[a-z]*.py")])
def test_every_config_is_in_range(name):
    checks._check_ranges(fields.flat(tiny.load(name)))


@pytest.mark.parametrize("name", ["simclr", "swin_ssl_ct_mr"])
def test_a_contrast_of_one_image_is_refused(name):
    config = tiny.resolved(name) if name == "simclr" else inherit.resolve(tiny_volumes.config_of(name))[0]
    alone = lambda accum: tiny_volumes.changed(
        config.copy_and_resolve_references(), {"optim.batch_size": 4, "optim.accum_steps": accum}
    )
    checks.check(alone(2))
    with pytest.raises(UserError, match="a step needs at least 2 at once"):
        checks.check(alone(4))


@pytest.mark.parametrize(("present", "contrast", "said"), [("mr", "paper", True), ("mr", "none", False)])
def test_a_contrast_of_one_modality_is_said(tmp_path, present, contrast, said):
    for number in range(2):
        tiny_volumes.save(tmp_path / f"{number}.nii.gz", tiny_volumes.cube(number, low=0))
    config = tiny_volumes.config_of(data__name="nifti", data__root=f"{tmp_path}={present}", task__contrast=contrast)
    found = experiment._contrasts(config, dataset.build_index(config))
    assert bool(found) == said and all("separates CT from MR, and all volumes are MR" in line for line in found)
