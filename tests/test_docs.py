"""What people read: commands that can be copied, links and names that exist, one source for every field."""

import ast
import itertools
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
PROGRAMS = sorted(
    path for folder in ("configs", "scripts", "studies", "benchmarks") for path in (ROOT / folder).glob("*.py")
)


def of_each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def test_the_readme_is_short_and_complete():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 165
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    wanted = ("Install", "First run", "Pre-train", "Fine-tune", "Segment", "PyTorch", "Python", "Documentation", "Cite")
    assert [heading for heading in headings if heading in wanted] == list(wanted) and headings[-1] == "Licence"


def test_the_page_of_the_python_functions_is_current():
    """`python docs/functions.py > docs/reference/python.md` brings it up to date."""
    import deblur_mae_jax as dm

    page = runpy.run_path(str(ROOT / "docs" / "functions.py"))["page"]()
    assert (ROOT / "docs" / "reference" / "python.md").read_text() == page
    assert all(f"### dm.{name}\n" in page for name in dm.__all__)


@of_each(PAGES)
def test_no_placeholder_is_left(path):
    assert not re.findall(r"OWNER|<this repository>|TODO|DEMO_[A-Z]+", path.read_text())


@of_each(PAGES)
def test_files_that_a_page_names_exist(path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (path.parent / target).exists(), f"{path.name} links to {target}"
    if path.name != "CHANGELOG.md":
        for name in re.findall(r"(?<![\w/])((?:configs|scripts|studies|notebooks|tests)/[\w/]+\.\w+)", text):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


@of_each(PROGRAMS)
def test_a_command_of_a_docstring_can_be_copied(path):
    """A command that goes on in the next line ends in a backslash, one in the file as in what `--help` prints."""
    text = ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""
    assert text in path.read_text()
    lines = text.splitlines()
    command = False
    for line, following in itertools.pairwise(lines):
        command = line.strip().startswith("python ") or (command and line.strip().startswith("--"))
        if command and following.strip().startswith("--"):
            assert line.rstrip().endswith("\\"), f"{path.name}: {line.strip()}"


@of_each(PROGRAMS)
def test_files_that_a_docstring_names_exist(path):
    for name in re.findall(r"(?<![\w/])((?:configs|scripts|studies)/\w+\.py)", path.read_text()):
        assert (ROOT / name).exists(), f"{path.name} names {name}"
