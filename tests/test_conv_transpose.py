"""Transposed convolution in backsight.functional and backsight.nn against torch's of that name."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn import functional as TF

import backsight
from backsight import _C, nn
from backsight import functional as F

CASES: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": 3, "padding": 2, "output_padding": 1},
    {"stride": 5, "output_padding": 4, "dilation": 2},
    {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
    {"stride": 2, "groups": 4, "dilation": 3},
]
SIZE, KERNEL = [5, 4, 3], [4, 3, 2]


def tensors(
    dims: int, groups: int = 1, dtype: torch.dtype = torch.float64, batched: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias, 4 channels to 6 or 8."""
    rng = torch.Generator().manual_seed(dims)
    out = 8 // groups if groups == 4 else 6 // groups
    shapes = (
        [2, 4, *SIZE[:dims]] if batched else [4, *SIZE[:dims]],
        [4, out, *KERNEL[:dims]],
        [out * groups],
    )
    x, weight, bias = (torch.randn(shape, generator=rng, dtype=dtype) for shape in shapes)
    return x, weight, bias


def call(module: Any, dims: int, *args: Any, **kwargs: Any) -> Any:
    return getattr(module, f"conv_transpose{dims}d")(*args, **kwargs)


def make(module: Any, dims: int, *args: Any, **kwargs: Any) -> Any:
    return getattr(module, f"ConvTranspose{dims}d")(*args, **kwargs)


@pytest.mark.parametrize("dims", [1, 2, 3])
class TestFunctional:
    @pytest.mark.parametrize("with_bias", [True, False])
    @pytest.mark.parametrize("batched", [True, False])
    @pytest.mark.parametrize("case", CASES)
    def test_equals_torch(
        self, dims: int, case: dict[str, Any], batched: bool, with_bias: bool
    ) -> None:
        x, weight, bias = tensors(dims, case.get("groups", 1), batched=batched)
        given = (x, weight, bias if with_bias else None)
        expected = call(TF, dims, *given, **case)
        got = call(F, dims, *given, **case)
        assert got.shape == expected.shape
        assert expected.abs().max() > 1
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)

    def test_by_position_and_with_a_number_for_each_axis(self, dims: int) -> None:
        x, weight, bias = tensors(dims, 2)
        each = [[2, 3, 4][:dims], [1, 0, 2][:dims], [0, 2, 1][:dims], 2, [1, 3, 1][:dims]]
        expected = call(TF, dims, x, weight, bias, *each)
        torch.testing.assert_close(
            call(F, dims, x, weight, bias, *each), expected, rtol=0, atol=1e-12
        )
        single = call(F, dims, x, weight, bias, (2,), [1], (0,), 2, [1])
        assert torch.equal(single, call(F, dims, x, weight, bias, 2, 1, 0, 2, 1))

    def test_gradients_equal_torchs(self, dims: int) -> None:
        found = []
        for module in (F, TF):
            given = [v.requires_grad_() for v in tensors(dims, 2)]
            y = call(module, dims, *given, stride=2, padding=1, output_padding=1, groups=2)
            found.append(torch.autograd.grad((y**3).sum(), given))
        for got, expected in zip(*found, strict=True):
            assert expected.any()
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_casts_as_torch_does(self, dims: int, dtype: torch.dtype) -> None:
        x, weight, bias = tensors(dims, dtype=torch.float32)
        with torch.autocast("cpu", dtype):
            got, expected = (call(m, dims, x, weight, bias, 2) for m in (F, TF))
            mixed = call(F, dims, x.to(dtype), weight, bias, 2)
            doubles = call(F, dims, x.double(), weight.double(), bias.double(), 2)
        assert got.dtype == mixed.dtype == expected.dtype == dtype
        assert doubles.dtype == torch.float64
        exact = call(TF, dims, x.double(), weight.double(), bias.double(), 2)
        step = float(exact.abs().max()) * torch.finfo(dtype).eps
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=4 * step)
        assert torch.equal(mixed, got)

    def test_transforms_of_torch_func(self, dims: int) -> None:
        """Tangents, and gradients of each row."""
        x, weight, bias = tensors(dims)
        found = []
        for module in (F, TF):

            def run(x: Tensor, module: Any = module) -> Any:
                return call(module, dims, x, weight, bias, 2) ** 2

            _, tangent = torch.func.jvp(run, (x,), (x + 1,))
            rows = torch.func.vmap(torch.func.grad(lambda row, run=run: run(row).sum()))(x)
            found.append((tangent, rows))
        for got, expected in zip(*found, strict=True):
            assert expected.any()
            assert torch.equal(got, expected)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"stride": 0}, "stride.*got"),
            ({"stride": [2] * 4}, "stride.*got"),
            ({"padding": -1}, "padding.*got"),
            ({"padding": 9}, "padding.*got"),
            ({"output_padding": 1}, "output_padding.*got"),
            ({"output_padding": -1}, "output_padding.*got"),
            ({"dilation": 0}, "dilation.*got"),
            ({"groups": 3}, "groups.*got 3"),
            ({"groups": 0}, "groups.*got 0"),
            ({"input": torch.ones(2, 2)[0]}, r"expected an input of .* axes.*got \(2,\)"),
            ({"input": torch.ones(2, 5, 4, 4, 4)}, "channels.*got 5"),
            ({"input": torch.ones(2, 4, 0, 0, 0)}, "got"),
            ({"bias": torch.ones(7)}, r"bias.*got \(7,\)"),
            ({"bias": torch.ones(6).double()}, "bias.*got"),
            ({"weight": torch.ones(4, 6, 3, 3, 3).half()}, "weight.*got"),
            ({"weight": torch.ones(4, 6)}, r"weight.*got \(4, 6\)"),
        ],
    )
    def test_what_torch_refuses_is_refused(
        self, dims: int, wrong: dict[str, Any], message: str
    ) -> None:
        x, weight, bias = tensors(dims, dtype=torch.float32)
        wrong = {k: _of(v, dims) for k, v in wrong.items()}
        given = {"input": x, "weight": weight, "bias": bias} | wrong
        with pytest.raises((RuntimeError, ValueError)):
            call(TF, dims, **given)
        with pytest.raises((TypeError, ValueError), match=message) as caught:
            call(F, dims, **given)
        assert "\n" not in str(caught.value)
        assert "expected" in str(caught.value)

    def test_compiles_whole(self, dims: int) -> None:
        x, weight, bias = tensors(dims, dtype=torch.float32)

        def run(x: Tensor) -> Any:
            return call(F, dims, x, weight, bias, 2, 1).relu()

        torch.compiler.reset()  # `run` is the same code for all dims
        torch.testing.assert_close(torch.compile(run, fullgraph=True)(x), run(x))


def _of(value: Any, dims: int) -> Any:
    """A tensor for three axes, for as many as there are."""
    if isinstance(value, Tensor) and value.dim() > 2:
        return value[(..., *[0] * (3 - dims))] if value.numel() else value.flatten(dims + 1)
    return value


@pytest.mark.parametrize("dims", [1, 2, 3])
class TestModules:
    @pytest.mark.parametrize("case", CASES)
    def test_takes_torchs_state_and_gives_it_back(self, dims: int, case: dict[str, Any]) -> None:
        channels = (4, 8 if case.get("groups") == 4 else 6, 3)
        mine, theirs = (make(m, dims, *channels, **case) for m in (nn, torch_nn))
        assert isinstance(mine, type(theirs))
        assert repr(mine) == repr(theirs)
        mine.load_state_dict(theirs.state_dict())
        x = tensors(dims, dtype=torch.float32)[0]
        torch.testing.assert_close(mine(x), theirs(x), rtol=1e-5, atol=1e-5)
        assert list(mine.state_dict()) == list(theirs.state_dict()) == ["weight", "bias"]
        again = make(torch_nn, dims, *channels, **case)
        again.load_state_dict(mine.state_dict())
        assert torch.equal(again(x), theirs(x))

    @pytest.mark.parametrize("extra", [0, 1, 2])
    def test_output_size(self, dims: int, extra: int) -> None:
        mine = make(nn, dims, 4, 6, 3, stride=3, padding=1, dtype=torch.float64)
        theirs = make(torch_nn, dims, 4, 6, 3, stride=3, padding=1, dtype=torch.float64)
        theirs.load_state_dict(mine.state_dict())
        x = tensors(dims)[0]
        size = [n + extra for n in theirs(x).shape[2:]]
        for given in (size, [2, 6, *size]):
            got = mine(x, output_size=given)
            assert list(got.shape[2:]) == size
            torch.testing.assert_close(got, theirs(x, given), rtol=0, atol=1e-12)
        alone = mine(x[0], size)
        torch.testing.assert_close(alone, theirs(x[0], size), rtol=0, atol=1e-12)

    def test_an_output_size_out_of_reach_is_refused(self, dims: int) -> None:
        mine = make(nn, dims, 4, 6, 3, stride=3, padding=1)
        with pytest.raises(ValueError, match=r"requested an output size of .* but valid sizes"):
            mine(torch.ones(1, 4, *[5] * dims), output_size=[99] * dims)

    def test_other_padding_modes_are_refused(self, dims: int) -> None:
        with pytest.raises(ValueError, match='Only "zeros" padding mode'):
            make(nn, dims, 4, 6, 3, padding_mode="reflect")

    def test_pickled_and_copied(self, dims: int) -> None:
        mine = make(nn, dims, 4, 6, 3, stride=2)
        x = tensors(dims, dtype=torch.float32)[0]
        with torch.no_grad():
            expected = mine(x)
        buffer = io.BytesIO()
        torch.save(mine, buffer)
        buffer.seek(0)
        for other in (
            pickle.loads(pickle.dumps(mine)),
            copy.deepcopy(mine),
            torch.load(buffer, weights_only=False),
        ):
            assert type(other) is type(mine)
            assert other.weight is not mine.weight
            with torch.no_grad():
                assert torch.equal(other(x), expected)
                other.weight.add_(1.0)
                assert not torch.equal(other(x), expected)
                assert torch.equal(mine(x), expected)

    def test_changed_weights_count_at_once(self, dims: int) -> None:
        """In place, behind autograd's back, by an optimiser, by loading, by another dtype."""
        mine = make(nn, dims, 4, 6, 3, stride=2)
        x = tensors(dims, dtype=torch.float32)[0]

        def check() -> Tensor:
            with torch.no_grad():
                given = x.to(mine.weight.dtype)
                expected = call(TF, dims, given, mine.weight, mine.bias, 2)
                got = mine(given)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
            return got

        seen = [check()]
        with torch.no_grad():
            mine.weight.mul_(2.0)
        seen.append(check())
        mine.weight.data[0] += 1.0
        seen.append(check())
        mine.weight.detach().numpy()[1] += 1.0
        seen.append(check())
        optimizer = torch.optim.SGD(mine.parameters(), lr=0.01)
        mine(x).square().sum().backward()
        optimizer.step()
        seen.append(check())
        mine.load_state_dict(make(torch_nn, dims, 4, 6, 3, stride=2).state_dict())
        seen.append(check())
        mine.load_state_dict(make(torch_nn, dims, 4, 6, 3, stride=2).state_dict(), assign=True)
        seen.append(check())
        mine.weight = torch_nn.Parameter(mine.weight.detach() * 3)
        seen.append(check())
        mine.weight.data = mine.weight.data * 2
        seen.append(check())
        assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))
        mine.double()
        assert check().dtype == torch.float64


def test_show_config_names_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BACKSIGHT_DECONV", raising=False)
    assert any(
        line.split() == ["BACKSIGHT_DECONV", "auto"]
        for line in backsight.show_config().splitlines()
    )
    monkeypatch.setenv("BACKSIGHT_DECONV", "phase")
    assert any(
        line.split() == ["BACKSIGHT_DECONV", "phase"]
        for line in backsight.show_config().splitlines()
    )
    with torch.no_grad():
        x, weight, bias = tensors(2)
        got = F.conv_transpose2d(x, weight, bias, 2)
        torch.testing.assert_close(got, TF.conv_transpose2d(x, weight, bias, 2), rtol=0, atol=1e-12)
    monkeypatch.setenv("BACKSIGHT_DECONV", "fast")
    with pytest.raises(ValueError, match=r"BACKSIGHT_DECONV.*got 'fast'"):
        F.conv_transpose2d(x, weight)


LARGE = [(2, (512, 512, 2, 2), (2, 512, 3, 4)), (1, (256, 128, 16, 8, 4), (2, 256, 20))]


@pytest.mark.parametrize(("dims", "arguments", "shape"), LARGE)
class TestKeptFilters:
    """Filters so large that modules keep them in oneDNN's layout."""

    def pair(self, dims: int, arguments: Any, shape: Any, last: bool) -> tuple[Any, Any, Tensor]:
        torch.manual_seed(0)
        theirs = make(torch_nn, dims, *arguments)
        ours = make(nn, dims, *arguments)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(shape)
        if last:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        return theirs, ours, x

    @pytest.mark.parametrize("last", [False, True])
    def test_equal_torch_whatever_is_written_how(
        self, dims: int, arguments: Any, shape: Any, last: bool
    ) -> None:
        theirs, ours, x = self.pair(dims, arguments, shape, last)
        writes = [
            lambda w: None,
            lambda w: w.data.mul_(1.5),
            lambda w: w.detach().numpy().flat.__setitem__(7, 3.0),
            lambda w: w.add_(0.25),
            lambda w: w.data.view(-1)[:2].copy_(w.data.view(-1)[:2].flip(0)),
        ]
        seen = []
        with torch.no_grad():
            for write in writes:
                for module in (theirs, ours):
                    write(module.weight)
                expected, found = theirs(x), ours(x)
                seen.append(expected)
                scale = float(expected.abs().max())
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)
                assert found.stride() == expected.stride() or dims == 1
                assert torch.equal(found, ours(x))  # the first call is as all that follow
        moved = [float((a - b).abs().max()) for a, b in itertools.pairwise(seen)]
        assert min(moved) > 1e-3
        assert nn.kept_bytes(ours) >= ours.weight.nbytes

    def test_are_kept_within_bounds_and_by_no_copy(
        self, dims: int, arguments: Any, shape: Any
    ) -> None:
        _, ours, x = self.pair(dims, arguments, shape, False)
        with torch.no_grad():
            for n in range(2, 9):
                ours(x[..., :n].contiguous())
        assert ours.weight.nbytes <= nn.kept_bytes(ours) <= 3 * ours.weight.nbytes
        keys = list(ours.state_dict())
        again = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
        assert list(again.state_dict()) == keys
        assert nn.kept_bytes(again) == 0
        with torch.no_grad():
            assert torch.equal(again(x), ours(x))

    def test_are_not_used_where_gradients_are(self, dims: int, arguments: Any, shape: Any) -> None:
        theirs, ours, x = self.pair(dims, arguments, shape, False)
        found, expected = ours(x), theirs(x)
        assert nn.kept_bytes(ours) == 0
        found.sum().backward()
        expected.sum().backward()
        assert float(theirs.weight.grad.abs().max()) > 0
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)

    def test_are_not_used_where_another_path_is_forced(
        self, dims: int, arguments: Any, shape: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, ours, x = self.pair(dims, arguments, shape, False)
        monkeypatch.setenv("BACKSIGHT_DECONV", "torch")
        with torch.no_grad():
            ours(x)
        assert nn.kept_bytes(ours) == 0


@pytest.mark.parametrize("bytes_", [0, 1, 63, 64, 65, 200, 32 * 1024 + 8, 3 * 32 * 1024 + 5])
def test_digest_sees_every_byte_and_its_place(bytes_: int) -> None:
    rng = torch.Generator().manual_seed(bytes_)
    data = torch.randint(0, 256, (bytes_,), dtype=torch.uint8, generator=rng)

    def digest(threads: int = 1) -> int:
        return _C.digest_cpu(threads, data.data_ptr(), bytes_)

    first = digest()
    assert first == digest(4)
    found = {first}
    places = range(bytes_) if bytes_ < 300 else range(0, bytes_, 997)
    for place in places:
        data[place] ^= 16
        found.add(digest(2))
        data[place] ^= 16
    assert len(found) == len(places) + 1
    if bytes_ > 64:
        data[:32], data[32:64] = data[32:64].clone(), data[:32].clone()
        assert digest() not in found
