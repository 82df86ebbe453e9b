namespace Megatron.Client.Cli;

/// <summary>Shell functions that ask the program itself for completions.</summary>
public static class CompletionScript
{
    /// <summary>For <c>source &lt;(megatron completion bash)</c>.</summary>
    public const string Bash = """
        _megatron() {
          local IFS=$'\n' current="${COMP_WORDS[COMP_CWORD]}"
          COMPREPLY=($(compgen -W "$(megatron "[suggest:$((COMP_POINT - ${#COMP_WORDS[0]} - 1))]" "${COMP_LINE#* }" 2>/dev/null)" -- "$current"))
        }
        complete -o default -F _megatron megatron
        """;

    /// <summary>For <c>source &lt;(megatron completion zsh)</c>.</summary>
    public const string Zsh = """
        _megatron() {
          local -a words_found
          words_found=("${(@f)$(megatron "[suggest:$((CURSOR - ${#words[1]} - 1))]" "${BUFFER#* }" 2>/dev/null)}")
          compadd -a words_found || _files
        }
        compdef _megatron megatron
        """;
}
