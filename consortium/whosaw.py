"""``hanse whosaw``: document -> windows -> sample numbers -> steps, by inverting the order of data."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import HanseError
from common.files import write_json
from common.terminal import many, next_step, say, table
from consortium.config import WhosawConfig
from data_pipelines.shards import SIDECAR, ShardsManifest, beside
from train import ledger
from train.order import RunStream, open_stream
from train.run_folder import RunFolder, complete_steps, read_metrics

FORMAT = "hanse.whosaw/1"
SHOWN = 20  # documents in the printed table


@dataclass(frozen=True)
class Sighting:
    """One document and the optimizer steps, counted from 1, that learnt from any of its tokens.

    ``not_learnt``: samples that held some and left no trace in the weights: of a step whose update was skipped because
    of a spike, or of those the run went back before.
    """

    id: str
    url: str | None
    shard: str
    tokens: int
    steps: list[int]
    not_learnt: list[int] = field(default_factory=list)


def run(config: WhosawConfig) -> None:
    """Say which steps and checkpoints saw what was asked for."""
    folder = RunFolder(config.run)
    trained = folder.read_config()
    manifest = ShardsManifest.read(Path(config.shards or trained.data.shards))
    done = max((record["step"] for record in read_metrics(folder.metrics) if "loss" in record), default=0)
    asked = questions(config.what)
    records = [record for _, record in ledger.lines(folder.ledger)]
    stream = open_stream(manifest, trained, skipped=ledger.skipped(iter(records)))
    idle = {step for step, line in ledger.steps(iter(records)).items() if "skipped" in line}
    found = list(sightings(manifest, stream, asked, steps=done, idle=idle))
    steps = complete_steps(folder.checkpoints)
    clean = _tell(asked, found, steps, done)
    if config.output:
        write_json(Path(config.output), _report(config, found, steps, done))
        say(f"wrote {config.output}")
    if clean is not None:
        next_step(f"hanse export run={config.run} step={clean}")


def questions(what: str) -> list[str]:
    """The documents asked for: the lines of a text file, or ``what`` itself.

    Raises:
        HanseError: the file holds nothing.
    """
    if not Path(what).is_file():
        return [what.strip()]
    lines = [line.strip() for line in Path(what).read_text(encoding="utf-8", errors="replace").splitlines()]
    asked = [line for line in lines if line and not line.startswith("#")]
    if not asked:
        raise HanseError(f"{what}: names no document; one id, sha256, URL or domain a line")
    return asked


def sightings(
    manifest: ShardsManifest, stream: RunStream, asked: Sequence[str], *, steps: int, idle: Collection[int] = ()
) -> Iterator[Sighting]:
    """Every training document that was asked for, with the steps up to ``steps`` that saw it.

    Args:
        idle: steps that made no update.
    """
    line, end = stream.timeline, stream.timeline.end(steps, stream.skipped)
    for entry in manifest.of("train"):
        prefix = manifest.folder / entry.name
        numbers = [number for number, source in enumerate(stream.sources) if source.language == entry.language]
        for row in _documents(beside(prefix, SIDECAR), asked):
            samples, tokens = np.empty(0, dtype=np.int64), row["token_end"] - row["token_start"]
            if tokens and numbers:
                span = row["token_start"], row["token_end"]
                samples = np.sort(np.concatenate([stream.holding(one, prefix, *span, end) for one in numbers]))
            at = line.steps_of(samples, stream.skipped)
            learnt = (at > 0) & ~np.isin(at, list(idle))
            yield Sighting(row["id"], row["url"], entry.name, tokens, np.unique(at[learnt]).tolist(),
                           samples[~learnt].tolist())  # fmt: skip


def _documents(sidecar: Path, asked: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a sidecar that any of the questions means."""
    if not sidecar.is_file():
        raise HanseError(f"{sidecar}: missing; without it nobody can tell whose tokens these are")
    held = pq.read_table(sidecar, columns=["id", "url", "token_start", "token_end"])
    wanted = None
    for one in asked:
        mask = pc.or_kleene(pc.equal(held["id"], one), pc.fill_null(pc.equal(held["url"], one), False))
        if re.fullmatch(r"[0-9a-f]{64}", one):  # an id ends with 48 bits of its text's hash
            mask = pc.or_(mask, pc.ends_with(held["id"], ":" + one[:12]))
        elif re.fullmatch(r"[\w.-]+\.\w+", one):
            mask = pc.or_(mask, _on_domain(held["url"].to_pylist(), one.lower()))
        wanted = mask if wanted is None else pc.or_(wanted, mask)
    return held.filter(wanted).to_pylist()


def _on_domain(urls: Sequence[str | None], domain: str) -> Any:
    """Which URLs lie on a domain or below it."""
    hosts = {url: (urlsplit(url).hostname or "") for url in {*urls} if url}
    inside = {url: host == domain or host.endswith("." + domain) for url, host in hosts.items()}
    return pa.array([inside.get(url, False) if url else False for url in urls], pa.bool_())


def _report(config: WhosawConfig, found: Sequence[Sighting], checkpoints: Sequence[int], done: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "run": config.run,
        "what": config.what,
        "steps_done": done,
        "checkpoints": list(checkpoints),
        "documents": [vars(sighting) for sighting in found],
    }


def _tell(asked: Sequence[str], found: Sequence[Sighting], checkpoints: Sequence[int], done: int) -> int | None:
    """Print what was found; the last checkpoint before the first sighting, where there are both."""
    if not found:
        say(f"no training document is {asked[0]}{f' or one of {len(asked) - 1} others' if len(asked) > 1 else ''}")
        return None
    rows = [(one.id, one.tokens, len(one.steps), one.steps[0] if one.steps else "-",
             one.steps[-1] if one.steps else "-") for one in found[:SHOWN]]  # fmt: skip
    drawn = sum(len(one.not_learnt) for one in found)
    table(f"{many(len(found), 'document')}, {done} steps done", ("document", "tokens", "steps", "first", "last"), rows)
    if len(found) > SHOWN:
        say(f"... and {len(found) - SHOWN} more (output=FILE.json writes all)")
    if drawn:
        say(f"{drawn} more samples with them were drawn but not learnt: their steps made no update, or were undone")
    seen = [one.steps[0] for one in found if one.steps]
    if not seen:
        say("no step has seen any of them")
        return None
    first = min(seen)
    exposed, clean = [s for s in checkpoints if s >= first], [s for s in checkpoints if s < first]
    say(f"first seen in step {first}; checkpoints that saw it: "
        + (f"{exposed[0]} to {exposed[-1]} ({len(exposed)} kept)" if exposed else "none is kept")
        + f"; last clean one: {clean[-1] if clean else 'none is kept'}")  # fmt: skip
    return clean[-1] if clean else None
