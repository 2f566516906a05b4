"""Our models against those of Cornac and irspack, where these are installed, and what the study adds to them."""

import importlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from support import make_collection, prepare

from baselines.linear import fit_ease, fit_slim
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.histories import fittable_watches, held_out_askers
from dcdt.data.interactions import load_interactions
from dcdt.models.query_batch import QueryBatch
from dcdt.utils.errors import Diverged

N_VIDEOS, N_LEARNERS = 20, 50


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "studies"))
    return importlib.import_module("interaction_peers")


def watched():
    rng = np.random.default_rng(0)
    return csr_matrix((rng.random((60, 25)) < 0.3).astype(np.float64))


def histories():
    rng = np.random.default_rng(1)
    return csr_matrix(rng.random((8, 25)) * (rng.random((8, 25)) < 0.2))


def test_ease_agrees_with_cornac(study):
    pytest.importorskip("cornac")
    peer = study.fit_cornac("ease", {"lamb": 5.0, "posB": False}, watched(), [], 0)
    np.testing.assert_allclose(histories() @ fit_ease(watched(), 5.0), peer(histories(), []), atol=1e-4)


def test_slim_agrees_with_irspack(study):
    pytest.importorskip("irspack")
    l1, l2 = 0.5, 4.0
    values = {"alpha": (l1 + l2) / 60, "l1_ratio": l1 / (l1 + l2), "n_iter": 1000, "tol": 1e-8}
    peer = study.fit_irspack("slim", values, watched(), [], 0)
    np.testing.assert_allclose((histories() @ fit_slim(watched(), l1, l2)).toarray(), peer(histories(), []), atol=1e-3)


def made(folder):
    """A collection of learners who watch six videos each, and one who begins after them."""
    make_collection(folder, n_videos=N_VIDEOS)
    (folder / "queries.jsonl").unlink()
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user:02d}", item, user + 10 * at)
        for user in range(N_LEARNERS)
        for at, item in enumerate(rng.permutation(15)[:6])
    ]
    lines = "".join(f"{user},v{item},{at}\n" for user, item, at in rows)
    (folder / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{lines}late,v19,900\nlate,v1,999\n")
    parts = prepare(folder, SplitConfig("time", 0, 10, "all"), pairs=False)
    return RankingDataModule(parts.collection, parts.split, {}, None, 16, 0), parts.tables


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec", "bert4rec", "ease", "slim", "rp3beta", "ials"])
def test_a_peer_ranks_every_video(study, tmp_path, kind):
    pytest.importorskip("irspack" if kind in ("slim", "rp3beta", "ials") else "cornac")
    data, tables = made(tmp_path / "made")
    values = {key: choices[0] for key, choices in study.SPACES[kind].items()}
    values |= {"n_epochs": 1} if "n_epochs" in values else {}
    peer = study.Peer(study.PeerConfig("peer", kind, values, 5.0), tables)
    peer.prepare(data)
    scores = peer.score(QueryBatch(torch.zeros(3, 2), [""] * 3, ["u03", "u04", "u05"], [999.0] * 3))
    assert scores.shape == (3, N_VIDEOS) and bool(scores.isfinite().all())
    assert not torch.equal(scores[0], scores[1])


def test_a_peer_is_fitted_on_what_leaks_nothing_and_cold_learners_get_the_popular(study, tmp_path, monkeypatch):
    data, tables = made(tmp_path / "made")
    fitted = {}

    def fit(kind, values, watched, sequences, seed):
        fitted.update(watched=watched, sequences=sequences)
        return lambda counts, histories: counts @ np.eye(N_VIDEOS)[::-1]

    monkeypatch.setattr(study, "fit_cornac", fit)
    peer = study.Peer(study.PeerConfig("peer", "ease", {}, 5.0), tables)
    peer.prepare(data)
    collection = data.collection
    watches = load_interactions(collection.path / "interactions.csv", collection.videos.row_of)
    askers = [asker for side in held_out_askers(data).values() for asker in side]
    keep = fittable_watches(watches, askers, data.split.cutoff)
    expected = [watches.item[keep & (watches.user == user)].tolist() for user in range(len(watches.users))]
    assert [part.tolist() for part in fitted["sequences"]] == [items for items in expected if items]
    assert fitted["watched"].sum() == keep.sum() < len(watches)
    popularity = np.bincount(watches.item[keep], minlength=N_VIDEOS)
    cold, known = peer.score(QueryBatch(torch.zeros(2, 2), [""] * 2, ["late", "u03"], [950.0, 999.0])).numpy()
    assert (popularity == 0).any()
    assert cold[popularity > 0].tolist() == popularity[popularity > 0].tolist()
    assert (cold[popularity == 0] < popularity.min() + 1).all()
    own = peer.histories.watched_before("u03", 999.0)
    assert set(np.flatnonzero(known > 0)) == {N_VIDEOS - 1 - item for item in own if popularity[N_VIDEOS - 1 - item]}


def test_a_fit_ends_when_the_minutes_of_its_kind_are_over(study):
    began = time.monotonic()
    for _ in range(2):  # the second has no time left
        with pytest.raises(Diverged, match="slow: not fitted within"), study.time_limit("slow", 0.002):
            time.sleep(20)
    assert time.monotonic() - began < 10
    with study.time_limit("fast", 1):
        pass
