"""Ray inside one allocation, a machine of it on each node: the same corpus as one process makes, and nothing left."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster
from tests.conftest import LANGUAGES, TEXTS


def rays() -> list[str]:
    """Command lines of all processes of Ray's that a job of the simulated Slurm started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
            if "SLURMD_NODENAME=" in (folder / "environ").read_text() and (
                "raylet" in words[0] or "ray." in words[2:3]
            ):
                found.append(" ".join(words)[:200])
        except (OSError, UnicodeDecodeError, IndexError):
            continue
    return found


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray here: pip install 'hanse[ray]'")
def test_duplicates_found_by_ray_on_three_nodes(
    cluster: Cluster, hanse: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(Path("/tmp").glob("ray-??????"))
    sources = Path("mine/source")
    sources.mkdir(parents=True)
    for language in LANGUAGES[:2]:
        for number in (1, 2):  # twice the same text: half of it is duplicates
            (sources / f"text_{language}{number}.yaml").write_text(
                f"# @package sources.text_{language}{number}\nreader: text\npath: {TEXTS / language}.txt\n"
                f"document_is: line\nlanguage: {language}\nlicense: public-domain\n"
            )
    names = ",".join(f"text_{language}{number}" for language in LANGUAGES[:2] for number in (1, 2))
    assert hanse("corpus", "--config-dir", "mine", "name=quiet", f"source=[{names}]") == 0

    assert hanse("launch", "--config-dir", "mine", "task=corpus", "site=slurm", "site.node.gpus=0", "hours=0.5",
                 "threads_per_rank=1", "life.signal_seconds=60", cluster.place, "nodes=1", "ray_nodes=3",
                 "corpus.name=loud", "corpus.dedup.engine=ray", f"corpus.source=[{names}]") == 0  # fmt: skip
    folder = tmp_path / "data/loud/jobs/0001"
    (job,) = json.loads((folder / "job.json").read_text())["job_ids"]
    cluster.wait_until("the end", lambda: cluster.state(job) == "GONE", 1500)

    logs = "".join(path.read_text() for path in sorted(folder.glob("*.log")))
    assert "Ray: 3 machines, 3 CPUs" in logs, logs
    roots = [json.loads((Path("data") / name / "corpus/manifest.json").read_text())["merkle_root"]
             for name in ("quiet", "loud") if (Path("data") / name / "corpus/manifest.json").is_file()]  # fmt: skip
    assert len(roots) == 2, logs
    assert roots[0] == roots[1]
    cluster.wait_until("the end of all that Ray started", lambda: not rays(), 60)
    assert set(Path("/tmp").glob("ray-??????")) <= before
