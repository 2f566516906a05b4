"""Fixtures of all tests; their helpers are in support.py, since every folder may have a conftest of its own."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from support import make_collection

from dcdt.data.beir import load_collection

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("house")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A folder of 20 videos and 60 queries with grades 1 and 2 of which 2 is positive, twins and repeated queries."""
    folder = tmp_path_factory.mktemp("collections") / "small"
    return make_collection(folder, grades=(1, 2), positive_grade=2, twins=3, repeats=6)


@pytest.fixture(params=["khan_math", "cranfield"])
def real(request):
    """A public collection, where $DCDT_COLLECTIONS names the folder that holds it."""
    root = os.environ.get("DCDT_COLLECTIONS")
    if not root:
        pytest.skip("$DCDT_COLLECTIONS is not set: the public collections are not here")
    return load_collection(Path(root) / request.param)


@pytest.fixture(scope="session")
def doc_cache(tmp_path_factory):
    """A cache that the tests of documented commands share: the sentence model is exported once."""
    return tmp_path_factory.mktemp("cache")
