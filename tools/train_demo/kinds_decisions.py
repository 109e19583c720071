"""Closed questions for `llm.decide`: is it true, which one, how much; some without a sure answer.

The items hold inputs and questions as a caller writes them. `decision_rows.py` makes prompts of
them by the code that answers them, so training and use cannot differ.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
    PET_NAMES,
    PETS,
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
        other_keys: Content that also appears; see `Item`.
    """

    key: str
    input: DecisionInput
    question: Question[Answer]
    chances: tuple[float, ...]
    answer: int
    other_keys: tuple[str, ...] = field(default=())

    @property
    def is_clear(self) -> bool:
        """Whether only one option can be right."""
        return max(self.chances) == 1.0

    def is_training(self) -> bool:
        """Tell whether nothing in this item is held out."""
        return not any(is_heldout(key) for key in (self.key, *self.other_keys))


DecisionMaker = Callable[[random.Random], DecisionItem]
# How often an input leaves open which option is right.
_OPEN_SHARE = 0.15


def _item(
    rng: random.Random,
    key: str,
    input: DecisionInput,
    question: Question[Answer],
    chances: Sequence[float],
    other_keys: Sequence[str] = (),
) -> DecisionItem:
    """Build an item; draw its answer."""
    answer = rng.choices(range(len(chances)), chances)[0]
    return DecisionItem(key, input, question, tuple(chances), answer, tuple(other_keys))


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


# ------------------------------------------------------------------------------------ predicates

#: Sort -> (subjects, values, statements, claims). The keys are those of the kind `facts`.
_FACTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "pet": (PETS, tuple(dict.fromkeys((*PET_NAMES, *PEOPLE))),
            ("My {s} is called {v}.", "My {s} is named {v}."),
            ("The {s} is called {v}.", "Is the {s} called {v}?")),
    "place": (OBJECTS, PLACES, ("The {s} is in the {v}.", "I put the {s} in the {v}."),
              ("The {s} is in the {v}.", "Is the {s} in the {v}?")),
    "colour": (OBJECTS, COLOURS, ("The {s} is {v}.", "The colour of the {s} is {v}."),
               ("The {s} is {v}.", "Is the {s} {v}?")),
    "home": (PEOPLE, CITIES, ("{s} lives in {v}.", "{s} moved to {v}."),
             ("{s} lives in {v}.", "Does {s} live in {v}?")),
    "food": (PEOPLE, FOODS, ("{s} likes {v}.", "{s} loves {v}."),
             ("{s} likes {v}.", "Does {s} like {v}?")),
    "job": (PEOPLE, JOBS, ("{s} is a {v}.", "{s} works as a {v}."),
            ("{s} is a {v}.", "Is {s} a {v}?")),
    "age": (PEOPLE, tuple(map(str, range(3, 99))), ("{s} is {v} years old.",),
            ("{s} is {v} years old.", "Is {s} {v} years old?")),
}  # fmt: skip
#: Sort -> (questions, keys in JSON) where one of several values is asked for.
_WHICH: dict[str, tuple[tuple[str, ...], tuple[str, str]]] = {
    "pet": (("What is the {s} called?", "What is the name of the {s}?"), ("pet", "name")),
    "place": (("Where is the {s}?", "Which place is the {s} in?"), ("object", "place")),
    "colour": (("What colour is the {s}?", "Which colour does the {s} have?"),
               ("object", "colour")),
    "home": (("Where does {s} live?", "In which city does {s} live?"), ("name", "city")),
    "food": (("What does {s} like?", "Which food does {s} like?"), ("name", "food")),
    "job": (("What is {s}'s job?", "What does {s} do?"), ("name", "job")),
    "age": (("How old is {s}?", "What is {s}'s age?"), ("name", "age")),
}  # fmt: skip


def _ask_if(
    rng: random.Random,
    key: str,
    input: DecisionInput,
    claim: str,
    chance: float,
    other_keys: Sequence[str] = (),
) -> DecisionItem:
    """Ask whether a claim is true, which it is with probability *chance*."""
    if isinstance(input, str) and claim.endswith("?") and rng.random() < 0.1:
        input, claim = f"{input} {claim}", ""
    about = {"true": "yes", "false": "no"} if rng.random() < 0.1 else {}
    question = PredicateQuestion(claim, **about)
    return _item(rng, key, input, question, (chance, 1 - chance), other_keys)


def _drawn_facts(
    rng: random.Random, sort: str, n: int
) -> tuple[list[tuple[str, str]], str, list[dict[str, str]], list[str]]:
    """Draw facts of one sort: (subject and value, text, as JSON, keys), shuffled."""
    subjects, values, statements, _ = _FACTS[sort]
    facts = list(zip(rng.sample(subjects, n), rng.sample(values, n), strict=True))
    text = " ".join(pick(rng, *statements).format(s=s, v=v) for s, v in facts)
    of, value = _WHICH[sort][1]
    keys = [f"fact:{sort}:{s}:{v}" for s, v in facts]
    return facts, text, [{of: s, value: v} for s, v in facts], keys


def fact_predicate(rng: random.Random) -> DecisionItem:
    """One to three facts; one is claimed as it is, or with another value."""
    sort = pick(rng, *_FACTS)
    facts, text, as_json, keys = _drawn_facts(rng, sort, pick(rng, 1, 1, 2, 2, 3))
    asked = rng.randrange(len(facts))
    subject, value = facts[asked]
    key = keys.pop(asked)
    is_true = rng.random() < 0.5
    if not is_true:
        others = [v for _, v in facts if v != value]
        if not others or rng.random() < 0.5:
            others = [v for v in _FACTS[sort][1] if v != value]
        value = pick(rng, *others)
    claim = pick(rng, *_FACTS[sort][3]).format(s=subject, v=value)
    json = as_json[0] if len(as_json) == 1 else as_json
    return _ask_if(rng, key, _placed(rng, text, json), claim, float(is_true), keys)


#: (what has a state, its two states)
_STATES: tuple[tuple[tuple[str, ...], tuple[str, str]], ...] = (
    (DEVICES, ("on", "off")),
    (("door", "window", "gate", "box", "drawer", "shop"), ("open", "closed")),
    (("order", "invoice", "bill", "ticket", "room", "table"), ("paid", "not paid")),
    (("letter", "parcel", "order", "message", "report", "invoice"), ("sent", "not sent")),
)
#: Word -> the probability that what it weakens is so.
_HEDGES = {"probably": 0.8, "perhaps": 0.6}


def state_predicate(rng: random.Random) -> DecisionItem:
    """What is on, open, paid or sent: told surely, with a doubt, or by some of several people."""
    things, states = pick(rng, *_STATES)
    n = pick(rng, 1, 2, 2, 3)
    told = [(thing, pick(rng, 0, 1)) for thing in rng.sample(things, n)]
    numbers = [rng.randrange(1, 100) for _ in told]
    rooms = [pick(rng, *ROOMS) for _ in told]
    is_order = "paid" in states
    named = rng.random() < 0.5
    subjects = [
        f"The {thing}" + ((f" {k}" if is_order else f" in the {room}") if named else "")
        for (thing, _), k, room in zip(told, numbers, rooms, strict=True)
    ]
    keys = [
        f"state:{s.lower()}:{states[i]}" if named else f"state:taught:{thing}"
        for s, (thing, i) in zip(subjects, told, strict=True)
    ]
    sentences = [f"{s} is {states[i]}." for s, (_, i) in zip(subjects, told, strict=True)]
    asked = rng.randrange(n)
    (thing, state), subject = told[asked], subjects[asked]
    key = f"{keys.pop(asked)}:{'+'.join(sentences) if not named else ''}"
    claimed = 0 if is_order or "sent" in states else pick(rng, 0, 1)
    chance = float(state == claimed)
    doubt = rng.random()
    if doubt < _OPEN_SHARE / 2:
        word = pick(rng, *_HEDGES)
        sentences[asked] = f"{subject} is {word} {states[state]}."
        chance = _HEDGES[word] if state == claimed else 1 - _HEDGES[word]
    elif doubt < _OPEN_SHARE:
        people = rng.randrange(2, 6)
        k = rng.randrange(1, people)
        sentences[asked] = (
            f"{k} of {people} people say that {subject[0].lower()}{subject[1:]} is {states[state]}."
        )
        chance = k / people if state == claimed else 1 - k / people
    claim = pick(rng, f"{subject} is {states[claimed]}.",
                 f"Is {subject[0].lower()}{subject[1:]} {states[claimed]}?")  # fmt: skip
    as_json: dict[str, object] | None = None
    if doubt >= _OPEN_SHARE and not named:
        as_json = {t: states[i] for t, i in told}
        if is_order or "sent" in states:
            as_json = {thing: numbers[asked], states[0]: state == 0}
            if rng.random() < 0.5:
                as_json = {**as_json, "name": pick(rng, *PEOPLE)}
    return _ask_if(rng, key, _placed(rng, " ".join(sentences), as_json), claim, chance, keys)


def number_predicate(rng: random.Random) -> DecisionItem:
    """Is a number, or a name, among those mentioned?"""
    n = rng.randrange(1, 5)
    is_number = rng.random() < 0.5
    pool = [*map(str, range(1, 100))] if is_number else [*PEOPLE]
    said, other = rng.sample(pool, n), pick(rng, *pool)
    asked = pick(rng, *said) if rng.random() < 0.5 else other
    listed = said[0] if n == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    if is_number:
        text = pick(rng, "The numbers are {}.", "I have {}.", "We sent {}.").format(listed)
        claim = pick(rng, "The number {} is mentioned.", "Is the number {} mentioned?")
    else:
        text = pick(rng, "I met {}.", "The guests are {}.", "We wrote to {}.").format(listed)
        claim = pick(rng, "{} is mentioned.", "Is {} mentioned?")
    key = f"mention:{'+'.join(said)}:{asked}"
    json = {"numbers": [*map(int, said)]} if is_number else {"names": said}
    return _ask_if(rng, key, _placed(rng, text, json), claim.format(asked), float(asked in said))


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


def topic_choice(rng: random.Random) -> DecisionItem:
    """The topic of a message to a support; of two topics the first one mostly counts."""
    topics = rng.sample(_TOPICS, rng.randrange(2, 6))
    first, second = topics[:2]
    text, key = _message(rng, first)
    chances = {first.names: 1.0}
    if rng.random() < _OPEN_SHARE:
        more, other = _message(rng, second)
        text, key = f"{text} {pick(rng, 'Also: ', 'And: ')}{more}", f"{key}:{other}"
        chances = {first.names: 0.7, second.names: 0.3}
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


def fact_choice(rng: random.Random) -> DecisionItem:
    """One to three facts; the value of one is asked for, among others."""
    sort = pick(rng, *_FACTS)
    facts, text, as_json, keys = _drawn_facts(rng, sort, pick(rng, 1, 1, 2, 2, 3))
    asked = rng.randrange(len(facts))
    subject, value = facts[asked]
    key = keys.pop(asked)
    pool = [v for v in _FACTS[sort][1] if all(v != said for _, said in facts)]
    others = [v for _, v in facts if v != value and rng.random() < 0.7]
    others = (others + rng.sample(pool, 4))[: rng.randrange(1, 5)]
    options = [value, *others]
    rng.shuffle(options)
    question = ChoiceQuestion(pick(rng, *_WHICH[sort][0]).format(s=subject), options)
    json = as_json[0] if len(as_json) == 1 else as_json
    return _item(rng, key, _placed(rng, text, json), question,
                 [float(option == value) for option in options], keys)  # fmt: skip


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


def message_predicate(rng: random.Random) -> DecisionItem:
    """Claims about a message: its topic, whether it is urgent, whether money is wanted back."""
    form = rng.randrange(3)
    if form == 0:
        level = rng.randrange(4)
        text = _cue(rng, "urgency", level, _values(rng))
        claim = pick(rng, "Is it urgent?", "It is urgent.", "urgent",
                     "Does the writer need an answer today?")  # fmt: skip
        return _ask_if(rng, f"urgency:{text}", _placed(rng, text), claim, float(level >= 2))
    about = pick(rng, *_TOPICS)
    text, key = _message(rng, about)
    if form == 1:
        asked = about if rng.random() < 0.5 else pick(rng, *(t for t in _TOPICS if t != about))
        claim = pick(rng, "The message is about {}.", "Is the message about {}?")
        claim = claim.format(pick(rng, *asked.names))
        is_true = asked == about
    else:
        is_true = rng.random() < 0.5
        if is_true:
            about = _TOPICS[0]
        while is_true != ("refund" in text or "money back" in text):
            text, key = _message(rng, about)
        claim = pick(rng, "A refund is requested.", "Does the writer want a refund?", "refund")
    return _ask_if(rng, f"topic:{key}", _placed(rng, text), claim, float(is_true))


#: Kind -> (maker, share of the decisions).
DECISIONS: dict[str, tuple[tuple[DecisionMaker, float], ...]] = {
    "predicate": ((fact_predicate, 0.15), (state_predicate, 0.15), (number_predicate, 0.05),
                  (message_predicate, 0.08)),
    "choice": ((topic_choice, 0.11), (fact_choice, 0.12), (command_choice, 0.07),
               (language_choice, 0.04)),
    "score": ((scale_score, 0.23),),
}  # fmt: skip


#: What options are made of.
WORDS_OF_OPTIONS: tuple[tuple[str, ...], ...] = (
    *(values for _, values, _, _ in _FACTS.values()),
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
        if is_heldout(item.key) if heldout else item.is_training():
            return item
