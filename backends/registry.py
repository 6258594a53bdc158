"""Which engine serves a path: a folder is a model for MLX, a file one for llama.cpp."""

from pathlib import Path

from backends.mlx.folder import ModelFolder
from backends.protocol import Backend, EngineOptions, ModelLoadError, Tokenizer

INSTALL = "install it with `pip install 'mlx-lm[cpu]'`, on a Mac `pip install mlx-lm`"


def check_model(path: str) -> None:
    """Refuse, by a look at the files, what can never be loaded. Raises ModelLoadError."""
    if Path(path).is_dir():
        ModelFolder(path)
    else:
        from backends.llamacpp.model import check_gguf

        check_gguf(Path(path))


def make_backend(options: EngineOptions) -> Backend:
    """Build the backend on the calling thread, which must be the one that steps it. Raises ModelLoadError."""
    if not Path(options.path).is_dir():
        from backends.llamacpp.backend import LlamaBackend
        from backends.llamacpp.embedding import LlamaEmbedder

        return LlamaEmbedder(options) if options.embeds else LlamaBackend(options)
    if options.draft_model:
        raise ModelLoadError(f"{options.path} is a folder for MLX, and a draft model guesses for GGUF files only")
    try:
        from backends.mlx.backend import MlxBackend
    except ImportError as error:
        raise _missing(options.path, error) from error
    return MlxBackend(options)


def make_tokenizer(path: str) -> Tokenizer:
    """The tokenizer for the web process, without the weights. Raises ModelLoadError."""
    if not Path(path).is_dir():
        from backends.llamacpp.tokenizer import LlamaTokenizer

        return LlamaTokenizer(path)
    try:
        from backends.mlx.tokenizer import FolderTokenizer
    except ImportError as error:
        raise _missing(path, error) from error
    return FolderTokenizer(path)


def _missing(path: str, error: ImportError) -> ModelLoadError:
    return ModelLoadError(f"{path} is a folder and needs mlx-lm, which cannot be imported ({error}); {INSTALL}")
