"""The rules of the house: who may import what, and that everything is looked up by name."""

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

import dcdt
from dcdt.config import registry

PACKAGE = Path(dcdt.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "baselines").rglob("*.py")])

# From the ground up: a package imports from itself and from what stands before its own line.
ORDER = (
    {"utils"},
    {"evaluation", "config"},
    {"data"},
    {"embeddings"},
    {"losses", "samplers"},
    {"models"},
    {"baselines"},
    {"runs"},
    {"reporting"},
    {"training"},
    {"federation"},
    {"serving"},
    {"commands"},
)
LEVELS = {package: level for level, packages in enumerate(ORDER) for package in packages}

# Modules of the package that may import hydra and wandb. sweep.py holds the callback that Hydra itself calls.
WANDB = ("wandb", "wandb_lineage", "wandb_report", "wandb_run", "wandb_summary")
MAY_IMPORT = {
    "hydra": {
        "dcdt/run.py",
        "dcdt/embed.py",
        "dcdt/federate.py",
        "dcdt/config/command_line.py",
        "dcdt/config/resolvers.py",
        "dcdt/runs/search.py",
        "dcdt/runs/sweep.py",
        "dcdt/training/untrained.py",
    },
    "wandb": {f"dcdt/training/loggers/{name}.py" for name in WANDB},
}

# Imports inside functions, each with its reason: start-up time, or a package that only an extra installs.
START_UP = {
    "dcdt/api/runs.py": "FastAPI, only where a run is served",
    "dcdt/cli.py": "`dcdt --help` answers at once",
    "dcdt/doctor.py": "it says what cannot be imported",
    "dcdt/embed.py": "Hydra and the schema refuse a mistake before numpy and the embedders are imported",
    "dcdt/export.py": "the arguments are checked before torch is imported",
    "dcdt/federate.py": "Hydra and the schema refuse a mistake before torch is imported",
    "dcdt/index.py": "building an index needs torch, changing one does not",
    "dcdt/report.py": "wandb, only where a report goes there",
    "dcdt/run.py": "torch and lightning take seconds: only after the configuration is found good",
    "dcdt/serve.py": "the arguments are checked before FastAPI is imported",
    "dcdt/config/command_line.py": "Hydra's parser: a run from Python needs none",
    "dcdt/config/resolvers.py": "Hydra's search path, only where there are plugins",
    "dcdt/embeddings/providers/__init__.py": "each embedder imports what it alone needs",
    "dcdt/embeddings/providers/onnx_export.py": "torch, only where a model is not exported yet",
    "dcdt/serving/load.py": "torch, only where there is no index yet",
    "dcdt/serving/recommender.py": "the embedders, only where a question is embedded",
    "dcdt/serving/scorers/collaborative.py": "torch, only where a run is exported: a served model does without",
    "dcdt/serving/scorers/history.py": "torch, only where a run is exported: a served model does without",
    "dcdt/serving/scorers/towers.py": "torch, only where a run is exported: a served model does without",
    "dcdt/serving/scorers/two_stage.py": "torch, only where a run is exported: a served model does without",
    "dcdt/utils/lock.py": "fcntl is there on POSIX alone",
    "dcdt/training/devices.py": "torch: the schema is checked before it is imported",
    "dcdt/training/distributed.py": "torch and lightning: not in the process that only starts the others",
    "dcdt/training/experiment.py": "torch and lightning: only after the configuration and the texts are found good",
    "dcdt/training/loggers/__init__.py": "wandb, only where it is the logger",
    "dcdt/training/rank.py": "lightning, only inside Slurm",
}


def name_of(path):
    """The dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


@cache
def imports(path, inside=True):
    """Names of the modules that a file imports; `inside` functions too, or not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    within = {id(node) for function in functions for node in ast.walk(function)}
    names = set()
    for node in ast.walk(tree):
        if not inside and id(node) in within:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def modules_of(path):
    """Modules of the house that a file imports."""
    found = {name for name in imports(path) if name in MODULES}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def package_of(name):
    """The package of a module; files flat in dcdt/ are the commands, on whose level api/ and adapters/ call them."""
    if name.endswith(".__main__"):
        return "commands"
    first, _, rest = name.partition(".")
    inner = rest.split(".")[0] if first == "dcdt" else first
    return inner if inner in LEVELS else "commands"


def importers(name):
    """Files that import a package or a part of it."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if any(module == name or module.startswith(f"{name}.") for module in imports(path))
    }


def test_the_rules_look_at_something():
    assert "dcdt/models/dual_tower.py" in importers("dcdt.models.config")
    assert "dcdt/models/config.py" in importers("dcdt.config")
    assert "dcdt/training/loggers/wandb.py" in importers("wandb")
    assert importers("torch") > {"dcdt/data/tables.py", "dcdt/samplers/hard.py"}
    assert {package_of(name) for name in MODULES} == set(LEVELS)
    assert modules_of(PACKAGE / "run.py") > {"dcdt.cli", "dcdt.training.experiment"}


def test_a_file_that_lies_flat_in_the_package_is_a_command():
    from dcdt.cli import COMMANDS, MODULES

    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "cli", *COMMANDS} - {*MODULES}


def test_imports_of_the_package_are_absolute():
    """Those of the baselines may be relative: a wheel installs them as dcdt.baselines."""
    files = [path for path in FILES if path.is_relative_to(PACKAGE)]
    assert [path for path in files if any(module.startswith(".") for module in imports(path))] == []


def test_a_package_imports_only_from_those_below_it():
    upwards = [
        f"{name} imports {module}"
        for name, path in MODULES.items()
        for module in modules_of(path)
        if (own := package_of(name)) != (other := package_of(module)) and LEVELS[other] >= LEVELS[own]
    ]
    assert upwards == []


def test_no_module_imports_one_that_imports_it():
    """Imports inside functions count as well; those for type checking alone do not run, but would tie a knot too."""
    graph = {name: modules_of(path) - {name} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError and names the circle


def test_an_import_inside_a_function_has_its_reason():
    """Start-up time, in the files listed above, or a package that need not be installed."""
    required = {"dcdt", "baselines", "torch", "lightning", "hydra", "omegaconf", "wandb", *sys.stdlib_module_names}
    late = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if any(name.split(".")[0] in required for name in imports(path) - imports(path, inside=False))
    }
    assert late == set(START_UP)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_only_the_commands_know_hydra_and_only_the_loggers_know_wandb(name):
    assert find_spec(name)
    assert importers(name) <= MAY_IMPORT[name]


@pytest.mark.parametrize(
    ("group", "table"), [("model", registry.MODELS), ("loss", registry.LOSSES), ("sampler", registry.SAMPLERS)]
)
def test_every_name_of_a_schema_is_registered_and_found(group, table):
    assert table is registry.GROUPS[group]
    for name in table:
        found = registry.look_up(table, name)
        assert isinstance(found, type)
        assert found.__doc__
    with pytest.raises(KeyError):
        registry.look_up(table, "os:system")


def test_no_configuration_names_a_class():
    """A run from a stranger is data: nothing but Hydra's own folder names something to import."""
    conf = ROOT / "conf"
    files = [path for path in conf.rglob("*.yaml") if path.parent != conf / "hydra"]
    assert len(files) > 20
    assert [path for path in files if "_target_" in path.read_text(encoding="utf-8")] == []
