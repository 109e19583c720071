from __future__ import annotations

import logging
from pathlib import Path

import cffi
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

from llama_cffi.binding.loading.logs import LogBridge

LEVELS = {
    "GGML_LOG_LEVEL_INFO": 2,
    "GGML_LOG_LEVEL_WARN": 3,
    "GGML_LOG_LEVEL_ERROR": 4,
    "GGML_LOG_LEVEL_DEBUG": 1,
}


@pytest.fixture
def bridge() -> LogBridge:
    return LogBridge(cffi.FFI())


def say(bridge: LogBridge, level: int, text: bytes) -> None:
    bridge.callback(level, bridge._ffi.new("char[]", text), bridge._ffi.NULL)


def test_lines_are_kept_until_the_levels_are_known(
    bridge: LogBridge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "llama_cffi.native")
    say(bridge, 4, b"bad\n")
    assert not caplog.records
    bridge.set_levels(LEVELS)
    say(bridge, 2, b"one ")
    say(bridge, 5, b"line\n")
    say(bridge, 2, b"....\n")
    say(bridge, 1, b"\xff\n")
    say(bridge, 77, b"new level\n")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", "bad"),
        ("INFO", "one line"),
        ("DEBUG", "\ufffd"),
        ("INFO", "new level"),
    ]


def test_capture_and_since(bridge: LogBridge) -> None:
    bridge.set_levels(LEVELS)
    say(bridge, 4, b"before\n")
    mark = bridge.count
    with bridge.capture() as lines:
        say(bridge, 3, b"warning\n")
        say(bridge, 2, b"information\n")
    say(bridge, 4, b"after\n")
    assert lines == ["warning"]
    assert bridge.since(mark) == ["warning", "after"]
    assert bridge.since(bridge.count) == []
    for i in range(9):
        say(bridge, 4, b"%d\n" % i)
    assert bridge.since(mark) == ["5", "6", "7", "8"]


def test_percent_signs_are_not_formatted(
    bridge: LogBridge, caplog: pytest.LogCaptureFixture
) -> None:
    bridge.set_levels(LEVELS)
    say(bridge, 4, b"100 %s %d%n\n")
    assert caplog.records[-1].getMessage() == "100 %s %d%n"


def test_ctrl_c_in_a_log_line_is_not_lost(child: Child, tiny_model: Path) -> None:
    code = """
        import logging, signal, sys

        class Press(logging.Handler):
            def emit(self, record):
                if "vocab" in record.getMessage():
                    logging.getLogger("llama_cffi").removeHandler(self)
                    signal.raise_signal(signal.SIGINT)

        logging.getLogger("llama_cffi").addHandler(Press())
        logging.getLogger("llama_cffi").setLevel(1)
        from llama_cffi.binding import Model, get_library
        get_library()
        try:
            Model(sys.argv[1])
        except KeyboardInterrupt:
            print("interrupted")
        Model(sys.argv[1]).close()
    """
    result = child(code, tiny_model)
    assert (result.returncode, result.stdout, result.stderr) == (0, "interrupted\n", "")


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_levels_of_a_real_build(child: Child, tiny_model: Path, tmp_path: Path, build: str) -> None:
    """The numbers of the levels changed in b4234."""
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny_model.read_bytes().replace(b"blk.1.ffn_up", b"blk.1.ffn_xx"))
    code = """
        import collections, logging, sys
        seen = collections.defaultdict(list)

        class Keep(logging.Handler):
            def emit(self, record):
                seen[record.levelname].append(record.getMessage())

        logging.getLogger("llama_cffi").addHandler(Keep())
        logging.getLogger("llama_cffi").setLevel(1)
        from llama_cffi import ModelLoadError
        from llama_cffi.binding import Model
        Model(sys.argv[1]).close()
        assert any("llama" in line for line in seen["INFO"]), seen
        assert not seen["ERROR"], seen
        try:
            Model(sys.argv[2])
        except ModelLoadError as e:
            assert "ffn_up" in str(e), e
        assert any("ffn_up" in line for line in seen["ERROR"]), seen
        assert not set(seen) - {"DEBUG", "INFO", "WARNING", "ERROR"}
    """
    result = child(code, tiny_model, damaged, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
