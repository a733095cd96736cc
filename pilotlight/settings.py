"""Settings: the only place that reads the environment. Each is a flag of `pilotlight up` and PILOTLIGHT_…."""

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from pilotlight import image_names, redis_address
from pilotlight.problems import Problem

_UNITS = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def parse_size(text: str) -> int:
    """Return the bytes that a size such as `128MB` stands for (KB, MB, GB are powers of 1024).

    Raises ValueError.
    """
    match = re.fullmatch(r"(\d+)\s*(B|KB|MB|GB|)", text.strip().upper())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it like 128MB or 1GB")
    return int(match[1]) * _UNITS[match[2]]


def parse_duration(text: str) -> float:
    """Return the seconds that a duration such as `10s`, `500ms`, `5m` or `1h` stands for.

    Raises ValueError.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write it like 500ms, 10s, 5m or 1h")
    return float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]


def _seconds(text: str) -> float:
    """Parse a duration; a bare number of seconds is how a service is told of it."""
    return parse_duration(text if text[-1:].isalpha() else f"{text}s")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise ValueError(f"{text!r} is not a port; use 0 to 65535 (0: any free one)")
    return int(text)


def _one_of(*words: str) -> Any:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    if re.fullmatch(r"\d+(\.\d+)?", text) is None or not 0.05 <= float(text) <= 20:
        raise ValueError(f"{text!r} is not a number from 0.05 to 20")
    return float(text)


def _folder(text: str) -> Path:
    if not text:
        raise ValueError("an empty path was given")
    return Path(text).expanduser().absolute()


def _url(text: str) -> str:
    parts = urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/")):
        raise ValueError(f"{text!r} is no address like https://functions.example.com")
    return text.rstrip("/")


def _address(text: str) -> str:
    parts = urlsplit(f"//{text}")
    if text and (not parts.hostname or not parts.port or parts.netloc != text or "@" in text):
        raise ValueError(f"{text!r} is no address like 10.0.0.1:7443")
    return text


def _store(text: str) -> str:
    if text != "sqlite":
        try:
            redis_address.parse(text)
        except ValueError as error:  # what was given may hold a password
            raise ValueError(
                "it is neither sqlite nor like redis://HOST:PORT/0, rediss://…?ssl_ca_certs=FILE, "
                "unix:///PATH?db=0, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/0 or "
                f"redis+cluster://HOST:PORT,HOST:PORT: {error}. In a password, / ? # @ are written "
                "%2F %3F %23 %40"
            ) from None
    return text


def _images(text: str) -> str:
    image_names.patterns(text)
    return text.strip()


def _file(text: str) -> str:
    return str(Path(text).expanduser().absolute()) if text else ""


def default_data_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder used when none is named: /var/lib/pilotlight for root, else the user's own."""
    if os.geteuid() == 0:
        return Path("/var/lib/pilotlight")
    base = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser().absolute() / "pilotlight"


def inherited(*names: str) -> dict[str, str]:
    """Return those of the named environment variables that are set, for programs that we start."""
    return {name: os.environ[name] for name in names if name in os.environ}


def environment() -> dict[str, str]:
    """Return the whole environment, as the configuration of npm can name any of it."""
    return dict(os.environ)


def _setting(default: Any, parse: Any, description: str) -> Any:
    metadata = {"parse": parse, "help": description}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """What an operator can set. `help` and `parse` of each stand in the field's metadata."""

    host: str = _setting("127.0.0.1", str, "the address that the gateway listens on")
    port: int = _setting(8080, _port, "the port that the gateway listens on; 0 takes any free one")
    public_url: str = _setting(
        "",
        _url,
        "the address at which the world reaches the platform, such as https://functions.example.com",
    )
    tls_certificate: str = _setting(
        "", _file, "the file with the certificate, and those that it rests on, to serve HTTPS with (PEM)"
    )
    tls_key: str = _setting("", _file, "the file with the certificate's private key (PEM)")
    data: Path = _setting(lambda: default_data_folder(os.environ), _folder, "the folder that holds all state")
    secrets_key: str = _setting(
        "",
        _file,
        "the file with the key that secrets are encrypted with (default: secrets.key of the data folder)",
    )
    engine: str = _setting(
        "auto",
        _one_of("auto", "embedded", "docker"),
        "how sandboxes are made: auto, embedded (Linux itself) or docker",
    )
    docker_runtime: str = _setting(
        "",
        str,
        "the OCI runtime that Docker runs functions in: crun, runsc … (default: Docker's own)",
    )
    dockerfiles: str = _setting(
        "no",
        _one_of("no", "yes"),
        "whether Docker builds functions by their Dockerfile, as root of its containers: no or yes",
    )
    images: str = _setting(
        "",
        _images,
        "the images that functions may name, such as 'python:*,registry.example.com/team/*', pulled where "
        "they are missing (default: those on this machine)",
    )
    store: str = _setting(
        "sqlite",
        _store,
        "where the registry and the documents are kept: sqlite, or a Redis such as redis://127.0.0.1:6379/0",
    )
    machine_address: str = _setting(
        "",
        _address,
        "where other machines of the platform reach this one, such as 10.0.0.1:7443 (default: it is alone)",
    )
    machines_key: str = _setting(
        "", _file, "the file with the key by which the machines of a platform know each other"
    )
    max_body: int = _setting(100 << 20, parse_size, "the largest request body, such as 100MB")
    max_documents: int = _setting(
        1 << 30, parse_size, "what the documents of one app may take together, such as 1GB"
    )
    max_logs: int = _setting(
        8 << 20, parse_size, "what the lines that one function printed may take, and its calls, such as 8MB"
    )
    max_audit: int = _setting(80 << 20, parse_size, "what the audit log may take, such as 80MB")
    max_unused_layers: int = _setting(
        2 << 30,
        parse_size,
        "what layers of pushes that failed or are under way may take, such as 2GB",
    )
    max_fetched_layers: int = _setting(
        10 << 30, parse_size, "what layers that other machines have, too, may take here, such as 10GB"
    )
    max_fetched_images: int = _setting(
        20 << 30, parse_size, "what images that other machines have, too, may take here, such as 20GB"
    )
    max_repository: int = _setting(
        1 << 30, parse_size, "what the git repository of one app may take, such as 1GB"
    )
    kept_revisions: int = _setting(10, _count, "how many revisions of a function are kept to roll back to")
    keep_alive: str = _setting(
        "ember",
        _one_of("ember", "fixed", "histogram", "greedy-dual"),
        "the policy for idle functions whose keep_alive is auto: ember, fixed, histogram or greedy-dual",
    )
    keep_alive_memory: int = _setting(
        1 << 30,
        parse_size,
        "what idle functions may take with greedy-dual, by their memory limits, such as 1GB",
    )
    keep_alive_thrift: float = _setting(
        0.94,
        _share,
        "what idle functions may take with ember, over what ten minutes for each would, such as 1.25",
    )
    snapshot_memory: int = _setting(
        1 << 30,
        parse_size,
        "what the snapshots of functions with slow imports may take together, such as 1GB; 0 for none",
    )
    queue: int = _setting(1000, _count, "how many calls may wait for one function")
    queue_wait: float = _setting(
        0.5,
        _seconds,
        "how long a call may have to wait for a function by the pace of the others, such as 500ms or 5s",
    )
    debug: str = _setting(
        "no",
        _one_of("no", "yes"),
        "whether debuggers get at functions, which then have one instance and much time: no or yes",
    )
    gateways: int = _setting(1, _count, "how many gateway processes share the port")

    @classmethod
    def load(cls, environ: Mapping[str, str], flags: Mapping[str, str | None] | None = None) -> Self:
        """Read flags, then the environment, then defaults. Raises Problem for a value that does not parse."""
        values: dict[str, Any] = {}
        for setting in fields(cls):
            variable = f"PILOTLIGHT_{setting.name.upper()}"
            flag = (flags or {}).get(setting.name)
            text = flag if flag is not None else environ.get(variable)
            if text is None:
                continue
            source = f"--{setting.name.replace('_', '-')}" if flag is not None else variable
            try:
                values[setting.name] = setting.metadata["parse"](text)
            except ValueError as error:
                raise Problem("invalid-request", f"{source}: {error}") from error
        return cls(**values)

    def environment(self) -> dict[str, str]:
        """Return the same settings as environment variables, for the services that `up` starts."""
        return {
            f"PILOTLIGHT_{setting.name.upper()}": str(getattr(self, setting.name)) for setting in fields(self)
        }


def current(flags: Mapping[str, str | None] | None = None) -> Settings:
    """Return the settings of this process: flags, then the environment, then defaults. Raises Problem."""
    return Settings.load(os.environ, flags)


def without_ours() -> dict[str, str]:
    """Return the environment without all that is said about a platform, for one that is another."""
    return {name: text for name, text in os.environ.items() if not name.startswith("PILOTLIGHT_")}


def for_services(settings: Settings) -> dict[str, str]:
    """Return the environment of a service that `up` starts: its own, with the settings in it."""
    return {**os.environ, **settings.environment()}


def notify_socket() -> str | None:
    """Return where systemd waits to be told that this process serves; None where it does not."""
    return os.environ.get("NOTIFY_SOCKET") or None


@dataclass(frozen=True)
class Named:
    """The platform that PILOTLIGHT_URL and PILOTLIGHT_KEY name; None where they are not set."""

    url: str | None
    key: str | None


def named_platform() -> Named:
    """Read where the commands shall look for the platform."""
    return Named(os.environ.get("PILOTLIGHT_URL") or None, os.environ.get("PILOTLIGHT_KEY") or None)


@dataclass(frozen=True)
class OutsideProxy:
    """The proxy through which this machine reaches the outside, and the hosts that it reaches directly."""

    host: str
    port: int
    tls: bool = False
    authorization: str | None = None  # the value of the header Proxy-Authorization
    direct: tuple[str, ...] = ()  # domains, with all below them; "*" is every host

    def serves(self, host: str) -> bool:
        """Tell whether connections to host go through the proxy."""
        return not any(host == name or host.endswith(f".{name}") or name == "*" for name in self.direct)


def outside_proxy(environ: Mapping[str, str] | None = None) -> OutsideProxy | None:
    """Read HTTPS_PROXY and NO_PROXY as most programs do (lower case wins); None where there is no proxy.

    `environ` defaults to that of the process. Raises Problem for an address that does not parse.
    """
    environ = os.environ if environ is None else environ
    address = environ.get("https_proxy") or environ.get("HTTPS_PROXY")
    if not address:
        return None
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is not http://HOST:PORT")
    except ValueError as error:
        raise Problem("invalid-request", f"HTTPS_PROXY can't be used: {error}.") from error
    authorization = None
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(user.encode()).decode()
    names = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")
    direct = tuple(name.strip().lower().removeprefix("*.").lstrip(".") for name in names if name.strip())
    return OutsideProxy(parts.hostname, port, parts.scheme == "https", authorization, direct)
