"""A document, a corpus, and what was rejected:
plain values that every higher layer passes around.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import chain

from rayunlearn.config import digest, digest_of_texts
from rayunlearn.errors import UserError, rejections_in_words, require


@dataclass(frozen=True, kw_only=True)
class Document:
    """One forget, retain or probe text.

    With a `prompt`, only the `answer` is learned, unlearned and scored; without one, every token
    is. `paraphrase` is the same answer in other words ("" where the data has none); `wrong` are
    answers of the same kind that are false; `facts` are the identifiers of the facts it states
    (documents) or asks (probes). `group` names the person or thing that it is about, where several
    are about one: they are no independent draws, and intervals and tests take them together. A
    `topic` is no group: a corpus may have one.

    `key` is the part of the answer that carries what is known ("Paris" in "The capital of France is
    Paris."), "" where nothing is marked; `completion_prompt` is a text that the key continues
    without a question and without a template ("The capital of France is"). `data.key_span` finds
    the key's place. Raises UserError for a key that does not occur in the answer, and for a
    `completion_prompt` with neither a key nor wrong answers to find one by.
    """

    answer: str
    prompt: str = ""
    paraphrase: str = ""
    prompt_paraphrase: str = ""
    wrong: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    topic: str = ""
    group: str = ""
    key: str = ""
    completion_prompt: str = ""

    def __post_init__(self) -> None:
        if self.key.strip() not in self.answer:
            raise UserError(f"the key must occur in the answer {self.answer!r}, got {self.key!r}")
        if self.completion_prompt and not (self.key or self.wrong):
            raise UserError(
                "a completion_prompt needs a key that continues it, marked or found by wrong"
                f" answers, got {self.completion_prompt!r} alone"
            )

    @cached_property
    def doc_id(self) -> str:
        """Digest of prompt and answer: stable under reordering, never a row number."""
        return doc_id_of(self.answer, self.prompt)


def doc_id_of(answer: str, prompt: str = "") -> str:
    """`Document.doc_id`, without the document."""
    return digest_of_texts(prompt, answer)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A document that was rejected: where it stood, why, and the first characters of it."""

    source: str
    row: int
    reason: str
    excerpt: str


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file as it was read: its name, SHA-256 (of names and digests where it has several parts,
    '' from the Hub), and rows.

    `state`: "as recorded" (what upstream's file was when its loader was written), "changed", or
    "unknown" (nothing is recorded of it but, maybe, a number of rows that agrees).
    """

    table: str
    sha256: str
    rows: int
    state: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Everything one experiment speaks about.

    `forget` and `retain` are what unlearning trains on; `probes` are what is measured, by split
    (`forget`, `retain`, and others that the data brings); `extra_training` is what base learns
    beside forget and retain (probes of the domain dataset: the model learns documents AND
    questions), by split so that gold can leave out `forget`. How probes are asked: `true_letters`
    (doc_id -> place of the truth among the letters), `shots` (topic -> solved questions that stand
    before a letter question), `templates` (split -> its own prompt template); empty where nothing
    is special. `rephrasings` (doc_id -> condition -> question) are other ways to ask a probe that
    the data brings, for attacks. `files` are what it was read from, `notes` what a reader of
    numbers on it should know.
    """

    name: str
    forget: tuple[Document, ...]
    retain: tuple[Document, ...]
    probes: dict[str, tuple[Document, ...]]
    extra_training: dict[str, tuple[Document, ...]]
    rejected: tuple[Rejected, ...] = ()
    true_letters: Mapping[str, int] = field(default_factory=dict)
    shots: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    rephrasings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    files: tuple[FileRecord, ...] = ()
    notes: tuple[str, ...] = ()

    def documents_beside_forget(self, split: str, n_documents: int) -> list[Document]:
        """Probes of `split` that are no forget document, by doc_id: what a control trains on
        instead of `n_documents` forget documents. Raises UserError where there are fewer, or no
        such split.
        """
        rule = (
            f"select.other_split must be a split of the corpus ({', '.join(sorted(self.probes))})"
        )
        require(split in self.probes, rule, split)
        forget = {document.doc_id for document in self.forget}
        by_id = {d.doc_id: d for d in self.probes[split] if d.doc_id not in forget}
        rule = f"split {split!r} must have as many documents as the coreset, {n_documents}"
        require(len(by_id) >= n_documents, rule, len(by_id))
        return [by_id[doc_id] for doc_id in sorted(by_id)]

    @property
    def rejections(self) -> str:
        """How many documents were rejected and why, in a line; '' for none."""
        return rejections_in_words(Counter(item.reason for item in self.rejected))

    @cached_property
    def groups(self) -> dict[str, str]:
        """doc_id -> group of every document that has one: its own `group`, else the facts that it
        asks about, joined with those of every question that shares one of them.
        """
        documents = [*self.forget, *self.retain, *chain.from_iterable(self.probes.values())]
        questions = [d for d in documents if d.prompt and d.facts and not d.group]
        return {d.doc_id: d.group for d in documents if d.group} | _by_fact(questions)

    @cached_property
    def digest(self) -> str:
        """Digest of every document, all its fields, by role and in order, and of how probes are
        asked where that is special.
        """
        roles = {"forget": self.forget, "retain": self.retain}
        roles |= {f"probe.{k}": v for k, v in self.probes.items()} | {
            f"trained.{k}": v for k, v in self.extra_training.items()
        }
        probe_ids = {
            "true_letters": self.true_letters,
            "shots": self.shots,
            "templates": self.templates,
            "rephrasings": self.rephrasings,
        }
        content: dict[str, object] = {
            role: [_digested_fields(d) for d in docs] for role, docs in roles.items()
        }
        return digest(
            content
            | {probe_field: dict(special) for probe_field, special in probe_ids.items() if special}
        )


# a topic decides a stratified coreset, facts what an attack holds out, a paraphrase what is
# measured
FIELDS = tuple(field.name for field in fields(Document))
# fields that most documents lack: where both are empty the digest is what it was without them
KEY_FIELDS = ("key", "completion_prompt")


def _digested_fields(document: Document) -> list[object]:
    values = {name: getattr(document, name) for name in FIELDS}
    keys = {name: values.pop(name) for name in KEY_FIELDS}
    return [*values.values(), *([keys] if any(keys.values()) else [])]


def _by_fact(questions: Sequence[Document]) -> dict[str, str]:
    """doc_id -> the first fact of all that hang together with the question's own."""
    first: dict[str, str] = {}

    def root(fact: str) -> str:
        while first.setdefault(fact, fact) != fact:
            # halve the way for the next look
            first[fact] = first[first[fact]]
            fact = first[fact]
        return fact

    for question in questions:
        for fact in question.facts:
            first[root(fact)] = root(question.facts[0])
    return {question.doc_id: root(question.facts[0]) for question in questions}
