"""A private key stays in its file, which only its owner may read, and nothing of it is shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import HanseError
from consortium.keys import PASSPHRASE, fingerprint, load_private, load_public, new_key


@pytest.fixture
def key(tmp_path, monkeypatch):
    monkeypatch.delenv(PASSPHRASE, raising=False)
    path = tmp_path / "alice.key"
    new_key(path)
    return path


def test_private_part_is_its_owners_alone_and_the_public_one_beside_it_belongs_to_it(key):
    assert key.stat().st_mode & 0o777 == 0o600
    assert load_public(key.with_suffix(".pub")).public_numbers() == load_private(key).public_key().public_numbers()


def test_private_part_is_never_printed(hanse, tmp_path, capsys, monkeypatch):
    path = tmp_path / "bob.key"
    assert hanse("key", f"new={path}") == 0
    assert hanse("key", f"show={path}") == 0
    assert hanse("key", f"show={path.with_suffix('.pub')}") == 0
    out = capsys.readouterr().out
    secret = path.read_text().splitlines()[1:-1]
    assert out.count(fingerprint(load_private(path).public_key())) == 3
    assert out.count(path.with_suffix(".pub").read_text().strip()) == 3
    assert "PRIVATE" not in out
    # The lines that hold the private number; the public half, which PKCS#8 repeats, is shown on purpose.
    assert not any(line in out for line in secret[:2])


@pytest.mark.parametrize("taken", ["alice.key", "alice.pub"])
def test_an_existing_file_is_never_overwritten_and_nothing_is_left_behind(tmp_path, hanse, capsys, taken):
    (tmp_path / taken).write_text("mine")
    assert hanse("key", f"new={tmp_path / 'alice.key'}") == 2
    assert "never overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"


def test_a_link_in_the_place_of_the_new_key_is_not_written_through(tmp_path):
    (tmp_path / "alice.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HanseError, match="never overwritten"):
        new_key(tmp_path / "alice.key")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o644])
def test_a_private_key_that_others_may_read_is_refused(key, mode):
    key.chmod(mode)
    with pytest.raises(HanseError, match="chmod 600"):
        load_private(key)


def test_a_public_key_in_the_place_of_the_private_one_is_called_that(key):
    with pytest.raises(HanseError, match="is a public key"):
        load_private(key.with_suffix(".pub"))


def test_a_link_to_a_private_key_is_refused(key):
    link = key.with_name("link.key")
    link.symlink_to(key)
    with pytest.raises(HanseError, match="is a link"):
        load_private(link)


def test_passphrase_comes_from_the_environment_and_another_one_is_refused(tmp_path, monkeypatch, hanse, capsys):
    path = tmp_path / "safe.key"
    monkeypatch.setenv(PASSPHRASE, "Schiffbruch à Noël")
    assert hanse("key", f"new={path}", "passphrase=true") == 0
    assert b"ENCRYPTED" in path.read_bytes()
    load_private(path)
    monkeypatch.setenv(PASSPHRASE, "another")
    with pytest.raises(HanseError, match="its passphrase is another one"):
        load_private(path)
    monkeypatch.setenv(PASSPHRASE, "")
    with pytest.raises(HanseError, match=PASSPHRASE):
        load_private(path)
    assert "Schiffbruch" not in "".join(capsys.readouterr())


def test_without_terminal_and_variable_nothing_waits_for_a_passphrase(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != PASSPHRASE}
    done = subprocess.run(
        [sys.executable, "hanse.py", "key", f"new={tmp_path / 'a.key'}", "passphrase=true"],
        cwd=Path(__file__).parents[2], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"set {PASSPHRASE}" in done.stderr
    assert not list(tmp_path.iterdir())


def test_other_curves_and_files_that_are_no_keys_are_refused(tmp_path):
    other = ec.generate_private_key(ec.SECP384R1())
    private = tmp_path / "other.key"
    private.write_bytes(other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                            serialization.NoEncryption()))  # fmt: skip
    private.chmod(0o600)
    public = tmp_path / "other.pub"
    public.write_bytes(other.public_key().public_bytes(serialization.Encoding.PEM,
                                                       serialization.PublicFormat.SubjectPublicKeyInfo))  # fmt: skip
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    empty = tmp_path / "empty"
    empty.touch(0o600)
    for load, path in [(load_private, private), (load_public, public), (load_public, private), (load_public, empty),
                       (load_private, empty), (load_private, pipe), (load_public, tmp_path / "absent"),
                       (load_public, tmp_path)]:  # fmt: skip
        with pytest.raises(HanseError, match=path.name):
            load(path)


def test_both_and_neither_of_new_and_show_are_refused(hanse, capsys):
    assert hanse("key") == 2
    assert hanse("key", "new=a.key", "show=a.pub") == 2
    assert capsys.readouterr().err.count("give one of them") == 2
