"""The words at the end of a run: what it showed, and the next command."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dcdt.config import check_choices
from dcdt.training import verdict

RUN = Path("outputs/mine")


def words(option, ours, theirs, embedder="local", path=None):
    """Lines for reciprocal ranks of one query each."""
    n = len(ours)
    name = "files" if path else "linear_algebra"
    settings = SimpleNamespace(
        option=option,
        primary_metric="val/mrr",
        data=SimpleNamespace(name=name, path=path),
        embedder=SimpleNamespace(name=embedder),
    )
    side = SimpleNamespace(queries=range(n))
    data = SimpleNamespace(units=[str(row) for row in range(n)], split=SimpleNamespace(train=side, val=side, test=side))
    results = (
        SimpleNamespace(queries=torch.arange(n), metrics={"mrr": torch.tensor(values, dtype=torch.float64)})
        for values in (ours, theirs)
    )
    return verdict.conclusion(settings, data, *results, RUN)


def test_a_worse_model_is_said_to_be_and_leads_to_the_best_one_and_not_to_a_question():
    lines = words("dcdt", [0.2] * 30 + [0.25] * 10, [0.5] * 40)
    assert lines == [
        "dcdt is worse than the untrained cosine here, by 0.287 MRR [0.280, 0.295]: expected, see docs/paper.md.",
        "Next: python -m dcdt.run experiment=best",
    ]
    assert words("bm25", [0.2] * 40, [0.5] * 40)[0].endswith("MRR [0.300, 0.300].")  # nothing that was expected
    assert words("hybrid_towers", [0.2] * 40, [0.5] * 40)[1] == "Next: python -m dcdt.run model=zero_shot"


def test_a_better_model_leads_to_ten_folds_and_to_a_question():
    first, folds, ask = words("dcdt_ridge", [0.5] * 40, [0.2] * 40)
    assert first == "dcdt_ridge is better than the untrained cosine here, by 0.300 MRR [0.300, 0.300]."
    assert "-m split=folds 'split.index=range(0,10)' model=zero_shot,dcdt_ridge" in folds
    assert ask == 'ask it: python -m dcdt.recommend outputs/mine "a question"'


def test_no_difference_shown_is_no_evidence_of_equality():
    rng = np.random.default_rng(0)
    first, _, ask = words("dcdt_ridge", rng.random(40).tolist(), rng.random(40).tolist())
    assert first.startswith("No difference is shown between dcdt_ridge and the untrained cosine: ")
    assert first.endswith("no evidence of equality.") and ask.startswith("ask it")
    same = words("zero_shot", [0.5] * 40, [0.5] * 40)
    assert same[0] == "zero_shot ranks the test queries as the untrained cosine (zero_shot) does."


@pytest.mark.parametrize(("n", "told"), [(19, False), (20, True)])
def test_fewer_than_twenty_test_queries_are_too_few_to_tell(n, told):
    first, following, *_ = words("dcdt", [0.2] * n, [0.5] * n)
    assert first.startswith("Too few to tell") != told and ("is worse" in first) == told
    assert ("split=folds" in following) != told


def test_with_few_queries_there_are_fewer_folds():
    assert "split.n_folds=4 'split.index=range(0,4)'" in words("dcdt", [0.2] * 4, [0.5] * 4)[1]


@pytest.mark.parametrize("n", [4, 40])
def test_the_next_command_is_of_the_same_collection_and_would_be_accepted(n, tmp_path):
    (tmp_path / "my videos").mkdir()
    (tmp_path / "my videos" / "corpus.jsonl").touch()
    lines = words("dcdt", [0.2] * n, [0.5] * n, embedder="multilingual", path=str(tmp_path / "my videos"))
    arguments = shlex.split(lines[1].split("dcdt.run ")[1])
    assert {"data=files", "embedder=multilingual", f'data.path="{tmp_path}/my videos"'} <= set(arguments)
    check_choices(arguments)


def test_what_a_question_needs_and_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(verdict, "find_spec", lambda name: None if name == "lancedb" else object())
    assert words("dcdt_ridge", [0.5] * 40, [0.2] * 40)[2].startswith(
        "ask it (first: pip install 'dcdt[serve]'): python"
    )
    monkeypatch.setattr(verdict, "find_spec", lambda name: None)
    assert "'dcdt[local,serve]'" in words("dcdt_ridge", [0.5] * 40, [0.2] * 40)[2]
    assert "'dcdt[serve]'" in words("dcdt_ridge", [0.5] * 40, [0.2] * 40, embedder="openai")[2]


def test_extras_are_those_of_the_project():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in verdict.EXTRAS)
    assert all(verdict.find_spec(module) for modules in verdict.EXTRAS.values() for module in modules)
