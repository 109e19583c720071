"""`python -m llama_cffi` is `llama-cffi`."""

import sys

from .cli import main

sys.exit(main())
