import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcdt.evaluation import ranking
from dcdt.evaluation.ranking import judged_ranks, metric_names, ranking_metrics, tie_order, tie_rate, top_k

INF = math.inf


def random_case(seed, n_queries=7, n_videos=23, n_judged=5, levels=4):
    """Scores with many ties (and signed zeros), judged rows padded anywhere, a mask that keeps every judged video."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.tensor([-INF, -2.5, -0.0, 0.0, 1e-30, 0.5, 3.0, INF])[: 2 * levels]
    scores = pool[torch.randint(0, len(pool), (n_queries, n_videos), generator=generator)]
    judged = torch.stack([torch.randperm(n_videos, generator=generator)[:n_judged] for _ in range(n_queries)])
    judged = judged.masked_fill(torch.rand(judged.shape, generator=generator) < 0.3, -1)
    candidates = torch.rand(n_videos, generator=generator) < 0.5
    candidates[judged[judged >= 0]] = True
    grades = torch.randint(0, 4, judged.shape, generator=generator).float().masked_fill(judged < 0, 0)
    order = torch.randperm(n_videos, generator=generator)
    return scores, judged, grades, order, candidates


def brute_order(scores, order, candidates):
    """Candidate rows of one query, best first."""
    rows = [row for row in range(len(scores)) if candidates[row]]
    return sorted(rows, key=lambda row: (-scores[row], order[row]))


def brute_metrics(ranks, grades, positive_grade, k):
    """The metrics of one query by walking down the list, from {rank: grade}."""
    grade_at = {rank: grade for rank, grade in zip(ranks, grades, strict=True) if rank > 0}
    positives = sorted(rank for rank, grade in grade_at.items() if grade >= positive_grade)
    hits, precisions = 0, []
    for rank in range(1, max(positives) + 1):
        if rank in positives:
            hits += 1
            precisions.append(hits / rank)
    shown = sum(rank <= k for rank in positives)
    gained = sum(grade / math.log2(rank + 1) for rank, grade in grade_at.items() if rank <= k)
    best = sorted(grade_at.values(), reverse=True)[:k]
    ideal = sum(grade / math.log2(place + 2) for place, grade in enumerate(best))
    return {
        "mrr": 1 / positives[0],
        "map": sum(precisions) / len(positives),
        f"recall@{k}": shown / len(positives),
        f"precision@{k}": shown / k,
        f"hit@{k}": float(shown > 0),
        f"ndcg@{k}": gained / ideal,
    }


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("masked", [False, True])
def test_ranks_equal_a_sort_of_the_candidates(seed, masked):
    scores, judged, _, order, candidates = random_case(seed)
    mask = candidates if masked else torch.ones_like(candidates)
    ranks = judged_ranks(scores, judged, order, candidates if masked else None)
    for query in range(len(scores)):
        expected = brute_order(scores[query].tolist(), order.tolist(), mask.tolist())
        for video, rank in zip(judged[query].tolist(), ranks[query].tolist(), strict=True):
            assert rank == (0 if video < 0 else 1 + expected.index(video))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("k", [1, 3, 8])
def test_top_k_is_the_head_of_the_same_order(seed, k):
    scores, _, _, order, candidates = random_case(seed)
    values, rows = top_k(scores, k, order, candidates)
    for query in range(len(scores)):
        assert rows[query].tolist() == brute_order(scores[query].tolist(), order.tolist(), candidates.tolist())[:k]
    assert torch.equal(values, scores.gather(1, rows))


def test_top_k_of_everything_has_ranks_one_to_n():
    scores, _, _, order, _ = random_case(3)
    _, rows = top_k(scores, scores.shape[1], order)
    ranks = judged_ranks(scores, rows, order)
    assert torch.equal(ranks, torch.arange(1, scores.shape[1] + 1).expand_as(ranks))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=8))
def test_order_holds_for_any_floats(values):
    scores = torch.tensor([values], dtype=torch.float32)
    order = torch.arange(len(values)).flip(0)
    expected = brute_order(scores[0].tolist(), order.tolist(), [True] * len(values))
    assert top_k(scores, len(values), order)[1][0].tolist() == expected


def test_chunks_do_not_change_the_result(monkeypatch):
    scores, judged, _, order, candidates = random_case(5)
    whole = judged_ranks(scores, judged, order, candidates), top_k(scores, 4, order, candidates)[1]
    for cells in (1, 50):  # one query at a time, two at a time
        monkeypatch.setattr(ranking, "_CHUNK_CELLS", cells)
        assert torch.equal(whole[0], judged_ranks(scores, judged, order, candidates))
        assert torch.equal(whole[1], top_k(scores, 4, order, candidates)[1])


def test_no_query_and_no_judgment_are_fine():
    order = torch.arange(4)
    assert judged_ranks(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64), order).shape == (0, 2)
    assert judged_ranks(torch.zeros(3, 4), torch.zeros(3, 0, dtype=torch.int64), order).shape == (3, 0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("positive_grade", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_metrics_equal_a_walk_down_the_list(seed, positive_grade, k):
    scores, judged, grades, order, _ = random_case(seed)
    keep = (grades >= positive_grade).any(dim=1)
    ranks, grades = judged_ranks(scores, judged, order)[keep], grades[keep]
    values = ranking_metrics(ranks, grades, positive_grade, [k])
    assert list(values) == metric_names([k])
    for query in range(len(ranks)):
        expected = brute_metrics(ranks[query].tolist(), grades[query].tolist(), positive_grade, k)
        found = {name: value[query].item() for name, value in values.items()}
        assert found == pytest.approx(expected, abs=1e-6)


def test_padding_and_column_order_do_not_change_the_metrics():
    ranks, grades = torch.tensor([[4, 1, 9]]), torch.tensor([[1.0, 0.0, 3.0]])
    plain = ranking_metrics(ranks, grades, 1)
    padded = ranking_metrics(torch.tensor([[0, 9, 0, 4, 1]]), torch.tensor([[0, 3.0, 0, 1.0, 0]]), 1)
    for name, value in plain.items():
        assert torch.equal(value, padded[name])


def test_grade_below_the_positive_grade_counts_only_in_ndcg():
    values = ranking_metrics(torch.tensor([[1, 3]]), torch.tensor([[1.0, 2.0]]), positive_grade=2, ks=[2])
    assert values["mrr"].item() == pytest.approx(1 / 3)
    assert values["hit@2"].item() == 0
    assert values["ndcg@2"].item() == pytest.approx(1 / (2 + 1 / math.log2(3)))


def test_a_grade_below_zero_gains_nothing():
    with_negative = ranking_metrics(torch.tensor([[1, 2]]), torch.tensor([[-1.0, 1.0]]), 1)
    assert with_negative["ndcg@5"].item() == pytest.approx(1 / math.log2(3))


@pytest.mark.slow
def test_a_constant_scorer_scores_like_chance():
    """With one positive among N, the rank is uniform: the mean reciprocal rank is the harmonic number H(N) / N."""
    n_videos, names = 30, [f"video {row}" for row in range(30)]
    scores, judged = torch.zeros(n_videos, n_videos), torch.arange(n_videos)[:, None]  # each video is once the positive
    one_order = ranking_metrics(judged_ranks(scores, judged, tie_order(names)), torch.ones(n_videos, 1), 1)["mrr"]
    expected = sum(1 / rank for rank in range(1, n_videos + 1)) / n_videos
    assert one_order.mean().item() == pytest.approx(expected, abs=1e-6)
    ranks = [judged_ranks(scores[:1], judged[:1], tie_order(names, seed)).item() for seed in range(2000)]
    error = 5 * (sum(1 / r**2 for r in range(1, 31)) / 30 - expected**2) ** 0.5 / len(ranks) ** 0.5
    assert sum(1 / rank for rank in ranks) / len(ranks) == pytest.approx(expected, abs=error)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_catalogue_changes_nothing(seed):
    scores, judged, _, _, candidates = random_case(seed)
    names = [f"video {row}" for row in range(scores.shape[1])]
    shuffle = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))  # new row -> old row
    new_row = torch.empty_like(shuffle)
    new_row[shuffle] = torch.arange(len(names))
    moved_names = [names[row] for row in shuffle.tolist()]
    moved_judged = torch.where(judged < 0, judged, new_row[judged.clamp(min=0)])
    before, after = tie_order(names), tie_order(moved_names)
    assert torch.equal(
        judged_ranks(scores, judged, before, candidates),
        judged_ranks(scores[:, shuffle], moved_judged, after, candidates[shuffle]),
    )
    rows = top_k(scores, 6, before, candidates)[1]
    moved_rows = top_k(scores[:, shuffle], 6, after, candidates[shuffle])[1]
    assert torch.equal(rows, shuffle[moved_rows])


def test_tie_order_is_a_permutation_that_the_seed_changes():
    names = [str(row) for row in range(50)]
    assert sorted(tie_order(names).tolist()) == list(range(50))
    assert tie_order(names).tolist() != list(range(50))
    assert tie_order(names, seed=0).tolist() != tie_order(names, seed=1).tolist()
    assert tie_order(names).tolist() == tie_order(names, seed=0).tolist()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("masked", [False, True])
def test_tie_rate_equals_a_double_loop(seed, masked):
    _, judged, _, _, candidates = random_case(seed)
    generator = torch.Generator().manual_seed(100 + seed)
    scores = torch.randint(0, 40, (len(judged), len(candidates)), generator=generator).float()
    mask = candidates if masked else torch.ones_like(candidates)
    found = tie_rate(scores, judged, candidates if masked else None).tolist()
    for query, videos in enumerate(judged.tolist()):
        others = [
            (video, other)
            for video in videos
            for other in range(len(mask))
            if video >= 0 and other != video and mask[other] and scores[query, video] == scores[query, other]
        ]
        assert found[query] == float(bool(others))


def test_tie_rate_ignores_padding_and_videos_that_are_no_candidates():
    scores = torch.tensor([[1.0, 1.0, 2.0]])
    assert tie_rate(scores, torch.tensor([[2, -1]])).tolist() == [0.0]
    assert tie_rate(scores, torch.tensor([[0, -1]])).tolist() == [1.0]
    assert tie_rate(scores, torch.tensor([[0, -1]]), torch.tensor([True, False, True])).tolist() == [0.0]


def test_infinite_scores_rank_and_still_precede_what_is_no_candidate():
    scores = torch.tensor([[-INF, 7.0, INF, -INF]])
    candidates = torch.tensor([True, False, True, True])
    ranks = judged_ranks(scores, torch.tensor([[0, 2, 3]]), torch.tensor([1, 2, 3, 0]), candidates)
    assert ranks.tolist() == [[3, 1, 2]]


ORDER, SCORES, JUDGED = torch.arange(3), torch.zeros(2, 3), torch.tensor([[0], [1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([[0, math.nan, 0]] * 2), JUDGED, ORDER), "2 of 6 scores are NaN"),
        ((SCORES.bfloat16(), JUDGED, ORDER), "bfloat16"),
        ((SCORES.double(), JUDGED, ORDER), "float64"),
        ((torch.zeros(2, 0), JUDGED, ORDER), "at least one video"),
        ((SCORES, torch.tensor([[0], [3]]), ORDER), "judged video 3 is no row of 3 videos"),
        ((SCORES, torch.tensor([[0], [-2]]), ORDER), "judged video -2"),
        ((SCORES, JUDGED[:1], ORDER), r"not torch.int64 \(2, J\)"),
        ((SCORES, JUDGED, torch.arange(4)), "not a permutation of 0 to 2"),
        ((SCORES, JUDGED, torch.tensor([0, 0, 1])), "not a permutation"),
        ((SCORES, JUDGED, ORDER, torch.tensor([True, False, True])), "first video row 1 .1 queries, rows 1"),
        ((SCORES, JUDGED, ORDER, torch.tensor([True, True])), "candidates are"),
        ((SCORES, JUDGED, ORDER, torch.ones(3)), "candidates are"),
    ],
)
def test_ranks_refuse_what_cannot_be_ranked(arguments, message):
    with pytest.raises(ValueError, match=message):
        judged_ranks(*arguments)


@pytest.mark.parametrize(
    ("ranks", "grades", "positive_grade", "ks", "message"),
    [
        ([[1], [2], [0]], [[1.0], [0.5], [0.0]], 1, [1], "2 queries, rows 1, 2"),
        ([[1, 2]], [[1.0]], 1, [1], "must both be"),
        ([[1]], [[1.0]], 0, [1], "positive_grade is 0"),
        ([[1]], [[1.0]], 1, [0], r"ks are \[0\]"),
        ([[1]], [[1.0]], 1, [], "ks are"),
        ([[1, 0]], [[1.0, 1.0]], 1, [1], "padding"),
        ([[1]], [[math.nan]], 1, [1], "finite"),
        ([[2, 2]], [[1.0, 1.0]], 1, [1], "share a rank for 1 queries, rows 0"),
    ],
)
def test_metrics_refuse_contradictions(ranks, grades, positive_grade, ks, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(torch.tensor(ranks), torch.tensor(grades), positive_grade, ks)


@pytest.mark.parametrize("k", [0, 3])
def test_top_k_refuses_more_than_there_are_candidates(k):
    with pytest.raises(ValueError, match=f"k is {k}, .* 2$"):
        top_k(SCORES, k, ORDER, torch.tensor([True, False, True]))


def test_tie_order_refuses_an_id_that_occurs_twice():
    with pytest.raises(ValueError, match="3 video ids, only 2"):
        tie_order(["a", "b", "a"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_ranks_as_the_host_does():
    scores, judged, _, order, candidates = random_case(11)
    on_host = judged_ranks(scores, judged, order, candidates)
    moved = [tensor.cuda() for tensor in (scores, judged, order, candidates)]
    assert torch.equal(on_host, judged_ranks(*moved).cpu())
    rows = top_k(moved[0], 5, moved[2], moved[3])[1].cpu()
    assert torch.equal(top_k(scores, 5, order, candidates)[1], rows)
