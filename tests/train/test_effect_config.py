"""Values that would be read by nobody are refused where a run begins, all at once, and only where somebody set them."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from tests.train.test_engine_config import configured, problems_of

IDLE = {
    "optimizer.momentum=0.9": "optimizer.kind=muon",
    "optimizer.slow_beta=0.99": "optimizer.kind=ademamix",
    "optimizer.slow_weight=2": "optimizer.kind=ademamix",
    "optimizer.slow_warmup_steps=5": "optimizer.kind=ademamix",
    "init_embeddings=random": "init_tokenizer=/old.json",
    "engine.fp16.loss_scale_window=7": "engine.precision=fp16",
    "ema.every_steps=10": "ema.decay=0.9",
    "ema.warmup=false": "ema.decay=0.9",
    "data.temperature=2": "data.mixture_rule=temperature",
    "data.max_epochs=2": "data.mixture_rule=unimax",
}
BESIDE = ["engine.precision=bf16"]


def test_all_that_has_no_effect_is_said_at_once():
    found = problems_of(*BESIDE, *IDLE)
    assert len(found) == len(IDLE)
    said = {line.partition("=")[0] for line in found}
    assert said == {one.partition("=")[0] for one in IDLE}
    assert all("has no effect here" in line for line in found)
    assert ("optimizer.momentum=0.9: has no effect here: optimizer.kind=adamw does not have it; muon does") in found


@pytest.mark.parametrize("override", IDLE)
def test_it_is_taken_where_it_has_one(override):
    beside = [*BESIDE, IDLE[override]] if "precision" not in IDLE[override] else [IDLE[override]]
    start = ["init_from=/model"] if "init_tokenizer" in IDLE[override] else []
    assert configured(override, *beside, *start).without_effect() == []


def test_what_weights_from_elsewhere_leave_of_the_rules_for_fresh_ones():
    drawn = ["init_from=/model", "model.init.std=small", "model.init.residual=depth"]
    assert [line.partition(":")[0] for line in problems_of(*drawn)] == [
        "model.init.residual=depth", "model.init.std=small"]  # fmt: skip
    rows = [*drawn, "init_tokenizer=/old.json", "init_embeddings=random"]  # whose embeddings are drawn by std
    assert [line.partition(":")[0] for line in problems_of(*rows)] == ["model.init.residual=depth"]


def test_a_rule_of_any_stage_reads_its_number():
    stages = "stages=[{{name: a, tokens: 500000}}, {{name: b, data: {{{}}}}}]"
    configured(stages.format("mixture_rule: unimax"), "data.max_epochs=2")
    (line,) = problems_of(stages.format("max_epochs: 2"))
    assert line.startswith("stages.1.data.max_epochs=2.0: has no effect here")


@pytest.mark.parametrize(
    ("saved", "evaluated", "best", "candidates"),
    [(100, 100, 2, None), (100, 50, 2, None), (100, 150, 1, None), (100, 150, 4, 4), (100, 900, 2, 2)],
)
def test_the_best_need_somebody_to_choose_among(saved, evaluated, best, candidates):
    run = [f"tokens={1000 * 32 * 512}", f"checkpoint.every_steps={saved}", f"evaluate.every_steps={evaluated}",
           f"checkpoint.keep_best={best}"]  # fmt: skip
    if candidates is None:
        configured(*run)
    else:
        (line,) = problems_of(*run)
        assert f"only {candidates} will be of a step that is evaluated" in line


def test_a_run_that_goes_on_keeps_what_it_was_started_with(tmp_path):
    """Without it, a run from before the rule could go on neither with the value nor without it."""
    settings = ["optimizer.momentum=0.9", f"run={tmp_path}"]
    with pytest.raises(ConfigError):
        configured(*settings)
    (tmp_path / "config.yaml").write_text("name: x\n")
    assert configured(*settings).optimizer.momentum == 0.9


def test_a_strangers_run_is_read_as_it_is():
    config = configured()
    config.optimizer.momentum = 0.9
    assert config.without_effect() != []
    assert config.problems() == []


@pytest.mark.parametrize(
    "path", sorted(Path("configs/experiment").glob("*/train.yaml")), ids=lambda path: path.parent.name
)
def test_the_experiments_set_nothing_in_vain(path):
    assert configured(f"experiment={path.parent.name}/train").without_effect() == []
