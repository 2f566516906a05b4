import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcdt.data.beir import load_collection
from dcdt.embeddings.cache import Space, VectorCache
from dcdt.embeddings.vector_import import import_vectors
from dcdt.utils.errors import UserError


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"_id": "v0"}', '{"text": "a text"}'], ":2: 'text' is not what the lines before have"),
        (['{"text": "a text"}', '{"_id": "v0"}'], ":2: '_id' is not what the lines before have"),
        (['{"text": "a text"}', '{"text": null}'], ":2: 'text' is empty"),
        (['{"text": " "}', '{"text": "a text"}'], ":1: 'text' is empty"),
        (['{"title": "a text"}', '{"text": "a text"}'], ":1: a JSON object with 'text' or '_id' is needed"),
    ],
)
def test_names_that_cannot_be_told_are_refused_and_nothing_is_stored(small, tmp_path, lines, said):
    np.save(tmp_path / "vectors.npy", np.eye(2, 4))
    (tmp_path / "names.jsonl").write_text("\n".join(lines))
    cache = VectorCache(tmp_path / "cache", Space("openai", "m", 4, "l2"))
    with pytest.raises(UserError, match=f"names.jsonl{said}"):
        import_vectors(cache, tmp_path / "vectors.npy", tmp_path / "names.jsonl", load_collection(small), "text", False)
    assert not (tmp_path / "cache").exists()


def test_texts_of_parquet_are_those_of_the_collection_or_refused(small, tmp_path):
    def imported(*texts):
        table = pa.table({"text": texts, "vector": [[1.0, 0.0], [0.0, 1.0]]})
        pq.write_table(table, tmp_path / "v.parquet")
        cache = VectorCache(tmp_path / "cache", Space("openai", "m", 2, "l2"))
        import_vectors(cache, tmp_path / "v.parquet", None, load_collection(small), "text", False)
        return cache

    for text in (None, " "):
        with pytest.raises(UserError, match=r"v\.parquet row 1: 'text' is empty"):
            imported("a text", text)
    assert imported("a text", " a blank ").missing(["a text", "a blank"]) == []
