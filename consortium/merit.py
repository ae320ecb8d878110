"""What a contribution's model does, where it comes from, and whether the registry's policy lets it in.

Each check takes a case and says what it found; it raises HanseError to refuse, Unknown where it cannot tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from common.errors import EXIT_DONE, HanseError
from common.files import read_json, write_text
from common.terminal import many
from consortium import verify
from consortium.case import Case
from consortium.config import ReproduceConfig
from consortium.contribution import CONFIG, EVALUATION, TOKENIZER
from consortium.evidence import Evidence, Unknown
from consortium.form import evidence_of
from consortium.measure import NoText, bits_per_byte, golden_logits
from consortium.papers import licences
from train import ledger
from train.checkpoint import Checkpoint
from train.model import flops_of_steps
from train.trained import model_of

SAME_SCORE = 1e-3  # bits per byte; measured again on the same text by another machine


def golden(case: Case) -> str:
    """The model, loaded here, gives the logits that the contributor recorded."""
    found = golden_logits(loaded(case.checkpoint))
    said = case.evaluation["golden"]
    try:
        kept = np.array(said["kept"], dtype=np.float64)
    except (ValueError, TypeError):
        kept = np.empty(0)
    here = np.array(found["kept"])
    if kept.shape != here.shape or not np.isfinite(kept).all():
        raise HanseError(f"{EVALUATION}: the golden logits are not {' x '.join(map(str, here.shape))} numbers")
    difference, scale = float(np.abs(here - kept).max()), max(1.0, found["largest"])
    tolerance = case.registry.register.policy.logit_tolerance
    if not difference <= tolerance * scale:
        raise HanseError(f"the model gives other logits than its contributor recorded: by {difference:.1e}, where "
                         f"{tolerance:.0e} of {scale:.1f} is allowed; not the weights that were measured")  # fmt: skip
    if found["sha256"] == said["sha256"]:
        return "the same to the last bit"
    return f"differ by {difference:.1e} at most, of {scale:.1f}"


def loaded(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model of a checkpoint.

    Raises:
        HanseError: it cannot be made; whatever transformers and torch find wrong with what a stranger wrote.
    """
    try:
        return model_of(checkpoint)
    except HanseError:
        raise
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise HanseError(f"the model cannot be loaded ({what})") from None


def scores(case: Case) -> str:
    """In no language is the model worse than its best parent by more than the policy allows."""
    register = case.registry.register
    parents = [one["manifest_sha256"] for one in case.paper.parents if one["manifest_sha256"] in register.models]
    claimed = case.evaluation["bits_per_byte"]
    if case.config.data is None:
        _compare(case, claimed, [register.models[one].bits_per_byte for one in parents], "as claimed")
        raise Unknown("only as claimed, which its parents allow; data=FOLDER with validation text measures it")
    try:
        found = _measure(case, case.checkpoint)
    except NoText as reason:
        raise Unknown(str(reason)) from None
    text = case.evaluation["validation"]
    if text is not None and text["data_merkle_root"] == case.shards.merkle_root:
        for name, score in found.items():
            if abs(claimed.get(name, -1.0) - score) > SAME_SCORE:
                raise HanseError(f"{EVALUATION}: says {claimed.get(name)} bits per byte for '{name}', on the same text "
                                 f"here it is {score:.4f}")  # fmt: skip
    _compare(case, found, [_measure(case, case.parent(one)) for one in parents], "measured here")
    told = ", ".join(f"{name} {score:.3f}" for name, score in sorted(found.items()))
    return f"{told} bits per byte, measured here{'' if parents else '; no parent to compare with'}"


def _measure(case: Case, checkpoint: Checkpoint) -> dict[str, float]:
    text = case.evaluation["validation"] or {"tokens_per_language": 16_384}
    longest = min(512, case.model_config.max_position_embeddings or 512)
    return bits_per_byte(loaded(checkpoint), case.shards, case.folder / TOKENIZER,
                         length=min(text.get("sequence_length", longest), 65_536),
                         tokens_per_language=min(text["tokens_per_language"], 10**7))  # fmt: skip


def _compare(case: Case, found: dict[str, float], parents: list[dict[str, float]], how: str) -> None:
    allowed = case.registry.register.policy.worse_bits_per_byte
    for name in sorted({name for parent in parents for name in parent}):
        best = min(parent[name] for parent in parents if name in parent)
        if name not in found:
            raise HanseError(f"its parent was measured in '{name}', it is not: measure it there too")
        if found[name] > best + allowed:
            raise HanseError(f"{found[name]:.3f} bits per byte in '{name}' ({how}), its best parent has {best:.3f}; "
                             f"{allowed} more are allowed")  # fmt: skip


def batches(case: Case) -> str:
    """The batches that the ledger names are those that its samples hold, drawn again from the same shards."""
    if not case.of_a_run:
        raise Unknown("merged from its parents, by no run")
    if case.shards.merkle_root != case.paper.data_merkle_root:
        raise Unknown(f"{case.shards.folder} holds other shards than it was trained on")
    evidence = evidence_of(case)
    return verify.batches(Evidence(**{**vars(evidence), "shards": case.shards.folder}))


def lineage(case: Case) -> str:
    """Its parents are in the registry, nothing speaks against them, and it is not there itself."""
    register, parents = case.registry.register, case.paper.parents
    if case.identity in register.models:
        raise HanseError(f"this checkpoint was accepted before ({register.models[case.identity].folder})")
    register.check_parents(parents, "lineage")
    if not parents:
        return "from scratch: no parents"
    told = ", ".join(f"{one['role']} {register.models[one['manifest_sha256']].folder}" for one in parents)
    return f"{told}; {many(len(register.ancestors(parents)), 'ancestor')}, all accepted"


def compute(case: Case) -> str:
    """Its training FLOPs are those of its model, tokens and ancestors (PaLM's formula, appendix B)."""
    paper, own = case.paper, 0
    if case.of_a_run:
        own = own_flops(case)
    if paper.flops != own:
        raise HanseError(
            f"contribution.json: says {paper.flops:.4e} FLOPs for itself, by model and ledger it is {own:.4e}"
        )
    total = case.registry.register.cumulative_flops(own, paper.parents)
    if paper.cumulative_flops != total:
        raise HanseError(f"contribution.json: says {paper.cumulative_flops:.4e} FLOPs with its ancestors, by this "
                         f"registry it is {total:.4e}")  # fmt: skip
    limits = [name for limit, name in ((1e23, "the GPAI criterion of 1e23"), (1e25, "1e25: presumed systemic risk"))
              if total > limit]  # fmt: skip
    return f"{own:.3e} FLOPs itself, {total:.3e} with ancestors" + (f"; above {' and '.join(limits)}" if limits else "")


def own_flops(case: Case) -> int:
    """FLOPs of the steps that led to this checkpoint; steps that were lost and done again count once."""
    spans = {step: record["samples"] for step, record in ledger.steps(iter(case.records)).items()
             if step <= case.paper.step}  # fmt: skip
    return flops_of_steps(case.model_config, case.train_config.timeline, spans)


def third(case: Case) -> str:
    """Whether who made it becomes the provider of a new model: more than a third of the original's training compute.

    Commission guidelines on general-purpose AI models (18 July 2025). Reported, never refused; no legal advice.
    """
    before = case.registry.register.cumulative_flops(0, case.paper.parents)
    if not before:
        raise Unknown("no parents: who trained it is its provider")
    share = case.paper.flops / before
    verdict = "more: counts as the provider of a new model" if share > 1 / 3 else "less: modifies the parents' model"
    return f"{share:.1%} of its ancestors' compute, the line is at a third; {verdict}"


def license_fits(case: Case) -> str:
    """The weights' licence is one that the policy lets in, and that the parents' licences and the data's allow."""
    register, paper = case.registry.register, case.paper
    allowed = register.policy.licenses
    if allowed and paper.license not in allowed:
        raise HanseError(f"{paper.license[:60]}: this registry takes {', '.join(allowed)}")
    theirs = [register.models[one["manifest_sha256"]].license for one in paper.parents
              if one["manifest_sha256"] in register.models]  # fmt: skip
    come_from = [*theirs, *paper.data_licenses]
    unknown = licences.unknown([paper.license, *come_from])
    known = [part for one in come_from for part in licences.parts(one) if part not in unknown]
    found = licences.conflicts(licences.stated(paper.license), known, {}) if known else []
    if found and paper.license not in unknown:
        raise HanseError(found[0].why)
    if unknown or not paper.data_licenses:
        what = f"{', '.join(unknown)[:200]} is not known here" if unknown else "the data's licences are not said"
        raise Unknown(f"{paper.license}: {what}; a person must look")
    return f"{paper.license}, on data under {', '.join(sorted(set(paper.data_licenses)))}"


def opt_out(case: Case) -> str:
    """The opt-outs heeded in the data are as new as the policy asks, and not of the future."""
    asked, said = case.registry.register.policy.opt_out_since, case.paper.opt_out_date
    if said and (len(said) != 10 or said > case.day):
        raise HanseError(f"contribution.json: opt_out_date={said[:40]!r} is no day, or is yet to come")
    if asked and said < asked:
        raise HanseError(f"opt-outs heeded as of {said or 'no day'}; this registry asks for {asked} or later: tokenize "
                         "a corpus with a newer snapshot")  # fmt: skip
    if not said:
        raise Unknown("the contributor names no day")
    return f"opt-outs heeded as of {said}"


def replay(case: Case) -> str:
    """The first steps of the run, computed again here from its data, are those in its ledger."""
    wanted = case.config.replay_steps
    if not wanted:
        raise Unknown("not asked for (replay_steps=N)")
    if not case.of_a_run or case.paper.parents:
        raise Unknown("only what was trained from scratch is replayed here")
    if case.shards.merkle_root != case.paper.data_merkle_root:
        raise Unknown(f"{case.shards.folder} holds other shards than it was trained on")
    from consortium.reproduce import run as reproduce

    here = case.folder.parent / "replay"
    original = here / "original"
    write_text(original / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(case.train_config)))
    write_text(original / "ledger.jsonl", (case.folder / "ledger.jsonl").read_text(encoding="utf-8"))
    last = min(wanted, case.paper.step)
    layout = case.train_config.ranks if case.train_config.determinism == "D1" else 1
    code = reproduce(ReproduceConfig(run=str(original), from_step=0, to_step=last, output=str(here / "again"),
                                     ranks=layout, lock=False, shards=str(case.shards.folder),
                                     tokenizer=str(case.folder / "tokenizer")))  # fmt: skip
    told: dict[str, Any] = read_json(Path(here / "again/reproduction.json"), "reproduction")
    if code != EXIT_DONE:
        raise HanseError(f"{CONFIG}: replayed, step {told['first_differing_step']} is the first that differs, by up to "
                         f"{told['largest_relative_difference']:.1e}: the ledger is not of this run")  # fmt: skip
    how = "to the last bit" if told["bitwise"] else f"to {told['largest_relative_difference']:.1e}"
    return f"steps 1 to {last} computed again, the same {how}"
