"""Messages are checked field by field, and what can be told from one is what docs/federation.md says."""

import json
from dataclasses import replace

import pytest
import torch
from federation.schools import divide
from federation.test_sums import FIELDS, hybrid_config, load, ridge_config
from safetensors.torch import save_file
from support import make_collection

from baselines.hybrid import Hybrid
from dcdt.federation.messages import MAX_HEADER_BYTES, Expected, Header, Message, add_messages, pair_messages
from dcdt.models.ridge_towers import RidgeTowers
from dcdt.utils.errors import UserError

DIGEST = "0" * 64
HEADER = Header(1, "statistics", json.dumps({"name": "m", "k": 1}), DIGEST, "space", 30)


@pytest.fixture(scope="module")
def schools(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messages")
    return [load(school) for school in divide(make_collection(folder / "all", 20, 100), folder, 2)[1]]


@pytest.fixture(scope="module")
def expected(schools):
    model = Hybrid(hybrid_config(), schools[0].tables)
    return Expected(
        HEADER,
        {"statistics": model.fitted_part.sum_shapes(), "losses": model.loss_shapes()},
        model.fitted_part.check_sums,
    )


@pytest.fixture(scope="module")
def statistics(schools):
    made = []
    for school in schools:
        sums = Hybrid(hybrid_config(), school.tables).fitted_part.sum_training(school.data)
        made.append(Message(replace(HEADER, queries=sums.n), sums.tensors))
    return made


@pytest.fixture(scope="module")
def losses(schools, statistics):
    total, made = add_messages(statistics), []
    for school in schools:
        sums = Hybrid(hybrid_config(), school.tables).sum_losses(school.data, total.tensors)
        made.append(Message(replace(HEADER, kind="losses", queries=sums.n, statistics=total.digest), sums.tensors))
    return made


def test_a_message_is_read_as_it_was_written(tmp_path, expected, statistics, losses):
    for message in (*statistics, *losses):
        assert message.write(tmp_path / "m.safetensors") == (tmp_path / "m.safetensors").stat().st_size
        found = expected.read(tmp_path / "m.safetensors")
        assert found.header == message.header and found.digest == message.digest


def test_the_order_of_messages_makes_no_difference(expected, statistics, losses):
    one, other = (
        pair_messages(order, expected) for order in ([*statistics, *losses], [*losses[::-1], *statistics[::-1]])
    )
    assert one[0].digest == other[0].digest and one[1].digest == other[1].digest
    assert one[0].header.schools == 2 and one[0].header.queries == sum(m.header.queries for m in statistics)


def changed(**changes):
    return lambda message: replace(message, header=replace(message.header, **changes))


def tensor(name, change):
    return lambda message: replace(message, tensors={**message.tensors, name: change(message.tensors[name].clone())})


def put(value, at=(0, 1)):
    def change(tensor):
        tensor[at] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed(model=json.dumps({"name": "m", "k": 2})), "its model is not the one here ("),
        (changed(model="[]"), "its model is not the one here ([]; here"),
        (changed(catalogue="1" * 64), "its catalogue is not the one here"),
        (changed(space="other"), "its space is not the one here (other; here space)"),
        (changed(queries=29), "the trace of 'gram' is"),
        (changed(queries=0), "go together"),
        (changed(epsilon=1.0, delta=1e-5), "go together"),
        (changed(epsilon=1.0, queries=0), "go together"),
        (changed(statistics=DIGEST), "losses alone name the statistics"),
        (changed(kind="losses"), "losses alone name the statistics"),
        (changed(queries=2**40), "it counts 1,099,511,627,776 queries"),
        (tensor("gram", put(float("nan"))), "'gram' holds values that are not finite"),
        (tensor("cross", put(float("inf"))), "'cross' holds values that are not finite"),
        (tensor("gram", put(5.0)), "'gram' is not symmetric"),
        (tensor("cross", put(1e6)), "the norm of 'cross' is 1e+06"),
        (tensor("gram", lambda value: value.float()), "'gram' is F32"),
        (tensor("gram", lambda value: value[:3]), "'gram' is F64 [3, 24], not F64 [24, 24]"),
        (
            lambda message: replace(message, tensors={"gram": message.tensors["gram"]}),
            "it does not hold cross, gram alone",
        ),
        (
            lambda message: replace(message, tensors={**message.tensors, "x": torch.zeros(1)}),
            "does not hold cross, gram",
        ),
    ],
)
def test_a_wrong_message_is_refused_by_name(tmp_path, expected, statistics, change, reason):
    path = tmp_path / "school_b.safetensors"
    change(statistics[0]).write(path)
    with pytest.raises(UserError) as error:
        expected.read(path)
    assert str(error.value).startswith(f"{path} is refused: ") and reason in str(error.value)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"version": 2}, "header.version"),
        ({"queries": -1}, "header.queries"),
        ({"queries": 1.5}, "header.queries"),
        ({"queries": "30"}, "header.queries"),
        ({"schools": 0}, "header.schools"),
        ({"kind": "models"}, "header.kind"),
        ({"catalogue": "x"}, "header.catalogue"),
        ({"epsilon": -1}, "header.epsilon"),
        ({"names": ["u1"]}, "unknown setting header.names"),
        ("[]", "it has no header of dcdt"),
        ("{", "is refused"),
        (None, "it has no header of dcdt"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path, expected, statistics, header, reason):
    values = {key: value for key, value in vars(HEADER).items() if not key.startswith("_") and value is not None}
    text = json.dumps(values | header) if isinstance(header, dict) else header
    path = tmp_path / "school.safetensors"
    save_file(statistics[0].tensors, path, None if text is None else {"dcdt": text})
    with pytest.raises(UserError, match=reason):
        expected.read(path)


def test_what_is_no_message_is_refused(tmp_path, expected, statistics):
    path = tmp_path / "school.safetensors"
    statistics[0].write(path)
    content = path.read_bytes()
    for wrong in (b"", b"x", content[:-1], content[:50], content + b"\0" * (MAX_HEADER_BYTES + 10_000)):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"school\.safetensors is refused"):
            expected.read(path)
    for missing in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match="there is no such file"):
            expected.read(missing)


def test_losses_are_of_the_statistics_and_of_all_schools(tmp_path, expected, statistics, losses):
    with pytest.raises(UserError, match="no message holds statistics"):
        pair_messages(losses, expected)
    with pytest.raises(UserError, match="the losses of all schools are needed"):
        pair_messages(statistics, expected)
    with pytest.raises(UserError, match="were not computed with the sum of these statistics"):
        pair_messages([statistics[0], *losses], expected)
    with pytest.raises(UserError, match="not by all 2 schools"):
        pair_messages([*statistics, losses[0]], expected)
    with pytest.raises(UserError, match="hold the same numbers"):
        add_messages([statistics[0], statistics[1], replace(statistics[0])])
    with pytest.raises(UserError, match="do not belong together"):
        add_messages([losses[0], changed(statistics=DIGEST)(losses[1])])
    hidden = replace(statistics[0], header=replace(statistics[0].header, queries=0, epsilon=1.0, delta=1e-5))
    with pytest.raises(UserError, match="has noise: all schools must choose the same"):
        add_messages([hidden, statistics[1]])
    bad = tensor("quality", put(1e4, 0))(losses[0])
    bad.write(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="'quality' is not between 0 and"):
        expected.read(tmp_path / "bad.safetensors")


def test_a_message_holds_no_text_and_no_id(tmp_path, schools, statistics, losses):
    for message in (*statistics, *losses):
        message.write(tmp_path / "m.safetensors")
        content = (tmp_path / "m.safetensors").read_bytes()
        for school in schools:
            for text in (*school.collection.queries.texts, *(f'"{name}"' for name in school.collection.queries.ids)):
                assert text.encode() not in content


@pytest.mark.parametrize(("n", "told"), [(1, 1), (2, 2), (20, None)])
def test_what_a_message_tells_of_its_queries(schools, n, told):
    """With fewer videos than dimensions, a hub that knows the videos solves for the sum of the queries of each.

    A query of a video that no other query of the message is about is then known as a vector, whatever their number.
    """
    from dcdt.data.splits import Side

    school = schools[0]
    side = school.split.train
    keep = list(dict.fromkeys(side.queries.tolist()))[:n]
    is_kept = torch.isin(torch.from_numpy(side.judgments.query), torch.tensor(keep)).numpy()
    rows = Side(side.queries[:n], side.candidates, side.judgments.where(is_kept))
    data = load(school.collection.path).data
    object.__setattr__(data.split, "train", rows)
    model = RidgeTowers(ridge_config(fit_on="train"), school.tables)
    sums = model.sum_training(data).tensors
    videos = model.video_vectors().double()  # (N, D), which everybody has
    assert len(videos) < videos.shape[1]
    by_video = sums["cross"] @ torch.linalg.pinv(videos)  # (D, N): X' C, where targets are C videos
    queries = torch.nn.functional.normalize(school.tables.queries[rows.queries] @ model.whitening, dim=-1).double()
    cosine = torch.nn.functional.normalize(by_video.T, dim=-1) @ queries.T  # (N, n)
    n_found = int((cosine.abs().amax(0) > 0.999).sum())
    if told is not None:
        assert n_found == told
    else:
        assert 0 < n_found <= n  # those of a video of their own
    assert set(sums) == {"gram", "cross"} and FIELDS
