"""The functions that the benchmarks deploy: a hello in each language, and two with a purpose."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtimes.declaration import load_all

_MANIFEST = '[functions.NAME]\npath = "."\naccess = "public"\ncpu = 1.0\n'
IN_ONE_APP = 100
"""Functions: more than that a push may not have."""

# Also the baseline, outside of the platform: with ONCE set it answers one request and ends. It loads no
# module, so that what is measured is not Perl; 2 and 1 are AF_INET and SOCK_STREAM on every Linux
_PERL = r"""#!/usr/bin/perl
use strict;
use warnings;

my $port = $ENV{PORT};
socket(my $server, 2, 1, 0) or die "no socket: $!\n";
bind($server, pack('SnC4x8', 2, $port, 127, 0, 0, 1)) or die "can't bind port $port: $!\n";
listen($server, 128) or die "can't listen on port $port: $!\n";
$SIG{CHLD} = 'IGNORE';
while (1) {
    accept(my $connection, $server) or next;
    if (!$ENV{ONCE}) {
        my $child = fork;
        die "can't fork: $!\n" unless defined $child;
        next if $child;
    }
    local $/ = "\r\n";
    while (defined(my $line = <$connection>)) {
        next if $line ne "\r\n";
        syswrite $connection, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        last if $ENV{ONCE};
    }
    exit 0;
}
"""

# Its imports take long, as those of large packages do, and need nothing that must be installed
_SLOW = {
    "handler.py": "import heavy\n\n\ndef handle(request):\n    return heavy.ANSWER\n",
    "heavy/__init__.py": "".join(f"from heavy import part{n}\n" for n in range(40)) + "ANSWER = 'hello'\n",
    **{
        f"heavy/part{n}.py": "import re\n"
        + "".join(f"P{i} = re.compile(r'(a{i}|b{n})+[c-f]{{2,{i + 2}}}(?:x|y)?')\n" for i in range(10))
        for n in range(40)
    },
}

HELLO = {
    "python": {"handler.py": "def handle(request):\n    return 'hello'\n"},
    "node": {"handler.mjs": "export default () => new Response('hello')\n"},
    "native": {"handler": _PERL},
}
SLOW = {"python": _SLOW}

# Answers many calls at a time, so that one instance is enough however many connections there are
CONCURRENT = {"handler.py": "async def handle(request):\n    return 'hello'\n"}

# Stays for as long as it is told, and tells how long it really was
HOLDING = {
    "handler.py": (
        "import time\n\n\ndef handle(request):\n    began = time.perf_counter()\n"
        "    time.sleep(float(request.path.strip('/')))\n    return str(time.perf_counter() - began)\n"
    )
}


@dataclass(frozen=True)
class Language:
    """A runtime that this machine has."""

    name: str
    executable: str


def languages() -> list[Language]:
    """Return the runtimes of this machine for which there is a hello, each in its newest version."""
    found = {}
    for runtime in load_all().values():
        for interpreter in runtime.find():
            found[runtime.name] = Language(runtime.name, interpreter.executable)
    return [found[name] for name in HELLO if name in found]


def manifest(name: str, **settings: str) -> dict[str, str]:
    """Return a pilotlight.toml that also says some settings, whose values are written as TOML."""
    more = "".join(f"{key} = {value}\n" for key, value in settings.items())
    return {"pilotlight.toml": _MANIFEST.replace("NAME", name) + more}


def many(names: Sequence[str], **settings: str) -> dict[str, str]:
    """Return the files of an app of many functions, each a hello; settings as for `manifest`."""
    files: dict[str, str] = {}
    text = ""
    for name in names:
        files |= {f"{name}/{path}": content for path, content in HELLO["python"].items()}
        text += f'[functions.{name}]\naccess = "public"\ncpu = 1.0\n'
        text += "".join(f"{key} = {value}\n" for key, value in settings.items())
    return {**files, "pilotlight.toml": text}
