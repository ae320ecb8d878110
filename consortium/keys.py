"""Keys that say who sealed what: ECDSA on the curve P-256, in PEM files as openssl reads and writes them.

A private key lives in one file, which only its owner may read, and never leaves it: it is not printed, not copied, not
overwritten. Its fingerprint is the SHA-256 of the public key in PEM, which is also the hint in a Sigstore bundle.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import stat
import sys
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import HanseError
from common.terminal import next_step, say
from consortium.config import KeyConfig
from consortium.strangers import read_regular

PASSPHRASE = "HANSE_KEY_PASSPHRASE"  # noqa: S105 (name of an environment variable)
LARGEST_KEY_FILE = 64 << 10  # bytes; a P-256 key in PEM takes 300


def run(config: KeyConfig) -> None:
    """``hanse key``: make a key, or show the public part of one."""
    if config.new is None:
        assert config.show is not None
        path = Path(config.show)
        show(load_public(path) if not _is_private(path) else load_private(path).public_key(), path)
        return
    path = Path(config.new)
    public = new_key(path, _new_passphrase() if config.passphrase else None)
    show(public, path)
    say(f"\nwritten: {path} (private: yours alone, keep a copy where no one else can read it)")
    say(f"         {public_path(path)} (public: give it to those who shall check your seals)")
    next_step(f"hanse seal folder=FOLDER key={path}")


def show(public: ec.EllipticCurvePublicKey, path: Path) -> None:
    """Print a public key and its fingerprint."""
    say(f"{path}: P-256 key\nfingerprint {fingerprint(public)}\n\n{public_pem(public).decode().rstrip()}")


def public_path(private: Path) -> Path:
    """Where the public part of a new key is written: ``alice.key`` -> ``alice.pub``."""
    return private.with_suffix(".pub")


def public_pem(public: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as PEM (SubjectPublicKeyInfo)."""
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(public: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key's PEM text, in hexadecimal."""
    return hashlib.sha256(public_pem(public)).hexdigest()


def new_key(path: Path, passphrase: bytes | None = None) -> ec.EllipticCurvePublicKey:
    """Make a key: the private part in ``path`` (mode 0600), the public one beside it; the public one.

    Raises:
        HanseError: one of the two files exists, or cannot be written. Nothing is then left behind.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    beside = public_path(path)
    if beside == path:
        raise HanseError(f"{path}: the public key would be written here; call the private one e.g. {path.stem}.key")
    _write_new(path, pem, 0o600)
    try:
        _write_new(beside, public_pem(key.public_key()), 0o644)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return key.public_key()


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not exist yet; it has ``mode`` before its content is in it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise HanseError(f"{path}: exists, and a key is never overwritten; choose another name") from None
    except OSError as error:
        raise HanseError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise HanseError(f"{path}: cannot be written ({error.strerror})") from None


def load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    """A private key; the passphrase of a protected one comes from HANSE_KEY_PASSPHRASE or is asked for.

    Raises:
        HanseError: no P-256 key is there, others may read the file, or the passphrase is wrong.
    """
    text = _read(path)
    if b"PUBLIC KEY" in text:  # before its mode is complained of, as if it were worth hiding
        raise HanseError(f"{path}: is a public key, and this takes the private one, e.g. {path.stem}.key")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise HanseError(f"{path}: others may read this private key (mode {mode:04o}); run chmod 600 {path}")
    try:
        try:
            key = serialization.load_pem_private_key(text, None)
        except TypeError:  # it is protected
            key = serialization.load_pem_private_key(text, _passphrase(path))
    except HanseError:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm):
        protected = b"ENCRYPTED" in text
        what = "its passphrase is another one" if protected else "not a private key in PEM ('hanse key' makes one)"
        raise HanseError(f"{path}: {what}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise HanseError(f"{path}: not a P-256 key; make one with 'hanse key new=NAME.key'")
    return key


def load_public(path: Path) -> ec.EllipticCurvePublicKey:
    """A public key.

    Raises:
        HanseError: no P-256 public key is there.
    """
    return parse_public(_read(path), str(path))


def parse_public(text: bytes, where: str) -> ec.EllipticCurvePublicKey:
    """A public key from PEM text; ``where`` stands in front of error messages.

    Raises:
        HanseError: it is no P-256 public key.
    """
    try:
        key = serialization.load_pem_public_key(text)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise HanseError(f"{where}: not a public key in PEM ('hanse key' writes one as NAME.pub)") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise HanseError(f"{where}: not a P-256 key; others make no seals here")
    return key


def _is_private(path: Path) -> bool:
    return b"PRIVATE KEY-----" in _read(path)


def _read(path: Path) -> bytes:
    return read_regular(path, LARGEST_KEY_FILE, "key")


def _passphrase(path: Path) -> bytes:
    given = os.environ.get(PASSPHRASE)
    if given is None and sys.stdin.isatty():
        given = getpass.getpass(f"passphrase of {path}: ")
    if not given:
        raise HanseError(f"{path}: protected by a passphrase; set {PASSPHRASE}, or run this in a terminal")
    return given.encode()


def _new_passphrase() -> bytes:
    given = os.environ.get(PASSPHRASE)
    if given is None and sys.stdin.isatty():
        given = getpass.getpass("passphrase of the new key: ")
        if given != getpass.getpass("again: "):
            raise HanseError("the two passphrases differ; no key was made")
    if not given:
        raise HanseError(f"passphrase=true: set {PASSPHRASE}, or run this in a terminal; it cannot be empty")
    return given.encode()
