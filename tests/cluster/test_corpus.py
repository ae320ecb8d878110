"""A corpus made by an array of jobs, some of them killed, is the corpus that one process makes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.config import CorpusConfig
from tests.cluster.conftest import Cluster
from tests.conftest import LANGUAGES, TEXTS

Hanse = Callable[..., int]


def working_on(share: str) -> int | None:
    """The process that annotates a share."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if f"worker={share}" in words and "hanse" in words:
            return int(folder.name)
    return None


@pytest.mark.skipif("worker" not in CorpusConfig.__dataclass_fields__, reason="hanse corpus cannot share out its work")
def test_killed_and_cancelled_elements_lose_and_double_nothing(
    cluster: Cluster, hanse: Hanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = Path("mine/source")
    sources.mkdir(parents=True)
    for language in LANGUAGES:
        (sources / f"text_{language}.yaml").write_text(
            f"# @package sources.text_{language}\nreader: text\npath: {TEXTS / language}.txt\ndocument_is: line\n"
            f"language: {language}\nlicense: public-domain\n"
        )
    names = ",".join(f"text_{language}" for language in LANGUAGES)
    assert hanse("corpus", "--config-dir", "mine", "name=quiet", f"source=[{names}]") == 0

    assert hanse("launch", "--config-dir", "mine", "task=corpus", "site=slurm", "site.node.gpus=0", "hours=0.5",
                 "life.signal_seconds=60", cluster.place, "nodes=3", "corpus.name=loud",
                 f"corpus.source=[{names}]") == 0  # fmt: skip
    folder = tmp_path / "data/loud/jobs/0001"
    array, last = json.loads((folder / "job.json").read_text())["job_ids"]
    for share, number in (("0/3", signal.SIGKILL), ("1/3", signal.SIGSTOP)):
        pid = cluster.wait_until(f"share {share}", lambda share=share: working_on(share))  # type: ignore[misc]
        os.kill(pid, number)
    cluster.slurm("scancel", f"{array}_1")
    requeued = cluster.wait_until("share 0/3 waits again", lambda: cluster.slurm(
        "squeue", "-h", "-t", "PD", "-r", "-j", array, "-o", "%A")).split()  # fmt: skip
    for job in requeued:
        cluster.start_now(job)
    cluster.wait_until("the end", lambda: cluster.state(last) == "GONE")

    logs = "".join(path.read_text() for path in folder.glob("slurm-*.log"))
    roots = [json.loads((Path("data") / name / "corpus/manifest.json").read_text())["merkle_root"]
             for name in ("quiet", "loud") if (Path("data") / name / "corpus/manifest.json").is_file()]  # fmt: skip
    assert len(roots) == 2, logs
    assert roots[0] == roots[1]
