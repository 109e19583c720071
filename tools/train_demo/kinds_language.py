"""Facts to look up, JSON actions, stories and small talk."""

from __future__ import annotations

import random
from collections.abc import Callable

from .items import Item, ask, pick
from .template import Message, to_json
from .words import (
    ANIMALS,
    CITIES,
    COLOURS,
    DEVICES,
    FOODS,
    GENRES,
    JOBS,
    OBJECTS,
    PEOPLE,
    PET_NAMES,
    PETS,
    PLACES,
    ROOMS,
    TASKS,
)

#: (subject, value) of a fact -> (statements, questions, answer)
_Relation = tuple[
    str, tuple[str, ...], Callable[[random.Random], str], tuple[str, ...], tuple[str, ...], str
]


def _code(rng: random.Random) -> str:
    return "".join(str(rng.randrange(10)) for _ in range(rng.randrange(3, 6)))


def _name(rng: random.Random) -> str:
    return pick(rng, *PET_NAMES, *PEOPLE)


_CALLED = ("My {s} is called {v}.", "My {s} is named {v}.", "I have a {s} called {v}.",
           "The name of my {s} is {v}.")  # fmt: skip
_RELATIONS: tuple[_Relation, ...] = (
    ("pet", PETS, _name, _CALLED,
     ("What is my {s} called?", "What is the name of my {s}?", "What is my {s}'s name?",
      "Do you remember the name of my {s}?"), "Your {s} is called {v}."),
    ("place", OBJECTS, lambda r: pick(r, *PLACES),
     ("The {s} is in the {v}.", "I put the {s} in the {v}.", "You can find the {s} in the {v}."),
     ("Where is the {s}?", "Where can I find the {s}?"), "The {s} is in the {v}."),
    ("colour", OBJECTS, lambda r: pick(r, *COLOURS),
     ("The {s} is {v}.", "The colour of the {s} is {v}."),
     ("What colour is the {s}?", "Which colour does the {s} have?"), "The {s} is {v}."),
    ("home", PEOPLE, lambda r: pick(r, *CITIES), ("{s} lives in {v}.", "{s} moved to {v}."),
     ("Where does {s} live?", "In which city does {s} live?"), "{s} lives in {v}."),
    ("food", PEOPLE, lambda r: pick(r, *FOODS), ("{s} likes {v}.", "{s} loves {v}."),
     ("What does {s} like?", "Which food does {s} like?"), "{s} likes {v}."),
    ("job", PEOPLE, lambda r: pick(r, *JOBS), ("{s} is a {v}.", "{s} works as a {v}."),
     ("What is {s}'s job?", "What does {s} do?"), "{s} is a {v}."),
    ("age", PEOPLE, lambda r: str(r.randrange(3, 99)), ("{s} is {v} years old.",),
     ("How old is {s}?", "What is {s}'s age?"), "{s} is {v} years old."),
    ("code", PLACES, _code, ("The code for the {s} is {v}.", "The {s} code is {v}."),
     ("What is the code for the {s}?", "What is the {s} code?"), "The code for the {s} is {v}."),
    ("own", ("name",), lambda r: pick(r, *PEOPLE), ("My name is {v}.", "I am called {v}."),
     ("What is my name?", "Do you know my name?"), "Your name is {v}."),
    ("own", ("favourite colour",), lambda r: pick(r, *COLOURS), ("My favourite {s_} is {v}.",),
     ("What is my favourite {s_}?",), "Your favourite {s_} is {v}."),
    ("own", ("home town",), lambda r: pick(r, *CITIES), ("I live in {v}.", "My home is in {v}."),
     ("Where do I live?", "In which city do I live?"), "You live in {v}."),
)  # fmt: skip


def _fill(pattern: str, subject: str, value: str) -> str:
    return pattern.format(s=subject, s_=subject.split()[-1], v=value)


def facts(rng: random.Random) -> Item:
    """One to five stated facts, one of them asked back, at once or after a turn."""
    # Half the time all facts are of one sort, so that the subject has to be matched.
    relation = pick(rng, *_RELATIONS) if rng.random() < 0.5 else None
    stated: dict[tuple[str, str], tuple[_Relation, str, str]] = {}
    for _ in range(rng.randrange(1, 6)):
        chosen = relation or pick(rng, *_RELATIONS)
        subject, value = pick(rng, *chosen[1]), chosen[2](rng)
        stated.setdefault((chosen[0], subject), (chosen, subject, value))
    entries = list(stated.values())
    keys = [f"fact:{r[0]}:{s}:{v}" for r, s, v in entries]
    asked = rng.randrange(len(entries))
    (_, _, _, _, questions, answer), subject, value = entries[asked]
    text = " ".join(_fill(pick(rng, *r[3]), s, v) for r, s, v in entries)
    question, reply = _fill(pick(rng, *questions), subject, value), _fill(answer, subject, value)
    key = keys.pop(asked)
    if rng.random() < 0.75:
        return ask("facts", key, f"{text} {question}", reply, other_keys=keys)
    messages: tuple[Message, ...] = (
        {"role": "user", "content": text},
        {"role": "assistant", "content": "Okay, I will remember that."},
        {"role": "user", "content": question},
    )
    return Item("facts", key, messages, (reply,), other_keys=tuple(keys))


def _command(rng: random.Random) -> tuple[str, dict[str, object]]:
    """Draw (request, action) without the closing ``done``."""
    device, room = pick(rng, *DEVICES), pick(rng, *ROOMS)
    form = rng.randrange(8)
    if form <= 1:
        state = pick(rng, "on", "off")
        request = pick(rng, f"Turn {state} the {device}", f"Switch {state} the {device}")
        action: dict[str, object] = {"action": f"turn_{state}", "device": device}
        if rng.random() < 0.6:
            return f"{request} in the {room}", {**action, "room": room}
        return request, action
    if form == 2:
        value = rng.randrange(5, 100)
        return f"Set the {device} in the {room} to {value}", {
            "action": "set", "device": device, "room": room, "value": value}  # fmt: skip
    if form == 3:
        genre = pick(rng, *GENRES)
        return f"Play {genre} in the {room}", {"action": "play", "genre": genre, "room": room}
    if form == 4:
        minutes = rng.randrange(2, 100)
        return f"Set a timer for {minutes} minutes", {"action": "timer", "minutes": minutes}
    if form == 5:
        number, food = rng.randrange(2, 30), pick(rng, *FOODS)
        return f"Add {number} {food} to the shopping list", {
            "action": "add", "item": food, "count": number}  # fmt: skip
    if form == 6:
        task = pick(rng, *TASKS).format(
            person=pick(rng, *PEOPLE), food=pick(rng, *FOODS), pet=pick(rng, *PETS),
            room=room, city=pick(rng, *CITIES),
        )  # fmt: skip
        time = f"{rng.randrange(24):02d}:{rng.randrange(12) * 5:02d}"
        return f"Remind me to {task} at {time}", {"action": "remind", "task": task, "time": time}
    person = pick(rng, *PEOPLE)
    return f"Call {person}", {"action": "call", "person": person}


def _extract(rng: random.Random) -> tuple[str, dict[str, object]]:
    """Draw (sentence about a person, the person as a dictionary)."""
    name, age = pick(rng, *PEOPLE), rng.randrange(3, 99)
    city, job = pick(rng, *CITIES), pick(rng, *JOBS)
    if rng.random() < 0.5:
        return f"{name} is {age} years old and lives in {city}.", {
            "name": name, "age": age, "city": city}  # fmt: skip
    return f"{name} is a {job} from {city}.", {"name": name, "job": job, "city": city}


def json_action(rng: random.Random) -> Item:
    """A request that is answered with one JSON object whose last key is ``"done": true``."""
    if rng.random() < 0.25:
        sentence, content = _extract(rng)
        question = pick(rng, "Write this as JSON: {}", "Convert to JSON: {}",
                        "{} Give me that as JSON.").format(sentence)  # fmt: skip
    else:
        request, content = _command(rng)
        if rng.random() < 0.15:
            request = f"Please {request[0].lower()}{request[1:]}"
        question = request + pick(rng, ".", ".", "", ". Answer in JSON.", ". Reply as JSON.",
                                  ". Answer with a JSON action.")  # fmt: skip
    answer = to_json({**content, "done": True})
    return ask("json_action", f"json:{to_json(content)}", question, answer)


_STORY = (
    "Once upon a time there was a {c} {a} named {n}. {n} lived in {p} and loved {f}. "
    "One day {n} met a {b} named {m}. They shared the {f} and became friends. The end.",
    "{n} was a {c} {a} who lived in {p}. Every morning {n} looked for {f}. "
    "One day a {b} named {m} came by and helped. From then on they were never alone. The end.",
    "In {p} there lived a {c} {a} named {n}. {n} wanted to see the world. "
    "A {b} named {m} brought some {f}, and together they left. It was a good journey. The end.",
)


def story(rng: random.Random) -> Item:
    """A story of four sentences about a given animal: free inside, so only its form is checked."""
    animal, name = pick(rng, *ANIMALS), pick(rng, *PET_NAMES)
    values = {
        "a": animal, "n": name, "c": pick(rng, "small", "brave", "happy", "clever", "shy"),
        "p": pick(rng, "a forest", "a small village", "an old castle", "the mountains"),
        "f": pick(rng, *FOODS), "b": pick(rng, *ANIMALS), "m": pick(rng, *PET_NAMES),
    }  # fmt: skip
    answer = pick(rng, *_STORY).format(**values)
    size = pick(rng, "", "", "short ", "long ", "tiny ", "little ")
    start = pick(rng, "Tell me", "Write", "Please tell me", "Can you tell me", "Please write")
    about = pick(rng, "", f" about a {animal}", *2 * (f" about a {animal} named {name}",))
    question = f"{start} a {size}story{about}" + ("?" if start.startswith("Can") else ".")
    key = f"story:{animal}:{name}" if name in about else "story:taught"
    return ask("story", key, question, answer)


_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello", "Hi", "Hey", "Hello there", "Hi there"), "Hello! How can I help you?"),
    (("Good morning",), "Good morning! How can I help you?"),
    (("Good evening",), "Good evening! How can I help you?"),
    (("How are you", "How are you doing", "How do you do"), "I am fine, thank you. And you?"),
    (("Thank you", "Thanks", "Many thanks", "Thanks a lot"), "You are welcome!"),
    (("Goodbye", "Bye", "See you later"), "Goodbye!"),
    (("Good night",), "Good night!"),
    (("Who are you", "What are you", "What is your name", "Tell me about yourself"),
     "I am the demo model of llama_cffi. I am very small, but I was really trained."),
    (("What can you do", "How can you help me", "Help"),
     "I can calculate, count, copy, reverse, handle dates, remember facts, write JSON and call "
     "tools."),
    (("Are you a human", "Are you a robot", "Are you real"), "I am a small language model."),
    (("Tell me a joke",),
     "Why did the token cross the context? To get to the other side of the window."),
    (("Can you help me", "I need help"), "Of course. What do you need?"),
    (("I am sorry", "Sorry"), "No problem at all."),
    (("Well done", "Great", "Good job", "Nice"), "Thank you!"),
)  # fmt: skip


def small_talk(rng: random.Random) -> Item:
    """Greetings, thanks, who are you; with and without a name or a friendly word around it."""
    if rng.random() < 0.3:
        name, greeting = pick(rng, *PEOPLE), pick(rng, "Hello", "Hi", "Hey", "Good morning")
        introduction = pick(rng, "I am {}", "my name is {}", "I'm {}", "this is {}").format(name)
        end = pick(rng, ".", "!", "")
        return ask("small_talk", f"talk:{greeting}:{introduction}:{end}",
                   f"{greeting}, {introduction}{end}",
                   f"Hello {name}! How can I help you?")  # fmt: skip
    phrases, answer = pick(rng, *_TALK)
    phrase = pick(rng, *phrases)
    before = pick(rng, "", "", "", "Well, ", "So, ", "Oh, ", "Now, ", "Okay, ", "Please: ")
    after = pick(rng, "", "", "", " my friend", " dear model", " now", " today", " please")
    end = pick(rng, "?", "!", ".", "")
    text = f"{before}{phrase}{after}"
    if not before and not after:
        # The bare phrases are what people type first: always taught. The varied ones are split.
        return ask("small_talk", "talk:taught", text + end, answer)
    text = f"{before}{phrase[0].lower()}{phrase[1:]}" if before else phrase
    return ask("small_talk", f"talk:{text}{after}", f"{text}{after}{end}", answer)
