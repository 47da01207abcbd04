"""A coordinator begins where no other is, neither in its folder nor at its port."""

import socket

import pytest

from lepton_common.errors import CoordinatorRunning, ServerFailed
from lepton_server.gateway.alone import check_port, only_coordinator


def test_a_folder_has_one_coordinator_at_a_time(tmp_path):
    with only_coordinator(tmp_path):
        with pytest.raises(CoordinatorRunning, match=tmp_path.name), only_coordinator(tmp_path):
            pass
        with pytest.raises(CoordinatorRunning), only_coordinator(tmp_path):  # still held
            pass
    with only_coordinator(tmp_path):
        pass


def test_a_port_that_somebody_listens_at_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerFailed, match=f"port {port}"):
            check_port(port, leaving_s=0.0)
    check_port(port, leaving_s=0.0)
