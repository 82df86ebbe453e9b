using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// How a model family writes a conversation, as parts instead of a program, because loss masks need to know where an answer begins and
/// ends.
/// Placeholders: <c>{{SYSTEM}}</c>, <c>{{QUERY}}</c>; and <c>{{BOS}}</c>, <c>{{EOS}}</c>, <c>{{DATE}}</c>, which <see cref="Bind"/> fills.
/// Not here: how tools are written (<see cref="HermesTools"/>), and the Jinja programs of Hugging Face folders.
/// </summary>
public sealed record ChatTemplate
{
    /// <summary>
    /// Date that <c>{{DATE}}</c> becomes unless another is asked for; fixed so that training data do not change from day to day.
    /// </summary>
    public const string DefaultDate = "26 Jul 2024";

    /// <summary>Name on the command line and in args.json.</summary>
    public required string Name { get; init; }

    /// <summary>Text in front of the first round when there is no system prompt.</summary>
    public required string Prefix { get; init; }

    /// <summary>
    /// Text in front of the first round with a system prompt at <c>{{SYSTEM}}</c>; null when the family has no place for one.
    /// </summary>
    public string? SystemPrefix { get; init; }

    /// <summary>A question at <c>{{QUERY}}</c>, up to where the answer begins.</summary>
    public required string Prompt { get; init; }

    /// <summary>Text between an answer and the next question; null: only the last round of a conversation is used.</summary>
    public string? Separator { get; init; }

    /// <summary>Text after the last answer in training; the end marker that the model learns to write.</summary>
    public required string Suffix { get; init; }

    /// <summary>System prompt when neither the row nor the setting gives one; null for none.</summary>
    public string? DefaultSystem { get; init; }

    /// <summary>Texts that end an answer, besides the suffix and the tokenizer's EOS.</summary>
    public IReadOnlyList<string> StopWords { get; init; } = [];

    /// <summary>Beginning of each answer at inference, such as an opened think block; empty for none.</summary>
    public string ResponsePrefix { get; init; } = "";

    /// <summary>Beginning of an answer at inference when thinking is switched off; null when the family has no such switch.</summary>
    public string? NonThinkingPrefix { get; init; }

    /// <summary>What happens to think blocks of earlier answers at inference.</summary>
    public HistoryThinking HistoryThinking { get; init; } = HistoryThinking.Keep;

    /// <summary>Name of the family's form for tools; <c>hermes</c> is the one that can be written.</summary>
    public string AgentTemplate { get; init; } = "react_en";

    /// <summary>Whether BOS stands in front of everything when the tokenizer itself would put it there.</summary>
    public bool AutoBos { get; init; }

    /// <summary>This template with another form for tools; itself when <paramref name="name"/> is null.</summary>
    public ChatTemplate WithAgentTemplate(string? name) => name is null ? this : this with { AgentTemplate = name };

    /// <summary>
    /// This template with the tokenizer's BOS and EOS and a date filled in. Rendering needs a bound template where these placeholders
    /// occur.
    /// Throws <see cref="ConfigException"/> TPL004 when the template needs an EOS that the tokenizer does not name.
    /// </summary>
    /// <param name="tokenizer">Gives BOS, EOS and whether BOS is added.</param>
    /// <param name="date">Text for <c>{{DATE}}</c>, written as in <see cref="DefaultDate"/>.</param>
    public ChatTemplate Bind(ITokenizer tokenizer, string date)
    {
        var bos = tokenizer.BosId is int bosId ? tokenizer.IdToToken(bosId) ?? "" : "";
        var eos = tokenizer.EosId is int eosId ? tokenizer.IdToToken(eosId) : null;
        if (eos is null && (Suffix + Separator).Contains("{{EOS}}", StringComparison.Ordinal))
            throw new ConfigException("TPL004",
                $"Template '{Name}' ends texts with the tokenizer's EOS, but the tokenizer names no eos_token; "
                + "add it to tokenizer_config.json.");
        var front = AutoBos && tokenizer.AddsBos ? bos : "";
        return this with
        {
            Prefix = front + Fill(Prefix),
            SystemPrefix = SystemPrefix is null ? null : front + Fill(SystemPrefix),
            Separator = Separator is null ? null : Fill(Separator),
            Suffix = Fill(Suffix),
            AutoBos = false,
        };

        string Fill(string part) => part
            .Replace("{{BOS}}", bos, StringComparison.Ordinal)
            .Replace("{{EOS}}", eos ?? "", StringComparison.Ordinal)
            .Replace("{{DATE}}", date, StringComparison.Ordinal);
    }
}
