using System.Text.Json;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data;

/// <summary>One row as a model would be given it, for checking by hand.</summary>
/// <param name="Position">File and line.</param>
/// <param name="Ids">Token ids; empty when the row cannot be used.</param>
/// <param name="Labels">For each token its id where it is learned, else <see cref="MicroBatch.IgnoreIndex"/>; not shifted. Null for plain text.</param>
/// <param name="Error">Why the row cannot be used; null when it can.</param>
public sealed record TokenizedRow(string Position, IReadOnlyList<int> Ids, IReadOnlyList<int>? Labels, ConfigError? Error);

/// <summary>Tokens of a file's rows: conversations through a template with their label mask, plain texts as they are.</summary>
public static class TokenizedRows
{
    /// <summary>
    /// Reads a file of any data format. A row that is a JSON string, or an object with a text and neither messages nor a question, is plain text;
    /// every other row is a conversation.
    /// </summary>
    /// <param name="path">The file.</param>
    /// <param name="config">Template and data options.</param>
    /// <param name="tokenizer">Makes the ids.</param>
    /// <param name="template">For conversations; null when none is known, which a conversation then is told.</param>
    /// <exception cref="ConfigException">The file cannot be used at all. Bad rows come as rows with an error.</exception>
    public static IEnumerable<TokenizedRow> Read(string path, TrainingConfig config, ITokenizer tokenizer, ChatTemplate? template)
    {
        var parser = new RowParser(
            DatasetBuilder.ParseColumns(config.Columns), new SelfCognition(config.ModelName, config.ModelAuthor), (ulong)(uint)config.Seed, RowPurpose.Training);
        var encoder = template is null
            ? null
            : new ConversationEncoder(tokenizer, template.WithAgentTemplate(config.AgentTemplate), new RenderOptions(config.System, LossScales.Parse(config.LossScale)), config.DateString);
        using var rows = RowSources.Open(path);
        while (rows.TryRead(out var row))
            yield return PlainText(row) is { } text
                ? new TokenizedRow(row.Position, tokenizer.Encode(text), Labels: null, Error: null)
                : Conversation(row, parser, encoder);
    }

    private static string? PlainText(SourceRow row)
    {
        if (row.Problem is not null) return null;
        try
        {
            using var document = JsonDocument.Parse(row.Json);
            var value = document.RootElement;
            if (value.ValueKind == JsonValueKind.String) return value.GetString();
            if (value.ValueKind != JsonValueKind.Object || !value.TryGetProperty("text", out var text) || text.ValueKind != JsonValueKind.String) return null;
            return RowColumns.Messages.Concat(RowColumns.Query).Any(name => value.TryGetProperty(name, out _)) ? null : text.GetString();
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            return null; // the parser of conversations says what is wrong
        }
    }

    private static TokenizedRow Conversation(SourceRow row, RowParser parser, ConversationEncoder? encoder)
    {
        var position = row.Position;
        if (!parser.TryParse(row, new DataNotices(), out var conversation, out var problem)) return Bad(position, problem.ToError());
        if (encoder is null) return Bad(position, new ConfigError("TPL001", $"{position}: the row is a conversation, but no template is known; give --template."));
        try
        {
            var encoded = encoder.Encode(conversation);
            return new TokenizedRow(
                position, encoded.Ids, [.. encoded.Ids.Zip(encoded.Weights, (id, weight) => weight == 0 ? MicroBatch.IgnoreIndex : id)], Error: null);
        }
        catch (ConfigException e)
        {
            return Bad(position, e.Errors[0]);
        }
    }

    private static TokenizedRow Bad(string position, ConfigError error) => new(position, [], Labels: null, error);
}
