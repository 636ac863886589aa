"""The manifests keep their schemas, each name finds its partner, and what they configure is what the code reads."""

import copy
import functools
import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from proxy.policy.load import load_policy
from proxy.settings import Proxy
from proxy.settings import load_settings as load_proxy
from sidecar.settings import Sidecar
from sidecar.settings import load_settings as load_sidecar
from sidecar.yamlfile import ConfigInvalidError

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "conf/kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"
FILES = sorted(MANIFESTS.rglob("*.yaml"))
VARIANTS = ["cpu", "gpu"]
# The oldest with containers that start before the others and end after them, and the newest that is known here.
RELEASES = ["1.29", kubernetes_validate.latest_version()]
KUBECTL = shutil.which("kubectl")
HOME = "/srv/tollhouse"
# Free to be named: labels, selectors, a ConfigMap's files, amounts, and what the kubelet does not read.
FREE = {"labels", "matchLabels", "selector", "nodeSelector", "data", "requests", "limits", "annotations"}


@functools.cache
def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def validate(document: dict[str, Any], release: str = RELEASES[-1]) -> None:
    """Raises jsonschema.ValidationError."""
    own = SCHEMAS / f"{document['kind'].lower()}.json"
    if own.exists():
        jsonschema.Draft202012Validator(json.loads(own.read_text())).validate(document)
    else:
        kubernetes_validate.validate(document, release, strict=True)


@pytest.fixture(autouse=True, scope="module")
def read_once() -> Iterator[None]:
    """The schemas are megabytes, and would be read anew for each document."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("schema_contents", "all_versions"):
            patch.setattr(kubernetes_validate.utils, name, functools.cache(getattr(kubernetes_validate.utils, name)))
        yield


@functools.cache
def of(variant: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What a variant applies, by kind and name."""
    found: dict[tuple[str, str], dict[str, Any]] = {}

    def gather(folder: Path) -> None:
        for name in documents(folder / "kustomization.yaml")[0]["resources"]:
            if (folder / name).is_dir():
                gather((folder / name).resolve())
                continue
            for document in documents(folder / name):
                assert (document["kind"], document["metadata"]["name"]) not in found
                found[document["kind"], document["metadata"]["name"]] = document

    gather(MANIFESTS / variant)
    return found


def pod(variant: str) -> dict[str, Any]:
    return dict(of(variant)["StatefulSet", "tollhouse"]["spec"]["template"]["spec"])


def containers(variant: str) -> dict[str, dict[str, Any]]:
    spec = pod(variant)
    return {each["name"]: each for each in (*spec["initContainers"], *spec["containers"])}


def environment(container: dict[str, Any]) -> dict[str, str]:
    """As the kubelet gives it to the first pod, but for what is a Secret's."""
    told: dict[str, str] = {}
    for each in container.get("env", []):
        value = each.get("value", {"POD_NAME": "tollhouse-0"}.get(each["name"], ""))
        told[each["name"]] = re.sub(r"\$\((\w+)\)", lambda name: told[name[1]], value)
    return {name: value for name, value in told.items() if value and name != "POD_NAME"}


def written(variant: str, name: str, key: str, folder: Path) -> Path:
    """A ConfigMap's file, on disk."""
    path = folder / key
    path.write_text(of(variant)["ConfigMap", name]["data"][key])
    return path


def settings(variant: str, folder: Path) -> tuple[Proxy, Sidecar]:
    both = containers(variant)
    # The image's own.
    listen = {"TOLLHOUSE__LISTEN__HOST": "0.0.0.0"}  # noqa: S104 - a container's
    proxy = written(variant, "tollhouse-proxy", "proxy.yaml", folder)
    sidecar = written(variant, "tollhouse-sidecar", "sidecar.yaml", folder)
    told = listen | environment(both["proxy"])
    return load_proxy(proxy, told), load_sidecar(sidecar, environment(both["sidecar"]))


def places(node: object, free: bool = False) -> Iterator[dict[str, Any]]:
    """The mappings in which a schema knows every key."""
    if isinstance(node, dict):
        if not free:
            yield node
        for key, value in node.items():
            yield from places(value, key in FREE)
    elif isinstance(node, list):
        for each in node:
            yield from places(each, free)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(MANIFESTS)))
@pytest.mark.parametrize("release", RELEASES)
def test_a_manifest_keeps_its_schema(path: Path, release: str) -> None:
    for document in documents(path):
        validate(document, release)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_a_bad_key_anywhere_in_a_manifest_is_told(path: Path) -> None:
    for document in documents(path):
        for number in range(len(list(places(document)))):
            spoilt = copy.deepcopy(document)
            list(places(spoilt))[number]["tollhose"] = "x"
            with pytest.raises(jsonschema.ValidationError):
                validate(spoilt)


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", [*VARIANTS, "monitoring"])
def test_kustomize_builds_what_is_valid(folder: str) -> None:
    done = subprocess.run(
        [str(KUBECTL), "kustomize", MANIFESTS / folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    built = list(yaml.safe_load_all(done.stdout))
    for document in built:
        validate(document)
    names = {(document["kind"], document["metadata"]["name"]) for document in built}
    assert names == set(of(folder))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_resource_lives_in_the_one_namespace(variant: str) -> None:
    for (kind, name), document in of(variant).items():
        assert name == "tollhouse" if kind == "Namespace" else document["metadata"]["namespace"] == "tollhouse"


@pytest.mark.parametrize("variant", VARIANTS)
def test_selectors_choose_the_pods_and_ports_are_theirs(variant: str) -> None:
    found = of(variant)
    workload = found["StatefulSet", "tollhouse"]["spec"]
    labels = workload["template"]["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in containers(variant)["proxy"]["ports"]}
    assert workload["selector"]["matchLabels"] == labels
    assert ("Service", workload["serviceName"]) in found
    for (kind, _), document in found.items():
        spec = document.get("spec", {})
        if kind == "Service":
            assert spec["selector"] == labels
            assert all(ports[port["targetPort"]] == port["port"] for port in spec["ports"])
        elif kind == "PodDisruptionBudget":
            assert spec["selector"]["matchLabels"] == labels
        elif kind == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"] == labels
            entries = [port for rule in spec.get("ingress", []) for port in rule["ports"]]
            assert {port["port"] for port in entries} <= set(ports)


def test_names_are_asked_for_wherever_a_cluster_answers_them() -> None:
    rules = of("cpu")["NetworkPolicy", "tollhouse"]["spec"]["egress"]
    (names,) = (rule for rule in rules if any(port["port"] == 53 for port in rule["ports"]))
    assert {port["protocol"] for port in names["ports"]} == {"UDP", "TCP"}
    # A cache of the node is in the host's network, where selectors of pods find nobody.
    assert "to" not in names


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_volume_is_mounted_and_every_mount_has_its_volume(variant: str) -> None:
    found, spec = of(variant), pod(variant)
    claims = found["StatefulSet", "tollhouse"]["spec"].get("volumeClaimTemplates", [])
    volumes = [volume["name"] for volume in spec["volumes"]] + [claim["metadata"]["name"] for claim in claims]
    mounts = [mount for container in containers(variant).values() for mount in container["volumeMounts"]]
    assert len(volumes) == len(set(volumes))
    assert {mount["name"] for mount in mounts} == set(volumes)
    for volume in spec["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in found
    both = containers(variant)
    run = [next(m for m in both[name]["volumeMounts"] if m["name"] == "run") for name in ("proxy", "sidecar")]
    assert run[0] == run[1]
    assert ("ServiceAccount", spec["serviceAccountName"]) in found


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pod_is_restricted(variant: str) -> None:
    spec = pod(variant)
    security = spec["securityContext"]
    assert security["runAsNonRoot"]
    # The images' user.
    assert {security[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {10001}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"]
    for name, container in containers(variant).items():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
        assert "memory" in container["resources"]["limits"], name
    assert of(variant)["Namespace", "tollhouse"]["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_settings_of_a_pod_are_read_and_agree(variant: str, tmp_path: Path) -> None:
    proxy, sidecar = settings(variant, tmp_path)
    assert [(upstream.name, upstream.socket) for upstream in proxy.upstreams] == [("tollhouse-0", sidecar.socket)]
    both = containers(variant)
    mounts = {mount["mountPath"] for mount in both["proxy"]["volumeMounts"]}
    # A volume's own folder is open to its group, and sockets are made only in one that is not.
    assert Path(sidecar.socket).parent == Path(proxy.admin.socket).parent == Path("run/private")
    for path in (proxy.secret_file, proxy.policies + "/x", "conf/proxy.yaml", "run/x"):
        assert f"{HOME}/{path.partition('/')[0]}" in mounts
    assert f"{HOME}/{sidecar.cache}" in {mount["mountPath"] for mount in both["sidecar"]["volumeMounts"]}
    (http, admin) = (port["containerPort"] for port in both["proxy"]["ports"])
    assert (proxy.listen.port, proxy.admin.port) == (http, admin)
    assert environment(both["schema"]) == environment(both["proxy"])
    # The first to be told to end waits, then drains; the sidecar ends after it.
    waits = int(both["proxy"]["lifecycle"]["preStop"]["exec"]["command"][1])
    drains = proxy.timeouts.drain_s + sidecar.timeouts.drain_s
    assert pod(variant)["terminationGracePeriodSeconds"] > waits + drains


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["proxy", "sidecar"])
def test_a_bad_key_of_a_configmap_is_told(variant: str, name: str, tmp_path: Path) -> None:
    path = written(variant, f"tollhouse-{name}", f"{name}.yaml", tmp_path)
    path.write_text(path.read_text() + "tollhose: x\n")
    with pytest.raises(ConfigInvalidError, match="tollhose"):
        (load_proxy if name == "proxy" else load_sidecar)(path, {})


def test_the_policies_are_the_shipped_ones(tmp_path: Path) -> None:
    written("cpu", "tollhouse-policies", "default.yaml", tmp_path)
    assert load_policy(tmp_path).tiers == load_policy(ROOT / "policies").tiers


def test_one_pod_has_a_file_and_several_share_a_database(tmp_path: Path) -> None:
    single, several = of("cpu")["StatefulSet", "tollhouse"]["spec"], of("gpu")["StatefulSet", "tollhouse"]["spec"]
    proxy, _ = settings("cpu", tmp_path)
    assert single["replicas"] == 1
    assert proxy.database.url.startswith("sqlite+aiosqlite:///data/")
    claims = {claim["metadata"]["name"] for claim in single["volumeClaimTemplates"]}
    assert {"data", Path(proxy.secret_file).parts[0]} <= claims
    assert several["replicas"] > 1
    (url,) = (each for each in containers("gpu")["proxy"]["env"] if each["name"] == "TOLLHOUSE__DATABASE__URL")
    assert url["valueFrom"]["secretKeyRef"] == {"name": "tollhouse", "key": "database-url"}
    (given,) = (volume for volume in pod("gpu")["volumes"] if volume["name"] == "given")
    assert given["secret"]["secretName"] == "tollhouse"
    copies = containers("gpu")["root-secret"]["command"]
    assert copies[-2:] == [f"/given/{given['secret']['items'][0]['path']}", settings("gpu", tmp_path)[0].secret_file]


def test_no_pod_of_another_release_comes_beside_those_that_serve() -> None:
    several = of("gpu")["StatefulSet", "tollhouse"]["spec"]
    assert several["updateStrategy"] == {"type": "OnDelete"}
    # A single one is ended before the next is made.
    assert "updateStrategy" not in of("cpu")["StatefulSet", "tollhouse"]["spec"]


def test_each_gpu_has_a_pod_wherever_it_is(tmp_path: Path) -> None:
    spec = pod("gpu")
    # What a node has of GPUs is what its kubelet counts: labels are an add-on's.
    assert "nodeSelector" not in spec
    # A pod that finds no other host shares one.
    (kind,) = spec["affinity"]["podAntiAffinity"]
    assert kind == "preferredDuringSchedulingIgnoredDuringExecution"
    (rule,) = (each["podAffinityTerm"] for each in spec["affinity"]["podAntiAffinity"][kind])
    labels = of("gpu")["StatefulSet", "tollhouse"]["spec"]["template"]["metadata"]["labels"]
    assert (rule["topologyKey"], rule["labelSelector"]["matchLabels"]) == ("kubernetes.io/hostname", labels)
    holders = {name for name, each in containers("gpu").items() if "nvidia.com/gpu" in each["resources"]["limits"]}
    assert holders == {"sidecar"}
    assert settings("gpu", tmp_path)[1].engine.device == "cuda"
    assert "device" not in of("cpu")["ConfigMap", "tollhouse-sidecar"]["data"]["sidecar.yaml"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_fetches_the_model_can_be_told_where_packages_are(variant: str) -> None:
    assert containers(variant)["model"]["env"] == [{"name": "PIP_INDEX_URL", "value": ""}]


def test_a_backup_is_restored_beside_the_volumes_of_the_pod_by_its_image() -> None:
    (restore,) = documents(MANIFESTS / "cpu/restore.yaml")
    (shell,) = restore["spec"]["containers"]
    proxy = containers("cpu")["proxy"]
    assert shell["securityContext"] == proxy["securityContext"]
    assert restore["spec"]["securityContext"] == pod("cpu")["securityContext"]
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"].removesuffix("-tollhouse-0")
        for volume in restore["spec"]["volumes"]
    }
    assert claims == {"data": "data", "secrets": "secrets"}
    assert all(mount in proxy["volumeMounts"] for mount in shell["volumeMounts"])
    images = documents(MANIFESTS / "cpu/kustomization.yaml")[0]["images"]
    (named,) = (image for image in images if image["name"] == proxy["image"])
    assert shell["image"] == f"{named['newName']}:{named['newTag']}"


def test_what_is_restored_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    """By the lines that the page gives to a shell in a container: the same for compose and for a cluster."""
    bodies = re.findall(r" -c '\n(.+?)\n' <backups", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    assert len(bodies) == 2
    assert len(set(bodies)) == 1
    data = tmp_path / "data"
    data.mkdir()
    for name in ("tollhouse.db", "tollhouse.db-wal", "tollhouse.db-shm"):
        (data / name).write_text("old")
    for number in ("first", "second"):
        subprocess.run(["/bin/sh", "-c", bodies[0]], cwd=tmp_path, input=number, text=True, check=True)
    assert sorted(path.name for path in data.iterdir()) == ["before", "tollhouse.db"]
    assert (data / "tollhouse.db").read_text() == "second"
    assert (data / "tollhouse.db").stat().st_mode & 0o777 == 0o600
    assert (data / "before/tollhouse.db").read_text() == "first"
    assert (data / "before/tollhouse.db-wal").read_text() == "old"


def test_the_sidecar_is_there_before_the_proxy_and_ends_after_it() -> None:
    for variant in VARIANTS:
        first = pod(variant)["initContainers"]
        assert [each["name"] for each in first if each.get("restartPolicy") == "Always"] == ["sidecar"]
        assert first[-1]["name"] == "sidecar"
        assert [each["name"] for each in pod(variant)["containers"]] == ["proxy"]


def test_prometheus_scrapes_each_pod_and_its_sidecar() -> None:
    (monitor,) = documents(MANIFESTS / "monitoring/servicemonitor.yaml")
    service = of("cpu")["Service", "tollhouse-pods"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items()
    assert not wanted <= of("cpu")["Service", "tollhouse"]["metadata"]["labels"].items()
    assert monitor["spec"]["namespaceSelector"]["matchNames"] == [service["metadata"]["namespace"]]
    ports = {port["name"] for port in service["spec"]["ports"]}
    proxy, sidecar = monitor["spec"]["endpoints"]
    assert {proxy["port"], sidecar["port"]} <= ports
    jobs = [
        rule["replacement"]
        for endpoint in (proxy, sidecar)
        for rule in endpoint["relabelings"]
        if rule["targetLabel"] == "job"
    ]
    # As conf/prometheus/prometheus.yml calls them, so that rules and dashboards are the same.
    scraped = yaml.safe_load((ROOT / "conf/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert jobs == [job["job_name"] for job in scraped]
    (path,) = (rule for rule in sidecar["relabelings"] if rule["targetLabel"] == "__metrics_path__")
    # The pod's name is the upstream's.
    assert (path["sourceLabels"], path["replacement"]) == (["__meta_kubernetes_pod_name"], "/metrics/sidecar/$1")


def test_prometheus_is_given_the_rules_and_alerts_that_are_tried_elsewhere() -> None:
    folder = MANIFESTS / "monitoring"
    assert runpy.run_path(str(folder / "build.py"))["build"]() == (folder / "prometheusrule.yaml").read_text()
    (manifest,) = documents(folder / "prometheusrule.yaml")
    files = [yaml.safe_load((ROOT / "conf/prometheus" / name).read_text()) for name in ("rules.yml", "alerts.yml")]
    assert manifest["spec"]["groups"] == [group for file in files for group in file["groups"]]
    assert set(of("monitoring")) == {("PrometheusRule", "tollhouse"), ("ServiceMonitor", "tollhouse")}


def test_the_images_are_those_that_are_built() -> None:
    for variant in VARIANTS:
        (kustomization,) = documents(MANIFESTS / variant / "kustomization.yaml")
        named = {image["name"] for image in kustomization["images"]}
        assert named == {container["image"] for container in containers(variant).values()}
        assert all((ROOT / f"Dockerfile.{name.removeprefix('tollhouse-')}").exists() for name in named)
