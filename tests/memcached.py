"""A real Memcached, where Debian's package is installed."""

import shutil
import socket
import subprocess
import time

MEMCACHED = shutil.which("memcached")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Memcached:
    """A real one, that may be stopped and started again, empty."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [str(MEMCACHED), "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-u", "nobody"]
        )
        for _ in range(100):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("memcached does not listen")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
