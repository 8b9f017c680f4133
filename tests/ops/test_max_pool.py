"""max_pool: torch's maxima and indices first, then the oracle and gradients, then refusals."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import assume, given, settings
from op_cases import (
    DTYPES,
    assert_bits,
    assert_same,
    layout,
    max_pool_cases,
    noise,
    signs,
    vectors_of,
)
from torch import Tensor
from torch.nn import functional as F

from backsight import ops
from backsight.functional import Switches
from backsight.ops import reference

NAN, INF = math.nan, math.inf
TWO = ([2, 2], [2, 2], [0, 0], [1, 1])
THREE = ([3, 3], [2, 2], [1, 1], [1, 1])


@pytest.fixture(params=["contiguous", "channels_last"])
def x(request: pytest.FixtureRequest) -> Tensor:
    return layout(noise([2, 5, 9, 8], torch.float32, 0), request.param)


def line(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, -1)


def theirs(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool = False,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """torch's maxima and indices."""
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    args = (kernel, stride, padding, dilation, ceil_mode)
    y, indices = pool(x.relu() if relu else x, *args, return_indices=True)
    return y, indices


def indices_of(case: tuple[Any, ...], switches: Tensor) -> Tensor:
    x, *pool, _, _ = case
    return Switches(switches, tuple(x.shape[2:]), *map(tuple, pool)).indices()


class TestLecture:
    def test_a_block_and_its_maximum(self) -> None:
        x = torch.tensor([[6.0, 0.0], [1.0, -1.0]]).view(1, 1, 2, 2)
        y, switches = ops.max_pool(x, *TWO)
        assert (y.item(), switches.item()) == (6, 0)

    def test_four_blocks(self) -> None:
        x = torch.tensor(
            [
                [5.0, 42.0, 3.0, 1.0],
                [2.0, 9.0, 12.0, 8.0],
                [6.0, 0.0, 4.0, 5.0],
                [1.0, -1.0, 6.0, 7.0],
            ]
        ).view(1, 1, 4, 4)
        y, switches = ops.max_pool(x, *TWO)
        assert y.flatten().tolist() == [42, 12, 6, 7]
        assert switches.flatten().tolist() == [1, 2, 0, 3]
        assert switches.dtype == torch.uint8  # torch keeps 8 bytes each


class TestTorch:
    @given(case=max_pool_cases())
    @settings(max_examples=300, deadline=None)
    def test_maxima_and_indices(self, case: tuple[Any, ...]) -> None:
        x, kernel, _, padding, *_ = case
        assume(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))  # as in torch
        assume(len(x) > 0)
        y, switches = ops.max_pool(*case)
        # Where channels are last, torch's index of a volume of minus infinities lacks the depth.
        expected, indices = theirs(x.double().contiguous(), *case[1:])
        torch.testing.assert_close(y, expected.to(x.dtype), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(indices_of(case, switches), indices)

    def test_ties_go_to_the_first(self) -> None:
        y, switches = ops.max_pool(torch.full((1, 1, 6, 6), 3.0), *THREE)
        # The first cell inside the map: behind the padding at the top and on the left.
        assert switches.view(3, 3).tolist() == [[4, 3, 3], [1, 0, 0], [1, 0, 0]]
        assert (y == 3).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_zeros_of_either_sign_are_ties(self, dtype: torch.dtype) -> None:
        x = line(-0.0, 0.0, 0.0, -0.0).to(dtype)
        y, switches = ops.max_pool(x, [2], [2], [0], [1])
        assert switches.flatten().tolist() == [0, 0]
        assert y.signbit().flatten().tolist() == [True, False]

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("repeat", [1, 40])
    def test_the_last_nan_wins(self, dtype: torch.dtype, repeat: int) -> None:
        x = line(1, NAN, 2, NAN, INF, 3, 0, 0, NAN).to(dtype).repeat(1, 1, repeat)
        y, switches = ops.max_pool(x, [3], [3], [0], [1])
        assert switches.flatten().tolist() == [1, 0, 2] * repeat
        assert y.isnan().all()
        assert torch.equal(
            indices_of((x, [3], [3], [0], [1], 0, 0), switches), theirs(x, [3], [3], [0], [1])[1]
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_window_of_minus_infinity_has_its_first_cell(self, dtype: torch.dtype) -> None:
        x = torch.full((1, 2, 5, 5), -INF, dtype=dtype)
        case = (x, *THREE, False, False)
        y, switches = ops.max_pool(*case)
        assert (y == -INF).all()
        assert switches[0, 0].tolist() == [[4, 3, 3], [1, 0, 0], [1, 0, 0]]
        assert torch.equal(indices_of(case, switches), theirs(*case)[1])

    def test_relu_in_front(self, x: Tensor) -> None:
        y, switches = ops.max_pool(x, *THREE, relu=True)
        expected, offsets = ops.max_pool(x.relu(), *THREE)
        assert_same(y, expected)
        assert_same(switches, offsets)
        assert (x.amax() > 0) & (F.max_pool2d(x, 3, 2, 1) < 0).any()

    def test_one_byte_until_256_cells(self) -> None:
        x = noise([1, 1, 40, 40], torch.float32, 0)
        for kernel, dtype in (([16, 16], torch.uint8), ([17, 16], torch.int16)):
            y, switches = ops.max_pool(x, kernel, [5, 5], [0, 0], [1, 1])
            assert switches.dtype == dtype
            assert int(switches.max()) > 200
            assert torch.equal(
                y.flatten(),
                x.flatten()[
                    indices_of((x, kernel, [5, 5], [0, 0], [1, 1], 0, 0), switches)
                ].flatten(),
            )
        long = torch.zeros(1, 1, 2**15 + 9)
        long[..., 2**15 + 1] = 1
        _, switches = ops.max_pool(long, [2**15 + 2], [1], [0], [1])
        assert switches.dtype == torch.int32
        assert switches[0, 0, :3].tolist() == [2**15 + 1, 2**15, 2**15 - 1]


class TestOracle:
    @given(case=max_pool_cases())
    @settings(max_examples=300, deadline=None)
    def test_equals_the_oracle(self, case: tuple[Any, ...]) -> None:
        (y, switches), (expected, offsets) = ops.max_pool(*case), reference.max_pool(*case)
        assert_bits(y, expected)
        assert_same(switches, offsets)

    @pytest.mark.parametrize("most_bytes", [16, 32])
    @given(case=max_pool_cases())
    @settings(max_examples=100, deadline=None)
    def test_whatever_vectors_the_cpu_has(self, case: tuple[Any, ...], most_bytes: int) -> None:
        expected = ops.max_pool(*case)
        with vectors_of(most_bytes):
            for got, theirs in zip(ops.max_pool(*case), expected, strict=True):
                assert_bits(got, theirs)

    @given(case=max_pool_cases())
    @settings(max_examples=60, deadline=None)
    def test_out_of_any_layout(self, case: tuple[Any, ...]) -> None:
        expected, offsets = reference.max_pool(*case)
        for memory_format in ("contiguous", "channels_last", "strided"):
            y = layout(torch.full_like(expected, 5.0), memory_format)
            switches = layout(torch.full_like(offsets, 99), memory_format)
            result = ops.max_pool(*case, out=(y, switches))
            assert result[0] is y
            assert result[1] is switches
            torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(switches, offsets)

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("shape", [(3, 67, 61, 59), (2, 300, 14, 14), (1, 3, 400, 401)])
    @pytest.mark.parametrize("pool", [TWO, THREE, ([3, 3], [1, 1], [1, 1], [1, 1])])
    def test_several_threads(
        self, memory_format: str, shape: tuple[int, ...], pool: tuple[list[int], ...]
    ) -> None:
        x = layout(signs(list(shape), torch.float32, 1), memory_format)
        expected, indices = theirs(x, *pool)
        before = torch.get_num_threads()
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                y, switches = ops.max_pool(x, *pool)
                assert_same(y, expected)
                assert torch.equal(indices_of((x, *pool, 0, 0), switches), indices)
        finally:
            torch.set_num_threads(before)

    def test_from_several_threads_at_once(self, x: Tensor) -> None:
        x = x.repeat(1, 8, 10, 10)
        expected = theirs(x, *THREE)[0]
        with ThreadPoolExecutor(4) as pool:
            for y, _ in pool.map(lambda _: ops.max_pool(x, *THREE), range(16)):
                assert_same(y, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_more_than_2_31_elements(self, memory_format: str) -> None:
        shape = [1, 33, 8192, 8192] if memory_format == "contiguous" else [1, 8192, 8192, 33]
        x = torch.full(shape, -1, dtype=torch.float16)
        if memory_format == "channels_last":
            x = x.movedim(-1, 1)
        assert x.numel() > 2**31
        x[0, 0, 0, 1] = x[0, -1, -1, -2] = 2
        y, switches = ops.max_pool(x, *TWO)
        assert y.sum(dtype=torch.float64) == 6 - y.numel()
        assert (y[0, -1, -1, -1], switches[0, -1, -1, -1]) == (2, 2)
        assert switches.sum() == 3


class TestGradients:
    @pytest.mark.parametrize("relu", [False, True])
    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_gradcheck(self, dims: int, relu: bool) -> None:
        x = noise([2, 2, *[7, 6, 5][:dims]], torch.float64, 0).requires_grad_()

        def f(x: Tensor) -> Tensor:
            # Squared, so that the second derivative is not zero.
            y = ops.max_pool(x, [3] * dims, [2] * dims, [1] * dims, [1] * dims, True, relu)[0]
            return y**2

        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("relu", [False, True])
    def test_the_gradient_is_torchs(self, x: Tensor, dtype: torch.dtype, relu: bool) -> None:
        mine, other = (x.to(dtype).clone().requires_grad_() for _ in range(2))
        y, switches = ops.max_pool(mine, *THREE, relu=relu)
        expected = theirs(other, *THREE, relu=relu)[0]
        grad = layout(noise(list(y.shape), dtype, 3).round(), "contiguous")
        y.backward(grad)
        expected.backward(grad)
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.equal(mine.grad, other.grad)  # small integers: sums of them are exact
        assert mine.grad.stride() == x.stride()
        assert (mine.grad != 0).sum() > 20
        assert not switches.requires_grad

    def test_a_nan_passes_its_gradient_through_relu(self) -> None:
        x = line(NAN, 1, -1, -2).requires_grad_()
        ops.max_pool(x, [2], [2], [0], [1], relu=True)[0].sum().backward()
        assert x.grad is not None
        assert x.grad.flatten().tolist() == [1, 0, 0, 0]

    def test_deterministic_algorithms_are_enough(self, x: Tensor) -> None:
        torch.use_deterministic_algorithms(True)
        try:
            ops.max_pool(x.requires_grad_(), *THREE)[0].sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        assert x.grad is not None
        assert x.grad.sum() == 2 * 5 * 5 * 4

    def test_a_gradient_with_out_is_refused(self, x: Tensor) -> None:
        out = ops.max_pool(x, *TWO)
        with pytest.raises(RuntimeError, match="max_pool with out= is inference-only"):
            ops.max_pool(x.requires_grad_(), *TWO, out=out)


class TestRegistration:
    @pytest.mark.parametrize("relu", [False, True])
    def test_opcheck(self, x: Tensor, relu: bool) -> None:
        op = torch.ops.backsight.max_pool.default
        torch.library.opcheck(op, (x, *THREE, True, relu))
        torch.library.opcheck(op, (x.clone().requires_grad_(), *THREE, False, relu))

    def test_out_schema_and_fake(self, x: Tensor) -> None:
        y, switches = ops.max_pool(x, *TWO)
        torch.library.opcheck(
            torch.ops.backsight.max_pool.out,
            (x, *TWO),
            {"y": y, "switches": switches},
            test_utils=("test_schema", "test_faketensor"),
        )

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compiles_into_one_graph(self, x: Tensor, backend: str) -> None:
        def f(x: Tensor) -> tuple[Tensor, Tensor]:
            y, switches = ops.max_pool(x * 2, *THREE)
            return y.sin(), switches

        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        (y, switches), (expected, offsets) = (
            torch.compile(f, fullgraph=True, backend=backend)(mine),
            f(theirs),
        )
        torch.testing.assert_close(y, expected)
        assert torch.equal(switches, offsets)
        y.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)

    def test_compiles_for_any_batch(self, x: Tensor) -> None:
        compiled = torch.compile(
            lambda x: ops.max_pool(x, *THREE), fullgraph=True, backend="aot_eager", dynamic=True
        )
        for count in (2, 3, 7):
            part = x.repeat(4, 1, 1, 1)[:count]
            for got, expected in zip(compiled(part), ops.max_pool(part, *THREE), strict=True):
                assert_same(got, expected)

    def test_tracers_and_transforms_see_the_op(self, x: Tensor) -> None:
        class Log(torch.utils._python_dispatch.TorchDispatchMode):
            seen: ClassVar[list[str]] = []

            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                self.seen.append(str(func))
                return func(*args, **(kwargs or {}))

        with Log() as log:
            ops.max_pool(x, *TWO)
        assert "backsight.max_pool.default" in log.seen
        exported = torch.export.export(Pool(), (x,))
        assert "backsight.max_pool.default" in str(exported.graph)


class Pool(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool(x, *TWO)[0]


class TestRefuses:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"x": torch.zeros(2, 5)}, ValueError, r"1 to 3 spatial axes, got \(2, 5\)"),
            (
                {"x": torch.zeros(1, 1, 4, 4).int()},
                TypeError,
                "x of dtype float64.*got torch.int32",
            ),
            ({"kernel": [2]}, ValueError, r"2 ints in kernel, one a spatial axis, got \[2\]"),
            ({"stride": [2, 2, 2]}, ValueError, "2 ints in stride"),
            ({"kernel": [0, 2]}, ValueError, r"positive ints, got \[0, 2\]"),
            ({"stride": [1, 0]}, ValueError, r"positive ints, got .*\[1, 0\]"),
            ({"dilation": [-1, 1]}, ValueError, r"positive ints, got .*\[-1, 1\]"),
            ({"padding": [2, 0]}, ValueError, r"half of what a window spans, got \[2, 0\]"),
            ({"padding": [-1, 0]}, ValueError, r"got \[-1, 0\]"),
            ({"kernel": [5, 5]}, ValueError, r"a map that holds a window, got one of \[4, 4\]"),
            ({"x": torch.zeros(1, 1, 0, 4)}, ValueError, r"got one of \[0, 4\]"),
            (
                {"x": torch.zeros(1, 1, 1, 4), "dilation": [3, 1], "padding": [2, 0]},
                ValueError,
                "every window to have a cell inside the map, got a map of",
            ),
            (
                {"out": (torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 2).byte())},
                ValueError,
                r"out of shape \(1, 1, 2, 2\)",
            ),
            (
                {"out": (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2).long())},
                TypeError,
                "switches of dtype torch.uint8, got torch.int64",
            ),
            (
                {"out": (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2).byte())},
                ValueError,
                r"switches of shape \(1, 1, 2, 2\) on cpu, got \(1, 1, 2\)",
            ),
        ],
    )
    @pytest.mark.parametrize("dispatched", [False, True])
    def test_bad_arguments(
        self, change: dict[str, Any], error: type[Exception], message: str, dispatched: bool
    ) -> None:
        args = {
            "x": torch.zeros(1, 1, 4, 4),
            **dict(zip(("kernel", "stride", "padding", "dilation"), TWO, strict=True)),
        } | change
        if dispatched and "out" not in args:
            args["x"] = args["x"].requires_grad_(args["x"].is_floating_point())
        with pytest.raises(error, match=message):
            ops.max_pool(**args)
