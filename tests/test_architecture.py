"""The listing of the package is its architecture: what the files may import, and how large they may be."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import deblur_mae_jax as dm

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "deblur_mae_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# The floors of the package, lowest first. A module imports from its own floor and from those below.
FLOORS = (
    "errors", "lookup", "sides", "sharding", "config", "data", "degradations", "input_pipeline", "models", "tasks",
    "network", "workdir", "metrics", "weight_formats", "pretrained", "inference", "reports",
    "performance", "training", "evaluators", "train", "api", "export", "commands", "__init__",
)  # fmt: skip
STANDARD = set(sys.stdlib_module_names) | {"__future__"}
# Third parties that only these packages may import.
ONLY_IN = {
    "orbax": {"workdir"},
    "clu": {"workdir", "train", "training"},
    "torch": {"weight_formats", "export"},
    "timm": {"weight_formats", "export"},
    "transformers": {"weight_formats", "export"},
    "monai": {"weight_formats", "export"},
    "flax": {"models", "training", "weight_formats", "pretrained"},
    "sklearn": {"data", "metrics", "reports", "commands"},
    "statsmodels": {"metrics"},
    "MLstatkit": {"metrics"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "matplotlib": {"reports"},
    "dm_pix": {"evaluators"},
}
# It is copied beside the weights, alone.
LONG = {"modeling_d2mae.py"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "deblur_mae_jax":
                yield from (f"deblur_mae_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def functions(path):
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def package_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def of_each_file(test):
    return pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))(test)


def test_the_listing_is_the_ordered_list():
    entries = {
        p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert entries == set(FLOORS) and len(FLOORS) <= 25


@of_each_file
def test_imports_point_down(path):
    for name in imports(path):
        top = name.split(".")[0]
        if top in STANDARD:
            continue
        if top in ONLY_IN:
            assert package_of(path) in ONLY_IN[top], f"{path.name} imports {name}"
        if top == "deblur_mae_jax":
            above = FLOORS.index(name.split(".")[1]) > FLOORS.index(package_of(path))
            assert not above, f"{path.relative_to(ROOT)} imports {name}, above it"


def test_the_data_need_no_jax():
    for path in (PACKAGE / "data").glob("*.py"):
        assert not {n.split(".")[0] for n in imports(path)} & {"jax", "flax"}, path


def test_no_two_packages_import_each_other():
    """Imports point down the list, so only files of one package could; they must not form a circle either."""
    graph = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        graph[name] = {
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("deblur_mae_jax")
            for alias in node.names
        } | set(imports(path))
    edges = {name: {other for other in others if other in graph and other != name} for name, others in graph.items()}
    done, active = set(), []

    def visit(name):
        assert name not in active, " -> ".join([*active[active.index(name) :], name])
        if name in done:
            return
        active.append(name)
        for other in sorted(edges[name]):
            visit(other)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)
    assert sum(map(len, edges.values())) > 100


def test_configs_import_the_fields_only():
    for path in (ROOT / "configs").glob("*.py"):
        allowed = {"deblur_mae_jax.config", "ml_collections"}
        assert all(n in allowed or n.startswith("configs") for n in imports(path)), path


def test_only_the_command_that_trains_imports_the_training():
    for path in FILES:
        if path.name != "run.py":
            assert "deblur_mae_jax.train" not in set(imports(path)), path


@of_each_file
def test_a_file_has_one_reason_to_exist(path):
    if path.name not in LONG:
        assert len(path.read_text().splitlines()) <= 420, f"{path.name} is too long to be one thing"


@of_each_file
def test_functions_fit_on_a_screen(path):
    for function in functions(path):
        length = function.end_lineno - function.lineno + 1
        arguments = [a for a in (*function.args.posonlyargs, *function.args.args) if a.arg not in ("self", "cls")]
        assert length <= 60, f"{path.name}: {function.name} has {length} lines"
        assert len(arguments) <= 6, f"{path.name}: {function.name} has {len(arguments)} positional parameters"


def test_the_entry_and_the_main_function_are_short():
    assert len((ROOT / "main.py").read_text().splitlines()) < 80
    assert len((PACKAGE / "train.py").read_text().splitlines()) <= 150


@of_each_file
def test_nobody_asks_the_config_or_a_network_what_it_is(path):
    """`network.build` reads the config once; every field is in every config of its kind."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            asked = ast.unparse(node.args[0])
            assert node.func.id == "getattr" or "model" not in asked, f"{path.name}: {ast.unparse(node)}"
            assert "config" not in asked or asked == "jax.config", f"{path.name}: {ast.unparse(node)}"
        if package_of(path) == "weight_formats":  # there `config` is the JSON of another library
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            asked = ast.unparse(node.func.value)
            assert not asked.split(".")[0].endswith("config"), f"{path.name}: {ast.unparse(node)}"
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            asked = ast.unparse(node.comparators[0])
            assert asked.split(".")[0] != "config", f"{path.name}: {ast.unparse(node)}"


def test_the_tests_mirror_the_package():
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and list(p.glob("test_*.py"))}
    assert folders <= set(FLOORS)
    assert folders == {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert sorted(listed) == sorted(found | {"deblur_mae_jax.configs"})


def test_what_the_package_offers_exists():
    assert all(getattr(dm, name) is not None for name in dir(dm))
