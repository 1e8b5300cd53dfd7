"""A pre-trained model of the hub or of a folder: whether it is one that can be read here, and its trunk as a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from prefinetune.encoder_decoder import EncoderDecoder
from prefinetune.errors import InputError, listing
from prefinetune.model import Backbone, quiet

# Model types whose heads, fed with the states of a padded mixed batch, were compared with Transformers' own forward pass of each
# sequence alone. Others may read another token or let padding leak into their states.
ENCODERS = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert", "megatron-bert",
    "mobilebert", "modernbert", "mpnet", "rembert", "roberta", "roberta-prelayernorm", "squeezebert", "xlm", "xlm-roberta",
    "xlm-roberta-xl",
)  # fmt: skip
ENCODER_DECODERS = ("bart", "mbart", "mt5", "t5")


def read_config(name_or_folder: str) -> Any:
    """The configuration of a model.

    Raises:
        InputError: there is none of that name, or its architecture is not one that was checked.
    """
    if not isinstance(name_or_folder, str) or not name_or_folder:
        raise InputError(f"model {name_or_folder!r} is not accepted; expected a hub name or a folder")
    path = Path(name_or_folder)
    if (path / "run.json").exists() and not (path / "config.json").exists():
        raise InputError(f"run {name_or_folder!r} is not finished; `prefinetune runs {name_or_folder}` says how to go on with it")
    if path.is_dir() and not (path / "config.json").exists():
        raise InputError(f"model folder {name_or_folder!r} has no config.json; expected a folder written by save_pretrained")
    if not path.exists() and (name_or_folder.startswith((".", "/")) or name_or_folder.count("/") > 1):
        raise InputError(f"no model folder {name_or_folder!r}")
    try:
        config = transformers.AutoConfig.from_pretrained(name_or_folder, trust_remote_code=False)
    except Exception as error:  # hub client failures of every kind are one message
        if "trust_remote_code" in str(error):
            raise InputError(
                f"model {name_or_folder!r} is of an architecture that comes as code of its own, which is never run; expected one "
                f"that Transformers has itself: {listing((*ENCODERS, *ENCODER_DECODERS), 30)}"
            ) from None
        raise InputError(
            f"model {name_or_folder!r} could not be loaded: it is no folder here, and the hub gave none "
            f"({str(error).strip().splitlines()[0][:160]}). Offline? Give the folder of a downloaded model"
        ) from error
    if config.model_type in ENCODER_DECODERS and not config.is_encoder_decoder:
        raise InputError(
            f"model {name_or_folder!r} is a {config.model_type} without its decoder, as one fine-tuned on tagging is saved; "
            "expected the whole model"
        )
    if "/" in str(config._attn_implementation):  # Transformers would fetch it from the hub, and run it
        raise InputError(
            f"model {name_or_folder!r}: its configuration asks for attention code of the hub ({config._attn_implementation}), "
            "which is never run; take attn_implementation out of config.json"
        )
    accepted = ENCODER_DECODERS if config.is_encoder_decoder else ENCODERS
    if config.model_type not in accepted:
        raise InputError(
            f"model {name_or_folder!r}: type {config.model_type!r} is not one whose heads were checked; "
            f"accepted: {listing(accepted, 30)}"
        )
    return config


def hub_commit(name_or_folder: str) -> str | None:
    """The commit of a hub model that is in the hub client's cache, as it is once the model was loaded; None for a folder."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(name_or_folder).exists():
        return None
    try:
        found = try_to_load_from_cache(name_or_folder, "config.json")
    except HFValidationError:  # it cannot be a name of the hub
        return None
    return Path(found).parent.name if isinstance(found, str) else None


def backbone_class(config: Any) -> type[Backbone]:
    return EncoderDecoder if config.is_encoder_decoder else Backbone


def load_backbone(name_or_folder: str, attention_dropout: float | None = None, spectral_norm: bool = False) -> Backbone:
    """A backbone with its pre-trained weights, in float32.

    Args:
        attention_dropout: replaces the model's own, where given.
        spectral_norm: of the output layers of its new heads.

    Raises:
        InputError: it cannot be loaded.
    """
    config = read_config(name_or_folder)
    replaced = {}
    if attention_dropout is not None:
        fields = ("attention_probs_dropout_prob", "attention_dropout")
        replaced = {field: getattr(config, field) for field in fields if hasattr(config, field)}
        config.update(dict.fromkeys(replaced, attention_dropout))
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # weights that the checkpoint lacks (RoBERTa's pooler, say) start the same in every run
            trunk = transformers.AutoModel.from_pretrained(
                name_or_folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # the last of a quantization whose package is not here
        raise InputError(
            f"model {name_or_folder!r}: its weights could not be loaded ({str(error).splitlines()[0][:200]}); expected "
            "model.safetensors. Weights as a pickle (pytorch_model.bin) are never read: whoever trusts them can load them with "
            "Transformers and save_pretrained"
        ) from error
    return backbone_class(config)(trunk, name_or_folder, replaced, spectral_norm)
