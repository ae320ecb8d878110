"""What a run tells: ``metrics.jsonl`` always, wandb and TensorBoard when asked, lines for the person who watches."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from common.files import room_for, write_json
from common.terminal import Progress, count, say
from train.config import TrainConfig
from train.evaluate import LanguageScore
from train.run_folder import RunFolder
from train.track import Trackers

HEARTBEAT_SECONDS = 5.0


class StepClock:
    """Seconds of the steps, how much of them was waiting for data, and what the loop's time was spent on."""

    def __init__(self, warm_up: int = 2):
        self.warm_up = warm_up  # the first steps compile, allocate and touch memory: not in the average
        self.steps = 0
        self.total_seconds = self.wait_seconds = 0.0
        self.recent: deque[float] = deque(maxlen=20)
        self.parts: Counter[str] = Counter()

    def add(self, seconds: float, wait: float, parts: Mapping[str, float]) -> None:
        """Count one step, and the lap of the stopwatch that ends with it (train/stopwatch.py)."""
        self.steps += 1
        self.recent.append(seconds)
        if self.steps > self.warm_up:
            self.total_seconds += seconds
            self.wait_seconds += wait
            self.parts.update(parts)

    def end(self, parts: Mapping[str, float]) -> None:
        """Count what came after the last step: an evaluation, a checkpoint."""
        self.parts.update(parts)

    @property
    def shares(self) -> dict[str, float]:
        """Of the loop's time after the first steps, what went into each part; they add up to 1."""
        whole = self.parts.total()
        return {part: seconds / whole for part, seconds in self.parts.items()} if whole else {}

    @property
    def overhead_seconds(self) -> float:
        """What the loop itself takes a step: all that is no other part."""
        return self.parts["loop"] / max(self.steps - self.warm_up, 1)

    @property
    def mean_seconds(self) -> float:
        """Mean of a step after the first few (of all, if there are no others)."""
        if self.steps <= self.warm_up:
            return sum(self.recent) / max(len(self.recent), 1)
        return self.total_seconds / (self.steps - self.warm_up)


class Metrics:
    """Writes on rank 0; on other ranks every method does nothing."""

    def __init__(self, folder: RunFolder, config: TrainConfig, *, first_step: int, speaks: bool):
        self.config, self.speaks = config, speaks
        self.progress = Progress("train", config.steps, "steps", done=first_step, enabled=speaks)
        self._heartbeat, self._beaten, self._phase = folder.heartbeat, 0.0, ""
        self._path = folder.metrics
        self._trackers = Trackers(folder.path, config, first_step) if speaks else None

    def step(self, record: Mapping[str, Any]) -> None:
        """One optimizer step: written, and shown on the progress line."""
        self._beat(record["step"], "training")
        self._write(record)
        rate = f"{count(record['tokens_per_second'], 'tok')}/s"
        extra = f"step {record['step']}/{self.config.steps}  loss {record['loss']:.3f}  MFU {record['mfu']:.0%}"
        self.progress.update(record["step"], extra, rate=rate)

    def evaluation(
        self, step: int, scores: Mapping[str, LanguageScore],
        tasks: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    ) -> None:  # fmt: skip
        """Validation, and what tasks gave ({task: {language: accuracy ...}}): written, and shown, a line each."""
        if not self.speaks:
            return
        split = {name: {source: one.rates() for source, one in score.sources.items()}
                 for name, score in scores.items() if score.sources}  # fmt: skip
        self._write({
            "step": step,
            "evaluation": {name: score.rates() for name, score in scores.items()},
            **({"evaluation_by_source": split} if split else {}),
            **({"evaluation_tasks": tasks} if tasks else {}),
        })  # fmt: skip
        self.say(f"step {step}: validation bits per byte  "
                 + "  ".join(f"{name} {score.bits_per_byte:.3f}" for name, score in scores.items()))  # fmt: skip
        for task, rows in (tasks or {}).items():
            chance = next(iter(rows.values()))["chance"]
            self.say(f"step {step}: {task.replace('_', ' ')}  "
                     + "  ".join(f"{name} {row['accuracy']:.0%}" for name, row in rows.items())
                     + (f"  (guessing {chance:.0%})" if chance else ""))  # fmt: skip

    def ranks(self, step: int, report: Mapping[str, Any]) -> None:
        """What the ranks spend by themselves (train/guards/times.py): written."""
        self._write({"step": step, "rank_times": report})

    def consumed(self, step: int, languages: Mapping[str, Any], sources: Mapping[str, Any] | None = None) -> None:
        """Tokens that were drawn of each language and source so far, and how many times its text they are: written."""
        self._write({"step": step, "consumed": languages, **({"consumed_by_source": sources} if sources else {})})

    def event(self, step: int, kind: str, **facts: Any) -> None:
        """Something that happened once: a start, a resume, a checkpoint."""
        self._beat(step, kind)
        self._write({"step": step, "event": kind, **facts})

    def _beat(self, step: int, phase: str) -> None:
        """Tell a watcher that the run lives: ``heartbeat.json``, at most every few seconds while it trains."""
        now = time.time()
        if not self.speaks or (phase == self._phase and now - self._beaten < HEARTBEAT_SECONDS):
            return
        self._beaten, self._phase = now, phase
        line = self.config.timeline
        write_json(self._heartbeat, {"time": now, "phase": phase, "step": step, "steps": line.steps,
                                     "consumed_tokens": line.tokens(step), "tokens": line.tokens(line.steps),
                                     **line.name(step)})  # fmt: skip

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.speaks:
            self.progress.interrupt()
            say(text)

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.speaks:
            with room_for(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**record, "time": time.time()}) + "\n")
        if self._trackers is not None:
            self._trackers.log(record)

    def back(self, step: int) -> None:
        """The run went back and goes on after ``step``: steps after it are told once more."""
        if self._trackers is not None:
            self._trackers.back(step)

    def close(self, step: int) -> None:
        """To be called after the last step done, ``step``."""
        self._beat(step, "done" if step == self.config.steps else "stopped")
        if self._trackers is not None:
            self._trackers.close()
