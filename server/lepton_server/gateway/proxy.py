"""The one public port: nginx, which lets in whom the roster names, to the paths that they need.

Flower has no client certificates, and its control and runtime APIs are open to whoever reaches
them; here nobody does.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lepton_common.durable import write_atomic
from lepton_common.errors import ServerFailed
from lepton_common.flower.bulk_transport import BODIES, BODY_HEADER, OBJECTS
from lepton_common.identity.certificates import Leaf, check_authority
from lepton_common.identity.roster import Member, Person, Roster
from lepton_server.gateway.parts import Part, start_part
from lepton_server.gateway.serving import SOCKET

SUPERLINK_NAME = "superlink.lepton.internal"

_CONFIG = """# Made by `lepton server start` from version {version} of the roster.
{user}daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
worker_processes auto;
# So long may calls go on that began before a newer roster.
worker_shutdown_timeout 30s;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  server_tokens off;
  client_body_temp_path {folder}/{bodies};
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/unused;
  uwsgi_temp_path {folder}/unused;
  scgi_temp_path {folder}/unused;
  # An object of Flower's is 5 MB at most.
  client_max_body_size 16m;
  client_header_timeout 20s;
  client_body_timeout 60s;
  keepalive_timeout 120s;
  map_hash_bucket_size 256;
  # Who is at the other end: the issuer of the certificate, which is a key of the roster.
  map $ssl_client_i_dn $lepton_site {{
    default "";
{sites}
  }}
  map $ssl_client_i_dn $lepton_person {{
    default "";
{people}
  }}
  # So that nobody takes all the calls that the control service answers at once.
  limit_conn_zone $lepton_site zone=sites:1m;
  limit_conn_zone $lepton_person zone=people:1m;
  limit_conn_status 429;
  upstream superlink {{ server {superlink}; keepalive 32; }}
  server {{
    listen {port} ssl http2;
    ssl_certificate {folder}/tls.crt;
    ssl_certificate_key {folder}/tls.key;
    ssl_client_certificate {folder}/clients.crt;
    ssl_verify_client on;
    ssl_verify_depth 1;
    ssl_protocols TLSv1.3;
    ssl_session_tickets off;
    location /v1/fleet/ {{
      if ($lepton_site = "") {{ return 403; }}
      # Sites are let in by the federation, not by themselves.
      location ~ ^/v1/fleet/(un)?register-node$ {{ return 403; }}
      # An object of a model goes to a file, of which the SuperLink is told.
      location = /v1/fleet/push-object {{
        if ($lepton_site = "") {{ return 403; }}
        limit_conn sites 16;
        client_body_in_file_only clean;
        proxy_pass https://superlink;
        proxy_request_buffering on;
        proxy_pass_request_body off;
        proxy_set_header Connection "";
        proxy_set_header Content-Length "";
        proxy_set_header X-Lepton-Site $lepton_site;
        proxy_set_header {body_header} $request_body_file;
      }}
      proxy_pass https://superlink;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header X-Lepton-Site $lepton_site;
      proxy_set_header {body_header} "";
      proxy_ssl_trusted_certificate {folder}/own.crt;
      proxy_ssl_verify on;
      proxy_ssl_name {superlink_name};
      proxy_read_timeout 120s;
      proxy_request_buffering off;
      proxy_buffering off;
    }}
    # Where the SuperLink points to in place of an answer with a large object.
    location /{objects}/ {{
      internal;
      root {folder};
    }}
    location /lepton.control.v1.Control/ {{
      if ($lepton_person = "") {{ return 403; }}
      limit_conn people 32;
      grpc_set_header x-lepton-person $lepton_person;
      grpc_set_header x-lepton-site "";
      grpc_pass grpc://unix:{folder}/{socket};
      grpc_read_timeout 1d;
    }}
    location /lepton.control.v1.Sites/ {{
      if ($lepton_site = "") {{ return 403; }}
      limit_conn sites 16;
      grpc_set_header x-lepton-site $lepton_site;
      grpc_set_header x-lepton-person "";
      grpc_pass grpc://unix:{folder}/{socket};
      # Who attends hears something every 20 seconds.
      grpc_read_timeout 120s;
    }}
    location / {{ return 404; }}
  }}
}}
"""


def configure(folder: Path, roster: Roster, superlink: str, leaf: Leaf) -> Path:
    """Writes what nginx needs into a folder of its own, and returns its configuration.

    Args:
        folder: of the proxy; holds the server's TLS key, so only its owner may read it.
        roster: whom to let in.
        superlink: host:port of the SuperLink.
        leaf: the server's certificate.

    Raises:
        ServerFailed: the roster names no coordinator.
        CertificateInvalid: a certificate in it is not that of its name and key.
    """
    coordinator = roster.coordinator
    if coordinator is None:
        raise ServerFailed("The roster names no coordinator; have one proposed and signed.")
    authorities = [entry.authority for entry in admitted(roster)]
    folder.mkdir(mode=0o700, exist_ok=True)
    write_atomic(folder / "clients.crt", "".join(authorities).encode(), mode=0o600)
    write_atomic(folder / "own.crt", coordinator.authority.encode(), mode=0o600)
    write_atomic(folder / "tls.crt", leaf.certificate, mode=0o600)
    write_atomic(folder / "tls.key", leaf.private_key, mode=0o600)
    path = folder / "nginx.conf"
    text = _CONFIG.format(
        version=roster.version,
        # Started by root, nginx would become another user, who may not read this folder.
        user="user root;\n" if os.geteuid() == 0 else "",
        folder=folder.resolve(),
        sites=_names(member.name for member in roster.members),
        people=_names(person.name for person in roster.people),
        superlink=superlink,
        superlink_name=SUPERLINK_NAME,
        port=coordinator.port,
        socket=SOCKET,
        objects=OBJECTS,
        bodies=BODIES,
        body_header=BODY_HEADER,
    )
    write_atomic(path, text.encode(), mode=0o600)
    return path


def clear_bodies(folder: Path, older_than_s: float) -> None:
    """Removes files of requests that ended with whoever carried them.

    Args:
        folder: of the proxy.
        older_than_s: seconds since they were written; younger ones may be of requests under way.
    """
    before = time.time() - older_than_s
    for path in (folder / BODIES).glob("*"):
        with suppress(OSError):
            if path.stat().st_mtime <= before:
                path.unlink()


def admitted(roster: Roster) -> list[Member | Person]:
    """Returns whom a roster lets in.

    Raises:
        CertificateInvalid: a certificate in it is not that of its name and key.
    """
    entries: list[Member | Person] = [*roster.members, *roster.people]
    for entry in entries:
        check_authority(entry.authority, entry.name, entry.public_key)
    return entries


def start_proxy(config: Path) -> Part:
    """Starts nginx.

    Raises:
        ServerFailed: it is not installed, or refuses its configuration.
    """
    return start_part(_checked(config), at_death="TERM")


def reload_proxy(part: Part, config: Path) -> None:
    """Has nginx take a changed configuration, without leaving its port.

    Raises:
        ServerFailed: it refuses the configuration.
    """
    _checked(config)
    part.send_signal(signal.SIGHUP)


def _checked(config: Path) -> list[str]:
    """Returns the command that starts nginx, which takes the configuration."""
    nginx = shutil.which("nginx", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin")
    if nginx is None:
        raise ServerFailed("There is no nginx here; install it (Debian: apt-get install nginx).")
    words = [nginx, "-p", str(config.parent), "-c", str(config), "-e", "stderr"]
    tried = subprocess.run([*words, "-t", "-q"], capture_output=True, text=True, check=False)  # noqa: S603
    if tried.returncode:
        raise ServerFailed(f"nginx refuses its configuration: {tried.stderr.strip()[-500:]}")
    return words


def _names(names: Iterable[str]) -> str:
    return "\n".join(f'    "CN={name}" "{name}";' for name in names)
