"""splice: identities first, then the oracle, then what it refuses."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from op_cases import DTYPES, assert_same, layout, noise, splice_cases
from torch import Tensor

from backsight import ops
from backsight.ops import reference

NO_PATCH = [0, 0]


def whole(x: Tensor) -> dict[str, Any]:
    """Arguments that make splice return `x` (B, C, H, W) itself."""
    windows = len(x)
    zeros = torch.zeros(windows, x.dim() - 2, dtype=torch.int64)
    size = list(x.shape[2:])
    return {
        "base": x,
        "base_index": torch.arange(windows),
        "base_at": [0] * len(size),
        "extent": size,
        "patch": x[..., :0],
        "patch_at": zeros,
        "window_at": zeros,
        "size": size,
    }


@pytest.fixture(params=["contiguous", "channels_last"])
def x(request: pytest.FixtureRequest) -> Tensor:
    return layout(noise([2, 5, 6, 7], torch.float32, 0), request.param)


class TestIdentities:
    def test_whole_window_without_patch_is_the_map(self, x: Tensor) -> None:
        assert_same(ops.splice(**whole(x)), x)

    def test_patch_over_everything_is_the_patch(self, x: Tensor) -> None:
        patch = torch.randn_like(x)
        assert_same(ops.splice(**(whole(x) | {"patch": patch})), patch)

    def test_patch_of_the_maps_own_cells_changes_nothing(self, x: Tensor) -> None:
        args = {"patch": x[:, :, 2:4, 1:5], "patch_at": torch.tensor([[2, 1], [2, 1]])}
        assert_same(ops.splice(**(whole(x) | args)), x)

    def test_moving_every_coordinate_changes_nothing_inside(self, x: Tensor) -> None:
        far = 10**15
        args = {
            "patch": -x[:, :, :2, :2],
            "patch_at": torch.tensor([[1, 1], [2, 2]]),
            "window_at": torch.tensor([[0, 1], [1, 0]]),
            "size": [4, 4],
        }
        here = ops.splice(**(whole(x) | args))
        args["patch_at"] = args["patch_at"] + far
        args["window_at"] = args["window_at"] + far
        there = {"base_at": [far, far], "extent": [far + 6, far + 7]}
        assert_same(ops.splice(**(whole(x) | args | there)), here)

    def test_a_tile_gives_what_its_map_gives(self, x: Tensor) -> None:
        args = {"window_at": torch.tensor([[-1, 3], [2, 4]]), "size": [3, 4], "outside": 9.0}
        tile = {"base": x[:, :, :5, 3:], "base_at": [0, 3]}
        assert_same(ops.splice(**(whole(x) | args | tile)), ops.splice(**(whole(x) | args)))


class TestSources:
    def test_outside_beats_the_patch(self, x: Tensor) -> None:
        args = {
            "patch": torch.ones(2, 5, 3, 3),
            "patch_at": torch.tensor([[-1, -1], [4, 5]]),
            "window_at": torch.tensor([[-1, -1], [4, 5]]),
            "size": [3, 3],
            "outside": 7.0,
        }
        out = ops.splice(**(whole(x) | args))
        assert out[0, 0].tolist() == [[7, 7, 7], [7, 1, 1], [7, 1, 1]]
        assert out[1, 0].tolist() == [[1, 1, 7], [1, 1, 7], [7, 7, 7]]

    def test_what_the_tile_does_not_hold_is_nan(self, x: Tensor) -> None:
        out = ops.splice(**(whole(x) | {"base": x[:, :, 1:], "base_at": [1, 0]}))
        assert out[:, :, 0].isnan().all()
        assert_same(out[:, :, 1:].contiguous(), x[:, :, 1:].contiguous())

    @pytest.mark.parametrize("index", [-1, 2, 2**40])
    def test_an_index_of_no_map_is_nan(self, x: Tensor, index: int) -> None:
        out = ops.splice(**(whole(x) | {"base_index": torch.tensor([index, 1])}))
        assert out[0].isnan().all()
        assert_same(out[1].contiguous(), x[1].contiguous())

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("outside", [0.1, -math.inf, math.nan, 65504.0, 1e-8, 3e-41])
    def test_outside_is_rounded_as_torch_rounds(self, dtype: torch.dtype, outside: float) -> None:
        x = torch.zeros(1, 1, 2, dtype=dtype)
        out = ops.splice(**(whole(x) | {"extent": [0], "outside": outside}))
        assert_same(out, torch.full((1, 1, 2), outside, dtype=dtype))


class TestOracle:
    @given(case=splice_cases())
    @settings(max_examples=300, deadline=None)
    def test_equals_the_oracle(self, case: tuple[Any, ...]) -> None:
        assert_same(ops.splice(*case), reference.splice(*case))

    @given(case=splice_cases())
    @settings(max_examples=60, deadline=None)
    def test_out_of_any_layout(self, case: tuple[Any, ...]) -> None:
        expected = reference.splice(*case)
        for memory_format in ("contiguous", "channels_last", "strided"):
            out = layout(torch.full_like(expected, 5.0), memory_format)
            assert ops.splice(*case, out=out) is out
            torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize(
        ("memory_format", "threads"),
        [
            ("contiguous", 2),
            ("contiguous", 3),
            ("channels_last", 1),
            ("channels_last", 2),
            ("strided", 2),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_large_outputs(self, memory_format: str, threads: int, dtype: torch.dtype) -> None:
        """Enough for several threads and, at 36 MiB and more, for stores past the cache."""
        channels = 75 if dtype == torch.float64 else 299
        base = layout(noise([2, channels, 40, 41], dtype, 1), memory_format)
        windows = 101
        rng = torch.Generator().manual_seed(2)
        window_at = torch.randint(-5, 20, (windows, 2), generator=rng)
        patch_at = window_at + torch.randint(-2, 20, (windows, 2), generator=rng)
        patch = layout(noise([windows, channels, 5, 7], dtype, 3), memory_format)
        base_index = torch.randint(0, 2, (windows,), generator=rng)
        args = (base, base_index, [0, 0], [40, 41], patch, patch_at, window_at, [26, 25], 0.5)
        expected = reference.splice(*args)
        assert expected.nbytes > 36 << 20
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert_same(ops.splice(*args), expected)
            # An output that does not begin on a cache line.
            room = torch.zeros(expected.numel() + 3, dtype=dtype)
            out = room[3:].view(expected.shape)
            ops.splice(*args, out=out)
            assert torch.equal(out, expected)
            assert room[:3].tolist() == [0, 0, 0]
        finally:
            torch.set_num_threads(before)

    def test_from_several_threads_at_once(self, x: Tensor) -> None:
        x = x.repeat(1, 8, 10, 10)
        with ThreadPoolExecutor(4) as pool:
            for out in pool.map(lambda _: ops.splice(**whole(x)), range(16)):
                assert_same(out, x)

    @pytest.mark.slow
    def test_more_than_2_31_elements(self) -> None:
        base = noise([1, 32, 256, 512], torch.float16, 0)
        windows = 2**31 // base.numel() + 2
        zeros = torch.zeros(windows, 2, dtype=torch.int64)
        patch = -base[:, :, 100:101, 200:201].expand(windows, -1, -1, -1)
        at = torch.tensor([[100, 200]]).repeat(windows, 1)
        index = torch.zeros(windows, dtype=torch.int64)
        out = ops.splice(base, index, [0, 0], [256, 512], patch, at, zeros, [256, 512])
        assert out.numel() > 2**31
        base[:, :, 100, 200] *= -1
        for window in out:
            assert torch.equal(window, base[0])


class TestRegistration:
    def test_opcheck(self, x: Tensor) -> None:
        args = whole(x) | {"patch": x[:, :, :2, :3], "window_at": torch.tensor([[-1, 0], [2, 2]])}
        torch.library.opcheck(torch.ops.backsight.splice.default, tuple(args.values()))
        torch.library.opcheck(torch.ops.backsight.splice.default, (*args.values(), 2.0))

    def test_out_schema_and_fake(self, x: Tensor) -> None:
        torch.library.opcheck(
            torch.ops.backsight.splice.out,
            tuple(whole(x).values()),
            {"out": torch.empty_like(x)},
            test_utils=("test_schema", "test_faketensor"),
        )

    def test_compiles_into_one_graph(self, x: Tensor) -> None:
        def f(x: Tensor) -> Tensor:
            return ops.splice(**whole(x * 2)) + 1

        assert_same(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


class TestRefuses:
    @pytest.mark.parametrize("name", ["base", "patch"])
    def test_a_gradient(self, x: Tensor, name: str) -> None:
        args = whole(x)
        args[name] = args[name].clone().requires_grad_()
        with pytest.raises(RuntimeError, match="splice is inference-only"):
            ops.splice(**args)
        with torch.no_grad():
            assert_same(ops.splice(**args), x)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"base": torch.zeros(2, 5, 6, 7).int()}, TypeError, "base of dtype float64.*int32"),
            ({"base": torch.zeros(2, 5)}, ValueError, r"1 to 3 spatial axes, got \(2, 5\)"),
            ({"patch": torch.zeros(2, 5, 1, 1).double()}, TypeError, "float32, got torch.float64"),
            ({"patch": torch.zeros(2, 5, 1)}, ValueError, "patch with 2 spatial axes"),
            ({"patch": torch.zeros(2, 4, 1, 1)}, ValueError, "5 channels of base, got 4"),
            ({"base_index": torch.zeros(2).int()}, TypeError, "base_index of dtype int64"),
            ({"base_index": torch.zeros(3).long()}, ValueError, r"of shape \(2,\), got \(3,\)"),
            ({"patch_at": torch.zeros(2, 3).long()}, ValueError, r"patch_at of shape \(2, 2\)"),
            ({"window_at": torch.zeros(2).long()}, ValueError, r"window_at of shape \(2, 2\)"),
            ({"size": [3]}, ValueError, r"2 ints in size.*got \[3\]"),
            ({"size": [3, -1]}, ValueError, r"no negative ints, got \[3, -1\]"),
            ({"extent": [3, 1, 1]}, ValueError, "2 ints in extent"),
            ({"base_at": [3, 1, 1]}, ValueError, "2 ints in base_at"),
            ({"out": torch.zeros(2, 5, 6, 6)}, ValueError, r"out of shape \(2, 5, 6, 7\)"),
            ({"out": torch.zeros(2, 5, 6, 7).half()}, TypeError, "out of the dtype of base"),
            ({"patch": torch.zeros(2, 5, 1, 1, device="meta")}, ValueError, "cpu, got meta"),
        ],
    )
    def test_bad_arguments(
        self, x: Tensor, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            ops.splice(**(whole(x) | change))
