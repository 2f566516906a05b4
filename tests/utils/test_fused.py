"""Functions of few operations give the values and gradients of the composed ones."""

import pytest
import torch
from separate_device import register, separate
from support import make_collection, prepare
from test_devices import configured
from torch import nn

from dcdt.training import build
from dcdt.utils import fused


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_unit_vectors_and_their_gradient():
    vectors = numbers(3, 2, 5)
    torch.testing.assert_close(fused._Normalize.apply(vectors), nn.functional.normalize(vectors, dim=-1))
    assert torch.autograd.gradcheck(fused._Normalize.apply, vectors)
    zeros = torch.zeros(1, 4, requires_grad=True)
    fused._Normalize.apply(zeros).sum().backward()
    assert zeros.grad.isfinite().all() and not fused._Normalize.apply(zeros).any()


def test_a_half_precision_vector_is_normalised_in_fp32():
    vectors = numbers(4, 8).detach().bfloat16().requires_grad_()
    found = fused._Normalize.apply(vectors)
    found.square().sum().mul(found[0, 0]).backward()
    assert (found.dtype, vectors.grad.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(found, nn.functional.normalize(vectors.float(), dim=-1))


@pytest.mark.parametrize("shapes", [((3, 1, 5), (3, 4, 5)), ((2, 5), (2, 5)), ((3, 4, 5), (3, 1, 5))])
def test_distances_and_their_gradient(shapes):
    a, b = numbers(*shapes[0]), numbers(*shapes[1]) * 0.5
    expected = fused.smooth_distance(a, b, 1e-6)  # composed, on a CPU
    torch.testing.assert_close(fused._SmoothDistance.apply(a, b, 1e-6), expected)
    assert torch.autograd.gradcheck(lambda *pair: fused._SmoothDistance.apply(*pair, 1e-6), (a, b))


def test_the_distance_of_equal_vectors_has_a_gradient():
    a = torch.ones(1, 3, requires_grad=True)
    fused._SmoothDistance.apply(a, torch.ones(1, 3), 1e-6).sum().backward()
    assert not a.grad.any()


def test_a_stacked_cast_is_that_of_each_tensor():
    tensors = [torch.randn(2, 3).requires_grad_() for _ in range(3)]
    one, two = fused.cast_stacked([tensors[:1], tensors[1:]], torch.bfloat16)
    assert torch.equal(one[0], tensors[0].bfloat16()) and torch.equal(two[1], tensors[2].bfloat16())
    (two[0] * 3 + one[0]).sum().backward()
    assert [float(tensor.grad.unique()) for tensor in tensors] == [1, 3, 0]


def test_one_product_of_all_fields_is_that_of_each(tmp_path, monkeypatch):
    settings = configured("model=dcdt", "trainer.precision=bf16-mixed", "model.dropout=0.0", "model.width=8")
    tables = prepare(make_collection(tmp_path / "c", n_videos=12), settings.split, settings.fields, True, 48).tables
    register()
    with separate() as device, torch.autocast(device.type, torch.bfloat16):
        model = build.make_model(settings, tables.to(device))
        found = {}
        for name in ("each", "one product"):
            if name == "each":
                monkeypatch.setattr("dcdt.models.dual_tower.autocasts", lambda device: False)
            queries, videos = model._encode_batch(model.tables.queries[:6], model.tables.videos)
            loss = (queries @ videos.T).square().sum()
            found[name] = [queries, videos, *torch.autograd.grad(loss, model.parameters())]
            monkeypatch.undo()
        for one, other in zip(*found.values(), strict=True):
            torch.testing.assert_close(one.cpu(), other.cpu(), atol=0.03, rtol=0.03)
