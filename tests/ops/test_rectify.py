"""rectify: the lecture's numbers, identities, the oracle, windows, then what it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from op_cases import (
    DTYPES,
    RULES,
    assert_bits,
    assert_same,
    layout,
    noise,
    rectify_cases,
    signs,
    window_cases,
)
from torch import Tensor

from backsight import ops
from backsight.ops import reference


@pytest.fixture(params=["contiguous", "channels_last"])
def x(request: pytest.FixtureRequest) -> Tensor:
    return layout(signs([2, 11, 6, 13], torch.float32, 0), request.param)


@pytest.fixture
def grad(x: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(signs(list(x.shape), torch.float32, 1))


class TestRules:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            ("gradient", [0, 0, 10, -10]),
            ("deconvnet", [10, 0, 10, 0]),
            ("guided", [0, 0, 10, 0]),
        ],
    )
    def test_the_lecture_s_numbers(
        self, dtype: torch.dtype, rule: str, expected: list[float]
    ) -> None:
        """f = -2 and R = 10 give 0 under the gradient, 10 under deconvnet, 0 under guided."""
        f = torch.tensor([[-2, -2, 2, 2]], dtype=dtype)
        signal = torch.tensor([[10, -10, 10, -10]], dtype=dtype)
        assert ops.rectify(signal, ops.relu(f)[1], rule).tolist() == [expected]

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_gradient_is_torch_s_backward(
        self, x: Tensor, grad: Tensor, dtype: torch.dtype
    ) -> None:
        x, grad = x.to(dtype), grad.to(dtype)
        theirs = torch.ops.aten.threshold_backward(grad, x.relu(), 0)
        assert_bits(ops.rectify(grad, ops.relu(x)[1], "gradient"), theirs)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_deconvnet_is_relu_of_the_signal(self, grad: Tensor, dtype: torch.dtype) -> None:
        grad = grad.to(dtype)
        assert_bits(ops.rectify(grad, None, "deconvnet"), grad.relu())

    def test_deconvnet_ignores_the_bits(self, x: Tensor, grad: Tensor) -> None:
        bits = ops.relu(x)[1]
        assert_bits(ops.rectify(grad, bits, "deconvnet"), ops.rectify(grad, None, "deconvnet"))

    def test_guided_is_both(self, x: Tensor, grad: Tensor) -> None:
        bits = ops.relu(x)[1]
        guided = ops.rectify(grad, bits, "guided")
        masked = ops.rectify(grad, bits, "gradient")
        assert_bits(guided, ops.rectify(masked, None, "deconvnet"))
        clamped = ops.rectify(grad, None, "deconvnet")
        assert_bits(guided, ops.rectify(clamped, bits, "gradient"))

    def test_of_positive_inputs_and_signals_all_rules_pass_all(self) -> None:
        ones = torch.rand(2, 3, 5, 9) + 0.1
        bits = ops.relu(ones)[1]
        for rule in RULES:
            assert_same(ops.rectify(ones, bits, rule), ones)

    @pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf"), -0.0])
    def test_special_signals(self, special: float) -> None:
        """A clear bit gives +0 whatever comes; a set one lets NaN through, and max keeps it."""
        signal = torch.full((1, 2), special)
        bits = ops.relu(torch.tensor([[-1.0, 1.0]]))[1]
        through = torch.tensor([[0.0, special]])
        assert_bits(ops.rectify(signal, bits, "gradient"), through)
        assert_bits(ops.rectify(signal, bits, "guided"), through.relu())
        assert_bits(ops.rectify(signal, bits, "deconvnet"), signal.relu())


class TestOracle:
    @given(case=rectify_cases())
    @settings(max_examples=300, deadline=None)
    def test_whole_maps(self, case: tuple[Any, ...]) -> None:
        assert_bits(ops.rectify(*case), reference.rectify(*case))

    @given(case=window_cases())
    @settings(max_examples=500, deadline=None)
    def test_windows(self, case: tuple[Any, ...]) -> None:
        assert_bits(ops.rectify(*case), reference.rectify(*case))

    @given(case=window_cases())
    @settings(max_examples=60, deadline=None)
    def test_out_of_any_layout(self, case: tuple[Any, ...]) -> None:
        expected = reference.rectify(*case)
        for memory_format in ("contiguous", "channels_last", "strided"):
            out = layout(torch.full_like(expected, 5.0), memory_format)
            assert ops.rectify(*case, out=out) is out
            torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("threads", [1, 2, 3])
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_threads_change_nothing(
        self, threads: int, memory_format: str, rule: str, dtype: torch.dtype
    ) -> None:
        """Enough for several threads, whole maps and windows; no byte beyond is touched."""
        f = layout(signs([3, 37, 50, 29], dtype, 1), memory_format)
        bits = reference.relu(f)[1]
        windows = (torch.tensor([2, 0, 1]), torch.tensor([[-3, 4], [20, -1], [0, 0]]), [50, 29])
        whole = layout(signs([3, 37, 50, 29], dtype, 2), memory_format)
        cut = layout(signs([3, 37, 41, 23], dtype, 3), memory_format)
        before = torch.get_num_threads()
        for case in ((whole, bits, rule), (cut, bits, rule, *windows)):
            expected = reference.rectify(*case)
            room = torch.full((expected.numel() + 2,), 7.0, dtype=dtype)
            out = room[1:-1].as_strided(expected.shape, expected.stride(), 1)
            torch.set_num_threads(threads)
            try:
                assert_bits(ops.rectify(*case), expected)
                ops.rectify(*case, out=out)
            finally:
                torch.set_num_threads(before)
            assert_bits(out, expected)
            assert room[[0, -1]].tolist() == [7, 7]

    def test_from_several_threads_at_once(self, x: Tensor, grad: Tensor) -> None:
        x, grad = x.repeat(1, 8, 10, 10), grad.repeat(1, 8, 10, 10)
        bits = ops.relu(x)[1]
        expected = reference.rectify(grad, bits, "guided")
        with ThreadPoolExecutor(4) as pool:
            for got in pool.map(lambda _: ops.rectify(grad, bits, "guided"), range(16)):
                torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.slow
    @pytest.mark.parametrize("windowed", [False, True])
    def test_more_than_2_31_elements(self, windowed: bool) -> None:
        count = 2**31 // (32 * 128 * 128) + 1
        f = -torch.ones(1, 32, 128, 128, dtype=torch.float16)
        f[0, 5, 100, 101] = 1
        bits = ops.relu(f)[1]
        grad = torch.full((count, 32, 128, 128), 2, dtype=torch.float16)
        assert grad.numel() > 2**31
        args: tuple[Any, ...] = (bits.repeat(count, 1, 1, 1), "guided")
        if windowed:
            index, at = torch.zeros(count).long(), torch.zeros(count, 2).long()
            args = (bits, "guided", index, at, [128, 128])
        out = ops.rectify(grad, *args)
        assert out[:, 5, 100, 101].tolist() == [2] * count
        assert torch.count_nonzero(out) == count  # a sum in double would copy all of it


class TestWindows:
    @pytest.mark.parametrize("rule", RULES)
    def test_equal_the_crop_of_the_whole(self, x: Tensor, grad: Tensor, rule: str) -> None:
        bits = ops.relu(x)[1]
        whole = ops.rectify(grad, bits, rule)
        size = (4, 5)
        corners = [(m, i, j) for m in range(2) for i in range(3) for j in range(9)]
        crops = [(m, slice(None), slice(i, i + 4), slice(j, j + 5)) for m, i, j in corners]
        cut = torch.stack([grad[c] for c in crops])
        at = torch.tensor(corners)
        got = ops.rectify(cut, bits, rule, at[:, 0], at[:, 1:], list(x.shape[2:]))
        assert got.shape[2:] == size
        torch.testing.assert_close(
            got, torch.stack([whole[c] for c in crops]), rtol=0, atol=0, equal_nan=True
        )

    @pytest.mark.parametrize("rule", RULES)
    def test_the_whole_as_a_window(self, x: Tensor, grad: Tensor, rule: str) -> None:
        bits = ops.relu(x)[1]
        zeros = torch.zeros(2, 2, dtype=torch.int64)
        got = ops.rectify(grad, bits, rule, torch.arange(2), zeros, list(x.shape[2:]))
        assert_bits(got, ops.rectify(grad, bits, rule))

    @pytest.mark.parametrize("rule", RULES)
    def test_zero_outside_the_map(self, rule: str) -> None:
        bits = ops.relu(torch.ones(1, 1, 2, 3))[1]
        at = torch.tensor([[-1, 2]])
        got = ops.rectify(torch.ones(1, 1, 3, 3), bits, rule, torch.tensor([0]), at, [2, 3])
        assert got.tolist() == [[[[0, 0, 0], [1, 0, 0], [1, 0, 0]]]]

    def test_nan_outside_too_is_zero(self) -> None:
        signal = torch.full((1, 1, 3), float("nan"))
        bits = ops.relu(torch.ones(1, 1, 1))[1]
        got = ops.rectify(signal, bits, "gradient", torch.tensor([0]), torch.tensor([[-1]]), [1])
        assert_bits(got, torch.tensor([[[0, float("nan"), 0]]]))

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("index", [-1, 1, 2**40])
    def test_an_index_of_no_map_is_nan(self, rule: str, index: int) -> None:
        bits = ops.relu(torch.ones(1, 1, 2))[1]
        at, index_ = torch.tensor([[-1]]), torch.tensor([index])
        got = ops.rectify(torch.ones(1, 1, 4), bits, rule, index_, at, [2])
        one = 1.0 if rule == "deconvnet" else float("nan")
        assert_bits(got, torch.tensor([[[0, one, one, 0]]]))

    @pytest.mark.parametrize("rule", RULES)
    def test_a_tile_gives_what_its_map_gives(self, x: Tensor, grad: Tensor, rule: str) -> None:
        tile = torch.empty_like(x[:, :, 2:, 3:10]).copy_(x[:, :, 2:, 3:10])
        windows = (torch.arange(2), torch.tensor([[2, 3], [4, 5]]), list(x.shape[2:]))
        cut = grad[:, :, :2, :4]
        expected = ops.rectify(cut, ops.relu(x)[1], rule, *windows)
        got = ops.rectify(cut, ops.relu(tile)[1], rule, *windows, [2, 3], [4, 7])
        assert_bits(got, expected)

    def test_moving_every_coordinate_changes_nothing(self, x: Tensor, grad: Tensor) -> None:
        far = 10**15
        bits, index, at = ops.relu(x)[1], torch.arange(2), torch.tensor([[0, 1], [2, 3]])
        here = ops.rectify(grad, bits, "guided", index, at, [6, 13])
        there = ops.rectify(
            grad, bits, "guided", index, at + far, [far + 6, far + 13], [far, far], [6, 13]
        )
        assert_bits(there, here)


class TestRegistration:
    @pytest.mark.parametrize("rule", RULES)
    def test_opcheck(self, x: Tensor, rule: str) -> None:
        bits = ops.relu(x)[1]
        grad = noise(list(x.shape), torch.float32, 4).requires_grad_()
        op = torch.ops.backsight.rectify.default
        torch.library.opcheck(op, (grad, bits, rule))
        at = torch.tensor([[-1, 2], [3, 0]])
        torch.library.opcheck(op, (grad, bits, rule, torch.arange(2), at, [6, 13]))
        torch.library.opcheck(op, (grad.detach(), bits, rule))

    def test_opcheck_without_bits(self, grad: Tensor) -> None:
        torch.library.opcheck(
            torch.ops.backsight.rectify.default,
            (grad.nan_to_num().requires_grad_(), None, "deconvnet"),
        )

    def test_out_schema_and_fake(self, x: Tensor, grad: Tensor) -> None:
        torch.library.opcheck(
            torch.ops.backsight.rectify.out,
            (grad.nan_to_num(), ops.relu(x)[1], "guided"),
            {"out": torch.empty_like(grad)},
            test_utils=("test_schema", "test_faketensor"),
        )

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_gradcheck(self, rule: str, memory_format: str) -> None:
        f = layout(noise([2, 3, 4, 5], torch.float64, 0), memory_format)
        bits = ops.relu(f)[1]
        grad = layout(noise([2, 3, 4, 5], torch.float64, 1), memory_format).requires_grad_()
        at = torch.tensor([[-1, 2], [1, 0]])
        for windows in ((), (torch.tensor([1, 0]), at, [4, 5])):

            def op(g: Tensor, windows: Any = windows) -> Tensor:
                return ops.rectify(g, bits, rule, *windows)

            assert torch.autograd.gradcheck(op, (grad,))
            assert torch.autograd.gradgradcheck(lambda g, op=op: op(g) ** 2, (grad,))

    @pytest.mark.parametrize("rule", RULES)
    def test_derivative_at_zero(self, rule: str) -> None:
        """As torch's relu has it: 0 under the rules that clamp."""
        grad = torch.zeros(1, 2, requires_grad=True)
        bits = ops.relu(torch.tensor([[1.0, -1.0]]))[1]
        ops.rectify(grad, bits, rule).sum().backward()
        assert grad.grad is not None
        assert grad.grad.tolist() == [[1.0 if rule == "gradient" else 0.0, 0.0]]

    def test_compiles_into_one_graph(self, x: Tensor, grad: Tensor) -> None:
        def f(x: Tensor, grad: Tensor) -> Tensor:
            return ops.rectify(grad * 2, ops.relu(x)[1], "guided") + 1

        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        assert_bits(compiled(x, grad), f(x, grad))


WINDOWS: dict[str, Any] = {
    "base_index": torch.zeros(2).long(),
    "window_at": torch.zeros(2, 2).long(),
    "extent": [6, 7],
}


class TestRefuses:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"grad": torch.zeros(2, 5, 6, 7).int()}, TypeError, "grad of dtype float64.*int32"),
            ({"grad": torch.zeros(2)}, ValueError, r"1 to 3 spatial axes, got \(2,\)"),
            ({"rule": "relu"}, ValueError, "gradient, deconvnet, guided, got 'relu'"),
            ({"bits": None}, ValueError, "bits for rule 'guided', got None"),
            ({"bits": torch.zeros(2, 5, 6, 1)}, TypeError, "bits of dtype uint8, got.*float32"),
            ({"bits": torch.zeros(2, 5, 6, 7).byte()}, ValueError, r"\(2, 1, 6, 7\) along the ch"),
            ({"bits": torch.zeros(2, 5, 6, 1).byte().to("meta")}, ValueError, "on cpu, got meta"),
            ({"base_index": torch.zeros(2).long()}, ValueError, "base_index, window_at and extent"),
            ({"base_at": [0, 0]}, ValueError, "base_index, window_at and extent together"),
            (WINDOWS | {"base_index": torch.zeros(2).int()}, TypeError, "index of dtype int64"),
            (WINDOWS | {"base_index": torch.zeros(3).long()}, ValueError, r"shape \(2,\), got"),
            (WINDOWS | {"window_at": torch.zeros(2, 3).long()}, ValueError, r"shape \(2, 2\)"),
            (WINDOWS | {"extent": [6]}, ValueError, r"2 ints in extent.*got \[6\]"),
            (WINDOWS | {"tile": [6, 7, 8]}, ValueError, "2 ints in tile"),
            (WINDOWS | {"base_at": [0]}, ValueError, "2 ints in base_at"),
            (WINDOWS | {"tile": [6, 9]}, ValueError, r"bits of maps \(2, 5, 6, 9\)"),
            ({"out": torch.zeros(2, 5, 6, 6)}, ValueError, r"out of shape \(2, 5, 6, 7\)"),
            ({"out": torch.zeros(2, 5, 6, 7).half()}, TypeError, "out of the dtype of grad"),
        ],
    )  # fmt: skip
    def test_bad_arguments(
        self, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        args = {
            "grad": torch.zeros(2, 5, 6, 7),
            "bits": torch.zeros(2, 5, 6, 1).byte(),
            "rule": "guided",
        }
        with pytest.raises(error, match=message):
            ops.rectify(**(args | change))

    def test_windows_without_axes(self) -> None:
        with pytest.raises(ValueError, match=r"with 1 to 3 spatial axes, got \(2, 5\)"):
            ops.rectify(
                torch.zeros(2, 5),
                torch.zeros(2, 1).byte(),
                "guided",
                torch.zeros(2).long(),
                torch.zeros(2, 0).long(),
                [],
            )

    def test_a_gradient_with_out(self) -> None:
        grad = torch.zeros(2, 8, requires_grad=True)
        with pytest.raises(RuntimeError, match="rectify with out= is inference-only"):
            ops.rectify(grad, None, "deconvnet", out=torch.zeros(2, 8))
