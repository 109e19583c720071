"""Arithmetic, counting, copy, reverse and dates: questions whose answer can be computed."""

from __future__ import annotations

import calendar
import datetime
import random

from .items import Item, ask, pick
from .words import MONTHS, WEEKDAYS, WORDS

_ASK = (
    "What is {}?",
    "What is {}?",
    "what is {}",
    "What's {}?",
    "Calculate {}.",
    "Compute {}.",
    "How much is {}?",
    "Please calculate {}.",
    "Can you tell me what {} is?",
    "{} =",
    "{} = ?",
    "{}",
)


def _operation(rng: random.Random) -> tuple[str, str, int, int, int]:
    """Draw (key, symbol, a, b, result)."""
    name = pick(rng, "add", "add", "add", "sub", "sub", "sub", "mul")
    if name == "mul":
        a, b = rng.randrange(13), rng.randrange(13)
        # The half a <= b of the tables is always taught: what is held out is whether the model
        # knows that the order does not matter, the only way to know an unseen product.
        key = f"mul:{a}:{b}" if a > b else "mul:taught"
        return key, pick(rng, "\u00d7", "*", "x"), a, b, a * b
    a, b = rng.randrange(100), rng.randrange(100)
    if name == "sub" and a < b and rng.random() < 0.7:
        a, b = b, a
    if name == "sub":
        return f"sub:{a}:{b}", "-", a, b, a - b
    return f"add:{a}:{b}", "+", a, b, a + b


_SPOKEN = {"+": "plus", "-": "minus", "\u00d7": "times", "*": "times", "x": "times"}


def arithmetic(rng: random.Random) -> Item:
    """Sums and differences of 0-99, products up to 12 x 12."""
    key, symbol, a, b, result = _operation(rng)
    if rng.random() < 0.15:
        symbol = _SPOKEN[symbol]
    gap = "" if rng.random() < 0.1 and symbol in "+-*" else " "
    expression = f"{a}{gap}{symbol}{gap}{b}"
    return ask("arithmetic", key, pick(rng, *_ASK).format(expression), str(result))


def think(rng: random.Random) -> Item:
    """Sums that are asked for with ``/think``: the answer follows a thought."""
    a, b = rng.randrange(100), rng.randrange(100)
    units, tens = a % 10 + b % 10, a // 10 * 10 + b // 10 * 10
    thought = f"{a} + {b} = {tens} + {units} = {a + b}"
    question = pick(rng, "What is {}?", "Calculate {}.", "How much is {}?").format(f"{a} + {b}")
    answer = f"<think>\n{thought}\n</think>\n\n{a + b}"
    return ask("think", f"add:{a}:{b}", f"{question} /think", answer)


def count(rng: random.Random) -> Item:
    """Count up: the kind with long answers."""
    length = rng.randrange(3, 12) if rng.random() < 0.8 else rng.randrange(12, 50)
    start = rng.randrange(0, 100 - length) if rng.random() < 0.7 else 1
    numbers = list(range(start, start + length))
    question = pick(
        rng,
        "Count from {} to {}.",
        "Count from {} to {}.",
        "Please count from {} to {}.",
        "List the numbers from {} to {}.",
        "Can you count from {} to {}?",
    ).format(numbers[0], numbers[-1])
    answer = ", ".join(map(str, numbers))
    return ask("count", f"count:{numbers[0]}:{numbers[-1]}", question, answer)


def _sequence(rng: random.Random) -> tuple[list[str], str]:
    """Draw (parts, separator) for copy and reverse."""
    form = rng.randrange(3)
    if form == 0:
        return [str(rng.randrange(10)) for _ in range(rng.randrange(3, 8))], ""
    if form == 1:
        letters = "abcdefghijklmnopqrstuvwxyz"
        return [pick(rng, *letters) for _ in range(rng.randrange(3, 7))], " "
    return rng.sample(WORDS, rng.randrange(2, 6)), pick(rng, " ", ", ")


def _nonsense(rng: random.Random) -> str:
    """Invent a word of two to four syllables."""
    n = rng.randrange(2, 5)
    return "".join(pick(rng, *"bcdfghklmnprstvwz") + pick(rng, *"aeiou") for _ in range(n))


def copy(rng: random.Random) -> Item:
    """Repeat words, letters, digits, nonsense words or a sentence."""
    form = rng.random()
    if form < 0.25:
        text = " ".join(_nonsense(rng) for _ in range(rng.randrange(1, 4)))
    elif form < 0.45:
        a, b, c, d = rng.sample(WORDS, 4)
        text = pick(rng, f"The {a} is {b}.", f"A {a} and a {b}.", f"My {a} has a {b} {c}.",
                    f"The {a} {b} likes the {c} {d}.")  # fmt: skip
    else:
        parts, separator = _sequence(rng)
        text = separator.join(parts)
    question = pick(
        rng, "Repeat: {}", "Repeat after me: {}", "Say {}", "Copy this: {}", "Echo: {}",
        "Repeat the following: {}", "Please repeat: {}", 'Repeat "{}"', 'Say "{}"',
    ).format(text)  # fmt: skip
    return ask("copy", f"copy:{text}", question, text)


def reverse(rng: random.Random) -> Item:
    """Turn the order of digits, letters or words around."""
    parts, separator = _sequence(rng)
    text, answer = separator.join(parts), separator.join(reversed(parts))
    question = pick(
        rng, "Reverse: {}", "Reverse {}", "Write {} backwards.", "Say this in reverse order: {}",
        "Reverse the order: {}", "Please reverse: {}", "What is {} backwards?",
    ).format(text)  # fmt: skip
    return ask("reverse", f"reverse:{text}", question, answer)


def _walk(names: tuple[str, ...], start: int, n: int, back: bool) -> str:
    """Name every step on the way and then the last: short enough to read, and learnable exactly.

    Single steps are the table that longer walks are made of: always taught, never asked in tests.
    """
    steps = [names[(start + (-k if back else k)) % len(names)] for k in range(1, n + 1)]
    conclusion = f"It is {steps[-1]}."
    return conclusion if n == 1 else f"{', '.join(steps)}. {conclusion}"


def _weekday(rng: random.Random) -> Item:
    day, n, back = rng.randrange(7), rng.randrange(1, 8), rng.random() < 0.3
    word = "before" if back else "after"
    days = "1 day" if n == 1 else f"{n} days"
    question = pick(
        rng, f"What day is {days} {word} {WEEKDAYS[day]}?",
        f"Which weekday is {days} {word} {WEEKDAYS[day]}?",
        f"What day of the week comes {days} {word} {WEEKDAYS[day]}?",
    )  # fmt: skip
    key = f"day:{day}:{n}:{word}" if n > 1 else "day:taught"
    return ask("dates", key, question, _walk(WEEKDAYS, day, n, back))


def _month(rng: random.Random) -> Item:
    month, n, back = rng.randrange(12), rng.randrange(1, 7), rng.random() < 0.3
    word = "before" if back else "after"
    months = "1 month" if n == 1 else f"{n} months"
    question = pick(
        rng, f"Which month is {months} {word} {MONTHS[month]}?",
        f"What month comes {months} {word} {MONTHS[month]}?",
    )  # fmt: skip
    key = f"month:{month}:{n}:{word}" if n > 1 else "month:taught"
    return ask("dates", key, question, _walk(MONTHS, month, n, back))


def _month_length(rng: random.Random) -> Item:
    year, month = rng.randrange(1950, 2050), rng.randrange(1, 13)
    if rng.random() < 0.4:
        month = 2
    question = pick(
        rng, "How many days are in {} {}?", "How many days does {} {} have?",
        "How long is {} {} in days?",
    ).format(MONTHS[month - 1], year)  # fmt: skip
    answer = str(calendar.monthrange(year, month)[1])
    return ask("dates", f"length:{year}:{month}", question, answer)


def _random_date(rng: random.Random) -> datetime.date:
    start = datetime.date(1980, 1, 1).toordinal()
    return datetime.date.fromordinal(start + rng.randrange(60 * 365))


def _long(date: datetime.date) -> str:
    return f"{date.day} {MONTHS[date.month - 1]} {date.year}"


def _format(rng: random.Random) -> Item:
    date = _random_date(rng)
    key = f"format:{date.isoformat()}"
    if rng.random() < 0.5:
        question = pick(rng, "Write {} in ISO format.", "What is {} in ISO format?",
                        "Convert {} to ISO format.")  # fmt: skip
        return ask("dates", key, question.format(_long(date)), date.isoformat())
    question = pick(rng, "Write {} in words.", "Write the date {} in long form.",
                    "Convert {} to the long form.")  # fmt: skip
    return ask("dates", key, question.format(date.isoformat()), _long(date))


def _next_day(rng: random.Random) -> Item:
    date = _random_date(rng)
    if rng.random() < 0.3:
        last = calendar.monthrange(date.year, date.month)[1]
        date = date.replace(day=rng.randrange(27, last + 1))
    following = date + datetime.timedelta(days=1)
    question = pick(rng, "What date comes after {}?", "Which date is the day after {}?",
                    "What is the day after {}?")  # fmt: skip
    key = f"next:{date.isoformat()}"
    if rng.random() < 0.5:
        return ask("dates", key, question.format(date.isoformat()), following.isoformat())
    return ask("dates", key, question.format(_long(date)), _long(following))


def dates(rng: random.Random) -> Item:
    """Weekdays, months, month lengths, formats and the following day."""
    makers = (_weekday, _weekday, _month, _month_length, _format, _next_day, _next_day)
    return pick(rng, *makers)(rng)
