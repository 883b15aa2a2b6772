"""Check the KubeRay manifests against the definitions of a KubeRay release: `FOLDER` has its CRDs.

    python -m tests.cluster.crd_check FOLDER

FOLDER is `helm-chart/kuberay-operator/crds` of a clone of ray-project/kuberay at the release. Not a
test: the definitions are KubeRay's, and are not kept here. Unknown keys are errors too, although
the definitions let them pass: Kubernetes drops them without a word.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml

MANIFESTS = Path(__file__).parent.parent.parent / "cluster" / "kuberay"


def closed(schema: Any) -> Any:
    """The schema, in which an object that lists its properties has no others."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


def definitions(folder: Path) -> dict[str, Any]:
    """The schema of each kind at `v1`, closed, with its metadata left open."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[crd["spec"]["names"]["kind"]] = schema
    return found


def faults(folder: Path) -> list[str]:
    """A line for each fault of a manifest; none where all is as the release wants it."""
    schemas = definitions(folder)
    found, checked = [], 0
    for path in sorted(MANIFESTS.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document["apiVersion"] != "ray.io/v1":
                continue
            checked += 1
            validator = jsonschema.Draft202012Validator(schemas[document["kind"]])
            for error in validator.iter_errors(document):
                found.append(f"{path.name}: {error.json_path}: {error.message[:200]}")
    if not checked:
        found.append(f"no manifest of KubeRay in {MANIFESTS}")
    return found


if __name__ == "__main__":
    lines = faults(Path(sys.argv[1]))
    print("\n".join(lines) or "as defined")
    raise SystemExit(bool(lines))
