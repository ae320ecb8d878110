"""What was made from what, as the manifests that lie in folders say it: corpora, shards, runs, checkpoints, releases.

Nothing is hashed but manifests: what a manifest says of its files, ``hanse verify`` and ``hanse seal`` check. A thing
is known by the hash by which others name it, so that the same one found twice is one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.files import PARTIAL, merkle_root
from common.terminal import count
from consortium.index import Registry
from consortium.strangers import read_regular, strict_json

LARGEST = 64 << 20  # bytes of a manifest
DEPTH = 6  # folders below one that was named
PAPERS = ("manifest.json", "hanse.json", "run.lock.json")
UNKNOWN = "not found"


@dataclass
class Thing:
    """Something in the graph.

    Attributes:
        kind: corpus, shards, run, checkpoint, average, release, or UNKNOWN: named by others, itself not found.
        sha256: by which others name it.
        parents: {sha256 of a thing: role}, in the order in which they are named.
        told: what a reader may want to know besides, ``{"where": folder, ...}``.
        doubt: why nobody should build on it; None if nothing is known against it.
    """

    kind: str
    sha256: str
    label: str
    parents: dict[str, str] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    doubt: str | None = None


@dataclass
class Graph:
    """All things by sha256, parents before children."""

    things: dict[str, Thing]

    def children(self, sha256: str) -> list[Thing]:
        """What names it as a parent."""
        return [thing for thing in self.things.values() if sha256 in thing.parents]

    def roots(self) -> list[Thing]:
        """What comes from nothing that is known."""
        return [thing for thing in self.things.values() if not thing.parents]

    def around(self, beginning: str) -> Graph:
        """Only a thing, what it comes from, and what comes from it.

        Raises:
            HanseError: no hash, or more than one, begins so.
        """
        found = [sha256 for sha256 in self.things if sha256.startswith(beginning)]
        if len(found) != 1:
            raise HanseError(f"of={beginning}: {len(found) or 'no'} hashes of what was found begin so"
                             f"{'; give more of it' if found else ''}")  # fmt: skip
        up = _reach(found[0], lambda one: list(self.things[one].parents))
        down = _reach(found[0], lambda one: [child.sha256 for child in self.children(one)])
        kept = {sha256: thing for sha256, thing in self.things.items() if sha256 in up | down}
        for thing in kept.values():
            thing.parents = {one: role for one, role in thing.parents.items() if one in kept}
        return Graph(kept)


def _reach(start: str, following: Callable[[str], list[str]]) -> set[str]:
    found: set[str] = set()
    pending = [start]
    while pending:
        one = pending.pop()
        if one not in found:
            found.add(one)
            pending += following(one)
    return found


def gather(folders: list[Path], registry: Registry | None) -> Graph:
    """Everything in the folders and the registry, and what it names.

    Raises:
        HanseError: a manifest is not readable, or nothing was found.
    """
    things: dict[str, Thing] = {}
    roots: dict[str, str] = {}  # {Merkle root of a checkpoint: its sha256}: exports name their checkpoint by it
    places = [*folders, *([registry.folder / "models"] if registry else [])]
    for folder in places:
        for path in find(folder):
            for thing in read(path, roots):
                known = things.setdefault(thing.sha256, thing)
                known.parents |= {one: role for one, role in thing.parents.items() if one not in known.parents}
    if registry:
        _add_registry(things, registry)
    for thing in list(things.values()):
        thing.parents = {roots.get(one, one): role for one, role in thing.parents.items()}
        _prefer_the_run(thing, things)
        for one, role in thing.parents.items():
            kind = {"data": "shards", "corpus": "corpus", "step": "run"}.get(role, "model")
            things.setdefault(one, Thing(UNKNOWN, one, f"{kind} that was not found"))
    if not things:
        raise HanseError(
            f"nothing found in {', '.join(map(str, places))}: no manifest.json, hanse.json or run.lock.json"
        )
    ordered = _ordered(things)
    _spread_doubt(ordered)
    return Graph(ordered)


def find(folder: Path) -> Iterator[Path]:
    """Manifests and locks below a folder; links are not followed."""
    for path, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.endswith(PARTIAL) and not name.startswith("."))
        if len(Path(path).relative_to(folder).parts) >= DEPTH:
            inner.clear()
        yield from (Path(path) / name for name in PAPERS if name in names)


def read(path: Path, roots: dict[str, str]) -> Iterator[Thing]:
    """The things that a manifest speaks of; none if it is of no format that has a place in the graph.

    Raises:
        HanseError: it is one of ours, and not what it must be.
    """
    content = read_regular(path, LARGEST, "manifest")
    value = strict_json(content, str(path))
    reader = READERS.get(str(value.get("format"))) if isinstance(value, dict) else None
    if reader:
        try:
            yield from reader(path, value, hashlib.sha256(content).hexdigest(), roots)
        except (KeyError, TypeError, AttributeError):
            raise HanseError(f"{path}: incomplete: not what a {value['format']} must say") from None


def _corpus(path: Path, value: Mapping[str, Any], sha256: str, roots: dict[str, str]) -> Iterator[Thing]:
    yield Thing("corpus", value["merkle_root"], f"corpus {value.get('name', '')}".strip(), {}, _where(path))


def _shards(path: Path, value: Mapping[str, Any], sha256: str, roots: dict[str, str]) -> Iterator[Thing]:
    corpus = value.get("corpus_merkle_root")
    tokens = sum(int(shard["tokens"]) for shard in value["shards"])
    yield Thing("shards", value["merkle_root"], f"shards, {count(tokens)} tokens", {corpus: "corpus"} if corpus else {},
                _where(path))  # fmt: skip


def _run(path: Path, value: Mapping[str, Any], sha256: str, roots: dict[str, str]) -> Iterator[Thing]:
    code = value["code"]["commit"] or value["code"]["sha256"]
    contributed = (path.parent / "contribution.json").is_file()
    name = path.parent.parent.name if contributed else path.parent.name
    yield Thing("run", sha256, f"run {name}", {value["data_merkle_root"]: "data", **_named(value)},
                {**_where(path), "code": code[:12], "determinism": value["determinism"]})  # fmt: skip


def _checkpoint(path: Path, value: Mapping[str, Any], sha256: str, roots: dict[str, str]) -> Iterator[Thing]:
    roots[value["merkle_root"]] = sha256
    state = strict_json(read_regular(path.parent / "state.json", LARGEST, "state"), str(path.parent / "state.json"))
    told = {**_where(path), "tokens": count(state.get("consumed_tokens", 0)), "Merkle root": value["merkle_root"]}
    method = value.get("method")
    if method:
        inputs = sum(parent["role"] == "average" for parent in value["parents"])
        yield Thing("average", sha256, f"{method['name']} of {inputs}", _named(value), told)
        return
    parents = _named(value)
    lock = _lock_beside(path.parent)
    if lock:
        parents[hashlib.sha256(read_regular(lock, LARGEST, "lock")).hexdigest()] = "step"
    else:
        parents[state["data_merkle_root"]] = "data"
    yield Thing("checkpoint", sha256, f"checkpoint of step {state['step']}", parents, told)


def _lock_beside(folder: Path) -> Path | None:
    """The lock of the run that a checkpoint lies in: RUN/checkpoints/step-..., or CONTRIBUTION/checkpoint."""
    place = folder.parent if folder.name == "checkpoint" else folder.parent.parent
    inside = folder.name == "checkpoint" or folder.parent.name == "checkpoints"
    return place / "run.lock.json" if inside and (place / "run.lock.json").is_file() else None


def _export(path: Path, value: Mapping[str, Any], sha256: str, roots: dict[str, str]) -> Iterator[Thing]:
    weights = {name: entry["sha256"] for name, entry in value["files"].items() if name.endswith(".safetensors")}
    yield Thing("release", merkle_root(weights), f"released {value['run']}, {value['dtype']}",
                {value["checkpoint_merkle_root"]: "export"}, {**_where(path), "step": str(value["step"])})  # fmt: skip


READERS: dict[str, Callable[[Path, Mapping[str, Any], str, dict[str, str]], Iterator[Thing]]] = {
    "hanse.corpus/1": _corpus,
    "hanse.shards/1": _shards,
    "hanse.lock/1": _run,
    "hanse.checkpoint/1": _checkpoint,
    "hanse.export/1": _export,
}


def _where(path: Path) -> dict[str, str]:
    return {"where": str(path.parent)}


def _named(value: Mapping[str, Any]) -> dict[str, str]:
    """The parents that a manifest or a lock names."""
    return {parent["manifest_sha256"]: str(parent["role"]) for parent in value.get("parents", [])}


def _add_registry(things: dict[str, Thing], registry: Registry) -> None:
    """What the registry knows of its models, and what speaks against them."""
    register = registry.register
    for sha256, model in register.models.items():
        named = {parent["manifest_sha256"]: str(parent["role"]) for parent in model.parents}
        kind = "average" if len(named) > 1 else "checkpoint"
        thing = things.setdefault(sha256, Thing(kind, sha256, f"{model.name}, step {model.step}", named))
        thing.label = f"{model.name}: {thing.label}"
        thing.told |= {"accepted": register.days[sha256], "by": register.holders[model.contributor].holder,
                       "reviews": str(len(model.reviews)), "licence": model.license}  # fmt: skip
        thing.doubt = register.doubt(sha256)


def _prefer_the_run(thing: Thing, things: Mapping[str, Thing]) -> None:
    """A checkpoint comes from its run, and the run from what it began with: leave out what the run says already."""
    run = next((things.get(one) for one, role in thing.parents.items() if role == "step"), None)
    if run:
        thing.parents = {one: role for one, role in thing.parents.items() if role == "step" or one not in run.parents}


def _ordered(things: dict[str, Thing]) -> dict[str, Thing]:
    """Parents before children.

    Raises:
        HanseError: something comes from itself, which hashes cannot say: a manifest was made up.
    """
    left, ordered = dict(things), dict[str, Thing]()
    while left:
        ready = [one for one, thing in left.items() if all(parent in ordered for parent in thing.parents)]
        if not ready:
            raise HanseError(
                f"{next(iter(left.values())).label}: comes from itself; a manifest among these was made up"
            )
        for one in ready:
            ordered[one] = left.pop(one)
    return ordered


def _spread_doubt(things: Mapping[str, Thing]) -> None:
    """What comes from something in doubt is in doubt; ``things``: parents before children."""
    for thing in things.values():
        for one in thing.parents:
            doubt = things[one].doubt
            if doubt and not thing.doubt:
                thing.doubt = doubt if doubt.startswith("comes from") else f"comes from {one[:12]}: {doubt}"
