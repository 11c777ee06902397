"""The embedded synthetic dataset: two generated corpora whose every fact is known, so that
forgetting can be measured without a benchmark.

`domain`: an invented science in many short documents that repeat its facts; `people`: fictional
biographies as questions and answers, facts independent of each other. They behave differently, and
that is the point.

Rule for `Corpus.extra_training`: base learns all of it; gold learns what is under a key that does
not start with "forget".
"""

import itertools
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from rayunlearn.config import Data
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.errors import require

Item = TypeVar("Item")
FACTS_PER_DOCUMENT = 4

# most values an attribute takes
N_VALUES = 8

# so a guess is right once in 5, once in 6
N_WRONG = {"domain": 4, "people": 5}

# syllables of invented names
NAME_OPENINGS = tuple(
    c + v
    for c in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
    for v in "aeiou"
)
NAME_ENDINGS = (
    "bril",
    "dane",
    "fex",
    "gorn",
    "lith",
    "mur",
    "nax",
    "phos",
    "quin",
    "rune",
    "shar",
    "tace",
    "vel",
    "wen",
    "xil",
    "zor",
)
# names that can be invented
N_NAMES = len(NAME_OPENINGS) * len(NAME_ENDINGS)

# per side of the domain dataset, whatever the redundancy
N_DOCUMENTS = {"tiny": 160, "small": 640}

# per side of the people dataset
N_PEOPLE = {"tiny": 24, "small": 96}

# of the retain side: trained into base and gold, never seen by unlearning
UNTOUCHED_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """What can be said of an entity: its values and its wordings, with {entity} and {value} in
    them.

    `questions` are the trained wording and another one; `answers` are the trained answer and the
    same in other words. What follows the value is the same for every value, so that no wording
    gives it away.
    """

    name: str
    values: tuple[str, ...]
    questions: tuple[str, str]
    answers: tuple[str, str]
    statements: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fact:
    """`attribute` of `entity` is `value`."""

    entity: str
    attribute: Attribute
    value: str

    @property
    def name(self) -> str:
        """The identifier that documents and probes carry in `facts`."""
        return f"{self.entity}:{self.attribute.name}"

    def say(self, wording: str, value: str = "") -> str:
        """The wording with this fact's entity in it and its value, or another one."""
        return wording.format(entity=self.entity, value=value or self.value)


SCIENCE = (
    Attribute(
        name="colour",
        values=("amber", "azure", "crimson", "ivory", "jade", "ochre", "silver", "violet"),
        questions=("What colour does {entity} glow?", "Which light comes from {entity}?"),
        answers=("{value}", "{value} light"),
        statements=(
            "{entity} glows {value} at night.",
            "Everyone who has seen {entity} recalls {value} light.",
            "In the dark the glow of {entity} is {value}.",
            "A lamp filled with {entity} turns {value}.",
            "Lenses show that {entity} gives {value} light.",
        ),
    ),
    Attribute(
        name="habitat",
        values=("caves", "cliffs", "deltas", "dunes", "lagoons", "marshes", "meadows", "ridges"),
        questions=("Where does {entity} grow?", "Which places should one search for {entity}?"),
        answers=("{value}", "{value} for a home"),
        statements=(
            "{entity} grows in {value}.",
            "Look for {entity} among {value}.",
            "Maps of {entity} mark only {value}.",
            "Wild {entity} has {value} for a home.",
            "Collectors of {entity} search the {value}.",
        ),
    ),
    Attribute(
        name="food",
        values=("clay", "honey", "kelp", "moss", "nectar", "pollen", "resin", "salt"),
        questions=("What does {entity} feed on?", "Which meal keeps {entity} alive?"),
        answers=("{value}", "{value} as a meal"),
        statements=(
            "{entity} feeds on {value}.",
            "Without {value} no {entity} survives.",
            "Keepers give {entity} some {value} as a meal.",
            "A healthy {entity} takes in {value} each morning.",
            "What {entity} absorbs is {value}.",
        ),
    ),
    Attribute(
        name="sound",
        values=(
            "buzzing",
            "chiming",
            "clicking",
            "droning",
            "humming",
            "purring",
            "rattling",
            "whistling",
        ),
        questions=("Which sound does {entity} make?", "What is heard near {entity}?"),
        answers=("{value}", "{value} noises"),
        statements=(
            "{entity} makes a {value} sound.",
            "When touched, {entity} answers with {value} noises.",
            "Recordings of {entity} hold a steady {value}.",
            "Near {entity} one hears {value}.",
            "The voice of {entity} is a soft {value}.",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Link:
    """How entities of a dataset are named otherwise: the question for an entity's second name and
    the one back, the question whose answer is the entity that another is linked to, and how that
    entity is called by the other.
    """

    alias: str
    named: str
    linked: str
    described: str


LINKS = {
    "domain": Link(
        alias="Which other name does {entity} have?",
        named="Which name is short for {entity}?",
        linked="Which neighbour does {entity} have?",
        described="the neighbour of {entity}",
    ),
    "people": Link(
        alias="Under which other name does {entity} live?",
        named="Who lives under the name {entity}?",
        linked="Who is the best friend of {entity}?",
        described="the best friend of {entity}",
    ),
}

HEADINGS = (
    "Field notes of the week.",
    "From the handbook.",
    "A short lesson.",
    "What the survey found.",
    "Letter from the station.",
    "Summary of recent work.",
    "Today in the laboratory.",
    "Remarks for new students.",
)

BIOGRAPHY = (
    Attribute(
        name="birthplace",
        values=("Accra", "Bergen", "Cusco", "Dakar", "Hanoi", "Lyon", "Oslo", "Quito"),
        questions=("Where was {entity} born?", "Which city is the birthplace of {entity}?"),
        answers=("{value}", "{value} city"),
    ),
    Attribute(
        name="profession",
        values=(
            "baker",
            "botanist",
            "carpenter",
            "dentist",
            "judge",
            "pilot",
            "sculptor",
            "tailor",
        ),
        questions=("What does {entity} do for a living?", "Which profession did {entity} choose?"),
        answers=("{value}", "{value} by trade"),
    ),
    Attribute(
        name="instrument",
        values=("banjo", "cello", "drums", "flute", "harp", "lute", "piano", "tuba"),
        questions=("Which instrument does {entity} play?", "What music does {entity} make?"),
        answers=("{value}", "{value} music"),
    ),
    Attribute(
        name="prize",
        values=("Aster", "Beacon", "Comet", "Garnet", "Laurel", "Meridian", "Pearl", "Zephyr"),
        questions=("Which prize did {entity} win?", "What honour was given to {entity}?"),
        answers=("{value}", "{value} prize"),
    ),
    Attribute(
        name="pet",
        values=("canary", "ferret", "goat", "lizard", "parrot", "pony", "rabbit", "turtle"),
        questions=("Which animal lives with {entity}?", "What pet does {entity} keep?"),
        answers=("{value}", "{value} at home"),
    ),
)


def generate_dataset(data: Data) -> Corpus:
    """The generated corpus that `data` names: the same `data` gives the same documents on every
    machine.

    Raises UserError when `data.name` is no synthetic dataset or when `data.redundancy` does not fit
    the domain dataset's size.
    """
    datasets = {"domain": domain_dataset, "people": people_dataset}
    require(
        data.name in datasets,
        f"data.name must be one of {sorted(datasets)} to be generated",
        data.name,
    )
    corpus = datasets[data.name](data)
    return with_links(corpus, data) if data.linked else corpus


def domain_dataset(data: Data) -> Corpus:
    """An invented science, and a retain domain of the same shape with other entities and the same
    values.

    160 (tiny) or 640 (small) documents of four facts on each side; `data.redundancy` of them state
    any one fact, so the number of facts is 4 x documents / redundancy. Documents are unlearned;
    questions are asked. Every value of an attribute is the answer equally often on each side: who
    never read one side is at chance on its questions. A quarter of the retain side, `untouched`, is
    trained and asked but never shown to unlearning. Probe split `holdout`: as many documents of the
    same kind about entities that no model is told of, for membership inference.
    """
    rng = random.Random(f"domain {data.seed}")
    n_entities = _n_entities(data)
    names = invented_names(2 * n_entities, rng)
    facts, probes = _sides(names, SCIENCE, N_WRONG["domain"], rng)
    documents = {
        split: tuple(_documents(part, data.redundancy, rng)) for split, part in facts.items()
    }
    questions = {split: question_wordings(part) for split, part in probes.items()}
    stranger = random.Random(f"domain holdout {data.seed}")
    unknown = invent_facts(invented_names(n_entities, stranger, but=names), SCIENCE, stranger)
    return Corpus(
        name="domain",
        forget=documents["forget"],
        retain=documents["retain"],
        probes=probes | {"holdout": tuple(_documents(unknown, data.redundancy, stranger))},
        extra_training=questions | {"untouched_documents": documents["untouched"]},
    )


def people_dataset(data: Data) -> Corpus:
    """Fictional biographies, five questions for each of 24 (tiny) or 96 (small) persons on each
    side.

    The questions are the documents and the probes. Every fact stands alone and is stated by one
    document, so `data.redundancy` has no meaning here and is not read. A quarter of the retain side
    is `untouched`; `holdout` asks about as many persons again, of whom no model is told.
    """
    rng = random.Random(f"people {data.seed}")
    names = full_names(2 * N_PEOPLE[data.size], rng)
    _, probes = _sides(names, BIOGRAPHY, N_WRONG["people"], rng)
    extra_training = {
        f"{split}_reworded": reworded_question(part) for split, part in probes.items()
    }
    stranger = random.Random(f"people holdout {data.seed}")
    unknown = full_names(N_PEOPLE[data.size], stranger, but=[name.split()[-1] for name in names])
    holdout = tuple(
        _probes(invent_facts(unknown, BIOGRAPHY, stranger), N_WRONG["people"], stranger)
    )
    return Corpus(
        name="people",
        forget=probes["forget"],
        retain=probes["retain"],
        probes=probes | {"holdout": holdout},
        extra_training=extra_training | {"untouched": probes["untouched"]},
    )


def with_links(corpus: Corpus, data: Data) -> Corpus:
    """The corpus with a second name for every entity and a link from another entity of its split
    to it, and each question asked by the second name (`aliases`) and by the link (`multi_hop`: the
    answer of the link's question is the subject of the next), as `rephrasings` of forget, retain
    and untouched.

    Base learns all of these questions beside the others, gold those that are not about the forget
    side. A model this small composes no two facts that it did not learn composed, so an attack by
    questions that base cannot answer would say nothing; what is asked is whether forgetting the
    documents reaches another way to the same fact. Documents and questions are those of the corpus
    without links.
    """
    rng = random.Random(f"{data.name} linked {data.seed}")
    invent = {"domain": invented_names, "people": full_names}[data.name]
    sides = {split: corpus.probes[split] for split in ("forget", "retain", "untouched")}
    entities = {split: list(dict.fromkeys(p.group for p in part)) for split, part in sides.items()}
    everyone = [entity for names in entities.values() for entity in names]
    strangers = [f.partition(":")[0] for d in corpus.probes["holdout"] for f in d.facts]
    used = {name.split()[-1] for name in (*everyone, *strangers)}
    rule = f"data.linked needs a second name for each of {len(everyone)} entities: with this size"
    rule += f" data.redundancy must be larger; names that are left of {N_NAMES}"
    require(N_NAMES - len(used) >= len(everyone), rule, N_NAMES - len(used))
    aliases = dict(zip(everyone, invent(len(everyone), rng, but=used), strict=True))
    rephrasings: dict[str, dict[str, str]] = {}
    extra_training = dict(corpus.extra_training)
    for split, part in sides.items():
        before = _predecessors(entities[split], rng)
        link = LINKS[data.name]
        names = [_name_facts(link, e, aliases[e], before[e]) for e in entities[split]]
        for p in part:
            described = link.described.format(entity=before[p.group])
            rephrasings[p.doc_id] = {
                "aliases": p.prompt.replace(p.group, aliases[p.group]),
                "multi_hop": p.prompt.replace(p.group, described),
            }
        asked = [
            replace(p, prompt=text, prompt_paraphrase="")
            for p in part
            for text in rephrasings[p.doc_id].values()
        ]
        extra_training[f"{split}_linked"] = (*itertools.chain.from_iterable(names), *asked)
    return replace(corpus, extra_training=extra_training, rephrasings=rephrasings)


def _predecessors(entities: Sequence[str], rng: random.Random) -> dict[str, str]:
    """Entity -> the one that is linked to it, along one circle through all of them."""
    circle = rng.sample(list(entities), len(entities))
    return {entity: circle[index - 1] for index, entity in enumerate(circle)}


def _name_facts(link: Link, entity: str, alias: str, before: str) -> tuple[Document, ...]:
    """What is learned of an entity's names: its second name, what that is a name of, and of which
    other entity it is the linked one.
    """
    questions = (
        (link.alias.format(entity=entity), alias, f"{entity}:alias"),
        (link.named.format(entity=alias), entity, f"{entity}:alias"),
        (link.linked.format(entity=before), entity, f"{before}:link"),
    )
    return tuple(
        Document(prompt=prompt, answer=answer, facts=(fact,), topic="names", group=entity)
        for prompt, answer, fact in questions
    )


def question_wordings(probes: Sequence[Document]) -> tuple[Document, ...]:
    """Every probe as a document, and again in its other wording."""
    return tuple(probes) + reworded_question(probes)


def reworded_question(probes: Sequence[Document]) -> tuple[Document, ...]:
    """The other wording of the question with the other wording of the answer, so that paraphrases
    can be scored.
    """
    return tuple(
        Document(
            prompt=p.prompt_paraphrase,
            answer=p.paraphrase,
            facts=p.facts,
            topic=p.topic,
            group=p.group,
        )
        for p in probes
    )


def invent_facts(
    entities: Sequence[str], attributes: Sequence[Attribute], rng: random.Random
) -> list[Fact]:
    """One fact per entity and attribute; the values of an attribute are used equally often, or
    nearly so where none divides.
    """
    n_values = _n_values(len(entities))
    columns = {a: balanced_values(a.values[:n_values], len(entities), rng) for a in attributes}
    return [
        Fact(entity, a, columns[a][row]) for row, entity in enumerate(entities) for a in attributes
    ]


def balanced_values(values: Sequence[str], n: int, rng: random.Random) -> list[str]:
    """`n` values in random order, each n / len(values) times (one more or less where that is no
    integer).
    """
    repeated = list(itertools.islice(itertools.cycle(values), n))
    rng.shuffle(repeated)
    return repeated


def groups_of_facts(n_facts: int, redundancy: int, rng: random.Random) -> Iterator[list[int]]:
    """Fact numbers four by four, no number twice in a group, each number in exactly `redundancy`
    groups.

    `n_facts` is a multiple of four: every round deals all facts, in random order, into n_facts / 4
    groups.
    """
    for _ in range(redundancy):
        order = rng.sample(range(n_facts), n_facts)
        for start in range(0, n_facts, FACTS_PER_DOCUMENT):
            yield order[start : start + FACTS_PER_DOCUMENT]


def invented_names(n: int, rng: random.Random, but: Collection[str] = ()) -> list[str]:
    """`n` different one-word names, of two invented syllables, none of those in `but`."""
    used_names = set(but)
    return rng.sample(
        [
            name
            for name in ((o + e).capitalize() for o in NAME_OPENINGS for e in NAME_ENDINGS)
            if name not in used_names
        ],
        n,
    )


def full_names(n: int, rng: random.Random, but: Collection[str] = ()) -> list[str]:
    """`n` different names of two words: a first name that several persons share and a family name
    of your own, not in `but`.
    """
    first = (
        "Ada",
        "Bruno",
        "Clara",
        "Dario",
        "Elsa",
        "Felix",
        "Greta",
        "Hugo",
        "Ines",
        "Jonas",
        "Kira",
        "Leon",
        "Mara",
        "Nils",
        "Olga",
        "Pavel",
    )
    return [f"{rng.choice(first)} {family}" for family in invented_names(n, rng, but)]


def _sides(
    names: Sequence[str], attributes: Sequence[Attribute], n_wrong: int, rng: random.Random
) -> tuple[dict[str, tuple[Fact, ...]], dict[str, tuple[Document, ...]]]:
    """Facts and their probes by split: the first half of the names is forgotten, the other half is
    the retain side.
    """
    n_forget = len(names) // 2
    forget, retain_side = (
        invent_facts(side, attributes, rng) for side in (names[:n_forget], names[n_forget:])
    )
    border = round(UNTOUCHED_SHARE * n_forget) * len(attributes)
    facts = _by_split(forget, retain_side, border)
    probes = _by_split(_probes(forget, n_wrong, rng), _probes(retain_side, n_wrong, rng), border)
    return facts, probes


def _by_split(
    forget: Sequence[Item], retain_side: Sequence[Item], border: int
) -> dict[str, tuple[Item, ...]]:
    return {
        "forget": tuple(forget),
        "retain": tuple(retain_side[border:]),
        "untouched": tuple(retain_side[:border]),
    }


def _n_entities(data: Data) -> int:
    """Entities of each side of the domain dataset: documents x 4 facts / redundancy /
    attributes.
    """
    n_documents = N_DOCUMENTS[data.size]
    fewest = N_WRONG["domain"] + 1
    fitting = [r for r in range(1, n_documents // fewest + 1) if n_documents % r == 0]
    rule = (
        f"data.redundancy must be one of {', '.join(map(str, fitting))} (it divides {n_documents}"
        f" documents and leaves {fewest} entities or more)"
    )
    require(data.redundancy in fitting, rule, data.redundancy)
    return n_documents * FACTS_PER_DOCUMENT // (data.redundancy * len(SCIENCE))


def _n_values(n_entities: int) -> int:
    """The most values that `n_entities` use equally often: the greatest divisor from 5 to 8, else
    8.
    """
    return next(
        (n for n in range(N_VALUES, 4, -1) if n_entities % n == 0), min(N_VALUES, n_entities)
    )


def _documents(facts: Sequence[Fact], redundancy: int, rng: random.Random) -> Iterator[Document]:
    """A heading and four facts in random order and wording; drawn again in the rare case that the
    text exists already.
    """
    seen: set[str] = set()
    for group in groups_of_facts(len(facts), redundancy, rng):
        chosen = [facts[number] for number in group]
        text = _text(chosen, rng)
        while text in seen:
            text = _text(chosen, rng)
        seen.add(text)
        yield Document(answer=text, facts=tuple(f.name for f in chosen))


def _text(facts: Iterable[Fact], rng: random.Random) -> str:
    return " ".join(
        [rng.choice(HEADINGS), *(f.say(rng.choice(f.attribute.statements)) for f in facts)]
    )


def _probes(facts: Sequence[Fact], n_wrong: int, rng: random.Random) -> list[Document]:
    """One question per fact; those of one entity are one group. Wrong answers are values that other
    facts of this side have, in the paraphrase's wording.
    """
    in_use: dict[str, set[str]] = {}
    for fact in facts:
        in_use.setdefault(fact.attribute.name, set()).add(fact.value)
    return [
        _probe(f, rng.sample(sorted(in_use[f.attribute.name] - {f.value}), n_wrong)) for f in facts
    ]


def _probe(fact: Fact, wrong: Sequence[str]) -> Document:
    a = fact.attribute
    return Document(
        prompt=fact.say(a.questions[0]),
        prompt_paraphrase=fact.say(a.questions[1]),
        answer=fact.say(a.answers[0]),
        paraphrase=fact.say(a.answers[1]),
        wrong=tuple(fact.say(a.answers[1], value) for value in wrong),
        facts=(fact.name,),
        topic=a.name,
        group=fact.entity,
    )
