namespace Megatron.Client.Cli;

/// <summary>Folders that this and other programs keep data in, from the environment.</summary>
/// <param name="Own">For prepared data: MEGATRON_CACHE, else megatron in the user's cache folder; null when neither is known.</param>
/// <param name="HuggingFace">Downloads of the Hugging Face hub: HF_HUB_CACHE, else HF_HOME/hub, else huggingface/hub in the user's cache folder.</param>
/// <param name="ModelScope">Downloads of ModelScope: MODELSCOPE_CACHE, else modelscope in the user's cache folder.</param>
public sealed record CacheFolders(string? Own, string? HuggingFace, string? ModelScope)
{
    /// <summary>Reads the variables; an empty one counts as not set. The user's cache folder is XDG_CACHE_HOME, else HOME/.cache.</summary>
    public static CacheFolders Read(Func<string, string?> get)
    {
        string? Text(string name) => get(name) is { Length: > 0 } text ? text : null;
        var user = Text("XDG_CACHE_HOME") ?? Under(Text("HOME"), ".cache");
        return new CacheFolders(
            Text("MEGATRON_CACHE") ?? Under(user, "megatron"),
            Text("HF_HUB_CACHE") ?? Under(Text("HF_HOME"), "hub") ?? Under(user, "huggingface", "hub"),
            Text("MODELSCOPE_CACHE") ?? Under(user, "modelscope"));
    }

    private static string? Under(string? folder, params ReadOnlySpan<string> below) => folder is null ? null : Path.Combine([folder, .. below]);
}
