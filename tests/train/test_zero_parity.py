"""ZeRO 0 to 3 on two ranks compute what plain PyTorch computes on the same global batches, with every optimizer.

DeepSpeed has had silent gradient errors (0.18.3 to 0.19.3 at stage 2, issue #8224): this is the guard against the next.
"""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from torch.nn.functional import cross_entropy

from common.configuration import instantiate
from tests.train.multirank import losses, train_cases
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.model import PackedLanguageModel, build_model, model_inputs
from train.run_folder import complete_steps, folder_of, read_metrics
from train.setup import open_data
from train.state_hash import state_of_checkpoint
from train.stream import IGNORED

STEPS, SAVED = 12, 6
# Relative errors: the largest of a loss, the largest of a gradient norm, the root mean square of the final weights, and
# of their average.
TOLERANCE = {"fp32": (1e-5, 1e-4, 1e-4, 1e-4), "bf16": (1e-3, 5e-2, 5e-2, 5e-2), "fp16": (2e-4, 1e-2, 1e-2, 1e-2)}
CLIPPING = {"fp32": 0.5, "bf16": 1.0, "fp16": 1.0}  # below the norms of most steps here
Z_WEIGHTS = {("muon", "fp32"): 0.01, ("adamw", "fp16"): 0.01}  # of the others 0


def configuration(settings: list[str]) -> TrainConfig:
    ConfigStore.instance().store("train_schema", TrainConfig)
    with initialize_config_module("configs", version_base="1.3"):
        return instantiate(compose("train", overrides=settings))


class AdEMAMix(torch.optim.Optimizer):
    """Algorithm 1 of arXiv 2409.03137, as it stands there."""

    def __init__(self, groups, settings, steps):
        super().__init__(groups, {"lr": 1.0, "weight_decay": 0.0})
        self.settings, self.steps, self.count = settings, steps, 0

    @torch.no_grad()
    def step(self):
        self.count += 1
        (b1, b2), b3, t = self.settings.betas, self.settings.slow_beta, self.count
        share = min(1.0, t / self.steps)
        log1, log3 = math.log(b1), math.log(b3)
        b3 = min(math.exp(log1 * log3 / ((1 - share) * log3 + share * log1)), b3)
        for group in self.param_groups:
            for p in group["params"]:
                m1, m2, nu = self.state[p].get("all", [torch.zeros_like(p)] * 3)
                m1, m2, nu = b1 * m1 + (1 - b1) * p.grad, b3 * m2 + (1 - b3) * p.grad, b2 * nu + (1 - b2) * p.grad**2
                self.state[p]["all"] = [m1, m2, nu]
                update = m1 / (1 - b1**t) + share * self.settings.slow_weight * m2
                update = update / ((nu / (1 - b2**t)).sqrt() + self.settings.epsilon)
                p.sub_(group["lr"] * (update + group["weight_decay"] * p))


def newton_schulz(gradient, coefficients, steps, eps):
    """torch's in fp32, which the run computes in."""
    a, b, c = coefficients
    x = gradient.T if gradient.size(0) > gradient.size(1) else gradient
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if gradient.size(0) > gradient.size(1) else x


def plain_optimizers(config: TrainConfig, names: dict[str, torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    settings, decay = config.optimizer, config.optimizer.weight_decay
    shrunk = {name for name, p in names.items()
              if p.dim() >= 2 and (settings.decay_embeddings or name != "model.embed_tokens.weight")}  # fmt: skip
    matrices = {name: names[name] for name in names if name in shrunk}
    vectors = {"params": [names[name] for name in names if name not in shrunk], "weight_decay": 0.0}
    if settings.kind == "ademamix":
        return [AdEMAMix([{"params": list(matrices.values()), "weight_decay": decay}, vectors], settings, config.steps)]
    hidden = {name: p for name, p in matrices.items() if "proj" in name and settings.kind == "muon"}
    rest = [p for name, p in matrices.items() if name not in hidden]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(
        [{"params": rest, "weight_decay": decay}, vectors], lr=1.0, betas=tuple(settings.betas), eps=settings.epsilon
    )]  # fmt: skip
    if hidden:
        found.append(torch.optim.Muon(hidden.values(), lr=1.0, weight_decay=decay, momentum=settings.momentum,
                                      adjust_lr_fn="match_rms_adamw"))  # fmt: skip
    return found


def plain_pytorch(
    config: TrainConfig, precision: str
) -> tuple[list[float], list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses, gradient norms, final fp32 weights and their average; shares only model, data and configuration with us.

    The gradient of each micro-batch is taken alone, and they are summed in fp32.
    """
    data = open_data(config)
    low = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    scale = 2.0**16 if precision == "fp16" else 1.0  # with which nothing overflows here
    master = build_model(data.model, config.seed)
    master.load_state_dict({name: value.to(low).float() for name, value in master.state_dict().items()})
    module = build_model(data.model, config.seed).to(low)
    packed = PackedLanguageModel(module)
    names = dict(master.named_parameters())
    optimizers, average = plain_optimizers(config, names), {}
    found, norms, size = [], [], config.batch.global_batch_size
    decay = round(config.steps * config.schedule.decay_fraction)
    for step in range(config.steps):
        samples, sums, total = range(step * size, (step + 1) * size), [torch.zeros_like(p) for p in names.values()], 0.0
        targets = data.stream.targets(samples)
        for first in range(samples.start, samples.stop, config.batch.micro_batch_size):
            batch = data.stream.micro_batch(range(first, first + config.batch.micro_batch_size))
            module.zero_grad()
            inputs = model_inputs(batch, torch.device("cpu"))
            logits = packed.logits(inputs["input_ids"], inputs["positions"], inputs["documents"]).float()
            loss = cross_entropy(
                logits.flatten(0, 1), inputs["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
            )
            squares = (logits.logsumexp(2) * (inputs["labels"] != IGNORED)).square().sum()
            (scale * (loss + config.loss.z_weight * squares) / targets).backward()
            total += float(loss.detach()) / targets
            for whole, low_parameter in zip(sums, module.parameters(), strict=True):
                whole.add_(low_parameter.grad.float() / scale)
        for parameter, whole in zip(names.values(), sums, strict=True):
            parameter.grad = whole
        norms.append(float(torch.nn.utils.clip_grad_norm_(names.values(), config.optimizer.gradient_clipping)))
        into_decay = step - (config.steps - decay)
        scale = 1.0 if into_decay < 0 else 1 - math.sqrt((into_decay + 1) / decay)
        warm = min(1.0, (step + 1) / config.schedule.warmup_steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.optimizer.learning_rate * scale * warm
            optimizer.step()
        kept = config.ema.decay_after(step)
        for name, parameter in names.items():
            average[name] = kept * average.get(name, 0) + (1 - kept) * parameter.detach()
        with torch.no_grad():
            for parameter, low_parameter in zip(names.values(), module.parameters(), strict=True):
                low_parameter.copy_(parameter)
        found.append(total)
    return found, norms, {name: value.detach() for name, value in names.items()}, average


def worst(found: list[float], expected: list[float]) -> float:
    """Largest relative error."""
    return float(np.abs(np.array(found) / np.array(expected) - 1).max())


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Root mean square of the differences, over that of what is expected."""
    assert found.keys() == expected.keys()
    size = math.sqrt(sum(float(weight.square().sum()) for weight in expected.values()))
    return math.sqrt(sum(float((found[name] - expected[name]).square().sum()) for name in expected)) / size


KINDS = [("adamw", "fp32"), ("adamw", "bf16"), ("adamw", "fp16"), ("muon", "fp32"), ("ademamix", "fp32")]


@pytest.mark.slow
def test_every_optimizer_at_stages_0_to_3_on_two_ranks_equals_plain_pytorch(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", newton_schulz)
    common = [
        *tiny_settings,
        f"evaluate.every_steps={STEPS}",
        f"checkpoint.every_steps={SAVED}",
        "optimizer.learning_rate=3e-3",
        "ema.decay=0.8",
    ]

    def case(run, kind, precision, stage):
        length = {"fp32": 64, "bf16": 16, "fp16": 16}[
            precision
        ]  # many a CPU takes 100 times longer for a product in bf16
        return [*common, f"run={run}", f"optimizer.kind={kind}", f"optimizer.decay_embeddings={kind == 'ademamix'}",
                f"engine.precision={precision}", f"loss.z_weight={Z_WEIGHTS.get((kind, precision), 0)}",
                f"optimizer.gradient_clipping={CLIPPING[precision]}",
                f"engine.zero_stage={stage}", f"data.sequence_length={length}", f"tokens={STEPS * 8 * length}",
                f"evaluate.tokens_per_language={8 * length}"]  # fmt: skip

    runs = {(*kind, stage): tmp_path / "-".join((*kind, str(stage))) for kind in KINDS for stage in (0, 1, 2, 3)}
    cases = {run.name: case(run, *key) for key, run in runs.items()}
    assert train_cases(tmp_path / "ranks", 2, cases) == dict.fromkeys(cases, 0)
    for kind, precision in KINDS:
        config = configuration(case("unused", kind, precision, 1))
        expected, norms, weights, average = plain_pytorch(config, precision)
        assert expected[-1] < 0.98 * expected[0]  # it learns: the comparison is of more than noise
        assert apart(average, weights) > 1e-3
        others = [replace(config, optimizer=replace(config.optimizer, gradient_clipping=math.inf))]
        if config.loss.z_weight:
            others.append(replace(config, loss=replace(config.loss, z_weight=0.0)))
        for other in others if precision == "fp32" else []:  # a run that does not do it would not pass
            assert apart(plain_pytorch(other, precision)[2], weights) > 10 * TOLERANCE[precision][2]
        for stage in (0, 1, 2, 3):
            run = runs[kind, precision, stage]
            steps = [record for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
            clipped = sum(record["gradient_norm"] > CLIPPING[precision] for record in steps)
            assert clipped > STEPS / 2
            saved = Checkpoint(folder_of(run / "checkpoints", complete_steps(run / "checkpoints")[-1]))
            errors = (
                worst([record["loss"] for record in steps], expected),
                worst([record["gradient_norm"] for record in steps], norms),
                apart(saved.weights(), weights),
                apart(saved.weights("ema"), average),
            )
            print(f"{kind} {precision} ZeRO-{stage}: losses {errors[0]:.1e}, norms {errors[1]:.1e}, "
                  f"weights {errors[2]:.1e}, average {errors[3]:.1e}; {clipped} of {STEPS} clipped")  # fmt: skip
            assert all(error < allowed for error, allowed in zip(errors, TOLERANCE[precision], strict=True)), errors

    # And on: from two ranks to one, at another stage, from the middle.
    other = {
        ("muon", "fp32", 0): 2,
        ("adamw", "fp32", 2): 0,
        ("muon", "fp32", 1): 3,
        ("muon", "fp32", 3): 2,
        ("ademamix", "fp32", 3): 1,
    }
    again = {key: tmp_path / f"{runs[key].name}-on-{stage}" for key, stage in other.items()}
    for key, run in again.items():
        up_to(SAVED, runs[key], run)
    cases = {run.name: case(run, *key[:2], other[key]) for key, run in again.items()}
    assert train_cases(tmp_path / "one", 1, cases) == dict.fromkeys(cases, 0)
    for key, run in again.items():
        before, after = losses(runs[key]), losses(run)
        assert max(abs(after[step] / before[step] - 1) for step in before) < 1e-5
        ends = [Checkpoint(folder_of(one / "checkpoints", STEPS)) for one in (runs[key], run)]
        assert apart(ends[1].weights("ema"), ends[0].weights("ema")) < 1e-4
        assert state_of_checkpoint(ends[1]).tensors.keys() == state_of_checkpoint(ends[0]).tensors.keys()
        assert ends[1].state["engine"]["averages"] == STEPS


def up_to(step, run, copy):
    """A copy of a run as it was when it had just saved a step."""
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoints").iterdir():
        if folder != folder_of(copy / "checkpoints", step):
            shutil.rmtree(folder)
