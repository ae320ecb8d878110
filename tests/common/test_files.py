"""Files appear whole or not at all, hashes name their content, and what is read from others stays in its folder."""

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import HanseError
from common.files import (
    PARTIAL,
    atomic_file,
    from_json,
    inside,
    merkle_root,
    read_json,
    sha256_file,
    sweep_partial,
    write_json,
    write_text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def interrupted(path):
    with atomic_file(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


def test_a_file_takes_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file.txt"]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert read_json(path, "file") == {"a": 1}
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_writer_killed_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    script = (
        "import os, signal\nfrom pathlib import Path\nfrom common.files import atomic_file\n"
        f"with atomic_file(Path({str(path)!r})) as partial:\n"
        "    partial.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert sweep_partial(tmp_path) == [tmp_path / f"file.txt{PARTIAL}"]
    assert os.listdir(tmp_path) == ["file.txt"]


def test_sweeping_removes_a_link_but_not_what_it_points_at(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("precious")
    folder = tmp_path / "folder"
    (folder / f"half{PARTIAL}").mkdir(parents=True)
    (folder / f"half{PARTIAL}" / "file").write_text("")
    (folder / f"link{PARTIAL}").symlink_to(kept)
    assert len(sweep_partial(folder)) == 2
    assert os.listdir(folder) == []
    assert (kept / "file").read_text() == "precious"
    assert sweep_partial(tmp_path / "absent") == []


@given(value=JSON)
def test_json_reads_back_equal(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path, "value") == value


@pytest.mark.parametrize(
    "content", [b"{", b"", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000], ids=["cut", "empty", "utf16", "deep", "huge"]
)
def test_broken_json_is_one_clear_error(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(HanseError, match=r"manifest\.json: not a readable thing"):
        read_json(path, "thing")


def test_missing_json_and_a_folder_in_its_place_are_clear_errors(tmp_path):
    with pytest.raises(HanseError, match="no thing here"):
        read_json(tmp_path / "absent.json", "thing")
    with pytest.raises(HanseError, match="not a readable thing"):
        read_json(tmp_path, "thing")


@dataclass
class Entry:
    name: str
    number: int
    counts: dict[str, int] = field(default_factory=dict)


def test_json_becomes_a_dataclass_only_with_the_right_fields_and_types():
    assert from_json(Entry, {"name": "a", "number": 3, "counts": {"b": 1}}) == Entry("a", 3, {"b": 1})
    good = {"name": "a", "number": 3}
    for wrong in ({"number": "3"}, {"number": 3.0}, {"number": True}, {"number": -1}, {"name": None}, {"more": 1},
                  {"counts": []}, {"counts": {"b": "1"}}, {"counts": {"b": -1}}):  # fmt: skip
        with pytest.raises(TypeError):
            from_json(Entry, good | wrong)
    for no_object in (None, [], "text", {"name": "a"}):
        with pytest.raises(TypeError):
            from_json(Entry, no_object)


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "..", "../out", "a/../../out", "a//b", "./a", "a/", "a\\b", "a\0b", "a\nb", "\ud800", 7, None],
)
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(HanseError, match="not the name of a file in this folder"):
        inside(tmp_path, name)


def test_a_link_out_of_the_folder_is_refused_and_a_folder_behind_a_link_is_not(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "loop").symlink_to("loop")
    (tmp_path / "real" / "same").symlink_to("there")
    for name in ("out", "up/secret"):
        with pytest.raises(HanseError, match="not the name of a file in this folder"):
            inside(tmp_path / "real", name)
    for name in ("same", "documents/fr.parquet", "with space é.bin"):
        assert inside(tmp_path / "link", name) == tmp_path / "link" / name


def merkle_by_stack(leaves: list[bytes]) -> bytes:
    """RFC 6962 the other way round: leaves are pushed, complete subtrees of equal size merge, the rest folds up."""
    stack: list[tuple[int, bytes]] = []
    for leaf in leaves:
        stack.append((1, hashlib.sha256(b"\0" + leaf).digest()))
        while len(stack) > 1 and stack[-1][0] == stack[-2][0]:
            (size, right), (_, left) = stack.pop(), stack.pop()
            stack.append((2 * size, hashlib.sha256(b"\1" + left + right).digest()))
    while len(stack) > 1:
        (a, right), (b, left) = stack.pop(), stack.pop()
        stack.append((a + b, hashlib.sha256(b"\1" + left + right).digest()))
    return stack[0][1] if stack else hashlib.sha256(b"").digest()


@given(
    st.dictionaries(st.text("abc/.", min_size=1), st.text("0123456789abcdef", min_size=64, max_size=64), max_size=20)
)
@example({})
def test_merkle_root_is_that_of_rfc_6962_in_any_order(leaves):
    expected = merkle_by_stack([f"{name}\0{digest}".encode() for name, digest in sorted(leaves.items())]).hex()
    assert merkle_root(leaves) == expected
    assert merkle_root(dict(reversed(leaves.items()))) == expected


def test_merkle_root_changes_when_two_files_change_places():
    one, two = "1" * 64, "2" * 64
    assert len({merkle_root(leaves) for leaves in ({"a": one, "b": two}, {"a": two, "b": one}, {"a": one})}) == 3


def test_sha256_of_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert sha256_file(Path(__file__)) == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
