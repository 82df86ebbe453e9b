using System.Text.Encodings.Web;
using System.Text.Json;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Models;
using Megatron.Compute.Tokenization;

namespace Megatron.Client.Cli.Commands;

/// <summary>
/// <c>megatron tokenize</c>: one JSON line per row with <c>ids</c>, <c>decoded</c> and, for a conversation, <c>labels</c> (−100 where nothing is
/// learned, not shifted) and <c>label_text</c>. A row that cannot be used becomes a line with <c>error</c>, and the exit code is 2.
/// </summary>
/// <param name="console">Where to print.</param>
public sealed class TokenizeCommand(CommandConsole console) : IVerbCommand
{
    private static readonly JsonWriterOptions Options = new() { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var config = options.Config;
        var folder = config.Tokenizer ?? config.Model
            ?? throw new ConfigException("CFG008", "--tokenizer is missing; give the folder that holds tokenizer.json.");
        var input = config.Input ?? throw new ConfigException("CFG008", "--input is missing; give a file of texts or rows (json, jsonl, txt, csv, parquet).");
        if (!File.Exists(input)) throw new ConfigException("DATA009", $"input {input} does not exist as a file; check the path.");
        var tokenizer = HfTokenizer.Load(folder);
        var exitCode = ExitCode.Ok;
        foreach (var row in TokenizedRows.Read(input, config, tokenizer, Template(config, tokenizer)))
        {
            if (cancellationToken.IsCancellationRequested) break;
            console.Out.WriteLine(Line(row, tokenizer));
            if (row.Error is not null) exitCode = ExitCode.BadInput;
        }
        return Task.FromResult(exitCode);
    }

    /// <summary>The template named, else that of the model; null when there is no model to choose it from.</summary>
    private static ChatTemplate? Template(TrainingConfig config, HfTokenizer tokenizer)
    {
        if (config.Template is { } name) return ChatTemplates.Get(name);
        var model = new[] { config.Model, config.Tokenizer }.FirstOrDefault(folder => folder is not null && File.Exists(Path.Combine(folder, "config.json")));
        if (model is null) return null;
        var hf = HfConfigReader.ReadFolder(model).Model;
        return ChatTemplates.ForModel(hf.Architecture, hf.ModelType, Path.GetFileName(Path.TrimEndingDirectorySeparator(model)), tokenizer);
    }

    private static string Line(TokenizedRow row, HfTokenizer tokenizer)
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer, Options))
        {
            json.WriteStartObject();
            if (row.Error is { } error)
            {
                json.WriteString("error"u8, error.ToString());
            }
            else
            {
                WriteNumbers(json, "ids", row.Ids);
                json.WriteString("decoded"u8, tokenizer.Decode([.. row.Ids], skipSpecialTokens: false));
                if (row.Labels is { } labels)
                {
                    WriteNumbers(json, "labels", labels);
                    json.WriteString("label_text"u8, SamplePrinter.LabelText([.. labels], tokenizer));
                }
            }
            json.WriteEndObject();
        }
        return System.Text.Encoding.UTF8.GetString(buffer.GetBuffer(), 0, (int)buffer.Length);
    }

    private static void WriteNumbers(Utf8JsonWriter json, string name, IReadOnlyList<int> numbers)
    {
        json.WriteStartArray(name);
        foreach (var number in numbers) json.WriteNumberValue(number);
        json.WriteEndArray();
    }
}
