"""What an image is locked to after each answer of a registry, compared whole."""

from __future__ import annotations

import pytest

from kiln.catalog import lock_records, locked, records
from kiln.errors import Finding
from kiln.lock import judge
from kiln.lock.judge import Answer

NAME = "docker.io/vllm/vllm-openai:v1"
EARLIER, NOW = "2026-01-02T03:04:05Z", "2026-11-20T00:00:00Z"
A, B, C, D = (f"sha256:{letter * 64}" for letter in "abcd")
ACCEPT = f"look why; then take what the tag holds: ./inv lock --accept-moved {NAME}"


def pin(index: str = "", manifest: str = "", confidence: str = "A") -> records.ImagePin:
    digests = {
        key: records.DigestPin.model_validate({"digest": digest, "confidence": confidence})
        for key, digest in (("index", index), ("manifest", manifest))
        if digest
    }
    return records.ImagePin(repository="docker.io/vllm/vllm-openai", tag="v1", **digests)


def on_record(digest: str, confidence: str = "A") -> lock_records.LockedDigest:
    return lock_records.LockedDigest.model_validate({"digest": digest, "confidence": confidence})


def confirmed(digest: str, at: str = NOW) -> lock_records.LockedDigest:
    return lock_records.LockedDigest(digest=digest, confidence="registry", confirmed=at)


def entry(
    of: records.ImagePin,
    index: lock_records.LockedDigest | None,
    manifest: lock_records.LockedDigest | None,
    at: str = NOW,
    *,
    base: lock_records.Base | None = None,
) -> lock_records.LockedImage:
    return lock_records.LockedImage(
        repository=of.repository,
        tag=of.tag,
        inputs_sha256=locked.inputs_sha256(of),
        index=index,
        manifest=manifest,
        locked=at,
        base=base,
    )


def rule(
    of: records.ImagePin, old: lock_records.LockedImage | None, answer: Answer, *, is_accepted: bool = False
) -> tuple[lock_records.LockedImage, tuple[Finding, ...]]:
    ruling = judge.rule(of, old, answer, now=NOW, is_accepted=is_accepted)
    return ruling.entry, ruling.findings


BASE = lock_records.Base(
    root="usr/lib/python3/dist-packages",
    dist_info="vllm-1.dist-info",
    record_sha256="0" * 64,
    record_layer=0,
    layers=(A,),
    diff_ids=(B,),
    files={},
    modes={},
    versions={},
)
WRITTEN = pin(A, B)
LOCKED = entry(WRITTEN, confirmed(A, EARLIER), confirmed(B, EARLIER), EARLIER, base=BASE)


def test_public_records_are_locked_with_their_confidence_until_a_registry_confirms_them() -> None:
    of = pin(A, B, "C")
    want = judge.expected(of, None)
    assert want == judge.Expected(index=on_record(A, "C"), manifest=on_record(B, "C"))
    old = judge.entry(of, None, want, EARLIER)
    assert old == entry(of, on_record(A, "C"), on_record(B, "C"), EARLIER)
    assert rule(of, old, Answer(index=A, manifest=B)) == (entry(of, confirmed(A), confirmed(B)), ())


def test_what_is_confirmed_again_keeps_its_time_and_what_its_layers_hold() -> None:
    assert rule(WRITTEN, LOCKED, Answer(index=A, manifest=B)) == (LOCKED, ())


def test_an_image_without_any_digest_takes_what_the_registry_names() -> None:
    of = pin()
    old = entry(of, None, None, EARLIER)
    assert judge.entry(of, old, judge.expected(of, old), NOW) == old
    assert rule(of, old, Answer(index=A, manifest=B)) == (entry(of, confirmed(A), confirmed(B)), ())
    assert rule(of, old, Answer(manifest=B)) == (entry(of, None, confirmed(B)), ())


def test_an_index_on_record_gives_the_manifest_behind_it() -> None:
    of = pin(A)
    assert rule(of, None, Answer(index=A, manifest=C)) == (entry(of, confirmed(A), confirmed(C)), ())


def test_a_moved_tag_is_a_finding_and_the_lock_keeps_the_old_digest() -> None:
    moved = Finding(
        where=NAME,
        problem=f"the tag moved: index {A} (confirmed {EARLIER}) -> {C}; linux/amd64 {B} (confirmed {EARLIER}) -> {D}; "
        "it stays locked to the old one",
        hint=ACCEPT,
    )
    assert rule(WRITTEN, LOCKED, Answer(index=C, manifest=D)) == (LOCKED, (moved,))


def test_a_moved_tag_that_is_accepted_is_locked_and_its_layers_are_unknown() -> None:
    found = rule(WRITTEN, LOCKED, Answer(index=C, manifest=D, has_locked=False), is_accepted=True)
    assert found == (entry(WRITTEN, confirmed(C), confirmed(D)), ())


def test_a_registry_that_never_confirmed_a_record_may_contradict_it() -> None:
    of = pin(manifest=B, confidence="B")
    old = entry(of, None, on_record(B, "B"), EARLIER)
    other = Finding(
        where=NAME,
        problem=f"the tag holds something else than is locked: linux/amd64 {B} (public records, confidence B) -> {D}; "
        "it stays locked to the old one",
        hint=ACCEPT,
    )
    assert rule(of, old, Answer(index=C, manifest=D)) == (old, (other,))


def test_an_index_that_moved_around_the_same_image_says_so() -> None:
    (found,) = rule(WRITTEN, LOCKED, Answer(index=C, manifest=B))[1]
    assert f"index {A} (confirmed {EARLIER}) -> {C}; linux/amd64 is {B} as before;" in found.problem
    accepted, _ = rule(WRITTEN, LOCKED, Answer(index=C, manifest=B), is_accepted=True)
    assert accepted == entry(WRITTEN, confirmed(C), confirmed(B, EARLIER), base=BASE)


def test_a_tag_that_names_a_manifest_where_an_index_was_has_moved() -> None:
    (found,) = rule(WRITTEN, LOCKED, Answer(manifest=B))[1]
    assert f"index {A} (confirmed {EARLIER}) -> none" in found.problem


def test_a_locked_digest_that_is_gone_is_a_finding_of_its_own() -> None:
    gone = Finding(where=NAME, problem=f"the locked {B} is gone from the registry: no build can pull it", hint=ACCEPT)
    kept, findings = rule(WRITTEN, LOCKED, Answer(index=C, manifest=D, has_locked=False))
    assert kept == LOCKED
    assert findings[0].problem.startswith("the tag moved: ")
    assert findings[1:] == (gone,)


@pytest.mark.parametrize("has_locked", [True, False])
def test_a_tag_that_is_not_there(has_locked: bool) -> None:  # noqa: FBT001
    kept, findings = rule(WRITTEN, LOCKED, Answer(has_locked=has_locked))
    missing = Finding(where=NAME, problem="the registry has no such tag")
    gone = Finding(
        where=NAME,
        problem=f"the locked {B} is gone from the registry: no build can pull it",
        hint="name a mirror that has it in kiln.yaml, or edit images/releases.yaml",
    )
    assert (kept, findings) == (LOCKED, (missing,) if has_locked else (missing, gone))
    of = pin()
    (only,) = rule(of, None, Answer())[1]
    assert only == Finding(
        where=NAME, problem="the registry has no such tag", hint=f"edit {NAME} in images/releases.yaml"
    )


def test_an_answer_that_cannot_be_used_changes_nothing() -> None:
    bad = Finding(where=NAME, problem="what the registry says cannot be used: not JSON")
    assert rule(WRITTEN, LOCKED, Answer(index=C, manifest=D, problem="not JSON"), is_accepted=True) == (LOCKED, (bad,))


def test_what_a_person_edits_comes_before_the_lock() -> None:
    edited = pin(C, D, "B")
    want = judge.expected(edited, LOCKED)
    assert want == judge.Expected(index=on_record(C, "B"), manifest=on_record(D, "B"))
    assert judge.entry(edited, LOCKED, want, NOW) == entry(edited, on_record(C, "B"), on_record(D, "B"))


def test_an_edit_that_says_the_same_digests_loses_no_confirmation() -> None:
    edited = pin(A, B, "C")
    want = judge.expected(edited, LOCKED)
    assert want == judge.Expected(index=LOCKED.index, manifest=LOCKED.manifest)
    made = judge.entry(edited, LOCKED, want, NOW)
    assert made == entry(edited, LOCKED.index, LOCKED.manifest, base=BASE)


def test_a_digest_that_is_not_written_stays_as_long_as_the_index_is_the_same() -> None:
    assert judge.expected(pin(A), LOCKED) == judge.Expected(index=LOCKED.index, manifest=LOCKED.manifest)
    assert judge.expected(pin(C), LOCKED) == judge.Expected(index=on_record(C), manifest=None)


def test_a_record_that_a_person_takes_back_is_not_kept() -> None:
    of = pin(A, B)
    old = entry(of, on_record(A), on_record(B))
    assert judge.expected(pin(A), old) == judge.Expected(index=on_record(A), manifest=None)
    assert judge.expected(pin(), LOCKED) == judge.Expected(index=LOCKED.index, manifest=LOCKED.manifest)
