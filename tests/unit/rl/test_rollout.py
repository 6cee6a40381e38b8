"""The rollout engine agrees with the trainer's forward pass, and keeps what it claims of every token."""

import pytest
import torch

from accordion.data.tokenizers.text import EOS, PAD
from accordion.errors import DataError
from accordion.rl.rollout import chat_prompt, left_padded, response_log_probs, sample
from tests.unit.rl.tiny import tiny_model, tiny_tokenizer


def prompts(count=6):
    tokenizer = tiny_tokenizer()
    return [chat_prompt(tokenizer, " + ".join("7" * (1 + n % 3)) + " =") for n in range(count)]


def rolled(seed=0, temperature=1.0, **changes):
    generator = torch.Generator().manual_seed(seed)
    values = {"max_tokens": 5, "temperature": temperature, "generator": generator, **changes}
    return sample(tiny_model(), prompts(), **values)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_the_cache_are_those_of_one_full_forward_pass(temperature):
    model = tiny_model()
    rollouts = rolled(temperature=temperature)
    again = response_log_probs(model, rollouts).detach()
    present = rollouts.present
    torch.testing.assert_close(again[present], rollouts.log_prob[present], atol=1e-5, rtol=0)
    some = torch.tensor([4, 1])
    torch.testing.assert_close(
        response_log_probs(model, rollouts.select(some)).detach()[present[some]],
        rollouts.log_prob[some][present[some]], atol=1e-5, rtol=0,
    )  # fmt: skip


def test_the_same_seed_gives_the_same_tokens_and_another_does_not():
    first, again, other = rolled(1), rolled(1), rolled(2)
    assert torch.equal(first.response, again.response)
    assert not torch.equal(first.response, other.response)


def test_chunks_do_not_change_greedy_answers():
    assert torch.equal(rolled(temperature=0.0).response, rolled(temperature=0.0, chunk=2).response)


def test_nothing_follows_the_end_and_every_token_has_its_version():
    rollouts = sample(
        ending_model(), prompts(), max_tokens=6, temperature=1.0, generator=torch.Generator().manual_seed(3), version=7
    )
    lengths = rollouts.lengths()
    assert lengths.unique().numel() > 1  # they end at different places
    for row in range(6):
        end = int(lengths[row])
        assert rollouts.present[row].tolist() == [True] * end + [False] * (6 - end)
        assert (rollouts.response[row, end:] == PAD).all() and (rollouts.version[row, end:] == -1).all()
        assert (rollouts.version[row, :end] == 7).all()
        assert (rollouts.response[row, : end - 1] != EOS).all()
        assert end == 6 or rollouts.response[row, end - 1] == EOS
    assert (rollouts.entropy[rollouts.present] > 0).all()
    assert all("<" not in text for text in rollouts.texts(tiny_tokenizer()))


def ending_model():
    """A policy whose likeliest next token is EOS, at about one chance in three."""
    model = tiny_model()
    logits = model.text_logits
    bias = torch.zeros(model.config.text_vocabulary)
    bias[EOS] = 5.0
    model.text_logits = lambda hidden: logits(hidden) + bias
    return model


def test_prompts_are_padded_on_the_left_and_empty_ones_refused():
    tokens, mask = left_padded([[5, 6, 7], [8]])
    assert tokens.tolist() == [[5, 6, 7], [PAD, PAD, 8]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]
    with pytest.raises(DataError, match="prompt 1: empty"):
        left_padded([[5], []])
    with pytest.raises(DataError, match="max_tokens 0"):
        rolled(max_tokens=0)
