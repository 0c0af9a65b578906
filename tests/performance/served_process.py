"""A process of the service at a port that others may have, too: `python -m tests.performance.served_process PORT`.

The kernel shares the connections out between the processes of a port. With `SIMULATED_DEVICES` there are so many
devices as `tests.performance.drawing` has them: what a request costs the host (HTTP, BentoML, queue, encoding, storage)
is real, and what a process bears is seen where no machine with so many GPUs is to be had. Without it the service is as
`SANA_DEVICES` and `SANA_MODELS` say.
"""

from __future__ import annotations

import os
import socket
import sys
from unittest.mock import patch

import uvicorn

from sana_service import runtime
from service import Sana
from tests.performance.drawing import DrawingDevice

COUNT = "SIMULATED_DEVICES"


def main() -> None:
    if COUNT in os.environ:
        names = [f"simulated:{number}" for number in range(int(os.environ[COUNT]))]
        patch.object(runtime, "resolve_devices", return_value=names).start()
        patch.object(runtime, "ServiceDevice", DrawingDevice).start()
    app = Sana.to_asgi()  # type: ignore[attr-defined]
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", int(sys.argv[1])))
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
