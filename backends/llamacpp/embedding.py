"""A GGUF model that makes vectors: a sequence ends with one in place of a token."""

from collections.abc import Iterable
from dataclasses import replace

import llama_cpp as lib
import numpy as np

from backends.llamacpp.model import Decoded, DecodeFailed, LlamaModel, Row
from backends.protocol import Admission, CacheStats, EngineOptions, ModelLoadError, StepOutput
from backends.sequence import Sequence

# Short texts share passes of so many tokens: a pass needs memory for each of its tokens times the vocabulary.
SHARED_TOKENS = 512


class LlamaEmbedder(LlamaModel):
    """See `Backend`. Every step reads each running sequence whole and pools its vector as the GGUF file says."""

    def __init__(self, options: EngineOptions) -> None:
        """Raises ModelLoadError."""
        super().__init__(options)
        self._begin, self._end = self._frame()
        # One below what fits with the frame: a sequence has room for the token that it ends with.
        self.spec = replace(self.spec, context_length=self.spec.context_length - len(self._begin) - len(self._end))
        self._running: list[Sequence] = []

    def _params(self) -> lib.llama_context_params:
        """Vectors are pooled as the file says, and averaged where it says nothing."""
        params = super()._params()
        declared = self._meta(f"{self._meta('general.architecture')}.pooling_type")
        params.embeddings, params.pooling_type = True, int(declared or 0) or lib.LLAMA_POOLING_TYPE_MEAN
        if params.pooling_type == lib.LLAMA_POOLING_TYPE_RANK:
            raise ModelLoadError("this model ranks pairs of texts and makes no vectors")
        return params

    def _frame(self) -> tuple[list[int], list[int]]:
        """What stands around every text. Where the last token speaks for a text, models were taught to speak at its end
        (huggingface.co/Qwen/Qwen3-Embedding-0.6B-GGUF)."""
        tokens = (lib.llama_token * 8)()
        frame = list(tokens[: lib.llama_tokenize(self._vocab, b"", 0, tokens, 8, True, False)])
        begin = [token for token in frame[:1] if token == lib.llama_vocab_bos(self._vocab) and lib.llama_vocab_get_add_bos(self._vocab)]
        is_last = lib.llama_pooling_type(self._context) == lib.LLAMA_POOLING_TYPE_LAST
        return begin, frame[len(begin) :] or [lib.llama_vocab_eos(self._vocab)] * is_last

    def admission(self, seq: Sequence) -> Admission:
        num_tokens = sum(len(each.token_ids) for each in (*self._running, seq))
        is_full = len(self._running) >= self.spec.max_sequences or num_tokens > SHARED_TOKENS
        return Admission.FULL if self._running and is_full else Admission.YES

    def start(self, seq: Sequence) -> int:
        self._running.append(seq)
        return 0

    def step(self) -> Iterable[StepOutput]:
        texts = [[*self._begin, *seq.token_ids, *self._end] for seq in self._running]
        lib.llama_memory_clear(self._memory, False)
        match self.decode([Row(i, token_id, place, True) for i, text in enumerate(texts) for place, token_id in enumerate(text)]):
            case Decoded.NO_ROOM:
                raise DecodeFailed("a text that was let in does not fit")
            case Decoded.BROKEN_OFF:
                return []
        return [StepOutput(seq, 0, 0.0, vector=self._vector(i)) for i, seq in enumerate(self._running)]

    def _vector(self, seq_id: int) -> bytes:
        pointer = lib.llama_get_embeddings_seq(self._context, seq_id)
        row = np.ctypeslib.as_array(pointer, (lib.llama_model_n_embd_out(self._model),))
        return (row / max(float(np.linalg.norm(row)), 1e-12)).astype("<f4").tobytes()

    def stop(self, seq: Sequence) -> None:
        self._running.remove(seq)

    def cache_stats(self) -> CacheStats:
        return CacheStats(self.spec.num_kv_tokens, sum(len(seq.token_ids) for seq in self._running), 0, 0)
