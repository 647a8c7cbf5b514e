# hfadapt completion bash: in ~/.bashrc, eval "$(hfadapt completion bash)"
_hfadapt_completion() {
    local line="${COMP_LINE:0:COMP_POINT}" answer word words
    word="${line##*[[:space:]]}"
    read -ra words <<<"$line"
    COMPREPLY=()
    while IFS= read -r answer; do
        # Words end at = and : for readline, which then puts the answer behind them.
        if [[ "$word" == *[=:]* ]]; then
            answer="${answer#"${word%"${word##*[=:]}"}"}"
        fi
        [[ -n "$answer" ]] && COMPREPLY+=("$answer")
    done < <(COMP_WORDS="$line" COMP_CWORD=$((${#words[@]} - (${#word} > 0))) _HFADAPT_COMPLETE=complete_bash \
        "$1" 2>/dev/null)
    # After these the word goes on.
    if [[ "${COMPREPLY[*]}" == *[=./] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -o nosort -F _hfadapt_completion hfadapt
