"""The chart `helm/duckdb`: what Helm says of it, what Kubernetes would, and that what it renders starts our binary."""

import json
import re
import subprocess
import tomllib

import pytest

import charts
from charts import CHART, VALUES, VENDOR, VERSIONS, Schemas, merged, of_kind, render
from helm import SECRETS, Pod, TokenService, all_pods, certificate, matches, pods, render_for, texts
from served import ROOT

pytestmark = pytest.mark.skipif(
    not (VENDOR / "helm_python" / "lib").is_dir(), reason="there is no library of Helm's for this processor; scripts/pins.toml"
)

everywhere = pytest.mark.parametrize("name", VALUES)


@pytest.fixture(scope="module", params=VERSIONS)
def schemas(request):
    return Schemas(request.param)


# --- Helm and Kubernetes


@everywhere
@pytest.mark.parametrize("version", VERSIONS)
def test_helm_finds_nothing_wrong(name, version):
    from helm_python.chart import lint

    told = lint(CHART, VALUES[name], strict=True, kube_version=f"v{version}.0")
    # 1 is advice: the chart has no icon.
    assert not told["errors"] and all(message["severity"] <= 1 for message in told["messages"]), told


@everywhere
def test_kubernetes_takes_every_object(name, schemas):
    objects = render_for(schemas.version, VALUES[name])
    assert {item["kind"] for item in objects} >= {"StatefulSet", "Service", "ConfigMap", "Pod"}
    problems = {(item["kind"], item["metadata"]["name"]): errors for item in objects if (errors := schemas.errors(item))}
    assert not problems


def test_what_1_30_brought_is_left_out_for_older_clusters(schemas):
    newest = next(item for item in render_for(VERSIONS[-1], VALUES["minimal"]) if item["kind"] == "StatefulSet")
    own = next(item for item in render_for(schemas.version, VALUES["minimal"]) if item["kind"] == "StatefulSet")
    assert texts(newest, "preStop") == [{"sleep": {"seconds": 5}}]
    assert bool(texts(own, "preStop")) == (schemas.errors(newest) == [])


def test_names_that_yaml_takes_for_numbers_or_truth_stay_names(schemas):
    values = {
        "fullnameOverride": "duck",
        "nameOverride": "42",
        "auth": {"existingSecret": "123", "adminTokenKey": "1.5", "masterKeyKey": "0x10"},
        "tls": {"existingSecret": "1e3", "caKey": "7"},
        "store": {"controlBucket": "1234567", "s3": {"roleArn": "arn:aws:iam::1:role/r", "webIdentity": {"audience": "1"}}},
        "pools": {"main": None, "on": {"profile": "notebook", "replicas": 1}, "null": {"profile": "notebook", "replicas": 1}},
        "defaultPool": "on",
        "serviceAccount": {"name": "1234"},
        "persistence": {"type": "claim", "storageClassName": "1e3"},
        "priorityClassName": "true",
        "serviceMonitor": {"enabled": True},
    }
    objects = render_for(schemas.version, values, name="1234", namespace="5678")
    for item in objects:
        assert not schemas.errors(item)
        names = [name for labels in texts(item, "labels") + texts(item, "matchLabels") for name in labels.values()]
        names += [name for key in ("namespace", "name", "key", "secretName", "storageClassName") for name in texts(item, key)]
        # Kubernetes' schemas let null through.
        assert all(isinstance(name, str) for name in names), item
    # A pool that is null is no pool: how somebody gets rid of `main`.
    assert {item["metadata"]["name"] for item in objects if item["kind"] == "StatefulSet"} == {"duck-on", "duck-null"}


def test_a_field_that_kubernetes_does_not_know_would_be_noticed(schemas):
    item = next(iter(of_kind(render(VALUES["minimal"]), "StatefulSet").values()))
    item["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    assert schemas.errors(item)


def test_every_setting_of_the_documentation_may_be_set_unless_the_chart_sets_it():
    documented = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE))
    set_here = set(re.findall(r"name: ((?:TARN|DUCKDB)_\w+)", (CHART / "templates" / "_env.tpl").read_text()))
    free = {key for key, variables in documented.items() if not set_here & set(re.findall(r"`(\w+)`", variables))}
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert len(documented) > 50 and set(schema["properties"]["settings"]["propertyNames"]["enum"]) == free


@pytest.mark.parametrize(
    "more, place",
    [
        ({"nothing": 1}, "nothing"),
        ({"fullnameOverride": "1st"}, "fullnameOverride"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
        ({"image": {"digest": "sha256:1"}}, "/image/digest"),
        ({"auth": {"adminToken": "secret"}}, "/auth"),
        ({"insecure": "yes"}, "/insecure"),
        ({"store": {"type": "ftp"}}, "/store/type"),
        ({"store": {"s3": {"endpoint": "https://key:secret@host"}}}, "/store/s3/endpoint"),
        ({"store": {"buckets": {"raw": "shared"}}}, "/store/buckets/raw"),
        ({"persistence": {"type": "objectStorage"}}, "/persistence/storageClassName"),
        ({"pools": {"main": {"profile": "notebook", "replicas": "two"}}}, "/pools/main/replicas"),
        ({"pools": {"Main": {"profile": "notebook", "replicas": 1}}}, "'Main' does not match"),
        ({"pools": {"main": {"profile": "notebook", "replicas": 1, "tenants": ["A_B"]}}}, "/pools/main/tenants/0"),
        ({"profiles": {"notebook": {"engineThreads": 0}}}, "/profiles/notebook/engineThreads"),
        ({"profiles": {"small": {"cpu": 1}}}, "/profiles/small"),
        ({"takeoverAfter": "soon"}, "/takeoverAfter"),
        ({"settings": {"admin_token": "secret"}}, "invalid propertyName 'admin_token'"),
        ({"settings": {"listen": "0.0.0.0:1"}}, "invalid propertyName 'listen'"),
        ({"service": {"port": 0}}, "/service/port"),
        ({"networkPolicy": {"storePorts": []}}, "/networkPolicy/storePorts"),
        ({"extraEnv": [{"name": "TARN_ADMIN_TOKEN", "value": "secret"}]}, "/extraEnv/0"),
        ({"extraEnv": [{"name": "TARN_POSTGRES_REPORTING", "value": "postgres://user:secret@host"}]}, "/extraEnv/0"),
        ({"test": {"mart": "dev"}}, "/test/mart"),
    ],
)
def test_values_that_are_none_are_refused_by_their_schema(more, place):
    from helm_python import HelmValuesError

    with pytest.raises(HelmValuesError) as refused:
        render(merged(VALUES["minimal"], more))
    assert place in str(refused.value)


def pool(replicas=1, tenants=(), profile="batch"):
    return {"profile": profile, "replicas": replicas, "tenants": [*tenants]}


REFUSED = [
    ({"auth": {"existingSecret": ""}}, "auth.existingSecret is missing"),
    ({"insecure": False}, "name a certificate in tls.existingSecret"),
    ({"tls": {"existingSecret": "tls"}}, "tls.existingSecret and insecure exclude each other"),
    ({"defaultPool": "none"}, "defaultPool: there is no pool none"),
    ({"persistence": {"type": "objectStorage", "storageClassName": "s3fs"}}, "name it in settings.publish"),
    ({"pools": {"main": pool(profile="none")}}, "pools.main: there is no profile none"),
    ({"pools": {"more": pool(tenants=["a"]), "main": pool(tenants=["a"])}}, "tenant a is in the pools main and more"),
    ({"pools": {"main": pool(tenants=["a" * 50])}}, "would have a name of over 63 characters"),
    ({"pools": {"main": pool(2)}, "store": {"type": "volume"}}, "store.type volume is for one node, and the pools have 2"),
    ({"pools": {"main": pool(), "more": pool()}, "takeoverAfter": "never"}, "takeoverAfter never is for one node, and the pools have 2"),
]


@pytest.mark.parametrize("more, told", REFUSED)
def test_values_that_do_not_go_together_are_refused_with_the_reason(more, told):
    from helm_python import HelmRenderError

    with pytest.raises(HelmRenderError, match=re.escape(told)):
        render(merged(VALUES["minimal"], more))


def test_every_rule_of_the_chart_is_tested():
    assert len(re.findall(r"\bfail \S", (CHART / "templates" / "_check.tpl").read_text())) == len(REFUSED)


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
    labels = [pod["metadata"]["labels"] for pod in pods(objects).values()]
    (asking,) = of_kind(objects, "Pod").values()
    services = of_kind(objects, "Service")
    for service in services.values():
        assert any(matches(service["spec"]["selector"], own) for own in labels)
        assert not matches(service["spec"]["selector"], asking["metadata"]["labels"])
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["api"]
    for item in of_kind(objects, "StatefulSet").values():
        spec, container = item["spec"]["template"]["spec"], item["spec"]["template"]["spec"]["containers"][0]
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert len(variables) == len(container["env"])
        assert matches(item["spec"]["selector"]["matchLabels"], item["spec"]["template"]["metadata"]["labels"])
        nodes = item["spec"]["serviceName"]
        assert services[nodes]["spec"]["clusterIP"] == "None"
        assert variables["TARN_ADVERTISE"] == f"$(POD_NAME).{nodes}.$(POD_NAMESPACE).svc.cluster.local:8642"
        assert container["ports"] == [{"name": "api", "containerPort": 8642}] and variables["TARN_LISTEN"].endswith(":8642")
        assert ("ServiceAccount", spec["serviceAccountName"]) in objects
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == "api" and (asked["scheme"] == "HTTPS") == ("TARN_TLS_CERT" in variables)
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        files = [value.removeprefix("file:") for value in [*variables.values(), container["args"][-1]] if value and value.removeprefix("file:").startswith("/")]
        assert len(files) >= 3 and all(any(f"{file}/".startswith(f"{mount}/") for mount in mounts) for file in files)
    for spec, claims in [(pod["spec"], []) for pod in of_kind(objects, "Pod").values()] + [
        (item["spec"]["template"]["spec"], item["spec"].get("volumeClaimTemplates", [])) for item in of_kind(objects, "StatefulSet").values()
    ]:
        there = [volume["name"] for volume in [*spec.get("volumes", []), *(claim["metadata"] for claim in claims)]]
        assert sorted(mount["name"] for mount in spec["containers"][0].get("volumeMounts", [])) == sorted(there)
        for volume in spec.get("volumes", []):
            assert "configMap" not in volume or "tarn.toml" in objects["ConfigMap", volume["configMap"]["name"]]["data"]
            assert "persistentVolumeClaim" not in volume or ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in objects
            assert "secret" not in volume or volume["secret"]["secretName"] == VALUES[name]["tls"]["existingSecret"]
    for budget in of_kind(objects, "PodDisruptionBudget").values():
        assert sum(matches(budget["spec"]["selector"]["matchLabels"], own) for own in labels) == 1
    (policy,) = of_kind(objects, "NetworkPolicy").values()
    assert all(matches(policy["spec"]["podSelector"]["matchLabels"], own) for own in labels)
    (entering,) = policy["spec"]["ingress"]
    assert entering["ports"] == [{"port": 8642, "protocol": "TCP"}]
    own_peers = entering["from"][0]["podSelector"]["matchLabels"]
    assert all(matches(own_peers, own) for own in [*labels, asking["metadata"]["labels"]])
    dsn = next(variable["value"] for variable in asking["spec"]["containers"][0]["env"] if variable["name"] == "TARN_DSN")
    host, port = re.match(r"tarn://([^:/]+):(\d+)/", dsn).groups()
    assert {f"{service}.data.svc": str(item["spec"]["ports"][0]["port"]) for service, item in services.items()}[host] == port
    for monitor in of_kind(objects, "ServiceMonitor").values():
        chosen = [service for service in services.values() if matches(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])]
        assert len(chosen) == 1 and monitor["spec"]["namespaceSelector"]["matchNames"] == ["data"]
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] == chosen[0]["spec"]["ports"][0]["name"]
        assert endpoint["tlsConfig"]["serverName"].removesuffix(".data.svc") in services


@everywhere
def test_what_the_notes_name_is_there(name):
    objects = render(VALUES[name])
    with charts.chart() as loaded:
        notes = loaded.render(VALUES[name], name="rel", namespace="data")["duckdb/templates/NOTES.txt"]
    hosts = set(re.findall(r"://([\w-]+)\.data\.svc", notes))
    assert hosts == set(of_kind(objects, "Service")) - {"rel-duckdb-nodes"}
    assert [found.removesuffix("-0") in pods(objects) for found in re.findall(r"exec (\S+)", notes)] == [True]


@everywhere
def test_secrets_come_by_reference(name):
    objects = render(VALUES[name])
    assert not of_kind(objects, "Secret")
    secret = re.compile(r"TOKEN$|SECRET|MASTER_KEY|ACCESS_KEY|POSTGRES")
    for pod in all_pods(objects):
        held = [variable for variable in pod["spec"]["containers"][0]["env"] if secret.search(variable["name"])]
        assert held and all("value" not in variable for variable in held)
        for reference in texts(held, "secretKeyRef"):
            assert reference["key"] in SECRETS[reference["name"]]


@everywhere
def test_pods_may_do_little(name):
    for pod in all_pods(render(VALUES[name])):
        assert pod["spec"]["automountServiceAccountToken"] is False
        whole = pod["spec"]["securityContext"]
        assert whole["runAsNonRoot"] and whole["runAsUser"] > 0 and whole["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            little = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            assert container["securityContext"] == little
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys()
        assert not any("hostPath" in volume for volume in pod["spec"].get("volumes", []))


def test_a_claim_of_object_storage_holds_published_files_and_no_live_mart():
    """S4, in the chart."""
    (pod,) = pods(render(VALUES["s3fs"])).values()
    container = pod["spec"]["containers"][0]
    places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["TARN_PUBLISH_DIR"] == places["published"] and variables["TARN_STATE_DIR"] == places["state"]
    assert "emptyDir" in next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "state")


def test_a_package_of_it_loads_and_leaves_its_tests_out(tmp_path):
    from helm_python.chart import Chart, package

    archive = package(CHART, destination=tmp_path)
    assert archive.endswith("duckdb-0.1.0.tgz")
    with Chart.load(archive) as again, charts.chart() as loaded:
        release = {"name": "rel", "namespace": "data"}
        assert again.render(VALUES["production"], **release) == loaded.render(VALUES["production"], **release)
    names = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True).stdout.split()
    assert "duckdb/values.schema.json" in names and not any("/ci/" in name for name in names)


def test_the_chart_is_of_the_version_of_the_node():
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    with charts.chart() as loaded:
        assert loaded.metadata["appVersion"] == version


def test_settings_reach_the_node_as_they_were_written():
    told = tomllib.loads(render(VALUES["laptop"])["ConfigMap", "rel-duckdb"]["data"]["tarn.toml"])
    written = {"query_timeout_ms": "3600000", "retention_days": "1.5", "publish": "default/dev"}
    assert told == {"audit": "stdout", "log_format": "json", **written}


# --- A container without Kubernetes


def start_and_ask(pod):
    """Its probes, then `helm test`."""
    pod.start()
    try:
        done = pod.helm_test()
        assert (done.returncode, done.stdout) == (0, "answer\n42\n"), f"{done}\n{pod.log()}"
        for monitor in of_kind(pod.objects, "ServiceMonitor").values():
            assert b"# TYPE" in pod.get(monitor["spec"]["endpoints"][0]["path"], authorization=f"Bearer {pod.token}").read()
        # The root file system is read-only: nothing may be written beside the mounts.
        assert not [*pod.elsewhere.iterdir()]
    finally:
        pod.stop()
    assert pod.process.returncode == 0, pod.log()


def test_what_is_rendered_starts_without_object_storage(tmp_path):
    """S3."""
    start_and_ask(Pod(tmp_path, render(VALUES["laptop"])))


@pytest.mark.parametrize("name", ["minimal", "keys", "s3fs"])
def test_what_is_rendered_starts_on_s3(name, tmp_path, weed):
    """S3."""
    # `minimal` lives on what the machine's metadata service gives, and there is none here: it gets keys.
    more = {"store": {"s3": {"endpoint": f"http://{weed.address}", "credentials": {"existingSecret": "tarn-objects"}}}}
    start_and_ask(Pod(tmp_path, render(merged(VALUES[name], more))))


def test_what_is_rendered_for_production_starts_with_tls_and_a_role(tmp_path, weed):
    # Without the issuer, who is not here.
    values = merged(VALUES["production"], {"settings": {"oidc_issuer": "", "oidc_audience": "", "oidc_roles": ""}})
    with TokenService() as service:
        values = merged(values, {"store": {"s3": {"endpoint": f"http://{weed.address}", "stsEndpoint": service.address}}})
        pod = Pod(tmp_path, render(values))
        certificate(tmp_path / "tls")
        (tmp_path / "web-identity" / "token").write_text(service.TOKEN)
        start_and_ask(pod)
        assert service.given
