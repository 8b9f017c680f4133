"""The CUDA kernels of the copying ops against the oracles on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from op_cases import DTYPES, assert_same, layout, noise, occlude_cases, splice_cases
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


def test_opcheck() -> None:
    case = on_gpu(wide_case(torch.float32, "channels_last", 4))
    torch.library.opcheck(torch.ops.backsight.splice.default, case)
    image = noise([2, 3, 5, 6], torch.float32, 0).cuda().requires_grad_()
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
