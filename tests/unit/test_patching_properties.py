"""Laws that hold for every tree and series, tried on made-up ones."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from patching_support import RELEASE, diff_of, snapshot, wheel

from kiln.patching import authoring, engine, errors, plan
from kiln.patching.outcomes import Outcome, digest
from kiln.patching.tree import Memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.patching.series import Series

    Files = dict[str, bytes]
    Steps = list[tuple[str, dict[str, bytes | None]]]

NAMES = ["vllm/a.txt", "vllm/b.py", "vllm/sub/c.txt", "vllm/sub/deep/d.py", "vllm/e.txt"]
_LINE = st.sampled_from([b"x = 1\n", b"y = 2\n", b"# \xc3\xa4\n", b"\n", b"z = 3\r\n"])
_BODY = st.lists(_LINE, max_size=8).map(lambda lines: b"# top\n" + b"".join(lines) + b"# end\n")


@pytest.fixture(autouse=True, scope="module")
def no_fsync() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Files, Steps]:
    """Return files, and patches that change, create and delete some of them."""
    files = draw(st.dictionaries(st.sampled_from(NAMES[:4]), _BODY, min_size=1))
    state: dict[str, bytes | None] = dict(files)
    steps: Steps = []
    for n in range(draw(st.integers(1, 4))):
        wanted = draw(st.dictionaries(st.sampled_from(NAMES), st.none() | _BODY, min_size=1, max_size=3))
        after = {path: data for path, data in wanted.items() if data != state.get(path)}
        if after:
            steps.append((f"p{n}", after))
            state.update(after)
    assume(steps)
    return files, steps


def made(files: Files, steps: Steps) -> Series:
    state: dict[str, bytes | None] = dict(files)
    editions = []
    for name, after in steps:
        present = {path: data for path, data in state.items() if data is not None}
        editions.append((name, diff_of(present, after) + b"" if name else b""))
        state.update(after)
    return authoring.series("vllm", RELEASE, editions, Memory(files))


def tried(files: Files, steps: Steps) -> Series:
    """Leave out the few worlds that the engine rightly refuses: equal editions, a file whose whole text changes."""
    try:
        return made(files, steps)
    except errors.BadInput:
        reject()


@settings(max_examples=60, deadline=None)
@given(world=worlds())
def test_apply_then_revert_is_identity_and_apply_twice_is_once(
    tmp_path_factory: pytest.TempPathFactory, world: tuple[Files, Steps]
) -> None:
    files, steps = world
    wanted = tried(files, steps)
    root = wheel(tmp_path_factory.mktemp("tree"), files)
    before = snapshot(root.path, times=False)
    assert engine.apply(wanted, root).outcome is Outcome.APPLIED
    after = snapshot(root.path)
    assert engine.apply(wanted, root).outcome is Outcome.ALREADY_APPLIED
    assert engine.verify(root, wanted).outcome is Outcome.ALREADY_APPLIED
    assert snapshot(root.path) == after
    assert engine.revert(root).outcome is Outcome.REVERTED
    assert snapshot(root.path, times=False) == before


@settings(max_examples=80, deadline=None)
@given(world=worlds(), data=st.data())
def test_t96_independent_patches_commute(world: tuple[Files, Steps], data: st.DataObject) -> None:
    files, steps = world
    wanted = tried(files, steps)
    order = data.draw(st.permutations(wanted.patches))
    places = {patch.id: n for n, patch in enumerate(order)}
    kept = all(places[first] < places[later] for later, needs in wanted.needs().items() for first in needs)
    try:
        swapped = replace(wanted, patches=tuple(order))
    except errors.BadSeries:
        assert not kept
        return
    found, other = (plan.plan(series, Memory(files)) for series in (wanted, swapped))
    if kept:
        assert (found.writes, other.report.outcome) == (other.writes, Outcome.APPLIED)


@settings(max_examples=300, deadline=None)
@given(world=worlds(), data=st.data())
def test_nothing_is_applied_but_what_was_recorded(world: tuple[Files, Steps], data: st.DataObject) -> None:
    """Target and edition are damaged, the edition with a sha256 that says it is right."""
    files, steps = world
    wanted = tried(files, steps)
    chains = wanted.chains()
    for _ in range(data.draw(st.integers(0, 2))):
        path = data.draw(st.sampled_from(sorted(files)))
        files = {**files, path: damaged(files[path], data)}
    patches = list(wanted.patches)
    at = data.draw(st.integers(0, len(patches) - 1))
    if data.draw(st.booleans()):
        edition = damaged(patches[at].data, data)
        patches[at] = replace(patches[at], data=edition, sha256=str(digest(edition)))
    try:
        found = plan.plan(replace(wanted, patches=tuple(patches)), Memory(files))
    except errors.BadInput:
        return
    written = {write.path: digest(write.data) for write in found.writes}
    if found.report.outcome is Outcome.APPLIED:
        for path, chain in chains.items():
            assert written.get(path, digest(files.get(path))) == chain[-1].post
    else:
        assert not written


def damaged(text: bytes, data: st.DataObject) -> bytes:
    start = data.draw(st.integers(0, len(text)))
    new = data.draw(st.sampled_from([b"", b"\n", b" ", b"x", b"# \n", b"+y = 2\n", b"-", b"\xff"]))
    return text[:start] + new + text[start + data.draw(st.integers(0, 3)) :]
