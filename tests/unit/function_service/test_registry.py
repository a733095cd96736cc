"""The registry on a store in memory: what two who come at once, a cancelled call and a restart find."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from function_service.contract import FunctionConfig, Revision, Scope
from function_service.registry import Registry
from pilotlight.problems import Problem
from pilotlight.store import Write
from pilotlight.store_memory import MemoryStore
from tests.support.safes import open_safe


class SlowStore(MemoryStore):
    """Gives way before and after each write, as a disk does; `writes` counts them."""

    writes = 0

    async def write(self, writes: Sequence[Write]) -> list[int]:
        self.writes += 1
        await asyncio.sleep(0)
        done = await super().write(writes)
        await asyncio.sleep(0)
        return done


def made(name: str, number: int = 1, app: str = "a", **config: Any) -> Revision:
    settings = FunctionConfig(name=name, runtime="python3.11", handler="h", **config)
    code = f"code-{name}-{number}"
    return Revision(
        id=f"{app}-{name}-{number}",
        app=app,
        config=settings,
        code=code,
        commit=str(number),
        created=float(number),
    )


async def push(registry: Registry, *revisions: Revision) -> None:
    commit = revisions[0].commit
    await registry.prepare(revisions[0].app, commit, list(revisions))
    assert await registry.activate(revisions[0].app, commit)


def state(registry: Registry) -> Any:
    return msgspec.to_builtins((registry.apps, registry.revisions, registry.keys, registry.secrets))


async def reloaded(registry: Registry) -> Registry:
    other = Registry(registry._store, registry._safe)
    await other.load()
    await other.open_secrets()
    return other


async def test_what_is_prepared_is_not_live_until_it_is_activated() -> None:
    registry = Registry(SlowStore(), open_safe())
    await registry.prepare("a", "1", [made("f")])
    assert registry.all_live() == []
    with pytest.raises(Problem, match="no function"):
        registry.live("f")
    assert await registry.activate("a", "1")
    assert registry.live("f").id == "a-f-1"
    assert not await registry.activate("a", "1")


async def test_what_is_pushed_again_is_the_newest_again() -> None:
    registry = Registry(SlowStore(), open_safe())
    for number in (1, 2):
        await push(registry, made("f", number))
    again = msgspec.structs.replace(made("f", 1), commit="3")  # the same content by another commit
    await push(registry, again)
    assert [r.id for r in registry.kept("f")] == ["a-f-1", "a-f-2"]
    assert registry.live("f").commit == "3"
    assert state(await reloaded(registry)) == state(registry)
    assert (await registry.rollback("f", None)).id == "a-f-2"


async def test_a_push_after_the_clock_was_set_back_is_the_newest_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry(SlowStore(), open_safe())
    for number, date in enumerate((5e9, 4e9, 3e9), 1):
        monkeypatch.setattr(time, "time", lambda date=date: date)
        await push(registry, made("f", number))
    assert [r.id for r in registry.kept("f")] == ["a-f-3", "a-f-2", "a-f-1"]
    assert (await registry.rollback("f", None)).id == "a-f-2"


async def test_activating_what_was_not_prepared_is_refused() -> None:
    registry = Registry(SlowStore(), open_safe())
    await push(registry, made("f"))
    for app, commit in (("a", "2"), ("b", "1")):
        with pytest.raises(Problem, match="Push it again") as caught:
            await registry.activate(app, commit)
        assert caught.value.kind == "not-found"


async def test_functions_that_are_not_in_the_new_commit_go() -> None:
    registry = Registry(SlowStore(), open_safe())
    await push(registry, made("f"), made("g"))
    await push(registry, made("f", 2))
    assert [r.id for r in registry.all_live()] == ["a-f-2"]
    assert set(registry.revisions) == {"f"}
    assert state(await reloaded(registry)) == state(registry)


async def test_only_so_many_revisions_are_kept_and_the_live_one_always() -> None:
    registry = Registry(SlowStore(), open_safe(), kept_revisions=3)
    for number in range(1, 8):
        await push(registry, made("f", number))
    assert len(registry.revisions["f"]) == 3
    oldest = registry.kept("f")[-1]
    await registry.rollback("f", oldest.id)
    await registry.prepare("a", "later", [made("f", 100), made("f", 101)])
    await registry.put_secret("X", "y")
    await registry.rollback("f", oldest.id)
    assert registry.live("f") == oldest
    assert state(await reloaded(registry)) == state(registry)


async def test_rolling_back_goes_to_the_one_before_or_the_one_named() -> None:
    registry = Registry(SlowStore(), open_safe())
    for number in (1, 2, 3):
        await push(registry, made("f", number))
    assert (await registry.rollback("f", None)).id == "a-f-2"
    assert (await registry.rollback("f", None)).id == "a-f-1"
    with pytest.raises(Problem, match="no revision before"):
        await registry.rollback("f", None)
    assert (await registry.rollback("f", "a-f-3")).id == "a-f-3"
    with pytest.raises(Problem, match="It has a-f-3, a-f-2, a-f-1"):
        await registry.rollback("f", "other")
    assert state(await reloaded(registry)) == state(registry)


async def test_a_name_belongs_to_one_app_also_when_two_push_at_once() -> None:
    registry = Registry(SlowStore(), open_safe())
    await registry.prepare("a", "1", [made("f")])
    await registry.prepare("b", "1", [made("f", app="b")])
    answers = await asyncio.gather(
        registry.activate("a", "1"), registry.activate("b", "1"), return_exceptions=True
    )
    assert answers[0] is True
    assert isinstance(answers[1], Problem)
    assert answers[1].kind == "conflict"
    assert registry.live("f").app == "a"
    with pytest.raises(Problem, match="belongs to the app 'a'"):
        registry.claim("b", ["g", "f"])


async def test_what_another_app_prepared_can_be_neither_rolled_back_to_nor_deleted_with_it() -> None:
    registry = Registry(SlowStore(), open_safe())
    await registry.prepare("b", "1", [made("f", 1, app="b")])
    await push(registry, made("f", 2))
    with pytest.raises(Problem, match="no revision before"):
        await registry.rollback("f", None)
    with pytest.raises(Problem, match="no revision 'b-f-1'"):
        await registry.rollback("f", "b-f-1")
    assert await registry.delete("f")
    assert await registry.activate("b", "1")
    assert registry.live("f").id == "b-f-1"
    assert state(await reloaded(registry)) == state(registry)


async def test_a_function_deleted_between_preparing_and_activating_is_no_broken_route() -> None:
    registry = Registry(SlowStore(), open_safe())
    await push(registry, made("f"), made("g"))
    await registry.prepare("a", "2", [made("f", 2)])
    await registry.delete("f")
    await registry.delete("g")
    with pytest.raises(Problem, match="Push it again"):
        await registry.activate("a", "2")
    assert registry.all_live() == []
    assert state(await reloaded(registry)) == state(registry) == ({}, {}, {}, {})


async def test_deleting_the_last_function_deletes_the_app() -> None:
    registry = Registry(SlowStore(), open_safe())
    await push(registry, made("f"), made("g"))
    assert (await registry.delete("f"), "a" in registry.apps) == (False, True)
    assert (await registry.delete("g"), "a" in registry.apps) == (True, False)
    with pytest.raises(Problem, match="no function"):
        await registry.delete("g")


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "x" * 64, "-a", "a\n"])
async def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    registry = Registry(SlowStore(), open_safe())
    for app, function in ((name, "f"), ("a", name)):
        with pytest.raises(Problem, match="can't be a name"):
            await registry.prepare(app, "1", [made(function)])
    assert state(registry) == ({}, {}, {}, {})


async def test_the_last_key_stays_also_when_two_are_withdrawn_at_once() -> None:
    registry = Registry(SlowStore(), open_safe())
    (one, text), (two, _) = (
        await registry.create_key("one", (Scope.ADMIN,), None, None),
        await registry.create_key("two", (Scope.ADMIN,), None, None),
    )
    assert text.startswith("pl_")
    assert text not in str(state(registry))
    answers = await asyncio.gather(
        registry.delete_key(one.id), registry.delete_key(two.id), return_exceptions=True
    )
    assert isinstance(answers[1], Problem)
    assert answers[1].kind == "conflict"
    assert list(registry.keys) == [two.id]
    with pytest.raises(Problem, match="no key with the id"):
        await registry.delete_key(one.id)


async def test_a_secret_that_a_live_function_names_stays() -> None:
    registry = Registry(SlowStore(), open_safe())
    await registry.put_secret("TOKEN", "x")
    await push(registry, made("f", secrets=("TOKEN",)))
    with pytest.raises(Problem, match="named by f") as caught:
        await registry.delete_secret("TOKEN")
    assert caught.value.kind == "conflict"
    await push(registry, made("f", 2))
    await registry.delete_secret("TOKEN")
    with pytest.raises(Problem, match="no secret 'TOKEN'"):
        await registry.delete_secret("TOKEN")


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("change", ["prepare", "activate", "rollback", "delete", "create_key", "put_secret"])
async def test_memory_and_store_agree_after_a_change_whose_caller_went(change: str, turns: int) -> None:
    registry = Registry(SlowStore(), open_safe())
    await push(registry, made("f", 1))
    await push(registry, made("f", 2))
    await registry.prepare("a", "3", [made("f", 3)])
    arguments: dict[str, tuple[Any, ...]] = {
        "prepare": ("b", "1", [made("g", app="b")]),
        "activate": ("a", "3"),
        "rollback": ("f", None),
        "delete": ("f",),
        "create_key": ("name", (Scope.ADMIN,), None, None),
        "put_secret": ("NAME", "value"),
    }
    call = asyncio.ensure_future(getattr(registry, change)(*arguments[change]))
    for _ in range(turns):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await registry.close()
    assert state(await reloaded(registry)) == state(registry)


async def test_layers_of_everything_kept_or_prepared_are_in_use() -> None:
    registry = Registry(SlowStore(), open_safe())
    await push(registry, made("f", 1))
    await registry.prepare("a", "2", [msgspec.structs.replace(made("f", 2), dependencies="deps")])
    assert registry.layers_in_use() == {"code-f-1", "code-f-2", "deps"}


async def test_keys_of_a_version_without_scopes_are_good_for_everything_without_end() -> None:
    registry = Registry(SlowStore(), open_safe())
    old = b'{"id":"k1","name":"admin","sha256":"00","created":1.0}'
    await registry._store.write([Write(space="registry/keys", key="k1", value=old)])
    await registry.load()
    key = registry.keys["k1"]
    assert key.may(Scope.ADMIN, None)
    assert key.may(Scope.DEPLOY, "any")
    assert not key.expired(9e99)


async def test_scopes_app_and_end_of_a_key_survive_a_restart() -> None:
    registry = Registry(SlowStore(), open_safe())
    made, _ = await registry.create_key("ci", (Scope.DEPLOY, Scope.DATA), "shop", 4e9)
    assert (await reloaded(registry)).keys[made.id] == made
    assert (made.scopes, made.app, made.expires) == ((Scope.DEPLOY, Scope.DATA), "shop", 4e9)


async def test_the_last_key_that_is_admin_for_ever_stays() -> None:
    registry = Registry(SlowStore(), open_safe())
    first, _ = await registry.create_key("admin", (Scope.ADMIN,), None, None)
    await registry.create_key("brief", (Scope.ADMIN,), None, 4e9)
    narrow, _ = await registry.create_key("narrow", (Scope.DEPLOY,), None, None)
    with pytest.raises(Problem, match="last key with the scope admin"):
        await registry.delete_key(first.id)
    await registry.delete_key(narrow.id)
    await registry.create_key("other", (Scope.ADMIN,), None, None)
    await registry.delete_key(first.id)


async def test_two_services_on_one_store_see_what_the_other_has_changed_before_they_change_something() -> (
    None
):
    store, safe = SlowStore(), open_safe()
    one, two = Registry(store, safe), Registry(store, safe)
    changed: list[set[str]] = []
    two.on_change = changed.append
    await push(one, made("f"))
    await one.put_secret("WORD", "first")
    key, _ = await two.create_key("k", (Scope.ADMIN,), None, None)
    assert changed == [{"WORD"}]
    assert two.live("f").id == "a-f-1"
    with pytest.raises(Problem, match="belongs to the app 'a'"):
        await two.prepare("b", "1", [made("f", app="b")])
    await one.put_secret("WORD", "second")
    assert one.keys == {key.id: key}
    assert state(await reloaded(one)) == state(one)


async def test_of_two_services_that_want_one_name_at_once_one_gets_it() -> None:
    store, safe = SlowStore(), open_safe()
    one, two = Registry(store, safe), Registry(store, safe)
    results = await asyncio.gather(
        push(one, made("f", app="a")), push(two, made("f", app="b")), return_exceptions=True
    )
    assert [isinstance(result, Problem) for result in results].count(True) == 1
    again = await reloaded(one)
    assert len(again.all_live()) == 1


class FailingStore(MemoryStore):
    """Fails once when the secrets are read, if it is told to."""

    fails = False

    async def scan(self, space: str, **options: Any) -> Any:
        if self.fails and space == "registry/secrets":
            self.fails = False
            raise Problem("unavailable", "It has gone away.")
        return await super().scan(space, **options)


async def test_what_could_not_be_read_as_a_whole_is_read_again() -> None:
    store = FailingStore()
    one, two = Registry(store, open_safe()), Registry(store, open_safe())
    await two.load()
    told: list[int] = []
    two.on_change = lambda _: told.append(two.edition)
    await one.create_key("k", (Scope.ADMIN,), None, None)
    store.fails = True
    async with two.turn:
        with pytest.raises(Problem):
            await two.catch_up()
        assert two.edition != one.edition
        await two.catch_up()
    assert told == [one.edition] == [two.edition]


async def test_what_another_service_changes_is_followed() -> None:
    store, safe = SlowStore(log_of=lambda _space: "all"), open_safe()
    one, two = Registry(store, safe), Registry(store, safe)
    seen = asyncio.Event()
    two.on_change = lambda _: seen.set()
    following = asyncio.create_task(two.follow(store))
    await push(one, made("f"))
    while not two.all_live():
        seen.clear()
        await asyncio.wait_for(seen.wait(), 10)
    assert two.live("f").id == "a-f-1"
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
