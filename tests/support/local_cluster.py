"""A Ray cluster of this machine: nodes of one processor each, on the loopback alone, without a dashboard."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # the name is older than what it does on Linux as well: the driver's address is the loopback
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}

_HELPERS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
"""Ports of a node's helpers. A node waits 15 s for those that are not given, which a busy machine may exceed."""


def node_arguments() -> dict[str, Any]:
    """What every node is started with."""
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in _HELPERS]
        ports = dict(zip(_HELPERS, (one.getsockname()[1] for one in bound), strict=True))
    return {
        "num_cpus": 1,
        "node_ip_address": "127.0.0.1",
        "object_store_memory": 80 << 20,
        "include_log_monitor": False,
    } | ports


@contextmanager
def local_cluster(nodes: int = 2) -> Iterator[Any]:
    """Start it; nodes may be added and taken away."""
    os.environ |= ENVIRONMENT
    cluster = _head(_ATTEMPTS)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**node_arguments())
        yield cluster
    finally:
        cluster.shutdown()


_ATTEMPTS = 4
"""How often a head is started. Ray gives each 30 s, which is too little while everything else starts as well."""


def _head(attempts: int) -> Any:
    from ray.cluster_utils import Cluster

    arguments = node_arguments() | {"include_dashboard": False, "no_monitor": True}
    try:
        return Cluster(initialize_head=True, head_node_args=arguments)
    except Exception as error:  # Ray's own, of no class
        if attempts == 1 or "timed out during startup" not in str(error):
            raise
    return _head(attempts - 1)
