"""``hanse verify``: a run's papers, checkpoints and data checked against each other; what could not be is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import EXIT_USER_ERROR, HanseError
from common.files import read_json, sha256_file, sha256_files
from common.terminal import many, say
from consortium import seal
from consortium.bundle import Untrusted
from consortium.config import VerifyConfig
from consortium.evaluations import evaluations
from consortium.evidence import Evidence, Unknown
from consortium.keys import fingerprint, load_public
from data_pipelines.shards import ShardsManifest
from train import ledger
from train.change import as_changed
from train.energy.page import energy_line
from train.energy.totals import energy_totals
from train.lock import FORMAT, config_sha256
from train.order import RunStream, open_stream
from train.run_folder import RunFolder

if TYPE_CHECKING:
    from train.checkpoint import Checkpoint  # brings torch

ROUNDING = 1e-9  # relative: counters are products and quotients of a few exact numbers


def run(config: VerifyConfig) -> int:
    """Check everything; 0 if nothing is wrong, 2 otherwise."""
    folder = RunFolder(config.run)
    trained = folder.read_config()
    rows, wrong = [], 0
    try:
        records = [record for _, record in ledger.lines(folder.ledger)]
    except HanseError as error:
        say(f"WRONG  ledger: {error}")
        return EXIT_USER_ERROR
    evidence = Evidence(folder, trained, Path(config.shards or trained.data.shards), records,
                        ledger.steps(iter(records)), config.batches, list(map(Path, config.parents)),
                        {fingerprint(key): key for key in map(load_public, map(Path, config.trust))})  # fmt: skip
    for name, check in CHECKS:
        try:
            rows.append((name, "ok", check(evidence)))
        except Unknown as reason:
            rows.append((name, "not checked", str(reason)))
        except HanseError as error:
            wrong += 1
            rows.append((name, "WRONG", str(error)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # a record that no run writes
            wrong += 1
            rows.append((name, "WRONG", f"{folder.path}: holds a record that no run writes ({error!r})"))
    for name, outcome, found in rows:
        say(f"{outcome:12s} {name:15s} {found}")
    unchecked = sum(row[1] == "not checked" for row in rows)
    say(f"{len(rows) - wrong - unchecked} checks passed, {wrong} failed, {unchecked} could not be made")
    return EXIT_USER_ERROR if wrong else 0


def chain(evidence: Evidence) -> str:
    """Every line of the ledger follows from the one before."""
    if not evidence.records:
        raise Unknown("no ledger.jsonl in the run folder")
    starts = sum(record["kind"] == "start" for record in evidence.records)
    lines = many(len(evidence.records), "line")
    return f"{lines} in one chain, {many(starts, 'start')}, {many(len(evidence.steps), 'step')}"


def lock(evidence: Evidence) -> str:
    """The lock is the one that the ledger begins with, and speaks of this configuration and these checkpoints."""
    path = evidence.folder.lock
    if not path.is_file():
        raise Unknown("no run.lock.json in the run folder")
    value = read_json(path, "lock of this run")
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise HanseError(f"{path}: not a lock of format {FORMAT}")
    if as_changed(str(value.get("config_sha256")), evidence.records) != config_sha256(evidence.config):
        raise HanseError(f"{path}: locked with another configuration than {evidence.folder.config} is now")
    named = {record.get("lock") for record in evidence.records if record["kind"] == "start"}
    if named and named != {sha256_file(path)}:
        raise HanseError(f"{path}: not the file that the ledger names")
    _agree(path, value, {"determinism": evidence.config.determinism}, evidence.folder.config)
    told = {key for record in evidence.records for key in record.get("differs", {})}  # later starts may have changed it
    same = {"precision", "seed", "data_merkle_root", "tokenizer_sha256"} - told
    for _, checkpoint in evidence.checkpoints:
        _agree(path, value, {key: checkpoint.state.get(key) for key in same}, checkpoint.folder / "state.json")
    return f"code {value['code']['sha256'][:12]}, determinism {value['determinism']}, {value['precision']}"


def _agree(path: Path, locked: dict[str, Any], found: dict[str, Any], where: Path) -> None:
    for key, value in found.items():
        if locked.get(key) != value:
            raise HanseError(f"{path}: {key} was locked to {locked.get(key)}, in {where} it is {value}")


def whole(evidence: Evidence) -> str:
    """No step is missing or doubled, and each took the samples that come next."""
    if not evidence.steps:
        raise Unknown("the ledger holds no step")
    line, passed = evidence.config.timeline, ledger.skipped(iter(evidence.records))
    for number, step in enumerate(sorted(evidence.steps), 1):
        samples = line.span(number - 1, passed)
        if step != number or evidence.steps[step]["samples"] != [samples.start, samples.stop]:
            raise HanseError(f"{evidence.folder.ledger}: step {number} is missing or took other samples than those "
                             "that come next in the order of data")  # fmt: skip
    end = line.end(len(evidence.steps), passed)
    left_out = sum("skipped" in line for line in evidence.steps.values())
    return (f"steps 1 to {len(evidence.steps)}, samples 0 to {end}"
            + "".join(f", without {start} to {stop}" for start, stop in passed)
            + (f", {many(left_out, 'step')} without an update" if left_out else ""))  # fmt: skip


def metrics(evidence: Evidence) -> str:
    """``metrics.jsonl`` tells the losses that the ledger holds."""
    if not evidence.steps:
        raise Unknown("the ledger holds no step")
    told = {record["step"]: record for record in evidence.told if "loss" in record}
    for step, line in evidence.steps.items():
        if step not in told or told[step]["loss"] != float.fromhex(line["loss"]):
            raise HanseError(f"{evidence.folder.metrics}: the loss of step {step} is not the one in the ledger")
    return f"{len(told)} losses, equal to the last bit"


def tokens(evidence: Evidence) -> str:
    """Tokens, counted three times: from the ledger's samples, by the metrics, in the checkpoints."""
    if not evidence.steps:
        raise Unknown("the ledger holds no step")
    line, passed, seen = evidence.config.timeline, ledger.skipped(iter(evidence.records)), 0
    held = {}
    for step in sorted(evidence.steps):
        first, stop = evidence.steps[step]["samples"]
        held[step] = seen = seen + (stop - first) * line.at(step - 1).length
    for record in evidence.told:
        step = record["step"]
        if "loss" in record and step in held:
            counted, seen = record.get("consumed_tokens"), held[step]
            if counted != seen:
                raise HanseError(f"{evidence.folder.metrics}: step {step} counts {counted} tokens; the samples that "
                                 f"the ledger names hold {seen}")  # fmt: skip
    for step, checkpoint in evidence.checkpoints:
        wanted = {"step": step, "consumed_samples": line.first_sample(step, passed),
                  "consumed_tokens": line.tokens(step)}  # fmt: skip
        for key, value in wanted.items():
            if checkpoint.state.get(key) != value:
                raise HanseError(f"{checkpoint.folder / 'state.json'}: {key} is {checkpoint.state.get(key)}, after "
                                 f"{many(step, 'step')} it must be {value}")  # fmt: skip
    found = many(len(evidence.checkpoints), "checkpoint")
    return f"{line.tokens(len(evidence.steps)):,} in ledger, metrics and {found}"


def flops(evidence: Evidence) -> str:
    """FLOPs by the formula, from the shapes in the newest checkpoint, and as the ledger and the metrics counted them.

    ``flops_per_token = 6 N + 12 layers heads head_size L`` (:func:`train.model.flops_per_token`), times the ledger's
    tokens. A step of the metrics counts ``mfu x seconds x peak``, of the measured peak and of the data sheets'; where
    the sum of the ranks' peaks was not written yet (earlier versions), that product must at least be the same at every
    step of a start.
    """
    if not evidence.checkpoints or not evidence.steps:
        raise Unknown("no checkpoint to count parameters in, or no step in the ledger")
    from train.model import flops_per_token, parameter_counts, shape_of_model
    from train.trained import configuration_of

    newest, line = evidence.checkpoints[-1][1], evidence.config.timeline
    model = shape_of_model(configuration_of(newest))
    newest.check_model({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    total, multiplied = parameter_counts(model)
    per_token = {stage.length: flops_per_token(model, stage.length) for stage in line}
    for record in evidence.records:
        here = per_token[line.at(record["step"]).length] if record["kind"] == "start" else 0
        for key, value in (("parameters", total), ("flops_per_token", here)):
            if record["kind"] == "start" and record.get(key, value) != value:
                raise HanseError(f"{evidence.folder.ledger}: the start at step {record['step']} says {key} "
                                 f"{record[key]}, the model has {value}")  # fmt: skip
    known = _counted(evidence, per_token)
    used, done = line.tokens(len(evidence.steps)), len(evidence.steps)
    flops = sum(tokens * per_token[stage.length] for stage, tokens in line.taken(done))
    counted = f"counted the same in {known} steps" if known else "(of an earlier version) only agree with themselves"
    return (f"6 N D = 6 x {multiplied:,} x {used:,} = {6 * multiplied * used:.3e}, with attention "
            f"{flops:.3e}; the metrics {counted}")  # fmt: skip


def _counted(evidence: Evidence, per_token: dict[int, int]) -> int:
    """Steps of the metrics whose counters give the FLOPs that the model takes ``per_token``, by the sequences' length.

    Of starts that name no peak, none are counted.
    """
    peak, sheet, before, known = 0.0, 0.0, None, 0
    for record in evidence.told:
        if record.get("event") in ("start", "resume"):
            peak, before = record.get("peak_of_all_ranks", 0.0), None
            sheet = record.get("data_sheet_peak_of_all_ranks") or 0.0
        if "loss" not in record:
            continue
        stage = evidence.config.timeline.at(record["step"] - 1)
        wanted = per_token[stage.length] * stage.tokens_per_step
        counted = record["mfu"] * record["seconds"] * (peak or 1.0) / wanted
        target = 1.0 if peak else counted if before is None else before
        of_sheet = record.get("mfu_data_sheet", 0.0) * record["seconds"] * sheet / wanted if sheet else 1.0
        speed = record["tokens_per_second"] * record["seconds"]
        if not (math.isclose(counted, target, rel_tol=ROUNDING) and math.isclose(of_sheet, 1.0, rel_tol=ROUNDING)
                and math.isclose(speed, stage.tokens_per_step, rel_tol=ROUNDING)):  # fmt: skip
            raise HanseError(f"{evidence.folder.metrics}: step {record['step']}: MFU, seconds and tokens a second do "
                             f"not give the {wanted:.3e} FLOPs that the model and the batch take")  # fmt: skip
        before, known = counted, known + bool(peak)
    return known


def data(evidence: Evidence) -> str:
    """The shards here are those that the run was locked to, every file of them."""
    manifest = _manifest(evidence)
    if evidence.folder.lock.is_file():
        locked = read_json(evidence.folder.lock, "lock of this run").get("data_merkle_root")
        if locked != manifest.merkle_root:
            raise HanseError(f"{manifest.folder}: not the shards of this run (their Merkle roots differ)")
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        list(pool.map(lambda entry: manifest.open(entry, hashes=True), manifest.shards))
    return f"{many(len(manifest.shards), 'shard')}, Merkle root {manifest.merkle_root[:12]}"


def batches(evidence: Evidence) -> str:
    """Steps spread over the run are drawn again from the shards: the same tokens in the same order."""
    if not evidence.steps:
        raise Unknown("the ledger holds no step")
    stream, known = _stream(evidence), sorted(evidence.steps)
    every = max(1, math.ceil(len(known) / max(evidence.batches, 1)))
    drawn = known[::every][: evidence.batches]
    for step in drawn:
        line = evidence.steps[step]
        if stream.fingerprint(range(*line["samples"])) != line["batch"]:
            raise HanseError(f"{evidence.folder.ledger}: step {step} saw another batch than its samples hold")
    return f"{len(drawn)} of {many(len(known), 'step')} drawn again"


def checkpoints(evidence: Evidence) -> str:
    """Every file of every checkpoint has its hash, and the ledger knows the checkpoint's Merkle root.

    Files that no manifest names belong to no checkpoint: nothing is known that they could be checked against.
    """
    from train.checkpoint import PARTS, Older

    if not evidence.opened:
        raise Unknown("no complete checkpoint in the run folder")
    written = evidence.written
    for step, opened in evidence.opened:
        # Ledgers are younger than that format: one that knows the step knows it with another root.
        if isinstance(opened, HanseError) and (not isinstance(opened, Older) or step in dict(written)):
            raise opened
    names = [(checkpoint, name) for _, checkpoint in evidence.checkpoints for name in checkpoint.files]
    hashes = dict(zip(names, sha256_files(one.folder / name for one, name in names), strict=True))
    for step, checkpoint in evidence.checkpoints:
        checkpoint.verify(found={name: hashes[checkpoint, name] for name in checkpoint.files})
        for part in PARTS:
            checkpoint.slices(part)
        if written and (step, checkpoint.manifest["merkle_root"]) not in written:
            raise HanseError(f"{checkpoint.folder}: the ledger knows no checkpoint with this Merkle root")
    size = sum(entry["bytes"] for _, checkpoint in evidence.checkpoints for entry in checkpoint.files.values())
    steps = [step for step, _ in evidence.checkpoints]
    told = f"{len(steps)} complete ({', '.join(map(str, steps[-4:]))}), {size / 1e6:.1f} MB hashed"
    old = [step for step, opened in evidence.opened if isinstance(opened, Older)]
    if old:
        raise Unknown(f"of step {', '.join(map(str, old))}: older format, cannot be checked; of the others: {told}")
    strays = [str(one.folder / name) for _, one in evidence.checkpoints for name in one.strays()]
    if strays:
        raise Unknown(f"in no manifest, so of no checkpoint: {', '.join(strays[:4])}{' ...' * (len(strays) > 4)}; "
                      f"move that away. The checkpoints: {told}")  # fmt: skip
    return told


def states(evidence: Evidence) -> str:
    """The newest checkpoint that the ledger knows the state of holds exactly that state."""
    from train.state_hash import state_of_checkpoint

    known = ledger.steps(evidence.records, "state")
    both = [(step, checkpoint) for step, checkpoint in evidence.checkpoints if step in known]
    if not both:
        raise Unknown("no checkpoint at a step whose state the ledger holds the hash of")
    step, checkpoint = both[-1]
    if state_of_checkpoint(checkpoint).root != known[step]["root"]:
        raise HanseError(f"{checkpoint.folder}: not the weights and moments that the run had after step {step}")
    return f"{len(known)} in the ledger; that of step {step} is the checkpoint's"


def parents(evidence: Evidence) -> str:
    """What the run began with: checkpoints and lock name the same parents, and each is found by its manifest's hash."""
    from train.checkpoint import Checkpoint

    entries = {step: checkpoint.parents for step, checkpoint in evidence.checkpoints}
    if not entries:
        raise Unknown("no complete checkpoint in the run folder")
    if evidence.folder.lock.is_file():
        locked = read_json(evidence.folder.lock, "lock of this run").get("parents", [])
        for step, own in entries.items():
            if own != locked:
                raise HanseError(f"{evidence.folder.lock}: names other parents than the checkpoint of step {step}")
    named = [_parent(checkpoint, entry) for _, checkpoint in evidence.checkpoints for entry in checkpoint.parents]
    if not named:
        return "none: fresh weights"
    places = [path for folder in (evidence.folder.checkpoints, *evidence.parents)
              for path in folder.rglob("manifest.json") if path.is_file() and not path.is_symlink()]  # fmt: skip
    known = {sha256: path.parent for sha256, path in zip(sha256_files(places), places, strict=True)}
    missing = [f"{role} {sha256[:12]}" for sha256, role in named if sha256 not in known]
    for sha256, _ in named:
        if sha256 in known:
            Checkpoint(known[sha256])
    if missing:
        raise Unknown(f"{len(missing)} of {len(named)} not found ({', '.join(missing[:4])}); name the folders or the "
                      "registry that may hold them: parents=[...]")  # fmt: skip
    return ", ".join(f"{role} {known[sha256]}" for sha256, role in named[:4])


def _parent(checkpoint: Checkpoint, entry: Any) -> tuple[str, str]:
    """(hash of the parent's manifest, what it was for)."""
    try:
        sha256, role = entry["manifest_sha256"], entry["role"]
        if seal.SHA256.fullmatch(sha256) and isinstance(role, str):
            return sha256, role
    except (KeyError, TypeError):
        pass
    raise HanseError(f"{checkpoint.folder / 'manifest.json'}: a parent must have manifest_sha256 and role")


def energy(evidence: Evidence) -> str:
    """The energy ledger is one chain, and its starts can be added up."""
    if not evidence.folder.energy.is_file():
        raise Unknown("no energy.jsonl: trained before there was one")
    return energy_line(energy_totals(evidence.folder.path).to_json()).removeprefix("energy: ")


def seals(evidence: Evidence) -> str:
    """Seals beside the run, its checkpoints and its shards (``NAME.KIND.sig``) hold, if their keys are trusted."""
    sealed = list(evidence.folder.find_checkpoints().values())
    sealed += [Path(folder) for folder in (evidence.folder.path.absolute(), evidence.shards.absolute())]
    found = [(folder, path) for folder in sealed for path in sorted(folder.parent.glob("*.sig"))
             if path.name.startswith(f"{folder.name}.")]  # fmt: skip
    if not found:
        raise Unknown("none beside the run, its checkpoints or its shards; 'hanse seal' makes them")
    held, foreign = [], []
    for folder, path in found:
        try:
            held.append(f"{path.name} ({seal.check(folder, path, evidence.trusted).key[:12]})")
        except Untrusted:
            foreign.append(path.name)
    if foreign:
        raise Unknown(f"{', '.join(foreign[:4])}: sealed with keys that you do not name in trust=[NAME.pub]; "
                      f"{len(held)} others hold")  # fmt: skip
    return f"{', '.join(held[:4])}{' ...' if len(held) > 4 else ''}: hold"


def _manifest(evidence: Evidence) -> ShardsManifest:
    if not evidence.shards.is_dir():
        raise Unknown(f"no shards in {evidence.shards}; set shards=... to where they are now")
    return ShardsManifest.read(evidence.shards)


def _stream(evidence: Evidence) -> RunStream:
    return open_stream(_manifest(evidence), evidence.config, skipped=ledger.skipped(iter(evidence.records)))


CHECKS: tuple[tuple[str, Callable[[Evidence], str]], ...] = (
    ("ledger", chain),
    ("lock", lock),
    ("order of steps", whole),
    ("metrics", metrics),
    ("tokens", tokens),
    ("FLOPs", flops),
    ("data", data),
    ("batches", batches),
    ("checkpoints", checkpoints),
    ("states", states),
    ("parents", parents),
    ("evaluations", evaluations),
    ("energy", energy),
    ("seals", seals),
)
