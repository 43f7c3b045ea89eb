"""Run nginx and HAProxy in front of a server, on Unix sockets."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.event_loop import PATIENCE_S

# As the documentation of nginx says for WebSockets, with one connection to the server, which all share.
NGINX = """
daemon off;
master_process off;
error_log stderr;
pid {folder}/pid;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/a;
  proxy_temp_path {folder}/b;
  fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d;
  scgi_temp_path {folder}/e;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream server {{ server {address}; keepalive 1; }}
  server {{
    listen unix:{folder}/socket;
    client_max_body_size 10m;
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_set_header Host $host;
    proxy_request_buffering off;
    location /metrics {{ return 403; }}
    location /inf/api/ {{ proxy_pass http://server/; }}
    location / {{ proxy_pass http://server; }}
  }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend clients
  bind unix@{folder}/socket
  http-request deny deny_status 403 if {{ path_beg /metrics }}
  http-request replace-path /inf/api/(.*) /\\1
  default_backend servers
backend servers
  server server {address} pool-max-conn 1
"""


@contextlib.contextmanager
def run_proxy(name: str, address: tuple[str, int]) -> Iterator[str]:
    """Start `nginx` or `haproxy`; yield the path of the socket at which it listens."""
    program = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin")
    if program is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {name})")
    with tempfile.TemporaryDirectory() as folder:
        template = NGINX if name == "nginx" else HAPROXY
        config = Path(folder) / "config"
        config.write_text(template.format(folder=folder, address="{}:{}".format(*address)))
        arguments = ["-c", str(config)] if name == "nginx" else ["-db", "-f", str(config)]
        with subprocess.Popen([program, *arguments], stderr=subprocess.PIPE, text=True) as process:
            try:
                _wait_for(f"{folder}/socket", process)
                yield f"{folder}/socket"
            finally:
                process.kill()


def _wait_for(path: str, process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError):
            connect_to(path).close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"the proxy does not listen: {process.stderr and process.stderr.read()}")


def connect_to(path: str, *parts: bytes) -> socket.socket:
    """Connect to a Unix socket and send bytes."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE_S)
    try:
        client.connect(path)
    except OSError:
        client.close()
        raise
    for part in parts:
        client.sendall(part)
    return client
