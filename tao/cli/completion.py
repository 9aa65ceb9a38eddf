"""``tao --print-completion SHELL``: shell scripts that complete commands and options.

The scripts are generated from the parser, so they match it, and tao does not run while the user
types.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["script"]


class _Option(NamedTuple):
    """An option of a command: its name, its help, and what may follow it."""

    name: str
    help: str
    takes: str  # "" nothing, "file", "directory", "text", or the choices separated by spaces


class _Command(NamedTuple):
    name: str
    help: str
    options: list[_Option]


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for one of the shells.

    Args:
        parser: of the whole command line, with one level of commands.
        shell: ``"bash"``, ``"zsh"`` or ``"fish"``.
    """
    main = _Command("", "", list(_options(parser)))
    commands = list(_commands(parser))
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](main, commands)


def _commands(parser: argparse.ArgumentParser) -> Iterator[_Command]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {each.dest: each.help or "" for each in action._choices_actions}
            for name, command in action.choices.items():
                yield _Command(name, summaries.get(name, ""), list(_options(command)))


def _options(parser: argparse.ArgumentParser) -> Iterator[_Option]:
    for action in parser._actions:
        for name in action.option_strings:
            if name.startswith("--"):
                text = (action.help or "").partition("(%")[0].split(";")[0].strip()
                yield _Option(name, text.replace("'", ""), _takes(action))


def _takes(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return " ".join(map(str, action.choices))
    return {"FILE": "file", "PATH": "file", "DIR": "directory"}.get(str(action.metavar), "text")


_BASH: Final = """\
# tao's options for bash. To use it: source <(tao --print-completion bash)
_tao() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} options
    COMPREPLY=()
    case ${COMP_WORDS[1]}:$before in
@VALUES@
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        options='@MAIN@'
    else
        case ${COMP_WORDS[1]} in
@COMMANDS@
            *) return;;
        esac
    fi
    COMPREPLY=($(compgen -W "$options" -- "$word"))
}
complete -o bashdefault -F _tao tao"""


def _bash(main: _Command, commands: list[_Command]) -> str:
    values, cases = [], []
    for command in (main, *commands):
        for option in command.options:
            # The first word of a main option is the option itself.
            pattern = f"{command.name or option.name}:{option.name}"
            if option.takes in ("file", "directory"):
                kind = "f" if option.takes == "file" else "d"
                values.append(
                    f'        {pattern}) COMPREPLY=($(compgen -{kind} -- "$word")); return;;'
                )
            elif option.takes == "text":
                values.append(f"        {pattern}) return;;")
            elif option.takes:
                reply = f'COMPREPLY=($(compgen -W "{option.takes}" -- "$word"))'
                values.append(f"        {pattern}) {reply}; return;;")
        if command.name:
            names = " ".join(option.name for option in command.options)
            cases.append(f"            {command.name}) options='{names}';;")
    first = [command.name for command in commands] + [option.name for option in main.options]
    return (
        _BASH.replace("@VALUES@", "\n".join(values))
        .replace("@MAIN@", " ".join(first))
        .replace("@COMMANDS@", "\n".join(cases))
    )


_ZSH: Final = """\
#compdef tao
# tao's options for zsh. To use it: tao --print-completion zsh > DIRECTORY/_tao, where DIRECTORY
# is one of your fpath, or after compinit: source <(tao --print-completion zsh)
_tao() {
    local -a commands
    commands=(
@COMMANDS@
    )
    if (( CURRENT == 2 )) && [[ $words[CURRENT] != -* ]]; then
        _describe command commands
        return
    fi
    case $words[2] in
@CASES@
        *) _arguments @MAIN@;;
    esac
}
if [[ $funcstack[1] == _tao ]]; then _tao "$@"; else compdef _tao tao; fi"""


def _zsh(main: _Command, commands: list[_Command]) -> str:
    def quoted(option: _Option) -> str:
        text = option.help.replace("[", "(").replace("]", ")").replace(":", ",")
        values = {"": "", "file": ":file:_files", "directory": ":directory:_files -/"}.get(
            option.takes, ":value:" if option.takes == "text" else f":value:({option.takes})"
        )
        return f"'{option.name}[{text}]{values}'"

    names = [f"        '{each.name}:{each.help.replace(':', ',')}'" for each in commands]
    cases = []
    for command in commands:
        # Positional arguments may appear anywhere.
        options = " ".join([*map(quoted, command.options), "'*:argument: '"])
        cases.append(
            f"        {command.name}) shift words; (( CURRENT-- )); _arguments {options};;"
        )
    return (
        _ZSH.replace("@COMMANDS@", "\n".join(names))
        .replace("@CASES@", "\n".join(cases))
        .replace("@MAIN@", " ".join(map(quoted, main.options)))
    )


def _fish(main: _Command, commands: list[_Command]) -> str:
    lines = [
        "# tao's options for fish. To use it: tao --print-completion fish | source",
        "complete -c tao -f",
    ]
    for each in commands:
        lines.append(f"complete -c tao -n __fish_use_subcommand -a {each.name} -d '{each.help}'")
    for command in (main, *commands):
        seen = command.name and f"'__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            takes = {
                "": "",
                "text": " -x",
                "file": " -r -F",
                "directory": " -x -a '(__fish_complete_directories)'",
            }.get(option.takes, f" -x -a '{option.takes}'")
            name = option.name.removeprefix("--")
            condition = seen or "__fish_use_subcommand"
            lines.append(f"complete -c tao -n {condition} -l {name}{takes} -d '{option.help}'")
    return "\n".join(lines)
