"""How a target is served: one record, three forms, nothing that it does not need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml

from kiln import catalog, errors, plan, process
from kiln.deploy import argv, compose, kubernetes, machine, make, notes, start, text
from kiln.deploy.records import Gpu, Wanted
from kiln.engine import Engine
from kiln.image import receipt as writing
from kiln.image.receipt import Receipt
from kiln.recipe import EnvVar, Flag

if TYPE_CHECKING:
    from kiln.catalog import Catalog
    from kiln.deploy.records import Deployment
    from kiln.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
GOLDEN = ROOT / "tests/data/run.json"
TARGETS = (("mxfp8", "gfx942"), ("mxfp4", "gfx950"), ("mxfp8", "sm90"), ("nvfp4", "sm100"), ("nvfp4", "b300"))
PINNED = "registry.example.com/kiln/m3@sha256:" + "ab" * 32
LOCAL = "kiln/minimax-m3-mxfp8-gfx942-0.31.0:latest"
COMPILED = f"/cache/huggingface/kiln/{'ab' * 8}"
BUILD = "./inv build --variant mxfp8 --arch gfx942 --release 0.31.0"
EMBEDDED = Engine(host="unix:///somewhere/docker.sock", embedded=True, server_version="1")
SERIES = tuple(json.loads((ROOT / "tests/data/series.json").read_text())["mxfp8 gfx942 0.31.0"].split(", "))
UNBRACKETED = ("::1:9000", "[1.2.3.4]:80", "[::1:80", "::1]:80", "[]:80")
KUBERNETES = ("1.30", "1.37")
# eight GPUs as an 8-GPU node numbers them: partitions have the numbers between
NODES = tuple(f"/dev/dri/renderD{minor}" for minor in range(128, 192, 8))
EIGHT = tuple(Gpu(arch="gfx942", node=node, gids=(44, 109)) for node in NODES)


@pytest.fixture(scope="module")
def real() -> Catalog:
    return catalog.load(ROOT)


@pytest.fixture(scope="module")
def amd(real: Catalog) -> Plan:
    return plan.make(real, variant="mxfp8", arch="gfx942", release="0.31.0")


@pytest.fixture(scope="module")
def nvidia(real: Catalog) -> Plan:
    return plan.make(real, variant="nvfp4", arch="sm100", release="0.31.0")


def refusal(target: Plan, wanted: Wanted) -> str:
    with pytest.raises(errors.BadInput) as caught:
        make.make(target, wanted)
    return caught.value.message


def receipt(image: str, *, series: tuple[str, ...] = SERIES, pushed: str = "") -> Receipt:
    return Receipt(
        target="minimax-m3-mxfp8-gfx942-0.31.0",
        kind="rocm",
        image=image,
        digest="sha256:" + "cd" * 32,
        base="sha256:" + "ef" * 32,
        series=series,
        ledger_sha256="",
        inputs_sha256="",
        compressed_bytes=0,
        layers=0,
        catalog_commit="",
        catalog_dirty=False,
        seconds={},
        pushed=pushed,
    )


# the whole of each form


def whole(real: Catalog, variant: str, arch: str) -> dict[str, Any]:
    target = plan.make(real, variant=variant, arch=arch, release="0.31.0")
    made = {form: make.make(target, Wanted(form=form, image=PINNED)) for form in ("docker", "compose", "k8s")}
    return {
        "docker": list(argv.render(made["docker"])),
        "compose": compose.render(made["compose"]),
        "k8s": list(kubernetes.render(made["k8s"])),
        "notes": {form: list(each.notes) for form, each in made.items()},
    }


def test_a_server_has_time_to_end_and_is_asked_how_it_is(amd: Plan) -> None:
    made = make.make(amd, Wanted(form="compose", image=PINNED))
    service = compose.render(made)["services"].popitem()[1]
    assert (service["init"], service["ulimits"], service["stop_grace_period"]) == (True, {"memlock": -1}, "120s")
    check = service["healthcheck"]
    assert check["test"][:3] == ["CMD", "python3", "-c"]
    assert "$" not in check["test"][3]  # compose would take it for a variable
    pod = kubernetes.render(made)[0]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120
    probe = pod["containers"][0]["startupProbe"]
    assert check["start_period"] == f"{probe['periodSeconds'] * probe['failureThreshold']}s"


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_the_health_check_says_what_the_server_says(amd: Plan, status: int | None, code: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 0 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        flags = (*amd.serve.flags, Flag(name="--port", value=str(server.server_port), origin="test"))
        made = make.make(replace(amd, serve=replace(amd.serve, flags=flags)), Wanted(form="compose"))
        _, _, *words = compose.render(made)["services"].popitem()[1]["healthcheck"]["test"]
        if status:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        else:
            server.server_close()
        environment = os.environ | {"http_proxy": "http://127.0.0.1:9"}
        assert process.run((sys.executable, *words), env=environment).code == code
        if status:
            server.shutdown()


@pytest.mark.parametrize(("variant", "arch"), TARGETS)
def test_every_form_of_every_arch(real: Catalog, variant: str, arch: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert whole(real, variant, arch) == golden[f"{variant} {arch}"]


def test_the_golden_file_covers_every_arch_and_nothing_else(real: Catalog) -> None:
    assert set(json.loads(GOLDEN.read_text(encoding="utf-8"))) == {f"{v} {a}" for v, a in TARGETS}
    arches = {plan.make(real, variant=v, arch=a, release="0.31.0").target.arch for v, a in TARGETS}
    assert arches == set(real.releases.arches)


def test_the_docker_command_on_a_rocm_machine(amd: Plan) -> None:
    """Every word of it, here to be read: what is given, and nothing more."""
    found = argv.render(make.make(amd, Wanted(image=PINNED), gpus=EIGHT))
    assert found == (
        *("docker", "run", "--rm", "--name=kiln-minimax-m3-mxfp8-gfx942-0-31-0", "--pull=missing"),
        *("--init", "--stop-timeout=120"),
        *("--device=/dev/kfd", *(f"--device={node}" for node in NODES), "--group-add=44", "--group-add=109"),
        *("--cap-drop=ALL", "--cap-add=SYS_PTRACE"),
        *("--security-opt=no-new-privileges", "--security-opt=seccomp=unconfined"),
        *("--shm-size=32g", "--ulimit=memlock=-1", "--publish=127.0.0.1:8000:8000"),
        "--mount=type=volume,source=kiln-huggingface,target=/cache/huggingface",
        *(f"--env={item.name}={item.value}" for item in amd.serve.env),
        "--env=HF_HOME=/cache/huggingface",
        f"--env=VLLM_CACHE_ROOT={COMPILED}/vllm",
        f"--env=TRITON_CACHE_DIR={COMPILED}/triton",
        *("--env=HF_TOKEN", "--env=VLLM_API_KEY", "--entrypoint=vllm", PINNED),
        *amd.serve.argv[1:],
    )


@pytest.mark.parametrize(("variant", "arch"), TARGETS)
def test_no_form_takes_more_than_it_needs(real: Catalog, variant: str, arch: str) -> None:
    said = json.dumps(whole(real, variant, arch))
    for word in ("privileged", "hostPath", "hostNetwork", "hostIPC", "hostPID", "network"):
        assert word not in said.replace("enforce=privileged", "").replace("no-new-privileges", "")
    for word in ("ipc=host", "ipc_mode", "--pid", "SYS_ADMIN", "docker.sock", ".".join("0000")):
        assert word not in said
    assert ("SYS_PTRACE" in said) is arch.startswith("gfx")


# which image


def test_the_image_is_the_one_named_else_the_receipts_else_what_a_build_would_give(amd: Plan) -> None:
    built = receipt("kiln/other:latest")
    named = make.make(amd, Wanted(image=PINNED), built=built)
    assert (named.image, named.pull, named.digest) == (PINNED, "missing", "")
    of_receipt = make.make(amd, Wanted(), built=built)
    assert (of_receipt.image, of_receipt.pull, of_receipt.digest) == ("kiln/other:latest", "never", built.digest)
    unbuilt = make.make(amd, Wanted())
    assert (unbuilt.image, unbuilt.pull, unbuilt.digest) == (LOCAL, "never", "")


def test_a_receipt_of_a_pushed_image_names_it_by_digest(amd: Plan) -> None:
    found = make.make(amd, Wanted(), built=receipt(PINNED), gpus=EIGHT)
    assert (found.image, found.pull, found.notes) == (PINNED, "missing", ())


def test_a_cluster_gets_the_image_as_it_was_pushed(amd: Plan) -> None:
    built = receipt(LOCAL, pushed=PINNED)
    found = make.make(amd, Wanted(form="k8s"), built=built)
    assert (found.image, found.pull, found.digest) == (PINNED, "missing", built.digest)
    assert not [note for note in found.notes if "registry" in note]
    assert make.make(amd, Wanted(), built=built).image == LOCAL
    for host in ("127.0.0.1:5000", "localhost", "[::1]:5000"):  # no other machine pulls from there
        here = make.make(amd, Wanted(form="k8s"), built=replace(built, pushed=f"{host}/m3@sha256:" + "ab" * 32))
        assert (here.image, here.pull) == (LOCAL, "never")


def test_what_is_compiled_is_kept_for_that_very_image_alone(amd: Plan, nvidia: Plan) -> None:
    def kept(made: Deployment) -> dict[str, str]:
        return {name: value for name, value in made.env if value.startswith("/cache/huggingface/kiln/")}

    own = f"/cache/huggingface/kiln/{'cd' * 8}"
    both = {"VLLM_CACHE_ROOT": f"{own}/vllm", "TRITON_CACHE_DIR": f"{own}/triton"}
    assert kept(make.make(amd, Wanted(), built=receipt(LOCAL))) == both
    assert kept(make.make(amd, Wanted(form="k8s"), built=receipt(LOCAL, pushed=PINNED))) == both
    assert kept(make.make(nvidia, Wanted(image=PINNED)))["FLASHINFER_WORKSPACE_BASE"] == f"{COMPILED}/flashinfer"
    for nameless in (Wanted(), Wanted(image="registry.example.com/m3:v1")):
        assert kept(make.make(amd, nameless)) == {}
    env = (EnvVar(name="TRITON_CACHE_DIR", value="/elsewhere", origin="test"),)
    chosen = make.make(replace(amd, serve=replace(amd.serve, env=env)), Wanted(image=PINNED))
    assert dict(chosen.env)["TRITON_CACHE_DIR"] == "/elsewhere"
    assert kept(chosen) == {"VLLM_CACHE_ROOT": f"{COMPILED}/vllm"}


def test_an_image_of_this_engine_is_never_asked_of_a_registry(amd: Plan) -> None:
    """There a `kiln/...` would be somebody else's."""
    assert "--pull=never" in argv.render(make.make(amd, Wanted()))
    assert compose.render(make.make(amd, Wanted(form="compose")))["services"].popitem()[1]["pull_policy"] == "never"
    deployment, _ = kubernetes.render(made := make.make(amd, Wanted(form="k8s")))
    assert deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] == "Never"
    assert made.notes[:2] == (
        f"{LOCAL} was not built here: {BUILD}",
        f"{LOCAL} is in no registry, so nodes must have it already: publish it, then --image HOST/NAME@DIGEST",
    )


def test_a_tag_is_pulled_each_time_and_said_to_move(nvidia: Plan) -> None:
    found = make.make(nvidia, Wanted(image="registry.example.com/m3:v1"))
    assert found.pull == "always"
    (said,) = found.notes
    assert said == (
        "registry.example.com/m3:v1 is a tag, which can move, so nothing that it compiles is kept between starts: "
        "name the image by its digest"
    )


# which GPUs


def test_devices_are_those_of_this_machine(amd: Plan) -> None:
    found = make.make(amd, Wanted(image=PINNED), gpus=EIGHT)
    assert (found.devices, found.groups, found.notes) == (("/dev/kfd", *NODES), (44, 109), ())


@pytest.mark.parametrize("gpus", [(), EIGHT[:7], tuple(replace(gpu, arch="gfx950") for gpu in EIGHT)])
def test_devices_are_assumed_where_the_gpus_are_not_here_and_that_is_said(amd: Plan, gpus: tuple[Gpu, ...]) -> None:
    found = make.make(amd, Wanted(image=PINNED), gpus=gpus)
    assert found.devices == ("/dev/kfd", *(f"/dev/dri/renderD{128 + 8 * index}" for index in range(8)))
    assert found.groups == ()
    assert found.notes == (
        "too few gfx942 GPUs here, so the render nodes are assumed; where the GPUs are: ls -l /dev/dri",
        "no group is added; where the GPUs are: stat -c %g /dev/kfd /dev/dri/renderD*, then --gid with that",
    )


def test_no_more_gpus_than_the_target_needs(amd: Plan) -> None:
    sixteen = tuple(Gpu(arch="gfx942", node=f"/dev/dri/renderD{128 + index}") for index in range(16))
    assert len(make.make(amd, Wanted(), gpus=sixteen).devices) == 1 + 8


def test_parts_of_gpus_are_not_taken_for_gpus(amd: Plan) -> None:
    """One of eight GPUs in CPX mode has eight render nodes, as eight GPUs have."""
    parts = tuple(Gpu(arch="gfx942", node=f"/dev/dri/renderD{128 + index}", parts=8) for index in range(8))
    found = make.make(amd, Wanted(image=PINNED, gid="109"), gpus=parts)
    assert found.devices == ("/dev/kfd", *NODES)
    assert found.notes == (
        "gfx942 GPUs here are split into parts, and the target needs whole ones: amd-smi set --compute-partition SPX",
        "too few gfx942 GPUs here, so the render nodes are assumed; where the GPUs are: ls -l /dev/dri",
    )
    by_name = make.make(amd, Wanted(image=PINNED, cdi=True), gpus=parts)
    assert by_name.notes == found.notes[:1]
    assert make.make(amd, Wanted(image=PINNED), gpus=(*parts, *EIGHT)).devices == ("/dev/kfd", *NODES)


def test_parallel_sizes_multiply(nvidia: Plan) -> None:
    size = make.make(nvidia, Wanted()).gpus
    more = (*nvidia.serve.flags, Flag(name="--data-parallel-size", value="2", origin="test"))
    assert make.make(replace(nvidia, serve=replace(nvidia.serve, flags=more)), Wanted()).gpus == 2 * size


def test_groups_can_be_named(amd: Plan) -> None:
    found = make.make(amd, Wanted(gid="993,44", image=PINNED))
    assert found.groups == (44, 993)
    assert len(found.notes) == 1
    cluster, _ = kubernetes.render(make.make(amd, Wanted(gid="993", form="k8s"), gpus=EIGHT))
    assert cluster["spec"]["template"]["spec"]["securityContext"] == {"supplementalGroups": [993]}


def test_groups_of_devices_that_have_none_are_refused(nvidia: Plan) -> None:
    said = "--gid 109: only ROCm's device files, not asked for by CDI, need their groups"
    assert refusal(nvidia, Wanted(gid="109")) == said


def test_devices_by_their_cdi_names(amd: Plan, nvidia: Plan) -> None:
    for target, vendor in ((amd, "amd"), (nvidia, "nvidia")):
        found = make.make(target, Wanted(cdi=True, image=PINNED))
        assert found.devices == tuple(f"{vendor}.com/gpu={index}" for index in range(found.gpus))
        assert (found.groups, found.notes) == ((), ())
        assert not [word for word in argv.render(found) if word.startswith("--gpus")]


# port and cache


@pytest.mark.parametrize(
    ("port", "published"),
    [("9000", "127.0.0.1:9000:8000"), ("192.0.2.1:80", "192.0.2.1:80:8000"), ("[::1]:80", "[::1]:80:8000")],
)
def test_the_port_is_open_to_this_machine_alone_unless_asked(amd: Plan, port: str, published: str) -> None:
    made = make.make(amd, Wanted(port=port))
    assert f"--publish={published}" in argv.render(made)
    assert compose.render(made)["services"].popitem()[1]["ports"] == [published]


def test_the_port_of_the_recipe_is_the_servers(amd: Plan) -> None:
    flags = (*amd.serve.flags, Flag(name="--port", value="8123", origin="test"))
    made = make.make(replace(amd, serve=replace(amd.serve, flags=flags)), Wanted())
    assert "--publish=127.0.0.1:8000:8123" in argv.render(made)


def test_a_folder_as_cache(amd: Plan) -> None:
    made = make.make(amd, Wanted(cache="/srv/models"))
    found = argv.render(made)
    assert "--mount=type=bind,source=/srv/models,target=/cache/huggingface" in found
    assert "--cap-add=DAC_OVERRIDE" in found
    file = compose.render(made)
    assert "volumes" not in file
    service = file["services"].popitem()[1]
    mount = {"type": "bind", "source": "/srv/models", "target": "/cache/huggingface"}
    assert service["volumes"] == [mount | {"bind": {"create_host_path": False}}]
    assert service["cap_add"] == ["SYS_PTRACE", "DAC_OVERRIDE"]


def test_a_claim_as_cache(amd: Plan) -> None:
    made = make.make(amd, Wanted(cache="models", form="k8s"))
    deployment, _ = kubernetes.render(made)
    assert deployment["spec"]["template"]["spec"]["volumes"][1] == {
        "name": "cache",
        "persistentVolumeClaim": {"claimName": "models"},
    }
    assert not [note for note in made.notes if "--cache" in note]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    # a volume is its owner's, and root without capabilities is somebody else
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["SYS_PTRACE", "DAC_OVERRIDE"]}


def test_without_a_claim_the_nodes_disk_is_named(amd: Plan) -> None:
    made = make.make(amd, Wanted(form="k8s"))
    assert made.cap_add == ("SYS_PTRACE",)
    assert (
        "the model goes onto the node's own disk, hundreds of GB, and every new pod fetches it again: "
        "--cache NAME of a PersistentVolumeClaim keeps it"
    ) in made.notes


def test_all_that_is_wrong_is_said_at_once(amd: Plan) -> None:
    wanted = Wanted(form="helm", image="--privileged", port="80000", gid="render", cache="models")
    assert refusal(amd, wanted).splitlines() == [
        "--format: unknown format 'helm'; known: compose, docker, k8s",
        "--image: 'library/--privileged': not the name of a repository",
        "--port 80000: neither PORT nor ADDRESS:PORT, such as 8000, 0.0.0.0:8000 or [::1]:8000",
        "--gid render: not a group's number, or several with commas between",
        "--cache models: not the absolute path of a folder, without comma, colon and quote",
    ]
    assert refusal(amd, Wanted(form="k8s", cache="/srv/models", cdi=True, port="1.2.3.4:80", gid="1")).splitlines() == [
        "--gid 1: only ROCm's device files, not asked for by CDI, need their groups",
        "--port 1.2.3.4:80: in Kubernetes a port of the Service, which has no address",
        "--cache /srv/models: with --format k8s it is the name of a PersistentVolumeClaim",
        "--cdi: in Kubernetes the vendor's device plugin gives the devices",
    ]


@pytest.mark.parametrize("port", ["", "0", "x", "-1", "65536", "host:80", "1.2.3:80", "²", *UNBRACKETED])
def test_what_is_no_port(amd: Plan, port: str) -> None:
    assert refusal(amd, Wanted(port=port)).startswith(f"--port {port}: ")


@pytest.mark.parametrize("cache", ["/a,readonly", "/a:b", '/a"b', "/a\nb", "~/models"])
def test_what_is_no_folder(amd: Plan, cache: str) -> None:
    assert refusal(amd, Wanted(cache=cache)).startswith(f"--cache {cache}: ")


# names and secrets


def test_the_name_is_one_that_docker_compose_and_kubernetes_take(amd: Plan) -> None:
    long = replace(amd, target=replace(amd.target, model="1x/" + "M_x." * 30))
    name = make.make(long, Wanted()).name
    assert len(name) <= 63
    assert name.startswith("kiln-m-x-m-x-")
    assert name != make.make(replace(long, target=replace(long.target, release="0.30.0")), Wanted()).name


@pytest.mark.parametrize("name", ["HF_TOKEN", "VLLM_API_KEY"])
@pytest.mark.parametrize("form", ["docker", "compose", "k8s"])
def test_a_secret_is_named_and_never_read(amd: Plan, form: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "a_secret")
    made = make.make(amd, Wanted(form=form, image=PINNED))
    forms = (argv.render(made), compose.render(made), kubernetes.render(made))
    assert "a_secret" not in json.dumps(forms)
    assert all(name in json.dumps(each) for each in forms)


def test_a_server_that_others_reach_is_one_to_guard(amd: Plan) -> None:
    said = "whoever reaches 192.0.2.1 can use the model, unless VLLM_API_KEY is set where this is run"
    for form in ("docker", "compose"):
        for port, said_then in (("192.0.2.1:80", (said,)), ("127.0.0.2:80", ()), ("[::1]:80", ())):
            assert make.make(amd, Wanted(form=form, image=PINNED, port=port), gpus=EIGHT).notes == said_then
    service = "whoever reaches the Service can use the model, unless that secret has a key for the API too: "
    assert f"{service}--from-file=api-key=FILE" in make.make(amd, Wanted(form="k8s", image=PINNED)).notes


# YAML


def test_what_is_written_is_what_was_meant_whoever_reads_it() -> None:
    values = ["1e3", "0o17", "012", "yes", "no", "null", "~", "1:30", "", " x", "-", "--a", "x: y", "#", "0x1", "a\nb"]
    said = text.as_yaml([{"values": values}])
    assert yaml.safe_load(said) == {"values": values}
    plain = [line for line in said.splitlines() if line.startswith("- ") and line[2] not in "\"'|"]
    assert plain == []


def test_dollar_signs_stay_dollar_signs(amd: Plan) -> None:
    env = (EnvVar(name="X", value="a$HOME $(HOME)", origin="test"),)
    flags = (Flag(name="--x", value="$(PATH) $5", origin="test"),)
    made = make.make(replace(amd, serve=replace(amd.serve, env=env, flags=flags)), Wanted(form="k8s"))
    service = compose.render(made)["services"].popitem()[1]
    assert service["environment"]["X"] == "a$$HOME $$(HOME)"
    assert service["command"][-1] == "$$(PATH) $$5"
    container = kubernetes.render(made)[0]["spec"]["template"]["spec"]["containers"][0]
    assert container["env"][0]["value"] == "a$HOME $$(HOME)"
    assert container["args"][-1] == "$$(PATH) $5"


@pytest.mark.parametrize(
    ("variant", "arch", "labels"),
    [
        ("mxfp8", "gfx942", {"amd.com/gpu.cu-count": "304"}),
        ("mxfp8", "gfx950", {"amd.com/gpu.cu-count": "256"}),
        ("mxfp8", "sm90", {"nvidia.com/gpu.compute.major": "9", "nvidia.com/gpu.compute.minor": "0"}),
        ("nvfp4", "sm100", {"nvidia.com/gpu.compute.major": "10", "nvidia.com/gpu.compute.minor": "0"}),
        ("nvfp4", "sm103", {"nvidia.com/gpu.compute.major": "10", "nvidia.com/gpu.compute.minor": "3"}),
    ],
)
def test_a_pod_goes_to_a_node_of_its_arch(real: Catalog, variant: str, arch: str, labels: dict[str, str]) -> None:
    made = make.make(plan.make(real, variant=variant, arch=arch, release="0.31.0"), Wanted(form="k8s", image=PINNED))
    pod = kubernetes.render(made)[0]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"} | labels
    shown = ", ".join(f"{name}={value}" for name, value in labels.items())
    whose = "AMD's node labeller" if arch.startswith("gfx") else "NVIDIA's GPU feature discovery"
    assert made.notes[0] == f"it waits for a node that {whose} labelled {shown}"


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize(("variant", "arch"), TARGETS)
def test_the_manifests_are_what_kubernetes_takes(real: Catalog, variant: str, arch: str, version: str) -> None:
    target = plan.make(real, variant=variant, arch=arch, release="0.31.0")
    gid = "109" if target.image.kind == "rocm" else ""
    for wanted in (Wanted(form="k8s"), Wanted(form="k8s", cache="models", gid=gid, image=PINNED)):
        written = text.as_yaml(kubernetes.render(make.make(target, wanted)))
        documents = list(yaml.safe_load_all(written))
        assert [document["kind"] for document in documents] == ["Deployment", "Service"]
        for document in documents:
            kubernetes_validate.validate(document, version, strict=True)


def test_that_check_sees_a_wrong_manifest(amd: Plan) -> None:
    deployment, _ = kubernetes.render(make.make(amd, Wanted(form="k8s")))
    deployment["spec"]["template"]["spec"]["containers"][0]["privileged"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)


def test_the_command_as_text_is_the_command(amd: Plan) -> None:
    found = argv.render(make.make(amd, Wanted(cache="/a b")))
    script = f"import sys; sys.exit(0 if sys.argv[1:] == {list(found)!r} else 1)"
    shown = argv.text(found)
    assert "  '--mount=type=bind,source=/a b,target=/cache/huggingface' \\\n" in shown
    assert "\n  --block-size 128 \\\n" in shown
    said = process.run(("bash", "-c", f'"$0" -c "$1" {shown}', sys.executable, script))
    assert said == process.Result(code=0, stdout="", stderr="")


# what this machine has


def kfd(root: Path, number: int, place: int = 0, **properties: int) -> None:
    """Write a node of the driver's topology; `place` is the PCI address of its device, as the driver packs it."""
    folder = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
    folder.mkdir(parents=True)
    written = properties | {"location_id": place, "domain": 0} if properties else {}
    (folder / "properties").write_text("".join(f"{name} {value}\n" for name, value in written.items()))


def test_gpus_are_read_from_the_drivers_own_list(tmp_path: Path) -> None:
    (tmp_path / "dev/dri").mkdir(parents=True)
    for name in ("kfd", "dri/renderD136", "dri/renderD128", "dri/renderD129"):
        (tmp_path / "dev" / name).touch()
    kfd(tmp_path, 0, cpu_cores_count=96, gfx_target_version=0, drm_render_minor=0)
    kfd(tmp_path, 1, 0x8500, simd_count=1216, gfx_target_version=90402, drm_render_minor=136)
    kfd(tmp_path, 10, 0x0500, simd_count=1216, gfx_target_version=90402, drm_render_minor=128)
    kfd(tmp_path, 2, 0x1500, simd_count=1024, gfx_target_version=90500, drm_render_minor=129)
    kfd(tmp_path, 3)
    gids = (os.getgid(), os.getgid())
    assert machine.amd(tmp_path) == (
        Gpu(arch="gfx942", node="/dev/dri/renderD128", gids=gids),
        Gpu(arch="gfx950", node="/dev/dri/renderD129", gids=gids),
        Gpu(arch="gfx942", node="/dev/dri/renderD136", gids=gids),
    )


@pytest.mark.parametrize("shift", [28, 0])
def test_the_parts_of_a_gpu_are_told_by_their_common_place(tmp_path: Path, shift: int) -> None:
    """The driver has put a part's number above the address, and before that into the function."""
    (tmp_path / "dev/dri").mkdir(parents=True)
    for name in ("kfd", *(f"dri/renderD{128 + index}" for index in range(4))):
        (tmp_path / "dev" / name).touch()
    for index, place in enumerate((0x0500, 0x0500 | 1 << shift, 0x8500, 0x8508)):
        kfd(tmp_path, index, place, gfx_target_version=90402, drm_render_minor=128 + index)
    assert [gpu.parts for gpu in machine.amd(tmp_path)] == [2, 2, 1, 1]


def test_without_the_driver_there_are_none(tmp_path: Path) -> None:
    assert machine.amd(tmp_path) == ()


def test_nvidias_tool_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n[ \"$1\" = --query-gpu=index,compute_cap ] && printf '0, 9.0\\n1, 10.3\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert machine.nvidia() == (Gpu(arch="sm90", node="0"), Gpu(arch="sm103", node="1"))


def test_without_nvidias_tool_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia() == ()


# starting it


def refused(made: Deployment, home: Path, gpus: tuple[Gpu, ...]) -> tuple[str, str]:
    with pytest.raises(errors.Missing) as caught:
        start.run(made, home, gpus=gpus)
    return caught.value.message, caught.value.hint


def test_it_is_not_started_on_parts_of_gpus(amd: Plan, tmp_path: Path) -> None:
    parts = tuple(replace(gpu, parts=2) for gpu in EIGHT)
    assert refused(make.make(amd, Wanted(image=PINNED)), tmp_path, parts) == (
        "minimax-m3-mxfp8-gfx942-0.31.0 needs 8 gfx942 GPUs; this machine has: 8 gfx942 that are parts of GPUs",
        "amd-smi set --compute-partition SPX",
    )


def test_an_image_that_was_not_built_here_is_not_started(amd: Plan, tmp_path: Path) -> None:
    assert refused(make.make(amd, Wanted(), gpus=EIGHT), tmp_path, EIGHT) == (f"{LOCAL} was not built here", BUILD)


def test_an_image_with_another_series_is_noted_and_not_started(amd: Plan, tmp_path: Path) -> None:
    other = receipt(LOCAL, series=("m3-stream-first-delta",), pushed=PINNED)
    problem = f"was built with m3-stream-first-delta, and the plan has {', '.join(SERIES)}"
    for wanted, image in ((Wanted(), LOCAL), (Wanted(image=PINNED), PINNED)):
        made = make.make(amd, wanted, built=other, gpus=EIGHT)
        assert made.notes == (f"{image} {problem}: {BUILD}",)
        assert refused(made, tmp_path, EIGHT) == (f"{image} {problem}", BUILD)
    assert make.make(amd, Wanted(image="registry.example.com/m3@sha256:" + "0" * 64), built=other).doubt is None
    none = make.make(amd, Wanted(), built=receipt(LOCAL, series=()), gpus=EIGHT)
    assert none.notes[0].startswith(f"{LOCAL} was built with no patch, and the plan has ")


def test_it_is_not_started_on_the_embedded_engine(amd: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiln.engine.find", lambda _: EMBEDDED)
    made = make.make(amd, Wanted(), built=receipt(LOCAL), gpus=EIGHT)
    assert refused(made, tmp_path, EIGHT) == (
        "only Kiln's embedded engine answers, and its containers have no GPUs and no way out of this machine",
        "install Docker with the GPU vendor's toolkit; what Kiln finds then: ./inv engine.status",
    )


def test_how_docker_finds_an_image_of_the_embedded_engine() -> None:
    (said,) = notes.of_engine(LOCAL, EMBEDDED)
    assert said == (
        f"{LOCAL} lies in Kiln's embedded engine, whose containers have no GPUs and no way out of this machine; "
        "docker sees it there with: export DOCKER_HOST=unix:///somewhere/docker.sock"
    )
    for image, engine in ((PINNED, EMBEDDED), (LOCAL, replace(EMBEDDED, embedded=False)), (LOCAL, None)):
        assert list(notes.of_engine(image, engine)) == []


@pytest.mark.parametrize(
    ("gpus", "found"), [((), "none"), ((*EIGHT[:7], Gpu(arch="gfx950", node="x")), "7 gfx942, 1 gfx950")]
)
def test_it_is_not_started_without_its_gpus(amd: Plan, gpus: tuple[Gpu, ...], found: str, tmp_path: Path) -> None:
    assert refused(make.make(amd, Wanted()), tmp_path, gpus) == (
        f"minimax-m3-mxfp8-gfx942-0.31.0 needs 8 gfx942 GPUs; this machine has: {found}",
        "leave --exec out, and run what is printed where the GPUs are",
    )


def test_a_program_on_this_terminal() -> None:
    """What `--exec` runs docker with: output not held back, an interrupt goes to the child, once."""
    child = "import signal, sys, time\nprint('begun', flush=True)\ntry:\n    time.sleep(60)\n"
    child += "except KeyboardInterrupt:\n    print('ended', flush=True)\n"
    script = f"from kiln import process\nprocess.attach(process.python('-c', {child!r}))\n"
    run = process.python("-c", script)
    with subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(SOURCE)}
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "begun\n"
        time.sleep(0.1)
        parent.send_signal(signal.SIGINT)
        assert parent.communicate(timeout=20)[0] == "ended\n"
        assert parent.returncode == -signal.SIGINT


def test_how_a_program_on_this_terminal_fails() -> None:
    with pytest.raises(errors.CommandFailed, match="exit code 3"):
        process.attach(process.python("-c", "raise SystemExit(3)"))
    with pytest.raises(errors.Missing, match="no such program"):
        process.attach(("no-such-program",))


# as a person types it


def kiln(root: Path, *words: str, path: str = os.defpath) -> process.Result:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "KILN_ROOT": str(root), "PATH": path}
    return process.run(process.python("-m", "kiln", "run", "--variant", "mxfp8", *words), env=environment)


def test_stdout_is_the_form_alone_so_that_it_can_be_piped(catalog_copy: Path, amd: Plan) -> None:
    found = kiln(catalog_copy, "--arch", "gfx942", "--format", "k8s", "--image", PINNED, "--cache", "models")
    made = make.make(amd, Wanted(form="k8s", image=PINNED, cache="models"))
    assert (found.code, found.stdout) == (0, text.as_yaml(kubernetes.render(made)))
    assert found.stderr == "".join(f"note: {note}\n" for note in made.notes)


def test_the_image_of_a_receipt_is_found(catalog_copy: Path) -> None:
    writing.write(catalog_copy / "build/minimax-m3-mxfp8-gfx942-0.31.0", receipt("kiln/built:latest"))
    found = kiln(catalog_copy, "--arch", "gfx942", "--json")
    said = json.loads(found.stdout)
    assert said["deployment"]["image"] == "kiln/built:latest"
    assert said["deployment"]["digest"] == "sha256:" + "cd" * 32
    assert said["docker"][:3] == ["docker", "run", "--rm"]


@pytest.mark.parametrize("words", [("--exec", "--json"), ("--exec", "--format", "compose")])
def test_only_the_docker_command_is_started(catalog_copy: Path, words: tuple[str, ...]) -> None:
    found = kiln(catalog_copy, "--arch", "gfx942", *words)
    assert (found.code, found.stdout) == (2, "")
    assert found.stderr == "✗ --exec starts the docker command: it takes no --json and no other --format\n"


def test_cuda_without_nvidias_tool_is_refused_as_rocm_without_the_driver_is(catalog_copy: Path) -> None:
    found = kiln(catalog_copy, "--arch", "sm90", "--exec", "--image", PINNED, path="/nowhere")
    assert (found.code, found.stdout) == (3, "")
    assert found.stderr == (
        "✗ minimax-m3-mxfp8-sm90-0.31.0 needs 8 sm90 GPUs; this machine has: none\n"
        "  next: leave --exec out, and run what is printed where the GPUs are\n"
    )


def test_a_format_that_there_is_not_is_exit_code_2(catalog_copy: Path) -> None:
    found = kiln(catalog_copy, "--arch", "gfx942", "--format", "helm")
    assert (found.code, found.stdout) == (2, "")
    assert "unknown format 'helm'" in found.stderr
