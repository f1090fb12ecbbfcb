"""The settings of every overlay exist, load, and contain no secrets."""

from __future__ import annotations

import re

import pytest
import yaml

from api.errors import SettingsError
from api.scaling.costs import load_costs
from api.scaling.plan import Capacity, Demand, plan
from api.settings import load_settings, variable_names
from tests.k8s.rendered import K8S, Rendered, rendered

RATES = {"base": 130, "overlays/dev": 17, "overlays/staging": 130, "overlays/production": 200}
"""Requests per second, half of them hits, that the fewest pods of each have the CPU for."""
OVERLAY_OF = {"redis": "overlays/staging", "redis-sentinel": "overlays/production"}
SECRET = {"API_KEYS", "ADMIN_KEYS"}
PASSWORD = "0123abcd" * 8


def environment(manifests: Rendered) -> dict[str, str]:
    """Returns the environment of the process, with made-up secrets. `env` overrides `envFrom`."""
    seen = {**manifests.settings(), "API_KEYS": f"app={PASSWORD}"}
    for one in manifests.container().get("env", []):
        value = PASSWORD if "valueFrom" in one else one["value"]
        seen[one["name"]] = re.sub(r"\$\((\w+)\)", lambda match: seen[match[1]], value)
    return seen


def test_every_setting_is_one_that_the_service_reads_and_they_load(
    manifests: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(manifests.settings()) <= set(variable_names())
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)
    for name, value in environment(manifests).items():
        monkeypatch.setenv(name, value)
    settings = load_settings(env_file=None)
    assert settings.server.host == "0.0.0.0"
    assert settings.embedder.embedder == "onnx"


@pytest.mark.parametrize(
    ("folder", "starts"), [("base", False), ("overlays/dev", True), ("overlays/production", False)]
)
def test_without_keys_no_pod_starts_but_a_laptops(
    monkeypatch: pytest.MonkeyPatch, folder: str, *, starts: bool
) -> None:
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment(rendered(folder)) | {"API_KEYS": ""}).items():
        monkeypatch.setenv(name, value)
    if starts:
        load_settings(env_file=None)
    else:
        with pytest.raises(SettingsError, match=r"^API_KEYS: .*ALLOW_ANONYMOUS=true"):
            load_settings(env_file=None)


def test_the_settings_reach_the_pod(manifests: Rendered) -> None:
    [settings, secret] = manifests.container()["envFrom"]
    assert settings == {"configMapRef": {"name": manifests.named("ConfigMap")["metadata"]["name"]}}
    assert secret == {"secretRef": {"name": "ragherd", "optional": True}}


def test_the_ports_are_the_settings(manifests: Rendered) -> None:
    ports = {port["name"]: port["containerPort"] for port in manifests.container()["ports"]}
    settings = manifests.settings()
    assert ports == {"http": int(settings["PORT"]), "metrics": int(settings["METRICS_PORT"])}


def test_staging_has_the_settings_of_a_staging_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(rendered("overlays/staging")).items():
        monkeypatch.setenv(name, value)
    settings = load_settings(env_file=None)
    breaker, pool, cache = settings.breaker, settings.pool, settings.cache
    assert (breaker.failure_threshold, breaker.timeout, breaker.half_open_max_calls) == (5, 60, 3)
    assert (pool.min_size, pool.max_size, pool.max_keepalive) == (5, 15, 30)
    assert (cache.similarity_threshold, cache.max_size, cache.ttl) == (0.92, 1000, 3600)
    assert breaker.enabled
    assert cache.enabled


@pytest.mark.parametrize(
    ("folder", "url"),
    [
        ("overlays/dev", f"redis://:{PASSWORD}@redis:6379"),
        ("overlays/staging", f"redis://:{PASSWORD}@redis:6379"),
        (
            "overlays/production",
            f"redis+sentinel://:{PASSWORD}@redis-sentinel-0.redis-sentinel:26379,"
            "redis-sentinel-1.redis-sentinel:26379,redis-sentinel-2.redis-sentinel:26379/ragherd",
        ),
    ],
)
def test_the_password_of_redis_comes_from_its_secret(folder: str, url: str) -> None:
    assert environment(rendered(folder))["REDIS_URL"] == url
    [reference] = [one["valueFrom"] for one in rendered(folder).container()["env"] if "valueFrom" in one]
    assert reference == {"secretKeyRef": {"name": "redis", "key": "password"}}


def test_no_secret_is_in_a_configmap_or_made_by_a_kustomization(manifests: Rendered) -> None:
    assert manifests.kind("Secret") == []
    assert not SECRET & set(manifests.settings())
    for each in manifests.kind("ConfigMap"):
        for name, value in each["data"].items():
            assert not re.search(r"password|passwd|token", name, re.IGNORECASE)
            assert not re.search(r"://[^/\s]*:[^/\s]*@", value), name
            assert not re.search(r"^\s*(requirepass|masterauth|user) ", value, re.MULTILINE), name


def test_no_value_in_a_pod_is_a_password(manifests: Rendered) -> None:
    for pod in manifests.pods().values():
        for container in pod["spec"]["containers"]:
            for one in container.get("env", []):
                assert not re.search(r"pass|secret|key", one["name"], re.IGNORECASE) or "valueFrom" in one, one["name"]


@pytest.mark.parametrize("template", sorted(K8S.rglob("secret.example.yaml")), ids=lambda path: path.parent.name)
def test_a_secrets_template_holds_no_value_and_is_not_applied(template: object) -> None:
    content = yaml.safe_load(template.read_text())  # type: ignore[attr-defined]
    assert content["stringData"] == {}
    assert "secret.example.yaml" not in (template.parent / "kustomization.yaml").read_text().replace(  # type: ignore[attr-defined]
        "Secrets: secret.example.yaml", ""
    ).replace("`redis`: secret.example.yaml", "")


@pytest.mark.parametrize("folder", RATES)
def test_the_requests_are_those_of_ragherd_plan(folder: str) -> None:
    manifests = rendered(folder)
    found, settings = manifests.container()["resources"], manifests.settings()
    workers, entries = int(settings["WORKERS"]), int(settings.get("SEMANTIC_CACHE_MAX_SIZE", 1000))
    scalers = manifests.kind("HorizontalPodAutoscaler")
    replicas = scalers[0]["spec"]["minReplicas"] if scalers else manifests.named("Deployment")["spec"]["replicas"]
    demand = Demand(rate=RATES[folder], entries=entries, replicas=replicas, workers=workers)
    needed = plan(demand, load_costs(None), Capacity())
    assert 0.9 * cores(found["requests"]["cpu"]) < needed.pod_cores <= cores(found["requests"]["cpu"])
    assert found["requests"]["memory"] == f"{needed.pod_bytes >> 20}Mi"
    assert cores(found["limits"]["cpu"]) >= workers
    assert needed.redis_bytes < 2**30  # maxmemory


@pytest.mark.parametrize("component", ["redis", "redis-sentinel"])
def test_redis_asks_for_its_data_and_half_as_much_for_a_rewrite(component: str) -> None:
    configuration = (K8S / "components" / component / "redis.conf").read_text()
    assert re.findall(r"^maxmemory (\S+)$", configuration, re.MULTILINE) == ["1gb"]
    [redis] = rendered(OVERLAY_OF[component]).pods()["redis"]["spec"]["containers"]
    assert redis["resources"]["requests"]["memory"] == f"{int(1024 * Capacity().memory_factor)}Mi"


def cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
