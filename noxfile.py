"""Every developer task. `nox` runs lint, typing, tests and build; tox owns the Python versions."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import zipfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "typing", "tests", "build"]

CODE = [
    "llama_cffi",
    "cdefs",
    "libs_fetch",
    "tests",
    "tools",
    "benchmarks",
    "examples",
    "noxfile.py",
    "setup.py",
]
# The checkout must not shadow the installed wheel.
SAFE = {"PYTHONSAFEPATH": "1"}
PARALLEL = ["-n", "auto", "--dist", "loadfile"]  # a file's tests stay together: they share models
WHEEL_LIMIT_BYTES = 8_000_000


def install_wheel(session: nox.Session, *groups: str) -> None:
    """Install the project as a wheel, and dependency groups."""
    shutil.rmtree("build", ignore_errors=True)  # setuptools copies stale files from build/lib
    session.install(".", *(f"--group={group}" for group in groups))


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint; check the layers, and the workflows."""
    install_wheel(session, "lint")
    session.run("ruff", "format", "--check", *CODE)
    session.run("ruff", "check", *CODE)
    session.run("actionlint", *map(str, Path(".github/workflows").glob("*.yml")))
    # From another folder, where the checkout is not taken for the package.
    config = Path("pyproject.toml").resolve()
    session.chdir(session.create_tmp())
    session.run("lint-imports", str(config))


@nox.session
def typing(session: nox.Session) -> None:
    """Type-check the installed wheel: mypy --strict and pyright."""
    install_wheel(session, "typing")
    # From the temporary folder, so that the checkout's folders are not taken for the package.
    config = Path("pyproject.toml").resolve()
    (site,) = Path(session.virtualenv.location).glob("lib/python*/site-packages")
    session.chdir(session.create_tmp())
    session.run("mypy", "--config-file", str(config), "-p", "llama_cffi")
    python = session.bin + "/python"
    # A copy with a configuration of its own: pyright excludes site-packages and hidden folders.
    shutil.copytree(site / "llama_cffi", "checked/llama_cffi", dirs_exist_ok=True)
    Path("checked/pyrightconfig.json").write_text('{"exclude": []}')
    session.run("pyright", "--pythonpath", python, "-p", "checked")
    # Users' scripts: right ones are clean, and each wrong line is an error.
    session.run("pyright", "--pythonpath", python, "-p", str(config.parent / "tests" / "typing"))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests against the installed wheel; `nox -s tests -- --cov` measures coverage."""
    install_wheel(session, "test")
    env, args = dict(SAFE), session.posargs or (["--cov"] if "CI" in os.environ else [])
    if sys.version_info >= (3, 12):  # measures for nothing; before it, tracing costs 40 % more time
        env["COVERAGE_CORE"] = "sysmon"
    session.run("pytest", *PARALLEL, *args, env=env)


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel; refuse other top-level names, compiled files and a large wheel."""
    session.install("build", "twine")
    shutil.rmtree("build", ignore_errors=True)
    out = Path("dist")
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(out))
    session.run("twine", "check", "--strict", *map(str, out.iterdir()))
    (wheel,) = out.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {n.split("/")[0] for n in names if ".dist-info" not in n.split("/")[0]}
    compiled = [n for n in names if n.endswith((".so", ".dll", ".dylib", ".pyd", ".a"))]
    size = wheel.stat().st_size
    session.log(f"{wheel.name}: {size:,} bytes, {len(names)} files, import names {sorted(top)}")
    if top != {"llama_cffi"} or compiled or not wheel.name.endswith("py3-none-any.whl"):
        session.error(f"unexpected content: {top=} {compiled=} {wheel.name}")
    if size > WHEEL_LIMIT_BYTES:
        session.error(f"the wheel has {size:,} bytes; the limit is {WHEEL_LIMIT_BYTES:,}")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into `site/`; `nox -s docs -- serve` shows it while you write."""
    install_wheel(session, "docs")
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]), env=SAFE)


@nox.session
def matrix(session: nox.Session) -> None:
    """Run the tests on every Python version that is installed."""
    session.install("tox>=4.25")
    session.run("tox", "run", *session.posargs)


@nox.session
def builds(session: nox.Session) -> None:
    """Check every llama.cpp build on the registry: same tokens, wrong classes refused."""
    install_wheel(session, "test")
    args = session.posargs or ["generate", "forced", "hidden"]
    session.run("python", "tools/builds.py", *args, env=SAFE)


@nox.session
def newest(session: nox.Session) -> None:
    """Run the newest llama.cpp, or LLAMA_CFFI_BUILD, through `doctor` and `acceptance`."""
    install_wheel(session, "test")
    env = {**SAFE, "LLAMA_CFFI_BUILD": os.environ.get("LLAMA_CFFI_BUILD", "latest")}
    session.run("llama-cffi", "libs", "fetch", env["LLAMA_CFFI_BUILD"], env=env)
    session.run("llama-cffi", "doctor", env=env)
    session.run("python", "tools/acceptance", env=env)


@nox.session
def acceptance(session: nox.Session) -> None:
    """Run every line of what other libraries promise, on an old, a middle and the newest build."""
    install_wheel(session, "test")
    for build in ("npm:3.1.1", "npm:3.14.0", "npm:3.22.1"):
        env = {**SAFE, "LLAMA_CFFI_BUILD": build}
        session.run("python", "tools/acceptance", *session.posargs, env=env)


@nox.session
def chaos(session: nox.Session) -> None:
    """Cancel, delay, break and crowd 2,000 requests at once, with several seeds and builds."""
    install_wheel(session, "test")
    for build in ("npm:3.1.1", "npm:3.14.0", "npm:3.22.1"):
        env = {**SAFE, "LLAMA_CFFI_BUILD": build}
        session.run("python", "tools/chaos.py", *session.posargs, env=env)


@nox.session
def load(session: nox.Session) -> None:
    """Serve 256 streams for a minute, slow and half-open clients, and 1,000 that leave.

    `nox -s load -- leave --disconnects 100` runs a part.
    """
    install_wheel(session, "test")
    session.install("httptools", "uvloop")
    session.run("python", "tools/load.py", *session.posargs, env=SAFE)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Feed damaged files and random API programs to three builds; no process may die or hang.

    `nox -s fuzz -- adapters=500 states --builds npm:3.1.1` runs some of them.
    """
    session.install("-e", ".", "--group=test")  # editable, as for `demo`
    session.run("python", "-m", "tools.fuzz", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Evaluate the demo model on held-out questions; compare its logits with PyTorch's."""
    # Editable: `python -m tools.…` puts the checkout first, where a wheel would be shadowed.
    session.install("-e", ".", "--group=test", "-r", "tools/train_demo/requirements.txt")
    session.run("python", "-m", "tools.train_demo.evaluate", *session.posargs)
    session.run("python", "-m", "tools.train_demo.evaluate_decisions")
    session.run("python", "-m", "tools.train_demo.compare")


@nox.session
def tools(session: nox.Session) -> None:
    """Ask the demo model for held-out tool calls in every way, streamed and not."""
    session.install("-e", ".", "--group=test")  # editable, as for `demo`
    session.run("python", "-m", "tools.tool_calls", *session.posargs)


@nox.session
def structured(session: nox.Session) -> None:
    """Validate documents of 168 schemas and values of 43 Python types, written very hot."""
    install_wheel(session, "test")
    session.run("python", "tools/structured.py", *session.posargs, env=SAFE)


@nox.session
def templates(session: nox.Session) -> None:
    """Render every chat template in llama.cpp's sources as transformers does; parse calls back."""
    install_wheel(session, "test")
    session.install("transformers>=5.23")
    session.run("python", "tools/compare_templates.py", *session.posargs)
    session.run("python", "tools/round_trips.py", *session.posargs)


@nox.session
def grammars(session: nox.Session) -> None:
    """Ask llama.cpp's engine and llguidance about 2,000 texts of each grammar; compare."""
    install_wheel(session, "test")
    # Not SAFE: the script imports those beside it.
    session.run("python", "tools/compare_grammars.py", *session.posargs)


@nox.session
def embeddings(session: nox.Session) -> None:
    """Compare all-MiniLM-L6-v2 with the same weights in PyTorch over 200 texts."""
    install_wheel(session, "test")
    session.install("torch==2.13.0", "tokenizers>=0.21")
    # Not SAFE: the script imports the converter beside it.
    session.run("python", "tools/compare_minilm.py", *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """Check what the tests of the libraries that llama_cffi can replace check (tests/peers)."""
    install_wheel(session, "test")
    session.run("pytest", "tests/peers", *session.posargs, env=SAFE)


@nox.session
def adapters(session: nox.Session) -> None:
    """Run what was written for llama-cpp-python over the drop-in: frameworks and its server."""
    install_wheel(session)
    folder = session.create_tmp()
    session.run("llama-cffi", "stand-in", folder, env=SAFE)
    session.install(*map(str, Path(folder).glob("llama_cpp_python-*.whl")))
    session.install(
        "langchain-community", "llama-index-llms-llama-cpp", "outlines", "numba",
        "lm-format-enforcer", "instructor", "llama-cpp-haystack",
        "autogen-agentchat", "autogen-ext[llama-cpp]",
        "fastapi", "httpx", "pydantic-settings", "sse-starlette", "starlette-context",
    )  # fmt: skip
    # The source of its server, of the version that the stand-in has.
    version = next(Path(folder).glob("llama_cpp_python-*.whl")).name.split("-")[1].split("+")[0]
    wanted = f"llama-cpp-python=={version}"
    session.run("pip", "download", "--no-deps", "--no-binary=:all:", "-d", folder, wanted)
    (sdist,) = Path(folder).glob("llama_cpp_python-*.tar.gz")
    session.run("python", "tools/adapters.py", str(sdist), env=SAFE)


@nox.session
def clients(session: nox.Session) -> None:
    """Use the server by LangChain, LlamaIndex, litellm, pydantic-ai and instructor.

    `nox -s clients -- --model MODEL.gguf` serves that model beside the demo model.
    """
    install_wheel(session, "test")
    session.install(
        "langchain-llama-cpp", "langchain-openai", "litellm", "instructor",
        "llama-index-llms-openai-like", "llama-index-embeddings-openai-like",
        "pydantic-ai-slim[anthropic,openai]", "anthropic<1",  # it passes an httpx client
    )  # fmt: skip
    # The names keep them out of the ordinary run.
    files = map(str, Path("tests/clients").glob("*_client.py"))
    env = {**SAFE, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # asks GitHub for nothing
    # What these libraries leave open or deprecate is theirs.
    session.run("pytest", "-W", "ignore", *files, *session.posargs, env=env)


@nox.session
def ray(session: nox.Session) -> None:
    """Answer data sets with two actors of a real Ray cluster, and stream from Ray Serve."""
    install_wheel(session, "test")
    session.install("ray[data,serve]")
    session.run("pytest", "tests/ray_cluster.py", *session.posargs, env=SAFE)


@nox.session
def page(session: nox.Session) -> None:
    """Use the server's page and the widget in headless Chromium, which the system must have."""
    install_wheel(session, "test")
    session.install("playwright>=1.50")
    pages = ("tests/page_in_browser.py", "tests/widget_in_browser.py")
    session.run("pytest", *pages, *session.posargs, env=SAFE)


@nox.session
def notebook(session: nox.Session) -> None:
    """Press the stop button and reload models in a kernel; print milliseconds and memory.

    `nox -s notebook -- --screenshots DIR` takes pictures of the outputs in headless Chromium.
    """
    install_wheel(session, "test")
    session.install("playwright>=1.50")
    session.run("python", "tools/notebook_checks.py", *session.posargs, env=SAFE)


@nox.session
def shells(session: nox.Session) -> None:
    """Complete command lines in bash, zsh and fish, which the system must have."""
    install_wheel(session)
    session.run("python", "tools/shells.py", *session.posargs, env=SAFE)


@nox.session
def simulate(session: nox.Session) -> None:
    """Compare scheduling policies on a simulated clock; `nox -s simulate -- --requests 1000`."""
    session.install("-e", ".", "matplotlib>=3.9")  # editable, as for `demo`
    args = session.posargs or ["--images", "docs/images"]
    session.run("python", "-m", "tools.simulate", *args)


@nox.session
def cdefs(session: nox.Session) -> None:
    """Collect the upstream headers, regenerate every class, and audit the layouts."""
    install_wheel(session, "test")
    root = str(Path(session.create_tmp()) / "headers")
    session.run("python", "tools/collect_headers.py", root, env=SAFE)
    session.run("python", "-m", "llama_cffi.cdefs.class_files", "check", root, env=SAFE)
    session.run("python", "-m", "llama_cffi.cdefs.audit", root, env=SAFE)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure start, overhead per token and memory; `nox -s bench -- overhead --only tiny`."""
    install_wheel(session, "test")
    name, *args = session.posargs or [""]
    # Not SAFE: they import each other, and their folder has nothing that shadows the wheel.
    every = ["startup", "overhead", "memory", "gguf_open", "mask", "grammar", "forced"]
    every += ["decisions", "prompt_store", "bench_command"]
    for script in [name] if name else every:
        session.run("python", f"benchmarks/{script}.py", *args)


@nox.session
def serving(session: nox.Session) -> None:
    """Measure many requests at once beside a C loop and two peers, and draw it.

    llama-cpp-python is compiled for it, which takes minutes.
    """
    install_wheel(session, "test")
    session.install("xllamacpp", "llama-cpp-python", "matplotlib")
    plot = () if "--plot" in session.posargs else ("--plot", "docs/images/serving.png")
    session.run("python", "benchmarks/serving.py", *plot, *session.posargs)


@nox.session
def http(session: nox.Session) -> None:
    """Measure streams over HTTP beside llama-server's code, and what HTTP costs per token."""
    install_wheel(session, "test")
    session.install(".[server]", "xllamacpp", "orjson")  # without orjson it does not load
    session.run("python", "benchmarks/http_clients.py", *session.posargs)


@nox.session
def variants(session: nox.Session) -> None:
    """Run the tests with each CPU variant that loads here, on Python 3.10 to 3.13.

    Each variant runs once, and each Python with and without PYTHONUNBUFFERED: they take turns.
    `nox -s variants -- --all` runs every combination; `-- tests/binding` a part of the tests.
    """
    install_wheel(session, "test")
    session.install("virtualenv")
    listed = session.run("python", "tools/cpu_variants.py", silent=True, env=SAFE)
    names = str(listed).split()
    if not names:
        session.error("the build has one CPU backend, and so no variants")
    pythons = _pythons(session)
    args = [arg for arg in session.posargs if arg != "--all"]
    if "--all" in session.posargs:
        runs = list(itertools.product(names, pythons, ("", "1")))  # empty is the same as unset
    else:
        runs = [
            (
                names[i % len(names)],
                list(pythons)[i % len(pythons)],
                ("", "1")[i // len(pythons) % 2],
            )
            for i in range(max(len(names), 2 * len(pythons)))
        ]
    failed = []
    for name, version, unbuffered in runs:
        label = f"CPU variant {name}, Python {version}, PYTHONUNBUFFERED={unbuffered!r}"
        env = {**SAFE, "LLAMA_CFFI_CPU_VARIANT": name, "PYTHONUNBUFFERED": unbuffered}
        session.log(label)
        try:
            session.run(
                pythons[version], "-m", "pytest", "-q", *PARALLEL, *args, env=env, external=True
            )
        except nox.command.CommandFailed:
            failed.append(label)
    if failed:
        session.error(f"{len(failed)} of {len(runs)} failed:\n" + "\n".join(failed))


def _pythons(session: nox.Session) -> dict[str, str]:
    """Install the wheel and its tests for each Python that is here; return their programs."""
    pythons = {}
    for version in ("3.10", "3.11", "3.12", "3.13"):
        folder = Path(session.create_tmp(), version)
        # pyenv's programs on the PATH work for chosen versions only.
        root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
        found = [version, *map(str, root.glob(f"{version}.*/bin/python"))]
        command = ["virtualenv", "--quiet", *(f"--python={name}" for name in found), str(folder)]
        session.run(*command, silent=True, success_codes=[0, 1])
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        if python.exists():
            pythons[version] = str(python)
            shutil.rmtree("build", ignore_errors=True)
            install = ["-m", "pip", "install", "--quiet", "--upgrade", ".", "--group=test"]
            session.run(str(python), *install, external=True)
        else:
            session.warn(f"Python {version} is not on this machine")
    return pythons
