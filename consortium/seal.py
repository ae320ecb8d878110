"""``hanse seal``: a signed statement of exactly what a folder holds, and the check that it still does.

An in-toto Statement v1 (https://in-toto.io/Statement/v1) names every file with its SHA-256. Of kind ``files`` it is the
one of OpenSSF model-signing, whose tools and ours check each other's. The other kinds say the same and more: the
folder's format and Merkle root, and facts of the sealer's own. Their types are ``hanse:KIND/v1``: a URI scheme that
needs no domain, of which the owner could change.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import HanseError
from common.files import atomic_file, is_plain, merkle_root, sha256_files
from common.terminal import count, many, next_step, say
from consortium import bundle
from consortium.config import SEAL_KINDS, SealConfig
from consortium.keys import fingerprint, load_private, load_public, public_path
from consortium.strangers import fields, read_regular, strict_json

STATEMENT = "https://in-toto.io/Statement/v1"
TYPES = {kind: f"hanse:{kind}/v1" for kind in SEAL_KINDS} | {"files": "https://model_signing/signature/v1.0"}
SERIALIZATION = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
PLAIN_FOLDER = "hanse.folder/1"  # format of a folder without a manifest of ours; its root is that over its files
MANIFESTS = ("manifest.json", "hanse.json")
LARGEST_MANIFEST = 64 << 20  # bytes
MUST_BE = {"checkpoint": ("hanse.checkpoint/1",), "corpus": ("hanse.corpus/1", "hanse.shards/1")}
SHA256 = re.compile(r"[0-9a-f]{64}")
SHOWN = 5  # files named in an error


@dataclass(frozen=True)
class Seal:
    """What a seal says, once it was checked.

    Attributes:
        files: {path in the folder: sha256}, all of them.
        format, root: of the folder; empty for kind ``files``.
        facts: the sealer's own.
        key: fingerprint of the key that sealed it.
    """

    kind: str
    files: dict[str, str]
    format: str
    root: str
    facts: dict[str, Any]
    key: str


def run(config: SealConfig) -> None:
    """``hanse seal``: seal a folder, or check a seal."""
    folder = Path(os.path.realpath(config.folder))
    if config.check is not None:
        trusted = {fingerprint(key): key for key in map(load_public, map(Path, config.trust))}
        held = check(folder, Path(config.check), trusted, kind=config.kind)
        size = sum((folder / name).stat().st_size for name in held.files)
        say(f"{config.check}: holds: {many(len(held.files), 'file')}, {count(size, 'B')}, kind {held.kind}")
        if held.root:
            say(f"{held.format}, Merkle root {held.root}")
        say(f"sealed with the key {held.key}")
        return
    assert config.key is not None
    kind = config.kind or "files"
    beside = folder if Path(config.folder).name in ("", "..") else Path(config.folder)
    output = Path(config.output or f"{beside}.{kind}.sig")
    if os.path.lexists(output) or Path(os.path.realpath(output)).is_relative_to(folder):
        where = "exists" if os.path.lexists(output) else "lies in the folder, which it would change"
        raise HanseError(f"{output}: {where}; set another output=...")
    facts = strict_json(read_regular(Path(config.facts), bundle.LARGEST, "facts"), config.facts) if config.facts else {}
    if not isinstance(facts, dict):
        raise HanseError(f"{config.facts}: must hold a JSON object")
    content = make(folder, load_private(Path(config.key)), kind, facts)
    with atomic_file(output) as partial:
        partial.write_bytes(content)
    say(f"written: {output} ({count(len(content), 'B')})")
    next_step(f"hanse seal folder={config.folder} check={output} trust=[{public_path(Path(config.key))}]")


def make(
    folder: Path, key: ec.EllipticCurvePrivateKey, kind: str, facts: dict[str, Any] | None = None, *,
    files: dict[str, str] | None = None, name: str | None = None,
) -> bytes:  # fmt: skip
    """Seal a folder; the bytes of the seal. ``facts`` is any JSON object; kind ``files`` holds none.

    ``files`` are hashes of all that is to be sealed, where :func:`hash_files` has just taken them. ``name`` is that of
    the folder in the seal, if it will be renamed; checks do not look at it.

    Raises:
        HanseError: the folder holds a link or something else that is no file, has no files, is not of the kind, or is
            not what its own manifest says; a checkpoint holds more than its manifest names.
    """
    files = files or hash_files(folder)
    predicate: dict[str, Any] = {
        "serialization": SERIALIZATION,
        "resources": [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in files.items()],
    }
    if kind != "files":
        form, root = identity(folder, files)
        if form not in MUST_BE.get(kind, (form,)):
            raise HanseError(f"{folder}: is {form}, and kind={kind} seals {' or '.join(MUST_BE[kind])}")
        if kind == "checkpoint":
            _nothing_beside(folder)
        predicate |= {"format": form, "merkle_root": root, "facts": facts or {}}
    subject = {"name": name or folder.name, "digest": {"sha256": _together(files.values())}}
    statement = {"_type": STATEMENT, "subject": [subject], "predicateType": TYPES[kind], "predicate": predicate}
    return bundle.encode(statement, key)


def check(folder: Path, seal: Path, trusted: bundle.Trusted, *, kind: str | None = None) -> Seal:
    """Check that a trusted key sealed exactly what the folder holds now (the seal itself may lie in it).

    Args:
        folder: what was sealed; its name does not matter.
        seal: the bundle, ours or of model-signing (kind ``files``, P-256, SHA-256 of whole files).
        trusted: {fingerprint: public key}.
        kind: the only kind to accept.

    Raises:
        HanseError: it does not hold; the message says why, and names the files that differ.
    """
    content = bundle.read(seal)
    said = parse(content, trusted, str(seal))
    if kind not in (None, said.kind):
        raise HanseError(f"{seal}: is a seal of kind {said.kind}, not {kind}")
    found = hash_files(folder, but=seal)
    if found != said.files:
        raise HanseError(f"{folder}: not what was sealed: {_differences(said.files, found)}")
    if said.root and identity(folder, found) != (said.format, said.root):
        raise HanseError(f"{seal}: names another format or Merkle root than {folder} has; do not trust who sealed it")
    return said


def parse(content: bytes, trusted: bundle.Trusted, where: str) -> Seal:
    """What a seal says, after its signature held; without the folder.

    Raises:
        HanseError: it is no seal, is not of a trusted key, or contradicts itself.
    """
    statement, key = bundle.decode(content, trusted, where)
    statement = fields(statement, where, "_type", "subject", "predicateType", "predicate")
    kinds = {name: kind for kind, name in TYPES.items()}
    kind = kinds.get(statement["predicateType"]) if isinstance(statement["predicateType"], str) else None
    subjects = statement["subject"]
    if statement["_type"] != STATEMENT or kind is None:
        raise HanseError(f"{where}: a statement of a type that is not known here; is there a newer hanse?")
    if not isinstance(subjects, list) or len(subjects) != 1:
        raise HanseError(f"{where}: must be about one subject")
    own = () if kind == "files" else ("format", "merkle_root", "facts")
    predicate = fields(statement["predicate"], where, "serialization", "resources", *own)
    form, root, facts = (predicate.get(name) for name in ("format", "merkle_root", "facts"))
    if own and form not in MUST_BE.get(kind, (form,)):
        raise HanseError(f"{where}: says {kind} of a folder that is {form!r:.100}")
    if own and not (isinstance(form, str) and isinstance(facts, dict) and _is_sha256(root)):
        raise HanseError(f"{where}: format, merkle_root or facts are not what they must be")
    serialization = predicate["serialization"]
    method = (serialization.get("method"), serialization.get("hash_type")) if isinstance(serialization, dict) else ()
    if method != ("files", "sha256"):
        raise HanseError(f"{where}: hashes files in another way than whole, with SHA-256; seal the folder again so")
    files = _resources(predicate["resources"], where)
    digest = fields(fields(subjects[0], where, "name", "digest")["digest"], where, "sha256")["sha256"]
    if digest != _together(files.values()):
        raise HanseError(f"{where}: contradicts itself: its files do not make up its subject")
    return Seal(kind, files, form or "", root or "", facts or {}, key)


def _resources(resources: Any, where: str) -> dict[str, str]:
    files: dict[str, str] = {}
    if not isinstance(resources, list) or not resources:
        raise HanseError(f"{where}: names no files")
    for resource in resources:
        entry = fields(resource, where, "name", "algorithm", "digest")
        name = entry["name"]
        if not is_plain(name) or name in files:
            raise HanseError(f"{where}: {name!r:.200} is not the name of a file in the folder, or stands twice")
        if entry["algorithm"] != "sha256" or not _is_sha256(entry["digest"]):
            raise HanseError(f"{where}: gives no SHA-256 of {name}")
        files[name] = entry["digest"]
    return files


def hash_files(folder: Path, *, but: Path | None = None) -> dict[str, str]:
    """{path in the folder, with /: sha256} of all its files, sorted by path; empty folders do not count.

    Raises:
        HanseError: something in it is neither a file nor a folder, has a name that could mislead, or cannot be read;
            or it holds no file.
    """
    left_out = but and (os.path.realpath(but.parent), but.name)
    names: list[str] = []
    pending = [""]
    try:
        while pending:
            prefix = pending.pop()
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if not is_plain(name):
                        raise HanseError(f"{folder}: {name!r} has a name that could mislead; rename it")
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{name}/")
                    elif not entry.is_file(follow_symlinks=False):
                        what = "a link" if entry.is_symlink() else "no regular file"
                        raise HanseError(f"{folder / name}: is {what}, and a seal is about files; take it away")
                    elif left_out != (os.path.realpath(folder / prefix), entry.name):
                        names.append(name)
        if not names:
            raise HanseError(f"{folder}: holds no files")
        names.sort()
        return dict(zip(names, sha256_files(folder / name for name in names), strict=True))
    except OSError as error:
        raise HanseError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None


def identity(folder: Path, files: dict[str, str]) -> tuple[str, str]:
    """(format, Merkle root) of a folder, whose files have the given hashes.

    Raises:
        HanseError: its manifest is not intact, or describes other files.
    """
    for name in MANIFESTS:
        if name in files:
            path = folder / name
            value = strict_json(read_regular(path, LARGEST_MANIFEST, "manifest"), str(path))
            form = value.get("format") if isinstance(value, dict) else None
            if form in _READERS:
                root, described = _READERS[form](folder, value)
                wrong = _differences(described, {key: files[key] for key in described if key in files})
                if wrong:
                    raise HanseError(f"{folder}: not what its {name} describes: {wrong}")
                return form, root
    return PLAIN_FOLDER, merkle_root(files)


def _nothing_beside(folder: Path) -> None:
    """Refuse files that a checkpoint's manifest does not name: nobody reads them, and a seal would vouch for them."""
    from train.checkpoint import Checkpoint  # brings torch

    others = Checkpoint(folder).strays()
    if others:
        raise HanseError(f"{folder}: holds what its manifest does not name, {', '.join(others[:SHOWN])}; move that "
                         "away, or seal all of it with kind=files")  # fmt: skip


def _read_checkpoint(folder: Path, value: Any) -> tuple[str, dict[str, str]]:
    from train.checkpoint import Checkpoint  # brings torch

    checkpoint = Checkpoint(folder)
    return checkpoint.manifest["merkle_root"], {name: entry["sha256"] for name, entry in checkpoint.files.items()}


def _read_corpus(folder: Path, value: Any) -> tuple[str, dict[str, str]]:
    from data_pipelines.manifest import CorpusManifest

    manifest = CorpusManifest.read(folder)
    return manifest.merkle_root, {name: entry.sha256 for name, entry in manifest.files.items()}


def _read_shards(folder: Path, value: Any) -> tuple[str, dict[str, str]]:
    from data_pipelines.shards import ShardsManifest

    manifest = ShardsManifest.read(folder)
    return manifest.merkle_root, manifest.hashes


def _read_export(folder: Path, value: Any) -> tuple[str, dict[str, str]]:
    try:
        files = {str(name): str(entry["sha256"]) for name, entry in value["files"].items()}
        if merkle_root(files) == value["merkle_root"]:
            return value["merkle_root"], files
    except (KeyError, TypeError, AttributeError):
        pass
    raise HanseError(f"{folder / 'hanse.json'}: was edited; export the model again with 'hanse export'")


_READERS: dict[str, Callable[[Path, Any], tuple[str, dict[str, str]]]] = {
    "hanse.checkpoint/1": _read_checkpoint,
    "hanse.corpus/1": _read_corpus,
    "hanse.shards/1": _read_shards,
    "hanse.export/1": _read_export,
}


def _differences(wanted: dict[str, str], found: dict[str, str]) -> str:
    """The files that differ, in words; empty if none does."""
    names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    said = [f"{name} {'is missing' if name not in found else 'was added' if name not in wanted else 'was changed'}"
            for name in names[:SHOWN]]  # fmt: skip
    return ", ".join([*said, *([f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else [])])


def _together(digests: Any) -> str:
    """One hash for a list of hashes, as model-signing takes it: over their bytes, in the order of the list."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and SHA256.fullmatch(value) is not None
