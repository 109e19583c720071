"""The chat template `systemone` of decision models, which renders a state and a question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ..errors import ValidationError
from ..generation.chat_renderer import ChatRenderer, RenderedChat
from .inputs import as_json

if TYPE_CHECKING:
    from ..binding import Model
    from .questions import Option, Question

__all__ = ["SystemOneTemplate"]

_NAME = "systemone"
# Where a head reads, and where tokens may not merge: `transformers.decision.template_utils`.
_MARK, _SPLIT = "<|mark|>", "<|split|>"
_KINDS = {"predicate": "noul", "choice": "choice", "score": "score"}
_renderers: WeakKeyDictionary[Model, ChatRenderer] = WeakKeyDictionary()


class SystemOneTemplate:
    """Renders questions for a model that was trained on the template.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        renderer = _renderers.get(model)
        if renderer is None:
            renderer = _renderers[model] = ChatRenderer(model, _NAME)
        self._renderer = renderer

    @staticmethod
    def is_in(model: Model) -> bool:
        """Whether a model has the template."""
        return f"tokenizer.chat_template.{_NAME}" in model.metadata

    def render(
        self,
        state: object,
        question: Question[object],
        labels: Sequence[str],
        order: Sequence[int],
    ) -> RenderedChat:
        """Return the prompt of a question.

        Args:
            state: A JSON value.
            question: The question.
            labels: The label of each option in *order*.
            order: The order of the options.

        Raises:
            TemplateError: The template fails.
            ValidationError: The answer is not read at the end of the prompt.
        """
        if not isinstance(state, str):
            as_json(state)  # refuses what is not a JSON object or list
        options = [question.options[i] for i in order]
        is_score = question.kind == "score"
        asked = {
            "name": question.name,
            "type": _KINDS[question.kind],
            "instructions": question.instructions,
            "labels": [*labels],
            "options": [str(i) for i in order] if is_score else [o.text for o in options],
            "descriptions": [_level(o) if is_score else o.description or None for o in options],
        }
        variables = _without_marks({"state": state, "question": asked, "questions": [asked]})
        whole = self._renderer.render_variables(variables).text
        _, mark, rest = whole.partition(_MARK)
        if rest.replace(_SPLIT, "").strip():
            raise ValidationError(
                f"the template {_NAME!r} of {self._model.path.name} reads answers at other places "
                "than the end of the prompt, for a head that needs a newer llama.cpp"
            )
        return self._renderer.render_variables(variables, mark, _SPLIT)


def _level(option: Option) -> str:
    return f"{option.text}: {option.description}" if option.description else option.text


def _without_marks(value: dict[str, object]) -> dict[str, object]:
    """Return a JSON value without the template's marks in its texts.

    Raises:
        ValidationError: It cannot be written as JSON.
    """
    text = as_json(value).replace(_MARK, "").replace(_SPLIT, "")
    found: dict[str, object] = json.loads(text)
    return found
