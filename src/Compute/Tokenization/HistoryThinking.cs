namespace Megatron.Compute.Tokenization;

/// <summary>
/// What happens to the think block of earlier answers when a prompt is rendered for inference. Training text is never changed.
/// </summary>
public enum HistoryThinking
{
    /// <summary>Earlier answers stay as they are.</summary>
    Keep,

    /// <summary>Only the text after the last <c>&lt;/think&gt;</c> stays, without its leading newlines (Qwen).</summary>
    Remove,

    /// <summary>Only the text after the last <c>&lt;/think&gt;</c> stays, newlines included (DeepSeek-R1).</summary>
    Cut,
}
