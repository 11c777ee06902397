"""Chat models in a local directory: asked with messages, answered greedily.

What asks a model to name keywords, to reword a question or to judge an answer goes through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Encoded, align
from rayunlearn.lazy import torch
from rayunlearn.models.generate import ends_of
from rayunlearn.models.load import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Message = dict[str, str]
Chat = Callable[[Sequence[Message]], str]


def chat_with(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int = 512
) -> Chat:
    """A Hugging Face chat model as a function from messages to its greedy answer.

    A template that refuses the system role gets its content in front of the first message of the
    user. Raises UserError for a tokenizer without a chat template.
    """
    aligned = align("a question", "an answer", tokenizer, "chat")
    ends = ends_of(model, tokenizer, [Encoded("", aligned.ids, aligned.start, aligned.n_end)])

    def chat(messages: Sequence[Message]) -> str:
        prompt_ids = encode_text(chat_text(tokenizer, list(messages)), tokenizer)
        ids = torch.tensor([prompt_ids], device=model.device)
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=[end[0] for end in ends if len(end) == 1],
                pad_token_id=tokenizer.pad_token_id or 0,
            )
        return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    return chat


def load_chat(name: str, device: str) -> Chat:
    """`chat_with` of the model in a directory or on the Hub, loaded onto `device`."""
    return chat_with(*load_model(name, device=device))


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    """The messages as the model's template writes them, up to where its answer begins.

    A template that refuses the system role gets its content in front of the first message of the
    user. Raises what the template raises.
    """
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    # templates raise what they like (jinja2's TemplateError among it)
    except Exception as problem:
        if messages[0]["role"] != "system":
            raise
        first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        try:
            text = tokenizer.apply_chat_template(
                [first, *messages[2:]], add_generation_prompt=True, tokenize=False
            )
        except Exception:
            raise problem from None
    return str(text)


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of a text that has its special tokens already."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))
