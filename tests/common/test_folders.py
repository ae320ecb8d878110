"""An output folder is complete or absent, has one writer, and replaces nothing that is not ours."""

import errno
import os
import subprocess
import sys

import pytest

from common.errors import HanseError
from common.files import write_json
from common.folders import replaced_folder, restore

KIND = "hanse.test/1"


def fill(folder, content, kind=KIND):
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text(content)
    write_json(folder / "manifest.json", {"format": kind})


def write(folder, content):
    with replaced_folder(folder, KIND) as partial:
        assert list(partial.iterdir()) == []
        fill(partial, content)


def fail(folder, error):
    with replaced_folder(folder, KIND) as partial:
        fill(partial, "half")
        raise error


def content(folder):
    return (folder / "deep" / "file").read_text()


def test_a_folder_takes_the_place_of_the_old_one_when_it_is_complete(tmp_path):
    folder = tmp_path / "new" / "out"
    write(folder, "one")
    with replaced_folder(folder, KIND) as partial:
        fill(partial, "two")
        assert content(folder) == "one"
    assert content(folder) == "two"
    assert os.listdir(folder.parent) == ["out"]


def test_an_error_changes_nothing(tmp_path):
    folder = tmp_path / "out"
    write(folder, "one")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(folder, error)
    assert content(folder) == "one"
    assert os.listdir(tmp_path) == ["out"]


def test_a_full_disk_changes_nothing_and_says_what_to_do(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    try:
        write(disk / "out", "one")
        with pytest.raises(HanseError, match="make room and run the same command again"):
            write(disk / "out", "two" * 200_000)
        assert content(disk / "out") == "one"
        assert os.listdir(disk) == ["out"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(PermissionError):
        fail(tmp_path / "out", PermissionError(errno.EACCES, "denied"))
    assert os.listdir(tmp_path) == []


def test_what_is_not_ours_is_not_replaced(tmp_path):
    for name, other in [("foreign", None), ("other", "hanse.other/1")]:
        (tmp_path / name).mkdir()
        fill(tmp_path / name, "precious", other)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    for name in ("foreign", "other", "file", "broken"):
        with pytest.raises(HanseError, match="was not written by this verb; move it away"):
            write(tmp_path / name, "new")
    assert content(tmp_path / "foreign") == content(tmp_path / "other") == (tmp_path / "file").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "new")
    assert content(tmp_path / "empty") == "new"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HanseError, match="cannot be created"):
        write(tmp_path / "file" / "out", "new")


def test_what_a_link_points_at_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "scratch").mkdir()
    write(tmp_path / "scratch" / "real", "one")
    (tmp_path / "out").symlink_to(tmp_path / "scratch" / "real")
    write(tmp_path / "out", "two")
    assert (tmp_path / "out").is_symlink()
    assert content(tmp_path / "scratch" / "real") == "two"
    assert os.listdir(tmp_path / "scratch") == ["real"]


def test_a_second_writer_is_refused_and_a_killed_one_is_cleaned_up(tmp_path):
    folder = tmp_path / "out"
    write(folder, "one")
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom common.folders import replaced_folder\n"
        f"with replaced_folder(Path({str(folder)!r}), {KIND!r}) as partial:\n"
        "    (partial / 'half').write_text('half')\n    print('writing', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "writing\n"
            with pytest.raises(HanseError, match="another process is writing it"):
                write(folder, "two")
            assert (tmp_path / "out.partial" / "half").exists()  # the other one's work is untouched
        finally:
            other.kill()
    assert content(folder) == "one"
    write(folder, "two")
    assert content(folder) == "two"
    assert os.listdir(tmp_path) == ["out"]


def test_a_crash_between_two_renames_is_mended(tmp_path):
    folder = tmp_path / "out"
    write(folder, "one")
    folder.rename(tmp_path / "out.previous")
    restore(folder)
    assert content(folder) == "one"
    folder.rename(tmp_path / "out.previous")
    write(folder, "two")
    assert content(folder) == "two"
    assert os.listdir(tmp_path) == ["out"]
