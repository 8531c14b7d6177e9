"""RoIPool and RoIAlign: the PyTorch references, and the operators `rcnn::roi_pool` and `rcnn::roi_align`.

Results are stored channels-last whatever the layout of the features; sums are float32 even for bfloat16 features.
On a GPU gradients are sums of any order, and their last bits vary, unless torch.use_deterministic_algorithms(True).
"""

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from rcnn.ops import kernels

KERNEL_DTYPES = (torch.float32, torch.bfloat16)  # float16 on a GPU too
ROIS_A_CHUNK = 32  # the references' temporary memory is proportional to it


def roi_pool(
    features: Float[Tensor, "B F h w"], boxes: Float32[Tensor, "B R 4"], *, output_size: int, spatial_scale: float
) -> Float[Tensor, "B*R F s s"]:
    """Take the largest feature of each of s x s bins of each RoI, differentiably in the features.

    Args:
        features: Fastest in channels-last layout, float32, bfloat16 or, on a GPU, float16.
        boxes: In canvas pixels; corners are rounded to cells and both corner cells belong to the RoI.
        output_size: s.
        spatial_scale: Cells per canvas pixel, 1/16 for a stride of 16.

    Returns:
        Maxima in the features' dtype; 0 in bins that lie outside the map.

    Raises:
        ValueError: If features and boxes do not belong together.

    Source: Girshick, Fast R-CNN, 2.1; the rounding is that of Caffe's and MXNet's ROIPooling.
    """
    _check("roi_pool", features, boxes, output_size)
    if torch.is_grad_enabled() and features.requires_grad:
        return _roi_pool(features, boxes, output_size, spatial_scale)[0]
    run = _roi_pool_inference if _is_dispatched(features, boxes) else _pool_inference
    return run(features, boxes, output_size, spatial_scale)


def roi_align(
    features: Float[Tensor, "B F h w"],
    boxes: Float32[Tensor, "B R 4"],
    *,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Tensor, "B*R F s s"]:
    """Average bilinear samples in each of s x s bins of each RoI, differentiably in the features.

    Args:
        features: Fastest in channels-last layout, float32, bfloat16 or, on a GPU, float16.
        boxes: In canvas pixels, not rounded.
        output_size: s.
        spatial_scale: Cells per canvas pixel, 1/16 for a stride of 16.
        sampling_ratio: Samples per bin and axis; 0 takes as many as the bin has cells, rounded up.
        aligned: True puts the centre of cell 0 at half a cell; False is the first version, half a cell off.

    Returns:
        Means in the features' dtype; samples more than a cell outside the map count as 0.

    Raises:
        ValueError: If features and boxes do not belong together.

    Source: He et al., Mask R-CNN, 3; boundary rules as in Detectron2.
    """
    _check("roi_align", features, boxes, output_size)
    run = _roi_align if _is_dispatched(features, boxes) else _align
    return run(features, boxes, output_size, spatial_scale, sampling_ratio, aligned)


def _check(name: str, features: Tensor, boxes: Tensor, output_size: int) -> None:
    fits = features.dim() == 4 and boxes.dim() == 3 and boxes.shape[2] == 4 and boxes.shape[0] == features.shape[0]
    if not fits or boxes.dtype != torch.float32 or output_size < 1:
        raise ValueError(
            f"{name}: features {tuple(features.shape)} and {boxes.dtype} boxes {tuple(boxes.shape)} at output_size "
            f"{output_size}: give (B, F, h, w) features, float32 boxes (B, R, 4) and an output_size of at least 1"
        )


# --- references -----------------------------------------------------------------------------------------------------


def roi_align_reference(
    features: Float[Tensor, "B F h w"],
    boxes: Float32[Tensor, "B R 4"],
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Tensor, "B*R F s s"]:
    """Compute `roi_align` as two matrix products, with a weight for every bin and every row or column of cells."""
    rows, columns = _align_weights(boxes, features.shape[-2:], output_size, spatial_scale, sampling_ratio, aligned)
    pooled = [
        torch.einsum("brph,bfhw,brqw->brpqf", row, features.float(), column)
        for row, column in zip(rows.split(ROIS_A_CHUNK, dim=1), columns.split(ROIS_A_CHUNK, dim=1), strict=True)
    ]
    return torch.cat(pooled, dim=1).flatten(0, 1).to(features.dtype).contiguous().permute(0, 3, 1, 2)


def roi_align_backward_reference(
    grad: Float[Tensor, "N F s s"],
    boxes: Float32[Tensor, "B R 4"],
    height: int,
    width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Tensor, "B F h w"]:
    """Compute the gradient of `roi_align` in the features: the same two products, transposed."""
    rows, columns = _align_weights(boxes, (height, width), grad.shape[-1], spatial_scale, sampling_ratio, aligned)
    total = grad.new_zeros((len(boxes), height, width, grad.shape[1]), dtype=torch.float32)
    per_image = grad.float().unflatten(0, boxes.shape[:2])
    for start in range(0, boxes.shape[1], ROIS_A_CHUNK):
        chunk = slice(start, start + ROIS_A_CHUNK)
        total += torch.einsum("brph,brfpq,brqw->bhwf", rows[:, chunk], per_image[:, chunk], columns[:, chunk])
    return total.to(grad.dtype).permute(0, 3, 1, 2)


def _align_weights(
    boxes: Float32[Tensor, "B R 4"],
    cells: tuple[int, int] | torch.Size,
    size: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Float32[Tensor, "B R s h"], Float32[Tensor, "B R s w"]]:
    """Return how much every row and every column of cells weighs in every bin."""
    corners = boxes * spatial_scale - (0.5 if aligned else 0.0)
    begin, length = corners[..., :2], corners[..., 2:] - corners[..., :2]
    if not aligned:
        length = length.clamp(min=1)
    weights = [
        _axis_weights(begin[..., axis], length[..., axis], cells[1 - axis], size, sampling_ratio) for axis in (1, 0)
    ]
    return weights[0], weights[1]


def _axis_weights(
    begin: Float32[Tensor, "B R"], length: Float32[Tensor, "B R"], cells: int, size: int, sampling_ratio: int
) -> Float32[Tensor, "B R s n"]:
    """Return the mean over a bin's samples of each sample's two interpolation weights."""
    begin, length = begin[..., None, None], length[..., None, None]
    grid, most = _samples(length / size, sampling_ratio)
    bins, sample = torch.arange(size, device=begin.device)[:, None], torch.arange(most, device=begin.device)
    at = begin + bins * (length / size) + (sample + 0.5) * (length / size / grid.clamp(min=1))
    counts = (sample < grid) & (at >= -1) & (at <= cells)
    distance = at.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=begin.device)
    weights = torch.where(counts[..., None], (1 - distance.abs()).clamp(min=0), 0)
    return weights.sum(dim=-2) / grid.clamp(min=1)


def _samples(bin_length: Float32[Tensor, "B R 1 1"], sampling_ratio: int) -> tuple[Float32[Tensor, "B R 1 1"], int]:
    """Return how many samples each bin takes, and the most that any takes."""
    if sampling_ratio > 0:
        return torch.full_like(bin_length, sampling_ratio), sampling_ratio
    grid = bin_length.ceil().clamp(min=0).nan_to_num(nan=0.0, posinf=0.0)
    return grid, int(grid.max()) if grid.numel() else 0


def roi_pool_reference(
    features: Float[Tensor, "B F h w"], boxes: Float32[Tensor, "B R 4"], output_size: int, spatial_scale: float
) -> tuple[Float[Tensor, "B*R F s s"], Int[Tensor, "B*R F s s"]]:
    """Compute `roi_pool` first along the rows, then along the columns of every bin.

    Returns:
        The maxima, and the first cell (row * w + column) that holds each; -1 where the bin is empty.
    """
    height, width = features.shape[-2:]
    rows = _pool_masks(boxes[..., 1::2], height, output_size, spatial_scale).flatten(0, 1)
    columns = _pool_masks(boxes[..., 0::2], width, output_size, spatial_scale).flatten(0, 1)
    image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
    chunks = zip(*(part.split(ROIS_A_CHUNK) for part in (image, rows, columns)), strict=True)
    results = [_pool_chunk(features.permute(0, 2, 3, 1)[chunk[0]], chunk[1], chunk[2]) for chunk in chunks]
    best, where = (torch.cat(part).permute(0, 3, 1, 2) for part in zip(*results, strict=True))
    return best, where.to(_argmax_dtype(height * width))


def _pool_masks(
    edges: Float32[Tensor, "B R 2"], cells: int, size: int, spatial_scale: float
) -> Bool[Tensor, "B R s n"]:
    """Return which cells of an axis lie in which bin; bins overlap where their edges are not whole cells."""
    begin, end = _round_half_away(edges * spatial_scale).split(1, dim=-1)
    bin_length = (end - begin + 1).clamp(min=1) / size
    bins = torch.arange(size, device=edges.device)
    low, high = (bins * bin_length).floor() + begin, ((bins + 1) * bin_length).ceil() + begin
    cell = torch.arange(cells, device=edges.device)
    return (cell >= low[..., None]) & (cell < high[..., None]) & edges.isfinite().all(-1)[..., None, None]


def _round_half_away(x: Float32[Tensor, "..."]) -> Float32[Tensor, "..."]:
    """Round as C does; torch.round goes to the even neighbour."""
    whole = x.trunc()
    return whole + ((x - whole).abs() >= 0.5) * x.sign()


def _pool_chunk(
    maps: Float[Tensor, "n h w F"], rows: Bool[Tensor, "n s h"], columns: Bool[Tensor, "n s w"]
) -> tuple[Float[Tensor, "n s s F"], Int[Tensor, "n s s F"]]:
    """Pool one map for each RoI."""
    height, width = maps.shape[1:3]
    cells = torch.arange(height * width, device=maps.device).view(1, height, width, 1).expand_as(maps)
    lines = [_masked_max(maps, cells, mask[:, :, None, None], dim=1) for mask in rows.unbind(1)]
    best, where = (torch.stack(part, 1) for part in zip(*lines, strict=True))
    bins = [_masked_max(best, where, mask[:, None, :, None], dim=2) for mask in columns.unbind(1)]
    best, where = (torch.stack(part, 2) for part in zip(*bins, strict=True))
    empty = best == -torch.inf
    return best.masked_fill(empty, 0), where.masked_fill(empty, -1)


def _masked_max(
    values: Float[Tensor, "..."], cells: Int[Tensor, "..."], mask: Bool[Tensor, "..."], dim: int
) -> tuple[Float[Tensor, "..."], Int[Tensor, "..."]]:
    """Return the largest value along an axis and the lowest of the cells that hold it."""
    values = values.masked_fill(~mask, -torch.inf)
    best = values.amax(dim, keepdim=True)
    return best.squeeze(dim), cells.masked_fill(values != best, torch.iinfo(torch.int64).max).amin(dim)


def roi_pool_backward_reference(
    grad: Float[Tensor, "N F s s"], argmax: Int[Tensor, "N F s s"], images: int, height: int, width: int
) -> Float[Tensor, "B F h w"]:
    """Compute the gradient of `roi_pool` in the features: every bin's gradient goes to the cell of its maximum."""
    channels = grad.shape[1]
    flat, where = (x.permute(0, 2, 3, 1).reshape(images, -1, channels) for x in (grad.float(), argmax.long()))
    total = flat.new_zeros(images, height * width, channels)
    total.scatter_add_(1, where.clamp(min=0), flat * (where >= 0))
    return total.view(images, height, width, channels).to(grad.dtype).permute(0, 3, 1, 2)


# --- operators ------------------------------------------------------------------------------------------------------


def _kernels_for(x: Tensor) -> ModuleType | None:
    known = x.dtype in KERNEL_DTYPES or (x.dtype == torch.float16 and kernels.uses_triton(x.device))
    return kernels.module_for(x.device) if known else None


def _argmax_dtype(cells: int) -> torch.dtype:
    """Return the smallest integer type for a cell's position: the argmax is as large as the result itself."""
    return torch.int16 if cells <= torch.iinfo(torch.int16).max else torch.int32


def _cells_last(x: Tensor) -> Tensor:
    """Return (B, F, h, w) as contiguous (B, h, w, F), copying only if it is not stored so."""
    return x.detach().permute(0, 2, 3, 1).contiguous()


def _new_pooled(features: Tensor, boxes: Tensor, size: int) -> Tensor:
    rois = boxes.shape[0] * boxes.shape[1]
    return features.new_empty((rois, size, size, features.shape[1])).permute(0, 3, 1, 2)


def _new_features(grad: Tensor, images: int, height: int, width: int) -> Tensor:
    return grad.new_empty((images, height, width, grad.shape[1])).permute(0, 3, 1, 2)


def _is_dispatched(features: Tensor, boxes: Tensor) -> bool:
    """Whether a call must be PyTorch's operator, whose dispatch loads the compiler at first, which takes a second."""
    differentiable = torch.is_grad_enabled() and (features.requires_grad or boxes.requires_grad)
    return differentiable or torch.compiler.is_compiling()


def _align(
    features: Tensor, boxes: Tensor, output_size: int, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    settings = (spatial_scale, sampling_ratio, aligned)
    module = _kernels_for(features)
    if module is None:
        return roi_align_reference(features, boxes, output_size, *settings)
    out = _new_pooled(features, boxes, output_size)
    cells, boxes = _cells_last(features), boxes.detach().contiguous()
    module.roi_align(cells, boxes, out.permute(0, 2, 3, 1), *settings, torch.get_num_threads())
    return out


_roi_align = torch.library.custom_op("rcnn::roi_align", _align, mutates_args=())


@torch.library.custom_op("rcnn::roi_align_backward", mutates_args=())
def _roi_align_backward(
    grad: Tensor, boxes: Tensor, height: int, width: int, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    settings = (spatial_scale, sampling_ratio, aligned)
    module = _kernels_for(grad)
    if module is None:
        return roi_align_backward_reference(grad, boxes, height, width, *settings)
    out = _new_features(grad, boxes.shape[0], height, width)
    cells, boxes = _cells_last(grad), boxes.detach().contiguous()
    module.roi_align_backward(cells, boxes, out.permute(0, 2, 3, 1), *settings, torch.get_num_threads())
    return out


@torch.library.custom_op("rcnn::roi_pool", mutates_args=())
def _roi_pool(features: Tensor, boxes: Tensor, output_size: int, spatial_scale: float) -> tuple[Tensor, Tensor]:
    module = _kernels_for(features)
    if module is None:
        return roi_pool_reference(features, boxes, output_size, spatial_scale)
    out, argmax = _roi_pool_shapes(features, boxes, output_size, spatial_scale)
    _run_pool(module, features, boxes, out, argmax, spatial_scale)
    return out, argmax


def _pool_inference(features: Tensor, boxes: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    module = _kernels_for(features)
    if module is None:
        return roi_pool_reference(features, boxes, output_size, spatial_scale)[0]
    out = _new_pooled(features, boxes, output_size)
    no_argmax = out.new_empty((0, 0, 0, 0), dtype=torch.int16)
    _run_pool(module, features, boxes, out, no_argmax, spatial_scale)
    return out


_roi_pool_inference = torch.library.custom_op("rcnn::roi_pool_inference", _pool_inference, mutates_args=())


def _run_pool(
    module: ModuleType, features: Tensor, boxes: Tensor, out: Tensor, argmax: Tensor, spatial_scale: float
) -> None:
    cells, boxes = _cells_last(features), boxes.detach().contiguous()
    out, argmax = out.permute(0, 2, 3, 1), argmax.permute(0, 2, 3, 1)
    module.roi_pool(cells, boxes, out, argmax, spatial_scale, torch.get_num_threads())


@torch.library.custom_op("rcnn::roi_pool_backward", mutates_args=())
def _roi_pool_backward(
    grad: Tensor, boxes: Tensor, argmax: Tensor, height: int, width: int, spatial_scale: float
) -> Tensor:
    module = _kernels_for(grad)
    if module is None:
        return roi_pool_backward_reference(grad, argmax, boxes.shape[0], height, width)
    out = _new_features(grad, boxes.shape[0], height, width)
    cells, boxes, argmax = _cells_last(grad), boxes.detach().contiguous(), _cells_last(argmax)
    module.roi_pool_backward(cells, boxes, argmax, out.permute(0, 2, 3, 1), spatial_scale, torch.get_num_threads())
    return out


# Shapes, for torch.compile.


@_roi_pool.register_fake
def _roi_pool_shapes(features: Tensor, boxes: Tensor, output_size: int, spatial_scale: float) -> tuple[Tensor, Tensor]:
    out = _new_pooled(features, boxes, output_size)
    return out, torch.empty_like(out, dtype=_argmax_dtype(features.shape[2] * features.shape[3]))


@_roi_align.register_fake
@_roi_pool_inference.register_fake
def _pooled_shape(features: Tensor, boxes: Tensor, output_size: int, *_: float) -> Tensor:
    return _new_pooled(features, boxes, output_size)


@_roi_align_backward.register_fake
def _align_features_shape(grad: Tensor, boxes: Tensor, height: int, width: int, *_: float) -> Tensor:
    return _new_features(grad, boxes.shape[0], height, width)


@_roi_pool_backward.register_fake
def _pool_features_shape(grad: Tensor, boxes: Tensor, argmax: Tensor, height: int, width: int, _: float) -> Tensor:
    return _new_features(grad, boxes.shape[0], height, width)


# Gradients in the features.


def _save_align(ctx: Any, inputs: tuple, output: Tensor) -> None:
    features, boxes, _, *ctx.settings = inputs
    ctx.map_size = features.shape[-2:]
    ctx.save_for_backward(boxes)


def _differentiate_align(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (boxes,) = ctx.saved_tensors
    return _roi_align_backward(grad, boxes, *ctx.map_size, *ctx.settings), None, None, None, None, None


def _save_pool(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    features, boxes, _, ctx.spatial_scale = inputs
    ctx.map_size = features.shape[-2:]
    ctx.save_for_backward(boxes, output[1])
    ctx.set_materialize_grads(False)  # or autograd makes zeros for the argmax, more work than the operator itself


def _differentiate_pool(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    boxes, argmax = ctx.saved_tensors
    return _roi_pool_backward(grad, boxes, argmax, *ctx.map_size, ctx.spatial_scale), None, None, None


_roi_align.register_autograd(_differentiate_align, setup_context=_save_align)
_roi_pool.register_autograd(_differentiate_pool, setup_context=_save_pool)
