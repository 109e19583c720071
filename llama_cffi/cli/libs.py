"""`llama-cffi libs`: list, fetch, choose, verify and remove llama.cpp builds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import options
from .output import print_json, print_table
from .parser import Parser

if TYPE_CHECKING:
    from ..libs_fetch import InstalledBuild

__all__ = ["add_parser", "run"]

_SPEC = "npm:3.22.1, github:b11549, a tag such as b8179 or v0.5.0, latest, default, or path:FOLDER"
_BACKEND = "auto (the default), cpu, cuda, vulkan, metal, rocm …"


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Add the `libs` command and its subcommands."""
    parser = subparsers.add_parser(
        "libs",
        help="list, fetch, choose and verify llama.cpp builds",
        description="List, fetch, choose, verify and remove llama.cpp builds.",
        epilog=options.epilog("", *options.BUILDS),
        formatter_class=options.HelpFormatter,
    )
    parser.set_defaults(func=run)
    commands = parser.add_subparsers(dest="libs_command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> Parser:
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.add_argument("--json", action="store_true", help="print JSON")
        return subparser

    def add_backend(subparser: Parser) -> None:
        subparser.add_argument("--backend", metavar="NAME", help=_BACKEND)

    def add_quiet(subparser: Parser) -> None:
        subparser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")

    sub = command("list", "List the builds on this machine, or with --remote those to fetch.")
    sub.add_argument("--remote", action="store_true", help="list the builds that can be fetched")
    sub.add_argument(
        "--source", choices=["npm", "github"], default="npm", help="source for --remote (npm)"
    )
    sub = command("fetch", "Fetch a build into the store without choosing it.")
    sub.add_argument("spec", nargs="?", help=_SPEC)
    sub.add_argument("--force", action="store_true", help="fetch again and replace the build")
    add_backend(sub)
    add_quiet(sub)
    sub = command("use", "Choose the build to use by default.")
    sub.add_argument("spec", help=_SPEC)
    add_backend(sub)
    add_quiet(sub)
    sub = command("rollback", "Return to the previously chosen build.")
    add_quiet(sub)
    sub = command("path", "Print the path of a build's library, fetching it if needed.")
    sub.add_argument("spec", nargs="?", help=_SPEC)
    add_backend(sub)
    add_quiet(sub)
    sub = command("verify", "Compare every file of the stored builds with its sha256.")
    sub.add_argument("spec", nargs="?", help=f"default: all builds; {_SPEC}")
    add_backend(sub)
    sub = command("remove", "Delete a build from the store.")
    sub.add_argument("spec", help=_SPEC)
    add_backend(sub)
    sub = command("prune", "Delete old builds and leftovers, but no build that is or was chosen.")
    sub.add_argument(
        "--keep", type=int, default=2, metavar="N",
        help="how many other builds to keep, newest first (2)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run one `libs` subcommand and return the exit code."""
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "list": _list,
        "fetch": _fetch,
        "use": _use,
        "rollback": _rollback,
        "path": _path,
        "verify": _verify,
        "remove": _remove,
        "prune": _prune,
    }
    return commands[args.libs_command](args)


def _list(args: argparse.Namespace) -> int:
    from ..libs_fetch import available, cache_dir, installed, manage

    if args.remote:
        return _list_remote(args, [str(spec) for spec in available(args.source)])
    builds, current = installed(), manage.in_use()
    if args.json:
        print_json(
            {
                "cache": str(cache_dir()),
                "in_use": _facts(current) if current else None,
                "builds": [_facts(build) for build in builds],
            }
        )
        return 0
    rows = [
        (
            "*" if current and build.library == current.library else " ",
            build.spec,
            build.variant,
            build.tag or "",
            _megabytes(manage.size_bytes(build)),
            str((build.receipt or {}).get("when", ""))[:10],
            "yes" if _takes_media(build) else "no",
        )
        for build in builds
    ]
    if rows:
        print_table((" ", "BUILD", "VARIANT", "LLAMA.CPP", "SIZE", "FETCHED", "PICTURES"), rows)
    else:
        print("No builds here yet; run `llama-cffi libs fetch` to fetch the default.")
    if current:
        print(f"\nin use: {current.library}\n        {current.backend_reason}")
    print(f"cache:  {cache_dir()}")
    return 0


def _list_remote(args: argparse.Namespace, specs: list[str]) -> int:
    from ..libs_fetch import installed, pins

    present = {build.spec for build in installed()}
    facts = [
        {
            "spec": spec,
            "tag": pins.tag_of(spec.partition(":")[2]) if args.source == "npm" else None,
            "installed": spec in present,
        }
        for spec in specs
    ]
    if args.json:
        print_json({"source": args.source, "builds": facts})
        return 0
    rows = [
        ("+" if row["installed"] else " ", str(row["spec"]), str(row["tag"] or "")) for row in facts
    ]
    print_table((" ", "BUILD", "LLAMA.CPP"), rows)
    print("\n+ is on this machine; run `llama-cffi libs use SPEC` to fetch and choose one.")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from ..libs_fetch import fetch

    build = fetch(args.spec, backend=args.backend, force=args.force, progress=not args.quiet)
    return _report(args, build, "fetched")


def _use(args: argparse.Namespace) -> int:
    from ..libs_fetch import use

    build = use(args.spec, backend=args.backend, progress=not args.quiet)
    return _report(args, build, "using")


def _rollback(args: argparse.Namespace) -> int:
    from ..libs_fetch import rollback

    return _report(args, rollback(progress=not args.quiet), "back to")


def _path(args: argparse.Namespace) -> int:
    from ..libs_fetch import ensure

    build = ensure(args.spec, backend=args.backend, progress=not args.quiet)
    if args.json:
        print_json(_facts(build))
    else:
        print(build.library)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from ..libs_fetch import installed, manage, verify

    builds = manage.select(args.spec, args.backend) if args.spec else installed()
    found = [(build, verify(build)) for build in builds]
    if args.json:
        print_json({"builds": [{**_facts(b), "problems": problems} for b, problems in found]})
    else:
        for build, problems in found:
            print(f"{build.spec} ({build.variant}): {'DAMAGED' if problems else 'ok'}")
            for problem in problems:
                print(f"  {problem}")
            if problems:
                print(
                    f"  run `llama-cffi libs fetch {build.spec} --backend {build.variant} --force` "
                    "to replace it"
                )
        if not found:
            print("No builds here yet; nothing to verify.")
    return 1 if any(problems for _, problems in found) else 0


def _remove(args: argparse.Namespace) -> int:
    from ..libs_fetch import remove

    deleted = remove(args.spec, backend=args.backend)
    if args.json:
        print_json({"removed": [_facts(build) for build in deleted]})
    else:
        for build in deleted:
            print(f"removed {build.spec} ({build.variant})")
    return 0


def _prune(args: argparse.Namespace) -> int:
    from ..libs_fetch import prune

    deleted, freed = prune(keep=args.keep)
    if args.json:
        print_json({"removed": [_facts(build) for build in deleted], "freed_bytes": freed})
    else:
        for build in deleted:
            print(f"removed {build.spec} ({build.variant})")
        print(f"{_megabytes(freed)} freed")
    return 0


def _report(args: argparse.Namespace, build: InstalledBuild, verb: str) -> int:
    if args.json:
        print_json(_facts(build))
    else:
        tag = f", llama.cpp {build.tag}" if build.tag else ""
        print(f"{verb} {build.spec} ({build.variant}{tag})\n{build.backend_reason}")
        print(build.library)
    return 0


def _facts(build: InstalledBuild) -> dict[str, Any]:
    from ..libs_fetch import manage

    return {
        "spec": build.spec,
        **build.as_dict(),
        "reason": build.backend_reason,
        "size_bytes": manage.size_bytes(build),
        "when": (build.receipt or {}).get("when"),
        "pictures": _takes_media(build),
    }


def _takes_media(build: InstalledBuild) -> bool:
    """Return whether a build has what pictures and sounds need; `doctor` tells if it fits."""
    from ..binding.loading.mtmd import has_mtmd

    try:
        return has_mtmd(build)
    except (OSError, ValueError):  # damaged; `verify` tells
        return False


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
