"""The notebooks run from top to bottom."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# How many pictures each shows, and the packages it needs beside ours.
PICTURES = {"quickstart": 4, "export_to_pytorch": 2}
NEEDS = {"export_to_pytorch": ("torch", "timm", "transformers")}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    for package in NEEDS.get(path.stem, ()):
        pytest.importorskip(package, reason="pip install deblur_mae_jax[pytorch] (make test-pytorch)")
    import nbclient
    import nbformat

    monkeypatch.setenv("NOTEBOOK_STEPS", "20")
    monkeypatch.setenv("NOTEBOOK_WORK", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= PICTURES[path.stem] and (tmp_path / "classifier" / "metrics.json").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_without_outputs(path):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert not any("OWNER" in cell.source for cell in notebook.cells)
