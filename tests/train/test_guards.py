"""A loss or gradient that is not finite ends a run before its weights are touched, and it says where that came from."""

import re

import pytest

from tests.train.multirank import losses, train_cases
from train.run_folder import complete_steps


@pytest.mark.slow
def test_not_a_number_stops_before_the_weights_and_names_parameter_and_documents(tiny_settings, tmp_path):
    kinds = [("fp32", 1), ("fp32", 3), ("bf16", 1), ("bf16", 2)]
    runs = {f"{precision}-{stage}": tmp_path / f"{precision}-{stage}" for precision, stage in kinds}
    cases = {
        name: [*tiny_settings, f"run={run}", f"engine.precision={name[:4]}", f"engine.zero_stage={name[-1]}",
               "data.sequence_length=16", f"tokens={12 * 8 * 16}", "evaluate.tokens_per_language=64",
               "checkpoint.every_steps=3"]
        for name, run in runs.items()
    }  # fmt: skip
    told = train_cases(tmp_path / "ranks", 2, cases, poison=5)  # the program holds that the weights are as before
    for name, run in runs.items():
        said = told[name]
        assert isinstance(said, str)
        assert said.startswith("step 5: the loss is nan and the norm of its gradient inf: on rank 1 no finite loss for")
        # 8 sequences a step, 2 a micro-batch: those of rank 1 are 34, 35 and 38, 39; the second of each is poisoned
        assert re.findall(r"sample (\d+) \(", said) == ["35", "39"]
        assert re.search(r"\((fr|de|es|it): \S+, documents \d+ to \d+\)", said)
        assert "first parameter with no finite gradient, from the loss backwards: model." in said
        assert "Weights were not touched" in said
        assert sorted(losses(run)) == [1, 2, 3, 4]
        assert complete_steps(run / "checkpoints")[-1:] in ([3], [])  # it may have been in the making
