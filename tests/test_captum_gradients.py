"""GuidedBackprop, Deconvolution and Saliency against captum, and where captum errs."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsight
from backsight.captum import Deconvolution, GuidedBackprop, Saliency
from backsight.captum.gradients import signals
from backsight.captum.inputs_only import InputsOnly
from nets import calibrate, random_images, seeded
from test_captum import TwoImages

KINDS = [GuidedBackprop, Deconvolution, Saliency]
# captum names its hooks, and the requirement of gradients, in warnings.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum")


def theirs(kind: Any) -> Any:
    return getattr(captum.attr, kind.__name__)


class Net(nn.Module):
    """Layers of every kind whose inputs need not be kept, and an activation spelled one way."""

    def __init__(self, activation: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, dilation=2)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2)
        self.pools = nn.Sequential(
            nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((3, 4))
        )
        self.inner, self.head = nn.Linear(72, 16), nn.Linear(16, 5)
        modules = [nn.ReLU(inplace=i % 2 == 0) for i in range(4)]
        self.modules_ = nn.ModuleList(modules if activation is None else [])
        self.activations = modules if activation is None else [activation] * 4

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth = self.activations
        x = first(self.norm(self.conv(x)))
        x = third(self.up(second(self.depthwise(x))))
        return self.head(fourth(self.inner(self.pools(x).flatten(1))))


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "in place": lambda x: F.relu(x, inplace=True),
    "torch.relu_": torch.relu_,
    "Tensor.relu": Tensor.relu,
    "clamp_min": lambda x: x.clamp_min(0),
    "one module": nn.ReLU(inplace=True),
}


def net(activation: Callable[[Tensor], Tensor] | None = None) -> Net:
    model = calibrate(seeded(lambda: Net(activation)), random_images((3, 19, 22), 4, seed=1))
    assert isinstance(model, Net)
    return model


@pytest.fixture
def x() -> Tensor:
    return random_images((3, 19, 22), 3, seed=2)


class Indexed(nn.Module):
    """Scores (examples, 4, 3), with further arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 12, 3), nn.ReLU()

    def forward(self, x: Tensor, scale: Any = 1.0, shift: float = 0.0) -> Tensor:
        return self.relu(self.conv(x) * scale + shift).mean((2, 3)).view(-1, 4, 3)


TARGETS: list[Any] = [
    1,
    -1,
    (2,),
    torch.tensor(3),
    torch.tensor([0]),
    [0, 4, 2],
    torch.tensor([3, 0, 1]),
    [(1,), (0,), (4,)],
]


class TestCaptum:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("target", TARGETS, ids=str)
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_the_same_numbers(
        self, kind: Any, target: Any, memory_format: torch.memory_format, x: Tensor
    ) -> None:
        model = net().to(memory_format=memory_format)
        x = x.contiguous(memory_format=memory_format)
        expected = theirs(kind)(model).attribute(x, target=target)
        assert expected.abs().max() > 1e-4
        assert torch.equal(kind(model).attribute(x, target=target), expected)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_dtypes(self, kind: Any, dtype: torch.dtype, x: Tensor) -> None:
        model, x = net().to(dtype), x.to(dtype)
        expected = theirs(kind)(model).attribute(x, target=2)
        found = kind(model).attribute(x, target=2)
        assert found.dtype == dtype
        assert torch.equal(found, expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_targets_of_more_axes_and_further_arguments(self, kind: Any, x: Tensor) -> None:
        model = seeded(Indexed)
        scale = torch.tensor([1.0, 0.5, 2.0]).view(3, 1, 1, 1)
        each: list[Any] = [None, scale, 0.3, (scale,), (scale, 0.1)]
        for further in each:
            for target in ((1, 2), [(0, 0), (3, 1), (2, 2)]):
                arguments = {"target": target, "additional_forward_args": further}
                expected = theirs(kind)(model).attribute(x, **arguments)
                assert expected.abs().max() > 1e-4
                assert torch.equal(kind(model).attribute(x, **arguments), expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_target(self, kind: Any, x: Tensor) -> None:
        class One(Net):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x)[:, 3]

        model = seeded(One).eval()
        expected = theirs(kind)(model).attribute(x)
        assert expected.abs().max() > 0
        assert torch.equal(kind(model).attribute(x), expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_tuples(self, kind: Any) -> None:
        class Modules(TwoImages):
            def __init__(self) -> None:
                super().__init__()
                self.relu, self.other = nn.ReLU(), nn.ReLU()

            def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
                left = self.relu(self.wide(a)).mean((2, 3))
                right = self.other(self.tall(b)).amax((2, 3))
                return self.fc(left * self.features(c) + right)

        inputs = random_images((2, 9, 8), 2), random_images((3, 7, 9), 2, 1), torch.rand(2, 5)
        expected = theirs(kind)(seeded(Modules)).attribute(inputs, target=[1, 3])
        for model in (seeded(Modules), seeded(TwoImages)):
            found = kind(model).attribute(inputs, target=[1, 3])
            assert isinstance(found, tuple)
            for ours, other in zip(found, expected, strict=True):
                assert other.abs().max() > 0
                assert torch.equal(ours, other)
        (one,) = kind(net()).attribute((inputs[1],), target=0)
        assert torch.equal(one, kind(net()).attribute(inputs[1], target=0))

    def test_saliency_without_absolute_values(self, x: Tensor) -> None:
        found = Saliency(net()).attribute(x, 1, False)
        assert torch.equal(found, captum.attr.Saliency(net()).attribute(x, 1, False))
        assert found.min() < 0
        assert torch.equal(found.abs(), Saliency(net()).attribute(x, 1))

    def test_saliency_of_a_linear_model(self, x: Tensor) -> None:
        """|w|, whatever the input."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4))
        expected = model[1].weight[2].abs().view(x[0].shape)
        assert torch.equal(Saliency(model).attribute(x, target=2), expected.expand_as(x))

    @pytest.mark.parametrize("kind", KINDS)
    def test_functions(self, kind: Any, x: Tensor) -> None:
        """Any callable; one without arguments knows its inputs."""
        model = net()
        expected = kind(model).attribute(x, target=1)
        found = kind(lambda x: model(x)[:, 1]).attribute(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        for given in (x.clone(), x.clone().requires_grad_(), x.clone().requires_grad_() * 1):
            required = given.requires_grad
            found = kind(lambda given=given: model(given)).attribute(given, target=1)
            assert torch.equal(found, expected)
            assert given.requires_grad is required

    @pytest.mark.parametrize("kind", KINDS)
    def test_inside_noise_tunnel(self, kind: Any, x: Tensor) -> None:
        found = []
        for one in (kind, theirs(kind)):
            torch.manual_seed(3)
            tunnel = captum.attr.NoiseTunnel(one(net()))
            found.append(tunnel.attribute(x, nt_samples=2, stdevs=0.2, target=1))
        assert found[1].abs().max() > 1e-4
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("kind", KINDS)
    def test_interface(self, kind: Any) -> None:
        def parameters(method: Any) -> list[tuple[str, Any]]:
            return [(p.name, p.default) for p in inspect.signature(method).parameters.values()]

        other = theirs(kind)
        assert parameters(kind.attribute) == parameters(other.attribute)
        assert parameters(kind) == parameters(other)
        assert kind.get_name() == other.get_name()
        model = nn.Linear(2, 2)
        assert kind(model).forward_func is model
        assert kind(model).multiplies_by_inputs == other(model).multiplies_by_inputs
        assert kind(model).has_convergence_delta() == other(model).has_convergence_delta()
        for one in (kind(model), other(model)):
            with pytest.raises(NotImplementedError):
                one.attribute_future()


class TestWhereCaptumErrs:
    @pytest.mark.parametrize("kind", [GuidedBackprop, Deconvolution])
    @pytest.mark.parametrize("spelling", SPELLINGS)
    def test_spellings(self, kind: Any, spelling: str, x: Tensor) -> None:
        """What captum says of the model written with nn.ReLU, not what it says of this one."""
        expected = theirs(kind)(net()).attribute(x, target=1)
        model = net(SPELLINGS[spelling])
        assert torch.equal(kind(model).attribute(x, target=1), expected)
        if spelling != "one module":
            gradient = captum.attr.Saliency(model).attribute(x, target=1, abs=False)
            assert torch.equal(theirs(kind)(model).attribute(x, target=1), gradient)
            assert not torch.allclose(gradient, expected)

    def test_a_module_used_twice(self, x: Tensor) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
                self.relu = nn.ReLU()

            def forward(self, x: Tensor) -> Tensor:
                return self.relu(self.second(self.relu(self.first(x)))).mean((2, 3))

        model = seeded(Twice)
        apart = nn.Sequential(model.first, nn.ReLU(), model.second, nn.ReLU())
        for kind in (GuidedBackprop, Deconvolution):
            expected = theirs(kind)(lambda_module(apart)).attribute(x, target=1)
            assert expected.abs().max() > 1e-4
            assert torch.equal(kind(model).attribute(x, target=1), expected)

    @pytest.mark.parametrize("kind", [GuidedBackprop, Deconvolution])
    def test_a_model_without_activations_has_its_gradient(self, kind: Any, x: Tensor) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with pytest.warns(UserWarning, match=r"expected a model that.*got none: .* is then the gr"):
            found = kind(model).attribute(x, target=1)
        assert torch.equal(found, theirs(kind)(model).attribute(x, target=1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kind(net()).attribute(x, target=1)


def lambda_module(body: nn.Module) -> nn.Module:
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class TestLeavesNothing:
    @pytest.mark.parametrize("kind", KINDS)
    def test_after_a_call_and_after_an_exception(self, kind: Any, x: Tensor) -> None:
        model = net()
        state = copy.deepcopy(model.state_dict())
        required = [p.requires_grad for p in model.parameters()]
        before = x.clone()
        kind(model).attribute(x, target=1)
        for arguments, error in (
            ({"target": 9}, IndexError),
            ({}, AssertionError),
            ({"target": 1, "additional_forward_args": 3}, TypeError),
        ):
            with pytest.raises(error):
                kind(model).attribute(x, **arguments)
            with pytest.raises(error):
                kind(lambda *args, model=model: model(*args)).attribute(x, **arguments)
        with pytest.raises(ZeroDivisionError):
            kind(lambda: 1 / 0).attribute(x)
        assert torch.equal(x, before)
        assert x.grad is None
        assert not x.requires_grad
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
        assert [p.requires_grad for p in model.parameters()] == required
        assert all(p.grad is None for p in model.parameters())
        for module in model.modules():
            hooks = (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
            assert not any(hooks)
        assert not torch._C._is_torch_function_mode_enabled()
        assert torch.is_grad_enabled()

    @pytest.mark.parametrize("kind", KINDS)
    def test_where_gradients_are_off(self, kind: Any, x: Tensor) -> None:
        expected = kind(net()).attribute(x, target=1)
        with torch.no_grad():
            assert torch.equal(kind(net()).attribute(x, target=1), expected)
            assert not torch.is_grad_enabled()
        model = net()
        with torch.inference_mode():
            found = kind(model).attribute(x.clone(), target=1)
        assert torch.equal(found, expected)
        assert not found.requires_grad

    def test_inputs_with_gradients(self, x: Tensor) -> None:
        x.requires_grad_()
        found = GuidedBackprop(net()).attribute(x, target=1)
        assert x.requires_grad
        assert x.grad is None
        assert torch.equal(found, GuidedBackprop(net()).attribute(x.detach(), target=1))


class TestRefuses:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"inputs": torch.ones(2, 3).int()}, RuntimeError, "floating point, got torch.int32"),
            ({"inputs": "photo"}, AssertionError, "expected inputs as a tensor"),
            ({"target": None}, AssertionError, r"expected a target.*shape \(2, 5\)"),
            ({"target": 5}, IndexError, "expected a target within the scores, got 5"),
            ({"target": [1]}, AssertionError, "expected a target for each of 2 examples"),
            ({"target": (1, 2)}, AssertionError, "expected at most 1 indices"),
        ],
    )
    @pytest.mark.parametrize("kind", KINDS)
    def test_bad_arguments(
        self, kind: Any, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))
        given = {"inputs": torch.rand(2, 3), "target": 1} | arguments
        with pytest.raises(error, match=message):
            kind(model).attribute(**given)
        with pytest.raises(Exception) as other:  # noqa: PT011
            theirs(kind)(model).attribute(**given)
        assert other.type is error


class TestInputsOnly:
    def kept(self, model: nn.Module, x: Tensor, only: bool) -> int:
        """Bytes kept for the backward, without the parameters and x."""
        found: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            x = x.clone().requires_grad_()
            if only:
                with InputsOnly(), backsight.rules("guided"):
                    model(x)
            else:
                model(x)
        own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers(), x)}
        return sum(size for place, size in found.items() if place not in own)

    def test_keeps_switches_and_bits(self, x: Tensor) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        activations = sum(model[: i + 1](x).numel() for i in (1, 3))
        assert self.kept(model, x, only=False) >= 4 * activations
        assert self.kept(model, x, only=True) <= activations / 8 * 1.5

    def test_nothing_reads_what_is_not_kept(self, x: Tensor) -> None:
        """Fresh memory is NaN here."""
        x = x.double()
        model = net().double()
        expected = GuidedBackprop(model).attribute(x, target=1)
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            assert torch.empty(3).isnan().all()
            for kind in KINDS:
                assert kind(model).attribute(x, target=1).isfinite().all()
            assert torch.equal(GuidedBackprop(model).attribute(x, target=1), expected)
        finally:
            torch.use_deterministic_algorithms(before)

    def test_weights_that_depend_on_the_input(self, x: Tensor) -> None:
        """A convolution by filters that the image makes, one by parametrised weights, and a batch
        norm in training mode, which mixes the batch."""

        class Dynamic(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.base = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
                self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU()

            def forward(self, x: Tensor) -> Tensor:
                filters = x[:, :, :3, :3].mean(0, keepdim=True).expand(4, -1, -1, -1)
                maps = self.norm(self.base(x) + F.conv2d(x, filters))
                return self.relu(maps).square().mean((2, 3))

        model = seeded(Dynamic).double().train()
        x = x.double()
        for kind in KINDS:
            expected = theirs(kind)(copy.deepcopy(model)).attribute(x, target=1)
            assert expected.abs().max() > 1e-4
            found = kind(copy.deepcopy(model)).attribute(x, target=1)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)

    def test_a_gradient_in_the_forward(self, x: Tensor) -> None:
        """A model that differentiates within itself."""

        def model(x: Tensor) -> Tensor:
            inner = torch.tanh(x)
            (slope,) = torch.autograd.grad(inner.sum(), x, create_graph=True)
            return (slope * x).sum((1, 2, 3))

        found = signals(model, x, None, None)
        y = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(((1 - torch.tanh(y) ** 2) * y).sum(), y)
        torch.testing.assert_close(found, expected)
