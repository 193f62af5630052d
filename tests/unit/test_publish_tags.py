"""Tags are named by what they hold, and move all or none: whatever fails, each is again as it was."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import publish_support as support
import pytest
from registry_support import Fake, Reply, serving

from kiln import errors
from kiln.plan import Target
from kiln.publish import tags
from kiln.registry import client, records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kiln.registry.client import Registry

REPO = "team/app"
SERIES = "0123456789abcdef" * 4
TARGET = Target(model="Org/MiniMax-M3", variant="mxfp8", arch="gfx942", product="mi300x", release="0.31.0")
THREE = ("one", "two", "three")


@pytest.fixture(autouse=True)
def anonymous(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving(Fake()) as served:
        yield served


@pytest.fixture
def registry(fake: Fake) -> Iterator[Registry]:
    with client.connect(fake.host) as connected:
        yield connected


@pytest.fixture
def old(registry: Registry) -> str:
    """The digest that tags `one` and `two` name before; there is no `three`."""
    small = support.push(registry, REPO, word=b"WORD = 'old'\n")
    support.tag(registry, small, "one", "two")
    return small.digest


@pytest.fixture
def new(registry: Registry) -> str:
    return support.push(registry, REPO).digest


def pointing(registry: Registry) -> tuple[str | None, ...]:
    heads = (registry.head(REPO, tag) for tag in THREE)
    return tuple(head.digest if head else None for head in heads)


def move(registry: Registry, new: str, body: Callable[[], None] = lambda: None) -> list[str]:
    """Move all three tags, then run `body`; return what was said."""
    said: list[str] = []
    places = tags.look(registry, REPO, THREE)
    with tags.moved(registry, REPO, places, registry.manifest(REPO, new), say=said.append):
        body()
    return said


def fails() -> None:
    raise errors.PublishRefused("it does not verify", hint="look")


# names


def test_names_say_what_is_inside() -> None:
    made = tags.names(TARGET, twin=False, series=SERIES, aliases=())
    assert made.every == (
        "minimax-m3-mxfp8-gfx942-v0.31.0-k0123456789ab",
        "minimax-m3-mxfp8-gfx942-v0.31.0",
        "minimax-m3-mxfp8-gfx942",
    )
    twin = tags.names(TARGET, twin=True, series=SERIES, aliases=("stable", "stable", "next"))
    assert twin.immutable == "minimax-m3-mxfp8-gfx942-twin-v0.31.0-k0123456789ab"
    assert twin.aliases == ("stable", "next")


def test_an_alias_that_is_no_tag_or_the_immutable_one_is_refused() -> None:
    for alias in ("no tag", "-x", "minimax-m3-mxfp8-gfx942-v0.31.0-k0123456789ab"):
        with pytest.raises(errors.BadInput):
            tags.names(TARGET, twin=False, series=SERIES, aliases=(alias,))


def test_an_immutable_tag_is_free_or_names_the_same(registry: Registry, old: str, new: str) -> None:
    one, _, three = tags.look(registry, REPO, THREE)
    assert tags.taken(three, new) == tags.taken(one, old) == ""
    assert tags.taken(one, new) == f"names {old} already, and never names anything else"


# moving


def test_all_tags_move_in_order_and_are_read_back(fake: Fake, registry: Registry, old: str, new: str) -> None:
    fake.asked.clear()
    assert old != new
    assert move(registry, new) == []
    assert pointing(registry) == (new, new, new)
    path = f"/v2/{REPO}/manifests"
    puts = [each.path for each in fake.asked if each.method == "PUT"]
    assert puts == [f"{path}/{tag}" for tag in THREE]


@pytest.mark.parametrize("tag", THREE)
def test_a_put_that_fails_half_way_moves_all_back(
    fake: Fake, registry: Registry, old: str, new: str, *, tag: str
) -> None:
    before = pointing(registry)
    fake.script("PUT", f"/v2/{REPO}/manifests/{tag}", Reply(status=500))
    with pytest.raises(errors.KilnError, match="every tag is again as it was") as caught:
        move(registry, new)
    assert caught.value.exit_code in {3, 4}
    assert pointing(registry) == before == (old, old, None)


def test_a_put_that_the_registry_forgets_is_noticed_by_reading_back(
    fake: Fake, registry: Registry, old: str, new: str
) -> None:
    path = f"/v2/{REPO}/manifests/two"
    kind, data = fake.manifests[f"{REPO}@{new}"]
    fake.script("PUT", path, Reply(status=201, headers={"Docker-Content-Digest": new}))
    assert (kind, bool(data)) == (records.OCI_MANIFEST, True)
    with pytest.raises(errors.CommandFailed, match=f"set to {new}, but read back it names {old}"):
        move(registry, new)
    assert pointing(registry) == (old, old, None)


def test_what_fails_after_the_moves_undoes_them_with_its_own_exit_code(registry: Registry, old: str, new: str) -> None:
    with pytest.raises(errors.PublishRefused, match="it does not verify\nevery tag is again as it was") as caught:
        move(registry, new, fails)
    assert caught.value.hint == "look"
    assert pointing(registry) == (old, old, None)
    assert registry.head(REPO, new), "the image itself stays"


def test_an_interrupt_is_a_failure_too(fake: Fake, registry: Registry, old: str, new: str) -> None:
    def interrupt(ref: str) -> None:
        if ref == "two":
            fake.on_put = None
            os.kill(os.getpid(), signal.SIGINT)

    fake.on_put = interrupt
    with pytest.raises(KeyboardInterrupt):
        move(registry, new)
    assert pointing(registry) == (old, old, None)


def test_a_second_interrupt_waits_until_all_is_undone(fake: Fake, registry: Registry, old: str, new: str) -> None:
    def again(_: str) -> None:
        fake.on_put = None
        os.kill(os.getpid(), signal.SIGINT)

    def interrupt() -> None:
        fake.on_put = again
        raise errors.PublishRefused("first")

    with pytest.raises(KeyboardInterrupt):
        move(registry, new, interrupt)
    assert pointing(registry) == (old, old, None)


def test_a_new_tag_that_the_registry_cannot_delete_is_said(fake: Fake, registry: Registry, old: str, new: str) -> None:
    fake.deletes = False
    with pytest.raises(errors.PublishRefused) as caught:
        move(registry, new, fails)
    told = f"NOT PUT BACK: {REPO}:three was not there before, and may name {new} now: this registry deletes no tags"
    assert caught.value.message == f"it does not verify\n{told}"
    assert pointing(registry) == (old, old, new)


def test_an_interrupt_says_what_it_could_not_put_back(fake: Fake, registry: Registry, old: str, new: str) -> None:
    said: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    fake.deletes = False
    places = tags.look(registry, REPO, THREE)
    to = registry.manifest(REPO, new)
    with pytest.raises(KeyboardInterrupt), tags.moved(registry, REPO, places, to, say=said.append):
        interrupt()
    assert pointing(registry) == (old, old, new)
    assert len(said) == 1
    assert said[0].startswith(f"NOT PUT BACK: {REPO}:three")


def test_a_tag_that_cannot_be_put_back_is_said_and_the_others_are(
    fake: Fake, registry: Registry, old: str, new: str
) -> None:
    def broken() -> None:
        fake.script("PUT", f"/v2/{REPO}/manifests/two", Reply(status=403))
        raise errors.PublishRefused("it does not verify")

    with pytest.raises(errors.PublishRefused, match=f"NOT PUT BACK: {REPO}:two was {old}") as caught:
        move(registry, new, broken)
    assert caught.value.message.count("NOT PUT BACK") == 1
    assert pointing(registry) == (old, new, None)


def test_a_tag_that_never_moved_is_as_it_was_whatever_the_registry_refuses(
    fake: Fake, registry: Registry, old: str, new: str
) -> None:
    fake.script("PUT", f"/v2/{REPO}/manifests/two", *[Reply(status=403)] * 5)
    with pytest.raises(errors.KilnError, match="every tag is again as it was"):
        move(registry, new)
    assert pointing(registry) == (old, old, None)


def test_a_tag_that_somebody_else_moves_meanwhile_is_left(fake: Fake, registry: Registry, old: str, new: str) -> None:
    theirs = support.push(registry, REPO, word=b"WORD = 'theirs'\n")

    def meanwhile() -> None:
        support.tag(registry, theirs, "two")
        del fake.tags[f"{REPO}:three"]
        raise errors.PublishRefused("it does not verify")

    with pytest.raises(errors.PublishRefused) as caught:
        move(registry, new, meanwhile)
    left = f"moved by somebody else to {theirs.digest}, left: {REPO}:two"
    assert caught.value.message == f"it does not verify\n{left}"
    assert pointing(registry) == (old, theirs.digest, None)


def test_a_tag_that_does_not_name_it_any_more_at_the_end_is_no_success(registry: Registry, old: str, new: str) -> None:
    theirs = support.push(registry, REPO, word=b"WORD = 'theirs'\n")
    told = f"{REPO}:one: set to {new}, but read back it names {theirs.digest}\nmoved by somebody else"
    with pytest.raises(errors.CommandFailed, match=told):
        move(registry, new, lambda: support.tag(registry, theirs, "one"))
    assert pointing(registry) == (theirs.digest, old, None)
