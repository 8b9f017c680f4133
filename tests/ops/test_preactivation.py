"""preactivation: identities first, then the oracle, then what it refuses."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from op_cases import DTYPES, affine, assert_same, layout, noise, preactivation_cases
from torch import Tensor

from backsight import ops
from backsight.ops import reference

INFINITY, NAN = math.inf, math.nan


def three_maps(dtype: torch.dtype, memory_format: str, seed: int = 0) -> list[Tensor]:
    shapes = ([2, 32, 5, 7], [2, 3, 5, 7], [2, 64, 5, 7])
    return [layout(noise(s, dtype, seed + i), memory_format) for i, s in enumerate(shapes)]


@pytest.fixture(params=["contiguous", "channels_last"])
def maps(request: pytest.FixtureRequest) -> list[Tensor]:
    return three_maps(torch.float32, request.param)


@pytest.fixture
def args(maps: list[Tensor]) -> dict[str, Any]:
    scale, shift = affine(99, torch.float32, 5)
    return {"maps": maps, "scale": scale, "shift": shift}


class TestIdentities:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_one_map_as_it_is_is_relu(self, dtype: torch.dtype, memory_format: str) -> None:
        x = layout(noise([2, 35, 6, 7], dtype, 0), memory_format)
        scale, shift = affine(35, dtype, 0)
        assert_same(ops.preactivation([x], scale * 0 + 1, shift * 0), torch.relu(x))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_is_cat_mul_add_relu(self, dtype: torch.dtype, memory_format: str) -> None:
        maps, (scale, shift) = three_maps(dtype, memory_format), affine(99, dtype, 5)
        each = (-1, 1, 1)
        expected = torch.cat(maps, 1).mul(scale.view(each)).add(shift.view(each)).relu()
        assert_same(ops.preactivation(maps, scale, shift), expected)

    def test_product_and_sum_are_rounded_each(self) -> None:
        """Contracted, the product's last bits would be what is left."""
        x = torch.full((1, 64, 1, 2), 1 + 2.0**-12)
        scale = torch.full((64,), 1 + 2.0**-12)
        rounded = x[0, 0, 0, 0] * scale[0]
        assert (ops.preactivation([x], scale, -rounded.expand(64)) == 0).all()

    def test_joined_and_apart_are_the_same(self, args: dict[str, Any]) -> None:
        whole = ops.preactivation([torch.cat(args["maps"], 1)], args["scale"], args["shift"])
        assert_same(ops.preactivation(**args), whole)

    def test_each_cell_is_its_own(self, args: dict[str, Any]) -> None:
        """A window of the maps gives the window of the result, bit for bit."""
        part = [x[1:, :, 2:4, 1:6] for x in args["maps"]]
        assert_same(
            ops.preactivation(part, args["scale"], args["shift"]).contiguous(),
            ops.preactivation(**args)[1:, :, 2:4, 1:6].contiguous(),
        )

    def test_maps_of_no_channels_count_for_nothing(self, args: dict[str, Any]) -> None:
        first, *others = args["maps"]
        more = [first, first[:, :0], *others, first[:, :0]]
        assert_same(ops.preactivation(**(args | {"maps": more})), ops.preactivation(**args))


class TestOracle:
    @given(case=preactivation_cases())
    @settings(max_examples=300, deadline=None)
    def test_equals_the_oracle(self, case: tuple[Any, ...]) -> None:
        assert_same(ops.preactivation(*case), reference.preactivation(*case))

    @given(case=preactivation_cases())
    @settings(max_examples=60, deadline=None)
    def test_out_of_any_layout(self, case: tuple[Any, ...]) -> None:
        expected = reference.preactivation(*case)
        for memory_format in ("contiguous", "channels_last", "strided"):
            out = layout(torch.full_like(expected, 5.0), memory_format)
            assert ops.preactivation(*case, out=out) is out
            torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_what_is_not_finite(self, dtype: torch.dtype, memory_format: str) -> None:
        values = torch.tensor([NAN, INFINITY, -INFINITY, 0.0, -0.0, 6e4, -6e4], dtype=dtype)
        x = layout(values.repeat(2, 40, 3, 1), memory_format)
        scale, shift = affine(40, dtype, 0)
        for channel, (a, b) in enumerate(
            [(0.0, 0.0), (INFINITY, 0.0), (1.0, INFINITY), (-1.0, -INFINITY), (NAN, 1.0), (1, NAN)]
        ):
            scale[channel], shift[channel] = a, b
        out = ops.preactivation([x, x[:, :0]], scale, shift)
        assert_same(out, reference.preactivation([x, x[:, :0]], scale, shift))
        plain = ops.preactivation([x], torch.ones_like(scale), torch.full_like(shift, -0.0))
        assert torch.equal(plain[..., 3:5].signbit(), x[..., 3:5].signbit())

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
    @pytest.mark.parametrize("channels", [(64, 32, 32), (61, 32, 5)])
    def test_large_outputs(
        self, memory_format: str, threads: int, channels: tuple[int, ...]
    ) -> None:
        """Enough for several threads and, at 36 MiB and more, for stores past the cache: of whole
        lines, and of channels that are none.
        """
        maps = [
            layout(noise([5, c, 140, 141], torch.float32, i), memory_format)
            for i, c in enumerate(channels)
        ]
        scale, shift = affine(sum(channels), torch.float32, 7)
        expected = reference.preactivation(maps, scale, shift)
        assert expected.nbytes > 36 << 20
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert_same(ops.preactivation(maps, scale, shift), expected)
            # An output that does not begin on a cache line.
            room = torch.zeros(expected.numel() + 3)
            out = room[3:].as_strided(expected.shape, expected.stride())
            ops.preactivation(maps, scale, shift, out=out)
            assert torch.equal(out, expected)
            assert room[:3].tolist() == [0, 0, 0]
        finally:
            torch.set_num_threads(before)

    def test_from_several_threads_at_once(self, args: dict[str, Any]) -> None:
        args["maps"] = [x.repeat(1, 1, 10, 10) for x in args["maps"]]
        expected = reference.preactivation(**args)
        with ThreadPoolExecutor(4) as pool:
            for out in pool.map(lambda _: ops.preactivation(**args), range(16)):
                assert_same(out, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_more_than_2_31_elements(self, memory_format: str) -> None:
        pair = [layout(noise([1, c, 256, 512], torch.float16, c), memory_format) for c in (24, 8)]
        batch = 2**31 // (32 * 256 * 512) + 2
        scale, shift = affine(32, torch.float16, 0)
        out = ops.preactivation([x.expand(batch, -1, -1, -1) for x in pair], scale, shift)
        assert out.numel() > 2**31
        expected = reference.preactivation(pair, scale, shift)[0]
        assert all(torch.equal(image, expected) for image in out)


class TestRegistration:
    def test_opcheck(self, args: dict[str, Any]) -> None:
        torch.library.opcheck(torch.ops.backsight.preactivation.default, tuple(args.values()))

    def test_out_schema_and_fake(self, args: dict[str, Any]) -> None:
        torch.library.opcheck(
            torch.ops.backsight.preactivation.out,
            tuple(args.values()),
            {"out": ops.preactivation(**args)},
            test_utils=("test_schema", "test_faketensor"),
        )

    def test_compiles_into_one_graph(self, args: dict[str, Any]) -> None:
        def f(*maps: Tensor) -> Tensor:
            return ops.preactivation([x * 2 for x in maps], args["scale"], args["shift"]) + 1

        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        assert_same(compiled(*args["maps"]), f(*args["maps"]))


class TestRefuses:
    @pytest.mark.parametrize("name", ["maps", "scale", "shift"])
    def test_a_gradient(self, args: dict[str, Any], name: str) -> None:
        expected = ops.preactivation(**args)
        if name == "maps":
            args["maps"][1].requires_grad_()
        else:
            args[name].requires_grad_()
        with pytest.raises(RuntimeError, match="preactivation is inference-only"):
            ops.preactivation(**args)
        with torch.no_grad():
            assert_same(ops.preactivation(**args), expected)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"maps": []}, ValueError, "one map or more, got none"),
            ({"maps": [torch.zeros(2, 99, 5, 7).int()]}, TypeError, r"maps\[0\] of dtype.*int32"),
            ({"maps": [torch.zeros(2, 99)]}, ValueError, r"1 to 3 spatial axes, got \(2, 99\)"),
            ({"scale": torch.zeros(98)}, ValueError, r"scale of shape \(99,\).*got \(98,\)"),
            ({"shift": torch.zeros(99, 1)}, ValueError, r"shift of shape \(99,\).*\(99, 1\)"),
            (
                {"scale": torch.zeros(99).double()},
                TypeError,
                "scale of dtype torch.float32.*float64",
            ),
            ({"shift": torch.zeros(99).half()}, TypeError, "shift of dtype torch.float32.*float16"),
            ({"scale": torch.zeros(99, device="meta")}, ValueError, "scale on.*cpu, got meta"),
            ({"out": torch.zeros(2, 99, 5, 6)}, ValueError, r"out of shape \(2, 99, 5, 7\)"),
            ({"out": torch.zeros(2, 99, 5, 7).half()}, TypeError, r"out of the dtype of maps\[0\]"),
        ],
    )
    def test_bad_arguments(
        self, args: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            ops.preactivation(**(args | change))

    @pytest.mark.parametrize(
        ("last", "error", "message"),
        [
            (torch.zeros(2, 64, 5, 6), ValueError, r"maps\[2\] of the batch and the spatial sizes"),
            (torch.zeros(1, 64, 5, 7), ValueError, r"maps\[0\], \(2, 32, 5, 7\), got \(1, 64"),
            (torch.zeros(2, 64, 5), ValueError, r"got \(2, 64, 5\)"),
            (torch.zeros(()), ValueError, r"got \(\)"),
            (torch.zeros(2, 64, 5, 7).double(), TypeError, r"maps\[2\] of the dtype of maps\[0\]"),
            (torch.zeros(2, 64, 5, 7, device="meta"), ValueError, "cpu, got meta"),
        ],
    )
    def test_maps_that_do_not_go_together(
        self, args: dict[str, Any], last: Tensor, error: type[Exception], message: str
    ) -> None:
        args["maps"][2] = last
        with pytest.raises(error, match=message):
            ops.preactivation(**args)
