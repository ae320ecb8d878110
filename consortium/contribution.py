"""A contribution: a checkpoint with all that others need to judge it, in a folder that its contributor sealed.

    contribution.json         what it is: model, licence, parents, compute (this page's dataclass)
    contribution.sig          seal of kind 'contribution' over all other files
    checkpoint/               manifest.json, state.json and the tensors, as they were written
    tokenizer/tokenizer.json
    evaluation.json           golden logits, and bits per byte a language
    config.json  run.lock.json  ledger.jsonl  energy.jsonl     of the run, where a run made it

Nothing else may be in the folder: no code, no archive, no pickle, no link.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import HanseError
from common.files import from_json, inside
from consortium import bundle
from consortium.index import Registry
from consortium.seal import Seal, parse
from consortium.strangers import read_regular, strict_json

FORMAT, EVALUATION_FORMAT = "hanse.contribution/1", "hanse.contribution.evaluation/1"
PAPER, SEAL, EVALUATION = "contribution.json", "contribution.sig", "evaluation.json"
MANIFEST, STATE = "checkpoint/manifest.json", "checkpoint/state.json"
TOKENIZER, CONFIG, LOCK = "tokenizer/tokenizer.json", "config.json", "run.lock.json"
LEDGER, ENERGY = "ledger.jsonl", "energy.jsonl"
CARRIED = "checkpoint/config.yaml"  # an average takes along the configuration of one of its parents
NEEDED = (PAPER, SEAL, EVALUATION, MANIFEST, STATE, TOKENIZER)
OF_A_RUN = (CONFIG, LOCK, LEDGER)
TENSORS = re.compile(r"checkpoint/[a-z_]{1,32}/[a-z]{1,32}-[0-9]{5}\.safetensors")
# The largest that each may be, in bytes; tensor files are bounded by all together.
LARGEST = {PAPER: 1 << 20, SEAL: bundle.LARGEST, EVALUATION: 16 << 20, MANIFEST: 64 << 20, STATE: 16 << 20,
           TOKENIZER: 256 << 20, CONFIG: 1 << 20, CARRIED: 1 << 20, LOCK: 16 << 20, LEDGER: 1 << 30,
           ENERGY: 1 << 30}  # fmt: skip
MOST_FILES = 100_000
REVIEW_ENDING = ".review.sig"


@dataclass(frozen=True)
class Contribution:
    """``contribution.json``.

    Attributes:
        manifest_sha256: of ``checkpoint/manifest.json``: what the checkpoint is known by; ``merkle_root``: in it.
        step, tokens: of the checkpoint, as in its state; ``parents``: as in its manifest.
        license: SPDX id of the weights; ``data_licenses``: of what they were trained on.
        opt_out_date: day of the opt-outs that were heeded in the data; empty: none were looked at.
        flops: of training this model itself (6 N D and attention); ``cumulative_flops``: with all ancestors.
        tools: {name: version} of what measured it.
    """

    format: str
    name: str
    step: int
    tokens: int
    manifest_sha256: str
    merkle_root: str
    parents: list[dict]
    license: str
    data_licenses: list[str]
    opt_out_date: str
    data_merkle_root: str
    flops: int
    cumulative_flops: int
    tools: dict[str, str]


def is_expected(name: str) -> bool:
    """Whether a file of this path may be in a contribution."""
    return name in LARGEST or TENSORS.fullmatch(name) is not None


def read_contribution(folder: Path) -> Contribution:
    """``contribution.json`` of a folder.

    Raises:
        HanseError: it is not there, or not what it must be.
    """
    path = folder / PAPER
    value = strict_json(read_regular(path, LARGEST[PAPER], "contribution"), str(path))
    try:
        made = from_json(Contribution, value)
    except TypeError as error:
        raise HanseError(f"{path}: not a contribution ({str(error)[:200]})") from None
    if made.format != FORMAT:
        raise HanseError(f"{path}: of format {made.format[:40]!r}, this hanse reads {FORMAT}")
    return made


def review_path(registry: Registry, identity: str, key: str) -> Path:
    """Where the review seal of a key on a checkpoint lies."""
    return inside(registry.folder, f"reviews/{identity}/{key}{REVIEW_ENDING}")


def read_reviews(registry: Registry, identity: str, held: Seal) -> tuple[dict[str, str], list[str]]:
    """({fingerprint: sha256 of the seal's file} of the reviews that accept exactly the files that ``held`` seals,
    what is wrong with other files there).

    Only seals of keys that the registry knows count; whether each may review is for the register to say.
    """
    folder = registry.folder / "reviews" / identity
    found, problems = {}, []
    for path in sorted(folder.glob(f"*{REVIEW_ENDING}")) if folder.is_dir() else []:
        try:
            content = bundle.read(path)
            review = parse(content, registry.register.public_keys, str(path))
        except HanseError as error:
            problems.append(str(error))
            continue
        told = [review.kind, review.root, *map(review.facts.get, ("verdict", "manifest_sha256", "registry"))]
        if (
            told != ["review", held.root, "accept", identity, registry.heads[0]]
            or path.name != f"{review.key}{REVIEW_ENDING}"
        ):
            problems.append(f"{path}: accepts something else than what {identity[:12]} holds")
            continue
        found[review.key] = hashlib.sha256(content).hexdigest()
    return found, problems
