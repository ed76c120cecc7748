"""Print what completes names, flags and values: `source <(dinomaly-hd completion bash)`, or zsh."""

import importlib
import re
from typing import Literal, get_args, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo

from dinomaly_hd.config.base import Frozen
from dinomaly_hd.config.presets import MODELS
from dinomaly_hd.config.variants import ABLATION, CONFIG_SETS
from entry_points.__main__ import HERE, NAMES
from entry_points.common import Start, entry_point, first_word_as, say

CONFIGS = (*CONFIG_SETS, *ABLATION, *MODELS)
NAMED = {"config": CONFIGS, "configs": CONFIGS, "model_type": tuple(MODELS)}
ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
# To bash "=" is a word of its own, to zsh it is not. Where no words are known, files are completed.
SCRIPT = """_dinomaly_hd() {
    local name="${COMP_WORDS[1]}" word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
    local flag="" prefix="" known=""
    if [ "$COMP_CWORD" -eq 1 ]; then known="{names}"
    elif [ "$word" = "=" ]; then flag="$before" word=""
    elif [ "$before" = "=" ]; then flag="${COMP_WORDS[COMP_CWORD-2]}"
    else case "$word@$before" in
        --*=*) flag="${word%%=*}" prefix="${word%%=*}=" word="${word#*=}" ;;
        @-* | [!@-]* | @init | @completion) flag="$before" ;;
        *) case "$name" in
            {flags}
        esac ;;
    esac; fi
    case "$flag" in
        {values}
    esac
    COMPREPLY=($(compgen -P "$prefix" -W "$known" -- "$word"))
}
complete -o default -F _dinomaly_hd dinomaly-hd"""


class Options(Frozen):
    shell: Literal["bash", "zsh"] = Field(description="whose text is printed")


def script() -> str:
    """Return bash's text, made from the fields of all entry points."""
    flags, values = dict[str, tuple[str, ...]](), {"completion": _words(Options.model_fields["shell"])}
    for name in (*NAMES, *HERE):
        fields = importlib.import_module(f"entry_points.{name}").COMMAND.parameters()
        flags[name] = tuple(f"--{flag}" for flag in [*fields, "help", "help-all"])
        values |= {f"--{flag}": NAMED.get(flag) or _words(field) for flag, field in fields.items()}
    parts = {"names": " ".join(flags), "flags": _cases(flags), "values": _cases(values)}
    return re.sub(r"\{(names|flags|values)\}", lambda place: parts[place[1]], SCRIPT)


def _cases(words: dict[str, tuple[str, ...]]) -> str:
    return "\n".join(f'{key}) known="{" ".join(known)}" ;;' for key, known in words.items() if known)


def _words(field: FieldInfo) -> tuple[str, ...]:
    choices = ("true", "false") if field.annotation is bool else get_args(field.annotation)
    return choices if field.annotation is bool or get_origin(field.annotation) is Literal else ()


def show(start: Start[Options]) -> None:
    say((ZSH if start.options.shell == "zsh" else "") + script())


COMMAND, MAIN = entry_point("completion", __doc__, Options, show)
main = first_word_as("shell", MAIN)
