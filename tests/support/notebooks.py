"""IPython in this process, and kernels in processes of their own."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from traitlets.config import Config

__all__ = ["Kernel", "Message", "Shell"]

Message = dict[str, Any]


class Shell:
    """IPython without a terminal; outputs are collected.

    Attributes:
        shell: The shell.
        variables: What the user has defined.
    """

    def __init__(self) -> None:
        config = Config({"HistoryManager": {"enabled": False}})
        # Not __main__, which is pytest's.
        module = types.ModuleType("cells")
        self.shell = InteractiveShell.instance(config=config, user_module=module)
        self.shell.display_pub = self._published = CapturingDisplayPublisher()
        self.variables: dict[str, Any] = self.shell.user_ns

    def run(self, cell: str) -> Any:
        """Run a cell; return its value, or raise its error."""
        done = self.shell.run_cell(cell)
        done.raise_error()
        return done.result

    def close(self) -> None:
        """Leave this process as it was."""
        self.shell.restore_sys_module_state()
        InteractiveShell.clear_instance()

    def outputs(self) -> list[dict[str, str]]:
        """Return and forget what was displayed: the data of each message, by MIME type."""
        found, self._published.outputs = [*self._published.outputs], []
        return [output["data"] for output in found]


class Kernel:
    """A kernel and a client of it.

    Attributes:
        manager: Interrupts the kernel.
        client: Sends it cells.
    """

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client

    def run(self, cell: str, on_output: Callable[[Message], object] = lambda message: None) -> str:
        """Run a cell; return `ok`, or the name of its error.

        Args:
            cell: The code.
            on_output: Called with each message of its output.
        """
        reply = self.client.execute_interactive(cell, output_hook=on_output, timeout=300)
        content = reply["content"]
        return str(content["status"] if content["status"] == "ok" else content["ename"])

    def text(self, expression: str) -> str:
        """Return the text of the value of an expression."""
        found: list[str] = []

        def keep(message: Message) -> None:
            if message["msg_type"] == "execute_result":
                found.append(message["content"]["data"]["text/plain"])

        assert self.run(expression, keep) == "ok"
        return found[0]
