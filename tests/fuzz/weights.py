"""Targets: weights and checkpoints."""

import json
import pickletools
import struct
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch

from rcnn.build import read_model_header
from rcnn.config import Recipe, recipe_to_dict
from rcnn.training.checkpoint import MARK, TRAILER, load_checkpoint, newest_sound, save_checkpoint
from rcnn.weights import caffe, mxnet, safetensors
from rcnn.weights.open import read_weights
from tests.fuzz.mutate import strike_bytes, strike_json, strike_pickle, strike_zip
from tests.fuzz.run import Reader, Target
from tests.weights.test_caffe import blob, net
from tests.weights.test_mxnet import VERSIONS, encode

VALUES = {"arg:conv1_1_weight": np.ones((2, 3, 3, 3), np.float32), "arg:bbox_pred_weight_test": np.ones((8, 3), "f4")}
VALUES |= {"aux:bn_data_gamma": np.ones(3, np.float32), "arg:empty": np.zeros((0, 4), np.float32)}


def _params(folder: Path) -> Reader:
    path = folder / "case.params"
    seeds = [encode(VALUES, version) for version in VERSIONS]
    return Reader(path, lambda: mxnet.from_mxnet(mxnet.read(path)), seeds)


def _caffemodel(folder: Path) -> Reader:
    path = folder / "case.caffemodel"
    layers = {"conv1_1": np.ones((2, 3, 3, 3), "f4"), "bbox_pred": np.ones((8, 3), "f8"), "fc6": np.ones((4, 5), "f4")}
    seeds = [
        net({name: [blob(a, legacy=old, packed=packed)] for name, a in layers.items()}, old=old)
        for old in (False, True)
        for packed in (False, True)
    ]

    def read() -> None:
        caffe.recognises(path)
        named = caffe.from_caffe(caffe.read(path))
        assert all(tensor.numel() < 1000 for tensor in named.values())

    return Reader(path, read, seeds)


def _state_dicts() -> list[dict]:
    ones = torch.ones
    simple = {"extractor.0.weight": ones(2, 3, 3, 3), "rpn.loc.weight": ones(8, 2, 1, 1), "rpn.loc.bias": ones(8)}
    simple |= {"rpn.score.weight": ones(4, 2, 1, 1), "head.cls_loc.weight": ones(8, 3), "head.score.bias": ones(2)}
    jwyang = {"RCNN_base.0.weight": ones(2, 3, 3, 3), "RCNN_rpn.RPN_Conv.weight": ones(2, 2, 3, 3)}
    jwyang |= {"RCNN_bbox_pred.weight": ones(4, 3), "RCNN_bbox_pred.bias": ones(4), "RCNN_cls_score.bias": ones(3)}
    plain = {"module.conv1.weight": ones(2, 3, 3, 3), "module.bn1.running_mean": ones(2), "module.fc.bias": ones(3)}
    config = {"caffe_pretrain": True, "env": "a", "lr": [0.1, 3]}
    return [plain, {"model": simple, "config": config}, {"model": jwyang, "pooling_mode": "align", "epoch": 3}]


def _pth(folder: Path, zipped: bool) -> Reader:
    path, seeds = folder / "case.pth", []
    for values in _state_dicts():
        torch.save(values, path, _use_new_zipfile_serialization=zipped)
        seeds.append(path.read_bytes())
    return Reader(path, lambda: read_weights(path, "vgg16"), seeds)


def _strike_zipped(rng: Random, content: bytes) -> bytes:
    return strike_zip(rng, content, strike_pickle)


def _strike_legacy(rng: Random, content: bytes) -> bytes:
    """A file of before 1.6 is four pickles one after the other, and the numbers."""
    cut = [0]
    for _ in range(4):
        view = memoryview(content)[cut[-1] :]
        stream = _Tail(view)
        for _ in pickletools.genops(stream):  # reads up to its end
            pass
        cut.append(cut[-1] + stream.place)
    place = rng.randrange(4)
    return content[: cut[place]] + strike_pickle(rng, content[cut[place] : cut[place + 1]]) + content[cut[place + 1] :]


class _Tail:
    """A stream that tells how much of it was read."""

    def __init__(self, view: memoryview) -> None:
        self.view, self.place = view, 0

    def read(self, size: int) -> bytes:
        data = bytes(self.view[self.place : self.place + size])
        self.place += len(data)
        return data

    def readline(self) -> bytes:
        rest = bytes(self.view[self.place : self.place + 4096])
        return self.read(rest.index(b"\n") + 1)


def _safetensors(folder: Path) -> Reader:
    path, seeds = folder / "case.safetensors", []
    header = {"format": "rcnn-model-1", "classes": '["a"]', "recipe": json.dumps(recipe_to_dict(Recipe()))}
    for values in ({"backbone.conv1_1.weight": torch.ones(2, 3)}, {"a": torch.ones(3).half(), "b": torch.arange(4)}):
        safetensors.save(path, values, header if "a" not in values else {})
        seeds.append(path.read_bytes())
    return Reader(path, lambda: read_weights(path, "vgg16"), seeds)


def _model_header(folder: Path) -> Reader:
    reader = _safetensors(folder)
    return Reader(reader.path, lambda: read_model_header(reader.path), _model_seeds(folder))


def _model_seeds(folder: Path) -> list[bytes]:
    path = folder / "case.safetensors"
    from rcnn.build import FORMAT

    header = {"format": FORMAT, "classes": '["a", "b"]', "recipe": json.dumps(recipe_to_dict(Recipe()))}
    safetensors.save(path, {"w": torch.ones(2)}, header)
    return [path.read_bytes()]


def _strike_safetensors(rng: Random, content: bytes) -> bytes:
    """The header as JSON, and the JSON inside its texts; or damaged bytes."""
    if rng.random() < 0.2:
        return strike_bytes(rng, content, (b"data_offsets", b"shape"))
    length = int.from_bytes(content[:8], "little")
    head, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    texts = [key for key in ("classes", "recipe") if key in head.get("__metadata__", {})]
    if texts and rng.random() < 0.7:
        key = rng.choice(texts)
        struck = strike_json(rng, head["__metadata__"][key].encode()).decode(errors="replace")
        head["__metadata__"][key] = struck
        new = json.dumps(head).encode()
    else:
        new = strike_json(rng, json.dumps(head).encode())
    return struct.pack("<Q", len(new)) + new + rest


def _checkpoint(folder: Path) -> Reader:
    path = folder / "step_00000001.pt"
    state = {"model": {"w": torch.ones(3)}, "optimiser": {"state": {0: {"m": torch.ones(3)}}, "param_groups": []}}
    save_checkpoint(folder, 1, {**state, "rng": torch.get_rng_state()[:16], "cuda_rng": []}, keep=1)

    def read() -> None:
        found = newest_sound(folder) or path
        load_checkpoint(found, torch.device("cpu"))

    return Reader(path, read, [path.read_bytes()])


def _strike_checkpoint(rng: Random, content: bytes) -> bytes:
    """Mostly under a new and right checksum, which whoever made the file can give it."""
    import hashlib

    body = strike_zip(rng, content[:-TRAILER], strike_pickle)
    return body + (MARK + hashlib.sha256(body).digest() if rng.random() < 0.9 else content[-TRAILER:])


def _near(*texts: bytes):
    return partial(_strike_near, texts)


def _strike_near(texts: tuple[bytes, ...], rng: Random, content: bytes) -> bytes:
    return strike_bytes(rng, content, texts)


TARGETS = [
    Target(".params (MXNet)", _params, _near(b"arg:", b"aux:")),
    Target(".caffemodel", _caffemodel, _near(b"conv1_1", b"bbox_pred", b"fc6")),
    Target(".pth (zip)", partial(_pth, zipped=True), _strike_zipped),
    Target(".pth (legacy)", partial(_pth, zipped=False), _strike_legacy),
    Target(".safetensors", _safetensors, _strike_safetensors),
    Target("model header", _model_header, _strike_safetensors),
    Target("checkpoint", _checkpoint, _strike_checkpoint),
]
