namespace Megatron.Compute.Tokenization;

/// <summary>One row of chat data.</summary>
/// <param name="System">
/// System prompt of this row; null leaves it to the setting and then to the template, an empty string removes the system block.
/// A leading <c>system</c> message of <paramref name="Messages"/> counts as this when it is null.
/// </param>
/// <param name="Messages">The messages in order.</param>
public sealed record Conversation(string? System, IReadOnlyList<ChatMessage> Messages)
{
    /// <summary>Signatures of the tools that the model may call, each as JSON on one line; empty for none.</summary>
    public IReadOnlyList<string> Tools { get; init; } = [];

    /// <summary>True when it speaks of tools in any way, which only some templates can write.</summary>
    public bool HasTools => Tools.Count > 0 || Messages.Any(message => message.Role is ChatMessage.ToolCall or ChatMessage.ToolResponse);
}
