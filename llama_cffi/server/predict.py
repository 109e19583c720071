"""POST /predict: several requests in one, as Vertex AI sends them to a container.

It is there with `AIP_MODE=PREDICTION`, which Vertex AI sets, at the path in `AIP_PREDICT_ROUTE`.
Source: https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
"""

from __future__ import annotations

import asyncio
import copy
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute, Route

from .body import LIST, Object, take
from .call import Answer, Call, Endpoint, Json
from .errors import ApiError, as_api_error, invalid

__all__ = ["routes"]

_FORMAT = "@requestFormat"
_MAX_INSTANCES = 128


def routes(others: Sequence[BaseRoute]) -> list[BaseRoute]:
    """Return the route of this module, if it is wanted; *others* answer the instances."""
    if os.environ.get("AIP_MODE") != "PREDICTION":
        return []
    formats: dict[str, Endpoint] = {}
    for route in others:
        if not isinstance(route, Route) or not isinstance(route.endpoint, Endpoint):
            continue
        if "POST" in (route.methods or ()) and "{" not in route.path:
            formats[route.path] = route.endpoint
            formats.setdefault(_camel_case(route.path), route.endpoint)
    path = "/" + os.environ.get("AIP_PREDICT_ROUTE", "predict").lstrip("/")

    async def predict(call: Call) -> Answer:
        given = take(call.body, {"instances": LIST}, "instances")["instances"]
        if not 1 <= len(given) <= _MAX_INSTANCES:
            message = f"instances must be 1 to {_MAX_INSTANCES}, got {len(given)}"
            raise invalid("instances", message)
        checked = [_checked(i, each, formats) for i, each in enumerate(given)]
        answers = [_answer(call, endpoint, body) for endpoint, body in checked]
        return Json({"predictions": await asyncio.gather(*answers)})

    return [Route(path, Endpoint(predict), methods=["POST"])]


def _camel_case(path: str) -> str:
    """Return the format of a path: `chatCompletions` of `/v1/chat/completions`."""
    first, *words = re.split(r"[/_-]", path.removeprefix("/v1").strip("/"))
    return first + "".join(word.capitalize() for word in words)


def _checked(i: int, given: Any, formats: Mapping[str, Endpoint]) -> tuple[Endpoint, Object]:
    name = given.get(_FORMAT) if isinstance(given, dict) else None
    if not isinstance(name, str):
        raise invalid("instances", f"instances[{i}] must be an object with a string {_FORMAT!r}")
    if name not in formats:
        message = f"instances[{i}]: there is no {_FORMAT} {name!r:.60}, such as chatCompletions"
        raise invalid("instances", message)
    body = {key: value for key, value in given.items() if key != _FORMAT}
    return formats[name], {**body, "stream": False}


async def _answer(call: Call, endpoint: Endpoint, body: Object) -> object:
    """Return the answer to an instance, or its error: the others have theirs."""
    one = Call(call.state, call.scope)
    one.body, one.requests = body, copy.copy(call.requests)  # which may have adapters of its own
    try:
        with one.requests:
            answer = await endpoint.handle(one)
        if isinstance(answer, Json):
            return answer.value
        error = ApiError(400, "this route has no JSON answer")
    except Exception as e:
        error = as_api_error(e, body)
    finally:
        one.release()
    return endpoint.protocol.error_body(error, one.id)
