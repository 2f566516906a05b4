"""Vectors of half precision, which trainer=gpu takes: they train, score and are mined as the same numbers in fp32."""

import shutil

import pytest
import torch
from support import EMBEDDER, make_collection
from torch.nn.functional import normalize

from baselines.config import ZeroShotConfig
from baselines.zero_shot import ZeroShot
from dcdt.data import gather, tables
from dcdt.data.beir import load_collection
from dcdt.data.tables import Tables
from dcdt.embeddings.tables import allocate, load_tables
from dcdt.losses.config import ContrastiveConfig, InfoNCEConfig
from dcdt.losses.contrastive import ContrastiveLoss
from dcdt.losses.infonce import InfoNCELoss
from dcdt.models.config import DCDTConfig, DCDTResidualConfig, OptimizerConfig
from dcdt.models.dual_tower import DualTower
from dcdt.models.query_batch import QueryBatch
from dcdt.models.residual import ResidualTowers
from dcdt.samplers.base import explicit_batch
from dcdt.samplers.mining import mine_hard_negatives
from dcdt.samplers.pool import TrainingPool
from dcdt.utils.errors import UserError

OPTIMIZER = OptimizerConfig(1e-3, 0.01, "constant")
N_QUERIES, N_VIDEOS, WIDTH = 6, 40, 16


def made_tables(dtype=torch.float32, seed=0):
    """Tables whose numbers are the same in every precision."""
    generator = torch.Generator().manual_seed(seed)
    queries, videos = (
        torch.randn(N_QUERIES, WIDTH, generator=generator),
        torch.randn(2, N_VIDEOS, WIDTH, generator=generator),
    )
    queries, videos = (normalize(part, dim=-1).bfloat16().float() for part in (queries, videos))
    return Tables(queries.to(dtype), videos.to(dtype), normalize(videos.sum(0), dim=-1).to(dtype), ["title", "text"])


def loss_of(name):
    if name == "infonce":
        return InfoNCELoss(InfoNCEConfig("infonce", "each", 0.1, learn_temperature=False))
    return ContrastiveLoss(ContrastiveConfig("contrastive", 1.0, squared=False))


def model_of(kind, found, loss="contrastive"):
    torch.manual_seed(0)
    if kind is DualTower:
        config = DCDTConfig("dcdt", found.fields, 12, 0.0, "none", "concat")
    else:
        config = DCDTResidualConfig("dcdt_residual", found.fields, 4, "all", 0.0, "none", "sum")
    model = kind(config, found, loss_of(loss), OPTIMIZER)
    model.record_loss = lambda *_: None  # there is no trainer
    return model


def made_pool():
    rows = torch.arange(N_QUERIES)
    pairs = torch.stack([rows, rows * 3], dim=1)
    return TrainingPool(pairs, rows, rows, torch.arange(N_VIDEOS), (rows * 3).unsqueeze(1))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("loss", ["contrastive", "infonce"])
@pytest.mark.parametrize("kind", [DualTower, ResidualTowers])
def test_similarities_are_multiplied_in_fp32_whatever_the_towers_compute_in(kind, loss, shared):
    made = made_tables()
    model, place = model_of(kind, made, loss), None if shared else torch.tensor([[3, 1], [0, 2], [5, 4]])
    queries, videos = made.queries[:3], made.videos[:, :6]
    with torch.autocast("cpu", torch.bfloat16):
        measured = model.match(queries, videos, place)
        encoded = model.encode_queries(queries).double(), model.encode_videos(videos).double()
        value = model.objective(queries, videos, place, None, None, None)
    exact = encoded[0] @ encoded[1].T  # (3, 6)
    exact = exact if place is None else exact.gather(1, place)
    expected = (2 - 2 * exact).sqrt() if loss == "contrastive" else exact
    assert measured.dtype == value.dtype == torch.float32
    torch.testing.assert_close(measured.double(), expected, atol=1e-5, rtol=0)  # bf16 would be off by 0.004


@pytest.mark.parametrize("least", [0, 10**9])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [DualTower, ResidualTowers])
def test_half_tables_train_and_score_as_the_same_numbers_in_fp32(kind, dtype, least, monkeypatch):
    monkeypatch.setattr(gather, "MIN_BUFFER_NUMBERS", least)
    monkeypatch.setattr("dcdt.models.recommender.BLOCK", 7)
    whole, half = model_of(kind, made_tables()), model_of(kind, made_tables(dtype))
    batch = explicit_batch(torch.tensor([[0, 1, 2, 3], [4, 5, 1, 30]]))
    losses = [model.training_step(batch, 0) for model in (whole, half)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for one, other in zip(whole.parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    asked = QueryBatch(made_tables().queries, ["?"] * N_QUERIES, [None] * N_QUERIES, [None] * N_QUERIES)
    with torch.no_grad():
        scores = [model.eval().score(asked) for model in (whole, half)]
    assert scores[1].dtype == torch.float32
    torch.testing.assert_close(*scores)
    assert half.silent_towers() == whole.silent_towers()


def test_the_reference_ranks_by_the_half_table_itself(monkeypatch):
    monkeypatch.setattr("dcdt.models.recommender.BLOCK", 7)
    half = made_tables(torch.float16)
    frozen = Tables(half.queries, half.frozen.unsqueeze(0), half.frozen, ["frozen"])
    model = ZeroShot(ZeroShotConfig("zero_shot", ["frozen"], "none", "none"), frozen)
    assert model.video_vectors().data_ptr() == half.frozen.data_ptr()
    asked = QueryBatch(made_tables().queries, ["?"] * N_QUERIES, [None] * N_QUERIES, [None] * N_QUERIES)
    expected = normalize(asked.vectors, dim=-1) @ made_tables().frozen.T
    torch.testing.assert_close(model.score(asked), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mining_halves_is_mining_their_numbers_in_fp64(dtype):
    found, pool = made_tables(dtype), made_pool()
    queries, videos = found.queries.double(), found.frozen.double()
    mined = mine_hard_negatives(found.queries, found.frozen, pool.candidates, pool.forbidden, 9, chunk=4, block=11)
    scores = (queries @ videos.T).scatter(1, pool.forbidden, -torch.inf)
    torch.testing.assert_close(scores.gather(1, mined), scores.topk(9).values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mapped", [False, True])
def test_half_tables_are_read_block_by_block(tmp_path, mapped, monkeypatch):
    folder = make_collection(tmp_path / "c", n_videos=20, n_queries=8)
    collection, cache = load_collection(folder), folder / "embeddings"
    whole = load_tables(collection, ["title", "text"], EMBEDDER, str(cache), progress=False)
    before = sorted(path.name for path in cache.iterdir())
    monkeypatch.setattr(tables, "BLOCK", 7)
    half = load_tables(
        collection, ["title", "text"], EMBEDDER, str(cache), progress=False, dtype=torch.float16, mapped=mapped
    )
    for name in ("queries", "videos", "frozen"):
        assert getattr(half, name).dtype == torch.float16
        torch.testing.assert_close(getattr(half, name).float(), getattr(whole, name), atol=1e-3, rtol=0)
    assert sorted(path.name for path in cache.iterdir()) == before  # nothing is left where the file was


def test_a_disk_that_is_full_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(UserError, match="mapped=true needs"):
        allocate((4, 4), torch.float16, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["contrastive", "infonce"])
def test_a_compiled_step_is_the_step(loss):
    if shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler on CPUs")
    plain, compiled = (model_of(DualTower, made_tables(torch.float64), loss).double() for _ in range(2))
    compiled.compile_step()
    for rows in ([[0, 1, 2, 3], [4, 5, 1, 30]], [[1, 2, 9, 8], [3, 3, 3, 3], [5, 0, 1, 2]]):
        batch = explicit_batch(torch.tensor(rows))
        losses = [model.training_step(batch, 0) for model in (plain, compiled)]
        torch.testing.assert_close(*losses)
        for one in losses:
            one.backward()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
