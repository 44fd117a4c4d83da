"""Further options of `dinov2-hf evaluate`: those of the named protocols, as `--knn_temperature` for `temperature`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from textwrap import wrap

from ...command_lines import values_of
from ...declarations import declared, registered
from ...named_objects import Named, Registry
from ...options import Option, keyword_options
from ..user_words import flags_for, in_users_words


def more_options(words: Sequence[str]) -> dict[str, Option]:
    """The options of the named protocols, and typed options of other protocols, so that they are refused by name."""
    protocols = _protocols()
    typed = [word.lstrip("-").replace("-", "_") for word in words if word.startswith("--")]
    named = [name for name in protocols.places if any(word.startswith(f"{name}_") for word in typed)]
    found = {}
    for name in dict.fromkeys([*names_in(_named(words)), *named]):
        one = _declared(protocols, name)
        options = keyword_options(one.object, group=(one.name, purpose(one)))
        found |= {flag: replace(options[keyword], name=flag) for flag, keyword in flags_of(one).items()}
    return found


def more_help(words: Sequence[str]) -> str:
    """The list of protocols, if none is named."""
    if _named(words):
        return ""
    protocols = _protocols()
    lines = ["protocols:"]
    for name in protocols.places:
        lines += wrap(f"  {name:21} {purpose(_declared(protocols, name))}", 78, subsequent_indent=" " * 24)
    return "\n".join([*lines, "", "`dinov2-hf evaluate PROTOCOL --help` lists the options of one too."])


def names_in(named: Sequence[str]) -> list[str]:
    """The names in words such as "knn,my_module:evaluate_x", each once."""
    return list(dict.fromkeys(name for word in named for name in filter(None, map(str.strip, word.split(",")))))


def _named(words: Sequence[str]) -> list[str]:
    """The words that name protocols: those of their flag, or the first word if it belongs to no flag."""
    return values_of("protocol", words) or [word for word in words[:1] if not word.startswith("-")]


def _protocols() -> Registry:
    return declared("evaluation.protocols:PROTOCOLS")


def _declared(protocols: Registry, name: str) -> Named:
    if name in protocols.places:
        return Named(name, registered(protocols, name))
    return named_protocol(name) if ":" in name else protocols.named(name)  # its error lists the protocols


def named_protocol(name: str) -> Named:
    """A protocol, imported, with its registered facts.

    Raises:
        ValueError: there is no protocol of this name, or it is not registered by `evaluation.protocol`.
    """
    from ...evaluation.protocols import PROTOCOLS

    one = PROTOCOLS.named(name)
    if not one.facts:
        raise ValueError(
            f"`--protocol` names {name}, which is not a protocol: register the function with"
            " `@dinov2_hf.evaluation.protocol(name, task=..., metrics=...)`."
        )
    return one


def flags_of(protocol: Named) -> dict[str, str]:
    """The keywords of a protocol, without common ones, by flag: `knn_temperature`; `depth_scale` does not change."""
    keywords = keyword_options(protocol.object, without=("label_column", "output_dir"))
    return {name if name.startswith(f"{protocol.name}_") else f"{protocol.name}_{name}": name for name in keywords}


def purpose(protocol: Named) -> str:
    """The purpose of a protocol, in one sentence."""
    return as_typed(protocol, protocol.object.__doc__.splitlines()[0])


def as_typed(protocol: Named, sentence: str) -> str:
    """A text of a protocol, with options instead of arguments: `--train_data` for `train_dataset`."""
    own = {keyword: f"--{flag}" for flag, keyword in flags_of(protocol).items()}
    return in_users_words(sentence, {**own, "train_dataset": "--train_data", "eval_dataset": "--eval_data"})


def in_words_of_the_command(protocol: Named) -> AbstractContextManager[None]:
    """Errors of a protocol name its options as they are typed: `--knn_ks` for `ks`."""
    return flags_for(**{keyword: flag for flag, keyword in flags_of(protocol).items()})
