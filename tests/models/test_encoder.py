"""The encoder with its last layers trained: the same as zero_shot before training, served as it was evaluated."""

import pytest
import torch
from embeddings.tiny import write_model
from support import make_collection
from torch.nn.functional import normalize
from transformers import DistilBertConfig, DistilBertModel, MPNetConfig, MPNetModel, XLMRobertaConfig, XLMRobertaModel

from baselines.config import ZeroShotConfig
from baselines.zero_shot import ZeroShot
from dcdt.data.beir import load_collection
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers import make_embedder
from dcdt.embeddings.providers.division import FrozenLayers, TopLayers
from dcdt.embeddings.providers.pooling import PooledLayers
from dcdt.embeddings.states import load_tokens
from dcdt.embeddings.tables import load_tables
from dcdt.losses.config import InfoNCEConfig
from dcdt.losses.infonce import InfoNCELoss
from dcdt.models.config import EncoderConfig, OptimizerConfig
from dcdt.models.encoder import EncoderTowers
from dcdt.models.query_batch import query_batch
from dcdt.utils.errors import UserError

FIELDS = ["title", "text"]
SPOKEN = ["title", "transcript", "text"]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    make_collection(folder / "small")
    make_collection(folder / "spoken", spoken=8)
    write_model(folder / "tiny", layers=3)
    return folder


def embedder(place, weights=(0.2, 1.0), **others):
    return LocalEmbedderConfig("local", str(place / "tiny"), list(weights), 64, 32, backend="torch", **others)


def make_model(
    place, trainable=1, weights=(0.2, 1.0), max_gigabytes=1.0, decay=1.0, cache="cache", dropout=0.0, fields=FIELDS
):
    folder = place / ("spoken" if "transcript" in fields else "small")
    collection, config = load_collection(folder), embedder(place, weights)
    tables = load_tables(collection, fields, config, str(place / "vectors"), progress=False)
    tables.tokens = load_tokens(collection, fields, config, str(place / cache), trainable, max_gigabytes, False)
    torch.manual_seed(0)
    model = EncoderTowers(
        EncoderConfig("dcdt_encoder", fields, trainable, decay, dropout, max_gigabytes),
        tables,
        InfoNCELoss(InfoNCEConfig("infonce", "each", 0.1, learn_temperature=False)),
        OptimizerConfig(1e-2, 0.01, "constant"),
    )
    model.record_loss = lambda *args: None  # there is no trainer
    return model.eval(), collection


def scores_of(model, collection, n=9):
    with torch.no_grad():
        return model.eval().score(query_batch(collection, model.tables, torch.arange(n)))


def train(model, steps=3):
    label = torch.eye(6)
    batch = {"query": torch.arange(6), "columns": torch.arange(6), "label": label, "weight": torch.ones(6, 6)}
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=0.05)
    model.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("fields", [FIELDS, SPOKEN])
@pytest.mark.parametrize("weights", [(1.0,), (0.2, 1.0), (0.3, 0.2, 1.0)])
@pytest.mark.parametrize("trainable", [1, 2, 3])
def test_untrained_it_is_zero_shot(place, trainable, weights, fields):
    model, collection = make_model(place, trainable, weights, fields=fields)
    reference = ZeroShot(ZeroShotConfig("zero_shot", fields, "none"), model.tables)
    torch.testing.assert_close(scores_of(model, collection), scores_of(reference, collection), atol=3e-3, rtol=0)


def test_passages_are_embedded_by_the_trained_layers_which_learn_from_titles_and_texts(place):
    model, collection = make_model(place, 2, fields=SPOKEN)
    plain, _ = make_model(place, 2)
    assert train(model) == pytest.approx(train(plain), abs=2e-2)
    scores, tokens, passages = scores_of(model, collection), model.tables.tokens, model.tables.passages
    queries = model.encode_queries(model.query_inputs(torch.arange(9)))
    for video in range(len(passages.offsets) - 1):
        rows = passages.rows_of(video)
        spoken = normalize(model.encode_texts(tokens.fields["transcript"][rows], passages.vectors[rows]), dim=-1)
        wanted = (queries @ spoken.T).amax(1) + queries @ model.video_vectors()[video]
        torch.testing.assert_close(scores[:, video], wanted, atol=1e-4, rtol=0)


def test_transcripts_alone_are_nothing_to_train_on(place):
    with pytest.raises(UserError, match=r"model\.fields is \[transcript\], .* add title"):
        make_model(place, fields=["transcript"])


@pytest.mark.parametrize("trainable", [1, 2])
def test_states_in_each_batch_give_the_scores_of_cached_ones(place, trainable):
    cached, collection = make_model(place, trainable)
    computed, _ = make_model(place, trainable, max_gigabytes=0.0)
    assert computed.tables.tokens.states is None
    torch.testing.assert_close(scores_of(cached, collection), scores_of(computed, collection), atol=2e-3, rtol=0)
    for one, other in zip(train(cached), train(computed), strict=True):
        assert one == pytest.approx(other, abs=2e-2)


def test_training_moves_positives_up_and_the_trained_layers_alone(place):
    model, _ = make_model(place, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = train(model, steps=20)
    assert losses[-1] < 0.8 * losses[0]
    changed = {name.split(".")[4] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0", "1"}
    assert not [name for name in before if "embeddings" in name or "pooler" in name]


def test_scores_by_hand_after_training(place):
    """Every text through the whole encoder, one at a time, in full precision."""
    model, collection = make_model(place, 2, (0.3, 0.2, 1.0), max_gigabytes=0.0)
    train(model)
    scores = scores_of(model, collection)
    pooled, tokenizer, _ = model.served_encoder()
    weights = torch.tensor([0.3, 0.2, 1.0]).unsqueeze(-1)

    @torch.no_grad()
    def encode(text):
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=32)["input_ids"]])
        layers = PooledLayers(pooled.model, 3, "mean")(ids, torch.ones_like(ids))[0]  # (3, H)
        return normalize((layers * weights).flatten(), dim=-1)

    for row in range(3):
        query = encode(collection.queries.texts[row])
        for video in range(5):
            fields = [encode(collection.vector_texts(name)[video]) for name in FIELDS]
            wanted = float(query @ normalize(sum(fields), dim=-1))
            assert float(scores[row, video]) == pytest.approx(wanted, abs=1e-3)


def test_states_are_cached_by_content_and_made_again_where_they_changed(place, monkeypatch):
    first, _ = make_model(place, cache="states")
    states = first.tables.tokens.states.clone()
    monkeypatch.setattr("dcdt.embeddings.states._make", lambda *args: pytest.fail("computed again"))
    second, _ = make_model(place, cache="states")
    assert torch.equal(second.tables.tokens.states, states)
    monkeypatch.undo()
    files = sorted((place / "states").rglob("*.safetensors"))
    for path in files:
        content = bytearray(path.read_bytes())
        content[-9] ^= 64
        path.write_bytes(content)
    third, _ = make_model(place, cache="states")
    assert torch.equal(third.tables.tokens.states, states)


def test_a_collection_that_grows_makes_new_states_alone(place, tmp_path, monkeypatch):
    monkeypatch.setattr("dcdt.embeddings.states.PART", 4)
    made, original = [], FrozenLayers.__call__

    def count(self, ids, mask):
        made.append(len(ids))
        return original(self, ids, mask)

    monkeypatch.setattr(FrozenLayers, "__call__", count)
    config, collection = embedder(place), load_collection(place / "small")
    load_tokens(collection, ["text"], config, str(tmp_path), 1, 1.0, False)
    assert sum(made) > 0
    made.clear()
    corpus = make_collection(tmp_path / "grown") / "corpus.jsonl"
    corpus.write_text((place / "small" / "corpus.jsonl").read_text())
    with corpus.open("a") as file:
        file.write('{"_id": "new", "title": "New", "text": "span rank basis"}\n')
    grown = load_tokens(load_collection(tmp_path / "grown"), ["text"], config, str(tmp_path), 1, 1.0, False)
    assert 0 < sum(made) <= 4
    assert not torch.isnan(grown.states).any()


def test_layers_below_learn_more_slowly_and_biases_do_not_decay(place):
    model, _ = make_model(place, 3, decay=0.5)
    groups = model.parameter_groups()
    assert sorted({group["lr"] for group in groups}) == [0.0025, 0.005, 0.01]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for group in groups:
        assert all((parameter.ndim <= 1) == ("weight_decay" in group) for parameter in group["params"])


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (MPNetModel, MPNetConfig(**SHAPE)),
        (XLMRobertaModel, XLMRobertaConfig(**SHAPE)),
        (DistilBertModel, DistilBertConfig(dim=16, hidden_dim=32, n_layers=4, n_heads=2, vocab_size=40)),
    ],
)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_other_architectures_are_divided(make, shape, pooling):
    torch.manual_seed(0)
    whole = make(shape).eval()
    ids = torch.randint(5, 40, (3, 9))
    mask = torch.arange(9) < torch.tensor([[9], [4], [6]])
    wanted = PooledLayers(whole, 2, pooling)(ids, mask.long())
    parts = TopLayers(whole, 2, pooling, None).eval()(FrozenLayers(whole, 2)(ids, mask), mask)
    torch.testing.assert_close(parts, wanted, atol=1e-5, rtol=0)


def test_the_whole_encoder_differs_in_the_trained_layers_alone(place):
    model, _ = make_model(place, 2, max_gigabytes=0.0)
    train(model)
    pooled, *_ = model.served_encoder()
    plain = make_embedder(embedder(place)).model.model.state_dict()
    changed = {name for name, value in pooled.model.state_dict().items() if not torch.equal(value, plain[name])}
    assert {name.split(".")[2] for name in changed} == {"1", "2"}
