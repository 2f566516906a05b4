import pytest
from run_folders import write_comparison


@pytest.fixture
def papers(monkeypatch):
    """The toy collection is the paper's, whose tables have the paper's own figures."""
    monkeypatch.setattr("dcdt.reporting.tables.PAPER_COLLECTION", "toy")


@pytest.fixture(scope="session")
def comparison(tmp_path_factory):
    """A finished sweep of three models over four folds; dcdt with two seeds. Not to be changed."""
    folder = tmp_path_factory.mktemp("sweeps") / "comparison_toy"
    return write_comparison(folder)
