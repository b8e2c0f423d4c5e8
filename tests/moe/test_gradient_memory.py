"""Memory is used again when, and only when, nobody holds it."""

import pytest
import torch

from imp_ds.moe.kernels.cpu_experts import SMALLEST_BYTES, GradientMemory


@pytest.fixture
def weight():
    return torch.empty(4, SMALLEST_BYTES // 16)  # float32: the smallest that is kept


def test_memory_is_taken_back_when_the_last_tensor_on_it_is_gone(weight):
    memory = GradientMemory()
    first = memory.empty_like(weight)
    view, address = first[1].detach(), first.data_ptr()
    del first
    second = memory.empty_like(weight)
    assert second.data_ptr() != address  # a view still needs the first
    del view
    assert memory.empty_like(weight).data_ptr() == address


def test_a_gradient_that_a_parameter_holds_is_not_given_away(weight):
    """Autograd takes the tensor over, in C++, as `parameter.grad`; zero_grad lets it go."""
    memory = GradientMemory()

    class Ones(torch.autograd.Function):
        @staticmethod
        def forward(ctx, parameter):
            return parameter.new_zeros(())

        @staticmethod
        def backward(ctx, grad):
            return memory.empty_like(weight).fill_(1)

    parameter = torch.nn.Parameter(weight)
    Ones.apply(parameter).backward()
    address = parameter.grad.data_ptr()
    assert memory.empty_like(weight).data_ptr() != address
    Ones.apply(parameter).backward()
    assert parameter.grad.data_ptr() == address and (parameter.grad == 2).all()
    parameter.grad = None
    held = [memory.empty_like(weight) for _ in range(2)]
    assert address in [tensor.data_ptr() for tensor in held]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_and_type_are_the_weights_own(weight, dtype):
    given = GradientMemory().empty_like(weight.to(dtype).t())
    assert given.shape == weight.t().shape and given.dtype is dtype and given.is_contiguous()
    small = GradientMemory().empty_like(torch.empty(2, 3, dtype=dtype))
    assert small.shape == (2, 3) and small.dtype is dtype


def test_another_size_has_memory_of_its_own(weight):
    memory = GradientMemory()
    address = memory.empty_like(weight).data_ptr()  # freed at once
    assert memory.empty_like(torch.empty(5, SMALLEST_BYTES // 16)).data_ptr() != address
    assert memory.empty_like(weight.view(2, -1)).data_ptr() == address  # the same size in another shape
