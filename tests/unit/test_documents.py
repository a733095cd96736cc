"""What the pages and messages name is there: links, files, commands and their flags."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from cli.main import COMMANDS, program

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    if "/template/" not in name
]
TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
SUFFIXES = "py|mjs|js|md|toml|lock|svg|http|json|txt"


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())) if "://" not in link]


def test_there_are_pages_and_links():
    assert len(PAGES) > 10
    assert sum(len(links(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_and_folder_of_ours_that_a_page_names_exists(page):
    quoted = re.findall(r"`([^`\s]+)`", prose(page.read_text()))
    files = [name for name in quoted if re.fullmatch(rf"[\w.-]+(/[\w.-]+)*\.({SUFFIXES})", name)]
    folders = [name for name in quoted if re.fullmatch(r"[\w-]+(/[\w.-]+)*/", name)]
    for name in files + folders:
        if name.partition("/")[0] in TOP and "/" in name:
            assert (ROOT / name).exists(), name


def commands(text: str) -> list[list[str]]:
    """Return the words of each command of ours that stands in code blocks, one a line, or in backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in re.split(r"\n|&&|\|", block)]
    lines += re.findall(r"`(pilotlight [^`]+)`", prose(text))
    found = []
    for line in lines:
        words = shlex.split(line.strip().removesuffix("&"), comments=True) if "pilotlight " in line else []
        if words[:1] == ["pilotlight"] and len(words) > 1:
            found.append(words[1:])
    return found


def complain(words: list[str]) -> str:
    """Return what is wrong with a command line, as far as commands and flags go."""
    command: click.Command = program
    context = click.Context(program)
    flags = {flag for each in program.get_params(context) for flag in each.opts}
    for word in words:
        if word == "--" or command.context_settings.get("ignore_unknown_options"):
            break  # it passes on what follows
        if word.startswith("-"):
            if word.partition("=")[0] not in flags | {"-h", "--help"}:
                return f"no flag {word}"
        elif isinstance(command, click.Group) and word[:1].islower() and word != "help":
            for name in word.split("|"):
                found = command.get_command(context, name)
                if found is None:
                    return f"no command {name}"
            command = found
            flags |= {flag for each in command.get_params(context) for flag in each.opts}
    return ""


def test_what_does_not_exist_is_noticed():
    assert complain(["keys", "list"]) == ""
    assert complain(["key", "list"])
    assert complain(["keys", "show"])
    assert complain(["up", "--colour"])
    assert complain(["up", "--port=1"]) == ""
    assert complain(["shell", "hello", "--", "ls", "-l"]) == ""


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_that_a_page_shows_exists(page):
    assert [(words, wrong) for words in commands(page.read_text()) if (wrong := complain(words))] == []


def test_every_command_that_a_message_or_a_comment_names_exists():
    wrong = []
    for folder in (
        "baas",
        "benchmarks",
        "builder",
        "cli",
        "function_service",
        "gateway",
        "pilotlight",
        "runtimes",
    ):
        for file in (ROOT / folder).rglob("*.py"):
            for quoted in re.findall(r"`pilotlight ([a-z][^`{}\n]*)`", file.read_text()):
                if "|" in quoted and quoted.partition("|")[0] in COMMANDS:
                    continue  # a list of commands
                if complaint := complain(shlex.split(quoted)):
                    wrong.append((str(file.relative_to(ROOT)), quoted, complaint))
    assert wrong == []
