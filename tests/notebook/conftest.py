"""A shell of IPython with the extension, a kernel, and the demo model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jupyter_client.manager import start_new_kernel
from support.notebooks import Kernel, Shell

from llama_cffi import Llama
from llama_cffi.demo import model_path


@pytest.fixture(scope="session", autouse=True)
def ipython_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither read nor write the user's settings and history of IPython."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        yield


@pytest.fixture(scope="session")
def shell() -> Iterator[Shell]:
    """A shell with the extension, and the demo model as `llm`."""
    found = Shell()
    found.run("%load_ext llama_cffi")
    found.run("%llama demo -c 512 --temp 0")
    found.outputs()
    yield found
    found.variables["llm"].close()
    found.close()


@pytest.fixture(scope="session")
def llm() -> Iterator[Llama]:
    """The demo model."""
    with Llama(model_path(), n_ctx=512, n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="session")
def kernel() -> Iterator[Kernel]:
    """A kernel with the extension."""
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=300)
    try:
        found = Kernel(manager, client)
        assert found.run("%load_ext llama_cffi") == "ok"
        yield found
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
