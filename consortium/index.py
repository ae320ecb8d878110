"""``hanse registry``: who may contribute to a consortium's models, and what was accepted, in a folder of plain files.

    index.jsonl                        one signed statement a line, each about the line before it by its hash
    keys/FINGERPRINT.pem               the enrolled keys, for people; readers take them from the index
    incoming/NAME-step-...             contributions that wait ('hanse contribute' writes here)
    reviews/MANIFEST-SHA256/*.sig      review seals ('hanse accept' writes them)
    models/NAME/step-00000100-.../     accepted contributions

The index alone decides. It is read from its first line on, and every line must be allowed by those before it: so nobody
has to be trusted but the key that signed the first line, and for nothing but what that key and those it enrolled did.
It grows by one line at a time and is replaced whole, so that a reader never meets half a line, on any filesystem.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import HanseError
from common.files import atomic_file, inside, write_text
from consortium import bundle
from consortium.keys import fingerprint, parse_public
from consortium.register import Model, Register
from consortium.seal import STATEMENT
from consortium.strangers import fields, read_regular, strict_json

TYPE = "hanse:registry/v1"
GENESIS = "0" * 64
LARGEST_INDEX = 256 << 20  # bytes
PATIENCE_SECONDS = 10.0  # for another writer, who needs milliseconds


class Registry:
    """A registry opened for reading; :meth:`append` adds a line.

    Attributes:
        register: what all lines together say.
        head: sha256 of the last line: whoever remembers it notices if lines are taken away later.
        heads: that of every line, in order.

    Raises:
        HanseError: a line is not what may follow on those before it, or the first one is not of the key ``root``.
    """

    def __init__(self, folder: Path, root: ec.EllipticCurvePublicKey | None = None):
        self.folder, self.index = folder, folder / "index.jsonl"
        if not self.index.is_file():
            raise HanseError(f"{folder}: no registry here (no index.jsonl); make one with hanse registry create=NAME")
        self.root = root
        self._read()

    def _read(self) -> None:
        self.register, self.heads = Register(), []
        content = read_regular(self.index, LARGEST_INDEX, "index of a registry")
        self._lines = content.split(b"\n")
        if self._lines.pop() != b"" or not self._lines:
            raise HanseError(f"{self.index}: its last line is cut short; restore the file from a copy")
        for number, line in enumerate(self._lines, 1):
            where = f"{self.index}: line {number}"
            trusted = self.register.public_keys if number > 1 else _brought_along(line, where)
            statement, key = bundle.decode(line, trusted, where)
            if number == 1 and self.root is not None and key != fingerprint(self.root):
                raise HanseError(f"{self.index}: begun by the key {key}, not by the one you named (root=...); this is "
                                 "another registry, or one that was replaced: do not use it")  # fmt: skip
            self._take(statement, key, where, self.head)
            self.heads.append(hashlib.sha256(line).hexdigest())

    @property
    def head(self) -> str:
        return self.heads[-1] if self.heads else GENESIS

    def _take(self, statement: Any, key: str, where: str, before: str) -> None:
        said = fields(statement, where, "_type", "subject", "predicateType", "predicate")
        if said["_type"] != STATEMENT or said["predicateType"] != TYPE:
            raise HanseError(f"{where}: signed, but no line of a registry")
        if said["subject"] != [_subject(before)]:
            raise HanseError(f"{where}: does not follow from the line before it: lines were edited, removed, repeated "
                             "or brought from elsewhere; restore the file from a copy")  # fmt: skip
        told = fields(said["predicate"], where, "time", "kind", "facts")
        self.register.take(told["kind"], told["facts"], key, told["time"], where)

    def remember(self, seen: str) -> None:
        """Refuse an index that does not contain the head ``seen``: lines were taken away since.

        Raises:
            HanseError: it does not.
        """
        if seen not in self.heads:
            raise HanseError(f"{self.index}: no line has the hash {seen[:64]} that you saw before: lines were taken "
                             "away or replaced since; do not use it, and ask who keeps the registry")  # fmt: skip

    def append(
        self, kind: str, facts: Mapping[str, Any], key: ec.EllipticCurvePrivateKey,
        before: Callable[[], None] = lambda: None,
    ) -> str:  # fmt: skip
        """Add a line; the new head. ``before`` is called once the line was found to be allowed, and then it is written.

        Raises:
            HanseError: the line is not allowed (nothing is then written), or another writer holds the index.
        """
        with _one_writer(self.index):
            self._read()  # another may have written since
            statement = _statement(self.head, kind, facts, not_before=self.register.time)
            signer = fingerprint(key.public_key())
            self._take(statement, signer, f"{self.folder}", self.head)
            before()
            _write(self.index, [*self._lines, bundle.encode(statement, key)])
            self._read()
        self._write_keys()
        return self.head

    def _write_keys(self) -> None:
        for key, holder in self.register.holders.items():
            path = inside(self.folder, f"keys/{key}.pem")
            if not path.exists():
                write_text(path, holder.pem)

    def place_of(self, model: Model) -> Path:
        """The folder of an accepted model."""
        return self.folder / model.folder


def create(folder: Path, facts: Mapping[str, Any], key: ec.EllipticCurvePrivateKey) -> Registry:
    """Begin a registry.

    Raises:
        HanseError: there is one already, or the facts are not what they must be.
    """
    index = folder / "index.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with _one_writer(index):
        if os.path.lexists(index):
            raise HanseError(f"{folder}: there is a registry already; name another registry=...")
        statement = _statement(GENESIS, "create", facts)
        told = statement["predicate"]
        Register().take("create", facts, fingerprint(key.public_key()), told["time"], str(folder))
        _write(index, [bundle.encode(statement, key)])
    made = Registry(folder)
    made._write_keys()
    return made


def _write(index: Path, lines: list[bytes]) -> None:
    with atomic_file(index, shared=True) as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in lines))


def _statement(before: str, kind: str, facts: Mapping[str, Any], *, not_before: str = "") -> dict[str, Any]:
    """A line to be; clocks of machines differ a little, the lines' times never run backwards."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"_type": STATEMENT, "subject": [_subject(before)], "predicateType": TYPE,
            "predicate": {"time": max(now, not_before), "kind": kind, "facts": dict(facts)}}  # fmt: skip


def _subject(before: str) -> dict[str, Any]:
    """A line is a statement about the line before it."""
    return {"name": "index.jsonl", "digest": {"sha256": before}}


def _brought_along(line: bytes, where: str) -> bundle.Trusted:
    """The key that the first line brings along; whether it may be believed is for ``root`` to say."""
    try:
        payload = strict_json(bundle.payload_of(strict_json(line, where), where), where)
        pem = payload["predicate"]["facts"]["pem"].encode("ascii")
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
        raise HanseError(f"{where}: not the first line of a registry") from None
    key = parse_public(pem, where)
    return {fingerprint(key): key}


@contextmanager
def _one_writer(index: Path) -> Iterator[None]:
    """Hold ``index.jsonl.lock``, a file that only one process can make, on one machine or on several.

    Raises:
        HanseError: another holds it for longer than a line takes.
    """
    lock = index.with_name(index.name + ".lock")
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            break
        except FileExistsError:
            if time.monotonic() > until:
                holder = read_regular(lock, 1000, "lock").decode("utf-8", "replace") if lock.exists() else "gone now"
                raise HanseError(f"{lock}: another process writes this registry ({holder}); if that one is no more, "
                                 "delete this file") from None  # fmt: skip
            time.sleep(0.05)
        except OSError as error:
            raise HanseError(f"{index.parent}: cannot be written ({error.strerror})") from None
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.unlink(missing_ok=True)
