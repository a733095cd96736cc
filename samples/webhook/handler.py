import hashlib
import hmac
import json
import os
import urllib.error
import urllib.request

EVENTS = os.environ.get("PILOTLIGHT_DATA_URL", "") + "/data/v1/events"


def handle(request):
    """Take a webhook of GitHub: check who signed it, and keep it under its delivery's number."""
    if request.method != "POST":
        return 405, {"error": "GitHub sends its events by POST."}
    secret = os.environ["WEBHOOK_SECRET"].encode()
    expected = "sha256=" + hmac.new(secret, request.body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, request.headers.get("X-Hub-Signature-256", "")):
        return 401, {"error": "The signature is not right."}
    delivery = request.headers.get("X-GitHub-Delivery", "")
    event = {"event": request.headers.get("X-GitHub-Event", ""), "payload": request.text}
    if not delivery.replace("-", "").isalnum():
        return 400, {"error": "X-GitHub-Delivery is missing."}
    store(delivery, event)
    return 202, {"stored": delivery}


def store(key, event):
    """Put a document; GitHub may deliver an event twice, and the second one replaces the first."""
    call = urllib.request.Request(
        f"{EVENTS}/{key}", json.dumps(event).encode(), {"Content-Type": "application/json"}, method="PUT"
    )
    with urllib.request.urlopen(call, timeout=5):
        pass
