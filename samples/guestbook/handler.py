import json
import os
import urllib.error
import urllib.request
from html import escape

from pilotlight import Response

ENTRIES = os.environ.get("PILOTLIGHT_DATA_URL", "") + "/data/v1/guestbook"


def handle(request):
    path = request.path.rstrip("/")
    if path == "" and request.method == "GET":
        return page()
    if path == "/entries" and request.method == "GET":
        return data("GET", f"{ENTRIES}?limit=50")
    if path == "/entries" and request.method == "POST":
        return sign(request)
    if path.startswith("/entries/"):
        key = path.removeprefix("/entries/")
        if "/" not in key and request.method in ("GET", "PUT", "DELETE"):
            if request.method == "PUT":
                return sign(request, key)
            return data(request.method, f"{ENTRIES}/{key}")
    return 404, {"error": "There is no such page."}


def sign(request, key=None):
    """Store an entry: {"name": …, "text": …}, under a key of its own, or the one that is given."""
    try:
        sent = request.json()
        entry = {"name": str(sent["name"])[:80], "text": str(sent["text"])[:2000]}
    except (ValueError, KeyError, TypeError):
        return 400, {"error": 'Send {"name": "…", "text": "…"} as JSON.'}
    if key is None:
        return data("POST", ENTRIES, entry)
    status, problem = data("PUT", f"{ENTRIES}/{key}", entry)
    return (200, {"key": key, **entry}) if status < 300 else (status, problem)


def page():
    """Show the entries as a web page."""
    _, listing = data("GET", f"{ENTRIES}?limit=50")
    entries = [document["value"] for document in listing["documents"]]
    shown = "".join(f"<dt>{escape(entry['name'])}</dt><dd>{escape(entry['text'])}</dd>" for entry in entries)
    html = f"<!doctype html><meta charset=utf-8><title>Guestbook</title><h1>Guestbook</h1><dl>{shown}</dl>"
    return Response(html, headers={"Content-Type": "text/html; charset=utf-8"})


def data(method, url, document=None):
    """Call the data API, which needs no credentials here. Return status and answer."""
    body = None if document is None else json.dumps(document).encode()
    call = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(call, timeout=5) as answer:
            content = answer.read()
            return answer.status, json.loads(content) if content else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
