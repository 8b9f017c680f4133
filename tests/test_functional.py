"""backsight.functional and backsight.nn against torch's functions and modules of the same name."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as TF

from backsight import functional as F
from backsight import nn

POOLS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 2, "stride": 1, "dilation": 2},
]


def image(dims: int, batched: bool = True, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    shape = [2, 3, *[11, 10, 9][:dims]]
    return torch.randn(shape if batched else shape[1:], generator=rng)


def call(module: Any, name: str, dims: int, *args: Any, **kwargs: Any) -> Any:
    return getattr(module, f"{name}{dims}d")(*args, **kwargs)


@pytest.mark.parametrize("dims", [1, 2, 3])
class TestMaxPool:
    @pytest.mark.parametrize("batched", [True, False])
    @pytest.mark.parametrize("pool", POOLS)
    def test_equals_torch(self, dims: int, pool: dict[str, Any], batched: bool) -> None:
        x = image(dims, batched)
        y, indices = call(F, "max_pool", dims, x, **pool, return_indices=True)
        expected, theirs = call(TF, "max_pool", dims, x, **pool, return_indices=True)
        assert torch.equal(y, expected)
        assert torch.equal(indices, theirs)
        assert indices.dtype == torch.int64
        assert torch.equal(call(F, "max_pool", dims, x, **pool), expected)

    @pytest.mark.parametrize("batched", [True, False])
    @pytest.mark.parametrize("pool", POOLS)
    def test_switches_are_the_indices_in_an_eighth_of_the_memory(
        self, dims: int, pool: dict[str, Any], batched: bool
    ) -> None:
        x = image(dims, batched)
        y, switches = getattr(F, f"max_pool{dims}d_switches")(x, **pool)
        expected, theirs = call(TF, "max_pool", dims, x, **pool, return_indices=True)
        assert torch.equal(y, expected)
        assert torch.equal(switches.indices(), theirs)
        assert switches.offsets.dtype == torch.uint8
        assert switches.offsets.nbytes * 8 == theirs.nbytes

    def test_the_gradient_equals_torchs(self, dims: int) -> None:
        mine, theirs = (image(dims).requires_grad_() for _ in range(2))
        for module, x in ((F, mine), (TF, theirs)):
            y = call(module, "max_pool", dims, x, 3, 2, 1)
            (y * torch.arange(y.numel()).view_as(y)).sum().backward()
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)
        assert mine.grad.any()

    @pytest.mark.parametrize("batched", [True, False])
    @pytest.mark.parametrize("pool", POOLS[:3])
    def test_unpooling_equals_torch(self, dims: int, pool: dict[str, Any], batched: bool) -> None:
        """By switches, by our indices and by torch's, overlapping windows too."""
        pool = {k: v for k, v in pool.items() if k != "ceil_mode"}
        x = image(dims, batched)
        y, switches = getattr(F, f"max_pool{dims}d_switches")(x, **pool)
        size = x.shape[-dims:]
        expected = call(TF, "max_unpool", dims, y, switches.indices(), **pool, output_size=size)
        for found in (switches, switches.indices()):
            got = call(F, "max_unpool", dims, y, found, **pool, output_size=size)
            assert torch.equal(got, expected)
            got = call(F, "max_unpool", dims, y, found, **pool, output_size=[2, 3, *size])
            assert torch.equal(got, expected)

    def test_the_default_size_is_torchs(self, dims: int) -> None:
        x = torch.randn(2, 3, *[8] * dims)
        y, switches = getattr(F, f"max_pool{dims}d_switches")(x, 2)
        got = call(F, "max_unpool", dims, y, switches, 2)
        assert torch.equal(got, call(TF, "max_unpool", dims, y, switches.indices(), 2))
        assert got.shape == x.shape

    def test_gradients_of_unpooling(self, dims: int) -> None:
        """Windows that lose a cell to a later one get 0, and indices and switches agree."""
        x = torch.arange(float(9**dims), dtype=torch.float64).view(1, 1, *[9] * dims)
        y, switches = getattr(F, f"max_pool{dims}d_switches")(-x, 3, 1)
        y = torch.randn_like(y).requires_grad_()
        grads = []
        for found in (switches, switches.indices()):
            z = call(F, "max_unpool", dims, y, found, 3, 1)
            (grad,) = torch.autograd.grad((z**2).sum(), y)
            grads.append(grad)
            assert torch.autograd.gradcheck(
                lambda y, f=found: call(F, "max_unpool", dims, y, f, 3, 1), (y,)
            )
        assert torch.equal(grads[0], grads[1])
        assert (grads[0] != 0).all()  # the first cell of every window: all of them differ

    def test_losers_get_no_gradient(self, dims: int) -> None:
        y = torch.randn(1, 1, *[4] * dims).requires_grad_()
        indices = torch.zeros(y.shape, dtype=torch.int64)
        z = call(F, "max_unpool", dims, y, indices, 2)
        z.sum().backward()
        assert y.grad is not None
        assert y.grad.flatten().tolist() == [0] * (4**dims - 1) + [1]
        assert z.flatten()[0] == y.flatten()[-1]
        assert z.count_nonzero() == 1

    @pytest.mark.parametrize("wrong", [-1, None])
    def test_foreign_indices_are_checked(self, dims: int, wrong: int | None) -> None:
        y = torch.randn(2, 3, *[4] * dims)
        cells = 8**dims
        indices = torch.zeros(y.shape, dtype=torch.int64)
        indices.view(-1)[17 % indices.numel()] = cells if wrong is None else wrong
        got = cells if wrong is None else wrong
        with pytest.raises(ValueError, match=rf"expected indices in \[0, {cells}\).* got {got}$"):
            call(F, "max_unpool", dims, y, indices, 2)

    def test_deterministic_algorithms_are_enough(self, dims: int) -> None:
        """torch's own unpooling refuses to run."""
        x = image(dims).requires_grad_()
        torch.use_deterministic_algorithms(True)
        try:
            y, switches = getattr(F, f"max_pool{dims}d_switches")(x, 3, 2, 1)
            indices = switches.indices()
            size = x.shape[2:]
            with pytest.raises(RuntimeError, match="deterministic"):
                call(TF, "max_unpool", dims, y, indices, 3, 2, 1, size)
            for found in (switches, indices):
                call(F, "max_unpool", dims, y, found, 3, 2, 1, size).sum().backward(
                    retain_graph=True
                )
        finally:
            torch.use_deterministic_algorithms(False)
        assert x.grad is not None
        assert x.grad.any()

    def test_modules_are_torchs(self, dims: int) -> None:
        ours = call(nn, "MaxPool", dims, 3, 2, padding=1, return_indices=True)
        theirs = call(torch.nn, "MaxPool", dims, 3, 2, padding=1, return_indices=True)
        back, their_back = (
            call(nn, "MaxUnpool", dims, 3, 2, 1),
            call(torch.nn, "MaxUnpool", dims, 3, 2, 1),
        )
        for mine, other in ((ours, theirs), (back, their_back)):
            assert repr(mine) == repr(other)
            assert isinstance(mine, type(other))
            assert mine.state_dict() == other.state_dict()
        x = image(dims)
        (y, indices), (expected, their_indices) = ours(x), theirs(x)
        assert torch.equal(y, expected)
        assert torch.equal(indices, their_indices)
        size = x.shape[2:]
        expected = their_back(y, indices, output_size=size)
        switches = getattr(F, f"max_pool{dims}d_switches")(x, 3, 2, 1)[1]
        for module in (back, copy.deepcopy(back), pickle.loads(pickle.dumps(back))):
            assert torch.equal(module(y, indices, output_size=size), expected)
            assert torch.equal(module(y, switches, size), expected)
        plain = call(nn, "MaxPool", dims, 2)
        assert torch.equal(plain(x), call(TF, "max_pool", dims, x, 2))
        file = io.BytesIO()
        torch.save(plain, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), plain(x))


class TestCompiled:
    @pytest.mark.parametrize("by_switches", [True, False])
    def test_pool_and_unpool_in_one_graph(self, by_switches: bool) -> None:
        def f(x: Tensor) -> Tensor:
            if by_switches:
                y, found = F.max_pool2d_switches(x, 3, 2, 1)
                return F.max_unpool2d(y, found, 3, 2, 1, x.shape[2:])
            y, indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
            return F.max_unpool2d(y, indices, 3, 2, 1, x.shape[2:])

        mine, theirs = image(2).requires_grad_(), image(2).requires_grad_()
        got, expected = torch.compile(f, fullgraph=True, backend="aot_eager")(mine), f(theirs)
        assert torch.equal(got, expected)
        got.sum().backward()
        expected.sum().backward()
        assert mine.grad is not None
        assert torch.equal(mine.grad, theirs.grad)


class TestRefuses:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ((torch.zeros(3), 2), r"an input of 3 or 4 axes.* got \(3,\)"),
            (
                (torch.zeros(1, 1, 4, 4), (2, 2, 2)),
                r"kernel_size to be an int or 2 ints, got \(2, 2, 2\)",
            ),
            ((torch.zeros(1, 1, 4, 4), 2, (1, 1, 1)), "stride to be an int or 2 ints"),
            ((torch.zeros(1, 1, 4, 4), 2, 2, 2), "half of what a window spans"),
            ((torch.zeros(1, 1, 4, 4), 5), "a map that holds a window"),
        ],
    )
    def test_bad_pools(self, args: tuple[Any, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            F.max_pool2d(*args)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (
                {"indices": torch.zeros(1, 1, 2, 2)},
                TypeError,
                "int64, or Switches, got torch.float32",
            ),
            (
                {"indices": torch.zeros(1, 1, 2, 3).long()},
                ValueError,
                r"\(1, 1, 2, 2\) on cpu, got",
            ),
            (
                {"output_size": (6, 6)},
                ValueError,
                r"less than the stride of \[2, 2\] away from \[4, 4\]",
            ),
            ({"output_size": (2, 4)}, ValueError, r"got \[2, 4\]"),
            ({"output_size": (4,)}, ValueError, r"2 ints.* got \[4\]"),
            ({"kernel_size": 3}, ValueError, "the kernel_size, stride and padding of the switches"),
        ],
    )
    def test_bad_unpooling(
        self, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        y, switches = F.max_pool2d_switches(torch.randn(1, 1, 4, 4), 2)
        args = {"input": y, "indices": switches, "kernel_size": 2} | change
        with pytest.raises(error, match=message):
            F.max_unpool2d(**args)


@pytest.mark.parametrize("dims", [1, 2, 3])
class TestTransforms:
    def test_forward_mode_and_vmap_are_torchs(self, dims: int) -> None:
        torch.manual_seed(0)
        x, tangent = torch.randn(2, 2, 3, *[6] * dims).double()
        ours, theirs = (getattr(module, f"max_pool{dims}d") for module in (F, TF))
        expected = torch.func.jvp(lambda x: theirs(x, 2), (x,), (tangent,))
        found = torch.func.jvp(lambda x: ours(x, 2), (x,), (tangent,))
        assert float(expected[1].abs().max()) > 0
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        y, indices = ours(x, 2, return_indices=True)
        batched = torch.func.vmap(lambda x: ours(x, 2, return_indices=True))(x[None])
        assert torch.equal(batched[0][0], y)
        assert torch.equal(batched[1][0], indices)

    def test_switches_are_refused_in_a_sentence(self, dims: int) -> None:
        x = torch.randn(2, 3, *[6] * dims)
        pool = getattr(F, f"max_pool{dims}d_switches")
        with pytest.raises(NotImplementedError, match=r"no transform of torch\.func"):
            torch.func.jvp(lambda x: pool(x, 2)[0], (x,), (x,))
        y, switches = pool(x, 2)
        with pytest.raises(NotImplementedError, match=r"indices under torch\.func"):
            torch.func.jvp(lambda y: getattr(F, f"max_unpool{dims}d")(y, switches, 2), (y,), (y,))
