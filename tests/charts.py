"""The chart by Helm's own code, and its objects as Kubernetes and a kubelet see them."""

import copy
import json
import re
import sys

import jsonschema
import yaml

from served import ROOT

CHART = ROOT / "helm" / "duckdb"
VENDOR = ROOT / "vendor" / "test"
VALUES = {path.stem.removesuffix("-values"): yaml.safe_load(path.read_text()) for path in sorted((CHART / "ci").glob("*.yaml"))}
# The oldest version that the chart is for, and the newest.
VERSIONS = ("1.27", "1.37")

sys.path.insert(0, str(VENDOR))


def chart():
    from helm_python.chart import Chart

    return Chart.load(CHART)


def render(values):
    """All objects of a release `rel` in the namespace `data`, by kind and name; what the chart refuses is raised."""
    with chart() as loaded:
        loaded.validate_schema(values)
        manifests = loaded.render(values, name="rel", namespace="data")
    found = {}
    for path, text in manifests.items():
        for item in yaml.safe_load_all(text) if path.endswith(".yaml") else []:
            if item:
                key = (item["kind"], item["metadata"]["name"])
                assert key not in found, f"{key} twice"
                found[key] = item
    return found


def merged(base, more):
    result = copy.deepcopy(base)
    for key, value in more.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
    return result


def of_kind(objects, kind):
    return {name: item for (found, name), item in objects.items() if found == kind}


# The part of the Prometheus operator's type that is used, by its documentation.
SERVICE_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "endpoints"],
            "properties": {
                "selector": {"type": "object"},
                "namespaceSelector": {"type": "object"},
                "podTargetLabels": {"type": "array", "items": {"type": "string"}},
                "endpoints": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "scheme": {"enum": ["http", "https"]},
                            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                            "scrapeTimeout": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                            "authorization": {"type": "object", "required": ["credentials"]},
                            "tlsConfig": {"type": "object"},
                        },
                    },
                },
            },
        },
    },
}


class Schemas:
    """What one version of Kubernetes takes; names that it does not know are mistakes."""

    def __init__(self, version):
        self.version = version
        self.document = json.loads((VENDOR / "kubernetes" / f"{version}.json").read_text())
        self.names = {}
        for name, schema in self.document["$defs"].items():
            kinds = schema.get("properties", {}).get("kind", {}).get("enum", [])
            versions = schema.get("properties", {}).get("apiVersion", {}).get("enum", [])
            self.names.update({(version, kind): name for version in versions for kind in kinds})

    def errors(self, item):
        if item["kind"] == "ServiceMonitor":
            return [error.message for error in jsonschema.Draft202012Validator(SERVICE_MONITOR).iter_errors(item)]
        schema = {**self.document, "$ref": f"#/$defs/{self.names[item['apiVersion'], item['kind']]}"}
        return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(item)]


def environment(container, secrets, fields):
    """The variables of a container as a kubelet makes them."""
    made = {}
    for variable in container["env"]:
        if "value" in variable:
            text = str(variable["value"])
            made[variable["name"]] = re.sub(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda found: made.get(found[1], found[0]), text)
        elif "secretKeyRef" in variable["valueFrom"]:
            reference = variable["valueFrom"]["secretKeyRef"]
            made[variable["name"]] = secrets[reference["name"]][reference["key"]]
        else:
            made[variable["name"]] = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
    return made
