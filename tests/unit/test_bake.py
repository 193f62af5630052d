"""The bake document and command, whole, and the hash over what a build reads."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from kiln import catalog, errors
from kiln.catalog import records
from kiln.image import accept, bake, base_image, context, inputs, provenance, there
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Callable

ZEROS = f"sha256:{'0' * 64}"
ONES = f"sha256:{'1' * 64}"
SMALL = bake.Build(
    name="minimax-m3-nvfp4-sm100-0.31.0",
    dockerfile=Path("/c/images/cuda/Dockerfile"),
    context=Path("/s/nvfp4"),
    args={"BASE": f"mirror:5000/vllm/vllm-openai@{ZEROS}"},
)
FULL = bake.Build(
    name="minimax-m3-mxfp8-gfx942-0.31.0-twin",
    dockerfile=Path("/c/images/twin/Dockerfile"),
    context=Path("/s/${x}"),
    contexts={"base": f"oci-layout:///s/base@{ONES}", "tools": "/s/tools"},
    args={"PYTHON": "3.11", "EMPTY": "", "ODD": "a${b}c %{d} $e 100%"},
    inherited=("http_proxy", "HTTPS_PROXY"),
    secrets={"uv.toml": Path("/run/kiln/uv.toml"), "ca.crt": Path("/etc/ca bundle.crt")},
    labels={"org.opencontainers.image.revision": "abc", "a": "b=c d"},
    network="host",
    output=bake.pushed_by_digest("host/repo"),
)


def test_the_whole_document_of_two_targets() -> None:
    assert json.loads(bake.document((SMALL, FULL))) == {
        "group": {
            "default": {"targets": ["minimax-m3-nvfp4-sm100-0_31_0", "minimax-m3-mxfp8-gfx942-0_31_0-twin"]},
        },
        "target": {
            "minimax-m3-nvfp4-sm100-0_31_0": {
                "args": {
                    "BASE": f"mirror:5000/vllm/vllm-openai@{ZEROS}",
                    "SOURCE_DATE_EPOCH": "1735689600",
                },
                "attest": [{"disabled": "true", "type": "provenance"}],
                "context": "/s/nvfp4",
                "contexts": {},
                "dockerfile": "/c/images/cuda/Dockerfile",
                "labels": {},
                "network": "default",
                "output": [{"type": "docker"}],
                "platforms": ["linux/amd64"],
                "secret": [],
            },
            "minimax-m3-mxfp8-gfx942-0_31_0-twin": {
                "args": {
                    "EMPTY": "",
                    "HTTPS_PROXY": "${HTTPS_PROXY}",
                    "ODD": "a$${b}c %%{d} $e 100%",
                    "PYTHON": "3.11",
                    "SOURCE_DATE_EPOCH": "1735689600",
                    "http_proxy": "${http_proxy}",
                },
                "attest": [{"disabled": "true", "type": "provenance"}],
                "context": "/s/$${x}",
                "contexts": {"base": f"oci-layout:///s/base@{ONES}", "tools": "/s/tools"},
                "dockerfile": "/c/images/twin/Dockerfile",
                "labels": {"a": "b=c d", "org.opencontainers.image.revision": "abc"},
                "network": "host",
                "output": [{"name": "host/repo", "push": "true", "push-by-digest": "true", "type": "image"}],
                "platforms": ["linux/amd64"],
                "secret": [
                    {"id": "ca.crt", "src": "/etc/ca bundle.crt", "type": "file"},
                    {"id": "uv.toml", "src": "/run/kiln/uv.toml", "type": "file"},
                ],
            },
        },
        "variable": {"HTTPS_PROXY": {"default": None}, "http_proxy": {"default": None}},
    }


def test_a_document_holds_no_value_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:password@proxy")
    assert "password" not in bake.document((FULL,))


def test_the_command_makes_one_target_and_may_read_what_it_names() -> None:
    argv = bake.command(
        FULL, buildx=("/opt/docker-buildx",), file=Path("/t/bake.json"), metadata=Path("/t/m.json"), builder="far"
    )
    assert argv == (
        "/opt/docker-buildx",
        "bake",
        "--file=/t/bake.json",
        "--progress=plain",
        "--metadata-file=/t/m.json",
        "--builder=far",
        "--allow=network.host",
        "--allow=fs.read=/c/images/twin/Dockerfile",
        "--allow=fs.read=/etc/ca bundle.crt",
        "--allow=fs.read=/run/kiln/uv.toml",
        "--allow=fs.read=/s/${x}",
        "--allow=fs.read=/s/tools",
        "minimax-m3-mxfp8-gfx942-0_31_0-twin",
    )
    assert bake.command(SMALL, buildx=("docker", "buildx"), file=Path("/t/b"), metadata=Path("/t/m")) == (
        "docker",
        "buildx",
        "bake",
        "--file=/t/b",
        "--progress=plain",
        "--metadata-file=/t/m",
        "--allow=fs.read=/c/images/cuda/Dockerfile",
        "--allow=fs.read=/s/nvfp4",
        "minimax-m3-nvfp4-sm100-0_31_0",
    )


@pytest.mark.parametrize("said", ["{}", "[]", "null", '{"minimax-m3-nvfp4-sm100-0_31_0": {}}', "no JSON"])
def test_metadata_without_a_digest_is_refused(said: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(said)
    with pytest.raises(errors.CommandFailed, match="said no digest"):
        bake.read(tmp_path / "m.json", SMALL)


def test_provenance_loses_every_proxy_and_nothing_else() -> None:
    proxy = "http://user:password@proxy"
    whole = {
        "invocation": {
            "parameters": {"args": {"build-arg:http_proxy": proxy, "build-arg:ALL_PROXY": proxy, "build-arg:BASE": "b"}}
        },
        "llb": [{"meta": {"env": ["PATH=/bin", f"HTTPS_PROXY={proxy}"], "proxy_env": {"https_proxy": proxy}}}],
        "metadata": {"reproducible": False, "sysUsage": [1]},
    }
    assert provenance.cleaned(whole) == {
        "invocation": {"parameters": {"args": {"build-arg:BASE": "b"}}},
        "llb": [{"meta": {"env": ["PATH=/bin"]}}],
        "metadata": {"reproducible": False},
    }


@pytest.fixture
def real(tmp_path: Path) -> bake.Build:
    """A build whose files are there."""
    for name, text in (("images/Dockerfile", "FROM x"), ("staged/series/1.patch", "one"), ("tools/uv", "uv")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return bake.Build(
        name="t",
        dockerfile=tmp_path / "images/Dockerfile",
        context=tmp_path / "staged",
        contexts={"tools": str(tmp_path / "tools"), "base": f"oci-layout:///one@{ZEROS}"},
        args={"BASE": f"registry/vllm@{ZEROS}", "JOBS": "8"},
        secrets={"uv.toml": tmp_path / "nowhere"},
        labels={"ai.kiln.catalog.commit": "abc", "ai.kiln.catalog.dirty": "false"},
    )


def test_the_machine_the_mirror_the_secrets_and_the_commit_do_not_count(real: bake.Build, tmp_path: Path) -> None:
    other = replace(
        real,
        contexts=dict(real.contexts) | {"base": f"oci-layout:///two@{ZEROS}"},
        args=dict(real.args) | {"BASE": f"mirror:5000/x/vllm@{ZEROS}"},
        secrets={"uv.toml": tmp_path / "elsewhere"},
        labels=dict(real.labels) | {"ai.kiln.catalog.commit": "def"},
        inherited=bake.PROXIES,
        output=bake.pushed("host/repo:1"),
        network="host",
    )
    assert inputs.sha256(other) == inputs.sha256(real)
    before, moved = inputs.sha256(real), tmp_path / "moved"
    real.context.rename(moved)
    assert inputs.sha256(replace(real, context=moved)) == before
    with pytest.raises(errors.BadInput, match="staged: no such folder"):
        inputs.sha256(real)


EDITS: dict[str, Callable[[bake.Build], object]] = {
    "a byte of a staged file": lambda build: (build.context / "series/1.patch").write_text("onf"),
    "one more file": lambda build: (build.context / "new").write_text(""),
    "a file that can be run": lambda build: (build.context / "series/1.patch").chmod(0o755),
    "a link": lambda build: (build.context / "link").symlink_to("series"),
    "the Dockerfile": lambda build: build.dockerfile.write_text("FROM y"),
    "a tool": lambda build: Path(build.contexts["tools"], "uv").write_text("vu"),
    "a base made here": lambda build: replace(
        build, contexts=dict(build.contexts) | {"base": f"oci-layout:///one@{ONES}"}
    ),
    "a base": lambda build: replace(build, args=dict(build.args) | {"BASE": f"registry/vllm@{ONES}"}),
    "an argument": lambda build: replace(build, args=dict(build.args) | {"JOBS": "9"}),
    "a label": lambda build: replace(build, labels=dict(build.labels) | {"ai.kiln.catalog.dirty": "true"}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_whatever_a_build_reads_counts(edit: str, real: bake.Build) -> None:
    before = inputs.sha256(real)
    edited = EDITS[edit](real)
    assert inputs.sha256(edited if isinstance(edited, bake.Build) else real) != before


def test_a_context_that_can_change_unseen_is_refused(real: bake.Build) -> None:
    with pytest.raises(errors.BadInput, match="docker-image://debian:12: a build context that can change unseen"):
        inputs.sha256(replace(real, contexts={"base": "docker-image://debian:12"}))


def test_the_bundle_of_kiln_yaml_goes_to_the_steps_that_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/of-the-machine.crt")
    assert context.stage_secrets(tmp_path, None)["ca.crt"] == Path("/etc/of-the-machine.crt")
    assert context.stage_secrets(tmp_path, Path("/ours.crt"))["ca.crt"] == Path("/ours.crt")
    assert (tmp_path / "uv.toml").stat().st_mode & 0o777 == 0o600


def test_a_tool_that_another_build_reads_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a link cannot be made, too: a copy of the same time stays the file that it is."""

    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    tool = context.stage_uv(tmp_path) / "uv"
    before = tool.stat().st_ino
    assert (context.stage_uv(tmp_path) / "uv").stat().st_ino == before
    tool.write_bytes(b"half of it")
    assert (context.stage_uv(tmp_path) / "uv").stat().st_size > 1_000_000


def test_a_kept_wheel_is_fetched_again_where_it_is_not_the_pinned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = records.WheelPin(project="x", file="x-1.0-py3-none-any.whl", sha256=hashlib.sha256(b"x").hexdigest())
    fetched: list[Path] = []

    def download(_: records.WheelPin, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"x")
        fetched.append(target)

    monkeypatch.setattr(wheel, "download", download)
    links = SimpleNamespace(find_links=(tmp_path / "links",))
    monkeypatch.setattr(context, "pip_config", SimpleNamespace(read=lambda: links))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / pin.file).write_bytes(b"others")
    made = context.whole_wheel(tmp_path / "kept", pin)
    assert context.whole_wheel(tmp_path / "kept", pin) == made
    assert fetched == [made]
    made.write_bytes(b"y")
    assert context.whole_wheel(tmp_path / "kept", pin).read_bytes() == b"x"
    assert fetched == [made, made]


def test_a_file_that_the_wheel_of_the_twin_lacks_has_its_pinned_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = catalog.load(Path(__file__).resolve().parents[2])
    release = real.releases.releases["0.31.0"]
    assert release.twin
    member = release.twin.extras[0].member
    monkeypatch.setattr(wheel, "read", lambda *_, **__: {member: b"other bytes"})
    with pytest.raises(errors.BadInput, match="pinned sha256"):
        context.stage_twin(tmp_path, real, release.twin, release)


def test_an_image_with_another_label_is_not_the_build_s() -> None:
    labels = {"ai.kiln.target": "a", "ai.kiln.catalog.commit": "1"}
    held = there.Held(labels=labels, size=1, layers=1)
    assert not there.differs(held, labels | {"ai.kiln.catalog.commit": "2"})
    assert there.differs(held, labels | {"ai.kiln.target": "b"}) == "its label ai.kiln.target is 'a'"
    assert there.differs(held, labels | {"ai.kiln.series": "x"}) == "its label ai.kiln.series is None"


def test_settings_that_are_left_out_are_those_that_are_empty() -> None:
    assert list(base_image.changed({"Env": ["A=b"], "User": ""}, {"Env": ["A=b"], "Cmd": None})) == []
    assert list(base_image.changed({"Env": ["A=b"]}, {"Env": ["A=c"]})) == ["Env: ['A=c'], and its base has ['A=b']"]


def test_a_ledger_and_a_size_other_than_rehearsed_are_refused() -> None:
    real = catalog.load(Path(__file__).resolve().parents[2])
    job: Any = SimpleNamespace(rehearsal=SimpleNamespace(ledger=b"{}"), name="t", twin=True, catalog=real)
    accept.compare(job, "t", b"{}", hint="")
    with pytest.raises(errors.NotApplied, match="its ledger is not the rehearsal's"):
        accept.compare(job, "t", b"{} ", hint="")
    most = real.releases.budgets.twin
    accept.check_budget(job, most.added_mb * 1_000_000, most.layers, ())
    with pytest.raises(errors.Findings, match="and its budget is"):
        accept.check_budget(job, most.added_mb * 1_000_000 + 1, most.layers, ())
    with pytest.raises(errors.Findings, match="and its budget is"):
        accept.check_budget(job, 1, most.layers + 1, ())
