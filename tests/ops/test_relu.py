"""relu: torch bit for bit, the bits' layout by hand, then the oracle, then what it refuses."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from op_cases import (
    DTYPES,
    RULES,
    SPECIAL,
    assert_bits,
    assert_same,
    integers,
    layout,
    noise,
    relu_cases,
    signs,
)
from torch import Tensor

from backsight import ops
from backsight.ops import reference


@pytest.fixture(params=["contiguous", "channels_last"])
def x(request: pytest.FixtureRequest) -> Tensor:
    return layout(signs([2, 11, 6, 13], torch.float32, 0), request.param)


class TestTorch:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("shape", [[3, 5], [2, 9, 17], [2, 9, 5, 7], [2, 16, 8, 8]])
    def test_values_are_torch_s(
        self, dtype: torch.dtype, memory_format: str, shape: list[int]
    ) -> None:
        x = layout(signs(shape, dtype, 1), memory_format)
        y, _ = ops.relu(x)
        assert_bits(y, x.relu())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_gradient_is_torch_s(self, dtype: torch.dtype, x: Tensor) -> None:
        """Where the input is special and where the signal is, NaN and all."""
        x = x.to(dtype).requires_grad_()
        signal = signs(list(x.shape), dtype, 5).contiguous(
            memory_format=torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
        )
        (ours,) = torch.autograd.grad(ops.relu(x)[0], x, signal)
        (theirs,) = torch.autograd.grad(x.relu(), x, signal)
        assert_bits(ours, theirs)

    @pytest.mark.parametrize("rule", RULES)
    def test_the_backward_is_rectify_by_the_rule(self, rule: str, x: Tensor) -> None:
        x = x.requires_grad_()
        y, bits = ops.relu(x, rule)
        signal = torch.empty_like(x).copy_(signs(list(x.shape), torch.float32, 5))
        (got,) = torch.autograd.grad(y, x, signal)
        assert_bits(got, ops.rectify(signal, bits, rule))

    def test_the_lecture_s_block(self) -> None:
        y, bits = ops.relu(torch.tensor([[6.0, 0, 1, -1]]))
        assert y.tolist() == [[6, 0, 1, 0]]
        assert bits.tolist() == [[0b0101]]

    def test_special_values_by_hand(self) -> None:
        nan = float("nan")
        y, bits = ops.relu(torch.tensor([SPECIAL]))
        assert SPECIAL[2:4] == [float("-inf"), -0.0]
        expected = torch.tensor([[nan, float("inf"), 0.0, -0.0, 0.0, 1.0, 0.0]])
        assert_bits(y, expected)
        assert bits.tolist() == [[0b0100011]]  # NaN, infinity and 1


class TestLayout:
    def test_along_the_last_axis(self) -> None:
        x = -torch.ones(1, 2, 2, 10)
        x[0, 1, 0, 0] = x[0, 1, 0, 7] = x[0, 1, 0, 8] = x[0, 0, 1, 9] = 1
        bits = ops.relu(x)[1]
        assert bits.is_contiguous()
        assert bits.tolist() == [[[[0, 0], [0, 2]], [[0x81, 1], [0, 0]]]]

    def test_along_the_channels(self) -> None:
        x = layout(-torch.ones(1, 10, 2, 2), "channels_last")
        x[0, 0, 1, 0] = x[0, 7, 1, 0] = x[0, 8, 1, 0] = x[0, 9, 0, 1] = 1
        bits = ops.relu(x)[1]
        assert bits.is_contiguous(memory_format=torch.channels_last)
        assert bits.tolist() == [[[[0, 0], [0x81, 0]], [[0, 2], [1, 0]]]]

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ([3, 17], (3, 3)),
            ([3, 17, 1, 1], (3, 3, 1, 1)),
            ([3, 17, 9], (3, 17, 2)),
            ([3, 17, 4, 2, 16], (3, 17, 4, 2, 2)),
            ([0, 17, 4], (0, 17, 1)),
            ([3, 17, 0], (3, 17, 0)),
            ([3, 0], (3, 0)),
        ],
    )
    def test_shapes(self, shape: list[int], expected: tuple[int, ...]) -> None:
        y, bits = ops.relu(torch.randn(shape))
        assert y.shape == tuple(shape)
        assert bits.shape == expected
        assert bits.dtype == torch.uint8

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize(("rule", "share"), [("gradient", 1), ("guided", 1), ("deconvnet", 0)])
    def test_kept_for_the_backward_is_a_bit_an_element(
        self, memory_format: str, rule: str, share: int
    ) -> None:
        x = layout(noise([2, 64, 16, 16], torch.float32, 0), memory_format).requires_grad_()
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (kept.append(t), t)[1], lambda t: t
        ):
            ops.relu(x, rule)
        assert sum(t.nbytes for t in kept) * 32 == share * x.nbytes


class TestOracle:
    @given(x=relu_cases())
    @settings(max_examples=300, deadline=None)
    def test_equals_the_oracle(self, x: Tensor) -> None:
        (y, bits), (expected, expected_bits) = ops.relu(x), reference.relu(x)
        assert_bits(y, expected)
        assert_same(bits, expected_bits)

    @given(x=relu_cases())
    @settings(max_examples=60, deadline=None)
    def test_out_of_any_layout(self, x: Tensor) -> None:
        expected, expected_bits = reference.relu(x)
        for memory_format in ("contiguous", "channels_last", "strided"):
            y = layout(torch.full_like(expected, 5.0), memory_format)
            bits = layout(torch.full_like(expected_bits, 255), memory_format)
            got = ops.relu(x, out=(y, bits))
            assert got[0] is y
            assert got[1] is bits
            torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(bits, expected_bits)

    @given(x=relu_cases())
    @settings(max_examples=100, deadline=None)
    def test_in_place(self, x: Tensor) -> None:
        expected, expected_bits = reference.relu(x)
        x = x.clone()
        bits = torch.full_like(expected_bits, 255)
        ops.relu(x, out=(x, bits))
        torch.testing.assert_close(x, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(bits, expected_bits)

    @pytest.mark.parametrize("threads", [1, 2, 3])
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("shape", [[2, 37, 50, 29], [4, 64, 24, 40], [1, 3, 100003]])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_threads_change_nothing(
        self, threads: int, memory_format: str, shape: list[int], dtype: torch.dtype
    ) -> None:
        """Enough for several threads, in rows of whole bytes and not; no byte beyond is touched."""
        x = layout(signs(shape, dtype, 3), memory_format)
        expected, expected_bits = reference.relu(x)
        room = torch.full((x.numel() + 2,), 7.0, dtype=dtype)
        y = room[1:-1].as_strided(expected.shape, expected.stride(), 1)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for _ in range(3):
                got, bits = ops.relu(x)
                assert_bits(got, expected)
                assert_same(bits, expected_bits)
                ops.relu(x, out=(y, bits))
                assert_bits(y, expected)
                assert room[[0, -1]].tolist() == [7, 7]
        finally:
            torch.set_num_threads(before)

    def test_from_several_threads_at_once(self, x: Tensor) -> None:
        x = x.repeat(1, 8, 10, 10)
        expected = reference.relu(x)[1]
        with ThreadPoolExecutor(4) as pool:
            for _, bits in pool.map(lambda _: ops.relu(x), range(16)):
                assert torch.equal(bits, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("channels", [1, 16])
    def test_more_than_2_31_elements(self, channels: int) -> None:
        x = torch.full((2**31 // 16 + 5, 16), -1, dtype=torch.float16)
        x[-1, 3] = x[0, 9] = 2
        x = x.view(-1, channels) if channels == 16 else x.view(1, -1)[:, :-3]
        y, bits = ops.relu(x)
        assert x.numel() > 2**31
        assert torch.count_nonzero(y) == 2  # a sum in double would copy all of it
        assert y.view(-1)[[9, -13 if channels == 16 else -10]].tolist() == [2, 2]
        assert bits.nonzero().tolist() == (
            [[0, 1], [len(x) - 1, 0]] if channels == 16 else [[0, 1], [0, bits.shape[1] - 2]]
        )


class TestRegistration:
    def test_opcheck(self, x: Tensor) -> None:
        torch.library.opcheck(torch.ops.backsight.relu.default, (x.nan_to_num(),))
        x = noise([2, 3, 4, 5], torch.float32, 0).requires_grad_()
        torch.library.opcheck(torch.ops.backsight.relu.default, (x,))
        torch.library.opcheck(torch.ops.backsight.relu.default, (x[:, :, 0, 0],))

    def test_out_schema_and_fake(self, x: Tensor) -> None:
        y, bits = ops.relu(x)
        torch.library.opcheck(
            torch.ops.backsight.relu.out,
            (x,),
            {"y": y, "bits": bits},
            test_utils=("test_schema", "test_faketensor"),
        )

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_gradcheck(self, memory_format: str) -> None:
        x = layout(noise([2, 3, 4, 5], torch.float64, 0), memory_format).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: ops.relu(x)[0], (x,))
        assert torch.autograd.gradgradcheck(lambda x: ops.relu(x)[0] ** 2, (x,))

    @pytest.mark.parametrize("rule", ["deconvnet", "guided"])
    def test_the_derivative_of_a_rule(self, rule: str) -> None:
        """The backward by a rule is a function of the signal, and has its own derivative."""
        x = noise([2, 3, 4, 5], torch.float64, 0).requires_grad_()
        signal = noise([2, 3, 4, 5], torch.float64, 1).requires_grad_()

        def back(signal: Tensor) -> Tensor:
            return torch.autograd.grad(ops.relu(x, rule)[0], x, signal, create_graph=True)[0]

        assert torch.autograd.gradcheck(back, (signal,))

    def test_compiles_into_one_graph(self, x: Tensor) -> None:
        def f(x: Tensor) -> tuple[Tensor, Tensor]:
            y, bits = ops.relu(x * 2)
            return y + 1, bits

        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        for got, expected in zip(compiled(x), f(x), strict=True):
            assert_same(got, expected)

    def test_compiled_gradient(self, x: Tensor) -> None:
        x = x.nan_to_num().requires_grad_()
        compiled = torch.compile(lambda x: ops.relu(x)[0], fullgraph=True, backend="aot_eager")
        weight = noise(list(x.shape), torch.float32, 3)
        (got,) = torch.autograd.grad(compiled(x), x, weight)
        assert torch.equal(got, weight * (x > 0))

    def test_a_batch_of_maps_is_each_map(self, x: Tensor) -> None:
        for whole, one in zip(zip(*ops.relu(x), strict=True), x.split(1), strict=True):
            for part, alone in zip(whole, ops.relu(one), strict=True):
                torch.testing.assert_close(part[None], alone, rtol=0, atol=0, equal_nan=True)


class TestRefuses:
    @pytest.mark.parametrize(
        ("x", "error", "message"),
        [
            (torch.zeros(2, 5, 6, 7).int(), TypeError, "x of dtype float64.*int32"),
            (torch.zeros(2, 5).int(), TypeError, "x of dtype float64.*int32"),
            (torch.zeros(2), ValueError, r"1 to 3 spatial axes, got \(2,\)"),
            (torch.zeros(1, 1, 1, 1, 1, 2), ValueError, "1 to 3 spatial axes"),
        ],
    )
    def test_bad_arguments(self, x: Tensor, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            ops.relu(x)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"y": torch.zeros(2, 9)}, ValueError, r"out of shape \(2, 10\), got \(2, 9\)"),
            ({"y": torch.zeros(2, 10).half()}, TypeError, "out of the dtype of x"),
            ({"bits": torch.zeros(2, 2)}, ValueError, "bits of dtype uint8.*got torch.float32"),
            ({"bits": torch.zeros(2, 1).byte()}, ValueError, r"shape \(2, 2\).*got.*\(2, 1\)"),
            ({"bits": torch.zeros(2, 2).byte().to("meta")}, ValueError, "on cpu.*on meta"),
        ],
    )
    def test_bad_out(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        out = {"y": torch.zeros(2, 10), "bits": torch.zeros(2, 2).byte()} | change
        with pytest.raises(error, match=message):
            ops.relu(torch.zeros(2, 10), out=(out["y"], out["bits"]))

    def test_a_wrong_rule(self) -> None:
        for x in (torch.zeros(2, 5), torch.zeros(2, 5, requires_grad=True)):
            with pytest.raises(ValueError, match="gradient, deconvnet, guided, got 'relu'"):
                ops.relu(x, "relu")

    def test_a_gradient_with_out(self) -> None:
        x = torch.zeros(2, 8, requires_grad=True)
        out = (torch.zeros(2, 8), torch.zeros(2, 1).byte())
        with pytest.raises(RuntimeError, match="relu with out= is inference-only"):
            ops.relu(x, out=out)
        with torch.no_grad():
            assert ops.relu(x, out=copy.copy(out))[0] is out[0]


def test_signs_holds_every_special_value() -> None:
    """What the tests above rely on."""
    x = signs([40, 40], torch.float32, 0)
    assert x.isnan().any()
    assert x.isinf().any()
    assert (x.signbit() & (x == 0)).any()
    assert (~x.signbit() & (x == 0)).any()
    assert integers([3], 0, 1, 0).tolist() == [0, 0, 0]
