"""A contributor who lies: changes a contribution, covers up what hashes would tell, and seals it with a true key."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

from consortium.accept import examined
from consortium.config import AcceptConfig
from consortium.index import Registry
from consortium.seal import hash_files, make
from tests.consortium.runs import name_parents
from train.checkpoint import root_of


def edit(path: Path, change) -> None:
    """Change a JSON file: ``change`` works on the value, or gives another one."""
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


def seal(folder: Path, key: Any) -> None:
    """Seal what the folder holds now."""
    target = folder / "contribution.sig"
    files = hash_files(folder, but=target)
    target.write_bytes(make(folder, key, "contribution", files=files))


def cover(folder: Path) -> None:
    """Make manifest, contribution and ledger agree with whatever lies in ``checkpoint/``."""
    checkpoint = folder / "checkpoint"

    def hashes(manifest: dict[str, Any]) -> None:
        for path in checkpoint.rglob("*"):
            name = str(path.relative_to(checkpoint))
            if path.is_file() and name != "manifest.json":
                content = path.read_bytes()
                manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        manifest["merkle_root"] = root_of(manifest["tensors"], manifest["files"])

    edit(checkpoint / "manifest.json", hashes)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    if manifest.get("parents"):
        name_parents(checkpoint / "manifest.json", manifest["parents"])
    agree(folder)


def agree(folder: Path) -> None:
    """Make contribution and ledger name the manifest as it is."""
    content = (folder / "checkpoint/manifest.json").read_bytes()
    root = json.loads(content)["merkle_root"]
    edit(folder / "contribution.json",
         lambda paper: paper.update(manifest_sha256=sha256(content).hexdigest(), merkle_root=root))  # fmt: skip
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]
    ledger[-1]["merkle_root"] = root
    chain(folder / "ledger.jsonl", ledger)


def chain(path: Path, records: list[dict[str, Any]]) -> None:
    """Write lines each of which follows from the one before, whatever they say."""
    previous, lines = "0" * 64, []
    for record in records:
        lines.append(json.dumps({**record, "previous": previous}).encode())
        previous = sha256(lines[-1]).hexdigest()
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def read_tensors(path: Path) -> tuple[dict[str, Any], bytes]:
    """(header, data) of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_raw(path: Path, header: Any, data: bytes, *, claim: int | None = None) -> None:
    """Any header, also one that no library would write; ``claim``: the length that it is said to have."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if claim is None else claim).to_bytes(8, "little") + text + data)


class Hands:
    """A registry that is only read, and copies of a contribution to change."""

    def __init__(self, registry: Path, original: Path, place: Path, key):
        self.registry, self.original, self.place, self.key = Registry(registry), original, place, key
        self.folder = place / "contribution"
        self.config = AcceptConfig(registry=str(registry), contribution=str(self.folder))

    def take(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        return shutil.copytree(self.original, self.folder)

    def verdict(self) -> dict[str, tuple[str, str]]:
        """{check: (outcome, what was found)}, after it was seen that nothing was written and nothing crashed."""
        before = self.state()
        with examined(self.registry, self.config) as (_, rows):
            found = {name: (outcome, told) for name, outcome, told in rows}
        assert self.state() == before
        assert not any(self.registry.folder.joinpath("quarantine").iterdir())
        assert not [row for row in found.values() if "unexpectedly" in row[1]], found
        return found

    def state(self):
        """Every path beside the quarantine, with its size and time."""
        found = {}
        for folder, folders, names in os.walk(self.place):
            folders[:] = [name for name in folders if name != "quarantine"]
            for name in [*folders, *names]:
                told = os.lstat(Path(folder, name))
                found[Path(folder, name)] = (told.st_mode, told.st_size, told.st_mtime_ns if name in names else 0)
        return found

    def refused(self, check: str, reason: str) -> None:
        found = self.verdict()
        assert check in found, found
        assert found[check][0] == "refused", found
        assert reason in found[check][1], found[check][1]
        assert found[check][1].isprintable()
