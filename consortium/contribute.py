"""``hanse contribute``: a checkpoint, its papers and what it was measured to be, sealed, into ``incoming/``."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.files import write_json
from common.folders import replaced_folder, restore
from common.terminal import count, next_step, say
from consortium.config import ContributeConfig
from consortium.contribution import (
    CONFIG,
    ENERGY,
    EVALUATION,
    EVALUATION_FORMAT,
    FORMAT,
    LEDGER,
    LOCK,
    PAPER,
    SEAL,
    TOKENIZER,
    Contribution,
)
from consortium.index import Registry
from consortium.keys import fingerprint, load_private
from consortium.measure import bits_per_byte, golden_logits
from consortium.register import folder_name
from consortium.registry import open_registry, today
from consortium.seal import make
from data_pipelines.annotate.opt_out_snapshot import Snapshot
from data_pipelines.manifest import CorpusManifest
from data_pipelines.shards import ShardsManifest
from data_pipelines.tokenizer import tokenizer_sha256
from train import ledger
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.data_table import corpus_of
from train.model import flops_of_steps
from train.run_folder import RunFolder
from train.trained import configuration_of, model_of, open_trained

HERE = ("run", "lock", "init_from", "data.shards", "data.tokenizer")  # keys that are paths of this machine: left empty


@dataclass(frozen=True)
class Source:
    """What is contributed, opened and its hashes checked; ``run`` and ``config`` where a run made it."""

    checkpoint: Checkpoint
    tokenizer: Path
    shards: ShardsManifest | None
    run: RunFolder | None = None
    config: TrainConfig | None = None


def run(config: ContributeConfig) -> None:
    """Measure, write the folder, and seal it."""
    registry = open_registry(Path(config.registry), config.root)
    key = load_private(Path(config.key))
    registry.register.standing(fingerprint(key.public_key()), ("contributor",), today(), config.key)
    source = _source(config)
    identity = hashlib.sha256((source.checkpoint.folder / "manifest.json").read_bytes()).hexdigest()
    parents = source.checkpoint.manifest.get("parents", [])
    registry.register.check_parents(parents, str(source.checkpoint.folder))
    if identity in registry.register.models:
        raise HanseError(f"{source.checkpoint.folder}: accepted before, as {registry.register.models[identity].folder}")
    named = folder_name(config.name, source.checkpoint.state["step"], identity).replace("/", "-")
    output = Path(config.output) if config.output else registry.folder / "incoming" / named
    restore(output)
    measured = _measured(source, config)
    with replaced_folder(output, FORMAT, PAPER) as folder:
        for name in ("manifest.json", *source.checkpoint.files):
            (folder / "checkpoint" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.checkpoint.folder / name, folder / "checkpoint" / name)
        (folder / TOKENIZER).parent.mkdir()
        shutil.copyfile(source.tokenizer / "tokenizer.json", folder / TOKENIZER)
        write_json(folder / EVALUATION, measured)
        flops = _write_run(source, folder) if source.run else 0
        write_json(folder / PAPER, asdict(_paper(source, config, identity, flops, registry)))
        (folder / SEAL).write_bytes(make(folder, key, "contribution"))
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    say(f"wrote {output}/ ({count(size, 'B')}): checkpoint {identity}")
    next_step(f"hanse accept registry={config.registry} contribution={output}")


def _source(config: ContributeConfig) -> Source:
    if config.run is not None:
        trained = open_trained(config.run, config.step, config.data, config.tokenizer)
        return Source(trained.checkpoint, trained.tokenizer_folder, trained.shards, trained.folder, trained.config)
    assert config.checkpoint is not None
    assert config.tokenizer is not None
    checkpoint = Checkpoint(Path(config.checkpoint))
    checkpoint.verify()
    if not checkpoint.manifest.get("parents"):
        raise HanseError(f"{config.checkpoint}: names no parents, and comes without its run: nobody could tell where "
                         "it is from; contribute it with run=FOLDER")  # fmt: skip
    tokenizer = Path(config.tokenizer)
    if tokenizer_sha256(tokenizer) != checkpoint.state["tokenizer_sha256"]:
        raise HanseError(f"{tokenizer}: not the tokenizer of {checkpoint.folder} (its sha256 differs)")
    return Source(checkpoint, tokenizer, ShardsManifest.read(Path(config.data)) if config.data else None)


def _measured(source: Source, config: ContributeConfig) -> dict[str, Any]:
    """``evaluation.json``: golden logits; and validation bits per byte, where there is text to measure on."""
    golden = golden_logits(model_of(source.checkpoint))
    told: dict[str, Any] = {"format": EVALUATION_FORMAT, "golden": golden, "bits_per_byte": {}, "validation": None}
    if source.shards is not None:
        longest = source.checkpoint.state["model"].get("max_position_embeddings") or 512
        length = source.config.data.sequence_length if source.config else min(longest, 512)
        model = model_of(source.checkpoint)
        told["bits_per_byte"] = bits_per_byte(model, source.shards, source.tokenizer, length=length,
                                              tokens_per_language=config.tokens_per_language)  # fmt: skip
        told["validation"] = {"data_merkle_root": source.shards.merkle_root, "sequence_length": length,
                              "tokens_per_language": config.tokens_per_language}  # fmt: skip
    return told


def _write_run(source: Source, folder: Path) -> int:
    """Write the run's lock, configuration, energy and its ledger up to the checkpoint; the FLOPs of its steps.

    Raises:
        HanseError: the run has no lock, or its ledger does not know the checkpoint.
    """
    assert source.run is not None
    assert source.config is not None
    if not source.run.lock.is_file():
        raise HanseError(f"{source.run.lock}: missing; a run without its lock cannot be contributed")
    shutil.copyfile(source.run.lock, folder / LOCK)
    write_json(folder / CONFIG, _without_paths(asdict(source.config)))
    if (source.run.path / ENERGY).is_file():
        whole = (source.run.path / ENERGY).read_bytes()
        (folder / ENERGY).write_bytes(whole[: whole.rfind(b"\n") + 1])
    step, root = source.checkpoint.state["step"], source.checkpoint.manifest["merkle_root"]
    lines, records = [], []
    for line, record in ledger.lines(source.run.ledger):
        lines.append(line)
        records.append(record)
        if (record["kind"], record.get("step"), record.get("merkle_root")) == ("checkpoint", step, root):
            break
    else:
        raise HanseError(f"{source.run.ledger}: knows no checkpoint of step {step} with this Merkle root")
    (folder / LEDGER).write_bytes(b"".join(line + b"\n" for line in lines))
    spans = {at: one["samples"] for at, one in ledger.steps(iter(records)).items() if at <= step}
    return flops_of_steps(configuration_of(source.checkpoint), source.config.timeline, spans)


def _without_paths(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the paths of this machine, which decide nothing of what was computed."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    for key in HERE:
        *groups, last = key.split(".")
        place = plain
        for group in groups:
            place = place[group]
        if place.get(last) is not None:
            place[last] = "elsewhere" if last in ("run", "shards", "tokenizer") else None
    return plain


def _paper(source: Source, config: ContributeConfig, identity: str, flops: int, registry: Registry) -> Contribution:
    state, manifest = source.checkpoint.state, source.checkpoint.manifest
    parents = manifest.get("parents", [])
    corpus = corpus_of(source.shards) if source.shards else None
    return Contribution(
        format=FORMAT,
        name=config.name,
        step=state["step"],
        tokens=state["consumed_tokens"],
        manifest_sha256=identity,
        merkle_root=manifest["merkle_root"],
        parents=parents,
        license=config.license,
        data_licenses=list(config.data_licenses) or _licenses(corpus),
        opt_out_date=config.opt_out_date or _opt_out_date(corpus),
        data_merkle_root=state["data_merkle_root"],
        flops=flops,
        cumulative_flops=registry.register.cumulative_flops(flops, parents),
        tools={name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors")},
    )


def _licenses(corpus: CorpusManifest | None) -> list[str]:
    tallies = corpus.languages.values() if corpus else ()
    return sorted({one for tally in tallies if tally.documents_kept for one in tally.license.split(" + ") if one})


def _opt_out_date(corpus: CorpusManifest | None) -> str:
    """First day of the snapshot of opt-outs that the corpus was made with; empty where none was, or it is gone."""
    snapshot = (corpus.config.get("annotate") or {}).get("opt_out_snapshot") if corpus else None
    if not snapshot or not Path(snapshot).is_dir():
        return ""
    return Snapshot(Path(snapshot)).first_fetched[:10]
