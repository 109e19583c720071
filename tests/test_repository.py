"""What surrounds the code: the test line, releases, templates."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def release_notes(tag: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "tools" / "release_notes.py"
    return subprocess.run([sys.executable, script, tag], capture_output=True, text=True)


def test_ci_runs_the_test_line_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.split("## Run the tests\n")[1]
    line = re.search(r"^```sh\n(.+)\n```$", section, re.M)
    assert line is not None
    assert line[1].endswith("nox -s tests")
    assert line[1] in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_release_notes_are_the_entry_of_the_changelog() -> None:
    import llama_cffi

    done = release_notes(f"v{llama_cffi.__version__}")
    assert done.returncode == 0, done.stderr
    assert "### " in done.stdout
    assert "\n## " not in done.stdout
    assert done.stdout.strip() in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("tag", ["v99.0.0", "0.1.0", "v0.1"])
def test_a_tag_that_is_not_the_version_is_refused(tag: str) -> None:
    done = release_notes(tag)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"the tag is {tag}" in done.stderr


def test_the_weekly_job_finds_the_checklist_behind_the_front_matter() -> None:
    text = (ROOT / ".github/ISSUE_TEMPLATE/upgrade-llama-cpp.md").read_text("utf-8")
    front, body = text.split("---\n", 2)[1:]
    assert "labels: upgrade\n" in front
    assert body.count("- [ ] ") > 10


def test_actions_are_pinned_by_commit() -> None:
    uses = [
        line
        for workflow in (ROOT / ".github" / "workflows").glob("*.yml")
        for line in re.findall(r"uses: (.+)", workflow.read_text("utf-8"))
    ]
    assert uses
    for line in uses:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v[\d.]+", line), line


def test_commands_of_the_upgrade_checklist_exist() -> None:
    text = (ROOT / ".github/ISSUE_TEMPLATE/upgrade-llama-cpp.md").read_text("utf-8")
    noxfile = (ROOT / "noxfile.py").read_text("utf-8")
    for names in re.findall(r"`nox -s ([\w ]+)`", text):
        for name in names.split():
            assert f"\ndef {name}(session" in noxfile, name
    for script in re.findall(r"python (tools/\S+\.py)", text):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"python -m llama_cffi\.([\w.]+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
