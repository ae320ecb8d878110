"""WARC files (ISO 28500) -> web pages: the text of ``conversion`` records, as in Common Crawl's WET files, and the main
text of HTML in ``response`` and ``resource`` records. What else is in them (requests, images, redirects) is no page.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.html import HTML_TYPES, page_of, response

LONGEST_HEADER = 1 << 16  # bytes
FIELDS = {
    "url": "warc-target-uri",
    "date": "warc-date",
    "record_id": "warc-record-id",
    "languages": "warc-identified-content-language",
}
PAGES = ("conversion", "response", "resource")


@dataclass
class WebText:
    """The text of a page, its bytes as UTF-8 or what they are instead; its fields; or why there is none."""

    text: bytes
    fields: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    problem: str = ""
    objection: str = ""


def pages(stream: io.BufferedIOBase, longest: int) -> Iterator[WebText]:
    """The pages in a WARC file. A record of more than ``longest`` bytes is passed over, but told.

    Raises:
        EOFError: the file breaks off.
        HanseError: there is HTML, and resiliparse is not installed.
    """
    while headers := _headers(stream):
        length = headers.get("content-length", "")
        if not length.isdecimal():
            raise EOFError("a record without a length")
        size, kind = int(length), headers.get("warc-type", "")
        block = stream.read(min(size, longest + 1))
        left = size - len(block)
        while size > longest and left and (more := stream.read(min(left, 1 << 20))):
            left -= len(more)
        if left:
            raise EOFError("the last record is cut off")
        if kind not in PAGES:
            continue
        fields = {name: headers.get(header) for name, header in FIELDS.items()}
        if size > longest:
            yield WebText(b"", fields, "too_long", f"{size} bytes, more than {longest}")
        elif kind == "conversion":
            yield WebText(block, fields)
        elif found := _page(kind, headers, block, longest):
            found.fields = {**fields, **found.fields}
            yield found


def _page(kind: str, headers: dict[str, str], block: bytes, longest: int) -> WebText | None:
    """The page of a response with status 200, or of a resource, if it is HTML; None for all else."""
    said: dict[str, str] = {}
    body, problem, content_type = block, "", headers.get("content-type", "")
    if kind == "response":
        status, said, body, problem = response(block, longest)
        content_type = said.get("content-type", headers.get("warc-identified-payload-type", ""))
        if status != 200:
            return None
    if content_type.split(";")[0].strip().lower() not in HTML_TYPES:
        return None
    cut, reason = headers.get("warc-truncated"), "malformed"
    if cut:
        reason, problem = "truncated", f"the crawler stopped: {cut}"
    elif not problem and len(body) > longest:
        reason, problem = "too_long", f"more than {longest} bytes when unpacked"
    if problem:
        return WebText(b"", {}, reason, problem)
    page = page_of(body, content_type, said)
    if page.problem:
        return WebText(b"", {}, reason, page.problem)
    return WebText(page.text.encode("utf-8", "replace"), page.fields, objection=page.objection)


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
