"""The rules of the house: who may import what, and that everything is looked up by name."""

import ast
from pathlib import Path

import pytest

import dcdt
from dcdt import registry
from dcdt.config import SCHEMAS

PACKAGE = Path(dcdt.__file__).parent
BASELINES = PACKAGE.parent / "baselines"
FILES = sorted(PACKAGE.rglob("*.py"))

# Modules of the package that may import hydra and wandb. sweep.py holds the callback that Hydra itself calls.
MAY_IMPORT = {
    "hydra": {"run.py", "embed.py", "config/composing.py", "sweep.py"},
    "wandb": {"callbacks/wandb.py", "callbacks/wandb_summary.py", "callbacks/wandb_report.py"},
}


def imports(path):
    """Names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def importers(name, files=FILES):
    """Files that import a package or a part of it."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in files
        if any(module == name or module.startswith(f"{name}.") for module in imports(path))
    }


def test_the_rules_look_at_something():
    assert "models/dual_tower.py" in importers("dcdt.config")
    assert "callbacks/wandb.py" in importers("wandb")
    assert importers("torch") > {"data/tables.py", "samplers/hard.py"}


def test_imports_of_the_package_are_absolute():
    assert [path for path in FILES if any(module.startswith(".") for module in imports(path))] == []


@pytest.mark.parametrize("part", ["data", "losses", "samplers", "evaluation"])
def test_data_losses_samplers_and_evaluation_know_no_model(part):
    files = [path for path in FILES if path.parent.name == part]
    assert files
    assert importers("dcdt.models", files) == set()


def test_evaluation_knows_nothing_of_the_rest_but_how_a_tensor_is_sent():
    files = [path for path in FILES if path.parent.name == "evaluation"]
    known = {module for path in files for module in imports(path) if module.startswith("dcdt")}
    utilities = ("dcdt.evaluation", "dcdt.transfer")
    assert {module for module in known if not module.startswith(utilities)} == set()


def test_the_package_never_imports_the_baselines():
    assert importers("baselines") == set()
    assert BASELINES.is_dir()


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_only_the_commands_know_hydra_and_only_reporters_know_wandb(name):
    assert importers(name) <= MAY_IMPORT[name]
    assert not any(name in imports(path) for path in BASELINES.glob("*.py"))


@pytest.mark.parametrize(
    ("group", "table"), [("model", registry.MODELS), ("loss", registry.LOSSES), ("sampler", registry.SAMPLERS)]
)
def test_every_name_of_a_schema_is_registered_and_found(group, table):
    assert set(table) == set(SCHEMAS[group])
    for name in table:
        found = registry.look_up(table, name)
        assert isinstance(found, type)
        assert found.__doc__
    with pytest.raises(KeyError):
        registry.look_up(table, "os:system")


def test_no_configuration_names_a_class():
    """A run from a stranger is data: nothing but Hydra's own folder names something to import."""
    conf = PACKAGE.parent / "conf"
    files = [path for path in conf.rglob("*.yaml") if path.parent != conf / "hydra"]
    assert len(files) > 20
    assert [path for path in files if "_target_" in path.read_text(encoding="utf-8")] == []
