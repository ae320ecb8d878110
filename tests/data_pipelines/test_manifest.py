"""A manifest that was edited, cut, or written by somebody who wants another file is refused with one clear line."""

import copy
import json
import re
import shutil

import pytest

from common.errors import HanseError
from data_pipelines.manifest import CorpusManifest
from data_pipelines.shards import ShardsManifest

KINDS = {"corpus": CorpusManifest, "shards": ShardsManifest}
# Where, with what and under which name a corpus was made is told, not sealed: its root is that of its data.
UNSEALED = {"corpus": ("name", "fingerprint", "config", "tools"), "shards": ("encoder",)}
ELSEWHERE = ["../outside", "/etc/passwd", "train/../../outside", "", "a\\b"]


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for number, inner in enumerate(value) for leaf in leaves(inner, (*path, number))]
    return [path]


def edited(value, path, change):
    """A copy of the manifest with one value changed."""
    value = copy.deepcopy(value)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if change == "delete":
        del holder[path[-1]]
    elif change == "retype":
        holder[path[-1]] = None
    elif change == "surrogate":
        holder[path[-1]] = "\ud800"
    else:
        old = holder[path[-1]]
        holder[path[-1]] = old + 1 if isinstance(old, int) else f"{old}0" if isinstance(old, str) else ["new"]
    return value


@pytest.fixture(scope="module")
def manifests(tiny_data):
    return {kind: json.loads((tiny_data / kind / "manifest.json").read_text(encoding="utf-8")) for kind in KINDS}


def refused(kind, folder, value):
    (folder / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(HanseError) as error:
        KINDS[kind].read(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_intact_manifest_is_read_and_written_as_it_was(tiny_data, tmp_path, kind, manifests):
    manifest = KINDS[kind].read(tiny_data / kind)
    assert manifest.merkle_root == manifests[kind]["merkle_root"]
    object.__setattr__(manifest, "folder", tmp_path)
    manifest.write()
    assert (tmp_path / "manifest.json").read_bytes() == (tiny_data / kind / "manifest.json").read_bytes()


@pytest.mark.parametrize("change", ["edit", "delete", "retype", "surrogate"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_of_any_sealed_value_is_noticed(tmp_path, kind, manifests, change):
    paths = [path for path in leaves(manifests[kind]) if path[0] not in UNSEALED[kind]]
    assert len(paths) > 40
    for path in paths:
        if (kind, change) == ("shards", "delete") and "sources" in path:
            continue  # then they are read from the sidecar, as of shards from before manifests told them
        message = refused(kind, tmp_path, edited(manifests[kind], path, change))
        assert re.search(r"the manifest was edited|not a manifest of hanse|describes no", message), (path, message)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [[], None, "text", {}, {"format": "hanse.other/1"}])
def test_what_is_no_manifest_is_said_to_be_none(tmp_path, kind, value):
    assert "not a manifest of hanse." in refused(kind, tmp_path, value)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(
        HanseError, match=r"manifest\.json: no (corpus|shards) manifest \('hanse \w+' writes one\) here"
    ):
        KINDS[kind].read(tmp_path)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_shard_elsewhere_is_refused_though_the_manifest_is_sealed(tiny_data, tmp_path, name):
    good = ShardsManifest.read(tiny_data / "shards")
    shards = [type(good.shards[0])(**{**vars(good.shards[0]), "name": name}), *good.shards[1:]]
    ShardsManifest(**{**vars(good), "shards": shards, "folder": tmp_path}).write()
    with pytest.raises(HanseError, match="not the name of a file in this folder"):
        ShardsManifest.read(tmp_path)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_corpus_file_elsewhere_is_refused_though_the_manifest_is_sealed(tiny_data, tmp_path, name):
    good = CorpusManifest.read(tiny_data / "corpus")
    CorpusManifest(
        **{**vars(good), "files": {**good.files, name: next(iter(good.files.values()))}, "folder": tmp_path}
    ).write()
    with pytest.raises(HanseError, match="not the name of a file in this folder"):
        CorpusManifest.read(tmp_path)


def test_a_language_that_is_a_path_is_refused(tiny_data, tmp_path):
    good = CorpusManifest.read(tiny_data / "corpus")
    tally = type(good.sources["text_fr"])(**{**vars(good.sources["text_fr"]), "language": "../../fr"})
    CorpusManifest(**{**vars(good), "sources": {**good.sources, "text_fr": tally}, "folder": tmp_path}).write()
    with pytest.raises(HanseError, match="not the name of a file in this folder"):
        CorpusManifest.read(tmp_path)


@pytest.mark.parametrize(("kind", "file"), [("shards", "train/fr.bin"), ("corpus", "documents/fr.parquet")])
def test_a_file_that_is_a_link_out_of_the_folder_is_refused(tiny_data, tmp_path, kind, file):
    shutil.copytree(tiny_data / kind, tmp_path / kind)
    (tmp_path / kind / file).rename(tmp_path / "elsewhere")
    (tmp_path / kind / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HanseError, match="not the name of a file in this folder"):
        KINDS[kind].read(tmp_path / kind)


def test_a_kept_language_without_a_file_is_refused(tiny_data, tmp_path):
    good = CorpusManifest.read(tiny_data / "corpus")
    files = {name: entry for name, entry in good.files.items() if name != "documents/it.parquet"}
    CorpusManifest(**{**vars(good), "files": files, "folder": tmp_path}).write()
    with pytest.raises(HanseError, match=r"describes no documents/it\.parquet"):
        CorpusManifest.read(tmp_path)


def test_languages_add_up_their_sources(tiny_data):
    good = CorpusManifest.read(tiny_data / "corpus")
    sources = {
        **good.sources,
        "more": type(good.sources["text_fr"])("fr", "CC0-1.0", 10, 8, 100, 80, 1, 10, {"empty": 2}),
    }
    tally = CorpusManifest(**{**vars(good), "sources": sources}).languages["fr"]
    french = good.sources["text_fr"]
    assert tally.documents_in == french.documents_in + 10
    assert tally.bytes_kept == french.bytes_kept + 80
    assert tally.removed["empty"] == french.removed.get("empty", 0) + 2
    assert tally.license == "public-domain + CC0-1.0"


def test_the_root_names_the_data_not_how_they_were_made(tiny_data):
    corpus = CorpusManifest.read(tiny_data / "corpus")
    assert (
        CorpusManifest(**{**vars(corpus), "name": "other", "config": {}, "tools": {}}).merkle_root == corpus.merkle_root
    )
    shards = ShardsManifest.read(tiny_data / "shards")
    assert ShardsManifest(**{**vars(shards), "encoder": "other"}).merkle_root == shards.merkle_root
