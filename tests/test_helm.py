"""The chart `helm/duckdb`: what Helm says of it, what Kubernetes would, and that what it renders starts our binary."""

import json
import os
import ssl
import subprocess
import urllib.request

import pytest
import yaml

import charts
from charts import VALUES, VENDOR, VERSIONS, Schemas, merged, of_kind, render
from served import Server, binary, free_port

pytestmark = pytest.mark.skipif(
    not (VENDOR / "helm_python" / "lib").is_dir(), reason="there is no library of Helm's for this processor; scripts/pins.toml"
)

TOKEN = "a" * 64
SECRETS = {
    "tarn-auth": {"admin-token": TOKEN, "master-key": "b" * 64},
    "tarn-objects": {"access-key-id": "weed", "secret-access-key": "weed-secret", "session-token": ""},
    "reporting": {"url": "postgres://reporting"},
}
FIELDS = {"metadata.name": "rel-duckdb-main-0", "metadata.namespace": "data"}
everywhere = pytest.mark.parametrize("name", VALUES)


@pytest.fixture(scope="module", params=VERSIONS)
def schemas(request):
    return Schemas(request.param)


def pods(objects):
    return {name: item["spec"]["template"] for name, item in of_kind(objects, "StatefulSet").items()}


def matches(selector, labels):
    return selector.items() <= labels.items()


# --- Helm and Kubernetes


@everywhere
def test_helm_finds_nothing_wrong(name):
    from helm_python.chart import lint

    told = lint(charts.CHART, VALUES[name], strict=True)
    assert not told["errors"] and all(message["severity"] <= 1 for message in told["messages"]), told


@everywhere
def test_kubernetes_takes_every_object(name, schemas):
    # The library renders for its own version of Kubernetes; for an older one the chart leaves out what 1.30 brought.
    older = {"preStopSleepSeconds": 0} if schemas.version == "1.27" else {}
    objects = render(merged(VALUES[name], older))
    assert objects
    problems = {key: errors for key, item in objects.items() if (errors := schemas.errors(item))}
    assert not problems


def test_a_field_that_kubernetes_does_not_know_would_be_noticed(schemas):
    item = next(iter(of_kind(render(VALUES["minimal"]), "StatefulSet").values()))
    item["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    assert schemas.errors(item)


@pytest.mark.parametrize(
    "more",
    [
        {"nothing": 1},
        {"image": {"pullPolicy": "Sometimes"}},
        {"store": {"type": "ftp"}},
        {"persistence": {"type": "objectStorage"}},
        {"pools": {"main": {"profile": "notebook", "replicas": "two"}}},
        {"profiles": {"notebook": {"engineThreads": 0}}},
        {"settings": {"admin_token": "secret"}},
    ],
)
def test_values_that_are_none_are_refused_by_their_schema(more):
    with pytest.raises(Exception, match="schema|additional|not allowed|specified|must|expected|want"):
        render(merged(VALUES["minimal"], more))


@pytest.mark.parametrize(
    "more, told",
    [
        ({"auth": {"existingSecret": ""}}, "auth.existingSecret is missing"),
        ({"insecure": False}, "name a certificate"),
        ({"tls": {"existingSecret": "tls"}}, "exclude each other"),
        ({"defaultPool": "none"}, "there is no pool none"),
        ({"pools": {"main": {"profile": "none", "replicas": 1}}}, "there is no profile none"),
        ({"pools": {"more": {"profile": "batch", "replicas": 1, "tenants": ["a"]}, "main": {"profile": "batch", "replicas": 1, "tenants": ["a"]}}}, "is in the pools"),
        ({"pools": {"main": {"profile": "batch", "replicas": 2}}, "store": {"type": "volume"}}, "is for one node"),
        ({"pools": {"main": {"profile": "batch", "replicas": 2}}, "takeoverAfter": "never"}, "is for one node"),
        ({"persistence": {"type": "objectStorage", "storageClassName": "s3fs"}}, "settings.publish"),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_the_reason(more, told):
    with pytest.raises(Exception, match=told):
        render(merged(VALUES["minimal"], more))


# --- What is rendered


@pytest.mark.parametrize("profile, cpu, memory", [("notebook", "4", "16Gi"), ("batch", "8", "32Gi"), ("heavy", "16", "64Gi")])
def test_profiles_are_the_sizes_of_pods(profile, cpu, memory):
    """S11, S12 and S13: the guide's table."""
    objects = render(merged(VALUES["minimal"], {"pools": {"main": {"profile": profile, "replicas": 1}}}))
    (pod,) = pods(objects).values()
    size = {"cpu": cpu, "memory": memory}
    assert pod["spec"]["containers"][0]["resources"] == {"requests": size, "limits": size}


def test_tenants_are_split_over_pools():
    """S14: a Service for each tenant leads to the pods of its pool and to no others."""
    objects = render(VALUES["production"])
    services = of_kind(objects, "Service")
    for pool, tenants in {"batch": ["etl"], "heavy": ["acme", "globex"]}.items():
        for tenant in tenants:
            selector = services[f"rel-duckdb-tenant-{tenant}"]["spec"]["selector"]
            reached = {name for name, pod in pods(objects).items() if matches(selector, pod["metadata"]["labels"])}
            assert reached == {f"rel-duckdb-{pool}"}


@everywhere
def test_everything_refers_to_something_that_is_there(name):
    objects = render(VALUES[name])
    templates = pods(objects)
    labels = [pod["metadata"]["labels"] for pod in templates.values()]
    ports = {port["name"]: port["containerPort"] for pod in templates.values() for port in pod["spec"]["containers"][0]["ports"]}
    services = of_kind(objects, "Service")
    for service in services.values():
        assert any(matches(service["spec"]["selector"], own) for own in labels)
        assert all(port["targetPort"] in ports for port in service["spec"]["ports"])
    for name, item in of_kind(objects, "StatefulSet").items():
        assert matches(item["spec"]["selector"]["matchLabels"], item["spec"]["template"]["metadata"]["labels"])
        assert services[item["spec"]["serviceName"]]["spec"]["clusterIP"] == "None"
        spec = item["spec"]["template"]["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in objects
        there = {volume["name"] for volume in spec["volumes"]} | {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == there
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in objects
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in objects
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert spec["containers"][0][probe]["httpGet"]["port"] in ports
    for budget in of_kind(objects, "PodDisruptionBudget").values():
        assert sum(matches(budget["spec"]["selector"]["matchLabels"], own) for own in labels) == 1
    for policy in of_kind(objects, "NetworkPolicy").values():
        assert all(matches(policy["spec"]["podSelector"]["matchLabels"], own) for own in labels)
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == set(ports.values())
    for monitor in of_kind(objects, "ServiceMonitor").values():
        chosen = [service for service in services.values() if matches(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])]
        assert len(chosen) == 1
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= {port["name"] for port in chosen[0]["spec"]["ports"]}


@everywhere
def test_pods_may_do_little_and_hold_no_secret(name):
    objects = render(VALUES[name])
    text = json.dumps([*objects.values()])
    assert not any(secret in text for kept in SECRETS.values() for secret in kept.values() if len(secret) > 8)
    assert not of_kind(objects, "Secret")
    for pod in pods(objects).values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and pod["spec"]["automountServiceAccountToken"] is False
        own = pod["spec"]["containers"][0]["securityContext"]
        assert own == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def test_a_claim_of_object_storage_holds_published_files_and_no_live_mart():
    """S4, in the chart."""
    (pod,) = pods(render(VALUES["s3fs"])).values()
    container = pod["spec"]["containers"][0]
    places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["TARN_PUBLISH_DIR"] == places["published"] and variables["TARN_STATE_DIR"] == places["state"]
    assert "emptyDir" in next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "state")


def test_a_package_of_it_loads_and_leaves_its_tests_out(tmp_path):
    from helm_python.chart import Chart

    with charts.chart() as loaded:
        archive = loaded.save(tmp_path)
    with Chart.load(archive) as again:
        assert again.name == "duckdb" and again.render(VALUES["minimal"], name="rel", namespace="data")
    assert "/ci/" not in subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True).stdout


# --- A container without Kubernetes


class Pod(Server):
    """The binary with the arguments, variables and files of a rendered container, its paths and its port moved here."""

    def __init__(self, root, objects):
        super().__init__(root)
        (self.pod,) = pods(objects).values()
        self.container = self.pod["spec"]["containers"][0]
        self.objects = objects
        self.variables = charts.environment(self.container, SECRETS, FIELDS)
        self.token = self.variables["TARN_ADMIN_TOKEN"]
        self.port = free_port()
        self.moved = {"0.0.0.0:8642": f"127.0.0.1:{self.port}", "rel-duckdb-main-0.rel-duckdb-nodes.data.svc.cluster.local:8642": f"localhost:{self.port}"}
        for mount in self.container["volumeMounts"]:
            self.moved[mount["mountPath"]] = str(root / mount["name"]) + ("/tarn.toml" if mount.get("subPath") else "")
            (root / mount["name"]).mkdir(parents=True, exist_ok=True)
        self.state = root / "state"
        settings = objects["ConfigMap", "rel-duckdb"]["data"]["tarn.toml"]
        (root / "settings" / "tarn.toml").write_text(settings)

    def here(self, text):
        for there, place in sorted(self.moved.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(there, place)
        return text

    def start(self, **changed):
        variables = {name: self.here(value) for name, value in self.variables.items() if value} | changed
        command = [binary(), *map(self.here, self.container["args"])]
        self.scheme = self.container["readinessProbe"]["httpGet"]["scheme"].lower()
        self.address = f"localhost:{self.port}"
        with open(self.root / "server.log", "ab") as log:
            kept = {"PATH": os.environ["PATH"], "HOME": str(self.root)}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.root, env={**kept, **variables})
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            self._wait_for(probe, lambda: self.probe(self.container[probe]["httpGet"]["path"]))
        return self

    def probe(self, path):
        context = ssl.create_default_context(cafile=self.root / "tls" / "ca.crt") if self.scheme == "https" else None
        return urllib.request.urlopen(f"{self.scheme}://{self.address}{path}", timeout=5, context=context).status

    def helm_test(self):
        """The command of `helm test`, at the Service's name."""
        container = self.objects["Pod", "rel-duckdb-test"]["spec"]["containers"][0]
        variables = {name: self.here(value) for name, value in charts.environment(container, SECRETS, FIELDS).items()}
        variables["TARN_DSN"] = variables["TARN_DSN"].replace("rel-duckdb.data.svc:8642", self.address)
        assert container["command"] == ["tarn"]
        return subprocess.run([binary(), *container["args"]], capture_output=True, text=True, env=variables, timeout=60)


@pytest.mark.parametrize("name", ["laptop", "keys", "s3fs"])
def test_what_is_rendered_starts_the_binary(name, tmp_path, request):
    """S3."""
    changed = {}
    if name != "laptop":
        changed["DUCKDB_S3_ENDPOINT"] = f"http://{request.getfixturevalue('weed').address}"
    objects = render(merged(VALUES[name], {"pools": {"main": {"profile": "notebook", "replicas": 1, "tenants": []}}}))
    pod = Pod(tmp_path, objects)
    pod.variables.pop("DUCKDB_SESSION_TOKEN", None)  # SeaweedFS gives out none for keys
    pod.start(**changed)
    try:
        done = pod.helm_test()
        assert (done.returncode, done.stdout) == (0, "answer\n42\n"), done
    finally:
        pod.stop()


def test_what_is_rendered_for_production_serves_with_tls(tmp_path, weed):
    # With keys instead of a role, which wants a token service; and without the walls that this machine may lack.
    more = {
        "store": {"s3": {"roleArn": "", "endpoint": f"http://{weed.address}", "region": "us-east-1", "credentials": {"existingSecret": "tarn-objects"}}},
        "pools": {"main": {"profile": "notebook", "replicas": 1}, "batch": None, "heavy": None},
        "settings": {"require_walls": "", "oidc_issuer": "", "oidc_audience": "", "oidc_roles": ""},
    }
    values = merged(VALUES["production"], more)
    values["pools"] = {"main": values["pools"]["main"]}
    values["settings"] = {key: value for key, value in values["settings"].items() if value != ""}
    pod = Pod(tmp_path, render(values))
    certificate(tmp_path / "tls")
    pod.start()
    try:
        done = pod.helm_test()
        assert (done.returncode, done.stdout) == (0, "answer\n42\n"), done
    finally:
        pod.stop()


def certificate(directory):
    """An authority, and a certificate of its for `localhost`."""
    subject = ["-subj", "/CN=tarn", "-days", "2", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    run = lambda *words: subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, cwd=directory)  # noqa: E731
    run("req", "-x509", *subject, "-keyout", "ca.key", "-out", "ca.crt")
    run("req", *subject, "-keyout", "tls.key", "-out", "request.pem")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    run("x509", "-req", "-in", "request.pem", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "tls.crt")


def test_settings_reach_the_node_as_they_were_written():
    settings = render(VALUES["laptop"])["ConfigMap", "rel-duckdb"]["data"]["tarn.toml"]
    told = dict(line.split(" = ") for line in settings.strip().splitlines())
    assert told["query_timeout_ms"] == '"3600000"' and told["retention_days"] == '"1.5"' and told["publish"] == '"default/dev"'
    assert yaml.safe_load(settings.replace(" = ", ": "))["log_format"] == "json"
