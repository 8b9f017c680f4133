"""The judge of every occlusion: slow, obvious, fp64, and independent of the package."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Baseline = float | Tensor


def grid(
    size: Sequence[int], window: Sequence[int], stride: Sequence[int], edge: str = "clip"
) -> Tensor:
    """Boxes (positions, 2*D) int64, half-open, starts then ends, clipped to the image.

    Positions run in raster order, the last axis fastest. Per axis, for an image of n pixels, a
    window of w and a stride of s:

    clip      starts 0, s, 2s, ...: ceil((n - w) / s) + 1 of them, the last box cut at the edge
              (a stride larger than the window can put the last start at the edge: an empty box)
    inside    as many, but a box that would leave the image is moved back inside
    drop      whole boxes only: floor((n - w) / s) + 1
    overhang  box centres at 0, s, 2s, ... < n: ceil(n / s) boxes, cut at both edges
    """
    axes: list[list[tuple[int, int]]] = []
    for n, w, s in zip(size, window, stride, strict=True):
        spans = []
        if edge == "clip":
            for i in range(math.ceil((n - w) / s) + 1):
                spans.append((min(i * s, n), min(i * s + w, n)))
        elif edge == "inside":
            for i in range(math.ceil((n - w) / s) + 1):
                start = min(i * s, n - w)
                spans.append((start, start + w))
        elif edge == "drop":
            start = 0
            while start + w <= n:
                spans.append((start, start + w))
                start += s
        elif edge == "overhang":
            for centre in range(0, n, s):
                start = centre - w // 2
                spans.append((max(start, 0), min(start + w, n)))
        else:
            raise ValueError(f"unknown edge rule {edge!r}")
        axes.append(spans)
    rows: list[list[tuple[int, int]]] = [[]]
    for spans in axes:
        rows = [[*row, span] for row in rows for span in spans]
    return torch.tensor([[a for a, _ in row] + [b for _, b in row] for row in rows])


def occluded(image: Tensor, box: Sequence[int], baseline: Baseline = 0.0) -> Tensor:
    """A copy of image (C, *S) whose ``box`` holds the baseline.

    baseline: a number, or a tensor that broadcasts against (C, *S).
    """
    dims = image.dim() - 1
    filler = torch.as_tensor(baseline, dtype=image.dtype).expand(image.shape)
    region = (slice(None), *(slice(box[d], box[dims + d]) for d in range(dims)))
    result = image.clone()
    result[region] = filler[region]
    return result


@torch.no_grad()
def oracle(
    model: nn.Module, images: Tensor, boxes: Tensor, baseline: Baseline = 0.0
) -> tuple[Tensor, Tensor]:
    """Scores and drops by brute force: one occluded image through the model at a time, in fp64.

    images (I, C, *S), boxes (P, 2*D), baseline a number or a tensor broadcastable to (I, C, *S).
    Returns base (I, K) and drops (I, P, K) = base - scores of the occluded images.
    """
    judge = copy.deepcopy(model).cpu().double().eval()
    images = images.detach().cpu().double()
    filler = torch.as_tensor(baseline, dtype=torch.float64).cpu().expand(images.shape)
    base, drops = [], []
    for image, fill in zip(images, filler, strict=True):
        before = judge(image[None])[0]
        rows = []
        for box in boxes.tolist():
            rows.append(before - judge(occluded(image, box, fill)[None])[0])
        base.append(before)
        drops.append(torch.stack(rows))
    return torch.stack(base), torch.stack(drops)
