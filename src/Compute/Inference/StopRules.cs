using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Inference;

/// <summary>What ends an answer.</summary>
public sealed record StopRules
{
    /// <summary>Tokens that end it and are no part of it.</summary>
    public required IReadOnlySet<int> Ids { get; init; }

    /// <summary>Texts that end it and are cut off: end markers that are no single token.</summary>
    public required IReadOnlyList<string> Endings { get; init; }

    /// <summary>Texts that end it and stay in it: the user's.</summary>
    public required IReadOnlyList<string> Words { get; init; }

    /// <summary>Never before the length is reached.</summary>
    public static StopRules None { get; } = new() { Ids = new HashSet<int>(), Endings = [], Words = [] };

    /// <summary>EOS of the model and of the tokenizer, stop words and suffix of the template, and the user's words.</summary>
    /// <param name="template">Bound to the tokenizer.</param>
    public static StopRules Of(ITokenizer tokenizer, ChatTemplate template, IEnumerable<int> modelEosIds, IReadOnlyList<string> userWords)
    {
        var ids = new HashSet<int>(modelEosIds);
        if (tokenizer.EosId is { } eos) ids.Add(eos);
        var endings = new List<string>();
        foreach (var word in template.StopWords.Append(template.Suffix).Where(word => word.Length > 0))
        {
            if (tokenizer.Encode(word) is [var single]) ids.Add(single);
            else endings.Add(word);
        }
        return new StopRules { Ids = ids, Endings = endings, Words = [.. userWords.Where(word => word.Length > 0)] };
    }
}
