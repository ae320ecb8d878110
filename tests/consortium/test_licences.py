"""Licences: what a person named is recognised, what does not fit is refused with the clause, what is unknown too."""

from __future__ import annotations

import pytest

from common.errors import HanseError
from consortium.papers.licences import Licence, conflicts, credit, parts, read_decisions, stated, table, unknown

APACHE = stated("Apache-2.0")


@pytest.mark.parametrize(("text", "spdx", "url"), [
    ("Apache-2.0", "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    ("apache-2.0, see https://example.org/licence.", "Apache-2.0", "https://example.org/licence."),
    ("CC-BY-SA-4.0.", "CC-BY-SA-4.0", "https://creativecommons.org/licenses/by-sa/4.0/"),
    ("Our own licence (https://example.org/own)", "", "https://example.org/own"),
])  # fmt: skip
def test_what_a_person_wrote_is_recognised(text, spdx, url):
    found = stated(text)
    assert (found.spdx, found.url) == (spdx, url)
    assert spdx or found.name == "Our own licence"


@pytest.mark.parametrize(("model", "data", "words"), [
    ("Apache-2.0", ["public-domain", "CC0-1.0", "CC-BY-4.0", "MIT", "etalab-2.0"], None),
    ("CC-BY-SA-4.0", ["CC-BY-SA-4.0", "CC-BY-SA-3.0"], None),
    ("CC-BY-NC-4.0", ["CC-BY-NC-4.0"], None),
    ("Apache-2.0", ["CC-BY-SA-4.0"], "CC-BY-SA-4.0 (section 3(b)) wants adaptations under"),
    ("CC-BY-SA-3.0", ["CC-BY-SA-4.0"], "not CC-BY-SA-3.0"),
    ("Apache-2.0", ["CC-BY-NC-4.0"], "allows no commercial use, and Apache-2.0 does"),
    ("CC-BY-NC-4.0", ["CC-BY-NC-SA-4.0"], "wants adaptations under CC-BY-NC-SA-4.0"),
    ("CC-BY-NC-ND-4.0", ["CC-BY-ND-4.0"], "allows no adaptations to be shared"),
    ("Apache-2.0", ["MIT AND CC-BY-ND-4.0"], "CC-BY-ND-4.0 (section 2(a)(1)(B))"),
    ("Apache-2.0", ["All rights reserved"], "'All rights reserved' is not among the"),
    ("Apache-2.0", [""], "not known"),
    ("Apache-2.0", [], "licences of the training data are not known"),
])  # fmt: skip
def test_what_fits_together_and_what_does_not(model, data, words):
    found = conflicts(stated(model), data, {})
    assert (words is None) == (found == [])
    assert words is None or words in found[0].why
    assert all("decisions=FILE.yaml" in one.why or "corpus=" in one.why for one in found)


def test_a_model_without_a_licence_is_refused_and_told_what_to_do():
    assert "model_licence in dossier.yaml" in conflicts(None, ["MIT"], {})[0].why


def test_a_decision_settles_one_licence_and_no_other():
    found = conflicts(APACHE, ["CC-BY-SA-4.0", "CC-BY-ND-4.0"], {"CC-BY-SA-4.0": "counsel, 2026-11-25"})
    assert [one.licence for one in found] == ["CC-BY-ND-4.0"]


def test_a_licence_of_its_own_may_follow_only_what_asks_for_nothing_of_it():
    own = Licence("Our own licence")
    assert conflicts(own, ["CC-BY-4.0", "public-domain"], {}) == []
    assert conflicts(own, ["CC-BY-SA-4.0"], {})


@pytest.mark.parametrize("text", ["", "[MIT]", "MIT:", "MIT: [a]", "MIT: ''", "1: why", "{", "MIT: \xff"])
def test_decisions_that_say_nothing_are_refused(tmp_path, text):
    path = tmp_path / "decisions.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(HanseError, match=r"decisions\.yaml: "):
        read_decisions(path)


def test_who_must_be_credited():
    assert credit(["public-domain", "CC-BY-4.0", "MIT + CC0-1.0", "unheard-of"]) == ["CC-BY-4.0", "MIT"]
    assert parts("MIT AND CC0-1.0 + public-domain") == ["MIT", "CC0-1.0", "public-domain"]


def test_every_entry_names_a_clause_and_a_known_demand():
    for name, entry in table().items():
        assert entry["asks"] in ("nothing", "attribution", "share-alike", "non-commercial", "no-derivatives"), name
        assert entry["at"], name
        assert entry["url"].startswith("https://") or not entry["id"], name
        assert all(other.lower() in table() for other in entry["into"]), name


def test_a_model_that_asks_for_nothing_cannot_come_from_what_asks_to_be_named():
    assert "asks nobody for that" in conflicts(stated("CC0-1.0"), ["MIT"], {})[0].why
    assert conflicts(stated("CC0-1.0"), ["public-domain"], {}) == []


def test_what_the_table_does_not_know_is_named():
    assert unknown(["MIT", "Mine-1.0 AND CC0-1.0"]) == ["Mine-1.0"]
