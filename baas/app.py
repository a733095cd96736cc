"""The two faces of this service: what an operator reaches through the gateway, and what a function does.

From here a request for documents goes request.py → query.py (which asks plan.py) → response.py; one for the
changes of a collection goes to feed.py.
"""

import logging
import time
from collections.abc import Awaitable
from typing import Final

from aiohttp import hdrs, web

from baas import relay, sending
from baas.face import Handler
from baas.feed import Feeds
from baas.metrics import Metrics
from baas.query import Documents
from baas.relay import Relay
from baas.request import Action, Feed, Listing, Transaction, read_request
from baas.response import answer_response, page_response, problem_response, results_response
from baas.room import Room, Share
from baas.transaction import read_operations
from pilotlight.problems import Problem
from pilotlight.server_name import sign

_log = logging.getLogger(__name__)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


class Faces:
    """Makes the handlers."""

    def __init__(self, documents: Documents, feeds: Feeds, calls: Relay, metrics: Metrics) -> None:
        self._documents = documents
        self._feeds = feeds
        self._calls = calls
        self._metrics = metrics
        self._room = Room()

    def operator(self) -> Handler:
        """Return the handler for the gateway, which has checked the key; each request names its app."""

        async def handle(http: web.BaseRequest) -> web.StreamResponse:
            if http.method == hdrs.METH_GET and http.raw_path == "/metrics":
                return sign(
                    web.Response(
                        body=self._metrics.text(),
                        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
                    )
                )
            return await self._data(http, None)

        return handle

    def function(self, app: str, function: str) -> Handler:
        """Return the handler for the listener of one function: the listener is its identity."""

        async def handle(http: web.BaseRequest) -> web.StreamResponse:
            if http.raw_path.startswith(relay.PREFIX):
                response = await _answered(self._calls.call(http, function))
                self._metrics.relayed.labels(str(response.status)).inc()
                return sign(response)
            return await self._data(http, app)

        return handle

    async def _data(self, http: web.BaseRequest, app: str | None) -> web.StreamResponse:
        started = time.perf_counter()
        with self._room.share() as share:
            response = await _answered(self._document(http, app, share))
            method = http.method if http.method in _METHODS else "other"
            if not response.prepared:  # a feed lasts as long as its reader likes
                self._metrics.duration.labels(method).observe(time.perf_counter() - started)
            self._metrics.requests.labels(method, str(response.status)).inc()
            if isinstance(response, web.Response) and sending.is_large(response) and method != hdrs.METH_HEAD:
                return await sending.answer(http, response)
        return sign(response)

    async def _document(self, http: web.BaseRequest, app: str | None, share: Share) -> web.StreamResponse:
        request = await read_request(http, app, short=app is not None, share=share)
        if isinstance(request, Listing):
            response = page_response(await self._documents.list(request))
            share.take(request.app, response.content_length or 0)
            return response
        if isinstance(request, Feed):
            return await self._feeds.serve(http, request)
        if isinstance(request, Transaction):
            operations = read_operations(request.app, request.body)
            return results_response(operations, await self._documents.transact(operations))
        response = answer_response(request, await self._documents.run(request), named_app=app is None)
        if request.action is Action.GET:  # what was changed has to be told
            share.take(request.app, response.content_length or 0)
        return response


async def _answered(answer: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    """Return the answer, or what a refusal or a fault is answered with."""
    try:
        return await answer
    except Problem as problem:
        return problem_response(problem)
    except ConnectionError:
        raise  # the client is gone
    except Exception:  # noqa: BLE001  the boundary: a fault must reach the log and the caller
        _log.exception("A request failed")
        return problem_response(
            Problem("internal", "This request hit a mistake in Pilotlight; its log has the trace.")
        )
