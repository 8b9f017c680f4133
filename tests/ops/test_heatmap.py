"""heatmap: identities first, then the oracle, then exact rational arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backsight import _C, ops
from backsight.ops import reference
from backsight.ops._schemas import DTYPES as DTYPE_CODES

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
REDUCES = ["mean", "sum"]
NAN, INF = math.nan, math.inf


def grid(size: list[int], window: int, stride: int) -> Tensor:
    """Boxes of `window` every `stride` pixels, the last ones hanging over the edge."""
    starts = torch.cartesian_prod(*(torch.arange(0, count, stride) for count in size))
    starts = starts.view(-1, len(size))
    return torch.cat([starts, starts + window], 1)


def random_boxes(count: int, size: list[int], seed: int) -> Tensor:
    """Boxes of all kinds: inside, over the edges, outside, empty and inverted."""
    rng = torch.Generator().manual_seed(seed)
    columns = [torch.randint(-4, n + 5, (count, 2), generator=rng) for n in size]
    boxes = torch.stack(columns, 1).sort(-1).values  # (N, D, 2)
    inverted = torch.rand(count, 1, generator=rng) < 0.1
    boxes = torch.where(inverted[..., None], boxes.flip(-1), boxes)
    return boxes.permute(0, 2, 1).reshape(count, -1).contiguous()


def random_scores(count: int, outputs: int, dtype: torch.dtype, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, outputs, generator=rng, dtype=torch.float64).to(dtype)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert torch.equal(bits(got), bits(expected))


def exact(scores: Tensor, boxes: Tensor, size: list[int], reduce: str) -> list[list[float]]:
    """Every pixel of every output by rational arithmetic, rounded once to float64."""
    dims = len(size)
    rows = [[Fraction(v) for v in row] for row in scores.double().tolist()]
    result = []
    for k in range(scores.shape[1]):
        pixels = []
        for pixel in np.ndindex(*size):
            over = [
                row[k]
                for row, box in zip(rows, boxes.tolist(), strict=True)
                if all(box[d] <= pixel[d] < box[d + dims] for d in range(dims))
            ]
            total = sum(over, Fraction(0))
            pixels.append(float(total / len(over) if over and reduce == "mean" else total))
        result.append(pixels)
    return result


# --- identities ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("size", [[37], [13, 21], [5, 6, 7]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_full_box_is_constant(dtype: torch.dtype, size: list[int], reduce: str) -> None:
    scores = torch.tensor([[0.1, -3.0, 7e-5, 0.0, 1234.5]]).to(dtype)
    result = ops.heatmap(scores, torch.tensor([[0] * len(size) + size]), size, reduce)
    expected = scores[0].view(-1, *[1] * len(size)).expand(-1, *size)
    assert_same_bits(result, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_disjoint_boxes_keep_their_scores_however_far_apart(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps  # the smallest subnormal number
    values = [info.max, tiny, -info.max, -3 * tiny, info.smallest_normal, 1.0, -0.1, 0.0]
    scores = torch.tensor(values, dtype=torch.float64).to(dtype)[:, None]
    boxes = torch.tensor([[2 * i, 2 * i + 2] for i in range(len(values))])
    for outputs in (1, 5):
        columns = scores.expand(-1, outputs)
        result = ops.heatmap(columns, boxes, [2 * len(values) + 1], "mean")
        expected = torch.cat([scores.repeat_interleave(2, 0), scores.new_zeros(1, 1)])
        assert_same_bits(result, expected.t().expand(outputs, -1))


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_permuting_the_boxes_changes_no_bit(dtype: torch.dtype, reduce: str) -> None:
    size, count = [23, 31], 200
    boxes = random_boxes(count, size, 1)
    scores = random_scores(count, 11, dtype, 2) * random_scores(count, 1, dtype, 3).exp() ** 3
    scores[::7, 3] *= 1e4
    result = ops.heatmap(scores, boxes, size, reduce)
    for seed in range(3):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        assert_same_bits(ops.heatmap(scores[order], boxes[order], size, reduce), result)


@pytest.mark.parametrize("reduce", REDUCES)
def test_zero_exactly_where_no_box_lies(reduce: str) -> None:
    size, count = [40, 50], 30
    boxes = random_boxes(count, size, 4)
    boxes[:, 2:] = torch.minimum(boxes[:, 2:], boxes[:, :2] + 6)
    result = ops.heatmap(random_scores(count, 9, torch.float32, 5) * 1e30, boxes, size, reduce)
    cover = reference.heatmap(torch.ones(count, 1), boxes, size, "sum")[0]
    assert 0 < (cover == 0).sum() < cover.numel()
    outside = result[:, cover == 0]
    assert_same_bits(outside, torch.zeros_like(outside))
    assert (result[:, cover > 0] != 0).all()


def test_scores_that_cancel_leave_exactly_zero() -> None:
    boxes = torch.tensor([[0, 8], [2, 6], [0, 8], [2, 6]])
    scores = torch.tensor([[0.1, 1e38], [0.3, 1e-38], [-0.1, -1e38], [-0.3, -1e-38]])
    result = ops.heatmap(scores, boxes, [8], "sum")
    assert_same_bits(result, torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_beside_large_survives_cancellation(dtype: torch.dtype) -> None:
    boxes = torch.tensor([[0, 3]] * 3)
    big = 3e4 if dtype == torch.float16 else 1e30
    small = 2e-7 if dtype == torch.float16 else 1e-30
    scores = torch.tensor([[big], [small], [-big]], dtype=torch.float64).to(dtype)
    result = ops.heatmap(scores, boxes, [3], "sum")
    assert_same_bits(result, scores[1].expand(1, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_with_powers_of_two(dtype: torch.dtype) -> None:
    size = [19, 17]
    boxes = random_boxes(60, size, 6)
    scores = random_scores(60, 4, dtype, 7)
    result = ops.heatmap(scores, boxes, size, "mean")
    assert_same_bits(ops.heatmap(scores * 8, boxes, size, "mean"), result * 8)
    assert_same_bits(ops.heatmap(-scores, boxes, size, "mean"), 0 - result)


def test_mean_is_sum_over_count() -> None:
    size = [12, 9, 7]
    boxes = random_boxes(40, size, 8)
    scores = random_scores(40, 3, torch.float64, 9)
    total = ops.heatmap(scores, boxes, size, "sum")
    count = ops.heatmap(torch.ones(40, 1, dtype=torch.float64), boxes, size, "sum")
    mean = ops.heatmap(scores, boxes, size, "mean")
    torch.testing.assert_close(mean, total / count.clamp(min=1), rtol=3e-16, atol=1e-300)


def test_a_map_of_each_output_is_that_output_alone() -> None:
    size = [33, 14]
    boxes = random_boxes(50, size, 10)
    for dtype in DTYPES:
        scores = random_scores(50, 13, dtype, 11)
        result = ops.heatmap(scores, boxes, size, "mean")
        for k in range(13):
            alone = ops.heatmap(scores[:, k : k + 1], boxes, size, "mean")
            assert_same_bits(alone[0], result[k])


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_change_no_bit(threads: int) -> None:
    before = torch.get_num_threads()
    cases = [([70, 90], 9, 3, 1), ([70, 90], 9, 3, 40), ([30, 20, 25], 6, 2, 3), ([20011], 5, 1, 2)]
    try:
        for size, window, stride, outputs in cases:
            boxes = grid(size, window, stride)
            scores = random_scores(len(boxes), outputs, torch.float32, 12)
            torch.set_num_threads(1)
            alone = ops.heatmap(scores, boxes, size, "mean")
            torch.set_num_threads(threads)
            assert_same_bits(ops.heatmap(scores, boxes, size, "mean"), alone)
    finally:
        torch.set_num_threads(before)


# --- what is not finite ----------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 6])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_nan_exactly_where_a_score_is_not_finite(
    bad: float, dtype: torch.dtype, outputs: int
) -> None:
    size = [15, 18]
    boxes = random_boxes(30, size, 13)
    scores = random_scores(30, outputs, dtype, 14)
    clean = ops.heatmap(scores, boxes, size, "mean")
    boxes = torch.cat([boxes, torch.tensor([[2, 3, 9, 11], [5, 5, 7, 30], [4, 4, 4, 9]])])
    spoilt = torch.zeros(3, outputs, dtype=dtype)
    spoilt[:, outputs // 2] = bad
    result = ops.heatmap(torch.cat([scores, spoilt]), boxes, size, "sum")
    under = torch.zeros(size, dtype=torch.bool)
    under[2:9, 3:11] = under[5:7, 5:] = True
    assert result[outputs // 2][under].isnan().all()
    assert result[outputs // 2][~under].isfinite().all()
    others = [k for k in range(outputs) if k != outputs // 2]
    assert_same_bits(result[others], ops.heatmap(scores, boxes[:30], size, "sum")[others])
    assert clean.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_does_not_overflow_and_a_sum_does(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    scores = torch.full((3, 1), largest, dtype=dtype)
    boxes = torch.tensor([[0, 4], [0, 4], [0, 4]])
    mean = ops.heatmap(scores, boxes, [5], "mean")
    assert_same_bits(mean, torch.tensor([[largest] * 4 + [0.0]], dtype=torch.float64).to(dtype))
    total = ops.heatmap(scores, boxes, [5], "sum")
    assert total.tolist() == [[INF] * 4 + [0.0]]


# --- the oracle ------------------------------------------------------------------------------


def assert_matches(scores: Tensor, boxes: Tensor, size: list[int], reduce: str) -> None:
    """The oracle sums in float64, so it is itself off by that much of the largest partial sum."""
    got = ops.heatmap(scores, boxes, size, reduce)
    wide = reference.heatmap(scores.double(), boxes, size, reduce)
    expected = reference.heatmap(scores, boxes, size, reduce)
    assert got.dtype == scores.dtype
    assert got.shape == (scores.shape[1], *size)
    assert torch.equal(got.isnan(), expected.isnan())
    finite = scores.double()[scores.isfinite()]
    slack = len(scores) * 2.3e-16 * (finite.abs().sum().item() if finite.numel() else 0.0)
    info = torch.finfo(scores.dtype)
    allowed = 0.51 * info.eps * wide.abs() + slack + info.smallest_normal * info.eps
    overflown = expected.isinf()
    assert torch.equal(got[overflown], expected[overflown])
    checked = ~(expected.isnan() | overflown)
    error = (got.double() - wide).abs()[checked]
    assert (error <= allowed[checked]).all(), error.max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [([29], 7, 3), ([24, 31], 8, 4), ([16, 16], 5, 1), ([9, 8, 11], 4, 2), ([1, 40], 3, 1)],
)
def test_grids_match_the_oracle(
    size: list[int], window: int, stride: int, dtype: torch.dtype
) -> None:
    boxes = grid(size, window, stride)
    for reduce in REDUCES:
        assert_matches(random_scores(len(boxes), 6, dtype, 15), boxes, size, reduce)


def scores_of(dtype: torch.dtype) -> st.SearchStrategy[float]:
    width = {torch.float64: 64, torch.float32: 32}.get(dtype, 16)
    plain = st.floats(-100, 100, width=width)
    return st.one_of(plain, plain, plain, plain, st.floats(width=width))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_boxes_match_the_oracle(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))
    size = data.draw(st.lists(st.integers(0, [70, 16, 7][dims - 1]), min_size=dims, max_size=dims))
    dtype = data.draw(st.sampled_from(DTYPES))
    count = data.draw(st.integers(0, 8))
    outputs = data.draw(st.integers(0, 6))
    values = data.draw(
        st.lists(scores_of(dtype), min_size=count * outputs, max_size=count * outputs)
    )
    scores = torch.tensor(values, dtype=torch.float64).to(dtype).view(count, outputs)
    corner = st.integers(-3, max(size) + 3)
    numbers = data.draw(st.lists(corner, min_size=count * 2 * dims, max_size=count * 2 * dims))
    boxes = torch.tensor(numbers, dtype=torch.int64).view(count, 2 * dims)
    assert_matches(scores, boxes, size, data.draw(st.sampled_from(REDUCES)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_float64_is_correct_to_one_unit_in_the_last_place(data: st.DataObject) -> None:
    length, count = 9, data.draw(st.integers(1, 7))
    anything = st.floats(allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(anything, min_size=count, max_size=count))
    scores = torch.tensor(values, dtype=torch.float64)[:, None] / count
    ends = st.lists(st.integers(0, length), min_size=2, max_size=2).map(sorted)
    boxes = torch.tensor([data.draw(ends) for _ in range(count)])
    reduce = data.draw(st.sampled_from(REDUCES))
    (got,) = ops.heatmap(scores, boxes, [length], reduce).tolist()
    (expected,) = exact(scores, boxes, [length], reduce)
    assert all(abs(a - b) <= math.ulp(b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("reduce", REDUCES)
def test_float32_is_correctly_rounded_beside_ties(reduce: str) -> None:
    """Far from halfway between two float32 numbers the float64 in between changes nothing."""
    size, count = [14, 15], 90
    boxes = random_boxes(count, size, 16)
    scores = random_scores(count, 3, torch.float32, 17)
    expected = torch.tensor(exact(scores, boxes, size, reduce), dtype=torch.float64)
    assert_same_bits(ops.heatmap(scores, boxes, size, reduce).flatten(1), expected.float())


def test_many_boxes_on_one_pixel_do_not_overflow() -> None:
    count = 100_000
    boxes = torch.zeros(count, 2, dtype=torch.int64)
    boxes[:, 1] = 3
    scores = torch.full((count, 1), 3e38)
    assert_same_bits(
        ops.heatmap(scores, boxes, [4], "mean"), torch.tensor([[3e38, 3e38, 3e38, 0.0]])
    )


def test_long_rows_and_large_maps_beyond_the_cache() -> None:
    """Outputs that stream past the caches, of lengths that end in the middle of a cache line."""
    for size, outputs in (([2**20 + 3], 9), ([513, 1021], 17), ([3, 611, 787], 7)):
        boxes = random_boxes(12, size, 18)
        scores = random_scores(12, outputs, torch.float32, 19)
        expected = reference.heatmap(scores, boxes, size, "sum")
        out = torch.full((outputs * expected[0].numel() + 5,), 7.0)
        view = out[3:-2].view(outputs, *size)  # not aligned
        assert ops.heatmap(scores, boxes, size, "sum", out=view) is view
        torch.testing.assert_close(view, expected, rtol=1.2e-7, atol=1e-12)
        assert out[:3].tolist() + out[-2:].tolist() == [7.0] * 5


# --- the CUDA kernels, their threads looped on the host ----------------------------------------


def on_phases(scores: Tensor, boxes: Tensor, size: list[int], reduce: str) -> Tensor:
    out = scores.new_full((scores.shape[1], *size), 7)
    bytes_ = _C.heatmap_workspace(DTYPE_CODES[scores.dtype], scores.shape, size)
    workspace = torch.full((bytes_ + 256,), 0xA5, dtype=torch.uint8)  # nothing starts out as zero
    _C.heatmap_phases_cpu(
        1,
        DTYPE_CODES[scores.dtype],
        scores.data_ptr(),
        boxes.data_ptr(),
        scores.shape,
        size,
        reduce == "mean",
        out.data_ptr(),
        workspace.data_ptr(),
    )
    assert (workspace[bytes_:] == 0xA5).all()
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [([29], 7, 3), ([3000], 2, 1), ([24, 32], 8, 4), ([5, 90], 4, 1), ([9, 8, 12], 4, 2)],
)
def test_phases_give_the_same_bits(
    size: list[int], window: int, stride: int, dtype: torch.dtype
) -> None:
    """Rows of more cells than one tile of the block's scan, aligned rows and not, up to 3-D."""
    boxes = grid(size, window, stride)
    for reduce, outputs in (("mean", 3), ("sum", 1)):
        scores = random_scores(len(boxes), outputs, dtype, 33)
        expected = ops.heatmap(scores, boxes, size, reduce)
        assert_same_bits(on_phases(scores, boxes, size, reduce), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_phases_take_many_levels_and_bad_scores(dtype: torch.dtype) -> None:
    size, count, outputs = [17, 24], 12, 20
    info = torch.finfo(dtype)
    boxes = random_boxes(count, size, 34)
    scores = random_scores(count, outputs, dtype, 35)
    scores[0, 1:] = info.max
    scores[1, 2:] = info.smallest_normal * info.eps
    scores[2, 3] = NAN
    scores[3, 4] = -INF
    for reduce in REDUCES:
        expected = ops.heatmap(scores, boxes, size, reduce)
        assert_same_bits(on_phases(scores, boxes, size, reduce), expected)


def test_phases_take_more_outputs_than_fit_at_a_time() -> None:
    """The workspace is bounded by what many boxes could need, 480 kB an output; these need less."""
    count, outputs, size = 10_000, 600, [20_000]
    assert outputs * size[0] * 24 > 2**28
    boxes = grid(size, 1000, 1000).repeat(count // 20, 1)
    scores = random_scores(count, outputs, torch.float64, 36)
    assert_same_bits(
        on_phases(scores, boxes, size, "mean"), ops.heatmap(scores, boxes, size, "mean")
    )


def test_phases_take_empties_and_no_boxes() -> None:
    for count, size in ((0, [4, 8]), (3, [0, 4]), (3, [5])):
        boxes = torch.zeros(count, 2 * len(size), dtype=torch.int64)
        scores = torch.ones(count, 2)
        assert_same_bits(on_phases(scores, boxes, size, "mean"), torch.zeros(2, *size))


# --- shapes, layouts, arguments --------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "outputs", "size"),
    [(0, 3, [4, 5]), (4, 0, [4, 5]), (0, 0, [3]), (3, 2, [0, 5]), (3, 2, [5, 0, 2])],
)
def test_empties(count: int, outputs: int, size: list[int]) -> None:
    boxes = torch.zeros(count, 2 * len(size), dtype=torch.int64)
    result = ops.heatmap(torch.randn(count, outputs), boxes, size, "mean")
    assert_same_bits(result, torch.zeros(outputs, *size))


def test_boxes_far_outside() -> None:
    far = 2**60
    boxes = torch.tensor([[-far, -far, far, 3], [far, 0, far, 2], [2, 2, far, far]])
    result = ops.heatmap(torch.tensor([[1.0], [5.0], [2.0]]), boxes, [4, 4], "sum")
    assert result[0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 3, 2], [1, 1, 3, 2]]


def test_strided_arguments_and_outputs() -> None:
    size = [11, 8]
    boxes, scores = random_boxes(20, size, 20), random_scores(20, 5, torch.float32, 21)
    expected = ops.heatmap(scores, boxes, size, "mean")
    result = ops.heatmap(scores.t().contiguous().t(), boxes.repeat(1, 2)[:, :4], size, "mean")
    assert_same_bits(result, expected)
    out = torch.empty(8, 11, 5).permute(2, 1, 0)
    assert ops.heatmap(scores, boxes, size, "mean", out=out) is out
    assert_same_bits(out, expected)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "dtype float64.*got torch.int64", {"scores": torch.zeros(2, 1).long()}),
        (ValueError, r"\(boxes, outputs\), got \(2,\)", {"scores": torch.zeros(2)}),
        (TypeError, "boxes of dtype int64, got torch.float32", {"boxes": torch.zeros(2, 4)}),
        (ValueError, r"boxes of shape \(2, 4\)", {"boxes": torch.zeros(2, 6).long()}),
        (ValueError, r"boxes of shape \(2, 4\)", {"boxes": torch.zeros(3, 4).long()}),
        (ValueError, "1 to 3 non-negative ints", {"size": [3, -1]}),
        (ValueError, "1 to 3 non-negative ints", {"size": [1, 1, 1, 1]}),
        (ValueError, "'mean' or 'sum', got 'max'", {"reduce": "max"}),
        (ValueError, r"out of shape \(1, 3, 3\)", {"out": torch.zeros(1, 3, 4)}),
        (TypeError, "out of the dtype of scores", {"out": torch.zeros(1, 3, 3).double()}),
    ],
)
def test_bad_arguments_get_a_sentence(
    error: type[Exception], match: str, arguments: dict[str, object]
) -> None:
    good = {"scores": torch.zeros(2, 1), "boxes": torch.zeros(2, 4).long(), "size": [3, 3]}
    with pytest.raises(error, match=match):
        ops.heatmap(**{**good, "reduce": "mean", **arguments})


# --- gradients, torch.library, torch.compile -------------------------------------------------


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("size", [[7], [5, 6], [3, 4, 3]])
def test_gradients(size: list[int], reduce: str) -> None:
    boxes = random_boxes(6, size, 22)
    scores = random_scores(6, 2, torch.float64, 23).requires_grad_()

    def call(x: Tensor) -> Tensor:
        return ops.heatmap(x, boxes, size, reduce)

    assert torch.autograd.gradcheck(call, (scores,))
    assert torch.autograd.gradgradcheck(call, (scores,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_the_adjoint(dtype: torch.dtype) -> None:
    """The gradient of a sum at box n is the sum of the incoming gradient over box n."""
    size = [13, 10]
    boxes = random_boxes(25, size, 24)
    scores = random_scores(25, 3, dtype, 25).requires_grad_()
    incoming = random_scores(3, 130, dtype, 26).view(3, *size)
    (grad,) = torch.autograd.grad(ops.heatmap(scores, boxes, size, "sum"), scores, incoming)
    assert grad.dtype == dtype
    for n, (y0, x0, y1, x1) in enumerate(boxes.clamp(min=0).tolist()):
        expected = incoming[:, y0:y1, x0:x1].double().sum((1, 2)).to(dtype)
        torch.testing.assert_close(grad[n], expected, rtol=torch.finfo(dtype).eps, atol=1e-12)


def test_gradient_with_out_is_refused() -> None:
    scores = torch.zeros(1, 1, requires_grad=True)
    boxes = torch.tensor([[0, 2]])
    with pytest.raises(RuntimeError, match="heatmap with out= is inference-only"):
        ops.heatmap(scores, boxes, [3], "mean", out=torch.zeros(1, 3))
    with torch.no_grad():
        ops.heatmap(scores, boxes, [3], "mean", out=torch.zeros(1, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [[9], [6, 5], [3, 2, 4]])
def test_opcheck(size: list[int], dtype: torch.dtype) -> None:
    boxes = random_boxes(5, size, 27)
    scores = random_scores(5, 3, dtype, 28)
    tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
    op = torch.ops.backsight.heatmap
    torch.library.opcheck(op.default, (scores, boxes, size, "mean"), test_utils=tests)
    torch.library.opcheck(
        op.out, (scores, boxes, size, "sum"), {"out": scores.new_empty(3, *size)}, test_utils=tests
    )


def test_opcheck_with_gradient() -> None:
    scores = random_scores(5, 3, torch.float64, 29).requires_grad_()
    arguments = (scores, random_boxes(5, [6, 5], 30), [6, 5], "mean")
    torch.library.opcheck(torch.ops.backsight.heatmap.default, arguments)


def test_compiles_as_one_graph() -> None:
    size = [12, 14]
    boxes, scores = random_boxes(9, size, 31), random_scores(9, 4, torch.float32, 32)

    def call(x: Tensor) -> Tensor:
        return ops.heatmap(x * 2, boxes, size, "mean") + 1

    compiled: Callable[[Tensor], Tensor] = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(scores), call(scores))
    x, y = (scores.clone().requires_grad_() for _ in range(2))
    compiled(x).square().sum().backward()
    call(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
