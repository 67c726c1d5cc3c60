"""An echo with processes below it, as engines have them; ``extra["below"]`` says which and what becomes of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

from prime_megatron.rollout.process.driver import DriverSettings
from tests.support.echo_driver import EchoDriver

FOR_EVER_S = 600.0


class WorkerDriver(EchoDriver):
    def __init__(self, settings: DriverSettings) -> None:
        super().__init__(settings)
        context = multiprocessing.get_context("spawn")
        below = settings.extra["below"]
        if below == "one that dies in the start":
            context.Process(target=die, name="worker-7", daemon=True).start()
            threading.Event().wait()  # a start that takes no notice
        if below == "one that ends in the start":
            probe = context.Process(target=time.sleep, args=(0.0,))
            probe.start()
            probe.join()
        if below == "a compiler that ends":
            code = "import time; time.sleep(0.5)"
            subprocess.Popen([sys.executable, "-c", code, "torch/_inductor/compile_worker/__main__.py"])
        self.worker = context.Process(target=time.sleep, args=(FOR_EVER_S,), daemon=True)
        self.worker.start()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
