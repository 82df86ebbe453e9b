namespace Megatron.Compute.Tokenization;

/// <summary>
/// Text to token ids and back. Implementations are immutable and may be shared by threads.
/// </summary>
public interface ITokenizer
{
    /// <summary>Highest token id plus one, added tokens included; the embedding needs at least this many rows.</summary>
    int VocabSize { get; }

    /// <summary>Id of the beginning-of-sequence token; null when the tokenizer names none.</summary>
    int? BosId { get; }

    /// <summary>Id of the end-of-sequence token; null when the tokenizer names none.</summary>
    int? EosId { get; }

    /// <summary>Id of the padding token, else <see cref="EosId"/>; null when there is neither.</summary>
    int? PadId { get; }

    /// <summary>Whether the tokenizer's own post-processing puts BOS in front of a text. <see cref="Encode"/> never does.</summary>
    bool AddsBos { get; }

    /// <summary>Ids of special tokens: those that <see cref="Decode"/> can leave out.</summary>
    IReadOnlySet<int> SpecialIds { get; }

    /// <summary>Ids of a text. Added and special tokens in the text are recognised; none is added.</summary>
    int[] Encode(string text);

    /// <summary>
    /// Text of ids; bytes that are no UTF-8 become U+FFFD, ids without a token (padded embedding rows) are left out.
    /// </summary>
    string Decode(ReadOnlySpan<int> ids, bool skipSpecialTokens);

    /// <summary>UTF-8 bytes that a token stands for, possibly part of a character; empty for an id without a token.</summary>
    ReadOnlySpan<byte> TokenBytes(int id);

    /// <summary>Id of a token as written in the vocabulary (or an added token's text); null when unknown.</summary>
    int? TokenToId(string token);

    /// <summary>The token as written in the vocabulary; null when the id has none.</summary>
    string? IdToToken(int id);
}
