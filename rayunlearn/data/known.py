"""Facts that a language model may know by itself: tables that the product ships, one JSON file per
relation, and a document for each fact.

A relation ("capitals") has slices ("Europe"), and every fact a question, an answer that is a whole
sentence with the key word in it, both in other words, the sentence up to its key as plain text, and
sentences of the same relation that are wrong. What of it a model knows is asked in `trial.known`;
nothing here runs a model.
"""

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from rayunlearn.config import Value
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.errors import UserError, require, unknown_name

KNOWN_TABLES = Path(__file__).parent / "known_facts"
# wrong sentences of each fact
WRONG_SENTENCES = 3
# in the order in which a fact that two settings name is given away
SETS = ("forget", "retain", "untouched", "near", "far")
# the probabilities that `KnownRule` asks for
THRESHOLDS = ("key_probability", "paraphrase_probability", "completion_probability")
Slices = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One table: how a fact is asked and said, with `{subject}`, `{Subject}` (its first letter in
    upper case) and `{key}`, and the facts of each slice, subject -> key.

    `domain` is the kind of thing that the subjects are: what is said of one country by several
    tables is about one thing. `source` says where the facts come from.
    """

    name: str
    domain: str
    source: str
    question: str
    answer: str
    question_paraphrase: str
    answer_paraphrase: str
    slices: Slices

    @property
    def n_facts(self) -> int:
        """How many facts the table has."""
        return sum(map(len, self.slices.values()))


@dataclass(frozen=True, kw_only=True)
class KnownRule:
    """When a model knows a fact, and how many such facts a set has. The rule is ours.

    Each probability is that of the whole key word behind what stands before it, in [0, 1], and
    must be at least: `key_probability` inside the answer to the question, `paraphrase_probability`
    inside the other wording of the answer to the other wording of the question,
    `completion_probability` behind the sentence's beginning as plain text. With `choice` the
    answer must be likelier than each wrong one. `limit`: at most so many facts of a set are kept,
    drawn by the digests of what it has (0: all).
    """

    key_probability: float = 0.3
    paraphrase_probability: float = 0.1
    completion_probability: float = 0.01
    choice: bool = True
    limit: int = 0

    def __post_init__(self) -> None:
        for name in THRESHOLDS:
            threshold = getattr(self, name)
            require(0 <= threshold <= 1, f"known.{name} must be in [0, 1]", threshold)
        require(self.limit >= 0, "known.limit must be >= 0", self.limit)


RULE_OPTIONS: dict[str, Value] = asdict(KnownRule())


def rule_of(options: Mapping[str, Value]) -> KnownRule:
    """The rule that `data.options` give. Raises UserError for a value out of its range."""
    values = {**RULE_OPTIONS, **options}
    thresholds = {name: float(values[name]) for name in THRESHOLDS}
    return KnownRule(**thresholds, choice=bool(values["choice"]), limit=int(values["limit"]))


def relation_names(folder: Path = KNOWN_TABLES) -> tuple[str, ...]:
    """The relations that the folder has, sorted."""
    return tuple(sorted(file.stem for file in folder.glob("*.json")))


def read_relation(name: str, folder: Path = KNOWN_TABLES) -> Relation:
    """The relation of that name.

    Raises:
        UserError: for a name that the folder does not have, with the nearest; for a file that is
            not as this module's docstring says, a sentence without its places, or a slice with no
            fact.

    Example:
        >>> read_relation("capitals").slices["Europe"]["France"]
        'Paris'
    """
    names = relation_names(folder)
    if name not in names:
        raise unknown_name("relation", name, names)
    file = folder / f"{name}.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        relation = Relation(**{"name": content.pop("relation")} | content)
        facts = list(chain.from_iterable(part.items() for part in relation.slices.values()))
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise UserError(
            f"{file} must be a relation as docs/data.md says: {type(problem).__name__}: {problem}"
        ) from problem
    _check(relation, facts, file)
    return relation


def known_facts(relation: Relation, part: str = "") -> tuple[Document, ...]:
    """A document for each fact of the slice `part`, '' for all of them.

    Its wrong answers are the same sentence with three other keys, drawn by a seed of the fact's
    own from its slice, from the whole relation where the slice has fewer. `topic` is
    `relation:slice`.

    Example:
        >>> known_facts(read_relation("capitals"), "Europe")[11].answer
        'The capital of France is Paris.'
    """
    if part and part not in relation.slices:
        raise unknown_name(f"slice of {relation.name}", part, relation.slices)
    parts = [part] if part else list(relation.slices)
    return tuple(
        _document(relation, name, subject, key)
        for name in parts
        for subject, key in relation.slices[name].items()
    )


def chosen_facts(
    settings: Mapping[str, str], folder: Path = KNOWN_TABLES
) -> dict[str, list[Document]]:
    """Set (`SETS`) -> its facts. A setting names relations or slices of them, `capitals:Europe`,
    separated by commas.

    An empty `near` is what else the relations of `forget` have. A fact belongs to the first set
    that names it, so `near=capitals` is what `forget=capitals:Europe` leaves.

    Raises:
        UserError: for a relation or slice that is not there, and a setting that names nothing
            which an earlier one has left.
    """
    chosen: dict[str, list[Document]] = {}
    used: set[str] = set()
    for name in SETS:
        parts = _parts(settings[name])
        named = parts or (_relations_of(settings["forget"]) if name == "near" else ())
        relations = {part: read_relation(part.partition(":")[0], folder) for part in named}
        documents = [
            document
            for part, relation in relations.items()
            for document in known_facts(relation, part.partition(":")[2])
            if document.doc_id not in used
        ]
        require(
            bool(documents) or not parts,
            f"known.{name} must name facts that no earlier set has",
            settings[name],
        )
        chosen[name] = list({document.doc_id: document for document in documents}.values())
        used |= {document.doc_id for document in documents}
    return chosen


def paraphrases_apart(corpus: Corpus) -> Corpus:
    """The corpus with the forget facts in other words as split `paraphrased`, and no document with
    a paraphrase of its own: metrics hold a paraphrase against the wrong answers, and these are
    worded as the answer is.
    """

    def alone(documents: Iterable[Document]) -> tuple[Document, ...]:
        return tuple(replace(document, paraphrase="") for document in documents)

    reworded = {"paraphrased": tuple(in_other_words(document) for document in corpus.forget)}
    return replace(
        corpus,
        forget=alone(corpus.forget),
        retain=alone(corpus.retain),
        probes={name: alone(part) for name, part in corpus.probes.items()} | reworded,
    )


def in_other_words(fact: Document) -> Document:
    """The fact asked and said in its other wording, wrong sentences too.

    Example:
        >>> in_other_words(known_facts(read_relation("capitals"), "Europe")[11]).wrong[0][:29]
        'The capital city of France is'
    """
    before, after = _around(fact.key, fact.answer)
    start, end = _around(fact.key, fact.paraphrase)
    keys = (wrong[len(before) : len(wrong) - len(after)] for wrong in fact.wrong)
    return replace(
        fact,
        prompt=fact.prompt_paraphrase,
        answer=fact.paraphrase,
        prompt_paraphrase=fact.prompt,
        paraphrase="",
        wrong=tuple(f"{start}{key}{end}" for key in keys),
        completion_prompt=start.rstrip(),
    )


def _around(key: str, sentence: str) -> tuple[str, str]:
    """What stands before the key, and after it."""
    place = key_places(key, sentence)[-1]
    return sentence[:place], sentence[place + len(key) :]


def key_places(key: str, sentence: str) -> list[int]:
    """Where the key stands in the sentence as a word of its own."""
    before, after = (
        r"(?<!\w)" if key[:1].isalnum() else "",
        r"(?!\w)" if key[-1:].isalnum() else "",
    )
    return [match.start() for match in re.finditer(before + re.escape(key) + after, sentence)]


def _parts(setting: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (part.strip() for part in setting.split(",")))))


def _relations_of(setting: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.partition(":")[0] for part in _parts(setting)))


def _check(relation: Relation, facts: Sequence[tuple[str, str]], file: Path) -> None:
    for field in ("answer", "answer_paraphrase"):
        text = getattr(relation, field)
        fits = text.count("{key}") == 1 and "{subject}" in text.lower()
        require(fits, f"{file}: {field} must have {{key}} once, and {{subject}}", text)
    for field in ("question", "question_paraphrase"):
        text = getattr(relation, field)
        require("{subject}" in text, f"{file}: {field} must have {{subject}}", text)
    subjects = [subject for subject, _ in facts]
    require(bool(subjects) and all(relation.slices.values()), f"{file} must have facts", subjects)
    require(
        len(set(subjects)) == len(subjects),
        f"{file} must name a subject once, got twice",
        sorted({subject for subject in subjects if subjects.count(subject) > 1}),
    )
    n_keys = len({key for _, key in facts})
    require(
        n_keys > WRONG_SENTENCES,
        f"{file} must have more than {WRONG_SENTENCES} different keys",
        n_keys,
    )


def _document(relation: Relation, part: str, subject: str, key: str) -> Document:
    answer = _filled(relation.answer, subject, key)
    before = _filled(relation.answer.partition("{key}")[0], subject, key)
    paraphrase = _filled(relation.answer_paraphrase, subject, key)
    for sentence in (answer, paraphrase):
        n = len(key_places(key, sentence))
        require(
            n == 1, f"{relation.name}: {sentence!r} must have its key {key!r} once, it is there", n
        )
    name = f"{relation.name}:{part}"
    return Document(
        prompt=_filled(relation.question, subject, key),
        answer=answer,
        prompt_paraphrase=_filled(relation.question_paraphrase, subject, key),
        paraphrase=paraphrase,
        wrong=tuple(
            _filled(relation.answer, subject, other)
            for other in _other_keys(relation, part, subject, key)
        ),
        facts=(f"{relation.name}:{subject}",),
        topic=name,
        group=f"{relation.domain}: {subject}",
        key=key,
        completion_prompt=before.rstrip(),
    )


def _other_keys(relation: Relation, part: str, subject: str, key: str) -> list[str]:
    """Three keys that are not the fact's own."""
    near = sorted(set(relation.slices[part].values()) - {key})
    everywhere = set(chain.from_iterable(keys.values() for keys in relation.slices.values()))
    pool = near if len(near) >= WRONG_SENTENCES else sorted(everywhere - {key})
    return random.Random(f"known {relation.name} {subject}").sample(pool, WRONG_SENTENCES)


def _filled(sentence: str, subject: str, key: str) -> str:
    upper = subject[:1].upper() + subject[1:]
    return sentence.replace("{subject}", subject).replace("{Subject}", upper).replace("{key}", key)
