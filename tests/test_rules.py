"""Rules at a ReLU: the lecture's numbers, a backward by hand, every spelling, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsight
from nets import random_images, seeded
from ops.op_cases import DTYPES, RULES, assert_bits, signs

SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu by name": lambda x: F.relu(input=x),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(0),
    "torch.clamp": lambda x: torch.clamp(x, 0.0),
    "clip": lambda x: x.clip(0, None),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_min_": lambda x: x.clamp_min_(0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, min=0),
    "threshold": nn.Threshold(0, 0),
    "aten": torch.ops.aten.relu.default,
}

CAPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6 in place": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "F.hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
    "clamp": lambda x: x.clamp(0, 6),
    "clip_": lambda x: x.clip_(0, 6),
}

OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "SiLU": nn.SiLU(),
    "SiLU in place": nn.SiLU(inplace=True),
    "GELU": nn.GELU(),
    "tanh": torch.tanh,
    "Tensor.tanh": lambda x: x.tanh(),
    "nn.Sigmoid": nn.Sigmoid(),
    "ELU": nn.ELU(),
    "ELU in place": nn.ELU(inplace=True),
    "SELU": nn.SELU(),
    "CELU": nn.CELU(),
    "LeakyReLU": nn.LeakyReLU(0.1),
    "LeakyReLU in place": nn.LeakyReLU(0.1, inplace=True),
    "Mish": nn.Mish(),
    "Hardswish": nn.Hardswish(),
    "Softplus": nn.Softplus(),
}


class Net(nn.Module):
    """Convolutions with an activation behind each: one module of it, used again and again."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 3, stride=2)
        self.head = nn.Linear(8, 4)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.second(self.activation(self.first(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return random_images((3, 15, 17), 2, seed=3).double().requires_grad_()


def net(activation: Callable[[Tensor], Tensor] = F.relu) -> Net:
    model: Net = seeded(Net).double()
    model.activation = activation
    return model


def signal(model: Callable[[Tensor], Tensor], x: Tensor, rule: str) -> Tensor:
    """What comes back to x from output 1, by a rule."""
    with backsight.rules(rule):
        scores = model(x)
    return torch.autograd.grad(scores[:, 1].sum(), x)[0]


def back(f: Tensor, r: Tensor, rule: str) -> Tensor:
    """A rule as the lecture writes it down."""
    passes = f > 0 if rule != "deconvnet" else torch.ones_like(f, dtype=torch.bool)
    return torch.where(passes, r if rule == "gradient" else r.clamp_min(0), 0)


def through(function: Callable[[Tensor], Tensor], f: Tensor, r: Tensor, rule: str) -> Tensor:
    x = f.clone().requires_grad_()
    with backsight.rules(rule):
        y = function(x * 1)  # an activation in place may not overwrite a leaf
    return torch.autograd.grad(y, x, r)[0]


class TestNumbers:
    @pytest.mark.parametrize("spelling", SPELLINGS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("rule", "expected"),
        [("gradient", [0, 0, 10, -10]), ("deconvnet", [10, 0, 10, 0]), ("guided", [0, 0, 10, 0])],
    )
    def test_the_lecture_s(
        self, spelling: str, dtype: torch.dtype, rule: str, expected: list[float]
    ) -> None:
        """f = -2 and R = 10 give 0 under the gradient, 10 under deconvnet, 0 under guided."""
        f = torch.tensor([-2, -2, 2, 2], dtype=dtype)
        r = torch.tensor([10, -10, 10, -10], dtype=dtype)
        assert through(SPELLINGS[spelling], f, r, rule).tolist() == expected

    @pytest.mark.parametrize("spelling", CAPPED)
    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            ("gradient", [0, 0, 0, 0, 10, -10, 0, 0]),
            ("deconvnet", [10, 0, 10, 0, 10, 0, 10, 0]),
            ("guided", [0, 0, 0, 0, 10, 0, 0, 0]),
        ],
    )
    def test_with_a_cap(self, spelling: str, rule: str, expected: list[float]) -> None:
        """At the cap f holds back as it does at 0."""
        f = torch.tensor([-2.0, -2, 0, 0, 5, 5, 6, 6])
        r = torch.tensor([10.0, -10] * 4)
        assert through(CAPPED[spelling], f, r, rule).tolist() == expected

    @pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (1, 2, 3, 2, 2, 3), (0, 4)])
    @pytest.mark.parametrize("in_place", [False, True])
    @pytest.mark.parametrize("rule", RULES)
    def test_any_shape(self, shape: tuple[int, ...], in_place: bool, rule: str) -> None:
        rng = torch.Generator().manual_seed(0)
        f, r = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
        got = through(lambda x: F.relu(x, in_place), f, r, rule)
        assert torch.equal(got, back(f, r, rule))

    @pytest.mark.parametrize("in_place", [False, True])
    def test_special_values(self, in_place: bool) -> None:
        """NaN, infinities and signs of zeros: under "gradient" all of it is torch's."""
        f, r = signs([2, 3, 7, 9], torch.float32, 0), signs([2, 3, 7, 9], torch.float32, 1)
        x = f.clone().requires_grad_()
        (theirs,) = torch.autograd.grad(x.relu(), x, r)
        assert_bits(through(lambda x: F.relu(x, in_place), f, r, "gradient"), theirs)
        # Of NaN torch passes a cap's gradient in some places and holds it back in others.
        f = f.nan_to_num(1)
        x = f.clone().requires_grad_()
        (theirs,) = torch.autograd.grad(F.relu6(x), x, r)
        assert_bits(through(lambda x: F.relu6(x, in_place), f, r, "gradient"), theirs)

    def test_a_view_of_more(self) -> None:
        """In place where the tensor's channels lie apart."""
        x = torch.randn(2, 6, 5, 5, requires_grad=True)
        r = torch.randn(2, 6, 5, 5)
        for rule in RULES:
            with backsight.rules(rule):
                y = x * 1
                y[:, ::2].relu_()
            (got,) = torch.autograd.grad(y, x, r)
            expected = r.clone()
            expected[:, ::2] = back(x[:, ::2], r[:, ::2], rule)
            assert torch.equal(got, expected)
            assert torch.equal(y[:, ::2], x[:, ::2].relu())


class TestNetworks:
    @pytest.mark.parametrize("rule", RULES)
    def test_backward_by_hand(self, rule: str, images: Tensor) -> None:
        model = net()
        first = model.first(images)
        second = model.second(first.relu())
        weight = model.head.weight[1]
        r = (weight / second[0, 0].numel())[None, :, None, None].expand_as(second)
        r = F.conv_transpose2d(back(second, r, rule), model.second.weight, stride=2)
        missing = [n - m for n, m in zip(first.shape[2:], r.shape[2:], strict=True)]
        r = F.pad(r, (0, missing[1], 0, missing[0]))  # what the stride leaves out
        r = F.conv_transpose2d(back(first, r, rule), model.first.weight)
        got = signal(model, images, rule)
        assert r.abs().max() > 1e-4
        torch.testing.assert_close(got, r, rtol=0, atol=1e-12 * r.abs().max().item())

    def test_the_rules_differ_and_gradient_is_torch_s(self, images: Tensor) -> None:
        model = net()
        gradient, deconvnet, guided = (signal(model, images, rule) for rule in RULES)
        (plain,) = torch.autograd.grad(model(images)[:, 1].sum(), images)
        assert torch.equal(gradient, plain)
        assert not torch.allclose(gradient, deconvnet)
        assert not torch.allclose(gradient, guided)
        assert not torch.allclose(deconvnet, guided)

    @pytest.mark.parametrize("rule", RULES)
    def test_spellings_agree_exactly(self, rule: str, images: Tensor) -> None:
        """A module reused, in place or not, functions and methods."""
        expected = signal(net(SPELLINGS["nn.ReLU"]), images, rule)
        assert expected.abs().max() > 0
        for spelling, activation in SPELLINGS.items():
            assert torch.equal(signal(net(activation), images, rule), expected), spelling

    def test_a_scaled_seed_scales_the_signal(self, images: Tensor) -> None:
        model = net()
        for rule in RULES:
            with backsight.rules(rule):
                scores = model(images)
            seeds = torch.ones(2, dtype=torch.float64), torch.full((2,), 8, dtype=torch.float64)
            one, eight = (
                torch.autograd.grad(scores[:, 1], images, seed, retain_graph=True)[0]
                for seed in seeds
            )
            assert one.abs().max() > 0
            assert torch.equal(eight, 8 * one)

    def test_outputs_do_not_change(self, images: Tensor) -> None:
        for activation in (*SPELLINGS.values(), *CAPPED.values(), *OTHERS.values()):
            model = net(activation)
            expected = model(images)
            for rule in RULES:
                with backsight.rules(rule):
                    assert torch.equal(model(images), expected)
                    with torch.no_grad():
                        assert torch.equal(model(images), expected)

    @pytest.mark.parametrize("name", OTHERS)
    def test_other_activations_keep_their_backward(self, name: str) -> None:
        f = torch.linspace(-3, 3, 24).double().view(2, 3, 4)
        r = torch.linspace(1, -1, 24).double().view(2, 3, 4).sin()
        x = f.clone().requires_grad_()
        own = torch.autograd.grad(OTHERS[name](x * 1).sum(), x)[0]
        assert own.abs().max() > 0
        for rule in RULES:
            clamped = r if rule == "gradient" else r.clamp_min(0)
            torch.testing.assert_close(through(OTHERS[name], f, r, rule), own * clamped)

    def test_kept_for_the_backward_is_a_bit_an_element(self) -> None:
        x = torch.randn(2, 8, 16, 16, requires_grad=True)
        for in_place in (False, True):
            for rule, share in (("gradient", 1), ("guided", 1), ("deconvnet", 0)):
                kept: list[Tensor] = []
                y = x * 1
                with (
                    torch.autograd.graph.saved_tensors_hooks(
                        lambda t, kept=kept: (kept.append(t), t)[1], lambda t: t
                    ),
                    backsight.rules(rule),
                ):
                    F.relu(y, in_place)
                assert sum(t.nbytes for t in kept) * 32 == share * x.nbytes

    def test_gradcheck(self, images: Tensor) -> None:
        small = images.detach()[:1, :, :7, :7].clone().requires_grad_()
        model = net(nn.ReLU(inplace=True)).requires_grad_(False)

        def f(x: Tensor) -> Tensor:
            with backsight.rules("gradient"):
                return model(x)

        assert torch.autograd.gradcheck(f, (small,))
        assert torch.autograd.gradgradcheck(lambda x: f(x) ** 2, (small,))

    @pytest.mark.parametrize("rule", ["deconvnet", "guided"])
    def test_derivative_of_the_backward(self, rule: str) -> None:
        x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
        r = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
        for function in (*SPELLINGS.values(), nn.ReLU6(), nn.GELU()):

            def f(r: Tensor, function: Any = function) -> Tensor:
                with backsight.rules(rule):
                    y = function(x * 1)
                return torch.autograd.grad(y, x, r, create_graph=True)[0]

            assert torch.autograd.gradcheck(f, (r,))


class TestContext:
    def test_counts(self, images: Tensor) -> None:
        with backsight.rules("guided") as applied:
            assert applied.intercepted == 0
            net()(images)
            assert applied.intercepted == 2
            with torch.no_grad():
                net(nn.GELU())(images)
        assert applied.intercepted == 4
        assert applied.rule == "guided"
        with applied:
            net()(images)
        assert applied.intercepted == 2

    def test_none_met(self, images: Tensor) -> None:
        model = net(lambda x: x)
        with (
            pytest.raises(RuntimeError, match=r"expected a model to compute.*'guided'.*got none"),
            backsight.rules("guided"),
        ):
            model(images)
        self.assert_left()

    def test_what_is_no_activation(self, images: Tensor) -> None:
        found = torch.empty_like(images)
        with backsight.rules("guided") as applied:
            images.clamp(min=1).clamp(0.5, 2).clamp(max=0)
            images.clamp(min=torch.zeros(())).clamp(0, torch.ones(()))
            torch.arange(5).clamp(min=0)
            F.threshold(images, 0, 1)
            torch.clamp(images.detach(), 0, out=found)
            assert applied.intercepted == 0
            images.relu()
        assert torch.equal(found, images.relu())

    def test_an_exception_comes_through_and_leaves_nothing(self, images: Tensor) -> None:
        model = net()
        with pytest.raises(ZeroDivisionError), backsight.rules("guided"):
            1 / 0  # noqa: B018
        with pytest.raises(RuntimeError, match="channels"), backsight.rules("guided"):
            model(images[:, :2])
        self.assert_left()
        (plain,) = torch.autograd.grad(model(images)[:, 1].sum(), images)
        assert torch.equal(plain, signal(model, images, "gradient"))

    def assert_left(self) -> None:
        assert not torch._C._is_torch_function_mode_enabled()

    def test_the_forward_counts(self, images: Tensor) -> None:
        """Backward outside the context, and a plain forward between two rules."""
        model = net()
        expected = {rule: signal(model, images, rule) for rule in RULES}
        with backsight.rules("guided"):
            guided = model(images)
        plain = model(images)
        with backsight.rules("deconvnet"):
            deconvnet = model(images)
        for rule, scores in (("deconvnet", deconvnet), ("gradient", plain), ("guided", guided)):
            (got,) = torch.autograd.grad(scores[:, 1].sum(), images)
            assert torch.equal(got, expected[rule])

    def test_the_inner_context_decides(self, images: Tensor) -> None:
        model = net()
        expected = {rule: signal(model, images, rule) for rule in ("guided", "deconvnet")}
        with backsight.rules("deconvnet") as outer:
            assert torch.equal(signal(model, images, "deconvnet"), expected["deconvnet"])
            assert torch.equal(signal(model, images, "guided"), expected["guided"])
            assert outer.intercepted == 0
            outside = model(images)
        assert outer.intercepted == 2
        (got,) = torch.autograd.grad(outside[:, 1].sum(), images)
        assert torch.equal(got, expected["deconvnet"])

    def test_an_overwritten_leaf(self) -> None:
        leaf = torch.randn(3, 4, requires_grad=True)
        for function in (F.relu, F.relu6):
            with pytest.raises(RuntimeError, match="leaf"), backsight.rules("guided"):
                function(leaf, inplace=True)

    def test_an_unknown_rule(self) -> None:
        with pytest.raises(ValueError, match="gradient, deconvnet, guided, got 'lrp'"):
            backsight.rules("lrp")

    def test_autocast(self, images: Tensor) -> None:
        model, x = net().float(), images.detach().float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            got = signal(model, x, "guided")
        exact = signal(model, x, "guided")
        assert got.dtype == torch.float32
        assert 0 < (got - exact).abs().max() < 0.05 * exact.abs().max()

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("in_place", [False, True])
    def test_compiled(self, rule: str, in_place: bool, images: Tensor) -> None:
        """Around a compiled model, and within one; what the count says holds for every run."""

        def activation(x: Tensor) -> Tensor:
            return F.gelu(F.relu6(F.relu(x, in_place), in_place))

        model = net(activation)
        expected = signal(model, images, rule)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

        def within(x: Tensor) -> Tensor:
            with backsight.rules(rule):
                return model(x)

        for _ in range(2):
            with backsight.rules(rule) as applied:
                scores = compiled(images)
            assert applied.intercepted == 6
            (got,) = torch.autograd.grad(scores[:, 1].sum(), images)
            assert torch.equal(got, expected)
        scores = torch.compile(within, fullgraph=True, backend="aot_eager")(images)
        assert torch.equal(torch.autograd.grad(scores[:, 1].sum(), images)[0], expected)

    def test_compiled_by_inductor(self, images: Tensor) -> None:
        model = net(nn.ReLU(inplace=True))
        with backsight.rules("guided"):
            scores = torch.compile(model, fullgraph=True)(images)
        (got,) = torch.autograd.grad(scores[:, 1].sum(), images)
        expected = signal(model, images, "guided")
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
