"""The report: of runs of every age and size, in a real browser, and out of the hands of strange strings."""

from __future__ import annotations

import json
import math
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.browser import Browser, find_chromium
from train.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from train.report.evidence import count_unigram, read_evidence
from train.run_folder import RunFolder

HOSTILE = '</script><script>document.title="taken"</script><img src=http://example.org/x onerror=alert(1)>"\'&{{7*7}}'


def config(shards: Path, steps: int, name: str = "voyage") -> TrainConfig:
    return TrainConfig(
        name=name,
        run="unused",
        tokens=steps * 8 * 64,
        data=DataConfig(shards=str(shards / "shards"), tokenizer=str(shards / "tokenizer"), sequence_length=64),
        model=ModelConfig(architecture="llama"),
        batch=BatchConfig(global_batch_size=8, micro_batch_size=2),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        schedule=ScheduleConfig(warmup_steps=0, decay_fraction=0.2),
        checkpoint=CheckpointConfig(every_steps=10),
        evaluate=EvaluateConfig(every_steps=10, tokens_per_language=512),
    )


def step(number: int, languages=("de", "es", "fr", "it"), **other) -> dict:
    loss = 3 + 4 / math.sqrt(number)
    return {
        "step": number, "consumed_tokens": number * 512, "loss": loss,
        "loss_by_language": {name: loss + 0.1 * index for index, name in enumerate(languages)},
        "learning_rate": 1e-3, "gradient_norm": 1 + 1 / number, "seconds": 0.5, "data_wait_seconds": 0.0,
        "tokens_per_second": 1024.0, "mfu": 0.4, **other,
    }  # fmt: skip


def event(number: int, kind: str, **facts) -> dict:
    return {"step": number, "event": kind, "time": 1.8e9 + number, **facts}


def evaluation(number: int, languages=("de", "es", "fr", "it")) -> dict:
    scores = {name: {"bits_per_byte": 2 + 3 / number, "loss": 4.0} for name in languages}
    return {"step": number, "evaluation": scores}


START = event(0, "start", ranks=2, zero_stage=1, precision="fp32", host="node-1",
              peak_flops_per_second={"fp32": 8e10, "bf16": 2e11})  # fmt: skip


def write_run(folder: Path, settings: TrainConfig, records: list[dict], summary: dict | None = None) -> Path:
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    run.config.write_text(OmegaConf.to_yaml(OmegaConf.structured(settings)))
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    if summary is not None:
        run.update_summary(summary)
    return folder


def text_of(page: str) -> str:
    """What a reader reads, roughly."""
    return re.sub(r"\s+", " ", re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL))


@pytest.fixture
def report(hanse):
    """The page of a run as text."""

    def write(run: Path, *arguments: str) -> str:
        assert hanse("report", f"run={run}", *arguments) == 0
        return (run / "report.html").read_text(encoding="utf-8")

    return write


def test_a_run_without_a_step_has_a_page(report, tiny_data, tmp_path):
    text = text_of(report(write_run(tmp_path / "run", config(tiny_data, 20), [START])))
    assert "No step has been made yet." in text
    assert "step 0 of 20" in text
    assert "No validation yet: the first comes after step 10." in text


def test_an_unfinished_run_counts_the_baseline_that_training_would_have_told(report, tiny_data, tmp_path):
    records = [START, *(step(number) for number in range(1, 11)), evaluation(10)]
    run = write_run(tmp_path / "run", config(tiny_data, 20), records)
    text = text_of(report(run))
    baseline = count_unigram(config(tiny_data, 20), read_evidence_of(run).shards)
    assert "step 10 of 20" in text
    assert baseline.keys() == {"de", "es", "fr", "it"}
    assert all(f"{name} 2.300 {value:.3f}" in text for name, value in baseline.items())


def read_evidence_of(run: Path):
    from train.verb_config import ReportConfig

    return read_evidence(ReportConfig(run=str(run), output=str(run / "report.html")))


@pytest.mark.slow
def test_the_baseline_counted_from_the_shards_is_the_one_in_the_summary(tiny_run):
    evidence = read_evidence_of(tiny_run)
    assert count_unigram(evidence.config, evidence.shards) == pytest.approx(evidence.unigram, rel=1e-9)


def test_accuracy_and_sources_of_the_last_validation_and_where_the_time_went_are_shown(report, tiny_data, tmp_path):
    parts = [{"forward": 0.3, "loop": 0.7}] * 2 + [{"forward": 0.375, "data wait": 0.0, "loop": 0.125}] * 2
    steps = [step(number, seconds_by_part=part, memory_bytes={"host_peak": 3 * 2**30})
             for number, part in enumerate(parts, 1)]  # fmt: skip
    scores = evaluation(4)
    for name, one in scores["evaluation"].items():
        one["token_accuracy"] = 0.25 if name == "fr" else 0.5
    web = {"bits_per_byte": 2.5, "loss": 4.5, "token_accuracy": 0.375}
    scores["evaluation_by_source"] = {"fr": {HOSTILE: web, "web": web}}
    run = write_run(tmp_path / "run", config(tiny_data, 20), [START, *steps, evaluation(2), scores])
    page = report(run)
    text = text_of(page)
    assert re.search(r"fr 2\.750 \S+ \S+ %? ?4\.000 25\.0%", text)
    assert "fr, web 2.500 4.500 37.5%" in text
    assert "Token accuracy" in text
    assert "Where the time went rank 0, without the first 2 steps; what is no other part, loop, takes 125.0 ms" in text
    assert "forward 75.0% data wait 0.0% loop 25.0%" in text
    assert "held at most by rank 0, host 3.00 GiB" in text
    assert "<img" not in page
    shares = {"forward": 0.5, "loop": 0.5}
    RunFolder(run).update_summary({"steps": 4, "time_shares": shares, "overhead_seconds": 0.001})
    assert "loop, takes 1.0 ms a step forward 50.0% loop 50.0%" in text_of(report(run))


def test_the_data_table_adds_up_to_the_manifests(report, tiny_data, tmp_path):
    text = text_of(report(write_run(tmp_path / "run", config(tiny_data, 20), [START])))
    corpus = json.loads((tiny_data / "corpus/manifest.json").read_text())
    shards = json.loads((tiny_data / "shards/manifest.json").read_text())
    for language, tally in corpus["languages"].items():
        tokens = sum(shard["tokens"] for shard in shards["shards"] if shard["language"] == language)
        removed = sum(tally["removed"].values())
        assert re.search(rf"{language} {tally['documents_kept']} {tally['validation_documents']} \S+ kB {tokens:,} "
                         rf"\d\.\d\d {removed} \(.*?\) public-domain", text)  # fmt: skip


def test_what_comes_out_of_files_is_text_and_never_markup(report, tiny_data, tmp_path):
    records = [START, step(1, languages=(HOSTILE,)), evaluation(1, (HOSTILE,)), event(1, HOSTILE, host=HOSTILE)]
    summary = {"steps": 1, "machine": {"host": HOSTILE}, "paths": {HOSTILE: HOSTILE}}
    page = report(write_run(tmp_path / "run", config(tiny_data, 2, name=HOSTILE), records, summary))
    assert "<img" not in page
    assert "{{7*7}}" in page
    assert page.count("</script>") == 1 + page.count('<script type="application/json">')


def test_losses_that_are_not_numbers_are_told_and_drawn_as_gaps(report, tiny_data, tmp_path):
    records = [START, step(1), step(2), step(3, loss=math.nan), step(4, gradient_norm=math.inf), step(5)]
    page = report(write_run(tmp_path / "run", config(tiny_data, 20), records))
    assert "The loss of 1 step is not a number, first at step 3." in text_of(page)
    loss = next(line for line in re.findall(r'class="series line c0" d="([^"]*)"', page))
    assert loss.count("M") == 2
    for data in re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL):
        json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_long_run_makes_a_small_page_that_still_shows_the_one_spike(report, tiny_data, tmp_path):
    records = [START, *(step(number) for number in range(1, 30_001))]
    records[17_000]["gradient_norm"] = 1.9
    run = write_run(tmp_path / "run", config(tiny_data, 30_000), records)
    page = report(run)
    assert len(page) < 1_000_000
    assert "1.9, " in page


def test_without_its_shards_a_run_folder_still_tells_what_its_summary_knows(report, tiny_data, tmp_path):
    languages = {"fr": {"documents": 1234, "bytes": 5678, "tokens": 999, "unigram_bits_per_byte": 2.5}}
    run = write_run(tmp_path / "run", config(tmp_path, 20), [START, step(1), evaluation(1)], {"languages": languages})
    text = text_of(report(run))
    assert "fr 1,234 5,678 999" in text
    assert "shards=... says where they are" in text
    assert (
        "MB" not in text_of(report(run, f"shards={tiny_data / 'shards'}")).partition("Events")[0].partition("Data")[0]
    )
    assert "public-domain" in text_of(report(run, f"shards={tiny_data / 'shards'}"))


def test_a_peak_measured_on_a_busy_machine_is_called_so(report, tiny_data, tmp_path):
    text = text_of(report(write_run(tmp_path / "run", config(tiny_data, 20), [START, step(1, mfu=1.4)])))
    assert "utilisation is overstated" in text


def test_both_utilisations_are_in_the_report_where_the_data_sheet_is_known(report, tiny_data, tmp_path):
    start = {**START, "data_sheet_peak_of_all_ranks": 1978.8e12}
    told = [start, *(step(number, mfu_data_sheet=0.31) for number in (1, 2))]
    page = unescape(report(write_run(tmp_path / "gpu", config(tiny_data, 20), told)))
    text = text_of(page)
    assert "of the measured matrix peak; 31% of the data sheet's bf16 peak" in text
    assert "of the data sheet's: first 31, last 31" in page
    assert "data sheet peak of all ranks 1.98 PFLOP/s" in text
    text = text_of(report(write_run(tmp_path / "cpu", config(tiny_data, 20), [START, step(1, mfu_data_sheet=None)])))
    assert "data sheet" not in text


def test_the_summary_says_where_the_report_is(report, tiny_data, tmp_path):
    run = write_run(tmp_path / "run", config(tiny_data, 20), [START], {"paths": {"shards": "s"}})
    report(run)
    paths = json.loads((run / "summary.json").read_text())["paths"]
    assert paths == {"shards": "s", "report": str(run / "report.html")}


def test_a_broken_run_folder_is_one_clear_line(hanse, tiny_data, tmp_path, capfd):
    run = write_run(tmp_path / "run", config(tiny_data, 20), [START, step(1)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{broken}\n" + json.dumps(step(2)) + "\n")
    assert hanse("report", f"run={run}") == 2
    assert f"{run / 'metrics.jsonl'}: line 3 is no record of a step" in capfd.readouterr().err
    (run / "config.yaml").write_text("nonsense: true\n")
    assert hanse("report", f"run={run}") == 2
    assert "not a readable configuration of 'hanse train'" in capfd.readouterr().err
    assert not (run / "report.html").exists()


def test_a_half_written_last_line_is_left_out(report, tiny_data, tmp_path):
    run = write_run(tmp_path / "run", config(tiny_data, 20), [START, step(1)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert "step 1 of 20" in text_of(report(run))


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_lines_stand_out_from_their_ground_in_both_themes():
    """WCAG 2.2: 4.5 to 1 for text (1.4.3), 3 to 1 for graphics (1.4.11)."""
    css = (Path(__file__).parents[2] / "common/templates/page.css").read_text()
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)]
    assert len(themes) == 2
    for theme in themes:
        for name in ("ink", "soft", "c1", "c2", "c3", "c4", "c5", "c6"):
            for ground in ("paper", "card"):
                light, dark = sorted((luminance(theme[name]), luminance(theme[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= (4.5 if name in ("ink", "soft") else 3), (name, ground)


# In a browser.


@pytest.fixture(scope="module")
def browser():
    if find_chromium() is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tiny_run, tiny_data, tmp_path_factory, hanse) -> dict[str, Path]:
    """Reports of a finished run, and of runs in every other state."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(tiny_run, folder / "finished")
    settings, many = config(tiny_data, 400), [f"l{number}" for number in range(24)]
    write_run(folder / "empty", settings, [START])
    write_run(folder / "three", settings, [START, step(1), step(2), step(3)])
    resumed = [START, *map(step, range(1, 21)), evaluation(10), evaluation(20), event(20, "checkpoint", path="step-20"),
               {**START, "step": 20, "event": "resume", "ranks": 4}, *map(step, range(21, 41))]  # fmt: skip
    write_run(folder / "resumed", settings, resumed)
    strange = [START, step(1, languages=(*many, HOSTILE)), evaluation(1, (*many, HOSTILE)), event(1, HOSTILE)]
    write_run(folder / "strange", config(tiny_data, 2, name=HOSTILE), strange)
    for run in folder.iterdir():
        assert hanse("report", f"run={run}") == 0
    return {run.name: run / "report.html" for run in folder.iterdir()}


@pytest.mark.slow
def test_the_browser_of_these_tests_tells_what_goes_wrong(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<script>console.error('told')</script><script>nobody.knows</script><img src='http://127.0.0.1:9/x'>"
    )
    browser.open(bad, 1280, 900)
    assert "told" in browser.console
    assert any("nobody is not defined" in text for text in browser.console)
    assert browser.requests == [bad.as_uri(), "http://127.0.0.1:9/x"]


DRAWN = """
[...document.querySelectorAll("path.series")].filter(path => {
    const box = path.getBoundingClientRect();
    return box.width > 1 || path.getAttribute("d").includes("h0");
}).length
"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
@pytest.mark.parametrize(("name", "lines"), [("finished", 4 * 3 + 6 + 5 + 4), ("empty", 0), ("three", 5 + 4),
                                             ("resumed", 4 * 2 + 5 + 5 + 4),
                                             ("strange", 25 + 1 + 6 + 1 + 4)])  # fmt: skip
def test_a_browser_draws_every_line_and_asks_for_nothing(browser, pages, name, lines, width, dark):
    browser.open(pages[name], width, 844, dark=dark)
    assert browser.console == []
    assert browser.requests == [pages[name].as_uri()]
    assert browser.run(DRAWN) == lines
    assert browser.run("document.documentElement.scrollWidth") <= width
    tables_fit = "[...document.querySelectorAll('.scroll')].every(box => box.scrollWidth <= box.clientWidth + 1)"
    assert name == "strange" or browser.run(tables_fit)  # a word of sixty letters may be scrolled to, in its table
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 3 * 64) == dark
    assert browser.run("document.title") != "taken"


@pytest.mark.slow
def test_no_label_of_an_axis_lies_on_another(browser, pages):
    overlaps = """
    [...document.querySelectorAll(".axis")].flatMap(axis => {
        const boxes = [...axis.querySelectorAll("span")].map(span => span.getBoundingClientRect()).filter(b => b.width);
        return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
            a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom));
    }).length"""
    for name in ("finished", "resumed", "strange", "three"):
        for width in (1280, 800, 390):
            browser.open(pages[name], width, 844)
            assert browser.run(overlaps) == 0, (name, width)


@pytest.mark.slow
def test_a_pointer_and_the_arrow_keys_read_the_values_of_a_step(browser, pages):
    browser.open(pages["finished"], 1280, 900)
    place = browser.run("""(() => {
        const area = document.querySelector(".tall .area");
        area.scrollIntoView({block: "center"});
        const box = area.getBoundingClientRect();
        return {x: box.left + box.width / 2, y: box.top + 50};
    })()""")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **place)
    told = browser.run("document.querySelector('.tip').innerText")
    records = [json.loads(line) for line in (pages["finished"].parent / "metrics.jsonl").read_text().splitlines()]
    loss = next(record["loss"] for record in records if record["step"] == 6 and "loss" in record)
    assert told.startswith("step 6\nall")
    assert f"{loss:.4g}".rstrip("0") in told
    browser.run("document.querySelector('.tall .area').focus()")
    for key in ("ArrowRight", "End"):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
    assert browser.run("document.querySelector('.tip').innerText").startswith("step 12\n")
    assert browser.console == []


@pytest.mark.slow
def test_the_page_is_whole_without_its_scripts(browser, pages, tmp_path):
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"<script.*?</script>", "", pages["finished"].read_text(), flags=re.DOTALL))
    browser.open(bare, 1280, 900)
    assert browser.console == []
    assert browser.run(DRAWN) == pages["finished"].read_text().count('class="series') > 0
