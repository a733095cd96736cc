"""From answers, pages and problems to HTTP responses."""

import json
from urllib.parse import quote

from aiohttp import web

from baas.plan import Answer
from baas.preconditions import etag
from baas.query import Page
from baas.request import PREFIX, Operation, encode_cursor
from pilotlight.problems import Problem

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


def page_response(page: Page) -> web.Response:
    """Return the response for a listing; the documents go in as the bytes that they are kept as."""
    members = []
    for entry in page.entries:
        expires = b"" if entry.expires is None else b',"expires":%.3f' % entry.expires
        name = json.dumps(entry.key, ensure_ascii=False).encode()
        tag = json.dumps(etag(entry.version)).encode()
        members.append(b'{"key":%b,"etag":%b%b,"value":%b}' % (name, tag, expires, entry.value))
    cursor = json.dumps(encode_cursor(page.entries[-1].key) if page.more else None).encode()
    body = b'{"documents":[%b],"cursor":%b}' % (b",".join(members), cursor)
    return web.Response(body=body, headers=_JSON)


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
