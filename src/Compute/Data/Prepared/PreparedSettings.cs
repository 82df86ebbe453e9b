using System.Globalization;
using System.IO.Hashing;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json;
using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data.Prepared;

/// <summary>Everything that the prepared form of a source depends on, by name: what it is found again by.</summary>
internal sealed class PreparedSettings
{
    private readonly SortedDictionary<string, string> _common;

    /// <param name="config">Data and template options.</param>
    /// <param name="tokenizer">The model's tokenizer.</param>
    /// <param name="template">Unbound template.</param>
    /// <param name="modelVocab">Rows of the embedding.</param>
    public PreparedSettings(TrainingConfig config, ITokenizer tokenizer, ChatTemplate template, int modelVocab)
    {
        IsLazy = config.LazyTokenize;
        _common = new SortedDictionary<string, string>(StringComparer.Ordinal)
        {
            ["form"] = PreparedFacts.CurrentFormat.ToString(CultureInfo.InvariantCulture),
            ["columns"] = config.Columns ?? "",
            ["model_name"] = JsonSerializer.Serialize(config.ModelName),
            ["model_author"] = JsonSerializer.Serialize(config.ModelAuthor),
            ["data_seed"] = (config.DataSeed ?? config.Seed).ToString(CultureInfo.InvariantCulture),
        };
        if (IsLazy)
        {
            _common["lazy_tokenize"] = "true";
            return;
        }
        _common["tokenizer"] = TokenizerHash(tokenizer);
        _common["model_vocab"] = modelVocab.ToString(CultureInfo.InvariantCulture);
        _common["template"] = JsonSerializer.Serialize(template);
        _common["agent_template"] = config.AgentTemplate ?? "";
        _common["system"] = config.System is null ? "" : "=" + config.System;
        _common["loss_scale"] = config.LossScale;
        _common["date_string"] = config.DateString;
        _common["max_length"] = config.MaxLength?.ToString(CultureInfo.InvariantCulture) ?? "";
        _common["truncation_strategy"] = config.TruncationStrategy;
    }

    /// <summary>True when rows are stored as they are and encoded when they are used.</summary>
    public bool IsLazy { get; }

    /// <summary>The settings that do not depend on the source.</summary>
    public IReadOnlyDictionary<string, string> Common => _common;

    /// <summary>The settings for one source file: the common ones, its full path, size and time of change.</summary>
    public IReadOnlyDictionary<string, string> Of(string path)
    {
        var file = new FileInfo(path);
        return new SortedDictionary<string, string>(_common, StringComparer.Ordinal)
        {
            ["source"] = file.FullName,
            ["source_bytes"] = file.Length.ToString(CultureInfo.InvariantCulture),
            ["source_changed"] = file.LastWriteTimeUtc.Ticks.ToString(CultureInfo.InvariantCulture),
        };
    }

    /// <summary>Name of the folder in which the source with these settings is kept: 32 hexadecimal digits.</summary>
    public static string Fingerprint(IReadOnlyDictionary<string, string> settings)
    {
        var hash = new XxHash128();
        foreach (var (name, value) in settings) hash.Append(Encoding.UTF8.GetBytes($"{name}\n{value.Length}\n{value}\n"));
        return Convert.ToHexStringLower(hash.GetCurrentHash());
    }

    // What a tokenizer does shows in its vocabulary and in how it cuts a text in which merges compete.
    private static string TokenizerHash(ITokenizer tokenizer)
    {
        const string probe = "The tokenizer's merges: unbelievable, 12345 +  naïve 你好世界 \t\n\n e\u0301 <|im_end|></s> don't HTTPServer x==y;";
        var hash = new XxHash128();
        for (var id = 0; id < tokenizer.VocabSize; id++)
        {
            hash.Append(MemoryMarshal.AsBytes((tokenizer.IdToToken(id) ?? "\0").AsSpan()));
            hash.Append("\n"u8);
        }
        hash.Append(MemoryMarshal.AsBytes(tokenizer.Encode(probe).AsSpan()));
        hash.Append(MemoryMarshal.AsBytes([tokenizer.BosId ?? -1, tokenizer.EosId ?? -1, tokenizer.PadId ?? -1, tokenizer.AddsBos ? 1 : 0]));
        return Convert.ToHexStringLower(hash.GetCurrentHash());
    }
}
