"""What a contribution must be before its model is asked anything: sealed, well-formed, whole, and one thing throughout.

Each check takes a case and says what it found; it raises HanseError to refuse, Unknown where it cannot tell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from common.errors import HanseError
from common.files import sha256_file
from common.terminal import count, many
from consortium import verify
from consortium.case import Case
from consortium.config import NAME
from consortium.contribution import (
    CARRIED,
    CONFIG,
    ENERGY,
    EVALUATION,
    EVALUATION_FORMAT,
    LARGEST,
    LEDGER,
    LOCK,
    MANIFEST,
    OF_A_RUN,
    STATE,
    TENSORS,
    TOKENIZER,
    is_expected,
)
from consortium.evidence import Evidence, Unknown
from consortium.register import SHA256, parent_problem
from consortium.strangers import strict_json
from consortium.tensors import check_tensor_file
from data_pipelines.tokenizer import token_byte_lengths
from train import ledger
from train.checkpoint import PARTS
from train.model import shape_of_model

ARCHITECTURES = ("apertus", "llama", "mistral", "qwen3")  # those of configs/model; dense, in transformers itself
CODE = ("auto_map", "trust_remote_code", "custom_pipelines", "quantization_config", "attn_implementation",
        "_attn_implementation", "_attn_implementation_internal", "_experts_implementation",
        "experts_implementation")  # fmt: skip
DTYPES = (None, "float32", "bfloat16", "float16")
MOST_LAYERS = 1000
BACK = ("start", "rewind")  # lines of a ledger after which a run goes on from the step they name


def sealed(case: Case) -> str:
    """A contributor's key sealed exactly these files."""
    held = case.seal
    holder = case.registry.register.standing(held.key, ("contributor",), case.day, "contribution.sig")
    for name in held.files:
        if not is_expected(name):
            raise HanseError(f"{name}: no file of a contribution")
    return f"{many(len(held.files), 'file')}, sealed by {holder.holder} with {held.key[:12]}"


def papers(case: Case) -> str:
    """Every JSON file is strict JSON without a key that would run code; the contribution says what it must."""
    for name in sorted(case.seal.files):
        if name.endswith(".json"):
            value = case.json(name)
            found = next((key for key in keys(value) if key in CODE), None) if name != TOKENIZER else None
            if found:
                raise HanseError(f"{name}: has the key '{found}', by which code of others could be run")
    if (case.folder / CARRIED).is_file():
        check_yaml(case.folder / CARRIED, CARRIED)
    paper = case.paper
    if paper.manifest_sha256 != case.identity:
        raise HanseError("contribution.json: names another checkpoint than lies in checkpoint/ (manifest_sha256)")
    words = [paper.license, *paper.data_licenses, *paper.tools.values(), paper.opt_out_date or "-"]
    if not NAME.fullmatch(paper.name) or not all(0 < len(one) <= 100 and one.isprintable() for one in words):
        raise HanseError("contribution.json: name, licences, day or tools are empty, too long or not readable")
    if paper.step >= 10**8 or not all(map(SHA256.fullmatch, (paper.merkle_root, paper.data_merkle_root))):
        raise HanseError("contribution.json: a step beyond all steps, or no hashes where they must be")
    run = [name for name in OF_A_RUN if (case.folder / name).is_file()]
    if run and len(run) != len(OF_A_RUN):
        raise HanseError(f"of a run's papers only {', '.join(run)} are here; {', '.join(OF_A_RUN)} belong together")
    if not run and not paper.parents:
        raise HanseError("neither the papers of a run nor parents: nobody could tell where these weights come from")
    return f"{paper.name}, step {paper.step}, {count(paper.tokens)} tokens, {paper.license}"


def check_yaml(path: Path, name: str) -> None:
    """Refuse YAML in which anything stands for something else: references, tags, values of the reader's machine.

    Raises:
        HanseError: there is such a thing, or it is no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        strange = "${" in text or any(
            isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) for event in yaml.parse(text)
        )
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError):
        raise HanseError(f"{name}: not readable as YAML") from None
    if strange:
        raise HanseError(f"{name}: has references, tags or values of the machine that reads it (${{...}})")


def keys(value: Any) -> Iterator[str]:
    """Every key of nested JSON."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            yield from one
            pending += one.values()
        elif isinstance(one, list):
            pending += one


def tensors(case: Case) -> str:
    """Every tensor file has an honest header, and numbers only."""
    numbers = [
        check_tensor_file(case.folder / name, name) for name in sorted(case.seal.files) if TENSORS.fullmatch(name)
    ]
    if not numbers:
        raise HanseError("no tensor files in checkpoint/")
    return f"{many(len(numbers), 'file')}, {sum(numbers):,} numbers, all finite"


def checkpoint(case: Case) -> str:
    """Manifest, files, ranges of elements and state belong together, and are those that the contribution names."""
    form = case.json(MANIFEST)
    listed = form.get("files") if isinstance(form, dict) else None
    there = {name.removeprefix("checkpoint/") for name in case.seal.files if name.startswith("checkpoint/")}
    if not isinstance(listed, dict) or set(listed) | {"manifest.json"} != there:
        raise HanseError(f"{MANIFEST}: does not list exactly the files in checkpoint/")
    found, paper = case.checkpoint, case.paper
    found.verify()
    for part in PARTS:
        found.slices(part)
    state = found.state
    same = {"step": (state["step"], paper.step), "tokens": (state.get("consumed_tokens"), paper.tokens),
            "merkle_root": (found.manifest["merkle_root"], paper.merkle_root),
            "data_merkle_root": (state["data_merkle_root"], paper.data_merkle_root),
            "parents": (found.manifest.get("parents", []), paper.parents)}  # fmt: skip
    for key, (there_, said) in same.items():
        if there_ != said or type(there_) is not type(said):
            raise HanseError(f"contribution.json: says {key}={said!r:.100}, the checkpoint {there_!r:.100}")
    for parent in paper.parents:
        if parent_problem(parent):
            raise HanseError(f"{MANIFEST}: a parent {parent_problem(parent)}")
    return f"{len(found.shapes)} tensors, {count(sum(math.prod(one) for one in found.shapes.values()))} parameters"


def model(case: Case) -> str:
    """Its configuration is one of a known architecture, with known keys; names and shapes are those of that model."""
    values = case.checkpoint.state["model"]
    check_settings(values, STATE)
    layers = values.get("num_hidden_layers")
    if type(layers) is not int or not 0 < layers <= min(MOST_LAYERS, len(case.checkpoint.shapes)):
        raise HanseError(f"{STATE}: num_hidden_layers={layers!r:.40}, with {len(case.checkpoint.shapes)} tensors")
    config = case.model_config
    try:
        shapes = {name: tuple(one.shape) for name, one in shape_of_model(config).named_parameters()}
    except Exception as error:  # whatever transformers and torch find wrong with sizes that a stranger chose
        raise HanseError(f"{STATE}: no model can be made of its configuration ({' '.join(str(error).split())[:200]})"
                         ) from None  # fmt: skip
    case.checkpoint.check_model(shapes)
    return f"{config.model_type}, {layers} layers, every name and shape as it must be"


def check_settings(values: Any, where: str) -> None:
    """Refuse a model configuration with anything in it but known keys of a known architecture and bounded numbers.

    Raises:
        HanseError: naming what is wrong.
    """
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in ARCHITECTURES:
        raise HanseError(f"{where}: model_type={kind!r:.40}; accepted are {', '.join(ARCHITECTURES)}")
    known = AutoConfig.for_model(kind).to_dict()
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise HanseError(f"{where}: model has the key '{unknown[0][:60]}', which {kind} has not here "
                         f"(transformers {known['transformers_version']})")  # fmt: skip
    if values.get("dtype") not in DTYPES:
        raise HanseError(f"{where}: dtype={values.get('dtype')!r:.40}; one of float32, bfloat16, float16")
    pending = list(values.values())
    while pending:
        one = pending.pop()
        if isinstance(one, dict | list):
            pending += one.values() if isinstance(one, dict) else one
        elif isinstance(one, int | float) and not -(2**40) < one < 2**40:
            raise HanseError(f"{where}: model has a number beyond all sizes ({one!r:.40})")


def tokenizer(case: Case) -> str:
    """The tokenizer is the one that the checkpoint names, a byte-level BPE, and fits the model's vocabulary."""
    path = case.folder / TOKENIZER
    if sha256_file(path) != case.checkpoint.state["tokenizer_sha256"]:
        raise HanseError(f"{TOKENIZER}: not the tokenizer of the checkpoint (its sha256 differs)")
    try:
        size = len(token_byte_lengths(path))
    except HanseError as error:
        raise HanseError(f"{TOKENIZER}: {str(error).partition(': ')[2]}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        raise HanseError(f"{TOKENIZER}: not a tokenizer") from None
    if size > case.model_config.vocab_size:
        raise HanseError(f"{TOKENIZER}: has {size} ids, the model's vocabulary {case.model_config.vocab_size}")
    return f"{size} ids, byte-level BPE"


def run_papers(case: Case) -> str:
    """Lock, configuration and ledger speak of one run, which has every step up to the checkpoint and ends with it."""
    if not case.of_a_run:
        raise Unknown("merged from its parents, by no run")
    config, paper = case.train_config, case.paper
    check_settings({"model_type": config.model.architecture, **config.model.settings}, CONFIG)
    check_ledger(case.records)
    evidence = evidence_of(case)
    verify.chain(evidence)
    check_lock(case.json(LOCK), case)
    verify.lock(evidence)
    said = verify.whole(evidence)
    last = case.records[-1]
    if (last["kind"], last.get("step"), last.get("merkle_root")) != ("checkpoint", paper.step, paper.merkle_root):
        raise HanseError(f"{LEDGER}: does not end with this checkpoint")
    if max(evidence.steps) < paper.step or config.timeline.tokens(paper.step) != paper.tokens:
        raise HanseError(f"{LEDGER}: ends before step {paper.step}, or that step has another number of tokens")
    return said


def evidence_of(case: Case) -> Evidence:
    """The papers of the run as ``hanse verify`` reads them."""
    from train.run_folder import RunFolder

    return Evidence(folder=RunFolder(case.folder), config=case.train_config, shards=case.folder / "shards",
                           records=case.records, steps=ledger.steps(iter(case.records)), batches=16,
                           parents=[], trusted={})  # fmt: skip


def check_ledger(records: list[dict[str, Any]]) -> None:
    """Refuse lines that lack what their kind must hold, and steps that do not come next.

    Raises:
        HanseError: naming the first.
    """
    if not records or records[0]["kind"] != "start":
        raise HanseError(f"{LEDGER}: does not begin with the start of a run")
    done = 0
    for number, record in enumerate(records, 1):
        try:
            whole = _is_whole(record)
        except (KeyError, TypeError, ValueError, AttributeError):
            whole = False
        if not whole:
            raise HanseError(f"{LEDGER}: line {number} lacks what a line of kind {record['kind'][:20]!r} must hold")
        back = record["kind"] in BACK
        if back and record["step"] <= done:
            done = record["step"]
        elif back or (record["kind"] == "step" and record["step"] != done + 1):
            raise HanseError(f"{LEDGER}: line {number} tells of step {record['step']}, after step {done}")
        elif record["kind"] == "step":
            done += 1


def _is_whole(record: dict[str, Any]) -> bool:
    if record["kind"] == "start":
        return type(record["step"]) is int and SHA256.fullmatch(record["lock"]) is not None
    if record["kind"] == "rewind":
        first, last = record["samples"]
        return type(record["step"]) is type(first) is type(last) is int
    if record["kind"] == "stages":
        hashes = (record["before"], record["config_sha256"])
        return type(record["step"]) is int and all(SHA256.fullmatch(one) is not None for one in hashes)
    if record["kind"] == "checkpoint":
        return type(record["step"]) is int and SHA256.fullmatch(record["merkle_root"]) is not None
    if record["kind"] != "step":
        return True
    numbers = [float.fromhex(record[key]) for key in ("loss", "learning_rate", "gradient_norm")]
    if record.get("skipped") == "overflow":  # of fp16: the one gradient whose norm may be no finite number
        del numbers[-1]
    first, last = record["samples"]
    return (type(record["step"]) is type(first) is type(last) is int and SHA256.fullmatch(record["batch"]) is not None
            and all(map(math.isfinite, numbers)))  # fmt: skip


def check_lock(value: Any, case: Case) -> None:
    """Refuse a lock without what it must hold, or of another data, tokenizer or lineage than the checkpoint.

    Raises:
        HanseError: saying which.
    """
    state = case.checkpoint.state
    try:
        facts = (value["code"]["sha256"], value["determinism"], value["precision"], value["config_sha256"])
        whole = all(isinstance(one, str) for one in facts) and isinstance(value["distributions"], dict)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise HanseError(f"{LOCK}: lacks code, distributions, determinism, precision or configuration")
    said = {"data_merkle_root": state["data_merkle_root"], "tokenizer_sha256": state["tokenizer_sha256"],
            "parents": case.paper.parents}  # fmt: skip
    for key, expected in said.items():
        if value.get(key, []) != expected:
            raise HanseError(f"{LOCK}: of another {key} than the checkpoint")


def energy(case: Case) -> str:
    """The energy ledger, if there is one, is a chain of lines as a run writes it; what it says is the contributor's."""
    path = case.folder / ENERGY
    if not path.is_file():
        raise Unknown("no energy.jsonl: the run did not measure it")
    lines = path.read_bytes().split(b"\n")
    if lines.pop() != b"":
        raise HanseError(f"{ENERGY}: its last line is cut short")
    for number, line in enumerate(lines, 1):
        if len(line) > LARGEST[CONFIG] or not isinstance(strict_json(line, f"{ENERGY}: line {number}"), dict):
            raise HanseError(f"{ENERGY}: line {number} is no JSON object")
    if len(list(ledger.lines(path))) == 0:
        raise HanseError(f"{ENERGY}: holds no line")
    return f"{len(lines)} lines, as the contributor measured it"


def evaluation(case: Case) -> str:
    """``evaluation.json`` holds what can be measured again."""
    value = case.evaluation
    try:
        golden, text, scores = value["golden"], value["validation"], value["bits_per_byte"]
        numbers = [golden["largest"], *scores.values()]
        whole = value["format"] == EVALUATION_FORMAT and SHA256.fullmatch(golden["sha256"]) is not None
        whole = whole and all(type(one) is float and 0 <= one < math.inf for one in numbers)
        whole = whole and isinstance(golden["kept"], list) and (text is None) == (not scores)
        if text is not None:
            sizes = (text["sequence_length"], text["tokens_per_language"])
            whole = whole and all(type(size) is int and 0 < size < 2**32 for size in sizes)
            whole = whole and SHA256.fullmatch(text["data_merkle_root"]) is not None
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise HanseError(f"{EVALUATION}: golden logits, bits per byte or what they were measured on are not given")
    said = json.dumps({name: round(score, 3) for name, score in sorted(scores.items())})
    return f"as the contributor measured: bits per byte {said}"
