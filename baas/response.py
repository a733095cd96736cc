"""From answers, pages and problems to HTTP responses."""

import json
from collections.abc import Sequence
from urllib.parse import quote

from aiohttp import web

from baas.plan import Answer
from baas.preconditions import etag
from baas.query import Page
from baas.request import PREFIX, Action, Operation, encode_cursor
from pilotlight.problems import Problem
from pilotlight.store import Entry

_JSON = {"Content-Type": "application/json"}


def answer_response(operation: Operation, answer: Answer, *, named_app: bool) -> web.Response:
    """Return the response for one document; `named_app` where the caller had to name the app."""
    headers = dict(_JSON) if answer.body else {}
    if answer.version is not None:
        headers["ETag"] = etag(answer.version)
    if answer.created is not None:
        query = f"?app={operation.app}" if named_app else ""
        headers["Location"] = f"{PREFIX}{operation.collection}/{quote(answer.created, safe='')}{query}"
    return web.Response(status=answer.status, body=answer.body or None, headers=headers)


def results_response(operations: Sequence[Operation], answers: Sequence[Answer]) -> web.Response:
    """Return the response for a transaction: a result for each operation, in their order."""
    results = []
    for operation, answer in zip(operations, answers, strict=True):
        members = [b'"key":%b' % _text(operation.key), b'"status":%d' % answer.status]
        if answer.version is not None:
            members.append(b'"etag":%b' % _text(etag(answer.version)))
        if operation.action is Action.INCREMENT:
            members.append(answer.body[1:-1])  # "value" and the number
        results.append(b"{%b}" % b",".join(members))
    return web.Response(body=b'{"results":[%b]}' % b",".join(results), headers=_JSON)


def page_response(page: Page) -> web.Response:
    """Return the response for a listing."""
    cursor = json.dumps(encode_cursor(page.entries[-1].key) if page.more else None).encode()
    body = b'{"documents":[%b],"cursor":%b}' % (b",".join(map(shown, page.entries)), cursor)
    headers = dict(_JSON)
    if page.position is not None:
        headers["Pilotlight-Position"] = str(page.position)
    return web.Response(body=body, headers=headers)


def shown(entry: Entry) -> bytes:
    """Return a document with its key and its tag, as JSON; its value goes in as the bytes that are kept."""
    expires = b"" if entry.expires is None else b',"expires":%.3f' % entry.expires
    tag = _text(etag(entry.version))
    return b'{"key":%b,"etag":%b%b,"value":%b}' % (_text(entry.key), tag, expires, entry.value)


def _text(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode()


def problem_response(problem: Problem) -> web.Response:
    """Return the response for a refusal."""
    headers = problem.headers()
    if "allow" in problem.extra:
        headers["Allow"] = problem.extra["allow"]
    if "accept_patch" in problem.extra:
        headers["Accept-Patch"] = problem.extra["accept_patch"]
    return web.Response(
        status=problem.status,
        body=json.dumps(problem.document(), ensure_ascii=True).encode(),
        headers=headers,
    )
