"""SavedPrompts: the prompt of a single sequence, to a file and back.

Only the engine's thread uses it; files are read and written elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

from ..binding import Context
from ..errors import ContextOverflowError, ValidationError
from ..validation import not_picklable
from .adapter_ids import AdapterIds
from .kv_cache import KVCache
from .prompt_files import PromptFile
from .prompt_store import sequence_state

__all__ = ["SavedPrompts"]


class SavedPrompts:
    """Saves, restores and erases what sequences hold that are not in use.

    Args:
        context: The context of the sequences.
        cache: Accounts for them.
        max_tokens: Most tokens of one sequence.
        adapter_ids: Identifies LoRA adapters in another process, too.
        adapters: The paths of the adapters that are loaded.
    """

    def __init__(
        self,
        context: Context,
        cache: KVCache,
        max_tokens: int,
        adapter_ids: AdapterIds,
        adapters: Collection[str],
    ) -> None:
        self._context, self._cache, self._max_tokens = context, cache, max_tokens
        self._adapter_ids, self._adapters = adapter_ids, adapters

    __reduce__ = not_picklable("make another one", "it belongs to one context")

    @cached_property
    def _key(self) -> str:
        return self._context.state_key

    def save(self, seq_id: int, name: str) -> tuple[PromptFile, str, bytes]:
        """Return header, key and state for a file of this name.

        Raises:
            LlamaError: The sequence is in use, empty, or C does not save it.
        """
        tokens, lora_key = self._cache.idle(seq_id)
        if not tokens:
            raise ValidationError(f"sequence {seq_id} is empty; there is nothing to save")
        lora = self._adapter_ids.of(lora_key)
        if lora is None:
            raise ValidationError("the file of a LoRA adapter of this prompt is gone")
        state = sequence_state(self._context, seq_id, tokens)
        first_cut = self._context.memory.first_cut(seq_id)
        return PromptFile(name, tokens.packed(), lora, first_cut, len(state)), self._key, state

    def restore(self, seq_id: int, file: PromptFile, key: str, state: bytes) -> None:
        """Load a saved state into a sequence.

        Raises:
            LlamaError: The sequence is in use, or the state does not fit; then the sequence is as
                it was, or if C refuses the state, empty.
        """

        def load(seq_id: int) -> None:
            if self._context.load_state(state, seq_id=seq_id) != file.tokens:
                raise ValidationError(f"{file.name} has the state of another prompt")

        lora_key = self._adapter_ids.key_of(file.lora, self._adapters)
        tokens = file.prompt
        n, most = len(tokens), self._max_tokens
        if n > most:
            raise ContextOverflowError(
                f"{file.name} has {n} tokens, but prompt and answer together may have at most "
                f"{most}; increase n_ctx",
                n_tokens=n,
                n_ctx=most,
            )
        if key != self._key:
            raise ValidationError(
                f"{file.name} was saved with another model, build of llama.cpp, type of cache, "
                "context size or number of sequences"
            )
        self._cache.replace(seq_id, tokens, lora_key, load)

    def erase(self, seq_id: int) -> int:
        """Forget what a sequence holds; return the number of tokens.

        Raises:
            ValidationError: The sequence is in use.
        """
        return self._cache.erase(seq_id)
