"""Clients in other languages, with their defaults, against a server over real sockets."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.event_loop import PATIENCE_S
from tests.support.server_on_a_thread import HEAD, ServerOnAThread, StartHere

BODY = {"input": ["four", "x" * 70_000]}
JSON = ("-H", "Content-Type: application/json")

JAVA = """
import java.net.URI;
import java.net.http.*;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;

public class Client {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int length : new int[] {4, 100000, 5}) {
            String body = "{\\"input\\": \\"" + "x".repeat(length) + "\\"}";
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[0] + "/v1/embeddings"))
                .header("Content-Type", "application/json").POST(BodyPublishers.ofString(body)).build();
            HttpResponse<String> response = client.send(request, BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.version());
        }
        HttpRequest head = HttpRequest.newBuilder(URI.create(args[0] + "/health"))
            .method("HEAD", BodyPublishers.noBody()).build();
        System.out.println(client.send(head, BodyHandlers.ofString()).statusCode());
    }
}
"""
NODE = """
const url = process.argv[2];
const post = (body, headers = {}) => fetch(url + '/v1/embeddings', {
  method: 'POST', headers: {'content-type': 'application/json', ...headers}, body});
(async () => {
  for (const length of [4, 100000, 5]) {
    const response = await post(JSON.stringify({input: 'x'.repeat(length)}));
    console.log(response.status, (await response.json()).data.length);
  }
  const compressed = require('zlib').gzipSync(JSON.stringify({input: 'four'}));
  console.log((await post(compressed, {'content-encoding': 'gzip'})).status);
  console.log((await fetch(url + '/health', {method: 'HEAD'})).status);
  const many = await Promise.all([...Array(50).keys()].map(async (n) =>
    (await (await post(JSON.stringify({input: 'x'.repeat(n + 1)}))).json()).data[0].embedding[0] === n + 1));
  console.log(many.every((isRight) => isRight));
})();
"""
GO = """
package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"
)

func main() {
	for _, length := range []int{4, 100000, 5} {
		body := strings.NewReader(`{"input": "` + strings.Repeat("x", length) + `"}`)
		response, err := http.Post(os.Args[1]+"/v1/embeddings", "application/json", body)
		if err != nil {
			panic(err)
		}
		response.Body.Close()
		fmt.Println(response.StatusCode)
	}
	response, err := http.Head(os.Args[1] + "/health")
	if err != nil {
		panic(err)
	}
	fmt.Println(response.StatusCode)
}
"""


@pytest.fixture
def server(start_here: StartHere) -> ServerOnAThread:
    return start_here()


def url_of(server: ServerOnAThread) -> str:
    return "http://{}:{}".format(*server.address)


def run(*command: str, folder: Path | None = None, text: str = "", **variables: str) -> str:
    """Return what a program prints. Skips the test where the program is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    environ = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        cwd=folder,
        env=environ | variables,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl(*arguments: str) -> str:
    return run("curl", "--silent", "--show-error", "--max-time", "30", *arguments)


@pytest.mark.parametrize("how", [(), ("--http2",), ("--http1.0",), ("-H", "Expect: 100-continue"),
                                 ("-H", "Transfer-Encoding: chunked"), ("--path-as-is",)])  # fmt: skip
def test_curl_gets_an_answer(server: ServerOnAThread, how: tuple[str, ...]) -> None:
    """`--http2` offers h2c in an Upgrade header."""
    if how == ("--http2",) and "HTTP2" not in curl("--version"):
        pytest.skip("this curl has no HTTP/2")
    answer = curl(*how, *JSON, "--data", json.dumps(BODY), f"{url_of(server)}//v1/embeddings/")
    assert len(json.loads(answer)["data"]) == 2


def test_curl_asks_for_heads_and_sends_compressed_bodies(server: ServerOnAThread, tmp_path: Path) -> None:
    assert curl("--head", f"{url_of(server)}/health").startswith("HTTP/1.1 200 ")
    path = tmp_path / "body.gz"
    path.write_bytes(gzip.compress(json.dumps(BODY).encode()))
    compressed = ("-H", "Content-Encoding: gzip", "--data-binary", f"@{path}")
    assert len(json.loads(curl(*JSON, *compressed, f"{url_of(server)}/embeddings"))["data"]) == 2


def test_wget_finds_the_server_healthy(server: ServerOnAThread) -> None:
    """Container health checks do so; HEAD was a 405."""
    run("wget", "--quiet", "--spider", "--tries=1", f"{url_of(server)}/health")


def test_java_gets_answers(server: ServerOnAThread, tmp_path: Path) -> None:
    """Its client offers h2c with the first request of each connection, whose body was lost."""
    (tmp_path / "Client.java").write_text(JAVA)
    printed = run("java", "Client.java", url_of(server), folder=tmp_path)
    assert printed.splitlines() == ["200 HTTP_1_1"] * 3 + ["200"]


def test_node_gets_answers(server: ServerOnAThread, tmp_path: Path) -> None:
    (tmp_path / "client.js").write_text(NODE)
    printed = run("node", "client.js", url_of(server), folder=tmp_path)
    assert printed.splitlines() == ["200 1"] * 3 + ["200", "200", "true"]


def test_go_gets_answers(server: ServerOnAThread, tmp_path: Path) -> None:
    (tmp_path / "client.go").write_text(GO)
    cache = str(tmp_path / "cache")
    printed = run("go", "run", "client.go", url_of(server), folder=tmp_path, GOCACHE=cache, GO111MODULE="off")
    assert printed.splitlines() == ["200"] * 4


def test_netcat_that_closes_its_side_gets_an_answer(server: ServerOnAThread) -> None:
    host, port = server.address
    body = json.dumps({"input": "four"})
    head = f"{HEAD.decode()}content-length: {len(body)}\r\n\r\n"
    assert run("nc", "-N", host, str(port), text=head + body).startswith("HTTP/1.1 200 ")
