"""A door for sentence-transformers: a run's trunk with pooling on top, which makes a vector of a text.

SetFit, BERTopic, vector stores and whatever else takes a SentenceTransformer take the folder that is written here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefinetune.checkpoint import replacing
from prefinetune.errors import InputError, listing, nearest
from prefinetune.model import quiet
from prefinetune.pretrained import ENCODERS, read_config
from prefinetune.start import model_folder
from prefinetune.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def sentence_transformer(run: str | Path, pooling: str = "mean") -> SentenceTransformer:
    """The trunk of a run, or another encoder, as a SentenceTransformer: `encode` gives n texts as an array [n, d].

    Pre-finetuning reads most tasks off a text's first token and compares no texts with each other, so that the vectors are a
    start: for search and clustering, train it further with sentence-transformers or SetFit.

    Args:
        run: a run's folder, a hub name or a model folder.
        pooling: how the states of a text's tokens become one vector: "mean", or another mode of sentence-transformers.

    Raises:
        InputError: sentence-transformers is not installed, has no such pooling, or the model cannot be loaded or is an
            encoder-decoder, whose sentences are read off the decoder.
    """
    try:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError as error:
        raise InputError("sentence-transformers 6 is not installed: pip install 'prefinetune[sentence-transformers]'") from error
    if pooling not in Pooling.POOLING_MODES:
        accepted = f"{listing(Pooling.POOLING_MODES)}{nearest(pooling, Pooling.POOLING_MODES)}"
        raise InputError(f"pooling {pooling!r} is not accepted; expected {accepted}")
    name = str(model_folder(run))
    config = read_config(name)
    if config.is_encoder_decoder:
        raise InputError(
            f"model {name!r} is an encoder-decoder ({config.model_type}), whose sentences are read off the decoder; a "
            f"SentenceTransformer needs an encoder: {listing(ENCODERS, 30)}"
        )
    length = load_tokenizer(name, config=config).max_length
    try:
        with quiet():
            trunk = Transformer(name, max_seq_length=length, model_kwargs={"dtype": torch.float32, "use_safetensors": True})
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"model {name!r}: its weights could not be loaded ({str(error).splitlines()[0][:200]})") from error
    return SentenceTransformer(modules=[trunk, Pooling(config.hidden_size, pooling)])


def save_sentence_transformer(run: str | Path, folder: str | Path, pooling: str = "mean") -> None:
    """Write a folder that `SentenceTransformer` and `SetFitModel.from_pretrained` load, in place of what was there.

    Raises:
        InputError: as `sentence_transformer`; the folder cannot be written.
    """
    model = sentence_transformer(run, pooling)
    with replacing(Path(folder)) as writing, quiet():
        model.save_pretrained(str(writing))
