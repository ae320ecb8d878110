"""What ``hanse evaluate`` wrote into a run folder: of which checkpoint it speaks, and whether its sums add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.files import read_json
from consortium.evidence import Evidence, Unknown
from train.evaluations import name_of, read_evaluation
from train.run_folder import folder_of


def evaluations(evidence: Evidence) -> str:
    """Every evaluation speaks of a checkpoint that the run had, and its figures follow from its counts."""
    paths = sorted(evidence.folder.evaluations.glob("*.json"))
    if not paths:
        raise Unknown("none in the run folder; 'hanse evaluate' writes them")
    unbound = []
    for path in paths:
        saved, value = read_evaluation(path, evidence.folder), read_json(path, "evaluation")
        if path.name != name_of(saved.step, value.get("weights", "master")):
            raise HanseError(f"{path}: is of step {saved.step}, which its name does not say")
        if not _bound(evidence, path, saved.step, value["checkpoint_merkle_root"]):
            unbound.append(path.name)
        _adds_up(path, value)
    if unbound:
        raise Unknown(f"{len(unbound)} of {len(paths)} are of checkpoints that are neither here nor in the ledger "
                      f"({', '.join(unbound[:4])})")  # fmt: skip
    return f"{len(paths)}, each of a checkpoint of this run; their figures follow from their counts"


def _bound(evidence: Evidence, path: Path, step: int, root: str) -> bool:
    """Whether the run can be asked for that checkpoint at all: by its ledger, or because it is still there."""
    kept = dict(evidence.checkpoints).get(step)
    if kept and kept.manifest["merkle_root"] != root:
        raise HanseError(f"{path}: of another checkpoint than {folder_of(evidence.folder.checkpoints, step)}")
    if evidence.written and (step, root) not in evidence.written:
        raise HanseError(f"{path}: the ledger knows no checkpoint with the Merkle root that it names")
    return bool(kept or evidence.written)


def _adds_up(path: Path, value: dict[str, Any]) -> None:
    from train.tally import Score, total

    for language, row in value["languages"].items():
        sources = value["sources"][language]
        for name, one in {language: row, **{f"{language}, {name}": one for name, one in sources.items()}}.items():
            score = Score(*(one[key] for key in ("nll", "targets", "correct", "bytes")))
            if score.to_json() != one:
                raise HanseError(f"{path}: {name}: loss, bits per byte or accuracy is not what the counts give")
        parts = (Score(*(one[key] for key in ("nll", "targets", "correct", "bytes"))) for one in sources.values())
        if total(parts).to_json() != row:
            raise HanseError(f"{path}: the sources of {language} do not add up to it")
