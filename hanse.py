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
        Verb("plan", "train.verb_config:PlanConfig", "train.plan:run",
             "training configuration -> memory a GPU, time, GPU-hours and energy, before any is asked for"),
        Verb("train", "train.config:TrainConfig", "train.start:run",
             "token shards -> run folder; goes on by itself where a checkpoint is"),
        Verb("evaluate", "train.verb_config:EvaluateVerbConfig", "train.score:run",
             "checkpoint -> bits per byte and accuracy a language and source; tasks"),
        Verb("checkpoint", "train.checkpoint_config:CheckpointVerbConfig", "train.checkpoint_verb:run",
             "checkpoint -> what it holds, whether it is sound; to and from DeepSpeed's layout and Megatron's"),
        Verb("export", "train.verb_config:ExportConfig", "train.export:run",
             "checkpoint -> Hugging Face folder that transformers loads"),
        Verb("generate", "train.verb_config:GenerateConfig", "train.generate:run",
             "checkpoint + prompts -> text"),
        Verb("report", "train.verb_config:ReportConfig", "train.report.verb:run",
             "run folder, or corpus -> one self-contained HTML page"),
        Verb("launch", "launch.config:LaunchConfig", "launch.submit:run",
             "site + experiment -> a Slurm job that goes on until its tokens are used up",
             sweep="launch.sweep:SweepLaunch"),
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
        Verb("dossier", "consortium.dossier.config:DossierConfig", "consortium.dossier.verb:run",
             "run folder + answers -> the AI Act's documents, every value with its evidence"),
        Verb("key", "consortium.config:KeyConfig", "consortium.keys:run",
             "a key to seal with; shows the public part and its fingerprint"),
        Verb("seal", "consortium.config:SealConfig", "consortium.seal:run",
             "folder + key -> signed statement of what it holds; checks one"),
        Verb("average", "consortium.config:AverageConfig", "consortium.average:run",
             "checkpoints -> one model: averages, SLERP, TIES, the outer step of DiLoCo"),
        Verb("registry", "consortium.config:RegistryConfig", "consortium.registry:run",
             "a consortium's keys and accepted checkpoints: begin, enrol, revoke, show"),
        Verb("contribute", "consortium.config:ContributeConfig", "consortium.contribute:run",
             "checkpoint + key -> sealed contribution, for others to accept"),
        Verb("accept", "consortium.config:AcceptConfig", "consortium.accept:run",
             "contribution -> every check, a review, and a place in the registry"),
        Verb("lineage", "consortium.config:LineageConfig", "consortium.lineage:run",
             "folders or a registry -> what was made from what, as a tree and as a page"),
        Verb("papers", "consortium.dossier.config:PapersConfig", "consortium.papers.verb:run",
             "run evidence -> model card, ML-BOM, Croissant, RO-Crate, citation"),
        Verb("release", "consortium.dossier.config:ReleaseConfig", "consortium.release:run",
             "run + dossier -> the folder to publish, or why not to"),
    )
}  # fmt: skip


def cli() -> None:
    """The console command."""
    sys.exit(main(VERBS, sys.argv[1:]))


if __name__ == "__main__":
    cli()
