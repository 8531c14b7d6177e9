"""What can be chosen about an experiment, as frozen dataclasses; JSON in and out.

Read only by `build`, `recipes` and `commands`; everything below takes plain values.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Data:
    """Where the images are and how they become batches."""

    format: Literal["auto", "voc", "coco", "folder"] = "auto"
    """annotation format; auto looks at the root"""
    root: str = "data"
    """a VOCdevkit, a VOC-style folder, a COCO folder or a folder of your own pictures"""
    train: str = "trainval"
    """set to train on; sets joined by + are merged"""
    test: str = "test"
    """set to test on"""
    classes: tuple[str, ...] = ()
    """class names in order; empty: VOC's 20 for a VOCdevkit, else what the annotations hold"""
    short_side: int = 600
    """length in pixels to which the shorter side is resized"""
    long_side: int = 1000
    """limit on the longer side after resizing"""
    train_sides: tuple[tuple[int, int], ...] = ()
    """(short, long) sides of multi-scale training, one drawn for each batch; empty: short_side and long_side"""
    canvas: Literal["grouped", "exact"] = "grouped"
    """grouped: a few padded sizes measured on the data set; exact: each image's own size, batch 1"""
    canvas_multiple: int = 32
    """canvas sides are multiples of this many pixels"""
    max_boxes: int = 0
    """ground-truth slots per image; 0: as many as the fullest image needs"""
    train_proposals: str = ""
    """proposals of the training set for Fast R-CNN: .npz (rcnn proposals), .mat (selective search) or .pkl (mx-rcnn);
    a file for each of the joined sets, joined by + as they are"""
    test_proposals: str = ""
    """the same of the test set; empty: the network's own RPN proposes"""
    max_proposals: int = 2000
    """proposals of a file that are used, the best of each image"""
    flip: bool = True
    """train on mirror images too"""
    strict: bool = False
    """refuse bad boxes instead of clipping or dropping them with a count"""
    workers: int = 1
    """processes that decode images; 0: in the training process"""


@dataclass(frozen=True)
class Model:
    """The network and its conventions; stored with the weights."""

    backbone: Literal["vgg16", "resnet18", "resnet50", "resnet101", "resnet50_v2", "resnet101_v2"] = "vgg16"
    """trunk; _v2 is MXNet's pre-activation ResNet"""
    head: Literal["fc", "stage4"] = "fc"
    """second stage: two fully connected layers, or the ResNet's last stage"""
    head_hidden: int = 4096
    """width of the fc head"""
    dropout: float = 0.5
    """of the fc head"""
    svd: tuple[int, ...] = ()
    """ranks of the fc head's two layers, each as two thinner ones (rcnn convert --svd); empty: whole layers"""
    int8: bool = False
    """convolutions and linear layers in int8 (rcnn convert --int8), but for the first of a ResNet and the last"""
    offset: float = 1.0
    """1: inclusive pixel boxes (width = x2 - x1 + 1), as Caffe and MXNet models use; 0: continuous"""
    beyond: float = 0.0
    """pixels that decoding adds to x2 and y2: 1 in models of py-faster-rcnn and of jwyang's program, else 0"""
    roi_op: Literal["pool", "align", "align_legacy"] = "pool"
    """RoIPool (maximum over rounded bins), RoIAlign (bilinear, 2 x 2 samples a bin), or its first version (half a cell
    off, a sample for each cell of a bin), which old checkpoints have"""
    roi_size: int = 7
    """output side of the RoI operator"""
    rpn_channels: int = 512
    """width of the RPN's 3x3 convolution"""
    anchor_scales: tuple[float, ...] = (8.0, 16.0, 32.0)
    """anchor sides in units of the stride (16 px)"""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """height over width"""
    partial_cells: bool = False
    """propose in feature cells only partly covered by the picture too"""
    pixel_mean: tuple[float, float, float] = (123.68, 116.779, 103.939)
    """RGB, subtracted"""
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """RGB, divided by"""
    box_std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    """standard deviations by which the second stage's box targets are divided"""
    frozen: tuple[str, ...] = ("conv1", "conv2")
    """parameters not trained: prefixes of stage names of the backbone; all: the whole backbone"""
    pretrained: str = ""
    """weights to start from: .safetensors, .pth, MXNet's .params or Caffe's .caffemodel; empty: random"""


@dataclass(frozen=True)
class Train:
    """How the network is trained."""

    method: Literal["joint", "alternate", "rpn", "fast_rcnn"] = "joint"
    """joint: RPN and Fast R-CNN at once (Ren et al. 2016, 3.2, approximate); alternate: in four phases (4-step);
    rpn: the region proposal network alone; fast_rcnn: the second stage alone, in --data.train_proposals"""
    epochs: float = 10.0
    """passes over the set; a pass holds every image twice when epoch_of_flips is on"""
    batch: int = 1
    """images per process and step"""
    total_batch: int = 0
    """images of a step of all processes, which each take their part of it, `batch` at a time; 0: batch * processes.
    A run keeps it when it is resumed with another number of processes"""
    lr: float = 0.001
    """learning rate for a batch of lr_batch images"""
    lr_batch: int = 1
    """images of a step that lr is meant for"""
    scale_lr: bool = False
    """multiply lr by total_batch / lr_batch"""
    schedule: Literal["steps", "cosine"] = "steps"
    """steps: times lr_factor at each of lr_steps; cosine: down to lr * lr_final"""
    lr_steps: tuple[float, ...] = (7.0,)
    """epochs at which the learning rate drops"""
    lr_factor: float = 0.1
    """what it drops by"""
    lr_final: float = 0.01
    """of a cosine, as a share of lr"""
    warmup: int = 0
    """steps over which lr rises linearly from a hundredth"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float = 0.0005
    """on weights, not on biases or normalisation"""
    clip: float = 5.0
    """each gradient element is clamped to [-clip, clip]; 0: off"""
    epoch_of_flips: bool = True
    """an epoch holds each image and its mirror (mx-rcnn); off: a coin decides per image"""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """of convolutions and matrix products; losses and boxes are fp32; auto: bf16 where the processor has it"""
    compile: bool = False
    """compile the step with torch.compile"""
    rpn_rois: int = 256
    """anchors sampled per image"""
    rpn_positive_share: float = 0.5
    """largest share of them that are positive"""
    rpn_positive_iou: float = 0.7
    """an anchor is positive from this IoU on"""
    rpn_negative_iou: float = 0.3
    """and negative below this"""
    rpn_low_best: bool = True
    """an object's best anchor is positive even below rpn_negative_iou (paper, mx-rcnn v5); off: it is not (v6)"""
    rpn_border: float = 0.0
    """pixels by which an anchor may cross the picture's edge and still be trained; negative: any"""
    rpn_pre_nms: int = 12000
    """best anchors kept before NMS"""
    rpn_post_nms: int = 2000
    """proposals kept after NMS"""
    rpn_nms: float = 0.7
    """IoU above which the weaker proposal goes"""
    rpn_min_size: float = 16.0
    """smallest side of a proposal, in original pixels"""
    rois: int = 128
    """RoIs sampled per image for the second stage"""
    roi_positive_share: float = 0.25
    """largest share of them that are objects"""
    roi_positive_iou: float = 0.5
    """a RoI is an object from this IoU on"""
    roi_background_iou: tuple[float, float] = (0.0, 0.5)
    """and background from the first to below the second"""
    ignore_overlap: float = 0.5
    """share of an anchor or RoI inside a difficult or crowd box from which it is not background; above 1: never"""
    rpn_sigma: float = 3.0
    """of the RPN's smooth L1"""
    head_sigma: float = 1.0
    """of the second stage's smooth L1"""
    fast_epochs: float = 0.0
    """epochs of the Fast R-CNN phases of alternate training; 0: as epochs"""
    fast_lr: float = 0.0
    """learning rate of these phases; 0: as lr"""
    fast_lr_steps: tuple[float, ...] = ()
    """epochs at which it drops in these phases; empty: as lr_steps"""
    fast_batch: int = 0
    """images per process and step in these phases, total_batch in proportion; 0: as batch"""
    fast_rois: int = 0
    """RoIs sampled per image in these phases; 0: as rois"""
    seed: int = 0
    """of initial weights, order and sampling"""
    log_every: int = 20
    """steps between lines of the log"""
    save_every: float = 1.0
    """epochs between checkpoints"""
    keep: int = 2
    """checkpoints kept"""


@dataclass(frozen=True)
class Eval:
    """How detections are made and judged."""

    rpn_pre_nms: int = 6000
    """best anchors kept before NMS"""
    rpn_post_nms: int = 300
    """proposals kept after NMS"""
    rpn_nms: float = 0.7
    """IoU above which the weaker proposal goes"""
    rpn_min_size: float = 16.0
    """smallest side of a proposal, in original pixels"""
    dump_pre_nms: int = 20000
    """best anchors kept before NMS when proposals are written to a file"""
    dump_post_nms: int = 2000
    """proposals of an image written to a file"""
    nms: float = 0.3
    """IoU above which the weaker detection of a class goes"""
    score: float = 0.001
    """detections below are dropped"""
    max_detections: int = 300
    """per image"""
    batch: int = 1
    """images per step"""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """of convolutions and matrix products"""
    winograd: bool = False
    """on a CPU in fp32, large 3x3 convolutions by Winograd's method: faster, last digits differ (docs/speed.md)"""
    metric: Literal["auto", "voc07_11point", "voc_area", "coco"] = "auto"
    """auto: COCO's for COCO data, 11 points for VOC before 2010, else the area"""


@dataclass(frozen=True)
class Recipe:
    """One experiment."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values."""
    import msgspec

    return msgspec.to_builtins(recipe)


def recipe_from_dict(values: Any, *, where: str) -> Recipe:
    """The recipe in `values`, strictly: an unknown key or a wrong type is an error that names its path.

    Raises:
        ValueError: naming `where` the values came from and the path of the wrong field.
    """
    import msgspec

    _refuse_unknown_keys(values, Recipe(), path="", where=where)
    try:
        return msgspec.convert(values, Recipe)
    except (msgspec.ValidationError, ValueError) as error:  # ValueError: half a character in a text
        raise ValueError(f"{where}: {error}") from error


def _refuse_unknown_keys(values: Any, defaults: Any, *, path: str, where: str) -> None:
    import dataclasses
    import difflib

    if not isinstance(values, dict) or not dataclasses.is_dataclass(defaults):
        return
    known = {f.name: getattr(defaults, f.name) for f in dataclasses.fields(defaults)}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {path}{close[0]}?" if close else f"; known keys: {', '.join(known)}"
            raise ValueError(f"{where}: unknown key {path}{key}{hint}")
        _refuse_unknown_keys(value, known[key], path=f"{path}{key}.", where=where)
