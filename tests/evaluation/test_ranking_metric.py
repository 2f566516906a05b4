import pytest
import torch

from dcdt.evaluation.metric import RankingMetrics
from dcdt.evaluation.ranking import metric_names, ranking_metrics


def batch(rows, first_ranks):
    ranks = torch.tensor(first_ranks)[:, None]
    return torch.tensor(rows), ranking_metrics(ranks, torch.ones(len(rows), 1), 1)


def test_means_are_those_of_all_queries_not_of_batches():
    metric = RankingMetrics()
    metric.update(*batch([0, 1, 2], [1, 2, 4]))
    metric.update(*batch([3], [1]))
    means = metric.compute()
    assert list(means) == metric_names()
    assert means["mrr"].item() == pytest.approx((1 + 1 / 2 + 1 / 4 + 1) / 4)
    assert means["hit@1"].item() == pytest.approx(2 / 4)
    assert means["mrr"].dtype == torch.float32


def test_the_order_of_updates_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(1, 50, (40,), generator=generator)
    results = []
    for order in (torch.arange(40), torch.randperm(40, generator=generator)):
        metric = RankingMetrics()
        for rows in order.split(7):
            metric.update(*batch(rows.tolist(), ranks[rows].tolist()))
        results.append((metric.compute(), metric.per_query()))
    (means, (rows, values)), (other_means, (other_rows, other_values)) = results
    assert torch.equal(rows, torch.arange(40)) and torch.equal(rows, other_rows)
    assert torch.equal(values["mrr"], (1 / ranks.double()).float())
    for name in metric_names():
        assert torch.equal(means[name], other_means[name])
        assert torch.equal(values[name], other_values[name])


def test_a_query_that_a_sampler_repeats_counts_once():
    metric = RankingMetrics()
    metric.update(*batch([5, 2], [1, 4]))
    metric.update(*batch([5, 5], [1, 1]))
    rows, values = metric.per_query()
    assert rows.tolist() == [2, 5]
    assert values["mrr"].tolist() == [0.25, 1.0]
    assert metric.compute()["mrr"].item() == pytest.approx(0.625)


def test_reset_forgets_and_zero_updates_are_refused():
    metric = RankingMetrics()
    metric.update(*batch([0], [1]))
    metric.reset()
    with pytest.raises(ValueError, match="no query was scored"):
        metric.per_query()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no query was scored"):
        metric.compute()


def test_batches_without_a_query_add_nothing():
    empty = (
        torch.zeros(0, dtype=torch.int64),
        ranking_metrics(torch.zeros(0, 1, dtype=torch.int64), torch.ones(0, 1), 1),
    )
    metric = RankingMetrics()
    metric.update(*empty)
    with pytest.raises(ValueError, match="no query was scored"):
        metric.compute()
    metric.update(*batch([3], [2]))
    assert metric.per_query()[0].tolist() == [3]


def test_update_refuses_other_names_and_lengths():
    rows, values = batch([0, 1], [1, 2])
    with pytest.raises(ValueError, match="expected"):
        RankingMetrics(ks=[3]).update(rows, values)
    with pytest.raises(ValueError, match=r"query_rows has shape \(1,\)"):
        RankingMetrics().update(rows[:1], values)


def gathered(rank, port, results):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    metric = RankingMetrics()
    metric.update(*batch([0, 1, 2] if rank == 0 else [3, 0], [1, 2, 4] if rank == 0 else [8, 1]))
    rows, values = metric.per_query()
    results[rank] = (rows.tolist(), values["mrr"].tolist(), metric.compute()["mrr"].item())
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_see_the_queries_of_both():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(gathered, args=(port, results), nprocs=2)
        for rank in (0, 1):
            rows, values, mean = results[rank]
            assert rows == [0, 1, 2, 3]
            assert values == [1, 0.5, 0.25, 0.125]
            assert mean == pytest.approx(1.875 / 4)
