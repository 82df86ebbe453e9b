using System.Text;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Tests.Data;

/// <summary>One token per UTF-8 byte, and the chat markers as tokens of their own: expectations can be written down by hand.</summary>
internal sealed class TestTokenizer : ITokenizer
{
    public const int ImStart = 256;
    public const int ImEnd = 257;
    public const int EndOfText = 258;

    private static readonly string[] Specials = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"];

    public int VocabSize => 259;
    public int? BosId => null;
    public int? EosId => EndOfText;
    public int? PadId => EndOfText;
    public bool AddsBos => false;
    public IReadOnlySet<int> SpecialIds { get; } = new HashSet<int> { ImStart, ImEnd, EndOfText };

    public int[] Encode(string text)
    {
        var ids = new List<int>();
        while (text.Length > 0)
        {
            var special = Array.FindIndex(Specials, text.StartsWith);
            var taken = special >= 0 ? Specials[special].Length : char.IsHighSurrogate(text[0]) ? 2 : 1;
            if (special >= 0) ids.Add(256 + special);
            else ids.AddRange(Encoding.UTF8.GetBytes(text[..taken]).Select(b => (int)b));
            text = text[taken..];
        }
        return [.. ids];
    }

    public string Decode(ReadOnlySpan<int> ids, bool skipSpecialTokens)
    {
        var bytes = new List<byte>();
        foreach (var id in ids)
            if (id < 256 || !skipSpecialTokens) bytes.AddRange(TokenBytes(id).ToArray());
        return Encoding.UTF8.GetString([.. bytes]);
    }

    public ReadOnlySpan<byte> TokenBytes(int id) => id < 256 ? new[] { (byte)id } : Encoding.UTF8.GetBytes(Specials[id - 256]);

    public int? TokenToId(string token) => Array.IndexOf(Specials, token) is var at and >= 0 ? 256 + at : null;

    public string? IdToToken(int id) => id >= 256 && id < VocabSize ? Specials[id - 256] : null;
}
