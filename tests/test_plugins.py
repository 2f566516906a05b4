"""What a user adds in a Python file of their own is used like what is built in, and no stored run can add anything."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dcdt import register
from dcdt.config import config_folder, depends_on, parse, plugins, register_resolvers, schema, search_space
from dcdt.config.command_line import load_plugins
from dcdt.config.registry import GROUPS, MODELS, look_up
from dcdt.embeddings.cache import Space, VectorCache
from dcdt.embeddings.fill import fill
from dcdt.runs.folder import RunFolder
from dcdt.utils.errors import UserError

PLUGIN = """
from typing import Annotated

from pydantic import Field

from baselines.zero_shot import ZeroShot
from dcdt import register
from dcdt.config import schema


@schema
class MineConfig:
    name: str
    fields: list[str]
    weight: Annotated[float, Field(ge=0)]
    whiten: str = "none"
    history: str = "none"


@register("model", "NAME", MineConfig, search_space={"model.weight": [1.0, 2.0]}, depends_on=[])
class Mine(ZeroShot):
    pass
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """The tables and the environment as before."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    before = {group: dict(table) for group, table in GROUPS.items()}
    yield
    for group, entries in before.items():
        GROUPS[group].entries = entries
    for name in [name for name in sys.modules if name.startswith("dcdt_plugin_")]:
        del sys.modules[name]


def write(folder, name="mine", text=PLUGIN):
    """A plugin that registers a model of its name, with its option beside it."""
    (folder / "conf" / "model").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "model" / f"{name}.yaml").write_text(f"name: {name}\nfields: [title]\nweight: 1.0\n")
    path = folder / f"{name}.py"
    path.write_text(text.replace("NAME", name))
    return path


def composed(*overrides):
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def test_a_file_named_on_the_command_line_is_an_option(tmp_path):
    path = write(tmp_path, "mine_a")
    load_plugins(["seed=1", f"plugins=[{path}]"])
    assert os.environ[plugins.VARIABLE] == str(path)  # as workers of a sweep have it
    settings = parse(composed(f"plugins=[{path}]", "model=mine_a", "model.weight=2"))
    assert (settings.model.weight, settings.model.fields) == (2.0, ["title"])
    assert look_up(MODELS, "mine_a").__name__ == "Mine"
    assert (search_space("mine_a"), depends_on({"name": "mine_a"})) == ({"model.weight": [1.0, 2.0]}, frozenset())
    with pytest.raises(UserError, match=r"model\.weight is -1\.0; it must be a number of at least 0"):
        parse(composed("model=mine_a", "model.weight=-1"))


@pytest.mark.parametrize("separator", [",", os.pathsep])
def test_the_environment_names_several(tmp_path, monkeypatch, separator):
    paths = [str(write(tmp_path, name)) for name in ("mine_b", "mine_c")]
    monkeypatch.setenv(plugins.VARIABLE, separator.join([*paths, " json "]))
    assert plugins.plugin_names() == [*paths, "json"]
    assert plugins.plugin_folders() == [tmp_path / "conf"]
    assert {"mine_b", "mine_c"} <= set(MODELS)


@pytest.mark.slow
def test_an_installed_package_names_its_module(tmp_path, monkeypatch):
    package = tmp_path / "named_plugin-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: named-plugin\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[dcdt.plugins]\nmine = named_plugin\n")
    (tmp_path / "named_plugin.py").write_text(PLUGIN.replace("NAME", "mine_d"))
    code = "from dcdt.config.registry import MODELS; print('mine_d' in MODELS)"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.stdout.split() == [b"True"], done.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / 0", r"cannot be imported: ZeroDivisionError: division by zero\.\nMend it"),
        (PLUGIN.replace("NAME", "dcdt"), r"is refused: model=dcdt is there already; give yours another name"),
        (PLUGIN.replace('"model"', '"optimiser"'), r"is refused: no optimiser can be registered; choose one of model,"),
        (PLUGIN.replace("@schema", ""), r"is no schema; write @schema of dcdt\.config above it"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named(tmp_path, text, reason):
    path = write(tmp_path, "mine_e", text)
    with pytest.raises(UserError, match=reason) as caught:
        plugins.load_plugin(str(path))
    assert len(str(caught.value).splitlines()) <= 2
    assert "mine_e.py" in str(caught.value)
    assert MODELS["dcdt"].target == "dcdt.models.dual_tower:DualTower"


def test_a_file_that_is_not_there_and_no_list(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        plugins.load_plugin(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match=r"give Python files or modules as plugins=\[my_towers\.py\]"):
        load_plugins(["plugins=a.py"])


def test_a_cell_of_a_notebook_registers_its_class_again():
    @schema
    class Config:
        name: str

    for _ in range(2):
        register("loss", "mine_f", Config)(type("Mine", (), {"__module__": "__main__"}))
    with pytest.raises(UserError, match="loss=mine_f is there already"):
        register("loss", "mine_f", Config)(type("Mine", (), {"__module__": "another"}))


def test_a_stored_run_imports_nothing(tmp_path):
    """Neither what its configuration says is a plugin, nor a model that nobody registered."""
    path = write(tmp_path, "mine_g", f"open({str(tmp_path / 'imported')!r}, 'w')")
    config = OmegaConf.to_container(composed("model=zero_shot"), resolve=True)
    stored = tmp_path / "config.yaml"
    stored.write_text(yaml.safe_dump({**config, "plugins": [str(path)]}))
    assert "plugins" not in RunFolder(tmp_path).read_config()
    parse(RunFolder(tmp_path).read_config())
    stored.write_text(json.dumps({**config, "model": {"name": "mine_g"}, "plugins": [str(path)]}))
    with pytest.raises(UserError) as caught:
        parse(RunFolder(tmp_path).read_config())
    first, second = str(caught.value).splitlines()
    assert first.startswith("model.name is 'mine_g'; choose one of dcdt,")
    assert second == "If it is a plugin's, name that: export DCDT_PLUGINS=my_plugin.py, or install its package."
    assert not (tmp_path / "imported").exists()


def test_an_embedder_of_a_plugin_fills_a_cache(tmp_path):
    from dcdt.embeddings.providers import make_embedder, space_of

    @schema
    class Config:
        name: str

    class Mine:
        shortened, tokens, refused = 0, 0, ()

        def __init__(self, config):
            self.config = config

        @staticmethod
        def space(config):
            return Space("mine", config.name, 4, "l2")

        def embed(self, texts, progress=None):
            return np.full((len(texts), 4), 0.5, dtype=np.float32)

        def embed_each(self, texts, store, progress=None):
            store(list(texts), self.embed(texts))

    register("embedder", "mine_h", Config)(Mine)
    config = Config("mine_h")
    assert space_of(config) == Space("mine", "mine_h", 4, "l2")
    cache = VectorCache(tmp_path, space_of(config))
    assert fill(cache, ["a", "bb"], config, progress=False).embedded == 2
    assert np.allclose(cache.vectors(["bb", "a"]), 0.5)
    assert isinstance(make_embedder(config), Mine)
    with pytest.raises(KeyError):
        space_of(SimpleNamespace(name="nobody's"))
