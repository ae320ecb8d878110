"""Fairness between languages: what each was given adds up, gaps name the right ones, and nothing is made up."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter

import pytest

from data_pipelines.shards import ShardsManifest
from tests.train.test_report import START, config, evaluation, step, text_of, write_run
from train.fairness import Fairness, Language, fairness, fairness_of, gap, section
from train.order import open_stream
from train.run_folder import RunFolder

LANGUAGES = ("de", "es", "fr", "it")


def run_with(folder, data, evaluations=(), steps=20, **settings):
    made = config(data, 20)
    for key, value in settings.items():
        setattr(made.data, key, value)
    return write_run(folder, made, [START, *(step(number) for number in range(1, steps + 1)), *evaluations])


@pytest.mark.parametrize("mixture", [{}, {"fr": 1, "de": 2.5}, {"it": 1, "es": 0, "de": 3}], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 7, 20])
def test_tokens_and_epochs_are_those_of_the_order_of_data(tiny_data, tmp_path, mixture, steps):
    found = fairness_of(run_with(tmp_path / "run", tiny_data, steps=steps, mixture=mixture))
    stream = open_stream(ShardsManifest.read(tiny_data / "shards"), RunFolder(tmp_path / "run").read_config())
    drawn = Counter(stream.sample(number)[0].name for number in range(8 * steps))
    windows = {source.name: source.windows for source in stream.sources}
    assert found.step == steps
    assert {one.language for one in found.languages} == set(LANGUAGES)
    for one in found.languages:
        assert one.consumed_tokens == 64 * drawn[one.language]
        assert one.epochs == pytest.approx(drawn[one.language] / windows.get(one.language, 1))
    assert sum(one.consumed_tokens for one in found.languages) == steps * 8 * 64


def test_text_and_fertility_are_those_of_the_manifests(tiny_data, tmp_path):
    found = fairness_of(run_with(tmp_path / "run", tiny_data))
    shards = json.loads((tiny_data / "shards/manifest.json").read_text())["shards"]
    fertility = json.loads((tiny_data / "tokenizer/fertility.json").read_text())
    for one in found.languages:
        mine = [shard for shard in shards if (shard["split"], shard["language"]) == ("train", one.language)]
        assert one.training_tokens == sum(shard["tokens"] for shard in mine)
        assert one.training_bytes == sum(shard["bytes"] for shard in mine)
        assert one.tokens_per_word == fertility[one.language]["tokens_per_word"]
        assert one.bytes_per_token == fertility[one.language]["bytes_per_token"]


def test_gaps_name_the_best_and_the_worst_and_are_never_under_one():
    lower, higher = gap("bits_per_byte", {"fr": 0.8, "mt": 1.2, "de": 0.9}), gap("consumed_tokens", {"fr": 8, "mt": 2})
    assert (lower.best, lower.worst, lower.ratio) == ("fr", "mt", pytest.approx(1.5))
    assert (higher.best, higher.worst, higher.ratio) == ("fr", "mt", 4)
    task = gap("belebele", {"fr": 0.6, "mt": 0.3})
    assert (task.best, task.worst, task.ratio) == ("fr", "mt", 2)
    none = gap("belebele", {"fr": 0.6, "mt": 0.0, "de": 0.3})
    assert (none.best, none.worst, none.ratio, none.told) == ("fr", "mt", math.inf, "mt has none right")
    assert gap("belebele", {"fr": 0.0, "mt": 0.0}) is None
    assert gap("bits_per_byte", {"fr": 1.0}) is None
    assert gap("bits_per_byte", {"fr": 1.0, "de": math.nan}) is None
    assert gap("epochs", {"fr": 1.0, "de": 0.0}) is None
    assert gap("consumed_tokens", {"fr": 64, "de": 64}).ratio == 1


def test_task_scores_and_the_history_come_from_the_evaluations(tiny_data, tmp_path):
    scores = [{"fr": {"bits_per_byte": 2.0, "loss": 4.0, "belebele": 0.5}, "de": {"bits_per_byte": 3.0, "loss": 4.0}},
              {"fr": {"bits_per_byte": 1.0, "loss": 3.0, "belebele": 0.6},
               "de": {"bits_per_byte": 1.2, "loss": 3.5, "belebele": 0.4}}]  # fmt: skip
    evaluations = [{"step": number, "evaluation": one} for number, one in zip((10, 20), scores, strict=True)]
    run = run_with(tmp_path / "run", tiny_data, evaluations)
    found = fairness_of(run)
    assert [moment.gap("bits_per_byte").ratio for moment in found.history] == pytest.approx([1.5, 1.2])
    assert [moment.gap("belebele") is None for moment in found.history] == [True, False]
    assert found.tasks == ["belebele"]
    apart = {one.measure: one for one in found.gaps}
    assert (apart["belebele"].best, apart["belebele"].worst) == ("fr", "de")
    assert {one.language: one.bits_per_byte for one in found.languages} == {
        "fr": 1.0,
        "de": 1.2,
        "es": None,
        "it": None,
    }
    before = fairness_of(run, step=10)
    assert (before.step, len(before.history)) == (10, 1)
    assert sum(one.consumed_tokens for one in before.languages) == 10 * 8 * 64


def test_without_shards_the_mixture_still_tells_the_tokens_and_the_rest_is_not_known(tiny_data, tmp_path):
    data = tmp_path / "moved"
    plain = fairness_of(run_with(tmp_path / "a", data, [evaluation(20)]))
    assert all(one == Language(one.language, bits_per_byte=2.15) for one in plain.languages)
    mixed = fairness_of(run_with(tmp_path / "b", data, mixture={"fr": 1, "de": 3}))
    assert {one.language: one.consumed_tokens for one in mixed.languages} == {"fr": 40 * 64, "de": 120 * 64}
    assert all(one.epochs is one.training_bytes is one.tokens_per_word is None for one in mixed.languages)
    there = fairness_of(tmp_path / "a", shards=tiny_data / "shards")
    assert all(one.consumed_tokens and one.training_bytes for one in there.languages)


def test_the_fertility_of_another_tokenizer_is_not_taken(tiny_data, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_data / "tokenizer", folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text + "\n")
    found = fairness_of(run_with(tmp_path / "run", tiny_data, tokenizer=str(folder)))
    assert all(one.tokens_per_word is None for one in found.languages)
    (folder / "tokenizer.json").write_text(text)
    (folder / "fertility.json").write_text('{"fr": {"tokens_per_word": "many"}}')
    assert all(one.tokens_per_word is None for one in fairness_of(tmp_path / "run").languages)


def test_the_section_is_for_two_languages_or_more_and_leaves_out_what_nobody_knows():
    one, two = Language("fr", bits_per_byte=1.0), Language("de", bits_per_byte=2.0)
    assert section(Fairness(1, [one], []), {}) is None
    shown = section(Fairness(1, [two, one], []), {"fr": 1, "de": 2})
    assert shown.table.head == ["language", "bits per byte"]
    assert shown.gaps.rows == [["bits per byte", "fr 1.000", "de 2.000", "2.000"]]
    assert [bar.length for bar in shown.bars[0].bars] == [100, 50]
    assert shown.charts == []


def test_of_many_languages_the_chart_shows_the_worst_and_the_best():
    names = [f"l{number:02}" for number in range(24)]
    scores = {name: {"bits_per_byte": 1 + number / 10} for number, name in enumerate(names)}
    found = fairness(config_without_data(), [{"step": 1, "evaluation": scores}], None, 1)
    lines = section(found, {}).charts[1].lines
    assert [line.name for line in lines] == ["l23", "l22", "l21", "l02", "l01", "l00"]
    assert [line.colour for line in lines] == [1, 2, 3, 4, 5, 6]


def config_without_data():
    from pathlib import Path

    return config(Path("nowhere"), 20)


def test_the_report_has_the_section(hanse, tiny_data, tmp_path):
    run = run_with(tmp_path / "run", tiny_data, [evaluation(10), evaluation(20)])
    assert hanse("report", f"run={run}") == 0
    text = text_of((run / "report.html").read_text())
    assert "Fairness between languages" in text
    found = fairness_of(run)
    for one in found.languages:
        assert f"{one.language} {one.consumed_tokens:,} {one.epochs:.2f}" in text
