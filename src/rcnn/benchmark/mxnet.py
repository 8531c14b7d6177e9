"""mx-rcnn's networks in MXNet itself: a program for the Python that has MXNet, which imports nothing of rcnn.

`rcnn bench --against mxnet --peer-python PYTHON` starts it as `PYTHON -I mxnet.py` and speaks to it as to `worker`.
Where the two sides differ, it is in MXNet's favour: pictures arrive as floats without their mean, detections are not
decoded and have no NMS, and in training all targets are given and the best proposals are taken for a sample.
"""

import json
import os
import resource
import sys
import time
from importlib import import_module
from math import prod
from typing import Any

UNITS = {"resnet50_v2": (3, 4, 6, 3), "resnet101_v2": (3, 4, 23, 3)}
VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
STRIDE = 16
GIVEN = ("data", "im_info")
LEARNING_RATE = 0.0  # every run does the same work


def main() -> int:
    """Answer a request a line until the pipe closes."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _, settings = json.loads(sys.stdin.readline())
    try:
        network = Network(load_mxnet(settings["threads"]), settings)
    except ValueError as error:
        print(json.dumps({"error": str(error)}), file=replies, flush=True)
        return 0
    print(json.dumps(network.about()), file=replies, flush=True)
    verbs = {"run": network.run, "count": network.count, "memory": peak_memory}
    for line in sys.stdin:
        print(json.dumps(verbs[json.loads(line)["do"]]()), file=replies, flush=True)
    return 0


def load_mxnet(threads: int) -> Any:
    """The package, with as many threads as asked for; 0: one for each core.

    Raises:
        ValueError: this Python has none that works.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads or len(os.sched_getaffinity(0)))
    try:
        return import_module("mxnet")
    except (ImportError, AttributeError, OSError) as error:  # AttributeError: with a numpy that is too new for it
        raise ValueError(
            f"--peer-python {sys.executable}: no mxnet works there ({error}); in a venv of Python 3.10 or 3.11, "
            "pip install mxnet==1.9.1 numpy==1.23.5"
        ) from error


class Network:
    """A recipe's network with random weights: inference or one update.

    Raises:
        ValueError: mx-rcnn has no such network, or takes no such batch.
    """

    def __init__(self, mx: Any, settings: dict[str, Any]) -> None:
        self.mx, self.recipe = mx, settings["recipe"]
        self.train = settings["what"] == "train"
        _check(settings, self.recipe["model"])
        self.symbol, self.scores, self.deltas = detector(mx.sym, self.recipe, train=self.train)
        data, info = _made_up_picture(mx, settings["height"], settings["width"])
        self.shapes = {"data": data.shape, "im_info": info.shape}
        labels = _made_up_targets(mx, self.recipe, self._rpn_size()) if self.train else {}
        self.labels = {name: value.shape for name, value in labels.items()}
        self.batch = mx.io.DataBatch([data, info], list(labels.values()))
        self.module = self._bind(self.symbol, labels=self.labels, train=self.train)
        self.module.init_params(mx.init.MSRAPrelu())
        self._spread_outputs()
        if self.train:
            self._open_optimiser()

    def run(self) -> dict[str, float]:
        """Seconds of one run, until its outputs are there."""
        begun = time.perf_counter()
        self.module.forward(self.batch, is_train=self.train)
        if self.train:
            self.module.backward()
            self.module.update()
        for output in self.module.get_outputs():
            output.asnumpy()
        self.mx.nd.waitall()
        return {"seconds": time.perf_counter() - begun}

    def count(self) -> dict[str, int]:
        """FLOPs of convolutions and products, backward included, and RoIs; with a run, the first warm-up."""
        self.run()
        trained = self._trained() if self.train else set()
        rois = self._shapes(self.symbol)["rois_output"][0]
        return {
            "flops": count_flops(json.loads(self.symbol.tojson()), self._shapes(self.symbol), trained),
            "rois": rois,
        }

    def about(self) -> dict[str, Any]:
        """The one task and the machine."""
        tasks = {"train" if self.train else "infer": {"precision": "fp32", "images": 1}}
        threads = int(os.environ["OMP_NUM_THREADS"])
        return {"tasks": tasks, "versions": {"mxnet": self.mx.__version__}, "threads": threads, "device": "cpu"}

    def _trained(self) -> set[str]:
        fixed = set(self._frozen()) | set(self.labels) | set(GIVEN)
        return {name for name in self.symbol.list_arguments() if name not in fixed}

    def _frozen(self) -> list[str]:
        """As mx-rcnn: the first stages, and every normalisation."""
        frozen = tuple(self.recipe["model"]["frozen"])
        names = self.symbol.list_arguments()
        return [name for name in names if name.startswith(frozen) or name.endswith(("gamma", "beta"))]

    def _bind(self, symbol: Any, *, labels: dict[str, Any], train: bool) -> Any:
        given = [name for name in GIVEN if name in symbol.list_arguments()]
        fixed = self._frozen() if train else None
        module = self.mx.mod.Module(symbol, given, list(labels) or None, fixed_param_names=fixed)
        module.bind([(name, self.shapes[name]) for name in given], list(labels.items()) or None, for_training=train)
        return module

    def _shapes(self, symbol: Any) -> dict[str, tuple[int, ...]]:
        """Shapes by name of all arguments and outputs inside."""
        inside = symbol.get_internals()
        known = {**self.shapes, **getattr(self, "labels", {})}
        _, shapes, _ = inside.infer_shape(**{n: s for n, s in known.items() if n in symbol.list_arguments()})
        return dict(zip(inside.list_outputs(), shapes, strict=True))

    def _rpn_size(self) -> tuple[int, ...]:
        return self._shapes(self.deltas)["rpn_bbox_pred_output"]

    def _spread_outputs(self) -> None:
        """Let every anchor's outputs vary over the picture as after training, as rcnn.benchmark.network does."""
        heads = self._bind(self.mx.sym.Group([self.scores, self.deltas]), labels={}, train=False)
        values, moving = self.module.get_params()
        heads.set_params(values, moving, allow_extra=True)
        heads.forward(self.mx.io.DataBatch(self.batch.data[:1], []), is_train=False)
        for name, std, output in zip(("rpn_cls_score", "rpn_bbox_pred"), (1.0, 0.1), heads.get_outputs(), strict=True):
            out = output.asnumpy()
            factor = std / out.std((0, 2, 3)).clip(1e-6)
            weight, bias = values[f"{name}_weight"].asnumpy(), values[f"{name}_bias"].asnumpy()
            values[f"{name}_weight"] = self.mx.nd.array(weight * factor[:, None, None, None])
            values[f"{name}_bias"] = self.mx.nd.array((bias - out.mean((0, 2, 3))) * factor)
        self.module.set_params(values, moving)

    def _open_optimiser(self) -> None:
        rules = self.recipe["train"]
        options = {"momentum": rules["momentum"], "wd": rules["weight_decay"], "clip_gradient": rules["clip"] or None}
        self.module.init_optimizer(None, "sgd", {"learning_rate": LEARNING_RATE, "rescale_grad": 1.0, **options})


def _check(settings: dict[str, Any], model: dict[str, Any]) -> None:
    if model["backbone"] != "vgg16" and model["backbone"] not in UNITS:
        raise ValueError(
            f"--against mxnet: mx-rcnn has no {model['backbone']}; choose a --recipe with vgg16, resnet50_v2 or "
            "resnet101_v2"
        )
    if model["roi_op"] != "pool" or settings["recipe"]["train"]["method"] != "joint":
        raise ValueError("--against mxnet: it does RoIPool and joint training; choose another --recipe (vgg16_voc07)")
    if settings["batch"] != 1 or settings["device"] not in ("auto", "cpu"):
        raise ValueError(
            f"--against mxnet: one picture on the CPU, not --batch {settings['batch']} --device {settings['device']}"
        )


def detector(sym: Any, recipe: dict[str, Any], *, train: bool) -> tuple[Any, Any, Any]:
    """The whole symbol and, of it, the RPN's scores and deltas; its first output is the RoIs."""
    model = recipe["model"]
    features = vgg_trunk(sym) if model["backbone"] == "vgg16" else resnet_trunk(sym, UNITS[model["backbone"]])
    hidden = convolve(sym, features, "rpn_conv_3x3", model["rpn_channels"], 3, bias=True)
    anchors = len(model["anchor_scales"]) * len(model["anchor_ratios"])
    scores = convolve(sym, relu(sym, hidden), "rpn_cls_score", 2 * anchors, 1, bias=True)
    deltas = convolve(sym, relu(sym, hidden), "rpn_bbox_pred", 4 * anchors, 1, bias=True)
    pair = sym.Reshape(scores, shape=(0, 2, -1, 0))
    rois = _propose(sym, recipe, pair, deltas, train=train)
    size = (model["roi_size"], model["roi_size"])
    pooled = sym.ROIPooling(features, rois, pooled_size=size, spatial_scale=1 / STRIDE)
    vector = (
        fc_head(sym, pooled, model) if model["head"] == "fc" else stage4_head(sym, pooled, UNITS[model["backbone"]])
    )
    classes = (len(recipe["data"]["classes"]) or 20) + 1
    logits = sym.FullyConnected(vector, num_hidden=classes, name="cls_score")
    boxes = sym.FullyConnected(vector, num_hidden=4 * classes, name="bbox_pred")
    outputs = _losses(sym, recipe, pair, deltas, logits, boxes) if train else [sym.softmax(logits), boxes]
    return sym.Group([rois, *outputs]), scores, deltas


def _propose(sym: Any, recipe: dict[str, Any], pair: Any, deltas: Any, *, train: bool) -> Any:
    """RoIs (n, 5); in training the best of the proposals in the place of a sample of them."""
    model, rules = recipe["model"], recipe["train" if train else "eval"]
    anchors = len(model["anchor_scales"]) * len(model["anchor_ratios"])
    rois = sym.contrib.Proposal(
        cls_prob=sym.Reshape(sym.softmax(pair, axis=1), shape=(0, 2 * anchors, -1, 0)),
        bbox_pred=deltas,
        im_info=sym.Variable("im_info"),
        feature_stride=STRIDE,
        scales=tuple(model["anchor_scales"]),
        ratios=tuple(model["anchor_ratios"]),
        rpn_pre_nms_top_n=rules["rpn_pre_nms"],
        rpn_post_nms_top_n=rules["rpn_post_nms"],
        threshold=rules["rpn_nms"],
        rpn_min_size=int(rules["rpn_min_size"]),
    )
    last = rules["rois"] if train else None
    return sym.BlockGrad(sym.slice_axis(rois, axis=0, begin=0, end=last), name="rois")


def _losses(sym: Any, recipe: dict[str, Any], pair: Any, deltas: Any, logits: Any, boxes: Any) -> list[Any]:
    """mx-rcnn's four losses."""
    rules = recipe["train"]
    ignore = {"multi_output": True, "normalization": "valid", "use_ignore": True, "ignore_label": -1}
    return [
        sym.SoftmaxOutput(pair, sym.Variable("rpn_label"), **ignore),
        _smooth_l1(sym, deltas, "rpn_bbox", rules["rpn_sigma"], rules["rpn_rois"]),
        sym.SoftmaxOutput(logits, sym.Reshape(sym.Variable("label"), shape=(-1,)), normalization="batch"),
        _smooth_l1(sym, sym.expand_dims(boxes, 0), "bbox", rules["head_sigma"], rules["rois"]),
    ]


def _smooth_l1(sym: Any, given: Any, name: str, sigma: float, count: int) -> Any:
    weight, target = sym.Variable(f"{name}_weight"), sym.Variable(f"{name}_target")
    return sym.MakeLoss(weight * sym.smooth_l1(given - target, scalar=sigma), grad_scale=1 / count)


def vgg_trunk(sym: Any) -> Any:
    """conv1_1 to conv5_3, without the last pooling."""
    x = sym.Variable("data")
    for stage, widths in enumerate(VGG, 1):
        for i, width in enumerate(widths, 1):
            x = relu(sym, convolve(sym, x, f"conv{stage}_{i}", width, 3, bias=True))
        if stage < len(VGG):
            x = sym.Pooling(x, pool_type="max", kernel=(2, 2), stride=(2, 2))
    return x


def resnet_trunk(sym: Any, units: tuple[int, ...]) -> Any:
    """Pre-activation stages 1 to 3: the raw residual sum."""
    x = normalise(sym, sym.Variable("data"), "bn_data", fixed=True)
    x = relu(sym, normalise(sym, convolve(sym, x, "conv0", 64, 7, stride=2), "bn0"))
    x = sym.Pooling(x, pool_type="max", kernel=(3, 3), stride=(2, 2), pad=(1, 1))
    for number in (1, 2, 3):
        x = stage(sym, x, number, units[number - 1])
    return x


def stage(sym: Any, x: Any, number: int, units: int) -> Any:
    """A stage's units; the first of stage 2 to 4 halves the map."""
    width = 128 * 2**number
    for i in range(1, units + 1):
        x = unit(sym, x, f"stage{number}_unit{i}", width, 2 if i == 1 and number > 1 else 1, first=i == 1)
    return x


def unit(sym: Any, x: Any, name: str, width: int, stride: int, *, first: bool) -> Any:
    """Norm and ReLU before each of three convolutions; the stride is the second's."""
    activated = y = relu(sym, normalise(sym, x, f"{name}_bn1"))
    y = convolve(sym, y, f"{name}_conv1", width // 4, 1)
    y = relu(sym, normalise(sym, y, f"{name}_bn2"))
    y = convolve(sym, y, f"{name}_conv2", width // 4, 3, stride=stride)
    y = relu(sym, normalise(sym, y, f"{name}_bn3"))
    shortcut = convolve(sym, activated, f"{name}_sc", width, 1, stride=stride) if first else x
    return convolve(sym, y, f"{name}_conv3", width, 1) + shortcut


def fc_head(sym: Any, pooled: Any, model: dict[str, Any]) -> Any:
    """fc6 and fc7."""
    x = sym.Flatten(pooled)
    for name in ("fc6", "fc7"):
        x = relu(sym, sym.FullyConnected(x, num_hidden=model["head_hidden"], name=name))
        x = sym.Dropout(x, p=model["dropout"])
    return x


def stage4_head(sym: Any, pooled: Any, units: tuple[int, ...]) -> Any:
    """Stage 4, its norm, and the mean over the map."""
    x = relu(sym, normalise(sym, stage(sym, pooled, 4, units[3]), "bn1"))
    return sym.Flatten(sym.Pooling(x, global_pool=True, kernel=(7, 7), pool_type="avg"))


def convolve(sym: Any, x: Any, name: str, width: int, side: int, *, stride: int = 1, bias: bool = False) -> Any:
    """A convolution that keeps the map's size but for the stride."""
    shape = {"kernel": (side, side), "stride": (stride, stride), "pad": (side // 2, side // 2)}
    return sym.Convolution(x, num_filter=width, no_bias=not bias, name=name, **shape)


def normalise(sym: Any, x: Any, name: str, *, fixed: bool = False) -> Any:
    """Batch normalisation by the statistics that are stored."""
    return sym.BatchNorm(x, fix_gamma=fixed, eps=2e-5, use_global_stats=True, name=name)


def relu(sym: Any, x: Any) -> Any:
    """The positive part."""
    return sym.Activation(x, act_type="relu")


def count_flops(graph: dict[str, Any], shapes: dict[str, tuple[int, ...]], trained: set[str]) -> int:
    """FLOPs of convolutions and products: once forward, once for each input that has a gradient.

    Args:
        graph: what MXNet's `tojson` writes.
        shapes: of arguments and outputs by name.
        trained: names of the arguments with a gradient.
    """
    total = 0
    carries: list[bool] = []
    nodes = graph["nodes"]
    for node in nodes:
        inputs = [carries[place[0]] for place in node["inputs"]]
        carries.append(node["name"] in trained if node["op"] == "null" else any(inputs) and node["op"] != "BlockGrad")
        if node["op"] in ("Convolution", "FullyConnected"):
            weight = nodes[node["inputs"][1][0]]["name"]
            forward = 2 * prod(shapes[f"{node['name']}_output"]) * prod(shapes[weight][1:])
            total += forward * (1 + inputs[0] + inputs[1])
    return total


def peak_memory() -> dict[str, int]:
    """The most this process has held."""
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _made_up_picture(mx: Any, height: int, width: int) -> tuple[Any, Any]:
    """A picture (1, 3, H, W) of patches and noise, around 0, and its (height, width, scale)."""
    mx.random.seed(0)
    patches = mx.nd.random.uniform(-100, 100, (1, 3, height // 32 + 1, width // 32 + 1))
    smooth = patches.repeat(32, 2).repeat(32, 3)[:, :, :height, :width]
    return smooth + mx.nd.random.uniform(-25, 25, smooth.shape), mx.nd.array([[height, width, 1]])


def _made_up_targets(mx: Any, recipe: dict[str, Any], deltas: tuple[int, ...]) -> dict[str, Any]:
    """What mx-rcnn's loader and its sampling of RoIs give to the losses; `deltas` is the shape of the RPN's."""
    rules, classes = recipe["train"], (len(recipe["data"]["classes"]) or 20) + 1
    _, channels, height, width = deltas
    anchors, boxes = channels // 4 * height * width, (1, rules["rois"], 4 * classes)
    order = mx.nd.random.shuffle(mx.nd.arange(anchors)).reshape((1, -1))
    positive, sampled = order < rules["rpn_rois"] * rules["rpn_positive_share"], order < rules["rpn_rois"]
    label = mx.nd.arange(rules["rois"]).reshape((1, -1)) % classes
    return {
        "rpn_label": (positive + sampled - 1).reshape((1, channels // 4 * height, width)),
        "rpn_bbox_target": mx.nd.random.normal(0, 0.1, deltas),
        "rpn_bbox_weight": mx.nd.random.uniform(0, 1, deltas) < 0.01,
        "label": label,
        "bbox_target": mx.nd.random.normal(0, 1, boxes),
        "bbox_weight": mx.nd.one_hot(label, classes).repeat(4, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
