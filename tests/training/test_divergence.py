from types import SimpleNamespace

import pytest
import torch

from dcdt.training.callbacks.divergence import DivergenceCheck
from dcdt.utils.errors import Diverged


def end_epoch(loss, weight):
    """The end of an epoch with this loss and one weight of this value."""
    parameters = [torch.zeros(3), torch.tensor([0.0, weight])]
    module = SimpleNamespace(parameters=lambda: parameters, optimizer_config=SimpleNamespace(lr=1e30))
    trainer = SimpleNamespace(callback_metrics={"train/loss": torch.tensor(loss)}, current_epoch=4)
    DivergenceCheck().on_train_epoch_end(trainer, module)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_end_the_training(value):
    for loss, weight, part in ((value, 1.0, "the loss"), (1.0, value, "a weight")):
        with pytest.raises(Diverged) as caught:
            end_epoch(loss, weight)
        assert str(caught.value) == f"training diverged in epoch 4: {part} is not finite.\nLower optimizer.lr (1e30)."


def test_finite_numbers_pass():
    end_epoch(1e38, -1e38)
