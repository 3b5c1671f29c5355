"""The Kubernetes manifests: as Kustomize builds them, valid for two versions of Kubernetes, and hardened."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from sidecar.config.build.config import Config
from sidecar.config.document import Drain
from sidecar.config.load import load
from tests.harness.keys import run_cli
from tests.heavy.deploy.rendering import APPLIED, MANIFESTS, Manifest, build, digest, kustomize, manifests, stored
from tests.heavy.deploy.rendering import stored_digest as digest_of

VERSIONS = ("1.36", "1.37")
"""The two newest that kubernetes-validate knows; native sidecars are stable since 1.33."""
SCHEMAS = json.loads((Path(__file__).parent / "schemas" / "monitoring.json").read_text(encoding="utf-8"))
OVERLAYS = APPLIED[:4]
"""With a store of their own."""
SHARED = ("overlays/shared", "overlays/central")
"""With a store and counts that all replicas share."""
NATIVE = ["overlays/native", "overlays/ephemeral", "overlays/git", "overlays/shared"]
ENGINES = {"DATABASE_URL": "postgresql://sidecar@postgres.test/sidecar", "REDIS_URL": "rediss://redis.test:6379"}
DRAIN_SECONDS = Drain().delay + Drain().timeout


def one(folder: str, kind: str, name: str = "") -> Manifest:
    [found] = [doc for doc in stored(folder) if doc["kind"] == kind and name in ("", doc["metadata"]["name"])]
    return found


def pod_of(folder: str) -> dict[str, Any]:
    pod: dict[str, Any] = one(folder, "Deployment" if folder in (*OVERLAYS, *SHARED) else "Job")["spec"]["template"][
        "spec"
    ]
    return pod


def containers(folder: str) -> dict[str, dict[str, Any]]:
    pod = pod_of(folder)
    return {each["name"]: each for each in (*pod.get("initContainers", ()), *pod["containers"])}


def config_of(folder: str, tmp_path: Path) -> Config:
    """What the ConfigMap says."""
    file = tmp_path / "sidecar.yaml"
    [text] = [doc["data"]["sidecar.yaml"] for doc in stored(folder) if "sidecar.yaml" in doc.get("data", ())]
    file.write_text(text)
    return load(str(file), environ=ENGINES if folder in SHARED else {})


EVERY_CONTAINER = [(folder, name) for folder in APPLIED for name in containers(folder)]


@pytest.mark.parametrize("folder", APPLIED)
def test_what_is_checked_here_was_made_from_the_manifests_as_they_are(folder: str) -> None:
    assert digest_of(folder) == digest(), "render them anew: python -m tests.heavy.deploy.rendering"


@pytest.mark.parametrize("folder", APPLIED)
def test_kustomize_builds_what_is_checked_here(folder: str) -> None:
    command = kustomize()
    if command is None:
        pytest.skip("neither kubectl nor kustomize is installed")
    assert manifests(build(command, MANIFESTS / folder)) == stored(folder)


def test_the_secret_comes_from_a_file_that_is_not_in_the_repository(tmp_path: Path) -> None:
    command = kustomize()
    if command is None:
        pytest.skip("neither kubectl nor kustomize is installed")
    tree = Path(shutil.copytree(MANIFESTS, tmp_path / "kubernetes"))
    folder = tree / "components" / "secret-from-file"
    assert (folder / ".gitignore").read_text().split() == ["secrets.env"]
    example = (folder / "secrets.env.example").read_text()
    assert re.findall(r"^[^#\n]+=(.*)$", example, re.MULTILINE) == [""], "an example holds no secret"
    (folder / "secrets.env").write_text("SIDECAR_PEPPER=only-for-this-test-of-it\n")
    (tree / "mine").mkdir()
    (tree / "mine" / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        "resources: [../overlays/native]\ncomponents: [../components/secret-from-file]\n"
    )
    made = manifests(build(command, tree / "mine"))
    [secret] = [doc["metadata"]["name"] for doc in made if doc["kind"] == "Secret"]
    [pod] = [doc["spec"]["template"]["spec"] for doc in made if doc["kind"] == "Deployment"]
    used = {entry["valueFrom"]["secretKeyRef"]["name"] for entry in pod["initContainers"][0]["env"]}
    assert used == {secret}, "a new pepper rolls the pods out"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", APPLIED)
def test_each_manifest_is_valid_for_kubernetes(folder: str, version: str) -> None:
    ours = [doc for doc in stored(folder) if doc["kind"] not in SCHEMAS]
    assert {kubernetes_validate.validate(doc, version, strict=True) for doc in ours} == {version}


@pytest.mark.parametrize("folder", [*OVERLAYS, *SHARED])
def test_each_monitor_is_valid_for_the_prometheus_operator(folder: str) -> None:
    monitors = [doc for doc in stored(folder) if doc["kind"] in SCHEMAS]
    assert len(monitors) == 1
    jsonschema.validate(monitors[0], SCHEMAS[monitors[0]["kind"]])


def test_the_schemas_refuse_what_is_misspelt() -> None:
    deployment, monitor = one("overlays/native", "Deployment"), one("overlays/native", "PodMonitor")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    monitor["spec"]["podMetricsEndpoints"][0]["pth"] = "/metrics"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(monitor, SCHEMAS["PodMonitor"])


@pytest.mark.parametrize(("folder", "name"), EVERY_CONTAINER)
def test_no_container_may_do_more_than_it_needs(folder: str, name: str) -> None:
    container, pod = containers(folder)[name], pod_of(folder)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert container["resources"]["limits"].keys() == {"memory"}
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("folder", APPLIED)
def test_no_volume_is_mounted_by_subpath(folder: str) -> None:
    mounts = [mount for container in containers(folder).values() for mount in container.get("volumeMounts", ())]
    assert mounts or folder == "shared-store"
    assert not [mount for mount in mounts if "subPath" in mount or "subPathExpr" in mount]


@pytest.mark.parametrize("folder", [*OVERLAYS, *SHARED])
def test_secrets_come_from_a_secret_and_nowhere_else(folder: str) -> None:
    entries = [entry for entry in containers(folder)["sidecar"]["env"] if entry["name"] != "SIDECAR_STORE"]
    assert {entry["name"] for entry in entries} >= {"SIDECAR_PEPPER", *(ENGINES if folder in SHARED else ())}
    assert all(entry["valueFrom"]["secretKeyRef"]["name"] == "sidecar-secrets" for entry in entries)


@pytest.mark.parametrize("folder", NATIVE)
def test_the_native_sidecar_is_ready_before_the_service_starts(folder: str) -> None:
    starts = pod_of(folder)["initContainers"]
    assert starts[-1]["name"] == "sidecar"
    assert starts[-1]["restartPolicy"] == "Always"
    assert starts[-1]["startupProbe"]["httpGet"] == {"path": "/readyz", "port": "ops"}
    assert [each["name"] for each in pod_of(folder)["containers"]] == ["service"]


def test_the_classic_manifest_runs_the_same_sidecar_next_to_the_service() -> None:
    native, classic = containers("overlays/native")["sidecar"], containers("overlays/classic")["sidecar"]
    assert {**classic, "restartPolicy": "Always", "lifecycle": native["lifecycle"]} == native
    assert [each["name"] for each in pod_of("overlays/classic")["containers"]] == ["sidecar", "service"]


def test_the_service_outlives_what_the_sidecar_still_has_to_finish() -> None:
    waits = containers("overlays/classic")["service"]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert DRAIN_SECONDS < waits < pod_of("overlays/classic")["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("folder", NATIVE)
def test_the_delays_of_a_pod_that_ends_fit_its_grace_period(folder: str, tmp_path: Path) -> None:
    written = (MANIFESTS / "overlays" / "native" / "stop-order.yaml").read_text(encoding="utf-8")
    budget = {name: int(seconds) for name, seconds in re.findall(r"^#   (\S.*?) +(\d+)\b", written, re.MULTILINE)}
    total, drain = budget.pop("sum"), config_of(folder, tmp_path).drain
    assert sum(budget.values()) == total == pod_of(folder)["terminationGracePeriodSeconds"]
    assert budget["preStop of the service"] == containers(folder)["service"]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain.delay <= budget["preStop of the service"], "over before the sidecar gets its SIGTERM"
    assert (budget["drain.delay"], budget["drain.timeout"]) == (0, drain.timeout)
    assert budget["margin"] > 0


@pytest.mark.parametrize("folder", NATIVE)
def test_a_terminating_pod_drains_its_sidecar_immediately(folder: str, tmp_path: Path) -> None:
    [program, *arguments] = containers(folder)["sidecar"]["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "/opt/sidecar/bin/sidecar", "the entry point of the image, which has no shell"
    assert arguments == ["drain", "--socket", config_of(folder, tmp_path).drain.socket]
    mounts = containers(folder)["sidecar"]["volumeMounts"]
    assert str(Path(arguments[-1]).parent) in [mount["mountPath"] for mount in mounts if not mount.get("readOnly")]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_service_is_reached_by_way_of_the_sidecar_only(folder: str, tmp_path: Path) -> None:
    command = containers(folder)["service"]["command"]
    assert command[command.index("--bind") + 1] == "127.0.0.1"
    config = config_of(folder, tmp_path)
    open_ports = {address.port for address in (*config.listen, *(config.ops or ()))} or {0}
    assert {
        port["targetPort"] for doc in stored(folder) if doc["kind"] == "Service" for port in doc["spec"]["ports"]
    } == (open_ports)
    told = {port["port"] for rule in one(folder, "NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]}
    assert told == open_ports
    assert {port["containerPort"] for port in containers(folder)["sidecar"]["ports"]} == open_ports
    assert config.store == "sqlite:///var/lib/sidecar/keys.db"


@pytest.mark.parametrize("folder", OVERLAYS)
def test_selectors_meet_the_pods_they_are_for(folder: str) -> None:
    labels = one(folder, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    for kind, path in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        assert one(folder, kind)["spec"][path]["matchLabels"].items() <= labels
    for service in ("sample", "sample-ops"):
        assert one(folder, "Service", service)["spec"]["selector"].items() <= labels
    if folder == "overlays/classic":
        wanted = one(folder, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
        assert wanted <= one(folder, "Service", "sample-ops")["metadata"]["labels"].items()
        assert not wanted <= one(folder, "Service", "sample")["metadata"]["labels"].items()
    else:
        assert one(folder, "PodMonitor")["spec"]["selector"]["matchLabels"].items() <= labels


@pytest.mark.parametrize("folder", ["overlays/ephemeral", "store"])
def test_the_arguments_that_make_the_store_are_those_of_the_command(folder: str, tmp_path: Path) -> None:
    container = containers(folder)["make-store"]
    [store] = [entry["value"] for entry in container["env"]]
    for _ in range(2):
        made = run_cli(*container["args"], environ={"SIDECAR_STORE": store.replace("/var/lib/sidecar", str(tmp_path))})
        assert made.exit_code == 0, made.output
    assert (tmp_path / "keys.db").stat().st_mode & 0o777 == 0o600


def test_the_keys_from_git_are_read_where_they_are_mounted(tmp_path: Path) -> None:
    pod, sidecar = pod_of("overlays/git"), containers("overlays/git")["sidecar"]
    [mount] = [mount for mount in sidecar["volumeMounts"] if mount["name"] == "keys"]
    assert "subPath" not in mount
    assert {"name": "keys", "configMap": {"name": "sidecar-keys"}} in pod["volumes"]
    [store] = [entry["value"] for entry in sidecar["env"] if entry["name"] == "SIDECAR_STORE"]
    [(name, text)] = one("overlays/git", "ConfigMap", "sidecar-keys")["data"].items()
    assert store == f"file://{mount['mountPath']}/{name}"
    config_of("overlays/git", tmp_path)
    (tmp_path / name).write_text(text)
    config = ["-c", str(tmp_path / "sidecar.yaml")]
    listed = run_cli("keys", "list", "--json", *config, environ={"SIDECAR_STORE": f"file://{tmp_path / name}"})
    assert [(key["name"], key["status"]) for key in json.loads(listed.stdout)] == [("An example", "disabled")]


@pytest.mark.parametrize("folder", SHARED)
def test_replicas_that_share_their_state_are_replaced_one_by_one(folder: str, tmp_path: Path) -> None:
    deployment, config = one(folder, "Deployment")["spec"], config_of(folder, tmp_path)
    assert deployment["replicas"] == 3
    assert deployment["strategy"]["type"] == "RollingUpdate"
    update = deployment["strategy"]["rollingUpdate"]
    assert update["maxUnavailable"] + update["maxSurge"] == 1
    # While Redis is away, each pod allows this part of each quota: together never more than the whole.
    assert config.limiter.outage == "local"
    assert deployment["replicas"] + update["maxSurge"] == config.limiter.replicas
    labels = deployment["template"]["metadata"]["labels"].items()
    spread = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert {each["topologyKey"] for each in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
    assert all(each["labelSelector"]["matchLabels"].items() <= labels for each in spread)
    budget = one(folder, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1 and budget["selector"]["matchLabels"].items() <= labels


@pytest.mark.parametrize("folder", SHARED)
def test_replicas_keep_nothing_that_is_lost_with_a_pod(folder: str, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path)
    assert (config.store, str(config.limiter.url)) == tuple(ENGINES.values())
    assert "PersistentVolumeClaim" not in {doc["kind"] for doc in stored(folder)}
    [ports] = [rule["ports"] for rule in one(folder, "NetworkPolicy")["spec"]["egress"] if "to" not in rule]
    assert {port["port"] for port in ports} == {5432, 6379}


def test_the_central_sidecars_serve_decisions_and_nothing_else(tmp_path: Path) -> None:
    config = config_of("overlays/central", tmp_path)
    reached = {port["containerPort"] for port in containers("overlays/central")["sidecar"]["ports"]}
    assert reached == {address.port for address in (*config.decision.listen, *(config.ops or ()))}
    assert [address.host for address in config.listen] == ["127.0.0.1"]
    assert {rule["ports"][0]["port"] for rule in one("overlays/central", "NetworkPolicy")["spec"]["ingress"]} == reached
