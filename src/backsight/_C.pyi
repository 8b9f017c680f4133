"""The compiled module. An array comes as three arguments: data_ptr, shape and stride."""

from collections.abc import Sequence

cuda_archs: str  # what the CUDA kernels are compiled for; empty: they are not built

def cuda_info() -> tuple[int, int, str]: ...  # only if they are, like every *_cuda below
def isa() -> str: ...
def heatmap_cpu(
    threads: int,
    dtype: int,
    scores: int,
    boxes: int,
    scores_shape: Sequence[int],
    size: Sequence[int],
    mean: bool,
    out: int,
    workspace: int,
    /,
) -> None: ...
def heatmap_cuda(
    stream: int,
    dtype: int,
    scores: int,
    boxes: int,
    scores_shape: Sequence[int],
    size: Sequence[int],
    mean: bool,
    out: int,
    workspace: int,
    /,
) -> None: ...
def heatmap_phases_cpu(
    threads: int,
    dtype: int,
    scores: int,
    boxes: int,
    scores_shape: Sequence[int],
    size: Sequence[int],
    mean: bool,
    out: int,
    workspace: int,
    /,
) -> None: ...
def heatmap_workspace(dtype: int, scores_shape: Sequence[int], size: Sequence[int], /) -> int: ...
def occlude_cpu(
    threads: int,
    dtype: int,
    image: int,
    image_shape: Sequence[int],
    image_stride: Sequence[int],
    baseline: int,
    baseline_stride: Sequence[int],
    boxes: int,
    copies: int,
    out: int,
    out_shape: Sequence[int],
    out_stride: Sequence[int],
    /,
) -> None: ...
def occlude_cuda(
    stream: int,
    dtype: int,
    image: int,
    image_shape: Sequence[int],
    image_stride: Sequence[int],
    baseline: int,
    baseline_stride: Sequence[int],
    boxes: int,
    copies: int,
    out: int,
    out_shape: Sequence[int],
    out_stride: Sequence[int],
    /,
) -> None: ...
def splice_cpu(
    threads: int,
    dtype: int,
    base: int,
    base_shape: Sequence[int],
    base_stride: Sequence[int],
    base_index: int,
    base_at: Sequence[int],
    extent: Sequence[int],
    patch: int,
    patch_shape: Sequence[int],
    patch_stride: Sequence[int],
    patch_at: int,
    window_at: int,
    outside: float,
    out: int,
    out_shape: Sequence[int],
    out_stride: Sequence[int],
    /,
) -> None: ...
def splice_cuda(
    stream: int,
    dtype: int,
    base: int,
    base_shape: Sequence[int],
    base_stride: Sequence[int],
    base_index: int,
    base_at: Sequence[int],
    extent: Sequence[int],
    patch: int,
    patch_shape: Sequence[int],
    patch_stride: Sequence[int],
    patch_at: int,
    window_at: int,
    outside: float,
    out: int,
    out_shape: Sequence[int],
    out_stride: Sequence[int],
    /,
) -> None: ...
