namespace Megatron.Compute.Tokenization;

/// <summary>One message of a conversation.</summary>
/// <param name="Role"><c>user</c>, <c>assistant</c>, <c>tool_call</c>, <c>tool_response</c>, or <c>system</c> for the first message.</param>
/// <param name="Content">The text, taken as it is; of a tool call the JSON with name and arguments.</param>
/// <param name="Loss">
/// Of an assistant message or a tool call: true or false says whether it is learned, whatever the loss scale; null leaves it to the loss scale.
/// </param>
public sealed record ChatMessage(string Role, string Content, bool? Loss = null)
{
    /// <summary>Role of the one who asks.</summary>
    public const string User = "user";

    /// <summary>Role of the model.</summary>
    public const string Assistant = "assistant";

    /// <summary>Role of the model where it calls a tool.</summary>
    public const string ToolCall = "tool_call";

    /// <summary>Role of a tool's result.</summary>
    public const string ToolResponse = "tool_response";

    /// <summary>Role of the instruction in front of a conversation.</summary>
    public const string SystemRole = "system";
}
