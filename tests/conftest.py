"""Fixtures of all tests; their helpers are in support.py, since every folder may have a conftest of its own.

Large packages are imported where they are used: the process that hands out the tests would load them for nothing.
"""

import gc
import hashlib
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

INTERACTIONS = [f"u{at % 7},v{at * 3 % 20},{at}\n" for at in range(60)]

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("house")


def pytest_collection_finish():
    """Leave what was imported out of every later search for garbage: a tenth of the time of the fast tests."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """A processor runs one test at a time."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    """What a test draws with torch does not depend on the tests that its process ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A folder of 20 videos and 60 queries with grades 1 and 2 of which 2 is positive, twins and repeated queries."""
    from support import make_collection

    folder = tmp_path_factory.mktemp("collections") / "small"
    return make_collection(folder, grades=(1, 2), positive_grade=2, twins=3, repeats=6)


@pytest.fixture(params=["khan_math", "cranfield"])
def real(request):
    """A public collection, where $DCDT_COLLECTIONS names the folder that holds it."""
    from dcdt.data.beir import load_collection

    root = os.environ.get("DCDT_COLLECTIONS")
    if not root:
        pytest.skip("$DCDT_COLLECTIONS is not set: the public collections are not here")
    return load_collection(Path(root) / request.param)


@pytest.fixture(scope="session")
def doc_cache(tmp_path_factory):
    """A cache that the tests of documented commands share: the sentence model is exported once."""
    return tmp_path_factory.mktemp("cache")


def make_bench(folder):
    from embeddings.tiny import write_model
    from support import make_collection

    make_collection(folder / "small", grades=(1, 2), positive_grade=2, twins=3, repeats=6)
    shutil.rmtree(folder / "small" / "embeddings")
    (folder / "small" / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(INTERACTIONS))
    write_model(folder / "tiny")


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """A folder with a collection and a tiny embedder, and a cache of its own."""
    from support import made_once

    folder = made_once(tmp_path_factory, "serving", make_bench)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCDT_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="session")
def make_run(bench, tmp_path_factory):
    """Train a model and build its index, once for each list of overrides; the folder of its run."""
    from support import made_once, small_run

    from dcdt.serving.load import load

    def make(*overrides):
        def train(folder):
            load(small_run(bench / "small", bench / "tiny", folder, *overrides))

        name = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:16]
        return made_once(tmp_path_factory, f"serving/runs/{name}", train)

    return make


@pytest.fixture
def own_copy(make_run, tmp_path):
    """A run of one's own, to change or to harm; it is copied with its build."""

    def copy(*overrides):
        return Path(shutil.copytree(make_run(*overrides), tmp_path / "run"))

    return copy


@pytest.fixture
def environment(bench):
    """Of a subprocess that imports this checkout."""
    root = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": str(root), "DCDT_CACHE": str(bench / "cache"), "COLUMNS": "120"}


@pytest.fixture(scope="module")
def hydra():
    """Compose configurations as the commands do, for modules that are marked to use it."""
    from hydra import initialize_config_dir

    from dcdt.config import config_folder, register_resolvers

    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield
