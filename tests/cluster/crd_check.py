"""Check the KubeRay manifests against the definitions (CRDs) of a KubeRay release.

    python -m tests.cluster.crd_check FOLDER

FOLDER is `helm-chart/kuberay-operator/crds` of a clone of ray-project/kuberay at the release. It is
not a test, since the definitions are not part of this repository. Unknown keys are errors, although
the definitions allow them: Kubernetes ignores them silently.
"""

import sys
from pathlib import Path

import jsonschema
import yaml

MANIFESTS = Path(__file__).parent.parent.parent / "cluster" / "kuberay"


def closed(schema):
    """The schema with unknown properties forbidden in all objects that list properties."""
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


def definitions(folder):
    """Closed schema of each kind at `v1`, with open metadata."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[crd["spec"]["names"]["kind"]] = schema
    return found


def faults(folder):
    """One line for each error in a manifest."""
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
    print("\n".join(lines) or "no errors")
    raise SystemExit(bool(lines))
