#compdef hfadapt
# hfadapt completion zsh: in ~/.zshrc after compinit, eval "$(hfadapt completion zsh)"
_hfadapt() {
    local -a open closed
    local answer value
    for answer in "${(@f)$(_TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS="${(j: :)words[1,CURRENT]}" \
        _HFADAPT_COMPLETE=complete_fish "${words[1]}" 2>/dev/null)}"; do
        [[ -n "$answer" ]] || continue
        value="${${answer%%$'\t'*}//:/\\:}"
        [[ "$answer" == *$'\t'* ]] && value+=":${answer#*$'\t'}"
        # After these the word goes on.
        if [[ "${answer%%$'\t'*}" == *[=./] ]]; then open+=("$value"); else closed+=("$value"); fi
    done
    (( $#open )) && _describe -V hfadapt open -S ''
    (( $#closed )) && _describe -V hfadapt closed
    (( $#open + $#closed )) || _files
}
if [[ "${funcstack[1]}" == _hfadapt ]]; then _hfadapt "$@"; else compdef _hfadapt hfadapt; fi
