"""hanse: train European language models that can be owned, explained and reproduced.

The table of contents. One line a verb; a verb's code is imported only when the verb is called.
"""

from __future__ import annotations

import sys

from common.verbs import Verb, main

VERBS = {
    verb.name: verb
    for verb in (
        Verb("corpus", "data_pipelines.config:CorpusConfig", "data_pipelines.corpus:run",
             "sources -> curated Parquet, what was removed and why, manifest"),
        Verb("tokenizer", "data_pipelines.config:TokenizerConfig", "data_pipelines.tokenizer:run",
             "curated corpus -> tokenizer.json and its fertility a language"),
        Verb("tokenize", "data_pipelines.config:TokenizeConfig", "data_pipelines.tokenize:run",
             "curated corpus + tokenizer -> token shards and manifest"),
        Verb("train", "train.config:TrainConfig", "train.start:run",
             "token shards -> run folder; goes on by itself where a checkpoint is"),
        Verb("export", "train.config:ExportConfig", "train.export:run",
             "checkpoint -> Hugging Face folder that transformers loads"),
        Verb("generate", "train.config:GenerateConfig", "train.generate:run",
             "checkpoint + prompts -> text"),
        Verb("report", "train.config:ReportConfig", "train.report:run",
             "run folder -> one self-contained HTML page"),
        Verb("launch", "launch.config:LaunchConfig", "launch.submit:run",
             "site + experiment -> a Slurm job that goes on until its tokens are used up"),
        Verb("status", "launch.config:StatusConfig", "launch.watch:run",
             "run folders + Slurm's queue -> what every job is doing, and why one waits"),
        Verb("sync", "launch.config:SyncConfig", "launch.sync:run",
             "offline wandb runs, and checkpoints if asked -> where there is internet"),
        Verb("whosaw", "consortium.config:WhosawConfig", "consortium.whosaw:run",
             "document, URL or domain -> the steps and checkpoints that saw it"),
        Verb("verify", "consortium.config:VerifyConfig", "consortium.verify:run",
             "run folder -> what in it was checked, and what could not be"),
        Verb("reproduce", "consortium.config:ReproduceConfig", "consortium.reproduce:run",
             "run folder + checkpoint -> a segment computed again, and where it first differs"),
        Verb("dossier", "consortium.config:DossierConfig", "consortium.dossier.verb:run",
             "run folder + answers -> the AI Act's documents, every value with its evidence"),
        Verb("key", "consortium.config:KeyConfig", "consortium.keys:run",
             "a key to seal with; shows the public part and its fingerprint"),
        Verb("seal", "consortium.config:SealConfig", "consortium.seal:run",
             "folder + key -> signed statement of what it holds; checks one"),
    )
}  # fmt: skip


def cli() -> None:
    """The console command."""
    sys.exit(main(VERBS, sys.argv[1:]))


if __name__ == "__main__":
    cli()
