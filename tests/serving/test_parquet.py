"""The exported vectors, and the statements that load them elsewhere, as docs/scaling.md has them."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dcdt.serving.load import load
from dcdt.serving.parquet import write_parquet
from dcdt.serving.recommender import ServedRecommender
from dcdt.utils.errors import UserError

DOCS = Path(__file__).parents[2] / "docs" / "scaling.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_file_gives_the_answers_of_the_run_and_holds_no_deleted_video(own_copy, tmp_path):
    served = ServedRecommender(own_copy("model=dcdt_ridge"))
    served.delete(["v3"])
    path = tmp_path / "videos.parquet"
    assert "19 videos, vector_0" in write_parquet(served, path)
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"dcdt"])
    assert metadata["measure"] == "inner product" and metadata["widths"]["vector_0"] == 32
    vector = served.scorers[0].towers.query(served.embed(["rank of a basis"]))[0][0]
    scores = np.array(table["vector_0"].to_pylist(), dtype=np.float32) @ vector
    ids = table["id"].to_pylist()
    answered = [scores[ids.index(item.id)] for item in served.recommend("rank of a basis", 5)[0]]
    np.testing.assert_allclose(answered, np.sort(scores)[::-1][:5], atol=1e-6)  # twins may change places
    assert "v3" not in ids


def test_a_model_without_vectors_says_so(make_run, tmp_path):
    with pytest.raises(UserError, match="has no vector to search by"):
        write_parquet(load(make_run("model=bm25")), tmp_path / "videos.parquet")


class Client:
    """Keeps what it is given, as the clients of three databases are given it."""

    def __init__(self):
        self.sent = []

    def insert(self, collection_name, data):
        self.sent.extend(data)

    def upload_points(self, collection_name, points):
        self.sent.extend(points)

    def executemany(self, statement, rows):
        assert statement.count("%s") == len(rows[0])
        self.sent.extend(rows)


@pytest.mark.slow
def test_the_documented_loaders_send_every_video(own_copy, tmp_path):
    """No cluster runs here, so clients stand in that keep what they are given."""
    served = ServedRecommender(own_copy("model=dcdt_ridge"))
    path = tmp_path / "videos.parquet"
    write_parquet(served, path)
    assert len(blocks()) == 3
    for block in blocks():
        client, names = Client(), {}
        exec(compile(block, str(DOCS), "exec"), names)  # our own documentation
        names["load"](client, path)
        assert len(client.sent) == 20
