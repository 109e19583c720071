"""Generate documents of many schemas and types at a high temperature, and validate each.

`python tools/structured.py [--seeds 5]`; the exit code is 1 if a document is invalid, no document
of a schema ended, or a schema that cannot be enforced was not refused before the generation; or if
a grammar of a random pattern or schema (`--random 10000`) takes another document than `re` or
`jsonschema`.

At temperature 1.5 without other samplers, the demo model generates any token that the schema
allows. Each further document of a schema has a stronger bias towards ending, so that some end with
any CPU's rounding. Answers may fill the context of 1,024 tokens (`max_tokens=None`). Documents that
have not ended by then, such as numbers with ever more digits or nested lists, count as truncated,
neither valid nor invalid. `jsonschema` validates documents, including formats; pydantic's
`TypeAdapter` validates Python values.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
from tqdm import tqdm

from llama_cffi import GrammarError, Llama, LlamaError, LlamaGrammar
from llama_cffi.demo import model_path
from llama_cffi.grammars.patterns import rewritten
from llama_cffi.schema.keywords import FORMATS as ENFORCED

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.python_types import TYPES
from support.random_schemas import (
    Taker,
    random_document,
    random_pattern,
    random_schema,
    random_text,
    wrong,
)
from support.rounding import ever_shorter
from support.schemas import GROUPS, REFUSED

HOT: dict[str, Any] = {
    "temperature": 1.5,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "frequency_penalty": 1.0,
}
QUESTION = "Answer"
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


def document(llm: Llama, schema: Any, seed: int, **options: Any) -> tuple[str, str]:
    """Generate a document; return it and its finish reason."""
    answer = llm.create_chat_completion(
        [{"role": "user", "content": QUESTION}],
        response_format={"type": "json_schema", "json_schema": {"schema": schema}},
        seed=seed,
        **{**HOT, **options},
    )["choices"][0]
    return answer["message"]["content"], answer["finish_reason"]


def check_schema(llm: Llama, schema: Any, seed: int, **options: Any) -> tuple[str, str]:
    """Return `valid`, `invalid` or `truncated`, and the error."""
    text, finish_reason = document(llm, schema, seed, **options)
    if finish_reason == "length":
        return "truncated", text
    validator = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
    try:
        validator.validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as e:
        return "invalid", f"{text!r}: {e}"
    return "valid", ""


class RecordingLlama(Llama):
    """Keeps the last response, which `parse` does not return."""

    answer: Any = None

    def create_chat_completion(self, messages: Any, **options: Any) -> Any:
        """Call the base class and keep the response."""
        self.answer = None
        self.answer = super().create_chat_completion(messages, **options)
        return self.answer


def check_type(llm: RecordingLlama, type_: Any, seed: int, **options: Any) -> tuple[str, str]:
    """Generate a value; pydantic must accept it and parse the JSON to the same value."""
    try:
        value: Any = llm.parse(QUESTION, type_, seed=seed, **HOT, **options)
    except LlamaError as e:
        is_truncated = llm.answer and llm.answer["choices"][0]["finish_reason"] == "length"
        return ("truncated" if is_truncated else "invalid"), repr(e)
    text = llm.answer["choices"][0]["message"]["content"]
    adapter = pydantic.TypeAdapter(type_)
    try:
        expected = adapter.validate_json(text)
        adapter.validate_python(value, strict=True)
    except ValueError as e:
        return "invalid", f"{text!r}: {e}"
    same = expected == value and type(expected) is type(value)
    return ("valid", "") if same else ("invalid", f"{text!r} is not {value!r}")


def check_refused(llm: Llama, schema: Any) -> tuple[str, str]:
    """Return `valid` if the schema is refused before the generation starts."""
    before = llm.engine.stats
    for stream in (False, True):
        try:
            llm.create_chat_completion(
                [{"role": "user", "content": QUESTION}],
                response_format={"type": "json_schema", "json_schema": {"schema": schema}},
                stream=stream,
            )
        except GrammarError:
            continue
        return "invalid", f"{schema} was not refused"
    return ("valid", "") if llm.engine.stats is before else ("invalid", "a document was generated")


def check_pattern(rng: random.Random) -> tuple[str, str, str]:
    """Return a random pattern, and whether random texts match it as they match in Python."""
    pattern, judge = random_pattern(rng)
    texts = [random_text(rng) for _ in range(6)]
    try:
        takes = Taker(LlamaGrammar.from_json_schema({"type": "string", "pattern": pattern})).takes
        is_exact = rewritten(pattern).is_exact
    except GrammarError:  # no string matches
        takes, is_exact = (lambda _: False), True
    for text in texts:
        expected = bool(judge.search(text)) and (is_exact or "\0" not in text)
        if takes(text) != expected and (is_exact or "\0" not in text):
            return pattern, "invalid", f"{text!r} should {'' if expected else 'not '}match"
    return pattern, "valid", ""


def check_random_schema(rng: random.Random) -> tuple[str, str, str]:
    """Return a random schema, and whether jsonschema accepts the same random documents."""
    schema = random_schema(rng)
    found = wrong(schema, [random_document(rng) for _ in range(6)])
    return json.dumps(schema), "invalid" if found else "valid", str(found)


def main() -> int:
    """Generate and validate documents, print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="documents of each schema and type")
    parser.add_argument("--random", type=int, default=2000, help="random patterns and schemas")
    kinds = ("schemas", "types", "refused", "random")
    parser.add_argument("--only", choices=kinds, nargs="*")
    args = parser.parse_args()
    only = args.only or kinds
    unchecked = (_formats(GROUPS) & ENFORCED) - set(FORMATS.checkers)
    if unchecked:
        print(f"jsonschema does not check {unchecked}: install jsonschema[format-nongpl]")
        return 1
    results: list[tuple[str, str, str, str]] = []
    with RecordingLlama(model_path(), n_ctx=1024, n_threads=1, n_gpu_layers=0) as llm:
        biases = list(itertools.islice(itertools.cycle(ever_shorter(llm.model.vocab)), args.seeds))
        if "schemas" in only:
            schemas = [(g, n, s) for g, group in GROUPS.items() for n, s in group.items()]
            for group, name, schema in tqdm(schemas, "schemas"):
                results += [
                    (group, name, *check_schema(llm, schema, seed, logit_bias=bias))
                    for seed, bias in enumerate(biases)
                ]
        if "types" in only:
            for name, type_ in tqdm(TYPES.items(), "types"):
                results += [
                    ("Python types", name, *check_type(llm, type_, seed, logit_bias=bias))
                    for seed, bias in enumerate(biases)
                ]
        if "refused" in only:
            for schema, _ in tqdm(REFUSED, "refused"):
                results.append(("refused", str(schema), *check_refused(llm, schema)))
    if "random" in only:
        rng = random.Random(args.seeds)
        for _ in tqdm(range(args.random), "random"):
            results.append(("random patterns", *check_pattern(rng)))
            results.append(("random schemas", *check_random_schema(rng)))
    return report(results)


def report(results: list[tuple[str, str, str, str]]) -> int:
    """Print the table; return the exit code."""
    print(f"{'group':<16}{'schemas':>8}{'answers':>9}{'valid':>7}{'truncated':>11}{'invalid':>9}")
    groups = dict.fromkeys(group for group, *_ in results)
    for group in groups:
        _line(group, [result for result in results if result[0] == group])
    _line("all", results)
    ended = {result[:2] for result in results if result[2] == "valid"}
    never_ended = {result[:2] for result in results} - ended
    for group, name, outcome, why in results:
        if outcome == "invalid":
            print(f"invalid: {group}, {name}: {why}")
    for group, name in sorted(never_ended):
        print(f"never valid: {group}, {name}")
    return 1 if never_ended or any(result[2] == "invalid" for result in results) else 0


def _line(group: str, results: list[tuple[str, str, str, str]]) -> None:
    names = {result[:2] for result in results}
    count = Counter(result[2] for result in results)
    print(
        f"{group:<16}{len(names):>8}{len(results):>9}{count['valid']:>7}{count['truncated']:>11}"
        f"{count['invalid']:>9}"
    )


def _formats(schema: Any) -> set[str]:
    """Return the formats that occur anywhere in *schema*."""
    if isinstance(schema, dict):
        own = {schema["format"]} if isinstance(schema.get("format"), str) else set()
        return own.union(*map(_formats, schema.values()))
    return set().union(*map(_formats, schema)) if isinstance(schema, list) else set()


if __name__ == "__main__":
    sys.exit(main())
