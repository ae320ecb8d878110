"""Wrong input to a training: exit code 2, one line that says what and where, and nothing that was there is changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import EXIT_USER_ERROR
from common.files import sha256_file
from launch.local import free_port

pytestmark = pytest.mark.slow


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, str]:
    """Every file of a run or data folder but the logs, which a start may add to."""
    files = [path for path in folder.rglob("*") if path.is_file() and "logs" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


@pytest.fixture
def place(tiny_data, tiny_run, tmp_path) -> Path:
    """A folder with ``data/`` and ``run/`` to damage: the tiny run as it was after its first checkpoint."""
    shutil.copytree(tiny_data, tmp_path / "data")
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000012")
    return tmp_path


@pytest.fixture
def refusal(hanse, tiny_settings, place, capfd, monkeypatch) -> Callable[..., str]:
    """``refusal(OVERRIDES ...)``: what ``hanse train`` says when it refuses to go on with ``place``.

    As srun or torchrun start it: this process is the only rank, which saves an import of torch for every case.
    """
    rank = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1}
    for key, value in {**rank, "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(key, str(value))

    def train(*overrides: str, run: str = "run") -> str:
        data = [f"data.shards={place / 'data/shards'}", f"data.tokenizer={place / 'data/tokenizer'}"]
        before = contents(place)
        capfd.readouterr()
        code = hanse("train", *tiny_settings, *data, f"run={place / run}", *overrides)
        said = capfd.readouterr().err
        assert code == EXIT_USER_ERROR
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if line.startswith("hanse train: ")]
        assert said.endswith(f"{line}\n")  # before it, compilers that DeepSpeed asks may have had a word
        assert contents(place) == before
        return line

    return train


def test_a_tokenizer_that_does_not_belong_to_the_shards(refusal, place):
    path = place / "data/tokenizer/tokenizer.json"
    path.write_text(path.read_text().replace("}", "} ", 1))
    assert f"{path}: not the tokenizer that the shards in {place / 'data/shards'} were written with" in refusal()
    path.unlink()
    assert str(path) in refusal()


def test_damaged_or_missing_shards(refusal, place):
    shards = place / "data/shards"
    path = shards / "train/fr.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    assert f"{path}: {len(data) - 2} bytes, but fr.idx describes {len(data)}; the file was truncated" in refusal()
    path.write_bytes(data)
    flip_a_bit(path)
    assert f"{path}: not the file that" in refusal("data.verify_hashes=true")
    path.write_bytes(data)

    path = shards / "train/fr.idx"
    flip_a_bit(path)
    assert f"{path}: not " in refusal()
    path.unlink()
    assert f"{path}: missing" in refusal()

    path = shards / "manifest.json"
    path.write_text(path.read_text().replace('"documents": 38', '"documents": 39'))
    assert f"{path}: its Merkle root does not match" in refusal()
    shutil.rmtree(shards)
    assert f"{path}: no shards manifest ('hanse tokenize' writes one)" in refusal()


def test_a_damaged_checkpoint(refusal, place):
    checkpoint = place / "run/checkpoints/step-00000006"
    for name in ("model/rank-00001.safetensors", "optimizer/rank-00000.safetensors", "state.json", "manifest.json"):
        path = checkpoint / name
        intact = path.read_bytes()
        flip_a_bit(path)
        said = refusal()
        assert str(path) in said
        path.write_bytes(intact)
    (checkpoint / "model/rank-00000.safetensors").unlink()
    assert f"{checkpoint / 'model/rank-00000.safetensors'}: is missing; delete {checkpoint} to go on" in refusal()


def test_a_checkpoint_of_other_shards_or_of_another_model(refusal, place, hanse):
    assert "was started with another configuration: model.settings.hidden_size was 48, now 96" in refusal(
        "model.settings.hidden_size=96"
    )
    (place / "run/config.yaml").unlink()  # without it, only the checkpoint can tell
    said = refusal("model.settings.hidden_size=96")
    assert "a checkpoint of another model: model.embed_tokens.weight is [1024, 48] there and [1024, 96]" in said
    said = refusal("model.settings.num_hidden_layers=3")
    assert "model.layers.2." in said
    assert "absent there" in said

    places = [f"{key}={place / 'data' / key}" for key in ("corpus", "tokenizer")]
    assert hanse("tokenizer", "name=tiny", places[0], f"output={place / 'data/tokenizer'}", "vocabulary_size=512") == 0
    assert hanse("tokenize", "name=tiny", *places, f"output={place / 'data/shards'}") == 0
    checkpoint = place / "run/checkpoints/step-00000006"
    assert f"{checkpoint}: trained on other shards than those in {place / 'data/shards'}" in refusal()


def test_wrong_settings_that_only_transformers_or_the_data_can_tell(refusal):
    """A refused start of a new run keeps nothing that would hold the next one to its wrong settings."""
    for override, message in [
        ("model.architecture=lama", "model.architecture=lama: not a model type of transformers"),
        ("+model.settings.hidden_siz=3", "LlamaConfig has no hidden_siz"),
        ("model.settings.num_attention_heads=5", "model.settings"),
        ("data.mixture={pt: 1}", "no training shards for pt"),
        ("data.sequence_length=50000", "data.sequence_length=50000: 'de' in"),
    ]:
        assert message in refusal(override, "tokens=800000", run="new")
    said = refusal("data.sequence_length=6000", "data.mixture={de: 1, fr: 1}", "tokens=800000", run="new")
    assert "data.sequence_length=6000: 'de' in" in said


def test_a_mixture_of_what_the_shards_do_not_have_is_found_by_check(hanse, tiny_settings, place, capfd):
    settings = [*tiny_settings, "--check", f"run={place / 'new'}"]
    assert hanse("train", *settings, "data.mixture={pt: 1}") == EXIT_USER_ERROR
    assert "no training shards for pt" in capfd.readouterr().err
    assert hanse("train", *settings, "data.mixture={de: 1}") == 0
    assert hanse("train", *settings, "data.mixture={pt: 1}", "data.shards=elsewhere") == 0
    assert not (place / "new").exists()


def test_an_error_that_one_of_two_ranks_finds_is_told_once(hanse, tiny_settings, place, capfd):
    path = place / "run/checkpoints/step-00000006/model/rank-00001.safetensors"  # rank 1 verifies every second file
    flip_a_bit(path)
    before = contents(place)
    assert hanse("train", *tiny_settings, f"run={place / 'run'}") == EXIT_USER_ERROR
    text = "".join(capfd.readouterr())
    assert text.count(f"hanse train: {path}: is damaged: its sha256 is not the one in manifest.json; delete ") == 1
    assert "Traceback" not in text + (place / "run/logs/rank-00001.log").read_text()
    assert contents(place) == before
