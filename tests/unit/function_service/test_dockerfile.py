"""What a Dockerfile may say, and what dockerd gets of it."""

import pytest

from function_service.engines.docker import dockerfile
from function_service.engines.docker.dockerfile import Mistaken, read

LABEL = "LABEL pilotlight.image=mine"


def written(text: str, **ids: str) -> list[str]:
    return read(text).text(ids, "mine").splitlines()


def test_each_image_is_named_by_its_id_and_all_that_is_made_has_the_label():
    text = """
# syntax=docker/dockerfile:1
ARG BASE=busybox
FROM ${BASE} AS build
RUN echo a \\
    # a comment within
    && echo b
LABEL pilotlight.image=yours
FROM scratch
COPY --chown=busybox --from=busybox /bin /bin
COPY --from=build /a /b
CMD ["/b"]
"""
    assert written(text, busybox="sha256:1") == [
        "ARG BASE=busybox",
        "FROM sha256:1 AS build",
        LABEL,
        "RUN echo a     && echo b",
        "LABEL pilotlight.image=yours",
        LABEL,
        "FROM scratch",
        LABEL,
        "COPY --chown=busybox --from=sha256:1 /bin /bin",
        "COPY --from=build /a /b",
        'CMD ["/b"]',
    ]


def test_a_stage_is_no_image():
    recipe = read("FROM a AS a\nFROM a\nCOPY --from=0 /x /x\nCOPY --from=A /x /x\nCOPY --from=b /x /x\n")
    assert recipe.images == ("a", "b")
    assert recipe.text({"a": "1", "b": "2"}, "mine").splitlines()[2] == "FROM a"


@pytest.mark.parametrize(
    "line",
    [
        "ADD http://localhost:8080/ /x",
        "add https://example.com/x /x",
        "AD\\\nD http:\\\n//localhost/ /x",
        "ADD --chown=1:1 http://localhost/ /x",
        "ADD ht\\\\tp://localhost/ /x",
        "ADD http:'/'/localhost/ /x",
        'ADD ["http:\\u002f\\u002flocalhost/", "/x"]',
        "ENV U=http\nADD $U://localhost/ /x",
        "ADD git@example.com:x.git /x",
        "ONBUILD ADD http://localhost/ /x",
        "RUN --network=host wget http://localhost/",
        "RUN --mount=type=bind,source=/,target=/x true",
        "RUN --security=insecure true",
        "INCLUDE http://localhost/",
        "RUN true\x0bADD http://localhost/ /x",
        "RUN true\rADD http://localhost/ /x",
        "ADD --chown=0:0\xe0http://localhost/ /x",  # the second byte of that letter is a space to dockerd
        "ADD --chown=0:0\xa0http://localhost/ /x",
        'ADD "--chown=0:0" http://localhost/ /x',
        "ADD --from=a http://localhost/ /x",
    ],
)
def test_what_would_fetch_or_gain_something_is_refused(line):
    with pytest.raises(Mistaken, match=r"^Line \d+: "):
        read(f"FROM a\n{line}\n")


@pytest.mark.parametrize(
    "line",
    [
        'COPY --"from"=b /x /x',
        "COPY --fr\\om=b /x /x",
        "COPY --'from=b' /x /x",
        'COPY --chown="0:0 " --from=b /x /x',
        "COPY --chown=0:0\\ --from=b /x /x",
        "COPY --chown=0:0\xe0--from=b /x /x",
        "COPY \u3000--from=b /x /x",
        "COPY -- --from=b /x /x",
        "COPY --from=a --from=b /x /x",
        "COPY --from=$B /x /x",
        "COPY --from= /x /x",
        "COPY --chmod=755 --from=b /x /x",
    ],
)
def test_no_image_is_named_in_a_way_that_only_dockerd_understands(line):
    with pytest.raises(Mistaken, match=r"^Line 2: "):
        read(f"FROM a\n{line}\n")


def test_what_dockerd_does_not_take_for_a_stage_is_an_image():
    assert read("FROM scratch\nFROM 0\n").images == ("0",)
    assert read("FROM scratch AS cafe\nCOPY --from=cafe /x /x\n").images == ("cafe",)  # it is not done yet
    assert read("FROM scratch\nCOPY --from=0 /x /x\n").images == ("0",)
    assert read("FROM scratch\nCOPY --from=1 /x /x\nFROM scratch\n").images == ("1",)
    assert read("FROM scratch AS one\nFROM scratch\nCOPY --from=00 /x /x\n").images == ("00",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "begin with FROM"),
        ("RUN true\n", "begin with FROM"),
        ("# escape=`\nFROM a\n", "Windows"),
        ("FROM --platform=linux/arm64 a\n", "other machines"),
        ("FROM $BASE\n", "no value"),
        ("FROM ../../containers/x\n", "not the name"),
        ("FROM a\n" + "RUN true\n" * 200, "at most 200"),
        ("FROM a\nRUN " + "x" * 70_000, "longer than"),
    ],
)
def test_what_cannot_be_built_is_told_with_the_cause(text, why):
    with pytest.raises(Mistaken, match=why):
        read(text)


def test_no_line_goes_on_with_the_next_one_in_what_dockerd_gets():
    assert written("FROM a\nRUN echo \\\\\nRUN echo b \\", a="1")[2:] == ["RUN echo \\RUN echo b"]
    assert written("FROM a\nRUN echo \\ \n\\\n\nCMD x\\\n", a="1")[-1] == "RUN echo CMD x"


def test_every_known_instruction_is_taken_as_it_is():
    body = ["USER 1", "ENV A=b", "EXPOSE 80", "VOLUME /v", "WORKDIR /w", "STOPSIGNAL 9", 'SHELL ["/bin/sh"]']
    body += ["HEALTHCHECK NONE", "ENTRYPOINT x", "MAINTAINER me", "ARG X", "ADD a.tar /a", "COPY . ."]
    assert written("\n".join(["FROM a", *body]), a="1")[2:] == body
    assert {line.split()[0] for line in body} < dockerfile._KNOWN
