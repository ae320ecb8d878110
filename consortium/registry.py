"""``hanse registry``: begin one, enrol and revoke keys, revoke checkpoints, see what is in it and if it is whole."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.terminal import count, many, next_step, say, table
from consortium import index
from consortium.config import RegistryConfig
from consortium.contribution import SEAL, read_reviews
from consortium.index import Registry
from consortium.keys import fingerprint, load_private, load_public, public_pem
from consortium.register import Model, Register
from consortium.seal import check


def run(config: RegistryConfig) -> None:
    """Do what was asked for, and show what then is."""
    folder = Path(config.registry)

    registry = _create(folder, config) if config.create else open_registry(folder, config.root)
    if config.seen:
        registry.remember(config.seen)
    if config.enrol:
        _enrol(registry, config)
    elif config.revoke:
        _revoke(registry, config)
    elif config.change_policy:
        registry.append("policy", {"policy": asdict(config.policy)}, _key(config))
        say("the policy is another one from here on")
    elif not config.create:
        show(registry)
        if config.files:
            say(check_files(registry))
    say(f"head {registry.head} (line {len(registry.heads)}); seen=HEAD notices later if lines were taken away")


def open_registry(folder: Path, root: str | None) -> Registry:
    """A registry, held to the public key in the file ``root`` if one is named."""
    return Registry(folder, load_public(Path(root)) if root else None)


def today() -> str:
    """The day it is, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _key(config: RegistryConfig) -> Any:
    assert config.key is not None
    return load_private(Path(config.key))


def _create(folder: Path, config: RegistryConfig) -> Registry:
    key = _key(config)
    facts = {"name": config.create, "holder": config.holder, "pem": public_pem(key.public_key()).decode(),
             "policy": asdict(config.policy)}  # fmt: skip
    registry = index.create(folder, facts, key)
    say(f"{folder}: registry {config.create}, begun by {config.holder} with the key {fingerprint(key.public_key())}")
    say("give your public key to those who shall use it: root=NAME.pub holds them to this registry")
    next_step(f"hanse registry registry={folder} key={config.key} enrol=BOB.pub holder=Bob roles=[contributor]")
    return registry


def _enrol(registry: Registry, config: RegistryConfig) -> None:
    assert config.enrol is not None
    public = load_public(Path(config.enrol))
    registry.append("enrol", {"holder": config.holder, "pem": public_pem(public).decode(), "roles": list(config.roles),
                              "valid_from": config.valid_from or today(), "valid_until": config.valid_until or ""},
                    _key(config))  # fmt: skip
    say(f"enrolled: {config.holder}, {', '.join(config.roles)}, key {fingerprint(public)}")


def _revoke(registry: Registry, config: RegistryConfig) -> None:
    assert config.revoke is not None
    register = registry.register
    what = "key" if config.revoke in register.holders else "checkpoint"
    before = {one for one in register.models if register.doubt(one)}
    registry.append("revoke", {"what": what, "sha256": config.revoke, "reason": config.reason,
                               "since": config.since or today()}, _key(config))  # fmt: skip
    register = registry.register
    say(f"revoked: {what} {config.revoke}")
    fallen = [one for one in register.models if register.doubt(one) and one not in before]
    if fallen:
        rows = [(register.models[one].folder, register.doubt(one)) for one in fallen]
        table(f"{many(len(fallen), 'model')} that nobody may build on any more", ("model", "why"), rows)
    else:
        say("no model in this registry depends on it")


def show(registry: Registry) -> None:
    """Print keys, policy and models."""
    register = registry.register
    first = next(iter(register.holders))
    said = "as you asked" if registry.root else "not compared with anything: root=NAME.pub would do that"
    say(f"{registry.folder}: registry {register.name}, begun with the key {first} ({said})")
    rows = [(holder.holder, key[:12], ", ".join(holder.roles), holder.valid_from, holder.valid_until or "-",
             f"revoked: {register.revoked_keys[key].reason}" if key in register.revoked_keys else "")
            for key, holder in register.holders.items()]  # fmt: skip
    table("keys", ("holder", "key", "roles", "from", "until", ""), rows)
    policy = ", ".join(f"{name}={value or '-'}" for name, value in asdict(register.policy).items())
    say(f"policy: {policy}")

    models = sorted(register.models.items(), key=lambda pair: (pair[1].name, pair[1].step))
    columns = ("model", "tokens", "FLOPs, all", "licence", "parents", "reviews", "by", "")
    table(f"{many(len(models), 'model')}", columns, [_row(register, one, model) for one, model in models])


def _row(register: Register, identity: str, model: Model) -> tuple[Any, ...]:
    return (model.folder.removeprefix("models/"), count(model.tokens), f"{model.cumulative_flops:.2e}", model.license,
            " ".join(parent["manifest_sha256"][:12] for parent in model.parents) or "-", len(model.reviews),
            register.holders[model.contributor].holder, register.doubt(identity) or "")  # fmt: skip


def check_files(registry: Registry) -> str:
    """Hash every file of every accepted model, and check its seal and its reviews; what was checked.

    Raises:
        HanseError: something is not what was accepted.
    """
    register = registry.register
    for identity, model in register.models.items():
        folder = registry.place_of(model)
        if not folder.is_dir():
            raise HanseError(f"{folder}: accepted, but not here; copy it again from where the registry is kept")
        held = check(folder, folder / SEAL, register.public_keys, kind="contribution")
        if (held.root, held.key) != (model.root, model.contributor):
            raise HanseError(f"{folder}: not what was accepted: its seal is another one")
        found, _ = read_reviews(registry, identity, held)
        missing = model.reviews.items() - found.items()
        if missing:
            raise HanseError(f"{folder}: the review of {next(iter(missing))[0][:12]} that the index names is not there")
    return f"every file of {many(len(register.models), 'model')} is what was accepted"
