"""``summary.json`` says in one place what came out, and the last lines what to do next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import EXIT_DONE
from data_pipelines.shards import ShardsManifest
from train import outcome
from train.config import BatchConfig, DataConfig, TrainConfig
from train.energy.totals import energy_totals
from train.local_start import REPLAY
from train.ranks import Place
from train.run_folder import RunFolder, read_metrics

LANGUAGES = ("de", "es", "fr", "it")


@pytest.mark.slow
def test_the_summary_of_a_finished_run_agrees_with_its_shards_and_its_metrics(tiny_run, tiny_data):
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert (summary["finished"], summary["steps"], summary["consumed_tokens"]) == (True, 12, 12 * 8 * 64)
    assert (summary["name"], summary["ranks"], summary["zero_stage"], summary["precision"]) == ("tiny", 2, 1, "fp32")
    assert summary["parameters"] == sum(
        size[0] * (size[1] if len(size) > 1 else 1)
        for size in json.loads((tiny_run / "checkpoints/step-00000012/manifest.json").read_text())["tensors"].values()
    )
    assert (summary["tasks"], summary["evaluated_after_step"]) == ({}, 12)
    assert summary["tokens_per_second"] > 0
    assert summary["mfu"] > 0
    assert summary["mfu_data_sheet"] is None  # of a processor
    assert 0 <= summary["data_wait_share"] < 1
    assert summary["wall_seconds"] > 0
    assert summary["machine"]["cores"] >= 1

    shards = ShardsManifest.read(tiny_data / "shards").shards
    evaluations = [
        record["evaluation"] for record in read_metrics(tiny_run / "metrics.jsonl") if "evaluation" in record
    ]
    assert tuple(summary["languages"]) == LANGUAGES
    for name, told in summary["languages"].items():
        mine = [shard for shard in shards if shard.language == name]
        for key in ("documents", "bytes", "tokens"):
            assert told[key] == sum(getattr(shard, key) for shard in mine)
        assert told["validation_documents"] == next(one.documents for one in mine if one.split == "validation")
        assert told["bits_per_byte"] == evaluations[-1][name]["bits_per_byte"]
        assert 0 < told["unigram_bits_per_byte"] < 8

    paths = summary["paths"]
    assert Path(paths["checkpoint"]) == tiny_run / "checkpoints/step-00000012"
    assert {key: Path(paths[key]) for key in ("corpus", "tokenizer", "shards")} == {
        key: tiny_data / key for key in ("corpus", "tokenizer", "shards")
    }


def values(**more) -> dict:
    languages = {"fr": {"bits_per_byte": 2.0, "unigram_bits_per_byte": 2.5},
                 "de": {"bits_per_byte": None, "unigram_bits_per_byte": 2.0}}  # fmt: skip
    return {"languages": languages, "steps": 6, "consumed_tokens": 3072, "wall_seconds": 75.0, "mfu": 0.52,
            "tokens_per_second": 2000.0, "paths": {"checkpoint": "c"}, "finished": True,
            "tasks": {"last_word": {"fr": {"accuracy": 0.25, "standard_error": 0.05, "items": 75, "chance": 0.0}}},
            "evaluated_after_step": 6, "energy": energy_totals("nowhere").to_json(), **more}  # fmt: skip


def test_a_finished_run_names_what_comes_next_and_a_stopped_one_how_to_go_on(tiny_config, capsys):
    outcome.closing(tiny_config, values())
    text = capsys.readouterr().out
    assert "fr        2.000    2.500     -20.0 %" in text
    assert "\nde " not in text  # not validated: nothing to compare
    assert "validation bits per byte\n" in text
    assert "fr        25.0% (17% to 36%)\nguessing                  0%" in text
    assert "6 of 12 steps, 3.07 k tokens in 1m15s; 2 ktok/s, MFU 52%, last checkpoint c" in text
    for verb in ("export", "generate", "report"):
        assert f"hanse {verb} run={tiny_config.run}" in text
    outcome.closing(tiny_config, values(mfu_data_sheet=0.41))
    assert "MFU 52% (41% of the data sheet's peak), last" in capsys.readouterr().out
    outcome.closing(tiny_config, values(finished=False, evaluated_after_step=4, tasks={}))
    text = capsys.readouterr().out
    assert "validation bits per byte, after step 4\n" in text
    assert "right answers" not in text
    assert "the same command goes on (exit code 75)" in text
    assert "hanse export" not in text


@pytest.mark.parametrize("finished", [True, False])
def test_a_replay_tells_its_numbers_and_nothing_of_what_comes_next(tiny_config, capsys, monkeypatch, finished):
    monkeypatch.setenv(REPLAY, "1")
    outcome.closing(tiny_config, values(finished=finished))
    text = capsys.readouterr().out
    assert "last checkpoint c" in text
    assert "stopped when asked" not in text
    assert "hanse export" not in text


@pytest.mark.parametrize(("asked", "how"), [("auto", "chosen"), ("bf16", "asked for")])
def test_the_opening_says_how_the_precision_came_about(tiny_config, asked, how):
    tiny_config.engine.precision = asked
    peaks = {"fp32": 80e9, "bf16": 420e9}
    text = outcome.opening(
        tiny_config,
        Place(0, 2),
        parameters=90_900,
        precision="bf16",
        attention="sdpa",
        compiled=False,
        peaks=peaks,
        resumed=None,
        initial=None,
    )
    assert text == (
        "tiny: 90.9 k parameters, 2 ranks, ZeRO-1, 12 steps of 512 tokens = 6.14 k tokens\n"
        f"precision bf16 ({how}; matrix products a rank: fp32 80 GFLOP/s, bf16 420 GFLOP/s)\n"
        "attention sdpa (chosen)"
    )


@pytest.mark.parametrize(
    ("step", "until_step", "code", "told"),
    [(5, None, None, ""), (5, 6, None, ""), (6, 6, EXIT_DONE, "6 of 10 steps are done, and until_step=6 asks for no"),
     (7, 6, EXIT_DONE, "7 of 10"), (10, None, EXIT_DONE, "all 10 steps"), (10, 10, EXIT_DONE, "all 10 steps")],
)  # fmt: skip
def test_a_run_that_is_as_far_as_asked_trains_nothing_and_is_done(tmp_path, capsys, step, until_step, code, told):
    config = TrainConfig(tokens=10, data=DataConfig(sequence_length=1), batch=BatchConfig(1, 1), until_step=until_step)
    assert outcome.nothing_to_do(config, RunFolder(tmp_path), step, speaks=True) == code
    assert told in capsys.readouterr().out
    assert outcome.nothing_to_do(config, RunFolder(tmp_path), step, speaks=False) == code
    assert not capsys.readouterr().out
