using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Tests.Data;

/// <summary>A tokenizer that passes everything on, for tests that watch or change one call.</summary>
internal abstract class DelegatingTokenizer(ITokenizer inner) : ITokenizer
{
    public int VocabSize => inner.VocabSize;
    public int? BosId => inner.BosId;
    public int? EosId => inner.EosId;
    public int? PadId => inner.PadId;
    public bool AddsBos => inner.AddsBos;
    public IReadOnlySet<int> SpecialIds => inner.SpecialIds;

    public virtual int[] Encode(string text) => inner.Encode(text);

    public string Decode(ReadOnlySpan<int> ids, bool skipSpecialTokens) => inner.Decode(ids, skipSpecialTokens);

    public ReadOnlySpan<byte> TokenBytes(int id) => inner.TokenBytes(id);

    public int? TokenToId(string token) => inner.TokenToId(token);

    public string? IdToToken(int id) => inner.IdToToken(id);
}
