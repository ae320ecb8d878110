"""Downloads: what was promised comes, whole, whatever happens on the way; processing asks nobody."""

import hashlib
import threading

import pytest

from common.errors import HanseError
from data_pipelines import downloads
from data_pipelines.config import HubConfig, SourceConfig, WebConfig
from tests.data_pipelines.far_away import far_away

PAGES = {f"/three/fra_Latn/{name}.jsonl": b'{"text": "' + name.encode() * 9000 + b'"}\n' for name in ("10_1", "9_1")}
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def server():
    with far_away() as running:
        running.files |= PAGES
        yield running


def web(server, **settings):
    listing, sums = "/three/fra_Latn.map", "/three/fra_Latn.md5"
    server.files[listing] = "\n".join(server.address + path for path in PAGES).encode()
    server.files[sums] = "\n".join(f"{hashlib.md5(data).hexdigest()}  .{path}" for path, data in PAGES.items()).encode()
    given = {"listing": server.address + listing, "checksums": server.address + sums, **settings}
    return SourceConfig(reader="jsonl", language="fr", license="CC0-1.0", web=WebConfig(**given))


def contents(source, folder):
    return [path.read_bytes() for path, _, _ in downloads.listed(source, folder)]


def test_the_listed_files_come_once_and_are_known_by_size_and_hash(server, tmp_path):
    source = web(server)
    assert source.problems("s") == []
    assert downloads.fetch("s", source, tmp_path) == 2
    assert contents(source, tmp_path) == [PAGES["/three/fra_Latn/10_1.jsonl"], PAGES["/three/fra_Latn/9_1.jsonl"]]
    hashes = [digest for _, _, digest in downloads.listed(source, tmp_path)]
    assert hashes == [hashlib.sha256(data).hexdigest() for data in contents(source, tmp_path)]
    asked = len(server.requests)
    assert downloads.fetch("s", source, tmp_path) == 0
    assert len(server.requests) == asked  # nobody is asked again
    best = web(server, files="10_*.jsonl")
    assert downloads.fetch("s", best, tmp_path) == 0  # it is here already
    assert len(downloads.listed(best, tmp_path)) == 1


def test_a_connection_that_breaks_off_is_gone_on_with(server, tmp_path):
    source, server.cuts = web(server), 2
    with pytest.raises(HanseError, match="broke off after"):
        downloads.fetch("s", source, tmp_path)
    with pytest.raises(HanseError, match="not complete"):
        downloads.listed(source, tmp_path)
    while server.cuts:
        with pytest.raises(HanseError, match="broke off after"):
            downloads.fetch("s", source, tmp_path)
    downloads.fetch("s", source, tmp_path)
    assert sorted(contents(source, tmp_path)) == sorted(PAGES.values())
    assert any(wanted for _, path, wanted in server.requests if path in PAGES)  # the rest only


def test_what_is_complete_leaves_what_others_have_begun(server, tmp_path):
    (one, _), (other, _) = PAGES.items()
    first, second = (web(server, listing=None, checksums=None, urls=[server.address + path]) for path in (one, other))
    downloads.fetch("first", first, tmp_path)
    server.cuts = 1
    with pytest.raises(HanseError, match="broke off"):
        downloads.fetch("second", second, tmp_path)
    downloads.fetch("first", first, tmp_path)
    downloads.fetch("second", second, tmp_path)
    assert server.requests[-1][2] == f"bytes={len(PAGES[other]) // 2}-"
    assert contents(second, tmp_path) == [PAGES[other]]
    assert not (tmp_path / "web" / downloads.INCOMING).exists()


def test_a_file_that_changed_meanwhile_comes_from_its_beginning(server, tmp_path):
    path, data = next(iter(PAGES.items()))
    source = web(server, listing=None, checksums=None, urls=[server.address + path])
    server.cuts = 1
    with pytest.raises(HanseError, match="broke off"):
        downloads.fetch("s", source, tmp_path)
    server.files[path] = other = data.swapcase()
    downloads.fetch("s", source, tmp_path)
    assert contents(source, tmp_path) == [other]


def test_another_file_than_the_promised_one_is_refused(server, tmp_path):
    source = web(server)
    path = next(iter(PAGES))
    server.files[path] = PAGES[path] + b"x"
    with pytest.raises(HanseError, match=r"its md5 is \w+, \w+ was promised; deleted"):
        downloads.fetch("s", source, tmp_path)
    server.files[path] = PAGES[path]
    downloads.fetch("s", source, tmp_path)
    assert len(contents(source, tmp_path)) == 2


def test_a_missing_or_shortened_file_is_noticed(server, tmp_path):
    source = web(server)
    with pytest.raises(HanseError, match=r"not downloaded to .*download_only=true"):
        downloads.listed(source, tmp_path)
    downloads.fetch("s", source, tmp_path)
    path = downloads.listed(source, tmp_path)[0][0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HanseError, match=r"not complete \(1 of 2 files are missing, the first is .*10_1\.jsonl\)"):
        downloads.listed(source, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"files": "*.zst"}, "none of its 2 addresses matches"),
        ({"checksums": "/empty"}, "has no checksum of"),
        ({"listing": "/absent"}, "the server answers 404"),
        ({"listing": "/escape"}, "is not the address of a file"),
    ],
)
def test_what_a_server_says_is_not_trusted(server, tmp_path, settings, message):
    server.files |= {"/empty": b"", "/escape": b"https://example.org/a/../../../b.jsonl"}
    given = {key: value if key == "files" else server.address + value for key, value in settings.items()}
    with pytest.raises(HanseError, match=message):
        downloads.fetch("s", web(server, **given), tmp_path)


def test_two_downloads_to_one_place_do_not_meet(server, tmp_path):
    source = web(server)
    with downloads._alone(downloads.root_of(source, tmp_path)):
        failed = []

        def second():
            try:
                downloads.fetch("s", source, tmp_path)
            except HanseError as error:
                failed.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another process is downloading" in failed[0]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"hub": HubConfig(dataset="a/b", files="*.parquet")}, "s.hub.revision"),
        ({"hub": HubConfig(dataset="a/b", files="*.parquet", revision="main")}, "s.hub.revision"),
        ({"hub": HubConfig(dataset="../b", files="*", revision=REVISION)}, "s.hub.dataset"),
        ({"hub": HubConfig(dataset="a/b", revision=REVISION)}, "s.hub.files"),
        ({"web": WebConfig()}, "s.web"),
        ({"web": WebConfig(urls=["ftp://a/b"])}, "s.web"),
        ({"web": WebConfig(urls=["https://a/../b"])}, "s.web"),
        ({"web": WebConfig(urls=["https://a/b"], listing="https://a/c")}, "s.web"),
        ({"web": WebConfig(urls=["https://a/b"]), "path": "x"}, "s.path"),
        ({"web": WebConfig(urls=["https://a/b"]), "reader": "html"}, "s.reader"),
        ({"web": WebConfig(urls=["https://a/b"]), "reader": "tsv"}, "s.columns"),
        ({"path": "x", "sample": 0.0}, "s.sample"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(settings, key):
    given = {"reader": "parquet", "language": "fr", "license": "CC0-1.0", **settings}
    problems = SourceConfig(**given).problems("s")
    assert [problem.split(":")[0] for problem in problems] == [key]
