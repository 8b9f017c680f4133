"""occlude: identities first, then the oracle and gradients, then what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from op_cases import assert_same, layout, noise, occlude_cases
from torch import Tensor

from backsight import ops
from backsight.ops import reference

ZERO = torch.zeros(())


@pytest.fixture(params=["contiguous", "channels_last"])
def image(request: pytest.FixtureRequest) -> Tensor:
    return layout(noise([2, 3, 5, 6], torch.float32, 0), request.param)


def boxes(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).view(-1, 4)


class TestIdentities:
    def test_an_empty_box_changes_nothing(self, image: Tensor) -> None:
        empty = boxes([2, 2, 2, 4], [3, 3, 1, 5], [9, 0, 12, 3], [-4, 0, 0, 6])
        expected = image.repeat_interleave(4, 0).contiguous()
        assert torch.equal(ops.occlude(image, empty, ZERO), expected)

    def test_the_full_box_is_the_baseline(self, image: Tensor) -> None:
        out = ops.occlude(image, boxes([0, 0, 5, 6], [-9, -9, 99, 99]), -image)
        assert torch.equal(out, -image.repeat_interleave(2, 0))

    def test_the_image_as_baseline_changes_nothing(self, image: Tensor) -> None:
        assert_same(ops.occlude(image, boxes([1, 1, 4, 3]), image), image)

    def test_rows_are_image_major(self, image: Tensor) -> None:
        two = boxes([0, 0, 1, 1], [1, 1, 3, 3])
        out = ops.occlude(image, two, ZERO)
        assert torch.equal(out[:2], ops.occlude(image[:1], two, ZERO))
        assert torch.equal(out[1::2], ops.occlude(image, two[1:], ZERO))

    def test_no_boxes_and_no_images(self, image: Tensor) -> None:
        assert ops.occlude(image, boxes(), ZERO).shape == (0, 3, 5, 6)
        assert ops.occlude(image[:0], boxes([0, 0, 1, 1]), ZERO).shape == (0, 3, 5, 6)


class TestOracle:
    @given(case=occlude_cases())
    @settings(max_examples=300, deadline=None)
    def test_equals_the_oracle(self, case: tuple[Any, ...]) -> None:
        assert_same(ops.occlude(*case), reference.occlude(*case))

    @given(case=occlude_cases())
    @settings(max_examples=60, deadline=None)
    def test_out_of_any_layout(self, case: tuple[Any, ...]) -> None:
        expected = reference.occlude(*case)
        for memory_format in ("contiguous", "channels_last", "strided"):
            out = layout(torch.full_like(expected, 5.0), memory_format)
            assert ops.occlude(*case, out=out) is out
            assert torch.equal(out, expected)

    @pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_large_outputs(self, memory_format: str, threads: int) -> None:
        image = layout(noise([1, 3, 301, 303], torch.float32, 0), memory_format)
        at = torch.randint(-20, 300, (40, 2), generator=torch.Generator().manual_seed(1))
        many = torch.cat([at, at + 30], 1)
        expected = reference.occlude(image, many, ZERO)
        assert expected.nbytes > 36 << 20
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert_same(ops.occlude(image, many, ZERO), expected)
        finally:
            torch.set_num_threads(before)

    @pytest.mark.slow
    def test_more_than_2_31_elements(self) -> None:
        image = noise([1, 32, 256, 512], torch.float16, 0)
        count = 2**31 // image.numel() + 2
        box = boxes([100, 200, 120, 230]).repeat(count, 1)
        out = ops.occlude(image, box, ZERO.half())
        assert out.numel() > 2**31
        image[:, :, 100:120, 200:230] = 0
        for row in out:
            assert torch.equal(row, image[0])


class TestGradients:
    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_gradcheck(self, dims: int) -> None:
        image = noise([2, 2, *[4, 3, 2][:dims]], torch.float64, 0).requires_grad_()
        some = torch.randint(-1, 5, (3, 2 * dims), generator=torch.Generator().manual_seed(1))
        baseline = torch.ones((), dtype=torch.float64)

        def f(image: Tensor) -> Tensor:
            # Squared, so that the second derivative is not zero.
            return ops.occlude(image, some, baseline) ** 2

        assert torch.autograd.gradcheck(f, (image,))
        assert torch.autograd.gradgradcheck(f, (image,))

    def test_the_gradient_counts_the_copies_that_show_a_pixel(self) -> None:
        image = torch.zeros(1, 1, 1, 4, requires_grad=True)
        ops.occlude(image, boxes([0, 0, 1, 2], [0, 1, 1, 3]), ZERO).sum().backward()
        assert image.grad is not None
        assert image.grad.flatten().tolist() == [1, 0, 1, 2]

    def test_nan_gradients_under_a_box_are_dropped(self) -> None:
        image = torch.ones(1, 1, 1, 2, requires_grad=True)
        (ops.occlude(image, boxes([0, 0, 1, 1]), ZERO).sqrt() * 0 + image).sum().backward()
        assert image.grad is not None
        assert image.grad.isfinite().all()

    def test_a_gradient_of_the_baseline_is_refused(self, image: Tensor) -> None:
        with pytest.raises(RuntimeError, match="no gradient in baseline: detach it"):
            ops.occlude(image, boxes([0, 0, 1, 1]), torch.zeros((), requires_grad=True))

    def test_a_gradient_with_out_is_refused(self, image: Tensor) -> None:
        out = torch.empty_like(image)
        with pytest.raises(RuntimeError, match="occlude with out= is inference-only"):
            ops.occlude(image.requires_grad_(), boxes([0, 0, 1, 1]), ZERO, out=out)


class TestRegistration:
    def test_opcheck(self, image: Tensor) -> None:
        some = boxes([0, 0, 2, 2], [1, 1, 9, 9])
        op = torch.ops.backsight.occlude.default
        torch.library.opcheck(op, (image, some, ZERO))
        torch.library.opcheck(op, (image.clone().requires_grad_(), some, image))

    def test_out_schema_and_fake(self, image: Tensor) -> None:
        torch.library.opcheck(
            torch.ops.backsight.occlude.out,
            (image, boxes([0, 0, 2, 2]), ZERO),
            {"out": torch.empty_like(image)},
            test_utils=("test_schema", "test_faketensor"),
        )

    @pytest.mark.parametrize(
        ("memory_format", "backend"), [("contiguous", "aot_eager"), ("channels_last", "inductor")]
    )
    def test_compiles_into_one_graph(self, memory_format: str, backend: str) -> None:
        image = layout(noise([2, 3, 5, 6], torch.float32, 0), memory_format)
        some = boxes([0, 0, 2, 2], [1, 1, 9, 9])

        def f(image: Tensor) -> Tensor:
            return ops.occlude(image * 2, some, image.detach()).sin()

        mine, theirs = image.clone().requires_grad_(), image.clone().requires_grad_()
        compiled = torch.compile(f, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(mine), f(theirs))
        compiled(mine).sum().backward()
        f(theirs).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)


class TestRefuses:
    @pytest.mark.parametrize(
        ("args", "error", "message"),
        [
            ((ZERO, boxes(), ZERO), ValueError, "1 to 3 spatial axes"),
            ((torch.zeros(1, 1, 2).long(), boxes(), ZERO), TypeError, "float16.*got torch.int64"),
            ((torch.zeros(1, 1, 2), boxes([0, 0, 1, 1]), ZERO), ValueError, r"\(1, 2\), got"),
            ((torch.zeros(1, 1, 2, 2), torch.tensor(3), ZERO), ValueError, "got a scalar"),
            ((torch.zeros(1, 1, 2, 2), boxes().int(), ZERO), TypeError, "boxes of dtype int64"),
            ((torch.zeros(1, 1, 2, 2), boxes(), ZERO.half()), TypeError, "baseline of the dtype"),
            ((torch.zeros(1, 3, 2, 2), boxes(), torch.zeros(3)), ValueError, "to broadcast to"),
            (
                (torch.zeros(1, 2, 2), torch.zeros(0, 2).long(), torch.zeros(1, 1, 1, 1)),
                ValueError,
                "to broadcast to",
            ),
            ((torch.zeros(1, 1, 2, 2), boxes(), ZERO.to("meta")), ValueError, "cpu, got meta"),
        ],
    )
    def test_bad_arguments(
        self, args: tuple[Tensor, ...], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            ops.occlude(*args)
