"""Reads the requests of a batch: prompts as `specgen bench` takes them, or the lines of OpenAI's Batch API."""

from __future__ import annotations

import json

from specgen.core.batch import BatchRequest
from specgen.core.errors import PromptError
from specgen.text.chat_template import Message
from specgen.text.prompts import parse_message, parse_prompts

URL = "/v1/chat/completions"
_HINT = 'give lines as {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}'


def parse_requests(text: str, source: str) -> list[BatchRequest]:
    """Parses the text of a file. Lines of OpenAI's Batch API are recognized by the `custom_id` of the first one.

    Args:
        text: JSON lines, a JSON array of prompts, or one prompt per line.
        source: Names the file in messages.

    Raises:
        PromptError: A line is invalid, an id is not unique, or there are no requests.
    """
    if not _is_openai(text):
        return [
            BatchRequest(
                prompt.id, [{"role": m.role, "content": m.content} for m in prompt.messages], prompt.later_turns
            )
            for prompt in parse_prompts(text, source)
        ]
    requests: dict[str, BatchRequest] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            request = _from_line(line, f"{source}, line {number}")
            if request.id in requests:
                raise PromptError(f"{source}, line {number} repeats the custom_id {request.id!r}", "make it unique")
            requests[request.id] = request
    return list(requests.values())


def text_messages(request: BatchRequest) -> tuple[Message, ...]:
    """Returns the messages of a request as text.

    Raises:
        PromptError: One has another role, or content that is not text.
    """
    return tuple(parse_message(message, f"request {request.id!r}") for message in request.messages)


def _is_openai(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        entry = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and "custom_id" in entry


def _from_line(line: str, place: str) -> BatchRequest:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place} is not JSON: {error}", _HINT) from error
    name, body = (entry.get("custom_id"), entry.get("body")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not name or not isinstance(body, dict):
        raise PromptError(f"{place} has no custom_id, or no body", _HINT)
    if (url := entry.get("url", URL)) != URL:
        raise PromptError(f"{place} requests {url!r}, but only {URL} is supported", _HINT)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise PromptError(f"{place} has no messages", _HINT)
    # In OpenAI's API, null means the default.
    fields = {key: value for key, value in body.items() if key != "messages" and value is not None}
    return BatchRequest(name, messages, (), fields)
