"""Two sites and an office, three keys: train, contribute, accept, merge, go on, reproduce elsewhere, revoke.

The tutorial docs/tutorials/three-parties.md takes the same way, on the demo's text.
"""

from __future__ import annotations

import json

import pytest

from common.errors import EXIT_DONE
from common.files import sha256_file
from consortium.index import Registry

pytestmark = pytest.mark.slow


@pytest.fixture
def parties(hanse, tmp_path, monkeypatch):
    """An empty folder to be in, with the keys of an office, Paris and Roma, enrolled in ``registry/``."""
    monkeypatch.chdir(tmp_path)
    for name in ("office", "paris", "roma"):
        assert hanse("key", f"new={name}.key") == EXIT_DONE
    verb = ["registry", "registry=registry", "key=office.key"]
    assert hanse(*verb, "create=hansa", "holder=Office", "policy.reviews=1") == EXIT_DONE
    for name in ("paris", "roma"):
        roles = "roles=[contributor,reviewer]"
        assert hanse(*verb, f"enrol={name}.pub", f"holder={name.title()}", roles) == EXIT_DONE
    assert hanse(*verb, "enrol=office.pub", "holder=Office", "roles=[maintainer,contributor]") == EXIT_DONE
    return tmp_path


def test_three_parties_train_one_model_and_take_part_of_it_back(parties, hanse, tiny_settings, tiny_data, capfd):
    settings = [*tiny_settings, "determinism=D2", "checkpoint.every_steps=12", "evaluate.every_steps=12"]

    def train(run, *more):
        assert hanse("train", f"run={run}", *settings, *more) == EXIT_DONE
        return run

    def enter(name, by, reviewer, *what):
        """Contribute and accept; the model's checkpoint in the registry."""
        papers = ["license=Apache-2.0", "opt_out_date=2026-11-01", "data_licenses=[CC0-1.0]", "tokens_per_language=512"]
        assert hanse("contribute", "registry=registry", f"name={name}", f"key={by}.key", *papers, *what) == EXIT_DONE
        (incoming,) = parties.glob(f"registry/incoming/{name}-*")
        accept = ["accept", "registry=registry", f"contribution={incoming}", f"key={reviewer}.key", "root=office.pub"]
        assert hanse(*accept, f"data={tiny_data / 'shards'}") == EXIT_DONE
        (model,) = parties.glob(f"registry/models/{name}/*")
        return model / "checkpoint"

    base = enter("base", "paris", "roma", f"run={train('paris/base', 'ranks=1')}")
    init = f"init_from={base}"
    paris = enter("paris", "paris", "roma", f"run={train('paris/second', init, 'seed=1', 'ranks=1')}")
    roma = enter("roma", "roma", "paris", f"run={train('roma/second', init, 'seed=2', 'engine.zero_stage=2')}")
    assert json.loads((paris / "manifest.json").read_text())["parents"] == [
        {"manifest_sha256": sha256_file(base / "manifest.json"), "role": "init"}
    ]

    assert hanse("average", "method=diloco", f"base={base}", f"inputs=[{paris},{roma}]", "output=merged") == EXIT_DONE
    data = [f"data={tiny_data / 'shards'}", f"tokenizer={tiny_data / 'tokenizer'}"]
    merged = enter("merged", "office", "paris", "checkpoint=merged", *data)
    train("roma/third", f"init_from={merged}", "seed=3", "ranks=1")
    capfd.readouterr()
    assert hanse("verify", "run=roma/third", "parents=[registry]") == EXIT_DONE
    assert f"init {merged.relative_to(parties)}" in capfd.readouterr().out

    # Another site computes Paris' part again, on another number of ranks and stage: to the last bit, and signs for it.
    replay = ["run=paris/second", "to_step=12", "output=replay", "ranks=2", "zero_stage=3", "key=roma.key"]
    assert hanse("reproduce", *replay) == EXIT_DONE
    assert "steps 1 to 12: the same to the last bit" in capfd.readouterr().out
    assert json.loads((parties / "replay/reproduction.json").read_text())["outcome"] == "bitwise"

    # An author asks for erasure: what Paris trained goes, and what was merged from it; the rest stays.
    sha256 = sha256_file(paris / "manifest.json")
    assert hanse("registry", "registry=registry", "key=office.key", f"revoke={sha256}", "reason=erasure") == EXIT_DONE
    told = capfd.readouterr().out
    assert "2 models that nobody may build on any more" in told
    assert hanse("lineage", "registry=registry", "output=lineage.html") == EXIT_DONE
    assert "2 in doubt" in capfd.readouterr().out
    assert len(Registry(parties / "registry").register.models) == 4
