"""The CUDA kernels of the copying and the pooling ops against the oracles on the CPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from op_cases import (
    DTYPES,
    affine,
    assert_bits,
    assert_same,
    layout,
    max_pool_cases,
    max_unpool_cases,
    noise,
    occlude_cases,
    preactivation_cases,
    rectify_cases,
    relu_cases,
    signs,
    splice_cases,
    window_cases,
)
from torch import Tensor

from backsight import _C, ops
from backsight.ops import reference

pytestmark = [
    pytest.mark.skipif(not _C.cuda_archs, reason="the CUDA kernels are not built"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
]


def on_gpu(case: tuple[Any, ...], device: str = "cuda") -> tuple[Any, ...]:
    """Copies to the GPU that keep their strides, expanded ones too."""

    def move(x: Any) -> Any:
        if isinstance(x, list) and x and isinstance(x[0], Tensor):
            return [move(each) for each in x]
        if not isinstance(x, Tensor):
            return x
        storage = torch.empty(0, dtype=x.dtype, device=device)
        flat = torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
        storage = flat.to(device)
        return storage.as_strided(x.shape, x.stride(), x.storage_offset())

    return tuple(move(x) for x in case)


def wide_case(dtype: torch.dtype, memory_format: str, channels: int) -> tuple[Any, ...]:
    """Windows wide enough for 16-byte accesses, aligned and not, with all kinds of cells."""
    base = layout(noise([2, channels, 33, 40], dtype, 1), memory_format)
    patch = layout(noise([5, channels, 6, 8], dtype, 2), memory_format)
    window_at = torch.tensor([[-3, -4], [0, 0], [5, 8], [20, 24], [3, 3]])
    patch_at = window_at + torch.tensor([[2, 3], [4, 4], [0, 0], [8, 8], [30, 1]])
    index = torch.tensor([0, 1, 1, 0, 7])
    return base, index, [0, 0], [33, 40], patch, patch_at, window_at, [16, 24], 0.5


class TestRelu:
    @given(x=relu_cases())
    @settings(max_examples=200, deadline=None)
    def test_equals_the_oracle(self, x: Tensor) -> None:
        (y, bits), (expected, expected_bits) = ops.relu(*on_gpu((x,))), reference.relu(x)
        assert_bits(y.cpu(), expected)
        assert_same(bits.cpu(), expected_bits)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_large_maps(self, dtype: torch.dtype, memory_format: str) -> None:
        x = layout(signs([3, 64, 56, 40], dtype, 1), memory_format)
        (y, bits), (expected, expected_bits) = ops.relu(*on_gpu((x,))), reference.relu(x)
        assert_bits(y.cpu(), expected)
        assert_same(bits.cpu(), expected_bits)

    def test_gradcheck(self) -> None:
        x = noise([2, 3, 4, 5], torch.float64, 0).cuda().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: ops.relu(x)[0], (x,))

    def test_in_a_graph_on_its_own_stream(self) -> None:
        x = signs([2, 16, 24, 40], torch.float32, 1)
        expected, expected_bits = reference.relu(x)
        (device,) = on_gpu((x,))
        y, bits = ops.relu(device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
            ops.relu(device, out=(y, bits))
        y.zero_()
        bits.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_bits(y.cpu(), expected)
        assert_same(bits.cpu(), expected_bits)

    @pytest.mark.slow
    def test_more_than_2_31_elements(self) -> None:
        x = torch.full((2**31 // 16 + 5, 16), -1, dtype=torch.float16, device="cuda")
        x[-1, 3] = x[0, 9] = 2
        y, bits = ops.relu(x)
        assert y.sum(dtype=torch.float64) == 4
        assert bits.nonzero().tolist() == [[0, 1], [len(x) - 1, 0]]


class TestRectify:
    @given(case=rectify_cases())
    @settings(max_examples=200, deadline=None)
    def test_whole_maps(self, case: tuple[Any, ...]) -> None:
        assert_bits(ops.rectify(*on_gpu(case)).cpu(), reference.rectify(*case))

    @given(case=window_cases())
    @settings(max_examples=300, deadline=None)
    def test_windows(self, case: tuple[Any, ...]) -> None:
        assert_bits(ops.rectify(*on_gpu(case)).cpu(), reference.rectify(*case))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("rule", ["gradient", "deconvnet", "guided"])
    def test_large_maps(self, dtype: torch.dtype, memory_format: str, rule: str) -> None:
        x, grad = (layout(signs([3, 64, 56, 40], dtype, s), memory_format) for s in (1, 2))
        case = (grad, reference.relu(x)[1], rule)
        assert_bits(ops.rectify(*on_gpu(case)).cpu(), reference.rectify(*case))

    def test_gradcheck(self) -> None:
        bits = ops.relu(noise([2, 3, 4, 5], torch.float64, 0).cuda())[1]
        grad = noise([2, 3, 4, 5], torch.float64, 1).cuda().requires_grad_()
        assert torch.autograd.gradcheck(lambda g: ops.rectify(g, bits, "guided"), (grad,))


class TestSplice:
    @given(case=splice_cases())
    @settings(max_examples=200, deadline=None)
    def test_equals_the_oracle(self, case: tuple[Any, ...]) -> None:
        assert_same(ops.splice(*on_gpu(case)).cpu(), reference.splice(*case))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last", "strided"])
    @pytest.mark.parametrize("channels", [1, 3, 64])
    def test_wide_windows(self, dtype: torch.dtype, memory_format: str, channels: int) -> None:
        case = wide_case(dtype, memory_format, channels)
        assert_same(ops.splice(*on_gpu(case)).cpu(), reference.splice(*case))

    def test_in_a_graph_on_its_own_stream(self) -> None:
        case = wide_case(torch.float32, "channels_last", 8)
        expected = reference.splice(*case)
        args = on_gpu(case)
        out = ops.splice(*args)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
            ops.splice(*args, out=out)
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_same(out.cpu(), expected)

    @pytest.mark.slow
    def test_more_than_2_31_elements(self) -> None:
        base = noise([1, 32, 256, 512], torch.float16, 0).cuda()
        windows = 2**31 // base.numel() + 2
        zeros = torch.zeros(windows, 2, dtype=torch.int64, device="cuda")
        index = torch.zeros(windows, dtype=torch.int64, device="cuda")
        patch = base[:, :, :0].expand(windows, -1, -1, -1)
        out = ops.splice(base, index, [0, 0], [256, 512], patch, zeros, zeros, [256, 512])
        assert out.numel() > 2**31
        assert all(torch.equal(window, base[0]) for window in out)


class TestPreactivation:
    @given(case=preactivation_cases())
    @settings(max_examples=200, deadline=None)
    def test_equals_the_oracle(self, case: tuple[Any, ...]) -> None:
        assert_same(ops.preactivation(*on_gpu(case)).cpu(), reference.preactivation(*case))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last", "strided"])
    @pytest.mark.parametrize("channels", [(64, 32, 32), (5, 1, 3)])
    def test_wide_maps(
        self, dtype: torch.dtype, memory_format: str, channels: tuple[int, ...]
    ) -> None:
        maps = [layout(noise([3, c, 40, 48], dtype, c), memory_format) for c in channels]
        case = (maps, *affine(sum(channels), dtype, 1))
        assert_same(ops.preactivation(*on_gpu(case)).cpu(), reference.preactivation(*case))

    def test_product_and_sum_are_rounded_each(self) -> None:
        x = torch.full((1, 64, 1, 2), 1 + 2.0**-12, device="cuda")
        scale = torch.full((64,), 1 + 2.0**-12, device="cuda")
        rounded = x[0, 0, 0, 0] * scale[0]
        assert (ops.preactivation([x], scale, -rounded.expand(64)) == 0).all()

    def test_in_a_graph_on_its_own_stream(self) -> None:
        maps = [layout(noise([2, c, 9, 8], torch.float32, c), "channels_last") for c in (8, 4)]
        case = (maps, *affine(12, torch.float32, 1))
        args = on_gpu(case)
        out = ops.preactivation(*args)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
            ops.preactivation(*args, out=out)
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_same(out.cpu(), reference.preactivation(*case))

    @pytest.mark.slow
    def test_more_than_2_31_elements(self) -> None:
        maps = [noise([1, c, 256, 512], torch.float16, c) for c in (24, 8)]
        scale, shift = affine(32, torch.float16, 0)
        expected = reference.preactivation(maps, scale, shift).cuda()[0]
        batch = 2**31 // expected.numel() + 2
        many = [x.cuda().expand(batch, -1, -1, -1) for x in maps]
        out = ops.preactivation(many, scale.cuda(), shift.cuda())
        assert out.numel() > 2**31
        assert all(torch.equal(image, expected) for image in out)


class TestOcclude:
    @given(case=occlude_cases())
    @settings(max_examples=200, deadline=None)
    def test_equals_the_oracle(self, case: tuple[Any, ...]) -> None:
        assert_same(ops.occlude(*on_gpu(case)).cpu(), reference.occlude(*case))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_wide_images(self, dtype: torch.dtype, memory_format: str) -> None:
        image = layout(noise([2, 3, 48, 64], dtype, 1), memory_format)
        boxes = torch.tensor([[0, 0, 8, 8], [3, 5, 40, 49], [-2, 60, 5, 90]])
        case = (image, boxes, torch.zeros((), dtype=dtype))
        assert_same(ops.occlude(*on_gpu(case)).cpu(), reference.occlude(*case))

    def test_gradcheck(self) -> None:
        image = noise([2, 2, 4, 3], torch.float64, 0).cuda().requires_grad_()
        boxes = torch.tensor([[0, 0, 2, 2], [1, 1, 9, 9]]).cuda()
        baseline = torch.ones((), dtype=torch.float64, device="cuda")
        assert torch.autograd.gradcheck(lambda x: ops.occlude(x, boxes, baseline), (image,))


THREE = ([3, 3], [2, 2], [1, 1], [1, 1])


class TestMaxPool:
    @given(case=max_pool_cases())
    @settings(max_examples=200, deadline=None)
    def test_equals_the_oracle(self, case: tuple[Any, ...]) -> None:
        (y, switches), (expected, offsets) = ops.max_pool(*on_gpu(case)), reference.max_pool(*case)
        assert_bits(y.cpu(), expected)
        assert_same(switches.cpu(), offsets)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_large_maps(self, dtype: torch.dtype, memory_format: str) -> None:
        x = layout(signs([3, 64, 57, 40], dtype, 1), memory_format)
        for got, expected in zip(
            ops.max_pool(*on_gpu((x, *THREE))), ops.max_pool(x, *THREE), strict=True
        ):
            assert_bits(got.cpu(), expected)

    def test_gradcheck(self) -> None:
        x = noise([2, 2, 7, 6], torch.float64, 0).cuda().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: ops.max_pool(x, *THREE)[0], (x,))
        assert torch.autograd.gradgradcheck(lambda x: ops.max_pool(x, *THREE)[0] ** 2, (x,))

    def test_in_a_graph_on_its_own_stream(self) -> None:
        x = noise([2, 16, 24, 40], torch.float32, 1)
        expected, offsets = ops.max_pool(x, *THREE)
        device = x.cuda()
        y, switches = ops.max_pool(device, *THREE)
        back = ops.max_unpool(y, switches, *THREE, [24, 40])
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
            ops.max_pool(device, *THREE, out=(y, switches))
            ops.max_unpool(y, switches, *THREE, [24, 40], out=back)
        for made in (y, switches, back):
            made.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_same(y.cpu(), expected)
        assert_same(switches.cpu(), offsets)
        assert_same(back.cpu(), ops.max_unpool(expected, offsets, *THREE, [24, 40]))

    @pytest.mark.slow
    def test_more_than_2_31_elements(self) -> None:
        x = torch.full((1, 33, 8192, 8192), -1, dtype=torch.float16, device="cuda")
        x[0, 0, 0, 1] = x[0, -1, -1, -2] = 2
        pool = ([2, 2], [2, 2], [0, 0], [1, 1])
        y, switches = ops.max_pool(x, *pool)
        assert y.sum(dtype=torch.float64) == 6 - y.numel()
        assert switches.sum() == 3
        del x
        back = ops.max_unpool(y, switches, *pool, [8192, 8192])
        assert back.sum(dtype=torch.float64) == 6 - y.numel()
        assert back[0, -1, -1, -2] == 2


class TestMaxUnpool:
    @pytest.mark.parametrize("windows", [False, True])
    @pytest.mark.parametrize("relu", [False, True])
    def test_equals_the_oracle(self, windows: bool, relu: bool) -> None:
        @given(case=max_unpool_cases(windows=windows))
        @settings(max_examples=150, deadline=None)
        def run(case: tuple[Any, ...]) -> None:
            *front, base_index, y_at, window_at = case
            args = (*front, relu, base_index, y_at, window_at)
            assert_same(ops.max_unpool(*on_gpu(args)).cpu(), reference.max_unpool(*args))

        run()

    @pytest.mark.parametrize("windows", [False, True])
    def test_gather_equals_the_oracle(self, windows: bool) -> None:
        @given(case=max_unpool_cases(windows=windows))
        @settings(max_examples=150, deadline=None)
        def run(case: tuple[Any, ...]) -> None:
            y, switches, *pool, size, mode, base_index, y_at, window_at = case
            x = noise([len(y), y.shape[1], *size], y.dtype, 5)
            args = (x, switches, *pool, list(y.shape[2:]), mode, base_index, y_at, window_at)
            assert_bits(ops.max_gather(*on_gpu(args)).cpu(), reference.max_gather(*args))

        run()

    @pytest.mark.parametrize("op", ["max_unpool", "max_gather"])
    @pytest.mark.parametrize("what", ["switches", "base_index"])
    def test_what_is_wrong_fails_an_assertion(self, op: str, what: str) -> None:
        """In a process of its own: a failed assertion is the end of its context."""
        code = f"""
import torch
from backsight import ops
x = torch.randn(2, 3, 8, 8, device="cuda")
pool = ([2, 2], [2, 2], [0, 0], [1, 1])
y, switches = ops.max_pool(x, *pool)
index = torch.tensor([0, 1], device="cuda")
if "{what}" == "switches":
    switches[1, 2, 3, 3] = 4
else:
    index[1] = 2
zeros = torch.zeros(2, 2, dtype=torch.int64, device="cuda")
source, size = (y, [8, 8]) if "{op}" == "max_unpool" else (x, [4, 4])
getattr(ops, "{op}")(source, switches, *pool, size, base_index=index, y_at=zeros, window_at=zeros)
torch.cuda.synchronize()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode != 0
        assert "device-side assert" in done.stderr
        assert "switches" in done.stdout + done.stderr


def test_opcheck() -> None:
    case = on_gpu(wide_case(torch.float32, "channels_last", 4))
    torch.library.opcheck(torch.ops.backsight.splice.default, case)
    image = noise([2, 3, 5, 6], torch.float32, 0).cuda().requires_grad_()
    y, switches = ops.max_pool(image.detach(), *THREE)
    backsight = torch.ops.backsight
    torch.library.opcheck(backsight.max_pool.default, (image, *THREE))
    torch.library.opcheck(backsight.max_unpool.default, (y, switches, *THREE, [5, 6]))
    torch.library.opcheck(backsight.max_gather.default, (image, switches, *THREE, [3, 3]))
    boxes = torch.tensor([[0, 0, 2, 2]]).cuda()
    torch.library.opcheck(
        torch.ops.backsight.occlude.default, (image, boxes, torch.zeros((), device="cuda"))
    )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
def test_on_the_second_gpu() -> None:
    case = wide_case(torch.float32, "channels_last", 8)
    got = ops.splice(*on_gpu(case, "cuda:1"))
    assert got.device == torch.device("cuda:1")
    assert_same(got.cpu(), reference.splice(*case))


def test_another_device_is_refused() -> None:
    case = wide_case(torch.float32, "channels_last", 8)
    with pytest.raises(ValueError, match="patch on the device of base, cpu, got cuda"):
        ops.splice(*case[:4], case[4].cuda(), *case[5:])
