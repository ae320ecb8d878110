"""Files that are far away -> files that are here: pinned, checked, and gone on with after any interruption.

``hanse corpus download_only=true`` does this where there is internet; processing then reads what is here and asks
nobody. What belongs to a download is written down before its first byte comes (``list-*.json``), and a file has its
name only when it is whole and has the size and hash that were promised. So a download that is not complete is noticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from common.errors import HanseError
from common.files import inside, read_json, sha256_file, write_json
from common.terminal import Progress, count, many, say
from data_pipelines.source_config import HubConfig, SourceConfig, WebConfig

FORMAT = "hanse.download/1"
INCOMING = ".incoming"
AT_ONCE = 4  # files
BLOCK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60
LONGEST_LISTING = 64 << 20  # bytes
AGENT = {"User-Agent": "hanse"}
Bring = Callable[["File"], Path]  # downloads a file; where it lies until it is checked


@dataclass(frozen=True)
class File:
    """One file of a download: its path here, where it comes from, what is known of it (None: not known)."""

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


def fetch(name: str, source: SourceConfig, downloads: Path) -> int:
    """Bring the files of a source with ``hub.files`` or ``web`` here; how many were missing.

    Raises:
        HanseError: nobody answers, no file matches, a file is not the promised one, or the disk is full.
    """
    origin = source.hub or source.web
    assert origin is not None
    root = root_of(source, downloads)
    with _alone(root):
        place = _list_of(origin, root)
        if place.is_file():
            files, complete = _read(place)
        else:
            files, complete = (_on_hub(origin) if isinstance(origin, HubConfig) else _on_web(origin)), False
            _write(place, origin, files, complete=False)
        missing = [file for file in files if not _is_here(file, root)]
        say(f"{name}: {many(len(files), 'file')}, {len(missing)} to download; {root}/")
        if missing or not complete:
            _room_for(missing, root)
            bring = _from_hub(origin, root) if isinstance(origin, HubConfig) else _from_web(root)
            _bring_all(missing, bring, root)
            known = [replace(file, size=size, sha256=file.sha256 or sha256_file(root / file.path))
                     for file in files for size in [(root / file.path).stat().st_size]]  # fmt: skip
            _write(place, origin, known, complete=True)
        if all(_read(other)[1] for other in root.glob("list-*.json")):  # nobody else goes on with what lies there
            shutil.rmtree(root / INCOMING, ignore_errors=True)
    return len(missing)


def listed(source: SourceConfig, downloads: Path) -> list[tuple[Path, int, str]]:
    """(path, bytes, SHA-256) of the files of a download, in the order of their names.

    Raises:
        HanseError: it was not downloaded, or not to the end, or a file is missing or has another size.
    """
    origin = source.hub or source.web
    assert origin is not None
    root = root_of(source, downloads)
    place = _list_of(origin, root)
    again = "run the same command with download_only=true where there is internet"
    if not place.is_file():
        raise HanseError(f"not downloaded to {root}/: {again}")
    files, complete = _read(place)
    missing = [file for file in files if not _is_here(file, root)]
    if missing or not complete:
        raise HanseError(
            f"{root}: the download is not complete ({len(missing)} of {len(files)} files are missing"
            + (f", the first is {missing[0].path}" if missing else "")
            + f"); {again}"
        )
    return [(root / file.path, file.size or 0, file.sha256 or "") for file in sorted(files, key=lambda one: one.path)]


def root_of(source: SourceConfig, downloads: Path) -> Path:
    """The folder below which the files of a download lie as they lie there."""
    if source.hub:
        return downloads / "hub" / source.hub.dataset / str(source.hub.revision)
    return downloads / "web"


def _list_of(origin: HubConfig | WebConfig, root: Path) -> Path:
    key = hashlib.sha256(repr(sorted(_identity(origin).items())).encode()).hexdigest()[:16]
    return root / f"list-{key}.json"


def _identity(origin: HubConfig | WebConfig) -> dict[str, Any]:
    if isinstance(origin, HubConfig):
        return {"dataset": origin.dataset, "revision": origin.revision, "files": origin.files}
    return asdict(origin)


def _read(place: Path) -> tuple[list[File], bool]:
    value = read_json(place, "list of a download")
    try:
        if value["format"] != FORMAT:
            raise KeyError("format")
        files = [File(**file) for file in value["files"]]
        for file in files:
            inside(place.parent, file.path)
            if file.size is not None and not isinstance(file.size, int):
                raise TypeError("size")
        return files, bool(value["complete"])
    except (KeyError, TypeError) as error:
        raise HanseError(f"{place}: not a list of {FORMAT} ({error}); delete it and download again") from None


def _write(place: Path, origin: HubConfig | WebConfig, files: list[File], *, complete: bool) -> None:
    rows = [asdict(file) for file in files]
    write_json(place, {"format": FORMAT, "complete": complete, "origin": _identity(origin), "files": rows})


def _is_here(file: File, root: Path) -> bool:
    path = root / file.path
    return path.is_file() and (file.size is None or path.stat().st_size == file.size)


def _room_for(missing: list[File], root: Path) -> None:
    needed, free = sum(file.size or 0 for file in missing), shutil.disk_usage(root).free
    if needed > free:
        raise HanseError(f"{root}: {count(needed, 'B')} are to come and {count(free, 'B')} are free")


def _bring_all(missing: list[File], bring: Bring, root: Path) -> None:
    known = sum(file.size or 0 for file in missing)
    progress = Progress("download", max(known, 1), "B", enabled=bool(known))

    def one(file: File) -> None:
        arrived = bring(file)
        _check(file, arrived)
        target = root / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        arrived.replace(target)

    pool = ThreadPoolExecutor(AT_ONCE)
    jobs = {pool.submit(one, file): file for file in missing}
    try:
        while any(not job.done() for job in jobs):
            wait(jobs, 1.0, FIRST_EXCEPTION)
            for job in jobs:
                if job.done():
                    job.result()
            done = [file.size or 0 for job, file in jobs.items() if job.done()]
            here = sum(path.stat().st_size for path in (root / INCOMING).rglob("*") if path.is_file())
            progress.update(min(sum(done) + here, known), f"{len(done)} of {many(len(missing), 'file')}")
        for job in jobs:
            job.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check(file: File, arrived: Path) -> None:
    """What arrived is what was promised, or it is deleted."""
    size = arrived.stat().st_size
    wrong = "" if file.size in (None, size) else f"{size} bytes came, {file.size} were promised"
    for name in ("sha256", "md5"):
        promised = getattr(file, name)
        if promised and not wrong:
            with arrived.open("rb") as opened:
                found = hashlib.file_digest(opened, name).hexdigest()
            wrong = "" if found == promised else f"its {name} is {found}, {promised} was promised"
    if wrong:
        arrived.unlink()
        raise HanseError(f"{file.url}: {wrong}; deleted, run the same command again")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HanseError(f"{root}: another process is downloading to it; wait for it") from None
        except OSError:
            pass  # a filesystem without locks
        yield


# ---------------------------------------------------------------- the Hugging Face Hub
def _on_hub(hub: HubConfig) -> list[File]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    assert hub.files is not None
    fixed = hub.files.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0]
    try:
        tree = HfApi().list_repo_tree(
            hub.dataset, fixed or None, recursive=True, revision=hub.revision, repo_type="dataset"
        )
        found = [entry for entry in tree if isinstance(entry, RepoFile)]
    except Exception as error:
        raise _hub_error(hub, error) from None
    files = [
        File(one.path, f"hub:{hub.dataset}/{one.path}", one.size, one.lfs.sha256 if one.lfs else None)
        for one in found
        if fnmatchcase(one.path, hub.files)
    ]
    if not files:
        raise HanseError(
            f"dataset {hub.dataset}: none of its {len(found)} files in {fixed or '/'} matches {hub.files} (hub.files)"
        )
    return sorted(files, key=lambda file: file.path)


def _from_hub(hub: HubConfig, root: Path) -> Bring:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()

    def bring(file: File) -> Path:
        try:
            arrived = hf_hub_download(
                hub.dataset, file.path, repo_type="dataset", revision=hub.revision, local_dir=root / INCOMING
            )
        except Exception as error:
            raise _hub_error(hub, error) from None
        return Path(arrived)

    return bring


def _hub_error(hub: HubConfig, error: Exception) -> HanseError:
    said = (str(error).strip().splitlines() or [""])[0]
    return HanseError(
        f"dataset {hub.dataset} at {hub.revision}: cannot be had ({type(error).__name__}: {said}); check its id and "
        "revision, the connection, HF_HUB_OFFLINE, and for gated datasets HF_TOKEN; the same command goes on"
    )


# ---------------------------------------------------------------- addresses
def _on_web(web: WebConfig) -> list[File]:
    urls = web.urls
    if web.listing:
        lines = _text(web.listing).split()
        urls = [line for line in lines if fnmatchcase(line.rpartition("/")[2], web.files)]
        if not urls:
            raise HanseError(f"{web.listing}: none of its {len(lines)} addresses matches {web.files} (web.files)")
        for problem in WebConfig(urls=urls).problems(web.listing):
            raise HanseError(problem)
    sums: dict[str, str] = {}
    if web.checksums:
        for line in _text(web.checksums).splitlines():  # as md5sum and sha256sum write them
            digest, _, name = line.strip().partition(" ")
            sums[name.strip(" *").rpartition("/")[2]] = digest.lower()
    files = []
    for url in dict.fromkeys(urls):
        parts = urlsplit(url)
        known = sums.get(parts.path.rpartition("/")[2])
        if web.checksums and known is None:
            raise HanseError(f"{web.checksums}: has no checksum of {url}")
        sha256, md5 = (known if known and len(known) == length else None for length in (64, 32))
        files.append(File(f"{parts.netloc.replace(':', '_')}{parts.path}", url, None, sha256, md5))
    return sorted(files, key=lambda file: file.path)


def _text(url: str) -> str:
    with _ask(url, {}) as answer:
        return answer.read(LONGEST_LISTING).decode("utf-8", "replace")


def _from_web(root: Path) -> Bring:
    """What brings a file over HTTP into ``root``."""

    def bring(file: File) -> Path:
        """Go on where an earlier download broke off, if the file is still the same.

        Raises:
            HanseError: no answer, or not all of it came.
        """
        part = root / INCOMING / hashlib.sha256(file.url.encode()).hexdigest()
        part.parent.mkdir(parents=True, exist_ok=True)
        tag = part.with_suffix(".etag")
        held = part.stat().st_size if part.is_file() and tag.is_file() else 0
        # If-Range: the rest is only sent if the file is still the one whose beginning is here.
        headers = {"Range": f"bytes={held}-", "If-Range": tag.read_text("utf-8")} if held else {}
        with _ask(file.url, headers) as answer:
            fresh = answer.status != 206
            mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            tag.write_text(mark, "utf-8") if mark and not mark.startswith("W/") else tag.unlink(missing_ok=True)
            expected = answer.headers.get("Content-Length")
            came = 0
            with part.open("wb" if fresh else "ab") as out:
                while block := answer.read(BLOCK_BYTES):
                    out.write(block)
                    came += len(block)
        if expected is not None and came != int(expected):
            raise HanseError(f"{file.url}: broke off after {came} of {expected} bytes; the same command goes on")
        tag.unlink(missing_ok=True)
        return part

    return bring


def _ask(url: str, headers: dict[str, str]) -> Any:
    parts = urlsplit(url)
    safe = parts._replace(path=quote(parts.path, safe="/%:@!$&'()*+,;=~-._")).geturl()
    request = urllib.request.Request(safe, headers={**AGENT, **headers})  # noqa: S310 WebConfig lets only http(s) in
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        raise HanseError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        raise HanseError(f"{url}: no answer ({getattr(error, 'reason', error)}); the same command goes on") from None
