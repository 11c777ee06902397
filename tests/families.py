"""Toy models of the families that transformers has: two blocks, 16 wide, in the form of their
published configs.
"""

from collections.abc import Mapping

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS = {"head_dim": 8}
GEMMA = {**SHAPE, **HEADS, "query_pre_attn_scalar": 8}
EXPERTS = {"num_experts_per_tok": 2}
ENDS = {name: SHAPE[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, **ENDS}
BLOOM = {"hidden_size": 16, "n_layer": 2, "n_head": 2, **ENDS}
FALCON = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
OPT = {**FALCON, "ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, **ENDS}
# model_type -> its settings; those that are said are what the published models have
FAMILIES: dict[str, Mapping[str, object]] = {
    "llama": SHAPE,
    "mistral": SHAPE,
    "mixtral": {**SHAPE, **EXPERTS, "num_local_experts": 4},
    "qwen2": SHAPE,
    "qwen2_moe": {
        **SHAPE,
        **EXPERTS,
        "num_experts": 4,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
    },
    "qwen3": {**SHAPE, **HEADS, "tie_word_embeddings": True},
    "gemma": {**SHAPE, **HEADS},
    "gemma2": {**GEMMA, "final_logit_softcapping": 3.0, "sliding_window": 8},
    "gemma3_text": {**GEMMA, "sliding_window": 8},
    "phi": SHAPE,
    "phi3": SHAPE,
    "gpt2": GPT2,
    "gpt_neox": FALCON,
    "opt": OPT,
    "falcon": FALCON,
    "bloom": BLOOM,
    "cohere": {**SHAPE, "logit_scale": 0.0625},
    "cohere2": {**SHAPE, **HEADS, "logit_scale": 0.25, "sliding_window": 8},
    "granite": {**SHAPE, "logits_scaling": 8.0, "embedding_multiplier": 12.0},
    "olmo2": SHAPE,
    "smollm3": SHAPE,
    "mamba": MAMBA,
}
# attention of their own, or states in the place of attention: their passes are padded
PADDED = ("bloom", "falcon", "mamba")


def toy_model(family: str, vocab_size: int = 37, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of the family with logits as large as a trained model's (tens)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, vocab_size=vocab_size, **FAMILIES[family])
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # biases, and gains that start at 1 or 0: nothing may hide behind a neutral value
                if parameter.dim() == 1 and "A_log" not in name and "dt" not in name:
                    parameter.add_(torch.randn(parameter.shape) * 0.1)
            model.get_input_embeddings().weight.mul_(20)
            if not model.config.get_text_config().tie_word_embeddings:
                model.get_output_embeddings().weight.mul_(60)
        return model
