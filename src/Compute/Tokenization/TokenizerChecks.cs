using System.Globalization;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>Whether a tokenizer and a model go together.</summary>
public static class TokenizerChecks
{
    /// <summary>Throws <see cref="ConfigException"/> TOK006 when a token has no row in the embedding.</summary>
    /// <param name="tokenizer">The tokenizer.</param>
    /// <param name="embeddingRows">Rows of the embedding: <c>vocab_size</c> of config.json, padding included.</param>
    public static void CheckAgainst(this ITokenizer tokenizer, int embeddingRows)
    {
        if (tokenizer.VocabSize > embeddingRows)
            throw new ConfigException("TOK006", string.Create(CultureInfo.InvariantCulture,
                $"The tokenizer has ids up to {tokenizer.VocabSize - 1} but the model's embedding has {embeddingRows} rows (vocab_size); "
                + $"use the tokenizer that belongs to the model or enlarge vocab_size to at least {tokenizer.VocabSize}."));
    }
}
