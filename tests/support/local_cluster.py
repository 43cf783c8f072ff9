"""A Ray cluster of this machine: nodes of one processor each, on the loopback alone, without a dashboard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # the name is older than what it does on Linux as well: the driver's address is the loopback
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # how long a starting node is waited for; 30 s are too little on a busy machine
    "RAY_raylet_start_wait_time_s": "240",
    "RAY_agent_register_timeout_ms": "240000",
}

NODE: dict[str, Any] = {
    "num_cpus": 1,
    "node_ip_address": "127.0.0.1",
    "object_store_memory": 80 << 20,
    "include_log_monitor": False,
}
"""What every node is started with."""


@contextmanager
def local_cluster(nodes: int = 2) -> Iterator[Any]:
    """Start it; nodes may be added and taken away."""
    os.environ |= ENVIRONMENT
    cluster = _head(_ATTEMPTS)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()


_ATTEMPTS = 4
"""How often a head is started. Ray gives each 30 s, which is too little while everything else starts as well."""


def _head(attempts: int) -> Any:
    from ray.cluster_utils import Cluster

    arguments = NODE | {"include_dashboard": False, "no_monitor": True}
    try:
        return Cluster(initialize_head=True, head_node_args=arguments)
    except Exception as error:  # Ray's own, of no class
        if attempts == 1 or "timed out during startup" not in str(error):
            raise
    return _head(attempts - 1)
