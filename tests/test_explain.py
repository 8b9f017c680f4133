"""explain_deconv: the lectures' numbers, and every form of it against torch's conv_transpose."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import backsight
from backsight import plots

DOCS = Path(__file__).resolve().parent.parent / "docs"
Y = [1, 2, 3, 4, 5]
SQUARE = torch.arange(1.0, 17.0, dtype=torch.float64).view(4, 4)


def by_torch(explained: backsight.Deconvolution) -> Tensor:
    function: Any = getattr(F, f"conv_transpose{explained.y.dim()}d")
    return function(
        explained.y[None, None],
        explained.weight[None, None],
        None,
        explained.stride,
        explained.padding,
        explained.output_padding,
        1,
        explained.dilation,
    )[0, 0]


def check(explained: backsight.Deconvolution) -> None:
    """All forms of it give what torch does."""
    expected = by_torch(explained)
    assert explained.size == expected.shape
    close = {"rtol": 0.0, "atol": 1e-12}
    torch.testing.assert_close(explained.result, expected, **close)
    padded = (explained.matrix.T @ explained.y.flatten()).view(explained.padded_size)
    inside = zip(explained.padding, explained.size, strict=True)
    torch.testing.assert_close(padded[tuple(slice(p, p + n) for p, n in inside)], expected, **close)
    subpixel = explained.subpixel @ explained.spread.flatten()
    torch.testing.assert_close(subpixel.view(explained.size), expected, **close)
    convolve: Any = (F.conv1d, F.conv2d)[explained.y.dim() - 1]
    gathered = convolve(
        explained.spread[None, None], explained.flipped[None, None], dilation=explained.dilation
    )
    torch.testing.assert_close(gathered[0, 0], expected, **close)
    written = torch.full(explained.size, torch.nan, dtype=torch.float64)
    for phase in explained.phases:
        cells = torch.meshgrid(*map(torch.tensor, phase.outputs), indexing="ij")
        assert written[cells].isnan().all()
        written[cells] = phase.result
        for tap in itertools.product(*phase.taps):
            assert explained.weight[tap] in phase.weight
    torch.testing.assert_close(written, expected, **close)


def test_the_lectures_example_of_one_axis() -> None:
    explained = backsight.explain_deconv(Y, [1, 2, 3, 4], stride=2, padding=2)
    assert explained.matrix.shape == (5, 12)
    for row in range(5):
        expected = [0] * 12
        expected[2 * row : 2 * row + 4] = [1, 2, 3, 4]
        assert explained.matrix[row].tolist() == expected
    assert explained.padded.tolist() == [1, 2, 5, 8, 9, 14, 13, 20, 17, 26, 15, 20]
    assert explained.result.tolist() == [5, 8, 9, 14, 13, 20, 17, 26]
    assert explained.spread.tolist() == [0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert explained.flipped.tolist() == [4, 3, 2, 1]
    assert explained.subpixel.shape == (8, 11)
    assert [phase.taps for phase in explained.phases] == [((0, 2),), ((1, 3),)]
    assert [phase.outputs for phase in explained.phases] == [((0, 2, 4, 6),), ((1, 3, 5, 7),)]
    assert explained.multiplications == (32, 16)
    check(explained)


def test_the_matrix_is_the_convolution() -> None:
    """y1 = w3 x1 + w4 x2, y2 = w1 x1 + ... + w4 x4, y5 = w1 x7 + w2 x8."""
    matrix = backsight.explain_deconv(Y, [1, 2, 3, 4], stride=2, padding=2).matrix
    x = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = matrix @ F.pad(x, (2, 2))
    torch.testing.assert_close(y[0], 3 * x[0] + 4 * x[1])
    torch.testing.assert_close(y[1], x[0] + 2 * x[1] + 3 * x[2] + 4 * x[3])
    torch.testing.assert_close(y[4], x[6] + 2 * x[7])


def test_orthogonal_rows_are_no_inverse() -> None:
    matrix = backsight.explain_deconv(Y, [1, 0, 0, -1], stride=2, padding=2).matrix
    assert torch.equal(matrix @ matrix.T, 2 * torch.eye(5, dtype=torch.float64))
    assert not torch.equal(matrix.T @ matrix, torch.eye(12, dtype=torch.float64))
    assert torch.linalg.matrix_rank(matrix.T @ matrix) == 5


def test_without_padding_three_zeros_at_each_end() -> None:
    explained = backsight.explain_deconv(Y, [1, 2, 3, 4], stride=2)
    assert explained.spread.tolist() == [0] * 3 + [1, 0, 2, 0, 3, 0, 4, 0, 5] + [0] * 3
    assert explained.result.tolist() == [1, 2, 5, 8, 9, 14, 13, 20, 17, 26, 15, 20]
    check(explained)


def test_the_lectures_example_of_two_axes() -> None:
    explained = backsight.explain_deconv(SQUARE, SQUARE.flip(0), stride=2, padding=2)
    assert explained.size == (6, 6)
    assert explained.spread.shape == (9, 9)
    assert [phase.taps for phase in explained.phases] == [
        (rows, columns) for rows in ((0, 2), (1, 3)) for columns in ((0, 2), (1, 3))
    ]
    assert all(phase.result.shape == (3, 3) for phase in explained.phases)
    assert explained.multiplications == (576, 144)
    check(explained)


def test_filters_as_large_as_the_stride_are_pixel_shuffle() -> None:
    explained = backsight.explain_deconv(SQUARE, SQUARE[:3, :3], stride=3)
    shuffled = F.pixel_shuffle(SQUARE * SQUARE[:3, :3].reshape(9, 1, 1), 3)
    assert torch.equal(explained.result, shuffled[0])
    assert all(phase.weight.shape == (1, 1) for phase in explained.phases)


def test_phases_without_a_tap_are_zero() -> None:
    explained = backsight.explain_deconv(Y, [7], stride=3, output_padding=2)
    assert [phase.taps for phase in explained.phases] == [((0,),), ((),), ((),)]
    assert explained.result.tolist() == [7, 0, 0, 14, 0, 0, 21, 0, 0, 28, 0, 0, 35, 0, 0]
    check(explained)
    assert "no tap" in str(explained)
    explained.plot()


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 2))

    def ints(least: int, most: int) -> list[int]:
        return draw(st.lists(st.integers(least, most), min_size=dims, max_size=dims))

    size, kernel, stride, dilation = ints(1, 5), ints(1, 4), ints(1, 5), ints(1, 4)
    axes = [*zip(size, kernel, stride, dilation, strict=True)]
    extra = [draw(st.integers(0, max(s, d) - 1)) for _, _, s, d in axes]
    spans = [(n - 1) * s + d * (k - 1) + e for (n, k, s, d), e in zip(axes, extra, strict=True)]
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return {
        "y": torch.randn(size, dtype=torch.float64, generator=rng),
        "weight": torch.randn(kernel, dtype=torch.float64, generator=rng),
        "stride": stride,
        "padding": [draw(st.integers(0, span // 2)) for span in spans],
        "output_padding": extra,
        "dilation": dilation,
    }


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_form_equals_torch(case: dict[str, Any]) -> None:
    explained = backsight.explain_deconv(**case)
    check(explained)
    zeros, phases = explained.multiplications
    assert phases <= zeros


def test_the_text_names_the_taps() -> None:
    text = str(backsight.explain_deconv(Y, [1, 2, 3, 4], stride=2, padding=2))
    assert "  w1 w2 w3 w4  .  .  .  .  .  .  .  .\n   .  . w1 w2 w3 w4" in text
    assert "  w4 w3 w2 w1  .  .  .  .  .  .  .\n   . w4 w3 w2 w1" in text
    assert "phase 2, w2 w4, 4:\n  8 14 20 26" in text
    assert text.endswith("32 with the zeros, 16 by phases")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [1]), "expected y and weight of one or of two axes both, not empty"),
        (([1], [[1]]), r"got \(1,\) and \(1, 1\)"),
        (([[[1]]], [[[1]]]), "of one or of two axes"),
        ((Y, [1], 0), "expected stride to be an int or 1 ints, 1 at least, got 0"),
        ((Y, [1], [2, 2]), r"expected stride to be .* got \[2, 2\]"),
        ((Y, [1], 1, -1), "expected padding to be .* 0 at least, got -1"),
        ((Y, [1], 2, 0, 2), r"expected an output_padding less than the stride"),
        ((Y, [1], 1, 3), r"expected a result of a cell at least, got \(-1,\)"),
        ((torch.ones(99, 99), torch.ones(3, 3)), "expected a small case, of 1048576 entries"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backsight.explain_deconv(*arguments)


class TestPictures:
    def test_every_cell_is_drawn_within_the_page(self) -> None:
        pytest.importorskip("matplotlib", reason="figures need matplotlib")
        explained = backsight.explain_deconv(Y, [1, 2, 3, 4], stride=2, padding=2)
        figure = explained.plot()
        figure.canvas.draw()
        (axes,) = figure.axes
        texts = [text.get_text() for text in axes.texts]
        # of each tap 5 in W and in Wᵀ, all 8 rows of the flipped filter, and one in its phase
        assert [texts.count(f"w{i}") for i in (1, 2, 3, 4)] == [19] * 4
        assert texts.count("26") == 3  # Wᵀ y, the result, and the second phase's
        width, height = figure.canvas.get_width_height()
        for box in (text.get_window_extent() for text in axes.texts):
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= width
            assert box.y1 <= height

    def test_phases_have_colours_of_their_own(self) -> None:
        pytest.importorskip("matplotlib", reason="figures need matplotlib")
        table = plots.Cells("t", [["a", "b", "c", "d"]], [[1, 2, 1, 0]])
        (axes,) = plots.cells([[table]], title="t").axes
        one, two, again, pale = (patch.get_facecolor() for patch in axes.patches)
        assert one == again
        assert len({one, two, pale}) == 3

    def test_bad_tables_are_refused(self) -> None:
        pytest.importorskip("matplotlib", reason="figures need matplotlib")
        with pytest.raises(ValueError, match="expected a table at least, got none"):
            plots.cells([[]], title="t")
        with pytest.raises(ValueError, match="expected a colour for each cell of 'x'"):
            plots.cells([[plots.Cells("x", [["a"]], [[1, 2]])]], title="t")


def test_the_page_says_what_its_examples_do(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    page = (DOCS / "deconvolution.md").read_text(encoding="utf-8")
    one, edges, two = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    for example in (one, edges, two):
        exec(example, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str([float(v) for v in (1, 2, 5, 8, 9, 14, 13, 20, 17, 26, 15, 20)])
    assert printed[1] == str([float(v) for v in (5, 8, 9, 14, 13, 20, 17, 26)])
    assert "[2.0, 2.0, 2.0, 2.0, 2.0]" in printed
    assert printed[-1] == "(576, 144)"
    assert names["figure"].axes


def test_the_page_has_its_pictures() -> None:
    page = (DOCS / "deconvolution.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[.*?\]\((.*?)\)", page)
    drawn: dict[str, Any] = {"__name__": "drawn", "__file__": str(DOCS / "deconvolution.py")}
    exec((DOCS / "deconvolution.py").read_text(encoding="utf-8"), drawn)
    assert shown == [*drawn["EXAMPLES"]]
    for name, explained in drawn["EXAMPLES"].items():
        assert (DOCS / name).read_bytes().startswith(b"\x89PNG")
        check(explained)
