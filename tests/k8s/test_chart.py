"""The chart deploys what the overlays do, its options work, and its README lists them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from api import __version__
from scripts.chart_values import described, with_table
from tests.k8s.chart import CHART, OPERATOR, VALUES, chart, chart_of, comparable, helm, objects, template
from tests.k8s.custom_resources import validate
from tests.k8s.rendered import Rendered, containers, rendered
from tests.k8s.test_manifests import KUBERNETES, OPERATORS
from tests.k8s.test_settings import environment

pytestmark = pytest.mark.once(reason="checks files that kubectl and helm render")

DEFAULTS = (CHART / "values.yaml").read_text()


def options(values: dict[str, Any], folder: Path) -> Rendered:
    """The chart with these values, and every object is valid."""
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    manifests = chart("-f", str(folder / "values.yaml"))
    for each in manifests.all:
        validate(each, KUBERNETES)
    return manifests


# -- The same as the overlays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", sorted(VALUES))
def test_the_chart_deploys_what_the_overlay_does(overlay: str) -> None:
    expected, found = comparable(rendered(overlay)), comparable(chart_of(overlay))
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        assert found[name] == each, name


@pytest.mark.parametrize("overlay", sorted(VALUES))
def test_the_service_sees_the_settings_of_the_overlay(overlay: str) -> None:
    assert environment(chart_of(overlay)) == environment(rendered(overlay))


def test_the_version_is_the_packages() -> None:
    facts = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (facts["version"], facts["appVersion"]) == (__version__, __version__)


# -- The chart by itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [None, "values-dev.yaml", "values-staging.yaml"])
def test_helm_lint_finds_nothing(values: str | None) -> None:
    helm("lint", "--strict", str(CHART), *(() if values is None else ("-f", str(CHART / values))))


def test_the_package_deploys_what_the_folder_does(tmp_path: Path) -> None:
    helm("package", str(CHART), "--destination", str(tmp_path))
    [package] = tmp_path.glob("ragherd-*.tgz")
    versions = ("--kube-version", "1.33", "--api-versions", OPERATOR)
    packaged = helm("template", "ragherd", str(package), *versions).stdout
    assert packaged == template("--api-versions", OPERATOR).stdout


def test_the_readme_lists_every_value() -> None:
    readme = (CHART / "README.md").read_text()
    assert with_table(readme, DEFAULTS) == readme, "run python -m scripts.chart_values"


def test_a_value_without_a_comment_is_found() -> None:
    with pytest.raises(SystemExit, match=r"values\.yaml: image has no comment"):
        list(described(["image: ragherd"]))


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("redis.mode=cluster", "/redis/mode"),
        ("redis.url=redis://:password@redis", "/redis/url"),
        ("redis.password=a/b", "/redis/password"),
        ("settings.API_KEYS=app=1", "API_KEYS"),
        ("image.digest=latest", "/image/digest"),
        ("autoscaling.minReplicas=0", "/autoscaling/minReplicas"),
        ("ingress.hosts[0].host=a", "missing property 'paths'"),
        ("replicas=3", "'replicas' not allowed"),
    ],
)
def test_a_wrong_value_is_refused_by_name(setting: str, complaint: str) -> None:
    done = template("--set", setting, check=False)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_two_places_for_the_keys_are_refused() -> None:
    done = template("--set", "secret.existingSecret=keys,secret.data.API_KEYS=app=1", check=False)
    assert "Set secret.existingSecret or secret.data, not both." in done.stderr


# -- Options -----------------------------------------------------------------------------------------------------------


def test_a_redis_of_ones_own_replaces_the_charts(tmp_path: Path) -> None:
    rule = {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 6380, "protocol": "TCP"}]}
    url = "rediss+cluster://redis.example:6380"
    manifests = options({"redis": {"mode": "external", "url": url}, "networkPolicy": {"extraEgress": [rule]}}, tmp_path)
    assert set(manifests.pods()) == {"ragherd", "ollama"}
    assert manifests.settings()["REDIS_URL"] == url
    assert "env" not in manifests.container()
    egress = manifests.named("NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for each in egress for port in each["ports"]} == {53, 6380, 11434}


def test_without_a_url_the_secret_says_where_redis_is(tmp_path: Path) -> None:
    manifests = options({"redis": {"mode": "external"}, "secret": {"existingSecret": "keys"}}, tmp_path)
    assert "REDIS_URL" not in manifests.settings()
    assert manifests.container()["envFrom"][1] == {"secretRef": {"name": "keys", "optional": True}}


def test_the_chart_stores_secrets_that_it_is_given(tmp_path: Path) -> None:
    manifests = options({"secret": {"data": {"API_KEYS": "app=1"}}, "redis": {"password": "0a"}}, tmp_path)
    secrets = {each["metadata"]["name"]: each["stringData"] for each in manifests.kind("Secret")}
    assert secrets == {"ragherd": {"API_KEYS": "app=1"}, "ragherd-redis": {"password": "0a"}}
    reference = {"name": "ragherd-redis", "key": "password"}
    [password] = [each["valueFrom"] for each in manifests.container()["env"] if "valueFrom" in each]
    assert password == {"secretKeyRef": reference}
    for name in ("redis", "redis-sentinel"):
        [volume] = [each["secret"] for each in manifests.pods()[name]["spec"]["volumes"] if "secret" in each]
        assert volume["secretName"] == "ragherd-redis"


def test_a_changed_setting_or_secret_restarts_the_pods(tmp_path: Path) -> None:
    def checksums(keys: str, workers: int) -> tuple[str, str]:
        folder = tmp_path / f"{keys}-{workers}"
        folder.mkdir()
        values = {"secret": {"data": {"API_KEYS": keys}}, "settings": {"WORKERS": workers}}
        annotations = options(values, folder).pods()["ragherd"]["metadata"]["annotations"]
        return annotations["checksum/configuration"], annotations["checksum/secret"]

    first, other_setting, other_secret = checksums("app=1", 2), checksums("app=1", 3), checksums("app=2", 2)
    assert first[0] == other_secret[0] != other_setting[0]
    assert first[1] == other_setting[1] != other_secret[1]


def test_an_ollama_of_ones_own_replaces_the_charts(tmp_path: Path) -> None:
    values = {"ollama": {"enabled": False}, "settings": {"OLLAMA_BASE_URL": "http://gpu.example:11434"}}
    manifests = options(values, tmp_path)
    assert set(manifests.pods()) == {"ragherd", "redis", "redis-sentinel"}
    egress = manifests.named("NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for each in egress for port in each["ports"]} == {53, 6379, 26379}


def test_the_ingress_leads_to_the_service(tmp_path: Path) -> None:
    tls = [{"hosts": ["rag.example"], "secretName": "rag-tls"}]
    hosts = [{"host": "rag.example", "paths": ["/query", "/v1"]}]
    values = {"ingress": {"enabled": True, "className": "nginx", "hosts": hosts, "tls": tls}}
    ingress = options(values, tmp_path).named("Ingress")["spec"]
    [rule] = ingress["rules"]
    assert (ingress["ingressClassName"], ingress["tls"], rule["host"]) == ("nginx", tls, "rag.example")
    assert [each["path"] for each in rule["http"]["paths"]] == ["/query", "/v1"]
    assert {each["backend"]["service"]["name"] for each in rule["http"]["paths"]} == {"ragherd"}


def test_pods_go_where_they_are_told(tmp_path: Path) -> None:
    place = {"nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "rag", "operator": "Exists"}]}
    affinity: dict[str, Any] = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
    manifests = options({**place, "affinity": affinity, "redis": place, "ollama": place}, tmp_path)
    for pod in manifests.pods().values():
        assert {name: pod["spec"][name] for name in place} == place
    assert manifests.pods()["ragherd"]["spec"]["affinity"] == affinity


def test_the_container_takes_more_variables_and_volumes(tmp_path: Path) -> None:
    volume, mount = {"name": "ca", "configMap": {"name": "ca"}}, {"name": "ca", "mountPath": "/etc/ca"}
    extra = {"name": "LOG_LEVEL", "value": "debug"}
    source = {"secretRef": {"name": "proxy"}}
    manifests = options(
        {"extraEnv": [extra], "extraEnvFrom": [source], "extraVolumes": [volume], "extraVolumeMounts": [mount]},
        tmp_path,
    )
    container = manifests.container()
    assert (container["env"][-1], container["envFrom"][-1], container["volumeMounts"][-1]) == (extra, source, mount)
    assert manifests.pods()["ragherd"]["spec"]["volumes"][-1] == volume


def test_the_image_is_the_one_that_was_pushed(tmp_path: Path) -> None:
    digest = "sha256:" + "0a" * 32
    image = {"repository": "registry.example/ragherd", "tag": "0.2.0", "digest": digest}
    manifests = options({"image": image, "imagePullSecrets": [{"name": "registry"}]}, tmp_path)
    assert manifests.container()["image"] == f"registry.example/ragherd@{digest}"
    for pod in manifests.pods().values():
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_components_take_their_image_resources_and_storage(tmp_path: Path) -> None:
    resources = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "4Gi"}}
    chosen = {"image": "mirror.example/it:1", "resources": resources, "storage": "3Gi", "storageClassName": "fast"}
    manifests = options({"redis": chosen, "ollama": chosen, "settings": {"BULKHEAD_MAX_CONCURRENT": 2}}, tmp_path)
    for name in ("redis", "ollama"):
        stateful = manifests.named("StatefulSet", name)["spec"]
        [claim] = stateful["volumeClaimTemplates"]
        assert {each["image"] for each in containers(stateful["template"])} == {"mirror.example/it:1"}
        for kind, given in resources.items():
            assert stateful["template"]["spec"]["containers"][0]["resources"][kind].items() >= given.items()
        assert claim["spec"]["storageClassName"] == "fast"
        assert claim["spec"]["resources"]["requests"]["storage"] == "3Gi"
    [ollama] = manifests.pods()["ollama"]["spec"]["containers"]
    assert {"name": "OLLAMA_NUM_PARALLEL", "value": "2"} in ollama["env"]


def test_a_long_answer_gets_its_grace_period(tmp_path: Path) -> None:
    pod = options({"settings": {"GRACEFUL_TIMEOUT": 300}}, tmp_path).pods()["ragherd"]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 3 + 5 + 300 + 5 + 2


def test_the_ports_are_those_of_the_settings(tmp_path: Path) -> None:
    manifests = options({"settings": {"PORT": 9001, "METRICS_PORT": 9002}}, tmp_path)
    ingress = manifests.named("NetworkPolicy")["spec"]["ingress"]
    assert [port["containerPort"] for port in manifests.container()["ports"]] == [9001, 9002]
    assert [rule["ports"][0]["port"] for rule in ingress] == [9001, 9002]


def test_large_numbers_stay_whole(tmp_path: Path) -> None:
    assert options({"settings": {"SEMANTIC_CACHE_MAX_SIZE": 3_000_000}}, tmp_path).settings()[
        "SEMANTIC_CACHE_MAX_SIZE"
    ] == ("3000000")


def test_what_is_turned_off_is_not_deployed(tmp_path: Path) -> None:
    off = {"enabled": False}
    values = {"autoscaling": {**off}, "podDisruptionBudget": off, "networkPolicy": off}
    account = {"serviceAccount": {"create": False}, "redis": {"mode": "standalone"}, "replicaCount": 4}
    manifests = options({**values, **account}, tmp_path)
    kinds = {"HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "ServiceAccount"}
    assert {each["kind"] for each in manifests.all} & kinds == set()
    assert manifests.named("Deployment")["spec"]["replicas"] == 4
    assert manifests.pods()["ragherd"]["spec"]["serviceAccountName"] == "default"


@pytest.mark.parametrize(("target", "kinds"), [(0, ["ContainerResource"]), (50, ["ContainerResource", "Pods"])])
def test_the_autoscaler_goes_by_cpu_and_by_requests_if_wanted(tmp_path: Path, target: int, kinds: list[str]) -> None:
    [scaler] = options({"autoscaling": {"targetRequestsInFlight": target}}, tmp_path).kind("HorizontalPodAutoscaler")
    assert [each["type"] for each in scaler["spec"]["metrics"]] == kinds


def test_a_service_monitor_scrapes_the_metrics_service(tmp_path: Path) -> None:
    values = {"monitoring": {"scrape": "serviceMonitor", "labels": {"release": "prometheus"}}}
    manifests = options(values, tmp_path)
    [monitor] = manifests.kind("ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    [service] = [each for each in manifests.kind("Service") if wanted <= each["metadata"]["labels"].items()]
    assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert manifests.kind("PodMonitor") == []
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert manifests.named(kind)["metadata"]["labels"]["release"] == "prometheus"


def test_a_cluster_without_the_operator_gets_none_of_its_objects() -> None:
    kinds = {each["kind"] for each in chart(operator=False).all}
    assert kinds & OPERATORS == set()


def test_every_object_is_in_the_releases_namespace() -> None:
    printed = template("--namespace", "questions", "--api-versions", OPERATOR).stdout
    assert {each["metadata"].get("namespace") for each in objects(printed)} == {"questions"}


def test_another_release_has_other_names_and_selects_its_own_pods() -> None:
    printed = helm("template", "blue", str(CHART), "--kube-version", "1.33", "--set", "redis.mode=external").stdout
    manifests = Rendered(objects(printed))
    deployment = manifests.named("Deployment", "blue-ragherd")["spec"]
    assert deployment["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "blue"
    for kind in ("Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "ConfigMap"):
        assert manifests.named(kind, "blue-ragherd")


# -- The notes after an install ----------------------------------------------------------------------------------------


def notes(folder: Path, *arguments: str) -> str:
    """What `helm install` prints; without a cluster the text is rendered as part of an object."""
    copy = folder / "ragherd"
    shutil.copytree(CHART, copy)
    text = (copy / "templates" / "NOTES.txt").read_text()
    (copy / "templates" / "_notes.tpl").write_text('{{ define "notes" }}' + text + "{{ end }}")
    (copy / "templates" / "notes.yaml").write_text(
        'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata: {text: {{ include "notes" . | toJson }}}\n'
    )
    shown = ("--show-only", "templates/notes.yaml", "--namespace", "ragherd", "--kube-version", "1.33")
    printed = helm("template", "ragherd", str(copy), *shown, *arguments).stdout
    found: str = yaml.safe_load(printed)["data"]["text"]
    return found


def test_the_notes_say_which_secrets_are_needed(tmp_path: Path) -> None:
    text = notes(tmp_path, "--api-versions", OPERATOR)
    assert "create secret generic redis " in text
    assert "create secret generic ragherd " in text
    assert "Without API_KEYS in it the pods do not start." in text
    assert "WARNING" not in text
    assert "Prometheus" not in text


def test_the_notes_warn_of_what_the_pods_cannot_reach(tmp_path: Path) -> None:
    text = notes(tmp_path, "--set", "redis.mode=external,ollama.enabled=false,secret.data.API_KEYS=app=1")
    assert "create secret" not in text
    assert "the network policy lets the pods reach no Redis" in text
    assert "the network policy lets the pods reach no Ollama" in text
    assert "The cluster has no Prometheus operator" in text
