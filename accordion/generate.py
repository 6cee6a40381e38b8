"""Text generation from a saved model: what `accordion generate` calls."""

from pathlib import Path

import torch

from accordion.data.tokenizers.text import BOS
from accordion.errors import DataError
from accordion.rl.rollout import chat_prompt, sample
from accordion.rl.update import load_policy

LONGEST_PROMPT = 4096  # tokens; attention over the prompt grows with its square


def generate(
    model_folder: Path,
    tokenizer_folder: Path,
    prompt: str,
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = False,
) -> str:
    """Continue a prompt.

    Args:
        model_folder: a checkpoint, a policy or an extracted member.
        tokenizer_folder: the text tokenizer it was trained with.
        max_tokens: longest continuation, tokens; generation stops earlier at end-of-sequence.
        temperature: 0 takes the likeliest token each time.
        seed: of the draws when temperature is above 0.
        chat: ask the prompt as a question (`BOS USER prompt ASSISTANT`) instead of continuing it.

    Raises:
        DataError: the prompt is empty or too long, a setting is out of range, or the tokenizer is another model's.
        ArtifactError: a folder cannot be read.
    """
    if not prompt:
        raise DataError("prompt: empty; write at least one character")
    if max_tokens < 1:
        raise DataError(f"max_tokens: got {max_tokens}; wants at least 1")
    if temperature < 0:
        raise DataError(f"temperature: got {temperature}; wants 0 (greedy) or more")
    model, tokenizer = load_policy(model_folder, tokenizer_folder)
    tokens = chat_prompt(tokenizer, prompt) if chat else [BOS, *tokenizer.encode(prompt)]
    if len(tokens) > LONGEST_PROMPT:
        raise DataError(f"prompt: {len(tokens)} tokens; at most {LONGEST_PROMPT} are read, shorten it")
    generator = torch.Generator().manual_seed(seed)
    rollouts = sample(model, [tokens], max_tokens=max_tokens, temperature=temperature, generator=generator)
    return rollouts.texts(tokenizer)[0]
