"""What sites said about mining their text, frozen: fetched once, dated, hashed, and read where there is no network.

A snapshot is a folder of two files, so that a million sites are two files too:

- ``origins.parquet``: a row an origin (scheme, host and port of RFC 6454), ascending, the columns of :data:`SCHEMA`;
- ``manifest.json``: format, dates, number of origins and the SHA-256 of the Parquet file.

Fetching belongs on a login node: :func:`fetch` appends to a log (JSON lines) and goes on where it stopped;
:func:`freeze` makes a snapshot of the log. :func:`from_folder` reads robots.txt files that somebody else downloaded.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import HanseError
from common.files import atomic_file, read_json, sha256_file, write_json

FORMAT = "hanse.opt-out/1"
PATHS = {
    "robots": "/robots.txt",  # RFC 9309
    "tdmrep": "/.well-known/tdmrep.json",  # W3C TDM Reservation Protocol
    "ai_txt": "/ai.txt",  # Spawning
    "trust_txt": "/trust.txt",  # JournalList.net
}
LONGEST = 500 * 1024  # bytes that are read of a file: what RFC 9309 section 2.5 asks for
UNREACHABLE = 0  # the status of an origin that gave no answer


@dataclass(frozen=True)
class Origin:
    """What an origin answered: the status of robots.txt (HTTP, 0: no answer) and the content of each file, if any."""

    origin: str
    fetched_at: str  # ISO 8601, UTC
    status: int
    robots: str | None = None
    tdmrep: str | None = None
    ai_txt: str | None = None
    trust_txt: str | None = None


SCHEMA = pa.schema(
    [(field.name, pa.int16() if field.name == "status" else pa.large_string()) for field in fields(Origin)]
)


class Snapshot:
    """A frozen snapshot; opened by path, so that it travels to other processes as a path."""

    def __init__(self, folder: Path):
        """Open and check a snapshot.

        Raises:
            HanseError: there is none, or it is not the one that its manifest describes.
        """
        self.folder = Path(folder)
        manifest = read_json(self.folder / "manifest.json", "opt-out snapshot (opt_out_snapshot.freeze makes one)")
        path = self.folder / "origins.parquet"
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise HanseError(f"{self.folder / 'manifest.json'}: not a manifest of {FORMAT}")
        if not path.is_file() or sha256_file(path) != manifest.get("sha256"):
            raise HanseError(f"{path}: not the file that manifest.json describes; take the snapshot again")
        self.sha256: str = manifest["sha256"]
        self.first_fetched: str = manifest["first_fetched"]
        self.last_fetched: str = manifest["last_fetched"]
        self._table = pq.read_table(path, schema=SCHEMA).combine_chunks()
        self._origins = self._table.column("origin").combine_chunks() if len(self) else pa.array([], pa.large_string())

    def __len__(self) -> int:
        return self._table.num_rows

    def __reduce__(self) -> tuple[type[Snapshot], tuple[Path]]:
        return Snapshot, (self.folder,)

    def __getitem__(self, row: int) -> Origin:
        return Origin(**{name: self._table.column(name)[row].as_py() for name in SCHEMA.names})

    def get(self, origin: str) -> Origin | None:
        """What an origin answered; None if it was not asked."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._origins[middle].as_py() < origin:
                low = middle + 1
            else:
                high = middle
        return self[low] if low < len(self) and self._origins[low].as_py() == origin else None


def origin_of(url: str | None) -> str | None:
    """``scheme://host[:port]`` of a URL in lower case, without the scheme's own port; None if it is no web address."""
    try:
        parts = urlsplit(url or "")
        port = parts.port
    except ValueError:
        return None
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        return None
    host = parts.hostname.rstrip(".")
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            return None
    own = {"http": 80, "https": 443}[parts.scheme.lower()]
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme.lower()}://{host}" + (f":{port}" if port not in (None, own) else "")


def freeze(records: Iterable[Origin], folder: Path) -> Snapshot:
    """Write a snapshot; of an origin that was asked more than once, the latest answer.

    The same records give the same bytes, in whatever order they come.

    Raises:
        HanseError: no records.
    """
    latest: dict[str, Origin] = {}
    for record in records:
        other = latest.get(record.origin)
        if other is None or (other.fetched_at, str(other)) < (record.fetched_at, str(record)):
            latest[record.origin] = record
    if not latest:
        raise HanseError(f"{folder}: no origin to freeze")
    rows = [asdict(latest[origin]) for origin in sorted(latest)]
    path = Path(folder) / "origins.parquet"
    with atomic_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), partial, compression="zstd")
    dates = sorted(record.fetched_at for record in latest.values())
    manifest = {"format": FORMAT, "origins": len(rows), "first_fetched": dates[0], "last_fetched": dates[-1]}
    write_json(Path(folder) / "manifest.json", manifest | {"sha256": sha256_file(path)})
    return Snapshot(Path(folder))


def from_folder(folder: Path, fetched_at: str) -> Iterator[Origin]:
    """Records of files that were downloaded by other means: ``HOST.txt``, or ``HOST/robots.txt`` with ``tdmrep.json``,
    ``ai.txt`` and ``trust.txt`` beside it; HOST may carry a port (``localhost:8000``).

    Args:
        folder: where they lie; links are not followed.
        fetched_at: when they were downloaded (ISO 8601), because the dates of files say when they were copied.

    Raises:
        HanseError: no such folder, or no date.
    """  # fmt: skip
    try:
        date = datetime.fromisoformat(fetched_at).isoformat()
    except ValueError:
        raise HanseError(f"fetched_at: '{fetched_at}' is not a date; write e.g. 2026-11-24") from None
    if not Path(folder).is_dir():
        raise HanseError(f"{folder}: no such folder")
    for path in sorted(Path(folder).iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir():
            files = {name: _content(path / Path(where).name) for name, where in PATHS.items()}
            yield Origin(f"https://{path.name.lower()}", date, 200 if files["robots"] is not None else 404, **files)
        elif path.suffix == ".txt":
            yield Origin(f"https://{path.stem.lower()}", date, 200, _content(path))


def _content(path: Path) -> str | None:
    if not path.is_file() or path.is_symlink():
        return None
    with path.open("rb") as file:
        return file.read(LONGEST).decode("utf-8", "replace")


def fetch(origins: Iterable[str], log: Path, *, user_agent: str, workers: int = 16, timeout_seconds: float = 15) -> int:
    """Ask origins for their files and append the answers to ``log``; those that it holds already are not asked again.

    Args:
        origins: as :func:`origin_of` gives them.
        log: JSON lines, one an origin. Killed at any moment, the next call goes on.
        user_agent: who asks; should name a page or an address for complaints.
        workers: origins asked at a time.
        timeout_seconds: for each file.

    Returns:
        how many origins were asked.
    """
    done = {record.origin for record in read_log(log)} if log.exists() else set()
    wanted = [origin for origin in dict.fromkeys(origins) if origin not in done]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, ThreadPoolExecutor(workers) as pool:
        for record in pool.map(lambda origin: ask(origin, user_agent, timeout_seconds), wanted):
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
            file.flush()
    return len(wanted)


def read_log(log: Path) -> Iterator[Origin]:
    """The records of a log; a last line that was not written to its end is cut off.

    Raises:
        HanseError: a line that is no record.
    """
    with log.open("rb+") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                file.truncate(file.tell() - len(line))
                return
            try:
                yield Origin(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise HanseError(f"{log}, line {number}: not a record of an origin ({error})") from None


def ask(origin: str, user_agent: str, timeout_seconds: float) -> Origin:
    """One origin's answers, redirects followed."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    answers = {name: _get(origin + where, user_agent, timeout_seconds) for name, where in PATHS.items()}
    texts = {name: text if 200 <= status < 300 else None for name, (status, text) in answers.items()}
    return Origin(origin, now, answers["robots"][0], **texts)


def _get(url: str, user_agent: str, timeout_seconds: float) -> tuple[int, str]:
    """(status, content); an error page has no content."""
    request = urllib.request.Request(url, headers={"User-Agent": user_agent})  # noqa: S310 origin_of lets only http(s) in
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:  # noqa: S310
            return answer.status, answer.read(LONGEST).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, ""
    except (OSError, ValueError):  # no such host, refused, timed out, broken TLS or redirect
        return UNREACHABLE, ""
    except Exception:  # http.client's many ways to say that the answer is no HTTP
        return UNREACHABLE, ""
