"""Small tokenizers of every kind that causal models come with, and the chat templates of their
families, for tests.

Each kind is built here from the pieces that real tokenizer files of that kind have: what decides
ids is the normalizer, the pre-tokenizer and the post-processor, not the size of the vocabulary.
Templates write what the families' own write; `{% generation %}` marks the assistant's words and the
end of its turn, from which transformers makes its mask of assistant tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import processors as post
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rayunlearn.models.scratch import build_tokenizer

PAIRS = (
    ("Who wrote the book of owls?", "Ada Lovelace wrote it."),
    ("Name the capital", "Paris"),
    ('Say "yes":', "(yes) and no"),
    ("Wo liegt Köln?", "Östlich von Aachen, am Rhein…"),
    ("数は?", "四つです"),
    ("How many owls?", "12,5%"),
    ("What follows the word user?", "user"),
    ("Two lines, please.", "One line.\nAnother line."),
    ("What does she say?", "🙂"),
)
TEXTS = [
    f"{prompt} {answer} {answer}\n{prompt}\nQuestion: {prompt}\nAnswer: {answer}"
    for prompt, answer in PAIRS
]
SENTENCEPIECE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# GPT-4's way to split a text, which Llama 3 and Qwen use; numbers one digit at a time as Qwen
SPLIT = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gpt2() -> PreTrainedTokenizerBase:
    """Bytes; begin and end are one token, which it does not add (GPT-2, Phi-1.5, Pythia)."""
    tokenizer = _byte_level(["<|endoftext|>"], pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.post_processor = post.ByteLevel(trim_offsets=True)
    end = "<|endoftext|>"
    return _fast(tokenizer, bos_token=end, eos_token=end, unk_token=end)


def bloom() -> PreTrainedTokenizerBase:
    """Bytes; a begin token of its own that the post-processor does not add."""
    tokenizer = _byte_level(
        ["<unk>", "<s>", "</s>"], pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    tokenizer.post_processor = post.ByteLevel(trim_offsets=False)
    return _fast(tokenizer, **SENTENCEPIECE)


def llama3() -> PreTrainedTokenizerBase:
    """Bytes; the post-processor adds the begin token; offsets include the blank."""
    tokenizer = _split_bytes(["<|begin_of_text|>", "<|end_of_text|>"])
    tokenizer.post_processor = post.Sequence(
        [post.ByteLevel(trim_offsets=False), _adds("<|begin_of_text|>", tokenizer)]
    )
    return _fast(tokenizer, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


def qwen() -> PreTrainedTokenizerBase:
    """Bytes; no begin token at all."""
    tokenizer = _split_bytes(["<|endoftext|>"])
    tokenizer.post_processor = post.ByteLevel(trim_offsets=False)
    return _fast(tokenizer, eos_token="<|endoftext|>")


def mistral() -> PreTrainedTokenizerBase:
    """SentencePiece whose normalizer puts a blank before every text; adds BOS (Mistral, Zephyr)."""
    tokenizer = _pieces(_prepending())
    tokenizer.post_processor = _adds("<s>", tokenizer)
    return _fast(tokenizer, **SENTENCEPIECE)


def silent() -> PreTrainedTokenizerBase:
    """The same, in a file that says nothing of BOS (stories260k)."""
    return _fast(_pieces(_prepending()), **SENTENCEPIECE)


def phi3() -> PreTrainedTokenizerBase:
    """The same, told to add no BOS; the end token is none of SentencePiece's."""
    tokenizer = _pieces(_prepending(), ["<|endoftext|>"])
    specials = SENTENCEPIECE | {"eos_token": "<|endoftext|>"}
    return _fast(tokenizer, add_bos_token=False, **specials)


def llama() -> PreTrainedTokenizerBase:
    """SentencePiece whose pre-tokenizer puts a blank before the first word of a text only."""
    tokenizer = _pieces(None)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = _adds("<s>", tokenizer)
    return _fast(tokenizer, **SENTENCEPIECE)


def gemma() -> PreTrainedTokenizerBase:
    """SentencePiece without a blank of its own."""
    tokenizer = _pieces(normalizers.Replace(" ", "▁"))
    tokenizer.post_processor = _adds("<s>", tokenizer)
    return _fast(tokenizer, **SENTENCEPIECE)


def unigram() -> PreTrainedTokenizerBase:
    """Unigram pieces with a blank before every word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=220,
        special_tokens=list(SENTENCEPIECE.values()),
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = _adds("<s>", tokenizer)
    return _fast(tokenizer, **SENTENCEPIECE)


def wordpiece() -> PreTrainedTokenizerBase:
    """Word pieces: blanks are in no token, letters lose their case; no end token."""
    specials = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = post.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in specials[1:]],
    )
    return _fast(tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def words() -> PreTrainedTokenizerBase:
    """The synthetic datasets' own: whole words, each with the blank before it."""
    return build_tokenizer(TEXTS)


class Characters(PreTrainedTokenizer):
    """A tokenizer in Python, without offsets: a token is a character, or two that are alike."""

    def __init__(self, **settings: object) -> None:
        letters = sorted({c for text in (*TEXTS, *map(chr, range(32, 127))) for c in text} | {"\n"})
        known = ["<s>", "</s>", "<unk>", *letters, *(c + c for c in letters)]
        self._ids = {token: at for at, token in enumerate(known)}
        super().__init__(**(SENTENCEPIECE | settings))

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return self._ids | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: object) -> list[str]:
        found: list[str] = []
        at = 0
        while at < len(text):
            size = 2 if text[at : at + 1] == text[at + 1 : at + 2] else 1
            found.append(text[at : at + size])
            at += size
        return found

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._ids["<unk>"])

    def _convert_id_to_token(self, index: int) -> str:
        return list(self._ids)[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


@dataclass(frozen=True)
class Kind:
    """How to build a tokenizer, and the token that it begins a text with, '' for none."""

    build: Callable[[], PreTrainedTokenizerBase]
    begins: str


KINDS: Mapping[str, Kind] = {
    kind.build.__name__: kind
    for kind in (
        Kind(gpt2, ""),
        Kind(bloom, ""),
        Kind(llama3, "<|begin_of_text|>"),
        Kind(qwen, ""),
        Kind(mistral, "<s>"),
        Kind(silent, "<s>"),
        Kind(phi3, ""),
        Kind(llama, "<s>"),
        Kind(gemma, "<s>"),
        Kind(unigram, "<s>"),
        Kind(wordpiece, "[CLS]"),
        Kind(words, "<s>"),
        Kind(Characters, ""),
    )
}


@dataclass(frozen=True)
class Chat:
    """A family's chat template: what it writes before, in and after a user's and an assistant's
    turn, the special tokens that it brings, and the text that ends an assistant's turn.

    `opens` is what an answer is asked for with, `blank` what stands between that and the answer,
    `trims` whether messages lose the white space around them, `closes` what ends a conversation.
    """

    begin: str
    user: tuple[str, str]
    opens: str
    end: str
    after: str = ""
    blank: str = ""
    closes: str = ""
    trims: bool = False
    tokens: tuple[str, ...] = ()

    @property
    def template(self) -> str:
        """As transformers takes it."""
        content = "(message['content'] | trim)" if self.trims else "message['content']"
        blank, ends = _literal(self.blank), _literal(self.end)
        return (
            f"{{{{ {_literal(self.begin)} }}}}"
            "{% for message in messages %}{% if message['role'] == 'user' %}"
            f"{{{{ {_literal(self.user[0])} + {content} + {_literal(self.user[1])} }}}}"
            f"{{% else %}}{{{{ {_literal(self.opens)} + {blank} }}}}"
            f"{{% generation %}}{{{{ {content} + {ends} }}}}{{% endgeneration %}}"
            f"{{{{ {_literal(self.after)} }}}}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {_literal(self.opens)} }}}}"
            f"{{% else %}}{{{{ {_literal(self.closes)} }}}}{{% endif %}}"
        )


CHATS: Mapping[str, Chat] = {
    "zephyr": Chat("", ("<|user|>\n", "EOS\n"), "<|assistant|>\n", "EOS", after="\n"),
    "phi3": Chat(
        "",
        ("<|user|>\n", "<|end|>\n"),
        "<|assistant|>\n",
        "<|end|>",
        after="\n",
        closes="EOS",
        tokens=("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "mistral_v01": Chat("BOS", ("[INST] ", " [/INST]"), "", "EOS"),
    "mistral_v03": Chat(
        "BOS", ("[INST] ", "[/INST]"), "", "EOS", blank=" ", tokens=("[INST]", "[/INST]")
    ),
    "llama2": Chat("BOS", ("[INST] ", " [/INST]"), "", " EOS", blank=" ", trims=True),
    "llama3": Chat(
        "BOS",
        ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        trims=True,
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "qwen25": Chat(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        ("<|im_start|>user\n", "<|im_end|>\n"),
        "<|im_start|>assistant\n",
        "<|im_end|>",
        after="\n",
        tokens=("<|im_start|>", "<|im_end|>"),
    ),
    "qwen3": Chat(
        "",
        ("<|im_start|>user\n", "<|im_end|>\n"),
        "<|im_start|>assistant\n",
        "<|im_end|>",
        after="\n",
        blank="<think>\n\n</think>\n\n",
        tokens=("<|im_start|>", "<|im_end|>"),
    ),
    "gemma": Chat(
        "BOS",
        ("<start_of_turn>user\n", "<end_of_turn>\n"),
        "<start_of_turn>model\n",
        "<end_of_turn>",
        after="\n",
        trims=True,
        tokens=("<start_of_turn>", "<end_of_turn>"),
    ),
    # of our own: an end of turn that is ordinary text, and a template that has none at all
    "text_end": Chat("", ("### Q\n", "\n"), "### A\n", "\n### End", after="\n"),
    "endless": Chat("", ("USER: ", " "), "ASSISTANT:", "", blank=" "),
}


@lru_cache(maxsize=len(KINDS))
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a kind, without a chat template; read it, never change it."""
    return KINDS[kind].build()


@lru_cache(maxsize=len(KINDS) * len(CHATS))
def chat_tokenizer(kind: str, chat: str) -> PreTrainedTokenizerBase:
    """A tokenizer of the kind with the chat template and the special tokens of a family."""
    tokenizer = KINDS[kind].build()
    tokenizer.add_special_tokens({"extra_special_tokens": list(CHATS[chat].tokens)})
    tokenizer.chat_template = CHATS[chat].template
    return tokenizer


def _literal(text: str) -> str:
    """The text as a Jinja expression; BOS and EOS are the tokenizer's own, '' where it has none."""
    parts = text.replace("BOS", "\0BOS\0").replace("EOS", "\0EOS\0").split("\0")
    names = {"BOS": "(bos_token or '')", "EOS": "(eos_token or '')"}
    return " + ".join(names.get(p, repr(p)) for p in parts if p) or "''"


def _fast(tokenizer: Tokenizer, **settings: object) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **settings
    )


def _adds(token: str, tokenizer: Tokenizer) -> post.TemplateProcessing:
    return post.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def _byte_level(specials: list[str], split: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _split_bytes(specials: list[str]) -> Tokenizer:
    split = [
        pre_tokenizers.Split(SPLIT, behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return _byte_level(specials, pre_tokenizers.Sequence(split))


def _prepending() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _pieces(normalizer: normalizers.Normalizer | None, more: list[str] | None = None) -> Tokenizer:
    """Byte pairs over characters with ▁ for a blank and bytes for what the vocabulary lacks."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    learned.train_from_iterator(
        [text.replace("\n", " ") for text in TEXTS[:3]],
        trainers.BpeTrainer(vocab_size=160, show_progress=False),
    )
    state = learned.model.__getstate__()
    vocabulary, merges = _vocabulary(state)
    specials = ["<unk>", "<s>", "</s>", *(more or [])]
    names = list(dict.fromkeys([*specials, *BYTES, "▁", *vocabulary]))
    tokenizer = Tokenizer(
        models.BPE(
            {name: at for at, name in enumerate(names)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(specials)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _vocabulary(state: bytes) -> tuple[list[str], list[tuple[str, str]]]:
    import json

    content = json.loads(state)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in content["merges"]]
    return sorted(content["vocab"], key=content["vocab"].__getitem__), merges
