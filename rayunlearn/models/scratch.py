"""The synthetic dataset's own model: a small Llama and a tokenizer, both made from nothing, saved
as ordinary Hugging Face files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rayunlearn.errors import require, unknown_name
from rayunlearn.lazy import torch, transformers

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
# with more distinct words than this the vocabulary is byte pairs
MOST_WORDS = 2_000
N_BYTE_PAIRS = 4_096
LONGEST_TOKENS = 1_024


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Width of the residual stream, of the gated feed-forward part,
    and how many blocks and heads.
    """

    width: int
    inner: int
    blocks: int
    heads: int


SHAPES = {
    "tiny": Shape(width=96, inner=288, blocks=3, heads=4),
    "small": Shape(width=192, inner=576, blocks=4, heads=6),
}


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A vocabulary for `texts`: whole words while there are at most 2,000 of them, else 4,096 byte
    pairs.

    A word carries the space before it, so decoding gives back the text exactly. Words outside the
    vocabulary become <unk>; byte pairs have none outside. No special token is added by encoding.
    Raises UserError without any text.
    """
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    vocabulary_texts = list(texts)
    words = sorted({word for text in vocabulary_texts for word, _ in split.pre_tokenize_str(text)})
    require(bool(words), "a vocabulary needs at least one word of text", vocabulary_texts[:3])
    tokenizer = (
        _word_level(words) if len(words) <= MOST_WORDS else _byte_pairs(vocabulary_texts, split)
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=LONGEST_TOKENS,
        **SPECIAL_TOKENS,
    )


def build_model(size: str, vocabulary_size: int, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of the given size, float32, embeddings tied. Special ids are as
    `build_tokenizer` gives them.

    The same seed gives the same weights; torch's global random state is left as it was. Raises
    UserError for an unknown size.
    """
    if size not in SHAPES:
        raise unknown_name("model.size", size, SHAPES)
    pad, bos, eos = (
        list(SPECIAL_TOKENS).index(name) for name in ("pad_token", "bos_token", "eos_token")
    )
    shape = SHAPES[size]
    config = transformers.LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=LONGEST_TOKENS,
        # (2 width)^-1/2: with the library's fixed 0.02 so narrow a model needs twice the epochs
        # (measured on both datasets)
        initializer_range=(2 * shape.width) ** -0.5,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config)


def _word_level(words: Sequence[str]) -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate((*SPECIAL_TOKENS.values(), *words))}
    return Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))


def _byte_pairs(texts: Sequence[str], split: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = split
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=N_BYTE_PAIRS,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
