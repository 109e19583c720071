"""`llama-cffi decide`: the probability of each answer to a closed question."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError
from . import inputs, interrupt, options, output

if TYPE_CHECKING:
    from ..decisions import Answer, DecisionInput, Question

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi decide -m model.gguf "I was charged twice!" --predicate "The writer is angry."
llama-cffi decide -m model.gguf -f mail.txt --choice "Which team?" billing "tech=hardware, apps"
llama-cffi decide -m model.gguf -f reviews.txt --lines --score "How good?" bad fair good
"""


class _Ask(argparse.Action):
    """Collects the questions of all kinds in the order in which they are given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        asked = [*(getattr(namespace, self.dest) or []), (str(self.const), values)]
        setattr(namespace, self.dest, asked)


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "decide",
        help="answer closed questions with probabilities",
        description="Print the probability of each answer to closed questions about a text, read "
        "from one position; nothing is generated. The text is an argument, a file or stdin.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS),
        formatter_class=options.HelpFormatter,
    )
    options.add_model(parser)
    inputs.add_text(parser, "the text that the questions are about")
    asking = parser.add_argument_group("questions, at least one")
    asking.add_argument(
        "--predicate", dest="asked", action=_Ask, const="predicate", metavar="STATEMENT",
        help="how likely is it true?",
    )  # fmt: skip
    for name, values, text in (
        ("choice", "OPTION", "which option fits best?"),
        ("score", "LEVEL", "which of the levels, the lowest first, fits best?"),
    ):
        asking.add_argument(
            f"--{name}", dest="asked", action=_Ask, const=name, nargs="+",
            metavar=("QUESTION", f"{values}[=DESCRIPTION]"), help=text,
        )  # fmt: skip
    parser.add_argument(
        "--average-orders", action="store_true",
        help="ask each question with its options in both orders, and average",
    )  # fmt: skip
    parser.add_argument(
        "--json-input", action="store_true",
        help="the text is JSON: a conversation in OpenAI's format, or any object or list",
    )  # fmt: skip
    parser.add_argument(
        "--lines", action="store_true", help="each line is a text; print a line of JSON for each"
    )
    options.add_json(parser, "answers, with all probabilities")
    options.add_running(parser)
    parser.set_defaults(func=_run, usage_error=parser.error)


def _run(args: argparse.Namespace) -> int:
    if not args.asked:
        args.usage_error("ask at least one question: --predicate, --choice or --score")
    whole = inputs.text_of(args, "text")
    texts = [t for t in whole.splitlines() if t.strip()] if args.lines else [whole]
    if not any(text.strip() for text in texts):
        raise ValidationError("the text is empty; give something to decide about")
    given = [_parsed(text) if args.json_input else text for text in texts]

    from ..api.llama import Llama

    questions = [_question(kind, values) for kind, values in args.asked]
    settings = options.running_options(args)
    with Llama(options.model_source(args, "decide"), **settings) as llm:
        interrupt.check()
        for item in given:
            answers: list[Any] = llm.decide(item, questions, average_orders=args.average_orders)
            interrupt.check()
            if args.lines:
                output.print_json_line(_as_dict(questions, answers))
            elif args.json:
                output.print_json(_as_dict(questions, answers))
            else:
                output.say("".join(map(_lines, questions, answers)))
    return 0


def _parsed(text: str) -> DecisionInput:
    try:
        value: DecisionInput = json.loads(text)
    except ValueError as e:
        raise ValidationError(f"the text is not JSON: {e}; leave out --json-input") from None
    return value


def _question(kind: str, values: Any) -> Question[Any]:
    from ..decisions import ChoiceQuestion, PredicateQuestion, ScoreQuestion

    if kind == "predicate":
        return PredicateQuestion(inputs.check_utf8(values, "question"))
    about, *given = (inputs.check_utf8(value, "question") for value in values)
    described = [_described(text) for text in given]
    return (ChoiceQuestion if kind == "choice" else ScoreQuestion)(about, described)


def _described(text: str) -> Any:
    from ..decisions import Option

    value, _, about = text.partition("=")
    return Option(value.strip(), about.strip())


def _as_dict(questions: Sequence[Question[Any]], answers: Sequence[Answer]) -> dict[str, Any]:
    return {"answers": [_answer(q, a) for q, a in zip(questions, answers, strict=True)]}


def _answer(question: Question[Any], answer: Any) -> dict[str, Any]:
    """Return an answer in the shape of OpenAI's `/v1/decisions`, with its question."""
    found: dict[str, Any] = {"type": question.kind, "question": question.instructions}
    if question.kind == "predicate":
        found["probability"] = answer.probability
    elif question.kind == "choice":
        found |= {"choice": answer.choice, "confidence": answer.confidence}
        found["probabilities"] = [
            {"value": value, "probability": p} for value, p in answer.probabilities.items()
        ]
    else:
        found |= {"score": answer.score, "level": answer.level, "confidence": answer.confidence}
        found["probabilities"] = [
            {"label": label, "value": i, "probability": p}
            for i, (label, p) in enumerate(answer.probabilities.items())
        ]
    return {**found, "label_mass": answer.label_mass}


def _lines(question: Question[Any], answer: Any) -> str:
    """Return the lines about a question: the answer, and each probability."""
    if question.kind == "predicate":
        shown = f"{'yes' if answer.value else 'no'}  {answer.probability:.4f}"
        return f"{question.instructions}  {shown}\n"
    if question.kind == "choice":
        text = f"{question.instructions}  {answer.choice}\n"
    else:
        text = f"{question.instructions}  {answer.score:.2f} ({answer.level})\n"
    width = max(len(str(value)) for value in answer.probabilities)
    return text + "".join(
        f"  {value!s:{width}}  {p:.4f}\n" for value, p in answer.probabilities.items()
    )
