using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Sources;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data;

/// <summary>What happens to a sample longer than <c>max_length</c>.</summary>
public enum TruncationStrategy
{
    /// <summary>It is left out.</summary>
    Delete,

    /// <summary>Its tail is kept.</summary>
    Left,

    /// <summary>Its head is kept.</summary>
    Right,

    /// <summary>It is cut into samples of at most max_length tokens (pre-training text only).</summary>
    Split,
}

/// <summary>What became of one conversation.</summary>
/// <param name="Samples">One sample; several after a split; none when it was left out.</param>
/// <param name="Deleted">Why it was left out although the row is sound: too long, or nothing to learn.</param>
/// <param name="Problem">Why the row does not fit the template.</param>
/// <param name="Fatal">A mistake that all rows share: DATA022.</param>
/// <param name="WasCut">True when tokens were cut off.</param>
internal sealed record EncodedRow(
    EncodedSample[] Samples, RowProblem? Deleted = null, RowProblem? Problem = null, ConfigError? Fatal = null, bool WasCut = false)
{
    /// <summary>True when it has several rounds, of which the template uses the last only.</summary>
    public bool LosesRounds { get; init; }
}

/// <summary>
/// Conversation → samples: token ids, labels shifted by one, loss weights where they are not all 1. Truncation is applied before the shift, so
/// the last kept position has no target; a split is applied after it, so the last position of a part still predicts the first of the next.
/// </summary>
internal sealed class SampleEncoder(ConversationEncoder encoder, int maxLength, TruncationStrategy truncation, int modelVocab)
{
    /// <summary>Encodes one conversation; safe for several threads. Never throws for a bad row.</summary>
    public EncodedRow Encode(Conversation conversation, string position) => EncodeRow(conversation, position) with
    {
        LosesRounds = encoder.Template.Separator is null && conversation.Messages.Count(message => message.Role == ChatMessage.User) > 1,
    };

    private EncodedRow EncodeRow(Conversation conversation, string position)
    {
        EncodedText text;
        try
        {
            text = encoder.Encode(conversation);
        }
        catch (ConfigException e)
        {
            var error = e.Errors[0];
            var reason = error.Code == "TPL002" ? "no place for a system prompt" : "does not fit the template";
            return new EncodedRow([], Problem: new RowProblem(error.Code, reason, position, error.Message));
        }
        if (FindOutside(text.Ids) is { } id)
            return new EncodedRow([], Fatal: new ConfigError("DATA022", $"{position}: the tokenizer gives token id {id}, but the model has {modelVocab} " +
                "embeddings; use the tokenizer that belongs to the model."));

        var tooLong = text.Ids.Length > maxLength;
        if (tooLong && truncation == TruncationStrategy.Delete)
            return Left("DATA013", "longer than max_length", position, $"{text.Ids.Length} tokens are more than max_length = {maxLength}.");
        if (text.Ids.Length < 2) return NothingToLearn(position);

        EncodedSample[] samples = tooLong && truncation == TruncationStrategy.Split
            ? Split(ToSample(text.Ids, text.Weights))
            : [Truncate(text)];
        samples = Array.FindAll(samples, sample => sample.TargetWeight > 0);
        return samples.Length == 0 ? NothingToLearn(position) : new EncodedRow(samples, WasCut: tooLong);
    }

    private static EncodedRow Left(string code, string reason, string position, string detail) =>
        new([], Deleted: new RowProblem(code, reason, position, detail));

    private static EncodedRow NothingToLearn(string position) =>
        Left("DATA014", "nothing to learn", position, "all labels are masked, so the sample would teach nothing.");

    private int? FindOutside(int[] ids)
    {
        foreach (var id in ids)
            if ((uint)id >= (uint)modelVocab) return id;
        return null;
    }

    private EncodedSample Truncate(EncodedText text)
    {
        if (text.Ids.Length <= maxLength) return ToSample(text.Ids, text.Weights);
        return truncation == TruncationStrategy.Left
            ? ToSample(text.Ids[^maxLength..], text.Weights[^maxLength..])
            : ToSample(text.Ids[..maxLength], text.Weights[..maxLength]);
    }

    private EncodedSample[] Split(EncodedSample whole)
    {
        var parts = new EncodedSample[(whole.Length + maxLength - 1) / maxLength];
        for (var i = 0; i < parts.Length; i++)
        {
            var range = (i * maxLength)..Math.Min((i + 1) * maxLength, whole.Length);
            parts[i] = new EncodedSample(whole.TokenIds[range], whole.Labels[range], whole.LossWeights?[range]);
        }
        return parts;
    }

    private static EncodedSample ToSample(int[] ids, float[] weights)
    {
        var labels = new int[ids.Length];
        for (var i = 0; i < ids.Length; i++) labels[i] = weights[i] == 0f ? MicroBatch.IgnoreIndex : ids[i];
        return EncodedSample.FromUnshifted(ids, labels, weights);
    }
}
