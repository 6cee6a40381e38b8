"""The rollout engine: batched sampling with a KV cache, keeping what the trainer needs of every token.

Legend: R rollouts, P padded prompt positions (padding on the left), T response positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accordion.data.tokenizers.text import ASSISTANT, BOS, EOS, PAD, USER, TextTokenizer
from accordion.errors import DataError, TrainingDiverged
from accordion.model import Model

CHUNK_ROWS = 512  # rollouts decoded together


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses. A response ends with EOS, or at T tokens without one.

    Attributes:
        prompt: (R,P) int64, PAD on the left; `prompt_present` (R,P) bool marks real tokens.
        response: (R,T) int64, PAD after its end; `present` (R,T) bool marks sampled tokens, EOS included.
        log_prob: (R,T) float32, log pi_infer of each sampled token under the distribution it was drawn from.
        entropy: (R,T) float32, nats, of that distribution.
        version: (R,T) int64, the policy version that produced the token; -1 where none was sampled.
        temperature: of sampling; 0 means greedy (log_prob and entropy are then those at temperature 1).
    """

    prompt: Tensor
    prompt_present: Tensor
    response: Tensor
    present: Tensor
    log_prob: Tensor
    entropy: Tensor
    version: Tensor
    temperature: float

    def texts(self, tokenizer: TextTokenizer) -> list[str]:
        """The responses as text, without EOS."""
        return [
            tokenizer.decode([token for token in row[kept].tolist() if token != EOS])
            for row, kept in zip(self.response, self.present, strict=True)
        ]

    def lengths(self) -> Tensor:
        """(R,) sampled tokens of each response."""
        return self.present.sum(dim=1)

    def select(self, rows: Tensor) -> "Rollouts":
        """The rollouts `rows` (indices or a boolean mask)."""
        return Rollouts(
            self.prompt[rows],
            self.prompt_present[rows],
            self.response[rows],
            self.present[rows],
            self.log_prob[rows],
            self.entropy[rows],
            self.version[rows],
            self.temperature,
        )


def chat_prompt(tokenizer: TextTokenizer, question: str) -> list[int]:
    """`BOS USER question ASSISTANT`, after which the answer and EOS follow."""
    return [BOS, USER, *tokenizer.encode(question), ASSISTANT]


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Prompts of unequal length as (R,P) tokens and a (R,P) bool mask of the real ones.

    Raises:
        DataError: a prompt is empty; the text names which.
    """
    empty = [index for index, prompt in enumerate(prompts) if not prompt]
    if empty or not prompts:
        raise DataError(f"prompt {empty[0] if empty else ''}: empty; a prompt needs at least one token")
    width = max(map(len, prompts))
    tokens = torch.tensor([[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return tokens, torch.arange(width)[None] >= width - lengths[:, None]


@torch.no_grad()
def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    generator: torch.Generator,
    version: int = 0,
    chunk: int = CHUNK_ROWS,
) -> Rollouts:
    """One response for each prompt, in the order of the prompts.

    Args:
        prompts: token ids; repeat a prompt for a group of rollouts.
        max_tokens: T, the longest response, EOS included.
        temperature: divides the logits; 0 takes the likeliest token and draws nothing.
        generator: of the draws, on the CPU; its state advances.
        version: of the policy, kept with every token.

    Raises:
        DataError: a prompt is empty or a setting out of range.
        TrainingDiverged: the policy's scores are NaN or infinite.
    """
    if max_tokens < 1 or temperature < 0:
        raise DataError(
            f"sampling: max_tokens {max_tokens}, temperature {temperature}; wants at least 1 and at least 0"
        )
    tokens, mask = left_padded(prompts)
    was_training = model.training
    model.eval()
    parts = [
        _sample_chunk(model, tokens[at : at + chunk], mask[at : at + chunk], max_tokens, temperature, generator)
        for at in range(0, len(prompts), chunk)
    ]
    model.train(was_training)
    response, present, log_prob, entropy = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Rollouts(
        prompt=tokens,
        prompt_present=mask,
        response=response,
        present=present,
        log_prob=log_prob,
        entropy=entropy,
        version=torch.where(present, version, -1),
        temperature=temperature,
    )


def _sample_chunk(
    model: Model, tokens: Tensor, mask: Tensor, max_tokens: int, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Response, present, log-probabilities and entropy, each (R,T), of one chunk of prompts."""
    rows, width = tokens.shape
    different, origin = torch.unique(tokens, dim=0, return_inverse=True)  # a group's prompt is read once
    first = torch.empty(len(different), dtype=torch.int64).index_copy_(0, origin, torch.arange(rows))
    cache = model.new_cache(len(different), width + max_tokens)
    logits = model.decode(different, cache, mask[first])[:, -1][origin]  # (R,V)
    cache = cache.select(origin)
    response = torch.full((rows, max_tokens), PAD)
    present = torch.zeros(rows, max_tokens, dtype=torch.bool)
    log_prob = torch.zeros(rows, max_tokens)
    entropy = torch.zeros(rows, max_tokens)
    alive = torch.ones(rows, dtype=torch.bool)
    for step in range(max_tokens):
        scores = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)  # (R,V)
        if not torch.isfinite(scores).all():
            raise TrainingDiverged(
                f"sampling: the policy's scores are not finite at response token {step}; its weights are damaged or "
                "diverged, start from an earlier checkpoint"
            )
        if temperature:
            drawn = torch.multinomial(scores.exp(), 1, generator=generator).squeeze(1)  # (R,)
        else:
            drawn = scores.argmax(dim=-1)
        present[:, step] = alive
        response[:, step] = torch.where(alive, drawn, PAD)
        log_prob[:, step] = torch.where(alive, scores.gather(1, drawn[:, None]).squeeze(1), 0.0)
        entropy[:, step] = torch.where(alive, -(scores.exp() * scores).sum(dim=-1), 0.0)
        alive = alive & (drawn != EOS)
        if not alive.any() or step + 1 == max_tokens:
            break
        logits = model.decode(response[:, step : step + 1], cache)[:, -1]
    return response, present, log_prob, entropy


def response_log_probs(model: Model, rollouts: Rollouts) -> Tensor:
    """log pi_train of the sampled tokens, in one full forward pass, with gradients.

    Returns:
        (R,T) float32 at the temperature of sampling; meaningless where nothing is `present`.
    """
    width = rollouts.prompt.shape[1]
    tokens = torch.cat([rollouts.prompt, rollouts.response], dim=1)  # (R,P+T)
    mask = torch.cat([rollouts.prompt_present, rollouts.present], dim=1)
    hidden = model.hidden(tokens, mask)[:, width - 1 : -1]  # (R,T,H): the state before each response token
    logits = model.text_logits(hidden).float() / (rollouts.temperature or 1.0)  # (R,T,V)
    return torch.log_softmax(logits, dim=-1).gather(2, rollouts.response[..., None]).squeeze(2)
