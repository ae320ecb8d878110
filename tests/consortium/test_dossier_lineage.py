"""A model's totals over all that it was made of: each run once, to the token, however it came about."""

import json
import re
import shutil

import pytest
from omegaconf import OmegaConf

from common.errors import HanseError
from common.files import sha256_file, write_json
from consortium.dossier.evidence import gather
from consortium.dossier.forms import HERE, all_fields
from consortium.dossier.lineage import trace
from data_pipelines.shards import ShardsManifest
from train import lock
from train.checkpoint_writer import write_papers
from train.config import TrainConfig
from train.energy.totals import energy_totals
from train.ledger import Ledger
from train.run_folder import RunFolder, folder_of

PER_STEP = 4 * 16  # tokens of a step of the runs made by hand


def checkpoint(folder, step, origin=None, seed=0):
    """A checkpoint folder without weights, written as the trainer does."""
    folder.mkdir(parents=True)
    model = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32,
             "max_position_embeddings": 16}  # fmt: skip
    state = {"step": step, "consumed_samples": 4 * step, "consumed_tokens": PER_STEP * step, "precision": "fp32",
             "data_merkle_root": "d" * 64, "tokenizer_sha256": "e" * 64, "model": model, "wall_seconds": 10.0 * step,
             "ranks": 2, "zero_stage": 1, "seed": seed}  # fmt: skip
    write_papers(folder, {}, {"model.embed_tokens.weight": (32, 8)}, state, origin=origin)
    return folder


def origin(*parents, role="init", **more):
    return {
        "parents": [{"manifest_sha256": sha256_file(one / "manifest.json"), "role": role} for one in parents],
        **more,
    }


def run_of(path, steps, *, seed=0, parents=None, starts=(0,)):
    """A run folder with a checkpoint a step in ``steps``; written by the classes that a run is written with."""
    folder = RunFolder(path)
    config = TrainConfig(name=path.name, run=str(path), seed=seed, tokens=100 * PER_STEP)
    config.data.shards, config.data.tokenizer, config.data.sequence_length = str(path / "no-shards"), "none", 16
    config.batch.global_batch_size = config.batch.micro_batch_size = 4
    config.optimizer.learning_rate, config.schedule.warmup_steps, config.schedule.decay_fraction = 1e-3, 1, 0.1
    config.model.architecture = "llama"
    config.checkpoint.every_steps = config.evaluate.every_steps = config.evaluate.tokens_per_language = 1
    path.mkdir(parents=True)
    folder.keep_config(config)
    write_json(folder.lock, {
        "format": lock.FORMAT, "seed": seed, "name": path.name, "code": lock.code(), "distributions": {"torch": "2"},
        "python": "3", "machine": {"devices": [], "processor": "x", "system": "y"}, "layout": {"ranks": 2},
        **({"parents": parents["parents"]} if parents else {}),
    })  # fmt: skip
    ledger, last = Ledger(folder.ledger), max(steps)
    records = []
    for start, until in zip(starts, [*(one + 2 for one in starts[1:]), last], strict=True):
        ledger.write("start", {"step": start, "lock": sha256_file(folder.lock), "ranks": 2})
        records = records[:start]
        for step in range(start + 1, until + 1):
            ledger.write("step", {"step": step, "samples": [4 * (step - 1), 4 * step], "loss": 1.0})
            records.append({"step": step, "consumed_tokens": PER_STEP * step, "loss": 1.0, "seconds": 1.0})
    folder.metrics.write_text("".join(json.dumps(one) + "\n" for one in records))
    for step in steps:
        checkpoint(folder_of(folder.checkpoints, step), step, parents, seed)
    return path


def totals(run, *places, **settings):
    evidence = gather(run, parents=places, **settings)
    return evidence.plain("training.consumed_tokens"), evidence.plain("compute.flops"), evidence


def test_a_run_that_was_restarted_counts_no_step_twice(tmp_path):
    tokens, flops, evidence = totals(run_of(tmp_path / "a", [10], starts=(0, 4, 6)))
    assert tokens == 10 * PER_STEP
    assert evidence["model.dependencies"].not_applicable
    assert evidence.plain("training.restarts") == 2
    assert evidence.plain("training.repeated_steps") == 2 + 2
    assert (tokens, flops) == totals(run_of(tmp_path / "b", [10]))[:2]
    lines = (tmp_path / "a/ledger.jsonl").read_text().splitlines()
    (where,) = [one.at for one in evidence["training.consumed_tokens"].citations if one.file.endswith("ledger.jsonl")]
    assert json.loads(lines[int(where.removeprefix("line ")) - 1])["step"] == 10


def test_a_continued_child_counts_its_parent_as_far_as_it_came_from_it(tmp_path):
    parent = run_of(tmp_path / "parent", [3, 6, 9])
    child = run_of(tmp_path / "child", [4], seed=1, parents=origin(folder_of(parent / "checkpoints", 6)))
    tokens, flops, evidence = totals(child, parent)
    assert (tokens, flops) == totals(run_of(tmp_path / "whole", [10]))[:2]
    assert evidence.plain("training.own_consumed_tokens") == 4 * PER_STEP
    assert "made from parent (step 6)" in evidence.unknown["model.dependencies"], "was it placed on the market?"
    assert evidence.plain("compute.parent_flops") * 10 == flops * 6
    assert evidence.plain("compute.wall_seconds") == 100.0
    assert evidence.plain("compute.device_hours") == pytest.approx(200 / 3600)


def test_parents_are_found_in_a_registry_and_as_checkpoints_alone(tmp_path):
    parent = run_of(tmp_path / "parent", [6])
    child = run_of(tmp_path / "child", [4], parents=origin(folder_of(parent / "checkpoints", 6)))
    held = tmp_path / "registry/models/parent/step-6"
    shutil.copytree(folder_of(parent / "checkpoints", 6), held / "checkpoint")
    assert gather(child, tmp_path / "registry").plain("training.consumed_tokens") == 10 * PER_STEP
    for name in ("run.lock.json", "ledger.jsonl"):  # a contribution holds papers of its run too: they make it that run
        shutil.copy(parent / name, held)
    config = OmegaConf.to_container(OmegaConf.load(parent / "config.yaml"))
    (held / "config.json").write_text(json.dumps(config | {"data": config["data"] | {"shards": ""}}))
    lineage = trace(child, [tmp_path / "registry"])
    assert [one.name for one in lineage.trained] == ["child", "parent"]
    assert lineage.trained[1].identity == trace(parent).head.identity
    assert gather(child, tmp_path / "registry").plain("training.consumed_tokens") == 10 * PER_STEP


def test_ancestors_that_two_ways_lead_to_count_once(tmp_path):
    base = run_of(tmp_path / "base", [5, 10])
    at = folder_of(base / "checkpoints", 10)
    left, right = (run_of(tmp_path / name, [4], seed=seed, parents=origin(at)) for name, seed in (("l", 1), ("r", 2)))
    ends = [folder_of(one / "checkpoints", 4) for one in (left, right)]
    early = folder_of(base / "checkpoints", 5)
    merged = checkpoint(tmp_path / "merged", 4, origin(*ends, early, role="average", method="uniform"))
    tokens, _, evidence = totals(merged, base, left, right)
    assert tokens == (10 + 4 + 4) * PER_STEP
    assert evidence.plain("training.own_consumed_tokens") == 0
    assert [one["run"] for one in evidence.plain("lineage.runs")] == ["base", "l", "r"]
    assert any("merged (uniform)" in line for line in evidence.plain("training.method"))


def test_an_average_of_a_run_s_checkpoints_costs_that_run_once(tmp_path):
    run = run_of(tmp_path / "a", [6, 8, 10])
    ends = [folder_of(run / "checkpoints", step) for step in (6, 8, 10)]
    merged = checkpoint(tmp_path / "merged", 10, origin(*ends, role="average", method="uniform"))
    assert totals(merged, run)[0] == 10 * PER_STEP


def test_a_parent_that_is_lost_leaves_totals_unknown_never_too_small(tmp_path):
    parent = run_of(tmp_path / "parent", [6])
    child = run_of(tmp_path / "child", [4], parents=origin(folder_of(parent / "checkpoints", 6)))
    tokens, flops, evidence = totals(child)
    assert (tokens, flops) == (None, None)
    for key in (
        "training.tokens_text",
        "compute.flops_text",
        "compute.wall_band",
        "systemic.none",
        "model.dependencies",
    ):
        assert key not in evidence
        assert evidence.unknown[key]
    assert "own run alone: 256 tokens" in evidence.unknown["training.consumed_tokens"]


def test_papers_that_contradict_each_other_make_no_dossier(tmp_path):
    run = run_of(tmp_path / "a", [10])
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace(f'"consumed_tokens": {10 * PER_STEP}', '"consumed_tokens": 641'))
    with pytest.raises(HanseError, match="641 tokens"):
        gather(run)
    (run / "metrics.jsonl").write_text(text)
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (run / "ledger.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(HanseError, match="does not hold steps 1 to 10"):
        gather(run)


def test_a_lock_that_is_none_is_refused(tmp_path):
    run = run_of(tmp_path / "a", [2])
    (run / "run.lock.json").write_text('{"format": "hanse.lock/1"}')
    with pytest.raises(HanseError, match="not a lock"):
        gather(run)


def test_a_link_in_a_registry_is_not_followed(tmp_path):
    parent = run_of(tmp_path / "parent", [6])
    child = run_of(tmp_path / "child", [4], parents=origin(folder_of(parent / "checkpoints", 6)))
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry/models").symlink_to(parent)
    assert trace(child, [tmp_path / "registry"]).lost


# --- real runs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_run_fills_all_it_can_and_agrees_with_its_manifests(tiny_run, tiny_data):
    evidence = gather(tiny_run)
    for field in all_fields().values():
        if field.evidence:
            assert field.evidence in evidence or evidence.unknown.get(field.evidence), field.key
    page = (HERE.parents[1] / "docs/guide/dossier.md").read_text()
    rows = re.findall(r"^\| (`[\w]+\.`|others) \| (.+) \|$", page, re.MULTILINE)
    keys = [
        ("" if group == "others" else group.strip("`")) + key
        for group, told in rows
        for key in re.findall(r"`([\w.]+)`", told)
    ]
    assert len(keys) > 50
    assert not [key for key in keys if key not in evidence and key not in evidence.unknown]
    shards = ShardsManifest.read(tiny_data / "shards")
    assert evidence.plain("corpus.tokens") == sum(one.tokens for one in shards.of("train"))
    assert sum(evidence.plain("corpus.tokens_by_language").values()) == evidence.plain("corpus.tokens")
    metrics = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert evidence.plain("training.consumed_tokens") == max(one.get("consumed_tokens", 0) for one in metrics)
    assert sum(evidence.plain("training.tokens_by_language").values()) == evidence.plain("training.consumed_tokens")
    for value in evidence.values():
        for one in value.citations:
            assert len(one.sha256) == 64, one


@pytest.mark.slow
def test_tokens_of_each_language_are_those_that_the_stream_draws(tiny_run, tiny_data):
    from collections import Counter

    from train.order import open_stream

    config = RunFolder(tiny_run).read_config()
    length = config.data.sequence_length
    stream = open_stream(ShardsManifest.read(tiny_data / "shards"), config)
    drawn = Counter(stream.sample(number)[0].name for number in range(12 * 8))
    told = gather(tiny_run).plain("training.tokens_by_language")
    assert told == {name: number * length for name, number in sorted(drawn.items())}


@pytest.mark.slow
def test_a_run_with_a_crash_and_a_child_cost_what_one_run_costs(hanse, tiny_run, tiny_settings, tmp_path):
    first, child, one = tmp_path / "first", tmp_path / "child", "ranks=1"
    few = [
        *tiny_settings,
        one,
        "evaluate.tokens_per_language=64",
        "schedule.warmup_steps=0",
        "schedule.decay_fraction=0",
    ]
    eight = [f"run={first}", *few, f"tokens={8 * 8 * 64}", "checkpoint.every_steps=4", "checkpoint.keep_last=9"]
    assert hanse("train", *eight, "until_step=6") == 75
    shutil.rmtree(
        folder_of(first / "checkpoints", 6)
    )  # as if it had crashed after step 6: steps 5 and 6 are done again
    assert hanse("train", *eight) == 0
    start = folder_of(first / "checkpoints", 8)
    assert hanse("train", f"run={child}", *few, f"tokens={4 * 8 * 64}", f"init_from={start}", "seed=1") == 0
    whole, found = gather(tiny_run), gather(child, parents=[first])
    for key in ("training.consumed_tokens", "compute.flops", "corpus.tokens", "data.text_size_band"):
        assert found.plain(key) == whole.plain(key) is not None, key
    assert sum(found.plain("training.tokens_by_language").values()) == 12 * 8 * 64
    assert found.plain("training.repeated_steps") == 2
    assert found.plain("training.own_consumed_tokens") == 4 * 8 * 64
    energies = [energy_totals(run) for run in (first, child)]
    assert found.plain("energy.joules") == sum(one.joules for one in energies) > 0
    assert found.plain("compute.wall_seconds") == sum(one.wall_seconds for one in energies)
    assert all(one.how in found.plain("energy.rounded") for one in energies)
    assert hanse("dossier", f"run={child}", f"parents=[{first}]", "languages=[it]", "formats=[md]") == 0
    told = json.loads((child / "dossier/dossier.json").read_text())
    assert told["facts"]["training_flops"] == whole.plain("compute.flops")
    assert (child / "dossier/it/annex_xi.md").is_file()
    (child / "dossier/it/annex_xi.md").write_text("mine")
    assert hanse("dossier", f"run={child}", f"parents=[{first}]") == 2
    assert (child / "dossier/it/annex_xi.md").read_text() == "mine"
