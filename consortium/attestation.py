"""What a replay has shown: as JSON, in a seal, in ACM's terms and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from common.configuration import differences
from common.files import atomic_file, read_json, sha256_file
from common.terminal import many, say
from consortium import seal
from train import ledger
from train.config import TrainConfig
from train.run_folder import RunFolder, complete_steps

FORMAT = "hanse.reproduction/1"
VALUES = ("loss", "gradient_norm", "learning_rate")
LAYOUT = ("ranks", "zero_stage", "micro_batch_size", "threads_per_rank", "sequence_parallel",
          "tensor_parallel")  # fmt: skip
SHOWN = 20  # differences and tensors that are told


@dataclass(frozen=True)
class Replay:
    """Steps ``first + 1 .. last`` of ``original``, computed again in ``again``."""

    original: RunFolder
    again: RunFolder
    first: int
    last: int

    @property
    def kept(self) -> bool:
        """Whether both have the checkpoint of the last step."""
        return all(self.last in complete_steps(folder.checkpoints) for folder in (self.original, self.again))

    def layout(self, folder: RunFolder) -> dict[str, Any]:
        """Of the start that computed the last step, as its ledger tells."""
        starts = [record for _, record in ledger.lines(folder.ledger) if record["kind"] == "start"]
        return next(({key: one.get(key) for key in LAYOUT} for one in reversed(starts) if one["step"] < self.last), {})


def describe(replay: Replay, config: TrainConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """What was compared, and ``found``; no path of this machine is in it.

    Bits are promised at D2, and at D1 on the run's own layout: there whatever differs, differs. Otherwise it may lie
    in the band.
    """
    original, again = replay.original, replay.again
    layouts = {"run": replay.layout(original), "replay": replay.layout(again)}
    promised = config.determinism == "D2" or (config.determinism == "D1" and layouts["run"] == layouts["replay"])
    bitwise = not (found["differing_steps"] or found["differing_tensors"] or found["states"]["differing"])
    near = found["within_band"] and not promised
    outcome = "bitwise" if bitwise else "within the noise band" if near else "differs"
    locked, mine = original.lock.is_file(), read_json(again.lock, "lock of the replay")
    theirs = read_json(original.lock, "lock of the run") if locked else None
    return {
        "format": FORMAT,
        "run": config.name,
        "ledger_sha256": sha256_file(original.ledger),
        "lock_sha256": sha256_file(original.lock) if locked else None,
        "first_step": replay.first + 1,
        "last_step": replay.last,
        "from_scratch": replay.first == 0,
        "determinism": config.determinism,
        "bits_promised": promised,
        "outcome": outcome,
        "bitwise": bitwise,
        "compared": ["batch", *VALUES, *(["weights and moments of the last step"] if replay.kept else [])],
        "compared_state": replay.kept,
        "layouts": layouts,
        "machine": mine["machine"],
        "lock_differences": {key: list(pair) for key, pair in differences(theirs, mine).items()} if theirs else None,
        **found,
        "acm": badges(outcome),
    }


def badges(outcome: str) -> dict[str, str]:
    """What a replay says in the terms of ACM's badges.

    Source: ACM, Artifact Review and Badging, version 1.1 of 24 August 2020,
    https://www.acm.org/publications/policies/artifact-review-and-badging-current. ACM gives badges, for papers; this
    says which of the conditions of each a replay has met.
    """
    reproduced = "not shown: the replay gave other results"
    if outcome != "differs":
        how = "to the last bit" if outcome == "bitwise" else "within the stated band"
        reproduced = (f"shown for these steps, {how}, with the authors' artifacts, if who replayed them is none of "
                      "the authors; of a paper's main results only if they are these steps")  # fmt: skip
    return {
        "terms": "ACM Artifact Review and Badging 1.1",
        "Artifacts Available": "not shown: asks for a public archival repository and an identifier; a replay does "
                               "not look where its input came from",
        "Artifacts Evaluated - Functional": "shown in part: exercisable and complete enough to compute these steps, "
                                            "and verified by it; whether documented and consistent, readers must say",
        "Artifacts Evaluated - Reusable": "not shown: asks for more than Functional, which people judge",
        "Results Reproduced": reproduced,
        "Results Replicated": "not shown: asks for results without the authors' artifacts, and a replay uses them",
    }  # fmt: skip


def sign(subject: Path, key: ec.EllipticCurvePrivateKey, told: dict[str, Any], folder: Path) -> Path:
    """Write the attestation into ``folder``: a seal of the run's own checkpoint; what was ``told`` are its facts."""
    content = seal.make(subject, key, "reproduction", told)
    path = folder / f"{subject.name}.reproduction.sig"
    with atomic_file(path) as partial:
        partial.write_bytes(content)
    return path


def tell(told: Mapping[str, Any]) -> None:
    """The same in words."""
    segment = f"steps {told['first_step']} to {told['last_step']}"
    state = "weights and moments" if told["compared_state"] else "no checkpoint of the last step to compare"
    state += f", {many(len(told['states']['compared']), 'state hash', 'state hashes')}"
    if told["bitwise"]:
        say(f"{segment}: the same to the last bit (batches, losses, gradient norms; {state})")
    else:
        _tell_differences(told, segment)
    say(f"ACM badge terms, Results Reproduced: {told['acm']['Results Reproduced']}")


def _tell_differences(told: Mapping[str, Any], segment: str) -> None:
    if told["first_differing_step"]:
        say(f"{segment}: the first that differs is {told['first_differing_step']}, {told['differing_steps']} do, "
            f"by {told['largest_relative_difference']:.1e} relative at most")  # fmt: skip
    states = told["states"]
    if states["differing"]:
        say(f"states: equal after step {states['last_equal']}, other after step {states['first_differing']}; " + (
            f"first in {states['tensors'][0]}, in {states['differing_tensors']} tensors" if states["tensors"] else
            "in which tensors, nobody kept"))  # fmt: skip
    for tensor in told["differing_tensors"][:1]:
        say(f"first tensor that differs: {tensor['tensor']}, {tensor['differing']:,} of {tensor['elements']:,} "
            f"elements, by {tensor['largest_difference']:.1e} at most")  # fmt: skip
    level, band = told["determinism"], told["band"]
    if told["bits_promised"]:
        say(f"the run was made at determinism={level}: on its hardware and software this must not be")
    else:
        how = "the noise that two replays measured" if band["measured"] else "tolerance"
        say(f"determinism={level} promises no bits here; {'within' if told['within_band'] else 'beyond'} {how}, of the "
            f"last step's loss {band['at_the_last_step']['loss']:.1e}")  # fmt: skip
