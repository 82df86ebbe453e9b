namespace Megatron.Compute.Tokenization;

/// <summary>One message of a conversation.</summary>
/// <param name="Role"><c>user</c>, <c>assistant</c>, or <c>system</c> for the first message.</param>
/// <param name="Content">The text, taken as it is.</param>
/// <param name="Loss">
/// Of an assistant message: true or false says whether it is learned, whatever the loss scale; null leaves it to the loss scale.
/// </param>
public sealed record ChatMessage(string Role, string Content, bool? Loss = null)
{
    /// <summary>Role of the one who asks.</summary>
    public const string User = "user";

    /// <summary>Role of the model.</summary>
    public const string Assistant = "assistant";

    /// <summary>Role of the instruction in front of a conversation.</summary>
    public const string SystemRole = "system";
}
