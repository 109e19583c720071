"""Closed questions for `llm.decide`: is it true, which one, how much; some without a sure answer.

The items hold inputs and questions as a caller writes them. `decision_rows.py` makes prompts of
them by the code that answers them, so training and use cannot differ.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama_cffi import Answer, ChoiceQuestion, Option, PredicateQuestion, Question, ScoreQuestion
from llama_cffi.decisions import DecisionInput

from .items import pick
from .split import is_heldout
from .words import (
    CITIES,
    COLOURS,
    DEVICES,
    FOODS,
    JOBS,
    OBJECTS,
    PEOPLE,
    PLACES,
    ROOMS,
    WEEKDAYS,
)


@dataclass(frozen=True)
class DecisionItem:
    """A question about an input, and how probable each of its options is.

    Attributes:
        key: The content that decides the split.
        input: What the question is about.
        question: The question.
        chances: The probability of each option, in the order of the question's options; one of
            them is 1 where the input is clear.
        answer: The option that is right: drawn with these probabilities.
    """

    key: str
    input: DecisionInput
    question: Question[Answer]
    chances: tuple[float, ...]
    answer: int

    @property
    def is_clear(self) -> bool:
        """Whether only one option can be right."""
        return max(self.chances) == 1.0


DecisionMaker = Callable[[random.Random], DecisionItem]
# How often an input leaves open which option is right.
_OPEN_SHARE = 0.15


def _item(
    rng: random.Random,
    key: str,
    input: DecisionInput,
    question: Question[Answer],
    chances: Sequence[float],
) -> DecisionItem:
    """Build an item; draw its answer."""
    answer = rng.choices(range(len(chances)), chances)[0]
    return DecisionItem(key, input, question, tuple(chances), answer)


def _placed(rng: random.Random, text: str, as_json: DecisionInput | None = None) -> DecisionInput:
    """Return an input as text, as JSON, or as a conversation."""
    form = rng.random()
    if as_json is not None and form < 0.3:
        return as_json
    if form < 0.85:
        return text
    first = pick(rng, "Hello", "Hi", "Hello there")
    greeting = (
        {"role": "user", "content": first},
        {"role": "assistant", "content": "Hello! How can I help you?"},
    )
    said = {"role": "user", "content": text}
    thanks = {"role": "assistant", "content": "Okay, I will remember that."}
    return pick(rng, [said], [*greeting, said], [said, thanks])


# --------------------------------------------------------------------------------------- choices


@dataclass(frozen=True)
class _Topic:
    """A topic of messages: the names it goes by, a description, what people write."""

    names: tuple[str, ...]
    about: str
    messages: tuple[str, ...]


_TOPICS = (
    _Topic(("billing", "money"), "payments and refunds",
           ("I was charged twice.", "The bill is wrong.", "I want my money back.",
            "I paid and have no invoice.", "The price on the bill is too high.",
            "Please refund order {n}.", "I need a refund.")),
    _Topic(("technical support", "support", "tech"), "things that do not work",
           ("My {o} is broken.", "The {o} does not start.", "I get error {n}.",
            "The page does not open.", "The {o} is too hot and stops.",
            "The {o} shows error {n}.")),
    _Topic(("delivery", "shipping"), "parcels on their way",
           ("Where is my parcel?", "Order {n} has not arrived.", "The parcel is late.",
            "The parcel came to the wrong house.", "The driver did not come on {d}.",
            "When will order {n} arrive?")),
    _Topic(("sales", "orders"), "new orders",
           ("I want to buy a {o}.", "Do you have a {c} {o}?", "How much is a {o}?",
            "I want to order {n} more.", "Can I buy the {o} in {c}?", "Do you sell a {o}?")),
    _Topic(("account", "login"), "names and passwords",
           ("I forgot my password.", "I cannot log in.", "Please change my name to {p}.",
            "Please delete my account.", "My new email does not work.", "I want a new password.")),
)  # fmt: skip
_ASK_TOPIC = ("Which team handles this message?", "Which team?", "What is the message about?",
              "team", "Which topic?")  # fmt: skip


def _message(rng: random.Random, topic: _Topic, dressed: bool = True) -> tuple[str, str]:
    """Draw (text, key) of a message, mostly with a greeting or an end that say nothing."""
    values = {"n": str(rng.randrange(10, 100)), "o": pick(rng, *OBJECTS), "c": pick(rng, *COLOURS),
              "d": pick(rng, *WEEKDAYS), "p": pick(rng, *PEOPLE)}  # fmt: skip
    text = pick(rng, *topic.messages).format(**values)
    if dressed:
        before = pick(rng, "", "", f"Hello, this is {values['p']}. ", "Hello! ", "Please help. ")
        after = pick(rng, "", "", " Can you help me?", " Please answer.",
                     f" Call me on {values['d']}.", ", and nobody answers the phone.")  # fmt: skip
        if after.startswith(","):
            text = text[:-1] if text.endswith(".") else f"{text} I am here"
        text = f"{before}{text}{after}"
    return text, f"{topic.names[0]}:{text}"


def _both(
    rng: random.Random, text: str, key: str, first: _Topic, second: _Topic
) -> tuple[str, str, dict[tuple[str, ...], float]]:
    """Let a message of another topic follow: (text, key, probability by names of the topic)."""
    more, other = _message(rng, second)
    text = f"{text} {pick(rng, 'Also: ', 'And: ')}{more}"
    return text, f"{key}:{other}", {first.names: 0.7, second.names: 0.3}


def topic_choice(rng: random.Random) -> DecisionItem:
    """The topic of a message to a support; of two topics the first one mostly counts."""
    topics = rng.sample(_TOPICS, rng.randrange(2, 6))
    first, second = topics[:2]
    text, key = _message(rng, first)
    chances = {first.names: 1.0}
    if rng.random() < _OPEN_SHARE:
        text, key, chances = _both(rng, text, key, first, second)
    rng.shuffle(topics)
    described = rng.random()
    options = [
        Option(pick(rng, *t.names), t.about if described < 0.3 or rng.random() < 0.2 else "")
        for t in topics
    ]
    json = {"from": pick(rng, *PEOPLE), "text": text}
    return _item(rng, f"topic:{key}", _placed(rng, text, json),
                 ChoiceQuestion(pick(rng, *_ASK_TOPIC), options),
                 [chances.get(t.names, 0.0) for t in topics])  # fmt: skip


_ACTIONS = {"turn on": ("Turn on the {d}", "Switch on the {d}"),
            "turn off": ("Turn off the {d}", "Switch off the {d}"),
            "set": ("Set the {d} to {n}",), "repair": ("Please repair the {d}",),
            "clean": ("Please clean the {d}",)}  # fmt: skip


def command_choice(rng: random.Random) -> DecisionItem:
    """Which room, device or action a command is about."""
    device, room, action = pick(rng, *DEVICES), pick(rng, *ROOMS), pick(rng, *_ACTIONS)
    asked = pick(rng, *_ACTIONS[action]).format(d=device, n=rng.randrange(5, 100))
    text = f"{asked} in the {room}."
    value, pool, question = pick(
        rng,
        (device, DEVICES, ("Which device?", "device", "Which device is meant?")),
        (room, ROOMS, ("Which room?", "room", "Which room is meant?")),
        (action, tuple(_ACTIONS), ("Which action?", "action", "What is to be done?")),
    )
    options = [value, *rng.sample([v for v in pool if v != value], rng.randrange(1, 5))]
    rng.shuffle(options)
    return _item(rng, f"command:{action}:{device}:{room}", _placed(rng, text),
                 ChoiceQuestion(pick(rng, *question), options),
                 [float(option == value) for option in options])  # fmt: skip


#: Language -> (code, subjects, predicates).
_LANGUAGES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "English": ("en", ("The house", "The dog", "The book", "The train", "My friend", "The city"),
                ("is big.", "is not here.", "is very old.", "is new.", "was good.", "is there.")),
    "German": ("de", ("Das Haus", "Der Hund", "Das Buch", "Der Zug", "Mein Freund", "Die Stadt"),
               ("ist gro\u00df.", "ist nicht hier.", "ist sehr alt.", "ist neu.", "war gut.",
                "ist dort.")),
    "French": ("fr", ("La maison", "Le chien", "Le livre", "Le train", "Mon ami", "La ville"),
               ("est grande.", "n'est pas ici.", "est tr\u00e8s vieux.", "est nouveau.",
                "\u00e9tait bon.", "est l\u00e0.")),
    "Spanish": ("es", ("La casa", "El perro", "El libro", "El tren", "Mi amigo", "La ciudad"),
                ("es grande.", "no est\u00e1 aqu\u00ed.", "es muy viejo.", "es nuevo.",
                 "era bueno.", "est\u00e1 all\u00ed.")),
}  # fmt: skip


def language_choice(rng: random.Random) -> DecisionItem:
    """The language of a sentence."""
    language = pick(rng, *_LANGUAGES)
    _, subjects, predicates = _LANGUAGES[language]
    text = f"{pick(rng, *subjects)} {pick(rng, *predicates)}"
    if language == "English" and rng.random() < 0.5:
        text, _ = _message(rng, pick(rng, *_TOPICS))
    names = [language, *rng.sample([n for n in _LANGUAGES if n != language], rng.randrange(1, 4))]
    rng.shuffle(names)
    form = rng.random()
    options = [
        Option(n) if form < 0.4 else Option(_LANGUAGES[n][0], n if form > 0.8 else "")
        for n in names
    ]
    question = pick(rng, "Which language is it written in?", "Which language?", "language",
                    "What language is this?")  # fmt: skip
    return _item(rng, f"language:{text}", _placed(rng, text), ChoiceQuestion(question, options),
                 [float(n == language) for n in names])  # fmt: skip


# ---------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class _Scale:
    """Ordered levels, the questions about them, and what tells each of them."""

    questions: tuple[str, ...]
    levels: tuple[str, ...]
    cues: tuple[tuple[str, ...], ...]


_ANGER = _Scale(
    ("How angry is the writer?", "How angry is the customer?", "anger"),
    ("calm", "annoyed", "angry", "furious"),
    (("Thank you for your help.", "No problem at all.", "Take your time.", "All is well."),
     ("It is slow again.", "I do not like this.", "Why is it so slow?", "Not again."),
     ("I am not happy at all.", "This is bad work.", "I want my money back.", "Nobody helps me."),
     ("I will never buy here again!", "You are all thieves!", "I hate this shop!",
      "This is the worst day of my life!")),
)  # fmt: skip
_URGENCY = _Scale(
    ("How urgent is it?", "How urgent is this message?", "urgency"),
    ("low", "normal", "high", "critical"),
    (("There is no hurry.", "Answer when you have time.", "It can wait.", "Next month is fine."),
     ("Please answer this week.", "I need it by {d}.", "Please answer in three days.",
      "{d} is fine."),
     ("Please answer today.", "I need it today.", "I need it this evening.", "Today, please."),
     ("Answer now!", "Help! Fire!", "I need it now!", "Call the doctor now!")),
)  # fmt: skip
_RATING = _Scale(
    ("How good was it?", "How did the guest like it?", "rating"),
    ("terrible", "bad", "okay", "good", "great"),
    (("I hated the {f}.", "1 of 5 stars for the {f}.", "The {f} made me sick."),
     ("I did not like the {f}.", "2 of 5 stars for the {f}.", "The {f} was cold."),
     ("The {f} was fine.", "3 of 5 stars for the {f}.", "The {f} was like every day."),
     ("I liked the {f}.", "4 of 5 stars for the {f}.", "The {f} was nice."),
     ("I loved the {f}!", "5 of 5 stars for the {f}.", "The best {f} of my life!")),
)  # fmt: skip
_WARMTH = _Scale(
    ("How warm is it?", "How warm is it there?", "warmth"),
    ("freezing", "cold", "cool", "warm", "hot"),
    (("It is -{n} degrees in {c}.", "{c} is full of ice and snow."),
     ("It is {n} degrees in {c}.", "You need a coat in {c}."),
     ("It is 1{n} degrees in {c}.", "The evening in {c} is fresh."),
     ("It is 2{n} degrees in {c}.", "It is a nice summer day in {c}."),
     ("It is 3{n} degrees in {c}.", "The sun burns in {c}.")),
)  # fmt: skip
_FULLNESS = _Scale(
    ("How full is it?", "How full is the {o}?", "fullness"),
    ("empty", "nearly empty", "half full", "nearly full", "full"),
    (("There is nothing in the {o}.", "The {o} is 0 % full."),
     ("There is little in the {o}.", "The {o} is 1{n} % full."),
     ("Half of the {o} is used.", "The {o} is 5{n} % full."),
     ("There is a little space in the {o}.", "The {o} is 8{n} % full."),
     ("Nothing more goes into the {o}.", "The {o} is 100 % full.")),
)  # fmt: skip
_SCALES = {"anger": _ANGER, "urgency": _URGENCY, "rating": _RATING, "warmth": _WARMTH,
           "fullness": _FULLNESS}  # fmt: skip


def _cue(rng: random.Random, name: str, level: int, values: dict[str, str]) -> str:
    """Draw a sentence that tells a level."""
    text = pick(rng, *_SCALES[name].cues[level]).format(**values)
    if name in ("anger", "urgency"):
        topic, _ = _message(rng, pick(rng, *_TOPICS[1:]), dressed=False)
        text = pick(rng, text, f"{topic} {text}", f"{topic} {text}")
    return text


def _values(rng: random.Random) -> dict[str, str]:
    return {"n": str(rng.randrange(1, 10)), "c": pick(rng, *CITIES), "f": pick(rng, *FOODS),
            "o": pick(rng, "box", "bag", "cup", "bottle", "basket", "drawer", "car", "boat"),
            "d": pick(rng, *WEEKDAYS)}  # fmt: skip


def scale_score(rng: random.Random) -> DecisionItem:
    """How angry, urgent, good, warm or full; of two that disagree the first counts a bit more."""
    name = pick(rng, *_SCALES)
    scale, values = _SCALES[name], _values(rng)
    n = rng.randrange(3, len(scale.levels) + 1)
    levels = sorted(rng.sample(range(len(scale.levels)), n))
    level = pick(rng, *levels)
    text, chances = _cue(rng, name, level, values), {level: 1.0}
    if rng.random() < _OPEN_SHARE:
        other = pick(rng, *(i for i in levels if i != level))
        text = f"{text} {pick(rng, 'But: ', 'Or: ')}{_cue(rng, name, other, values)}"
        chances = {level: 0.6, other: 0.4}
    question = ScoreQuestion(
        pick(rng, *scale.questions).format(**values), [scale.levels[i] for i in levels]
    )
    json = {"from": pick(rng, *PEOPLE), "text": text}
    return _item(rng, f"{name}:{text}", _placed(rng, text, json), question,
                 [chances.get(i, 0.0) for i in levels])  # fmt: skip


# ------------------------------------------------------------------------------------ predicates


def _ask_if(
    rng: random.Random, key: str, input: DecisionInput, claim: str, chance: float
) -> DecisionItem:
    """Ask whether a claim is true, which it is with probability *chance*."""
    if isinstance(input, str) and claim.endswith("?") and rng.random() < 0.1:
        input, claim = f"{input} {claim}", ""
    about = {"true": "yes", "false": "no"} if rng.random() < 0.1 else {}
    question = PredicateQuestion(claim, **about)
    return _item(rng, key, input, question, (chance, 1 - chance))


def _about(rng: random.Random) -> DecisionItem:
    """Is a message about a topic? Of two topics the first one mostly counts."""
    first, second = rng.sample(_TOPICS, 2)
    text, key = _message(rng, first)
    chances = {first.names: 1.0}
    if rng.random() < 2 * _OPEN_SHARE:
        text, key, chances = _both(rng, text, key, first, second)
    asked = pick(rng, first, second, first, pick(rng, *_TOPICS))
    claim = pick(rng, "The message is about {}.", "Is the message about {}?")
    claim = claim.format(pick(rng, *asked.names))
    return _ask_if(rng, f"topic:{key}", _placed(rng, text), claim, chances.get(asked.names, 0.0))


def _wants_refund(rng: random.Random) -> DecisionItem:
    """Is money wanted back?"""
    is_true = rng.random() < 0.5
    about = _TOPICS[0] if is_true else pick(rng, *_TOPICS)
    text, key = _message(rng, about)
    while is_true != ("refund" in text or "money back" in text):
        text, key = _message(rng, about)
    claim = pick(rng, "A refund is requested.", "Does the writer want a refund?", "refund")
    return _ask_if(rng, f"topic:{key}", _placed(rng, text), claim, float(is_true))


def _is_urgent(rng: random.Random) -> DecisionItem:
    """Is an answer needed today?"""
    level = rng.randrange(4)
    text = _cue(rng, "urgency", level, _values(rng))
    claim = pick(rng, "Is it urgent?", "It is urgent.", "urgent",
                 "Does the writer need an answer today?")  # fmt: skip
    return _ask_if(rng, f"urgency:{text}", _placed(rng, text), claim, float(level >= 2))


def _is_angry(rng: random.Random) -> DecisionItem:
    """Is the writer angry?"""
    level = rng.randrange(4)
    text = _cue(rng, "anger", level, _values(rng))
    claim = pick(rng, "Is the writer angry?", "The customer is angry.", "angry")
    return _ask_if(rng, f"anger:{text}", _placed(rng, text), claim, float(level >= 2))


def message_predicate(rng: random.Random) -> DecisionItem:
    """A claim about a message: its topic, hurry, anger, or whether money is wanted back."""
    return pick(rng, _about, _about, _wants_refund, _is_urgent, _is_angry)(rng)


#: Kind -> (maker, share of the decisions).
DECISIONS: dict[str, tuple[tuple[DecisionMaker, float], ...]] = {
    "predicate": ((message_predicate, 0.33),),
    "choice": ((topic_choice, 0.2), (command_choice, 0.14), (language_choice, 0.08)),
    "score": ((scale_score, 0.25),),
}  # fmt: skip


#: What options are made of.
WORDS_OF_OPTIONS: tuple[tuple[str, ...], ...] = (
    PLACES,
    COLOURS,
    JOBS,
    FOODS,
    DEVICES,
    ROOMS,
    tuple(name for topic in _TOPICS for name in topic.names),
    tuple(level for scale in _SCALES.values() for level in scale.levels),
)


def decision(rng: random.Random, kind: str | None = None, heldout: bool = False) -> DecisionItem:
    """Draw a decision on the wanted side of the split.

    Args:
        rng: The source of randomness.
        kind: `predicate`, `choice` or `score`; None draws one.
        heldout: Whether its content is held out.
    """
    every = [pair for pairs in DECISIONS.values() for pair in pairs]
    makers = DECISIONS[kind] if kind else every
    while True:
        make = rng.choices([maker for maker, _ in makers], [share for _, share in makers])[0]
        item = make(rng)
        if is_heldout(item.key) == heldout:
            return item
