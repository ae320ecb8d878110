"""``hanse accept``: a contribution copied into quarantine, checked line by line, reviewed, and put into the registry.

Every check says what it found, why it refuses and what to do, or that it cannot tell. Nothing in the contribution is
believed: what is read is a copy; nothing in it is run, unpickled, or followed out of it. A check that fails in a way
nobody thought of refuses.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import EXIT_DONE, EXIT_USER_ERROR, HanseError
from common.files import atomic_file, fsync_folder, inside, write_json
from common.terminal import many, next_step, say
from consortium import form, merit
from consortium.case import Case
from consortium.config import AcceptConfig
from consortium.contribution import read_reviews, review_path
from consortium.evidence import Unknown
from consortium.index import Registry
from consortium.keys import fingerprint, load_private
from consortium.quarantine import quarantined
from consortium.register import folder_name
from consortium.registry import open_registry, today
from consortium.seal import make

FORMAT = "hanse.acceptance/1"
CHECKED, REFUSED, UNKNOWN = "checked", "refused", "not checked"
Row = tuple[str, str, str]  # name of the check, outcome, what was found

# What the others stand on: where one of these refuses, nothing more is read.
FIRST: tuple[tuple[str, Callable[[Case], str]], ...] = (
    ("seal", form.sealed),
    ("papers", form.papers),
    ("tensors", form.tensors),
    ("checkpoint", form.checkpoint),
    ("model", form.model),
    ("tokenizer", form.tokenizer),
    ("evaluation", form.evaluation),
    ("run", form.run_papers),
    ("lineage", merit.lineage),
)
THEN: tuple[tuple[str, Callable[[Case], str]], ...] = (
    ("energy", form.energy),
    ("compute", merit.compute),
    ("a third", merit.third),
    ("licence", merit.license_fits),
    ("opt-out", merit.opt_out),
    ("golden logits", merit.golden),
    ("bits per byte", merit.scores),
    ("batches", merit.batches),
    ("replay", merit.replay),
)


def run(config: AcceptConfig) -> int:
    """Check; with a key also review and, when enough have, accept. 0 if nothing is refused, 2 otherwise."""
    registry = open_registry(Path(config.registry), config.root)
    key = load_private(Path(config.key)) if config.key else None
    if key:
        registry.register.standing(fingerprint(key.public_key()), ("reviewer", "maintainer"), today(), str(config.key))
    with examined(registry, config) as (case, rows):
        code = _tell(rows, config, registry)
        if key and case and code == EXIT_DONE:
            _review_and_accept(case, key, rows)
    return code


@contextmanager
def examined(registry: Registry, config: AcceptConfig) -> Iterator[tuple[Case | None, list[Row]]]:
    """The contribution's copy in quarantine, for as long as the context lasts, and every check that was made of it.

    There is no case where not even a copy could be made.
    """
    rows = [_root_row(registry)]
    largest = int(config.largest_gigabytes * 1e9)
    with ExitStack() as stack:
        try:
            place = inside(registry.folder, "quarantine")  # whoever may write there could have put a link
            copy = stack.enter_context(quarantined(Path(config.contribution), place, largest))
        except HanseError as error:
            yield None, [*rows, ("files", REFUSED, str(error))]
            return
        rows.append(("files", CHECKED, "only regular files with names of a contribution"))
        case = Case(copy, registry, config, today())
        yield case, [*rows, *judge(case)]


def _root_row(registry: Registry) -> Row:
    first = next(iter(registry.register.holders))
    if registry.root is None:
        return ("registry", UNKNOWN, f"begun with the key {first[:12]}; root=NAME.pub compares it with one you know")
    return ("registry", CHECKED, f"{registry.register.name}, begun with the key that you named")


def judge(case: Case) -> list[Row]:
    """Make every check that can be made."""
    rows: list[Row] = []
    for name, check in FIRST:
        rows.append(_made(name, check, case))
        if rows[-1][1] == REFUSED:
            left = len(FIRST) - len(rows) + len(THEN)
            return [*rows, ("the rest", UNKNOWN, f"{left} further checks stand on what was refused")]
    return [*rows, *(_made(name, check, case) for name, check in THEN)]


def _made(name: str, check: Callable[[Case], str], case: Case) -> Row:
    """One row, of the contribution as its owner has it: the copy is gone when somebody reads this. What a stranger
    wrote is shown without anything that a terminal would obey."""
    name, outcome, found = _tried(name, check, case)
    found = found.replace(f"{case.folder}/", "").replace(str(case.folder), case.config.contribution)
    return (name, outcome, "".join(one if one.isprintable() else "?" for one in found))


def _tried(name: str, check: Callable[[Case], str], case: Case) -> Row:
    try:
        return (name, CHECKED, check(case))
    except Unknown as reason:
        return (name, UNKNOWN, str(reason))
    except HanseError as error:
        return (name, REFUSED, str(error))
    except Exception as error:  # a stranger's files: what nobody thought of is refused, not passed
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return (name, REFUSED, f"could not be made, unexpectedly ({what}); if the contribution is honest, report this")


def _tell(rows: list[Row], config: AcceptConfig, registry: Registry) -> int:
    for name, outcome, found in rows:
        say(f"{outcome:12s} {name:14s} {found}")
    refused, unknown = (sum(row[1] == outcome for row in rows) for outcome in (REFUSED, UNKNOWN))
    say(f"{len(rows) - refused - unknown} checked, {refused} refused, {unknown} could not be checked")
    if config.output:
        write_json(Path(config.output), {"format": FORMAT, "registry": registry.register.name, "head": registry.head,
                                         "contribution": config.contribution, "checks": _as_objects(rows)})  # fmt: skip
        say(f"wrote {config.output}")
    return EXIT_USER_ERROR if refused else EXIT_DONE


def _as_objects(rows: list[Row]) -> list[dict[str, str]]:
    return [dict(zip(("check", "outcome", "found"), row, strict=True)) for row in rows]


def _review_and_accept(case: Case, key: ec.EllipticCurvePrivateKey, rows: list[Row]) -> None:
    registry, mine = case.registry, fingerprint(key.public_key())
    holder, contributor = registry.register.holders[mine], registry.register.holders[case.seal.key]
    if "reviewer" in holder.roles and holder.holder != contributor.holder:
        path = review_path(registry, case.identity, mine)
        facts = {"verdict": "accept", "manifest_sha256": case.identity, "registry": registry.heads[0],
                 "head": registry.head, "checks": _as_objects(rows)}  # fmt: skip
        with atomic_file(path) as partial:
            partial.write_bytes(make(case.folder, key, "review", facts, files=case.seal.files))
        say(f"written: {path}")
    else:
        say(f"{holder.holder} reviews nothing here: " + ("contributed it" if holder.holder == contributor.holder
                                                         else f"is enrolled as {', '.join(holder.roles)}"))  # fmt: skip
    counted, problems = reviews_of(case)
    for problem in problems:
        say(f"not counted: {problem}")
    needed = registry.register.policy.reviews
    holders = {registry.register.holders[one].holder for one in counted}
    if len(holders) < needed:
        whose = ", ".join(sorted(holders)) or "none yet"
        say(f"{len(holders)} of {many(needed, 'review')} ({whose}): not in the registry yet")
        next_step(f"hanse accept registry={registry.folder} contribution={case.config.contribution} key=ANOTHER.key")
        return
    _accept(case, key, counted)


def reviews_of(case: Case) -> tuple[dict[str, str], list[str]]:
    """({fingerprint: sha256 of its seal} of the reviews that count today, why others do not)."""
    register = case.registry.register
    found, problems = read_reviews(case.registry, case.identity, case.seal)
    counted = {}
    for one, digest in found.items():
        try:
            holder = register.standing(one, ("reviewer",), case.day, "review")
        except HanseError as error:
            problems.append(str(error))
            continue
        if holder.holder != register.holders[case.seal.key].holder:
            counted[one] = digest
    return counted, problems


def _accept(case: Case, key: ec.EllipticCurvePrivateKey, reviews: dict[str, str]) -> None:
    registry, paper = case.registry, case.paper
    folder = f"models/{folder_name(paper.name, paper.step, case.identity)}"
    facts: dict[str, Any] = {
        "name": paper.name, "step": paper.step, "tokens": paper.tokens, "manifest_sha256": case.identity,
        "merkle_root": paper.merkle_root, "root": case.seal.root, "license": paper.license, "parents": paper.parents,
        "flops": paper.flops, "cumulative_flops": paper.cumulative_flops,
        "bits_per_byte": case.evaluation["bits_per_byte"], "contributor": case.seal.key, "reviews": reviews,
        "folder": folder,
    }  # fmt: skip
    head = registry.append("accept", facts, key, before=lambda: _move(case.folder, inside(registry.folder, folder)))
    say(f"accepted: {registry.folder / folder}, with {many(len(reviews), 'review')}; checkpoint {case.identity}")
    say(f"head {head} (line {len(registry.heads)})")
    next_step(f"hanse registry registry={registry.folder}")


def _move(copy: Path, final: Path) -> None:
    """Give the copy its place, readable for all who may read the registry. What a crash left there is replaced."""
    for folder, _, names in os.walk(copy):
        os.chmod(folder, 0o755)  # noqa: S103 (a registry is there to be read)
        for name in names:
            os.chmod(Path(folder) / name, 0o644)
    shutil.rmtree(final, ignore_errors=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    copy.rename(final)
    fsync_folder(final.parent)
