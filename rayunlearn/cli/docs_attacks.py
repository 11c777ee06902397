"""docs/attacks.md, made from the tables: `python -m rayunlearn.cli.docs_attacks >
docs/attacks.md`.
"""

import inspect

from rayunlearn.attacks.base import ATTACK_INPUTS, ATTACK_KINDS, AttackRow
from rayunlearn.attacks.table import ATTACKS
from rayunlearn.cli.docs_metrics import settings_words, table_line

ATTACKS_HEAD = """# Attacks

An attack asks whether what unlearning took away can be recovered. It is a trial of its own; its
rows stand in the same tables with the attack's name in the column `attack`. The same attack always
runs on base and on gold too: base shows how much the attack itself harms an answer that is known,
gold what it gives to a model that never saw the answers. A companion is a further control that runs
beside it.

## How to use it

```
# panel quick on the best trial of every method
rayunlearn attack RUN
# every attack on two trials; what has finished is skipped
rayunlearn attack RUN --trials 3f2a,77b0 --panel full
# shots, rephrasings, training on unrelated text, on every cell
rayunlearn attack RUN --trials grid --panel black_box
# relearning, unrelated text, 4 bits, shots: one seed each, as faithfulness.py does
rayunlearn attack RUN --trials grid --panel coresets
# second names, multi-hop and combined questions, of a run with data.linked=true (or --rephrasings)
rayunlearn attack RUN --panel linked
# of a loaded model: relearning, shots, fillers, 4 bits at its rates; minutes a trial on a processor
rayunlearn attack RUN --trials grid --panel pretrained
# only these
rayunlearn attack RUN --attacks gcg,soft_prompt --seeds 5
# strengths that leave the attacker a model that still works: at most 5% of utility may go
rayunlearn attack RUN --panel full --utility-loss 0.05
rayunlearn attack RUN --text mine.txt --rephrasings mine.jsonl --chat-model some/chat-model
# an externally unlearned model
rayunlearn attack --model theirs --base before --gold never --benchmark wmdp-bio --data wmdp \
    --metric letter_choice --set measure.metrics=cheap,letter_choice
```

The last line audits an externally unlearned model: it becomes the one trial of the run
`runs/audit/<folder>-<id>`. Models load from safetensors only, bring no code, and must have one
vocabulary and one shape. Own files are `--data FOLDER` with `--set data.columns=...` as in
docs/data.md. `--gold` may be missing; then nothing says how much information an attack itself
leaks. An experiment file asks for attacks after its trials with
`ATTACKS = Attacks(panel="black_box", trials="grid")`, and any experiment with
`--set attacks.panel=quick`.

What is printed, and stands in report.html: a row per attack, a column per attacked trial. A cell is
the recovered fraction (attacked - unlearned) / (base - unlearned) with its 95% interval over seeds
and documents (Fieller). 0 is what unlearning left, 1 what base knew; it is negative where the
attack does harm. `most` is the best single seed or tuned strength, chosen by looking at the
documents it is then told of: an upper end, no estimate. The last column is the same attack on gold,
and under the table stands where gold rose. The last row is the worst case, by mean. Attacks that
measure in their own way (linear probes, sampled attempts) have their metric in place of a fraction,
beside base's under the same attack. A second table has the recovery curves of training attacks:
area, steps to half, and the control of equal steps on unrelated text, or what else is a control of
its own. The settings of each attack are in `attacks.parquet`.

**Recovery curves** (table `curves`) have a point before the first step and after every step, up to
100; a longer attack is evaluated every nth step (`--curve-points`, `attack.curve_points`). An
evaluation is one pass with the metric that the objective forgets by (`attack.curve_metric`) over
the forget questions that count, those of held-out facts where facts are held out ([what it
costs](performance.md#attacks)). The area is the trapezoids' over the points; steps to half are read
off the straight line between two of them: exact to the step with every step measured. The curve is
the mean over seeds.

Attacks that train are tuned in the panel full (of them, black_box has unrelated training): six
strengths are asked by Optuna on the first seed, the best runs with three seeds, on base and gold
too, and its companion with the same strength. Searched are 10 to 100 steps and, for relearning,
held-out relearning and unrelated training, a learning rate of 1e-4 to 1e-2; for soft prompts one of
1e-3 to 1e-1. GCG draws replacements and has no learning rate: 8 to 64 candidates a step stand in
its place. Tuned GCG is the most expensive attack of the panel ([what it
costs](performance.md#attacks)): an attacked trial asks for fifteen: six in the search, three seeds
on itself, base and gold.

**What an attack costs its attacker** is measured: `utility_loss` is the share of the objective's
utility that the attacked model lost by the attack, a column of `recovery_table` and of the second
printed table. The search looks at what is recovered alone, because who wants the knowledge need not
care for the rest. `--utility-loss 0.05` (in an experiment `Attacks(utility_loss=0.05)`) bounds the
searched strengths: those that cost more are not feasible for Optuna, and the best of the others is
repeated. Where none is within the bound, the one that cost least is, and a note says so. Attacks
with a fixed strength are not bounded.

**An objective after an attack.** `--set objective.stage=attacked objective.attack=relearning` (or
any other of kinds weights, prompt and tokens) tunes methods for what an attacker gets: every trial,
base and gold too, makes this attack on its own model at its end and is measured again, as stage
`attacked`. The settings of the attack are BASE's (`relearning.steps`), the same for every trial,
and its seed is `train.seed`; so the attacker's budget is the same. What is minimised, and
everywhere shown as forgetting, is what the attack leaves; utility and its floor are those of the
model before it. Gold's value after the same attack stands in its row of the table and in the first
sentence of the report. The attack costs each trial its time (`seconds_attack`). `--set
measure.attack=relearning` alone makes the attack and leaves the objective where it was.
`experiments/lasting.py` compares the two.

NF4 needs bitsandbytes (`pip install 'rayunlearn[quantisation]'`), on a CPU or a GPU, and is in no
panel: `--attacks four_bit_normal_float`. GPTQ and AWQ of the panels are computed here, on any
machine. `--attacks gptq_by_library,awq_by_library` has GPTQModel do it instead, saves in its format
and reads back what a kernel would multiply with; they are in no panel. GPTQ by it runs on a CPU
too, AWQ only on a GPU (no GPU has run it yet). Its releases fix versions of numpy or torch that may
not be ours: install it in an environment of its own (`python -m venv gptq`,
`gptq/bin/pip install "gptqmodel<7.7" torch==2.13.0`) and set
`RAYUNLEARN_GPTQMODEL_PYTHON=gptq/bin/python` wherever trials run. Any other quantised model can be
audited once it is saved as plain safetensors weights.

What to bear in mind:

- **No prompt attack puts a word of the asked answer into the prompt.** Shots and sentences that
  hold one are left out. Where few answers are possible, leaving them out tells something by
  elimination; gold has the same shots.
- **A question that does not allow an attack is left out**, not asked as it was. So n may differ
  between attacks.
- **On the synthetic dataset the fixed texts are in the vocabulary, and were never trained on.**
  Long ones harm base itself ([how much](limits.md)). Read a low value after such an attack next to
  base's under the same attack.
- **Rephrasings** come from a file with the columns doc_id, condition and text, else from the
  synthetic dataset's templates, else from a chat model. A text that holds a word of the answer is
  refused; a chat model is asked three times.
- **Questions by another way** (panel linked): `aliases` asks by a second name of the subject,
  `multi_hop` by another fact whose answer is the subject ("What colour does the neighbour of Zor
  glow?"), `combined` puts a forget and a retain question into one query (2603.11266; BLUR
  2506.15699). The synthetic datasets bring the first two with `data.linked=true`: base then also
  learns the names, the links and these questions, gold those of the retain side, and the forget
  set stays as it is. For other data they come from the file of `--rephrasings`, one row for a
  document and condition:
  `{"doc_id": ..., "condition": "multi_hop", "text": "Who wrote the book that ...?"}` (conditions
  `aliases`, `multi_hop`, `combined`), or from a chat model, which is not asked for `combined`. Each
  has a control that asks in the same form what the answer does not follow from: by another
  subject's name or link, or beside a question of the same side. Where base answers such questions
  badly they say nothing: read its row first. Only synthetic models are trained on them; a model
  that composes facts by itself needs no training for that.
- Prefixes and vectors are found on half of the facts and measured on the other half.
- **A soft prompt has random text beside it**: vectors learned in the same way towards answers of as
  many random tokens. They say two things: what vectors before a question do to an answer that they
  were not trained on (`control`), and how likely random text, which no model knows, can be made
  (`on what it learned from`, split `held_in`). Where that is as high as for the true answers,
  reaching an answer by vectors is no sign of knowing it (2502.15836). `soft_prompt_shuffled`, each
  other's answers, says what the form of an answer alone brings; ask for it by name.
"""

ATTACKS_FOOT = """
Words: [glossary](glossary.md). Made from `rayunlearn/attacks` by
`python -m rayunlearn.cli.docs_attacks`; a test holds the two together.
"""


def attacks_page() -> str:
    """The page as Markdown."""
    table = "| attack | kind | what it does | control | source |\n|---|---|---|---|---|\n"
    rows = "".join(
        table_line(f"`{name}`", row.kind, row.title, row.control, row.source)
        for name, row in ATTACKS.items()
    )
    kinds = "| kind | what its function is |\n|---|---|\n" + "".join(
        table_line(name, meaning) for name, meaning in ATTACK_KINDS.items()
    )
    input_table = "| name | what it is |\n|---|---|\n" + "".join(
        table_line(f"`{name}`", meaning) for name, meaning in ATTACK_INPUTS.items()
    )
    sections = "".join(_section(name, row) for name, row in ATTACKS.items())
    return "\n".join(
        [
            ATTACKS_HEAD,
            "## All of them\n",
            table + rows,
            "## Kinds\n",
            kinds,
            "## What attacks ask for\n",
            input_table,
            "## Definitions\n",
            sections,
            ATTACKS_FOOT.lstrip("\n"),
        ]
    )


def _section(name: str, row: AttackRow) -> str:
    asks = ", ".join(f"`{n}`" for n in row.inputs)
    return (
        f"**{name}**. {inspect.getdoc(row.function)}{settings_words(name, row.function)} Asks for"
        f" {asks}.\n\n"
    )


if __name__ == "__main__":
    print(attacks_page().rstrip())
