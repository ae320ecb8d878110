"""A signed statement in a file: DSSE envelope in a Sigstore bundle v0.3, read as if a stranger had written it.

DSSE 1.0 (https://github.com/secure-systems-lab/dsse) signs the payload's type with the payload, so that nothing signed
for one purpose passes for another. A Sigstore bundle (https://docs.sigstore.dev/about/bundle/) is one JSON object
around it. Only what such a file must hold is let through: what is unknown could be ignored by one reader and believed
by another.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from common.errors import HanseError
from consortium.keys import fingerprint
from consortium.strangers import fields, read_regular, strict_json

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
LARGEST = 16 << 20  # bytes of a bundle: the names and hashes of some 75,000 files


class Untrusted(HanseError):  # noqa: N818
    """Sealed with a key that the reader does not trust: says nothing, neither for nor against."""


Trusted = Mapping[str, ec.EllipticCurvePublicKey]  # fingerprint -> key


def encode(statement: Any, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Sign a statement; the bundle's bytes."""
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    signature = key.sign(signed_bytes(payload), ec.ECDSA(SHA256()))
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": fingerprint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    text = json.dumps(bundle, separators=(",", ":")).encode()
    if len(text) > LARGEST:
        raise HanseError(f"the folder has too many files for one seal (it would take {len(text)} bytes, {LARGEST} are "
                         "read); seal its parts")  # fmt: skip
    return text


def signed_bytes(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding of an in-toto payload: what the signature is over."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def decode(text: bytes, trusted: Trusted, where: str) -> tuple[Any, str]:
    """(statement, fingerprint of the key that signed it), after the signature held.

    ``where`` stands in front of error messages.

    Raises:
        Untrusted: it was signed by another key.
        HanseError: it is no such bundle, or signature and statement do not fit.
    """
    bundle = fields(strict_json(text, where), where, "mediaType", "verificationMaterial", "dsseEnvelope")
    if bundle["mediaType"] != MEDIA_TYPE:
        raise HanseError(f"{where}: not a Sigstore bundle of version 0.3")
    material = fields(bundle["verificationMaterial"], where, "publicKey", optional=("tlogEntries",))
    hint = fields(material["publicKey"], where, "hint")["hint"]
    envelope = fields(bundle["dsseEnvelope"], where, "payload", "payloadType", "signatures")
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise HanseError(f"{where}: seals something else than an in-toto statement")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1 or material.get("tlogEntries", []) != []:
        raise HanseError(f"{where}: must hold one signature, made with a key")
    signature = fields(signatures[0], where, "sig", optional=("keyid",))
    if signature.get("keyid", "") != "":
        raise HanseError(f"{where}: names its key in an unexpected place (keyid)")
    if not isinstance(hint, str) or not hint.isascii() or not hint.isalnum():
        raise HanseError(f"{where}: does not say which key sealed it")
    if hint not in trusted:
        raise Untrusted(f"{where}: sealed with the key {hint[:64]}, which is none of those you trust")
    payload = payload_of(bundle, where)
    try:
        trusted[hint].verify(_bytes(signature["sig"], where), signed_bytes(payload), ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise HanseError(f"{where}: its signature does not fit: the statement was edited, or the signature is forged; "
                         "do not use what it seals") from None  # fmt: skip
    return strict_json(payload, where), hint


def payload_of(bundle: Any, where: str) -> bytes:
    """The payload of a bundle, signed or not: only to find the key that it brings along.

    Raises:
        HanseError: it holds none.
    """
    try:
        return _bytes(bundle["dsseEnvelope"]["payload"], where)
    except (KeyError, TypeError):
        raise HanseError(f"{where}: not a bundle") from None


def read(path: Path) -> bytes:
    """The bytes of a bundle file.

    Raises:
        HanseError: no regular file of a bundle's size is there; links are not followed.
    """
    return read_regular(path, LARGEST, "seal")


def _bytes(value: Any, where: str) -> bytes:
    """Decode base64, of which only the one right spelling is taken."""
    try:
        content = base64.b64decode(value, validate=True)
        if base64.b64encode(content).decode() == value:
            return content
    except (binascii.Error, ValueError, TypeError):
        pass
    raise HanseError(f"{where}: holds something that is not base64")
