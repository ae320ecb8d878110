"""What the lines of a registry's index add up to, and which line may follow. Knows no files.

Every rule is held when a line is written and again whenever one is read: a line that breaks one is no line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import HanseError
from common.files import from_json
from consortium.config import DAY, NAME, ROLES, Policy
from consortium.keys import fingerprint, parse_public, public_pem

PARENT_ROLES = ("init", "average", "base", "delta", "converted")
PARENT_KEYS = {"manifest_sha256", "role", "weight", "embeddings", "tokenizer_sha256"}
SHA256 = re.compile(r"[0-9a-f]{64}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True)
class Created:
    """First line: the signer names the registry and is its first maintainer."""

    name: str
    holder: str
    pem: str
    policy: dict


@dataclass(frozen=True)
class Holder:
    """A key that was enrolled; ``valid_until`` is its last day, empty: none. Enrolled again, it is replaced."""

    holder: str
    pem: str
    roles: list[str]
    valid_from: str
    valid_until: str


@dataclass(frozen=True)
class Model:
    """A contribution that was accepted.

    Attributes:
        manifest_sha256: of its checkpoint's manifest.json: what a checkpoint is known by.
        merkle_root: the one in that manifest; ``root``: Merkle root over all files of the contribution but its seal.
        parents: {"manifest_sha256", "role", "weight"} each; ``flops``: spent on this model itself, for training.
        cumulative_flops: the same with all its ancestors, each counted once.
        contributor: fingerprint; ``reviews``: {fingerprint: sha256 of the review seal's file}.
        folder: where it lies in the registry.
    """

    name: str
    step: int
    tokens: int
    manifest_sha256: str
    merkle_root: str
    root: str
    license: str
    parents: list[dict]
    flops: int
    cumulative_flops: int
    bits_per_byte: dict[str, float]
    contributor: str
    reviews: dict[str, str]
    folder: str


@dataclass(frozen=True)
class Revoked:
    """Of a key: no line or seal of it is taken any more, and what it contributed or reviewed from the day ``since`` on
    is in doubt. Of a checkpoint (by its manifest's sha256): nobody may build on it.
    """

    what: str
    sha256: str
    reason: str
    since: str


@dataclass(frozen=True)
class Changed:
    """Another policy, from here on."""

    policy: dict


def folder_name(name: str, step: int, manifest_sha256: str) -> str:
    """Where a model lies: by name and step, and told from others of that step by its identity."""
    return f"{name}/step-{step:08d}-{manifest_sha256[:12]}"


def parent_problem(parent: Any) -> str | None:
    """What is wrong with an entry of ``parents``, if anything is."""
    if not isinstance(parent, dict) or not {"manifest_sha256", "role"} <= parent.keys() <= PARENT_KEYS:
        return f"has other keys than {', '.join(sorted(PARENT_KEYS))}"
    weight = parent.get("weight", 1.0)
    if not _sha256(parent["manifest_sha256"]) or parent["role"] not in PARENT_ROLES:
        return f"gives no sha256, or a role that is none of {', '.join(PARENT_ROLES)}"
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not math.isfinite(weight):
        return "gives a weight that is no number"
    if not _sha256(parent.get("tokenizer_sha256", parent["manifest_sha256"])) or not isinstance(
        parent.get("embeddings", ""), str
    ):
        return "tells of another tokenizer's embeddings without its sha256"
    return None


class Register:
    """Keys, models and policy after some lines.

    Attributes:
        public_keys: all keys ever enrolled, by fingerprint; whether one may do something, :meth:`standing` says.
        days: {manifest_sha256: day on which the model was accepted}.
    """

    def __init__(self) -> None:
        self.name, self.time, self.policy = "", "", Policy()
        self.holders: dict[str, Holder] = {}
        self.public_keys: dict[str, ec.EllipticCurvePublicKey] = {}
        self.models: dict[str, Model] = {}
        self.days: dict[str, str] = {}
        self.revoked_keys: dict[str, Revoked] = {}
        self.revoked_models: dict[str, Revoked] = {}

    def take(self, kind: Any, facts: Any, key: str, time: Any, where: str) -> None:
        """Add a line that ``key`` signed.

        Raises:
            HanseError: it is malformed or not allowed here; nothing is then added.
        """
        if not isinstance(time, str) or not TIME.fullmatch(time) or time < self.time:
            raise HanseError(f"{where}: its time is none, or before that of the line before it")
        if not isinstance(kind, str) or kind not in _KINDS or (kind == "create") != (not self.holders):
            raise HanseError(f"{where}: a line of kind {kind!r:.40}, which cannot stand here")
        made, method = _KINDS[kind]
        try:
            record = from_json(made, facts)
        except TypeError as error:
            raise HanseError(f"{where}: not what a line of kind {kind} must hold ({str(error)[:200]})") from None
        method(self, record, key, time[:10], where)
        self.time = time

    def standing(self, key: str, roles: tuple[str, ...], day: str, where: str) -> Holder:
        """The holder of a key that has one of the roles on a day.

        Raises:
            HanseError: it is not enrolled, was revoked, is not valid on that day, or has none of the roles.
        """
        holder = self.holders.get(key)
        if holder is None:
            raise HanseError(f"{where}: the key {key} is not enrolled in this registry; a maintainer can do that")
        if key in self.revoked_keys:
            raise HanseError(f"{where}: the key {key} of {holder.holder} was revoked: {self.revoked_keys[key].reason}")
        if not holder.valid_from <= day <= (holder.valid_until or day):
            raise HanseError(f"{where}: the key {key} of {holder.holder} is valid from {holder.valid_from} to "
                             f"{holder.valid_until or 'any day'}, not on {day}")  # fmt: skip
        if not set(roles) & set(holder.roles):
            raise HanseError(f"{where}: the key {key} of {holder.holder} is enrolled as {', '.join(holder.roles)}; "
                             f"this takes a {' or '.join(roles)}")  # fmt: skip
        return holder

    def ancestors(self, parents: list[dict]) -> set[str]:
        """Identities of all models that something with these parents comes from, those included that are unknown."""
        found: set[str] = set()
        pending = [parent["manifest_sha256"] for parent in parents]
        while pending:
            one = pending.pop()
            if one not in found:
                found.add(one)
                pending += (
                    [parent["manifest_sha256"] for parent in self.models[one].parents] if one in self.models else []
                )
        return found

    def descendants(self, identity: str) -> list[str]:
        """Models that come from one, in the order in which they were accepted."""
        return [one for one, model in self.models.items() if identity in self.ancestors(model.parents)]

    def cumulative_flops(self, flops: int, parents: list[dict]) -> int:
        """Training FLOPs of a model and all its ancestors, each counted once, however many ways lead to it."""
        return flops + sum(self.models[one].flops for one in self.ancestors(parents) if one in self.models)

    def doubt(self, identity: str) -> str | None:
        """Why nobody may build on an accepted model; None if nothing speaks against it."""
        for one in (identity, *sorted(self.ancestors(self.models[identity].parents))):
            reason = self._own_doubt(one)
            if reason:
                return reason if one == identity else f"comes from {one[:12]}: {reason}"
        return None

    def _own_doubt(self, identity: str) -> str | None:
        if identity in self.revoked_models:
            return f"revoked: {self.revoked_models[identity].reason}"
        model, day = self.models[identity], self.days[identity]
        lost = {key for key, revoked in self.revoked_keys.items() if revoked.since <= day}
        if model.contributor in lost:
            return f"contributed with a key that was revoked: {self.revoked_keys[model.contributor].reason}"
        if model.reviews.keys() & lost and len(model.reviews.keys() - lost) < self.policy.reviews:
            return "too few of its reviews are left: a reviewer's key was revoked"
        return None

    # --- what each kind of line asks for and does ------------------------------------------------------------------

    def _created(self, record: Created, key: str, day: str, where: str) -> None:
        policy = self._policy(record.policy, where)
        holder = Holder(record.holder, record.pem, ["maintainer"], day, "")
        public = _public_key(holder, where)
        if not NAME.fullmatch(record.name) or fingerprint(public) != key:
            raise HanseError(f"{where}: a first line names the registry in letters and digits, and holds the key that "
                             "signed it")  # fmt: skip
        self.name, self.policy, self.holders[key], self.public_keys[key] = record.name, policy, holder, public

    def _enrolled(self, record: Holder, key: str, day: str, where: str) -> None:
        self.standing(key, ("maintainer",), day, where)
        public = _public_key(record, where)
        enrolled = fingerprint(public)
        if enrolled in self.revoked_keys:
            raise HanseError(f"{where}: the key {enrolled} was revoked, which is for good; enrol another one")
        if not record.roles or len(set(record.roles)) != len(record.roles) or set(record.roles) - set(ROLES):
            raise HanseError(f"{where}: roles={record.roles}: some of {', '.join(ROLES)}, each once")
        days = (record.valid_from, record.valid_until or record.valid_from)
        if not all(DAY.fullmatch(one) for one in days) or days[0] > days[1]:
            raise HanseError(f"{where}: valid_from={days[0]} valid_until={record.valid_until}: days as YYYY-MM-DD, in "
                             "this order")  # fmt: skip
        self._keep_a_maintainer({**self.holders, enrolled: record}, self.revoked_keys, day, where)
        self.holders[enrolled], self.public_keys[enrolled] = record, public

    def _changed(self, record: Changed, key: str, day: str, where: str) -> None:
        self.standing(key, ("maintainer",), day, where)
        self.policy = self._policy(record.policy, where)

    def _accepted(self, record: Model, key: str, day: str, where: str) -> None:
        self.standing(key, ("maintainer", "reviewer"), day, where)
        contributor = self.standing(record.contributor, ("contributor",), day, where)
        hashes = (record.manifest_sha256, record.merkle_root, record.root, *record.reviews.values())
        if not NAME.fullmatch(record.name) or not all(map(_sha256, hashes)) or not _readable(record.license):
            raise HanseError(f"{where}: its name, licence or hashes are none")
        if not all(map(math.isfinite, record.bits_per_byte.values())) or record.step >= 10**8:
            raise HanseError(f"{where}: bits per byte that are no numbers, or a step beyond all steps")
        if record.folder != f"models/{folder_name(record.name, record.step, record.manifest_sha256)}":
            raise HanseError(f"{where}: {record.folder!r:.200} is not where this model must lie")
        if record.manifest_sha256 in self.models:
            raise HanseError(f"{where}: the checkpoint {record.manifest_sha256[:12]} was accepted before")
        self.check_parents(record.parents, where)
        if record.cumulative_flops != self.cumulative_flops(record.flops, record.parents):
            raise HanseError(f"{where}: its cumulative FLOPs are not its own and those of its ancestors")
        reviewers = {self.standing(one, ("reviewer",), day, where).holder for one in record.reviews}
        counted = reviewers - {contributor.holder}
        if len(counted) < self.policy.reviews:
            raise HanseError(f"{where}: {len(counted)} reviewers other than the contributor, the policy asks for "
                             f"{self.policy.reviews}")  # fmt: skip
        self.models[record.manifest_sha256], self.days[record.manifest_sha256] = record, day

    def _revoked(self, record: Revoked, key: str, day: str, where: str) -> None:
        self.standing(key, ("maintainer",), day, where)
        known = {"key": set(self.holders), "checkpoint": set(self.models)}.get(record.what, set())
        if record.sha256 not in known:
            raise HanseError(f"{where}: no {record.what} {record.sha256[:64]} in this registry; its hash is shown by "
                             "'hanse registry'")  # fmt: skip
        revoked = self.revoked_keys if record.what == "key" else self.revoked_models
        if record.sha256 in revoked or not _readable(record.reason) or not DAY.fullmatch(record.since):
            raise HanseError(f"{where}: revoked before, no reason given, or since={record.since} is no day")
        if record.what == "key":
            self._keep_a_maintainer(self.holders, {**revoked, record.sha256: record}, day, where)
        revoked[record.sha256] = record

    def check_parents(self, parents: list[dict], where: str) -> None:
        """Refuse parents that are unknown, stand twice in one role, or may not be built on.

        Raises:
            HanseError: naming the first of them.
        """
        for parent in parents:
            problem = parent_problem(parent)
            if problem:
                raise HanseError(f"{where}: a parent {problem}")
            identity = parent["manifest_sha256"]
            if identity not in self.models:
                raise HanseError(f"{where}: its parent {identity} is not in this registry; contribute that one first")
            reason = self.doubt(identity)
            if reason:
                raise HanseError(f"{where}: its parent {identity[:12]} ({self.models[identity].folder}) may not be "
                                 f"built on: {reason}")  # fmt: skip
        if len({(one["manifest_sha256"], one["role"]) for one in parents}) != len(parents):
            raise HanseError(f"{where}: a parent stands twice")

    def _policy(self, value: dict, where: str) -> Policy:
        try:
            policy = from_json(Policy, value)
            if value.keys() != asdict(policy).keys():
                raise TypeError("a part of it is missing")
        except TypeError as error:
            raise HanseError(f"{where}: not a policy ({str(error)[:200]})") from None
        problems = policy.problems()
        if problems:
            raise HanseError(f"{where}: {'; '.join(problems)}")
        return policy

    def _keep_a_maintainer(
        self, holders: dict[str, Holder], revoked: dict[str, Revoked], day: str, where: str
    ) -> None:  # fmt: skip
        left = [one for key, one in holders.items() if key not in revoked and "maintainer" in one.roles
                and one.valid_from <= day <= (one.valid_until or day)]  # fmt: skip
        if not left:
            raise HanseError(f"{where}: nobody would be left who maintains the registry; enrol somebody else first")


_KINDS: dict[str, tuple[type[Any], Callable[..., None]]] = {
    "create": (Created, Register._created),
    "enrol": (Holder, Register._enrolled),
    "policy": (Changed, Register._changed),
    "accept": (Model, Register._accepted),
    "revoke": (Revoked, Register._revoked),
}


def _public_key(holder: Holder, where: str) -> ec.EllipticCurvePublicKey:
    public = parse_public(holder.pem.encode(), where)
    if public_pem(public).decode() != holder.pem or not _readable(holder.holder):
        raise HanseError(f"{where}: a key that is not in its one spelling, or whose holder has no readable name")
    return public


def _readable(text: str) -> bool:
    """Whether people can be shown it."""
    return text.strip() != "" and text.isprintable() and len(text) <= 1000


def _sha256(value: Any) -> bool:
    return isinstance(value, str) and SHA256.fullmatch(value) is not None
