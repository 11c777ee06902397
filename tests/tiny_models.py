"""Random models of four architectures, small enough for a test, and a padded batch for them."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedModel,
)

from rayunlearn.data.tokenize import Encoded

SHAPE = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, num_key_value_heads=1),
    "gpt_neox": GPTNeoXConfig(**SHAPE),
    "phi": PhiConfig(**SHAPE),
}
SEQUENCES = [
    Encoded("a", (1, 5, 6, 7, 8, 2), 3),
    Encoded("b", (1, 9, 2), 1),
    Encoded("c", (1, 11, 12, 13, 14, 15, 16, 2), 5),
]


def tiny_model(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random float32 model of the family, with a config of its own: a test may resize it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family])).float().eval()
