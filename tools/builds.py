"""Check every llama.cpp build on the registry against every ABI class, in child processes.

    python tools/builds.py generate   every build gives the same greedy tokens, through the CLI
    python tools/builds.py forced     a build accepts its own class when forced, and no other
    python tools/builds.py hidden     with its class hidden, a build is accepted as a compatible
                                      class or refused, and `user` mode works from its headers

Each check prints a line per build; the exit code is 1 if any failed. `--builds
npm:3.1.1,xllamacpp` selects builds; the default is every build on the registry and both foreign
wheels.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import foreign

from llama_cffi import cdefs, libs_fetch
from llama_cffi.demo import model_path

model = model_path()
# Prompts without near ties between the best tokens, which another build's kernels may break
# differently.
PROMPTS = ("What is 17 + 25?", "Turn on the lamp in the kitchen.")


def all_builds() -> list[str]:
    """Return every linux-x64 version on the registry, then the foreign wheels."""
    return [*map(str, reversed(libs_fetch.available("npm"))), *foreign.WHEELS]


def environment(build: str) -> dict[str, str]:
    """Return the environment variables that select *build*."""
    if build in foreign.WHEELS:
        return {"LLAMA_CFFI_LIB": str(foreign.fetch_foreign(build, libs_fetch.cache_dir()))}
    return {"LLAMA_CFFI_BUILD": build}


def in_child(function: Callable[[], Any]) -> Any:
    """Run *function* in a forked child; return its result, its traceback, or the fatal signal."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            result = function()
        except BaseException:
            result = traceback.format_exc()
        with os.fdopen(write, "wb") as out:
            pickle.dump(result, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as result:
        data = result.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return pickle.loads(data)


def load(build: str, abi: str = "") -> dict[str, Any]:
    """Load *build* in this process; return the verdict, or the error's type and message."""
    import llama_cffi

    os.environ.update(environment(build), LLAMA_CFFI_ABI=abi)
    try:
        library = llama_cffi.get_library()
    except llama_cffi.LlamaError as e:
        # Declarations that were loaded nevertheless; a refused class's must not be.
        bound = [m for m in sys.modules if "._compiled." in m and "bootstrap" not in m]
        return {"error": type(e).__name__, "message": str(e), "bound": bound}
    return {
        "verdict": library.abi.verdict,
        "class": library.abi.name,
        "exports": library.abi.measurement.exports,
        "tokens": tokens(),
    }


def tokens() -> list[int]:
    """Return the greedy tokens for the first prompt."""
    from llama_cffi import Engine

    with Engine(model, n_ctx=256, n_threads=1) as engine:
        return engine.generate_tokens(engine.format_prompt(PROMPTS[0]), 32, temperature=0)


def check_generate(builds: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (build, problem or empty): the CLI must give the same greedy tokens."""
    expected: list[list[int]] | None = None
    for build in builds:
        got = []
        for prompt in PROMPTS:
            script = Path(sys.executable).with_name("llama-cffi")
            command = [str(script), "generate", "--json"]
            command += ["-m", str(model), "-p", prompt]
            env = {**os.environ, **environment(build)}
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
            if done.returncode:
                yield build, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
                break
            answer = json.loads(done.stdout)
            got.append(answer["tokens"])
            text = f"{len(answer['tokens'])} tokens: {answer['text'].strip()[:48]!r}"
            print(f"  {build:16} {answer['abi']['class']:8} {answer['abi']['verdict']:10} {text}")
        else:
            expected = expected or got
            yield build, "" if got == expected else f"tokens differ: {got}, expected {expected}"


def check_forced(builds: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (build, problem or empty): every class but the build's own must be refused."""
    for build in builds:
        own = in_child(lambda b=build: load(b))
        if not isinstance(own, dict) or "error" in own:
            yield build, f"does not load: {own}"
            continue
        wrong = []
        for name in cdefs.class_names():
            result = in_child(lambda b=build, n=name: load(b, n))
            if name == own["class"]:
                ok = isinstance(result, dict) and result.get("tokens") == own["tokens"]
            else:
                ok = (
                    isinstance(result, dict)
                    and result.get("error") == "AbiMismatchError"
                    and not result["bound"]
                )
            if not ok:
                wrong.append(f"{name}: {result}")
        n = len(cdefs.class_names())
        print(f"  {build:16} is {own['class']:8} {own['verdict']:10} {n - 1} other classes tried")
        yield build, "; ".join(wrong)


def truly_compatible(exports: frozenset[str], hidden: str) -> set[str]:
    """Return the classes whose functions all work on a build of the class *hidden*."""
    from llama_cffi.cdefs import compare

    found = set()
    for c in cdefs.all_classes():
        used = (c.functions & exports) - {f for f in c.functions if f.startswith("mtmd_")}
        if c.name == hidden or c.functions - c.optional - exports:
            continue
        different = compare.differences(
            cdefs.declarations(c.name), cdefs.declarations(hidden), mtmd=False
        )
        if not any(d.function in used and d.kind != "enum-added" for d in different):
            found.add(c.name)
    return found


def without(name: str, function: Callable[[], Any]) -> Any:
    """Run *function* with the class *name* hidden from the table."""
    classes = tuple(c for c in cdefs.all_classes() if c.name != name)
    cdefs.all_classes = lambda: classes
    return function()


def check_hidden(builds: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (build, problem or empty): a build without its class must not be misidentified."""
    for build in builds:
        own = in_child(lambda b=build: load(b))
        if not isinstance(own, dict) or "error" in own:
            yield build, f"does not load: {own}"
            continue
        name, problems = own["class"], []
        truth = truly_compatible(own["exports"], name)
        result = in_child(lambda b=build, n=name: without(n, lambda: load(b)))
        if not isinstance(result, dict):
            yield build, str(result)
            continue
        if result.get("verdict") == "compatible":
            outcome = f"compatible with {result['class']}"
            if result["class"] not in truth:
                problems.append(f"accepted as {result['class']}, which is not truly compatible")
            if result["tokens"] != own["tokens"]:
                problems.append(f"tokens differ: {result['tokens']}, expected {own['tokens']}")
        else:
            outcome = f"refused ({result.get('error')})"
            if result.get("error") != "AbiMismatchError":
                problems.append(str(result))
            if truth:
                problems.append(f"refused although compatible with {sorted(truth)}")
        user = in_child(lambda b=build, n=name: without(n, lambda: load(b, "user")))
        if build in foreign.WHEELS:
            # Its packaging does not give its tag, so its headers cannot be fetched; the error says
            # what to set.
            if not isinstance(user, dict) or "LLAMA_CFFI_HEADERS" not in user.get("message", ""):
                problems.append(f"user mode: {user}")
        elif not isinstance(user, dict) or user.get("tokens") != own["tokens"]:
            problems.append(f"user mode: {user}")
        elif user["verdict"] != "user":
            problems.append(f"user mode gave the verdict {user['verdict']}")
        print(f"  {build:16} without {name:8} {outcome}; user mode {'ok' if not problems else '?'}")
        yield build, "; ".join(problems)


CHECKS = {"generate": check_generate, "forced": check_forced, "hidden": check_hidden}


def main() -> int:
    """Run the command line."""
    global model
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("check", choices=CHECKS, nargs="+")
    parser.add_argument("--builds", help="comma-separated build specs (default: all)")
    parser.add_argument("--model", type=Path, default=model, help="GGUF (default: the demo model)")
    args = parser.parse_args()
    model = args.model
    builds = args.builds.split(",") if args.builds else all_builds()
    failed = 0
    for check in args.check:
        print(f"{check}: {len(builds)} builds")
        for build, problem in CHECKS[check](builds):
            if problem:
                failed += 1
                print(f"  {build:16} FAILED {problem[:2000]}")
            sys.stdout.flush()
    print(f"{failed} failed" if failed else "all as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
