"""Triton's kernels: that they compile, without a GPU; and on one, the sizes of real networks against the references."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rcnn.ops.nms import nms
from rcnn.ops.roi import roi_align, roi_pool

SOURCE = Path(__file__).resolve().parents[2] / "src"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rcnn.ops.kernels import nms_triton, roi_gather_triton, roi_triton

def check(kernel, tensors, integers, floats="", **constants):
    types = {name: f"*{kind}" for name, kind in tensors.items()} | dict.fromkeys(integers.split(), "i32")
    types |= dict.fromkeys(floats.split(), "fp32") | dict.fromkeys(constants, "constexpr")
    types = {name: types[name] for name in kernel.arg_names}
    ones = {p.name: 1 for p in kernel.params if types[p.name] == "i32" and not p.do_not_specialize}
    compile_for(80, kernel, types, constants)
    compile_for(90, kernel, types | dict.fromkeys(ones, "constexpr"), constants | ones)  # as at a launch with ones

def compile_for(capability, kernel, types, constants):
    made = triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32))
    print(kernel.__name__, capability, len(made.asm["cubin"]))

box = {"boxes": "fp32", "extent": "i64", "words": "i64"}
check(nms_triton._overlap_bits, box, "count blocks", "threshold offset")
sweep = {"words": "i64", "alive": "i1", "order": "i64", "extent": "i64", "place": "i32", "index": "i64", "kept": "i1"}
check(nms_triton._sweep, sweep, "count blocks k", WIDTH=1024)
sizes = "height width channels rois size"
for kind in sys.argv[1:]:
    for ratio, aligned in ((0, False), (2, True)):
        how = {"RATIO": ratio, "ALIGNED": aligned, "CHANNELS": 256}
        forward = {"features": kind, "boxes": "fp32", "pooled": kind}
        check(roi_triton._align, forward, sizes, "scale", **how, BACKWARD=False)
        check(roi_triton._align, forward | {"features": "fp32"}, sizes, "scale", **how, BACKWARD=True)
        check(roi_gather_triton._align_gather, {"grad": kind, "boxes": "fp32", "out": kind}, sizes, "scale", **how)
    pool = {"features": kind, "boxes": "fp32", "pooled": kind, "argmax": "i16"}
    check(roi_triton._pool, pool, sizes, "scale", WITH_ARGMAX=True, CHANNELS=512)
    check(roi_triton._pool, pool | {"argmax": kind}, sizes, "scale", WITH_ARGMAX=False, CHANNELS=512)
    check(roi_triton._scatter, {"grad": kind, "argmax": "i32", "total": "fp32"}, "cells channels bins", CHANNELS=512)
    gather = {"grad": kind, "boxes": "fp32", "argmax": "i16", "out": kind}
    check(roi_gather_triton._pool_gather, gather, sizes, "scale", CHANNELS=256)
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
@pytest.mark.parametrize("kinds", [["bf16"], ["fp32", "fp16"]])
def test_every_kernel_compiles_for_gpus_that_are_not_here(kinds: list[str]) -> None:
    start = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n"
    done = subprocess.run([sys.executable, "-c", start + COMPILE, *kinds], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 4 + 20 * len(kinds) and all(int(size) > 0 for _, _, size in lines)


# --- on a GPU -------------------------------------------------------------------------------------------------------


def candidates(images: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of all sizes on a picture, as an RPN makes them: some invalid, many scores equal."""
    centre = torch.rand(images, count, 2) * torch.tensor([1000.0, 600.0])
    size = 16 * torch.exp(torch.rand(images, count, 2) * 3)
    scores = (torch.rand(images, count) * 2000).round() / 2000
    return torch.cat([centre - size / 2, centre + size / 2], 2), scores, torch.rand(images, count) > 0.05


def reference(run: Callable[[], list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the plain PyTorch operators return."""
    with monkeypatch.context() as environment:
        environment.setenv("RCNN_KERNELS", "reference")
        return run()


@pytest.mark.gpu
@pytest.mark.parametrize("threshold", [0.3, 0.7])
@pytest.mark.parametrize(
    ("images", "count", "k"), [(1, 6000, 300), (2, 12000, 2000), (1, 20000, 1000), (80, 300, 300), (3, 65, 65)]
)
def test_nms_of_real_sizes_is_the_reference(
    images: int, count: int, k: int, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = [x.cuda() for x in candidates(images, count)]
    for offset in (0.0, 1.0):

        def run(offset: float = offset) -> list[Tensor]:
            return list(nms(*problem, iou_threshold=threshold, k=k, offset=offset))

        found = run()
        assert found[1].any(1).all()
        assert all(map(torch.equal, found, reference(run, monkeypatch)))


def pooled(op: str, features: Tensor, boxes: Tensor, weights: Tensor) -> list[Tensor]:
    """Result and gradient of a RoI operator with 7 x 7 bins."""
    features = features.detach().requires_grad_()
    options = {"output_size": 7, "spatial_scale": 1 / 16}
    if op == "pool":
        out = roi_pool(features, boxes, **options)
    else:
        more = {"sampling_ratio": 2, "aligned": True} if op == "align" else {"sampling_ratio": 0, "aligned": False}
        out = roi_align(features, boxes, **options, **more)
    return [out.detach(), *torch.autograd.grad(out, features, weights)]


def case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features of two 600 x 800 pictures, 150 boxes on each, and a gradient."""
    features = torch.randn(2, 512, 38, 50, device="cuda").relu().to(dtype, memory_format=torch.channels_last)
    boxes = candidates(2, 150)[0].cuda()
    return features, boxes, torch.randn(300, 512, 7, 7, device="cuda").to(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["pool", "align", "align_legacy"])
def test_roi_operators_of_real_sizes_agree(
    op: str, dtype: torch.dtype, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, boxes, weights = case(dtype)
    wide = [features.float(), boxes, weights.float()]
    out, grad = reference(lambda: pooled(op, *wide), monkeypatch)
    torch.use_deterministic_algorithms(deterministic)
    try:
        found = pooled(op, features, boxes, weights)
        again = pooled(op, features, boxes, weights)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found[0], again[0])
    assert not deterministic or torch.equal(found[1], again[1])
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found[0].float(), out, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found[1].float(), grad, rtol=tolerance, atol=tolerance * grad.abs().amax().item())


@pytest.mark.gpu
def test_operators_can_be_captured_and_follow_their_inputs() -> None:
    boxes, scores, valid = (x.cuda() for x in candidates(1, 3000))
    features, rois, _ = case(torch.bfloat16)

    def run() -> list[Tensor]:
        return [*nms(boxes, scores, valid, iou_threshold=0.7, k=300, offset=1.0), *pooled("align", features, rois, one)]

    one = torch.ones(300, 512, 7, 7, device="cuda", dtype=torch.bfloat16)
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    scores.copy_(scores.flip(1))
    graph.replay()
    assert all(map(torch.equal, captured[:3], run()[:3]))
