"""Moments on a disk are the moments of a run that holds them in memory, and its checkpoints are whole."""

import pytest

from common.errors import EXIT_DONE, EXIT_GO_ON, HanseError
from tests.train.multirank import losses, train_cases
from train import ops
from train.checkpoint import Checkpoint
from train.run_folder import folder_of
from train.state_hash import state_of_checkpoint

STEPS, SAVED = 6, 3
LARGE = [  # a rank's share of the matrices is above the megabyte from which on states are swapped, of the norms below
    "model.settings.hidden_size=256", "model.settings.intermediate_size=512", "data.sequence_length=16",
    f"tokens={STEPS * 8 * 16}", f"checkpoint.every_steps={SAVED}", "checkpoint.keep_last=9",
    "evaluate.tokens_per_language=64", "evaluate.every_steps=100", "engine.zero_stage=3",
]  # fmt: skip


def test_a_machine_without_libaio_is_told_what_is_missing(monkeypatch):
    monkeypatch.setattr(ops, "compile_op", lambda name: False)
    with pytest.raises(HanseError, match="headers of libaio"):
        ops.prepare_swapping()


@pytest.mark.slow
def test_moments_on_a_disk_are_those_in_memory_and_go_on_from_a_checkpoint_either_way(tiny_settings, tmp_path):
    if not ops.compile_op(ops.SWAPPING):
        pytest.skip("DeepSpeed's async_io cannot be compiled here")
    disk = ["engine.offload_optimizer=nvme", f"engine.nvme_path={tmp_path / 'disk'}"]
    kinds = {
        "memory": ["engine.offload_optimizer=cpu"], "disk": disk, "moved": [*disk, f"until_step={SAVED}"],
        "back": ["engine.offload_optimizer=cpu", f"until_step={SAVED}"],
    }  # fmt: skip
    cases = {name: [*tiny_settings, *LARGE, f"run={tmp_path / name}", *more] for name, more in kinds.items()}
    cases["moved on"] = [*cases["moved"][: -len(kinds["moved"])]]
    cases["back on"] = [*cases["back"][: -len(kinds["back"])], *disk]
    told = train_cases(tmp_path / "ranks", 2, cases)
    assert [told[name] for name in kinds] == [EXIT_DONE, EXIT_DONE, EXIT_GO_ON, EXIT_GO_ON]
    assert told["moved on"] == told["back on"] == EXIT_DONE
    swapped = [path.stat().st_size for path in (tmp_path / "disk").rglob("*.swp")]
    assert max(swapped) >= 1 << 20
    expected = state_of_checkpoint(Checkpoint(folder_of(tmp_path / "memory" / "checkpoints", STEPS)))
    for name in ("disk", "back"):
        assert losses(tmp_path / name) == losses(tmp_path / "memory")
        found = state_of_checkpoint(Checkpoint(folder_of(tmp_path / name / "checkpoints", STEPS)))
        assert found.tensors == expected.tensors
    first, moved = losses(tmp_path / "memory"), losses(tmp_path / "moved")
    assert max(abs(moved[step] / first[step] - 1) for step in first) < 1e-5
