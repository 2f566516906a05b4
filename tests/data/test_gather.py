import pytest
import torch

from dcdt.data import gather
from dcdt.data.gather import Gather


@pytest.fixture(autouse=True)
def every_gather_is_large(monkeypatch):
    monkeypatch.setattr(gather, "MIN_BUFFER_NUMBERS", 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_those_of_the_table(dtype):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2, 50, 8, generator=generator, dtype=torch.float64).to(dtype)
    taken = Gather()
    for n in (3, 40, 1, 50):
        rows = torch.randint(50, (n,), generator=generator)
        found = taken(table, rows)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(found, table[:, rows].to(found.dtype))


def test_memory_is_used_again():
    table, taken = torch.randn(2, 50, 8), Gather()
    first = taken(table, torch.arange(40)).data_ptr()
    assert taken(table, torch.arange(10)).data_ptr() == first


def test_small_gathers_are_not_shared(monkeypatch):
    monkeypatch.setattr(gather, "MIN_BUFFER_NUMBERS", 10**6)
    table, taken = torch.randn(2, 50, 8).half(), Gather()
    first = taken(table, torch.arange(10))
    kept = first.clone()
    taken(table, torch.arange(10, 20))
    assert torch.equal(first, kept)
    assert first.dtype == torch.float32


def test_a_graph_whose_vectors_were_overwritten_is_refused():
    table, taken = torch.randn(1, 50, 8), Gather()
    weight = torch.randn(8, 4, requires_grad=True)
    loss = (taken(table, torch.arange(10)) @ weight).sum()
    taken(table, torch.arange(10, 20))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
