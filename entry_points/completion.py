"""Print what completes names, flags and values in a shell: `source <(dinomaly-hd completion bash)`, or zsh.

In bash's or zsh's start-up file the line costs half a second; write the text to a file of theirs to save it.
"""

import importlib
import re
from typing import Literal, get_args, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo

from dinomaly_hd.config.base import Frozen
from dinomaly_hd.config.presets import MODELS
from dinomaly_hd.config.variants import ABLATION, CONFIG_SETS
from entry_points.__main__ import HERE, NAMES
from entry_points.common import Start, entry_point, first_word_as, launch, say

Shell = Literal["bash", "zsh"]
CONFIGS = (*CONFIG_SETS, *ABLATION, *MODELS)
NAMED = {"config": CONFIGS, "configs": CONFIGS, "model_type": tuple(MODELS)}
ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
# bash takes "=" as a word of its own, zsh does not.
SCRIPT = """_dinomaly_hd() {
    local name="${COMP_WORDS[1]}" word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
    local flag="" prefix="" known=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        known="NAMES"
    elif [ "$word" = "=" ]; then
        flag="$before" word=""
    elif [ "$before" = "=" ]; then
        flag="${COMP_WORDS[COMP_CWORD-2]}"
    else
        case "$word|$before" in
            --*=*) flag="${word%%=*}" prefix="${word%%=*}=" word="${word#*=}" ;;
            "|"-* | [!|-]* | "|init" | "|completion") flag="$before" ;;
            *) case "$name" in
FLAGS
                esac ;;
        esac
    fi
    case "$flag" in
        completion) known="SHELLS" ;;
VALUES
    esac
    COMPREPLY=($(compgen -P "$prefix" -W "$known" -- "$word"))
}
complete -o default -F _dinomaly_hd dinomaly-hd
"""


class Options(Frozen):
    shell: Shell = Field(description="whose text is printed")


def script() -> str:
    """Return bash's text, from the fields of all entry points; without words it completes files."""
    commands = {name: importlib.import_module(f"entry_points.{name}").COMMAND for name in (*NAMES, *HERE)}
    values, flags = dict[str, dict[str, None]](), []
    for name, command in commands.items():
        fields = command.parameters()
        flags.append(f'{name}) known="{" ".join(f"--{flag}" for flag in fields)} --help --help-all" ;;')
        for flag, field in fields.items():
            values.setdefault(flag, {}).update(dict.fromkeys(NAMED.get(flag) or _words(field)))
    lines = [f'--{flag}) known="{" ".join(words)}" ;;' for flag, words in values.items() if words]
    parts = {"NAMES": " ".join(commands), "SHELLS": " ".join(get_args(Shell))}
    parts |= {"FLAGS": "\n".join(flags), "VALUES": "\n".join(lines)}
    return re.sub("NAMES|SHELLS|FLAGS|VALUES", lambda place: parts[place[0]], SCRIPT)


def _words(field: FieldInfo) -> tuple[str, ...]:
    if field.annotation is bool:
        return ("true", "false")
    return tuple(map(str, get_args(field.annotation))) if get_origin(field.annotation) is Literal else ()


def show(start: Start[Options]) -> None:
    say((ZSH if start.options.shell == "zsh" else "") + script())


COMMAND, main = entry_point("completion", __doc__, Options, show)
main = first_word_as("shell", main)

if __name__ == "__main__":
    raise SystemExit(launch(main))
