"""WARC files (ISO 28500) -> plain text of web pages: their ``conversion`` records, as in Common Crawl's WET files."""

from __future__ import annotations

import io
from collections.abc import Iterator

LONGEST_HEADER = 1 << 16  # bytes
FIELDS = {
    "url": "warc-target-uri",
    "date": "warc-date",
    "record_id": "warc-record-id",
    "languages": "warc-identified-content-language",
}


def conversions(stream: io.BufferedIOBase, longest: int) -> Iterator[tuple[dict[str, str | None], bytes, int]]:
    """(fields, text, bytes of it) of each page; of a text longer than ``longest``, no more than its size.

    Raises:
        EOFError: the file breaks off, or something stands where a record should begin.
    """
    while headers := _headers(stream):
        length = headers.get("content-length", "")
        if not length.isdecimal():
            raise EOFError("a record without a length")
        size = int(length)
        text = stream.read(min(size, longest + 1))
        left = size - len(text)
        while size > longest and left and (more := stream.read(min(left, 1 << 20))):
            left -= len(more)
        if left:
            raise EOFError("the last record is cut off")
        if headers.get("warc-type") == "conversion":
            yield {field: headers.get(name) for field, name in FIELDS.items()}, text if size <= longest else b"", size


def _headers(stream: io.BufferedIOBase) -> dict[str, str]:
    """The headers of the next record, names in lower case; none at the end of the file."""
    while (line := stream.readline(LONGEST_HEADER)) in (b"\r\n", b"\n"):
        pass
    if line and not line.startswith(b"WARC/"):
        raise EOFError("no record where one should begin")
    headers = {"": ""} if line else {}
    while line and (line := stream.readline(LONGEST_HEADER)).strip():
        name, _, value = line.decode("utf-8", "replace").partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers
