"""What is in rendered objects, and a pod without Kubernetes: what a kubelet, a cloud's token service and an authority would do for it."""

import datetime
import http.server
import json
import os
import re
import ssl
import subprocess
import threading
import urllib.parse
import urllib.request

import yaml

import charts
from charts import of_kind
from served import Server, Weed, binary, free_port

SECRETS = {
    "tarn-auth": {"admin-token": "a" * 64, "master-key": "b" * 64},
    "tarn-tls": {"tls.crt": "", "tls.key": "", "ca.crt": ""},
    "tarn-objects": {"access-key-id": Weed.ACCESS_KEY, "secret-access-key": Weed.SECRET_KEY, "session-token": ""},
    "reporting": {"url": "postgres://reporting"},
}
NAME = "rel-duckdb-main"
FIELDS = {"metadata.name": f"{NAME}-0", "metadata.namespace": "data"}


class Strict(yaml.SafeLoader):
    """Takes no key twice, as Kubernetes does not."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"twice in {node.start_mark}: {keys}"
        return super().construct_mapping(node, deep)


def render_for(version, values, name="rel", namespace="data"):
    """All objects as Helm makes them for a cluster of this version, which the wrapper's own `render` can't be told."""
    from helm_python import _native

    options = {"name": name, "namespace": namespace, "kube_version": f"v{version}.0"}
    with charts.chart() as loaded:
        loaded.validate_schema(values)
        manifests = json.loads(_native.call_string("helm_render", loaded._raw(), json.dumps(values), json.dumps(options)))
    texts = [text for path, text in manifests.items() if path.endswith(".yaml")]
    return [item for text in texts for item in yaml.load_all(text, Strict) if item]


def pods(objects):
    """Those of StatefulSets, by the set's name."""
    return {name: item["spec"]["template"] for name, item in of_kind(objects, "StatefulSet").items()}


def all_pods(objects):
    return [*pods(objects).values(), *of_kind(objects, "Pod").values()]


def matches(selector, labels):
    return selector.items() <= labels.items()


def texts(item, key):
    """All values of that key, however deep."""
    if isinstance(item, list):
        return [found for part in item for found in texts(part, key)]
    if not isinstance(item, dict):
        return []
    return [value for name, value in item.items() if name == key] + [found for part in item.values() for found in texts(part, key)]


class Pod(Server):
    """The binary with the arguments, variables and files of a rendered container, its paths and its port moved here."""

    def __init__(self, root, objects):
        super().__init__(root)
        self.objects = objects
        self.container = objects["StatefulSet", NAME]["spec"]["template"]["spec"]["containers"][0]
        assert self.container["command"] == ["tarn"]
        self.variables = charts.environment(self.container, SECRETS, FIELDS)
        self.token = self.variables["TARN_ADMIN_TOKEN"]
        port = free_port()
        self.address = f"localhost:{port}"
        self.scheme = self.container["readinessProbe"]["httpGet"]["scheme"].lower()
        self.moved = {"0.0.0.0:8642": f"127.0.0.1:{port}", f"{NAME}-0.rel-duckdb-nodes.data.svc.cluster.local:8642": self.address}
        for mount in self.container["volumeMounts"]:
            self.moved[mount["mountPath"]] = str(root / mount["name"] / mount.get("subPath", ""))
            (root / mount["name"]).mkdir()
        (root / "settings" / "tarn.toml").write_text(objects["ConfigMap", "rel-duckdb"]["data"]["tarn.toml"])
        self.elsewhere = root / "elsewhere"
        self.elsewhere.mkdir()

    def here(self, text):
        """In one pass, the longest first: a place of ours may itself begin like one of the container's (`/tmp`)."""
        there = "|".join(map(re.escape, sorted(self.moved, key=len, reverse=True)))
        return re.sub(there, lambda found: self.moved[found[0]], text)

    def start(self):
        variables = {"PATH": os.environ["PATH"], "HOME": str(self.elsewhere)} | {name: self.here(value) for name, value in self.variables.items()}
        command = [binary(), *map(self.here, self.container["args"])]
        with open(self.root / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.elsewhere, env=variables)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            self._wait_for(probe, lambda: self.get(self.container[probe]["httpGet"]["path"]).status)
        return self

    def get(self, path, **headers):
        context = ssl.create_default_context(cafile=self.root / "tls" / "ca.crt") if self.scheme == "https" else None
        return urllib.request.urlopen(urllib.request.Request(f"{self.scheme}://{self.address}{path}", headers=headers), timeout=5, context=context)

    def helm_test(self):
        """The command of `helm test`, at the Service's name."""
        container = self.objects["Pod", "rel-duckdb-test"]["spec"]["containers"][0]
        assert container["command"] == ["tarn"]
        variables = {name: self.here(value) for name, value in charts.environment(container, SECRETS, FIELDS).items()}
        variables["TARN_DSN"] = variables["TARN_DSN"].replace("rel-duckdb.data.svc:8642", self.address)
        return subprocess.run([binary(), *container["args"]], capture_output=True, text=True, cwd=self.elsewhere, env=variables, timeout=60)


class TokenService:
    """Gives SeaweedFS's keys to whoever shows the token of the pod's service account for the role."""

    TOKEN, ROLE = "token-of-the-service-account", "arn:aws:iam::123456789012:role/tarn"

    def __enter__(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["content-length"])).decode()))
                known = (form["Action"], form.get("WebIdentityToken"), form["RoleArn"]) == ("AssumeRoleWithWebIdentity", service.TOKEN, service.ROLE)
                service.given += known
                until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
                # An empty session token: SeaweedFS knows none for the keys of its file.
                answer = f"<AccessKeyId>{Weed.ACCESS_KEY}</AccessKeyId><SecretAccessKey>{Weed.SECRET_KEY}</SecretAccessKey><SessionToken></SessionToken>"
                body = f"<Credentials>{answer}<Expiration>{until.isoformat()}</Expiration></Credentials>" if known else "<Code>AccessDenied</Code>"
                self.send_response(200 if known else 403)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        service, self.given = self, 0
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def certificate(directory):
    """An authority, and a certificate of its for `localhost`, by the names in a secret of cert-manager's."""
    subject = ["-subj", "/CN=tarn", "-days", "2", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    run = lambda *words: subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=directory)  # noqa: E731
    run("req", "-x509", *subject, "-keyout", "ca.key", "-out", "ca.crt")
    run("req", *subject, "-keyout", "tls.key", "-out", "request.pem")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    run("x509", "-req", "-in", "request.pem", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "tls.crt")
