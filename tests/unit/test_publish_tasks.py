"""What a person sees of a publication: the table, the loud line, and the exit code of what cannot begin."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kiln import __version__, errors
from kiln.errors import Finding
from kiln.publish.run import Published
from kiln.publish.verify import Verified
from kiln.tasks import namespace, program
from kiln.tasks.show_publish import show_published, show_verified

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = f"sha256:{'1' * 64}"
MADE = Published(
    target="m-v-a-1",
    kind="rocm",
    image=f"h/app@{DIGEST}",
    tag="m-v-a-v1-k2",
    aliases=("m-v-a",),
    before={"m-v-a-v1-k2": "", "m-v-a": f"sha256:{'3' * 64}"},
    signed="with cosign.key",
    attestations=("SBOM", "patches"),
    waived=("device",),
    slsa_level=1,
    slsa_because="provenance exists",
    verify="kiln verify h/app:m-v-a-v1-k2",
    public_key="build/rocm-cosign.pub",
    dry_run=False,
)
FOUND = Verified(
    image="h/app:t",
    digest=DIGEST,
    signature="verified",
    signed_by="the key cosign.pub",
    attestations=("SBOM",),
    waived=(),
    target="m-v-a-1",
    slsa_level=1,
    files=2,
    layers=0,
    findings=(),
)
TABLE = f"""\
published        m-v-a-1
image            h/app@{DIGEST}
tag m-v-a-v1-k2  new
tag m-v-a        was sha256:{"3" * 64}
attested         SBOM, patches
signed           with cosign.key
SLSA             build level 1: provenance exists
waived           device
verified from a clean client:
  kiln verify h/app:m-v-a-v1-k2
hand on build/rocm-cosign.pub: whoever checks the signature needs it, and needs it from you
"""


def test_what_was_published(capsys: pytest.CaptureFixture[str]) -> None:
    show_published(MADE, json=False)
    assert capsys.readouterr() == (TABLE, "")
    show_published(replace(MADE, dry_run=True, before={"m-v-a": DIGEST}), json=False)
    out, _ = capsys.readouterr()
    assert out.startswith("would publish")
    assert "as it was" in out
    assert "would be verified from a clean client" in out


def test_unsigned_is_said_loudly_beside_any_output(capsys: pytest.CaptureFixture[str]) -> None:
    unsigned = replace(MADE, signed="UNSIGNED")
    show_published(unsigned, json=True)
    out, err = capsys.readouterr()
    assert err.startswith("! UNSIGNED: nothing proves who published this")
    assert json.loads(out)["signed"] == "UNSIGNED"


@pytest.mark.parametrize(
    ("signature", "loud"), [("verified", ""), ("unsigned", "! UNSIGNED"), ("not checked", "! signed, but NOT CHECKED")]
)
def test_what_was_verified(capsys: pytest.CaptureFixture[str], signature: str, loud: str) -> None:
    show_verified(replace(FOUND, signature=signature), json=False)  # type: ignore[arg-type]  # as the literals are
    out, err = capsys.readouterr()
    assert err.startswith(loud)
    assert bool(err) == bool(loud)
    assert "2 read in the image" in out


def test_findings_end_with_exit_code_8(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = replace(FOUND, findings=(Finding(where="SBOM", problem="missing"), Finding(where="tag t", problem="moved")))
    with pytest.raises(
        errors.PublishRefused, match="h/app:t does not verify:\n  SBOM: missing\n  tag t: moved"
    ) as caught:
        show_verified(wrong, json=True)
    assert caught.value.exit_code == 8
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 2


@pytest.mark.parametrize("flags", [(), ("--to=h/app:tag",), ("--to=localhost/app", "--key=none.key")])
def test_a_request_that_cannot_be_met_ends_before_anything_begins(
    catalog_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, flags: tuple[str, ...]
) -> None:
    monkeypatch.chdir(catalog_copy)
    monkeypatch.setattr("shutil.which", lambda name, **_: f"/bin/{name}")
    made = program.KilnProgram(name="Kiln", binary="kiln", version=__version__, namespace=namespace())
    with pytest.raises(SystemExit) as ended:
        made.run(["kiln", "publish", "--variant", "mxfp8", "--arch", "gfx942", "--twin", *flags])
    assert ended.value.code == 2
    assert "next: " in capsys.readouterr().err
