"""A container as this engine wants it from Docker: with nothing that a function has no use for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker.types

from function_service.engines.docker.daemon import LABEL

# Of its start; then it goes to us. What is said to its process 1 and by it is no affair of any log
_LOG = {"Type": "json-file", "Config": {"max-size": "64k", "max-file": "1"}}
_NO_LOG: dict[str, Any] = {"Type": "none", "Config": {}}


Show = tuple[Path, str, bool]
"""A folder or file of the host, where it is seen, and whether it can be written there."""


@dataclass(frozen=True)
class Plan:
    """What tells one container from the others."""

    name: str
    label: str  # of the data folder
    image: str
    command: tuple[str, ...]  # its process 1
    environment: dict[str, str | None]  # of that; None takes away what the image sets
    user: int
    memory: int  # bytes
    processes: int
    shown: tuple[Show, ...]
    tmp: int  # bytes
    runtime: str  # an OCI runtime that dockerd knows; empty for its usual one
    spoken_to: bool = False  # by its standard input


def create(client: Any, plan: Plan) -> None:
    """Create it. Raises docker.errors.DockerException."""
    host = client.create_host_config(
        mounts=[
            docker.types.Mount(at, str(of), type="bind", read_only=not writable)
            for of, at, writable in plan.shown
        ],
        tmpfs={"/tmp": f"rw,exec,nosuid,nodev,size={plan.tmp},mode=1777"},  # noqa: S108  the container's own
        read_only=True,
        network_mode="none",
        ipc_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        mem_limit=plan.memory,
        memswap_limit=plan.memory,  # with the swap: none
        pids_limit=plan.processes,
        ulimits=[
            docker.types.Ulimit(name="nofile", soft=1024, hard=4096),
            docker.types.Ulimit(name="core", soft=0, hard=0),
        ],
        log_config=_NO_LOG if plan.spoken_to else _LOG,
        runtime=plan.runtime or None,
    )
    client.create_container(
        plan.image,
        list(plan.command[1:]),
        entrypoint=[plan.command[0]],  # else that of the image comes first
        name=plan.name,
        hostname="function",
        user=f"{plan.user}:{plan.user}",
        working_dir="/",
        stdin_open=plan.spoken_to,
        stop_signal="SIGKILL",  # so that the end of dockerd itself takes no time
        labels={LABEL: plan.label},
        environment=plan.environment,
        use_config_proxy=False,  # what root has configured for its own containers may have a password in it
        healthcheck={"Test": ["NONE"]},  # what the image says there would run beside functions
        host_config=host,
    )
