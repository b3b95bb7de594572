"""What operators set and see: quotas, TLS, metrics, health and the status page."""

import base64
import datetime
import ipaddress
import json
import re
import ssl
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from echo_jobs import SECONDS, request
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from services import EchoService, counts, create, lines, wait_for, wait_until, write_keys

from sglang.batch.endpoints import ENDPOINTS
from sglang.batch.serve.api import make_app
from sglang.batch.serve.speeds import HEIGHT, WIDTH, Speeds, Uses
from sglang.batch.serve.status_page import render
from sglang.batch.serve.sums import Totals


def metrics(service: EchoService) -> dict[tuple[str, str], float]:
    """Samples by name and only label."""
    text = httpx.get(root(service) + "/metrics").text
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def root(service: EchoService) -> str:
    return service.url.removesuffix("/v1")


def test_metrics_count_lines_tokens_and_errors_and_only_grow(service: EchoService) -> None:
    client = service.start()
    batch = wait_for(client, create(client, lines(20) + request("bad", "refuse it")).id)
    found = metrics(service)
    assert found["sglang_batch_batches", "completed"] == 1
    assert found["sglang_batch_lines_total", "answered"] == 20
    assert found["sglang_batch_lines_total", "failed"] == 1
    assert found["sglang_batch_tokens_total", "prompt"] == 200
    assert found["sglang_batch_tokens_total", "cached"] == 80
    assert sum(value for (name, _), value in found.items() if name == "sglang_batch_errors_total") == 1
    assert found["sglang_batch_engine_up", ""] == 1
    assert found["sglang_batch_stored_bytes", ""] > 1000
    assert batch.id not in httpx.get(root(service) + "/metrics").text
    dashboard = (Path(__file__).parents[3] / "deploy" / "grafana-dashboard.json").read_text()
    assert set(re.findall(r"sglang_batch_\w+", dashboard)) == {name for name, _ in found}
    service.terminate()
    service.start()
    again = metrics(service)
    grown = [key for key in found if key[0].endswith("_total") and key[0] != "sglang_batch_errors_total"]
    assert all(again[key] >= found[key] for key in grown)


def test_a_running_batch_counts_as_it_goes(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.2", "--pool", "5")
    made = create(client, lines(100))
    wait_until(client, made.id, lambda batch: counts(batch)[1] > 5)
    found = metrics(service)
    assert 5 < found["sglang_batch_lines_total", "answered"] < 100
    assert found["sglang_batch_batches", "in_progress"] == 1


def test_health_is_that_of_the_engine(service: EchoService) -> None:
    client = service.start()
    wait_for(client, create(client, lines(1)).id)
    assert httpx.get(root(service) + "/health").status_code == 200
    starting: Any = SimpleNamespace(engine_up=lambda: False)
    assert TestClient(make_app(starting)).get("/health").status_code == 503


def test_the_page_shows_a_key_its_own_batches_and_needs_no_script(
    service: EchoService, tmp_path: Path
) -> None:
    service.start("--api-keys", str(write_keys(tmp_path, "mine", "yours")))
    client = service.client("mine")
    batch = wait_for(client, create(client, lines(3, "<b>secret</b>")).id)
    page = httpx.get(root(service) + "/", auth=("anybody", "mine"))
    assert page.status_code == 200
    assert batch.id in page.text
    assert "completed" in page.text
    assert "<script" not in page.text
    assert "secret" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert batch.id not in httpx.get(root(service) + "/", auth=("anybody", "yours")).text
    refused = httpx.get(root(service) + "/", auth=("anybody", "wrong"))
    assert (refused.status_code, refused.headers["www-authenticate"][:5]) == (401, "Basic")
    broken = httpx.get(root(service) + "/", headers={"Authorization": "Basic nonsense"})
    assert broken.status_code == 401
    encoded = base64.b64encode(b"no colon").decode()
    assert httpx.get(root(service) + "/", headers={"Authorization": f"Basic {encoded}"}).status_code == 401


def test_speeds_are_differences_and_the_newest_is_at_the_right() -> None:
    speeds = Speeds()
    for second, tokens in ((0.0, 0), (10.0, 1000), (20.0, 1500)):
        speeds.note(second, Totals(prompt_tokens=tokens, completion_tokens=tokens // 10))
    assert list(speeds.samples) == [(100.0, 10.0), (50.0, 5.0)]
    points = [tuple(map(float, point.split(","))) for point in speeds.line(0).split()]
    assert points[-1] == (WIDTH, HEIGHT / 2)
    assert points[0][1] == 0.0


def state(compute: float, memory: float) -> Any:
    outlook = {"compute": compute, "memory": memory}
    return {"hardware": "<gpu>", "outlook": outlook, "sharing_achieved": 0.25}


def test_uses_are_shares_of_time_and_a_new_engine_counts_from_nothing() -> None:
    uses = Uses()
    for second, seen in ((0.0, state(5, 1)), (10.0, state(10, 2)), (20.0, state(0, 0)), (30.0, state(1, 4))):
        uses.note(second, seen)
    assert list(uses.samples) == [(0.5, 0.1), (0.0, 0.0), (0.1, 0.4)]
    uses.note(40.0, None)
    uses.note(50.0, state(9, 9))
    uses.note(60.0, {**state(0, 0), "outlook": None})
    assert (len(uses.samples), uses.top, uses.sharing) == (3, 0.5, 0.25)
    assert uses.line(0).split()[0].endswith(",0.0")


def test_the_page_draws_what_the_engine_uses() -> None:
    uses = Uses()
    uses.note(0.0, state(0, 0))
    uses.note(10.0, state(4, 2))
    service: Any = SimpleNamespace(
        batches=SimpleNamespace(tallies=dict),
        store=SimpleNamespace(list_batches=lambda owner, **options: []),
        engine_up=lambda: True,
        models=("m",),
        speeds=Speeds(),
        uses=uses,
    )
    page = render(service, "")
    assert page.count("<polyline") == 2
    assert "up to 40% of what &lt;gpu&gt; can" in " ".join(page.split())
    assert "25% of the prompt tokens" in page


def test_one_batch_too_many_is_refused_until_another_has_ended(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.3", "--pool", "2", "--max-open-batches", "1")
    first = create(client, lines(60))
    with pytest.raises(openai.RateLimitError) as refused:
        create(client, lines(1, name="other"))
    assert int(refused.value.response.headers["retry-after"]) > 0
    assert client.batches.create(
        input_file_id=first.input_file_id, endpoint="/v1/completions", completion_window="24h"
    ).id == first.id, "the same request again is no further batch"  # fmt: skip
    client.batches.cancel(first.id)
    wait_for(client, first.id)
    assert wait_for(client, create(client, lines(1, name="other")).id).status == "completed"


def test_a_key_stores_no_more_than_it_may(service: EchoService) -> None:
    client = service.start("--max-stored-mb", "0.01")
    client.files.create(file=("a.jsonl", b"x" * 9_000), purpose="batch")
    for size in (2_000, 500_000):
        with pytest.raises(openai.APIStatusError) as refused:
            client.files.create(file=("b.jsonl", b"x" * size), purpose="batch")
        assert refused.value.status_code == 413
    assert len(client.files.list().data) == 1
    client.files.delete(client.files.list().data[0].id)
    client.files.create(file=("b.jsonl", b"x" * 2_000), purpose="batch")


def test_a_day_has_so_many_tokens(service: EchoService) -> None:
    client = service.start("--max-daily-tokens", "100")
    batch = wait_for(client, create(client, lines(20)).id)
    assert batch.usage is not None
    assert batch.usage.total_tokens >= 100, "begun while some were left, it runs to its end"
    with pytest.raises(openai.RateLimitError) as refused:
        create(client, lines(1, name="other"))
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 86_400


def write_certificate(certificate: Path, key: Path) -> None:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, secret.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1)).add_extension(address, critical=False)
    certificate.write_bytes(builder.sign(secret, hashes.SHA256()).public_bytes(Encoding.PEM))
    key.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_tls_is_served_with_a_certificate(service: EchoService, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_certificate(certificate, key)
    service.start("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key))
    assert re.match(r"https://127\.0\.0\.1:\d+/v1", service.url)
    trusting = ssl.create_default_context(cafile=str(certificate))
    assert httpx.get(service.url + "/models", verify=trusting, timeout=SECONDS).status_code == 200


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--ssl-certfile", "a.pem"], "go together"),
        (["--ssl-certfile", "a.pem", "--ssl-keyfile", "b.pem"], "a.pem"),
        (["--max-open-batches", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_is_one_line(flags: list[str], why: str, service: EchoService, tmp_path: Path) -> None:
    done = subprocess.run(service.command(*flags), capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, why in done.stderr) == (2, True), done.stderr


def test_the_openapi_document_names_every_status_that_comes(service: EchoService) -> None:
    service.start()
    paths = httpx.get(root(service) + "/openapi.json").json()["paths"]
    assert not {"/", "/metrics", "/health"} & paths.keys()
    statuses = {"200", "400", "401", "404", "413", "429", "507"}
    for path, operations in paths.items():
        more = {"500", "502", "503"} if path in ENDPOINTS else set()
        for operation in operations.values():
            assert operation["responses"].keys() == statuses | more
    form = paths["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "purpose"]
    reply = httpx.get(service.url + "/files/none")
    assert reply.status_code == 404
    assert reply.json()["error"].keys() == {"message", "type", "param", "code"}


def test_keys_that_change_count_without_a_restart(service: EchoService, tmp_path: Path) -> None:
    path = write_keys(tmp_path, "old")
    service.start("--api-keys", str(path))

    def until(key: str, status: int) -> None:
        deadline = time.monotonic() + SECONDS
        headers = {"Authorization": f"Bearer {key}"}
        while httpx.get(f"{service.url}/files", headers=headers).status_code != status:
            assert time.monotonic() < deadline, service.said.read_text()
            time.sleep(0.1)

    until("old", 200)
    write_keys(tmp_path, "new", "newer")
    until("new", 200)
    until("old", 401)
    path.write_text("no hash, perhaps a key")
    deadline = time.monotonic() + SECONDS
    while "the keys stay as they were" not in service.said.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    until("newer", 200)
    assert "perhaps a key" not in service.said.read_text()


def test_told_as_json_each_request_has_a_line_with_the_id_of_its_reply(service: EchoService) -> None:
    client = service.start("--log-format", "json")
    batch = wait_for(client, create(client, lines(2, "a secret prompt")).id)
    reply = httpx.get(f"{service.url}/batches/{batch.id}?after=secret")
    assert httpx.get(f"{service.url}/nowhere/secret").status_code == 404
    service.terminate()
    told = [json.loads(line) for line in service.said.read_text().splitlines()]
    (mine,) = [line for line in told if line.get("request") == reply.headers["x-request-id"]]
    assert (mine["method"], mine["route"], mine["status"]) == ("GET", "/v1/batches/{id}", 200)
    assert any(line.get("route") is None and line.get("status") == 404 for line in told)
    assert any(line["message"].startswith("listening on") for line in told)
    assert "secret" not in service.said.read_text()
