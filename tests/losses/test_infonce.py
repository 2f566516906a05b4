import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcdt.losses.config import InfoNCEConfig
from dcdt.losses.infonce import MIN_TEMPERATURE, InfoNCELoss


def loss(positives="each", temperature=0.5, learn_temperature=False):
    return InfoNCELoss(InfoNCEConfig("infonce", positives, temperature, learn_temperature))


def cells(seed, rows=4, columns=6):
    """Similarities, labels with one positive a row at least, and weights of which some are 0."""
    made = torch.Generator().manual_seed(seed)
    similarity = 2 * torch.rand(rows, columns, generator=made, dtype=torch.float64) - 1
    label = (torch.rand(rows, columns, generator=made) < 0.3).double()
    label[torch.arange(rows), torch.randint(columns, (rows,), generator=made)] = 1
    weight = torch.randint(4, (rows, columns), generator=made).double()
    return similarity, label, torch.where(label > 0, 1.0, weight)


@given(st.integers(0, 500), st.sampled_from(["each", "any"]), st.sampled_from([0.05, 0.5, 2.0]), st.booleans())
def test_both_forms_by_a_double_loop(seed, positives, temperature, weighted):
    similarity, label, weight = cells(seed)
    found = loss(positives, temperature)(similarity, label, weight if weighted else None)
    assert found.shape == (4,)
    for row in range(4):
        total, ours = 0.0, []
        for column in range(6):
            value = math.exp(similarity[row, column] / temperature)
            total += value * (weight[row, column].item() if weighted else 1)
            if label[row, column]:
                ours.append(value)
        each = sum(-math.log(value / total) for value in ours) / len(ours)
        wanted = each if positives == "each" else -math.log(sum(ours) / total)
        assert found[row].item() == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_one_positive_makes_both_forms_one():
    similarity, label = torch.randn(5, 7), torch.zeros(5, 7)
    label[torch.arange(5), torch.tensor([0, 6, 3, 3, 1])] = 1
    torch.testing.assert_close(loss("each")(similarity, label), loss("any")(similarity, label))


@pytest.mark.parametrize("positives", ["each", "any"])
def test_a_cell_that_does_not_count_changes_nothing_and_gets_no_gradient(positives):
    similarity, label = torch.tensor([[0.5, 0.9, 0.1]]), torch.tensor([[1.0, 0.0, 0.0]])
    similarity.requires_grad_()
    masked = loss(positives)(similarity, label, torch.tensor([[1.0, 0.0, 1.0]]))
    torch.testing.assert_close(masked, loss(positives)(similarity[:, [0, 2]], label[:, [0, 2]]))
    masked.sum().backward()
    assert similarity.grad.isfinite().all()
    assert similarity.grad[0, 1] == 0
    assert similarity.grad[0, 0] < 0 < similarity.grad[0, 2]


def test_a_weight_is_so_many_columns():
    similarity, label = torch.tensor([[0.5, 0.9, 0.9, 0.9]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    weight = torch.tensor([[1.0, 3.0]])
    torch.testing.assert_close(loss()(similarity, label), loss()(similarity[:, :2], label[:, :2], weight))


def test_each_wants_every_positive_and_any_only_one():
    similarity, label = torch.tensor([[4.0, -4.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 1.0, 0.0]])
    for positives, pulled in (("each", True), ("any", False)):
        [gradient] = torch.autograd.grad(loss(positives)(similarity, label).sum(), similarity)
        assert (gradient[0, 1] < -0.1).item() == pulled


def test_the_temperature_starts_as_given_and_learns_only_where_asked():
    similarity, label = torch.tensor([[0.2, 0.8]]), torch.tensor([[1.0, 0.0]])
    for learned in (False, True):
        made = loss(temperature=0.05, learn_temperature=learned)
        assert made.temperature.item() == pytest.approx(0.05)
        trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
        assert len(trained) == learned
    made(similarity, label).sum().backward()
    assert made.log_temperature.grad < 0  # the positive lies lower: a warmer softmax costs less, so descent warms
    with torch.no_grad():
        made.log_temperature.fill_(-100)
    assert made.temperature.item() == pytest.approx(MIN_TEMPERATURE)


def test_it_is_computed_in_fp32_at_least():
    similarity, label = torch.rand(3, 4, dtype=torch.bfloat16), torch.eye(4)[:3]
    assert loss()(similarity, label).dtype == torch.float32
