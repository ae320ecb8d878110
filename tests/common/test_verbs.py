"""A typo costs one line, not a traceback; all problems come at once; the help tells everything."""

import dataclasses
import errno
import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from common.configuration import CHOICE, CONFIGS, sort_arguments
from common.errors import EXIT_CRASH, EXIT_DONE, EXIT_USER_ERROR
from common.verbs import Verb, main
from hanse import VERBS

HANSE = [sys.executable, "-c", "import hanse; hanse.cli()"]


@pytest.fixture
def fails(hanse, capfd):
    """Run a verb that must fail on its input; the lines of its one message."""

    def run(*arguments):
        assert hanse(*arguments) == EXIT_USER_ERROR
        out, err = capfd.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return err.splitlines()

    return run


def process(command, folder):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_console_command_exits_with_2_and_one_line(tmp_path):
    done = process([*HANSE, "corpus", "experiment=demo", "min_charcters=3"], tmp_path)
    assert (done.returncode, done.stdout) == (EXIT_USER_ERROR, "")
    assert done.stderr == "hanse corpus: min_charcters: no such key; did you mean 'select.min_characters'?\n"
    assert os.listdir(tmp_path) == []  # Hydra would leave folders of its own


def test_help_imports_nothing_heavy(tmp_path):
    script = (
        "import sys\nfrom hanse import VERBS\nfrom common.verbs import main\n"
        "for verb in VERBS: assert main(VERBS, [verb, '--help']) == 0\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'datasets', 'pyarrow', 'numpy', 'hydra'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = process([sys.executable, "-c", script], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_overview_lists_every_verb(hanse, capsys):
    for arguments in ([], ["--help"], ["help"]):
        assert hanse(*arguments) == EXIT_DONE
        out = capsys.readouterr().out
        assert all(verb.line in out for verb in VERBS.values())


def test_an_unknown_verb_names_the_nearest(fails):
    assert fails("tokenizr") == ["hanse: no verb 'tokenizr'; did you mean 'hanse tokenizer'? (hanse --help lists them)"]
    assert fails("xyz") == ["hanse: no verb 'xyz' (hanse --help lists them)"]


@pytest.mark.parametrize("name", VERBS)
def test_help_explains_every_key_of_a_verb(name, hanse, capsys):
    assert hanse(name, "--help") == EXIT_DONE
    out = capsys.readouterr().out
    module, schema = VERBS[name].schema.split(":")
    groups = {line.split("=")[0] for line in out.splitlines() if "= " in line}  # chosen, not set
    explained = groups | {f"{group}s" for group in groups} | {line.split(":")[0] for line in out.splitlines()}
    assert {field.name for field in dataclasses.fields(getattr(importlib.import_module(module), schema))} <= explained
    assert "defaults:" not in out


def test_help_lists_choices_and_those_of_a_config_folder(hanse, capsys, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "mine.yaml").write_text("# @package sources.mine\n")
    (tmp_path / "experiment" / "voyage").mkdir(parents=True)
    (tmp_path / "experiment" / "voyage" / "corpus.yaml").write_text("# @package _global_\n")
    assert hanse("corpus", "--help", "--config-dir", tmp_path) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    sources = next(line for line in lines if line.startswith("source="))
    assert {"bible_fr", "bible_it", "local", "mine"} <= set(sources.removeprefix("source=").replace(",", " ").split())
    experiments = next(line for line in lines if line.startswith("experiment="))
    assert experiments.split()[1:] == ["demo,", "packages,", "voyage"]


def test_all_problems_of_the_arguments_come_at_once(fails):
    lines = fails("corpus", "experiment=dmeo", "min_charcters=3", "validation_fraction=much",
                  "source=[bible_fr,bible_xx]", "name=good")  # fmt: skip
    assert lines == [
        "hanse corpus: 4 problems in the configuration",
        "  experiment=dmeo: no such choice; did you mean 'demo'?",
        "  min_charcters: no such key; did you mean 'select.min_characters'?",
        "  validation_fraction=much: validation_fraction: Value 'much' of type 'str' could not be converted to Float",
        "  source=bible_xx: no such choice; did you mean 'bible_it'?",
    ]


def test_all_problems_of_the_values_come_at_once(fails):
    lines = fails("corpus", "experiment=demo", "name=../x", "select.min_characters=0", "validation_fraction=1",
                  "sources.bible_fr.language=French", "sources.bible_de.license=''")  # fmt: skip
    assert lines[0] == "hanse corpus: 5 problems in the configuration"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "name", "sources.bible_fr.language", "sources.bible_de.license", "select.min_characters", "validation_fraction",
    ]  # fmt: skip


def test_an_experiment_of_other_verbs_says_which(fails):
    (line,) = fails("launch", "site=lumi", "experiment=demo")
    assert line.startswith("hanse launch: experiment=demo: no such choice; it has files for corpus, ")
    assert line.endswith("only; say train.experiment=demo")


def test_an_experiment_whose_values_nothing_would_read_is_refused(fails, tmp_path):
    """Without its first line Hydra puts them below ``experiment``, and the run is that of the defaults."""
    for verb in ("train", "tokenize"):
        path = tmp_path / f"experiment/mine/{verb}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("name: mine\nnam: x\n")
        (line,) = fails(verb, "--config-dir", str(tmp_path), "experiment=mine", "name=x")
        assert line.startswith(f"hanse {verb}: experiment")
        assert line.endswith("its first line must be '# @package _global_', or none of its values count")


def test_what_a_person_can_cause_below_a_verb_is_one_line(capfd):
    """A folder that takes no files, and a login node's environment without torch."""

    def ended(error: Exception) -> tuple[int, str]:
        def load(reference: str) -> object:
            raise error

        verb = Verb("tokenize", "data_pipelines.config:TokenizeConfig", "", "")
        object.__setattr__(verb, "load", load)
        return main({"tokenize": verb}, ["tokenize", "name=x"]), capfd.readouterr().err

    code, said = ended(OSError(errno.EROFS, "Read-only file system", "/data/x"))
    assert (code, said) == (2, "hanse tokenize: /data/x: Read-only file system; make room, or name another folder\n")
    code, said = ended(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert code == 2
    assert "has no torch: this verb needs hanse with all it depends on" in said
    for bug in (ModuleNotFoundError("No module named 'x'", name="x"), OSError(errno.EIO, "I/O error", "/data/x")):
        code, said = ended(bug)
        assert code == EXIT_CRASH
        assert said.startswith("Traceback")


def test_keys_that_must_be_set_are_all_named(fails):
    assert fails("corpus", "source=local") == [
        "hanse corpus: 4 problems in the configuration",
        "  name: must be set (name=...)",
        "  sources.local.reader: must be set (sources.local.reader=...)",
        "  sources.local.language: must be set (sources.local.language=...)",
        "  sources.local.license: must be set (sources.local.license=...)",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo"], "demo: neither key=value nor a flag; --help lists both"),
        (["name=x", "--config-dir", "/nowhere"], "--config-dir /nowhere: no such folder"),
        (["name=x", "--config-dir=/nowhere"], "--config-dir /nowhere: no such folder"),
        (["name=x", "source=[bible_fr"],
         "source=[bible_fr: cannot be read; a list is written '[a, b]', a mapping '{a: 1, b: 2}', and in them text "
         "with other characters stands in quotes inside those of the shell"),
        (["name=it's; x"],
         "name: it's; x holds a character that must be in quotes, and the shell takes the outer ones away: "
         """'name="it'\\''s; x"'"""),
        (["na;me=x"], "na;me=x: cannot be read; a key is letters, digits, _ and dots; text with other characters "
         "stands in quotes inside those of the shell"),
        (["name=x", "source=bible_fr", "sources.bible_fr.lnguage=fr"],
         "sources.bible_fr.lnguage: no such key; did you mean 'sources.bible_fr.language'?"),
        (["name=x", "zzzz=1"], "zzzz: no such key; hanse corpus --help lists the keys"),
        (["name=x"], "sources: none; choose some with source=[NAME,...] (configs/source/ lists them)"),
        (["name=x", "experiment=nothing"], "experiment=nothing: no such choice; there are demo, packages"),
    ],
)  # fmt: skip
def test_one_problem_is_one_line(fails, arguments, message):
    assert fails("corpus", *arguments) == [f"hanse corpus: {message}"]


def test_text_in_quotes_as_they_were_shown_is_taken(hanse, capsys):
    shown = shlex.split("""'name="it'\\''s; x"'""")
    assert hanse("corpus", "experiment=demo", "--cfg", "job", *shown) == EXIT_DONE
    assert "name: it's; x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("zero", "did you mean 'engine.zero_stage'?"),
        ("every_steps", "did you mean 'ema.every_steps' or 'evaluate.every_steps' or 'checkpoint.every_steps'?"),
        ("evaluate.task", "did you mean 'evaluate.tasks'?"),
        ("batch.x", "batch has global_batch_size, micro_batch_size"),
        ("nodse", "hanse train --help lists the keys"),
    ],
)
def test_a_key_that_is_not_there_brings_those_that_may_have_been_meant(fails, key, hint):
    assert fails("train", "experiment=demo", f"{key}=3") == [f"hanse train: {key}: no such key; {hint}"]


def test_a_new_key_of_a_mapping_is_shown_as_it_must_be_written(fails):
    asked = "data.mixture.de: a new key of a mapping is written 'data.mixture={de: 1}'"
    assert fails("train", "name=x", "data.mixture.de=1") == [f"hanse train: {asked}"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cfg", "job", "name=x", "select.min_characters=7"],
        ["name=x", "--cfg", "job", "select.min_characters=7"],
        ["name=x", "select.min_characters=7", "--cfg=job"],
    ],
)
def test_flags_and_keys_may_stand_in_any_order(hanse, capsys, arguments):
    assert hanse("corpus", *arguments) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert {"name: x", "  min_characters: 7"} <= set(lines)


def test_a_group_of_another_verb_is_chosen_and_changed_at_once():
    """As keys of one dictionary the second would take the place of the first, and another model be trained."""
    both = ["train.model=llama-3m", "train.model.attention=sdpa", "train.model.init.std=small", "train.name=x"]
    _, found, _ = sort_arguments("plan", both)
    assert found == [f"train.model.{CHOICE}=llama-3m", *both[1:]]
    assert sort_arguments("train", ["model=llama-3m", "model.attention=sdpa"])[1] == [
        "model=llama-3m", "model.attention=sdpa"]  # fmt: skip


def test_checking_prints_what_would_run_or_all_that_is_wrong_and_runs_nothing(
    hanse, fails, capfd, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert hanse("corpus", "--check", "experiment=demo", "name=x") == EXIT_DONE
    assert "output: data/x/corpus" in capfd.readouterr().out.splitlines()
    assert len(fails("corpus", "experiment=demo", "--check", "select.min_characters=0", "batch_megabytes=0")) == 3
    assert os.listdir(tmp_path) == []


def test_an_experiment_of_a_config_folder_is_used_and_checked(hanse, fails, capfd, tmp_path):
    (tmp_path / "experiment" / "voyage").mkdir(parents=True)
    (tmp_path / "experiment" / "voyage" / "corpus.yaml").write_text("# @package _global_\nname: voyage\n")
    assert hanse("corpus", "--config-dir", tmp_path, "experiment=voyage", "--cfg", "job") == EXIT_DONE
    assert "name: voyage" in capfd.readouterr().out.splitlines()
    assert fails("corpus", "--config-dir", tmp_path, "experiment=voyag", "split_sed=1")[1:] == [
        "  experiment=voyag: no such choice; did you mean 'voyage'?",
        "  split_sed: no such key; did you mean 'split_seed'?",
    ]


def test_unknown_flags_are_refused(hanse, capfd):
    assert hanse("corpus", "name=x", "--bogus") == EXIT_USER_ERROR
    assert "unrecognized arguments: --bogus" in capfd.readouterr().err


def test_a_bug_shows_its_traceback_and_another_exit_code(capfd):
    verb = Verb("tokenize", "data_pipelines.config:TokenizeConfig", "math:sqrt", "")
    assert main({"tokenize": verb}, ["tokenize", "name=x"]) == EXIT_CRASH
    assert "TypeError: must be real number" in capfd.readouterr().err


def test_interrupting_is_not_an_error_with_a_traceback(capfd, monkeypatch):
    from data_pipelines import tokenize

    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenize, "run", interrupted)
    assert main(VERBS, ["tokenize", "name=x"]) == 130
    assert capfd.readouterr().err == "hanse tokenize: interrupted\n"


def test_the_exit_code_of_a_verb_comes_through(monkeypatch):
    from data_pipelines import tokenize

    seen = []
    monkeypatch.setattr(tokenize, "run", lambda config: seen.append(config.name) or 75)
    assert main(VERBS, ["tokenize", "name=x"]) == 75
    assert main(VERBS, ["tokenize", "--multirun", "name=x,y"]) == 75
    assert seen == ["x", "x", "y"]


def test_no_combination_runs_when_one_of_them_is_wrong(monkeypatch, capfd, tmp_path):
    from data_pipelines import tokenize

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tokenize, "run", lambda config: pytest.fail("it ran"))
    assert main(VERBS, ["tokenize", "--multirun", "name=x,..", "parity_documents=1,0"]) == EXIT_USER_ERROR
    said = capfd.readouterr().err
    assert said.count("'..' cannot name a folder") == 1
    assert said.count("parity_documents: 0") == 1
    assert not any(tmp_path.iterdir()), "Hydra writes nothing either"


def test_offline_and_silent_unless_asked_for(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    main(VERBS, ["--help"])
    assert (os.environ["WANDB_MODE"], os.environ["DO_NOT_TRACK"]) == ("online", "1")


def test_every_shipped_source_composes(hanse, capsys):
    """(Experiments: tests/test_house.py.)"""
    sources = sorted(path.stem for path in Path(CONFIGS).glob("source/*.yaml"))
    assert hanse("corpus", "name=x", f"source=[{','.join(sources)}]", "--cfg", "job") == EXIT_DONE
    assert {f"  {source}:" for source in sources} <= set(capsys.readouterr().out.splitlines())
