"""Clients that ask in a closed loop, each over one connection, and remember what became of every request."""

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

PATIENCE = 60.0  # seconds; nothing here takes long, but an emulated machine is twenty times slower


COUNTS = {
    # Writes down in the data API that it was called, and says whether that was answered
    "handler.py": (
        "import json, os, urllib.request\n\n\ndef handle(request):\n"
        "    name = request.body.decode()\n"
        "    url = f\"{os.environ['PILOTLIGHT_DATA_URL']}/ran/{name}/increment\"\n"
        "    try:\n"
        "        with urllib.request.urlopen(url, data=b'', timeout=10) as answer:\n"
        "            count = json.load(answer)['value']\n"
        "    except OSError:\n"
        "        count = None\n"
        "    return {'name': name, 'count': count}\n"
    ),
    "pilotlight.toml": '[functions.counts]\npath = "."\nmax_instances = 4\ntimeout = "30s"\n',
}
"""A function to be called with names."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request. Moments are those of `time.monotonic`."""

    begun: float
    ended: float
    status: int = 0  # 0: the connection was lost, or none could be made
    error: str = ""  # the header Pilotlight-Error
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def well(self) -> bool:
        return 200 <= self.status < 300

    def __str__(self) -> str:
        return f"{self.status} {self.error or '-'} {self.body[:300]!r}"


class Client:
    """Asks over one connection, which is made anew when it was lost."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
        self._key = key

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Outcome:
        begun = time.monotonic()
        try:
            self._connection.request(
                method, path, body, {"Authorization": f"Bearer {self._key}", **(headers or {})}
            )
            answer = self._connection.getresponse()
            content = answer.read()
        except TimeoutError:
            raise  # an answer that never comes is no outcome
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return Outcome(begun, time.monotonic())
        received = {name.lower(): value for name, value in answer.getheaders()}
        error = received.get("pilotlight-error", "")
        return Outcome(begun, time.monotonic(), answer.status, error, received, content)

    def close(self) -> None:
        self._connection.close()


Step = Callable[[Client, str], Outcome]
"""One request; the text is of this request alone, and can be a part of a key."""


class Load:
    """Some clients, each of which takes one step after the other, until the context is left."""

    def __init__(self, url: str, key: str, steps: list[Step], name: str = "c") -> None:
        """There is one client for each of `steps`; `name` begins the texts that steps are given."""
        self._url, self._key, self._steps, self._name = url, key, steps, name
        self.outcomes: list[dict[str, Outcome]] = [{} for _ in steps]  # by client, then by text
        self._changed = threading.Condition()
        self._stopping = False
        self._faults: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(len(steps))]

    def _run(self, number: int) -> None:
        client = Client(self._url, self._key)
        count = 0
        try:
            while not self._stopping:
                text = f"{self._name}{number}-{count:06}"
                outcome = self._steps[number](client, text)
                count += 1
                with self._changed:
                    self.outcomes[number][text] = outcome
                    self._changed.notify_all()
                if not outcome.status:
                    time.sleep(0.005)  # nobody is there: a client waits a little before it tries again
        except BaseException as error:  # noqa: BLE001  whoever waits is told
            with self._changed:
                self._faults.append(error)
                self._changed.notify_all()
        finally:
            client.close()

    def wait(self, each: int, since: float = 0.0) -> None:
        """Wait until every client has `each` requests done well that began after a moment."""

        def enough() -> bool:
            return bool(self._faults) or all(
                sum(outcome.well and outcome.begun >= since for outcome in outcomes.values()) >= each
                for outcomes in self.outcomes
            )

        with self._changed:
            there = self._changed.wait_for(enough, PATIENCE)
        if self._faults:
            raise self._faults[0]
        assert there, [str(list(outcomes.values())[-1]) for outcomes in self.outcomes]

    def all(self) -> Iterator[tuple[str, Outcome]]:
        """Yield every request's text and outcome, once the load has ended."""
        for outcomes in self.outcomes:
            yield from outcomes.items()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        for thread in self._threads:
            thread.join(2 * PATIENCE)
        if self._faults:
            raise self._faults[0]


def documents(client: Client, collection: str, app: str) -> dict[str, bytes]:
    """Return the JSON texts of all documents of a collection, by key."""
    import json

    found: dict[str, bytes] = {}
    cursor = ""
    while True:
        outcome = client.ask("GET", f"/data/v1/{collection}?app={app}&limit=1000{cursor}")
        assert outcome.status == 200, str(outcome)
        page = json.loads(outcome.body)
        found |= {each["key"]: each["value"] for each in page["documents"]}
        if page["cursor"] is None:
            return found
        cursor = f"&cursor={page['cursor']}"


@contextlib.contextmanager
def client(url: str, key: str) -> Iterator[Client]:
    """Lend a client."""
    made = Client(url, key)
    try:
        yield made
    finally:
        made.close()
