"""accelerate and restore on decoders: the same model, before, between and after."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import backsight
import backsight.nn
from architectures import dcgan, segnet, unet
from backsight.methods import acceleration
from nets import calibrate, random_images, seeded


def upsampler(dims: int) -> nn.Module:
    """A small one for signals or volumes, with groups, dilation and output padding."""
    kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    return nn.Sequential(
        kind(3, 8, 4, stride=2, padding=1, bias=False),
        nn.LeakyReLU(0.2),
        kind(8, 8, 3, stride=2, output_padding=1, groups=4, dilation=2),
        nn.Tanh(),
        kind(8, 3, 3, padding=1),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dcgan": (lambda: dcgan(0.1, 32), (3, 100, 1, 1)),
    "unet": (lambda: unet(width=0.1, depth=2), (2, 3, 22, 20)),
    "segnet": (lambda: segnet(width=0.1, depth=3), (2, 3, 22, 20)),
    "signals": (lambda: upsampler(1), (2, 3, 9)),
    "volumes": (lambda: upsampler(3), (1, 3, 3, 2, 3)),
}
SWAPPED = {"dcgan": 4, "unet": 2, "segnet": 5, "signals": 3, "volumes": 3}
every_net = pytest.mark.parametrize("net", NETS)


def build(net: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """The network in training mode, and an input."""
    factory, shape = NETS[net]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return seeded(factory).to(dtype), x


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input, gradients of the parameters."""
    x = x.clone().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad((y**2 + y).sum(), [x, *model.parameters()])]


def assert_same(found: list[Tensor], expected: list[Tensor], relative: float) -> None:
    for got, wanted in zip(found, expected, strict=True):
        most = float(wanted.detach().abs().max())
        assert most > 0
        assert got.stride() == wanted.stride()
        torch.testing.assert_close(got, wanted, rtol=0, atol=relative * most)


def objects(model: nn.Module) -> list[int]:
    """Everything that a model holds, by identity."""
    held = [model.modules(), model.parameters(), model.buffers()]
    return [id(each) for each in itertools.chain(*held)]


class TestEqual:
    @pytest.mark.parametrize("path", ["auto", "phase", "direct"])
    @every_net
    def test_outputs_and_gradients(
        self, net: str, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", path)
        model, x = build(net)
        expected = results(model, x)
        held, state = objects(model), list(model.state_dict())
        done = backsight.accelerate(model)
        assert len(done.swapped) == SWAPPED[net]
        assert not done.left
        assert objects(model) == held
        assert list(model.state_dict()) == state
        for got, wanted in zip(results(model, x), expected, strict=True):
            # some biases have no gradient but rounding errors: a batch norm takes them out again
            scale = max(float(wanted.detach().abs().max()), 1e-3)
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11 * scale)
        assert all(v.detach().abs().max() > 1e-3 for v in expected[:3])

    @every_net
    def test_bit_for_bit_by_torchs_own_path(
        self, net: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BACKSIGHT_DECONV", "torch")
        model, x = build(net, torch.float32)
        if x.dim() == 4:  # contiguous maps may be turned, which rounds differently
            model = model.to(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last)
        expected = results(model, x)
        backsight.accelerate(model)
        for got, wanted in zip(results(model, x), expected, strict=True):
            assert torch.equal(got, wanted)

    @every_net
    def test_single_precision(self, net: str) -> None:
        model, x = build(net, torch.float32)
        with torch.no_grad():
            expected = model.eval()(x)
            backsight.accelerate(model)
            assert_same([model(x)], [expected], 1e-5)
            if x.dim() == 4:
                last = x.contiguous(memory_format=torch.channels_last)
                torch.testing.assert_close(model(last), expected, rtol=1e-4, atol=1e-5)

    @every_net
    def test_three_steps_of_training_reach_the_same_loss(self, net: str) -> None:
        """The optimiser is there before the modules are swapped."""
        losses = []
        for swap in (False, True):
            model, x = build(net)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            if swap:
                assert backsight.accelerate(model).swapped
            steps = []
            for _ in range(3):
                optimizer.zero_grad()
                loss = (model(x) - 0.5).square().mean()
                loss.backward()
                optimizer.step()
                steps.append(loss.item())
            losses.append(steps)
        assert losses[0][0] > losses[0][2]
        assert losses[1] == pytest.approx(losses[0], rel=1e-9, abs=0)

    @every_net
    def test_autocast(self, net: str) -> None:
        model, x = build(net, torch.float32)
        model.eval()
        with torch.no_grad():
            exact = model(x)
            with torch.autocast("cpu", torch.bfloat16):
                expected = model(x)
                backsight.accelerate(model)
                got = model(x)
        assert got.dtype == expected.dtype
        ours, theirs = ((v.float() - exact).abs().max() for v in (got, expected))
        assert theirs > 0
        assert ours < 2 * theirs + 1e-6


@every_net
class TestCarried:
    def test_exported(self, net: str) -> None:
        model, x = build(net, torch.float32)
        model.eval()
        with torch.no_grad():
            expected = model(x)
        backsight.accelerate(model)
        program = torch.export.export(model, (x,))
        targets = [str(node.target) for node in program.graph.nodes]
        assert "backsight.subpixel_deconv.default" in targets
        with torch.no_grad():
            assert_same([program.module()(x)], [expected], 1e-5)

    @pytest.mark.parametrize("strict", [False, True])
    def test_exported_for_any_batch(self, net: str, strict: bool) -> None:
        model, x = build(net, torch.float32)
        model.eval()
        backsight.accelerate(model)
        more = torch.cat([x, x + 1, x - 1])
        batch = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(
            model, (torch.cat([x, x]),), dynamic_shapes=batch, strict=strict
        )
        with torch.no_grad():
            assert_same([program.module()(more)], [model(more)], 1e-5)

    def test_compiled(self, net: str) -> None:
        model, x = build(net, torch.float32)
        torch.compiler.reset()
        expected = results(copy.deepcopy(model), x)
        backsight.accelerate(model)
        found = results(torch.compile(model, backend="aot_eager", fullgraph=True), x)
        for got, wanted in zip(found, expected, strict=True):
            scale = max(float(wanted.detach().abs().max()), 1.0)
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * scale)

    def test_compiled_to_code(self, net: str) -> None:
        if net == "segnet":
            pytest.skip("takes half a minute to compile; its pools are compiled in tests/ops")
        model, x = build(net, torch.float32)
        model.eval()
        torch.compiler.reset()
        with torch.no_grad():
            expected = model(x)
            backsight.accelerate(model)
            assert_same([torch.compile(model, fullgraph=True)(x)], [expected], 1e-5)

    def test_swapped_inside_a_compiled_model(self, net: str) -> None:
        model, x = build(net, torch.float32)
        model.eval()
        torch.compiler.reset()
        compiled = torch.compile(model, backend="eager")
        with torch.no_grad():
            expected = compiled(x)
            done = backsight.accelerate(compiled)
            assert len(done.swapped) == SWAPPED[net]
            assert not any("_orig_mod" in name for name in done.swapped)
            assert_same([compiled(x)], [expected], 1e-5)
            assert len(backsight.restore(compiled)) == SWAPPED[net]
            assert torch.equal(compiled(x), expected)

    def test_copied_and_pickled(self, net: str) -> None:
        model, x = build(net, torch.float32)
        model.eval()
        backsight.accelerate(model)
        with torch.no_grad():
            expected = model(x)
            buffer = io.BytesIO()
            torch.save(model, buffer)
            buffer.seek(0)
            for other in (
                copy.deepcopy(model),
                pickle.loads(pickle.dumps(model)),
                torch.load(buffer, weights_only=False),
            ):
                assert torch.equal(other(x), expected)
                assert len(backsight.restore(other)) == SWAPPED[net]  # and not the original
                assert_same([other(x)], [expected], 1e-5)
        assert len(backsight.restore(model)) == SWAPPED[net]

    def test_states_go_both_ways(self, net: str) -> None:
        plain, x = build(net)
        factory, _ = NETS[net]
        fast = seeded(factory, seed=5).double()
        backsight.accelerate(fast)
        plain.eval()
        fast.eval()
        with torch.no_grad():
            own = fast(x)
            assert not torch.allclose(own, plain(x))
            state = copy.deepcopy(fast.state_dict())
            fast.load_state_dict(plain.state_dict())
            assert_same([fast(x)], [plain(x)], 1e-11)
            plain.load_state_dict(state)
            assert_same([plain(x)], [own], 1e-11)

    def test_restored(self, net: str) -> None:
        model, x = build(net)
        expected = results(model, x)
        held = objects(model)
        kinds = [type(module) for module in model.modules()]
        inside = [sorted(module.__dict__) for module in model.modules()]
        done = backsight.accelerate(model)
        assert [type(module) for module in model.modules()] != kinds
        results(model, x)
        assert backsight.restore(model) == tuple(done.swapped)
        assert [type(module) for module in model.modules()] == kinds
        assert [sorted(module.__dict__) for module in model.modules()] == inside
        assert objects(model) == held
        for got, wanted in zip(results(model, x), expected, strict=True):
            assert torch.equal(got, wanted)
        assert backsight.restore(model) == ()


def test_an_accelerated_model_is_swept_by_windows() -> None:
    model = calibrate(seeded(lambda: unet(width=0.1, depth=2)), random_images((3, 32, 32), 2))
    image = random_images((3, 48, 48), seed=1)
    arguments: dict[str, Any] = {"window": 8, "stride": 8, "region": "all"}
    expected = backsight.occlusion(model, image, **arguments)
    signal = backsight.project(model, image, "up.1", [[0, 2, 20, 20]])
    backsight.accelerate(model)
    found = backsight.occlusion(model, image, **arguments)
    assert "barriers               none" in str(found.plan)
    assert torch.equal(found.drops, expected.drops)
    assert found.drops.any()
    again = backsight.project(model, image, "up.1", [[0, 2, 20, 20]])
    assert torch.equal(again.pictures, signal.pictures)
    assert signal.pictures.any()


class Own(nn.ConvTranspose2d):
    """A user's own subclass."""


class TestWhatIsSwapped:
    def test_the_report(self) -> None:
        model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.ReLU(), Own(4, 3, 2))
        done = backsight.accelerate(model)
        assert done.swapped == {"0": "ConvTranspose2d"}
        assert done.left == {"2": "Own is a class of its own"}
        assert str(done) == (
            "1 module swapped\n  0: ConvTranspose2d\n"
            "1 left as it is\n  2: Own is a class of its own"
        )
        assert type(model[2]) is Own

    def test_a_model_that_is_one_module(self) -> None:
        model = nn.ConvTranspose1d(3, 4, 2)
        assert (
            str(backsight.accelerate(model)) == "1 module swapped\n  (the model): ConvTranspose1d"
        )
        assert type(model) is backsight.nn.ConvTranspose1d
        assert backsight.restore(model) == ("",)
        assert type(model) is nn.ConvTranspose1d

    def test_nothing_to_do(self) -> None:
        done = backsight.accelerate(nn.Linear(2, 2))
        assert (done.swapped, done.left) == ({}, {})
        assert str(done) == "0 modules swapped"

    def test_twice_is_once(self) -> None:
        model, _ = build("segnet")
        assert len(backsight.accelerate(model).swapped) == 5
        assert backsight.accelerate(model) == backsight.Acceleration({}, {})
        assert len(backsight.restore(model)) == 5

    def test_modules_that_were_ours_stay(self) -> None:
        model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), backsight.nn.ConvTranspose2d(4, 3, 2))
        assert list(backsight.accelerate(model).swapped) == ["0"]
        assert backsight.restore(model) == ("0",)
        assert type(model[1]) is backsight.nn.ConvTranspose2d

    def test_shared_modules_stay_shared(self) -> None:
        shared = nn.ConvTranspose2d(3, 3, 2)
        model = nn.Sequential(shared, nn.ReLU(), shared)
        assert list(backsight.accelerate(model).swapped) == ["0"]
        assert model[0] is model[2] is shared
        assert type(shared) is backsight.nn.ConvTranspose2d
        backsight.restore(model)
        assert type(model[2]) is nn.ConvTranspose2d

    def test_modes_and_gradients_stay(self) -> None:
        model, _ = build("unet")
        model.eval()
        model.up[0].train()
        model.up[1].weight.requires_grad_(False)
        backsight.accelerate(model)
        assert [up.training for up in model.up] == [True, False]
        assert [up.weight.requires_grad for up in model.up] == [True, False]

    def test_hooks_stay(self) -> None:
        model, x = build("unet")
        seen: list[str] = []
        model.up[0].register_forward_hook(lambda *_: seen.append("after"))
        model.up[0].register_forward_pre_hook(lambda *_: seen.append("before"))
        model.up[0].register_full_backward_hook(lambda *_: seen.append("back"))
        for change in (backsight.accelerate, backsight.restore):
            change(model)
            model(x).sum().backward()
            assert seen == ["before", "after", "back"]
            seen.clear()

    def test_weights_made_by_hooks_or_parametrizations(self) -> None:
        """The old kind of weight norm has a hook and is swapped; the new one has its own class."""
        with pytest.warns(FutureWarning):
            old = torch.nn.utils.weight_norm(nn.ConvTranspose1d(3, 4, 4, 2).double())
        new = parametrizations.weight_norm(nn.ConvTranspose1d(4, 3, 4, 2).double())
        model, x = nn.Sequential(old, new), torch.randn(2, 3, 5, dtype=torch.float64)
        expected = results(model, x)
        done = backsight.accelerate(model)
        assert (list(done.swapped), list(done.left)) == (["0"], ["1"])
        assert_same(results(model, x), expected, 1e-11)
        with torch.no_grad():
            old.weight_g.mul_(2.0)
            assert not torch.allclose(model(x), expected[0])

    def test_a_replaced_forward_stays(self) -> None:
        model = nn.ConvTranspose2d(3, 3, 2)
        model.forward = lambda x: x  # type: ignore[method-assign]
        assert list(backsight.accelerate(model).left) == [""]
        assert type(model) is nn.ConvTranspose2d

    def test_data_parallel(self) -> None:
        model, _ = build("unet")
        assert len(backsight.accelerate(nn.DataParallel(model)).swapped) == 2
        assert len(backsight.restore(model)) == 2

    @pytest.mark.parametrize("function", [backsight.accelerate, backsight.restore])
    def test_what_is_no_module_is_refused(self, function: Callable[[Any], Any]) -> None:
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got list$"):
            function([nn.ConvTranspose2d(3, 3, 2)])

    def test_all_or_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A class whose instances are laid out differently cannot be assigned."""

        class Slotted(nn.ConvTranspose1d):
            __slots__ = ("place",)

        model = nn.Sequential(nn.ConvTranspose2d(3, 3, 2), nn.ConvTranspose1d(3, 3, 2))
        inside = [sorted(module.__dict__) for module in model]
        monkeypatch.setitem(acceleration._PEERS, nn.ConvTranspose1d, Slotted)
        with pytest.raises(TypeError, match="layout differs"):
            backsight.accelerate(model)
        assert [type(module) for module in model] == [nn.ConvTranspose2d, nn.ConvTranspose1d]
        assert [sorted(module.__dict__) for module in model] == inside


class Pooled(nn.Module):
    """A pool and an unpool, and what is done with the indices between them."""

    def __init__(self, pool: nn.Module, unpool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.unpool = unpool
        self.register_buffer("calls", torch.zeros(()))

    def between(self, indices: Any) -> Any:
        return indices

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        y, indices = self.pool(x)
        return self.unpool(2 * y + torch.rand(1), self.between(indices), output_size=x.shape)


class Returns(Pooled):
    def forward(self, x: Tensor) -> Any:
        y, indices = self.pool(x)
        return self.unpool(y, indices), indices


class Counts(Pooled):
    def between(self, indices: Any) -> Any:
        return indices.clone()


class Branches(Pooled):
    def forward(self, x: Tensor) -> Any:
        if x.sum() > 1e9:
            return x
        return super().forward(x)


def pooled(kind: type[Pooled] = Pooled, kernel: Any = 2, stride: Any = None) -> Pooled:
    return kind(nn.MaxPool2d(kernel, stride, return_indices=True), nn.MaxUnpool2d(kernel, stride))


class TestPools:
    x = torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(3))

    def test_pairs_pass_switches(self) -> None:
        model = pooled()
        torch.manual_seed(0)
        expected = model(self.x)
        done = backsight.accelerate(model)
        assert done.swapped == {"pool": "MaxPool2d", "unpool": "MaxUnpool2d"}
        torch.manual_seed(0)
        assert torch.equal(model(self.x), expected)
        assert expected.count_nonzero() == 2 * 3 * 3 * 3
        assert isinstance(model.pool(self.x)[1], backsight.functional.Switches)
        model.pool.return_indices = False
        assert torch.equal(model.pool(self.x), torch.max_pool2d(self.x, 2))

    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_pairs_of_any_axes_and_their_gradients(self, dims: int) -> None:
        pool, unpool = (getattr(nn, f"{name}{dims}d") for name in ("MaxPool", "MaxUnpool"))
        model = Pooled(
            pool(2, 3, padding=1, ceil_mode=True, return_indices=True), unpool(2, 3, padding=1)
        )
        x = torch.randn(2, 3, *[9, 8, 7][:dims], dtype=torch.float64)
        found = []
        for change in (backsight.restore, backsight.accelerate):
            change(model)
            torch.manual_seed(0)
            found.append(results(model, x))
        assert isinstance(model.pool, getattr(backsight.nn, f"MaxPool{dims}dSwitches"))
        for got, wanted in zip(found[1], found[0], strict=True):
            assert wanted.any()
            assert torch.equal(got, wanted)

    def test_looking_leaves_no_trace(self) -> None:
        model = pooled()
        model.train()
        model.pool.eval()
        state = torch.get_rng_state()
        backsight.accelerate(model)
        assert torch.equal(torch.get_rng_state(), state)
        assert float(model.calls) == 0
        assert (model.training, model.pool.training) == (True, False)

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda: pooled(Returns), "go, or come from, somewhere else"),
            (lambda: pooled(Counts), "go, or come from, somewhere else"),
            (lambda: pooled(Branches), "the model cannot be traced: TraceError"),
            (lambda: pooled(kernel=3, stride=2), "windows overlap"),
            (
                lambda: Pooled(nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2, (2, 3))),
                "go, or come from, somewhere else",
            ),
        ],
    )
    def test_pools_that_must_stay(self, make: Callable[[], nn.Module], reason: str) -> None:
        model = make()
        done = backsight.accelerate(model)
        assert not done.swapped
        assert list(done.left) == ["pool", "unpool"]
        assert all(reason in why for why in done.left.values())
        assert [type(m) for m in (model.pool, model.unpool)] == [nn.MaxPool2d, nn.MaxUnpool2d]

    def test_hooks_may_see_indices(self) -> None:
        seen: list[Any] = []
        for hooked in (lambda m: m, lambda m: m.pool, lambda m: m.unpool):
            model = pooled()
            hooked(model).register_forward_hook(lambda _, args, out: seen.append(args))
            done = backsight.accelerate(model)
            assert not done.swapped
            assert "a hook may see the indices" in done.left.values()
        assert not seen

    def test_alone(self) -> None:
        model = nn.Sequential(nn.MaxPool2d(2, return_indices=True))
        assert backsight.accelerate(model).left == {"0": "nothing to pair it with"}
        model = nn.Sequential(nn.MaxPool2d(2))
        assert not backsight.accelerate(model).left

    def test_an_index_from_two_pools(self) -> None:
        """One of them stays, so the unpool does, so the other does."""

        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.MaxPool2d(2, return_indices=True)
                self.second = nn.MaxPool2d((2, 2), return_indices=True)
                self.unpool = nn.MaxUnpool2d(2)

            def forward(self, x: Tensor) -> Tensor:
                y, indices = self.first(x)
                z, others = self.second(-x)
                return self.unpool(y, indices) + self.unpool(z, others)

        x = self.x[..., :6, :]
        model = Two()
        expected = model(x)
        assert len(backsight.accelerate(model).swapped) == 3
        assert torch.equal(model(x), expected)
        backsight.restore(model)
        model.second.register_forward_hook(lambda *_: None)
        assert not backsight.accelerate(model).swapped
