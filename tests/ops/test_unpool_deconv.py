"""unpool_deconv: what it is made of, the oracle, gradients, and what it refuses."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DTYPES, assert_same, integers, layout, noise, unpool_deconv_case, vectors_of
from torch import Tensor
from torch.nn import functional

from backsight import _C, ops
from backsight.ops import reference

PATHS = ["auto", "phase", "direct", "torch"]
TWO = ([2, 2], [2, 2], [0, 0], [1, 1])
THREE = ([3, 3], [2, 2], [1, 1], [1, 1])


def composed(case: tuple[Any, ...]) -> Tensor:
    """The two ops one after the other."""
    y, switches, *pool = case[:6]
    size, weight, bias, *geometry = case[6:14]
    x = ops.max_unpool(y, switches, *pool, size, *case[14:])
    return ops.subpixel_deconv(x, weight, bias, *geometry)


def exact(case: tuple[Any, ...]) -> Tensor:
    """The oracle's in float64, from the values as rounded to the case's dtype, the map too."""
    y, switches, *pool = case[:6]
    size, weight, bias, *geometry = case[6:14]
    x = reference.max_unpool(y, switches, *pool, size, *case[14:]).double()
    bias = None if bias is None else bias.double()
    return reference.subpixel_deconv(x, weight.double(), bias, *geometry)


def check_case(case: tuple[Any, ...], path: str) -> bool:
    """Whether the case says anything; fails where the result is wrong."""
    y, size, weight = case[0], case[6], case[7]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACKSIGHT_DECONV", path)
        got, two = ops.unpool_deconv(*case), composed(case)
    expected = exact(case)
    assert got.dtype == y.dtype
    assert got.shape == expected.shape
    assert got.stride() == two.stride()
    if got.numel() == 0:
        return False
    error, largest = (got.double() - expected).abs(), expected.abs()
    if y.dtype in (torch.float64, torch.float32):
        tolerance = 1e-12 if y.dtype == torch.float64 else 1e-5
        assert error.max() <= tolerance * max(1.0, float(largest.max())), (size, weight.shape)
    else:
        # No farther from it than the two ops, or rounded to the nearest as good as a dtype can.
        theirs = float((two.double() - expected).abs().max())
        half_ulp = torch.finfo(y.dtype).eps / 2 * 1.01 * float(largest.max()) + 1e-7
        assert error.max() <= max(theirs, half_ulp)
    return bool(largest.max() > 0)


def step_back(
    shape: list[int],
    weight: list[int],
    pool: tuple[list[int], ...] = TWO,
    dtype: torch.dtype = torch.float32,
    memory_format: str = "contiguous",
    **geometry: Any,
) -> dict[str, Any]:
    """One step of a deconvnet, over maps of `shape`."""
    x = layout(noise(shape, dtype, 0), memory_format)
    pooled, switches = ops.max_pool(x, *pool)
    return {
        "y": layout(noise(list(pooled.shape), dtype, 1), memory_format),
        "switches": switches,
        **dict(zip(("kernel", "stride", "padding", "dilation"), pool, strict=True)),
        "size": shape[2:],
        "weight": noise(weight, dtype, 2),
        **geometry,
    }


class TestWhatItIs:
    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_the_three_calls_of_torch(
        self, dtype: torch.dtype, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", path)
        x = noise([2, 5, 8, 10], dtype, 0)
        pooled, indices = functional.max_pool2d(x, 2, return_indices=True)
        y, weight, bias = noise(list(pooled.shape), dtype, 1), noise([5, 3, 3, 3], dtype, 2), None
        back = functional.max_unpool2d(y, indices, 2).relu()
        expected = functional.conv_transpose2d(back, weight, bias, 1, 1)
        switches = ops.max_pool(x, *TWO)[1]
        got = ops.unpool_deconv(
            y, switches, *TWO, [8, 10], weight, bias, deconv_padding=[1, 1], relu=True
        )
        torch.testing.assert_close(got, expected)
        assert expected.abs().max() > 1

    def test_one_unit_is_its_filter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A value alone comes back as its filter, at its maximum's place, times the value."""
        monkeypatch.setenv("BACKSIGHT_DECONV", "direct")
        args = step_back([1, 4, 6, 6], [4, 2, 3, 3], dtype=torch.float64)
        y = torch.zeros_like(args["y"])
        y[0, 2, 1, 2] = 5
        offset = int(args["switches"][0, 2, 1, 2])
        row, column = 2 + offset // 2, 4 + offset % 2
        expected = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
        expected[0, :, row : row + 3, column : column + 3] = 5 * args["weight"][2]
        got = ops.unpool_deconv(**args | {"y": y})
        assert torch.equal(got, expected)
        back = ops.unpool_deconv(**args | {"y": -y}, relu=True)
        assert torch.equal(back, torch.zeros_like(back))

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_what_is_not_finite_goes_as_in_the_two_ops(
        self, value: float, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", path)
        args = step_back([1, 20, 8, 8], [20, 3, 3, 3], THREE)
        args["y"][0, 7, 1, 2] = value
        got = ops.unpool_deconv(**args, relu=True)
        case = tuple(args.values())
        two = composed((*case, None, [1, 1], [0, 0], [0, 0], 1, [1, 1], "add", True))
        assert got.shape == two.shape
        torch.testing.assert_close(got, two, equal_nan=True)
        assert 0 < int(got.isfinite().logical_not().sum()) <= 27

    def test_a_zero_meets_no_weight(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", "direct")
        args = step_back([1, 3, 4, 4], [3, 2, 2, 2])
        args["y"][:, 1] = 0
        expected = ops.unpool_deconv(**args)
        args["weight"][1] = torch.nan
        assert torch.equal(ops.unpool_deconv(**args), expected)
        assert expected.isfinite().all()


class TestOracle:
    @given(rng=st.randoms(use_true_random=False), path=st.sampled_from(PATHS))
    @settings(max_examples=400, deadline=None)
    def test_equals_the_oracle(self, rng: random.Random, path: str) -> None:
        check_case(unpool_deconv_case(rng), path)

    def test_cases_say_something(self) -> None:
        said = sum(check_case(unpool_deconv_case(random.Random(s)), "direct") for s in range(100))
        assert said > 50  # of the others most are empty batches, or windows beside the map

    @given(rng=st.randoms(use_true_random=False))
    @settings(max_examples=60, deadline=None)
    def test_out_of_any_layout(self, rng: random.Random) -> None:
        case = unpool_deconv_case(rng)
        expected = ops.unpool_deconv(*case)
        for memory_format in ("contiguous", "channels_last", "strided"):
            out = layout(torch.full_like(expected, 5.0), memory_format)
            assert ops.unpool_deconv(*case, out=out) is out
            torch.testing.assert_close(out, expected)


# Shape, weight, pool, geometry: several blocks of channels, with holes in the last; lines of
# several tiles and tiles of several lines; bands of few rows; channels that fill vectors or do not.
WIDE: list[tuple[list[int], list[int], tuple[list[int], ...], dict[str, Any]]] = [
    ([1, 64, 20, 30], [64, 64, 3, 3], TWO, {"deconv_padding": [1, 1]}),
    ([3, 37, 9, 14], [37, 100, 3, 3], THREE, {"deconv_padding": [1, 1]}),
    ([1, 40, 13, 15], [40, 3, 11, 11], THREE, {"deconv_stride": [4, 4], "deconv_padding": [2, 2]}),
    ([2, 16, 6, 9], [16, 70, 2, 40], TWO, {"deconv_stride": [1, 3]}),
    ([1, 24, 40], [24, 5, 9], ([2], [2], [0], [1]), {"deconv_stride": [2]}),
    ([1, 48, 10, 10], [48, 33, 3, 3], TWO, {"groups": 3, "deconv_dilation": [2, 1]}),
    ([2, 8, 4, 6, 8], [8, 20, 2, 3, 3], ([2] * 3, [2] * 3, [0] * 3, [1] * 3), {}),
    ([1, 8, 600, 150], [8, 30, 3, 3], TWO, {"deconv_padding": [1, 1]}),
]


class TestSameBits:
    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layer", WIDE, ids=lambda layer: "x".join(map(str, layer[1])))
    def test_whatever_vectors_and_threads(
        self,
        layer: Any,
        dtype: torch.dtype,
        memory_format: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", "direct")
        shape, weight, pool, geometry = layer
        args = step_back(shape, weight, pool, dtype, memory_format, **geometry)
        groups = geometry.get("groups", 1)
        args["bias"] = noise([weight[1] * groups], dtype, 3)
        args["weight"] = args["weight"] / math.sqrt(weight[0])
        expected = ops.unpool_deconv(**args, relu=True)
        monkeypatch.setenv("BACKSIGHT_DECONV", "torch")
        eps = torch.finfo(dtype).eps
        two = ops.unpool_deconv(**args, relu=True)
        torch.testing.assert_close(expected, two, rtol=4 * eps, atol=60 * eps)
        assert expected.abs().max() > 1
        monkeypatch.setenv("BACKSIGHT_DECONV", "direct")
        threads = torch.get_num_threads()
        for most, count in ((16, 1), (32, 3), (64, 1), (64, 4)):
            torch.set_num_threads(count)
            try:
                with vectors_of(most):
                    assert_same(ops.unpool_deconv(**args, relu=True), expected)
            finally:
                torch.set_num_threads(threads)

    def test_weights_of_any_layout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", "direct")
        args = step_back([2, 20, 8, 8], [20, 18, 3, 2])
        expected = ops.unpool_deconv(**args)
        for memory_format in ("channels_last", "strided"):
            weight = layout(args["weight"], memory_format)
            assert torch.equal(ops.unpool_deconv(**args | {"weight": weight}), expected)


GRADIENTS: list[dict[str, Any]] = [
    step_back([2, 2, 7], [2, 1, 3], ([3], [2], [1], [1]), torch.float64, deconv_stride=[2]),
    step_back([1, 2, 4, 5], [2, 2, 3, 2], THREE, torch.float64, deconv_padding=[1, 0]),
    step_back([1, 4, 4, 4], [4, 1, 2, 2], TWO, torch.float64, groups=2, deconv_dilation=[1, 2]),
]


class TestGradients:
    @staticmethod
    def arguments(case: dict[str, Any], **more: Any) -> tuple[list[Tensor], Any]:
        groups = case.get("groups", 1)
        bias = noise([case["weight"].shape[1] * groups], torch.float64, 5)
        tensors = [t.clone().requires_grad_() for t in (case["y"], case["weight"], bias)]

        def call(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            changed = {"y": y, "weight": weight, "bias": bias}
            return ops.unpool_deconv(**case | changed | more)

        return tensors, call

    @pytest.mark.parametrize("relu", [False, True])
    @pytest.mark.parametrize("mode", ["add", "set"])
    @pytest.mark.parametrize("case", GRADIENTS, ids=["1-D", "2-D", "groups"])
    def test_gradcheck(self, case: dict[str, Any], mode: str, relu: bool) -> None:
        tensors, call = self.arguments(case, mode=mode, relu=relu)
        assert torch.autograd.gradcheck(call, tensors)
        assert torch.autograd.gradgradcheck(call, tensors)

    def test_windows(self) -> None:
        case = GRADIENTS[1]
        y = noise([3, 2, 2, 3], torch.float64, 6)
        places = {
            "base_index": torch.tensor([0, 0, 0]),
            "y_at": torch.tensor([[0, 0], [-1, 1], [1, 0]]),
            "window_at": torch.tensor([[0, -1], [0, 0], [1, 1]]),
        }
        tensors, call = self.arguments(case | {"y": y, "size": [3, 5]}, relu=True, **places)
        assert torch.autograd.gradcheck(call, tensors)
        assert torch.autograd.gradgradcheck(call, tensors)

    @pytest.mark.parametrize("path", PATHS)
    def test_those_of_the_two_ops(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", path)
        tensors, call = self.arguments(GRADIENTS[1], relu=True)
        case = GRADIENTS[1]
        x = ops.max_unpool(tensors[0], case["switches"], *THREE, case["size"], relu=True)
        two = ops.subpixel_deconv(x, *tensors[1:], padding=[1, 0])
        signal = noise(list(two.shape), torch.float64, 7)
        expected = torch.autograd.grad(two, tensors, signal)
        ours = torch.autograd.grad(call(*tensors), tensors, signal)
        for a, e in zip(ours, expected, strict=True):
            assert torch.equal(a, e)
            assert a.abs().max() > 0

    def test_only_what_is_asked_for(self) -> None:
        case = GRADIENTS[1]
        weight = case["weight"].clone().requires_grad_()
        ops.unpool_deconv(**case | {"weight": weight}).sum().backward()
        assert weight.grad is not None
        assert case["y"].grad is None

    def test_empty_batch(self) -> None:
        args = step_back([0, 2, 4, 4], [2, 3, 2, 2])
        args["weight"].requires_grad_()
        ops.unpool_deconv(**args).sum().backward()
        assert torch.equal(args["weight"].grad, torch.zeros(2, 3, 2, 2))


@pytest.fixture
def args() -> dict[str, Any]:
    """Every argument, by position."""
    case = step_back([2, 4, 6, 6], [4, 3, 3, 2])
    case |= {"bias": noise([6], torch.float32, 3), "deconv_stride": [2, 1]}
    case |= {"deconv_padding": [1, 0], "output_padding": [1, 0], "groups": 2}
    case |= {"deconv_dilation": [1, 1], "mode": "add", "relu": True}
    return case | {"base_index": None, "y_at": None, "window_at": None}


@pytest.fixture
def windows(args: dict[str, Any]) -> dict[str, Any]:
    places = {"base_index": torch.tensor([1, 0, 1]), "y_at": integers([3, 2], -1, 2, 4)}
    return (
        args
        | places
        | {"y": noise([3, 4, 2, 2], torch.float32, 5), "size": [4, 5]}
        | {"window_at": integers([3, 2], -1, 3, 6)}
    )


class TestRegistration:
    def test_opcheck(self, args: dict[str, Any]) -> None:
        for name in ("y", "weight", "bias"):
            args[name].requires_grad_()
        torch.library.opcheck(torch.ops.backsight.unpool_deconv.default, (*args.values(),))

    def test_opcheck_of_windows(self, windows: dict[str, Any]) -> None:
        windows["y"].requires_grad_()
        torch.library.opcheck(torch.ops.backsight.unpool_deconv.default, (*windows.values(),))

    def test_out_schema_and_fake(self, args: dict[str, Any]) -> None:
        torch.library.opcheck(
            torch.ops.backsight.unpool_deconv.out,
            tuple(args.values()),
            {"out": ops.unpool_deconv(**args)},
            test_utils=("test_schema", "test_faketensor"),
        )

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_compiles_into_one_graph(self, args: dict[str, Any], memory_format: str) -> None:
        args["switches"] = layout(args["switches"], memory_format)
        y = layout(args.pop("y"), memory_format).requires_grad_()

        def f(y: Tensor) -> Tensor:
            return ops.unpool_deconv(y * 2, **args) + 1

        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(y), f(y), check_stride=True)
        (ours,) = torch.autograd.grad(compiled(y).square().sum(), y)
        (expected,) = torch.autograd.grad(f(y).square().sum(), y)
        torch.testing.assert_close(ours, expected)
        assert expected.abs().max() > 0

    def test_autocast_casts_as_subpixel_deconv_does(self, args: dict[str, Any]) -> None:
        expected = ops.unpool_deconv(**args)
        with torch.autocast("cpu", torch.bfloat16):
            got = ops.unpool_deconv(**args)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), expected, rtol=3e-2, atol=3e-2)

    def test_other_devices_have_the_oracle(self, args: dict[str, Any]) -> None:
        on_meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in args.items()}
        assert ops.unpool_deconv(**on_meta).shape == ops.unpool_deconv(**args).shape


class TestPath:
    @staticmethod
    def path(args: dict[str, Any]) -> str:
        names = ("y", "switches", "kernel", "size", "weight", "groups", "deconv_dilation", "relu")
        return ops.unpool_deconv_path(*(args[name] for name in names))

    def test_forced(self, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        for value, expected in (("direct", "fused"), ("phase", "composed"), ("torch", "composed")):
            monkeypatch.setenv("BACKSIGHT_DECONV", value)
            assert self.path(args) == expected

    def test_left_alone(self, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BACKSIGHT_DECONV", raising=False)
        args["weight"] = noise([4, 8, 3, 2], torch.float32, 8)
        assert self.path(args | {"groups": 1}) == "fused"
        assert self.path(args) == "composed"  # of groups
        assert self.path(args | {"groups": 1, "deconv_dilation": [1, 2]}) == "composed"
        assert self.path(args | {"groups": 1, "kernel": [1, 1]}) == "fused"
        every = {"groups": 1, "kernel": [1, 1], "relu": False}  # no cell is 0
        assert self.path(args | every) == "composed"
        assert self.path(args | {"groups": 1, "size": [2, 2]}) == "composed"  # few cells
        narrow = noise([4, 2, 3, 2], torch.float32, 8)
        assert self.path(args | {"groups": 1, "weight": narrow}) == "composed"
        narrow = layout(narrow, "channels_last")
        assert self.path(args | {"groups": 1, "weight": narrow}) == "fused"
        large = args["switches"].to(torch.int32)
        assert self.path(args | {"groups": 1, "switches": large}) == "composed"

    def test_a_wrong_one(self, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", "fast")
        sentence = "unpool_deconv: expected BACKSIGHT_DECONV to be auto.*got 'fast'"
        with pytest.raises(ValueError, match=sentence):
            ops.unpool_deconv(**args)


class TestRefuses:
    @pytest.mark.parametrize("path", PATHS)
    def test_wrong_switches(
        self, args: dict[str, Any], path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", path)
        args["switches"][1, 2, 0, 1] = 4
        with pytest.raises(ValueError, match=r"expected switches below 4.*got 4"):
            ops.unpool_deconv(**args)

    @pytest.mark.parametrize("path", PATHS)
    def test_a_map_that_is_none(
        self, windows: dict[str, Any], path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", path)
        windows["base_index"][1] = 2
        with pytest.raises(ValueError, match=r"expected base_index in \[0, 2\), got 2"):
            ops.unpool_deconv(**windows)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"y": torch.zeros(2, 4, 3, 3).int()}, TypeError, "y of dtype.*got torch.int32"),
            ({"y": torch.zeros(4, 5)}, ValueError, r"1 to 3 spatial axes, got \(4, 5\)"),
            ({"y": torch.zeros(2, 4, 3, 2)}, ValueError, "switches of the shape of y"),
            ({"switches": torch.zeros(2, 4, 3, 3)}, TypeError, "switches of dtype uint8, int16"),
            ({"kernel": [2]}, ValueError, r"2 ints in kernel.*got \[2\]"),
            ({"size": [6]}, ValueError, r"size of 2 non-negative ints.*got \[6\]"),
            ({"mode": "max"}, ValueError, "mode to be 'add' or 'set', got 'max'"),
            ({"base_index": torch.zeros(2).long()}, ValueError, "base_index, y_at and window_at"),
            ({"weight": torch.zeros(4, 3, 4)}, ValueError, r"2 spatial axes.*\(4, 3, 4\)"),
            ({"weight": torch.zeros(4, 3, 3, 2).double()}, TypeError, "weight of the dtype of y"),
            ({"weight": torch.zeros(6, 3, 3, 2)}, ValueError, "y of 6 channels.*got 4"),
            ({"bias": torch.zeros(4)}, ValueError, r"bias of shape \(6,\).*got \(4,\)"),
            ({"deconv_stride": [2]}, ValueError, r"2 ints of at least 1 in deconv_stride"),
            ({"deconv_padding": [-1, 0]}, ValueError, "at least 0 in deconv_padding"),
            ({"output_padding": [2, 0]}, ValueError, "output_padding below stride or dilation"),
            ({"deconv_dilation": [1, 0]}, ValueError, "at least 1 in deconv_dilation"),
            ({"groups": 3}, ValueError, "groups to divide the 4 input channels.*got 3"),
            ({"deconv_padding": [7, 0]}, ValueError, "deconv_padding that leaves a pixel"),
            ({"out": torch.zeros(2, 6, 9, 5)}, ValueError, r"out of shape \(2, 6, 12, 7\)"),
            ({"out": torch.zeros(2, 6, 12, 7).half()}, TypeError, "out of the dtype of y"),
        ],
    )
    def test_bad_arguments(
        self, args: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=f"unpool_deconv: expected.*{message}"):
            ops.unpool_deconv(**(args | change))

    def test_an_empty_map(self, windows: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"size with a pixel or more.*got \[0, 5\]"):
            ops.unpool_deconv(**windows | {"size": [0, 5]})

    def test_a_gradient_with_out(self, args: dict[str, Any]) -> None:
        out = ops.unpool_deconv(**args)
        args["weight"].requires_grad_()
        with pytest.raises(RuntimeError, match="unpool_deconv with out= is inference-only"):
            ops.unpool_deconv(**args, out=out)


@pytest.mark.skipif(not _C.cuda_archs, reason="the CUDA kernels are not built")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
class TestOnGpu:
    @given(rng=st.randoms(use_true_random=False))
    @settings(max_examples=200, deadline=None)
    def test_equals_the_oracle(self, rng: random.Random) -> None:
        case = unpool_deconv_case(rng)
        moved = [v.cuda() if isinstance(v, Tensor) else v for v in case]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BACKSIGHT_DECONV", rng.choice(PATHS))
            got = ops.unpool_deconv(*moved).cpu().double()
        expected = exact(case)
        assert got.shape == expected.shape
        if got.numel() > 0:
            eps = max(torch.finfo(case[0].dtype).eps, 1e-13)
            assert (got - expected).abs().max() <= 100 * eps * max(1.0, expected.abs().max().item())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_kernels_agree(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both add up in the same order, with the same roundings."""
        monkeypatch.setenv("BACKSIGHT_DECONV", "direct")
        case = step_back([2, 8, 17, 20], [8, 3, 7, 7], THREE, dtype, deconv_stride=[2, 3])
        on_cpu = ops.unpool_deconv(**case)
        moved = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in case.items()}
        assert torch.equal(ops.unpool_deconv(**moved).cpu(), on_cpu)
        assert on_cpu.abs().max() > 0
