"""Transactions and the feed of changes, from inside of a sandbox and from outside with keys."""

import json

import pytest

from cli.client import Platform
from tests.support.apps import App, call
from tests.support.platform import Up

HANDLER = """
import json
import os
import urllib.request

DATA = os.environ.get("PILOTLIGHT_DATA_URL", "")


def handle(request):
    with urllib.request.urlopen(f"{DATA}/items") as page:
        since = page.headers["Pilotlight-Position"]
    items = [{"op": "increment", "collection": "items", "key": key, "by": 2} for key in "ab"]
    body = json.dumps({"operations": [*items, {"op": "create", "collection": "log", "value": "made"}]}).encode()
    asked = urllib.request.Request(f"{DATA}/transactions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        results = json.load(answer)["results"]
    seen = []
    with urllib.request.urlopen(f"{DATA}/items/changes?since={since}") as feed:
        while len(seen) < 2:
            line = feed.readline()
            if line.startswith(b"data: "):
                seen.append(json.loads(line[6:]))
    return {"results": results, "seen": seen}
"""


@pytest.fixture(scope="module")
def shop(up: Up) -> None:
    App.make(up, "shop", {"handler.py": HANDLER}).deploy()


def key_for(up: Up, name: str, scope: str, app: str) -> Platform:
    done = up.run("keys", "create", name, "--scope", scope, "--app", app, "--json")
    assert done.returncode == 0, done.stderr
    return Platform(up.url, json.loads(done.stdout)["key"])


def test_a_function_changes_several_documents_and_sees_it_in_the_feed(up: Up, shop: None) -> None:
    answer = json.loads(call(up, "shop").body)
    assert [result["status"] for result in answer["results"]] == [200, 200, 201]
    values = [(each["key"], each["etag"], each["value"]) for each in answer["results"][:2]]
    assert [(each["key"], each["etag"], each["value"]) for each in answer["seen"]] == values


def test_a_key_follows_and_changes_the_documents_of_its_app_alone(up: Up, shop: None) -> None:
    ours, none = key_for(up, "ours", "data", "shop"), key_for(up, "none", "invoke", "shop")
    body = json.dumps({"operations": [{"op": "increment", "collection": "seen", "key": "k"}]}).encode()
    json_type = {"Content-Type": "application/json"}
    with ours.request("GET", "/data/v1/seen/changes") as feed:
        assert (feed.status, feed.getheader("Content-Type")) == (200, "text/event-stream")
        with ours.request("POST", "/data/v1/transactions", body, json_type) as answer:
            assert (answer.status, json.loads(answer.read())["results"][0]["value"]) == (200, 1)
        line = b""
        while not line.startswith(b"data: "):
            line = feed.readline()
            assert line
        assert (json.loads(line[6:])["key"], json.loads(line[6:])["value"]) == ("k", 1)
    for platform, path in (
        (ours, "/data/v1/seen/changes?app=other"),
        (none, "/data/v1/seen/changes"),
        (ours, "/data/v1/transactions?app=other"),
        (none, "/data/v1/transactions"),
    ):
        method = "POST" if "transactions" in path else "GET"
        with platform.request(method, path, body if method == "POST" else None, json_type) as refused:
            assert refused.status == 403, path
