"""Decisions by frozen signals: robots.txt as RFC 9309 wants it, and every other way in which a site objects."""

import gzip
import http.server
import json
import pickle
import threading

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import HanseError
from data_pipelines.annotate.opt_out import CRAWLERS, DomainReport, OptOut, page_objection, tdm_rules, usage_rules
from data_pipelines.annotate.opt_out_snapshot import (
    UNREACHABLE,
    Origin,
    Snapshot,
    fetch,
    freeze,
    from_folder,
    origin_of,
    read_log,
)

DATE = "2026-11-24T00:00:00"


def site(**answers):
    return Origin("https://example.org", DATE, answers.pop("status", 200), **answers)


@pytest.fixture
def decide(tmp_path):
    """(records, url) -> (verdict, reason)"""

    def answer(record, url="https://example.org/a/page.html", crawlers=("CCBot", "GPTBot"), **page):
        decision = OptOut(freeze([record], tmp_path / "snapshot"), crawlers).decide(url, **page)
        return decision.verdict, decision.reason

    return answer


# ---------------------------------------------------------------- robots.txt
@pytest.mark.parametrize(
    ("robots", "expected"),
    [
        ("", ("allow", "robots.txt")),
        ("User-agent: *\nDisallow: /private", ("allow", "robots.txt")),
        ("User-agent: *\nDisallow: /a", ("deny", "robots.txt: CCBot")),
        ("User-agent: GPTBot\nDisallow: /", ("deny", "robots.txt: GPTBot")),
        ("User-agent: gptbot\nUser-agent: Other\nDisallow: /a/*.html$", ("deny", "robots.txt: GPTBot")),
        ("User-agent: *\nDisallow: /\n\nUser-agent: CCBot\nUser-agent: GPTBot\nAllow: /", ("allow", "robots.txt")),
        ("User-agent: *\nDisallow: /a\nAllow: /a/page", ("allow", "robots.txt")),  # the longer path wins
        ("User-agent: CCBot\nDisallow: /x\n\nUser-agent: CCBot\nDisallow: /a", ("deny", "robots.txt: CCBot")),  # merged
        ("<html>not found</html>", ("allow", "robots.txt")),
    ],
)
def test_robots_txt_is_read_as_rfc_9309_says(decide, robots, expected):
    assert decide(site(robots=robots)) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, ("allow", "no robots.txt")),
        (410, ("allow", "no robots.txt")),
        (429, ("unknown", "robots.txt: status 429")),
        (503, ("unknown", "robots.txt: status 503")),
        (UNREACHABLE, ("unknown", "robots.txt: no answer")),
    ],
)
def test_without_robots_txt_it_matters_why(decide, status, expected):
    assert decide(site(status=status)) == expected


@pytest.mark.parametrize(
    "url", [None, "", "mailto:a@b.c", "ftp://example.org/", "http://[broken", "https://other.org/a"]
)
def test_what_was_not_asked_is_unknown(decide, url):
    assert decide(site(), url)[0] == "unknown"


@pytest.mark.parametrize("url", ["http://example.org/a", "https://www.example.org/a", "HTTPS://EXAMPLE.org:443/a#x"])
def test_other_scheme_and_www_are_the_same_site(decide, url):
    assert decide(site(robots="User-agent: *\nDisallow: /"), url) == ("deny", "robots.txt: CCBot")


def test_everybody_is_a_crawler_to_ask_about(decide):
    assert CRAWLERS[0] == "*"
    robots = "User-agent: *\nDisallow: /\n\nUser-agent: CCBot\nAllow: /"
    assert decide(site(robots=robots), crawlers=("*", "CCBot")) == ("deny", "robots.txt: *")
    assert decide(site(robots=robots), crawlers=("CCBot",)) == ("allow", "robots.txt")


# ---------------------------------------------------------------- preferences about training
DRAFT = (  # the example of draft-ietf-aipref-attach-04, section 4.4
    "User-Agent: *\nAllow: /\nDisallow: /never/\nContent-Usage: / train-ai=n\nContent-Usage: /ai-ok/ train-ai=y\n\n"
    "User-Agent: ExampleBot\nAllow: /\nContent-Usage: / train-ai=y\n"
)


@pytest.mark.parametrize(
    ("path", "crawler", "verdict"),
    [
        ("/test", "OtherBot", "deny"),
        ("/never/test", "OtherBot", "deny"),
        ("/ai-ok/test", "OtherBot", "allow"),
        ("/test", "ExampleBot", "allow"),
    ],
)
def test_content_usage_as_in_the_draft(decide, path, crawler, verdict):
    assert decide(site(robots=DRAFT), f"https://example.org{path}", (crawler,))[0] == verdict


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("Content-Usage: train-ai=n", "deny"),
        ("content-usage : search=y, train-ai=n;x=1 # why", "deny"),
        ("Content-Signal: search=yes,ai-train=no", "deny"),
        ("Content-Signal: search=yes, ai-train=yes", "allow"),
        ("Content-Signal: ai-input=no", "allow"),
        ("Content-Usage: /other/ train-ai=n", "allow"),
        ("Content-Usage: / train-ai=y\nContent-Usage: / train-ai=n", "deny"),
        ("Content-Usage:", "allow"),
    ],
)
def test_no_training_is_an_objection_although_crawling_is_allowed(decide, line, verdict):
    expected = ("deny", "robots.txt: no training, CCBot") if verdict == "deny" else ("allow", "robots.txt")
    assert decide(site(robots=f"User-agent: *\nAllow: /\n{line}")) == expected


def test_groups_stay_apart_when_one_has_no_preference(decide):
    robots = "User-agent: CCBot\nUser-agent: GPTBot\nDisallow: /x\n\nUser-agent: *\nContent-Usage: train-ai=n"
    assert decide(site(robots=robots)) == ("allow", "robots.txt")
    assert decide(site(robots=robots), crawlers=("Other",)) == ("deny", "robots.txt: no training, Other")


@given(st.text(max_size=300))
def test_no_robots_txt_breaks_the_parser(text):
    rules = usage_rules(f"User-agent: {text}\nContent-Usage: {text} train-ai=n\n{text}")
    assert {line.partition(": ")[0] for line in rules.split("\n")} <= {"User-agent", "Allow", "Disallow", "Crawl-delay"}
    assert tdm_rules(text) == []  # no list of rules
    signals = {"", "X-Robots-Tag: noai", "header Content-Usage", "meta robots: noai", "meta tdm-reservation"}
    assert page_objection({"X-Robots-Tag": text, "Content-Usage": text}, text) in signals


# ---------------------------------------------------------------- other files
@pytest.mark.parametrize(
    ("rules", "verdict"),
    [
        ([{"location": "/", "tdm-reservation": 1}], "deny"),
        ([{"location": "/", "tdm-reservation": 0}], "allow"),
        ([{"location": "/a/*.html$", "tdm-reservation": 1, "tdm-policy": "https://example.org/policy"}], "deny"),
        ([{"location": "/a/", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1}], "allow"),  # the first
        ([{"location": "/b", "tdm-reservation": 1}], "allow"),
        ({"location": "*", "tdm-reservation": "1"}, "deny"),
        ([{"location": 3, "tdm-reservation": 1}, "x"], "allow"),
        ("no rules", "allow"),
    ],
)
def test_tdmrep_json(decide, rules, verdict):
    assert decide(site(tdmrep=json.dumps(rules)))[0] == verdict


@pytest.mark.parametrize(
    ("ai_txt", "url", "verdict"),
    [
        ("User-Agent: *\nDisallow: *.html", "https://example.org/a/page.html", "deny"),
        ("User-Agent: *\nDisallow: *.html", "https://example.org/a/page", "deny"),
        ("User-Agent: *\nDisallow: *.jpg", "https://example.org/a/page", "allow"),
        ("User-Agent: *\nDisallow: /", "https://example.org/x.txt", "deny"),
        ("# My site\n\nWelcome, assistants.", "https://example.org/a", "allow"),
    ],
)
def test_ai_txt_goes_by_file_type(decide, ai_txt, url, verdict):
    assert decide(site(ai_txt=ai_txt), url)[0] == verdict


def test_trust_txt(decide):
    assert decide(site(trust_txt="member=https://x.org\ndatatrainingallowed=no")) == ("deny", "trust.txt")
    assert decide(site(trust_txt="datatrainingallowed=yes"))[0] == "allow"


def test_a_site_without_robots_txt_may_object_elsewhere(decide):
    record = site(status=404, tdmrep='[{"location": "/", "tdm-reservation": 1}]')
    assert decide(record) == ("deny", "tdmrep.json")


# ---------------------------------------------------------------- signals of the page itself
@pytest.mark.parametrize(
    ("headers", "html", "reason"),
    [
        ({"X-Robots-Tag": "noai, noimageai"}, "", "X-Robots-Tag: noai"),
        ({"x-robots-tag": "GPTBot: noai"}, "", "X-Robots-Tag: noai"),
        ({"X-Robots-Tag": "noimageai"}, "", ""),
        ({"TDM-Reservation": "1"}, "", "header tdm-reservation"),
        ({"tdm-reservation": "0"}, "", ""),
        ({"Content-Usage": "train-ai=n"}, "", "header Content-Usage"),
        ({}, '<meta content="noai" name="Robots">', "meta robots: noai"),
        ({}, "<head><META NAME=tdm-reservation CONTENT=1>", "meta tdm-reservation"),
        ({}, '<meta name="robots" content="index, follow"><p>noai</p>', ""),
        ({}, "<meta name='tdm-reservation'><!-- <meta name=robots content=noai> -->", ""),
    ],
)
def test_headers_and_meta_of_the_page(decide, headers, html, reason):
    assert page_objection(headers, html) == reason
    assert decide(site(), headers=headers, html=html) == (("deny", reason) if reason else ("allow", "robots.txt"))


def test_columns_are_a_row_a_document(tmp_path):
    snapshot = freeze([site(robots="User-agent: CCBot\nDisallow: /b")], tmp_path)
    urls = ["https://example.org/a", "https://example.org/b", None, "https://example.org/a"]
    batch = pickle.loads(pickle.dumps(OptOut(snapshot))).columns(
        urls, headers=[None, None, None, {"tdm-reservation": "1"}]
    )
    assert batch.column("opt_out").to_pylist() == ["allow", "deny", "unknown", "deny"]
    assert batch.column("opt_out_reason").to_pylist() == [
        "robots.txt", "robots.txt: CCBot", "no web address", "header tdm-reservation",
    ]  # fmt: skip


def test_report_adds_up_by_domain():
    urls = ["https://www.b.org/1", "http://b.org/2", "https://a.org/", None, "https://b.org/3"]
    verdicts = pa.array(["allow", "deny", "unknown", "unknown", "allow", None])
    texts = ["x" * size for size in (10, 20, 5, 1, 30, 40)]
    batch = pa.record_batch({"text": texts, "url": [*urls, urls[0]], "opt_out": verdicts})
    report = DomainReport()
    for start in range(0, 6, 2):
        report.add(batch.slice(start, 2))
    assert report.table().to_pylist() == [
        {"domain": "b.org", "documents": 3, "bytes": 60, "allow_bytes": 40, "deny_bytes": 20, "unknown_bytes": 0},
        {"domain": "a.org", "documents": 1, "bytes": 5, "allow_bytes": 0, "deny_bytes": 0, "unknown_bytes": 5},
        {"domain": "", "documents": 1, "bytes": 1, "allow_bytes": 0, "deny_bytes": 0, "unknown_bytes": 1},
    ]


# ---------------------------------------------------------------- the snapshot
def test_a_snapshot_is_a_function_of_its_records(tmp_path):
    records = [Origin(f"https://{name}.org", DATE, 200, robots="") for name in "dacb"]
    newer = Origin("https://a.org", "2026-12-01T00:00:00", 404)
    first = freeze([*records, newer], tmp_path / "one")
    second = freeze([newer, *reversed(records)], tmp_path / "two")
    assert first.sha256 == second.sha256
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()
    assert [first[row].origin for row in range(len(first))] == [f"https://{name}.org" for name in "abcd"]
    assert first.get("https://a.org") == newer
    assert (first.first_fetched, first.last_fetched) == (DATE, "2026-12-01T00:00:00")
    assert all(first.get(record.origin) == record for record in records if record.origin != newer.origin)
    assert first.get("https://0.org") is first.get("https://z.org") is None


def test_a_changed_snapshot_is_refused(tmp_path):
    freeze([site()], tmp_path)
    path = tmp_path / "origins.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(HanseError, match="not the file that manifest"):
        Snapshot(tmp_path)
    with pytest.raises(HanseError, match="no opt-out snapshot"):
        Snapshot(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(HanseError, match="not a manifest"):
        Snapshot(tmp_path)


def test_nothing_is_no_snapshot(tmp_path):
    with pytest.raises(HanseError, match="no origin"):
        freeze([], tmp_path)


def test_files_that_others_downloaded(tmp_path):
    (tmp_path / "a.org.txt").write_text("User-agent: *\nDisallow: /")
    (tmp_path / "B.org").mkdir()
    (tmp_path / "B.org/robots.txt").write_bytes(b"User-agent: \xff*")
    (tmp_path / "B.org/tdmrep.json").write_text("[]")
    (tmp_path / "c.org").mkdir()
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    records = {record.origin: record for record in from_folder(tmp_path, "2026-11-24")}
    assert records["https://a.org"] == Origin("https://a.org", DATE, 200, "User-agent: *\nDisallow: /")
    assert records["https://b.org"] == Origin("https://b.org", DATE, 200, "User-agent: \ufffd*", tdmrep="[]")
    assert records["https://c.org"].status == 404
    assert len(records) == 3
    with pytest.raises(HanseError, match="is not a date"):
        list(from_folder(tmp_path, "yesterday"))


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("HTTP://Example.ORG:80/x?y", "http://example.org"),
        ("https://example.org:8443", "https://example.org:8443"),
        ("https://exämple.org./", "https://xn--exmple-cua.org"),
        ("https://user:secret@example.org/", "https://example.org"),
        ("https://[2001:db8::1]:8443/", "https://[2001:db8::1]:8443"),
        ("https://example.org:port/", None),
        ("/relative", None),
    ],
)
def test_origins_are_normalised(url, origin):
    assert origin_of(url) == origin


# ---------------------------------------------------------------- fetching, from this machine
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        type(self).asked += 1
        answers = {
            "/robots.txt": (302, b""),
            "/real-robots.txt": (200, b"User-agent: CCBot\nDisallow: /\n" + b"#" * 600_000),
            "/.well-known/tdmrep.json": (200, b'[{"location": "/", "tdm-reservation": 1}]'),
            "/ai.txt": (500, b"oops"),
        }
        status, body = answers.get(self.path, (404, b"not here"))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/real-robots.txt")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_fetches_and_goes_on_where_it_was_killed(tmp_path, server):
    log = tmp_path / "log.jsonl"
    refused = "http://127.0.0.1:9"  # the discard port, where nobody listens
    assert fetch([server, server], log, user_agent="hanse-test", timeout_seconds=5) == 1
    asked = Handler.asked
    with log.open("ab") as file:
        file.write(b'{"origin": "http://127.0.0.1:9", "fet')  # killed in the middle of a line
    assert fetch([server, refused], log, user_agent="hanse-test", timeout_seconds=5) == 1
    assert Handler.asked == asked
    records = {record.origin: record for record in read_log(log)}
    assert records[server].robots.startswith("User-agent: CCBot")
    assert len(records[server].robots) == 500 * 1024
    assert (records[server].status, records[server].ai_txt, records[server].trust_txt) == (200, None, None)
    assert (records[refused].status, records[refused].robots) == (UNREACHABLE, None)
    decision = OptOut(freeze(records.values(), tmp_path / "snapshot")).decide(f"{server}/page")
    assert (decision.verdict, decision.reason) == ("deny", "robots.txt: CCBot")


def test_a_log_that_is_none_is_refused(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(gzip.compress(b"x") + b"\n")
    with pytest.raises(HanseError, match="line 1: not a record"):
        list(read_log(log))
