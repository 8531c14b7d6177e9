"""Hostile variations of good files: damage where it counts, so that a reader's first check is passed."""

import copy
import io
import json
import pickletools
import re
import struct
import zipfile
import zlib
from random import Random
from typing import Any
from xml.etree import ElementTree

from tests.weights.damage import damaged

NUMBERS = (0, -1, 1, 2, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 1e308, -1e308, 5e-324)
NUMBERS += (float("nan"), float("inf"), True, 0.5)
TEXTS = ("", " ", "\x1b]0;title\x07\x1b[2J", "\x9b2J", "../../etc/passwd", "/etc/passwd", "a\0b", "C:\\a", "x" * 70_000)
TEXTS += ("\ud800", "\u202e", "9" * 5000, "nan", "1e999", "-1", "0x10", "a+b", "%s{0}", "é", "true", "../", "a/b")
ODD = (None, [], {}, [[]], {"id": 1}, [1, 2, 3], ["a", "a"])
DEPTH = 100_000
ENTITIES = (
    '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;">]>',
    '<!DOCTYPE a SYSTEM "http://127.0.0.1:1/a.dtd">',
    '<?xml version="1.0" encoding="utf-7"?>',
    '<?xml version="1.0" encoding="utf-16"?>',
    "<!-- - -->",
)


def strike_bytes(rng: Random, content: bytes, near: tuple[bytes, ...] = ()) -> bytes:
    """A few bytes changed, cut off, moved or repeated."""
    return next(damaged(content, 1, seed=rng.getrandbits(32), near=near))


def strike_json(rng: Random, content: bytes) -> bytes:
    """Values and keys replaced, lost, repeated or nested; sometimes what only text can say; sometimes damaged bytes."""
    value = json.loads(content)
    for _ in range(rng.randint(1, 3)):
        _strike_value(rng, value)
    text = json.dumps(value)
    kind = rng.random()
    if kind < 0.05:
        text = re.sub(r"\d+", lambda _: "[" * DEPTH, text, count=1)
    elif kind < 0.1:
        text = re.sub(r"\{", '{"id": 7, "id": 8, "classes": [], ', text, count=rng.randint(1, 3))
    elif kind < 0.2:
        return strike_bytes(rng, text.encode())
    return text.encode()


def _strike_value(rng: Random, value: Any) -> None:
    places = list(_places(value))
    if not places:
        return
    holder, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind < 5:
        holder[key] = rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), copy.deepcopy(rng.choice(ODD))))
    elif kind == 5:
        del holder[key]
    elif kind == 6 and isinstance(holder, list):
        holder[key:key] = [copy.deepcopy(holder[key]) for _ in range(rng.choice((1, 3, 300)))]
    else:
        other, place = rng.choice(places)
        holder[key] = copy.deepcopy(other[place])


def _places(value: Any):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def strike_xml(rng: Random, content: bytes) -> bytes:
    """Elements lost, repeated, nested, with other texts and names; entities; damaged bytes."""
    root = ElementTree.fromstring(content)
    for _ in range(rng.randint(1, 3)):
        _strike_element(rng, root)
    text = ElementTree.tostring(root, encoding="unicode")
    kind = rng.random()
    if kind < 0.1:
        text = rng.choice(ENTITIES) + text.replace("</", "&b;</", 1)
    elif kind < 0.14:
        text = text.replace("<object>", "<object>" + "<a>" * DEPTH, 1)
    elif kind < 0.3:
        return strike_bytes(rng, text.encode(errors="surrogatepass"))
    return text.encode(errors="surrogatepass")


def _strike_element(rng: Random, root: ElementTree.Element) -> None:
    parents = [node for node in root.iter() if len(node)]
    if not parents:
        return
    parent = rng.choice(parents)
    child, kind = rng.choice(list(parent)), rng.randrange(7)
    if kind < 3:
        child.text = str(rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS))))
    elif kind == 3:
        parent.remove(child)
    elif kind == 4:
        parent.extend(copy.deepcopy(child) for _ in range(rng.choice((1, 100))))
    elif kind == 5:
        child.tag = rng.choice([node.tag for node in root.iter()])
    else:
        child.append(copy.deepcopy(rng.choice(parents)))


def strike_text(rng: Random, content: bytes) -> bytes:
    """Words of a table or list replaced, lost or repeated; damaged bytes."""
    words = re.split(r'([,\s"]+)', content.decode())
    for _ in range(rng.randint(1, 3)):
        place, kind = rng.randrange(len(words)), rng.randrange(5)
        if kind < 3:
            words[place] = str(rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), '"', ",", "x" * 200_000)))
        elif kind == 3:
            del words[place : place + rng.randint(1, 3)]
            words = words or [""]
        else:
            words[place:place] = words[place : place + 8] * rng.choice((1, 100))
    text = "".join(words).encode(errors="surrogatepass")
    return strike_bytes(rng, text) if rng.random() < 0.2 else text


def strike_zip(rng: Random, content: bytes, inner: Any) -> bytes:
    """Members changed by `inner` under a new and right checksum, lost, renamed or repeated; or damaged bytes."""
    if rng.random() < 0.3:
        return strike_bytes(rng, content, (b"PK\1\2", b"PK\5\6"))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [[info.filename, archive.read(info)] for info in archive.infolist()]
    chosen = rng.choice([m for m in members if m[0].endswith("data.pkl")] or members if rng.random() < 0.5 else members)
    chosen[1] = inner(rng, chosen[1])
    if rng.random() < 0.15:
        rng.choice(members)[0] = rng.choice(("../a", "x.npy", "/a", chosen[0]))
    if rng.random() < 0.1:
        members.pop(rng.randrange(len(members)))
    packed = io.BytesIO()
    with zipfile.ZipFile(
        packed, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as new:
        for name, data in members:
            info = zipfile.ZipInfo("x")
            info.filename = name
            new.writestr(info, data, new.compression)
    return packed.getvalue()


HOSTILE_OPCODES = (
    b"cos\nsystem\n(X\x04\x00\x00\x00trueetR", b"c__builtin__\neval\n", b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    b"c_codecs\nencode\n", b"\x8a\xff" + b"\x7f" * 255, b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f",
    b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n)R",
    b"X\xff\xff\xff\xff", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"N", b"]", b"}", b")", b"(", b"t",
    b"R", b"b", b"Q", b"s", b"u", b"e", b"a", b"0", b"1", b"2", b"h\x00", b"h\x01", b"h\x7f", b".", b"\x88", b"\x85",
)  # fmt: skip


def strike_pickle(rng: Random, content: bytes) -> bytes:
    """Opcodes of a pickle lost, repeated, exchanged, or hostile ones put in; what follows the pickle stays."""
    try:
        places = [place for _, _, place in pickletools.genops(content)]
    except Exception:  # no pickle
        return strike_bytes(rng, content)
    end = content.index(b".", places[-1]) + 1
    pieces = [content[a:b] for a, b in zip(places, [*places[1:], end], strict=True)]
    for _ in range(rng.randint(1, 3)):
        place, kind = rng.randrange(1, len(pieces)), rng.randrange(6)
        if kind < 2:
            pieces.insert(place, rng.choice(HOSTILE_OPCODES))
        elif kind == 2:
            pieces[place] = rng.choice((*HOSTILE_OPCODES, rng.choice(pieces)))
        elif kind == 3:
            pieces[place : place + rng.choice((1, 1, 8))] = []
            pieces = pieces if len(pieces) > 1 else [content]
            if len(pieces) == 1:
                break
        elif kind == 4:
            pieces[place:place] = pieces[place : place + 8]
        else:
            pieces[place] = strike_bytes(rng, pieces[place])
    return b"".join(pieces) + content[end:]


def strike_png(rng: Random, content: bytes) -> bytes:
    """Chunks of a PNG changed, lost or repeated, with right checksums; sides of the picture to extremes."""
    chunks, place = [], 8
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append([content[place + 4 : place + 8], content[place + 8 : place + 8 + length]])
        place += 12 + length
    chosen, kind = rng.choice(chunks), rng.randrange(4)
    if kind == 0:
        sides = [rng.choice((0, 1, 4, 30_000, 65_535, 2**20, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
        chunks[0][1] = struct.pack(">II", *sides) + chunks[0][1][8:]
    elif kind == 1:
        chosen[1] = strike_bytes(rng, chosen[1])
    elif kind == 2:
        chunks.insert(rng.randrange(len(chunks)), [rng.choice((b"eXIf", b"tEXt", chosen[0])), rng.randbytes(40)])
    else:
        chunks.remove(chosen)
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
