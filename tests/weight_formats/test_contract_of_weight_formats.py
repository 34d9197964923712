"""Every file with a `NAME` in `deblur_mae_jax/weight_formats` keeps `weight_formats/contract.py`."""

import inspect
import sys
from pathlib import Path

import pytest

from deblur_mae_jax import lookup
from deblur_mae_jax.weight_formats import contract

FORMATS = contract.formats()
FUNCTIONS = {
    "matches": ["names"],
    "to_ours": ["state"],
    "infer": ["weights"],
    "from_ours": ["network", "state"],
    "opens_with": ["network"],
    "companions": ["folder", "network", "opens", "weights"],
    "snippet": ["certificate"],
    "open": ["file", "certificate"],
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_file_of_a_format_has_what_the_contract_names(name):
    module = FORMATS[name]
    for function, parameters in FUNCTIONS.items():
        found = list(inspect.signature(getattr(module, function)).parameters)
        assert found == parameters, f"{function}({', '.join(found)})"
        assert f"    {function}(" in contract.__doc__
    assert module.TITLE and module.NEEDS and set(module.MODELS) <= set(lookup.modules_with("models", "Model"))
    assert name in FORMATS and module.__doc__


def test_the_help_of_the_export_lists_every_format(capsys):
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    import export_to_pytorch

    with pytest.raises(SystemExit):
        export_to_pytorch.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {' '.join(title.split())}" in text for name, title in contract.titles().items())
