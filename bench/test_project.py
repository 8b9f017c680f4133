"""project against captum's NeuronGuidedBackprop: the same units, one by one and in batches."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn

import backsight
from harness import QUICK, Peer, Report, alternate, best_of, build, photo
from nets import vgg16

SECTION = "Projection: guided backprop of single units, one image"


@dataclass(frozen=True)
class Case:
    """One row. index: of the layer in VGG16's features; sample: units that captum runs."""

    layer: str
    index: int
    units: int
    sample: int
    one_by_one: float
    batched: float


CASES = [
    Case("conv3_3", 14, 256, 8, 40.0, 20.0),
    Case("conv4_3", 21, 256, 8, 0.0, 8.0),
]
if QUICK:
    CASES = [Case("conv2_2", 7, 32, 4, 0.0, 0.0)]


def random_units(shape: torch.Size, count: int) -> Tensor:
    """(count, 4) of image 0: channel, row and column at random."""
    rng = torch.Generator().manual_seed(0)
    columns = [torch.randint(n, (count,), generator=rng) for n in shape[1:]]
    return torch.stack([torch.zeros(count, dtype=torch.int64), *columns], 1)


def captum_peers(model: nn.Module, layer: nn.Module, image: Tensor, units: Tensor) -> list[Peer]:
    """captum on some of the units, by how many share a batch."""
    method = captum.attr.NeuronGuidedBackprop(model, layer)

    def peer(batch: int) -> Peer:
        def run() -> Tensor:
            found = []
            for some in units.split(batch):
                rows = torch.arange(len(some))
                copies = image.expand(len(some), *image.shape[1:]).clone().requires_grad_()
                chosen = (rows, *some[:, 1:].unbind(1))
                found.append(method.attribute(copies, lambda out, at=chosen: out[at]))
            return torch.cat(found)

        return Peer("captum", run, len(units), f"batch {batch}")

    return [peer(batch) for batch in (1, 4, 8) if batch <= len(units)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.layer)
def test_project(case: Case, report: Report, benchmark: Any) -> None:
    print(f"\n{case.layer}", flush=True)
    warnings.filterwarnings("ignore", message="Setting backward hooks")
    model, image = build(vgg16), photo(224)
    name = f"features.{case.index}"
    layer = model.get_submodule(name)
    with torch.no_grad():
        shape = nn.Sequential(*list(model.features)[: case.index + 1])(image).shape
    units = random_units(shape, case.units)
    result: dict[str, Any] = {}

    def ours() -> None:
        result["ours"] = backsight.project(model, image, name, units, rule="guided")

    single, *batched = captum_peers(model, layer, image, units[: case.sample])
    best = best_of(batched)
    functions = {"ours": ours, "one": single.run, "batched": best.run}
    # The first call captures the model; later ones find it captured.
    stats = alternate(functions, rounds=1 if QUICK else 5, warmup=1, benchmark=benchmark)

    # The benchmark is void if it did not compute the same thing.
    theirs = single.run().detach()
    for unit, picture in enumerate(theirs):
        whole = result["ours"].whole(unit)
        assert picture.abs().max() > 0
        assert (whole - picture).abs().max() <= 1e-4 * picture.abs().max()

    factor = case.units / case.sample
    one, batch = (stats[key].times(factor) for key in ("one", "batched"))
    targets = {"one by one": case.one_by_one, "batched": case.batched}
    report.add(
        SECTION,
        {
            "case": f"VGG16 224 {case.layer}",
            "units": str(case.units),
            "ours": str(stats["ours"]),
            "captum one by one": f"{one} ({case.sample} of {case.units} units run)",
            "x one by one": f"{one.median / stats['ours'].median:.1f}",
            "captum batched": f"{batch} ({best.setting}; {case.sample} units run)",
            "x batched": f"{batch.median / stats['ours'].median:.1f}",
            "target": " and ".join(f">= {t} {k}" for k, t in targets.items() if t),
        },
    )
    report.remark(
        SECTION,
        "`project(model, image, layer, units, rule='guided')` with units at random places, against "
        "captum's `NeuronGuidedBackprop` on the same units (its pictures agree with ours), on as "
        "many as stated and extrapolated linearly; batched is its best of 4 and 8 copies "
        "of the image, each with its unit. Ours had captured the model in a call before.",
    )
