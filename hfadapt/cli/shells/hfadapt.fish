# hfadapt completion fish: hfadapt completion fish > ~/.config/fish/completions/hfadapt.fish
function __hfadapt_answers
    set -l answers (_TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS=(commandline -cp) \
        _HFADAPT_COMPLETE=complete_fish hfadapt 2>/dev/null)
    if test -n "$answers"
        printf '%s\n' $answers
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --command hfadapt --no-files --keep-order --arguments "(__hfadapt_answers)"
