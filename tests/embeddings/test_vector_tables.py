import torch

from dcdt.data.tables import Tables


def test_fields_are_chosen_in_the_order_asked_for():
    videos = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    tables = Tables(torch.ones(2, 8), videos, videos[:2].sum(0), ["title", "text", "tags"])
    part = tables.select_fields(["tags", "title"])
    assert part.fields == ["tags", "title"]
    assert torch.equal(part.videos, videos[[2, 0]])
    torch.testing.assert_close(part.frozen, tables.frozen)
    assert tables.select_fields(["title", "text", "tags"]) is tables
