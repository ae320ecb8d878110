"""``hanse generate``: checkpoint + prompts -> text. The same command writes the same text again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from rich.text import Text
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from common.errors import HanseError
from common.terminal import console, count, next_step, say
from train.model import parameter_counts
from train.trained import Trained, open_trained
from train.verb_config import GenerateConfig


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and where it came from."""

    text: str
    label: str


def run(config: GenerateConfig) -> None:
    """Continue every prompt and print it."""
    trained = open_trained(config.run, config.step, config.shards, config.tokenizer, weights=config.weights)
    prompts = find_prompts(config, trained)
    ids = [encode(prompt, trained) for prompt in prompts]
    model = trained.model()
    nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    how = f"temperature {config.temperature}, top_p {config.top_p}" if config.temperature else "the likeliest token"
    say(f"{trained.config.name}: {count(parameter_counts(model)[0])} parameters after step {trained.step}; "
        f"{how}, seed {config.seed}")  # fmt: skip
    for prompt, tokens in zip(prompts, ids, strict=True):
        room = min(config.max_new_tokens, trained.config.data.sequence_length - len(tokens))
        written = generate(model, tokens, room, config, trained.shards.end_of_document_id)
        continuation = trained.tokenizer.decode(written)
        say(f"\n{prompt.label}")
        text = Text.assemble((_shown(prompt.text), "bold"), _shown(continuation))
        for line in text.wrap(console, max(console.width - 2, 20)):
            line.rstrip()
            console.print(Text("  ") + line)
    if not config.prompts:
        say("")
        next_step(f"hanse generate run={config.run} 'prompts=[\"...\"]'")


def find_prompts(config: GenerateConfig, trained: Trained) -> list[Prompt]:
    """The prompts of the configuration, or the first words of a validation document in each language.

    Raises:
        HanseError: there are neither.
    """
    if config.prompts:
        return [Prompt(text, f"prompt {number}") for number, text in enumerate(config.prompts, 1)]
    found = []
    for language in trained.validation_languages:
        text = trained.tokenizer.decode(trained.validation_document(language, config.seed).tolist())
        found.append(Prompt(" ".join(text.split()[: config.prompt_words]), language))
    if not found:
        raise HanseError(f"prompts: none, and no validation text in {trained.shards.folder} to begin with; give some: "
                         "'prompts=[\"...\"]'")  # fmt: skip
    return found


def encode(prompt: Prompt, trained: Trained) -> list[int]:
    """The ids of a prompt: as in training, a document begins with no special token.

    Raises:
        HanseError: it leaves no room for a token in the length that the model was trained on.
    """
    ids = trained.tokenizer.encode(prompt.text, add_special_tokens=False).ids
    length = trained.config.data.sequence_length
    if len(ids) >= length:
        raise HanseError(f"{prompt.label}: {len(ids)} tokens, but the model was trained on {length} in a row; "
                         "shorten it")  # fmt: skip
    return ids


@torch.no_grad()
def generate(model: PreTrainedModel, ids: list[int], room: int, config: GenerateConfig, end: int) -> list[int]:
    """The ids that follow ``ids``, ``room`` at most, without the one that ends a document.

    Nucleus sampling (Holtzman et al., arXiv 1904.09751); the random numbers follow from the seed and the prompt alone:
    its continuation does not depend on the prompts before it.
    """
    digest = hashlib.sha256(f"{config.seed} {ids}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8]) >> 1)
    sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
    how = GenerationConfig(max_new_tokens=room, eos_token_id=end, pad_token_id=end,
                           **(sampling if config.temperature else {"do_sample": False}))  # fmt: skip
    given = torch.tensor([ids], device=model.device)
    both: Tensor = model.generate(given, attention_mask=torch.ones_like(given), generation_config=how)  # type: ignore[operator]
    written = both[0, len(ids) :].tolist()
    return written[: written.index(end)] if end in written else written


def _shown(text: str) -> str:
    """Text without what would move the cursor or change colours: a model may write any byte."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
