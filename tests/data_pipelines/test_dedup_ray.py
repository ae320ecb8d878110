"""What Ray finds on two workers is what one process finds, whatever the documents, the files and the threshold."""

import importlib.util
import itertools
import os
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import dedup, dedup_ray
from data_pipelines.annotate.signature import signatures
from data_pipelines.annotate.text_arrays import TextArrays
from data_pipelines.config import CorpusConfig
from data_pipelines.documents import content_of
from tests.data_pipelines.test_dedup import WORDS, changed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_workers():
    if importlib.util.find_spec("ray") is None:  # not imported before it is told its settings
        pytest.skip("no Ray here: pip install 'hanse[ray]'")
    address = os.environ.pop("RAY_ADDRESS", None)
    with dedup_ray.session(2):
        yield
    if address:
        os.environ["RAY_ADDRESS"] = address


def family(seed):
    """Texts of which many repeat or resemble earlier ones, in chains; some are empty or short."""
    rng = random.Random(seed)
    texts = []
    for _ in range(rng.randint(0, 120)):
        kind = rng.random()
        if texts and kind < 0.3:
            texts.append(changed(rng.choice(texts), rng.choice((0.01, 0.03, 0.1)), rng))
        elif texts and kind < 0.45:
            texts.append(rng.choice(texts).upper())
        else:
            texts.append(" ".join(rng.choices(WORDS, k=rng.choice((0, 3, 30, 200)))))
    return texts


def files_of(texts, folder, rng):
    """Parquet files of some texts each, one of them empty."""
    cuts = [*sorted({0, len(texts), *(rng.randint(0, len(texts)) for _ in range(3))}), len(texts)]
    paths = []
    for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
        part = texts[begin:end]
        contents = pa.array([content_of(text) for text in part], pa.binary(32))
        paths.append(folder / f"{number}.parquet")
        pq.write_table(pa.table({"content": contents, "signature": signatures(TextArrays.of(part))}), paths[-1])
    return paths


@pytest.mark.parametrize("seed", range(8))
def test_ray_finds_what_one_process_finds(two_workers, tmp_path, seed):
    rng = random.Random(seed)
    texts = family(seed)
    files, earlier = files_of(texts, tmp_path, rng), rng.randint(0, len(texts) // 2)
    similarity = (0.75, 0.9, None, 0.75)[seed % 4]
    local = dedup.cluster(dedup.batches_of(files), similarity, tmp_path, earlier)
    found = dedup_ray.cluster(files, similarity, earlier)
    assert np.array_equal(found.cluster, local.cluster)
    assert np.array_equal(found.size, local.size)
    assert seed or (local.size > 1).sum() > 10


def test_a_worker_that_dies_takes_nothing_with_it(two_workers, tmp_path, monkeypatch):
    """Its task is done again, by another one."""
    mark, real = tmp_path / "died", dedup_ray._keys

    def dies_once(*arguments):
        if not mark.exists():
            mark.touch()
            os._exit(9)
        return real(*arguments)

    texts = family(3)
    files = files_of(texts, tmp_path, random.Random(3))
    monkeypatch.setattr(dedup_ray, "_keys", dies_once)
    found = dedup_ray.cluster(files, 0.75)
    assert mark.exists()
    assert np.array_equal(found.cluster, dedup.cluster(dedup.batches_of(files), 0.75, tmp_path).cluster)


def test_nothing_is_reported_and_nobody_else_is_served(two_workers):
    import ray

    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert ray.cluster_resources()["CPU"] == 2
    program = f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r}, logging_level='error')"
    stranger = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}
    other = subprocess.Popen([sys.executable, "-c", program], env=stranger, stderr=subprocess.PIPE, text=True)
    assert any("InvalidAuthToken" in line for line in other.stderr), "it got in"
    other.kill()  # it would try again for a minute
    other.communicate()


def test_the_engine_is_one_key_and_no_part_of_what_a_corpus_is(tmp_path):
    from data_pipelines.corpus import _identity

    one, other = CorpusConfig(name="x"), CorpusConfig(name="x")
    other.dedup.engine = "ray"
    assert _identity(one, []) == _identity(other, [])
    other.dedup.engine = "spark"
    assert any("use one of local, ray" in line for line in other.problems())
