namespace Megatron.Compute.Inference;

/// <summary>One text to go on with.</summary>
public sealed record GenerationRequest
{
    /// <summary>Tokens of the prompt, at least one.</summary>
    public required int[] PromptIds { get; init; }

    public required SamplingOptions Sampling { get; init; }

    /// <summary>Most tokens of the answer; less when the model's positions end.</summary>
    public required int MaxNewTokens { get; init; }

    /// <summary>Number of the sequence, a coordinate of its random numbers.</summary>
    public required long Sequence { get; init; }

    /// <summary>End of the prompt that counts as the beginning of the answer.</summary>
    public string Beginning { get; init; } = "";
}

/// <summary>Why an answer ended.</summary>
public enum FinishReason
{
    /// <summary>The model ended it, or a stop word was reached.</summary>
    Stop,

    /// <summary>The number of tokens is used up.</summary>
    Length,
}

/// <summary>An answer.</summary>
/// <param name="Text">Without the end marker.</param>
/// <param name="TokenIds">Generated tokens without the end marker.</param>
/// <param name="NumPromptTokens">Tokens of the prompt.</param>
/// <param name="NumGeneratedTokens">Tokens that were computed, the end marker among them.</param>
/// <param name="Finish">Why it ended.</param>
public sealed record GenerationResult(string Text, IReadOnlyList<int> TokenIds, int NumPromptTokens, int NumGeneratedTokens, FinishReason Finish);
