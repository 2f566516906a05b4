import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import make_collection

from dcdt.data.beir import load_collection
from dcdt.data.config import SplitConfig
from dcdt.data.overlap import overlaps
from dcdt.data.splits import make_split
from dcdt.data.tokens import tokenizer

WORDS = ["rank", "basis", "span", "null", "the", "a"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join), max_size=6)


@given(TEXTS, TEXTS, st.sampled_from([0.3, 0.5, 0.7]))
def test_overlap_is_the_jaccard_index_of_distinct_words(texts, others, limit):
    words = tokenizer(stop_words=True)
    expected = [
        any(
            len(set(words(text)) & set(words(other))) > limit * len(set(words(text)) | set(words(other)))
            for other in others
        )
        for text in texts
    ]
    assert overlaps(texts, others, limit).tolist() == expected


@pytest.mark.parametrize("name", ["query", "folds", "video", "paper"])
def test_near_twins_of_test_queries_are_left_out_of_training_and_validation(tmp_path, name):
    collection = load_collection(make_collection(tmp_path / "c", n_queries=120))
    whole, apart = (make_split(collection, SplitConfig(name, 0, 10, "all", max_overlap=limit)) for limit in (None, 0.3))
    texts = np.array(collection.group_keys)
    test = texts[whole.test.queries].tolist()
    assert apart.test.queries.tolist() == whole.test.queries.tolist()
    for before, after in ((whole.train, apart.train), (whole.val, apart.val)):
        near = overlaps(texts[before.queries].tolist(), test, 0.3)
        assert after.queries.tolist() == before.queries[~near].tolist()
    assert set(apart.pairs[:, 0]) <= set(apart.train.queries)
    if name == "folds":
        assert len(apart.train.queries) < len(whole.train.queries)
        assert apart.fingerprint != whole.fingerprint
