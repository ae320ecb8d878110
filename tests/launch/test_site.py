"""Site profiles: every fact sourced and dated, the schema kept, this machine recognised by its name."""

from __future__ import annotations

import re

import pytest

from common.configuration import CONFIGS
from common.errors import HanseError
from launch.site import Queue, Site, detect, facts, limits, load_site, resolve, site_names
from tests.launch.conftest import launch_config

FILES = sorted((CONFIGS / "site").glob("*.yaml"))
WANTED = {"lumi", "leonardo", "marenostrum5", "jupiter", "juwels_booster", "jureca", "meluxina", "karolina", "vega",
          "discoverer_plus", "deucalion", "jean_zay", "alps_clariden", "slurm", "local"}  # fmt: skip
LEGEND = re.compile(r"^# (\w+): .+20\d\d-[01]\d$", re.MULTILINE)


def test_every_site_of_the_consortium_has_a_profile() -> None:
    assert set(site_names()) >= WANTED


@pytest.mark.parametrize("name", site_names())
def test_a_profile_follows_the_schema(name: str) -> None:
    site = load_site(name)
    assert site.name == name
    assert site.problems() == []
    assert all(value for _, value in facts(site))


def test_a_filesystem_that_takes_nothing_is_refused() -> None:
    assert Site(name="x", storage_gb_per_second=0).problems() == [
        "site.storage_gb_per_second=0: must be above 0; null: unknown"
    ]


@pytest.mark.parametrize("name", site_names())
def test_every_value_says_where_and_when_it_is_from(name: str) -> None:
    text = (CONFIGS / "site" / f"{name}.yaml").read_text(encoding="utf-8")
    known = {*LEGEND.findall(text), "unknown"}
    for number, line in enumerate(text.splitlines(), 1):
        bare, _, comment = line.partition(" #")
        if not bare.strip() or bare.startswith("#") or bare.strip().startswith("#"):
            continue
        if re.fullmatch(r" *[\w-]+:", bare.rstrip()) or bare.startswith("name:"):
            continue  # a key whose values follow
        tags = re.findall(r"[A-Za-z0-9]+", comment)
        assert set(tags[:1]) & known, f"{name}.yaml:{number}: whence is this? {line}"
        if re.search(r": null\b", bare):
            said = tags[0] in ("unknown", "ours") or "cannot" in comment
            assert said, f"{name}.yaml:{number}: null without 'unknown'"


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["uan02"], "lumi"),
        (["login05", "login05.leonardo.local"], "leonardo"),
        (["lrdn0337"], "leonardo"),
        (["alogin2"], "marenostrum5"),
        (["jpbl-s01-02"], "jupiter"),
        (["jwlogin22", "jwlogin22.juwels"], "juwels_booster"),
        (["jwb0059"], "juwels_booster"),
        (["jrlogin05", "jrlogin05.jureca"], "jureca"),
        (["clariden-ln003"], "alps_clariden"),
        (["vglogin0002"], "vega"),
        (["acn12"], "karolina"),
    ],
)
def test_a_site_is_recognised_by_its_host_names(hosts: list[str], expected: str) -> None:
    assert detect(hosts) == [expected]


def test_an_unknown_machine_is_no_site() -> None:
    assert detect(["laptop", "laptop.example.org"]) == []


def test_auto_on_an_unknown_machine_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.site.host_names", lambda: ["laptop"])
    with pytest.raises(HanseError, match=r"none of the sites.*site=NAME.*lumi"):
        resolve(Site(name="auto"))


def test_auto_keeps_what_was_set_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.site.host_names", lambda: ["uan01"])
    by_hand = Site(name="auto", internet=True, environment={"NCCL_DEBUG": "INFO"})
    site, why = resolve(by_hand)
    assert (site.name, site.internet, site.node.gpus) == ("lumi", True, 8)
    assert site.environment["NCCL_DEBUG"] == "INFO"
    assert "NCCL_SOCKET_IFNAME" in site.environment
    assert "uan01" in why


def test_a_profile_with_an_unknown_key_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/moon.yaml").write_text("name: moon\nnode: {gpu_count: 4}\n", encoding="utf-8")
    monkeypatch.setattr("launch.site.CONFIGS", tmp_path)
    with pytest.raises(HanseError, match="gpu_count"):
        load_site("moon")


def test_a_profile_that_contradicts_itself_is_refused() -> None:
    site = Site(name="x", queue="b", queues={"a": Queue()}, scheduler="pbs", hosts=["("])
    site.step.cpu_masks = ["0x1"]
    assert len(site.problems()) == 4


def test_limits_are_told_in_words() -> None:
    assert limits(Queue(max_hours=48, max_nodes=1024)) == "48 h, 1 to 1024 nodes"
    assert limits(Queue()) == "time limit unknown, 1 or more nodes"


@pytest.mark.parametrize("name", site_names())
def test_the_grid_of_every_country_is_known(name: str) -> None:
    from train.energy.grid import country_factors

    assert load_site(name).country in {None, *country_factors()}


def test_a_launch_tells_the_trainer_where_it_stands_unless_it_was_told() -> None:
    from launch.submit import of_the_site

    assert of_the_site(launch_config("lumi")) == ["energy.country=FI"]
    assert of_the_site(launch_config("slurm")) == []
    told = launch_config("lumi")
    told.train = {"energy": {"country": "SE"}}
    assert of_the_site(told) == []
