"""MLflow behind TLS, as companies run it: what MLflow's own client reaches, a run reaches."""

import base64
import contextlib
import datetime
import http.client
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dinomaly_hd.errors import TrackingError
from dinomaly_hd.experiments import doctor
from dinomaly_hd.runs import store
from dinomaly_hd.runs.journal import Outbox
from dinomaly_hd.runs.store import client_for, server_answers
from dinomaly_hd.runs.tracker import Tracker
from tests.work import NOWHERE, PATIENCE_S, mlflow_server, returned

OF_THE_HOUSE = "its certificate"
"""Stands for the path of the proxy's certificate, which no system trusts."""
TRUSTED = {"MLFLOW_TRACKING_SERVER_CERT_PATH": OF_THE_HOUSE}
PASSWORD = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "secret"}
BASIC = f"Basic {base64.b64encode(b'ann:secret').decode()}"
WAYS: dict[str, tuple[dict[str, str], str, str]] = {
    "certificate": (TRUSTED, "", ""),
    "bundle": ({"REQUESTS_CA_BUNDLE": OF_THE_HOUSE}, "", ""),
    "unverified": ({"MLFLOW_TRACKING_INSECURE_TLS": "true"}, "", ""),
    "password": ({**TRUSTED, **PASSWORD}, "", BASIC),
    "address": (TRUSTED, "", BASIC),
    "token": ({**TRUSTED, "MLFLOW_TRACKING_TOKEN": "t0ken"}, "", "Bearer t0ken"),
    "prefix": (TRUSTED, "/team/mlflow", ""),
}
"""What the environment says, the proxy's path, and the authorization that it asks for."""


class Secured(NamedTuple):
    """An MLflow server on this machine, and the certificate (with its key) of the proxies before it."""

    port: int
    certificate: Path


class Proxy(http.server.BaseHTTPRequestHandler):
    """Hands requests on from below its prefix; other paths are nobody's, which HAProxy answers with 503."""

    protocol_version = "HTTP/1.1"
    backend: ClassVar[int]
    prefix: ClassVar[str]
    authorization: ClassVar[str]

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.path.startswith(f"{self.prefix}/"):
            self._answer(503, b"no server is available to handle this request")
        elif self.authorization and self.headers.get("Authorization") != self.authorization:
            self._answer(401, b"who are you?")
        else:
            backend = http.client.HTTPConnection("127.0.0.1", self.backend, timeout=PATIENCE_S)
            own = ("host", "content-length", "connection")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in own}
            try:
                backend.request(self.command, self.path.removeprefix(self.prefix), body, headers)
                answer = backend.getresponse()
                self._answer(answer.status, answer.read(), answer.headers["Content-Type"] or "text/plain")
            except OSError:
                self._answer(502, b"bad gateway")
            finally:
                backend.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _hand_on

    def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:  # a client that does not trust the certificate hangs up
        pass


def write_certificate(path: Path) -> Path:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the house")])
    places = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - day).not_valid_after(now + day)
    builder = builder.add_extension(places, critical=False)
    signed = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        key, hashes.SHA256()
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + private)
    return path


@contextlib.contextmanager
def proxy(secured: Secured, *, prefix: str = "", authorization: str = "", who: str = "") -> Iterator[str]:
    """Yield the address of a TLS proxy before the server, with ``who`` asks in it."""
    facts = {"backend": secured.port, "prefix": prefix, "authorization": authorization}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secured.certificate)
    with Server(("127.0.0.1", 0), type("Before", (Proxy,), facts)) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://{who}127.0.0.1:{server.server_port}{prefix}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Secured]:
    root = tmp_path_factory.mktemp("server")
    (root / "mlflow.db").write_bytes(empty_store.read_bytes())
    words = ["server", "--workers", "1", "--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}"]
    words += ["--artifacts-destination", str(root / "artifacts")]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with mlflow_server(*words, answers="/health", log=root / "log.txt", **settings) as port:
        yield Secured(port, write_certificate(root / "certificate.pem"))


def surroundings(monkeypatch: pytest.MonkeyPatch, secured: Secured, told: dict[str, str]) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value.replace(OF_THE_HOUSE, str(secured.certificate)))


@pytest.mark.parametrize("way", WAYS)
def test_a_run_arrives_whole_and_doctor_finds_the_server(
    way: str,
    secured: Secured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told, prefix, authorization = WAYS[way]
    surroundings(monkeypatch, secured, told)
    monkeypatch.setattr("dinomaly_hd.runs.tracker.GRACE_S", PATIENCE_S)
    monkeypatch.setattr(doctor, "ANSWER_S", PATIENCE_S)
    store._say_once_that_nothing_is_verified.cache_clear()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    who = "ann:secret@" if way == "address" else ""
    with proxy(secured, prefix=prefix, authorization=authorization, who=who) as uri:
        shown = uri.replace("secret", "***")
        outbox = Outbox(tmp_path / "run")
        outbox.open_run(experiment=way, run_name=way, tags={}, parent_run_id=None)
        run = Tracker(outbox, uri=uri, root=tmp_path, system_metrics=False)
        run_id = str(run.start(timeout_s=PATIENCE_S))
        run.metrics({"train/loss": 0.5}, step=1)
        run.artifact(tmp_path / "run" / "results.json")
        assert run.close("FINISHED", timeout_s=PATIENCE_S), "it lacks part"
        assert all(page.startswith(f"{shown}/#/experiments/") for page in run.pages() or [""])
        ((state, _, text),) = doctor._store(uri, experiment=way, root=tmp_path)
        assert (state, text) == ("ok", f"{shown} answers, experiment {way!r}")
    there = client_for(f"http://127.0.0.1:{secured.port}")
    found = there.get_run(run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"train/loss": 0.5})
    assert [item.path for item in there.list_artifacts(run_id)] == ["results.json"]
    # InsecureRequestWarning itself would end the test: warnings are errors here.
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (way == "unverified"), warnings
    assert all("MLFLOW_TRACKING_INSECURE_TLS is set" in line for line in warnings)


def test_what_mlflows_client_does_not_reach_is_known_without_waiting(
    secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(uri: str) -> bool:
        return returned(lambda: server_answers(uri, timeout_s=1e5))

    nobody = secured._replace(port=9)
    with proxy(secured) as uri, proxy(nobody) as gone, proxy(secured, authorization=BASIC) as closed:
        assert not answers(uri), "nothing says that its certificate is to be trusted"
        monkeypatch.setattr(doctor, "ANSWER_S", PATIENCE_S)
        with pytest.raises(
            TrackingError, match=r"no server answers.*self-signed.*MLFLOW_TRACKING_SERVER_CERT_PATH"
        ):
            list(doctor._store(uri, experiment="contract", root=tmp_path))
        surroundings(monkeypatch, secured, TRUSTED)
        assert answers(uri)
        assert not answers(gone), "a proxy before a dead server is no server"
        assert answers(closed), "a refusal is an answer"
        with pytest.raises(TrackingError, match="401"):
            list(doctor._store(closed, experiment="contract", root=tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    assert not server_answers(NOWHERE, timeout_s=0.2), "retries that a user set are not waited for"
