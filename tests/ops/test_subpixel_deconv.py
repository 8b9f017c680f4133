"""subpixel_deconv: the lecture's numbers and identities first, then the oracles, then what it
refuses."""

from __future__ import annotations

import itertools
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DTYPES, assert_same, deconv_case, layout, noise, vectors_of
from torch import Tensor

from backsight import _C, ops
from backsight.ops import reference
from backsight.ops._schemas import deconv_channels_last, empty_dense

CONV_TRANSPOSE = {
    1: torch.nn.functional.conv_transpose1d,
    2: torch.nn.functional.conv_transpose2d,
    3: torch.nn.functional.conv_transpose3d,
}
PATHS = ["auto", "phase", "direct", "torch"]


def by_torch(case: tuple[Any, ...]) -> Tensor:
    x, *rest, relu = case
    y = CONV_TRANSPOSE[x.dim() - 2](x, *rest)
    return y.relu() if relu else y


def matrix(
    weight: Tensor, size: list[int], out: list[int], stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """W of the convolution whose transpose the deconvolution is: (in, *size, out, *out), entry by
    entry. One group."""
    found = weight.new_zeros([weight.shape[0], *size, weight.shape[1], *out])
    for i in itertools.product(*map(range, size)):
        for k in itertools.product(*map(range, weight.shape[2:])):
            axes = zip(i, k, stride, padding, dilation, strict=True)
            o = tuple(a * s - p + b * d for a, b, s, p, d in axes)
            if all(0 <= b < n for b, n in zip(o, out, strict=True)):
                found[(slice(None), *i, slice(None), *o)] = weight[(..., *k)]
    return found


def by_matrix(case: tuple[Any, ...]) -> Tensor:
    """The product with the transposed matrix."""
    x, weight, bias, stride, padding, _, groups, dilation, relu = case
    y = by_torch(case).new_zeros(by_torch(case).shape)  # for its shape
    dims = x.dim() - 2
    ours, theirs = len(weight) // groups, weight.shape[1]
    for g in range(groups):
        into = slice(g * ours, (g + 1) * ours)
        w = matrix(weight[into], x.shape[2:], y.shape[2:], stride, padding, dilation)
        product = x[:, into].flatten(1) @ w.flatten(0, dims).flatten(1)
        y[:, g * theirs : (g + 1) * theirs] = product.view(len(x), theirs, *y.shape[2:])
    if bias is not None:
        y += bias.view(-1, *[1] * dims)
    return y.relu() if relu else y


def expected_of(case: tuple[Any, ...]) -> Tensor:
    """torch's in float64, from the values as rounded to the case's dtype."""
    return by_torch(tuple(v.double() if isinstance(v, Tensor) else v for v in case))


def check_case(case: tuple[Any, ...], path: str) -> bool:
    """Whether the case says anything; fails where the result is wrong."""
    x, weight = case[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACKSIGHT_DECONV", path)
        y = ops.subpixel_deconv(*case)
    expected = expected_of(case)
    assert y.dtype == x.dtype
    assert y.shape == expected.shape
    assert y.stride() == empty_dense(x, y.shape, deconv_channels_last(x, weight)).stride()
    if y.numel() == 0:
        return False
    error, largest = (y.double() - expected).abs(), expected.abs()
    if x.dtype in (torch.float64, torch.float32):
        tolerance = 1e-12 if x.dtype == torch.float64 else 1e-5
        assert error.max() <= tolerance * max(1.0, float(largest.max()))
    else:
        # No farther from it than torch's own, or rounded to the nearest as good as a dtype can.
        theirs = float((by_torch(case).double() - expected).abs().max())
        half_ulp = torch.finfo(x.dtype).eps / 2 * 1.01 * float(largest.max()) + 1e-7
        assert error.max() <= max(theirs, half_ulp)
    return bool(largest.max() > 0)


class TestLecture:
    Y = torch.tensor([[[1.0, 2, 3, 4, 5]]], dtype=torch.float64)
    W = torch.tensor([[[1.0, 2, 3, 4]]], dtype=torch.float64)
    WHOLE = (1, 2, 5, 8, 9, 14, 13, 20, 17, 26, 15, 20)

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_stride_2(self, dtype: torch.dtype, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", path)
        y, w = self.Y.to(dtype), self.W.to(dtype)
        assert ops.subpixel_deconv(y, w, stride=[2]).flatten().tolist() == [*self.WHOLE]
        cropped = ops.subpixel_deconv(y, w, stride=[2], padding=[2])
        assert cropped.flatten().tolist() == [*self.WHOLE[2:-2]]

    def test_the_matrix(self) -> None:
        w = matrix(self.W, [5], [12], [2], [0], [1]).view(5, 12)
        assert w[1].tolist() == [0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0]
        assert (self.Y.view(1, 5) @ w).flatten().tolist() == [*self.WHOLE]

    def test_orthogonal_rows_give_a_reconstruction_and_no_inverse(self) -> None:
        weight = torch.tensor([[[1.0, 0, 0, -1]]], dtype=torch.float64)
        w = matrix(weight, [5], [12], [2], [0], [1]).view(5, 12)
        assert torch.equal(w @ w.t(), 2 * torch.eye(5, dtype=torch.float64))
        assert not torch.equal(w.t() @ w, 2 * torch.eye(12, dtype=torch.float64))
        y = noise([1, 1, 5], torch.float64, 0)
        x = ops.subpixel_deconv(y, weight, stride=[2])
        assert torch.equal(torch.conv1d(x, weight, stride=2), 2 * y)  # W Wᵀ y
        x = noise([1, 1, 12], torch.float64, 1)
        y = torch.conv1d(x, weight, stride=2)
        assert not torch.allclose(ops.subpixel_deconv(y, weight, stride=[2]), 2 * x)  # Wᵀ W x

    def test_four_phases(self) -> None:
        """4x4 to 6x6: each of the four 2x2 phases of the filter gives 3x3 outputs."""
        y, w = noise([1, 1, 4, 4], torch.float64, 0), noise([1, 1, 4, 4], torch.float64, 1)
        x = ops.subpixel_deconv(y, w, stride=[2, 2], padding=[2, 2])
        assert x.shape == (1, 1, 6, 6)
        for a, b in itertools.product(range(2), repeat=2):
            phase = torch.conv2d(y, w[:, :, a::2, b::2].flip(2, 3))
            torch.testing.assert_close(x[:, :, a::2, b::2], phase, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("r", [2, 3])
    @pytest.mark.parametrize("path", PATHS)
    def test_pixel_shuffle(self, r: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", path)
        x, w = noise([2, 3, 4, 5], torch.float64, 0), noise([3, 4, r, r], torch.float64, 1)
        pointwise = w.permute(1, 2, 3, 0).reshape(4 * r * r, 3, 1, 1)
        expected = torch.pixel_shuffle(torch.conv2d(x, pointwise), r)
        got = ops.subpixel_deconv(x, w, stride=[r, r])
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# Shape, weight, stride, padding, groups: several tiles, whole and cut vectors, every pattern of
# strides, channels that fill vectors and that do not.
WIDE = [
    ([1, 5, 9, 150], [5, 3, 4, 4], [2, 2], [1, 1], 1),
    ([2, 70, 7, 33], [70, 1, 7, 7], [2, 2], [3, 3], 1),
    ([1, 6, 5, 40], [6, 3, 5, 11], [4, 4], [2, 3], 2),
    ([1, 4, 6, 60], [4, 5, 3, 5], [3, 3], [1, 2], 1),
    ([1, 3, 4, 9], [3, 1, 40, 40], [20, 20], [3, 7], 3),
    ([1, 9, 1500], [9, 2, 16], [8], [4], 1),
    ([2, 37, 6, 11], [37, 1, 4, 4], [2, 2], [1, 1], 37),
    ([1, 64, 5, 21], [64, 1, 3, 3], [1, 1], [1, 1], 64),
    ([1, 19, 3, 4, 9], [19, 1, 2, 3, 4], [1, 2, 2], [0, 1, 1], 19),
]


class TestValues:
    @given(rng=st.randoms(use_true_random=False))
    @settings(max_examples=2000, deadline=None)
    def test_equals_torch(self, rng: random.Random) -> None:
        case = deconv_case(rng)
        check_case(case, rng.choice(PATHS))

    @given(rng=st.randoms(use_true_random=False))
    @settings(max_examples=150, deadline=None)
    def test_equals_the_oracles(self, rng: random.Random) -> None:
        case = deconv_case(rng, torch.float64)
        y = ops.subpixel_deconv(*case)
        spread = reference.subpixel_deconv(*case)
        torch.testing.assert_close(y, spread, rtol=0, atol=1e-11, check_stride=True)
        torch.testing.assert_close(y, by_matrix(case), rtol=0, atol=1e-11)

    @pytest.mark.slow
    @pytest.mark.parametrize("first", range(0, 50_000, 5_000))
    def test_many_configurations(self, first: int) -> None:
        """What comes out goes to bench/RESULTS.md with the next benchmark."""
        said = 0
        for seed in range(first, first + 5_000):
            rng = random.Random(seed)
            case = deconv_case(rng)
            try:
                said += check_case(case, rng.choice(PATHS))
            except Exception as error:
                raise AssertionError(f"the configuration of seed {seed} fails") from error
        assert said > 0.6 * 5_000  # the others are empty batches
        folder = Path(__file__).resolve().parents[2] / "bench/results/deconv_configurations"
        folder.mkdir(parents=True, exist_ok=True)
        record = {"first": first, "configurations": 5_000, "not empty": said}
        record |= {"torch": torch.__version__}
        (folder / f"{first:05d}.json").write_text(json.dumps(record) + "\n")

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_nan_and_relu(
        self, dtype: torch.dtype, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", path)
        x, w = noise([1, 2, 5, 5], dtype, 0), noise([2, 3, 2, 2], dtype, 1)
        x[0, 0, 2, 3] = torch.nan
        y = ops.subpixel_deconv(x, w, stride=[2, 2], relu=True)
        assert y.isnan().nonzero().tolist() == [
            [0, c, i, j] for c in range(3) for i in (4, 5) for j in (6, 7)
        ]
        assert (y.nan_to_num() >= 0).all()
        assert (y == 0).any()

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layer", WIDE)
    def test_every_instruction_set_and_any_threads_give_the_same_bits(
        self,
        layer: Any,
        dtype: torch.dtype,
        memory_format: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", "direct")
        shape, kernel, stride, padding, groups = layer
        x = layout(noise(shape, dtype, 0), memory_format)
        w, b = noise(kernel, dtype, 1), noise([kernel[1] * groups], dtype, 2)
        dims = len(stride)
        args = stride, padding, [0] * dims, groups, [1] * dims, True
        case = x, w, b, *args
        assert ops.deconv_path(*case[:-1]) == "direct"
        assert check_case(case, "direct")
        expected = ops.subpixel_deconv(*case)
        threads = torch.get_num_threads()
        for most, count in ((16, 1), (32, 3), (64, 1), (64, 4)):
            torch.set_num_threads(count)
            try:
                with vectors_of(most):
                    assert_same(ops.subpixel_deconv(*case), expected)
            finally:
                torch.set_num_threads(threads)

    def test_threads_agree(self) -> None:
        case = deconv_case(random.Random(3), torch.float32)
        expected = ops.subpixel_deconv(*case)
        with ThreadPoolExecutor(4) as pool:
            for y in pool.map(lambda _: ops.subpixel_deconv(*case), range(16)):
                assert torch.equal(y, expected)

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last", "strided"])
    def test_out(self, memory_format: str) -> None:
        x, w = noise([2, 3, 4, 5], torch.float32, 0), noise([3, 4, 3, 3], torch.float32, 1)
        expected = ops.subpixel_deconv(x, w, stride=[2, 2])
        out = layout(torch.zeros_like(expected), memory_format)
        assert ops.subpixel_deconv(x, w, stride=[2, 2], out=out) is out
        torch.testing.assert_close(out, expected)
        assert expected.abs().max() > 0


GRADIENTS = [
    ([2, 2, 3], [2, 1, 3], [2], [1], [1], 2, [1]),
    ([1, 2, 2, 3], [2, 2, 3, 2], [2, 1], [1, 0], [1, 0], 1, [1, 2]),
    ([1, 2, 2, 1, 2], [2, 1, 2, 3, 1], [1, 3, 2], [0, 1, 0], [0, 2, 1], 1, [1, 1, 1]),
    ([1, 2, 2, 3], [2, 1, 2, 2], [1, 1], [0, 0], [1, 1], 1, [2, 2]),
]


class TestGradients:
    @staticmethod
    def arguments(case: Any, relu: bool) -> tuple[list[Tensor], Any]:
        shape, kernel, stride, padding, extra, groups, dilation = case
        tensors = [noise(shape, torch.float64, 0), noise(kernel, torch.float64, 1)]
        tensors.append(noise([kernel[1] * groups], torch.float64, 2))

        def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            args = stride, padding, extra, groups, dilation
            return ops.subpixel_deconv(x, weight, bias, *args, relu)

        return [t.requires_grad_() for t in tensors], call

    @pytest.mark.parametrize("relu", [False, True])
    @pytest.mark.parametrize("case", GRADIENTS)
    def test_gradcheck(self, case: Any, relu: bool) -> None:
        tensors, call = self.arguments(case, relu)
        assert torch.autograd.gradcheck(call, tensors)
        assert torch.autograd.gradgradcheck(call, tensors)

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_gradients_are_torchs(
        self, dtype: torch.dtype, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", path)
        x = noise([2, 4, 5, 6], dtype, 0).requires_grad_()
        w = noise([4, 3, 4, 4], dtype, 1).requires_grad_()
        b = noise([3], dtype, 2).requires_grad_()
        geometry = [2, 2], [1, 1], [0, 0], 1, [1, 1]
        signal = noise([2, 3, 10, 12], dtype, 3)
        theirs = torch.autograd.grad(by_torch((x, w, b, *geometry, False)), (x, w, b), signal)
        ours = torch.autograd.grad(ops.subpixel_deconv(x, w, b, *geometry), (x, w, b), signal)
        for a, e in zip(ours, theirs, strict=True):
            assert torch.equal(a, e)
            assert a.abs().max() > 0

    def test_only_what_is_asked_for(self) -> None:
        x, w = noise([2, 3, 4], torch.float64, 0), noise([3, 4, 3], torch.float64, 1)
        w.requires_grad_()
        ops.subpixel_deconv(x, w, stride=[2]).sum().backward()
        assert w.grad is not None
        assert x.grad is None

    def test_empty_batch(self) -> None:
        x, w = noise([0, 3, 4], torch.float64, 0), noise([3, 4, 3], torch.float64, 1)
        ops.subpixel_deconv(x, w.requires_grad_(), stride=[2]).sum().backward()
        assert torch.equal(w.grad, torch.zeros_like(w))


@pytest.fixture
def args() -> dict[str, Any]:
    return {
        "x": noise([2, 4, 5, 6], torch.float32, 0),
        "weight": noise([4, 3, 4, 3], torch.float32, 1),
        "bias": noise([6], torch.float32, 2),
        "stride": [2, 3],
        "padding": [1, 0],
        "output_padding": [0, 1],
        "groups": 2,
        "dilation": [1, 2],
    }


class TestRegistration:
    @pytest.mark.parametrize("relu", [False, True])
    def test_opcheck(self, args: dict[str, Any], relu: bool) -> None:
        for name in ("x", "weight", "bias"):
            args[name].requires_grad_()
        torch.library.opcheck(torch.ops.backsight.subpixel_deconv.default, (*args.values(), relu))

    def test_out_schema_and_fake(self, args: dict[str, Any]) -> None:
        torch.library.opcheck(
            torch.ops.backsight.subpixel_deconv.out,
            tuple(args.values()),
            {"out": ops.subpixel_deconv(**args)},
            test_utils=("test_schema", "test_faketensor"),
        )

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    def test_compiles_into_one_graph(self, args: dict[str, Any], memory_format: str) -> None:
        x = layout(args.pop("x"), memory_format).requires_grad_()

        def f(x: Tensor) -> Tensor:
            return ops.subpixel_deconv(x * 2, **args, relu=True) + 1

        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), f(x), check_stride=True)
        (ours,) = torch.autograd.grad(compiled(x).square().sum(), x)
        (expected,) = torch.autograd.grad(f(x).square().sum(), x)
        torch.testing.assert_close(ours, expected)

    @pytest.mark.parametrize("grad", [False, True])
    def test_autocast_casts_as_torch_does(self, args: dict[str, Any], grad: bool) -> None:
        args["weight"].requires_grad_(grad)
        case = *args.values(), False
        with torch.autocast("cpu", torch.bfloat16):
            y, expected = ops.subpixel_deconv(*case), by_torch(case)
        assert y.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
        assert (y.grad_fn is not None) == grad

    def test_other_devices_have_the_oracle(self, args: dict[str, Any]) -> None:
        on_meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in args.items()}
        assert ops.subpixel_deconv(**on_meta).shape == ops.subpixel_deconv(**args).shape


class TestPaths:
    def path(self, args: dict[str, Any]) -> str:
        return ops.deconv_path(**args)

    @pytest.mark.parametrize("path", ["phase", "torch"])
    def test_forced(self, args: dict[str, Any], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", path)
        assert self.path(args) == path

    def test_direct_falls_back_to_what_can(
        self, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", "direct")
        assert self.path(args) in ("direct", "phase")

    def test_left_alone(self, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BACKSIGHT_DECONV", raising=False)
        chosen = self.path(args)
        monkeypatch.setenv("BACKSIGHT_DECONV", "auto")
        assert self.path(args) == chosen
        assert chosen in PATHS[1:]

    def test_a_wrong_one(self, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", "fast")
        sentence = "expected BACKSIGHT_DECONV to be auto, phase, direct or torch, got 'fast'"
        with pytest.raises(ValueError, match=sentence):
            ops.subpixel_deconv(**args)
        with pytest.raises(ValueError, match=sentence):
            self.path(args)


@pytest.mark.skipif(not _C.cuda_archs, reason="the CUDA kernels are not built")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
class TestOnGpu:
    @given(rng=st.randoms(use_true_random=False))
    @settings(max_examples=300, deadline=None)
    def test_equals_torch(self, rng: random.Random) -> None:
        case = deconv_case(rng)
        path = rng.choice(PATHS)
        moved = [v.cuda() if isinstance(v, Tensor) else v for v in case]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BACKSIGHT_DECONV", path)
            y = ops.subpixel_deconv(*moved).cpu().double()
        expected = expected_of(case)
        assert y.shape == expected.shape
        if y.numel() > 0:
            eps = max(torch.finfo(case[0].dtype).eps, 1e-13)
            assert (y - expected).abs().max() <= 100 * eps * max(1.0, expected.abs().max().item())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_kernels_agree(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both add up in the same order, with the same roundings."""
        monkeypatch.setenv("BACKSIGHT_DECONV", "direct")
        x, w = noise([2, 8, 17, 20], dtype, 0), noise([8, 3, 7, 7], dtype, 1)
        b = noise([3], dtype, 2)
        args = [2, 3], [3, 2], [1, 0]
        on_cpu = ops.subpixel_deconv(x, w, b, *args)
        on_gpu = ops.subpixel_deconv(x.cuda(), w.cuda(), b.cuda(), *args)
        assert torch.equal(on_gpu.cpu(), on_cpu)
        assert on_cpu.abs().max() > 0


class TestRefuses:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"x": torch.zeros(2, 4, 5, 6).int()}, TypeError, "x of dtype.*got torch.int32"),
            ({"x": torch.zeros(4, 5)}, ValueError, r"1 to 3 spatial axes, got \(4, 5\)"),
            ({"x": torch.zeros(2, 5, 5, 6)}, ValueError, "x of 4 channels.*got 5"),
            ({"x": torch.zeros(2, 4, 0, 6)}, ValueError, r"a pixel or more.*\(2, 4, 0, 6\)"),
            ({"weight": torch.zeros(4, 3, 4)}, ValueError, r"2 spatial axes.*\(4, 3, 4\)"),
            ({"weight": torch.zeros(4, 3, 0, 4)}, ValueError, r"none of them empty.*0, 4\)"),
            ({"weight": torch.zeros(4, 3, 4, 3).double()}, TypeError, "weight of the dtype of x"),
            (
                {"weight": torch.zeros(4, 3, 4, 3, device="meta")},
                ValueError,
                "weight on the device of x, cpu, got meta",
            ),
            ({"bias": torch.zeros(4)}, ValueError, r"bias of shape \(6,\).*got \(4,\)"),
            ({"bias": torch.zeros(6).half()}, TypeError, "bias of the dtype of x"),
            ({"bias": torch.zeros(6, device="meta")}, ValueError, "bias on the device of x"),
            ({"stride": [2]}, ValueError, r"2 ints of at least 1 in stride.*got \[2\]"),
            ({"stride": [0, 1]}, ValueError, r"at least 1 in stride.*got \[0, 1\]"),
            ({"padding": [-1, 0]}, ValueError, r"at least 0 in padding.*got \[-1, 0\]"),
            ({"output_padding": [0, -1]}, ValueError, "at least 0 in output_padding"),
            ({"output_padding": [2, 0]}, ValueError, "output_padding below stride or dilation"),
            ({"dilation": [1, 0]}, ValueError, "at least 1 in dilation"),
            ({"groups": 0}, ValueError, "groups to divide the 4 input channels.*got 0"),
            ({"groups": 3}, ValueError, "groups to divide the 4 input channels.*got 3"),
            (
                {"padding": [6, 0]},
                ValueError,
                r"leaves a pixel or more.*\[6, 0\].*leaves \[0, 21\]",
            ),
            ({"out": torch.zeros(2, 6, 10, 5)}, ValueError, r"out of shape \(2, 6, 10, 21\)"),
            ({"out": torch.zeros(2, 6, 10, 21).half()}, TypeError, "out of the dtype of x"),
        ],
    )
    def test_bad_arguments(
        self, args: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            ops.subpixel_deconv(**(args | change))

    def test_a_gradient_with_out(self, args: dict[str, Any]) -> None:
        out = ops.subpixel_deconv(**args)
        args["weight"].requires_grad_()
        with pytest.raises(RuntimeError, match="subpixel_deconv with out= is inference-only"):
            ops.subpixel_deconv(**args, out=out)
