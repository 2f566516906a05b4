import pytest
from run_folders import write_run


@pytest.fixture(scope="session")
def comparison(tmp_path_factory):
    """A finished sweep of three models over four folds; dcdt with two seeds. Not to be changed."""
    folder = tmp_path_factory.mktemp("sweeps") / "comparison_toy"
    for fold in range(4):
        write_run(folder, "zero_shot", fold, skill=1.0)
        write_run(folder, "bm25", fold, skill=0.4)
        for seed in (0, 1):
            write_run(folder, "dcdt", fold, seed, skill=2.0)
    return folder
