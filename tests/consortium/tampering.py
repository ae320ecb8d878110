"""Ways to damage files and JSON, for the suites that look whether anything of it is taken for sound."""

import base64
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import strategies as st

from consortium import bundle


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def swap(one: Path, other: Path) -> None:
    one.rename(one.with_name("third"))
    other.rename(one)
    one.with_name("third").rename(other)


def linked(path: Path, target) -> None:
    path.unlink()
    path.symlink_to(target)


def put(path: str, value):
    def change(statement):
        *parents, last = path.split(".")
        for parent in parents:
            statement = statement[int(parent) if parent.isdigit() else parent]
        statement[last] = value

    return change


def drop(path: str):
    def change(value):
        *parents, last = path.split("/")
        for parent in parents:
            value = value[parent]
        del value[last]

    return change


def signed(payload: bytes, key) -> bytes:
    """A bundle around any payload, also one that we would not sign."""
    value = json.loads(bundle.encode({}, key))
    raw = key.sign(bundle.signed_bytes(payload), ec.ECDSA(SHA256()))
    value["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    value["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    return json.dumps(value).encode()


STRANGE = {
    "empty": b"", "number": b"1", "null": b"null", "list": b"[]", "nan": b'{"a": NaN}', "huge number": b"1" * 5000,
    "deep": b"[" * 200_000, "deep objects": b'{"a":' * 100_000, "not utf-8": b'"\xff"',
    "half a character": b'"\\ud800"',
    "byte order mark": b"\xef\xbb\xbf{}", "exponent": b"1e999", "pickle": b"\x80\x04K\x01.", "zip": b"PK\x03\x04",
}  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@st.composite
def damaged(draw, value):
    """``value`` with something else in one place, or one place taken away."""
    value = json.loads(json.dumps(value))
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    node, key = draw(st.sampled_from(places))
    if draw(st.booleans()):
        node[key] = draw(JSON)
    else:
        del node[key]
    return value
