"""The reference page of all fields."""

from pathlib import Path

from deblur_mae_jax import config
from deblur_mae_jax.config import page

ROOT = Path(__file__).parent.parent.parent


def test_the_reference_of_the_config_is_current():
    """`python -m deblur_mae_jax.config > docs/reference/config.md` brings it up to date."""
    assert (ROOT / "docs" / "reference" / "config.md").read_text() == page.reference()


def test_every_field_has_a_meaning():
    fields = {name: field for kind in config.GROUPS for name, field in config.fields_of(kind).items()}
    assert len(fields) > 100
    for name, field in fields.items():
        assert field.meaning.strip().endswith((".", ")")), f"{name}: {field.meaning}"
