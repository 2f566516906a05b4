"""Finished runs of every model on a small collection, with a sentence model of a few kilobytes, made in process."""

import os
import shutil
from pathlib import Path

import pytest
from embeddings.tiny import write_model
from support import make_collection, small_run

INTERACTIONS = [f"u{at % 7},v{at * 3 % 20},{at}\n" for at in range(60)]


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """A folder with a collection and a tiny embedder, and a cache of its own."""
    folder = tmp_path_factory.mktemp("serving")
    make_collection(folder / "small", grades=(1, 2), positive_grade=2, twins=3, repeats=6)
    shutil.rmtree(folder / "small" / "embeddings")
    (folder / "small" / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(INTERACTIONS))
    write_model(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCDT_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="session")
def make_run(bench):
    """Train a model, once for each list of overrides; the folder of its run."""
    made = {}

    def make(*overrides):
        if overrides not in made:
            folder = bench / "runs" / str(len(made))
            small_run(bench / "small", bench / "tiny", folder, *overrides)
            made[overrides] = folder
        return made[overrides]

    return make


@pytest.fixture
def own_copy(make_run, tmp_path):
    """A run of one's own, to change or to harm; it is copied with its build."""

    def copy(*overrides):
        from dcdt.serving.load import load

        source = make_run(*overrides)
        load(source)
        return Path(shutil.copytree(source, tmp_path / "run"))

    return copy


@pytest.fixture
def environment(bench):
    """Of a subprocess that imports this checkout."""
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": str(root), "DCDT_CACHE": str(bench / "cache"), "COLUMNS": "120"}
