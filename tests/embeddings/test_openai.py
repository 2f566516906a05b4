import time

import numpy as np
import pytest
from embeddings.loopback import Loopback, Trouble, vector_of
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dcdt.config import config_folder, validate
from dcdt.embeddings.cache import VectorCache
from dcdt.embeddings.config import OpenAIEmbedderConfig
from dcdt.embeddings.fill import fill
from dcdt.embeddings.providers import make_embedder, space_of
from dcdt.embeddings.providers.openai import OpenAIEmbedder
from dcdt.embeddings.providers.token_estimates import estimate_tokens, request_batches, truncate
from dcdt.utils.errors import UserError

SECRET = "sk-test-0123456789-never-to-be-seen"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def config(**changes):
    values = {"request_inputs": 10, "concurrency": 3, "patience": 120, "timeout": 60, **changes}
    return validate(
        OpenAIEmbedderConfig,
        OmegaConf.merge(OmegaConf.load(config_folder() / "embedder" / "openai.yaml"), values),
        "embedder",
    )


def names(n):
    return [f"text {at}" for at in range(n)]


def filled(tmp_path, loopback, texts, **changes):
    """Fill a new cache from the server; the cache and what was done."""
    given_config = config(base_url=loopback.url, **changes)
    cache = VectorCache(tmp_path / "cache", space_of(given_config))
    return cache, fill(cache, texts, given_config, progress=False)


def assert_right(cache, texts):
    np.testing.assert_allclose(cache.vectors(texts), [vector_of(text) for text in texts], atol=1e-3)


def test_vectors_arrive_in_order_and_by_the_official_wire_format(tmp_path):
    with Loopback() as server:
        cache, done = filled(tmp_path, server, [*names(95), "text 3"])
        again = fill(cache, names(95), config(base_url=server.url), progress=False)
    assert_right(cache, names(95))
    assert (done.texts, done.embedded, done.tokens, done.shortened) == (95, 95, 7 * 95, 0)
    assert again.embedded == 0
    assert server.asked == server.answered == dict.fromkeys(names(95), 1)
    assert max(len(payload["input"]) for payload in server.requests) == 10
    assert {payload["encoding_format"] for payload in server.requests} == {"base64"}
    assert {payload["model"] for payload in server.requests} == {"text-embedding-3-small"}
    assert not any("dimensions" in payload for payload in server.requests)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}


def test_requests_run_side_by_side_but_not_more_than_asked():
    running, most = [], []

    def misbehave(server, number, payload):
        running.append(number)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(number)

    with Loopback(misbehave) as server:
        found = OpenAIEmbedder(config(base_url=server.url)).embed(names(100))
    assert found.shape == (100, 1536)
    assert 1 < max(most) <= 3


def test_rows_out_of_order_are_put_right(tmp_path):
    with Loopback(lambda *_: lambda rows: rows[::-1]) as server:
        cache, _ = filled(tmp_path, server, names(25))
    assert_right(cache, names(25))


def test_a_server_that_answers_lists_of_numbers_is_read_too(tmp_path):
    def floats(server, number, payload):
        payload["encoding_format"] = "float"

    with Loopback(floats) as server:
        cache, _ = filled(tmp_path, server, names(5))
    assert_right(cache, names(5))


def once(numbers, trouble):
    def misbehave(server, number, payload):
        if number in numbers:
            raise trouble

    return misbehave


SLOW = pytest.mark.slow  # since a retry waits for half a second or more


@pytest.mark.parametrize(
    "trouble",
    [Trouble(500, "oops"), *(pytest.param(Trouble(status), marks=SLOW) for status in (503, 429, 408, 0))],
)
@pytest.mark.slow
def test_passing_trouble_is_survived(tmp_path, trouble):
    with Loopback(once({1, 3}, trouble)) as server:
        cache, done = filled(tmp_path, server, names(45))
    assert done.embedded == 45
    assert_right(cache, names(45))
    assert set(server.answered.values()) == {1}


@SLOW
def test_retry_after_is_obeyed(tmp_path):
    times = []

    def misbehave(server, number, payload):
        times.append(time.monotonic())
        if number == 1:
            raise Trouble(429, "slow down", Retry_After=1)

    with Loopback(misbehave) as server:
        filled(tmp_path, server, names(3))
    assert len(times) == 2
    assert times[1] - times[0] > 0.95  # the client's own first pause is half a second


@pytest.mark.slow
def test_a_slow_answer_is_asked_for_again(tmp_path):
    def misbehave(server, number, payload):
        if number == 2:
            time.sleep(1)

    with Loopback(misbehave) as server:
        cache, _ = filled(tmp_path, server, names(30), timeout=0.3)
    assert_right(cache, names(30))


@pytest.mark.parametrize(
    "trouble",
    [Trouble(429, "busy", Retry_After=60), *(pytest.param(Trouble(status), marks=SLOW) for status in (500, 0))],
)
@pytest.mark.slow
def test_patience_ends_and_what_was_answered_stays(tmp_path, trouble):
    def misbehave(server, number, payload):
        if number > 2:
            raise trouble

    with Loopback(misbehave) as server, pytest.raises(UserError) as caught:
        filled(tmp_path, server, names(60), patience=0.8, concurrency=1)
    assert "has not answered for 0.8 s (embedder.patience)" in str(caught.value)
    assert "the same command continues from there" in str(caught.value)
    kept = VectorCache(tmp_path / "cache", space_of(config(base_url=server.url)))
    assert len(kept) == 20
    assert_right(kept, names(20))


def test_one_bad_text_loses_no_other(tmp_path):
    def misbehave(server, number, payload):
        if any("bad" in text for text in payload["input"]):
            raise Trouble(400, "this text is bad")

    texts = [*names(40), "a bad one", *(f"more {at}" for at in range(40))]
    with Loopback(misbehave) as server:
        with pytest.raises(UserError, match="no vector for 1 of 81 texts, the first with 400: this text is bad"):
            filled(tmp_path, server, texts)
        cache = VectorCache(tmp_path / "cache", space_of(config(base_url=server.url)))
        assert cache.missing(texts) == ["a bad one"]
        assert set(server.answered.values()) == {1}


def test_a_server_that_refuses_everything_is_not_asked_for_ever(tmp_path):
    with Loopback(once(range(10**6), Trouble(400, "dimensions are not supported"))) as server:
        with pytest.raises(UserError, match=r"refuses every text so far .*dimensions are not supported"):
            filled(tmp_path, server, names(500))
        assert len(server.requests) < 20


def test_a_text_over_the_limit_is_cut_counted_and_found_under_its_full_text(tmp_path):
    long = ["word " * 9000, "Eigenwert " * 1500, "." * 2600]  # by the estimate far over, a little over, below the limit
    with Loopback(longest=2000) as server:
        cache, done = filled(tmp_path, server, [*names(20), *long], max_tokens=1000)
    assert done.shortened == 3
    assert cache.missing([*names(20), *long]) == []
    sent = [text for text in server.answered if len(text) > 100]
    assert len(sent) == 3
    assert all(len(text) <= 2000 and any(whole.startswith(text) for whole in long) for text in sent)
    assert min(len(text) for text in sent) > 900
    assert {name: server.asked[name] for name in names(20)} == dict.fromkeys(names(20), 1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_rejected_key_is_not_repeated(tmp_path, status):
    with Loopback(once(range(100), Trouble(status, f"Incorrect API key provided: {SECRET}"))) as server:
        with pytest.raises(UserError, match=rf"rejects the key \({status}\)\. Set OPENAI_API_KEY") as caught:
            filled(tmp_path, server, names(200))
        assert len(server.requests) == 1
    assert SECRET not in str(caught.value)


def test_a_quota_that_ends_is_said_at_once_and_the_run_goes_on_later(tmp_path):
    def misbehave(server, number, payload):
        if number > 4:
            raise Trouble(429, "You exceeded your current quota", code="insufficient_quota")

    with Loopback(misbehave) as server:
        with pytest.raises(UserError, match=r"quota of this key is used up .* the same command continues from there"):
            filled(tmp_path, server, names(90))
        assert len(server.requests) <= 4 + 3
        held = len(VectorCache(tmp_path / "cache", space_of(config(base_url=server.url))))
        assert 30 <= held <= 40
        server.misbehave = None
        cache, done = filled(tmp_path, server, names(90))
    assert done.embedded == 90 - held
    assert set(server.answered.values()) == {1}
    assert_right(cache, names(90))


def test_vectors_of_another_width_are_refused_at_the_first_request(tmp_path):
    with Loopback(width=384) as server:
        with pytest.raises(UserError, match="answers vectors of 384 numbers; 1536 are expected"):
            filled(tmp_path, server, names(200))
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "answered 9 vectors for 10 texts"),
        (lambda rows: [*rows[:-1], rows[0]], "answered 10 vectors for 10 texts"),
        (
            lambda rows: [{**row, "embedding": "A" * 8} for row in rows],
            "no embedding response|of 1 num",
        ),
        (lambda rows: None, "answers what is no embedding response"),
    ],
)
def test_answers_that_make_no_sense_are_refused(tmp_path, change, said):
    with Loopback(lambda *_: change) as server, pytest.raises(UserError, match=said):
        filled(tmp_path, server, names(10))


def test_lengths_are_checked_and_made_one_where_asked(tmp_path):
    def doubled(rows):
        return [{**row, "embedding": (2 * vector_of(f"text {row['index']}")).tolist()} for row in rows]

    with Loopback(lambda *_: doubled) as server:
        with pytest.raises(UserError, match="not of length 1"):
            filled(tmp_path, server, names(5))
        cache, _ = filled(tmp_path, server, names(5), normalise=True)
    assert_right(cache, names(5))


def test_shorter_vectors_are_asked_for(tmp_path):
    with Loopback() as server:
        cache, _ = filled(tmp_path, server, names(3), dimensions=256)
        assert server.requests[0]["dimensions"] == 256
        assert cache.space.dimensions == 256
        filled(tmp_path / "own", server, names(3), model="some-model", dimensions=1536)
        assert "dimensions" not in server.requests[-1]


def test_an_empty_text_is_named():
    with pytest.raises(UserError, match="a text is empty"):
        OpenAIEmbedder(config()).embed(["a", " "])


def test_without_a_key_nothing_is_asked(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    with pytest.raises(UserError, match=r"needs a key: export OPENAI_API_KEY=\.\.\.\n.*embedder=local"):
        make_embedder(config())
    monkeypatch.setenv("OPENAI_API_KEY", "sk-é")
    with pytest.raises(UserError, match="holds characters that no key has") as caught:
        make_embedder(config())
    assert "sk-" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_ORG_ID", "größe")
    with pytest.raises(UserError, match="OPENAI_ORG_ID holds characters"):
        make_embedder(config())


def test_a_dry_run_asks_nothing_needs_no_key_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY")
    cache = VectorCache(tmp_path / "cache", space_of(config()))
    texts = [f"{'word ' * 200}{at}" for at in range(400)]
    fill(cache, texts, config(), dry_run=True)
    said = capsys.readouterr().out
    assert "400 distinct texts: 0 cached, 400 to embed; about 114," in said
    assert "less than 0.01 USD" in said
    assert "3 at once" in said
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "bge-m3"}, "its width is not known"),
        ({"dimensions": 2000}, "has at most 1536"),
        ({"model": "text-embedding-ada-002", "dimensions": 256}, "has 1536 and no other"),
        ({"base_url": "http://me:secret@host/v1"}, "holds a user, a password or a query"),
        ({"base_url": "https://host/v1?key=secret"}, "holds a user, a password or a query"),
        ({"base_url": "localhost:8000"}, "must be an address"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"price": -1}, "price is -1"),
    ],
)
def test_settings_out_of_range_are_named(changes, said):
    with pytest.raises(UserError, match=said) as caught:
        config(**changes)
    assert "secret" not in str(caught.value)


def test_another_server_has_another_space():
    spaces = {space_of(config(**changes)) for changes in ({}, {"base_url": "http://h/v1"}, {"dimensions": 512})}
    assert len(spaces) == 3
    assert space_of(config(base_url="http://h/v1")) == space_of(config(base_url="http://other/v1"))


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 900).map(lambda n: "x" * n or "y"), max_size=60),
    st.integers(1, 9),
    st.integers(1, 400),
    st.integers(1, 200),
)
def test_requests_hold_every_text_once_within_the_limits(texts, inputs, tokens, longest):
    batches = list(request_batches(texts, inputs, tokens, longest))
    assert [row for batch in batches for row in batch] == list(range(len(texts)))
    for batch in batches:
        counts = [min(estimate_tokens(texts[row]), longest) for row in batch]
        assert len(batch) == 1 or (len(batch) <= inputs and sum(counts) <= tokens and max(counts) <= 0.75 * longest)


@settings(max_examples=40)
@given(st.text(min_size=1), st.integers(1, 50))
def test_a_shortened_text_is_a_start_of_it_and_not_empty(text, tokens):
    found = truncate(text, tokens)
    assert text.startswith(found)
    assert found
    assert found == text or estimate_tokens(text) > tokens
