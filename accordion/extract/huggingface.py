"""A member's text path in the Hugging Face layout, for servers and tools that know no Accordion.

The equivalent architecture is dots1 (`Dots1ForCausalLM` of transformers): pre-norm blocks, normalised queries and keys,
rotary positions, sigmoid scores with a selection bias, gates of sum 1, a shared expert. For text Uni-RoPE is plain RoPE
(t = h = w), so the logits are the same. What the layout has no place for stays out: vision and audio inputs and heads,
and multi-token prediction.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from accordion.config.pretrain import ModelConfig
from accordion.errors import ConfigError
from accordion.model import Model
from accordion.model.norm import EPSILON
from accordion.store.atomic import atomic_write

ARCHITECTURE = "Dots1ForCausalLM"


def obstacle(config: ModelConfig) -> str | None:
    """Why a model has no equivalent in this layout, or None if it has one."""
    if len(set(config.experts)) > 1 or len(set(config.top_k)) > 1:
        return "its layers differ in experts or top-k"
    if config.isolated:
        return "its experts are parted by modality"
    if not config.shared_hidden or config.shared_hidden % config.expert_hidden:
        return f"its shared expert ({config.shared_hidden}) is no multiple of a routed one ({config.expert_hidden})"
    if config.experts[0] < 2:
        return "a layer has a single expert"
    return None


def write_huggingface(model: Model, folder: Path, *, context: int) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` into the existing `folder`.

    Args:
        context: longest sequence that the model was trained on.

    Raises:
        ConfigError: there is no equivalent; the text says why.
    """
    if (why := obstacle(model.config)) is not None:
        raise ConfigError(f"no Hugging Face layout for this model: {why}")
    from accordion.data.tokenizers.text import BOS, EOS, PAD  # the reader of texts is not needed to cut models

    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    settings = {**_settings(model.config, context), **ids}
    atomic_write(folder / "config.json", json.dumps(settings, indent=1) + "\n")
    atomic_write(folder / "generation_config.json", json.dumps(ids, indent=1) + "\n")
    atomic_write(folder / "model.safetensors", save(_tensors(model), metadata={"format": "pt"}))


def _settings(config: ModelConfig, context: int) -> dict[str, Any]:
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "dots1",
        "dtype": "float32",
        "vocab_size": config.text_vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": config.expert_hidden,  # of dense layers, of which there are none
        "moe_intermediate_size": config.expert_hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "head_dim": config.hidden // config.heads,
        "n_routed_experts": config.experts[0],
        "n_shared_experts": config.shared_hidden // config.expert_hidden,
        "num_experts_per_tok": config.top_k[0],
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 0,
        "hidden_act": "silu",
        "rms_norm_eps": EPSILON,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": context,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "sliding_window": None,
    }


def _tensors(model: Model) -> dict[str, Tensor]:
    found = {
        "model.embed_tokens.weight": model.embeddings.text.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.heads.text.weight,
    }
    for index, layer in enumerate(model.layers):
        at, moe = f"model.layers.{index}", layer.moe
        q, k, v = layer.attention.qkv.weight.chunk(3)
        found |= {
            f"{at}.input_layernorm.weight": layer.norm_attention.weight,
            f"{at}.post_attention_layernorm.weight": layer.norm_moe.weight,
            f"{at}.self_attn.q_proj.weight": q,
            f"{at}.self_attn.k_proj.weight": k,
            f"{at}.self_attn.v_proj.weight": v,
            f"{at}.self_attn.o_proj.weight": layer.attention.out.weight,
            f"{at}.self_attn.q_norm.weight": layer.attention.norm_q.weight,
            f"{at}.self_attn.k_norm.weight": layer.attention.norm_k.weight,
            f"{at}.mlp.gate.weight": moe.router,
            f"{at}.mlp.gate.e_score_correction_bias": moe.bias,
        }
        found |= _experts(f"{at}.mlp", moe.expert_in, moe.expert_out)
        if moe.shared_in is not None and moe.shared_out is not None:
            gate, up = moe.shared_in.weight.chunk(2)
            found |= {
                f"{at}.mlp.shared_experts.gate_proj.weight": gate,
                f"{at}.mlp.shared_experts.up_proj.weight": up,
                f"{at}.mlp.shared_experts.down_proj.weight": moe.shared_out.weight,
            }
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in found.items()}


def _experts(at: str, weight_in: Tensor, weight_out: Tensor) -> dict[str, Tensor]:
    """One set of matrices (out, in) for each expert: what checkpoints of this architecture hold.

    Args:
        weight_in: (E, H, 2I), gate then up; weight_out: (E, I, H).
    """
    found: dict[str, Tensor] = {}
    for expert, (both, down) in enumerate(zip(weight_in, weight_out, strict=True)):
        gate, up = both.t().chunk(2)
        found |= {
            f"{at}.experts.{expert}.gate_proj.weight": gate,
            f"{at}.experts.{expert}.up_proj.weight": up,
            f"{at}.experts.{expert}.down_proj.weight": down.t(),
        }
    return found
