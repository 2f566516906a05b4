import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from dcdt.models.rank_head import (
    CandidateLists,
    JointHead,
    concatenate_lists,
    cross_fit,
    evidence_scale,
    fit_weights,
    weighted_sum,
)

N, K, E = 24, 9, 4


def make_lists(seed=0, n=N):
    """Lists whose second column tells positives; some cells do not count, and some judged videos were not recalled."""
    generator = torch.Generator().manual_seed(seed)
    top = torch.stack([torch.randperm(40, generator=generator)[:K] for _ in range(n)])
    evidence = torch.randn(n, K, E, generator=generator)
    evidence[..., 0] = evidence[..., 0].sort(dim=1, descending=True).values
    label = torch.zeros(n, K)
    label.scatter_(1, torch.randint(K, (n, 2), generator=generator), 1)
    evidence[..., 0] += 0.5 * label
    evidence[..., 1] += 1.5 * label
    weight = ((torch.rand(n, K, generator=generator) > 0.2) | (label > 0)).float()
    beyond = torch.tensor([next(video for video in range(41) if video not in row) for row in top.tolist()])
    judged = torch.stack([top[:, 3], top[:, 7], beyond, torch.full((n,), -1)], dim=1)
    ranks = torch.tensor([[4, 8, 17, 0]]).expand(n, 4)
    return CandidateLists(
        torch.arange(n), torch.arange(n), top, evidence, label, weight, judged, (judged >= 0).float(), ranks
    )


def loss_by_hand(lists, scale, weights, penalty):
    """The objective, query by query and video by video."""
    total = 0.0
    for at in range(len(lists.rows)):
        scores = [sum((weights * row / scale).tolist()) for row in lists.evidence[at]]
        counted = [score for score, weight in zip(scores, lists.weight[at], strict=True) if weight > 0]
        positives = [score for score, label in zip(scores, lists.label[at], strict=True) if label > 0]
        mass = math.log(sum(math.exp(score) for score in counted))
        total += sum(mass - score for score in positives) / len(positives)
    return total / len(lists.rows) + penalty * sum(float(w) ** 2 for w in weights[1:])


@pytest.mark.parametrize("penalty", [0.003, 0.3])
def test_no_other_weights_have_a_lower_loss(penalty):
    lists, signs = make_lists(), torch.tensor([False, False, False, True])
    scale = evidence_scale(lists)
    evidence = lists.evidence.clone()
    evidence[..., 3] -= lists.label  # a memory that speaks against positives may not be turned round
    lists = replace(lists, evidence=evidence)
    found = fit_weights(lists, scale, signs, penalty)
    assert found[0] == 1 and found[3] == 0 and found[1] > 0
    # the fit also finds the recall's own weight, and returns the others in units of it
    own = min((loss_by_hand(lists, scale, found * a, penalty), a) for a in torch.linspace(0.05, 2.5, 99).tolist())[1]
    best = loss_by_hand(lists, scale, found * own, penalty)
    for column in range(3):
        for step in (-0.1, 0.1):
            other = found * own
            other[column] += step
            assert loss_by_hand(lists, scale, other, penalty) > best - 1e-4
    assert fit_weights(lists, scale, torch.zeros(E, dtype=torch.bool), penalty)[3] < 0


def test_an_endless_penalty_and_lists_without_a_positive_teach_nothing():
    lists = make_lists()
    nothing, signs = torch.eye(E)[0], torch.zeros(E, dtype=torch.bool)
    assert torch.equal(fit_weights(lists, evidence_scale(lists), signs, float("inf")), nothing)
    empty = replace(lists, label=torch.zeros(N, K))
    assert torch.equal(fit_weights(empty, evidence_scale(lists), signs, 0.1), nothing)
    half = lists.label.clone()
    half[::2] = 0
    some = fit_weights(replace(lists, label=half), evidence_scale(lists), signs, 0.1)
    torch.testing.assert_close(some, fit_weights(lists.select(half.any(1)), evidence_scale(lists), signs, 0.1))


def test_what_does_not_count_is_not_read():
    lists, signs = make_lists(), torch.zeros(E, dtype=torch.bool)
    scale = evidence_scale(lists)
    changed = lists.evidence.clone()
    changed[lists.weight == 0] += 5
    found = fit_weights(replace(lists, evidence=changed), scale, signs, 0.01)
    assert torch.equal(found, fit_weights(lists, scale, signs, 0.01))
    counted = replace(lists, evidence=changed, weight=torch.ones(N, K))
    assert not torch.allclose(found, fit_weights(counted, scale, signs, 0.01))


def test_ranks_after_reranking_by_sorting_each_list():
    lists = make_lists()
    scores = torch.randint(4, (N, K), generator=torch.Generator().manual_seed(1)).float()
    found = lists.reranked(scores)
    for at in range(N):
        order = sorted(range(K), key=lambda place: (-scores[at, place], place))
        ranked = [int(lists.top[at, place]) for place in order]
        assert found[at].tolist() == [*(1 + ranked.index(int(lists.judged[at, place])) for place in (0, 1)), 17, 0]


def test_cross_fitted_weights_never_see_their_own_fold():
    lists, fold = make_lists(), torch.arange(N) % 3
    scale, signs = evidence_scale(lists), torch.zeros(E, dtype=torch.bool)
    found = cross_fit(lists, fold, lambda part: fit_weights(part, scale, signs, 0.1))
    for at in (0, 1, 5):
        others = lists.select(torch.tensor([other for other in range(N) if other % 3 != at % 3]))
        assert torch.equal(found[at], fit_weights(others, scale, signs, 0.1))
    assert not torch.equal(found[0], found[1])


def test_scores_by_one_set_of_weights_or_one_each():
    evidence, weights = make_lists().evidence, torch.randn(N, E)
    each = weighted_sum(evidence, weights)
    for at in range(N):
        torch.testing.assert_close(each[at], weighted_sum(evidence, weights[at])[at])


def test_lists_of_different_widths_are_joined():
    one, other = make_lists(), make_lists(1, n=5)
    narrow = replace(other, judged=other.judged[:, :2], grades=other.grades[:, :2], ranks=other.ranks[:, :2])
    found = concatenate_lists([one, narrow])
    assert found.judged[N:].tolist() == [[*row, -1, -1] for row in narrow.judged.tolist()]
    assert (found.ranks[N:, 2:] == 0).all() and (found.grades[N:, 2:] == 0).all()
    assert torch.equal(found.evidence[:N], one.evidence)


def make_head(seed=0, fields=2):
    torch.manual_seed(seed)
    head = JointHead(12, fields, rank=5, width=7, dropout=0.5).eval()
    torch.nn.init.normal_(head.output.weight)
    return head


@pytest.mark.parametrize("fields", [1, 2, 3])
def test_the_joint_network_pair_by_pair(fields):
    head, generator = make_head(fields=fields), torch.Generator().manual_seed(0)
    queries, videos = torch.randn(3, 12, generator=generator), torch.randn(fields, 6, 12, generator=generator)
    place = torch.randint(6, (3, 4), generator=generator)
    found, weights = head(queries, videos, place), head.attend(queries, videos, place)[2]
    for at in range(3):
        q = head.query.weight @ (normalize(queries[at], dim=0) * 12**0.5)
        for column in range(4):
            shown = [normalize(part[place[at, column]], dim=0) * 12**0.5 for part in videos]
            mapped = [tower.weight @ vector for tower, vector in zip(head.fields, shown, strict=True)]
            alpha = torch.stack([q @ vector / 5**0.5 for vector in mapped]).softmax(0)
            joint = torch.cat([q, *(fields * a * vector for a, vector in zip(alpha, mapped, strict=True))])
            wanted = head.output.weight[0] @ (head.hidden.weight @ joint + head.hidden.bias).relu()
            torch.testing.assert_close(found[at, column], wanted, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(weights[:, at, column], alpha, atol=1e-5, rtol=1e-4)


def test_attention_depends_on_the_pair_and_the_network_starts_at_zero():
    head, generator = make_head(), torch.Generator().manual_seed(0)
    queries, videos = torch.randn(2, 12, generator=generator), torch.randn(2, 6, 12, generator=generator)
    place = torch.arange(6).expand(2, 6)
    weights = head.attend(queries, videos, place)[2]
    assert weights.std(dim=2).min() > 0.01 and weights.std(dim=1).max() > 0.01
    torch.testing.assert_close(weights.sum(0), torch.ones(2, 6))
    assert not JointHead(12, 2, 5, 7, 0.5).eval()(queries, videos, place).any()
