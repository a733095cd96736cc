"""The functions that the benchmarks deploy: a hello in each language, and two with a purpose."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runtimes.declaration import choose, load_all

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

# A megabyte of code, most of which is never called, as in large packages
_LARGE = {
    "handler.mjs": 'import { ANSWER } from "./heavy.mjs";\nexport default () => new Response(ANSWER);\n',
    "heavy.mjs": "".join(
        f"function f{n}(a, b) {{\n  const c = (x) => [x, `${{a}}-{n}`].map((y) => y + b);\n"
        f"  if (a > {n}) return c(a);\n"
        f"  for (const d of c(b)) a = {{ d, {'e' * (n % 50 + 1)}: [a, b] }};\n  return a;\n}}\n"
        for n in range(6000)
    )
    + "".join(f"f{n}({n}, 1);\n" for n in range(0, 6000, 10))
    + "export const ANSWER = 'hello';\n",
}

HELLO = {
    "python": {"handler.py": "def handle(request):\n    return 'hello'\n"},
    "node": {"handler.mjs": "export default () => new Response('hello')\n"},
    "native": {"handler": _PERL},
}
SLOW = {"python": _SLOW, "node": _LARGE}

# Answers many calls at a time, so that one instance is enough however many connections there are
CONCURRENT = {"handler.py": "async def handle(request):\n    return 'hello'\n"}

# Stays for as long as it is told, and tells how long it really was
HOLDING = {
    "handler.py": (
        "import time\n\n\ndef handle(request):\n    began = time.perf_counter()\n"
        "    time.sleep(float(request.path.strip('/')))\n    return str(time.perf_counter() - began)\n"
    )
}


# Takes five milliseconds of processor time, or waits for twenty of something else
COMPUTING = {
    "handler.py": (
        "import time\n\n\ndef handle(request):\n    end = time.thread_time() + 0.005\n"
        "    while time.thread_time() < end:\n        pass\n    return 'done'\n"
    )
}
WAITING = {"handler.py": "import time\n\n\ndef handle(request):\n    time.sleep(0.02)\n    return 'done'\n"}


@dataclass(frozen=True)
class Language:
    """An interpreter of this machine: of which runtime, and by what name a manifest asks for it."""

    name: str
    pin: str
    executable: str


def languages(wanted: Iterable[str] = HELLO) -> list[Language]:
    """Return the interpreters that the platform takes for these names ("node", "node22"), if it has one."""
    return [
        Language(runtime.name, name, interpreter.executable)
        for name in wanted
        for runtime in load_all().values()
        if runtime.name in HELLO and (interpreter := choose(runtime.find(), name)) is not None
    ]


def manifest(name: str, **settings: str) -> dict[str, str]:
    """Return a pilotlight.toml that also says some settings, whose values are written as TOML."""
    return {"pilotlight.toml": f'[functions.{name}]\npath = "."\naccess = "public"\n{_lines(settings)}'}


def together(parts: Mapping[str, tuple[Mapping[str, str], str]]) -> dict[str, str]:
    """Return the files of an app of several functions: by name, files, and more lines of its manifest."""
    files: dict[str, str] = {}
    text = ""
    for name, (sources, settings) in parts.items():
        files |= {f"{name}/{path}": source for path, source in sources.items()}
        text += f'[functions.{name}]\naccess = "public"\n{settings}'
    return {**files, "pilotlight.toml": text}


def many(names: Sequence[str], **settings: str) -> dict[str, str]:
    """Return the files of an app of many functions, each a hello; settings as for `manifest`."""
    return together(dict.fromkeys(names, (HELLO["python"], _lines(settings))))


def _lines(settings: Mapping[str, str]) -> str:
    usual = {"cpu": "1.0", "timeout": '"60s"'}  # machines that are slow are measured, too
    return "".join(f"{key} = {value}\n" for key, value in {**usual, **settings}.items())
