import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcdt.losses.config import ContrastiveConfig
from dcdt.losses.contrastive import ContrastiveLoss
from dcdt.losses.distances import EPS, chord, euclidean
from dcdt.losses.similarities import dot


def loss(margin=1.0, squared=False):
    return ContrastiveLoss(ContrastiveConfig("contrastive", margin, squared))


def points(angles):
    """Unit vectors (..., 2) from angles in degrees (...)."""
    radians = torch.deg2rad(torch.tensor(angles, dtype=torch.float64))
    return torch.stack([radians.cos(), radians.sin()], dim=-1)


angles = st.lists(st.floats(-180, 180), min_size=4, max_size=4)


@given(st.lists(angles, min_size=1, max_size=5), st.sampled_from([0.5, 1.0, 1.5]), st.booleans())
def test_both_forms_by_a_double_loop(rows, margin, squared):
    queries, videos = points([0.0] * len(rows)), points(rows)  # (B, 2), (B, 4, 2)
    label = torch.zeros(len(rows), 4, dtype=torch.float64)
    label[:, 0] = 1
    found = loss(margin, squared)(euclidean(queries.unsqueeze(1), videos), label)
    assert found.shape == (len(rows), 4)
    for row, of_query in enumerate(rows):
        for column, angle in enumerate(of_query):
            d = 2 * abs(math.sin(math.radians(angle) / 2))  # the chord
            gap = max(margin - d, 0)
            positive, negative = (d**2 / 2, gap**2 / 2) if squared else (d, gap**2)
            wanted = positive if column == 0 else negative
            assert found[row, column].item() == pytest.approx(wanted, abs=4e-6)


def test_labels_of_both_kinds_in_one_row_need_no_order():
    distance, label = torch.tensor([[0.2, 0.3, 0.4]]), torch.tensor([[0.0, 1.0, 0.0]])
    torch.testing.assert_close(loss()(distance, label), torch.tensor([[0.64, 0.3, 0.36]]))
    torch.testing.assert_close(loss(squared=True)(distance, label), torch.tensor([[0.32, 0.045, 0.18]]))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_the_gradient_is_finite_where_vectors_coincide(squared, label):
    query = torch.tensor([[0.6, 0.8]], requires_grad=True)
    distance = euclidean(query, torch.tensor([[0.6, 0.8]]))
    loss(squared=squared)(distance, torch.tensor([label])).sum().backward()
    assert distance.item() == pytest.approx(EPS)
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("squared", [False, True])
def test_a_negative_beyond_the_margin_does_not_push(squared):
    query, videos = torch.tensor([1.0, 0.0]), points([30.0, 59.0, 61.0, 170.0]).float().requires_grad_()
    loss(squared=squared)(euclidean(query, videos), torch.zeros(4)).sum().backward()
    assert (videos.grad != 0).any(1).tolist() == [True, True, False, False]


@pytest.mark.parametrize("squared", [False, True])
def test_positives_are_pulled_and_negatives_pushed(squared):
    videos = points([40.0, 40.0]).float().requires_grad_()
    distance = euclidean(torch.tensor([1.0, 0.0]), videos)
    loss(squared=squared)(distance, torch.tensor([1.0, 0.0])).sum().backward()
    towards = (torch.tensor([1.0, 0.0]) - videos.detach()) * -videos.grad
    assert towards[0].sum() > 0
    assert towards[1].sum() < 0


def test_at_margin_one_a_negative_rests_at_cosine_one_half():
    for cosine, pushes in ((0.501, True), (0.5, False), (0.499, False)):
        video = points(math.degrees(math.acos(cosine)))
        distance = euclidean(points(0.0), video)
        assert distance.item() == pytest.approx(math.sqrt(2 - 2 * cosine))
        assert (loss()(distance, torch.tensor(0.0)) > 1e-9).item() == pushes


def test_dot_and_euclidean_broadcast():
    queries, videos = torch.rand(3, 1, 5), torch.rand(3, 4, 5)
    torch.testing.assert_close(dot(queries, videos), (queries * videos).sum(-1))
    torch.testing.assert_close(euclidean(queries, videos), torch.cdist(queries, videos)[:, 0])
    unit = torch.nn.functional.normalize(videos, dim=-1)
    similarity, distance = dot(unit[:, :1], unit), euclidean(unit[:, :1], unit)
    torch.testing.assert_close(distance.square(), 2 - 2 * similarity, atol=1e-6, rtol=0)


@pytest.mark.parametrize("squared", [False, True])
def test_the_mean_is_the_weighted_mean_of_the_cells_that_count(squared):
    distance, label = torch.tensor([[0.2, 0.3, 0.4], [0.5, 0.1, 0.6]]), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    weight = torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.0, 3.0]])
    plain, found = loss(squared=squared)(distance, label), loss(squared=squared)(distance, label, weight)
    torch.testing.assert_close(found.mean(), (plain * weight).sum() / weight.sum())
    torch.testing.assert_close(loss(squared=squared)(distance, label, torch.ones(2, 3)), plain)
    assert found[0, 2] == found[1, 1] == 0


def test_chord_is_the_distance_of_unit_vectors():
    one, other = points([0.0, 10.0, 100.0]), points([0.0, 40.0, -80.0])
    torch.testing.assert_close(chord(dot(one, other)), euclidean(one, other))
    similarity = torch.tensor([1.0, 1.0000001], requires_grad=True)
    chord(similarity).sum().backward()
    assert similarity.grad.isfinite().all()
