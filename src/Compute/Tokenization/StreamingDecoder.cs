using System.Text;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// Decodes ids one at a time while a model writes them and gives out whole characters only: a token may end inside one.
/// All outputs joined equal <see cref="ITokenizer.Decode"/> of all ids. For one text; not thread-safe.
/// </summary>
/// <param name="tokenizer">Tells the bytes of each token.</param>
/// <param name="skipSpecialTokens">Whether special tokens are left out.</param>
public sealed class StreamingDecoder(ITokenizer tokenizer, bool skipSpecialTokens)
{
    private readonly Decoder _decoder = Encoding.UTF8.GetDecoder();

    /// <summary>Text that became complete with this token; may be empty.</summary>
    public string Add(int id) =>
        skipSpecialTokens && tokenizer.SpecialIds.Contains(id) ? "" : Decode(tokenizer.TokenBytes(id), flush: false);

    /// <summary>What is left at the end: U+FFFD for an unfinished character, else empty. The decoder can then begin a new text.</summary>
    public string Finish() => Decode([], flush: true);

    private string Decode(ReadOnlySpan<byte> bytes, bool flush)
    {
        var chars = new char[_decoder.GetCharCount(bytes, flush)];
        var count = _decoder.GetChars(bytes, chars, flush);
        return new string(chars, 0, count);
    }
}
