using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Inference;

/// <summary>How the next token is chosen.</summary>
public sealed record SamplingOptions
{
    /// <summary>Divides the logits; 0 takes the likeliest token.</summary>
    public required double Temperature { get; init; }

    /// <summary>Number of likeliest tokens to sample from; 0 takes all.</summary>
    public required int TopK { get; init; }

    /// <summary>Share of probability that the likeliest tokens sampled from must hold; 1 keeps all.</summary>
    public required double TopP { get; init; }

    /// <summary>Logits of tokens already present are divided by it when positive, multiplied when negative (arXiv 1909.05858, section 4.1); 1 is off.</summary>
    public required double RepetitionPenalty { get; init; }

    /// <summary>Always the likeliest token, nothing else.</summary>
    public static SamplingOptions Greedy { get; } = new() { Temperature = 0, TopK = 50, TopP = 1, RepetitionPenalty = 1 };
}

/// <summary>What <c>generation_config.json</c> of a model folder says; the file's own defaults where it says nothing.</summary>
public sealed record GenerationDefaults
{
    /// <summary>Name of the file.</summary>
    public const string FileName = "generation_config.json";

    /// <summary>Tokens that end an answer.</summary>
    public IReadOnlyList<int> EosIds { get; init; } = [];

    public bool DoSample { get; init; }

    public double Temperature { get; init; } = 1;

    public int TopK { get; init; } = 50;

    public double TopP { get; init; } = 1;

    public double RepetitionPenalty { get; init; } = 1;

    /// <summary>Most tokens of an answer; null when not said.</summary>
    public int? MaxNewTokens { get; init; }

    /// <summary>Reads the file of a model folder; no file, all defaults.</summary>
    /// <exception cref="ConfigException">MODEL030: it is no JSON object of the known form.</exception>
    public static GenerationDefaults Read(string folder)
    {
        var path = Path.Combine(folder, FileName);
        if (!File.Exists(path)) return new GenerationDefaults();
        try
        {
            using var document = JsonDocument.Parse(File.ReadAllBytes(path));
            var root = document.RootElement;
            JsonElement? Get(string name) => root.TryGetProperty(name, out var value) && value.ValueKind != JsonValueKind.Null ? value : null;
            return new GenerationDefaults
            {
                EosIds = Get("eos_token_id") switch
                {
                    { ValueKind: JsonValueKind.Array } list => [.. list.EnumerateArray().Select(id => id.GetInt32())],
                    { } one => [one.GetInt32()],
                    null => [],
                },
                DoSample = Get("do_sample")?.GetBoolean() ?? false,
                Temperature = Get("temperature")?.GetDouble() ?? 1,
                TopK = Get("top_k")?.GetInt32() ?? 50,
                TopP = Get("top_p")?.GetDouble() ?? 1,
                RepetitionPenalty = Get("repetition_penalty")?.GetDouble() ?? 1,
                MaxNewTokens = Get("max_new_tokens")?.GetInt32(),
            };
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or FormatException)
        {
            throw new ConfigException("MODEL030", $"{path} cannot be used ({e.Message.TrimEnd('.')}); correct or remove the file.");
        }
    }

    /// <summary>The options of the user over these defaults. Without a temperature, <c>do_sample</c> decides between greedy and sampling.</summary>
    public SamplingOptions With(TrainingConfig config) => new()
    {
        Temperature = config.Temperature ?? (DoSample ? Temperature : 0),
        TopK = config.TopK ?? TopK,
        TopP = config.TopP ?? TopP,
        RepetitionPenalty = config.RepetitionPenalty ?? RepetitionPenalty,
    };
}
