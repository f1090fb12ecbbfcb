"""Validates objects of Kubernetes, and those of other projects, such as a ScaledObject, by their published schemas.

The schemas come from the definitions (CustomResourceDefinition) that KEDA, the Prometheus operator and the Gateway API
publish under the Apache License 2.0:

    python -m tests.k8s.custom_resources keda.sh_scaledobjects.yaml monitoring.coreos.com_podmonitors.yaml ...
"""

from __future__ import annotations

import gzip
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import yaml
from kubernetes_validate import utils

SCHEMAS: Final = Path(__file__).parent / "schemas.json.gz"
utils.schema_contents = lru_cache(utils.schema_contents)  # it would read all definitions again for each object


@lru_cache
def schemas() -> dict[str, Any]:
    """Returns the schemas by `apiVersion kind`."""
    found: dict[str, Any] = json.loads(gzip.decompress(SCHEMAS.read_bytes()))
    return found


def validate(found: Any, version: str) -> None:
    """Raises an exception if an object has a field that this version of Kubernetes, or its project, does not know."""
    if schema := schemas().get(f"{found['apiVersion']} {found['kind']}"):
        jsonschema.validate(found, schema)
    else:
        kubernetes_validate.validate(found, version, strict=True)


def strict(schema: Any) -> Any:
    """Returns a schema without texts, which also refuses unknown fields. The API server would drop them."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: each for key, each in schema.items() if not key.startswith("x-") and key != "description"}
    for key, each in kept.items():
        kept[key] = {name: strict(one) for name, one in each.items()} if key == "properties" else strict(each)
    if "properties" in kept and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    if isinstance(pattern := kept.get("pattern"), str):
        kept["pattern"] = pattern.replace("^(?i)", "(?i)^")  # Python wants flags first
    if schema.get("x-kubernetes-int-or-string"):
        kept = {key: each for key, each in kept.items() if key != "type"}
    return kept


def of_definitions(paths: list[Path]) -> dict[str, Any]:
    """Returns the schemas of all served versions."""
    found = {}
    for path in paths:
        spec = yaml.safe_load(path.read_text("utf-8"))["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{spec['group']}/{version['name']} {spec['names']['kind']}"] = schema
    return found


if __name__ == "__main__":
    text = json.dumps(of_definitions([Path(one) for one in sys.argv[1:]]), sort_keys=True)
    SCHEMAS.write_bytes(gzip.compress(text.encode(), mtime=0))
