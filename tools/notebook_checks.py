"""Measure what notebooks promise, and take pictures of what they show.

    python tools/notebook_checks.py                       # the stop button, and memory of reloads
    python tools/notebook_checks.py --screenshots DIR     # outputs of examples/, light and dark

The first prints for each press of the stop button the milliseconds until the kernel is idle again,
during a prompt and during an answer, and the memory of a kernel that loads a model again and again.
The exit code is 1 if a median exceeds 200 ms, or the memory grows by more than 20 MB. Pictures need
playwright, and Chromium of the system.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

from support.notebooks import Kernel, Message  # noqa: E402
from support.tiny_gguf import write_tiny  # noqa: E402

LIMIT_MS, LIMIT_BYTES = 200, 20_000_000
N_CTX = 32768
LOAD = "%llama {path} -c 0 -t 1 -ub 128 -fa off --ignore-eos"
RSS = "__import__('psutil').Process().memory_info().rss"
THEMES = {"light": "#ffffff;color:#1f1f1f", "dark": "#111111;color:#e0e0e0"}


def latency_ms(kernel: Kernel, cell: str, kind: str, delay_s: float) -> float:
    """Return the milliseconds from the press of the stop button until the kernel is idle.

    Args:
        kernel: The kernel.
        cell: What it runs.
        kind: The button is pressed after the first message of this kind ...
        delay_s: ... and this many seconds more.
    """
    pressed: list[float] = []

    def press(message: Message) -> None:
        if message["msg_type"] == kind and not pressed:
            time.sleep(delay_s)
            pressed.append(time.perf_counter())
            kernel.manager.interrupt_kernel()

    result = kernel.run(cell, press)
    if result != "KeyboardInterrupt":
        raise SystemExit(f"the cell ended with {result} before the stop button was pressed")
    return (time.perf_counter() - pressed[0]) * 1e3


def measure(n: int) -> bool:
    """Print the measurements; return whether they are within the limits."""
    manager, client = start_new_kernel(kernel_name="python3")
    kernel = Kernel(manager, client)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = write_tiny(Path(folder) / "endless.gguf", n_ctx=N_CTX)
            kernel.run(f"%load_ext llama_cffi\npath = {str(path)!r}")
            kernel.run(LOAD)
            prompt, answer = "%%llama\n" + "a" * (N_CTX - 100), "%%llama\nHello"
            fits = True
            for name, cell, kind in (
                ("prompt", prompt, "display_data"),
                ("answer", answer, "update_display_data"),
            ):
                found = [latency_ms(kernel, cell, kind, i / n / 4) for i in range(n)]
                median = statistics.median(found)
                fits &= median <= LIMIT_MS
                print(
                    f"stop during the {name}: median {median:.0f} ms, most {max(found):.0f} ms, "
                    f"{n} times"
                )
            kernel.run(LOAD)
            before = int(kernel.text(RSS))
            for _ in range(10):
                kernel.run(LOAD)
            grown = int(kernel.text(RSS)) - before
            print(f"10 more loads: {before / 1e6:.0f} MB, then {grown / 1e6:+.1f} MB")
            return fits and grown <= LIMIT_BYTES
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def screenshots(folder: Path) -> None:
    """Write a picture of each notebook with its outputs, on a light and on a dark page."""
    from notebooks import EXAMPLES, execute
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for path in sorted(EXAMPLES.glob("*.ipynb")):
            body = html_of(execute(path))
            for theme, colours in THEMES.items():
                page = browser.new_page(viewport={"width": 900, "height": 600})
                page.set_content(
                    f'<!doctype html><meta charset="utf-8"><body style="background:{colours};'
                    f'font:14px/1.4 system-ui,sans-serif;margin:1em">{body}'
                )
                target = folder / f"{path.stem}-{theme}.png"
                page.screenshot(path=target, full_page=True)
                print(target)
        browser.close()


def html_of(notebook: Any) -> str:
    """Return the cells and outputs of a notebook, as front ends show them."""
    import html

    parts = []
    for cell in notebook.cells:
        source = html.escape(cell.source)
        box = "background:rgba(128,128,128,.12);padding:.5em" if cell.cell_type == "code" else ""
        parts.append(f'<pre style="white-space:pre-wrap;{box}">{source}</pre>')
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f'<img src="data:image/png;base64,{data["image/png"]}">')
            else:
                text = html.escape(output.get("text") or data.get("text/plain", ""))
                parts.append(data.get("text/html") or f"<pre>{text}</pre>")
    return "\n".join(parts)


def main() -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-n", type=int, default=20, help="presses of the stop button (20)")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="take pictures instead")
    args = parser.parse_args()
    if args.screenshots:
        screenshots(args.screenshots)
        return 0
    return 0 if measure(args.n) else 1


if __name__ == "__main__":
    sys.exit(main())
