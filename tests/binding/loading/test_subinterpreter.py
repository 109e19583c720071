"""A subinterpreter gets a sentence: C's callbacks would wait there for the main one's lock."""

from __future__ import annotations

from support.children import Child


def test_a_subinterpreter_is_refused_by_name(child: Child) -> None:
    code = """
        import importlib, sys
        for name in ("_interpreters", "_xxsubinterpreters"):
            try:
                interpreters = importlib.import_module(name)
                break
            except ImportError:
                continue
        inside = '''
        import sys
        sys.path[:] = {path!r}
        try:
            from llama_cffi import Llama
            from llama_cffi.demo import model_path
            Llama(model_path())
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        '''
        import textwrap
        inside = textwrap.dedent(inside).format(path=sys.path)
        if sys.version_info >= (3, 13):
            interpreters.exec(interpreters.create("legacy"), inside)
        else:
            interpreters.run_string(interpreters.create(isolated=False), inside)
    """
    result = child(code, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("LibraryLoadError llama.cpp cannot be used in a subinterpreter")
