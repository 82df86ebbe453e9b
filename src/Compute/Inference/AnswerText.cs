using System.Text;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Inference;

/// <summary>
/// The text of one answer while its tokens come: whole characters only, and the beginning of a possible end marker is held back until it is
/// clear that it is none.
/// </summary>
internal sealed class AnswerText
{
    private readonly StreamingDecoder decoder;
    private readonly StopRules stops;
    private readonly Action<string>? onText;
    private readonly StringBuilder text = new();
    private readonly int heldBack;
    private readonly int longest;
    private int numShown;

    /// <param name="beginning">What the answer begins with, from the prompt; shown at once.</param>
    /// <param name="onText">Gets the text in pieces; null when nobody listens.</param>
    public AnswerText(ITokenizer tokenizer, StopRules stops, string beginning, Action<string>? onText)
    {
        decoder = new StreamingDecoder(tokenizer, skipSpecialTokens: false);
        (this.stops, this.onText) = (stops, onText);
        heldBack = stops.Endings.Select(ending => ending.Length - 1).DefaultIfEmpty(0).Max();
        longest = stops.Endings.Concat(stops.Words).Select(word => word.Length).DefaultIfEmpty(0).Max();
        text.Append(beginning);
        Show(text.Length);
    }

    /// <summary>Takes a token; true when the answer ends with it.</summary>
    public bool Add(int id)
    {
        var before = text.Length;
        text.Append(decoder.Add(id));
        if (text.Length == before) return false;
        if (longest == 0)
        {
            Show(text.Length);
            return false;
        }

        var from = Math.Max(0, before - longest + 1);
        var tail = text.ToString(from, text.Length - from);
        foreach (var ending in stops.Endings)
        {
            if (tail.IndexOf(ending, StringComparison.Ordinal) is var at and >= 0)
            {
                text.Length = from + at;
                return true;
            }
        }
        if (stops.Words.Any(word => tail.Contains(word, StringComparison.Ordinal))) return true;
        Show(text.Length - heldBack);
        return false;
    }

    /// <summary>Shows the rest and returns the whole answer.</summary>
    public string Finish()
    {
        text.Append(decoder.Finish());
        Show(text.Length);
        return text.ToString();
    }

    private void Show(int end)
    {
        if (end <= numShown) return;
        onText?.Invoke(text.ToString(numShown, end - numShown));
        numShown = end;
    }
}
