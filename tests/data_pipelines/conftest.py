"""Small real sources, and the corpus made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_pipelines import corpus
from data_pipelines.config import AnnotateConfig, CorpusConfig, SelectConfig, SourceConfig
from data_pipelines.manifest import CorpusManifest

TEXTS = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def prose() -> Callable[[str], list[str]]:
    """``prose("fr")``: 48 passages of some 400 characters; the n-th is the same passage in every language."""
    return lambda language: (TEXTS / f"{language}.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """``write_jsonl("fr.jsonl", records)``: records, or ready lines of bytes, as a file in the test's folder."""

    def write(name: str, records: Iterable[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def local() -> Callable[..., SourceConfig]:
    """``local(path, "fr", "parquet", text_field="body")``: a source of files."""

    def make(path: Path | str, language: str = "fr", reader: str = "jsonl", **settings: Any) -> SourceConfig:
        return SourceConfig(reader=reader, language=language, license="CC0-1.0", path=str(path), **settings)

    return make


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., CorpusManifest]:
    """``make_corpus({"web": source}, select={"min_characters": 1})``: run the verb; its manifest, read back."""

    def make(
        sources: dict[str, SourceConfig], select: dict[str, Any] | None = None, annotate: dict[str, Any] | None = None,
        **settings: Any,
    ) -> CorpusManifest:  # fmt: skip
        values = {key: str(tmp_path / key) for key in ("corpus", "annotated", "downloads")}
        values = {"name": "test", "processes": 1, "output": values.pop("corpus"), **values}
        config = CorpusConfig(
            sources=sources, select=SelectConfig(**select or {}), annotate=AnnotateConfig(**annotate or {}),
            **{**values, **settings},
        )  # fmt: skip
        assert config.problems() == []
        corpus.run(config)
        return CorpusManifest.read(Path(config.output))

    return make


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., list[dict[str, Any]]]:
    """``rows_of(manifest, "removed", "fr")``: one side of a corpus; no rows where there is no file."""

    def read(manifest: CorpusManifest, side: str, language: str = "fr") -> list[dict[str, Any]]:
        path = manifest.folder / side / f"{language}.parquet"
        return pq.read_table(path).to_pylist() if path.exists() else []

    return read
