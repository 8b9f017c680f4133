"""max_unpool and max_gather: identities first, then the oracle and gradients, then refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from op_cases import (
    DTYPES,
    assert_bits,
    assert_same,
    integers,
    layout,
    max_unpool_cases,
    noise,
    vectors_of,
)
from torch import Tensor
from torch.nn import functional as F

from backsight import ops
from backsight.functional import Switches
from backsight.ops import reference

TWO = ([2, 2], [2, 2], [0, 0], [1, 1])
THREE = ([3, 3], [2, 2], [1, 1], [1, 1])
SPACED = ([2, 3], [1, 2], [1, 2], [2, 2])
POOLS = {"2/2": TWO, "3/2": THREE, "dilated": SPACED}
MODES = ["add", "set"]


@pytest.fixture(params=["contiguous", "channels_last"])
def x(request: pytest.FixtureRequest) -> Tensor:
    return layout(noise([2, 9, 8, 10], torch.float64, 0), request.param)


def unpooled_by_torch(y: Tensor, indices: Tensor, *pool: Any, output_size: list[int]) -> Tensor:
    """On one thread: with several, the last writer of a cell is not always the last window."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return F.max_unpool2d(y, indices, *pool, output_size=output_size)
    finally:
        torch.set_num_threads(before)


def four_on_one(values: list[float]) -> tuple[Tensor, Tensor]:
    """Four windows of a 3/1 pool over 4 x 4 cells whose switches all point to cell (1, 1)."""
    y = torch.tensor(values).view(1, 1, 2, 2)
    return y, torch.tensor([4, 3, 1, 0], dtype=torch.uint8).view(1, 1, 2, 2)


class TestLecture:
    def test_each_value_returns_to_its_place(self) -> None:
        x = torch.tensor(
            [[5.0, 42, 3, 1], [2, 9, 12, 8], [6, 0, 4, 5], [1, -1, 6, 7]], dtype=torch.float32
        ).view(1, 1, 4, 4)
        y, switches = ops.max_pool(x, *TWO)
        for mode in MODES:
            back = ops.max_unpool(y, switches, *TWO, [4, 4], mode)
            assert back[0, 0].tolist() == [[0, 42, 0, 0], [0, 0, 12, 0], [6, 0, 0, 0], [0, 0, 0, 7]]

    def test_overlapping_windows_that_share_a_maximum(self) -> None:
        pool = ([3, 3], [1, 1], [0, 0], [1, 1])
        for values, last in (([1.0, 2.0, 3.0, 4.0], 4), ([4.0, 3.0, 2.0, 1.0], 1)):
            y, switches = four_on_one(values)
            for mode, expected in (("set", last), ("add", 10)):
                back = ops.max_unpool(y, switches, *pool, [4, 4], mode)
                assert back[0, 0, 1, 1] == expected
                assert back.sum() == expected
            # As torch on the CPU.
            indices = torch.full((1, 1, 2, 2), 5)
            assert torch.equal(
                ops.max_unpool(y, switches, *pool, [4, 4], "set"),
                unpooled_by_torch(y, indices, 3, 1, output_size=[4, 4]),
            )

    def test_losers_of_set_have_no_gradient(self) -> None:
        y, switches = four_on_one([1.0, 2.0, 3.0, 4.0])
        pool = ([3, 3], [1, 1], [0, 0], [1, 1])
        for mode, expected in (("set", [0, 0, 0, 7]), ("add", [7, 7, 7, 7])):
            y = y.detach().requires_grad_()
            (ops.max_unpool(y, switches, *pool, [4, 4], mode) * 7).sum().backward()
            assert y.grad is not None
            assert y.grad.flatten().tolist() == expected

    def test_pool_unpool_pool_is_pool(self, x: Tensor) -> None:
        y, switches = ops.max_pool(x.relu(), *TWO)
        for mode in MODES:
            back = ops.max_unpool(y, switches, *TWO, [8, 10], mode)
            again, same = ops.max_pool(back, *TWO)
            assert_same(again, y)
            moved = y > 0  # elsewhere the whole window is 0, and its first cell wins
            assert moved.any()
            assert torch.equal(same[moved], switches[moved])

    def test_what_a_deconvnet_keeps(self, x: Tensor) -> None:
        """One unit alone comes back as its value at its maximum's place, and 0 elsewhere."""
        y, switches = ops.max_pool(x, *THREE)
        seed = torch.zeros_like(y)
        seed[1, 4, 2, 3] = y[1, 4, 2, 3]
        back = ops.max_unpool(seed, switches, *THREE, [8, 10])
        assert back.count_nonzero() == 1
        at = tuple(back.nonzero()[0].tolist())
        assert back[at] == x[at] == y[1, 4, 2, 3]


class TestIdentities:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
    def test_adjoint(self, x: Tensor, pool: tuple[list[int], ...], mode: str) -> None:
        _, switches = ops.max_pool(x, *pool)
        y = layout(noise(list(switches.shape), torch.float64, 1), "contiguous")
        other = noise(list(x.shape), torch.float64, 2)
        left = (ops.max_unpool(y, switches, *pool, [8, 10], mode) * other).sum()
        right = (y * ops.max_gather(other, switches, *pool, switches.shape[2:], mode)).sum()
        torch.testing.assert_close(left, right, rtol=1e-13, atol=0)
        assert left.abs() > 1e-3

    @pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
    def test_adjoint_of_windows(self, x: Tensor, pool: tuple[list[int], ...]) -> None:
        _, switches = ops.max_pool(x, *pool)
        index, y_at = torch.tensor([1, 0, 1]), torch.tensor([[0, 1], [-1, 2], [2, 0]])
        places = (index, y_at, torch.tensor([[0, 3], [-2, 1], [1, 1]]))
        y, other = noise([3, 9, 3, 4], torch.float64, 1), noise([3, 9, 6, 5], torch.float64, 2)
        for mode in MODES:
            spread = ops.max_unpool(y, switches, *pool, [6, 5], mode, False, *places)
            gathered = ops.max_gather(other, switches, *pool, [3, 4], mode, *places)
            left, right = (spread * other).sum(), (y * gathered).sum()
            torch.testing.assert_close(left, right, rtol=1e-13, atol=0)
            assert left.abs() > 1e-3

    @pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
    def test_gather_finds_the_maxima(self, x: Tensor, pool: tuple[list[int], ...]) -> None:
        y, switches = ops.max_pool(x, *pool)
        assert_same(ops.max_gather(x, switches, *pool, switches.shape[2:]), y)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
    def test_windows_are_cut_out_of_whole_maps(
        self, x: Tensor, pool: tuple[list[int], ...], mode: str
    ) -> None:
        """Where y is 0 outside its windows, the maps' unpooling is 0 outside theirs."""
        y, switches = ops.max_pool(x, *pool)
        places = (
            torch.tensor([0, 1]),
            torch.tensor([[1, 1], [0, 2]]),
            torch.tensor([[1, 0], [0, 3]]),
        )
        size, cells = [3, 2], [5, 6]
        parts = []
        kept = torch.zeros_like(y)
        for b, ((top, left), (row, column)) in enumerate(
            zip(places[1].tolist(), places[2].tolist(), strict=True)
        ):
            box = (b, slice(None), slice(top, top + 3), slice(left, left + 2))
            kept[box] = y[box]
            parts.append((b, slice(None), slice(row, row + 5), slice(column, column + 6)))
        windows = torch.stack(
            [
                y[b, :, top : top + 3, left : left + 2]
                for b, (top, left) in enumerate(places[1].tolist())
            ]
        )
        assert list(windows.shape[2:]) == size
        got = ops.max_unpool(windows, switches, *pool, cells, mode, False, *places)
        if mode == "add":
            whole = ops.max_unpool(kept, switches, *pool, [8, 10], mode)
            assert torch.equal(got, torch.stack([whole[part] for part in parts]))
        assert got.count_nonzero() > 50

    def test_relu_of_the_result(self, x: Tensor) -> None:
        _, switches = ops.max_pool(x, *THREE)
        y = noise(list(switches.shape), torch.float64, 1)
        plain = ops.max_unpool(y, switches, *THREE, [8, 10])
        assert (plain < 0).any()
        got = ops.max_unpool(y, switches, *THREE, [8, 10], relu=True)
        assert torch.equal(got, plain.relu())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_nan_stays_alone(self, dtype: torch.dtype) -> None:
        x = torch.randn(1, 20, 6, 6).to(dtype)
        y, switches = ops.max_pool(x, *THREE)
        y[0, 3, 1, 1] = torch.nan
        for mode in MODES:
            back = ops.max_unpool(y, switches, *THREE, [6, 6], mode, relu=True)
            assert back.isnan().sum() <= 1
        back = ops.max_unpool(y, switches, *THREE, [6, 6])
        assert back.isnan().sum() == 1

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_sums_are_rounded_once(self, dtype: torch.dtype) -> None:
        """1 + eps / 2 + eps / 2, in order: 1 if every step is rounded."""
        eps = torch.finfo(dtype).eps
        y = torch.tensor([1, eps / 2, eps / 2], dtype=torch.float64).to(dtype).view(1, 1, 3)
        switches = torch.tensor([2, 1, 0], dtype=torch.uint8).view(1, 1, 3)
        got = ops.max_unpool(y, switches, [3], [1], [0], [1], [5])
        expected = 1 + eps if dtype in (torch.float16, torch.bfloat16) else 1
        assert got.tolist() == [[[0, 0, expected, 0, 0]]]


class TestOracle:
    @pytest.mark.parametrize("relu", [False, True])
    @given(case=max_unpool_cases(windows=False))
    @settings(max_examples=200, deadline=None)
    def test_whole_maps(self, case: tuple[Any, ...], relu: bool) -> None:
        *front, base_index, y_at, window_at = case
        args = (*front, relu, base_index, y_at, window_at)
        assert_same(ops.max_unpool(*args), reference.max_unpool(*args))

    @pytest.mark.parametrize("relu", [False, True])
    @given(case=max_unpool_cases(windows=True))
    @settings(max_examples=200, deadline=None)
    def test_windows(self, case: tuple[Any, ...], relu: bool) -> None:
        *front, base_index, y_at, window_at = case
        args = (*front, relu, base_index, y_at, window_at)
        assert_same(ops.max_unpool(*args), reference.max_unpool(*args))

    @pytest.mark.parametrize("windows", [False, True])
    def test_gather(self, windows: bool) -> None:
        @given(case=max_unpool_cases(windows=windows))
        @settings(max_examples=200, deadline=None)
        def run(case: tuple[Any, ...]) -> None:
            y, switches, *pool, size, mode, base_index, y_at, window_at = case
            x = noise([len(y), y.shape[1], *size], y.dtype, 5)
            args = (x, switches, *pool, y.shape[2:], mode, base_index, y_at, window_at)
            assert_bits(ops.max_gather(*args), reference.max_gather(*args))

        run()

    @pytest.mark.parametrize("most_bytes", [16, 32])
    @pytest.mark.parametrize("windows", [False, True])
    def test_whatever_vectors_the_cpu_has(self, windows: bool, most_bytes: int) -> None:
        @given(case=max_unpool_cases(windows=windows))
        @settings(max_examples=100, deadline=None)
        def run(case: tuple[Any, ...]) -> None:
            *front, base_index, y_at, window_at = case
            args = (*front, False, base_index, y_at, window_at)
            expected = ops.max_unpool(*args)
            with vectors_of(most_bytes):
                assert_bits(ops.max_unpool(*args), expected)

        run()

    @given(case=max_unpool_cases(windows=True))
    @settings(max_examples=60, deadline=None)
    def test_out_of_any_layout(self, case: tuple[Any, ...]) -> None:
        *front, base_index, y_at, window_at = case
        args = (*front, False, base_index, y_at, window_at)
        expected = reference.max_unpool(*args)
        for memory_format in ("contiguous", "channels_last", "strided"):
            out = layout(torch.full_like(expected, 5.0), memory_format)
            assert ops.max_unpool(*args, out=out) is out
            torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("shape", [(3, 67, 61, 59), (2, 300, 14, 14), (9, 32, 184, 184)])
    @pytest.mark.parametrize("pool", [TWO, THREE])
    def test_equals_torch_on_several_threads(
        self, memory_format: str, shape: tuple[int, ...], pool: tuple[list[int], ...]
    ) -> None:
        """The largest goes past the cache with its stores."""
        x = layout(noise(list(shape), torch.float32, 1), memory_format)
        y, switches = ops.max_pool(x, *pool)
        size = list(shape[2:])
        indices = Switches(switches, tuple(size), *map(tuple, pool)).indices()
        grad = noise(list(y.shape), torch.float32, 2)
        expected = torch.zeros(*shape[:2], size[0] * size[1])
        expected.scatter_add_(2, indices.flatten(2), grad.flatten(2))
        expected = expected.unflatten(2, size)
        grad = layout(grad, memory_format)
        before = torch.get_num_threads()
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                added = ops.max_unpool(grad, switches, *pool, size)
                assert torch.equal(added, expected)
                assert added.stride() == x.stride()
        finally:
            torch.set_num_threads(before)
        last = unpooled_by_torch(grad, indices, *pool[:3], output_size=size)
        assert torch.equal(ops.max_unpool(grad, switches, *pool, size, "set"), last)

    def test_an_output_between_others(self) -> None:
        """Nothing is written in front of an output that begins anywhere, nor behind it."""
        x = layout(noise([1, 20, 9, 9], torch.float32, 0), "channels_last")
        y, switches = ops.max_pool(x, *THREE)
        for lies in ("contiguous", "channels_last"):
            room = torch.full((x.numel() + 6,), 7.0)
            out = room[3:-3].view(1, 20, 9, 9)
            if lies == "channels_last":
                out = room[3:-3].view(1, 9, 9, 20).movedim(-1, 1)
            ops.max_unpool(layout(y, lies), layout(switches, lies), *THREE, [9, 9], out=out)
            assert torch.equal(out, ops.max_unpool(y, switches, *THREE, [9, 9]))
            assert room[:3].tolist() == room[-3:].tolist() == [7, 7, 7]

    @pytest.mark.slow
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_more_than_2_31_elements(self, memory_format: str) -> None:
        shape = (1, 33, 4096, 4096)
        y = layout(torch.full(shape, 1.0, dtype=torch.float16), memory_format)
        switches = layout(torch.full(shape, 3, dtype=torch.uint8), memory_format)
        y[0, -1, -1, -1] = 5
        x = ops.max_unpool(y, switches, *TWO, [8192, 8192])
        assert x.numel() > 2**31
        assert x[0, -1, -1, -1] == 5
        assert x.sum(dtype=torch.float64) == y.numel() + 4
        assert x[..., ::2].any().item() is x[:, :, ::2].any().item() is False


class TestGradients:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("relu", [False, True])
    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_gradcheck(self, dims: int, relu: bool, mode: str) -> None:
        size = [7, 6, 5][:dims]
        pool = ([3] * dims, [2] * dims, [1] * dims, [1] * dims)
        x = noise([2, 2, *size], torch.float64, 0)
        switches = ops.max_pool(x, *pool)[1]
        y = noise(list(switches.shape), torch.float64, 1).requires_grad_()

        def f(y: Tensor) -> Tensor:
            return ops.max_unpool(y, switches, *pool, size, mode, relu) ** 2

        assert torch.autograd.gradcheck(f, (y,))
        assert torch.autograd.gradgradcheck(f, (y,))

        def g(x: Tensor) -> Tensor:
            return ops.max_gather(x, switches, *pool, switches.shape[2:], mode) ** 2

        x = x.requires_grad_()
        assert torch.autograd.gradcheck(g, (x,))
        assert torch.autograd.gradgradcheck(g, (x,))

    @pytest.mark.parametrize("mode", MODES)
    def test_gradcheck_of_windows(self, x: Tensor, mode: str) -> None:
        switches = ops.max_pool(x[:, :2], *THREE)[1]
        places = torch.tensor([1, 0, 1]), torch.tensor([[0, 1], [-1, 2], [2, 0]])
        places = *places, torch.tensor([[0, 3], [-2, 1], [1, 1]])
        y = noise([3, 2, 3, 4], torch.float64, 1).requires_grad_()
        other = noise([3, 2, 6, 5], torch.float64, 2).requires_grad_()

        def f(y: Tensor) -> Tensor:
            return ops.max_unpool(y, switches, *THREE, [6, 5], mode, False, *places) ** 2

        def g(x: Tensor) -> Tensor:
            return ops.max_gather(x, switches, *THREE, [3, 4], mode, *places) ** 2

        assert torch.autograd.gradcheck(f, (y,))
        assert torch.autograd.gradcheck(g, (other,))
        assert torch.autograd.gradgradcheck(f, (y,))

    def test_deterministic_algorithms_are_enough(self, x: Tensor) -> None:
        y, switches = ops.max_pool(x, *THREE)
        torch.use_deterministic_algorithms(True)
        try:
            ops.max_unpool(y.requires_grad_(), switches, *THREE, [8, 10], "set").sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        assert y.grad is not None
        assert 0 < y.grad.sum() < y.numel()

    @pytest.mark.parametrize("op", ["max_unpool", "max_gather"])
    def test_a_gradient_with_out_is_refused(self, x: Tensor, op: str) -> None:
        y, switches = ops.max_pool(x, *TWO)
        source, size = (y, [8, 10]) if op == "max_unpool" else (x, [4, 5])
        out = torch.empty(*x.shape[:2], *size, dtype=x.dtype)
        with pytest.raises(RuntimeError, match=f"{op} with out= is inference-only"):
            getattr(ops, op)(source.requires_grad_(), switches, *TWO, size, out=out)


class TestWrongSwitches:
    """Never a stray read or write, and always an error."""

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("channels", [1, 3, 40])
    @pytest.mark.parametrize("pool", [TWO, THREE])
    @pytest.mark.parametrize("at", [0, -1, "middle"])
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
    def test_beyond_the_window(
        self, memory_format: str, channels: int, pool: Any, at: Any, dtype: torch.dtype
    ) -> None:
        x = layout(noise([2, channels, 12, 12], torch.float32, 0), memory_format)
        y, switches = ops.max_pool(x, *pool)
        switches = switches.to(dtype)
        cells = pool[0][0] ** 2
        for wrong in [cells, 255] if dtype == torch.uint8 else [cells, -1, 2**15 - 1]:
            bad = switches.clone()
            where = (1, channels // 2, 3, 3) if at == "middle" else (at, at, at, at)
            bad[where] = wrong
            message = f"expected switches below {cells}.* got {wrong}$"
            for mode in MODES:
                with pytest.raises(ValueError, match=message):
                    ops.max_unpool(y, bad, *pool, [12, 12], mode)
                with pytest.raises(ValueError, match=message):
                    ops.max_gather(x, bad, *pool, y.shape[2:], mode)
                with pytest.raises(ValueError, match=message):
                    reference.max_unpool(y, bad, *pool, [12, 12], mode)
                with pytest.raises(ValueError, match=message):
                    reference.max_gather(x, bad, *pool, y.shape[2:], mode)

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_beyond_the_window_on_the_way_back(self, memory_format: str) -> None:
        x = layout(noise([2, 20, 12, 12], torch.float32, 0), memory_format).requires_grad_()
        y, switches = ops.max_pool(x, *THREE)
        y = y.detach().requires_grad_()
        back = ops.max_unpool(y, switches.clone(), *THREE, [12, 12])
        pooled = ops.max_pool(x, *THREE)[0]
        for result in (back, pooled):
            saved = result.grad_fn.saved_tensors[0]  # type: ignore[union-attr]
            saved.data[1, 7, 3, 3] = 9
            with pytest.raises(ValueError, match=r"switches below 9.* got 9$"):
                result.sum().backward()

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("corner", [(0, 0, 0), (0, 2, 1), (3, 0, 3), (3, 3, 8)])
    def test_into_the_padding(self, memory_format: str, corner: tuple[int, int, int]) -> None:
        pool = ([3, 3], [2, 2], [1, 1], [1, 1])
        x = layout(noise([1, 20, 7, 7], torch.float32, 0), memory_format)
        y, switches = ops.max_pool(x, *pool)
        row, column, wrong = corner
        switches[0, 7, row, column] = wrong
        for op, source, size in ((ops.max_unpool, y, [7, 7]), (ops.max_gather, x, [4, 4])):
            with pytest.raises(ValueError, match=f"inside the map, got {wrong}$"):
                op(source, switches, *pool, size)

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_only_the_windows_that_y_holds_count(self, x: Tensor, memory_format: str) -> None:
        _, switches = ops.max_pool(x, *TWO)
        switches = layout(switches, memory_format)
        switches[0, :, 3] = 200
        places = torch.tensor([0]), torch.tensor([[0, 0]]), torch.tensor([[0, 0]])
        y = noise([1, 9, 3, 5], torch.float64, 1)
        assert ops.max_unpool(y, switches, *TWO, [6, 10], "add", False, *places).any()
        y = noise([1, 9, 4, 5], torch.float64, 1)
        with pytest.raises(ValueError, match=r"switches below 4.* got 200"):
            ops.max_unpool(y, switches, *TWO, [6, 10], "add", False, *places)

    @pytest.mark.parametrize("wrong", [-1, 2, 2**40])
    def test_a_base_index_of_no_map(self, x: Tensor, wrong: int) -> None:
        _, switches = ops.max_pool(x, *TWO)
        zeros = torch.zeros(2, 2, dtype=torch.int64)
        places = torch.tensor([0, wrong]), zeros, zeros
        y = noise([2, 9, 3, 5], torch.float64, 1)
        for run in (ops.max_unpool, reference.max_unpool):
            with pytest.raises(ValueError, match=rf"base_index in \[0, 2\), got {wrong}"):
                run(y, switches, *TWO, [6, 10], "add", False, *places)
        with pytest.raises(ValueError, match=rf"base_index in \[0, 2\), got {wrong}"):
            ops.max_gather(y, switches, *TWO, [6, 10], "add", *places)

    def test_coordinates_far_away_are_nowhere(self, x: Tensor) -> None:
        _, switches = ops.max_pool(x, *THREE)
        y = noise([3, 9, 3, 5], torch.float64, 1)
        far = torch.tensor([[2**60, 0], [0, -(2**60)], [0, 0]])
        near = torch.zeros(3, 2, dtype=torch.int64)
        index = torch.zeros(3, dtype=torch.int64)
        for places in ((index, far, near), (index, near, far)):
            got = ops.max_unpool(y, switches, *THREE, [6, 10], "add", False, *places)
            assert not got[:2].any()
            assert got[2].any()


class TestRegistration:
    @pytest.mark.parametrize("windows", [False, True])
    def test_opcheck(self, x: Tensor, windows: bool) -> None:
        y, switches = ops.max_pool(x, *THREE)
        places = (torch.tensor([1, 0]), integers([2, 2], -1, 3, 0), integers([2, 2], -1, 3, 1))
        tail = places if windows else ()
        unpool = torch.ops.backsight.max_unpool.default
        gather = torch.ops.backsight.max_gather.default
        for grad in (False, True):
            y, x = y.clone().requires_grad_(grad), x.clone().requires_grad_(grad)
            torch.library.opcheck(unpool, (y, switches, *THREE, [8, 10], "set", True, *tail))
            torch.library.opcheck(gather, (x, switches, *THREE, y.shape[2:], "set", *tail))

    def test_out_schema_and_fake(self, x: Tensor) -> None:
        y, switches = ops.max_pool(x, *TWO)
        checks = ("test_schema", "test_faketensor")
        for op, source, out in (("max_unpool", y, x), ("max_gather", x, y)):
            torch.library.opcheck(
                getattr(torch.ops.backsight, op).out,
                (source, switches, *TWO, out.shape[2:]),
                {"out": torch.empty_like(out)},
                test_utils=checks,
            )

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compiles_into_one_graph(self, x: Tensor, backend: str) -> None:
        y, switches = ops.max_pool(x, *THREE)

        def f(y: Tensor) -> Tensor:
            back = ops.max_unpool(y * 2, switches, *THREE, [8, 10], "set")
            return ops.max_gather(back.sin(), switches, *THREE, list(y.shape[2:]))

        mine, theirs = y.clone().requires_grad_(), y.clone().requires_grad_()
        got, expected = torch.compile(f, fullgraph=True, backend=backend)(mine), f(theirs)
        torch.testing.assert_close(got, expected)
        got.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)


class TestRefuses:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"y": torch.zeros(2, 5)}, ValueError, r"1 to 3 spatial axes, got \(2, 5\)"),
            ({"y": torch.zeros(1, 1, 2, 2).int()}, TypeError, "of dtype float64.*int32"),
            ({"switches": torch.zeros(1, 1, 2, 2).long()}, TypeError, "switches of dtype uint8"),
            ({"switches": torch.zeros(1, 2, 2, 2).byte()}, ValueError, "the 1 channels"),
            ({"switches": torch.zeros(1, 1, 2).byte()}, ValueError, "2 spatial axes"),
            ({"switches": torch.zeros(3, 1, 2, 2).byte()}, ValueError, "of 1 maps.* got 3"),
            ({"switches": torch.zeros(1, 1, 2, 3).byte()}, ValueError, r"\(1, 1, 2, 2\)|\[2, 3\]"),
            ({"switches": torch.zeros(1, 1, 2, 2, device="meta").byte()}, ValueError, "got meta"),
            ({"kernel": [2]}, ValueError, r"2 ints in kernel, one a spatial axis, got \[2\]"),
            ({"padding": [2, 0]}, ValueError, r"half of what a window spans, got \[2, 0\]"),
            ({"size": [4]}, ValueError, r"a size of 2 non-negative ints.* got \[4\]"),
            ({"size": [4, -4]}, ValueError, r"got \[4, -4\]"),
            ({"mode": "mean"}, ValueError, "'add' or 'set', got 'mean'"),
            ({"base_index": torch.zeros(1).long()}, ValueError, "base_index, y_at and window_at"),
        ],
    )
    def test_bad_arguments(
        self, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        args: dict[str, Any] = {
            "y": torch.zeros(1, 1, 2, 2),
            "switches": torch.zeros(1, 1, 2, 2).byte(),
            **dict(zip(("kernel", "stride", "padding", "dilation"), TWO, strict=True)),
            "size": [4, 4],
        } | change
        with pytest.raises(error, match=f"max_unpool: .*{message}"):
            ops.max_unpool(**args)
        args["x"] = args.pop("y")
        if args["size"] == [4, 4]:
            args["size"] = [2, 2]
        with pytest.raises(error, match=f"max_gather: .*{message}"):
            ops.max_gather(**args)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"base_index": torch.zeros(3).int()}, TypeError, "base_index of dtype int64"),
            ({"base_index": torch.zeros(2).long()}, ValueError, r"of shape \(3,\), got \(2,\)"),
            ({"y_at": torch.zeros(3).long()}, ValueError, r"y_at of shape \(3, 2\)"),
            ({"window_at": torch.zeros(3, 3).long()}, ValueError, r"window_at of shape \(3, 2\)"),
            ({"window_at": None}, ValueError, "base_index, y_at and window_at together"),
        ],
    )
    def test_bad_places(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        places = {
            "base_index": torch.zeros(3).long(),
            "y_at": torch.zeros(3, 2).long(),
            "window_at": torch.zeros(3, 2).long(),
        } | change
        switches = torch.zeros(1, 1, 2, 2).byte()
        for op in (ops.max_unpool, ops.max_gather):
            with pytest.raises(error, match=message):
                op(torch.zeros(3, 1, 2, 2), switches, *TWO, [4, 4], **places)

    def test_a_wrong_out(self) -> None:
        y, switches = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2).byte()
        with pytest.raises(ValueError, match=r"out of shape \(1, 1, 4, 4\), got \(1, 1, 4, 5\)"):
            ops.max_unpool(y, switches, *TWO, [4, 4], out=torch.zeros(1, 1, 4, 5))
        with pytest.raises(TypeError, match="out of the dtype of x"):
            ops.max_gather(y, switches, *TWO, [2, 2], out=torch.zeros(1, 1, 2, 2).double())
