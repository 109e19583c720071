"""Tool calls: which tool, with which arguments, and what to say when the result is back."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .items import Item, draw, pick
from .kinds_basic import arithmetic, copy, dates
from .kinds_language import facts, small_talk
from .template import Message, Tool, to_json
from .words import (
    CITIES,
    COLOURS,
    CONDITIONS,
    CURRENCIES,
    FOODS,
    GENRES,
    LANGUAGES,
    NOUNS,
    PEOPLE,
    PET_NAMES,
    ROOMS,
    SYMBOLS,
    VERBS,
    WORDS,
)

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Use:
    """One use of a tool: the request in words, the arguments, the result and the final answer."""

    request: str
    arguments: Arguments
    result: Arguments
    answer: str


@dataclass(frozen=True)
class Offered:
    """A tool as offered in one conversation, and how to use it there."""

    family: str
    tool: Tool
    use: Callable[[random.Random], Use]

    @property
    def name(self) -> str:
        """The function name that a call has to carry."""
        return str(self.tool["function"]["name"])


Param = tuple[str, str, str]


def _define(rng: random.Random, name: str, about: str, params: Sequence[Param]) -> Tool:
    """Write a tool definition, with the variations that callers show."""
    described = rng.random() < 0.6
    properties: Arguments = {}
    for key, kind, text in params:
        properties[key] = {"type": kind, "description": text} if described else {"type": kind}
    schema: Arguments = {"type": "object", "properties": properties}
    if rng.random() < 0.85:
        schema["required"] = [key for key, _, _ in params]
    function: Arguments = {"name": name, "description": about, "parameters": schema}
    if rng.random() < 0.1:
        del function["description"]
    return {"type": "function", "function": function}


def _weather(rng: random.Random) -> Offered:
    name = pick(rng, "get_weather", "get_weather", "get_current_weather", "weather")
    key = pick(rng, "city", "location")

    def use(rng: random.Random) -> Use:
        city, degrees, sky = pick(rng, *CITIES), rng.randrange(-10, 40), pick(rng, *CONDITIONS)
        request = pick(rng, "What is the weather in {}?", "What's the weather like in {}?",
                       "How is the weather in {}?", "Tell me the weather in {}.",
                       "What is the weather in {} today?", "weather in {}")  # fmt: skip
        request = request.format(city)
        answer = f"It is {sky} and {degrees} degrees in {city}."
        return Use(request, {key: city}, {"temperature": degrees, "condition": sky}, answer)

    about = pick(rng, "Get the weather in a city", "Get the current weather")
    params = [(key, "string", pick(rng, "The city", "The city name", "Name of the city"))]
    tool = _define(rng, name, about, params)
    return Offered("weather", tool, use)


def _clock(rng: random.Random) -> Offered:
    key = pick(rng, "city", "location")

    def use(rng: random.Random) -> Use:
        city, time = pick(rng, *CITIES), f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
        request = pick(rng, "What time is it in {}?", "What is the time in {}?",
                       "Tell me the time in {}.").format(city)  # fmt: skip
        return Use(request, {key: city}, {"time": time}, f"It is {time} in {city}.")

    tool = _define(rng, pick(rng, "get_time", "get_current_time"), "Get the current time in a city",
                   [(key, "string", "The city")])  # fmt: skip
    return Offered("clock", tool, use)


def _calculate(rng: random.Random) -> Offered:
    name, about, sign, forms = pick(
        rng,
        ("add", "Add two numbers", "+",
         ("Add {} and {}.", "What is {} + {}?", "What is {} plus {}?")),
        ("multiply", "Multiply two numbers", "*",
         ("Multiply {} by {}.", "What is {} * {}?", "What is {} times {}?")),
        ("subtract", "Subtract two numbers", "-", ("What is {} - {}?", "What is {} minus {}?")),
    )  # fmt: skip
    first, second = pick(rng, ("a", "b"), ("a", "b"), ("x", "y"))

    def use(rng: random.Random) -> Use:
        a, b = (rng.randrange(pick(rng, 20, 100, 1000)) for _ in range(2))
        result = {"+": a + b, "*": a * b, "-": a - b}[sign]
        return Use(pick(rng, *forms).format(a, b), {first: a, second: b}, {"result": result},
                   f"The result is {result}.")  # fmt: skip

    params = [(first, "integer", "The first number"), (second, "integer", "The second number")]
    return Offered("calculate", _define(rng, name, about, params), use)


def _message(rng: random.Random) -> Offered:
    name, noun, key = pick(rng, ("send_email", "email", "to"), ("send_message", "message", "to"),
                           ("send_message", "message", "recipient"))  # fmt: skip

    def use(rng: random.Random) -> Use:
        person = pick(rng, *PEOPLE)
        text = " ".join(rng.sample(WORDS, rng.randrange(1, 4)))
        request = pick(rng, f"Send {person} the {noun} '{text}'.",
                       f"Send the {noun} '{text}' to {person}.")  # fmt: skip
        return Use(request, {key: person, "text": text}, {"status": "sent"},
                   f"I have sent the {noun} to {person}.")  # fmt: skip

    params = [(key, "string", "Who gets it"), ("text", "string", "The text")]
    return Offered("message", _define(rng, name, f"Send a {noun}", params), use)


def _timer(rng: random.Random) -> Offered:
    key = pick(rng, "minutes", "duration")

    def use(rng: random.Random) -> Use:
        minutes = rng.randrange(2, 120)
        request = pick(rng, f"Set a timer for {minutes} minutes.",
                       f"Start a timer of {minutes} minutes.")  # fmt: skip
        return Use(request, {key: minutes}, {"status": "ok"},
                   f"The timer is set for {minutes} minutes.")  # fmt: skip

    return Offered("timer", _define(rng, "set_timer", "Set a timer",
                                    [(key, "integer", "Minutes")]), use)  # fmt: skip


def _music(rng: random.Random) -> Offered:
    def use(rng: random.Random) -> Use:
        genre, room = pick(rng, *GENRES), pick(rng, *ROOMS)
        request = pick(rng, "Play some {} in the {}.", "Play {} in the {}.",
                       "I want to hear {} in the {}.")  # fmt: skip
        arguments = {"genre": genre, "room": room}
        return Use(request.format(genre, room), arguments, {"status": "playing"},
                   f"Now playing {genre} in the {room}.")  # fmt: skip

    params = [("genre", "string", "The genre"), ("room", "string", "The room")]
    return Offered("music", _define(rng, "play_music", "Play music", params), use)


def _light(rng: random.Random) -> Offered:
    def use(rng: random.Random) -> Use:
        room, on = pick(rng, *ROOMS), rng.random() < 0.5
        state = "on" if on else "off"
        request = pick(rng, f"Turn {state} the light in the {room}.",
                       f"Switch the light in the {room} {state}.")  # fmt: skip
        return Use(request, {"room": room, "on": on}, {"status": "ok"},
                   f"The light in the {room} is {state}.")  # fmt: skip

    params = [("room", "string", "The room"), ("on", "boolean", "On or off")]
    return Offered("light", _define(rng, "set_light", "Turn a light on or off", params), use)


def _currency(rng: random.Random) -> Offered:
    first, second = pick(rng, ("from", "to"), ("from_currency", "to_currency"))

    def use(rng: random.Random) -> Use:
        amount, value = rng.randrange(1, 1000), round(rng.uniform(1, 999), 1)
        a, b = rng.sample(CURRENCIES, 2)
        request = pick(rng, f"Convert {amount} {a} to {b}.", f"How much is {amount} {a} in {b}?")
        return Use(request, {"amount": amount, first: a, second: b}, {"result": value},
                   f"{amount} {a} is {value} {b}.")  # fmt: skip

    params = [("amount", "number", "The amount"), (first, "string", "Source currency"),
              (second, "string", "Target currency")]  # fmt: skip
    return Offered("currency", _define(rng, "convert_currency", "Convert money", params), use)


def _translate(rng: random.Random) -> Offered:
    def use(rng: random.Random) -> Use:
        text, language = " ".join(rng.sample(WORDS, rng.randrange(1, 4))), pick(rng, *LANGUAGES)
        result = "".join(pick(rng, *"bdfgklmnprst") + pick(rng, *"aeiou") for _ in range(3))
        request = pick(rng, f"Translate '{text}' to {language}.",
                       f"How do you say '{text}' in {language}?")  # fmt: skip
        return Use(request, {"text": text, "language": language}, {"translation": result},
                   f"In {language} that is '{result}'.")  # fmt: skip

    params = [("text", "string", "The text"), ("language", "string", "The language")]
    return Offered("translate", _define(rng, "translate", "Translate a text", params), use)


def _stock(rng: random.Random) -> Offered:
    key = pick(rng, "symbol", "ticker")

    def use(rng: random.Random) -> Use:
        symbol, price = pick(rng, *SYMBOLS), round(rng.uniform(5, 900), 2)
        request = pick(rng, f"What is the price of {symbol}?", f"What does {symbol} cost?",
                       f"Get the stock price of {symbol}.")  # fmt: skip
        return Use(request, {key: symbol}, {"price": price},
                   f"The price of {symbol} is {price}.")  # fmt: skip

    return Offered("stock", _define(rng, "get_stock_price", "Get the price of a stock",
                                    [(key, "string", "The symbol")]), use)  # fmt: skip


def _search(rng: random.Random) -> Offered:
    name, about = pick(rng, ("search", "Search the web"), ("search_web", "Search the web"),
                       ("web_search", "Search the web"))  # fmt: skip

    def use(rng: random.Random) -> Use:
        words = " ".join(rng.sample(WORDS, rng.randrange(1, 4)))
        found = f"{pick(rng, *COLOURS)} {pick(rng, *WORDS)}"
        request = pick(rng, f"Search for {words}.", f"Search the web for {words}.",
                       f"Find {words} on the web.")  # fmt: skip
        return Use(request, {"query": words}, {"result": found}, f"I found this: {found}.")

    return Offered("search", _define(rng, name, about, [("query", "string", "The query")]), use)


_GENERIC: dict[str, Callable[[random.Random], Any]] = {
    "name": lambda r: pick(r, *PEOPLE, *PET_NAMES),
    "title": lambda r: pick(r, *WORDS),
    "color": lambda r: pick(r, *COLOURS),
    "city": lambda r: pick(r, *CITIES),
    "count": lambda r: r.randrange(1, 100),
    "id": lambda r: r.randrange(1, 10000),
    "size": lambda r: pick(r, "small", "medium", "large"),
    "food": lambda r: pick(r, *FOODS),
}


def _generic(rng: random.Random) -> Offered:
    """Invent a tool from a verb and a noun: the name and the keys can only come from the schema."""
    verb, noun = pick(rng, *VERBS), pick(rng, *NOUNS)
    keys = rng.sample(sorted(_GENERIC), rng.randrange(1, 4))

    def use(rng: random.Random) -> Use:
        arguments = {key: _GENERIC[key](rng) for key in keys}
        parts = [f"{key} {value}" for key, value in arguments.items()]
        listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
        request = f"{pick(rng, verb.capitalize(), f'Please {verb}')} the {noun} with {listed}."
        return Use(request, arguments, {"status": "ok"}, "Done.")

    types = {"count": "integer", "id": "integer"}
    params = [(key, types.get(key, "string"), f"The {key}") for key in keys]
    about = f"{verb.capitalize()} a {noun}"
    return Offered(f"generic:{verb}:{noun}", _define(rng, f"{verb}_{noun}", about, params), use)


_MAKERS = (_weather, _weather, _clock, _calculate, _calculate, _message, _timer, _music, _light,
           _currency, _translate, _stock, _search, _generic, _generic, _generic)  # fmt: skip


def offer(rng: random.Random, n: int) -> list[Offered]:
    """Draw ``n`` tools of different families."""
    offered: dict[str, Offered] = {}
    while len(offered) < n:
        tool = pick(rng, *_MAKERS)(rng)
        offered.setdefault(tool.family, tool)
    return list(offered.values())


def call_text(name: str, arguments: Arguments) -> str:
    """Write a call as the model has to."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {to_json(arguments)}}}\n</tool_call>'


def _key(offered: Offered, use: Use) -> str:
    return f"tool:{offered.name}:{to_json(use.arguments)}"


_TWO = {
    "weather": "What is the weather in {} and {}?",
    "clock": "What time is it in {} and {}?",
}


def call(rng: random.Random, offered: Sequence[Offered], kind: str) -> tuple[Item, Item]:
    """Draw (request -> call, result -> answer) over the offered tools."""
    chosen = pick(rng, *offered)
    use = chosen.use(rng)
    tools, key = tuple(o.tool for o in offered), _key(chosen, use)
    uses, request = [use], use.request
    if chosen.family in ("weather", "clock") and rng.random() < 0.12:
        other = chosen.use(rng)
        first, second = (next(iter(u.arguments.values())) for u in (use, other))
        uses, key = [use, other], f"{key}:{second}"
        request = _TWO[chosen.family].format(first, second)
    text = "\n".join(call_text(chosen.name, u.arguments) for u in uses)
    question: Message = {"role": "user", "content": request}
    calls = [{"type": "function", "function": {"name": chosen.name, "arguments": u.arguments}}
             for u in uses]  # fmt: skip
    results = tuple({"role": "tool", "content": to_json(u.result)} for u in uses)
    answer = " ".join(u.answer for u in uses)
    called: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    asked = Item(kind, key, (question,), (text,), tools)
    answered = Item("tool_answer", key, (question, called, *results), (answer,), tools)
    return asked, answered


def tool_call(rng: random.Random) -> Item:
    """One tool offered, and needed."""
    return call(rng, offer(rng, 1), "tool_call")[0]


def tool_choice(rng: random.Random) -> Item:
    """Two or three tools offered, one needed."""
    return call(rng, offer(rng, rng.randrange(2, 4)), "tool_choice")[0]


def tool_answer(rng: random.Random) -> Item:
    """The result is given back, an answer in words is due."""
    return call(rng, offer(rng, rng.randrange(1, 4)), "tool_answer")[1]


def plain(rng: random.Random, offered: Sequence[Offered], heldout: bool) -> Item:
    """A question that none of the offered tools is for."""
    makers = [small_talk, small_talk, facts, copy, dates]
    if not any(o.family in ("calculate", "currency") for o in offered):
        makers += [arithmetic, arithmetic]
    item = draw(pick(rng, *makers), rng, heldout)
    tools = tuple(o.tool for o in offered)
    return Item("tool_plain", item.key, item.messages, item.answers, tools, item.other_keys)


def tool_plain(rng: random.Random) -> Item:
    """Tools offered, none needed; held out or not with equal chance, for the caller to choose."""
    return plain(rng, offer(rng, rng.randrange(1, 4)), rng.random() < 0.5)
